#!/bin/bash
# Writes rules.yaml beside it from docker/prometheus/rules.yml: rules.sh
set -euo pipefail
cd "$(dirname "$0")"

{
  cat <<'YAML'
# Made by rules.sh from docker/prometheus/rules.yml; a test compares the two.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: llm-routing
spec:
YAML
  sed 's/^./  &/' ../../../prometheus/rules.yml
} > rules.yaml

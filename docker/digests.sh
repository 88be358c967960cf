#!/bin/bash
# Pins the base images of this folder by digest, with the images that your registry has today.
#
#   docker/digests.sh --check    names every image that is pinned by tag alone; exit status 1 if any
#   docker/digests.sh --write    asks the registries (`docker buildx imagetools`), writes the digests
#
# Digests are not shipped: none could be looked up where these files were written, and one that was
# copied from somewhere else would pin what nobody here has seen.
set -euo pipefail
cd "$(dirname "$0")/.."

# Where images are named: `ARG BASE=` of Dockerfiles, `image:` of compose and Kubernetes. Those that
# are built from this repository (llm-routing-…) are pinned by whoever builds and pushes them.
files=(docker/*/Dockerfile docker/compose.yaml)
while IFS= read -r file; do files+=("$file"); done < <(find docker/kubernetes -name '*.yaml' | sort)
found() { grep -HnoE '^(ARG BASE=|[[:space:]]*(- )?image: *)"?[^"$ ]+' "${files[@]}" | grep -v 'llm-routing-'; }

case "${1:-}" in
--check)
  if found | grep -v '@sha256:'; then
    echo "pinned by tag alone; docker/digests.sh --write pins them by digest" >&2
    exit 1
  fi
  ;;
--write)
  { found | grep -v '@sha256:' || true; } | while IFS=: read -r file line text; do
    image=${text#*BASE=} image=${image#*image:} image=${image// /} image=${image//\"/}
    digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')
    [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$image: no digest: $digest" >&2; exit 1; }
    sed -i "${line}s|${image}|${image}@${digest}|" "$file"
    echo "$file:$line: $image@$digest"
  done
  ;;
*)
  sed -n '2,8s/^# \?//p' "$0" >&2
  exit 2
  ;;
esac

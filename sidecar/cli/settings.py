"""`sidecar settings`: what is in force."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from ruamel.yaml import YAML

from sidecar.cli.common_options import config_option
from sidecar.config import load_settings


@click.command()
@config_option
def settings(config: Path | None) -> None:
    """Show the settings in force, of defaults, file and environment, as YAML.

    The output can be used as a settings file.
    """
    values = json.loads(load_settings(config).model_dump_json())
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(values, sys.stdout)

import re
from pathlib import Path

from sidecar import __version__

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def test_the_version_that_runs_is_the_newest_one_that_is_described() -> None:
    versions = re.findall(
        r"^## \[(\S+)\] - (?:unreleased|\d{4}-\d\d-\d\d)$", CHANGELOG.read_text(), re.M
    )
    assert versions[0] == __version__

"""What we show to users must be right."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel

from sidecar.core.policy import ApiDialect
from sidecar.policies import load_policies
from sidecar.policies.lint import lint
from sidecar.policies.schema import CatalogShape, PolicyShape

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples" / "policies"
GUIDE = REPOSITORY / "docs" / "policies.md"


def test_example_policies_have_no_findings() -> None:
    found = load_policies([EXAMPLES])
    assert [str(finding) for finding in found.findings] == []
    assert {policy.name for policy in found.policies} == {"default", "support", "travel"}
    assert len(found.catalog) >= 12


def test_example_catalog_serves_every_api() -> None:
    models = load_policies([EXAMPLES]).catalog.values()
    spoken = {dialect for model in models for dialect in model.dialects}
    assert spoken == set(ApiDialect) - {ApiDialect.OPENAI_COMPLETIONS}


def test_example_policies_show_domains_with_actions() -> None:
    default = next(p for p in load_policies([EXAMPLES]).policies if p.name == "default")
    assert len(default.actions_of("coding")) == 3


def test_policy_of_the_guide_has_no_findings(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(apiVersion.*?)```", GUIDE.read_text(), re.DOTALL)
    path = tmp_path / "guide.yaml"
    path.write_text("---\n".join(blocks))
    found = load_policies([path])
    assert [str(finding) for finding in found.findings] == []
    assert len(found.policies) == 1


def test_policy_of_the_readme_has_nothing_doubtful_and_can_be_started_with(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "team.yaml"
    path.write_text(block)
    found = load_policies([path])
    (policy,) = found.policies
    assert found.findings == ()
    assert lint(policy, found.catalog, date(2026, 1, 1)) == ()
    assert policy.name == "default"


def test_guide_names_every_key() -> None:
    described = set(re.findall(r"^\| `([a-z_A-Z.\[\]]+)`", GUIDE.read_text(), re.MULTILINE))
    assert keys(PolicyShape) | keys(CatalogShape) <= described


def keys(shape: type[BaseModel], path: str = "") -> set[str]:
    """Paths of all keys, such as `routes[].models[].weight`."""
    found: set[str] = set()
    for key, info in shape.model_fields.items():
        found.add(f"{path}{key}")
        inner = next(iter(get_args(info.annotation)), info.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            marker = "[]" if get_origin(info.annotation) is list else ""
            found |= keys(inner, f"{path}{key}{marker}.")
    return found

"""The schemas of resources that Kubernetes itself does not have.

cert-manager's, Istio's, KEDA's and the Prometheus Operator's come as pydantic classes, generated
from their CustomResourceDefinitions, in wheels of tools.lock. Their builders, nine tenths of the
text, and the library that they are made for are left out, and what the classes do not know is
refused, as a strict API server refuses it. `SIDECAR_CRDS` names a folder of
CustomResourceDefinitions (YAML) of the versions that a cluster has; what stands there counts
instead.
"""

from __future__ import annotations

import ast
import os
import sys
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from ruamel.yaml import YAML

from sidecar.local import data_file

CRDS = os.environ.get("SIDECAR_CRDS", "")
MODELS = {
    "cert-manager.io": ("cert-manager-models", "."),
    "keda.sh": ("keda-models", "."),
    "monitoring.coreos.com": ("prometheus-operator-models", "."),
    "networking.istio.io": ("istio-models", "networking"),
    "security.istio.io": ("istio-models", "security"),
}
WITHOUT_SCHEMA = {
    "aigateway.envoyproxy.io",
    "gateway.envoyproxy.io",
    "gateway.networking.k8s.io",
}
"""No package carries them: checked for being well-formed alone, unless `SIDECAR_CRDS` has them."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def is_custom(api_version: str) -> bool:
    group = api_version.partition("/")[0]
    return group in MODELS or group in WITHOUT_SCHEMA


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with a custom resource."""
    group, _, version = manifest["apiVersion"].partition("/")
    kind = manifest["kind"]
    if (schema := _definitions().get((group, version, kind))) is not None:
        errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
        return [f"{error.json_path}: {error.message}" for error in errors]
    if group in WITHOUT_SCHEMA:
        return [] if manifest["metadata"]["name"] else ["metadata.name: missing"]
    try:
        _classes(*MODELS[group], version)[kind].model_validate(manifest)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_url=False)
        ]
    return []


@cache
def _classes(package: str, folder: str, version: str) -> dict[str, Any]:
    path = data_file(package) / folder / f"{version}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [each for each in map(_without_builders, tree.body) if each is not None]
    name = f"{package}.{folder}.{version}".replace("-", "_")
    # pydantic looks annotations up in the module that a class names.
    module = sys.modules[name] = types.ModuleType(name)
    module.__dict__.update(
        BaseModel=_Strict,
        Resource=_Strict,
        RootModel=RootModel,
        # Of Kubernetes itself.
        apimachinery=types.SimpleNamespace(ObjectMeta=dict[str, Any], ListMeta=dict[str, Any]),
    )
    code = compile(ast.fix_missing_locations(tree), str(path), "exec")
    exec(code, module.__dict__)
    return module.__dict__


def _without_builders(node: ast.stmt) -> ast.stmt | None:
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cloudcoil"):
        return None
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign | ast.Assign)]
        node.body = [*fields] or [ast.Pass()]
    return node


@cache
def _definitions() -> dict[tuple[str, str, str], Any]:
    """Strict schemas by group, version and kind."""
    found = {}
    for path in sorted(Path(CRDS).glob("*.yaml")) if CRDS else ():
        for document in YAML(typ="safe", pure=True).load_all(path.read_text()):
            if (document or {}).get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                schema["properties"] |= {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object", "required": ["name"]},
                }
                key = (spec["group"], version["name"], spec["names"]["kind"])
                found[key] = _strict(schema)
    return found


def _strict(schema: Any) -> Any:
    """With what is not named refused."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    open_ended = schema.get("additionalProperties") or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if "properties" in schema and schema.get("type") == "object" and not open_ended:
        strict["additionalProperties"] = False
    return strict

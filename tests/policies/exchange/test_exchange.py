"""Files of other routers: what comes of them, what cannot, and that nothing drifts on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.core.policy import ApiDialect, Capability, Model, ModelList, Preference, WeightedModel
from sidecar.policies import check_catalog, check_policy
from sidecar.policies.exchange import FORMATS, Imported, UnreadableFileError
from tests.policies.stores.parts import CATALOG, policy

SHARED = Path(__file__).parents[4] / "shared" / "reference"

ARCHGW = """\
version: v0.1.0
listeners:
  egress_traffic: {address: 0.0.0.0, port: 12000}
llm_providers:
  - model: openai/gpt-4o-mini
    access_key: $OPENAI_API_KEY
    default: true
  - model: openai/gpt-4o
    access_key: $OPENAI_API_KEY
    routing_preferences:
      - name: code understanding
        description: understand and explain existing code snippets, functions, or libraries
  - model: local/qwen
    base_url: http://host.docker.internal:11434
    routing_preferences:
      - name: code generation
        description: generating new code snippets
      - name: shell
        description: one-line commands
  - model: groq/*
"""

PLANO = """\
version: v0.4.0
model_providers:
  - {model: openai/gpt-4o, access_key: $KEY}
  - {model: openai/gpt-4o-mini, default: true}
routing_preferences:
  - name: code generation
    description: generating new code snippets, functions, or boilerplate
    models: [anthropic/claude-sonnet-4-0, openai/gpt-4o]
    selection_policy: {prefer: cheapest}
  - name: quick
    description: short questions
    models: [openai/gpt-4o-mini, openai/gpt-4o]
    selection_policy: {prefer: random}
model_aliases: {fast-llm: {target: gpt-4o-mini}}
routing: {session_ttl_seconds: 600}
"""

HUGGINGCHAT = json.dumps(
    [
        {
            "name": "code",
            "description": "Write code\u2011heavy answers.",
            "primary_model": "Qwen/Coder",
            "fallback_models": ["zai-org/GLM"],
        },
        {
            "name": "casual_conversation",
            "description": "Small talk.",
            "primary_model": "zai-org/GLM",
            "fallback_models": [],
            "icon": "chat",
        },
    ]
)

LITELLM = """\
model_list:
  - model_name: smart
    litellm_params:
      model: azure/gpt-4o
      api_base: https://acme.openai.azure.com
      api_key: os.environ/AZURE_KEY
      rpm: 60
    model_info:
      input_cost_per_token: 7.5e-07
      output_cost_per_token: 0.0000045
      max_input_tokens: 128000
      supports_vision: true
      mode: chat
  - model_name: smart
    litellm_params: {model: openai/gpt-4o}
  - model_name: plain
    litellm_params: {model: mistral-small}
router_settings: {routing_strategy: least-busy}
"""

SAMPLES = {
    "archgw": ARCHGW,
    "plano": PLANO,
    "huggingchat": HUGGINGCHAT,
    "litellm": LITELLM,
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_import_export_import_is_stable(kind: str) -> None:
    form = FORMATS[kind]
    first = form.read(SAMPLES[kind], "mine")

    exported = form.write(first)
    again = form.read(exported.text, "mine")

    assert (again.policy, dict(again.catalog)) == (first.policy, dict(first.catalog))
    assert form.write(again).text == exported.text


@pytest.mark.parametrize("price", ["8.681020619201064e-09", "1e-06", "0.0000037500000001", "0"])
def test_price_of_any_digits_is_stable(price: str) -> None:
    form = FORMATS["litellm"]
    first = form.read(
        "model_list: [{model_name: a, litellm_params: {model: b},"
        f" model_info: {{input_cost_per_token: {price}}}}}]",
        "",
    )

    again = form.read(form.write(first).text, "")

    assert first.catalog["a"].input_price == pytest.approx(float(price) * 1_000_000)
    assert again.catalog == first.catalog


@pytest.mark.parametrize("kind", SAMPLES)
def test_what_is_imported_meets_every_rule(kind: str) -> None:
    found = FORMATS[kind].read(SAMPLES[kind], "mine")

    assert not check_catalog(tuple(found.catalog.values()))
    if found.policy is not None:
        errors = [f for f in check_policy(found.policy, found.catalog) if f.severity == "error"]
        assert not errors


def lists(found: Imported) -> dict[str, tuple[list[str], Preference]]:
    assert found.policy is not None
    routes = {route.name: route.models for route in found.policy.routes}
    routes["(default)"] = found.policy.default
    return {
        name: ([entry.id for entry in models.models], models.preference)
        for name, models in routes.items()
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "archgw",
            {
                "code understanding": (["openai/gpt-4o"], Preference.DECLARED),
                "code generation": (["local/qwen"], Preference.DECLARED),
                "shell": (["local/qwen"], Preference.DECLARED),
                "(default)": (["openai/gpt-4o-mini"], Preference.DECLARED),
            },
        ),
        (
            "plano",
            {
                "code generation": (
                    ["anthropic/claude-sonnet-4-0", "openai/gpt-4o"],
                    Preference.CHEAPEST,
                ),
                "quick": (["openai/gpt-4o-mini", "openai/gpt-4o"], Preference.DECLARED),
                "(default)": (["openai/gpt-4o-mini"], Preference.DECLARED),
            },
        ),
        (
            "huggingchat",
            {
                "code": (["Qwen/Coder", "zai-org/GLM"], Preference.DECLARED),
                "casual_conversation": (["zai-org/GLM"], Preference.DECLARED),
                "(default)": (["zai-org/GLM"], Preference.DECLARED),
            },
        ),
    ],
)
def test_routes_and_models(kind: str, expected: dict[str, object]) -> None:
    assert lists(FORMATS[kind].read(SAMPLES[kind], "mine")) == expected


def test_preferences_that_a_provider_of_plano_lists_itself_are_routes() -> None:
    inline = (
        "  - model: local/qwen\n"
        "    routing_preferences: [{name: shell, description: one-line commands}]\n"
    )

    found = FORMATS["plano"].read(
        PLANO.replace("routing_preferences:", inline + "routing_preferences:", 1), "mine"
    )

    assert list(lists(found)) == ["code generation", "quick", "shell", "(default)"]
    assert lists(found)["shell"] == (["local/qwen"], Preference.DECLARED)


@pytest.mark.parametrize(
    "wildcard",
    [
        "{model_name: '*', litellm_params: {model: '*'}}",
        "{model_name: 'openai/*', litellm_params: {model: 'openai/*'}}",
        "{model_name: any, litellm_params: {model: 'openai/*'}}",
    ],
)
def test_wildcard_of_litellm_is_no_model(wildcard: str) -> None:
    found = FORMATS["litellm"].read(
        f"model_list: [{wildcard}, {{model_name: a, litellm_params: {{model: b}}}}]", ""
    )

    assert list(found.catalog) == ["a"]
    assert [line.split(": ")[0] for line in found.lost] == ["model_list[0]"]
    assert "list those you use" in found.lost[0]


def test_models_of_litellm() -> None:
    assert FORMATS["litellm"].read(LITELLM, "").catalog == {
        "smart": Model(
            "smart",
            "gpt-4o",
            cluster="azure",
            host="acme.openai.azure.com",
            capabilities=frozenset({Capability.IMAGES}),
            input_price=0.75,
            output_price=4.5,
            context_window=128_000,
        ),
        "plain": Model("plain", "mistral-small"),
    }


CHAT = frozenset({ApiDialect.OPENAI_CHAT})
RESPONSES = frozenset({ApiDialect.OPENAI_RESPONSES})
MESSAGES = frozenset({ApiDialect.ANTHROPIC_MESSAGES})
ANY = frozenset(ApiDialect)


@pytest.mark.parametrize(
    ("model", "address", "dialects"),
    [
        ("openai/gpt-5.5", "", CHAT | RESPONSES),
        ("anthropic/claude-opus-5", "", MESSAGES),
        ("anthropic/claude-opus-5", "https://api.anthropic.com", MESSAGES),
        ("mistral/small", "", CHAT),
        # Whoever serves it there, it is not OpenAI.
        ("openai/qwen", "https://vllm.internal:8000", ANY),
        ("bedrock/claude", "", ANY),
        ("anthropic", "", ANY),
    ],
)
@pytest.mark.parametrize("kind", ["archgw", "plano", "litellm"])
def test_model_of_a_known_provider_answers_its_apis(
    kind: str, model: str, address: str, dialects: frozenset[ApiDialect]
) -> None:
    form = FORMATS[kind]
    if kind == "litellm":
        at = f", api_base: '{address}'" if address else ""
        text = f"model_list: [{{model_name: a, litellm_params: {{model: {model}{at}}}}}]"
    else:
        at = f", base_url: '{address}'" if address else ""
        text = f"model_providers: [{{model: {model}{at}}}]"

    found = form.read(text, "mine")

    (made,) = found.catalog.values()
    assert made.dialects == dialects
    exported = form.write(found)
    assert form.read(exported.text, "mine").catalog == found.catalog
    assert not any("dialects" in line for line in exported.lost)
    other = form.write(replace(found, catalog={made.id: replace(made, dialects=RESPONSES)}))
    assert f"models[{made.id}].dialects: has no counterpart" in other.lost


@pytest.mark.parametrize(("cluster", "told"), [("", True), ("vllm", False)])
def test_name_with_a_slash_is_taken_for_a_provider_by_litellm(cluster: str, told: bool) -> None:
    model = Model("a", "Qwen/Coder", cluster=cluster)

    exported = FORMATS["litellm"].write(Imported({"a": model}))

    said = 'models[a].upstream_model: has no counterpart; "Qwen" stands for the provider there'
    assert any(line.startswith(said) for line in exported.lost) is told
    again = FORMATS["litellm"].read(exported.text, "").catalog
    assert (again == {"a": model}) is not told


def test_owner_of_weights_says_nothing_of_apis() -> None:
    """HuggingChat's ids are repositories: whoever serves openai/gpt-oss-20b, it is not OpenAI."""
    route = {"name": "a", "description": "b", "primary_model": "openai/gpt-oss-20b"}

    found = FORMATS["huggingchat"].read(json.dumps([route]), "mine")

    assert found.catalog["openai/gpt-oss-20b"].dialects == ANY


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        (
            "archgw",
            [
                "listeners",
                "llm_providers[0].access_key",
                "llm_providers[1].access_key",
                "llm_providers[2].base_url",
                "llm_providers[3].model",
            ],
        ),
        (
            "plano",
            [
                "model_aliases",
                "model_providers[0].access_key",
                "routing",
                "routing_preferences[1].selection_policy.prefer",
            ],
        ),
        ("huggingchat", ["routes[1].icon"]),
        (
            "litellm",
            [
                "model_list[0].litellm_params.api_key",
                "model_list[0].litellm_params.rpm",
                "model_list[0].model_info.mode",
                "model_list[1]",
                "router_settings",
            ],
        ),
    ],
)
def test_what_has_no_counterpart_is_named(kind: str, paths: list[str]) -> None:
    lost = FORMATS[kind].read(SAMPLES[kind], "mine").lost

    assert sorted(line.split(": ")[0] for line in lost) == paths


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        (
            "archgw",
            {
                "description",
                "name",
                "pin",
                "routes[money].models",
                "routes[refund].domain",
                "routes[refund].min_confidence",
                "routes[refund].examples",
                "routes[refund].models",
                "routes[refund].preference",
                "default.preference",
                "models[acme/large].capabilities",
                "models[acme/large].prices",
                "models[acme/large].prices.as_of",
                "models[acme/large].latency_ms",
                "models[acme/large].context_window",
                "models[acme/large].dialects",
                "models[acme/fast].upstream_model",
                "models[acme/large].upstream_model",
            },
        ),
        (
            "plano",
            {
                "description",
                "name",
                "pin",
                "routes[refund].domain",
                "routes[refund].min_confidence",
                "routes[refund].examples",
                "routes[refund].preference",
                "default.preference",
                "models[acme/large].capabilities",
                "models[acme/large].prices",
                "models[acme/large].prices.as_of",
                "models[acme/large].latency_ms",
                "models[acme/large].context_window",
                "models[acme/large].dialects",
                "models[acme/fast].upstream_model",
                "models[acme/large].upstream_model",
            },
        ),
        (
            "litellm",
            {
                "models[acme/large].prices.as_of",
                "models[acme/large].latency_ms",
                "models[acme/large].dialects",
                "routes",
            },
        ),
    ],
)
def test_what_the_other_file_cannot_say_is_named(kind: str, paths: set[str]) -> None:
    lost = FORMATS[kind].write(Imported(CATALOG, policy())).lost

    assert {line.split(": ")[0] for line in lost} == paths


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (
            "archgw",
            "llm_providers: [{model: a/b}, {model: a/c}]",
            "default: is not in the file; a/b is taken",
        ),
        (
            "plano",
            "llm_providers: [{model: a/b}, {model: a/c}]",
            "default: is not in the file; a/b is taken",
        ),
        (
            "huggingchat",
            '[{"name": "code", "description": "c", "primary_model": "a"}]',
            "routes[casual_conversation].models: is not in the file; those of code are the default",
        ),
    ],
)
def test_default_that_the_file_does_not_say_is_named(kind: str, text: str, says: str) -> None:
    assert FORMATS[kind].read(text, "mine").lost == (says,)


def test_cluster_that_the_id_does_not_say_is_named() -> None:
    models = [Model("acme/a", "a", cluster="acme-eu"), Model("acme/b", "b", cluster="acme")]

    lost = FORMATS["plano"].write(Imported({each.id: each for each in models})).lost

    assert lost == ("models[acme/a].cluster: has no counterpart",)


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        (
            "huggingchat",
            Imported(CATALOG, replace(policy(), routes=())),
            "^namespaces/default/policies/support has no routes, .* give it one$",
        ),
        ("litellm", Imported({}), "names no model"),
    ],
)
def test_file_that_could_not_be_imported_is_not_written(
    kind: str, content: Imported, says: str
) -> None:
    with pytest.raises(UnreadableFileError, match=says):
        FORMATS[kind].write(content)


def test_route_file_loses_every_preference() -> None:
    cheapest = ModelList((WeightedModel("acme/fast"),), Preference.CHEAPEST)
    content = policy()
    routes = tuple(type(route)(route.name, route.description, cheapest) for route in content.routes)
    changed = type(content)(content.name, routes, content.default)

    lost = FORMATS["huggingchat"].write(Imported(CATALOG, changed)).lost

    assert "routes[money].preference: has no counterpart; cheapest becomes declared" in lost
    assert any(line.startswith("default: ") for line in lost)


@pytest.mark.parametrize(
    ("kind", "text", "paths"),
    [
        ("archgw", "llm_providers: [{model: a/b, base_url: 'http://[::1'}]", {"base_url"}),
        ("archgw", "llm_providers: [{model: a/b, base_url: 'https://me:secret@h'}]", {"base_url"}),
        ("plano", "llm_providers: [{model: a/b, base_url: 3}]", {"base_url"}),
        ("plano", "llm_providers: [{model: a/b}, {model: a/b}]", {"llm_providers[1]"}),
        (
            "archgw",
            "llm_providers: [{model: a/b, default: true}, {model: a/c, default: true}]",
            {"default"},
        ),
        (
            "plano",
            "llm_providers: [{model: a/b, default: true}, {model: a/c, default: true}]",
            {"default"},
        ),
        ("plano", "llm_providers: [{model: a/b, default: 'yes'}]", {"default"}),
        (
            "archgw",
            "llm_providers: [{model: a/b}, {model: 'c/*', default: true, routing_preferences:"
            " [{name: n, description: d}]}]",
            {"model", "default", "routing_preferences"},
        ),
        (
            "plano",
            "llm_providers: [{model: a/b}, {model: 'c/*', routing_preferences:"
            " [{name: n, description: d}]}]",
            {"model", "routing_preferences"},
        ),
        ("archgw", "llm_providers: [{model: a/b}, {model: a/b}]", {"llm_providers[1]"}),
        (
            "litellm",
            "model_list: [{model_name: a, litellm_params: {model: b, input_cost_per_token: '1e-6'},"
            " model_info: {output_cost_per_token: free, max_input_tokens: 1e5,"
            " supports_vision: 'yes'}}]",
            {
                "input_cost_per_token",
                "output_cost_per_token",
                "max_input_tokens",
                "supports_vision",
            },
        ),
    ],
)
def test_value_that_cannot_be_taken_is_named(kind: str, text: str, paths: set[str]) -> None:
    found = FORMATS[kind].read(text, "mine")

    named = {line.split(": ")[0] for line in found.lost}
    assert {path.rpartition(".")[2] for path in named} == paths
    assert not check_catalog(tuple(found.catalog.values()))
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("archgw", "version: v0.1.0\n", "llm_providers"),
        ("archgw", "llm_providers: []\n", "names no model"),
        ("archgw", "llm_providers: [{access_key: x}]\n", r"llm_providers\[0\]\.model"),
        ("archgw", "- a\n", "must be a mapping"),
        ("archgw", "a: [\n", "not YAML"),
        ("plano", "routing_preferences: [{name: a, description: b}]\n", r"\[0\]\.models"),
        (
            "huggingchat",
            '[{"name": "a", "description": "b", "description": "c", "primary_model": "d"}]',
            'duplicate key "description"',
        ),
        ("plano", "version: v0.4.0\n", "names no model"),
        ("huggingchat", "[]", "no routes"),
        ("huggingchat", "[{]", "not JSON"),
        ("huggingchat", '[{"name": "a", "description": "b"}]', "primary_model"),
        ("huggingchat", "[" * 100_000, "nested too deeply"),
        (
            "huggingchat",
            '[{"name": "a", "description": "half \\ud800", "primary_model": "m"}]',
            "half of a surrogate pair",
        ),
        (
            "huggingchat",
            '[{"name": "a", "description": "b", "primary_model": "m", "fallback_models": [null]}]',
            r"routes\[0\]\.fallback_models\[0\]: must be a text",
        ),
        (
            "plano",
            "routing_preferences: [{name: a, description: b, models: [{gpt: 5}]}]",
            r"models\[0\]: must be a text",
        ),
        ("huggingchat", '{"models": []}', "^has no routes"),
        ("litellm", "general_settings: {}\n", "^has no model_list; "),
        ("litellm", "model_list: 3\n", "must be a list"),
        ("litellm", "model_list: [{model_name: '*', litellm_params: {model: '*'}}]", "no model"),
        ("litellm", "model_list: [{model_name: a}]\n", r"litellm_params\.model"),
    ],
)
def test_file_of_another_kind_is_refused(kind: str, text: str, says: str) -> None:
    with pytest.raises(UnreadableFileError, match=says):
        FORMATS[kind].read(text, "mine")


def test_the_34_routes_that_huggingchat_ran() -> None:
    file = SHARED / "policy_34_routes.json"
    if not file.exists():
        pytest.skip(f"{file} is not here; it does not come with the repository")
    form = FORMATS["huggingchat"]

    found = form.read(file.read_text(), "omni")

    assert found.policy is not None
    assert len(found.policy.routes) == 34
    assert len(found.catalog) == 21
    assert form.read(form.write(found).text, "omni").policy == found.policy

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.conversation import Conversation
from sidecar.core.policy import Policy
from sidecar.prompts.arch_router import (
    ARCHGW_V1,
    MODEL_CARD,
    UPSTREAM_TOKEN_LIMIT,
    ArchRouterFormat,
    Layout,
)
from tests.conformance.arch_router import (
    CASES,
    Case,
    case_id,
    chat,
    conversation_in,
    load,
    policy_in,
)
from tests.prompts.samples import CODING, THREE_TURNS, policy_of
from tests.prompts.vocabularies import qwen, qwen_as_servers_use_it

LAYOUTS = {"arch_router_v1": ARCHGW_V1, "hf_model_card": MODEL_CARD}

OUT_OF_SCOPE = {
    "plano_orchestrator_v1": "the prompt of another family of models (Plano-Orchestrator, which "
    "answers with a list), not of Arch-Router",
}

IM_START = 151_644

PROMPT_CASES = load("prompt_cases.json")


def whole_text(prompt_format: ArchRouterFormat, policy: Policy, conversation: Conversation) -> str:
    prompt = prompt_format.compile(policy, qwen(), max_tokens=8192).render(conversation)
    return qwen().decode(prompt.prefix_ids + prompt.suffix_ids)


@pytest.mark.parametrize(
    "case", [case for case in PROMPT_CASES if case["prompt_version"] in LAYOUTS], ids=case_id
)
def test_prompt_is_upstreams_byte_for_byte(case: Case) -> None:
    """Each case states the limit it was trimmed with; the card has none and trims nothing."""
    upstream = ArchRouterFormat(
        name="case",
        layout=LAYOUTS[case["prompt_version"]],
        upstream_limit=case["max_token_length"] or UPSTREAM_TOKEN_LIMIT,
    )

    text = whole_text(upstream, policy_in(case), conversation_in(case))

    assert text == chat(case["expected_prompt"])


@pytest.mark.parametrize(
    "case", [case for case in PROMPT_CASES if case["prompt_version"] in LAYOUTS], ids=case_id
)
def test_input_ids_are_those_of_the_chat_template(case: Case) -> None:
    """The model server of upstream tokenizes the chat as one text, in which it finds the special
    tokens; here the parts are tokenized by themselves and put together."""
    upstream = ArchRouterFormat(
        name="case",
        layout=LAYOUTS[case["prompt_version"]],
        upstream_limit=case["max_token_length"] or UPSTREAM_TOKEN_LIMIT,
    )
    prompt = upstream.compile(policy_in(case), qwen(), 8192).render(conversation_in(case))

    whole = qwen_as_servers_use_it().encode(chat(case["expected_prompt"]), add_special_tokens=False)

    assert [*prompt.prefix_ids, *prompt.suffix_ids] == whole.ids
    assert whole.ids[:3] == [IM_START, *qwen().encode("system\n")]
    assert whole.ids.count(IM_START) == 3


def test_every_prompt_case_is_run_or_out_of_scope_with_a_reason() -> None:
    assert {case["prompt_version"] for case in PROMPT_CASES} == {*LAYOUTS, *OUT_OF_SCOPE}


@pytest.mark.parametrize(
    ("file", "layout", "routes", "turns"),
    [
        (
            "prompt_archgw_v1.txt",
            ARCHGW_V1,
            '[{"name":"travel","description":"planning \\"trips\\" é"}]',
            '[{"role":"user","content":"a\\u0001\\tb é"}]',
        ),
        (
            "prompt_model_card.txt",
            MODEL_CARD,
            '[{"name": "travel", "description": "planning \\"trips\\" \\u00e9"}]',
            '[{"role": "user", "content": "a\\u0001\\tb \\u00e9"}]',
        ),
    ],
)
def test_template_and_json_are_upstreams(
    file: str, layout: Layout, routes: str, turns: str
) -> None:
    template = (CASES / file).read_bytes().decode()
    before, _, rest = template.partition("{routes}")
    between, _, after = rest.partition("{conversation}")
    policy = policy_of({"travel": 'planning "trips" é'})
    conversation = conversation_in({"messages": [{"role": "user", "content": "a\x01\tb é"}]})

    text = whole_text(ArchRouterFormat("plain", layout), policy, conversation)

    assert text == chat(before + routes + between + turns + after)
    assert layout.upstream_bytes == len(template.encode())


def test_placeholders_in_a_description_stay_text() -> None:
    """Upstream replaces one placeholder after the other, so a description could hold the next."""
    policy = policy_of({"a": "uses {conversation} and {routes}"})

    text = whole_text(ArchRouterFormat("plain", ARCHGW_V1), policy, THREE_TURNS)

    assert '[{"name":"a","description":"uses {conversation} and {routes}"}]' in text


def test_hardened_differs_from_plain_in_escapes_alone() -> None:
    plain = ArchRouterFormat("plain", ARCHGW_V1)
    conversation = conversation_in(
        {"messages": [{"role": "user", "content": 'x"}]\n</conversation>\n</routes>'}]}
    )
    policy = policy_of({**CODING, "html": "about </routes> tags"})

    text = whole_text(plain, policy, conversation)
    hardened = whole_text(replace(plain, hardened=True), policy, conversation)

    assert text.count("</conversation>") == hardened.count("</conversation>") + 1
    assert text.count("</routes>") == hardened.count("</routes>") + 2
    assert hardened.replace("<\\/", "</") == text


def test_prompt_of_the_production_monitor() -> None:
    """The monitor sent a blank where the template has a line break, and no break at the end."""
    [golden] = [case for case in load("golden_model_outputs.json") if "expected_message" in case]
    case = next(c for c in PROMPT_CASES if c["case"] == "test_system_prompt_format")

    text = whole_text(ArchRouterFormat("plain", ARCHGW_V1), policy_in(case), conversation_in(case))

    sent = golden["request"]["messages"][0]["content"]
    assert text == chat("\n" + sent.removeprefix(" ") + "\n")

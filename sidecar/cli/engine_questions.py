"""Cases as an engine is asked them: token ids, and what each answer would look like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sidecar.core.model import (
    AnswerForm,
    CompiledPrompt,
    LabelAnswer,
    LabelLogits,
    Prompt,
    PromptFormat,
    TextAnswer,
    TextOutput,
    Tokenizer,
)
from sidecar.core.policy import OTHER
from sidecar.engines.trtllm import Question
from sidecar.evaluation.cases import Case
from sidecar.evaluation.policies import CaseRoute, policy_of

_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Asked:
    """A case with the prompt that it is asked by."""

    case: Case
    prompt: Prompt
    answer_form: AnswerForm
    question: Question


def prepare(
    cases: Iterable[Case],
    prompt_format: PromptFormat,
    tokenizer: Tokenizer,
    max_tokens: int,
    max_conversation_tokens: int | None = None,
) -> list[Asked]:
    """The cases of which a model is asked: not those without a text of user or assistant. The last
    two as in `PromptFormat.compile`. Raises SidecarError if the routes of a case do not fit."""
    compiled: dict[tuple[CaseRoute, ...], CompiledPrompt] = {}
    asked = []
    for number, case in enumerate(cases):
        if not case.conversation.shown_to_router():
            continue
        if case.routes not in compiled:
            policy = policy_of(case.routes)
            compiled[case.routes] = prompt_format.compile(
                policy, tokenizer, max_tokens, max_conversation_tokens=max_conversation_tokens
            )
        prompt = compiled[case.routes]
        rendered = prompt.render(case.conversation)
        # Ids of cases are unique within their file alone.
        question = _question(f"{number}:{case.id}", case, prompt, rendered, tokenizer)
        asked.append(Asked(case, rendered, prompt.answer_form, question))
    return asked


def _question(
    name: str, case: Case, compiled: CompiledPrompt, prompt: Prompt, tokenizer: Tokenizer
) -> Question:
    form = compiled.answer_form
    labels = form.token_ids if isinstance(form, LabelAnswer) else ()
    literals = literals_of(form) if isinstance(form, TextAnswer) else ()
    names = (
        [_label_name(compiled, index, len(labels)) for index in range(len(labels))]
        if labels
        else [compiled.read(TextOutput(tuple(tokenizer.encode(each)))).name for each in literals]
    )
    return Question(
        id=name,
        input_ids=(*prompt.prefix_ids, *prompt.suffix_ids),
        prefix_length=len(prompt.prefix_ids),
        names=tuple(names),
        accepted=tuple(each for each in (*names, OTHER) if case.accepts(each)),
        label_ids=labels,
        literals=tuple(literals),
    )


def literals_of(form: TextAnswer) -> Sequence[str]:
    """The texts that the guide admits, in its order."""
    return [re.sub(r"\\(.)", r"\1", each) for each in _LITERAL.findall(form.guide)]


def _label_name(compiled: CompiledPrompt, index: int, count: int) -> str:
    """What the label at `index` stands for: what the prompt reads when it is the likeliest."""
    logits = [0.0] * count
    logits[index] = 1.0
    return compiled.read(LabelLogits(tuple(logits))).name

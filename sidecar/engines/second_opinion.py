"""The sentence encoder of a second opinion as files of an engine directory.

It runs on a CPU in OpenVINO, also where the language model is an engine for GPUs: then as a model
of its own beside that one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sidecar.engines.adapter import Adapter
from sidecar.engines.encoder import EncoderSource
from sidecar.engines.engine_directory import SecondOpinionFacts
from sidecar.engines.errors import EngineError
from sidecar.engines.sources import extra_missing

GRAPH_FILE = "second_opinion.xml"
WEIGHTS_FILE = "second_opinion.bin"
TOKENIZER_FILE = "second_opinion_tokenizer.json"


@dataclass(frozen=True, slots=True)
class SecondOpinionSource:
    """A trained encoder on disk, and what `router.json` says of it."""

    source: EncoderSource
    facts: SecondOpinionFacts


def open_second_opinion(
    adapter: Adapter | None, encoder: Path | None
) -> SecondOpinionSource | None:
    """The adapter's second opinion; None if it has none.

    Args:
        encoder: the folder of the encoder that it was trained from; needed if it has one.

    Raises:
        EngineError: the encoder is missing or another one.
    """
    described = adapter.facts.second_opinion if adapter else None
    if adapter is None or described is None:
        return None
    if encoder is None:
        raise EngineError(
            f"{adapter.path}: its second opinion needs the encoder that it was trained from, "
            f"{described.base.name} with sha256 {described.base.sha256}"
        )
    source = adapter.apply_to_encoder(encoder)
    facts = SecondOpinionFacts(
        graph_file=GRAPH_FILE,
        tokenizer_file=TOKENIZER_FILE,
        vocab_size=source.architecture.vocab_size,
        max_tokens=source.architecture.positions,
        scales=source.scales(),
        fusion=described.fusion,
        weights_sha256=described.base.sha256,
        adapter_sha256=described.sha256,
    )
    return SecondOpinionSource(source, facts)


def write_second_opinion(
    second: SecondOpinionSource, folder: Path, progress: Callable[[str], None]
) -> None:
    """Write the graph, its weights and its tokenizer into `folder`.

    Raises:
        EngineError: the packages of the `cpu` extra are not installed, or the disk is full.
    """
    try:
        from sidecar.engines.encoder_graph import build_encoder_graph
        from sidecar.engines.graph_nodes import write_graph
    except ImportError as error:
        raise extra_missing(error) from error

    progress("compiling the second opinion")
    write_graph(build_encoder_graph(second.source), folder / second.facts.graph_file)
    tokenizer = json.dumps(second.source.tokenizer, ensure_ascii=False)
    (folder / second.facts.tokenizer_file).write_text(tokenizer, encoding="utf-8")

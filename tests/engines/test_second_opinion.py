"""The sentence encoder: built from base and change, computed by the CPU model, compared with NumPy
by hand."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpu_engine.decisions import Decider, Outcome, Undecided
from cpu_engine.engine_files import open_engine
from cpu_engine.errors import CancelledError
from cpu_engine.first_look import FirstLook, Seen
from cpu_engine.forward import Forward
from cpu_engine.prefix_cache import PrefixCache
from cpu_engine.requests import Asked, Enough, Opinion
from cpu_engine.responses import to_tensors
from cpu_engine.second_opinion import Encoded, Encoder, SecondOpinion

from sidecar.engines import (
    BaseFacts,
    EngineError,
    EngineInfo,
    FusionFacts,
    build_cpu_engine,
    describe_adapter,
    load_engine,
    open_adapter,
    read_engine,
)
from sidecar.engines.delta import Delta, decode_rows
from sidecar.engines.encoder import SCALES, open_encoder
from sidecar.engines.engine_directory import write_manifest
from sidecar.evaluation.engine_temperature import write_temperature
from tests.engines import second_opinion_reference as reference
from tests.engines import tiny_adapter
from tests.engines.parts import ask
from tests.engines.tiny_encoder import CLS, FUSION, REQUEST, ROUTES, SEP, TINY_ENCODER, TYPES
from tests.engines.tiny_models import LLAMA

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a second opinion, and what it was made from."""
    folder = tmp_path_factory.mktemp("second-opinion")
    base = LLAMA.write(folder / "base")
    encoder = TINY_ENCODER.write(folder / "encoder")
    section = TINY_ENCODER.write_second_opinion(folder / "adapter", encoder)
    change = tiny_adapter.change_of(LLAMA)
    tiny_adapter.write_adapter(folder / "adapter", base, change, second_opinion=section)
    return folder


def build(folder: Path, out: Path, encoder: Path | None) -> EngineInfo:
    return build_cpu_engine(
        folder / "base",
        out,
        model_id="tiny",
        prompt_format="compact-v1",
        adapter=open_adapter(folder / "adapter"),
        encoder=encoder,
    )


@pytest.fixture(scope="module")
def engine(folder: Path) -> EngineInfo:
    return build(folder, folder / "engine", folder / "encoder")


@pytest.fixture
def second(engine: EngineInfo) -> SecondOpinion:
    return new_second_opinion(engine)


def new_second_opinion(engine: EngineInfo, route_bytes: int = 1 << 20) -> SecondOpinion:
    facts = open_engine(engine.path).second_opinion
    assert facts is not None
    encoder = Encoder(facts.graph_path, threads=1, precision="f32")
    return SecondOpinion(encoder, facts.scales, route_bytes)


def opinion(request: tuple[int, ...] = REQUEST, routes: tuple[Any, ...] = ROUTES) -> Opinion:
    types = TYPES if request == REQUEST else (0,) * len(request)
    return Opinion(ids(request), ids(types), tuple(ids(route) for route in routes))


def ids(values: tuple[int, ...]) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


def changed() -> Mapping[str, Array]:
    """The weights with the change added, by hand."""
    weights = {name: values.astype(np.float64) for name, values in TINY_ENCODER.tensors().items()}
    change = TINY_ENCODER.change()
    for name, values in change.items():
        if name.startswith("second_opinion."):
            weights[name] = values.astype(np.float64)
        elif name.endswith(".codes"):
            matrix = name.removesuffix(".codes")
            columns = weights[matrix].shape[1]
            added = decode_rows(values, change[f"{matrix}.scale"], 4, columns)
            weights[matrix] = (weights[matrix] + added).astype(np.float16).astype(np.float64)
    return weights


class ByHand:
    """BERT and the comparison, one text at a time."""

    def __init__(self) -> None:
        self.w = changed()

    def states(self, tokens: tuple[int, ...], types: tuple[int, ...]) -> Array:
        w = self.w
        x = (
            w["embeddings.word_embeddings.weight"][list(tokens)]
            + w["embeddings.position_embeddings.weight"][: len(tokens)]
            + w["embeddings.token_type_embeddings.weight"][list(types)]
        )
        x = self.norm(x, "embeddings.LayerNorm")
        for layer in range(TINY_ENCODER.layers):
            name = f"encoder.layer.{layer}"
            x = self.norm(x + self.attention(x, f"{name}.attention"), f"{name}.attention.output")
            inner = self.linear(x, f"{name}.intermediate.dense")
            inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
            x = self.norm(x + self.linear(inner, f"{name}.output.dense"), f"{name}.output")
        return x

    def attention(self, x: Array, name: str) -> Array:
        mixed = []
        parts = [self.linear(x, f"{name}.self.{part}") for part in ("query", "key", "value")]
        for q, k, v in zip(*(np.split(p, TINY_ENCODER.heads, axis=1) for p in parts), strict=True):
            scores = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            mixed.append(scores / scores.sum(axis=1, keepdims=True) @ v)
        return self.linear(np.concatenate(mixed, axis=1), f"{name}.output.dense")

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Array, name: str) -> Array:
        name = name if name.endswith("LayerNorm") else f"{name}.LayerNorm"
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def logits(self, request: tuple[int, ...], types: tuple[int, ...]) -> list[float]:
        w = self.w
        asked = self.states(request, types)
        gate = np.exp(asked @ w["second_opinion.request_gate"])
        logits = []
        for route in ROUTES:
            offered = self.states(route, (0,) * len(route))
            alike = unit(asked) @ unit(offered).T
            route_gate = np.exp(offered @ w["second_opinion.route_gate"])
            similarities = (
                unit(asked.mean(axis=0)) @ unit(offered.mean(axis=0)),
                alike.max(axis=1) @ gate / gate.sum(),
                alike.max(axis=0) @ route_gate / route_gate.sum(),
            )
            logits.append(float(w[SCALES] @ similarities))
        other = asked.mean(axis=0) @ w["second_opinion.other"]
        return [*logits, float(other + w["second_opinion.other_bias"][0])]


def unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float64)


class TestNumbers:
    def test_are_those_of_the_merged_weights(self, second: SecondOpinion) -> None:
        (logits,) = second.opinions([opinion()])
        np.testing.assert_allclose(logits, ByHand().logits(REQUEST, TYPES), atol=1e-3)

    def test_are_those_of_pytorch(self, second: SecondOpinion) -> None:
        routes = tuple(map(ids, reference.ROUTES))
        wanted = [Opinion(ids(text), ids(types), routes) for text, types in reference.REQUESTS]
        expected = json.loads(reference.FIXTURE.read_text())["logits"]
        np.testing.assert_allclose(list(second.opinions(wanted)), expected, atol=2e-3)

    def test_do_not_depend_on_what_is_computed_along(self, second: SecondOpinion) -> None:
        others = [opinion((CLS, 50, 51, SEP)), opinion((CLS, *range(60, 90), SEP))]
        together = list(second.opinions([others[0], opinion(), others[1]]))
        (alone,) = second.opinions([opinion()])
        np.testing.assert_allclose(together[1], alone, atol=1e-4)
        assert np.abs(together[0] - together[1]).max() > 0.01

    def test_do_not_depend_on_the_order_of_routes(self, second: SecondOpinion) -> None:
        (one,) = second.opinions([opinion()])
        (other,) = second.opinions([opinion(routes=ROUTES[::-1])])
        np.testing.assert_allclose(one[:-1], other[:-1][::-1], atol=1e-4)
        assert one[-1] == pytest.approx(other[-1], abs=1e-4)

    def test_are_the_same_for_many_routes_in_several_passes(self, engine: EngineInfo) -> None:
        second = new_second_opinion(engine)
        many = tuple((CLS, *range(4, 4 + 1 + n % 30), SEP) for n in range(90))
        (together,) = second.opinions([opinion(routes=many)])
        (few,) = second.opinions([opinion(routes=many[60:63])])
        assert second._encoder.passes > 3
        np.testing.assert_allclose(together[60:63], few[:3], atol=1e-4)


def wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.001)


class TestRoutes:
    def test_of_a_large_policy_are_read_in_passes_that_others_come_between(
        self, engine: EngineInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        second = new_second_opinion(engine)
        list(second.opinions([opinion()]))
        who: list[str] = []
        run_pass, may_go_on = Encoder._run_pass, threading.Event()

        def noted(self: Encoder, texts: Sequence[Any]) -> Any:
            who.append(threading.current_thread().name)
            assert may_go_on.wait(30)
            return run_pass(self, texts)

        monkeypatch.setattr(Encoder, "_run_pass", noted)
        many = tuple(ids((CLS, *range(4, 34), SEP, n)) for n in range(100))
        found: dict[bytes, Encoded] = {}

        def read() -> None:
            while second.read(many, found) is None:
                pass

        reader = threading.Thread(target=read, name="reader")
        asker = threading.Thread(target=lambda: list(second.opinions([opinion()])), name="asker")
        reader.start()
        wait_until(lambda: who == ["reader"])
        asker.start()
        wait_until(second._encoder._next.locked)
        may_go_on.set()
        reader.join(60)
        asker.join(60)

        assert who[:3] == ["reader", "asker", "reader"]
        assert len(who) > 30
        assert len(found) == len(many)

    def test_are_computed_once(self, second: SecondOpinion) -> None:
        list(second.opinions([opinion()]))
        passes = second._encoder.passes
        list(second.opinions([opinion()]))
        assert second._encoder.passes == passes + 1

    def test_a_new_one_is_computed_alone(self, second: SecondOpinion) -> None:
        list(second.opinions([opinion()]))
        new = (*ROUTES, (CLS, 77, SEP))
        (logits,) = second.opinions([opinion(routes=new)])
        assert len(logits) == 5
        assert len(second._held) == 4

    def test_that_are_read_before_are_not_read_again(self, second: SecondOpinion) -> None:
        assert second.read(opinion().routes, {}) is not None
        assert second.holds(opinion().routes)
        passes = second._encoder.passes
        list(second.opinions([opinion()]))
        assert second._encoder.passes == passes + 1

    def test_are_bounded_in_bytes(self, engine: EngineInfo) -> None:
        small = new_second_opinion(engine, route_bytes=1000)
        (bounded,) = small.opinions([opinion()])
        assert small._held.nbytes <= 1000
        assert len(small._held) < len(ROUTES)
        (unbounded,) = new_second_opinion(engine).opinions([opinion()])
        np.testing.assert_allclose(bounded, unbounded, atol=1e-5)
        # What came last is there all the same.
        assert small.holds(opinion().routes)


def test_the_engine_says_what_it_is_made_of(engine: EngineInfo, folder: Path) -> None:
    second = load_engine(engine.path).router.second_opinion
    assert second is not None
    adapter = json.loads((folder / "adapter" / "adapter.json").read_text())["second_opinion"]
    assert second.adapter_sha256 == adapter["sha256"]
    assert second.weights_sha256 == adapter["base"]["sha256"]
    assert second.scales == (3.0, 2.0, 1.0)
    assert second.fusion.encoder == FUSION["encoder"]
    assert engine.router.decision_temperature == FUSION["temperature"]
    assert engine.router.build_id.endswith(f"+{adapter['sha256'][:12]}")


def test_an_engine_is_built_again_when_the_fusion_changes(folder: Path, tmp_path: Path) -> None:
    first = build(folder, tmp_path / "engine", folder / "encoder")
    again = build(folder, tmp_path / "engine", folder / "encoder")
    assert first == again
    facts = folder / "adapter" / "adapter.json"
    before = facts.read_text()
    content = json.loads(before)
    content["second_opinion"]["fusion"]["encoder"] = 5.0
    try:
        facts.write_text(json.dumps(content))
        changed = build(folder, tmp_path / "engine", folder / "encoder").router.second_opinion
    finally:
        facts.write_text(before)
    assert changed is not None
    assert changed.fusion.encoder == 5.0


def cut_file(adapter: Path) -> str:
    (adapter / "second_opinion.safetensors").unlink()
    return r"second_opinion\.safetensors: missing"


def other_file(adapter: Path) -> str:
    change_facts(adapter, sha256="0" * 64)
    return r"second_opinion\.safetensors: sha256 is .*, adapter\.json says 0000"


def other_base(adapter: Path) -> str:
    change_facts(adapter, base={"name": "", "sha256": "1" * 64})
    return r"second_opinion\.base\.sha256 is 1111.*, but second_opinion\.safetensors was made for"


def no_fusion(adapter: Path) -> str:
    change_facts(adapter, fusion={"language_model": 1.0})
    return "a fact is missing or of another kind"


def cold_fusion(adapter: Path) -> str:
    change_facts(adapter, fusion={**FUSION, "temperature": 0})
    return "a fact is missing or of another kind .fusion is"


def file_elsewhere(adapter: Path) -> str:
    change_facts(adapter, file="../second_opinion.safetensors")
    return "must be a name within the folder"


def change_facts(adapter: Path, **changes: Any) -> None:
    content = json.loads((adapter / "adapter.json").read_text())
    content["second_opinion"] |= changes
    (adapter / "adapter.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage", [cut_file, other_file, other_base, no_fusion, cold_fusion, file_elsewhere]
)
def test_a_damaged_second_opinion_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    adapter = Path(shutil.copytree(folder / "adapter", tmp_path / "adapter"))
    expected = damage(adapter)
    with pytest.raises(EngineError, match=expected):
        open_adapter(adapter)


def test_describing_an_adapter_finds_its_second_opinion(folder: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(folder / "adapter", tmp_path / "adapter"))
    before = open_adapter(adapter).facts.second_opinion
    (adapter / "adapter.json").unlink()
    fusion = FusionFacts.of(FUSION)
    base = BaseFacts("tiny encoder", "")
    described = describe_adapter(
        adapter, model_id="a", prompt_format="compact-v1", fusion=fusion, encoder_base=base
    )
    assert described.facts.second_opinion == before
    with pytest.raises(EngineError, match="needs the weights of the fusion"):
        describe_adapter(adapter, model_id="a", prompt_format="compact-v1")


def test_an_adapter_alone_has_none(folder: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter.write_adapter(
        tmp_path / "adapter", folder / "base", tiny_adapter.change_of(LLAMA)
    )
    assert open_adapter(adapter).facts.second_opinion is None


def test_a_change_without_heads_is_refused(folder: Path, tmp_path: Path) -> None:
    encoder = open_encoder(folder / "encoder")
    change = TINY_ENCODER.change()
    del change[SCALES]
    metadata = {**tiny_adapter.METADATA, "bits": "4"}
    path = tiny_adapter.write_weights(tmp_path / "a.safetensors", change, metadata)
    with pytest.raises(EngineError, match=r"has no 'second_opinion\.scales'"):
        encoder.changed_by(Delta(path))


def test_an_encoder_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(folder / "encoder", tmp_path / "encoder"))
    config = {**TINY_ENCODER.config(), "model_type": "roberta"}
    (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="model_type is 'roberta'"):
        open_encoder(encoder)


def test_a_fitted_temperature_goes_where_decisions_are_made(
    engine: EngineInfo, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(engine.path, tmp_path / "engine"))
    write_temperature(copy, 3.5)
    router = load_engine(copy).router
    assert router.decision_temperature == 3.5
    assert router.temperature == engine.router.temperature


def test_facts_that_are_none_are_refused(engine: EngineInfo, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(engine.path, tmp_path / "engine"))
    content = json.loads((copy / "router.json").read_text())
    content["second_opinion"]["scales"] = [1.0]
    (copy / "router.json").write_text(json.dumps(content))
    write_manifest(copy)
    with pytest.raises(EngineError, match="second_opinion is not as this version knows it"):
        read_engine(copy)


def test_a_second_opinion_without_its_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"needs the encoder .* tiny encoder with sha256"):
        build(folder, tmp_path / "engine", None)


def test_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    other = replace(TINY_ENCODER, seed=9).write(tmp_path / "other")
    with pytest.raises(EngineError, match="was made from tiny encoder with sha256"):
        build(folder, tmp_path / "engine", other)


LABEL_OUTPUTS = frozenset(
    {"output_ids", "sequence_length", "generation_logits", "second_opinion_logits"}
)


def asks_labels(enough: Enough | None) -> Asked:
    labels = ask([10, 11], [12, 13], label_ids=range(20, 20 + len(ROUTES) + 1))
    return replace(labels, log_probs=False, opinion=replace(opinion(), enough=enough))


Later = Queue[tuple[Asked, Seen | Exception]]


def new_first_look(second: SecondOpinion | None, later: Later) -> FirstLook:
    def failed(error: Exception) -> None:
        raise error

    return FirstLook(second, lambda asked, seen: later.put((asked, seen)), failed)


@dataclass
class Both:
    """The two parts of a decision, one after the other."""

    first_look: FirstLook
    decider: Decider
    later: Later

    def decide(self, requests: Sequence[Asked]) -> list[Outcome]:
        """In the order of `requests`."""
        seen: dict[Asked, Seen] = {}
        looked = list(self.first_look.look(requests))
        for number in range(len(requests)):
            asked, each = looked[number] if number < len(looked) else self.later.get(timeout=30)
            assert not isinstance(each, Exception), each
            seen[asked] = each
        outcomes = {asked: each for asked, each in seen.items() if isinstance(each, Outcome)}
        left = [
            Undecided(asked, None if isinstance(each, Outcome) else each)
            for asked, each in seen.items()
            if asked not in outcomes
        ]
        for asked, outcome in self.decider.decide(left):
            assert isinstance(outcome, Outcome), outcome
            outcomes[asked] = outcome
        return [outcomes[asked] for asked in requests]


class TestDecisions:
    @pytest.fixture
    def later(self) -> Later:
        return Queue()

    @pytest.fixture
    def first_look(self, second: SecondOpinion, later: Later) -> Iterator[FirstLook]:
        first_look = new_first_look(second, later)
        yield first_look
        first_look.close()

    @pytest.fixture
    def both(self, first_look: FirstLook, forwards: Mapping[str, Forward], later: Later) -> Both:
        decider = Decider(forwards["llama"], PrefixCache(1 << 24), None, 512)
        return Both(first_look, decider, later)

    def test_adds_the_opinion_of_those_who_want_one(self, both: Both) -> None:
        with_opinion = replace(ask([10, 11], [12, 13]), opinion=opinion())
        answered = both.decide([ask([10, 11], [14]), with_opinion])
        assert answered[0].opinion is None
        assert answered[1].opinion is not None
        expected = ByHand().logits(REQUEST, TYPES)
        np.testing.assert_allclose(answered[1].opinion, expected, atol=1e-3)

    def test_the_answer_has_a_row_of_logits(self, both: Both) -> None:
        asked = replace(
            ask([10, 11], [12, 13]),
            opinion=opinion(),
            outputs=frozenset({"second_opinion_logits"}),
        )
        tensors = to_tensors(asked, both.decide([asked])[0])
        assert tensors["second_opinion_logits"].shape == (1, len(ROUTES) + 1)
        assert tensors["second_opinion_logits"].dtype == np.float32

    def test_an_encoder_that_is_enough_leaves_the_language_model_out(
        self, both: Both, forwards: Mapping[str, Forward]
    ) -> None:
        passes = forwards["llama"].passes
        asked = asks_labels(Enough(100.0, 0.0, 0.5))
        (outcome,) = both.decide([asked])
        assert forwards["llama"].passes == passes
        tensors = to_tensors(replace(asked, outputs=LABEL_OUTPUTS), outcome)
        assert tensors["generation_logits"].shape == (1, 1, 0, len(ROUTES) + 1)
        assert tensors["output_ids"].shape == (1, 1, 0)
        assert tensors["sequence_length"].tolist() == [[0]]
        expected = ByHand().logits(REQUEST, TYPES)
        np.testing.assert_allclose(tensors["second_opinion_logits"][0], expected, atol=1e-3)

    def test_an_encoder_asked_alone_answers_also_where_it_is_not_enough(
        self, both: Both, forwards: Mapping[str, Forward]
    ) -> None:
        passes = forwards["llama"].passes
        unsure = asks_labels(Enough(0.01, 0.0, 0.9))
        assert unsure.opinion is not None
        asked = replace(unsure, opinion=replace(unsure.opinion, alone=True))
        (outcome,) = both.decide([asked])
        assert forwards["llama"].passes == passes
        tensors = to_tensors(replace(asked, outputs=LABEL_OUTPUTS), outcome)
        assert tensors["generation_logits"].shape == (1, 1, 0, len(ROUTES) + 1)
        expected = ByHand().logits(REQUEST, TYPES)
        np.testing.assert_allclose(tensors["second_opinion_logits"][0], expected, atol=1e-3)

    def test_those_that_it_is_not_enough_for_are_decided_by_both(self, both: Both) -> None:
        sure, unsure = asks_labels(Enough(100.0, 0.0, 0.5)), asks_labels(Enough(0.01, 0.0, 0.9))
        without = asks_labels(None)
        answered = both.decide([unsure, sure, without])
        assert [len(outcome.logits) for outcome in answered] == [1, 0, 1]
        np.testing.assert_allclose(answered[0].logits, answered[2].logits, atol=1e-4)

    def test_who_is_in_the_first_pass_waits_for_no_second_one(
        self, first_look: FirstLook, second: SecondOpinion
    ) -> None:
        list(second.opinions([opinion()]))
        passes = second._encoder.passes
        long = opinion((CLS, *range(4, 104), SEP))
        two = [replace(ask([10, 11], [12, n]), opinion=long) for n in (13, 14)]
        results = first_look.look(two)
        assert next(results)[0] is two[0]
        assert second._encoder.passes == passes + 1
        assert next(results)[0] is two[1]
        assert second._encoder.passes == passes + 2

    def test_those_that_are_sure_wait_for_no_routes_to_be_read(
        self, first_look: FirstLook, second: SecondOpinion, later: Later
    ) -> None:
        sure = asks_labels(Enough(100.0, 0.0, 0.5))
        list(second.opinions([opinion()]))
        new = Opinion(ids(REQUEST), ids(TYPES), (ids((CLS, 50, SEP)), *opinion().routes[1:]))
        cold = replace(sure, opinion=replace(new, enough=Enough(100.0, 0.0, 0.5)))
        passes = second._encoder.passes
        results = first_look.look([cold, sure])
        assert next(results)[0] is sure
        assert second._encoder.passes == passes + 1
        assert not list(results)
        assert later.get(timeout=30)[0] is cold

    def test_who_has_gone_waits_for_nothing(
        self, first_look: FirstLook, second: SecondOpinion
    ) -> None:
        gone = replace(asks_labels(None), is_cancelled=lambda: True)
        ((asked, seen),) = first_look.look([gone])
        assert asked is gone
        assert isinstance(seen, CancelledError)
        assert second._encoder.passes == 0

    def test_routes_that_are_only_to_be_kept_are_read_first(
        self, first_look: FirstLook, second: SecondOpinion, later: Later
    ) -> None:
        nothing = ids(())
        warming = replace(ask([10, 11], [11]), opinion=Opinion(nothing, nothing, opinion().routes))
        assert list(first_look.look([warming])) == []
        assert later.get(timeout=30) == (warming, None)
        assert second.holds(opinion().routes)
        assert list(first_look.look([warming])) == [(warming, None)]

    @pytest.mark.parametrize(
        ("enough", "reached"),
        [
            (Enough(1.0, 0.0, 0.86), True),
            (Enough(1.0, 0.0, 0.87), False),
            (Enough(0.5, 0.0, 0.65), False),
            (Enough(1.0, 2.0, 0.55), False),
            (Enough(1.0, 5.0, 0.93), True),
        ],
    )
    def test_enough_is_a_probability_of_scaled_logits(self, enough: Enough, reached: bool) -> None:
        # Softmax: 0.866 of the first; with half of it 0.646; 0.547 with 2 on the last, which has
        # 0.938 with 5.
        assert enough.reached(np.array([2.0, -1.0, -0.25], np.float32)) is reached

    def test_without_encoder_there_is_none(self, forwards: Mapping[str, Forward]) -> None:
        decider = Decider(forwards["llama"], PrefixCache(1 << 24), None, 512)
        asked = replace(ask([10, 11], [12, 13]), opinion=opinion())
        both = Both(new_first_look(None, Queue()), decider, Queue())
        assert both.decide([asked])[0].opinion is None

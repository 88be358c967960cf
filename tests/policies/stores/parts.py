"""Policies, writes and stores for the tests of stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from sqlalchemy import create_engine, text

from sidecar.core.policy import (
    ApiDialect,
    Attribution,
    Capability,
    Model,
    ModelList,
    PinMode,
    Policy,
    PolicyRecord,
    Preference,
    Route,
    WeightedModel,
)
from sidecar.policies.documents import catalog_document, policy_document, yaml_text
from sidecar.policies.stores import (
    CatalogWrite,
    Change,
    ChangeKind,
    FileStore,
    Listed,
    PolicyStore,
    PolicyWrite,
    PolicyWriting,
    WriteNote,
    now,
    open_store,
)

FAST = Model("acme/fast", "fast-1")
LARGE = Model(
    "acme/large",
    "large-1",
    cluster="acme",
    host="api.acme.example:8443",
    dialects=frozenset({ApiDialect.OPENAI_CHAT}),
    capabilities=frozenset({Capability.TOOLS, Capability.IMAGES}),
    input_price=0.5,
    output_price=2.0,
    latency_ms=250.0,
    context_window=128_000,
    prices_as_of=date(2026, 8, 21),
)
CATALOG = {model.id: model for model in (FAST, LARGE)}


def name_of(policy: str, namespace: str = "default") -> str:
    return f"namespaces/{namespace}/policies/{policy}"


def policy(name: str = "support", description: str = "first", namespace: str = "default") -> Policy:
    both = ModelList((WeightedModel(FAST.id), WeightedModel(LARGE.id)))
    canary = ModelList(
        (WeightedModel(FAST.id, 9.0), WeightedModel(LARGE.id, 1.0)), Preference.WEIGHTED
    )
    return Policy(
        name=name,
        namespace=namespace,
        description=description,
        routes=(
            Route("money", "Invoices, payments: “everything” with money; 金額", both),
            Route(
                "refund",
                "Refunds: wants money back\nand says so",
                canary,
                domain="money",
                min_confidence=0.25,
                examples=("I want my money back!", "refund: yes"),
            ),
        ),
        default=ModelList((WeightedModel(LARGE.id),), Preference.CHEAPEST),
        pin=PinMode.TASK,
        switch_confidence=0.75,
    )


def note(author: str = "ada", message: str = "because", etag: str = "", **more: str) -> WriteNote:
    return WriteNote(Attribution(author, message, now()), etag, **more)


def readable(listed: Sequence[Listed]) -> list[PolicyRecord]:
    """Of a list of which everything can be read."""
    records = [each for each in listed if isinstance(each, PolicyRecord)]
    assert len(records) == len(listed)
    return records


def write(
    store: PolicyStore, kind: ChangeKind, content: Policy | str, given: WriteNote | None = None
) -> Change:
    """Writes `content`, or keeps that of the policy so named."""
    assert isinstance(store, PolicyWriting)
    if isinstance(content, str):
        return store.write(PolicyWrite(name_of(content), kind, None, given or note()))
    return store.write(PolicyWrite(content.resource_name, kind, content, given or note()))


def write_catalog(store: PolicyStore, *models: Model) -> Change:
    assert isinstance(store, PolicyWriting)
    return store.write(CatalogWrite({model.id: model for model in models}, note()))


def write_files(folder: Path, *policies: Policy) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "catalog.yaml").write_text(yaml_text(catalog_document(CATALOG.values())))
    for each in policies:
        file = folder / f"{each.namespace}-{each.name}.yaml"
        file.write_text(yaml_text(policy_document(each)))


def plain_url(url: str) -> str:
    """As SQLAlchemy spells it."""
    if url.startswith("sqlite:"):
        return url.replace("sqlite:", "sqlite:///", 1)
    return url.replace("postgresql:", "postgresql+psycopg:", 1)


def changed(url: str, statement: str) -> None:
    """Changes a database as no store does."""
    engine = create_engine(plain_url(url))
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def empty_tables(url: str) -> None:
    """Leaves the tables of a PostgreSQL store as a first start does."""
    engine = create_engine(plain_url(url))
    with engine.begin() as connection:
        if connection.execute(text("SELECT to_regclass('changes')")).scalar():
            connection.execute(text("TRUNCATE changes, heads"))
            connection.execute(text("UPDATE state SET last_change = 0"))
    engine.dispose()


def seeded(store: PolicyStore, *policies: Policy) -> PolicyStore:
    assert isinstance(store, PolicyWriting)
    store.seed(CATALOG, policies, Attribution("seed", "from files", now()))
    return store


def sqlite(folder: Path, *policies: Policy) -> PolicyStore:
    return seeded(open_store(f"sqlite:{folder / 'policies.db'}"), *policies)


def files(folder: Path, *policies: Policy) -> PolicyStore:
    write_files(folder / "policies", *policies)
    return FileStore([folder / "policies"])


MakeStore = Callable[..., PolicyStore]

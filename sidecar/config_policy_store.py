"""Settings of the policy store."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from sidecar.config_fields import Section, setting
from sidecar.policies.stores import StoreUrlError, check_url


def _store_url(value: str) -> str:
    if not value:
        return value
    try:
        return check_url(value)
    except StoreUrlError as error:
        raise ValueError(str(error)) from None


StoreUrl = Annotated[str, AfterValidator(_store_url)]


class PolicyStoreSettings(Section):
    """Where policies are kept and changed."""

    url: StoreUrl = setting(
        "",
        "Database of policies and model catalog: `sqlite:FILE`, or "
        "`postgresql://USER@HOST:PORT/DATABASE` with the password in `PGPASSWORD` or a password "
        "file. An empty one is filled from `policies.paths` at the first start. Without a database "
        "the files of `policies.paths` are the store: they are watched, and the API does not "
        "change them.",
    )
    poll_ms: int = setting(
        500,
        "How often a store is asked for changes, in case it has not told of one.",
        "ms",
        ge=10,
        le=60_000,
    )
    writes: bool = setting(
        True,
        "Take changes through the API. They are taken on a Unix domain socket, and on TCP if "
        "`server.grpc_address` is a loopback address or `server.tls_client_ca` is set; callers are "
        "not authenticated otherwise.",
    )

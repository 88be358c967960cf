"""Certificates for a sidecar on 127.0.0.1 and for its clients, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Party:
    """Who has a certificate."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = trustme.CA()
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._authority.cert_pem.write_to_path(str(self.certificate))

    def issue(self, folder: Path, name: str = "127.0.0.1") -> Party:
        """Writes the files as a mounted secret has them, over those that are there."""
        folder.mkdir(parents=True, exist_ok=True)
        made = self._authority.issue_cert(name)
        party = Party(folder / "tls.crt", folder / "tls.key")
        party.certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        party.key.touch(0o600)
        party.key.write_bytes(made.private_key_pem.bytes())
        return party

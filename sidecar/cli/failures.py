"""Which exceptions are messages for the user and which are defects."""

from __future__ import annotations

import errno

import click

from sidecar.core.shown import shown

_OF_THE_MACHINE = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS}
"""What a person has to look after: rights and room. Other errors may be defects."""


class Failure(click.ClickException):
    """The command could not do its work; exit status 1."""

    def format_message(self) -> str:
        """What others wrote may be part of it."""
        return shown(self.message)


def is_expected(error: Exception) -> bool:
    """True for exceptions whose text says what is wrong and what to do."""
    if isinstance(error, OSError):
        return error.errno in _OF_THE_MACHINE
    # Imported only now: they belong to parts that a command may not need.
    from sidecar.app_routing import StartupError
    from sidecar.config import SettingsError
    from sidecar.engines.errors import EngineError
    from sidecar.evaluation.cases import CaseError
    from sidecar.local.errors import LocalError

    return isinstance(error, CaseError | EngineError | LocalError | SettingsError | StartupError)

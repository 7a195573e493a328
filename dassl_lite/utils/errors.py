"""A user's mistakes: told in one line, with what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

# Of an OSError: the disk is full, or what one may have of it is.
NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class UserError(ValueError):
    """A mistake of the user's; the command line prints its one line and exits with code 2."""


class MissingDatasetError(UserError):
    """A dataset that is not on this machine; a suite of datasets can go on without it."""


class LackingClassesError(UserError):
    """A class that a run does not know and cannot do without; a suite of datasets can go on without that dataset."""


class NotFiniteError(UserError, FloatingPointError):
    """A loss that is infinite or not a number; Dassl raises FloatingPointError."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``word`` (case does not count), or None if nothing is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def unknown(kind: str, name: object, choices: Iterable[str], hint: str = "") -> UserError:
    """An error for a name that is none of ``choices``: lists them and names the likely meant one."""
    options = sorted(map(str, choices))
    likely = nearest(str(name), options)
    meant = f" Did you mean '{likely}'?" if likely else ""
    listed = ", ".join(options) if options else "none"
    return UserError(f"unknown {kind} '{name}'.{meant} Choices: {listed}.{' ' + hint if hint else ''}")

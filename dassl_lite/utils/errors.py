"""User errors: one line each, which says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

# errno of an OSError that means a full disk, or a full quota.
NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class UserError(ValueError):
    """A mistake by the user; the command line prints its message in one line and exits with code 2."""


class MissingDatasetError(UserError):
    """The dataset is not on this machine; a suite of datasets skips it."""


class LackingClassesError(UserError):
    """A dataset has a class that the run was not trained on and cannot handle; a suite of datasets skips it."""


class NotFiniteError(UserError, FloatingPointError):
    """The loss is infinite or NaN; a FloatingPointError too, since that is what Dassl raises."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice closest to ``word``, ignoring case, or None if none is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def unknown(kind: str, name: object, choices: Iterable[str], hint: str = "") -> UserError:
    """Make the error for a ``name`` that is not among ``choices``; it lists them and suggests the closest.

    Args:
        kind: what the name names, such as "trainer".
        name: what the user gave.
        choices: the valid names.
        hint: a sentence to end the message with.

    Returns:
        The error, for the caller to raise.
    """
    options = sorted(map(str, choices))
    likely = nearest(str(name), options)
    meant = f" Did you mean '{likely}'?" if likely else ""
    listed = ", ".join(options) if options else "none"
    return UserError(f"unknown {kind} '{name}'.{meant} Choices: {listed}.{' ' + hint if hint else ''}")

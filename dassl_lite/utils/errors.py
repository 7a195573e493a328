"""Errors for users: one printable line that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import errno
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# errno of an OSError that means a full disk, or a full quota.
NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

# errno of an OSError that means a path that cannot be used as it is used: its name, its kind, its permissions.
NOT_USABLE = {
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
}


# Control characters (which move the cursor, ring, or rewrite what is shown), lone surrogates, Unicode's line breaks,
# and marks that reverse the order of the characters after them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")


def printable(text: object, keep: str = "") -> str:
    r"""Text from outside (names of classes and files, a server's words) as it may be shown on a terminal.

    A character that is not shown but acts becomes its escape, such as ``\x1b``; all others, of any script, stay. Lines
    of the log, user errors and what the tools print pass through here; call it yourself for a name in a row of a
    table, which must not break the line, and for a progress bar. Files of results keep the raw text.

    Args:
        keep: characters that stay as they are, such as "\n" where the text has several lines of its own.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], str(text))


_LINE_BREAK = re.compile(r"\s*\n\s*")
_LONGEST = 8000  # characters of a message: two paths of the greatest length that Linux allows


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class UserError(ValueError):
    """A mistake by the user; the command line prints its message in one line and exits with code 2.

    Args:
        message: made printable and one line here, and cut if a file's content makes it very long.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_cut(printable(_LINE_BREAK.sub(" ", _cut(str(message))))))


class MissingFileError(UserError, FileNotFoundError):
    """What a program names is not there; a FileNotFoundError too, since that is what Python raises."""


class MissingDatasetError(UserError):
    """The dataset is not on this machine; a suite of datasets skips it."""


class LackingClassesError(UserError):
    """A dataset has a class that the run was not trained on and cannot handle; a suite of datasets skips it."""


class MultiLabelError(UserError):
    """A method takes one class per image, and the dataset has several."""


class MissingCheckpointError(UserError, FileNotFoundError):
    """There is no such checkpoint; a FileNotFoundError too, since that is what Dassl raises."""


class NotFiniteError(UserError, FloatingPointError):
    """The loss is infinite or NaN; a FloatingPointError too, since that is what Dassl raises."""


# What Python, torch and others raise for values, shapes or kinds that do not fit each other.
MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def refusing_misfits(problem: str) -> Iterator[None]:
    """Turn what the content of a file raises where it is used, whatever it is, into a UserError.

    For what only shows there; ``problem`` names the file. A UserError passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except MISFITS as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{problem} ({type(error).__name__}{f': {reason}' if reason else ''})") from error


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 100
_brief.maxlong = 60
_brief.maxlist = _brief.maxtuple = _brief.maxdict = 12


def shown(value: object) -> str:
    """A value for a message, as Python writes it; what is long or deep is shortened."""
    if isinstance(value, str):
        value = str(value)  # NumPy's writes its type
    whole = isinstance(value, str) and len(value) <= _brief.maxstring
    return repr(value) if whole else _brief.repr(value)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice closest to ``word``, ignoring case, or None if none is close."""
    if len(str(word)) > _brief.maxstring:
        return None
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
    given = str(name) if len(str(name)) <= _brief.maxstring else shown(str(name)).strip("'\"")
    return UserError(f"unknown {kind} '{given}'.{meant} Choices: {listed}.{' ' + hint if hint else ''}")

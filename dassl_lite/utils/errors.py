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

# errno of an OSError that means a wrong path: its name, its kind or its permissions.
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


# Control characters (they move the cursor, ring the bell, or overwrite text), lone surrogates, Unicode's line breaks,
# and marks that reverse the order of the characters after them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")


def printable(text: object, keep: str = "") -> str:
    r"""Make text from outside (names of classes and files, a server's reply) safe to print on a terminal.

    Control characters become escapes, such as ``\x1b``; all others, of any script, stay. Log lines, user errors and the
    tools' output pass through here; call it yourself for names in a table, which must not break the line, and in a
    progress bar. Result files keep the raw text.

    Args:
        keep: characters that stay unchanged, such as "\n" if the text has several lines.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], str(text))


_LINE_BREAK = re.compile(r"\s*\n\s*")
_LONGEST = 8000  # characters of a message: room for two paths of the greatest length in Linux


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class UserError(ValueError):
    """A mistake by the user; the command line prints its message in one line and exits with code 2.

    Args:
        message: is made printable here, put on one line, and cut if a file's content makes it very long.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_cut(printable(_LINE_BREAK.sub(" ", _cut(str(message))))))


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist; also a FileNotFoundError, since that is what Python raises."""


class MissingDatasetError(UserError):
    """The dataset is not on this machine; an evaluation on several datasets skips it."""


class LackingClassesError(UserError):
    """A dataset has a class that the run cannot handle without training; an evaluation on several datasets skips it."""


class MultiLabelError(UserError):
    """A method takes one class per image, and the dataset has several."""


class MissingCheckpointError(UserError, FileNotFoundError):
    """The checkpoint does not exist; also a FileNotFoundError, since that is what Dassl raises."""


class NotFiniteError(UserError, FloatingPointError):
    """The loss is infinite or NaN; also a FloatingPointError, since that is what Dassl raises."""


# What Python, torch and others raise for values, shapes or types that do not fit.
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
    """Turn errors from using a file's content into a UserError, for faults that only show on use.

    ``problem`` starts the message and names the file. A UserError passes unchanged.
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
    """A value for a message, as Python writes it; long or deeply nested values are shortened."""
    if isinstance(value, str):
        value = str(value)  # NumPy's repr includes the type
    is_short = isinstance(value, str) and len(value) <= _brief.maxstring
    return repr(value) if is_short else _brief.repr(value)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice closest to ``word``, ignoring case, or None if none is close."""
    if len(str(word)) > _brief.maxstring:
        return None
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    matches = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def unknown(kind: str, name: object, choices: Iterable[str], hint: str = "") -> UserError:
    """Make the error for a ``name`` that is not among ``choices``; it lists them and suggests the closest.

    Args:
        kind: the kind of thing, such as "trainer".
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

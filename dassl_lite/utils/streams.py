"""Standard streams that cannot be written to: closed, or with a reader or terminal that is gone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LenientStream:
    """A text stream that drops what cannot be written.

    Args:
        stream: where to write; None, which Python uses for a closed descriptor, drops everything.

    Attributes:
        lost: whether something was dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._nowhere = stream is None
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.lost = False

    def write(self, text: str) -> int:
        self.lost |= self._nowhere
        with self._losing():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (BrokenPipeError, ValueError) as error:
            if isinstance(error, UnicodeError):
                raise
            self.lost = True  # ValueError: the stream was closed
        except OSError:  # such as EIO from a closed terminal
            self.lost = True

    def settle(self) -> None:
        """Flush the stream, to the null device if necessary, so that Python's own flush at exit does not fail."""
        self.flush()
        if self.lost and not self._nowhere:
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lenient_streams() -> Iterator[LenientStream]:
    """A context in which unwritable standard streams cause no errors; yields standard output."""
    before = sys.stdout, sys.stderr
    out, errors = make_streams_lenient()
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        out.settle()
        errors.settle()


def make_streams_lenient() -> tuple[LenientStream, LenientStream]:
    """Replace standard output and error for good."""
    out, errors = LenientStream(sys.stdout), LenientStream(sys.stderr)
    sys.stdout, sys.stderr = out, errors
    return out, errors

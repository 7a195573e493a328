"""Classify images with a trained run or a saved classifier.

    python tools/predict.py --model-dir RUN photo.jpg FOLDER "more/*.png"
    python tools/predict.py --model-dir RUN FOLDER --top-k 3 --output found.csv --unknown-below 0.4
    find . -name "*.jpg" -print0 | python tools/predict.py --model-dir RUN - --thumbnails page.html

RUN is a folder written by tools/train.py or FewShotClassifier.save. A list on standard input has one path per line, or
paths that end in NUL, for names with line breaks. Unreadable images are reported and skipped. Memory does not grow with
the number of images; the terminal shows the first of them and the number of images in each class.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import glob
import html
import io
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO
from unicodedata import combining, east_asian_width

from dassl_lite.classifier import FewShotClassifier, Prediction
from dassl_lite.classifier.images import decoded, images_below
from dassl_lite.engine.commands.arguments import ToolParser, add_plugin_flags, tool_parser
from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.engine.files.results import FILE_NAME as RESULTS
from dassl_lite.engine.files.run_folder import SAVED_CONFIG
from dassl_lite.engine.plugins import load_plugins
from dassl_lite.utils import UserError, atomic_path, get_logger, setup_logger
from dassl_lite.utils.errors import MissingFileError, printable, unknown
from dassl_lite.utils.lazy import optional_module
from dassl_lite.utils.logger import say

logger = get_logger(__name__)

FORMATS = (".csv", ".json", ".parquet")
STDIN = "-"
UNKNOWN, UNREADABLE = "(unknown)", "(unreadable)"
SHOWN = 20  # pictures on the terminal
MOST_CLASSES = 40  # rows of the summary
MOST_THUMBNAILS = 2000
THUMBNAIL = 128  # pixels
LONGEST_PATH = 4096  # bytes, on Linux
BAR = 24  # characters
WIDEST = 40  # columns of a class's name on the terminal, so that a line with its bar fits 80


def make_parser() -> ToolParser:
    """The flags of predict.py."""
    parser = tool_parser("predict", __doc__, "%(prog)s [options] --model-dir RUN IMAGE [IMAGE ...]")
    parser.takes_files = True
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help='files, folders, patterns such as "*.jpg", or - for a list on stdin')
    add("--model-dir", default="", metavar="DIR", help="folder of a run or a saved classifier")
    add("--top-k", type=int, default=1, metavar="N", help="number of most likely classes to show for each image")
    add("--unknown-below", type=float, metavar="P", help="report no class below this probability, 0 to 1")
    add("--output", default="", metavar="FILE", help="write a row per image to a .csv, .json or .parquet file")
    add("--thumbnails", default="", metavar="FILE.html", help="write a page of the images, most confident first")
    add("--on-error", default="warn", metavar="WHAT", help="on an unreadable image: warn or raise")
    add("--device", metavar="NAME", help="cpu, cuda ... (default: an accelerator if available)")
    add_plugin_flags(parser)
    return parser


# ---- which pictures -------------------------------------------------------------------------------------------------


def paths_of(words: Sequence[str]) -> Iterator[str]:
    """The files that the command line names; those of standard input as they come."""
    for word in words:
        if word == STDIN:
            yield from listed_paths(getattr(sys.stdin, "buffer", None) or io.BytesIO(os.fsencode(sys.stdin.read())))
        elif os.path.isdir(word):
            yield from images_below(Path(word))
        elif os.path.exists(word):
            yield word
        else:
            yield from _matches(word)


def listed_paths(file: Any) -> Iterator[str]:
    """The paths of a list, one per line; or, as of ``find -print0``, NUL after each. Empty ones are left out.

    Args:
        file: of bytes.
    """
    # The first of a list with NULs has one within the length of a path.
    waiting, at_end = b"", False
    while not at_end and len(waiting) <= LONGEST_PATH:
        more = file.read1(LONGEST_PATH)
        waiting, at_end = waiting + more, not more
    with_nul = b"\0" in waiting[: LONGEST_PATH + 1]
    while True:
        *whole, waiting = waiting.split(b"\0" if with_nul else b"\n")
        for one in [*whole, *([waiting] if at_end else [])]:
            path = os.fsdecode(one if with_nul else one.rstrip(b"\r"))
            if path if with_nul else path.strip():
                yield path
        if at_end:
            return
        more = file.read1(1 << 16)
        waiting, at_end = waiting + more, not more


def _matches(pattern: str) -> list[str]:
    """The files that a pattern names, sorted; each once, where a link to a folder above names it many times."""
    found = sorted(glob.iglob(pattern, recursive=True))
    if "**" not in pattern:
        return found
    shortest = sorted(found, key=len, reverse=True)
    return sorted({os.path.realpath(path): path for path in shortest}.values())


def check_words(words: Sequence[str]) -> None:
    """Raise a UserError for a word that names no file."""
    if not words:
        raise UserError("name pictures: files, folders, patterns, or - for a list on standard input")
    if words.count(STDIN) > 1:
        raise UserError("- is given twice, but there is one standard input")
    for word in words:
        if word == STDIN or os.path.exists(word):
            if os.path.isdir(word) and not images_below(Path(word)):
                raise UserError(f"folder '{word}' contains no images")
        elif not glob.has_magic(word):
            raise MissingFileError(f"there is no file or folder '{word}'")
        elif next(glob.iglob(word, recursive=True), None) is None:
            raise UserError(f"pattern '{word}' matches no file")


# ---- what is written ------------------------------------------------------------------------------------------------


def row_of(found: Prediction, top_k: int) -> dict[str, Any]:
    """A row of a table: image, class, probability, class_2, probability_2 ..., error."""
    row: dict[str, Any] = {"image": str(found.image)}
    for number in range(top_k):
        suffix = f"_{number + 1}" if number else ""
        known = number < len(found.probabilities)
        row[f"class{suffix}"] = None if not known or found.labels[number] is None else str(found.labels[number])
        row[f"probability{suffix}"] = found.probabilities[number] if known else None
    return {**row, "error": found.error}


@contextlib.contextmanager
def writing(path: Path | None, top_k: int) -> Iterator[Callable[[Prediction], None]]:
    """A function that writes a prediction to the output file, which is there once all are written."""
    if path is None:
        yield lambda found: None
        return
    kind = {".csv": _csv_rows, ".json": _json_rows, ".parquet": _parquet_rows}[path.suffix.lower()]
    with _new_file("--output", path) as temporary, kind(temporary, top_k) as write:
        yield write


@contextlib.contextmanager
def _new_file(flag: str, path: Path) -> Iterator[Path]:
    """A temporary file beside the path, which takes its place at the end; a UserError where it cannot be written."""
    try:
        if path.is_dir():
            raise UserError(f"{flag} '{path}' is a folder; name a file")
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{flag} '{path}' cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def _csv_rows(path: Path, top_k: int) -> Iterator[Callable[[Prediction], None]]:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield csv_writer(file, top_k)


def csv_writer(file: TextIO, top_k: int) -> Callable[[Prediction], None]:
    """A function that writes a prediction as a row of CSV; the header is written now."""
    rows = csv.DictWriter(file, list(row_of(Prediction("", (), ()), top_k)))
    rows.writeheader()
    return lambda found: rows.writerow(row_of(found, top_k))


@contextlib.contextmanager
def _json_rows(path: Path, top_k: int) -> Iterator[Callable[[Prediction], None]]:
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"

        def write(found: Prediction) -> None:
            nonlocal separator
            file.write(separator + json.dumps(row_of(found, top_k)))
            separator = ",\n"

        yield write
        file.write("\n]\n" if separator != "[\n" else "[]\n")


@contextlib.contextmanager
def _parquet_rows(path: Path, top_k: int) -> Iterator[Callable[[Prediction], None]]:
    arrow, parquet = _pyarrow()
    columns = row_of(Prediction("", (), ()), top_k)
    schema = arrow.schema(
        [(name, arrow.float32() if name.startswith("probability") else arrow.string()) for name in columns]
    )
    waiting: list[dict[str, Any]] = []
    with parquet.ParquetWriter(str(path), schema) as file:

        def flush() -> None:
            file.write_table(arrow.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(found: Prediction) -> None:
            row = row_of(found, top_k)
            waiting.append({name: _as_unicode(value) for name, value in row.items()})
            if len(waiting) >= 10_000:
                flush()

        yield write
        flush()


def _as_unicode(value: Any) -> Any:
    """Text without the lone surrogates that stand for the bytes of a file's name, which Parquet does not take."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _pyarrow() -> tuple[Any, Any]:
    parquet = optional_module("pyarrow.parquet", "parquet", "--output .parquet")
    return optional_module("pyarrow", "parquet", "--output .parquet"), parquet


# ---- what is shown --------------------------------------------------------------------------------------------------


def bar(share: float, width: int = BAR) -> str:
    """A bar for 0 to 1, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def cells(names: Sequence[str]) -> list[str]:
    """Names of classes as a column of the terminal, printable, and not wider than `WIDEST`."""
    short = [_short(printable(name)) for name in names]
    width = max(map(columns, short), default=0)
    return [name + " " * (width - columns(name)) for name in short]


def _short(name: str) -> str:
    """A name, without its middle if it is too wide."""
    if columns(name) <= WIDEST:
        return name
    side = (WIDEST - 3) // 2
    head, tail = (
        next(part[:n] for n in range(side, 0, -1) if columns(part[:n]) <= side) for part in (name, name[::-1])
    )
    return f"{head}...{tail[::-1]}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese and Japanese letters two each, accents none."""
    return sum(0 if combining(letter) else 1 + (east_asian_width(letter) in "WF") for letter in text)


def lines_of(found: Prediction) -> list[str]:
    """A picture on the terminal: its name, and a line with a bar for each class."""
    if found.error:
        return [f"{printable(found.image)}  {UNREADABLE}"]
    named = [UNKNOWN if label is None else str(label) for label in found.labels]
    pairs = zip(cells(named), found.probabilities, strict=True)
    return [printable(found.image), *(f"  {name}  {100 * p:5.1f} %  {bar(p)}" for name, p in pairs)]


class Summary:
    """How many pictures each class has, and those for the page of thumbnails."""

    def __init__(self, thumbnails: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.thumbnails = thumbnails
        self.kept: list[Prediction] = []
        self.total = 0

    def add(self, found: Prediction) -> None:
        if self.total < SHOWN:
            say("\n".join(lines_of(found)))
        elif self.total == SHOWN:
            say("...")
        self.total += 1
        label = found.labels[0]
        self.counts[UNREADABLE if found.error else UNKNOWN if label is None else str(label)] += 1
        if self.thumbnails and not found.error and len(self.kept) < MOST_THUMBNAILS:
            self.kept.append(found)

    def show(self) -> None:
        if self.total < 2:
            return
        rows = self.counts.most_common(MOST_CLASSES)
        most = rows[0][1]
        say(f"\n{self.total:,} pictures:")
        for name, (_, count) in zip(cells([name for name, _ in rows]), rows, strict=True):
            say(f"  {name}  {count:7,}  {bar(count / most)}")
        if len(self.counts) > len(rows):
            say(f"  and {len(self.counts) - len(rows)} more classes")


@contextlib.contextmanager
def paging(path: Path | None, summary: Summary) -> Iterator[None]:
    """A context at whose end the page of thumbnails is written; that it cannot be is told at the beginning."""
    if path is None:
        yield
        return
    with _new_file("--thumbnails", path) as temporary:
        yield
        temporary.write_text(page_of(summary.kept, summary.total), encoding="utf-8")


def page_of(kept: Sequence[Prediction], total: int) -> str:
    """A page of thumbnails, the surest first, which needs no other file."""
    cells = []
    for found in sorted(kept, key=lambda one: -one.probabilities[0]):
        try:
            picture = decoded(found.image)
        except UserError:  # it has gone since
            continue
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=80)
        label = UNKNOWN if found.labels[0] is None else printable(found.labels[0])
        name = html.escape(printable(found.image), quote=True)
        cells.append(
            f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}" alt="{name}" '
            f'title="{name}"><figcaption>{html.escape(label)}<br>{100 * found.probabilities[0]:.1f} %</figcaption>'
            "</figure>"
        )
    first = f", the first {len(kept):,}" if MOST_THUMBNAILS == len(kept) < total else ""
    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Predictions</title><style>'
        "body{font:14px sans-serif;margin:1rem}figure{display:inline-block;width:140px;margin:4px;vertical-align:top;"
        "text-align:center}img{max-width:128px;max-height:128px}figcaption{overflow-wrap:anywhere}</style>"
        f"<h1>{total:,} pictures{first}, the surest first</h1>{''.join(cells)}</html>\n"
    )


def check(args: argparse.Namespace) -> None:
    """Raise a UserError for arguments that cannot be, before anything is loaded."""
    if not args.model_dir:
        raise UserError("--model-dir is missing: the folder of a run, or of a saved classifier")
    suffix = Path(args.output).suffix.lower()
    if args.output and suffix not in FORMATS:
        raise UserError(f"--output '{args.output}' must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    own = [Path(args.model_dir).expanduser() / name for name in (RESULTS, SAVED_CONFIG)]
    if args.output and os.path.realpath(Path(args.output).expanduser()) in map(os.path.realpath, own):
        raise UserError(f"--output '{args.output}' is a file of the classifier itself; name another")
    if suffix == ".parquet":
        _pyarrow()
    if args.thumbnails and Path(args.thumbnails).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--thumbnails '{args.thumbnails}' must name an .html file")
    if args.unknown_below is not None and not 0 <= args.unknown_below <= 1:
        raise UserError(f"--unknown-below must be a probability, 0 to 1, not {args.unknown_below}")
    if args.on_error not in ("warn", "raise"):
        raise unknown("--on-error", args.on_error, ("warn", "raise"))
    check_words(args.images)


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    setup_logger(console=False)
    load_plugins(args.plugin)
    check(args)
    classifier = FewShotClassifier.load(args.model_dir, device=args.device)
    count = len(classifier.classes_)
    if not 1 <= args.top_k <= count:
        raise UserError(f"--top-k must be 1 to {count}, the number of classes, not {args.top_k}")
    summary = Summary(bool(args.thumbnails))
    output, page = (Path(name).expanduser() if name else None for name in (args.output, args.thumbnails))
    stream = classifier.stream(
        paths_of(args.images), top_k=args.top_k, unknown_below=args.unknown_below, on_error=args.on_error
    )
    with writing(output, args.top_k) as write, paging(page, summary):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            for found in stream:
                write(found)
                summary.add(found)
        for one in told:
            logger.warning(str(one.message))
        if not summary.total:
            raise UserError("standard input lists no pictures")
        summary.show()
    for path in (output, page):
        if path is not None:
            say(f"Written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))

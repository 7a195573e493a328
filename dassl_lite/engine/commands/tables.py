"""Text tables, for terminals, Markdown, LaTeX and spreadsheets."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from dassl_lite.utils.errors import printable

BEST, SECOND = 1, 2
_WIDTH = 80  # characters that fit on a line of an article
_MAX_SHRINK = 1.6  # a table more than this many times as wide is split instead of scaled down
_GAP = 2  # characters between columns
_ROWS = 40  # rows that fit on a page
_ESCAPES = {
    **{char: "\\" + char for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"},
    **{"<": r"$<$", ">": r"$>$", "≠": r"$\neq$", "\u2212": "$-$", "|": r"\textbar{}"},
}
# What pdflatex supports without extra packages: these characters, and letters with one of these accents.
_IN_LATEX = set("ßæÆøØ\u0153\u0152\u0142\u0141\u2013\u2014\u2026\u2018\u2019\u201c\u201d\u00a7\u00b6\u00a9\u00d7\u00b7")
_ACCENTS = set("\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0327")


@dataclass(frozen=True)
class Table:
    """A table with headers and rows of texts.

    Attributes:
        title: title; "" for none.
        places: (row, column) -> `BEST` or `SECOND`, for cells to be marked.
        joined: columns that belong to the one on their left, such as a published number next to ours.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Mapping[tuple[int, int], int] = field(default_factory=dict)
    joined: Collection[int] = ()

    def with_columns(self, headers: Sequence[str], texts: Mapping[int, Mapping[int, Sequence[str]]]) -> Table:
        """The table with additional columns to the right of some of its own.

        Args:
            headers: headers of the added columns, the same for each column that is extended.
            texts: column -> row -> one text per header; rows without texts get empty cells. A column without any texts
                is not extended.
        """
        after = [column for column, by_row in texts.items() if by_row]  # the columns that are extended

        def widened(row: Sequence[str], added: Mapping[int, Sequence[str]]) -> list[str]:
            return [text for c, cell in enumerate(row) for text in (cell, *added.get(c, ()))]

        empty = [""] * len(headers)
        return Table(
            self.title,
            widened(self.headers, {c: [f"{header}, {self.headers[c]}" for header in headers] for c in after}),
            [widened(row, {c: texts[c].get(r, empty) for c in after}) for r, row in enumerate(self.rows)],
            {(r, c + len(headers) * sum(a < c for a in after)): place for (r, c), place in self.places.items()},
            {
                c + len(headers) * number + offset
                for number, c in enumerate(sorted(after))
                for offset in range(1, len(headers) + 1)
            },
        )

    @property
    def shrinks(self) -> bool:
        """Whether LaTeX has to scale a part down to the text width, which needs the package graphicx."""
        return any(part._wide for part in self._parts())

    @property
    def _wide(self) -> bool:
        return self._width(range(len(self.headers))) > _WIDTH

    def _width(self, columns: Iterable[int]) -> int:
        """Width of some columns in characters."""
        return sum(_GAP + max(len(row[c]) for row in (self.headers, *self.rows)) for c in columns)

    def _parts(self, max_width: float = _MAX_SHRINK * _WIDTH, part_width: int = _WIDTH) -> list[Table]:
        """The table or, if it is wider than ``max_width``, its columns split into tables of at most ``part_width``."""
        every = range(len(self.headers))
        if self._width(every) <= max_width:
            return [self]
        labels = list(every[: self._labels()])
        parts: list[list[int]] = []
        for start in every[len(labels) :]:
            if start in self.joined:
                continue
            unit = [start, *itertools.takewhile(lambda c: c in self.joined, every[start + 1 :])]
            if parts and self._width([*labels, *parts[-1], *unit]) <= part_width:
                parts[-1] += unit
            else:
                parts.append(unit)
        return [self._with([*labels, *part]) for part in parts]

    def _with(self, columns: Sequence[int]) -> Table:
        """A table of some of the columns."""
        places = {(r, columns.index(c)): place for (r, c), place in self.places.items() if c in columns}
        rows = [[row[c] for c in columns] for row in self.rows]
        return Table(self.title, [self.headers[c] for c in columns], rows, places)

    def as_text(self, width: int | None = None) -> str:
        """Format for a terminal; a table wider than ``width`` characters is split by columns."""
        table = Table(
            self.title,
            [*map(printable, self.headers)],
            [[*map(printable, row)] for row in self.rows],
            joined=self.joined,
        )
        parts = [table] if width is None else table._parts(width + _GAP, width + _GAP)
        texts = [tabulate(part.rows, headers=part.headers, disable_numparse=True) for part in parts]
        return self._titled("\n\n".join(texts), "{}\n", printable)

    def as_markdown(self) -> str:
        """Format as GitHub's Markdown."""
        rows, headers = ([*map(escape_markdown, row)] for row in self.rows), [*map(escape_markdown, self.headers)]
        table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
        return self._titled(table, "**{}**\n", escape_markdown)

    def as_latex(self) -> str:
        """Format as a LaTeX ``table``, or one per page, with booktabs: best in bold, second-best underlined."""
        parts = [(part, rows) for part in self._parts() for rows in part._pages()]
        texts = [part._part(rows, continued=number > 0) for number, (part, rows) in enumerate(parts)]
        return "\n\\clearpage\n".join(texts)

    def _pages(self) -> list[range]:
        """The rows of each page; rows with the same first column stay together if that wastes less than half a page."""
        pages: list[range] = []
        start = 0
        while start < len(self.rows) or not pages:
            end = min(start + _ROWS, len(self.rows))
            if end < len(self.rows):
                breaks = [r for r in range(start + _ROWS // 2, end + 1) if self.rows[r][0] != self.rows[r - 1][0]]
                end = max(breaks, default=end)
            pages.append(range(start, end))
            start = end
        return pages

    def _part(self, rows: range, *, continued: bool) -> str:
        marks = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"}
        lines = [r"\begin{table}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
        if title := f"{self.title or 'By dataset, method and shots'}, continued" if continued else self.title:
            lines.append(rf"\caption{{{escape_latex(title)}}}")
        if self._wide:
            lines.append(r"\resizebox{\textwidth}{!}{%")
        lines += [rf"\begin{{tabular}}{{{'l' * self._labels()}{'r' * (len(self.headers) - self._labels())}}}"]
        lines += [r"\toprule", " & ".join(map(escape_latex, self.headers)) + r" \\", r"\midrule"]
        for r in rows:
            if r > rows.start and self.rows[r][0] != self.rows[r - 1][0] and self.headers[0] == "dataset":
                lines.append(r"\addlinespace")
            texts = map(escape_latex, self.rows[r])
            marked = [marks.get(self.places.get((r, c), 0), "{}").format(text) for c, text in enumerate(texts)]
            lines.append(" & ".join(marked) + r" \\")
        end = r"\end{tabular}}" if self._wide else r"\end{tabular}"
        return "\n".join([*lines, r"\bottomrule", end, r"\end{table}"])

    def _labels(self) -> int:
        """Number of label columns on the left."""
        return sum(header in ("dataset", "method", "shots") for header in self.headers)

    def _titled(self, table: str, title: str, escape: Callable[[str], str]) -> str:
        return f"{title.format(escape(self.title))}\n{table}" if self.title else table


def escape_latex(text: str) -> str:
    """Escape text for LaTeX; a hyphen in front of a number becomes a minus."""
    escaped = "".join(map(_in_latex, printable(text)))
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)


def _in_latex(char: str) -> str:
    """Escape a character for LaTeX; characters unknown to pdflatex are printed by XeLaTeX and LuaLaTeX only."""
    if char in _ESCAPES or char.isascii() or char in _IN_LATEX:
        return _ESCAPES.get(char, char)
    letter, *accents = list(unicodedata.normalize("NFKD", char))
    if letter.isascii() and letter.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS:
        return char
    return rf"\ifdefined\Umathchar {char}\else ?\fi{{}}"


def escape_markdown(text: str) -> str:
    """Escape text for GitHub's Markdown, so that it creates no markup, tag, link or column."""
    escaped = re.sub(r"([\\|*`$])", r"\\\1", printable(text))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped).replace("](", r"]\(")


def best_two(values: Mapping[int, float], *, lowest: bool = False) -> dict[int, int]:
    """The best and second-best values, compared at the two decimals that tables show; ties share a place.

    Returns:
        key -> `BEST` or `SECOND`; empty for a single value, or if all are equal.
    """
    rounded = {key: round(-value if lowest else value, 2) for key, value in values.items()}
    highest = sorted(set(rounded.values()), reverse=True)[:2]
    if len(highest) < 2:
        return {}
    return {key: highest.index(value) + 1 for key, value in rounded.items() if value in highest}

"""A table of texts, as a terminal, Markdown, LaTeX or a spreadsheet shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

BEST, SECOND = 1, 2
_WIDTH = 80  # characters that a line of an article has room for
_ROWS = 40  # rows for which a page has
_ESCAPES = {
    **{char: "\\" + char for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"},
    **{"<": r"$<$", ">": r"$>$", "≠": r"$\neq$"},
}


@dataclass(frozen=True)
class Table:
    """Headers and rows of texts.

    Attributes:
        title: "" for none.
        places: (row, column) -> `BEST` or `SECOND`, cells to be marked.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def with_columns(self, headers: Sequence[str], texts: Mapping[int, Mapping[int, Sequence[str]]]) -> Table:
        """The table with columns of these headers to the right of some of its own.

        Args:
            headers: of what is added, the same for each.
            texts: column -> row -> a text for each header; a row without any stays empty there. A column with no texts
                gets no neighbours.
        """
        after = [column for column, by_row in texts.items() if by_row]

        def widened(row: Sequence[str], added: Mapping[int, Sequence[str]]) -> list[str]:
            return [text for c, own in enumerate(row) for text in (own, *added.get(c, ()))]

        empty = [""] * len(headers)
        return Table(
            self.title,
            widened(self.headers, {c: [f"{header}, {self.headers[c]}" for header in headers] for c in after}),
            [widened(row, {c: texts[c].get(r, empty) for c in after}) for r, row in enumerate(self.rows)],
            {(r, c + len(headers) * sum(one < c for one in after)): place for (r, c), place in self.places.items()},
        )

    @property
    def shrinks(self) -> bool:
        """Whether LaTeX scales it down to the width of the text, for which it needs the package graphicx."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        return sum(widths) + 2 * len(widths) > _WIDTH

    def as_text(self) -> str:
        """For a terminal."""
        return self._titled(tabulate(self.rows, headers=self.headers, disable_numparse=True), "{}\n")

    def as_markdown(self) -> str:
        """GitHub's Markdown."""
        table = tabulate(self.rows, self.headers, tablefmt="github", disable_numparse=True)
        return self._titled(table, "**{}**\n")

    def as_latex(self) -> str:
        """A ``table``, or one per page, that needs the package booktabs: the best in bold, the second underlined."""
        parts = [self._part(rows, continued=rows.start > 0) for rows in self._pages()]
        return "\n\\clearpage\n".join(parts)

    def _pages(self) -> list[range]:
        """The rows of each page; what the first column names stays together where that costs less than half a page."""
        pages: list[range] = []
        start = 0
        while start < len(self.rows) or not pages:
            end = min(start + _ROWS, len(self.rows))
            if end < len(self.rows):
                anew = [r for r in range(start + _ROWS // 2, end + 1) if self.rows[r][0] != self.rows[r - 1][0]]
                end = max(anew, default=end)
            pages.append(range(start, end))
            start = end
        return pages

    def _part(self, rows: range, *, continued: bool) -> str:
        marks = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"}
        lines = [r"\begin{table}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
        if title := ", ".join([self.title] * bool(self.title) + ["continued"] * continued):
            lines.append(rf"\caption{{{escape_latex(title)}}}")
        if self.shrinks:
            lines.append(r"\resizebox{\textwidth}{!}{%")
        lines += [rf"\begin{{tabular}}{{{'l' * self._labels()}{'r' * (len(self.headers) - self._labels())}}}"]
        lines += [r"\toprule", " & ".join(map(escape_latex, self.headers)) + r" \\", r"\midrule"]
        for r in rows:
            if r > rows.start and self.rows[r][0] != self.rows[r - 1][0] and self.headers[0] == "dataset":
                lines.append(r"\addlinespace")
            texts = map(escape_latex, self.rows[r])
            marked = [marks.get(self.places.get((r, c), 0), "{}").format(text) for c, text in enumerate(texts)]
            lines.append(" & ".join(marked) + r" \\")
        end = r"\end{tabular}}" if self.shrinks else r"\end{tabular}"
        return "\n".join([*lines, r"\bottomrule", end, r"\end{table}"])

    def _labels(self) -> int:
        """Number of columns on the left that are words."""
        return sum(header in ("dataset", "method", "shots") for header in self.headers)

    def _titled(self, table: str, title: str) -> str:
        return f"{title.format(self.title)}\n{table}" if self.title else table


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it; a hyphen in front of a number is a minus."""
    escaped = "".join(_ESCAPES.get(char, char) for char in text)
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)


def best_two(values: Mapping[int, float], *, lowest: bool = False) -> dict[int, int]:
    """Which are the best and the second-best of values, by two decimals as tables show them; equals share a place.

    Returns:
        key -> `BEST` or `SECOND`; empty for a single value, or if all are equal.
    """
    shown = {key: round(-value if lowest else value, 2) for key, value in values.items()}
    highest = sorted(set(shown.values()), reverse=True)[:2]
    if len(highest) < 2:
        return {}
    return {key: highest.index(value) + 1 for key, value in shown.items() if value in highest}

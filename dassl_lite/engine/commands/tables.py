"""A table of texts, as a terminal, Markdown, LaTeX or a spreadsheet shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

BEST, SECOND = 1, 2
_WIDTH = 80  # characters that a line of an article has room for
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
        may_shrink: LaTeX may scale it down to the width of the text, for which it needs the package graphicx.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    places: Mapping[tuple[int, int], int] = field(default_factory=dict)
    may_shrink: bool = False

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
            may_shrink=self.may_shrink or bool(after),
        )

    @property
    def shrinks(self) -> bool:
        """Whether LaTeX scales it down."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        return self.may_shrink and sum(widths) + 2 * len(widths) > _WIDTH

    def as_text(self) -> str:
        """For a terminal."""
        return self._titled(tabulate(self.rows, headers=self.headers, disable_numparse=True), "{}\n")

    def as_markdown(self) -> str:
        """GitHub's Markdown."""
        table = tabulate(self.rows, self.headers, tablefmt="github", disable_numparse=True)
        return self._titled(table, "**{}**\n")

    def as_latex(self) -> str:
        """A ``table`` that needs the package booktabs: the best in bold, the second-best underlined."""
        marks = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"}
        marked = [
            [marks.get(self.places.get((r, c), 0), "{}").format(escape_latex(text)) for c, text in enumerate(row)]
            for r, row in enumerate(self.rows)
        ]
        lines = [r"\begin{table}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
        if self.title:
            lines.append(rf"\caption{{{escape_latex(self.title)}}}")
        if self.shrinks:
            lines.append(r"\resizebox{\textwidth}{!}{%")
        lines += [rf"\begin{{tabular}}{{{'l' * self._labels()}{'r' * (len(self.headers) - self._labels())}}}"]
        lines += [r"\toprule", " & ".join(map(escape_latex, self.headers)) + r" \\", r"\midrule"]
        before = marked[0][0] if marked else ""
        for row in marked:
            group, before = row[0] != before, row[0]
            if group and self.headers[0] == "dataset":
                lines.append(r"\addlinespace")
            lines.append(" & ".join(row) + r" \\")
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

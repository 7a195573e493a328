"""Where one token of a source file can be changed so that a good test notices.

Left alone, because no test can or should notice: annotations, docstrings, decorators, log lines, the texts of errors,
`strict=` and `encoding=`, which matter only on inputs or machines that the tests do not have.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
}
KEPT_KEYWORDS = ("strict", "encoding")


@dataclass(frozen=True)
class Mutation:
    """One change: bytes [start, end) of a file, of the statement in lines [line, last_line], become `after`."""

    path: str
    line: int
    last_line: int
    start: int
    end: int
    kind: str
    before: str
    after: str

    @property
    def id(self) -> str:
        return f"{self.path}:{self.line}:{self.start}:{self.kind}"

    def apply(self, source: bytes) -> bytes:
        assert source[self.start : self.end].decode() == self.before
        return source[: self.start] + self.after.encode() + source[self.end :]


def find_mutations(root: Path, path: Path) -> list[Mutation]:
    """All mutations of a file that leave it valid Python, in the order of their places."""
    source = path.read_bytes()
    found = _Finder(source, str(path.relative_to(root))).run()
    return sorted((m for m in found if _compiles(m.apply(source))), key=lambda m: (m.start, m.end, m.kind))


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "mutated", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


class _Finder:
    def __init__(self, source: bytes, path: str) -> None:
        self.source, self.path = source, path
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.found: list[Mutation] = []
        self.statement: ast.stmt | None = None

    def run(self) -> list[Mutation]:
        self._visit(ast.parse(self.source))
        return self.found

    def _span(self, node: Any) -> tuple[int, int]:
        """Byte offsets of a node."""
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def _add(self, start: int, end: int, kind: str, after: str) -> None:
        assert self.statement is not None
        first = self.statement.lineno
        body = getattr(self.statement, "body", None)  # of a compound statement only the header
        last = max(first, body[0].lineno - 1) if body else self.statement.end_lineno or first
        before = self.source[start:end].decode()
        self.found.append(Mutation(self.path, first, last, start, end, kind, before, after))

    def _visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            if _is_left_alone(node):
                return
            self.statement = node
        if isinstance(node, ast.JoinedStr) or _is_message(node):
            return
        for kind in type(node).__mro__:
            if method := getattr(self, f"_of_{kind.__name__}", None):
                method(node)
                break
        for child in _children(node):
            outer = self.statement
            self._visit(child)
            self.statement = outer

    # ---- one method for each kind of node -----------------------------------------------------------------------

    def _of_Compare(self, node: ast.Compare) -> None:  # noqa: N802
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            token, after = COMPARISONS[type(op)]
            self._between(left, right, token, "comparison", after)

    def _of_BinOp(self, node: ast.BinOp) -> None:  # noqa: N802
        if type(node.op) in ARITHMETIC:
            token, after = ARITHMETIC[type(node.op)]
            self._between(node.left, node.right, re.escape(token), "arithmetic", after)

    def _of_AugAssign(self, node: ast.AugAssign) -> None:  # noqa: N802
        if type(node.op) in ARITHMETIC:
            token, after = ARITHMETIC[type(node.op)]
            self._between(node.target, node.value, re.escape(token) + "=", "arithmetic", f"{after}=")
        self._add(*self._span(node), "statement", "pass")

    def _of_BoolOp(self, node: ast.BoolOp) -> None:  # noqa: N802
        token, after = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, token, "boolean", after)

    def _of_UnaryOp(self, node: ast.UnaryOp) -> None:  # noqa: N802
        if isinstance(node.op, ast.Not):
            self._add(self._span(node)[0], self._span(node.operand)[0], "boolean", "")

    def _of_If(self, node: ast.If | ast.IfExp) -> None:  # noqa: N802
        start, end = self._span(node.test)
        self._add(start, end, "condition", f"not ({self.source[start:end].decode()})")

    _of_IfExp = _of_If  # noqa: N815

    def _of_Constant(self, node: ast.Constant) -> None:  # noqa: N802
        value = node.value
        if isinstance(value, bool):
            self._add(*self._span(node), "constant", str(not value))
        elif isinstance(value, int | float):
            self._add(*self._span(node), "constant", repr(value + 1))
        elif isinstance(value, str):
            self._add(*self._span(node), "constant", repr(f"{value}_"))

    def _of_Expr(self, node: ast.Expr) -> None:  # noqa: N802
        if isinstance(node.value, ast.Call):
            self._add(*self._span(node), "statement", "pass")

    def _of_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._add(*self._span(node), "statement", "pass")

    def _of_Return(self, node: ast.Return) -> None:  # noqa: N802
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._add(*self._span(node.value), "return", "None")

    def _of_Raise(self, node: ast.Raise) -> None:  # noqa: N802
        self._add(*self._span(node), "statement", "pass")

    def _of_Break(self, node: ast.Break) -> None:  # noqa: N802
        self._add(*self._span(node), "loop", "continue")

    def _of_Continue(self, node: ast.Continue) -> None:  # noqa: N802
        self._add(*self._span(node), "loop", "break")

    def _of_Call(self, node: ast.Call) -> None:  # noqa: N802
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg not in KEPT_KEYWORDS:
                start, end = self._span(keyword)
                if following := re.match(rb"\s*,\s*", self.source[end:]):
                    end += following.end()
                elif preceding := re.search(rb",\s*$", self.source[:start]):
                    start = preceding.start()
                self._add(start, end, "keyword", "")

    def _between(self, left: ast.expr, right: ast.expr, token: str, kind: str, after: str) -> None:
        """The operator between two operands; the syntax tree does not say where it stands."""
        start, end = self._span(left)[1], self._span(right)[0]
        gap = self.source[start:end].decode()
        if "#" not in gap and (match := re.search(token, gap)):
            self._add(start + match.start(), start + match.end(), kind, after)


def _is_left_alone(node: ast.stmt) -> bool:
    """Docstrings, log lines and loggers, imports for annotations, lists of public names."""
    if isinstance(node, ast.Expr):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            return isinstance(call.func.value, ast.Name) and call.func.value.id == "logger"
        return isinstance(call, ast.Constant)
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        union = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)  # a name for a type
        return union or not {"__all__", "logger"}.isdisjoint(names)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert)


def _is_message(node: ast.AST) -> bool:
    """A call that makes an error, or asks for a type: its arguments are words or types."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name.endswith(("Error", "Interrupt")) or name in ("unknown", "isinstance", "issubclass", "cast")


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Children in which to look for more, without annotations and decorators."""
    if isinstance(node, ast.Raise):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_comment"):
            continue
        if isinstance(node, ast.keyword) and node.arg in KEPT_KEYWORDS:
            continue
        if isinstance(node, ast.Call) and field == "func" and isinstance(value, ast.Name):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child

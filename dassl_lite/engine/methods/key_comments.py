"""The comments that stand beside config keys in a trainer's ``extend_cfg``, read from its source.

A comment counts for the assignment on its line. One on a line of its own counts for the assignments below it that
have none, up to the next comment or empty line.
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

Path = tuple["str | None", ...]  # parts of a key; None where the source computes one


class Comments:
    """Comments on the config keys that a class, its bases and its module declare; a subclass's come first.

    Args:
        trainer: a class; where its source cannot be had, or it is something else, there are no comments.
        others: modules that declare keys too; they come last.
    """

    def __init__(self, trainer: Any, *others: Any) -> None:
        self._found: list[tuple[Path, str]] = []
        for cls in getattr(trainer, "__mro__", ()):
            if "extend_cfg" in vars(cls):
                self._found += _declarations(vars(cls)["extend_cfg"])
        for module in (inspect.getmodule(trainer), *others):
            self._found += _declarations(getattr(module, "extend_cfg", None))

    def of(self, key: str) -> str:
        """The comment on a key, such as ``TRAINER.TaskRes.PREC``; empty if there is none."""
        parts = key.split(".")
        return next((text for path, text in self._found if _matches(path, parts)), "")


def _matches(path: Path, parts: list[str]) -> bool:
    """Whether the ends agree: of a key whose beginning the source computes, only the end is known."""
    pairs = zip(reversed(path), reversed(parts), strict=False)
    return len(path) <= len(parts) and all(known in (None, part) for known, part in pairs)


def _declarations(function: Any) -> list[tuple[Path, str]]:
    """(key, comment) for each assignment of a function ``extend_cfg(cfg)`` that has a comment."""
    try:
        source = textwrap.dedent(inspect.getsource(getattr(function, "__func__", function)))
        (tree,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError):
        return []
    if not isinstance(tree, ast.FunctionDef) or not tree.args.args:
        return []
    names: dict[str, Path] = {tree.args.args[-1].arg: ()}  # variable -> the config node that it holds
    beside, above = _comments(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = list(_flat(node.targets))
            paths = [path for target in targets if (path := _path(target, names)) is not None]
            comment = beside.get(node.end_lineno or node.lineno) or above.get(node.lineno, "")
            found += [(path, comment) for path in paths if path and comment]
            node_path = paths[0] if paths else _path(node.value, names)
            names.update({t.id: node_path for t in targets if isinstance(t, ast.Name) and node_path is not None})
    return found


def _flat(targets: list[ast.expr]) -> Iterator[ast.expr]:
    for target in targets:
        if isinstance(target, ast.Tuple | ast.List):
            yield from _flat(target.elts)
        else:
            yield target


def _path(node: ast.expr, names: dict[str, Path]) -> Path | None:
    """The key that an expression such as ``cfg.TRAINER[name].PREC`` stands for; None if it is no key."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        part: str | None = node.attr
    elif isinstance(node, ast.Subscript):
        part = str(node.slice.value) if isinstance(node.slice, ast.Constant) else None
    else:
        return None
    parent = _path(node.value, names)
    return None if parent is None else (*parent, part)


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Line -> the comment on it; line -> the comment above it, for lines that have none."""
    lines = source.splitlines()
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = not lines[token.start[0] - 1][: token.start[1]].strip()
            (alone if own_line else beside)[token.start[0]] = token.string.lstrip("# ")
    above: dict[int, str] = {}
    current = ""
    for number, line in enumerate(lines, start=1):
        if number in alone:
            current = f"{current} {alone[number]}" if number - 1 in alone else alone[number]
        elif number in beside or not line.strip():
            current = ""
        elif current:
            above[number] = current.rstrip(":")
    return beside, above

"""Print a tool's ``--help`` without the slow import of torch and the rest of the package.

``tools/help.json`` holds the flags of all tools, with a digest of the files that declare them;
``python tests/public_surface.py --write`` writes it. If those files have changed since, or plug-ins may declare flags,
the tool itself prints its help.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
FILE = "help.json"
ENTRY_POINTS = "dassl_lite.plugins"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, and shows defaults."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=32, **settings)

    def _get_help_string(self, action: argparse.Action) -> str:
        """The help text, with the default value unless the text mentions one."""
        text, default = action.help or "", action.default
        if "default" in text or action.nargs == 0 or default in (None, "", [], argparse.SUPPRESS):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


def is_installed_command() -> bool:
    """Whether the tool was started by the installed command."""
    return bool(sys.argv) and Path(sys.argv[0]).stem == "dassl-lite"


def program(tool: str) -> str:
    """The name of a tool in its help: it may be run as a script or through the installed command."""
    return f"dassl-lite {tool}" if is_installed_command() else f"{tool}.py"


# ---- keeping ----------------------------------------------------------------------------------------------------


def folder_of(name: str) -> Path:
    """The folder ``tools`` or ``trainers``: beside the package in a checkout, inside it when installed."""
    return next((place for place in (PACKAGE / name, PACKAGE.parent / name) if place.is_dir()), PACKAGE / name)


def digest(tool: str) -> str:
    """Digest of the files that declare a tool's flags."""
    tools, common = folder_of("tools"), (PACKAGE / "engine" / "commands" / "arguments.py", Path(__file__))
    texts = [file.read_bytes() for file in (tools / f"{tool}.py", *common, *sorted(tools.glob(f"_{tool}/*.py")))]
    if tool == "train":  # trainers may declare flags for it
        sources = (file.read_bytes() for file in sorted(folder_of("trainers").glob("*.py")))
        texts += [source for source in sources if b"cli_flags" in source]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def kept(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The parts of a parser's help, as plain values."""
    parser.format_help()  # sorts the groups
    assert not parser._mutually_exclusive_groups
    order = {id(action): number for number, action in enumerate(parser._actions)}
    groups = [
        {
            "title": group.title,
            "description": group.description,
            "actions": {order[id(action)]: _kept(action) for action in group._group_actions},
        }
        for group in parser._action_groups
    ]
    name = parser.prog.removesuffix(".py").removeprefix("dassl-lite ")
    return {"name": name, "usage": parser.usage, "description": parser.description, "groups": groups}


def _kept(action: argparse.Action) -> dict[str, Any]:
    names = ("option_strings", "dest", "nargs", "default", "help", "metavar", "required")
    values = {name: getattr(action, name) for name in names}
    if not action.option_strings and action.nargs in ("*", "?"):
        values["required"] = False  # as Python 3.13 has it; earlier versions have True
    if isinstance(action, argparse._SubParsersAction):
        return {**values, "parts": [_kept(part) for part in action._get_subactions()]}
    return {**values, "choices": None if action.choices is None else list(action.choices)}


def content(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """Content of the file, from the parsers of all tools by name."""
    helps = {tool: {"digest": digest(tool), **kept(parser)} for tool, parser in parsers.items()}
    return json.dumps(helps, indent=1, ensure_ascii=False, default=str) + "\n"


# ---- printing ---------------------------------------------------------------------------------------------------


class _Shown(argparse.Action):
    """An argument that is only shown."""

    def __init__(self, parts: Iterable[Mapping[str, Any]] = (), **settings: Any) -> None:
        for name, value in settings.items():
            if value == argparse.SUPPRESS:
                settings[name] = argparse.SUPPRESS  # argparse compares it by identity
        super().__init__(**settings)
        self.parts = [_Shown(**part) for part in parts]

    def _get_subactions(self) -> list[argparse.Action]:
        return list(self.parts)

    def __call__(self, *_: Any) -> None:
        """Do nothing: no arguments are parsed."""


def text(tool: str) -> str | None:
    """The help of a tool; None if the tool itself has to print it."""
    try:
        spec = json.loads((folder_of("tools") / FILE).read_text(encoding="utf-8"))[tool]
        if spec["digest"] != digest(tool):
            return None
    except (OSError, ValueError, KeyError):
        return None
    if tool == "train" and _plugins_may_declare_flags():
        return None
    settings = {"usage": spec["usage"], "description": spec["description"], "formatter_class": HelpFormatter}
    parser = argparse.ArgumentParser(prog=program(spec["name"]), add_help=False, **settings)
    parser._action_groups.clear()
    actions: dict[int, argparse.Action] = {}
    for group in spec["groups"]:
        shown_group = parser.add_argument_group(group["title"], group["description"])
        shown = {int(number): _Shown(**action) for number, action in group["actions"].items()}
        shown_group._group_actions.extend(shown.values())
        actions |= shown
    parser._actions.extend(actions[number] for number in sorted(actions))
    return parser.format_help()


def _plugins_may_declare_flags() -> bool:
    from importlib.metadata import entry_points  # 20 ms

    return bool(entry_points(group=ENTRY_POINTS))


def print_if_asked(tool: str, words: list[str]) -> None:
    """Print a tool's help and end the process, if only the help is requested."""
    if words not in (["--help"], ["-h"]) or (shown := text(tool)) is None or sys.stdout is None:
        return
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stdout.write(shown)
        sys.stdout.flush()
    except (AttributeError, ValueError):
        return  # the tool itself handles such a stream
    except BrokenPipeError:
        os._exit(141)
    except OSError:
        return
    sys.exit(0)

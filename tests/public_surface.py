"""The public surface as text: config keys with their defaults, exported names, command-line options.

    python tests/public_surface.py            # print what changed; exit status 1 if anything did
    python tests/public_surface.py --write    # renew tests/public_surface/*.txt and tools/help.json

Users' scripts, yaml files and plug-ins depend on what these files list, so a change to them belongs in the same commit
as the code that causes it, where a reviewer sees it. To freeze something else, add a function to ``SECTIONS``: its
lines are kept in ``tests/public_surface/<section>.txt``.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dassl_lite.startup import tool_help

FOLDER = Path(__file__).resolve().with_suffix("")
PACKAGES = (
    "dassl_lite",
    "dassl_lite.config",
    "dassl_lite.data",
    "dassl_lite.engine",
    "dassl_lite.evaluation",
    "dassl_lite.metrics",
    "dassl_lite.models",
    "dassl_lite.networks",
    "dassl_lite.optim",
    "dassl_lite.utils",
)
MACHINE_DEPENDENT = {"--device"}  # its default is a GPU where there is one


def config_keys() -> list[str]:
    """``KEY = default`` for every key of the engine and of the trainers in the package; of these, what it does."""
    from dassl_lite.config.check import leaves
    from dassl_lite.engine.build import TRAINER_REGISTRY, full_config
    from dassl_lite.engine.contract.keys import keys_of

    _import_trainers()
    about = {
        f"TRAINER.{trainer.node_name()}.{name}": one.about
        for trainer in map(TRAINER_REGISTRY.get, TRAINER_REGISTRY)
        for name, one in keys_of(trainer).items()
    }
    return sorted(
        f"{key} = {value!r}" + (f"  # {about[key]}" if about.get(key) else "")
        for key, value in leaves(full_config()).items()
    )


def exported_names() -> list[str]:
    """The full name of everything in the ``__all__`` of a public package."""
    return sorted(f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__)


def command_line() -> list[str]:
    """``tool --flag = default`` for every option and positional argument of every tool, sub-commands included."""
    return [f"{tool} {line}" for tool, parser in _parsers().items() for line in sorted(_arguments(parser))]


def help_of_tools() -> list[str]:
    """What the tools print without importing torch; this one is shipped: ``tools/help.json``."""
    return tool_help.content(_parsers()).splitlines()


def _parsers() -> dict[str, argparse.ArgumentParser]:
    from dassl_lite.tools.cli import tools

    _import_trainers()  # which declare flags, too
    return {tool: importlib.import_module(f"dassl_lite.tools.{tool}").make_parser() for tool in tools()}


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "config_keys": config_keys,
    "exported_names": exported_names,
    "command_line": command_line,
    "help": help_of_tools,
}


def _file_of(section: str) -> Path:
    return tool_help.folder_of("tools") / tool_help.FILE if section == "help" else FOLDER / f"{section}.txt"


def _import_trainers() -> None:
    """Register the package's trainers. Not through load_plugins: this machine may have plug-ins of other packages."""
    trainers = importlib.import_module("dassl_lite.trainers")
    for module in pkgutil.walk_packages(trainers.__path__, "dassl_lite.trainers."):
        importlib.import_module(module.name)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from (f"{name} {line}" for line in _arguments(subparser))
        elif not isinstance(action, argparse._HelpAction):
            yield _described(action)


def _described(action: argparse.Action) -> str:
    """Such as ``--split {train,val,test} = 'test'``, ``--seeds N + = [1]`` or ``--verbose``."""
    words = [", ".join(action.option_strings) or action.dest]
    if action.option_strings and isinstance(action.metavar, str):
        words.append(action.metavar)
    if action.choices is not None:
        words.append("{" + ",".join(map(str, action.choices)) + "}")
    if isinstance(action.nargs, int) and action.nargs > 0:
        words.append(f"x{action.nargs}")
    elif isinstance(action.nargs, str):
        words.append(action.nargs)
    if action.required and action.option_strings:
        words.append("(required)")
    if action.nargs != 0 and action.option_strings and not action.required:
        words.append(f"= {_default(action)}")
    return " ".join(words)


def _default(action: argparse.Action) -> str:
    if MACHINE_DEPENDENT.intersection(action.option_strings):
        return "(depends on the machine)"
    return str(action.default) if isinstance(action.default, Path) else repr(action.default)


def differences() -> list[str]:
    """Lines of a diff from the stored files to the code; empty if they agree."""
    lines: list[str] = []
    for section, collect in SECTIONS.items():
        path = _file_of(section)
        stored = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines += difflib.unified_diff(stored, collect(), path.name, "the code", lineterm="", n=0)
    return lines


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for section, collect in SECTIONS.items():
        _file_of(section).write_text("\n".join(collect()) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew the stored files")
    if parser.parse_args(argv).write:
        write()
        return 0
    changed = differences()
    print("\n".join(changed))
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())

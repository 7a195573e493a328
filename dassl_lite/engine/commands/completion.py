"""Shell completion scripts for ``dassl-lite``: tools, flags, their values, config keys.

The scripts are static and generated from the tools' parsers: importing torch on every tab press would take seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from dassl_lite.config.check import leaves
from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.transforms import TRANSFORMS
from dassl_lite.downloads import SOURCES
from dassl_lite.engine.build import TRAINER_REGISTRY, configs_root, full_config
from dassl_lite.models.names import DEMO, OPENAI_NAMES

SHELLS = ("bash", "fish", "zsh")
FILE, DIRECTORY = "@file", "@directory"  # values that stand for path completion
_SEVERAL = ("+", "*")

# Valid in bash and zsh. $1 is a tool or, as two words, its sub-command; $2 a flag, or empty for positional arguments.
_TABLES = """\
__dassl_lite_words() {
    case "$1" in
%(words)s
    esac
}

__dassl_lite_keys() {
    case "$1" in
    %(with_keys)s) echo '%(keys)s' ;;
    esac
}

# The number of values that a flag takes (1, or + for several), followed by the values.
__dassl_lite_values() {
    case "$1 $2" in
%(values)s
    esac
}

# The candidates for the last argument, which may be empty; the others are the words before it.
__dassl_lite_candidates() {
    local tool="$1" flag="" count=0 spec=""
    if [ $# -le 1 ]; then
        __dassl_lite_words ""
        return
    fi
    shift
    if [ $# -gt 1 ] && [ -n "$(__dassl_lite_words "$tool $1")" ]; then
        tool="$tool $1"
        shift
    fi
    while [ $# -gt 1 ]; do
        case "$1" in
        -*) flag="$1" count=0 ;;
        *) count=$((count + 1)) ;;
        esac
        shift
    done
    case "$1" in
    -*)
        __dassl_lite_words "$tool"
        return
        ;;
    [A-Z]*) __dassl_lite_keys "$tool" ;;
    esac
    spec="$(__dassl_lite_values "$tool" "$flag")"
    case "$count $spec" in
    "0 1 "* | *" + "*) ;;
    *) spec="$(__dassl_lite_values "$tool" "")" ;;
    esac
    if [ -n "$spec" ]; then
        echo "${spec#? }"
    else
        __dassl_lite_words "$tool"
    fi
}
"""

_BASH = (
    "# bash completion for dassl-lite, written by `dassl-lite completion bash`.\n\n"
    + _TABLES
    + """
_dassl_lite() {
    local word="${COMP_WORDS[COMP_CWORD]}" candidates
    candidates=" $(__dassl_lite_candidates "${COMP_WORDS[@]:1:COMP_CWORD}" | tr '\\n' ' ') "
    COMPREPLY=()
    case "$candidates" in
    *" @file "*) COMPREPLY=($(compgen -f -- "$word")) ;;
    *" @directory "*) COMPREPLY=($(compgen -d -- "$word")) ;;
    esac
    if [ ${#COMPREPLY[@]} -gt 0 ]; then
        compopt -o filenames 2>/dev/null
    fi
    candidates="${candidates/ @file / }"
    COMPREPLY+=($(compgen -W "${candidates/ @directory / }" -- "$word"))
}
complete -F _dassl_lite dassl-lite
"""
)

_ZSH = (
    "#compdef dassl-lite\n# zsh completion for dassl-lite, written by `dassl-lite completion zsh`.\n\n"
    + _TABLES
    + """
_dassl-lite() {
    local -a candidates
    candidates=(${=$(__dassl_lite_candidates "${(@)words[2,CURRENT]}")})
    if (( ${candidates[(I)@file]} )); then
        _files
    elif (( ${candidates[(I)@directory]} )); then
        _files -/
    fi
    compadd -- ${candidates:#@*}
}

if [ "$funcstack[1]" = "_dassl-lite" ]; then
    _dassl-lite "$@"
else
    compdef _dassl-lite dassl-lite
fi
"""
)

_FISH = """\
# fish completion for dassl-lite, written by `dassl-lite completion fish`.

function __dassl_lite_in -d 'Whether the command line starts with these words'
    set -l words (commandline -opc)
    set -l last (math (count $argv) + 1)
    test (count $words) -ge $last; or return 1
    set -l start $words[2..$last]
    test "$start" = "$argv"
end

complete -c dassl-lite -f
%(lines)s
"""


def script(shell: str, parsers: Mapping[str, argparse.ArgumentParser], summaries: Mapping[str, str]) -> str:
    """The completion script for a shell.

    Args:
        shell: bash, zsh or fish.
        parsers: parsers of the tools, by name.
        summaries: one-line summaries of the tools, by name.
    """
    commands = dict(_commands(parsers))
    if shell == "fish":
        return _FISH % {"lines": "\n".join(_fish_lines(commands, summaries))}
    template = _BASH if shell == "bash" else _ZSH
    return template % _tables(commands, list(summaries))


def _commands(parsers: Mapping[str, argparse.ArgumentParser]) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Yield (words after ``dassl-lite``, arguments) for the tools and their sub-commands."""
    for tool, parser in parsers.items():
        yield tool, [action for action in parser._actions if action.help != argparse.SUPPRESS]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from _commands({f"{tool} {name}": sub for name, sub in action.choices.items()})


def _tables(commands: Mapping[str, Sequence[argparse.Action]], tools: Sequence[str]) -> dict[str, str]:
    words = [_case(["''"], [*tools, "--help", "--version"])]
    by_values: dict[str, list[str]] = {}
    candidates = _candidates()
    for command, actions in commands.items():
        words.append(_case([f"'{command}'"], [flag for action in actions for flag in action.option_strings]))
        for action in actions:
            if action.nargs != 0 and not _is_keys(action):
                values = " ".join(("+" if action.nargs in _SEVERAL else "1", *_values(action, candidates)))
                flags = action.option_strings or [""]
                by_values.setdefault(values, []).extend(f"'{command} {flag}'" for flag in flags)
    return {
        "words": "\n".join(words),
        "values": "\n".join(_case(flags, [values]) for values, flags in by_values.items()),
        "with_keys": " | ".join(f"'{command}'" for command, actions in commands.items() if any(map(_is_keys, actions))),
        "keys": " ".join(leaves(full_config())),
    }


def _case(patterns: Sequence[str], words: Sequence[str]) -> str:
    return f"    {' | '.join(patterns)}) echo '{' '.join(words)} ' ;;"


def _is_keys(action: argparse.Action) -> bool:
    return action.dest == "options" and not action.option_strings


def _candidates() -> dict[str, list[str]]:
    """Attribute of the parsed arguments -> possible values."""
    trainers = sorted(TRAINER_REGISTRY)
    yamls = sorted(path.stem for path in (configs_root() / "datasets").glob("*.yaml"))
    return {
        "trainer": trainers,
        "help_trainer": trainers,
        "trainers": ["all", *trainers],
        "dataset_config_file": yamls,
        "dataset": sorted({*yamls, *DATASET_REGISTRY}),
        "names": ["all", *SOURCES],
        "backbone": [DEMO, *OPENAI_NAMES],
        "weights": [DEMO],
        "precision": ["fp32", "fp16", "bf16", "amp"],
        "transforms": sorted(TRANSFORMS),
        "suite": [*sorted(path.stem for path in (configs_root() / "suites").glob("*.yaml")), "all"],
        "metric": ["accuracy", "error_rate", "macro_f1", "ece", "mAP", "micro_f1"],
        "split": ["test", "val"],
    }


def _values(action: argparse.Action, candidates: Mapping[str, list[str]]) -> list[str]:
    """The values that may follow a flag."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    place = str(action.metavar or "")
    paths = [DIRECTORY] if place in ("DIR", "FOLDER") else [FILE] if place.startswith(("FILE", "PATH")) else []
    return [*paths, *candidates.get(action.dest, [])]


def _fish_lines(commands: Mapping[str, Sequence[argparse.Action]], summaries: Mapping[str, str]) -> Iterator[str]:
    begin = "complete -c dassl-lite -n 'test (count (commandline -opc)) -eq 1'"
    yield from (f"{begin} -a {tool} -d {_quoted(summary)}" for tool, summary in summaries.items())
    yield f"{begin} -l help -d 'list the tools'"
    yield f"{begin} -l version -d 'print the version'"
    candidates, keys = _candidates(), " ".join(leaves(full_config()))
    for command, actions in commands.items():
        begin = f"complete -c dassl-lite -n '__dassl_lite_in {command}'"
        for action in actions:
            values = [keys] if _is_keys(action) else _values(action, candidates)
            words = ["(__fish_complete_directories)" if value == DIRECTORY else value for value in values]
            kinds = [("l" if flag.startswith("--") else "s", flag.lstrip("-")) for flag in action.option_strings]
            flags = "".join(f" -{kind} {name}" for kind, name in kinds)
            takes = " -r" if flags and action.nargs != 0 else ""
            files = " -F" if FILE in words else " -f" if takes or not flags else ""
            listed = f" -a {_quoted(' '.join(word for word in words if word != FILE))}" if words else ""
            about = f" -d {_quoted(_help(action))}" if flags else ""
            if flags or listed or files == " -F":
                yield begin + flags + takes + files + listed + about


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%").replace("%(prog)s", "dassl-lite")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

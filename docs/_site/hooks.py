"""The site's build: the package as installed, for mkdocstrings, and files of the repository included in pages.

A line ``{{ include trainers/README.md # A method in 40 lines }}`` is replaced by that section of the file, without the
``# ...`` by all of the file but its title. So the guides are written once, beside the code, and tested there.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://github.com/dassl-lite/dassl-lite/blob/main/"
# File of the repository -> the page that shows it; links to other files go to the repository.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "trainers/README.md": "howto/method.md",
    "datasets/README.md": "howto/dataset.md",
}
INCLUDE = re.compile(r"^\{\{ include (?P<path>\S+)(?: # (?P<heading>.+?))? \}\}$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_startup(command: str, dirty: bool) -> None:
    """Make .types/ as ``python tools/link_types.py`` does."""
    spec = importlib.util.spec_from_file_location("link_types", ROOT / "tools" / "link_types.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the page's include lines."""
    return INCLUDE.sub(lambda match: included(match["path"], match["heading"], page.file.src_uri), markdown)


def included(path: str, heading: str | None, page: str) -> str:
    """The text of a file, or of one of its sections, with links that are right on ``page``."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith((".txt", ".yaml", ".py")):
        return f"```{'python' if path.endswith('.py') else 'text'}\n{text}```"
    if heading is None:
        text = re.sub(r"\A# .*\n", "", text)
    else:
        section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        if section is None:
            raise PluginError(f"{page} includes the section '{heading}' of {path}, which has none of that name")
        text = re.sub(r"^###", "##", section[1], flags=re.MULTILINE)
    return LINK.sub(lambda match: f"]({address(match['target'], path, page)}{match['anchor'] or ''})", text).strip()


def address(target: str, path: str, page: str) -> str:
    """Where a link of the file ``path`` leads from ``page``."""
    place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    shown = PAGES.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else None)
    return posixpath.relpath(shown, posixpath.dirname(page) or ".") if shown else SOURCE + place

"""Weights for the ``clip`` package that papers' repositories contain: OpenAI's, or a copy of it.

Its ``_MODELS`` maps names to URLs, and ``_download(url)`` returns a file. Both are replaced after its import: published
files are first looked up in our weight folders, and ``demo``, ``random:ARCHITECTURE`` and weight files become model
names, too. So a repository runs offline and unedited.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dassl_lite.engine import build
from dassl_lite.models import names, openai_format, published_weights
from dassl_lite.models.clip import assemble
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import atomic_path, cache_root, digest_of


class ClipFinder(MetaPathFinder):
    """Finds a module with a name like ``clip`` where Python would, and adapts it after it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if "clip" not in fullname.rpartition(".")[2].lower() or fullname.startswith("dassl_lite."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_adapt(module: ModuleType) -> None:
            with _packaging_for(module):
                execute(module)
            adapt(module)

        spec.loader.exec_module = execute_and_adapt  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _packaging_for(module: ModuleType) -> Iterator[None]:
    """Make ``from pkg_resources import packaging`` work while a module that contains it is executed: copies of CLIP
    from 2022 do, and newer setuptools lacks it."""
    file = Path(module.__dict__.get("__file__") or "")
    if not file.is_file() or "pkg_resources" not in file.read_text(encoding="utf-8", errors="replace"):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources is deprecated
        try:
            installed: ModuleType | None = importlib.import_module("pkg_resources")
        except ModuleNotFoundError:
            installed = None
    resources = installed or sys.modules.setdefault("pkg_resources", ModuleType("pkg_resources"))
    if not hasattr(resources, "packaging"):
        resources.__dict__["packaging"] = importlib.import_module("packaging")
        importlib.import_module("packaging.version")
    try:
        yield
    finally:
        if installed is None:
            del sys.modules["pkg_resources"]


def adapt(module: ModuleType) -> None:
    """Replace ``_MODELS`` and ``_download`` in a module that has both; leave other modules alone."""
    models, download = getattr(module, "_MODELS", None), getattr(module, "_download", None)
    if isinstance(models, dict) and not isinstance(models, Models) and callable(download):
        module.__dict__["_MODELS"] = Models(models)
        module.__dict__["_download"] = _looking_here_first(download)


class Models(dict[str, str]):
    """``clip._MODELS``, name -> URL, with more names, which map to local files.

    Raises:
        UserError: on looking up a name that is neither theirs nor ours.
    """

    def __contains__(self, name: object) -> bool:
        # the look-up of "" raises: no backbone is named
        return super().__contains__(name) or (isinstance(name, str) and (not name or names.is_local(name)))

    def __missing__(self, name: str) -> str:
        if not name or build.is_unnamed(name):
            raise UserError("no backbone is named; name one with --backbone (MODEL.BACKBONE.NAME), such as ViT-B/16")
        backbone = names.parse(name)
        if backbone.kind == "tag" and backbone.tag == "openai":
            path = published_weights.locate(backbone.architecture, backbone.tag)
            return str(published_weights.check(path, backbone.architecture, backbone.tag))
        if not names.is_local(name):
            raise UserError(
                f"backbone '{name}' is in open_clip's layout, which the repository's `clip` package does not read; it "
                f"takes {', '.join(self)}, a file in OpenAI's layout, or demo"
            )
        return str(_readable(backbone))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 (which would be this function)


def _readable(backbone: names.BackboneName) -> Path:
    """A file of the weights that their ``load`` reads: a TorchScript archive, or a plain state dict."""
    if backbone.kind == "random":
        described: tuple[Any, ...] = (backbone.architecture, backbone.seed)
    elif _is_torchscript(backbone.file):
        return backbone.file
    else:
        status = backbone.file.stat()
        described = (str(backbone.file.resolve()), status.st_size, status.st_mtime_ns)
    path = cache_root() / "clip" / "as-openai" / f"{digest_of(described)}.pt"
    if not path.is_file():
        state = (
            dict(assemble(backbone, torch.float32)[0].state_dict())
            if backbone.kind == "random"
            else openai_format.as_openais_package_reads(backbone.file)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    return path


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _looking_here_first(download: Callable[..., Any]) -> Callable[..., Any]:
    """Their ``_download(url, root)``, after looking for a local file, or that name in our folders or ``root``."""

    def found(url: str, *args: Any, **more: Any) -> str:
        if "://" not in url:
            return url  # a path from Models
        given = inspect.signature(download).bind(url, *args, **more)
        given.apply_defaults()
        roots = [value for name, value in given.arguments.items() if "root" in name and isinstance(value, str)]
        if any((Path(root).expanduser() / url.rsplit("/", 1)[-1]).is_file() for root in roots):
            return download(url, *args, **more)
        return str(published_weights.locate_url(url))

    return found

"""A repository's train.py as it is, through the runner: its flags, its settings, its clip package, no network."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dassl_lite.compat import clip_package, runner
from dassl_lite.config import get_cfg_default
from dassl_lite.engine import TRAINER_REGISTRY, plugins
from dassl_lite.engine.build import make_config
from dassl_lite.engine.commands.cli import run_tool as to_exit_code
from dassl_lite.engine.files.results import read_results
from dassl_lite.models import names, openai_format
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import run_dassl
from dassl_lite.tools import train as train_tool
from dassl_lite.utils import UserError

THEIRS = ("clip", "trainers", "datasets")
Run = Callable[..., int]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the repository, with an empty cache; what is imported from it is forgotten afterwards."""
    monkeypatch.setenv("DASSL_LITE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(Path(__file__).parent / "repository", tmp_path / "repository")
    path, asked = list(sys.path), dict(plugins._requested)
    yield tmp_path / "repository"
    sys.path[:] = path
    plugins._requested.clear()
    plugins._requested.update(asked)
    for name in [name for name in sys.modules if name.partition(".")[0] in THEIRS]:
        del sys.modules[name]
    for handler in logging.getLogger("dassl_lite").handlers:
        handler.close()


@pytest.fixture
def run(repository: Path, root: Path, tmp_path: Path) -> Run:
    """``run("out", "--backbone", "demo")``: the exit code of the repository's script with these arguments."""

    def run(output: str, *arguments: str, trainer: str = "RepositoryResidual") -> int:
        given = ["--root", str(root), "--output-dir", str(tmp_path / output), "--trainer", trainer]
        given += ["--config-file", str(repository / "x.yaml"), "--seed", "1", *arguments]
        return to_exit_code(runner.main, [str(repository / "train.py"), *given])

    return run


def error_of(capsys: Any) -> str:
    """The one line on stderr that says what was wrong."""
    told = capsys.readouterr().err
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.slow
def test_a_script_runs_with_its_own_flags_and_settings_and_leaves_results(run: Run, tmp_path: Path) -> None:
    argv, default = list(sys.argv), get_cfg_default().MODEL.BACKBONE.NAME
    assert run("out", "--backbone", "demo", "--temperature", "0.5") == 0
    results = read_results(tmp_path / "out")
    assert results is not None
    assert results["metrics"]["test"]["accuracy"] > 50
    assert results["trainer"] == "RepositoryResidual"
    assert results["config"]["OPTIM"]["MAX_EPOCH"] == 3  # as the script sets it for one shot; the yaml says 1
    assert results["config"]["TRAINER"]["REPOSITORY"]["TEMPERATURE"] == 0.5
    saved = sorted(path.name for path in (tmp_path / "out" / "residual").glob("model*"))
    assert saved == ["model.pth.tar-3"]  # CHECKPOINT_FREQ -1: the last epoch only
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Loading CLIP (backbone: demo)" in log  # what their script prints
    assert sys.argv == argv
    assert get_cfg_default().MODEL.BACKBONE.NAME == default


@pytest.mark.slow
def test_an_evaluation_by_the_script_leaves_results_but_not_in_place_of_a_trained_runs(
    run: Run, tmp_path: Path, capsys: Any
) -> None:
    assert run("out", "--backbone", "demo") == 0
    evaluation = ("--backbone", "demo", "--eval-only", "--load-epoch", "3", "--model-dir", str(tmp_path / "out"))
    assert run("evaluated", *evaluation) == 0
    trained, evaluated = read_results(tmp_path / "out"), read_results(tmp_path / "evaluated")
    assert trained is not None
    assert evaluated is not None
    assert evaluated["metrics"]["test"] == trained["metrics"]["test"]
    assert run("out", *evaluation) == 0
    assert read_results(tmp_path / "out") == trained
    assert "whose results stay" in capsys.readouterr().out


@pytest.mark.slow
def test_a_script_that_only_builds_leaves_no_results(run: Run, tmp_path: Path) -> None:
    assert run("built", "--backbone", "demo", "--no-train") == 0
    assert not (tmp_path / "built" / "results.json").exists()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("backbone", "trainer", "told"),
    [
        ((), "RepositoryResidual", "no backbone is named; name one with --backbone"),
        (("--backbone", "RN-50"), "RepositoryResidual", "unknown backbone 'RN-50'. Did you mean 'RN50'?"),
        (("--backbone", "ViT-B-16:laion2b_s34b_b88k"), "RepositoryResidual", "is in open_clip's layout"),
        (("--backbone", "no/such.pt"), "RepositoryResidual", "no weights file no/such.pt"),
        (("--backbone", "demo"), "RepositoryOwnTable", "RepositoryOwnTable does not know the backbone 'demo'"),
        (("--backbone", "demo"), "RepositoryZeroshot", "has nothing to train: it defines no forward_backward"),
    ],
)
def test_settings_that_a_script_cannot_run_with_are_reported_in_one_line(
    run: Run, capsys: Any, backbone: tuple[str, ...], trainer: str, told: str
) -> None:
    assert run("out", *backbone, trainer=trainer) == 2
    assert told in error_of(capsys)


@pytest.mark.slow
def test_tools_run_and_evaluate_the_same_repository(
    run: Run, repository: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of the run, eval.py takes the newest epoch, since their load_model looks for a best one that was not kept."""
    assert run("out", "--backbone", "demo") == 0
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    files = [repository / "trainers" / "residual.py", repository / "datasets" / "colours_of_repository.py"]
    given = ["--dassl-compat", *(word for file in files for word in ("--plugin", str(file)))]
    table = tmp_path / "table.json"
    words = [*given, "--model-dir", str(tmp_path / "out"), "--output", str(table)]
    assert to_exit_code(eval_tool.main, words) == 0, capsys.readouterr().err
    assert "Loaded model.pth.tar-3" in capsys.readouterr().out
    results = read_results(tmp_path / "out")
    assert results is not None
    (row,) = json.loads(table.read_text())["rows"]
    assert row["accuracy"] == results["metrics"]["test"]["accuracy"]
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - before == {table}  # no loaded.txt


@pytest.fixture
def plugged(repository: Path) -> list[str]:
    """The flags with which a tool uses the repository's trainers and dataset."""
    files = [repository / "trainers" / "residual.py", repository / "datasets" / "colours_of_repository.py"]
    declared = repository / "keys_of_repository.py"
    declared.write_text(
        "from yacs.config import CfgNode as CN\ndef extend_cfg(cfg):\n"
        "    cfg.TRAINER.REPOSITORY = CN({'PREC': 'fp16'})\n    cfg.TRAINER.COOP.CTX_INIT = False\n"
    )
    return ["--dassl-compat", *(word for file in (*files, declared) for word in ("--plugin", str(file)))]


@pytest.mark.slow
def test_the_training_tool_trains_a_repositorys_trainer_on_the_demo_backbone(
    plugged: list[str], repository: Path, root: Path, tmp_path: Path, capsys: Any
) -> None:
    given = [*plugged, "--trainer", "RepositoryResidual", "--config-file", str(repository / "x.yaml")]
    given += ["--root", str(root), "--output-dir", str(tmp_path / "out")]
    assert to_exit_code(train_tool.main, [*given, "--backbone", "demo", "DATASET.NAME", "RepositoryColours"]) == 0
    assert "INPUT.SIZE (224, 224) does not fit backbone demo" in capsys.readouterr().err
    results = read_results(tmp_path / "out")
    assert results is not None
    assert results["metrics"]["test"]["accuracy"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["train", "eval"])
@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ("RepositoryResidual", "no backbone is named; name one with --backbone"),
        ("RepositoryOwnTable", "RepositoryOwnTable does not know the backbone 'demo'; choose one that it knows with"),
    ],
)
def test_a_tool_without_a_backbone_stops_with_one_line(
    plugged: list[str], repository: Path, root: Path, tmp_path: Path, capsys: Any, tool: str, trainer: str, told: str
) -> None:
    given = [*plugged, "--trainer", trainer, "--config-file", str(repository / "x.yaml"), "--root", str(root)]
    options = ["DATASET.NAME", "RepositoryColours"]
    if tool == "train":
        code = to_exit_code(train_tool.main, [*given, "--output-dir", str(tmp_path / "out"), *options])
    else:
        code = to_exit_code(eval_tool.main, [*given, "--model-dir", str(tmp_path), *options])
    assert code == 2
    assert told in error_of(capsys)


# ---- weights for their clip package ----


@pytest.mark.slow
def test_a_published_file_is_found_in_our_folders_by_its_name(run: Run, repository: Path, tmp_path: Path) -> None:
    """Their own address of it leads nowhere."""
    folder = tmp_path / "cache" / "clip"
    folder.mkdir(parents=True)
    torch.save(openai_format.as_openais_package_reads(names.DEMO_FILE), folder / "tiny-of-paper.pt")
    assert run("out", "--backbone", "tiny", "INPUT.SIZE", "(64, 64)") == 0
    assert (tmp_path / "out" / "results.json").is_file()


@pytest.mark.slow
def test_a_file_of_weights_is_a_model_of_their_package(run: Run, tmp_path: Path) -> None:
    shutil.copy(names.DEMO_FILE, tmp_path / "mine.safetensors")
    assert run("file", "--backbone", str(tmp_path / "mine.safetensors")) == 0
    assert run("demo", "--backbone", "demo") == 0
    weights = [torch.load(tmp_path / name / "residual" / "model.pth.tar-3")["state_dict"] for name in ("file", "demo")]
    assert torch.equal(weights[0]["offset"], weights[1]["offset"])


@pytest.mark.slow
def test_models_still_lists_and_gets_what_it_did(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository))
    from clip import clip

    assert clip.available_models() == ["RN50", "tiny"]
    assert clip._MODELS["tiny"] == "https://nowhere.invalid/clip/models/0123/tiny-of-paper.pt"
    assert clip._MODELS.get("demo", "") != ""
    assert clip._MODELS.get("nothing", "none") == "none"
    with pytest.raises(UserError, match="no backbone is named"):
        clip.load("")
    with pytest.raises(RuntimeError, match="Model nothing not found"):
        clip.load("nothing")
    assert clip.load("demo").visual.input_resolution == 64
    state = torch.get_rng_state()
    path = clip._MODELS["random:RN50:3"]
    assert torch.equal(torch.get_rng_state(), state)
    assert "visual.attnpool.positional_embedding" in torch.load(path)


def test_an_unreachable_address_is_reported_in_one_line(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository))
    from clip import clip

    with pytest.raises(UserError, match=r"not found in .*tiny-of-paper\.pt, and not downloaded .*--backbone demo"):
        clip._download(clip._MODELS["tiny"])


def test_a_file_in_their_own_folder_is_left_to_their_download(tmp_path: Path) -> None:
    asked = []

    def download(url: str, root: str = str(tmp_path)) -> str:
        asked.append(root)
        return "theirs"

    (tmp_path / "a.pt").touch()
    assert clip_package._looking_here_first(download)("https://nowhere.invalid/0/a.pt") == "theirs"
    assert asked == [str(tmp_path)]


# ---- several trainers, own tests ----


@pytest.mark.slow
def test_every_trainer_that_a_script_builds_leaves_its_results(
    repository: Path, root: Path, tmp_path: Path, capsys: Any
) -> None:
    (repository / "both.py").write_text(
        """
import sys
from dassl.config import get_cfg_default
from dassl.engine import build_trainer, TRAINER_REGISTRY
import datasets.colours_of_repository
from trainers.residual import RepositoryResidual
from yacs.config import CfgNode as CN

@TRAINER_REGISTRY.register()
class OwnTest(RepositoryResidual):
    def test(self):
        return 12.5

for name in ("RepositoryResidual", "OwnTest"):
    cfg = get_cfg_default()
    cfg.TRAINER.REPOSITORY = CN({"PREC": "fp32"})
    cfg.merge_from_list(["TRAINER.NAME", name, *sys.argv[2:], "OUTPUT_DIR", sys.argv[1] + "/" + name])
    trainer = build_trainer(cfg)
    trainer.test()
"""
    )
    options = ["DATASET.NAME", "RepositoryColours", "DATASET.ROOT", str(root), "MODEL.BACKBONE.NAME", "demo"]
    options += ["DATALOADER.NUM_WORKERS", "0"]
    code = to_exit_code(runner.main, [str(repository / "both.py"), str(tmp_path / "out"), *options])
    assert code == 0, capsys.readouterr().err
    first, second = (read_results(tmp_path / "out" / name) for name in ("RepositoryResidual", "OwnTest"))
    assert first is not None
    assert second is not None
    assert first["metrics"]["test"]["accuracy"] > 50
    assert second["metrics"] == {"test": {"accuracy": 12.5}}


# ---- what cannot be imported ----


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "import json, helper\nimport no_such_one\nimport no_such_two.part\n"
            "try:\n    import no_such_three\nexcept ImportError:\n    pass\n",
            "needs no_such_four, no_such_one, no_such_two, which this Python lacks; pip install no_such_four",
        ),
        ("import cv2_of_nobody, helper", "needs cv2_of_nobody, no_such_four, which this Python lacks"),
        ("from package.part import x", "its repository has no module package.part"),
        ("import dassl.engine.dg", "imports dassl.engine.dg, which this package does not have"),
        ("from dassl.engine import DANN", "imports DANN from dassl.engine, which this package does not have"),
    ],
)
def test_a_missing_dependency_of_a_script_is_reported_in_one_line(
    tmp_path: Path, capsys: Any, script: str, told: str
) -> None:
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "helper.py").write_text("def later():\n    import no_such_five\nfrom no_such_four import x\n")
    if "helper" in script and "no_such_one" in script:
        (tmp_path / "helper.py").write_text("if False:\n    from no_such_four import x\n")
    assert to_exit_code(runner.main, [str(tmp_path / "train.py")]) == 2
    assert told in error_of(capsys)
    for name in ("helper", "package"):
        sys.modules.pop(name, None)


def test_a_scripts_exit_code_is_the_runners(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import sys; sys.exit(7)")
    with pytest.raises(SystemExit) as end:
        runner.main([str(tmp_path / "train.py")])
    assert end.value.code == 7


def test_the_tool_passes_everything_after_the_script_to_it(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "train.py").write_text("import sys; print(sys.argv[1:], sys.path[0], __name__)")
    assert run_dassl.main(["--debug", str(tmp_path / "train.py"), "--help", "OPTIM.LR", "1", "--", "x"]) == 0
    assert f"['--help', 'OPTIM.LR', '1', '--', 'x'] {tmp_path} __main__" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"nosuch\.py does not exist"):
        run_dassl.main(["nosuch.py", "--help"])


@pytest.mark.slow
def test_the_module_runs_as_a_command(repository: Path) -> None:
    words = [sys.executable, "-m", "dassl_lite.compat", str(repository / "train.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--temperature" in done.stdout


# ---- the script as a plug-in ----


@pytest.mark.slow
def test_an_error_about_a_training_script_as_a_plugin_names_the_runner(tmp_path: Path, capsys: Any) -> None:
    scripts = {
        "setup.py": "def setup_cfg(args):\n    pass\n",
        "reset.py": "def reset_cfg(cfg, args):\n    pass\n",
        "flags.py": "import argparse\ndef main():\n    parser = argparse.ArgumentParser()\n",
        "plain.py": "# argparse.ArgumentParser() in a comment\ndef extend_cfg(cfg):\n    pass\n",
    }
    told = {}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        logging.getLogger("dassl_lite").handlers.clear()
        train_tool.setup_logger()
        plugins.load_plugin(str(tmp_path / name))
        told[name] = f"dassl-lite run-dassl {tmp_path / name}" in capsys.readouterr().err
    for name in scripts:
        plugins._requested.pop(str(tmp_path / name))
    assert told == {"setup.py": True, "reset.py": True, "flags.py": True, "plain.py": False}


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("def extend_cfg(cfg, args):\n    cfg.X = args.x\n", "takes more than a config"),
        ("def extend_cfg(cfg):\n    cfg.X = cfg.NOTHING.Y\n", "fails: AttributeError: NOTHING"),
    ],
)
def test_an_extend_cfg_that_cannot_be_called_is_reported_in_one_line(tmp_path: Path, function: str, told: str) -> None:
    plugin = tmp_path / "script_of_paper.py"
    plugin.write_text(function)
    plugins.load_plugin(str(plugin))
    try:
        with pytest.raises(UserError, match=f"{told}.*dassl-lite run-dassl {plugin}"):
            make_config(trainer="TaskRes")
    finally:
        del plugins._requested[str(plugin)]


@pytest.mark.slow
@pytest.mark.parametrize("package", [True, False])
@pytest.mark.parametrize(
    ("yaml", "what"),
    [
        ("TRAINER: {PAPERX: {DEPTH: 3}}", "unknown config key 'TRAINER.PAPERX'"),
        ("LOSS: {GM: true}", "unknown config key 'LOSS'"),
        ("TRAINER: {COOP: {CTX_INIT: false}}", "TRAINER.COOP.CTX_INIT must be a string, like ''"),
    ],
)
def test_a_key_declared_by_the_repositorys_script_is_reported_with_that_script(
    tmp_path: Path, yaml: str, what: str, package: bool
) -> None:
    (tmp_path / "trainers").mkdir()
    if package:
        (tmp_path / "trainers" / "__init__.py").touch()
    plugin, script, recipe = tmp_path / "trainers" / "x_of_paper.py", tmp_path / "train.py", tmp_path / "x.yaml"
    plugin.touch()
    declared = "cfg.TRAINER.PAPERX = CN()\n    cfg.LOSS = CN()\n    cfg.LOSS.GM = False\n    cfg.TRAINER.COOP = CN()\n"
    declared += "    cfg.TRAINER.PAPERX.DEPTH = 9\n    cfg.TRAINER.COOP.CTX_INIT = False\n"
    script.write_text(f"from yacs.config import CfgNode as CN\ndef extend_cfg(cfg):\n    {declared}")
    recipe.write_text(yaml)
    path = list(sys.path)
    plugins.load_plugin(str(plugin))
    try:
        with pytest.raises(UserError) as error:
            make_config(trainer="TaskRes", method_file=recipe)
        assert what in str(error.value)
        assert f"{script} declares it: add --plugin {script}" in str(error.value)
        assert "did you mean" not in str(error.value)
        plugins.load_plugin(str(script))
        cfg = make_config(trainer="TaskRes", method_file=recipe)  # their declaration wins over CoOp's, too
        assert cfg.TRAINER.COOP.CTX_INIT is False
    finally:
        sys.path[:] = path
        for one in (plugin, script):
            plugins._requested.pop(str(one), None)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("trainers", "train")]:
            del sys.modules[name]


@pytest.mark.slow
def test_a_trainers_own_declaration_of_a_key_of_ours_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order: a fork that replaces CoOp stands in CoOp's place, before CoCoOp."""
    from yacs.config import CfgNode as CN  # noqa: N817

    class CoOp:
        __module__ = "trainers.of_fork"

        @staticmethod
        def extend_cfg(cfg: CN) -> None:
            cfg.TRAINER.COCOOP = CN({"CTX_INIT": False})

    plugins.load_plugins()
    monkeypatch.setattr(TRAINER_REGISTRY, "_table", {**TRAINER_REGISTRY._table, "CoOp": CoOp})
    cfg = make_config(trainer="TaskRes")
    assert cfg.TRAINER.COCOOP.CTX_INIT is False
    assert cfg.TRAINER.COCOOP.N_CTX == 16  # which the fork does not declare, and ours needs
    with pytest.raises(UserError, match="TRAINER.COCOOP.CTX_INIT is False; it must be like ''"):
        make_config(trainer="CoCoOp")

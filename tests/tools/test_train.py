"""tools/train.py as a user sees it: one command, resumed runs, one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dassl_lite.engine.commands.cli import run_tool
from dassl_lite.tools import eval as eval_tool
from dassl_lite.tools import train
from dassl_lite.trainers.taskres import TaskRes

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ("--dataset-config-file", "gadgets", "--shots", "2")  # the smallest of the drawn datasets
FEW = ("OPTIM.MAX_EPOCH", "4", "DATASET.FEATURES.VIEWS", "2", "DATALOADER.NUM_WORKERS", "0")

# A plugin whose run receives a signal at the same moment on every machine: after the checkpoint of epoch 10.
SENDS_A_SIGNAL = """
import os
from dassl_lite.engine import TrainerX

save_model = TrainerX.save_model

def save_and_signal(self, epoch, *arguments, **more):
    save_model(self, epoch, *arguments, **more)
    if epoch + 1 == 10:
        os.kill(os.getpid(), {sent})

TrainerX.save_model = save_and_signal
"""


def run(*argv: str) -> int:
    return run_tool(train.main, list(argv))


def taskres(output: Path, *flags: str, options: tuple[str, ...] = ()) -> int:
    return run("--trainer", "TaskRes", *QUICK, "--output-dir", str(output), *flags, *FEW, *options)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_run_prints_and_stores_zero_shot_and_trained_accuracy(tmp_path, capsys):
    assert taskres(tmp_path / "run") == 0
    out = capsys.readouterr().out
    kept = results(tmp_path / "run")
    accuracy = kept["metrics"]["test"]["accuracy"]
    table = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if line}
    assert table["zero-shot CLIP"] == f"{kept['zero_shot_accuracy']:.2f}"
    assert table["TaskRes"] == f"{accuracy:.2f}"
    assert str(tmp_path / "run" / "results.json") in out
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.index("Finish training") < log.index(f"* accuracy: {accuracy:.1f}%")
    assert log.count("epoch [4/4]") == 1
    assert kept["split_sizes"]["train"] == 24
    assert kept["config"]["OPTIM"]["MAX_EPOCH"] == 4
    assert kept["fewshot_digest"]
    assert {"features", "train", "evaluate test"} <= kept["seconds"].keys()


@pytest.mark.slow
def test_evaluating_a_run_reproduces_its_exact_accuracy(tmp_path):
    assert taskres(tmp_path / "run") == 0
    expected = results(tmp_path / "run")["metrics"]["test"]
    run_dir, out = str(tmp_path / "run"), tmp_path / "eval"
    assert run_tool(eval_tool.main, ["--model-dir", run_dir, "--output-dir", str(out)]) == 0
    row = json.loads((out / "evaluation.json").read_text())["rows"][0]
    assert (row["accuracy"], row["macro_f1"]) == (expected["accuracy"], expected["macro_f1"])
    assert taskres(tmp_path / "again", "--eval-only", "--model-dir", run_dir, "--load-epoch", "4") == 0
    line = f"* accuracy: {expected['accuracy']:.1f}%"
    assert line in (tmp_path / "again" / "log.txt").read_text()


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_numbers(tmp_path):
    for name in ("a", "b"):
        assert taskres(tmp_path / name, "--seed", "0") == 0
    assert results(tmp_path / "a")["metrics"] == results(tmp_path / "b")["metrics"]
    assert results(tmp_path / "a")["seed"] == 0  # zero is a seed


@pytest.mark.slow
def test_a_folder_with_a_run_is_reused_only_to_resume_or_overwrite_it(tmp_path, capsys):
    assert taskres(tmp_path) == 0
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / "results.json").read_text()
    assert taskres(tmp_path) == 2
    assert "contains another run; choose another --output-dir, or add --resume" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == before
    assert taskres(tmp_path, "--overwrite") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert taskres(tmp_path, "--resume") == 0  # a finished run: nothing left to train, the same numbers
    assert results(tmp_path)["metrics"] == json.loads(before)["metrics"]


@pytest.mark.slow
def test_resume_refuses_another_seed_number_of_shots_or_learning_rate(tmp_path, capsys):
    assert taskres(tmp_path) == 0
    capsys.readouterr()
    before = (tmp_path / "results.json").read_text()
    same = ["--trainer", "TaskRes", *QUICK, "--output-dir", str(tmp_path), "--resume"]
    for flags, expected in (
        ([*same, "--seed", "2", *FEW], "SEED 1, but now it is 2"),
        (["1" if flag == "2" else flag for flag in same] + [*FEW], "DATASET.NUM_SHOTS 2, but now it is 1"),
        ([*same, *FEW, "OPTIM.LR", "0.25"], "OPTIM.LR 0.002, but now it is 0.25"),
    ):
        assert run(*flags) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
        assert expected in line
    assert (tmp_path / "results.json").read_text() == before
    assert taskres(tmp_path, "--resume", options=("DATASET.FEATURES.BATCH_SIZE", "8")) == 0


@pytest.mark.slow
def test_the_demo_backbone_warns_that_it_only_knows_drawn_shapes(tmp_path, capsys):
    for name, colour in (("red", "red"), ("blue", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "photos" / name / f"{number}.png")
    assert (
        run("--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path / "run"), "--data", str(tmp_path / "photos")) == 0
    )
    line = "Warning: The backbone demo knows drawn shapes only, and will not recognise photographs: choose another"
    assert capsys.readouterr().err.count(line) == 1
    assert run("--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path / "drawn"), *QUICK[:2]) == 0
    assert "drawn shapes only" not in capsys.readouterr().err


@pytest.mark.slow
def test_signal_handlers_are_restored_after_a_run(tmp_path, monkeypatch):
    def custom_handler(number: int, frame: object) -> None:
        """A handler of the program that calls the tool."""

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, custom_handler) for number in numbers]
    try:
        during: list[object] = []
        after_epoch = TaskRes.after_epoch
        monkeypatch.setattr(
            TaskRes, "after_epoch", lambda self: (during.append(signal.getsignal(signal.SIGINT)), after_epoch(self))
        )
        assert taskres(tmp_path / "ends") == 0
        assert [signal.getsignal(number) for number in numbers] == [custom_handler, custom_handler]
        assert taskres(tmp_path / "fails", options=("OPTIM.LR", "1e38", "OPTIM.NAME", "sgd")) == 2
        assert [signal.getsignal(number) for number in numbers] == [custom_handler, custom_handler]
        assert custom_handler not in during
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def mistakes(tmp_path: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Map each name to (arguments, text of the error line)."""
    not_yaml = tmp_path / "broken.yaml"
    not_yaml.write_text("a: [1,\n")
    out = ("--output-dir", str(tmp_path / "out"))
    base = ("--trainer", "TaskRes", *QUICK, *out)
    return {
        "no trainer": ((), "--trainer is missing; choices: "),
        "unknown trainer": (("--trainer", "TaskRess", *out), "unknown trainer 'TaskRess'. Did you mean 'TaskRes'?"),
        "unknown dataset file": (
            ("--trainer", "TaskRes", "--dataset-config-file", "gadget", *out),
            "config file gadget does not exist; the package has caltech101",
        ),
        "unknown dataset": (
            ("--trainer", "TaskRes", *out, "DATASET.NAME", "Caltech10"),
            "unknown dataset 'Caltech10'. Did you mean 'Caltech101'?",
        ),
        "missing dataset": (
            ("--trainer", "TaskRes", "--root", str(tmp_path / "no"), "--dataset-config-file", "caltech101", *out),
            f"there is no folder '{tmp_path / 'no' / 'caltech-101'}",
        ),
        "no root": (("--trainer", "TaskRes", "--dataset-config-file", "caltech101", *out), "needs --root"),
        "unknown backbone": ((*base, "--backbone", "ViT-B/17"), "ViT-B/17"),
        "no weights": ((*base, "--backbone", "RN50"), "RN50"),
        "unknown key": ((*base, "OPTIM.MAX_EPOCHS", "3"), "did you mean 'OPTIM.MAX_EPOCH'?"),
        "unknown precision": ((*base, "TRAINER.TaskRes.PREC", "fp8"), "unknown precision 'fp8'"),
        "unknown transform": ((*base, "--transforms", "random_flop", "normalize"), "random_flop"),
        "not yaml": ((*base, "--config-file", str(not_yaml)), "broken.yaml is not valid yaml (line 2)"),
        "shots 0": ((*base, "DATASET.NUM_SHOTS", "0"), "DATASET.NUM_SHOTS is 0; it must be at least 1"),
        "epochs 0": ((*base, "OPTIM.MAX_EPOCH", "0"), "OPTIM.MAX_EPOCH is 0; it must be at least 1"),
        "batch 0": ((*base, "DATALOADER.TRAIN_X.BATCH_SIZE", "0"), "BATCH_SIZE is 0; it must be at least 1"),
        "alpha nan": ((*base, "TRAINER.TaskRes.RESIDUAL_SCALE", "nan"), "RESIDUAL_SCALE"),
        "alpha infinite": ((*base, "TRAINER.TaskRes.RESIDUAL_SCALE", "1e999"), "must be a finite number"),
        "no enhanced base": ((*base, "--enhanced-base", str(tmp_path / "no.tar")), "no.tar"),
        "option without value": ((*base, "OPTIM.LR"), "'OPTIM.LR' has no value"),
        "missing plugin": ((*base, "--plugin", "no.py"), "plug-in no.py does not exist"),
        "no model dir": ((*base, "--eval-only"), "--eval-only needs --model-dir"),
        "empty model dir": ((*base, "--eval-only", "--model-dir", str(tmp_path)), "no checkpoint at"),
        "resume nothing": (("--trainer", "TaskRes", *QUICK, "--resume"), "--resume needs the run's folder"),
    }


@pytest.mark.slow_after(8)
@pytest.mark.parametrize("name", list(mistakes(Path("/tmp"))))
def test_a_user_error_prints_one_line_and_exits_with_2(tmp_path, tmp_path_factory, capsys, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments, expected = mistakes(tmp_path)[name]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("Warning:")]
    assert len(lines) == 1, error
    assert lines[0].startswith("Error: ")
    assert expected in lines[0]


def test_config_keys_end_the_flags():
    args = train.make_parser().parse_args(["--trainer", "X", "--resume", "OPTIM.LR", "1"])
    assert (args.resume, args.options) == (True, ["OPTIM.LR", "1"])
    args = train.make_parser().parse_args(["--transforms", "a", "b", "TRAINER.TaskRes.PREC", "amp", "SEED", "2"])
    assert (args.transforms, args.options) == (["a", "b"], ["TRAINER.TaskRes.PREC", "amp", "SEED", "2"])
    assert train.make_parser().parse_args(["--output-dir", "OPTIM.d/x", "SEED", "3"]).options == ["SEED", "3"]


def test_an_unknown_flag_prints_one_line(capsys):
    assert run("--trainer", "TaskRes", "--shots", "many") == 2
    assert capsys.readouterr().err == ("Error: argument --shots: invalid int value: 'many' (see train.py --help)\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_an_output_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert taskres(tmp_path / "run") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_output_folder_below_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert taskres(tmp_path / "file" / "run") == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_truncated_or_foreign_checkpoint_is_refused(tmp_path, capsys, golden_backbone):
    assert taskres(tmp_path / "run") == 0
    capsys.readouterr()
    evaluate = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--output-dir", str(tmp_path / "eval"))
    other = tmp_path / "run" / "enhanced_base"
    other.symlink_to(tmp_path / "run" / "prompt_learner")
    assert run("--trainer", "TaskResEnhance", *QUICK, *evaluate) == 2
    assert "was saved with trainer 'TaskRes', but this run has trainer 'TaskResEnhance'" in capsys.readouterr().err
    assert run("--trainer", "TaskRes", *QUICK, *evaluate, "--backbone", str(golden_backbone("rn1"))) == 2
    assert "was saved with backbone 'demo', but this run has backbone" in capsys.readouterr().err
    path = tmp_path / "run" / "prompt_learner" / "model.pth.tar-4"
    path.write_bytes(path.read_bytes()[:-200])
    assert run("--trainer", "TaskRes", *QUICK, *evaluate) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert "model.pth.tar-4" in lines[0]


@pytest.mark.slow
def test_taskres_starts_from_an_enhanced_base(tmp_path):
    enhance = tmp_path / "enhance"
    assert run("--trainer", "TaskResEnhance", *QUICK, "--output-dir", str(enhance), *FEW) == 0
    path = enhance / "enhanced_base" / "model.pth.tar-4"
    weight = torch.load(path, weights_only=True)["state_dict"]["weight"]
    base = ("--trainer", "TaskRes", *QUICK, *FEW, "OPTIM.LR", "1e-12")
    assert run(*base[:6], "--output-dir", str(tmp_path / "plain"), *base[6:]) == 0
    assert run(*base[:6], "--output-dir", str(tmp_path / "with"), "--enhanced-base", str(path), *base[6:]) == 0
    heads = [
        torch.load(tmp_path / name / "prompt_learner" / "model.pth.tar-4", weights_only=True)["state_dict"]
        for name in ("plain", "with")
    ]
    assert weight.shape[0] == heads[0]["base_text_features"].shape[1]
    assert not torch.allclose(heads[0]["base_text_features"], heads[1]["base_text_features"], atol=1e-6)


@pytest.mark.slow
def test_nan_in_training_keeps_the_last_good_checkpoint(tmp_path, capsys):
    options = ("OPTIM.LR", "1e38", "TRAIN.CHECKPOINT_FREQ", "1", "OPTIM.NAME", "sgd", "TRAINER.TaskRes.PREC", "fp32")
    assert taskres(tmp_path, options=options) == 2
    assert "is infinite or NaN after epoch 3; lower OPTIM.LR" in capsys.readouterr().err
    saved = list((tmp_path / "prompt_learner").glob("model.pth.tar-*"))
    assert sorted(path.name for path in saved) == ["model.pth.tar-1", "model.pth.tar-2"]
    assert all(weights.isfinite().all() for p in saved for weights in torch.load(p)["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, sent):
    more = ("OPTIM.MAX_EPOCH", "40", "TRAIN.CHECKPOINT_FREQ", "5")
    assert taskres(tmp_path / "whole", options=more) == 0
    (tmp_path / "stopper.py").write_text(SENDS_A_SIGNAL.format(sent=int(sent)))
    command = [sys.executable, str(REPOSITORY / "tools" / "train.py"), "--trainer", "TaskRes", *QUICK]
    command += ["--output-dir", str(tmp_path / "parts"), "--plugin", str(tmp_path / "stopper.py")]
    process = subprocess.Popen([*command, *FEW, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, stderr = process.communicate(timeout=300)
    assert not (tmp_path / "parts" / "results.json").exists()
    saved = {path.name for path in (tmp_path / "parts" / "prompt_learner").glob("model.pth.tar-*")}
    assert saved - {"model.pth.tar-11"} == {"model.pth.tar-5", "model.pth.tar-10"}
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "Interrupted: stopped after epoch" in stderr
        assert "Traceback" not in stderr
    assert taskres(tmp_path / "parts", "--resume", options=more) == 0
    for key in ("metrics", "history"):
        assert results(tmp_path / "parts")[key] == results(tmp_path / "whole")[key]
    heads = [
        torch.load(tmp_path / run / "prompt_learner" / "model.pth.tar-40", weights_only=True)["state_dict"]
        for run in ("whole", "parts")
    ]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--trainer", "TaskRes", "--dataset-config-file", "gadgets", "--shots", "1", "--output-dir"]
    arguments += [str(tmp_path / "run"), "--resume", "OPTIM.MAX_EPOCH", "2", "DATASET.FEATURES.VIEWS", "1"]
    assert run_tool(train.main, [*arguments, "TEST.FINAL_MODEL", "best_val"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_tool(train.main, [*arguments, "TEST.FINAL_MODEL", "best_val"]) == 0
    assert "finished: there is nothing to resume" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert run_tool(train.main, [*arguments, "TEST.FINAL_MODEL", "best_val", "SEED", "9"]) == 2
    assert "SEED 1, but now it is 9" in capsys.readouterr().err

"""Scalars that wait before they are written: TensorBoard reads each with its step, and none is lost."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import make_images, toy_trainer

from dassl_lite.engine.contract import scalar_writer
from dassl_lite.engine.contract.scalar_writer import ScalarWriter
from dassl_lite.utils import UserError


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_value_at_its_step(tmp_path):
    writer = ScalarWriter(str(tmp_path))
    for step in range(50):
        writer.add_scalar("train/loss", torch.tensor(step / 4), step)
        writer.add_scalar("train/lr", 0.5, step)
    writer.add_scalar("test/accuracy", 75, 49)
    writer.add_scalar("test/accuracy", 80.0, 49)
    writer.add_scalar("other", 1.0, 3, walltime=12.0)
    writer.close()
    found = read(tmp_path)
    assert found["train/loss"] == [(step, step / 4) for step in range(50)]
    assert found["train/lr"] == [(step, 0.5) for step in range(50)]
    assert found["test/accuracy"] == [(49, 75.0), (49, 80.0)]
    assert found["other"] == [(3, 1.0)]


@pytest.mark.parametrize("limit", ["_STEPS", "_SECONDS"])
def test_a_long_run_is_written_while_it_runs(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(scalar_writer, limit, 0)
    writer = ScalarWriter(str(tmp_path))
    writer.add_scalar("loss", 1.0, 0)
    super(ScalarWriter, writer).flush()  # the thread has it, though nobody asked for it
    assert read(tmp_path) == {"loss": [(0, 1.0)]}
    writer.close()


def test_flush_writes_buffered_values(tmp_path):
    writer = ScalarWriter(str(tmp_path))
    writer.add_scalar("loss", 1.0)
    writer.flush()
    assert read(tmp_path) == {"loss": [(0, 1.0)]}
    writer.close()
    writer.close()  # once more does no harm


def test_a_run_that_ends_in_an_error_keeps_its_scalars(tmp_path, monkeypatch):
    trainer = toy_trainer(make_images(tmp_path / "images"), tmp_path / "run")
    monkeypatch.setattr(trainer, "after_epoch", lambda: trainer.detect_anomaly(torch.tensor(float("nan"))))
    with pytest.raises(UserError, match="NaN"):
        trainer.train()
    steps = [step for step, _ in read(tmp_path / "run" / "tensorboard")["train/loss"]]
    assert steps == list(range(trainer.num_batches))

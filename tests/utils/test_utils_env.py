"""The environment's description is complete and fit for JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from dassl_lite.utils import env
from dassl_lite.utils.env import collect_env_info, environment, usable_cores


def test_the_description_is_plain_and_names_torch() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert str(found["torch"]).split("+")[0] == torch.__version__.split("+")[0]
    assert f"torch: {found['torch']}" in collect_env_info().splitlines()


def test_a_machine_without_a_gpu_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "gpus: none" in collect_env_info().splitlines()


@pytest.mark.parametrize(
    ("quota", "processes", "expected"),
    [
        (None, "", 8),
        ("max 100000", "", 8),
        ("250000 100000", "", 3),  # two and a half
        ("50000 100000", "", 1),
        ("1600000 100000", "", 8),
        ("garbage", "", 8),
        (None, "4", 2),
        (None, "99", 1),
        (None, "many", 8),
    ],
)
def test_usable_cores_are_those_of_the_container_shared_by_its_processes(
    quota: str | None, processes: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    monkeypatch.setattr(env, "_CPU_QUOTAS", ((str(file),),))
    assert usable_cores() == expected

"""The environment's description is complete and fit for JSON."""

from __future__ import annotations

import json

import pytest
import torch

from dassl_lite.utils.env import collect_env_info, environment


def test_the_description_is_plain_and_names_torch() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert str(found["torch"]).split("+")[0] == torch.__version__.split("+")[0]
    assert f"torch: {found['torch']}" in collect_env_info().splitlines()


def test_a_machine_without_a_gpu_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "gpus: none" in collect_env_info().splitlines()

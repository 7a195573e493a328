"""Seeds give the reference's streams; states kept in a file bring every stream back."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch

from dassl_lite.utils.seeding import random_states, restore_random_states, set_random_seed


def draw() -> list[float]:
    """One number from every stream that a run uses, normal ones included: they keep a second value back."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(()).item(),
        torch.randn(()).item(),
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_first_numbers_of_a_seed_are_the_references(golden: Any, seed: int) -> None:
    expected = golden.json("dassl_protocol")["seeding"][str(seed)]
    set_random_seed(seed)
    assert [random.random() for _ in range(3)] == expected["random"]
    assert np.random.rand(3).tolist() == expected["numpy"]
    assert torch.rand(3).tolist() == expected["torch"]


def test_seed_zero_is_a_seed() -> None:
    set_random_seed(0)
    first = draw()
    set_random_seed(0)
    assert draw() == first


def test_states_through_a_safe_file_bring_every_stream_back() -> None:
    set_random_seed(7)
    draw()
    buffer = io.BytesIO()
    torch.save(random_states(), buffer)
    expected = [draw() for _ in range(3)]
    set_random_seed(8)
    buffer.seek(0)
    restore_random_states(torch.load(buffer, weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_taking_the_states_draws_nothing() -> None:
    set_random_seed(7)
    expected = draw()
    set_random_seed(7)
    random_states()
    assert draw() == expected

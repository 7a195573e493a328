"""Hostile input of every kind exits with 0, or with 2 and one line, within time and memory limits.

The cases come from tests/fuzz.py, which can generate thousands of them with one command.
"""

from __future__ import annotations

import random
from pathlib import Path

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dassl_lite.config import check_ranges, get_cfg_default, merge_options, set_epochs, to_dict
from dassl_lite.config.check import leaves
from dassl_lite.utils import UserError

# Deterministic cases, and no hypothesis deadline, which would depend on the speed of the machine.
FIXED = settings(
    derandomize=True, database=None, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck)
)
RANDOM = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Stage:
    """Valid input of every kind."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("stage")
        patch.setenv("DASSL_LITE_CACHE", str(folder / "cache"))
        return fuzz.make_stage(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(fuzz.KINDS))
def test_mutated_input_succeeds_or_prints_one_line(stage: fuzz.Stage, kind: str) -> None:
    @FIXED
    @given(RANDOM)
    def ends_well(rng: random.Random) -> None:
        words, _, output, wrong = fuzz.run_case(stage, kind, rng)
        assert not wrong, f"{wrong}: {words}\n{output}"

    ends_well()


@pytest.mark.slow
@settings(FIXED, max_examples=300)
@given(RANDOM)
def test_any_value_of_any_key_gives_a_config_or_a_user_error(rng: random.Random) -> None:
    cfg = get_cfg_default()
    stage = fuzz.Stage(Path(), leaves(cfg))
    key = rng.choice(sorted(stage.keys))
    try:
        merge_options(cfg, [key, fuzz.value_of(stage, key, rng)])
        check_ranges(cfg)
        set_epochs(cfg)
    except UserError as error:
        assert len(str(error)) < 2000  # noqa: PT017
    else:
        to_dict(cfg)


@pytest.mark.parametrize(
    ("code", "output", "wrong"),
    [
        (0, "", ""),
        (2, "Warning: some\nError: one line\n", ""),
        (1, "", "exit code 1"),
        (2, "Error: one\nError: two\n", "2 lines on stderr"),
        (2, "", "0 lines on stderr"),
        (0, "Traceback (most recent call last):\n", "exit code 0"),
        (-1, "took too long", "exit code -1"),
    ],
)
def test_the_verdict_names_what_went_wrong(code: int, output: str, wrong: str) -> None:
    assert fuzz.verdict(code, output) == wrong

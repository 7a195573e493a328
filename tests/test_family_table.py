"""The table of backbones and methods in the guide says what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import family_table
import open_clip
import pytest
import timm
from families import FAMILIES

from dassl_lite.engine import TRAINER_REGISTRY

# Cells with code of their own for the family.
QUICK = [
    ("SigLIP", "CLIPLoRA"),
    ("SigLIP", "CoOp"),
    ("SigLIP", "TaskResEnhance"),
    ("CLIPA", "CoCoOp"),
]


@pytest.fixture(scope="module")
def cell() -> Iterator[Callable[[str, str], str]]:
    pytest.importorskip("transformers")
    with family_table.prepared() as run:
        yield run


@pytest.fixture(scope="module")
def written() -> dict[str, dict[str, str]]:
    return family_table.cells()


def test_the_table_has_every_family_and_every_method(written: dict[str, dict[str, str]]) -> None:
    assert list(written) == list(FAMILIES)
    for cells in written.values():
        assert list(cells) == family_table.methods(), "renew with: python tests/family_table.py --write NEW_METHOD"


def kinds(architecture: str) -> dict[str, Any]:
    """What decides how an architecture's encoders are handled: where the trunk comes from, and how texts are read."""
    config = open_clip.get_model_config(architecture)
    vision, text = config["vision_cfg"], config["text_cfg"]
    trunk = vision.get("timm_model_name")
    own = "ResNet" if isinstance(vision.get("layers"), list) else "ViT"
    hugging_face = text.get("hf_model_name", "").rpartition("/")[2].partition("-")[0]
    read = ("no_causal_mask", "pool_type", "embed_cls", "proj_type", "proj_bias", "hf_proj_type", "hf_pooler_type")
    return {
        "vision": timm.model_entrypoint(trunk).__module__ if trunk else own,
        "text": (hugging_face, *(text.get(name) or None for name in read)),
    }


@pytest.mark.parametrize("encoder", ["vision", "text"])
def test_every_architecture_of_open_clip_is_of_a_kind_in_the_table(encoder: str) -> None:
    covered = {kinds(published)[encoder] for published in FAMILIES.values()}
    every = [name for name in open_clip.list_models() if not name.startswith("tiny-")]
    assert len(every) > 100
    assert not [name for name in every if kinds(name)[encoder] not in covered]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("family", "method"), QUICK)
def test_a_cell_states_the_outcome(cell: Callable[[str, str], str], written: dict, family: str, method: str) -> None:
    assert cell(family, method) == written[family][method]


WHOLE = ("ViT", "SigLIP")  # families whose rows are run cell by cell


def to_run(family: str) -> list[str]:
    """The methods of a row that are run. Those on features and on whole texts alone run the same code whatever the
    family, so that one stands for all."""
    kinds = {method: TRAINER_REGISTRY.get(method) for method in family_table.methods()}
    own = ("TaskRes", "TaskResEnhance")
    return [
        method
        for method, kind in kinds.items()
        if family in WHOLE or method in own or kind.through_encoder or kind.takes_states or kind.needs_vit
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_states_the_outcomes(cell: Callable[[str, str], str], written: dict, family: str) -> None:
    found = {method: cell(family, method) for method in to_run(family)}
    assert len(found) > 10
    assert found == {method: written[family][method] for method in found}, (
        "renew with: python tests/family_table.py --write"
    )

"""Methods on features where a class has no image, one image, or there is no validation set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dassl_lite.trainers.ape import ChannelCache, ResidualCache, criterion
from dassl_lite.trainers.lp_plus_plus import BlendedLinear, Descent
from dassl_lite.utils import UserError

ALL = ("DATASET.NUM_SHOTS", "-1")


def search_of(trainer):
    return json.loads((Path(trainer.output_dir) / "gda" / "search.json").read_text())


def test_gda_leaves_images_out_without_a_validation_set(on_features):
    trainer = on_features("GDA", "gda", "many", *ALL)
    trainer.val_loader = trainer.test_loader = None  # nothing else to look at
    trainer.fit()
    found = search_of(trainer)
    assert found["by"] == "leave_one_out"
    assert found["alpha"] == found["alphas"][found["accuracies"].index(max(found["accuracies"]))]
    assert trainer.head.alpha == pytest.approx(found["alpha"])


def test_gda_takes_the_configured_alpha_where_no_image_can_be_left_out(on_features):
    trainer = on_features("GDA", "gda", "oneaug", *ALL)
    trainer.val_loader = None
    trainer.fit()
    assert trainer.head.alpha == pytest.approx(trainer.method_cfg.ALPHA)
    assert not (Path(trainer.output_dir) / "gda" / "search.json").exists()


def test_clap_holds_a_class_without_images_fully(on_features):
    trainer = on_features("CLAP", "gda", "many", *ALL)
    trainer.fit()
    rows = trainer.train_loader_x
    kept = rows.labels != 2
    before = trainer.head.strength.clone()
    trainer.hold(rows.features[kept], rows.labels[kept])
    assert trainer.head.strength[2] == 1
    others = torch.arange(len(before)) != 2
    assert torch.allclose(trainer.head.strength[others], before[others])


def test_lp_plus_plus_and_apes_criterion_are_finite_where_a_class_has_no_images():
    generator = torch.Generator().manual_seed(0)
    text, features = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (4, 9))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 3, 3, 3])
    head = BlendedLinear(text)
    descent = Descent(head, features, labels, accumulate=False)
    for epoch in range(20):
        descent.step(epoch)
    assert torch.isfinite(head(features)).all()
    assert torch.isfinite(criterion(text, features, labels, 0.5, 0.5)).all()


@pytest.mark.parametrize("cache", [ChannelCache, ResidualCache])
@pytest.mark.parametrize(
    "channels",
    [[0, 8], [-1, 0], [], [0.0, 1.0], 3, [[0, 1]]],
    ids=["too high", "negative", "none", "no integers", "a number", "a matrix"],
)
def test_a_checkpoint_without_proper_channels_is_refused(cache, channels):
    head = cache(torch.eye(3, 8), 100.0, 4)
    weights = {**head.state_dict(), "channels": torch.tensor(channels)}
    with pytest.raises(UserError, match="x.pth does not contain channels of features of width 8"):
        head.prepare_to_load(weights, {}, Path("x.pth"))
    assert len(head.channels) == 4

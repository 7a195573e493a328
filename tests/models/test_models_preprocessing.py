"""Our test transform is the one that open_clip publishes with the weights, pixel for pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image

from dassl_lite.data.transforms import build_transform, describe, is_random
from dassl_lite.engine.build import make_config, with_backbone_inputs
from dassl_lite.models.clip import Preprocessing, preprocessing
from dassl_lite.models.preprocessing import described_by_open_clip
from dassl_lite.utils.errors import UserError

# Published weights whose transform is not open_clip's, each with the reason. None is known.
EXCEPTIONS: dict[tuple[str, str], str] = {}
SIZES = {"landscape": (90, 61), "portrait": (47, 120), "tiny": (5, 3), "square": (64, 64), "long": (300, 8)}


def pictures() -> dict[str, Image.Image]:
    draw = np.random.RandomState(0)
    found = {name: draw.randint(0, 256, (height, width, 3)) for name, (width, height) in SIZES.items()}
    images = {name: Image.fromarray(pixels.astype(np.uint8)) for name, pixels in found.items()}
    return {**images, "grey": images["landscape"].convert("L")}


def ours(described: Preprocessing, **given: Any) -> Any:
    """The test transform of a config that says nothing of its images, with a backbone described thus."""
    cfg = make_config(trainer="ZeroshotCLIP", flags={"MODEL": {"BACKBONE": {"NAME": "demo"}}, "INPUT": given})
    cfg.defrost()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dassl_lite.engine.build.preprocessing", lambda name: described)
        return build_transform(with_backbone_inputs(cfg), is_train=False)


def theirs(published: dict[str, Any], size: Any) -> Any:
    return image_transform_v2(PreprocessCfg(**merge_preprocess_dict({"size": size}, published)), is_train=False)


def same_pixels(transform: Any, reference: Any) -> bool:
    # a file is opened in RGB here, before it is resized, and there after
    return all(torch.equal(transform(one.convert("RGB")), reference(one)) for one in pictures().values())


@pytest.mark.slow
def test_every_published_preprocessing_is_open_clips_own() -> None:
    """All weights of open_clip's; those that are described alike are computed once."""
    different, compared, walked = [], {}, 0
    for architecture, tag in open_clip.list_pretrained():
        published = dict(open_clip.get_pretrained_cfg(architecture, tag))
        size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
        described = preprocessing(f"{architecture}:{tag}")
        key = (described, size, repr(sorted((k, v) for k, v in published.items() if k not in ("url", "hf_hub"))))
        if key not in compared:
            compared[key] = same_pixels(ours(described), theirs(published, size))
        walked += 1
        if not compared[key] and (architecture, tag) not in EXCEPTIONS:
            different.append((architecture, tag))
    assert different == []
    assert walked == len(open_clip.list_pretrained()) > 150
    modes = {described.resize_mode for described, _, _ in compared}
    assert modes == {"shortest", "squash"}, "a new way of resizing: add pictures that show it"


# open_clip 3.3 resizes to sides that differ with bicubic interpolation, whatever is published.
WAYS = [
    (mode, interpolation, size)
    for mode in ("shortest", "squash", "longest")
    for interpolation in ("bicubic", "bilinear")
    for size in ((32, 32), (24, 40))
    if (mode, interpolation, size) != ("shortest", "bilinear", (24, 40))
]


@pytest.mark.parametrize("fill", [0, 128])
@pytest.mark.parametrize(("mode", "interpolation", "size"), WAYS)
def test_every_way_of_resizing_is_open_clips_own(
    mode: str, interpolation: str, size: tuple[int, int], fill: int
) -> None:
    published = {"resize_mode": mode, "interpolation": interpolation, "fill_color": fill, "mean": [0.1, 0.2, 0.3]}
    described = described_by_open_clip(published, size, "test")
    assert same_pixels(ours(described), theirs(published, size))


@pytest.mark.slow
def test_each_way_of_resizing_has_its_own_key_in_the_feature_cache() -> None:
    made = [ours(described_by_open_clip({"resize_mode": m}, 32, "")) for m in ("shortest", "squash", "longest")]
    made.append(ours(described_by_open_clip({"resize_mode": "longest", "fill_color": 9}, 32, "")))
    assert len({describe(one) for one in made}) == 4
    assert not any(map(is_random, made))
    # caches from before there was such a key hold images resized like this
    first = "torchvision.transforms.transforms."
    mean, std = "[0.48145466, 0.4578275, 0.40821073]", "[0.26862954, 0.26130258, 0.27577711]"
    assert describe(made[0]) == (
        f"{first}Compose({first}Resize(antialias=True, interpolation=<InterpolationMode.BICUBIC: 'bicubic'>, "
        f"max_size=None, size=32), {first}CenterCrop(size=[32, 32]), {first}ToTensor(), "
        f"{first}Normalize(inplace=False, mean={mean}, std={std}))"
    )


def test_settings_of_the_user_take_precedence() -> None:
    described = Preprocessing((32, 32), resize_mode="squash", interpolation="bilinear")
    own = ours(described, RESIZE_MODE="shortest", SIZE=(16, 16), PIXEL_MEAN=[0.0] * 3, PIXEL_STD=[1.0] * 3)
    wanted = {"interpolation": "bilinear", "mean": (0.0, 0.0, 0.0), "std": 1.0}
    assert same_pixels(own, theirs(wanted, 16))
    assert same_pixels(ours(described, INTERPOLATION="bicubic"), theirs({"resize_mode": "squash"}, 32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"mean": "0.5"}, "mean"),
        ({"std": [0.0, 1.0, 1.0]}, "std"),
        ({"std": float("nan")}, "std"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos' is not one of bicubic, bilinear"),
        ({"resize_mode": ["squash"]}, "resize_mode"),
        ({"fill_color": 300}, "fill_color"),
    ],
)
def test_an_impossible_description_is_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^some/repository: .*{message}"):
        described_by_open_clip(config, 32, "some/repository")


def test_the_default_mean_and_std_are_open_clips() -> None:
    default = Preprocessing((224, 224))
    assert (default.mean, default.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)

"""Transforms: every one runs, invalid settings are refused, cache keys are stable."""

from __future__ import annotations

import functools
import logging
import random
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional, v2

from dassl_lite.config import get_cfg_default
from dassl_lite.data.transforms import (
    AVAI_CHOICES,
    CIFAR10Policy,
    Cutout,
    GaussianNoise,
    ImageNetPolicy,
    InstanceNormalization,
    RandAugment,
    RandAugment2,
    RandAugmentFixMatch,
    Random2DTranslation,
    SVHNPolicy,
    augmentations,
    build_transform,
    describe,
    is_random,
    undescribed,
)
from dassl_lite.data.transforms.augmentations import shear_x, shear_y
from dassl_lite.data.transforms.pixels import split
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.seeding import set_random_seed

DASSL = [
    *("random_flip", "random_resized_crop", "normalize", "instance_norm", "random_crop", "random_translation"),
    *("center_crop", "cutout", "imagenet_policy", "cifar10_policy", "svhn_policy", "randaugment"),
    *("randaugment_fixmatch", "randaugment2", "gaussian_noise", "colorjitter", "randomgrayscale", "gaussian_blur"),
]


@pytest.fixture
def cfg() -> Any:
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 32), "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5] * 3, [0.25] * 3
    return cfg


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_all_transforms_of_dassl_are_registered() -> None:
    assert set(AVAI_CHOICES) == set(DASSL)


@pytest.mark.slow_after(9)
@pytest.mark.parametrize("choice", DASSL)
def test_each_transform_keeps_the_size_is_logged_and_is_repeatable(
    cfg: Any, image: Image.Image, choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        transform = build_transform(cfg, choices=[choice])
    # The resize has its own log line unless a crop sets the size.
    assert len(caplog.messages) == (3 if choice in ("random_crop", "random_resized_crop") else 4)
    if choice == "random_crop":
        image = image.resize((32, 24))  # only crops, without resizing, as in the reference
    for seed in range(8):
        set_random_seed(seed)
        first = transform(image)
        assert (first.shape, first.dtype) == ((3, 24, 32), torch.float32)
        set_random_seed(seed)
        assert torch.equal(transform(image), first)
    assert is_random(transform) == (choice not in ("normalize", "instance_norm", "center_crop"))


@pytest.mark.slow
def test_all_transforms_can_be_combined(cfg: Any, image: Image.Image) -> None:
    transform = build_transform(cfg, choices=DASSL)
    for seed in range(30):
        set_random_seed(seed)
        assert torch.isfinite(transform(image)).all()


def test_testing_does_not_augment(cfg: Any) -> None:
    assert not is_random(build_transform(cfg, is_train=False, choices=DASSL))


def test_no_transform_gives_none(cfg: Any) -> None:
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TRANSFORMS", ("random_flap",), r"unknown transform 'random_flap'\. Did you mean 'random_flip'"),
        ("SIZE", (), r"INPUT\.SIZE \(\) should be"),
        ("SIZE", (0, 4), r"INPUT\.SIZE \(0, 4\) should be"),
        ("INTERPOLATION", "cubic", r"unknown INPUT\.INTERPOLATION 'cubic'\. Did you mean 'bicubic'"),
        ("PIXEL_MEAN", [0.5], "should have three numbers"),
        ("PIXEL_STD", [0.5, 0.0, 0.5], "no standard deviation of 0"),
    ],
)
def test_invalid_input_settings_are_refused(cfg: Any, key: str, value: Any, message: str) -> None:
    cfg.INPUT[key] = value
    with pytest.raises(UserError, match=message):
        build_transform(cfg)


def test_randaugment_refuses_a_magnitude_out_of_range() -> None:
    with pytest.raises(UserError, match="RANDAUGMENT_M 31 is out of range"):
        RandAugment(2, 31)


@pytest.mark.parametrize("table", [augmentations.ORIGINAL, augmentations.SECOND, augmentations.FIXMATCH])
def test_operations_run_at_both_ends_of_their_range(table: Any, image: Image.Image) -> None:
    for operation, *ends in table:
        for value in ends:
            assert operation(image, value).size == image.size


# From the papers on AutoAugment and FixMatch, as implemented in Dassl.
FACTORS = ("brightness", "color", "contrast", "sharpness")
RANGES = {
    "ORIGINAL": {
        **dict.fromkeys(("autocontrast", "equalize", "invert"), (0, 1)),
        **dict.fromkeys(FACTORS, (0.1, 1.9)),
        **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.3)),
        **dict.fromkeys(("translate_x_pixels", "translate_y_pixels"), (0.0, 100)),
        **{"rotate": (0, 30), "posterize": (4, 8), "solarize": (0, 256), "solarize_add": (0, 110), "cutout": (0, 40)},
    },
    "FIXMATCH": {
        **dict.fromkeys(("autocontrast", "equalize", "identity"), (0, 1)),
        **dict.fromkeys(FACTORS, (0.05, 0.95)),
        **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3)),
        **{"rotate": (-30, 30), "posterize": (4, 8), "solarize": (0, 256)},
    },
}
RANGES["SECOND"] = {**RANGES["FIXMATCH"], **dict.fromkeys(FACTORS, (0.1, 1.9)), "invert": (0, 1)}


@pytest.mark.parametrize("table", RANGES)
def test_operations_have_the_published_ranges(table: str) -> None:
    assert {operation.__name__: tuple(ends) for operation, *ends in getattr(augmentations, table)} == RANGES[table]


def test_every_second_image_is_translated_by_default(image: Image.Image) -> None:
    random.seed(0)
    translate, resized = Random2DTranslation(8, 12), image.resize((12, 8), Image.Resampling.BILINEAR)
    moved = sum(translate(image).tobytes() != resized.tobytes() for _ in range(400))
    assert 120 < moved < 280  # a translation may be by zero, so fewer than half may differ


def test_cutout_zeroes_one_square() -> None:
    np.random.seed(0)
    image = torch.ones(3, 20, 20)
    cut = Cutout(1, 6)(image)
    assert 0 < int((cut[0] == 0).sum()) <= 36
    assert image.min() == 1  # the input is unchanged


def test_cutout_cuts_one_square_by_default() -> None:
    np.random.seed(0)
    image = torch.ones(3, 400, 400)  # so that two squares hardly overlap
    for cutout, holes in ((Cutout(), 1), (Cutout(2), 2)):
        assert int((cutout(image)[0] == 0).sum()) == holes * 16 * 16


@pytest.mark.parametrize("shear", [shear_x, shear_y])
def test_zero_shear_leaves_an_image_unchanged(image: Image.Image, shear: Callable[..., Image.Image]) -> None:
    assert shear(image, 0.0).tobytes() == image.tobytes()


def test_instance_norm_gives_zero_mean_and_unit_variance() -> None:
    image = InstanceNormalization()(torch.rand(3, 16, 16) * 5)
    assert torch.allclose(image.mean((1, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(image.std((1, 2)), torch.ones(3), atol=1e-5)


def test_transforms_apply_with_their_probabilities(image: Image.Image) -> None:
    never, always = GaussianNoise(p=0.0), GaussianNoise(p=1.0)
    tensor = torch.zeros(3, 4, 4)
    assert torch.equal(never(tensor), tensor)
    assert not torch.equal(always(tensor), tensor)
    random.seed(0)
    assert Random2DTranslation(8, 12, p=0.0)(image).size == (12, 8)
    assert Random2DTranslation(8, 12, p=1.0)(image).size == (12, 8)


def other_code(image: Any) -> Any:
    return image + 1


DESCRIBED = [
    T.Compose([T.Resize(8), T.ToTensor()]),
    T.Compose([T.Resize(9), T.ToTensor()]),
    T.Compose([T.ToTensor(), T.Resize(8)]),
    T.Resize(8, interpolation=T.InterpolationMode.BICUBIC),
    T.RandomResizedCrop(8, scale=(0.08, 1.0)),
    T.RandomResizedCrop(8, scale=(0.08001, 1.0)),  # rounds to the same repr in torchvision
    T.RandomApply([T.GaussianBlur(3)], p=0.5),
    T.RandomApply([T.GaussianBlur(5)], p=0.5),
    v2.Resize(8),
    Cutout(1, 4),
    Cutout(1, 5),
    T.Lambda(lambda image: image),
    T.Lambda(lambda image: image + 1),
    functools.partial(other_code, image=1),
    functools.partial(other_code, image=2),
    [T.Resize(8), T.Resize(9)],
]


def test_different_transforms_have_different_descriptions() -> None:
    texts = [describe(transform) for transform in DESCRIBED]
    assert len(set(texts)) == len(DESCRIBED)
    assert not any(" at 0x" in text for text in texts)


# As in the cache keys of the first version; a change would make every feature cache be extracted again.
@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (Cutout(1, 4), "custom.Cutout(length=4, n_holes=1)"),
        (GaussianNoise(), "custom.GaussianNoise(mean=0.0, p=0.5, std=0.15)"),
        (InstanceNormalization(), "custom.InstanceNormalization(eps=1e-08)"),
        (RandAugment(2, 10), "randaugment.RandAugment(m=10, n=2)"),
        (RandAugment2(2), "randaugment.RandAugment2(n=2, p=0.6)"),
        (RandAugmentFixMatch(2), "randaugment.RandAugmentFixMatch(n=2)"),
    ],
)
def test_descriptions_match_those_in_existing_caches(transform: Any, text: str) -> None:
    assert describe(transform) == f"dassl_lite.data.transforms.{text}"


@pytest.mark.parametrize("policy", [CIFAR10Policy, ImageNetPolicy, SVHNPolicy])
def test_the_description_of_a_policy_matches_that_in_existing_caches(policy: Any) -> None:
    assert describe(policy()).startswith(f"dassl_lite.data.transforms.autoaugment.{policy.__name__}(")


def test_a_description_does_not_depend_on_the_order_of_a_set() -> None:
    """The order differs between processes, as it does here between two equal sets."""
    one, other = frozenset([0, 8]), frozenset([8, 0])
    assert (one, list(one)) == (other, list(other)[::-1])
    assert describe(functools.partial(other_code, image=one)) == describe(functools.partial(other_code, image=other))


def test_unknown_transforms_count_as_random() -> None:
    class Mine:
        deterministic = True

        def __call__(self, image: Any) -> Any:
            return image

    assert is_random(other_code)
    assert is_random([T.Resize(8), T.RandomErasing()])
    assert not is_random(T.Compose([T.Resize(8), v2.ToImage()]))
    assert not is_random(Mine())


@pytest.mark.slow
@pytest.mark.parametrize("policy", [CIFAR10Policy, ImageNetPolicy, SVHNPolicy])
def test_a_learned_policy_changes_the_image_and_uses_its_fill_colour(policy: Any) -> None:
    """In a bright image, dark filled areas stand out."""
    image = Image.new("RGB", (64, 64), (200, 190, 210))
    seen = set()
    for fill in ((128, 128, 128), (1, 2, 3)):
        transform = policy(fillcolor=fill)
        for seed in range(60):
            torch.manual_seed(seed)
            changed = transform(image)
            assert changed.size == image.size
            seen |= {(fill, colour) for _, colour in changed.getcolors(4096)}
    assert ((128, 128, 128), (128, 128, 128)) in seen
    assert ((1, 2, 3), (1, 2, 3)) in seen
    assert len(seen) > 10  # other operations than filling happen, too


# ---- descriptions of third-party code ----


def made_by(source: str, folder: Path, name: str = "transform") -> Any:
    """The object ``name`` of a plugin file; each file is a separate module, like each version of a plugin."""
    path = folder / "plugin.py"
    path.write_text(textwrap.dedent(source))
    module = types.ModuleType("plugin_of_a_test")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(path.read_text(), path, "exec"), module.__dict__)
    return module.__dict__[name]


@pytest.mark.parametrize(
    "source",
    [
        "SCALE = {}\ndef transform(image): return image * SCALE",
        "SCALE = {}\ntransform = lambda image: image * SCALE",
        "SCALE = {}\ndef helper(image): return image * SCALE\ndef transform(image): return helper(image)",
        "SCALE = {}\ndef transform(image): return (lambda: image * SCALE)()",
        "SCALE = {}\nclass Mine:\n    def __call__(self, image): return image * SCALE\ntransform = Mine()",
        "class Mine:\n    scale = {}\n    def __call__(self, image): return image * self.scale\ntransform = Mine()",
        "class Mine:\n    def __call__(self, image): return image * {}\ntransform = Mine()",
        "class Base:\n    def go(self, i): return i * {}\nclass Mine(Base):\n    pass\ntransform = Mine().go",
        "class Mine:\n    __slots__ = ('s',)\n    def __init__(self): self.s = {}\n"
        "    def __call__(self, i): return i * self.s\ntransform = Mine()",
        "class Mine:\n    @property\n    def s(self): return {}\n    def __call__(self, i): return i * self.s\n"
        "transform = Mine()",
        "class Mine:\n    @staticmethod\n    def go(i): return i * {}\n    def __call__(self, i): return self.go(i)\n"
        "transform = Mine()",
        "def make(scale):\n    def transform(image): return image * scale\n    return transform\ntransform = make({})",
        "def transform(image, *, scale={}): return image * scale",
        "def transform(image): return image * transform.scale\ntransform.scale = {}",
        "class Settings:\n    scale = {}\ndef transform(image): return image * Settings.scale",
        "class Settings:\n    def __init__(self): self.scale = {}\n    def __repr__(self): return 'Settings'\n"
        "settings = Settings()\ndef transform(image): return image * settings.scale",
        "import numpy as np\nTABLE = np.zeros(5000)\nTABLE[2500] = {}\ndef transform(image): return TABLE[image]",
        "import re\nNAMES = re.compile('a' * 300 + '{}')\ndef transform(image): return NAMES.match(image)",
        "from PIL import Image\nMARK = Image.new('L', (9, 9), {})\ndef transform(image): return image.paste(MARK)",
        "import torch\nclass Mine(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('scale', torch.tensor({}.0))\n    def forward(self, i): return i * self.scale\n"
        "transform = Mine()",
        "SETTINGS = dict(scale={})\ndef transform(image): return image * SETTINGS['scale']",
        "import functools\nSCALE = {}\ndef f(image, k): return image * SCALE\ntransform = functools.partial(f, k=1)",
        "SCALE = {}\nclass Mine:\n    def go(self, image): return image * SCALE\ntransform = Mine().go",
        "SCALE = {}\ndef transform(n): return n * SCALE and other(n)\ndef other(n): return n and transform(n - 1)",
    ],
)
def test_a_value_that_a_plugin_transform_reads_is_part_of_its_description(source: str, tmp_path: Path) -> None:
    one, same, other = (describe(made_by(source.format(scale), tmp_path)) for scale in (1, 1, 2))
    assert one == same
    assert one != other
    assert " at 0x" not in one
    assert undescribed(made_by(source.format(1), tmp_path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import settings_of_a_test\ndef transform(image): return image * settings_of_a_test.SCALE",
        "import settings_of_a_test as s\ndef transform(image): return s.scaled(image)",
        "from settings_of_a_test import SCALE\ndef transform(image): return image * SCALE",
        "from settings_of_a_test import scaled\ndef transform(image): return scaled(image)",
        "def transform(image):\n    from settings_of_a_test import SCALE\n    return image * SCALE",
    ],
)
def test_a_value_in_another_module_of_a_plugin_is_part_of_the_description(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for scale in (1, 1, 2):
        settings = types.ModuleType("settings_of_a_test")
        exec(f"SCALE = {scale}\ndef scaled(image): return image * SCALE", settings.__dict__)
        monkeypatch.setitem(sys.modules, settings.__name__, settings)
        texts.append(describe(made_by(source, tmp_path)))
        assert undescribed(made_by(source, tmp_path)) == []
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("source", "unknown"),
    [
        ("FILE = open(__file__)\ndef transform(image): return image * len(FILE.read())", "TextIOWrapper"),
        ("import settings_of_a_test as s\ndef transform(image): return image * getattr(s, 'SCALE')", "settings_of_a"),
        (
            "def transform(image):\n    import settings_of_a_test\n    return image * settings_of_a_test.S",
            "settings_of",
        ),
        ("MANY = [[i] for i in range(20000)]\ndef transform(image): return MANY", "more than 10,000 values"),
    ],
)
def test_objects_that_cannot_be_described_are_named(
    source: str, unknown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "settings_of_a_test", types.ModuleType("settings_of_a_test"))
    assert unknown in " ".join(undescribed(made_by(source, tmp_path)))


def test_library_functions_are_described_by_name() -> None:
    assert undescribed(T.Compose([T.Resize(8), T.Lambda(functional.hflip), T.ToTensor()])) == []
    assert "functional.hflip(" in describe(functional.hflip)


def test_operations_have_the_magnitudes_of_the_reference() -> None:
    def ranges(operations: Any) -> dict[str, tuple[float, float]]:
        return {operation.__name__: (low, high) for operation, low, high in operations}

    signed = {"rotate": (-30, 30), "shear_x": (-0.3, 0.3), "shear_y": (-0.3, 0.3)}
    signed |= {"translate_x": (-0.3, 0.3), "translate_y": (-0.3, 0.3)}
    same = {"autocontrast": (0, 1), "equalize": (0, 1), "posterize": (4, 8), "solarize": (0, 256)}
    factors = ("brightness", "color", "contrast", "sharpness")
    assert ranges(augmentations.FIXMATCH) == {
        **same,
        **signed,
        "identity": (0, 1),
        **dict.fromkeys(factors, (0.05, 0.95)),
    }
    assert ranges(augmentations.SECOND) == {
        **same,
        **signed,
        "identity": (0, 1),
        "invert": (0, 1),
        **dict.fromkeys(factors, (0.1, 1.9)),
    }
    assert ranges(augmentations.ORIGINAL) == {
        **same,
        **dict.fromkeys(factors, (0.1, 1.9)),
        "invert": (0, 1),
        "rotate": (0, 30),
        "solarize_add": (0, 110),
        "shear_x": (0.0, 0.3),
        "shear_y": (0.0, 0.3),
        "cutout": (0, 40),
        "translate_x_pixels": (0.0, 100),
        "translate_y_pixels": (0.0, 100),
    }
    assert augmentations.Random2DTranslation(8, 8).p == 0.5


# ---- normalisation after the batch is made --------------------------------------------------------------------------

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize(
    "last",
    [
        [T.ToTensor(), T.Normalize(MEAN, STD)],
        [T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)],
        [T.ToTensor(), T.Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), inplace=True)],
        [T.ToTensor()],
    ],
)
def test_batch_normalised_bytes_equal_the_transform_bit_for_bit(last: list[Any]) -> None:
    transform = T.Compose([T.RandomResizedCrop(16, interpolation=T.InterpolationMode.BICUBIC), *last])
    parts = split(transform)
    assert parts is not None
    pixels, finish = parts
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 31, 3), dtype=np.uint8)) for seed in range(9)
    ]

    def each(function: Any) -> list[Any]:
        torch.manual_seed(3)
        return [function(image) for image in images]

    batch = torch.stack(each(pixels))
    assert batch.dtype == torch.uint8
    assert torch.equal(finish(batch), torch.stack(each(transform)))
    assert torch.equal(finish._looked_up(batch), torch.stack(each(transform)))  # the lookup table used on a GPU
    assert finish(batch).is_contiguous()


def test_every_channel_value_equals_the_transform_bit_for_bit() -> None:
    transform = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2))
    pixels, finish = split(transform) or pytest.fail("not split")
    assert torch.equal(finish(pixels(image)), transform(image))
    assert torch.equal(finish._looked_up(pixels(image)[None])[0], transform(image))


@pytest.mark.parametrize("mode", ["L", "F", "RGBA"])
def test_images_that_are_not_rgb_are_transformed_in_full(mode: str) -> None:
    transform = T.Compose([T.Resize(8), T.ToTensor(), T.Normalize([0.5], [0.5])])
    image = Image.new(mode, (9, 8))
    assert split(transform) is None  # one channel
    to_tensor = T.Compose([T.Resize(8), T.ToTensor()])
    pixels, _ = split(to_tensor) or pytest.fail("not split")
    assert torch.equal(pixels(image), to_tensor(image))
    assert pixels(image).dtype == torch.float32


class Doubled(T.Normalize):
    """A third-party subclass."""


@pytest.mark.parametrize(
    "transform",
    [
        None,
        T.Compose([]),
        T.Compose([T.Resize(8)]),
        T.Compose([T.ToTensor(), Cutout(), T.Normalize(MEAN, STD)]),
        T.Compose([T.ToTensor(), T.Normalize(MEAN, STD), GaussianNoise()]),
        T.Compose([T.ToTensor(), Doubled(MEAN, STD)]),
        T.Compose([T.PILToTensor(), T.Normalize(MEAN, STD)]),
        T.Compose([T.ToTensor(), T.Normalize(MEAN, (1.0, 1.0, 0.0))]),
        v2.Compose([v2.ToTensor()]),
        T.ToTensor(),
    ],
)
def test_other_transforms_are_not_split(transform: Any) -> None:
    assert split(transform) is None


@pytest.mark.parametrize("is_train", [False, True])
def test_standard_transforms_are_split(is_train: bool) -> None:
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 24), "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    transform: Any = build_transform(cfg, is_train)
    pixels, finish = split(transform) or pytest.fail("not split")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8))
    found = []
    for function in (transform, lambda image: finish(pixels(image))):
        torch.manual_seed(0)
        found.append(function(image))
    assert torch.equal(*found)

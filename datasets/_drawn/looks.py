"""The looks of pictures of objects: a `Look` has ranges, from which `compose` draws the values of each picture.

`CLEAN` and `ROUGH` are the clip art that the demo model is pre-trained on. `PHOTO` is the look of the suite: everything
is tilted the same way, in dim, tinted light. This shift is deliberate, so that there is something to adapt to; its
angle was chosen on validation pictures (`python tools/pretrain_demo.py --choose-tilt`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dassl_lite.datasets._drawn.scene import (
    ART,
    FLAT,
    PALETTE,
    PLAIN,
    SKETCH,
    SOLID,
    Bools,
    Floats,
    Ints,
    Layer,
    Scene,
)

Range = tuple[float, float]

TILT = 30.0  # degrees, in PHOTO
CLUTTER_SLOTS = 3
CLUTTER_SHAPES = 16


@dataclass(frozen=True)
class Look:
    """Ranges (low, high) and probabilities. Angles are in degrees, lengths in half picture widths."""

    size: Range = (0.5, 0.85)
    lean: float = 0.0  # mean angle of the objects
    turn: float = 10.0  # maximum deviation from it
    drift: float = 0.25  # fraction of the free space over which the object's centre varies
    colour_noise: float = 0.06  # standard deviation around the named colour
    backgrounds: tuple[float, float, float] = (0.8, 0.15, 0.05)  # probability of flat, gradient, blotchy
    grain: Range = (0.0, 0.03)  # standard deviation of the pixel noise
    period: Range = (6.0, 8.7)  # of a pattern, in 1/64 of the picture's width
    blur: int = 0  # maximum number of passes
    wobble: Range = (0.0, 0.0)
    light: Range = (1.0, 1.0)  # factor on all colours
    tint: float = 0.0  # maximum share of a random colour that is added
    thicken: Range = (0.0, 0.0)
    aspect: Range = (1.0, 1.0)
    slant: float = 0.0
    clutter: float = 0.0  # probability of each of three small objects around
    bars: float = 0.0  # probability of two bars in front
    style: int = PLAIN


CLEAN = Look()
ROUGH = Look(
    size=(0.42, 0.95),
    turn=22,
    drift=0.7,
    backgrounds=(0.34, 0.33, 0.33),
    grain=(0.0, 0.07),
    blur=2,
    wobble=(0.0, 0.12),
    thicken=(-0.02, 0.05),
    aspect=(0.85, 1.15),
)
PHOTO = Look(
    size=(0.55, 0.85),
    lean=TILT,
    turn=9,
    drift=0.36,
    colour_noise=0.09,
    backgrounds=(0.2, 0.3, 0.5),
    grain=(0.01, 0.02),
    period=(5.4, 8.7),
    blur=2,
    wobble=(0.1, 0.1),
    light=(0.6, 1.0),
    tint=0.25,
)
PHOTO_AGAIN = replace(PHOTO, size=(0.52, 0.82), turn=11, grain=(0.01, 0.03), clutter=0.16, bars=0.1)
PHOTO_HARD = replace(PHOTO, size=(0.48, 0.78), turn=14, grain=(0.01, 0.04), clutter=0.5, bars=0.3)
PENCIL = replace(PHOTO, wobble=(0.08, 0.08), backgrounds=(1.0, 0.0, 0.0), light=(1.0, 1.0), tint=0.0, style=SKETCH)
PAINTING = replace(
    PHOTO, size=(0.62, 0.88), wobble=(0.14, 0.14), backgrounds=(0, 0.3, 0.7), light=(0.9, 1), blur=1, style=ART
)


@dataclass(frozen=True)
class Subjects:
    """The subject of each of N pictures: (N,) positions in SHAPE_NAMES, FILL_NAMES and COLOUR_NAMES."""

    shape: Ints
    fill: Ints
    colour: Ints

    def __len__(self) -> int:
        return len(self.shape)


def compose(subjects: Subjects, look: Look, rng: np.random.Generator) -> Scene:
    """A scene with one subject in each picture and values drawn from `look`."""
    count = len(subjects)
    colour = np.clip(PALETTE[subjects.colour] + rng.normal(0, look.colour_noise, (count, 3)), 0, 1)
    layer = _layer(subjects, colour.astype(np.float32), look, rng)
    background = _contrasting(layer.colour, rng) * 0.85 + 0.07 + rng.normal(0, 0.05, (count, 3))
    scene = Scene(
        layers=[layer],
        background=_colours(background),
        background_end=_colours(background + rng.uniform(-0.25, 0.25, (count, 3))),
        background_kind=rng.choice(3, count, p=look.backgrounds),
        background_angle=_between((0, 2 * np.pi), count, rng),
        grain=_between(look.grain, count, rng),
        wobble=_between(look.wobble, count, rng),
        blur=rng.integers(0, look.blur + 1, count),
        barred=rng.random(count) < look.bars,
        style=np.full(count, look.style),
    )
    _light(scene, look, rng)
    if look.clutter:
        scene.layers += [_clutter(slot, count, look, rng) for slot in range(CLUTTER_SLOTS)]
    if look.style == SKETCH:
        _on_paper(scene, rng)
    if look.style == ART:
        layer.second_colour[:] = np.where(layer.second_colour > 0.5, 1.0, 0.0)
    return scene


def _layer(subjects: Subjects, colour: Floats, look: Look, rng: np.random.Generator) -> Layer:
    count = len(subjects)
    size = _between(look.size, count, rng)
    room = np.maximum(0, 1.02 - size) * look.drift
    dark = (colour @ np.array([0.3, 0.6, 0.1]) <= 0.5)[:, None]
    second = np.where(dark, rng.uniform(0.8, 1, (count, 1)), rng.uniform(0, 0.2, (count, 1)))
    return Layer(
        present=np.ones(count, bool),
        shape=subjects.shape,
        fill=subjects.fill,
        colour=colour,
        second_colour=_colours(np.repeat(second, 3, axis=1)),
        size=size,
        x=_between((-1, 1), count, rng) * room,
        y=_between((-1, 1), count, rng) * room,
        angle=np.deg2rad(look.lean + _between((-look.turn, look.turn), count, rng)).astype(np.float32),
        aspect=_between(look.aspect, count, rng),
        shear=_between((-look.slant, look.slant), count, rng),
        thicken=_between(look.thicken, count, rng),
        pattern_angle=_between((0, np.pi), count, rng),
        pattern_period=_between(look.period, count, rng),
    )


def _between(limits: Range, count: int, rng: np.random.Generator) -> Floats:
    return rng.uniform(*limits, count).astype(np.float32)


def _colours(values: Floats) -> Floats:
    return np.clip(values, 0, 1).astype(np.float32)


def _contrasting(colour: Floats, rng: np.random.Generator, least: float = 0.9, tries: int = 12) -> Floats:
    """A palette colour (N, 3) for each background, whose L1 distance to the object's colour is at least `least`."""
    chosen = rng.integers(0, len(PALETTE), len(colour))
    for _ in range(tries):
        close = np.abs(PALETTE[chosen] - colour).sum(1) < least
        if not close.any():
            break
        chosen[close] = rng.integers(0, len(PALETTE), int(close.sum()))
    return PALETTE[chosen]


def _light(scene: Scene, look: Look, rng: np.random.Generator) -> None:
    """Dim and tint all colours of a picture equally, in place."""
    count = len(scene)
    light = rng.uniform(*look.light, (count, 1))
    tint = rng.uniform(0, look.tint, (count, 1)) * rng.random((count, 3))
    for owner, name in _colour_fields(scene):
        setattr(owner, name, _colours(getattr(owner, name) * light + tint))


def _colour_fields(scene: Scene) -> list[tuple[Scene | Layer, str]]:
    around: list[tuple[Scene | Layer, str]] = [(scene, "background"), (scene, "background_end")]
    return around + [(layer, name) for layer in scene.layers for name in ("colour", "second_colour")]


def _clutter(slot: int, count: int, look: Look, rng: np.random.Generator) -> Layer:
    """A small plain object near the border, in one of three directions, in some pictures."""
    subjects = Subjects(rng.integers(0, CLUTTER_SHAPES, count), np.full(count, SOLID), np.zeros(count, np.int64))
    layer = _layer(subjects, rng.random((count, 3), dtype=np.float32), replace(look, size=(0.08, 0.15)), rng)
    direction = rng.uniform(-0.5, 0.5, count) + slot * 2 * np.pi / CLUTTER_SLOTS
    layer.present = _chance(look.clutter, count, rng)
    layer.x = (0.85 * np.cos(direction)).astype(np.float32)
    layer.y = (0.85 * np.sin(direction)).astype(np.float32)
    return layer


def _chance(probability: float, count: int, rng: np.random.Generator) -> Bools:
    return rng.random(count) < probability


def _on_paper(scene: Scene, rng: np.random.Generator) -> None:
    """Turn the scene into dark ink on light paper, in place."""
    count = len(scene)
    scene.background = _colours(np.repeat(rng.uniform(0.85, 1, (count, 1)), 3, axis=1))
    scene.background_kind = np.full(count, FLAT)
    for layer in scene.layers:
        layer.colour = _colours(np.repeat(rng.uniform(0, 0.3, (count, 1)), 3, axis=1))

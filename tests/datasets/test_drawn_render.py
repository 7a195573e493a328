"""The renderer draws what a scene describes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dassl_lite.datasets._drawn.fields import TEXTURES, TILES, paint
from dassl_lite.datasets._drawn.looks import CLEAN, PAINTING, PENCIL, PHOTO, PHOTO_HARD, Look, Subjects, compose
from dassl_lite.datasets._drawn.render import CHUNK, PIXELS, draw, soften, upsample
from dassl_lite.datasets._drawn.scene import CHECKERED, COLOUR_NAMES, HOLLOW, SOLID, Scene
from dassl_lite.datasets._drawn.shapes import (
    SEEN,
    SHAPE_NAMES,
    UNSEEN,
    box,
    circle,
    common,
    minus,
    polygon,
    regular,
    shape_table,
    star,
    union,
)

EXACT = Look(size=(0.6, 0.6), turn=0, drift=0, colour_noise=0, backgrounds=(1, 0, 0), grain=(0, 0))


def subjects(shape: str, fill: int = SOLID, colour: str = "black", count: int = 1) -> Subjects:
    return Subjects(
        np.full(count, SHAPE_NAMES.index(shape)), np.full(count, fill), np.full(count, COLOUR_NAMES.index(colour))
    )


def scene_on_white(shape: str, fill: int = SOLID, look: Look = EXACT) -> Scene:
    scene = compose(subjects(shape, fill), look, np.random.default_rng(0))
    scene.background[:] = 1.0
    return scene


def picture(scene: Scene) -> np.ndarray:
    return draw(scene, np.random.default_rng(0))[0].astype(float) / 255


@pytest.mark.slow
@pytest.mark.parametrize("look", [CLEAN, PHOTO, PHOTO_HARD, PENCIL, PAINTING])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_differs(look: Look) -> None:
    def drawn(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return draw(compose(subjects("star", CHECKERED, "red", 5), look, rng), rng).tobytes()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.slow
def test_more_images_than_a_chunk_are_all_drawn() -> None:
    rng = np.random.default_rng(0)
    pictures = draw(compose(subjects("heart", count=CHUNK + 3), CLEAN, rng), rng, pixels=32)
    assert pictures.shape == (CHUNK + 3, 32, 32, 3)
    assert (pictures.reshape(len(pictures), -1).std(1) > 1).all()


def test_a_solid_circle_covers_its_area_in_its_colour() -> None:
    image = picture(scene_on_white("circle"))
    assert image[0, 0] == pytest.approx([1, 1, 1], abs=0.01)
    assert image[32, 32] == pytest.approx([0.05, 0.05, 0.05], abs=0.01)
    covered = ((1 - image[..., 0]) / 0.95).mean()
    assert covered == pytest.approx(math.pi * (0.6 * 0.88 / 2) ** 2, rel=0.02)


def test_a_hollow_circle_is_much_thinner_than_a_ring() -> None:
    hollow, ring = (picture(scene_on_white(shape, fill)) for shape, fill in (("circle", HOLLOW), ("ring", SOLID)))
    for image in (hollow, ring):
        assert image[32, 32] == pytest.approx([1, 1, 1], abs=0.01)
    row = PIXELS // 2
    widths = [(image[row, :32, 0] < 0.5).sum() for image in (hollow, ring)]
    assert 1 <= widths[0] <= 4
    assert widths[1] >= 3 * widths[0]


def test_objects_lean_anticlockwise() -> None:
    upright = picture(scene_on_white("triangle"))
    leaning = picture(scene_on_white("triangle", look=replace(EXACT, lean=90)))
    assert leaning == pytest.approx(np.rot90(upright), abs=0.15)


def test_a_sketch_is_grey_on_light_paper() -> None:
    rng = np.random.default_rng(3)
    look = replace(PENCIL, grain=(0, 0))
    pictures = draw(compose(subjects("flower", CHECKERED, "red", 8), look, rng), rng).astype(int)
    assert np.ptp(pictures, axis=-1).max() <= 1
    assert (pictures[:, 0, 0] > 200).all()


def test_photo_lighting_dims_every_colour() -> None:
    bright, dark = (
        compose(subjects("star", colour="white", count=4), replace(EXACT, light=(k, k)), np.random.default_rng(0))
        for k in (1.0, 0.5)
    )
    assert dark.layers[0].colour == pytest.approx(bright.layers[0].colour / 2)
    assert dark.background == pytest.approx(bright.background / 2)


def test_clutter_never_covers_the_centre() -> None:
    scene = compose(subjects("star", count=200), PHOTO_HARD, np.random.default_rng(0))
    assert len(scene.layers) == 4
    for layer in scene.layers[1:]:
        assert 0.4 < layer.present.mean() < 0.6
        assert (np.hypot(layer.x, layer.y) > 0.8).all()


def test_every_shape_fits_its_distance_table() -> None:
    table = shape_table()
    assert len(table) == len(SHAPE_NAMES) == len(SEEN) + len(UNSEEN)
    for name, field in zip(SHAPE_NAMES, table, strict=True):
        border = np.concatenate([field[0], field[-1], field[:, 0], field[:, -1]])
        assert (border > 0.1).all(), name
        assert 0.03 < (field < 0).mean() < 0.5, name


def test_polygon_distances_are_exact_inside_and_outside() -> None:
    points = np.array([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.9, 0.0), (0.0, -3.0)])
    assert box(-1, -1, 1, 1)(points) == pytest.approx([-1, 1, math.sqrt(2), -0.1, 2])


def test_set_operations_have_the_right_sign() -> None:
    points = np.array([(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0)])
    left, right = circle(-0.5, 0, 0.7), circle(0.5, 0, 0.7)
    assert (union(left, right)(points) < 0).tolist() == [True, True, True]
    assert (common(left, right)(points) < 0).tolist() == [True, False, False]
    assert (minus(left, right)(points) < 0).tolist() == [False, False, True]


def test_a_star_lies_between_its_two_radii() -> None:
    angles = np.linspace(0, 2 * np.pi, 50)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert (star(5, 1.0, 0.4)(0.3 * ring) < 0).all()
    assert (star(5, 1.0, 0.4)(1.01 * ring) > 0).all()
    assert regular(6, 1.0, first=0)(np.array([(0.999, 0.0), (1.001, 0.0)])) == pytest.approx([0, 0], abs=2e-3)


def test_a_polygon_accepts_corners_in_either_direction() -> None:
    corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    points = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    assert polygon(corners)(points) == pytest.approx(polygon(corners[::-1])(points))


def test_upsampling_keeps_the_corners_and_a_linear_ramp() -> None:
    ramp = np.arange(4.0)[None, None, :, None] * np.ones((1, 4, 1, 1))
    enlarged = upsample(ramp, 7)
    assert enlarged[0, 3, :, 0] == pytest.approx(np.arange(7) / 2)


def test_softening_preserves_the_sum_of_an_inner_spot() -> None:
    image = np.zeros((1, 7, 7, 1))
    image[0, 3, 3] = 16
    assert soften(image)[0, 2:5, 2:5, 0].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


@pytest.mark.parametrize("painters", [TEXTURES, TILES])
def test_every_background_is_drawn_completely_and_depends_on_its_seed(painters: dict) -> None:
    labels = np.arange(len(painters))
    pictures = paint(painters, labels, np.random.default_rng(4))
    assert pictures.shape == (len(painters), PIXELS, PIXELS, 3)
    assert pictures.dtype == np.uint8
    assert (paint(painters, labels, np.random.default_rng(4)) == pictures).all()

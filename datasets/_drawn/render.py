"""The renderer: from scenes to pixels, many pictures at once. `draw(scene, rng)` returns uint8 (N, S, S, 3).

All random numbers come from the generator that is passed, so the same seed gives the same bytes. The first functions
are patterns inside an object, and the pencil that draws a sketch, with distances in pixels; then comes the renderer.

Shapes: n pictures in a chunk, S pixels along a side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dassl_lite.datasets._drawn.scene import (
    ART,
    BLOTCHY,
    CHECKERED,
    DOTTED,
    GRADIENT,
    HOLLOW,
    SKETCH,
    SOLID,
    STRIPED,
    Floats,
    Ints,
    Layer,
    Scene,
)
from dassl_lite.datasets._drawn.shapes import TABLE_REACH, TABLE_SIZE, shape_table


def square_wave(cycles: Floats, sharpness: float) -> Floats:
    """A square wave in [0, 1] with period 1 and soft flanks."""
    return np.clip(np.sin(2 * np.pi * cycles) * sharpness + 0.5, 0, 1)


def checks(a: Floats, b: Floats, sharpness: float) -> Floats:
    """A soft chequerboard in [0, 1] with squares of side 1."""
    return np.clip(np.sin(np.pi * a) * np.sin(np.pi * b) * sharpness + 0.5, 0, 1)


def outside_dots(a: Floats, b: Floats, radius: float, sharpness: Floats | float) -> Floats:
    """0 inside dots on the integer grid, 1 outside."""
    distance = np.hypot(a - np.round(a), b - np.round(b))
    return np.clip((distance - radius) * sharpness + 0.5, 0, 1)


def pattern(fill: Ints, x: Floats, y: Floats, angle: Floats, period: Floats) -> Floats:
    """Share of the first colour at each pixel (n, S, S); `x`, `y` in pixels from the object's centre, others (n,)."""
    share = np.ones_like(x)
    for kind in (STRIPED, DOTTED, CHECKERED):
        rows = np.flatnonzero(fill == kind)
        if not len(rows):
            continue
        step = period[rows, None, None]
        cosine, sine = np.cos(angle[rows, None, None]), np.sin(angle[rows, None, None])
        a = (x[rows] * cosine + y[rows] * sine) / step
        b = (y[rows] * cosine - x[rows] * sine) / step
        if kind == STRIPED:
            share[rows] = square_wave(a, 1.6)
        elif kind == DOTTED:
            share[rows] = outside_dots(a, b, 0.29, step)
        else:
            share[rows] = checks(a, b, 2.5)
    return share


def coverage(fill: Ints, distance: Floats, line: Floats) -> Floats:
    """The fraction of each pixel that the object covers; a hollow one only along its edge, `line` (n,) pixels wide."""
    covered = np.clip(0.5 - distance, 0, 1)
    hollow = np.flatnonzero(fill == HOLLOW)
    half = line[hollow, None, None] / 2
    covered[hollow] = np.clip(0.5 + half - np.abs(distance[hollow] + half), 0, 1)
    return covered


def pencil(fill: Ints, distance: Floats, share: Floats, line: Floats) -> Floats:
    """The ink of a sketch: an outline, and inside it shading if solid, the pattern, or a second line if hollow."""
    fill = fill[:, None, None]
    outline = np.clip(1.35 - np.abs(distance), 0, 1)
    shade = np.where(fill == SOLID, 0.35, (1 - share) * 0.75) * np.clip(0.5 - distance, 0, 1)
    second_line = np.clip(1.2 - np.abs(distance + line[:, None, None] + 1.2), 0, 1)
    return np.maximum(outline, np.where(fill == HOLLOW, second_line, shade))


PIXELS = 64
CHUNK = 64  # pictures drawn together, so that their arrays fit the CPU cache; changes what a seed gives

Images = npt.NDArray[np.uint8]


def draw(scene: Scene, rng: np.random.Generator, pixels: int = PIXELS, table: Floats | None = None) -> Images:
    """Draw all pictures of `scene`, (N, pixels, pixels, 3). `table` replaces the table of shapes (for glyphs)."""
    table = shape_table() if table is None else table
    pictures = np.empty((len(scene), pixels, pixels, 3), np.uint8)
    for start in range(0, len(scene), CHUNK):
        rows = slice(start, start + CHUNK)
        pictures[rows] = to_bytes(_draw_chunk(scene.take(rows), rng, pixels, table))
    return pictures


def to_bytes(images: Floats) -> Images:
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)


def _draw_chunk(scene: Scene, rng: np.random.Generator, pixels: int, table: Floats) -> Floats:
    grid = pixel_grid(pixels)
    images = _backgrounds(scene, rng, grid)
    for layer in scene.layers:
        rows = np.flatnonzero(layer.present)
        if len(rows):
            images[rows] = _paint(images[rows], layer.take(rows), scene.take(rows), rng, grid, table)
    for picture in np.flatnonzero(scene.barred):
        _bars(images[picture], rng, grid)
    art = np.flatnonzero(scene.style == ART)
    images[art] = _brushwork(images[art], rng)
    for done in range(int(scene.blur.max(initial=0))):
        rows = np.flatnonzero(scene.blur > done)
        images[rows] = soften(images[rows])
    noise = rng.random(images.shape, dtype=np.float32) - 0.5
    return images + noise * (np.sqrt(12) * scene.grain[:, None, None, None]).astype(np.float32)


def pixel_grid(pixels: int) -> tuple[Floats, Floats]:
    """x and y of the pixel centres, each (S, S), in [-1, 1] with y upwards."""
    axis = ((np.arange(pixels) + 0.5) / pixels * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(axis, -axis, indexing="xy")
    return x, y


def upsample(coarse: Floats, pixels: int) -> Floats:
    """Bilinear from (n, k, k, channels) to (n, pixels, pixels, channels), with aligned corners."""
    position = np.linspace(0, coarse.shape[1] - 1, pixels)
    low = np.minimum(position.astype(int), coarse.shape[1] - 2)
    high_share = (position - low).astype(np.float32)[:, None]
    rows = coarse[:, low] * (1 - high_share[:, None]) + coarse[:, low + 1] * high_share[:, None]
    return rows[:, :, low] * (1 - high_share) + rows[:, :, low + 1] * high_share


def smooth_noise(rng: np.random.Generator, count: int, pixels: int, knots: int, channels: int = 1) -> Floats:
    """Smooth random fields in [0, 1]: (count, pixels, pixels, channels), from knots x knots values each."""
    return upsample(rng.random((count, knots, knots, channels), dtype=np.float32), pixels)


def soften(images: Floats) -> Floats:
    """One pass of the filter (1, 2, 1) / 4 along both sides."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    across = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return (across[:, :, :-2] + 2 * across[:, :, 1:-1] + across[:, :, 2:]) / 4


def _backgrounds(scene: Scene, rng: np.random.Generator, grid: tuple[Floats, Floats]) -> Floats:
    x, y = grid
    angle = scene.background_angle[:, None, None]
    slope = np.clip((np.cos(angle) * x + np.sin(angle) * y) / 2 + 0.5, 0, 1)
    share = np.where((scene.background_kind == GRADIENT)[:, None, None], slope, 0).astype(np.float32)
    blotchy = np.flatnonzero(scene.background_kind == BLOTCHY)
    share[blotchy] = smooth_noise(rng, len(blotchy), len(x), 7)[..., 0]
    return _mix(scene.background_end[:, None, None], scene.background[:, None, None], share)


def _mix(first: Floats, second: Floats, share: Floats) -> Floats:
    """`share` (n, S, S) of the first and the rest of the second (both broadcast to (n, S, S, 3))."""
    return second + (first - second) * share[..., None]


def _paint(
    images: Floats,
    layer: Layer,
    scene: Scene,
    rng: np.random.Generator,
    grid: tuple[Floats, Floats],
    table: Floats,
) -> Floats:
    """Paint an object on each image (n, S, S, 3)."""
    half = images.shape[1] / 2  # pixels per unit of length
    dx = grid[0] - layer.x[:, None, None]
    dy = grid[1] - layer.y[:, None, None]
    if scene.wobble.any():
        bend = (smooth_noise(rng, len(layer.x), images.shape[1], 6, 2) - 0.5) * scene.wobble[:, None, None, None]
        dx, dy = dx + bend[..., 0], dy + bend[..., 1]
    distance = _distances(layer, dx, dy, table) * half
    line = np.maximum(1.6, 0.11 * layer.size * half)
    share = pattern(layer.fill, dx * half, dy * half, layer.pattern_angle, layer.pattern_period * (half / 32))
    covered = coverage(layer.fill, distance, line)
    colour = _mix(layer.colour[:, None, None], layer.second_colour[:, None, None], share)
    sketched = np.flatnonzero(scene.style == SKETCH)
    covered[sketched] = pencil(layer.fill[sketched], distance[sketched], share[sketched], line[sketched])
    colour[sketched] = layer.colour[sketched, None, None]
    images = _mix(colour, images, covered)
    inked = np.flatnonzero(scene.style == ART)
    contour = np.clip(1.4 - np.abs(distance[inked] - 0.9), 0, 1)
    images[inked] = _mix(layer.second_colour[inked, None, None], images[inked], contour)
    return images


def _distances(layer: Layer, dx: Floats, dy: Floats, table: Floats) -> Floats:
    """Signed distance (n, S, S) of each pixel to its picture's object, in half picture widths."""
    cosine, sine = np.cos(layer.angle)[:, None, None], np.sin(layer.angle)[:, None, None]
    size = layer.size[:, None, None]
    v = (dy * cosine - dx * sine) / size
    u = ((dx * cosine + dy * sine) / size - layer.shear[:, None, None] * v) / layer.aspect[:, None, None]
    scale = (TABLE_SIZE - 1) / (2 * TABLE_REACH)
    column = np.clip((u + TABLE_REACH) * scale, 0, TABLE_SIZE - 1.001)
    row = np.clip((v + TABLE_REACH) * scale, 0, TABLE_SIZE - 1.001)
    left, low = column.astype(np.int32), row.astype(np.int32)
    right_share, high_share = column - left, row - low
    flat = table.ravel()
    cell = (layer.shape[:, None, None] * TABLE_SIZE + low) * TABLE_SIZE + left
    below = flat[cell] * (1 - right_share) + flat[cell + 1] * right_share
    above = flat[cell + TABLE_SIZE] * (1 - right_share) + flat[cell + TABLE_SIZE + 1] * right_share
    return (below * (1 - high_share) + above * high_share - layer.thicken[:, None, None]) * size


def _bars(image: Floats, rng: np.random.Generator, grid: tuple[Floats, Floats]) -> None:
    """Draw two thin bars of random colours across an image (S, S, 3), in place."""
    for _ in range(2):
        angle = rng.random() * np.pi
        offset = np.cos(angle) * grid[0] + np.sin(angle) * grid[1] - rng.uniform(-0.5, 0.5)
        image[np.abs(offset) < rng.uniform(0.03, 0.06)] = rng.random(3)


def _brushwork(images: Floats, rng: np.random.Generator) -> Floats:
    """Uneven paint in a few tones."""
    uneven = images + (smooth_noise(rng, len(images), images.shape[1], 12, 3) - 0.5) * 0.25
    return np.round(np.clip(uneven, 0, 1) * 6) / 6

"""The data set shapes100: small drawn images of known difficulty.

The 100 classes are 10 shapes × 10 fill patterns. Images are 32×32 RGB, as in CIFAR-100. Objects are rotated by at most
half a radian. The class does not depend on the angle, so a rotated view keeps its label. It does not depend on the hue
either.

A shape is a signed distance function: negative inside the object and positive outside. Distances are in units of the
object's radius. A pattern gives the share of the second colour at each point of the object. Both are formulas that are
evaluated on a grid of coordinates, for many images at once.

The same arguments give the same images on every processor. Sines and exponentials may differ in their last bit between
processors. Therefore all values are computed in float64, and converted to uint8 only at the end. A test checks that no
value is so close to a rounding boundary that the last bit matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

SIZE = 32
VERSION = 2  # part of the name of cache files: increase it when the pixels change
# Fingerprint of a data set drawn by version 1, as in old runs → fingerprint of the same data set drawn by this version.
# Version 1 computed in float32, so its fingerprint depended on the processor, AVX-512 or AVX2. Its pixel values differ
# from today's by at most 1. The data sets have 4,000 + 2,000 and 10,000 + 2,000 images, both with seed 0.
REDRAWN_FINGERPRINTS = {
    "7df00250d5541187": "efb409a6a50bc353",
    "e3a696808d8c88b8": "efb409a6a50bc353",
    "2f4039c868df5427": "ba6a452610d28ada",
    "656fec0a4cedcfa2": "ba6a452610d28ada",
}
CHUNK_SIZE = 256  # images drawn at once: few enough for the cache of the processor

SHAPES = ("circle", "triangle", "square", "star", "cross", "heart", "crescent", "drop", "flower", "arrow")
PATTERNS = (
    "plain", "striped", "checked", "dotted", "ringed", "halved", "framed", "glowing", "rayed", "marbled"
)  # fmt: skip
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)


def generate(
    count: int, seed: int | Sequence[int], difficulty: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate images in random order, with about the same number of images per class.

    The same arguments give exactly the same images.

    Parameters
    ----------
    count : int
        Number of images, at least 1.
    seed : int or sequence of int
    difficulty : float, in [0, 1], optional
        Difficulty of all images. The same seed then draws the same scenes at any difficulty. By default, the difficulty
        is random, and there are somewhat more easy images than hard ones.

    Returns
    -------
    images : uint8 array of shape (count, 3, 32, 32)
    labels : int64 array of shape (count,)
        Position in `CLASSES`: 10 · shape + pattern.
    difficulty : float32 array of shape (count,), in [0, 1]
        Mean of four values in [0, 1]: lost contrast, noise, occlusion and smallness.

    Raises
    ------
    ValueError
        If `count` is less than 1, or `difficulty` is not in [0, 1].

    Examples
    --------
    >>> from pckd_nb.data import shapes
    >>> images, labels, difficulty = shapes.generate(count=2, seed=0)
    >>> images.shape, images.dtype
    ((2, 3, 32, 32), dtype('uint8'))
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if difficulty is not None and not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be from 0 (easy) to 1 (hard), got {difficulty}")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    if difficulty is None:
        level = rng.uniform(0, 1, (count, 1)) ** 1.7
        severity = np.clip(level + rng.uniform(-0.2, 0.2, (count, 4)), 0, 1)
    else:
        severity = np.full((count, 4), difficulty)
    scene = _random_scene(rng, labels, severity)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for start, values in _float_pixels(scene, rng):
        images[start : start + CHUNK_SIZE] = np.clip(values + 0.5, 0, 255)
    return images, labels.astype(np.int64), severity.mean(1).astype(np.float32)


def _float_pixels(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the position of the first image of each chunk, and the pixels of the chunk as floats of about 0 to 255."""
    for start in range(0, len(scene["label"]), CHUNK_SIZE):
        chunk = slice(start, start + CHUNK_SIZE)
        picture = _draw_scenes({key: values[chunk] for key, values in scene.items()})
        noise = rng.standard_normal(picture.shape, np.float32)
        yield start, 255 * (picture + scene["noise"][chunk, :, None, None] * noise)


# -------------------------------------------------------------------------------------------------- the scene


Scene = dict[str, np.ndarray]  # property → one row per image; all properties except "label" have the same float dtype


def _random_scene(rng: np.random.Generator, labels: np.ndarray, severity: np.ndarray) -> Scene:
    """Sample the random properties of all images, except the noise of each pixel.

    Lengths are in pixels, but those of the pattern and of the covering discs are in units of the object's radius.
    Angles are in radians.
    """
    n = len(labels)
    lost_contrast, noise, occlusion, smallness = severity.T

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        values = rng.uniform(low, high, (n, *shape)).astype(np.float32)  # rounded as in version 1
        return values.astype(float)

    radius = 13 - 4.5 * smallness
    # The object has a medium and a light colour, in either order. Both differ from the background, which is dark.
    lightness = np.tile([0.5, 0.9, 0.17], (n, 1))
    lightness[:, :2] = rng.permuted(lightness[:, :2], axis=1)
    lightness += uniform(-0.07, 0.07, 3)
    hue = uniform(0, 2 * np.pi, 3)
    cover_angle = uniform(0, 2 * np.pi, 2)
    return {
        "label": labels,
        "radius": radius,
        "center": (15.5 - radius)[:, None] * uniform(-0.8, 0.8, 2) + (SIZE - 1) / 2,
        "rotation": uniform(-0.5, 0.5),
        "opacity": 1 - 0.55 * lost_contrast,
        "noise": (0.015 + 0.115 * noise)[:, None],
        # pattern: rotation, period and phase; only the marbled pattern uses the waves
        "pattern_rotation": uniform(-0.5, 0.5),
        "period": uniform(0.62, 0.78),
        "phase": uniform(0, 2 * np.pi, 2),
        "waves": _vectors(uniform(6, 9, 5), uniform(0, 2 * np.pi, 5)),
        "wave_phase": uniform(0, 2 * np.pi, 5),
        # colours, (n, 3) in [0, 1]
        "first_colour": _rgb(lightness[:, 0], hue[:, 0], 0.2),
        "second_colour": _rgb(lightness[:, 1], hue[:, 1], 0.2),
        "background": _rgb(lightness[:, 2], hue[:, 2], 0.1),
        # clutter behind the object: a colour gradient, soft blobs, line segments and pebbles
        "slope": _vectors(uniform(0, 0.008), uniform(0, 2 * np.pi)),
        "slope_colour": uniform(-1, 1, 3),
        "blob_center": uniform(0, SIZE, 3, 2),
        "blob_radius": uniform(4, 9, 3),
        "blob_colour": uniform(-0.1, 0.1, 3, 3),
        "line_start": uniform(-4, SIZE + 4, 3, 2),
        "line_step": _vectors(uniform(8, 22, 3), uniform(0, 2 * np.pi, 3)),
        "line_colour": uniform(-0.13, 0.13, 3, 3),
        "pebble_center": uniform(0, SIZE, 3, 2),
        "pebble_radius": uniform(1.2, 2.8, 3),
        "pebble_colour": uniform(-0.18, 0.18, 3, 3),
        # occlusion: two discs that cover parts of the object's border
        "cover_offset": _vectors(uniform(0.5, 0.95, 2), cover_angle),
        "cover_radius": occlusion[:, None] * uniform(0.25, 0.5, 2),
        "cover_colour": _rgb(uniform(0.15, 0.85, 2), uniform(0, 2 * np.pi, 2), 0.15),
    }


def _vectors(length: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return vectors (x, y) from lengths and angles in radians."""
    return np.stack([length * np.cos(angle), length * np.sin(angle)], -1)


def _rgb(lightness: np.ndarray, hue: np.ndarray, chroma: float) -> np.ndarray:
    """Return RGB colours in [0, 1] from lightness, hue in radians, and chroma."""
    thirds = np.array([0, 2, 4]) * np.pi / 3
    return np.clip(lightness[..., None] + chroma * np.cos(hue[..., None] - thirds), 0, 1)


# ------------------------------------------------------------------------------------------------ the drawing


def _draw_scenes(scene: Scene) -> np.ndarray:
    """Draw images without noise, of shape (n, 3, 32, 32), with values of about 0 to 1."""
    radius = _per_image(scene["radius"])
    row, column = np.mgrid[:SIZE, :SIZE].astype(radius.dtype)
    picture = np.tile(scene["background"][:, :, None, None], (1, 1, SIZE, SIZE))

    def offsets_from(center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return column - _per_image(center[:, 0]), row - _per_image(center[:, 1])

    x, y = column - SIZE / 2, row - SIZE / 2
    slope_x, slope_y = scene["slope"].T
    _add_colour(picture, x * _per_image(slope_x) + y * _per_image(slope_y), scene["slope_colour"])
    for k in range(3):
        distance = np.hypot(*offsets_from(scene["blob_center"][:, k])) / _per_image(scene["blob_radius"][:, k])
        _add_colour(picture, np.exp(-(distance**2)), scene["blob_colour"][:, k])
        distance = _segment_distance(*offsets_from(scene["line_start"][:, k]), scene["line_step"][:, k])
        _add_colour(picture, _coverage(distance - 0.7), scene["line_colour"][:, k])
        distance = np.hypot(*offsets_from(scene["pebble_center"][:, k])) - _per_image(scene["pebble_radius"][:, k])
        _add_colour(picture, _coverage(distance), scene["pebble_colour"][:, k])

    x, y = offsets_from(scene["center"])
    x, y = x / radius, -y / radius  # up is positive
    distance, mix = _object_distance_and_mix(scene, *_rotate(x, y, scene["rotation"]))
    colour = _interpolate(
        scene["first_colour"][:, :, None, None], scene["second_colour"][:, :, None, None], mix[:, None]
    )
    coverage = _coverage(distance * radius) * _per_image(scene["opacity"])
    picture = _interpolate(picture, colour, coverage[:, None])

    for k in range(2):
        offset, size = scene["cover_offset"][:, k], scene["cover_radius"][:, k]
        distance = np.hypot(x - _per_image(offset[:, 0]), y - _per_image(offset[:, 1])) - _per_image(size)
        coverage = _coverage(distance * radius) * (_per_image(size) > 0)
        picture = _interpolate(picture, scene["cover_colour"][:, k, :, None, None], coverage[:, None])
    return picture


def _object_distance_and_mix(scene: Scene, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the signed distance to the object and the share of its second colour, both (n, 32, 32)."""
    distance, mix = np.empty_like(x), np.zeros_like(x)
    shape, pattern = np.divmod(scene["label"], len(PATTERNS))
    for k, name in enumerate(SHAPES):
        rows = np.flatnonzero(shape == k)
        distance[rows] = _SHAPE_FUNCTIONS[name](x[rows], y[rows])
    x, y = _rotate(x, y, scene["pattern_rotation"])
    for k, name in enumerate(PATTERNS):
        rows = np.flatnonzero(pattern == k)
        part = {key: values[rows] for key, values in scene.items()}
        mix[rows] = _PATTERN_FUNCTIONS[name](x[rows], y[rows], distance[rows], part)
    return distance, mix


def _per_image(values: np.ndarray) -> np.ndarray:
    """Reshape (n,) to (n, 1, 1)."""
    return values[:, None, None]


def _rotate(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates in axes that are rotated by `angle`, in radians."""
    cos, sin = _per_image(np.cos(angle)), _per_image(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Return which share of each pixel is inside, from a signed distance in pixels (anti-aliasing)."""
    return np.clip(0.5 - distance, 0, 1)


def _interpolate(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Interpolate linearly from `start` to `end`."""
    return start + (end - start) * share


def _add_colour(picture: np.ndarray, amount: np.ndarray, colour: np.ndarray) -> None:
    """Add `amount` of a colour to the images in place."""
    picture += amount[:, None] * colour[:, :, None, None]


def _segment_distance(x: np.ndarray, y: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the distance to the line segment from the origin to `step`."""
    dx, dy = _per_image(step[:, 0]), _per_image(step[:, 1])
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - along * dx, y - along * dy)


# ----------------------------------------------------------------------------- ten shapes: (x, y) -> distance


def _fold_into_wedge(x: np.ndarray, y: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotate and reflect all points into half of one sector. The shape has `parts` equal, symmetric sectors."""
    width = 2 * np.pi / parts
    angle = np.abs((np.arctan2(y, x) + width / 2) % width - width / 2)
    r = np.hypot(x, y)
    return r * np.cos(angle), r * np.sin(angle)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _fold_into_wedge(-x, y, 3)[0] - 0.55


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = _fold_into_wedge(x, y, 5)
    tip, notch_x, notch_y = 1.08, 0.46 * math.cos(math.pi / 5), 0.46 * math.sin(math.pi / 5)
    length = math.hypot(tip - notch_x, notch_y)
    return notch_y / length * (x - tip) + (tip - notch_x) / length * y


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.95, 0.33), _box(x, y, 0.33, 0.95))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Two discs on a square that is rotated by 45 degrees.
    x, y = np.abs(x) * 0.62, y * 0.62 + 0.55
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    middle = np.maximum(x + y, 0) / 2
    corner = np.sqrt(np.minimum(x * x + (y - 1) ** 2, (x - middle) ** 2 + (y - middle) ** 2)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, corner) / 0.62


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1, 0.78 - np.hypot(x - 0.52, y))


def _drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A disc and its two tangents that meet at the tip.
    low, size, tip = -0.33, 0.66, 1.12
    sin = size / (tip - low)
    cos = (1 - sin * sin) ** 0.5
    cone = np.maximum(cos * np.abs(x) + sin * (y - tip), low + size * sin - y)
    return np.minimum(np.hypot(x, y - low) - size, cone)


def _flower(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    petal_x, petal_y = _fold_into_wedge(x, y, 5)
    return np.minimum(np.hypot(petal_x - 0.64, petal_y) - 0.36, np.hypot(x, y) - 0.55)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    head = np.maximum(-0.1 - x, 0.7 * x + 0.714 * np.abs(y) - 0.7)
    return np.minimum(head, _box(x + 0.5, y, 0.5, 0.3))


_SHAPE_FUNCTIONS = {
    "circle": lambda x, y: np.hypot(x, y) - 0.92,
    "triangle": _triangle,
    "square": lambda x, y: _box(x, y, 0.78, 0.78),
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "drop": _drop,
    "flower": _flower,
    "arrow": _arrow,
}


# ---------------------------------------- ten patterns: (x, y, distance, scene) -> share of the second colour


def _soft_edges(wave: np.ndarray) -> np.ndarray:
    """Return the share of the second colour: 0 if `wave` is below −0.25, 1 if it is above 0.25, linear in between."""
    return np.clip(0.5 + 2 * wave, 0, 1)


def _wave_phases(x: np.ndarray, y: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the phases, in radians, of a wave along x and of one along y."""
    frequency = _per_image(2 * np.pi / scene["period"])
    return frequency * x + _per_image(scene["phase"][:, 0]), frequency * y + _per_image(scene["phase"][:, 1])


def _striped(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    return _soft_edges(np.sin(_wave_phases(x, y, scene)[0]))


def _checked(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    u, v = _wave_phases(x, y, scene)
    return _soft_edges(2 * np.sin(0.75 * u) * np.sin(0.75 * v))


def _dotted(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    u, v = _wave_phases(x, y, scene)
    return _soft_edges(np.cos(1.15 * u) + np.cos(1.15 * v) - 0.7)


def _ringed(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    return _soft_edges(np.sin(_per_image(2 * np.pi / scene["period"]) * np.hypot(x, y)))


def _marbled(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    total = np.zeros_like(x)
    for k in range(scene["waves"].shape[1]):
        wave = scene["waves"][:, k]
        total += np.sin(x * _per_image(wave[:, 0]) + y * _per_image(wave[:, 1]) + _per_image(scene["wave_phase"][:, k]))
    return _soft_edges(total / 2)


_PATTERN_FUNCTIONS = {
    "plain": lambda x, y, distance, scene: np.zeros_like(x),
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "ringed": _ringed,
    "halved": lambda x, y, distance, scene: _soft_edges(3 * x),
    "framed": lambda x, y, distance, scene: _soft_edges(4 * (distance + 0.2)),
    "glowing": lambda x, y, distance, scene: np.clip(1.15 * np.hypot(x, y), 0, 1),
    "rayed": lambda x, y, distance, scene: _soft_edges(np.sin(4 * np.arctan2(y, x))),
    "marbled": _marbled,
}

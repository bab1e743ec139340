"""shapes100: small images of known difficulty, drawn from a seed alone.

The 100 classes are 10 shapes × 10 fill patterns. Images are 32×32 RGB, as in CIFAR-100. Objects stand upright, to
within half a radian. No label depends on an angle, so a rotated view keeps its label. No label depends on a hue either.

A shape is a signed distance function. It is negative inside the object, in units of the object's radius. A pattern
gives the share of the second colour at each point of the object. Both are formulas on a grid of coordinates, evaluated
for many images at once.

The same arguments give the same images on every processor. Sines and exponentials can differ in their last bit between
processors. So everything is evaluated in float64, where that bit is about 1e-13 grey levels. Values are rounded to
whole grey levels once, at the end. A pixel could differ only if its value were that close to the middle between two
levels. A test measures how far all values are from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

SIZE = 32
VERSION = 2  # part of the cache's file name; increase it whenever the pixels change
# Fingerprints of data sets in recorded runs: drawn by version 1 → the same images drawn by this version.
# Version 1 was evaluated in float32, so its fingerprint depended on the kind of processor. Listed are those of AVX-512
# and AVX2. No pixel differs by more than one grey level. The data sets have 4,000 + 2,000 and 10,000 + 2,000 images,
# both with seed 0.
REDRAWN = {
    "7df00250d5541187": "efb409a6a50bc353",
    "e3a696808d8c88b8": "efb409a6a50bc353",
    "2f4039c868df5427": "ba6a452610d28ada",
    "656fec0a4cedcfa2": "ba6a452610d28ada",
}
CHUNK = 256  # images drawn at once: small enough to stay in the processor's cache

SHAPES = ("circle", "triangle", "square", "star", "cross", "heart", "crescent", "drop", "flower", "arrow")
PATTERNS = (
    "plain", "striped", "checked", "dotted", "ringed", "halved", "framed", "glowing", "rayed", "marbled"
)  # fmt: skip
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)


def generate(
    count: int, seed: int | Sequence[int], difficulty: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw images, spread as evenly over the classes as `count` allows, in random order.

    The same arguments give the same images, bit by bit.

    Parameters
    ----------
    count : int
        Number of images, at least 1.
    seed : int or sequence of int
    difficulty : float in [0, 1], optional
        Sets all four severities of every image. A seed then draws the same scenes at any difficulty. By default images
        differ in difficulty, with somewhat more easy than hard ones.

    Returns
    -------
    images : uint8 array of shape (count, 3, 32, 32)
    labels : int64 array of shape (count,)
        Index into `CLASSES`, which is 10 · shape + pattern.
    difficulty : float32 array of shape (count,), in [0, 1]
        Mean of four severities in [0, 1]: lost contrast, noise, occlusion and smallness.

    Raises
    ------
    ValueError
        If `count` is not positive or `difficulty` is outside [0, 1].
    """
    if count < 1:
        raise ValueError(f"count is {count}: at least one image has to be drawn")
    if difficulty is not None and not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty is {difficulty}: it lies between 0 (easy) and 1 (hard)")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    if difficulty is None:
        level = rng.uniform(0, 1, (count, 1)) ** 1.7
        severity = np.clip(level + rng.uniform(-0.2, 0.2, (count, 4)), 0, 1)
    else:
        severity = np.full((count, 4), difficulty)
    scene = _random_scene(rng, labels, severity)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for start, values in _grey_levels(scene, rng):
        images[start : start + CHUNK] = np.clip(values + 0.5, 0, 255)
    return images, labels.astype(np.int64), severity.mean(1).astype(np.float32)


def _grey_levels(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the pixels of a scene with noise, before they are rounded and clipped to whole grey levels from 0 to 255.

    Each item has the position of its first image and values of shape (n, 3, 32, 32), for up to `CHUNK` images. The
    values have the floating-point type of the scene.
    """
    for start in range(0, len(scene["label"]), CHUNK):
        chunk = slice(start, start + CHUNK)
        picture = _draw({key: values[chunk] for key, values in scene.items()})
        noise = rng.standard_normal(picture.shape, np.float32)
        yield start, 255 * (picture + scene["noise"][chunk, :, None, None] * noise)


# -------------------------------------------------------------------------------------------------- the scene


Scene = dict[str, np.ndarray]  # by name: labels, and arrays of one floating-point type, with one row per image


def _random_scene(rng: np.random.Generator, labels: np.ndarray, severity: np.ndarray) -> Scene:
    """Draw all random properties of the images except the pixel noise, in float64, with lengths in pixels."""
    n = len(labels)
    lost_contrast, noise, occlusion, smallness = severity.T

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return (
            rng.uniform(low, high, (n, *shape)).astype(np.float32).astype(float)
        )  # with the precision of float32, as in version 1

    radius = 13 - 4.5 * smallness
    # The background is dark. The object has a medium and a light colour, in either order, so all can be told apart.
    lightness = np.tile([0.5, 0.9, 0.17], (n, 1))
    lightness[:, :2] = rng.permuted(lightness[:, :2], axis=1)
    lightness += uniform(-0.07, 0.07, 3)
    hue = uniform(0, 2 * np.pi, 3)
    around = uniform(0, 2 * np.pi, 2)
    return {
        "label": labels,
        "radius": radius,
        "center": (15.5 - radius)[:, None] * uniform(-0.8, 0.8, 2) + (SIZE - 1) / 2,
        "turn": uniform(-0.5, 0.5),
        "opacity": 1 - 0.55 * lost_contrast,
        "noise": (0.015 + 0.115 * noise)[:, None],
        # pattern: its own direction, period and phase; the waves are for the marbled pattern
        "pattern_turn": uniform(-0.5, 0.5),
        "period": uniform(0.62, 0.78),
        "phase": uniform(0, 2 * np.pi, 2),
        "waves": _polar(uniform(6, 9, 5), uniform(0, 2 * np.pi, 5)),
        "wave_phase": uniform(0, 2 * np.pi, 5),
        # colours, (n, 3) in [0, 1]
        "first": _colour(lightness[:, 0], hue[:, 0], 0.2),
        "second": _colour(lightness[:, 1], hue[:, 1], 0.2),
        "ground": _colour(lightness[:, 2], hue[:, 2], 0.1),
        # clutter behind the object: a colour gradient, soft blobs, line segments and pebbles
        "slope": _polar(uniform(0, 0.008), uniform(0, 2 * np.pi)),
        "slope_colour": uniform(-1, 1, 3),
        "blob_center": uniform(0, SIZE, 3, 2),
        "blob_radius": uniform(4, 9, 3),
        "blob_colour": uniform(-0.1, 0.1, 3, 3),
        "line_start": uniform(-4, SIZE + 4, 3, 2),
        "line_step": _polar(uniform(8, 22, 3), uniform(0, 2 * np.pi, 3)),
        "line_colour": uniform(-0.13, 0.13, 3, 3),
        "pebble_center": uniform(0, SIZE, 3, 2),
        "pebble_radius": uniform(1.2, 2.8, 3),
        "pebble_colour": uniform(-0.18, 0.18, 3, 3),
        # occlusion: two discs on the rim of the object
        "cover_offset": _polar(uniform(0.5, 0.95, 2), around),
        "cover_radius": occlusion[:, None] * uniform(0.25, 0.5, 2),
        "cover_colour": _colour(uniform(0.15, 0.85, 2), uniform(0, 2 * np.pi, 2), 0.15),
    }


def _polar(length: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Convert lengths and angles in radians to vectors (x, y)."""
    return np.stack([length * np.cos(angle), length * np.sin(angle)], -1)


def _colour(lightness: np.ndarray, hue: np.ndarray, chroma: float) -> np.ndarray:
    """Return RGB colours in [0, 1] from lightness, hue in radians, and chroma."""
    thirds = np.array([0, 2, 4]) * np.pi / 3
    return np.clip(lightness[..., None] + chroma * np.cos(hue[..., None] - thirds), 0, 1)


# ------------------------------------------------------------------------------------------------ the drawing


def _draw(scene: Scene) -> np.ndarray:
    """Draw images without noise, (n, 3, 32, 32), roughly in [0, 1], in the floating-point type of the scene."""
    radius = _wide(scene["radius"])
    row, column = np.mgrid[:SIZE, :SIZE].astype(radius.dtype)
    picture = np.tile(scene["ground"][:, :, None, None], (1, 1, SIZE, SIZE))

    def place(center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return column - _wide(center[:, 0]), row - _wide(center[:, 1])

    x, y = column - SIZE / 2, row - SIZE / 2
    _tint(picture, x * _wide(scene["slope"][:, 0]) + y * _wide(scene["slope"][:, 1]), scene["slope_colour"])
    for k in range(3):
        distance = np.hypot(*place(scene["blob_center"][:, k])) / _wide(scene["blob_radius"][:, k])
        _tint(picture, np.exp(-(distance**2)), scene["blob_colour"][:, k])
        distance = _segment(*place(scene["line_start"][:, k]), scene["line_step"][:, k])
        _tint(picture, _inside(distance - 0.7), scene["line_colour"][:, k])
        distance = np.hypot(*place(scene["pebble_center"][:, k])) - _wide(scene["pebble_radius"][:, k])
        _tint(picture, _inside(distance), scene["pebble_colour"][:, k])

    x, y = place(scene["center"])
    x, y = x / radius, -y / radius  # up is positive
    distance, mix = _object(scene, *_rotate(x, y, scene["turn"]))
    colour = _lerp(scene["first"][:, :, None, None], scene["second"][:, :, None, None], mix[:, None])
    coverage = _inside(distance * radius) * _wide(scene["opacity"])
    picture = _lerp(picture, colour, coverage[:, None])

    for k in range(2):
        offset, size = scene["cover_offset"][:, k], scene["cover_radius"][:, k]
        distance = np.hypot(x - _wide(offset[:, 0]), y - _wide(offset[:, 1])) - _wide(size)
        coverage = _inside(distance * radius) * (_wide(size) > 0)
        picture = _lerp(picture, scene["cover_colour"][:, k, :, None, None], coverage[:, None])
    return picture


def _object(scene: Scene, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the signed distance to the object and the share of its second colour, both (n, 32, 32)."""
    distance, mix = np.empty_like(x), np.zeros_like(x)
    shape, pattern = np.divmod(scene["label"], len(PATTERNS))
    for k, name in enumerate(SHAPES):
        rows = np.flatnonzero(shape == k)
        distance[rows] = _SHAPES[name](x[rows], y[rows])
    x, y = _rotate(x, y, scene["pattern_turn"])
    for k, name in enumerate(PATTERNS):
        rows = np.flatnonzero(pattern == k)
        part = {key: values[rows] for key, values in scene.items()}
        mix[rows] = _PATTERNS[name](x[rows], y[rows], distance[rows], part)
    return distance, mix


def _wide(values: np.ndarray) -> np.ndarray:
    """Reshape (n,) to (n, 1, 1)."""
    return values[:, None, None]


def _rotate(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates in a frame that is rotated by `angle`, in radians."""
    cos, sin = _wide(np.cos(angle)), _wide(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _inside(distance: np.ndarray) -> np.ndarray:
    """Return the covered share of each pixel for a signed distance in pixels, which gives anti-aliasing."""
    return np.clip(0.5 - distance, 0, 1)


def _lerp(start: np.ndarray, end: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Interpolate linearly from `start` to `end`."""
    return start + (end - start) * share


def _tint(picture: np.ndarray, amount: np.ndarray, colour: np.ndarray) -> None:
    """Add `amount` of a colour to the images in place."""
    picture += amount[:, None] * colour[:, :, None, None]


def _segment(x: np.ndarray, y: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the distance to the line segment from the origin to `step`."""
    dx, dy = _wide(step[:, 0]), _wide(step[:, 1])
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - along * dx, y - along * dy)


# ----------------------------------------------------------------------------- ten shapes: (x, y) -> distance


def _wedge(x: np.ndarray, y: np.ndarray, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Map points into the upper half of the wedge around the x axis, for a shape of `fold` equal parts."""
    width = 2 * np.pi / fold
    angle = np.abs((np.arctan2(y, x) + width / 2) % width - width / 2)
    r = np.hypot(x, y)
    return r * np.cos(angle), r * np.sin(angle)


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _wedge(-x, y, 3)[0] - 0.55


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = _wedge(x, y, 5)
    tip, notch_x, notch_y = 1.08, 0.46 * math.cos(math.pi / 5), 0.46 * math.sin(math.pi / 5)
    length = math.hypot(tip - notch_x, notch_y)
    return notch_y / length * (x - tip) + (tip - notch_x) / length * y


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.95, 0.33), _box(x, y, 0.33, 0.95))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Two round lobes on a square that stands on its tip.
    x, y = np.abs(x) * 0.62, y * 0.62 + 0.55
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    middle = np.maximum(x + y, 0) / 2
    corner = np.sqrt(np.minimum(x * x + (y - 1) ** 2, (x - middle) ** 2 + (y - middle) ** 2)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, corner) / 0.62


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1, 0.78 - np.hypot(x - 0.52, y))


def _drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A disc and the two tangents to it from the tip.
    low, size, tip = -0.33, 0.66, 1.12
    sin = size / (tip - low)
    cos = (1 - sin * sin) ** 0.5
    cone = np.maximum(cos * np.abs(x) + sin * (y - tip), low + size * sin - y)
    return np.minimum(np.hypot(x, y - low) - size, cone)


def _flower(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    petal_x, petal_y = _wedge(x, y, 5)
    return np.minimum(np.hypot(petal_x - 0.64, petal_y) - 0.36, np.hypot(x, y) - 0.55)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    head = np.maximum(-0.1 - x, 0.7 * x + 0.714 * np.abs(y) - 0.7)
    return np.minimum(head, _box(x + 0.5, y, 0.5, 0.3))


_SHAPES = {
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


def _soft(wave: np.ndarray) -> np.ndarray:
    """Turn a wave in [-1, 1] into two flat colours with a soft edge."""
    return np.clip(0.5 + 2 * wave, 0, 1)


def _waves(x: np.ndarray, y: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return the phases, in radians, of a wave along x and of one along y."""
    frequency = _wide(2 * np.pi / scene["period"])
    return frequency * x + _wide(scene["phase"][:, 0]), frequency * y + _wide(scene["phase"][:, 1])


def _striped(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    return _soft(np.sin(_waves(x, y, scene)[0]))


def _checked(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    u, v = _waves(x, y, scene)
    return _soft(2 * np.sin(0.75 * u) * np.sin(0.75 * v))


def _dotted(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    u, v = _waves(x, y, scene)
    return _soft(np.cos(1.15 * u) + np.cos(1.15 * v) - 0.7)


def _ringed(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    return _soft(np.sin(_wide(2 * np.pi / scene["period"]) * np.hypot(x, y)))


def _marbled(x: np.ndarray, y: np.ndarray, distance: np.ndarray, scene: Scene) -> np.ndarray:
    total = np.zeros_like(x)
    for k in range(scene["waves"].shape[1]):
        wave = scene["waves"][:, k]
        total += np.sin(x * _wide(wave[:, 0]) + y * _wide(wave[:, 1]) + _wide(scene["wave_phase"][:, k]))
    return _soft(total / 2)


_PATTERNS = {
    "plain": lambda x, y, distance, scene: np.zeros_like(x),
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "ringed": _ringed,
    "halved": lambda x, y, distance, scene: _soft(3 * x),
    "framed": lambda x, y, distance, scene: _soft(4 * (distance + 0.2)),
    "glowing": lambda x, y, distance, scene: np.clip(1.15 * np.hypot(x, y), 0, 1),
    "rayed": lambda x, y, distance, scene: _soft(np.sin(4 * np.arctan2(y, x))),
    "marbled": _marbled,
}

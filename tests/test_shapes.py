"""The drawn data set: reproducible, balanced, easy to tell apart where it is easy, hard where it says so."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__

from pckd_nb.data import shapes


def test_format_and_balance():
    images, labels, difficulty = shapes.generate(250, seed=1)
    assert images.shape == (250, 3, shapes.SIZE, shapes.SIZE) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and difficulty.dtype == np.float32
    counts = np.bincount(labels, minlength=100)
    assert set(counts) == {2, 3} and counts.sum() == 250
    assert (np.diff(labels) < 0).any(), "classes have to be shuffled"
    assert len(set(shapes.CLASSES)) == 100
    assert shapes.CLASSES[31] == "striped star"


def test_same_seed_same_images():
    first, again, other = (shapes.generate(60, seed=seed) for seed in (4, 4, 5))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_a_known_image_is_what_it_was():
    """Pinned to the bit, on any processor."""
    images, labels, _ = shapes.generate(500, seed=(0, 0))
    assert hashlib.sha256(images).hexdigest()[:16] == "8be7cb4c590f0b81"
    assert hashlib.sha256(labels).hexdigest()[:16] == "ba6fe49e8ec690f0"


@pytest.mark.parametrize("seed", [(0, 0), (0, 1), 3])
def test_rounding_to_grey_levels_leaves_room_for_any_processor(seed):
    """A pixel's error in float64 is estimated by its error in float32, measured here, times 2^-29, the ratio of the two
    types' units in the last place. A thousand times that is still less than what separates it from another level."""
    count = 4000
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 100)
    level = rng.uniform(0, 1, (count, 1)) ** 1.7
    scene = shapes._random_scene(rng, labels, np.clip(level + rng.uniform(-0.2, 0.2, (count, 4)), 0, 1))
    rough = {key: values if key == "label" else values.astype(np.float32) for key, values in scene.items()}
    state = rng.bit_generator.state
    fine = shapes._grey_levels(scene, rng)
    again = np.random.default_rng()
    again.bit_generator.state = state
    errors = []
    for (start, exact), (_, rounded) in zip(fine, shapes._grey_levels(rough, again), strict=True):
        assert exact.dtype == np.float64 and rounded.dtype == np.float32
        errors.append(np.abs(exact - rounded))
        room = np.where((exact > -1) & (exact < 256), np.abs(exact + 0.5 - (exact + 0.5).round()), 1)
        assert (1000 * (errors[-1] + 1e-4) * 2.0**-29 < room).all()
        if start == 0:  # these are the values of the images that `generate` returns
            drawn = shapes.generate(count, seed)[0][: len(exact)]
            assert np.array_equal(drawn, np.clip(exact + 0.5, 0, 255).astype(np.uint8))
    assert 1e-6 < np.mean(errors[:-1]) < 1e-4 and np.max(errors[0]) < 0.5


def test_images_do_not_depend_on_what_numpy_finds_in_the_processor():
    """numpy's sines and exponentials with the vector instructions that this processor has, and without them."""
    script = (
        "import hashlib\nfrom pckd_nb.data import shapes\n"
        "print(hashlib.sha256(shapes.generate(1000, 5)[0]).hexdigest())"
    )
    features = " ".join(__cpu_dispatch__)

    def drawn(**environment: str) -> str:
        environment = {**os.environ, **environment}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert drawn(NPY_DISABLE_CPU_FEATURES=features) == drawn()


def test_images_do_not_depend_on_the_chunk(monkeypatch):
    whole = shapes.generate(150, seed=2)[0]
    monkeypatch.setattr(shapes, "CHUNK_SIZE", 7)
    assert np.array_equal(shapes.generate(150, seed=2)[0], whole)


def test_difficulty_covers_its_range_and_obeys():
    difficulty = shapes.generate(2000, seed=0)[2]
    assert difficulty.min() < 0.08 and difficulty.max() > 0.92
    assert abs(difficulty.mean() - 0.375) < 0.03 and 0.2 < difficulty.std() < 0.32
    assert (shapes.generate(10, seed=0, difficulty=0.3)[2] == np.float32(0.3)).all()


def test_statistics_of_the_pixels():
    images = shapes.generate(1000, seed=0)[0] / 255
    assert np.allclose(images.mean((0, 2, 3)), 0.283, atol=0.02)
    assert np.allclose(images.std((0, 2, 3)), 0.225, atol=0.02)


def test_hue_says_nothing_about_the_label():
    """Brightness may: a shape that covers more of the dark ground is brighter."""
    images, labels, _ = shapes.generate(4000, seed=0)
    red, green, blue = images.mean((2, 3)).T
    colours = np.stack([red - green, green - blue], 1)
    by_class = np.stack([colours[labels == label].mean(0) for label in range(100)])
    expected = colours.std(0) / np.sqrt(40)  # of a mean over 40 images, if class did not matter
    assert (by_class.std(0) < 1.35 * expected).all()


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_shape_is_a_distance(name):
    """One piece, in the picture, of a fair size; and its slope is at most 1, else edges would be jagged."""
    y, x = np.mgrid[-1.6:1.6:0.02, -1.6:1.6:0.02].astype(np.float32)
    distance = shapes._SHAPE_FUNCTIONS[name](x[None], y[None])[0]
    area = (distance < 0).mean() * 3.2**2
    assert 1.0 < area < 2.8
    assert np.hypot(x, y)[distance < 0].max() < 1.25
    slope = np.hypot(*np.gradient(distance, 0.02))
    assert np.quantile(slope, 0.99) < 1.02 and slope[np.abs(distance) < 0.05].mean() > 0.9


def test_shapes_are_unlike_each_other_at_any_angle():
    """The best overlap of two different shapes, over 24 angles and a mirror, leaves a visible difference."""
    y, x = np.mgrid[-1.5:1.5:0.06, -1.5:1.5:0.06].astype(np.float32)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False, dtype=np.float32)
    turned = shapes._rotate(np.repeat(x[None], 24, 0), np.repeat(y[None], 24, 0), angle)
    masks = [shapes._SHAPE_FUNCTIONS[name](*turned) < 0 for name in shapes.SHAPES]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            union = (mask[0] | other).sum((1, 2))
            assert ((mask[0] & other).sum((1, 2)) / union).max() < 0.9


def test_patterns_show_both_colours_except_plain():
    images, labels, _ = shapes.generate(200, seed=3, difficulty=0)
    rng = np.random.default_rng(0)
    scene = shapes._random_scene(rng, labels, np.zeros((200, 4), np.float32))
    y, x = np.mgrid[-1:1:0.1, -1:1:0.1].astype(np.float32)
    distance, mix = shapes._object_distance_and_mix(scene, np.repeat(x[None], 200, 0), np.repeat(y[None], 200, 0))
    assert mix.min() >= 0 and mix.max() <= 1
    second = np.array([share[d < 0].mean() for share, d in zip(mix, distance, strict=True)])
    plain = labels % 10 == shapes.PATTERNS.index("plain")
    assert (second[plain] == 0).all()
    assert np.median(second[~plain]) == pytest.approx(0.5, abs=0.15) and second[~plain].min() > 0.05


@pytest.mark.parametrize("arguments", [(0, 0), (-3, 0), (5, 0, 1.5), (5, 0, -0.1)])
def test_impossible_requests(arguments):
    with pytest.raises(ValueError, match="count|difficulty"):
        shapes.generate(*arguments)


def test_the_same_scene_gets_harder_with_the_level():
    """With a fixed difficulty one seed draws one scene, so the levels can be compared pixel by pixel."""
    easy, labels, _ = shapes.generate(200, seed=9, difficulty=0)
    departure = []
    for level in (0.25, 0.5, 0.75, 1.0):
        images, same_labels, _ = shapes.generate(200, seed=9, difficulty=level)
        assert np.array_equal(labels, same_labels)
        departure.append(np.abs(images.astype(float) - easy).mean((1, 2, 3)))
    assert (np.diff(departure, axis=0) > 0).mean() > 0.98

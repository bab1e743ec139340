"""The generated shapes data set: it is reproducible and balanced, and its difficulty can be set."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__

from pckd_nb.data import shapes


def test_dtypes_and_class_balance():
    images, labels, difficulty = shapes.generate(250, seed=1)
    assert images.shape == (250, 3, shapes.SIZE, shapes.SIZE) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and difficulty.dtype == np.float32
    counts = np.bincount(labels, minlength=100)
    assert set(counts) == {2, 3} and counts.sum() == 250
    assert (np.diff(labels) < 0).any(), "classes have to be shuffled"
    assert len(set(shapes.CLASSES)) == 100
    assert shapes.CLASSES[31] == "striped star"


def test_the_same_seed_gives_the_same_images():
    first, again, other = (shapes.generate(60, seed=seed) for seed in (4, 4, 5))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_images_have_not_changed():
    """The images are the same, bit for bit, on every processor."""
    images, labels, _ = shapes.generate(500, seed=(0, 0))
    assert hashlib.sha256(images).hexdigest()[:16] == "8be7cb4c590f0b81"
    assert hashlib.sha256(labels).hexdigest()[:16] == "ba6fe49e8ec690f0"


@pytest.mark.parametrize("seed", [(0, 0), (0, 1), 3])
def test_pixel_values_are_far_from_rounding_boundaries(seed):
    """Rounding errors in float64 never change a grey level.

    The float64 error of a pixel is estimated from its measured float32 error times 2^-29, the ratio of the precisions.
    A thousand times this error is still less than the distance to the next rounding boundary.
    """
    count = 4000
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 100)
    level = rng.uniform(0, 1, (count, 1)) ** 1.7
    scene = shapes._random_scene(rng, labels, np.clip(level + rng.uniform(-0.2, 0.2, (count, 4)), 0, 1))
    float32_scene = {key: values if key == "label" else values.astype(np.float32) for key, values in scene.items()}
    state = rng.bit_generator.state
    float64_levels = shapes._float_pixels(scene, rng)
    again = np.random.default_rng()
    again.bit_generator.state = state
    errors = []
    for (start, exact), (_, rounded) in zip(float64_levels, shapes._float_pixels(float32_scene, again), strict=True):
        assert exact.dtype == np.float64 and rounded.dtype == np.float32
        errors.append(np.abs(exact - rounded))
        margin = np.where((exact > -1) & (exact < 256), np.abs(exact + 0.5 - (exact + 0.5).round()), 1)
        assert (1000 * (errors[-1] + 1e-4) * 2.0**-29 < margin).all()
        if start == 0:  # check that these are the values behind the images of `generate`
            drawn = shapes.generate(count, seed)[0][: len(exact)]
            assert np.array_equal(drawn, np.clip(exact + 0.5, 0, 255).astype(np.uint8))
    assert 1e-6 < np.mean(errors[:-1]) < 1e-4 and np.max(errors[0]) < 0.5


def test_images_do_not_depend_on_cpu_features():
    """numpy's sin and exp give the same images with and without the vector instructions of this processor."""
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


def test_images_do_not_depend_on_the_chunk_size(monkeypatch):
    whole = shapes.generate(150, seed=2)[0]
    monkeypatch.setattr(shapes, "CHUNK_SIZE", 7)
    assert np.array_equal(shapes.generate(150, seed=2)[0], whole)


def test_difficulty_covers_its_range_and_can_be_fixed():
    difficulty = shapes.generate(2000, seed=0)[2]
    assert difficulty.min() < 0.08 and difficulty.max() > 0.92
    assert abs(difficulty.mean() - 0.375) < 0.03 and 0.2 < difficulty.std() < 0.32
    assert (shapes.generate(10, seed=0, difficulty=0.3)[2] == np.float32(0.3)).all()


def test_mean_and_std_of_the_pixels():
    images = shapes.generate(1000, seed=0)[0] / 255
    assert np.allclose(images.mean((0, 2, 3)), 0.283, atol=0.02)
    assert np.allclose(images.std((0, 2, 3)), 0.225, atol=0.02)


def test_hue_does_not_depend_on_the_label():
    """Brightness may depend on it: a larger shape covers more of the dark background."""
    images, labels, _ = shapes.generate(4000, seed=0)
    red, green, blue = images.mean((2, 3)).T
    colours = np.stack([red - green, green - blue], 1)
    by_class = np.stack([colours[labels == label].mean(0) for label in range(100)])
    expected = colours.std(0) / np.sqrt(40)  # standard error of a mean over 40 images, if the class has no effect
    assert (by_class.std(0) < 1.35 * expected).all()


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_shape_is_a_distance_function(name):
    """Each shape fits into the picture and has a fair size. Its slope is at most 1; otherwise edges would be jagged."""
    y, x = np.mgrid[-1.6:1.6:0.02, -1.6:1.6:0.02].astype(np.float32)
    distance = shapes._SHAPE_FUNCTIONS[name](x[None], y[None])[0]
    area = (distance < 0).mean() * 3.2**2
    assert 1.0 < area < 2.8
    assert np.hypot(x, y)[distance < 0].max() < 1.25
    slope = np.hypot(*np.gradient(distance, 0.02))
    assert np.quantile(slope, 0.99) < 1.02 and slope[np.abs(distance) < 0.05].mean() > 0.9


def test_shapes_differ_at_any_rotation():
    """Even at the best of 24 angles, two different shapes overlap by less than 90 %."""
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
def test_invalid_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="count|difficulty"):
        shapes.generate(*arguments)


def test_a_scene_changes_more_at_higher_difficulty():
    """A seed draws the same scene at every fixed difficulty, so the images can be compared pixel by pixel."""
    easy, labels, _ = shapes.generate(200, seed=9, difficulty=0)
    differences = []
    for level in (0.25, 0.5, 0.75, 1.0):
        images, same_labels, _ = shapes.generate(200, seed=9, difficulty=level)
        assert np.array_equal(labels, same_labels)
        differences.append(np.abs(images.astype(float) - easy).mean((1, 2, 3)))
    assert (np.diff(differences, axis=0) > 0).mean() > 0.98

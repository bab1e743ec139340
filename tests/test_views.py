import itertools

import pytest
import torch

from pckd_nb import views


def splitmix64(x: int) -> int:
    """Compute SplitMix64 with Python's unbounded integers, to check the torch version against it."""
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_torch_implementation_matches_splitmix64():
    inputs = [0, 1, 2, 12345, 2**62 + 17, -1, -(2**63)]
    ours = views._splitmix64(torch.tensor(inputs)).tolist()
    assert [value % 2**64 for value in ours] == [splitmix64(value % 2**64) for value in inputs]


def test_random_bits_are_uniform_and_depend_on_every_argument():
    index = torch.arange(20_000)
    bits = views.random_bits(0, 1, index, views.ORDER)
    assert bits.min() >= 0 and bits.max() < 2**31
    counts = torch.bincount(bits % 9)
    assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    for other in (
        views.random_bits(1, 1, index, views.ORDER),
        views.random_bits(0, 2, index, views.ORDER),
        views.random_bits(0, 1, index, views.FLIP),
    ):
        correlation = torch.corrcoef(torch.stack([bits, other]).double())[0, 1]
        assert (bits == other).sum() < 5 and correlation.abs() < 0.04


@pytest.mark.parametrize("count, size", [(100, 64), (65, 64), (64, 64), (7, 3), (1, 5)])
def test_batches_contain_every_sample_once_in_even_sizes(count, size):
    batches = views.batches(count, size, seed=0, epoch=1)
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1


def test_batches_change_with_seed_and_epoch_only():
    order = torch.cat(views.batches(500, 64, 0, 1))
    assert torch.equal(order, torch.cat(views.batches(500, 20, 0, 1)))
    assert not torch.equal(order, torch.cat(views.batches(500, 64, 0, 2)))
    assert not torch.equal(order, torch.cat(views.batches(500, 64, 1, 1)))


@pytest.mark.parametrize("count, size", [(0, 4), (4, 0)])
def test_zero_samples_or_batch_size_are_refused(count, size):
    with pytest.raises(ValueError):
        views.batches(count, size, 0, 1)


def test_augment_crops_from_the_padded_image():
    images = torch.randint(1, 256, (200, 3, 12, 10), dtype=torch.uint8)
    index = torch.arange(200)
    out = views.augment(images, seed=3, epoch=2, index=index, padding=2)
    assert out.shape == images.shape and out.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, [2] * 4)
    top = views.random_bits(3, 2, index, views.SHIFT_Y) % 5
    left = views.random_bits(3, 2, index, views.SHIFT_X) % 5
    for i in range(200):
        assert torch.equal(out[i], padded[i, :, top[i] : top[i] + 12, left[i] : left[i] + 10])
    assert set(top.tolist()) == set(left.tolist()) == set(range(5))


def test_augment_depends_on_the_sample_not_on_its_position_in_the_batch():
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    index = torch.arange(100, 130)
    whole = views.augment(images, 0, 1, index, flip=True)
    part = torch.tensor([20, 3, 7])
    assert torch.equal(whole[part], views.augment(images[part], 0, 1, index[part], flip=True))
    assert not torch.equal(whole, views.augment(images, 0, 2, index, flip=True))


def test_flip_mirrors_about_half_of_the_images():
    images = torch.arange(400 * 16, dtype=torch.int64).reshape(400, 1, 4, 4).remainder(251).to(torch.uint8)
    out = views.augment(images, 0, 1, torch.arange(400), padding=0, flip=True)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    same = (out == images).flatten(1).all(1)
    assert (mirrored | same).all() and 150 < mirrored.sum() < 250
    assert torch.equal(views.augment(images, 0, 1, torch.arange(400), padding=0), images)


def test_views_with_separate_crops_are_flipped_rotated_and_then_cropped():
    images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8)
    index = torch.arange(100, 160)
    out = views.Augmentation(seed=3, padding=2, flip=True, views=4)(images, index, epoch=2)
    flipped = views.augment(images, 3, 2, index, padding=0, flip=True)
    padded = torch.nn.functional.pad(views.rotate(flipped, 4), [2] * 4)
    shifts = []
    for row, image in enumerate(out):
        windows = {(y, x): padded[row, :, y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
        (shift,) = [place for place, window in windows.items() if torch.equal(image, window)]
        shifts.append(shift)
    per_view = [shifts[start : start + 60] for start in range(0, 240, 60)]
    assert set(shifts) == {(y, x) for y in range(5) for x in range(5)}
    for i, j in itertools.combinations(range(4), 2):
        assert sum(a == b for a, b in zip(per_view[i], per_view[j], strict=True)) < 15
    part = views.Augmentation(seed=3, padding=2, flip=True, views=4)(images[7:9], index[7:9], epoch=2)
    assert torch.equal(part, out.unflatten(0, (4, 60))[:, 7:9].flatten(0, 1))


def test_the_strong_view_is_another_crop_and_flip_of_the_same_image():
    images = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8)
    index = torch.arange(100, 300)
    plain = views.Augmentation(3, 2, True)(images, index, epoch=2)
    weak, strong = views.Augmentation(3, 2, True, strong=lambda image: 255 - image)(images, index, epoch=2).chunk(2)
    assert torch.equal(weak, plain)
    padded = torch.nn.functional.pad(images, [2] * 4)
    for image, original in zip(255 - strong, padded, strict=True):
        windows = (original[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5))
        assert any(torch.equal(image, w) or torch.equal(image, w.flip(2)) for w in windows)
    assert sum(map(torch.equal, 255 - strong, weak)) < 20  # 1 in 50 by chance
    part = views.Augmentation(3, 2, True, strong=lambda image: 255 - image)(images[5:7], index[5:7], epoch=2)
    assert torch.equal(part, torch.cat([weak[5:7], strong[5:7]]))


def test_strong_transform_greys_a_square_of_at_most_half_the_side():
    transform = views.strong_transform()
    assert transform.transforms[0].num_ops == 2
    image = torch.full((3, 16, 16), 200, dtype=torch.uint8)
    sides = set()
    for _ in range(300):
        cut = transform.transforms[1](image)
        rows, columns = ((cut == 127).all(0).any(axis) for axis in (1, 0))
        assert rows.sum() == columns.sum() and (cut == 127).all(0).sum() == rows.sum() ** 2
        sides.add(int(rows.sum()))
    assert sides == set(range(9)) and (image == 200).all()
    assert transform(image).shape == image.shape and transform(image).dtype == torch.uint8


def test_a_transform_is_applied_once_per_image_before_separate_crops():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    index = torch.arange(5)
    out = views.Augmentation(0, 0, False, transform=lambda image: 255 - image, views=3)(images, index, epoch=1)
    assert torch.equal(out, views.rotate(255 - images, 3))


def test_normalise_by_hand():
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1)
    out = views.normalise(images, torch.tensor([0.5, 0.2]), torch.tensor([0.25, 0.4]))
    assert out.flatten().tolist() == pytest.approx([-2, 2])


def test_rotate_is_view_major_and_turns_by_90_degrees():
    images = torch.arange(2 * 1 * 3 * 3).reshape(2, 1, 3, 3)
    out = views.rotate(images, 4)
    assert out.shape == (8, 1, 3, 3)
    assert torch.equal(out[:2], images)
    assert torch.equal(out[2:4], images.rot90(1, (2, 3)))
    assert torch.equal(out[4:6], images.flip(2, 3))
    assert torch.equal(out[6:].rot90(1, (2, 3)), images)
    assert torch.equal(views.rotate(images, 1), images)


def test_rotate_refuses_five_views_and_non_square_images():
    with pytest.raises(ValueError, match="views"):
        views.rotate(torch.zeros(1, 1, 2, 2), 5)
    with pytest.raises(ValueError, match="2×3"):
        views.rotate(torch.zeros(1, 1, 2, 3), 4)
    assert views.rotate(torch.zeros(1, 1, 2, 3), 1).shape == (1, 1, 2, 3)

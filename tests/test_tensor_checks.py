import math

import numpy as np
import pytest
import torch

from pckd_nb import tensor_checks as checks


@pytest.mark.parametrize("value", [4, 4.0, np.float32(4), np.int64(4), torch.tensor(4), torch.tensor([4.0])])
def test_every_kind_of_number_becomes_a_float(value):
    number = checks.as_number("epoch", value)
    assert type(number) is float and number == 4


def test_an_integer_too_large_for_a_float_is_infinite_with_its_sign():
    assert checks.as_number("temperature", 10**400) == math.inf
    assert checks.as_number("temperature", -(10**400)) == -math.inf


@pytest.mark.parametrize("value", ["4", b"4", True, None, [4], torch.ones(2), torch.tensor(1j), np.array("four")])
def test_what_is_not_a_number_raises_type_error(value):
    with pytest.raises(TypeError, match=f"^epoch must be a number, got {type(value).__name__}$"):
        checks.as_number("epoch", value)


def test_the_range_of_temperatures_includes_its_ends():
    for value in checks.TEMPERATURE_RANGE:
        checks.check_temperature("temperature", value)
    assert checks.TEMPERATURE_RANGE == (1e-6, 1e6)


def test_whole_numbers():
    for value in (2, 5, np.int64(3)):
        checks.check_whole_number("views", value, 2, 5)
    for value in (1, 6):
        with pytest.raises(ValueError, match=f"^views must be from 2 to 5, got {value}$"):
            checks.check_whole_number("views", value, 2, 5)
    for value in (True, 3.0, "3", None, torch.tensor(3)):
        with pytest.raises(TypeError, match=f"^views must be a whole number, got {type(value).__name__}$"):
            checks.check_whole_number("views", value, 0)
    checks.check_whole_number("seed", 2**63 - 1, 0)
    with pytest.raises(ValueError, match="^seed must be from 0 to 9223372036854775807, got 9223372036854775808$"):
        checks.check_whole_number("seed", 2**63, 0)


def test_the_range_of_labels_is_checked_on_a_cpu_if_asked_for():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    checks.check_labels(labels, logits, 3)
    checks.check_labels(labels + 5, logits)
    for bad, shown in ((labels + 1, "1 to 3"), (labels - 1, "-1 to 1")):
        with pytest.raises(ValueError, match=f"^labels must be from 0 to 2, got {shown}$"):
            checks.check_labels(bad, logits, 3)
    with pytest.raises(ValueError, match="^labels must be from 0 to -1, got 0 to 2$"):
        checks.check_labels(labels, logits, 0)
    checks.check_labels(labels.to("meta") + 5, logits.to("meta"), 3)  # no values to look at, as on a GPU


def test_images():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    checks.check_images(images)
    checks.check_images(images, torch.uint8)
    checks.check_images(images.float())
    with pytest.raises(TypeError, match="^images must be a tensor, got list$"):
        checks.check_images([[0]])
    for bad in (images[0], images[:0], images[..., :0]):
        with pytest.raises(ValueError, match=r"^images must have shape \(B, C, H, W\), with no size 0, got \("):
            checks.check_images(bad)
    with pytest.raises(ValueError, match=r"^images must be torch.uint8, got torch.float32$"):
        checks.check_images(images.float(), torch.uint8)

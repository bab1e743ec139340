import math

import numpy as np
import pytest
import torch

from pckd_nb import preview

from .conftest import REFERENCES, relative_error


@pytest.mark.parametrize("name", REFERENCES)
def test_values_match_the_authors(name, reference):
    ref = reference(name)
    gamma = preview.difficulty(ref.cross_entropy)
    threshold = preview.threshold(int(ref.epoch))
    assert relative_error(gamma, ref.difficulty) < 1e-12
    assert threshold == pytest.approx(float(ref.threshold), rel=1e-12)
    assert relative_error(preview.weight(gamma, threshold), ref.preview_weight) < 1e-12


def test_difficulty_by_hand():
    assert preview.difficulty(torch.tensor([1.0, 2.0, 3.0])).tolist() == [0.5, 1.0, 1.5]
    assert preview.difficulty(torch.zeros(3)).tolist() == [1, 1, 1]


def test_difficulty_is_relative_to_its_batch():
    cross_entropy = torch.rand(10) + 0.1
    gamma = preview.difficulty(cross_entropy)
    assert gamma.mean().item() == pytest.approx(1, rel=1e-6)
    assert torch.allclose(preview.difficulty(7 * cross_entropy), gamma)
    assert torch.allclose(preview.difficulty(cross_entropy.repeat(2)), gamma.repeat(2))


def test_threshold_by_hand():
    assert preview.threshold(1) == 1.005
    assert preview.threshold(3, 1.1) == pytest.approx(1.331)
    assert preview.threshold(240) == pytest.approx(3.31, abs=1e-3)
    assert preview.threshold(10_000, 1e9) == math.inf


def test_threshold_of_numbers_too_large_for_float():
    assert preview.threshold(1, 0.5) == 0.5  # below 1 the threshold falls
    assert preview.threshold(10**400) == preview.threshold(1, 10**400) == math.inf


@pytest.mark.parametrize(
    "epoch, epsilon, complaint",
    [
        (0, 1.005, "epoch must be a whole number, counted from 1"),
        (-1, 1.005, "epoch must be a whole number, counted from 1"),
        (1.5, 1.005, "whole number, counted from 1"),
        (math.inf, 1.005, "whole number, counted from 1"),
        (math.nan, 1.005, "epoch must be a whole number, counted from 1"),
        (1, 0.0, "epsilon must be positive"),
        (1, -1.0, "epsilon must be positive"),
        (1, -(10**400), "epsilon must be positive"),
        (1, math.nan, "epsilon must be positive"),
    ],
)
def test_invalid_threshold_arguments_are_refused(epoch, epsilon, complaint):
    with pytest.raises(ValueError, match=complaint):
        preview.threshold(epoch, epsilon)


@pytest.mark.parametrize("value", ["2", b"2", True, None, [1], torch.ones(2), torch.tensor(1j), np.array("two")])
def test_non_numbers_are_refused(value):
    with pytest.raises(TypeError, match="epoch must be a number"):
        preview.threshold(value)
    with pytest.raises(TypeError, match="epsilon must be a number"):
        preview.threshold(1, value)
    with pytest.raises(TypeError, match="threshold must be a number"):
        preview.weight(torch.ones(2), value)


ONE_TENSOR = {"difficulty": preview.difficulty, "weight": lambda x: preview.weight(x, 1.0)}


@pytest.mark.parametrize("name", [*ONE_TENSOR, *preview.STRATEGIES])
@pytest.mark.parametrize(
    "bad, error, complaint",
    [
        ([1.0, 2.0], TypeError, "must be a tensor, got list"),
        (torch.ones(2, dtype=torch.int64), ValueError, "floating-point"),
        (torch.tensor(1.0), ValueError, r"one per sample, got torch.float32 of shape \(\)"),
        (torch.ones(2, 2), ValueError, "one per sample"),
        (torch.ones(0), ValueError, "one per sample"),
    ],
)
def test_tensors_without_one_value_per_sample_are_refused(name, bad, error, complaint):
    if name in ONE_TENSOR:
        with pytest.raises(error, match=complaint):
            ONE_TENSOR[name](bad)
        return
    for arguments in ((bad, torch.ones(2)), (torch.ones(2), bad)):
        with pytest.raises(error, match=complaint):
            preview.STRATEGIES[name](*arguments, 1.0)


@pytest.mark.parametrize("name", preview.STRATEGIES)
def test_strategies_refuse_unequal_lengths_and_negative_thresholds(name):
    strategy = preview.STRATEGIES[name]
    with pytest.raises(ValueError, match="the same number of samples, got cross_entropy 2, difficulty 3"):
        strategy(torch.ones(2), torch.ones(3), 1.0)
    for threshold in (-0.5, math.nan):
        with pytest.raises(ValueError, match="threshold must be at least 0"):
            strategy(torch.ones(2), torch.ones(2), threshold)


def test_a_threshold_of_zero_gives_full_weight_only_to_zero_difficulty():
    assert preview.weight(torch.tensor([0.0, 0.5]), 0).tolist() == pytest.approx([1, math.exp(-0.25)], rel=1e-6)


def test_weight_by_hand():
    gamma = torch.tensor([0.0, 1.0, 1.1, 2.0])
    expected = [1, 1, math.exp(-1.21), math.exp(-4)]  # a sample at the threshold is still easy
    assert preview.weight(gamma, 1.0).tolist() == pytest.approx(expected, rel=1e-6)
    assert preview.weight(gamma, math.inf).tolist() == [1, 1, 1, 1]


def test_strategies_are_in_display_order():
    expected = ["preview", "uniform", "constant", "curriculum", "constant_curriculum", "focal", "constant_focal"]
    assert list(preview.STRATEGIES) == expected


def test_strategies_by_hand():
    cross_entropy = torch.tensor([0.0, math.log(2), 2.0])
    gamma, threshold = torch.tensor([0.5, 1.0, 1.5]), 1.2
    weights = {name: f(cross_entropy, gamma, threshold).tolist() for name, f in preview.STRATEGIES.items()}
    hard = math.exp(-(1.5**2))
    assert weights["preview"] == pytest.approx([1, 1, hard])
    assert weights["uniform"] == [1, 1, 1]
    assert weights["curriculum"] == [1, 1, 0]
    assert preview.curriculum(cross_entropy, gamma, 1.0).tolist() == [1, 1, 0]  # at the threshold: still easy
    assert weights["constant"] == pytest.approx([(2 + hard) / 3] * 3)
    assert weights["focal"] == pytest.approx([0, 0.25, (1 - math.exp(-2)) ** 2])
    assert weights["constant_curriculum"] == pytest.approx([2 / 3] * 3)
    assert weights["constant_focal"] == pytest.approx([(0.25 + (1 - math.exp(-2)) ** 2) / 3] * 3)


@pytest.mark.parametrize("name", preview.STRATEGIES)
def test_weights_have_no_gradient(name):
    cross_entropy = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    gamma = preview.difficulty(cross_entropy)
    v = preview.STRATEGIES[name](cross_entropy, gamma, 1.0)
    assert not gamma.requires_grad and not v.requires_grad

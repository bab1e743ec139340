import math

import pytest
import torch

from pckd_nb import preview

from .conftest import REFERENCES, relative_error


@pytest.mark.parametrize("name", REFERENCES)
def test_the_authors_numbers(name, reference):
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


@pytest.mark.parametrize("epoch, epsilon", [(0, 1.005), (-1, 1.005), (1, 0.0), (1, -1.0), (1, math.nan)])
def test_threshold_refuses(epoch, epsilon):
    with pytest.raises(ValueError):
        preview.threshold(epoch, epsilon)


def test_weight_by_hand():
    gamma = torch.tensor([0.0, 1.0, 1.1, 2.0])
    expected = [1, 1, math.exp(-1.21), math.exp(-4)]  # a sample at the threshold is still easy
    assert preview.weight(gamma, 1.0).tolist() == pytest.approx(expected, rel=1e-6)
    assert preview.weight(gamma, math.inf).tolist() == [1, 1, 1, 1]


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


@pytest.mark.parametrize("name", preview.STRATEGIES)
def test_no_gradient_comes_through_a_weight(name):
    cross_entropy = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    gamma = preview.difficulty(cross_entropy)
    v = preview.STRATEGIES[name](cross_entropy, gamma, 1.0)
    assert not gamma.requires_grad and not v.requires_grad

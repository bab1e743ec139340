"""Ways around faults of torch: the same values as torch gives, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn

from pckd_nb import faults


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": (1, 3)}, {"groups": 3, "padding": "valid"}])
def test_strided_pointwise_convolutions_give_the_same_values(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 12, 1, **{"stride": 2, **({} if options.get("padding") else {"padding": 0}), **options})
    around = nn.Sequential(layer, nn.ReLU())
    x = torch.randn(4, 3, 9, 8, requires_grad=True)
    expected = around(x)
    expected.square().sum().backward()
    usual = [x.grad.clone(), *(weight.grad.clone() for weight in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    with faults.sound_strides(around):
        assert "_conv_forward" in vars(layer)
        found = around(x)
        found.square().sum().backward()
    assert "_conv_forward" not in vars(layer)
    assert torch.allclose(found, expected, atol=1e-6)
    for ours, theirs in zip([x.grad, *(weight.grad for weight in layer.parameters())], usual, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_other_convolutions_are_left_alone():
    others = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(3, 8, 1, 2, padding=1)
    )
    with faults.sound_strides(others):
        assert not any("_conv_forward" in vars(layer) for layer in others)


def test_an_error_leaves_nothing_behind():
    layer = nn.Conv2d(3, 8, 1, stride=2)
    with pytest.raises(ZeroDivisionError), faults.sound_strides(layer):
        raise ZeroDivisionError
    assert "_conv_forward" not in vars(layer)
    copy.deepcopy(layer)(torch.randn(1, 3, 8, 8))

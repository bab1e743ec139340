"""Auxiliary heads: networks that continue another network after one of its stages."""

import copy

import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb.models import FeatureMaps
from pckd_nb.models.auxiliary import auxiliary_heads, layers_after

from .conftest import make_data

FAMILIES = ["resnet14", "ResNet50", "wrn_16_1", "vgg13", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


def with_statistics(model):
    """Give all BatchNorm layers random values, so that leaving one out changes the features."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
    return model.eval()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_after_a_stage_continue_the_network(name, size):
    torch.manual_seed(0)
    model = with_statistics(pckd.create_model(name, num_classes=5))
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        output = FeatureMaps(model, x[:1], kind="stem and stages")(model, x)
        for layer, stage_map in zip(model.stages, output.maps, strict=True):
            rest = layers_after(model, layer)
            assert torch.equal(rest(stage_map).logits, output.logits)
            assert 0 < len([*rest.parameters()]) < len([*model.parameters()])


def convolutions(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_have_the_later_layers_with_new_weights(name):
    model = with_statistics(pckd.create_model(name, num_classes=5, seed=0)).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    heads = auxiliary_heads(model, model.stages[1:], 20)
    shapes = FeatureMaps(model, torch.zeros(1, 3, 32, 32)).shapes
    for layer, head, shape in zip(model.stages[1:], heads, shapes, strict=True):
        output = head.train()(torch.randn(3, *shape))
        assert output.logits.shape == (3, 20) and output.features.shape == (3, model.feature_width)
        output.logits.square().sum().backward()
        assert all(weight.grad is not None for weight in head.parameters())
        if layer != model.stages[-1]:
            rest = dict(layers_after(model, layer).named_parameters())
            assert {key for key, _ in head.named_parameters()} == set(rest)
            for key, weight in head.named_parameters():
                assert key.startswith(model.head_name) or weight.shape == rest[key].shape
                assert weight.ndim < 4 or not torch.equal(weight, rest[key])
        for conv in (conv for conv in convolutions(head) if conv.weight.numel() > 10_000):
            expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
        for norm in (layer for layer in head.modules() if isinstance(layer, nn.BatchNorm2d)):
            assert (norm.weight == 1).all() and not norm.bias.any()
    assert all(torch.equal(before[key], x) for key, x in model.state_dict().items()) and not model.training
    torch.manual_seed(1)
    again = auxiliary_heads(model, model.stages[1:], 20)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True))


# Authors' code: the last stage once more, without stride and without a change of the number of channels. So the first
# block of a ResNet has no convolution in its shortcut.
REPEATED = {  # convolutions of the head of the last stage: (input channels, output channels, kernel size, groups)
    "resnet8": 2 * [(64, 64, 3, 1)],
    "wrn_16_1": 4 * [(64, 64, 3, 1)],
    "ResNet50": 3 * [(2048, 512, 1, 1), (512, 512, 3, 1), (512, 2048, 1, 1)],
    "vgg13": 4 * [(512, 512, 3, 1)],
    "ShuffleV1": 4 * [(960, 240, 1, 3), (240, 240, 3, 240), (240, 960, 1, 3)],
    "ShuffleV2": [
        *[(464, 464, 3, 464), (464, 232, 1, 1), (464, 232, 1, 1), (232, 232, 3, 232), (232, 232, 1, 1)],
        *(3 * [(232, 232, 1, 1), (232, 232, 3, 232), (232, 232, 1, 1)]),
        (464, 1024, 1, 1),
    ],
    "MobileNetV2": [
        *[(160, 960, 1, 1), (960, 960, 3, 960), (960, 80, 1, 1)],
        *(2 * [(80, 480, 1, 1), (480, 480, 3, 480), (480, 80, 1, 1)]),
        *[(80, 480, 1, 1), (480, 480, 3, 480), (480, 160, 1, 1)],
        (160, 1280, 1, 1),
    ],
}


@pytest.mark.parametrize("name", REPEATED)
def test_the_head_of_the_last_stage_repeats_it_without_stride(name):
    model = pckd.create_model(name, num_classes=5, seed=0)
    [head] = auxiliary_heads(model, model.stages[-1:], 20)
    layers = convolutions(head)
    assert [(x.in_channels, x.out_channels, x.kernel_size[0], x.groups) for x in layers] == REPEATED[name]
    assert {layer.stride for layer in layers} == {(1, 1)}


def test_heads_of_a_network_with_preprocessing_are_those_of_the_network_itself():
    data = make_data()
    model = pckd.create_model("vgg8", data, seed=0)
    wrapped = pckd.with_preprocessing(model, data, mean=(0.1,), std=(0.7,), size=16)
    heads = []
    for network in (model, wrapped, pckd.with_preprocessing(wrapped, data, mean=(0.2,), std=(0.5,), size=8)):
        torch.manual_seed(0)
        heads.append(auxiliary_heads(network, network.stages[1:], 12))
    x = torch.randn(4, 128, 8, 8)
    expected, *others = (each.train()[0](x).logits for each in heads)
    assert all(torch.equal(expected, other) for other in others)


class Own(pckd.models.Classifier):
    """A network of the user with stages."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, num_classes)
        self.stages = ("stem", "first", "second")

    def features(self, x):
        return self.second(self.first(self.stem(x)).relu()).relu().mean((2, 3))


class Continued(Own):
    def repeat_last_stage(self):
        return nn.Conv2d(8, 8, 3, padding=1)


class OwnLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.scale[:, None, None]


def test_networks_that_cannot_have_heads_are_refused():
    vit = pckd.create_model("timm:test_vit", num_classes=4)
    with pytest.raises(
        ValueError, match="^auxiliary heads are copies .* those of timm:test_vit are not known: choose a"
    ):
        auxiliary_heads(vit, ["blocks.0"], 16)
    flat = pckd.as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(ValueError, match="those of Sequential are not known: choose a network of this package$"):
        auxiliary_heads(flat, ["0"], 16)
    model = pckd.create_model("resnet8", num_classes=4)
    for layer in ("layer2.0", "layer2:input", "fc"):
        with pytest.raises(
            ValueError, match=f"^an auxiliary head .* stages relu, layer1, layer2, layer3, got '{layer}'$"
        ):
            auxiliary_heads(model, ["layer1", layer], 16)
    with pytest.raises(ValueError, match="^Own has no repeat_last_stage: choose a network of this package$"):
        auxiliary_heads(Own(), ["first", "second"], 12)
    broken = Continued()
    broken.second = nn.Sequential(broken.second, OwnLayer())
    with pytest.raises(
        ValueError, match=r"^the layer 'second.1' can't get .* reset_parameters\(\) to its class OwnLayer$"
    ):
        auxiliary_heads(broken, ["first"], 12)

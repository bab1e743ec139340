import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import pckd_nb as pckd
from pckd_nb.models import MODELS, PAIRS, count_flops

REFERENCE = Path(__file__).parent / "reference"
LAYOUT = json.loads((REFERENCE / "crd_checkpoint_layout.json").read_text())


def reference_state(model) -> dict[str, torch.Tensor]:
    """Return the weights that gave crd_logits.npz. Each entry is drawn from a generator seeded with its name."""
    state = model.state_dict()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):
            continue
        random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
        shape = tuple(state[name].shape)
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            values = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = 0.1 * random.randn(*shape)
        else:
            values = random.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.tensor(values, dtype=torch.float32)
    return state


@pytest.mark.parametrize("name", MODELS)
def test_parameter_names_and_shapes_match_the_published_checkpoints(name):
    state = pckd.create_model(name, num_classes=100).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == LAYOUT[name]


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1"])
def test_logits_match_the_published_networks(name):
    model = pckd.create_model(name, num_classes=100)
    model.load_state_dict(reference_state(model))
    images = torch.tensor(np.random.RandomState(0).randn(4, 3, 32, 32), dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(images).logits.numpy()
    with np.load(REFERENCE / "crd_logits.npz") as file:
        expected = file[name]
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-4


def load_in_order(model, state) -> None:
    """Load the weights of a network whose layers have other names, but the same order and shapes."""
    values = list(state.values())
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))


def test_resnet50_matches_torchvision_except_for_the_stem():
    ours = pckd.create_model("ResNet50", num_classes=100)
    ours.load_state_dict(reference_state(ours))
    theirs = torchvision.models.resnet50(num_classes=100)
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    load_in_order(theirs, ours.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = ours.eval()(images).logits, theirs.eval()(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("block, channels, stride", [(0, 116, 2), (1, 232, 1)])
def test_shufflenet_v2_blocks_match_torchvision(block, channels, stride):
    ours = pckd.create_model("ShuffleV2", num_classes=100)
    ours.load_state_dict(reference_state(ours))
    ours = ours.eval().layer2[block]
    theirs = torchvision.models.shufflenetv2.InvertedResidual(channels, 232, stride)
    load_in_order(theirs, ours.state_dict())
    x = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_flops_and_teacher_student_pairs():
    # the literature gives about 0.10 billion multiply-adds for WRN-16-2 on CIFAR
    assert 195e6 < count_flops(pckd.create_model("wrn_16_2", num_classes=100)) < 210e6
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert count_flops(layer, (3, 10, 10)) == 2 * 3 * 9 * 8 * 100 and layer.training
    assert len(set(PAIRS)) == len(PAIRS) == 14
    assert all(name in MODELS or name.startswith("torchvision:") for pair in PAIRS for name in pair)


OTHER_FAMILIES = ["vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"]


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_1", "wrn_40_2", *OTHER_FAMILIES])
@pytest.mark.parametrize("size, channels, classes", [(8, 1, 2), (28, 1, 10), (33, 4, 7), (64, 3, 5)])
def test_networks_take_any_image_size_channels_and_classes(name, size, channels, classes):
    model = pckd.create_model(name, num_classes=classes, in_channels=channels)
    output = model(torch.randn(2, channels, size, size))
    assert output.logits.shape == (2, classes) and output.features.shape == (2, model.feature_width)
    assert output.centers is model.head.weight and output.bias is model.head.bias
    assert torch.allclose(output.logits, output.features @ output.centers.T + output.bias, atol=1e-5)
    assert (output.features >= 0).all()


def test_create_model_takes_classes_and_channels_from_the_data_by_default(data):
    model = pckd.create_model("resnet8", data)
    assert model.num_classes == 3 and model.conv1.in_channels == 1 and model.name == "resnet8"
    assert pckd.create_model("resnet8", data, num_classes=5).num_classes == 5
    assert pckd.create_model("resnet8", data, in_channels=2).conv1.in_channels == 2


def test_seed_fixes_the_weights_and_keeps_the_callers_random_state(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (pckd.create_model("resnet8", data, seed=3) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.fc.weight, pckd.create_model("resnet8", data, seed=4).fc.weight)


def test_unknown_names_and_invalid_numbers_are_refused():
    with pytest.raises(ValueError, match="'resnet21'.*resnet20"):
        pckd.create_model("resnet21", num_classes=10)
    with pytest.raises(ValueError, match="wrn_16_1"):
        pckd.create_model("something else entirely", num_classes=10)
    with pytest.raises(ValueError, match="num_classes"):
        pckd.create_model("resnet8")
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        pckd.create_model("resnet8", num_classes=1)
    with pytest.raises(ValueError, match="in_channels must be at least 1"):
        pckd.create_model("resnet8", num_classes=2, in_channels=0)
    for seed in (-1, 10**30):
        with pytest.raises(ValueError, match="seed must be (at least 0|less than)"):
            pckd.create_model("resnet8", num_classes=2, seed=seed)
    with pytest.raises(TypeError, match="name must be a string, got int"):
        pckd.create_model(5, num_classes=2)


def test_output_detach_and_float():
    x = torch.ones(2, 3, requires_grad=True)
    output = pckd.Output(x.bfloat16(), x.double(), x, None)
    assert [value.dtype for value in output.float()[:3]] == [torch.float32, torch.float64, torch.float32]
    assert not any(value.requires_grad for value in output.detach()[:3]) and output.detach().bias is None


def test_the_old_name_of_a_function_warns():
    with pytest.warns(DeprecationWarning, match="preprocessed is now called restore_preprocessing"):
        assert pckd.models.preprocessed is pckd.models.restore_preprocessing
    with pytest.raises(AttributeError, match="no attribute 'unknown_name'"):
        getattr(pckd.models, "unknown" + "_name")

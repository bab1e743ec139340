"""Workarounds for faults of torch give the same values and restore the previous state."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pckd_nb import faults

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[1]
STRIDED = [
    nn.Conv2d(3, 12, 1, stride=2),
    nn.Conv2d(3, 12, 1, stride=2, bias=False),
    nn.Conv2d(15, 8, 1, stride=(1, 3)),
    nn.Conv2d(7, 8, 1, stride=2, padding="valid", dilation=2),
    nn.ConvTranspose2d(12, 3, 1, stride=2, output_padding=1),
    nn.ConvTranspose2d(12, 7, 1, stride=(1, 3), bias=False),
]
SAFE = [
    nn.Conv2d(3, 8, 1),  # no stride
    nn.Conv2d(3, 8, 3, stride=2, padding=1),  # not a 1×1 convolution
    nn.Conv2d(16, 8, 1, stride=2),  # enough channels to fill a register
    nn.Conv2d(4, 8, 1, stride=2, groups=2),
    nn.Conv2d(3, 8, 1, stride=2, padding=1),
    nn.ConvTranspose2d(3, 16, 1, stride=2),
    nn.ConvTranspose2d(3, 3, 3, stride=2),
]


@pytest.mark.parametrize("layer", STRIDED, ids=str)
def test_strided_pointwise_convolutions_give_the_same_values_and_gradients(layer):
    torch.manual_seed(0)
    exact, layer = copy.deepcopy(layer).double(), copy.deepcopy(layer)
    x = torch.randn(4, layer.in_channels, 9, 8, dtype=torch.float64, requires_grad=True)
    expected = exact(x)
    expected.square().sum().backward()
    ours = x.detach().float().requires_grad_()
    with faults.safe_strides(nn.Sequential(layer)) as mode:
        found = layer(ours)
        found.square().sum().backward()
    assert mode.has_replaced
    assert found.shape == expected.shape and torch.allclose(found.double(), expected, atol=1e-5)
    usual = [x.grad, *(weight.grad for weight in exact.parameters())]
    for mine, theirs in zip([ours.grad, *(weight.grad for weight in layer.parameters())], usual, strict=True):
        assert torch.allclose(mine.double(), theirs, atol=1e-3)


@pytest.mark.parametrize("layer", SAFE, ids=str)
def test_other_convolutions_are_left_alone(layer):
    x = torch.randn(2, layer.in_channels, 8, 8)
    with faults.safe_strides(nn.Sequential(layer)) as mode:  # the padded layer enters it, but is left alone
        expected = layer(x)
    assert mode is None or not mode.has_replaced
    with faults.SafeStrides() as mode:
        assert torch.equal(layer(x), expected)
    assert not mode.has_replaced


def test_images_without_batch_dimension_keep_their_shape():
    for layer in STRIDED:
        x = torch.randn(layer.in_channels, 8, 9)
        with faults.SafeStrides() as mode:
            found = layer(x)
        assert mode.has_replaced and torch.allclose(found, layer(x), atol=1e-6)


def test_arguments_can_be_given_by_name():
    x, weight, bias = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 1, 1), torch.randn(4)
    up = {"input": x, "weight": torch.randn(3, 4, 1, 1), "bias": bias, "stride": [2, 3], "output_padding": [1]}
    down = {"input": x, "weight": weight, "bias": bias, "stride": (2,), "padding": "valid"}
    for function, arguments in [(F.conv2d, down), (F.conv_transpose2d, up)]:
        with faults.SafeStrides() as mode:
            found = function(**arguments)
        assert mode.has_replaced and torch.allclose(found, function(**arguments), atol=1e-6)


def test_bfloat16_is_kept():
    for layer in STRIDED:
        x = torch.randn(2, layer.in_channels, 8, 9)
        with faults.SafeStrides() as mode, torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16 and mode.has_replaced


def test_error_restores_the_previous_state():
    layer = nn.Conv2d(3, 8, 1, stride=2)
    before = vars(layer).keys()
    with pytest.raises(ZeroDivisionError), faults.safe_strides(layer):
        pickle.dumps(layer)
        raise ZeroDivisionError
    assert torch.overrides._len_torch_function_stack() == 0
    assert vars(layer).keys() == before
    with pytest.raises(ZeroDivisionError), faults.SafeTrainingSteps(layer, CPU):
        raise ZeroDivisionError
    assert torch.overrides._len_torch_function_stack() == 0


def is_active(steps: faults.SafeTrainingSteps, forward=lambda: None) -> bool:
    with steps:
        forward()
        return torch.overrides._len_torch_function_stack() == 1


def test_only_networks_that_need_it_use_the_workaround_after_the_first_step():
    safe, weight = nn.Conv2d(16, 8, 1, stride=2), torch.randn(8, 3, 1, 1)
    call = lambda: F.conv2d(torch.randn(2, 3, 8, 8), weight, stride=2)  # noqa: E731
    for steps, first, later in [
        (faults.SafeTrainingSteps(safe, CPU), True, False),
        (faults.SafeTrainingSteps(safe, CPU, compiles=True), False, False),
        (faults.SafeTrainingSteps(safe, torch.device("cuda")), False, False),
        (faults.SafeTrainingSteps(nn.Sequential(STRIDED[0]), CPU), True, True),
        (faults.SafeTrainingSteps(nn.Sequential(STRIDED[0]), CPU, compiles=True), True, True),
        (faults.SafeTrainingSteps(nn.Sequential(STRIDED[0]), torch.device("cuda")), False, False),
    ]:
        assert [is_active(steps) for _ in range(3)] == [first, later, later]
    steps = faults.SafeTrainingSteps(safe, CPU)  # the first step finds the function call
    assert [is_active(steps, call) for _ in range(3)] == [True, True, True]


TRAINING = '''
import copy, sys
import torch, torch.nn.functional as F
from torch import nn
import pckd_nb as pckd
from tests.conftest import make_data

torch.set_num_threads(int(sys.argv[1]))
SIZE, ROWS = 32, 16

class Standardised(nn.Conv2d):
    """Like timm's StdConv2d: its forward calls F.conv2d."""
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, self.stride, self.padding, self.dilation)

class Function(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, channels, 1, 1) / channels)
    def forward(self, x):
        return F.conv2d(x, self.weight, stride=2)

class Own(pckd.models.Classifier):
    def __init__(self, *layers):
        super().__init__()
        self.body, self.fc = nn.Sequential(*layers), nn.LazyLinear(3)
    def features(self, x):
        return self.body(x).mean((2, 3))

def network(strided, channels):
    return Own(nn.Conv2d(3, channels, 1), strided)

def wrapped(*options, **more):
    layer = nn.Conv2d(*options, **more)
    first, pool = nn.Conv2d(3, layer.in_channels, 1), nn.AdaptiveAvgPool2d(1)
    return pckd.as_classifier(nn.Sequential(first, layer, pool, nn.Flatten(), nn.Linear(layer.out_channels, 3)))

class Check:
    """Compares the gradients of the first step with those in float64, for which torch does not use oneDNN."""
    def on_run_start(self, trainer):
        self.exact, self.first = copy.deepcopy(trainer.student).double(), None
        def keep(module, inputs):
            self.first = inputs[0] if self.first is None else self.first
        self.hook = trainer.student.register_forward_pre_hook(keep)
    def on_step_end(self, trainer):
        if self.exact is None:
            return
        self.hook.remove()
        labels = trainer.data.train.labels[trainer.epoch_batches[0]]
        F.cross_entropy(self.exact(self.first.double().contiguous()).logits, labels).backward()
        for (name, weight), exact in zip(trainer.student.named_parameters(), self.exact.parameters()):
            error = ((weight.grad - exact.grad).norm() / exact.grad.norm()).item()
            assert error < 1e-4, f"{name} is off by {error}"
        self.exact = None

data = make_data(train=4 * ROWS, test=ROWS, size=SIZE, channels=3)
recipe = pckd.get_recipe("classroom", epochs=2, batch_size=ROWS)
torch.manual_seed(0)
networks = {
    "layer": network(nn.Conv2d(3, 48, 1, stride=2), 3),
    "rows": network(nn.Conv2d(5, 8, 1, stride=(2, 1)), 5),
    "columns": network(nn.Conv2d(2, 48, 1, stride=(1, 4), bias=False), 2),
    "seven": network(nn.Conv2d(7, 48, 1, stride=2, dilation=2), 7),
    "fifteen": network(nn.Conv2d(15, 48, 1, stride=2), 15),  # crashes with AVX-512
    "subclass": network(Standardised(3, 48, 1, stride=2), 3),
    "function": network(Function(3, 48), 3),
    "transposed": network(nn.ConvTranspose2d(48, 3, 1, stride=2, output_padding=1), 48),
    "wrapped": wrapped(3, 48, 1, stride=2),
}
for name, student in networks.items():
    student(torch.zeros(2, 3, SIZE, SIZE))  # sets the width of the last layer
    print(name, flush=True)
    pckd.fit(student, data, recipe, precision="32-true", accelerator="cpu", progress=False, callbacks=[Check()])

print("own loop", flush=True)
student = wrapped(3, 48, 1, stride=2).to(memory_format=torch.channels_last)
x = torch.randn(ROWS, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
for _ in range(10):
    student.zero_grad()
    student(x).logits.square().sum().backward()
exact = copy.deepcopy(student).double()
exact.zero_grad()
exact(x.double().contiguous()).logits.square().sum().backward()
for weight, other in zip(student.parameters(), exact.parameters()):
    assert torch.allclose(weight.grad.double(), other.grad, rtol=1e-3, atol=1e-4)
print("safe")
'''


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_networks_with_strided_pointwise_convolutions_train_correctly(threads):
    """In a subprocess: without the workaround, one thread corrupts memory, and two hang or compute wrong gradients."""
    checks = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"} if sys.platform == "linux" else {}
    environment = {**os.environ, **checks, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(threads)],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:])
    assert done.stdout.split()[-1] == "safe"

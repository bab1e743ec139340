"""Ways around faults of torch 2.14 on CPUs. Each function says what goes wrong without it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

# The float32 numbers in a vector register: 8 with AVX2, 16 with AVX-512. If a pixel has fewer channels, oneDNN's
# workspace for strided 1×1 convolutions is too small.
REGISTER_CHANNELS = 16


class SoundStrides(TorchFunctionMode):
    """Block in which strided 1×1 convolutions with few input channels run as a slice and a convolution without stride.

    The values are the same. torch's own backward pass is not safe for them on CPUs, in channels_last format: it writes
    outside of its memory, or computes wrong weight gradients, see docs/torch_fault.md. Transposed convolutions with
    few output channels have the same fault. They run without stride, and their output is spread out afterwards.

    Attributes
    ----------
    met : bool
        Whether there was such a convolution in the block.
    """

    met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (way := _WAYS.get(func)) and (result := way(*args, **kwargs)) is not None:
            self.met = True
            return result
        return func(*args, **kwargs)


def sound_strides(module: nn.Module) -> AbstractContextManager[Any]:
    """Return a `SoundStrides` block if a layer of `module` needs one, else a block without effect."""
    return SoundStrides() if any(map(_needs_slice, module.modules())) else nullcontext()


class SoundSteps:
    """Block for the training steps of a module: `SoundStrides` in those that need it.

    The block is active in every step if a layer of the module needs it. Otherwise it is active in the first step only,
    which finds calls of F.conv2d, and stays active if there are any.

    Parameters
    ----------
    module : nn.Module
        All that is trained.
    device : torch.device
        Only CPUs need the block.
    compiles : bool
        Whether the module is compiled. Then only its layers are checked: torch would compile it a second time if the
        block ended after the first step.
    """

    def __init__(self, module: nn.Module, device: torch.device, compiles: bool = False):
        self._mode, self._always = SoundStrides(), any(map(_needs_slice, module.modules()))
        self._active = device.type == "cpu" and (self._always or not compiles)

    def __enter__(self) -> None:
        if self._active:
            self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._active:
            self._mode.__exit__(*error)
            self._active = self._always or self._mode.met


def _needs_slice(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return _strided(layer.kernel_size, layer.in_channels, layer.stride, layer.groups)
    if isinstance(layer, nn.ConvTranspose2d):
        return _strided(layer.kernel_size, layer.out_channels, layer.stride, layer.groups)
    return False


def _strided(kernel: Sequence[int], channels: int, stride: int | Sequence[int], groups: int) -> bool:
    few = channels < REGISTER_CHANNELS and groups == 1
    return few and tuple(kernel) == (1, 1) and _pair(stride) != (1, 1)


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    """Convolve a slice of the image. Return None if the stride needs no care."""
    if not isinstance(input, Tensor) or input.device.type != "cpu" or (padding != "valid" and _pair(padding) != (0, 0)):
        return None
    if not _strided(weight.shape[2:], weight.shape[1], stride, groups):
        return None
    rows, columns = _pair(stride)
    return F.conv2d(input[..., ::rows, ::columns], weight, bias)


def _conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor | None:  # fmt: skip
    """Convolve without stride and spread the pixels out. Return None if the stride needs no care."""
    if not isinstance(input, Tensor) or input.device.type != "cpu" or _pair(padding) != (0, 0):
        return None
    if not _strided(weight.shape[2:], weight.shape[1], stride, groups):
        return None
    y = F.conv_transpose2d(input, weight)
    strides, more = _pair(stride), _pair(output_padding)
    size = [(n - 1) * step + 1 + extra for n, step, extra in zip(y.shape[-2:], strides, more, strict=True)]
    spread = y.new_zeros(*y.shape[:-2], *size)
    spread[..., :: strides[0], :: strides[1]] = y
    return spread if bias is None else spread + bias[:, None, None].to(y.dtype)


_WAYS: dict[Any, Callable[..., Tensor | None]] = {F.conv2d: _conv2d, F.conv_transpose2d: _conv_transpose2d}


def _pair(value: Any) -> tuple[int, ...]:
    """Return the numbers of both axes."""
    return (value, value) if isinstance(value, int) else (*value, *value)[:2]


@contextmanager
def sound_gradients(model: nn.Module, example: Tensor, precision: str, device: torch.device) -> Iterator[None]:
    """Within the block, `zero_unseen_gradients` holds if the precision and the device need it."""
    hooks = zero_unseen_gradients(model, example) if (precision, device.type) == ("bf16-mixed", "cpu") else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def zero_unseen_gradients(model: nn.Module, example: Tensor) -> list[RemovableHandle]:
    """Let weights of convolutions that meet nothing but padding on images like `example`, (1, C, H, W), have the
    gradient 0. It is 0, but where a stride leaves a map of one pixel torch's bfloat16 convolution on CPUs returns what
    was in memory before. Returns the hooks that do so."""

    def seen(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
        count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        places = stride * torch.arange(count)[:, None] - padding + dilation * torch.arange(kernel)
        return ((places >= 0) & (places < size)).any(0)

    found: dict[nn.Conv2d, Tensor] = {}

    def look(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(layer.padding, tuple):  # "same" goes with no stride, "valid" is none
            how = zip(inputs[0].shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
            rows, columns = (seen(*axis) for axis in how)
            found[layer] = found.get(layer, torch.tensor(False)) | (rows[:, None] & columns)

    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    looking = [layer.register_forward_hook(look) for layer in convolutions]
    was_training = model.training
    model.eval()(example.to(next(model.parameters()).device))
    model.train(was_training)
    for hook in looking:
        hook.remove()
    hidden = [(layer.weight, mask) for layer, mask in found.items() if layer.weight.requires_grad and not mask.all()]
    return [weight.register_hook(lambda gradient, mask=mask: gradient.where(mask, 0.0)) for weight, mask in hidden]

"""Workarounds for bugs of torch 2.14 on CPUs. Each docstring describes the bug."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

# A vector register holds 8 float32 numbers with AVX2, and 16 with AVX-512. If an image has fewer channels, the buffer
# that oneDNN allocates for strided 1×1 convolutions is too small.
REGISTER_CHANNELS = 16


class SafeStrides(TorchFunctionMode):
    """Context manager that replaces strided 1×1 convolutions with few input channels by safe ones.

    For these convolutions on CPUs, in channels_last format, the backward pass of torch writes outside its memory or
    computes wrong weight gradients, see docs/torch_fault.md. A convolution without stride on a slice of the image gives
    the same values without the bug. Transposed convolutions with few output channels have the same bug. They are
    computed without stride, and zeros are put between the pixels afterwards.

    Attributes
    ----------
    has_replaced : bool
        Whether a convolution was replaced.
    """

    has_replaced = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (replacement := _REPLACEMENTS.get(func)) and (result := replacement(*args, **kwargs)) is not None:
            self.has_replaced = True
            return result
        return func(*args, **kwargs)


def safe_strides(module: nn.Module) -> AbstractContextManager[Any]:
    """Return `SafeStrides()` if a layer of `module` needs it, otherwise a context manager without effect."""
    return SafeStrides() if any(map(_needs_safe_stride, module.modules())) else nullcontext()


class SafeTrainingSteps:
    """Context manager for each training step of a module, which uses `SafeStrides` where it is needed.

    If a layer of the module needs `SafeStrides`, it is active in every step. Otherwise it is active in the first step,
    to find calls of `F.conv2d` that need it, and stays active if there are any.

    Parameters
    ----------
    module : nn.Module
        Contains everything that is trained.
    device : torch.device
        `SafeStrides` is used on CPUs only.
    compiles : bool
        Whether the module is compiled. If so, only its layers are checked, because torch would compile the module a
        second time if `SafeStrides` ended after the first step.
    """

    def __init__(self, module: nn.Module, device: torch.device, compiles: bool = False):
        self._mode, self._always = SafeStrides(), any(map(_needs_safe_stride, module.modules()))
        self._active = device.type == "cpu" and (self._always or not compiles)

    def __enter__(self) -> None:
        if self._active:
            self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._active:
            self._mode.__exit__(*error)
            self._active = self._always or self._mode.has_replaced


def _needs_safe_stride(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return _is_unsafe(layer.kernel_size, layer.in_channels, layer.stride, layer.groups)
    if isinstance(layer, nn.ConvTranspose2d):
        return _is_unsafe(layer.kernel_size, layer.out_channels, layer.stride, layer.groups)
    return False


def _is_unsafe(kernel: Sequence[int], channels: int, stride: int | Sequence[int], groups: int) -> bool:
    few_channels = channels < REGISTER_CHANNELS and groups == 1
    return few_channels and tuple(kernel) == (1, 1) and _pair(stride) != (1, 1)


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    """Convolve a slice of the image. Return None if the original function is safe."""
    if not isinstance(input, Tensor) or input.device.type != "cpu" or (padding != "valid" and _pair(padding) != (0, 0)):
        return None
    if not _is_unsafe(weight.shape[2:], weight.shape[1], stride, groups):
        return None
    rows, columns = _pair(stride)
    return F.conv2d(input[..., ::rows, ::columns], weight, bias)


def _conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor | None:  # fmt: skip
    """Convolve without stride and put zeros between the pixels. Return None if the original function is safe."""
    if not isinstance(input, Tensor) or input.device.type != "cpu" or _pair(padding) != (0, 0):
        return None
    if not _is_unsafe(weight.shape[2:], weight.shape[1], stride, groups):
        return None
    y = F.conv_transpose2d(input, weight)
    strides, extras = _pair(stride), _pair(output_padding)
    size = [(n - 1) * step + 1 + extra for n, step, extra in zip(y.shape[-2:], strides, extras, strict=True)]
    spread = y.new_zeros(*y.shape[:-2], *size)
    spread[..., :: strides[0], :: strides[1]] = y
    return spread if bias is None else spread + bias[:, None, None].to(y.dtype)


_REPLACEMENTS: dict[Any, Callable[..., Tensor | None]] = {F.conv2d: _conv2d, F.conv_transpose2d: _conv_transpose2d}


def _pair(value: Any) -> tuple[int, ...]:
    """Return the numbers for height and width."""
    return (value, value) if isinstance(value, int) else (*value, *value)[:2]


@contextmanager
def safe_gradients(model: nn.Module, example: Tensor, precision: str, device: torch.device) -> Iterator[None]:
    """Apply `zero_padding_gradients` inside the block, if the precision and the device need it."""
    hooks = zero_padding_gradients(model, example) if (precision, device.type) == ("bf16-mixed", "cpu") else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def zero_padding_gradients(model: nn.Module, example: Tensor) -> list[RemovableHandle]:
    """Set the gradient of convolution weights to 0 if they are only multiplied by padding.

    For example, a 3×3 kernel with stride 2 uses only its center on a feature map of one pixel. The gradient of the
    other weights is 0, but the bfloat16 convolution of torch on CPUs returns whatever was in memory before.

    Parameters
    ----------
    model : nn.Module
    example : Tensor of shape (1, C, H, W)
        An image of the size that is used in training.

    Returns
    -------
    list of RemovableHandle
        The hooks that set the gradients.
    """

    def meets_pixels(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
        """Return a mask of the kernel positions, along one axis, that are multiplied by at least one pixel."""
        count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        places = stride * torch.arange(count)[:, None] - padding + dilation * torch.arange(kernel)
        return ((places >= 0) & (places < size)).any(0)

    found: dict[nn.Conv2d, Tensor] = {}  # layer → mask of the weights that are multiplied by pixels

    def record_mask(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(layer.padding, tuple):  # not "valid": no padding; not "same": no stride, which the bug needs
            axes = zip(inputs[0].shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
            rows, columns = (meets_pixels(*axis) for axis in axes)
            found[layer] = found.get(layer, torch.tensor(False)) | (rows[:, None] & columns)

    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(record_mask) for layer in convolutions]
    was_training = model.training
    model.eval()(example.to(next(model.parameters()).device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    masked = [(layer.weight, mask) for layer, mask in found.items() if layer.weight.requires_grad and not mask.all()]
    return [weight.register_hook(lambda gradient, mask=mask: gradient.where(mask, 0.0)) for weight, mask in masked]

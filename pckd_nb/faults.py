"""Ways around faults of torch 2.14 on CPUs. Each function says what goes wrong without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def sound_strides(module: nn.Module) -> Iterator[None]:
    """Within the block, strided 1×1 convolutions of `module` over few channels take every second pixel before they
    convolve, which gives the same values.

    The backward pass of torch's own way writes beyond its memory on processors with AVX2 alone: with channels_last, one
    thread and fewer than 8 channels.
    """
    found = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
        and layer.padding in ((0, 0), "valid", "same") and layer.in_channels // layer.groups < 8
    ]  # fmt: skip

    def stepped(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = layer.stride
        return F.conv2d(x[:, :, ::rows, ::columns], weight, bias, groups=layer.groups)

    for layer in found:
        layer._conv_forward = partial(stepped, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in found:
            del layer._conv_forward


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

"""Feature maps of any network: the maps that distillation papers compare, or the outputs of layers that you name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..deprecation import renamed_attribute
from .output import Classifier, Output

MapKind = Literal["stages", "stem and stages", "preactivations", "last"]
INPUT = ":input"  # suffix of a layer's name that means its input


class FeatureMaps:
    """Collects feature maps during the forward passes of a network, by forward hooks.

    Without `layers`, the maps of a network of this package are those that distillation papers compare: the outputs of
    its stages, see `Classifier.stages`. Any other network has one map per resolution: the last one before the
    resolution changes. To find these maps, the network runs once on `example` in eval mode. The output of a residual
    block is preferred to maps inside the block. Maps of one pixel are skipped, and also maps that are neither square
    nor proportional to the image, such as the keys of an attention layer. The hooks are removed after every call.

    Parameters
    ----------
    model : Classifier
    example : Tensor of shape (1, C, H, W)
        An image of the size that the network will see.
    layers : sequence of str, optional
        Names as in `model.named_modules()`. The maps are the outputs of these layers, in this order. "NAME:input" means
        the input of a layer, such as the map before a ReLU. If a layer returns the tokens of a transformer, its patch
        tokens are arranged as a map, see `maps.as_map`.
    kind : {"stages", "stem and stages", "preactivations", "last"}
        Which maps to use without `layers`: the outputs of the stages, the same with the stem before them, the outputs
        of the stages before their last ReLU, or only the last map, which the network averages to its features. For a
        network with one map per resolution, the first three are the same.

    Attributes
    ----------
    layer_sizes : list of (str, (int, int))
        For each map, the name of the layer that returns it, and the height and width of the map.
    shapes : list of (int, int, int)
        Channels, height and width of each map.

    Raises
    ------
    ValueError
        If the network has no layer of a given name, or if the layer returns neither a feature map nor tokens.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> model = pckd.create_model("resnet8", num_classes=10)
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> maps = pckd.models.FeatureMaps(model, x)
    >>> maps.shapes
    [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    >>> output = maps(model, x)
    >>> output.maps[0].shape
    torch.Size([1, 16, 32, 32])
    """

    def __init__(
        self, model: Classifier, example: Tensor, layers: Sequence[str] | None = None, kind: MapKind = "stages"
    ):
        self.model = model
        modules = dict(model.named_modules())
        if layers is None and kind == "last" and model.last_map:
            layers = [model.last_map]
        elif layers is None and model.stages:
            stem_and_stages = model.preactivations if kind == "preactivations" else model.stages
            layers = stem_and_stages if kind == "stem and stages" else stem_and_stages[1:]
        if layers is not None:
            self._use_layers(example, layers, modules)
            return
        depths = {name: _nesting_depth(name, modules) for name in modules}
        example = example.to(next(model.parameters()).device)
        # resolution → nesting depth, layer name and channels of the last map of this resolution
        last_maps: dict[tuple[int, int], tuple[int, str, int]] = {}

        def record(name: str, output: Tensor) -> None:
            size = output.shape[2], output.shape[3]
            is_deeper = size in last_maps and depths[name] > last_maps[size][0]
            is_input = output.data_ptr() == example.data_ptr()  # for example, the output of nn.Identity
            if size != (1, 1) and not is_deeper and not is_input and _has_image_shape(size, example):
                last_maps.pop(size, None)  # the dict is then in the order of the last appearance
                last_maps[size] = depths[name], name, output.shape[1]

        was_training = model.training
        try:
            with torch.no_grad(), record_maps(model, modules, record):
                model.eval()(example)
        finally:
            model.train(was_training)
        if kind == "last":
            last_maps = dict(list(last_maps.items())[-1:])
        self.layer_sizes = [(name, size) for size, (_, name, _) in last_maps.items()]
        self.shapes = [(channels, *size) for size, (_, _, channels) in last_maps.items()]

    places = renamed_attribute("places", "layer_sizes")

    def _use_layers(self, example: Tensor, layers: Sequence[str], modules: dict[str, nn.Module]) -> None:
        """Run the example to find the shapes of the maps of the given layers."""
        for name in layers:
            if name.removesuffix(INPUT) not in modules:
                others = [other for other in modules if other.count(".") <= name.count(".") and other]
                raise ValueError(f"the network has no layer {name!r}; it has {', '.join(others[:20])}")
        found: dict[str, Tensor] = {}
        was_training = self.model.training
        try:
            with torch.no_grad(), record_maps(self.model, layers, found.__setitem__):
                self.model.eval()(example.to(next(self.model.parameters()).device))
        finally:
            self.model.train(was_training)
        if missing := [name for name in layers if name not in found]:
            raise ValueError(
                f"layer {missing[0]!r} returns neither a feature map of shape (N, C, H, W) nor at least 4 tokens of "
                "shape (N, T, D): choose another layer"
            )
        self.layer_sizes = [(name, (found[name].shape[2], found[name].shape[3])) for name in layers]
        self.shapes = [(found[name].shape[1], *size) for name, size in self.layer_sizes]

    def __call__(self, forward: Callable[[Tensor], Output], x: Tensor) -> Output:
        """Return `forward(x)` with its feature maps in `Output.maps`.

        Parameters
        ----------
        forward : callable
            The network itself, or its compiled forward pass. It takes `x` and returns an `Output`.
        x : Tensor of shape (N, C, H, W)

        Returns
        -------
        Output

        Raises
        ------
        ValueError
            If a layer does not return a map of the same height and width as for `example`.
        """
        found: dict[tuple[str, tuple[int, int]], Tensor] = {}

        def record(name: str, output: Tensor) -> None:
            found[name, (output.shape[2], output.shape[3])] = output

        with record_maps(self.model, [name for name, _ in self.layer_sizes], record):
            output = forward(x)
        if missing := [name for name, size in self.layer_sizes if (name, size) not in found]:
            raise ValueError(
                f"layer '{missing[0]}' did not return a map of the same size as for the example: give images of the "
                "size of the example"
            )
        return output._replace(maps=tuple(found[layer_and_size] for layer_and_size in self.layer_sizes))


@contextmanager
def record_maps(model: nn.Module, names: Iterable[str], record: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `record(name, map)` for each feature map that one of these layers returns, or takes if ":input" follows.

    Parameters
    ----------
    model : nn.Module
    names : iterable of str
        Names of layers, as in `model.named_modules()`.
    record : callable
        It is called in every forward pass inside the `with` block.
    """

    def register(name: str) -> RemovableHandle:
        def hook(layer: nn.Module, *values: Any) -> None:
            value = values[0][0] if name.endswith(INPUT) else values[-1]  # (inputs,) or (inputs, output)
            if isinstance(value, Tensor) and (found := as_map(value)) is not None:
                record(name, found)

        layer = model.get_submodule(name.removesuffix(INPUT))
        return layer.register_forward_pre_hook(hook) if name.endswith(INPUT) else layer.register_forward_hook(hook)

    handles = [register(name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_image_shape(size: tuple[int, int], image: Tensor) -> bool:
    """Return whether a size is square, or proportional to that of an image with a tolerance of one pixel.

    Attention layers have outputs with four dimensions that are not feature maps: (N, heads, T, D).
    """
    (height, width), (image_height, image_width) = size, image.shape[2:]
    return height == width or abs(height * image_width - width * image_height) <= max(image_height, image_width)


def as_map(output: Tensor) -> Tensor | None:
    """Return the output of a layer as a feature map.

    Tokens of a transformer become a square map of height and width H, the largest whole number with H² ≤ T. The last H²
    tokens are used, because they belong to the patches of the image. The first tokens, such as the class token, are
    left out.

    Parameters
    ----------
    output : Tensor of shape (N, C, H, W), or (N, T, D)
        A feature map, or T tokens of length D.

    Returns
    -------
    Tensor of shape (N, C, H, W) or (N, D, H, H), or None
        None for any other shape, and for fewer than four tokens.
    """
    if output.ndim == 4:
        return output
    if output.ndim != 3 or output.shape[1] < 4:
        return None
    side = isqrt(output.shape[1])
    patches = output[:, output.shape[1] - side**2 :]
    return patches.transpose(1, 2).unflatten(2, (side, side))


def _nesting_depth(name: str, modules: dict[str, nn.Module]) -> int:
    """Count the modules that contain this one. Modules of type nn.Sequential are not counted."""
    parts = name.split(".")
    parents = (modules[".".join(parts[:length])] for length in range(1, len(parts)))
    return sum(not isinstance(module, nn.Sequential) for module in parents)

"""Feature maps of any network, by hooks: the last one of every resolution, or those of the layers that you name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isqrt

import torch
from torch import Tensor, nn

from .output import Classifier, Output


class FeatureMaps:
    """Takes the feature maps out of a network's forward passes.

    Which ones is found by running `example`, (1, C, H, W), once, in eval mode: of every resolution larger than one
    pixel, the last map that is not an inner part of a block (of the least nested modules, where nn.Sequential does not
    count as nesting, the last to give one). So networks of any depth have one map a resolution, before each reduction,
    in order of appearance; a ReLU that is no module comes after the map that it acts on. No hook outlives a call.

    layers: names as in `model.named_modules()`; then their outputs are the maps, in this order. The tokens of a
    transformer, (N, T, D), become a map (N, D, H, W) without those that come before the patches.
    Raises ValueError for a layer that there is not, or whose output is no map.
    """

    def __init__(self, model: Classifier, example: Tensor, layers: Sequence[str] | None = None):
        self.model = model
        modules = dict(model.named_modules())
        if layers is not None:
            self._find(example, layers, modules)
            return
        nesting = {name: _nesting(name, modules) for name in modules}
        example = example.to(next(model.parameters()).device)
        last: dict[tuple[int, int], tuple[int, str, int]] = {}  # resolution → nesting, name, channels

        def note(name: str, output: Tensor) -> None:
            size = output.shape[2], output.shape[3]
            deeper = size in last and nesting[name] > last[size][0]
            if size != (1, 1) and not deeper and output.data_ptr() != example.data_ptr():
                last.pop(size, None)  # so that the order is that of the last appearance
                last[size] = nesting[name], name, output.shape[1]

        was_training = model.training
        try:
            with torch.no_grad(), _listen(model, modules, note):
                model.eval()(example)
        finally:
            model.train(was_training)
        self.places = [(name, size) for size, (_, name, _) in last.items()]
        self.shapes = [(channels, *size) for size, (_, _, channels) in last.items()]

    def _find(self, example: Tensor, layers: Sequence[str], modules: dict[str, nn.Module]) -> None:
        """Run the example to see what the named layers give."""
        for name in layers:
            if name not in modules:
                inner = [known for known in modules if known.count(".") <= name.count(".") and known]
                raise ValueError(f"the network has no layer {name!r}; it has {', '.join(inner[:20])}")
        found: dict[str, Tensor] = {}
        was_training = self.model.training
        try:
            with torch.no_grad(), _listen(self.model, layers, found.__setitem__):
                self.model.eval()(example.to(next(self.model.parameters()).device))
        finally:
            self.model.train(was_training)
        if missing := [name for name in layers if name not in found]:
            raise ValueError(
                f"layer {missing[0]!r} gives no feature map: (N, C, H, W), or tokens (N, T, D) of a square"
            )
        self.places = [(name, (found[name].shape[2], found[name].shape[3])) for name in layers]
        self.shapes = [(found[name].shape[1], *size) for name, size in self.places]

    def __call__(self, forward: Callable[[Tensor], Output], x: Tensor) -> Output:
        """forward(x) with the maps that the network made within it. Raises ValueError where one of them is missing."""
        found: dict[tuple[str, tuple[int, int]], Tensor] = {}

        def note(name: str, output: Tensor) -> None:
            found[name, (output.shape[2], output.shape[3])] = output

        with _listen(self.model, [name for name, _ in self.places], note):
            output = forward(x)
        if missing := [name for name, size in self.places if (name, size) not in found]:
            raise ValueError(f"layer '{missing[0]}' gave no map of the size it had on the example: show images alike")
        return output._replace(maps=tuple(found[place] for place in self.places))


@contextmanager
def _listen(model: nn.Module, names: Iterable[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """note(name, map) whenever one of these layers gives a feature map within the block."""

    def hook(name: str) -> Callable:
        def call(layer: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and (found := as_map(output)) is not None:
                note(name, found)

        return call

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_map(output: Tensor) -> Tensor | None:
    """A layer's output as (N, C, H, W): as it is, or tokens (N, T, D), of which the last H·H are patches; else None."""
    if output.ndim == 4:
        return output
    if output.ndim != 3 or output.shape[1] < 4:
        return None
    side = isqrt(output.shape[1])
    patches = output[:, output.shape[1] - side**2 :]
    return patches.transpose(1, 2).unflatten(2, (side, side))


def _nesting(name: str, modules: dict[str, nn.Module]) -> int:
    """How many modules that are no nn.Sequential a module lies in."""
    parts = name.split(".")
    around = (modules[".".join(parts[:length])] for length in range(1, len(parts)))
    return sum(not isinstance(module, nn.Sequential) for module in around)

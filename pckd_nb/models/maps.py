"""Feature maps of any network, by hooks: the last one of every resolution."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .output import Classifier, Output


class FeatureMaps:
    """Takes the feature maps out of a network's forward passes.

    Which ones is found by running `example`, (1, C, H, W), once, in eval mode: of every resolution larger than one
    pixel, the last map that is not an inner part of a block (of the least nested modules, where nn.Sequential does not
    count as nesting, the last to give one). So networks of any depth have one map a resolution, before each reduction,
    in order of appearance; a ReLU that is no module comes after the map that it acts on. It is meant for
    convolutional networks, whose maps are (N, C, H, W); no hook outlives a call.
    """

    def __init__(self, model: Classifier, example: Tensor):
        self.model = model
        modules = dict(model.named_modules())
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
    """note(name, output) whenever one of these layers gives something four-dimensional within the block."""

    def hook(name: str) -> Callable:
        def call(layer: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                note(name, output)

        return call

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nesting(name: str, modules: dict[str, nn.Module]) -> int:
    """How many modules that are no nn.Sequential a module lies in."""
    parts = name.split(".")
    around = (modules[".".join(parts[:length])] for length in range(1, len(parts)))
    return sum(not isinstance(module, nn.Sequential) for module in around)

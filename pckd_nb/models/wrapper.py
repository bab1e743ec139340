"""Any network that ends in a linear layer, as it is: torchvision's, timm's or your own."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..faults import sound_strides
from ..messages import one_line
from .output import Classifier, Output
from .training_data import TrainingData

WHAT_IS_NEEDED = "PCKD needs the network to end in an nn.Linear whose input is one vector an image"


TRAINED_ON = "pckd_trained_on"  # attribute of a module that is not a Classifier


class WrappedClassifier(Classifier):
    """Made by `as_classifier`. `module` is the network itself; state dicts have its own names."""

    def __init__(self, module: nn.Module, head_name: str):
        super().__init__()
        self.module, self.head_name = module, head_name

    @property
    def head(self) -> nn.Linear:
        return cast(nn.Linear, self.module.get_submodule(self.head_name))

    @property
    def trained_on(self) -> TrainingData | None:
        """Kept by the module, so that another wrapper of it knows."""
        found: TrainingData | None = getattr(unwrapped(self.module), TRAINED_ON, None)
        return found

    @trained_on.setter
    def trained_on(self, data: TrainingData | None) -> None:
        setattr(unwrapped(self.module), TRAINED_ON, data)

    def features(self, x: Tensor) -> Tensor:
        return self(x).features

    def forward(self, x: Tensor) -> Output:
        """Raises ValueError where the last layer turns out not to be the network's last."""
        with sound_strides(self.module), _watch(self.module, [self.head_name]) as calls:
            result = self.module(x)
        head, (name, seen) = self.head, *calls.items()
        if len(seen) != 1:
            raise ValueError(f"layer '{name}' ran {len(seen)} times in one forward pass, not once: {WHAT_IS_NEEDED}")
        features, logits = seen[0]
        if features.ndim != 2:
            raise ValueError(f"layer '{name}' takes values of shape {tuple(features.shape)}: {WHAT_IS_NEEDED}")
        if not _same_values(result, logits):
            raise ValueError(
                f"the network's result is not what its layer '{name}' gives: either another layer is its last "
                "(name it by head=…) or something follows it, such as a softmax or an average of heads (leave it out)"
            )
        return Output(features, logits, head.weight, head.bias)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(state_dict, *args, **kwargs)


def as_classifier(module: nn.Module, head: str | None = None, example: Tensor | None = None) -> Classifier:
    """`module`, unedited, as a classifier whose every call gives an `Output`.

    Its last `nn.Linear`, in the order of registration, is taken for the last layer: its input for the features, its
    weight for the category centers. Where several layers could be the last, name one by `head`, as in
    `module.named_modules()`, or give an `example` of the images, (N, C, H, W): it is run once to see whose output is
    the network's. No hook outlives a call.
    Raises ValueError where there is no such layer, or several and nothing to choose by, saying what was found;
    TypeError for what is not a network.
    """
    if not isinstance(example, Tensor | None):
        raise TypeError(f"example must be a tensor of images, got {type(example).__name__}")
    if not isinstance(module, nn.Module):
        made = f"write {module.__name__}(...), not {module.__name__}" if callable(module) else "create_model makes one"
        raise TypeError(f"a network must be an nn.Module, got {type(module).__name__}: {made}")
    inner = unwrapped(module)
    if isinstance(inner, Classifier):
        return inner
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    kind = type(module).__name__
    if not layers:
        last = list(module.named_modules())[-1]
        raise ValueError(f"{kind} has no nn.Linear (its last layer is '{last[0]}', {last[1]}): {WHAT_IS_NEEDED}")
    if head is not None:
        if head not in layers:
            raise ValueError(f"{kind} has no linear layer '{head}'; it has {_listed(layers)}")
    elif example is not None:
        head = _find_by_running(module, layers, example)
    else:
        rivals = possible_heads(module)
        head = rivals[-1]
        if len(rivals) > 1:
            raise ValueError(
                f"{kind} has {len(rivals)} linear layers with {layers[head].out_features} outputs: {_listed(rivals)}; "
                "name its last one by head=…, or show it an image by example=…"
            )
    return WrappedClassifier(module, head)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network within torch.compile, DataParallel, DistributedDataParallel and AveragedModel."""
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel
    while True:
        inner = module.module if isinstance(module, parallel) else getattr(module, "_orig_mod", module)
        if inner is module:
            return module
        module = inner


def possible_heads(module: nn.Module) -> list[str]:
    """Names of the linear layers with as many outputs as the last one.

    One before the last may be another head: an auxiliary one, or one for distillation tokens.
    """
    layers = {name: layer.out_features for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return [name for name, outputs in layers.items() if outputs == [*layers.values()][-1]]


def _find_by_running(module: nn.Module, layers: Mapping[str, nn.Linear], example: Tensor) -> str:
    was_training = module.training
    try:
        with torch.no_grad(), _watch(module, layers) as calls:
            result = module.eval()(example)
    except RuntimeError as error:
        raise ValueError(f"example can't be run through the network: {one_line(error)}") from error
    finally:
        module.train(was_training)
    found = [name for name, seen in calls.items() if any(_same_values(result, output) for _, output in seen)]
    if not found:
        raise ValueError(
            f"no linear layer of {type(module).__name__} gives the network's result; it has {_listed(layers)}: "
            "does a softmax follow the last one, or an average of two heads? Leave it out, or take a network without it"
        )
    return found[-1]


@contextmanager
def _watch(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """(input, output) of every call of the named layers within the block; no hook is left behind."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: calls[name].append((inputs[0], output))
        )
        for name in calls
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _same_values(result: Any, output: Tensor) -> bool:
    """Whether a network's result is this layer's output, perhaps seen through a view; reads no values."""
    if isinstance(result, tuple):  # with auxiliary heads, the main one comes first
        result = result[0]
    same_place = isinstance(result, Tensor) and result.data_ptr() == output.data_ptr()
    return same_place and result.shape == output.shape


def _listed(names: Iterable[str]) -> str:
    """At most six names, the last ones."""
    names = [repr(name) for name in names]
    return ", ".join(names if len(names) <= 6 else ["…", *names[-6:]])

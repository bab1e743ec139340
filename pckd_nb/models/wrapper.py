"""Use any network that ends in a linear layer: from torchvision, from timm, or your own. Its code is not changed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..faults import safe_strides
from ..messages import one_line
from .output import Classifier, Output
from .training_data import TrainingData

REQUIREMENT = "PCKD needs a network that ends in an nn.Linear, with one feature vector per image as its input"

TRAINED_ON = "pckd_trained_on"  # attribute for the `TrainingData` of a module that is not a Classifier


class WrappedClassifier(Classifier):
    """A wrapper that makes a module of any library a `Classifier`. `as_classifier` returns it.

    State dicts use the parameter names of `module`.

    Parameters
    ----------
    module : nn.Module
        The network itself.
    head_name : str
        Name of its last layer, as in `module.named_modules()`.
    """

    def __init__(self, module: nn.Module, head_name: str):
        super().__init__()
        self.module, self.head_name = module, head_name

    @property
    def head(self) -> nn.Linear:
        """Return the last layer of `module`."""
        return cast(nn.Linear, self.module.get_submodule(self.head_name))

    @property
    def trained_on(self) -> TrainingData | None:
        """Return the training data. They are stored in `module`, so every wrapper of `module` has the same."""
        trained_on: TrainingData | None = getattr(unwrap(self.module), TRAINED_ON, None)
        return trained_on

    @trained_on.setter
    def trained_on(self, data: TrainingData | None) -> None:
        setattr(unwrap(self.module), TRAINED_ON, data)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features, shape (N, D). This runs the whole network, including the last layer."""
        return self(x).features

    def forward(self, x: Tensor) -> Output:
        """Run the network.

        Parameters
        ----------
        x : Tensor of shape (N, channels, height, width)
            Normalised images.

        Returns
        -------
        Output

        Raises
        ------
        ValueError
            If the result of the network is not the output of the layer `head_name`.
        """
        # safe_strides avoids a bug of torch in some strided convolutions, see docs/torch_fault.md
        with safe_strides(self.module), _record_calls(self.module, [self.head_name]) as calls:
            result = self.module(x)
        head, name = self.head, self.head_name
        recorded = calls[name]
        if len(recorded) != 1:
            raise ValueError(f"layer '{name}' ran {len(recorded)} times in one forward pass, not once: {REQUIREMENT}")
        features, logits = recorded[0]
        if features.ndim != 2:
            raise ValueError(f"the input of layer '{name}' has shape {tuple(features.shape)}: {REQUIREMENT}")
        if not _is_same_tensor(result, logits):
            raise ValueError(
                f"the result of the network is not the output of its layer '{name}': if another layer is the last one, "
                "give its name as head=…; if a softmax or an average of heads follows, remove it"
            )
        return Output(features, logits, head.weight, head.bias)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of `module`."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of `module`."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)


def as_classifier(module: nn.Module, head: str | None = None, example: Tensor | None = None) -> Classifier:
    """Wrap any network that ends in a linear layer, so that it is a `Classifier`. The network is not changed.

    Calling the classifier returns an `Output`. Its features are the input of the last linear layer, and its centers
    are the weight of that layer.

    Parameters
    ----------
    module : nn.Module
        A network of torchvision, of timm or your own. A `Classifier` is returned as it is.
    head : str, optional
        Name of the last layer, as in `module.named_modules()`. Not needed if `example` is given, or if only one layer
        could be the last one.
    example : Tensor of shape (N, C, H, W), optional
        Images. If `head` is not given, the network runs once on these images to find its last layer.

    Returns
    -------
    Classifier

    Raises
    ------
    TypeError
        If `module` is not an nn.Module or `example` is not a tensor.
    ValueError
        If there is no linear layer or none of the name `head`, if several layers could be the last one and neither
        `head` nor `example` is given, or if the network cannot run on `example`.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> from torch import nn
    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    >>> model = pckd.as_classifier(module)
    >>> model.head_name, model.num_features
    ('3', 16)
    >>> model(torch.zeros(2, 1, 8, 8)).features.shape
    torch.Size([2, 16])
    """
    if not isinstance(example, Tensor | None):
        raise TypeError(f"example must be a tensor of images, got {type(example).__name__}")
    if not isinstance(module, nn.Module):
        hint = "create_model(NAME, data) makes a network"
        if callable(module):
            hint = f"write {module.__name__}(...), not {module.__name__}"
        raise TypeError(f"a network must be an nn.Module, got {type(module).__name__}: {hint}")
    inner = unwrap(module)
    if isinstance(inner, Classifier):
        return inner
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    kind = type(module).__name__
    if not layers:
        last = list(module.named_modules())[-1]
        raise ValueError(f"{kind} has no nn.Linear (its last layer is '{last[0]}', {last[1]}): {REQUIREMENT}")
    if head is not None:
        if head not in layers:
            raise ValueError(f"{kind} has no linear layer '{head}'; it has {_quoted(layers)}")
    elif example is not None:
        head = _find_head_by_running(module, layers, example)
    else:
        candidates = possible_heads(module)
        head = candidates[-1]
        if len(candidates) > 1:
            raise ValueError(
                f"{kind} has {len(candidates)} linear layers with {layers[head].out_features} outputs: "
                f"{_quoted(candidates)}; give the name of the last one as head=…, or images as example=…"
            )
    return WrappedClassifier(module, head)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside the wrappers torch.compile, DataParallel, DistributedDataParallel and AveragedModel."""
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel
    while True:
        inner = module.module if isinstance(module, parallel) else getattr(module, "_orig_mod", module)
        if inner is module:
            return module
        module = inner


def possible_heads(module: nn.Module) -> list[str]:
    """Return the names of the linear layers with as many outputs as the last one.

    Those before the last one may be other heads, such as auxiliary heads or a head for distillation tokens.
    """
    layers = {name: layer.out_features for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return [name for name, outputs in layers.items() if outputs == [*layers.values()][-1]]


def _find_head_by_running(module: nn.Module, layers: Mapping[str, nn.Linear], example: Tensor) -> str:
    was_training = module.training
    try:
        with torch.no_grad(), _record_calls(module, layers) as calls:
            result = module.eval()(example)
    except RuntimeError as error:
        raise ValueError(f"the network can't run on example: {one_line(error)}") from error
    finally:
        module.train(was_training)
    found = [name for name, recorded in calls.items() if any(_is_same_tensor(result, output) for _, output in recorded)]
    if not found:
        raise ValueError(
            f"the result of {type(module).__name__} is not the output of a linear layer; it has {_quoted(layers)}: "
            "if a softmax or an average of heads follows the last one, remove it or use another network"
        )
    return found[-1]


@contextmanager
def _record_calls(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record (input, output) of every call of the named layers inside the `with` block."""
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


def _is_same_tensor(result: Any, output: Tensor) -> bool:
    """Return whether two tensors have the same shape and the same memory address. Values are not compared."""
    if isinstance(result, tuple):  # from a network with auxiliary heads: the main result comes first
        result = result[0]
    same_place = isinstance(result, Tensor) and result.data_ptr() == output.data_ptr()
    return same_place and result.shape == output.shape


def _quoted(names: Iterable[str]) -> str:
    """Return the last six names, or all if there are fewer, in quotation marks."""
    names = [repr(name) for name in names]
    return ", ".join(names if len(names) <= 6 else ["…", *names[-6:]])

"""What PCKD needs to know of a network, and the last layer all networks here share."""

from collections.abc import Callable
from typing import NamedTuple, cast

from torch import Tensor, nn

from ..html import table
from ..short_help import ShortHelpModule
from .training_data import TrainingData


class Output(NamedTuple):
    """One forward pass, seen from the last fully connected layer.

    features: (N, D) its input, after pooling · logits: (N, C) · centers: (C, D) its weight, row c being the
    category center of class c · bias: (C,), or None · maps: feature maps, (N, C', H, W) each, one a resolution from
    the largest, where a method needs them.
    """

    features: Tensor
    logits: Tensor
    centers: Tensor
    bias: Tensor | None
    maps: tuple[Tensor, ...] = ()

    def detach(self) -> "Output":
        """The same values, cut from the graph: what a teacher gives."""
        return self._each(Tensor.detach)

    def float(self) -> "Output":
        """16-bit values in float32: what leaves a network that computed in bfloat16."""
        return self._each(lambda x: x.float() if x.itemsize == 2 else x)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Output":
        bias = self.bias if self.bias is None else change(self.bias)
        return Output(
            change(self.features), change(self.logits), change(self.centers), bias, tuple(map(change, self.maps))
        )


class Classifier(ShortHelpModule):
    """A network that ends in a linear layer; subclasses compute its input, `features(x)`, (N, D)."""

    head_name = "fc"  # where the published checkpoints keep the last layer
    name: str | None = None  # what `create_model` calls the network
    weights_from: str | None = None  # the checkpoint or run it was loaded from
    trained_on: TrainingData | None = None  # None: not trained, or loaded from a file that does not say

    def features(self, x: Tensor) -> Tensor:
        """(N, channels, height, width), normalised images -> (N, D), the input of the last layer."""
        raise NotImplementedError

    def output(self, features: Tensor) -> Output:
        """What the last layer makes of features, (N, D)."""
        head = self.head
        return Output(features, head(features), head.weight, head.bias)

    def forward(self, x: Tensor) -> Output:
        """(N, channels, height, width), normalised images -> what PCKD needs of a pass, see `Output`."""
        return self.output(self.features(x))

    @property
    def head(self) -> nn.Linear:
        """The last layer, whose weight holds the category centers."""
        return cast(nn.Linear, self.get_submodule(self.head_name))

    def _repr_html_(self) -> str:
        """Return what a notebook shows for a cell that ends in a network."""
        rows = {
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            "features": self.feature_width,
            "classes": self.num_classes,
            "last layer": self.head_name,
            "weights": self.weights_from or "not loaded from a file",
            **({"trained on": self.trained_on.name} if self.trained_on and self.trained_on.name else {}),
        }
        return table(self.name or type(self).__name__, rows)

    @property
    def feature_width(self) -> int:
        """D, the length of a feature and of a category center."""
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        """C, how many categories the last layer knows."""
        return self.head.out_features


def he_normal_(model: nn.Module) -> None:
    """Draw the convolutions' weights as He et al. (2015) do for ReLU networks, by the channels they feed."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

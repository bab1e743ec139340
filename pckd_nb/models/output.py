"""What PCKD needs to know of a network, and the last layer all networks here share."""

from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    """One forward pass, seen from the last fully connected layer.

    features: (N, D) its input, after pooling · logits: (N, C) · centers: (C, D) its weight, row c being the
    category center of class c · bias: (C,), or None.
    """

    features: Tensor
    logits: Tensor
    centers: Tensor
    bias: Tensor | None

    def detach(self) -> "Output":
        """The same values, cut from the graph: what a teacher gives."""
        return Output(*(None if x is None else x.detach() for x in self))

    def float(self) -> "Output":
        """16-bit values in float32: what leaves a network that computed in bfloat16."""
        return Output(*(x.float() if x is not None and x.itemsize == 2 else x for x in self))


class Classifier(nn.Module):
    """A network that ends in a linear layer `fc`; subclasses compute `features(x)`, (N, D)."""

    fc: nn.Linear
    name: str | None = None  # what `create_model` calls it

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Output:
        features = self.features(x)
        return Output(features, self.fc(features), self.fc.weight, self.fc.bias)

    @property
    def feature_width(self) -> int:
        return self.fc.in_features

    @property
    def num_classes(self) -> int:
        return self.fc.out_features

"""The base class of all networks of this package, and what a forward pass returns."""

from collections.abc import Callable
from typing import NamedTuple, cast

from torch import Tensor, nn

from ..html import table
from ..short_help import ShortHelpModule
from .training_data import TrainingData


class Output(NamedTuple):
    """The result of one forward pass: logits, penultimate features, and the weight of the last layer.

    N is the number of images, D the length of a feature vector, and C the number of classes.

    Parameters
    ----------
    features : Tensor of shape (N, D)
        Penultimate features: the input of the last linear layer.
    logits : Tensor of shape (N, C)
        Output of the last linear layer.
    centers : Tensor of shape (C, D)
        Weight of the last linear layer. Row c is the category center of class c.
    bias : Tensor of shape (C,), or None
        Bias of the last linear layer.
    maps : tuple of Tensor of shape (N, channels, height, width)
        Feature maps, in the order of `models.FeatureMaps`. Empty unless the method needs them.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> model = pckd.create_model("resnet8", num_classes=10)
    >>> output = model(torch.zeros(2, 3, 32, 32))
    >>> output.features.shape, output.logits.shape, output.centers.shape
    (torch.Size([2, 64]), torch.Size([2, 10]), torch.Size([10, 64]))
    """

    features: Tensor
    logits: Tensor
    centers: Tensor
    bias: Tensor | None
    maps: tuple[Tensor, ...] = ()

    def detach(self) -> "Output":
        """Return the same values, detached from the graph: no gradients flow back through them."""
        return _map_tensors(self, Tensor.detach)

    def float(self) -> "Output":
        """Return the same values, with 16-bit tensors converted to float32."""
        return _map_tensors(self, lambda x: x.float() if x.itemsize == 2 else x)


def _map_tensors(output: Output, change: Callable[[Tensor], Tensor]) -> Output:
    features, logits, centers, bias, maps = output
    changed_bias = None if bias is None else change(bias)
    return Output(change(features), change(logits), change(centers), changed_bias, tuple(map(change, maps)))


class Classifier(ShortHelpModule):
    """A network that ends in a linear layer. Calling it returns an `Output`.

    A subclass computes the input of that layer in `features(x)`. `create_model` and `as_classifier` return objects of
    this class.

    Attributes
    ----------
    head_name : str
        Name of the last layer, as in `named_modules()`.
    name : str or None
        Name that was given to `create_model`.
    weights_from : str or None
        Checkpoint or run that the weights were loaded from.
    trained_on : TrainingData or None
        Classes, normalisation and image size of the data that the network was trained on. None if it was not trained,
        or if its checkpoint does not contain this information.
    stages : tuple of str
        Names of the layers whose outputs distillation papers compare: first the stem, which is all layers before the
        first stage, then every stage. `models.FeatureMaps` uses them. Empty if they are not known.
    preactivations : tuple of str
        Names of the layers that give the same maps before the last ReLU. "NAME:input" means the input of a layer
        instead of its output.
    norms : tuple of str
        Names of the BatchNorm layers before the last ReLU of each stage, without the stem. OFD reads their weights.
    last_map : str
        Name of the layer whose output, averaged over its pixels, gives the features. Empty if it is not known.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from pckd_nb.models import Classifier
    >>> class Small(Classifier):
    ...     def __init__(self, num_classes, in_channels):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(in_channels, 8, 3)
    ...         self.fc = nn.Linear(8, num_classes)
    ...     def features(self, x):
    ...         return self.conv(x).relu().mean((2, 3))
    >>> model = Small(num_classes=10, in_channels=3)
    >>> model(torch.zeros(2, 3, 32, 32)).logits.shape
    torch.Size([2, 10])
    >>> model.num_features, model.num_classes
    (8, 10)
    """

    head_name = "fc"  # as in most published checkpoints
    name: str | None = None
    weights_from: str | None = None
    trained_on: TrainingData | None = None
    stages: tuple[str, ...] = ()
    preactivations: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    last_map: str = ""

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features, which are the input of the last layer.

        Parameters
        ----------
        x : Tensor of shape (N, channels, height, width)
            Normalised images.

        Returns
        -------
        Tensor of shape (N, D)
        """
        raise NotImplementedError

    def output(self, features: Tensor) -> Output:
        """Apply the last layer to features of shape (N, D)."""
        head = self.head
        return Output(features, head(features), head.weight, head.bias)

    def forward(self, x: Tensor) -> Output:
        """Run the network.

        Parameters
        ----------
        x : Tensor of shape (N, channels, height, width)
            Normalised images.

        Returns
        -------
        Output
        """
        return self.output(self.features(x))

    @property
    def head(self) -> nn.Linear:
        """Return the last layer. Its weight has the category centers as rows."""
        return cast(nn.Linear, self.get_submodule(self.head_name))

    @property
    def feature_width(self) -> int:
        """Return D, the length of a feature vector and of a category center."""
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        """Return C, the number of classes."""
        return self.head.out_features

    def repeat_last_stage(self) -> nn.Module:
        """Return a new last stage that can follow the last stage, with random weights.

        It has the layers of the last stage. Its input and its output have the shape of the last stage's output.
        `models.auxiliary.auxiliary_heads` needs it. A network that has `stages` and this method promises two things:
        its layers are registered in the order in which they run, and everything before the last stage is a layer.

        Returns
        -------
        nn.Module

        Raises
        ------
        ValueError
            If the network does not define it.
        """
        raise ValueError(f"{type(self).__name__} has no repeat_last_stage: choose a network of this package")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return `features(x)`. The timm method of this name returns a feature map instead, before pooling."""
        return self.features(x)

    def get_classifier(self) -> nn.Linear:
        """Return `head`. This is the method's name in timm."""
        return self.head

    @property
    def num_features(self) -> int:
        """Return `feature_width`. This is its name in timm."""
        if "num_features" in vars(self):
            return cast(int, vars(self)["num_features"])
        return self.feature_width

    @num_features.setter
    def num_features(self, value: int) -> None:
        vars(self)["num_features"] = value  # a subclass may set an attribute of this name in its __init__

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows for a network."""
        rows = {
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            "features": self.feature_width,
            "classes": self.num_classes,
            "last layer": self.head_name,
            "weights": self.weights_from or "not loaded from a file",
            **({"trained on": self.trained_on.name} if self.trained_on and self.trained_on.name else {}),
        }
        return table(self.name or type(self).__name__, rows)


def he_normal_(model: nn.Module, linear_std: float | None = None) -> None:
    r"""Initialise the weights of all convolutions in place, from a normal distribution that suits ReLU.

    Biases of convolutions become 0.

    .. math:: w \sim \mathcal{N}(0, 2 / n), \quad n = \text{output channels} \cdot \text{kernel height} \cdot
        \text{kernel width}

    Parameters
    ----------
    model : nn.Module
    linear_std : float, optional
        Standard deviation of the weights of linear layers, whose biases then become 0. None leaves linear layers as
        PyTorch initialises them.

    References
    ----------
    He et al., "Delving deep into rectifiers", arXiv 1502.01852. PyTorch calls n "fan_out".
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0, linear_std)
            nn.init.zeros_(module.bias)

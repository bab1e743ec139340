"""Auxiliary heads: copies of the later layers of a network, which classify one of its feature maps."""

import copy
from collections.abc import Sequence

from torch import nn

from .output import Classifier, he_normal_
from .preprocessing import Preprocessed


def auxiliary_heads(model: Classifier, layers: Sequence[str], num_classes: int) -> nn.ModuleList:
    """Return new networks that take the feature maps of a network, and end in a linear layer.

    A head has the layers that follow a stage in the network, with random weights. The head for the last stage repeats
    this stage, without stride. So every head is about as deep as the rest of the network, and has as many features.

    Parameters
    ----------
    model : Classifier
        It is not changed.
    layers : sequence of str
        Entries of `model.stages`, one per head. The head takes the output of this layer.
    num_classes : int
        Number of outputs of every head.

    Returns
    -------
    ModuleList of Classifier
        On the CPU. Calling a head with a feature map returns an `Output`.

    Raises
    ------
    ValueError
        If the stages of the network are not known, or if a layer is not a stage. Both networks of this package and your
        own can have heads, see `Classifier.repeat_last_stage`.

    References
    ----------
    Yang et al., "Hierarchical Self-supervised Augmented Knowledge Distillation", arXiv 2107.13715.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> from pckd_nb.models.auxiliary import auxiliary_heads
    >>> model = pckd.create_model("resnet8", num_classes=10)
    >>> heads = auxiliary_heads(model, ["layer1", "layer3"], num_classes=40)
    >>> heads[0](torch.zeros(2, 16, 32, 32)).logits.shape, heads[1](torch.zeros(2, 64, 8, 8)).logits.shape
    (torch.Size([2, 40]), torch.Size([2, 40]))
    """
    while isinstance(model, Preprocessed):  # it would convert the maps as it converts images
        model, layers = model.model, [layer.removeprefix("model.") for layer in layers]
    if not model.stages:
        name = model.name or type(getattr(model, "module", model)).__name__
        raise ValueError(
            f"auxiliary heads are copies of the later stages of a network, and those of {name} are not known: choose a "
            "network of this package"
        )
    if unknown := [layer for layer in layers if layer not in model.stages]:
        raise ValueError(f"an auxiliary head follows one of the stages {', '.join(model.stages)}, got {unknown[0]!r}")
    heads = []
    for layer in layers:
        head = layers_after(model, layer)
        if layer == model.stages[-1]:
            head.set_submodule(layer, model.repeat_last_stage())
        head.set_submodule(head.head_name, nn.Linear(head.feature_width, num_classes))
        set_random_weights(head)
        heads.append(head)
    return nn.ModuleList(heads)


def layers_after(model: Classifier, layer: str) -> Classifier:
    """Return a copy of a network that takes the output of one of its layers instead of images.

    This layer and all layers before it become identities.

    Parameters
    ----------
    model : Classifier
        Its layers are registered in the order in which they run.
    layer : str
        Name as in `model.named_modules()`.

    Returns
    -------
    Classifier
    """
    copied = copy.deepcopy(model)
    names = [name for name, _ in model.named_modules()]
    for name in names[1 : names.index(layer) + 1]:
        parent = name.rpartition(".")[0]
        contains_layer = layer.startswith(f"{name}.")
        if not contains_layer and (not parent or layer.startswith(f"{parent}.")):
            copied.set_submodule(name, nn.Identity())
    return copied


def set_random_weights(model: nn.Module) -> None:
    """Draw new weights in place, on the CPU, and let all of them be trained.

    Convolutions are initialised by `he_normal_`, and other layers as PyTorch does it.

    Parameters
    ----------
    model : nn.Module

    Raises
    ------
    ValueError
        If a layer has weights, but no method `reset_parameters`.
    """
    for name, layer in model.cpu().requires_grad_(True).named_modules():  # on a GPU, the weights would be others
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
        elif [*layer.parameters(recurse=False)]:
            kind = type(layer).__name__
            raise ValueError(f"the layer {name!r} can't get new weights: add reset_parameters() to its class {kind}")
    he_normal_(model)

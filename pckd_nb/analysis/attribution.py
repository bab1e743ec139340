"""Grad-CAM: a coarse map of the places that raise the logit of a class."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..arguments import Network, as_dataset, as_network
from ..data import Dataset
from ..evaluation import check_classes, check_input, check_split, pixel_statistics
from ..models import FeatureMaps, match_input
from ..views import normalise


def grad_cam(
    model: Network,
    data: Dataset | str,
    rows: Sequence[int] | np.ndarray,
    classes: Sequence[int] | None = None,
    split: str = "test",
) -> np.ndarray:
    r"""Return Grad-CAM maps: where in an image a network sees evidence for a class.

    With the last feature map A of the network, of K channels and h × w positions, and the logit :math:`z_c`,

    .. math::

        \alpha_k = \frac{1}{hw} \sum_{i,j} \frac{\partial z_c}{\partial A_{kij}}
        \qquad
        M_{ij} = \max\Big(0, \sum_k \alpha_k A_{kij}\Big)

    The map M is enlarged to the size of the image (bilinear), and divided by its maximum. It is coarse: resnet8 has
    8 × 8 positions for an image of 32 × 32 pixels.

    Parameters
    ----------
    model : Classifier, Run, nn.Module, str or Path
        A string or Path is the folder of a run.
    data : Dataset or str
        A data set, or its name.
    rows : sequence of int
        Positions of the images in the split.
    classes : sequence of int, optional
        One class per image, counted from 0. By default, the correct classes. Pass the predicted classes to explain the
        decisions of a network.
    split : {"test", "train", "val"}

    Returns
    -------
    float32 array of shape (images, H, W), from 0 to 1
        All 0 if no part of an image speaks for the class.

    Raises
    ------
    ValueError
        If there is no such split, if a position or a class is out of range, if there is not one class per image, or if
        the network has no feature map.
    TypeError
        If an argument has the wrong type.

    References
    ----------
    Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> model = pckd.create_model("resnet8", data, seed=0)
    >>> pckd.analysis.grad_cam(model, data, rows=[0, 1]).shape
    (2, 16, 16)
    """
    network, data = as_network("model", model), as_dataset(data)
    check_split(data, split)
    images_of_split = getattr(data, split)
    index = _positions("rows", rows, len(images_of_split))
    labels = images_of_split.labels.cpu()
    targets = labels[index] if classes is None else _positions("classes", classes, data.num_classes)
    if len(targets) != len(index):
        raise ValueError(f"there must be one class per image, got {len(index)} images and {len(targets)} classes")
    check_classes(network, data)
    network = match_input(network, data)
    check_input(network, "network", data)
    device = next(network.parameters()).device
    mean, std = pixel_statistics(data, device)
    was_training = network.training
    network.eval()
    maps = FeatureMaps(network, torch.zeros(1, data.channels, *data.size), kind="last")
    if not maps.shapes:
        raise ValueError("the network has no feature map, so there is no Grad-CAM of it")
    found = []
    try:
        for images, wanted in zip(images_of_split.read(index.split(50)), targets.split(50), strict=True):
            with torch.enable_grad():
                output = maps(network, normalise(images.to(device), mean, std).requires_grad_())
                (last,) = output.maps
                logits = output.logits.gather(1, wanted.to(device)[:, None]).sum()
                (gradient,) = torch.autograd.grad(logits, last)
            cam = (gradient.mean((2, 3), keepdim=True) * last).sum(1, keepdim=True).relu().detach()
            cam = F.interpolate(cam.float(), data.size, mode="bilinear", align_corners=False)[:, 0]
            found.append((cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy())
    finally:
        network.train(was_training)
    return np.concatenate(found)


def _positions(name: str, values: Sequence[int] | np.ndarray, count: int) -> torch.Tensor:
    """Return whole numbers from 0 to count − 1 as a tensor. Raise TypeError or ValueError for anything else."""
    array = np.asarray(values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be a list of whole numbers, got {type(values).__name__} {str(values):.60}")
    if array.min() < 0 or array.max() >= count:
        raise ValueError(f"{name} must be from 0 to {count - 1}, got {array.min()} to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))

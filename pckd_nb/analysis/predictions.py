"""Predictions of trained networks, image by image: for new images, and compared with another network."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from ..arguments import Network, as_dataset, as_network, as_run
from ..data import Dataset
from ..data.folders import read_images
from ..data.own import Workers
from ..evaluation import Predictions, images_per_batch, make_fabric, predict, run_batches
from ..paths import user_path
from ..runs import Run, readable_name
from ..validation import checked
from .statistics import holm, mcnemar

OUTCOMES = ("both right", "only a", "only b", "both wrong")


class Agreement(NamedTuple):
    """Agreement of two networks, a and b, on the images of a split.

    Parameters
    ----------
    samples : DataFrame
        One row per image, in the order of the split. The columns are:

        - id: name of the image, such as its file name, if the images have names,
        - label, a and b: the correct class, and the classes that the networks predict,
        - outcome: "both right", "only a", "only b" (is right) or "both wrong".
    counts : Series
        Number of images by outcome.
    p_value : float
        Of McNemar's test, see `mcnemar`.
    same_prediction : float
        Percentage of images for which both networks predict the same class, right or wrong.
    classes : DataFrame
        One row per class. The columns are:

        - class: its name,
        - images: number of images of this class,
        - a, b and difference: percentage of these images on which each network is right, and a minus b in percentage
          points. NaN without images,
        - only_a and only_b: number of images on which only this network is right,
        - p: p-value of McNemar's test on the images of this class. NaN without images,
        - p_holm: p corrected for the number of classes, see `holm`.
    """

    samples: pd.DataFrame
    counts: pd.Series
    p_value: float
    same_prediction: float
    classes: pd.DataFrame


class Fidelity(NamedTuple):
    """How closely a student matches the predictions of its teacher, see `fidelity`.

    Parameters
    ----------
    agreement : float
        Percentage of images for which both predict the same class, right or wrong.
    kl : float, in nats
        Mean Kullback-Leibler divergence of the student's probabilities from the teacher's. At least 0.
    """

    agreement: float
    kl: float


def fidelity(student: Network, teacher: Network, data: Dataset | str, split: str = "test", **options: Any) -> Fidelity:
    r"""Return how closely a student matches the predictions of its teacher.

    .. math::
        \text{agreement} = \frac{100}{N} \sum_i
        \mathbb{1}\left[\operatorname{argmax}_c s_{ic} = \operatorname{argmax}_c t_{ic}\right],
        \qquad \text{KL} = \frac{1}{N} \sum_i \sum_c t_{ic} \left(\ln t_{ic} - \ln s_{ic}\right)

    s and t are the probabilities of student and teacher, at temperature 1. A student can be accurate without
    matching its teacher, and the other way round.

    Parameters
    ----------
    student, teacher : Classifier, Run, nn.Module, str or Path
        The networks. A string or Path is the folder of a run.
    data : Dataset or str
        A data set, or its name.
    split : {"test", "train", "val"}
    **options
        `accelerator`, `precision` and `fabric`, as in `predict`.

    Returns
    -------
    Fidelity
        agreement in percent, and KL in nats.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        As in `predict`. Also if a run was saved without weights.

    References
    ----------
    Stanton et al., "Does knowledge distillation really work?", NeurIPS 2021, arXiv 2106.05945.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> network = pckd.create_model("resnet8", data, seed=0)
    >>> pckd.analysis.fidelity(network, network, data)
    Fidelity(agreement=100.0, kl=0.0)
    """
    networks = as_network("student", student), as_network("teacher", teacher)
    data = as_dataset(data)
    s, t = (predict(network, data, split, **options).logits.double() for network in networks)
    kl = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)
    return Fidelity(100 * (s.argmax(1) == t.argmax(1)).double().mean().item(), kl.item())


def agreement(run_a: Network, run_b: Network, data: Dataset | str, split: str = "test", **options: Any) -> Agreement:
    """Compare the predictions of two trained networks image by image.

    Two networks of equal accuracy can be right on different images. McNemar's test says whether one of these two
    networks is right more often than chance explains. It says nothing about other seeds. To compare two methods, train
    several seeds of each and use `paired_difference`.

    Parameters
    ----------
    run_a, run_b : Classifier, Run, nn.Module, str or Path
        The networks. A string or Path is the folder of a run.
    data : Dataset or str
        A data set, or its name.
    split : {"test", "train", "val"}
    **options
        `accelerator`, `precision` and `fabric`, as in `predict`.

    Returns
    -------
    Agreement
        samples, counts, p_value, same_prediction and classes.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        As in `predict`. Also if a run was saved without weights.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> networks = [pckd.create_model("resnet8", data, seed=seed) for seed in (0, 1)]
    >>> found = pckd.analysis.agreement(*networks, data)
    >>> len(found.samples), len(found.classes)
    (16, 10)
    """
    networks = as_network("run_a", run_a), as_network("run_b", run_b)
    data = as_dataset(data)
    a, b = (predict(network, data, split, **options) for network in networks)
    return compare_predictions(a, b, data, split)


def compare_predictions(a: Predictions, b: Predictions, data: Dataset, split: str) -> Agreement:
    """Return the `agreement` of two networks whose predictions are known.

    Parameters
    ----------
    a, b : Predictions
        Of both networks for the same split.
    data : Dataset
    split : {"test", "train", "val"}

    Returns
    -------
    Agreement
    """
    labels, predicted_a, predicted_b = (found.numpy() for found in (a.labels, a.logits.argmax(1), b.logits.argmax(1)))
    right_a, right_b = predicted_a == labels, predicted_b == labels
    only_a, only_b = right_a & ~right_b, right_b & ~right_a
    outcome = np.select([right_a & right_b, only_a, only_b], OUTCOMES[:3], OUTCOMES[3])
    samples = pd.DataFrame({"label": labels, "a": predicted_a, "b": predicted_b})
    samples["outcome"] = pd.Categorical(outcome, OUTCOMES)
    if (ids := getattr(data, split).ids) is not None:
        samples.insert(0, "id", ids)
    by_class = pd.DataFrame({"images": 1, "a": right_a, "b": right_b, "only_a": only_a, "only_b": only_b})
    classes = by_class.astype(int).groupby(labels).sum().reindex(range(data.num_classes), fill_value=0)
    classes.insert(0, "class", data.classes)
    classes[["a", "b"]] = 100 * classes[["a", "b"]].div(classes["images"], axis=0)  # NaN without images
    classes.insert(4, "difference", classes["a"] - classes["b"])
    p = [mcnemar(*counts) for counts in zip(classes["only_a"], classes["only_b"], strict=True)]
    classes["p"] = np.where(classes["images"] > 0, p, np.nan)
    classes["p_holm"] = holm(classes["p"])
    counts = samples["outcome"].value_counts(sort=False)
    same = 100 * float((predicted_a == predicted_b).mean())
    return Agreement(samples, counts, mcnemar(only_a.sum(), only_b.sum()), same, classes)


def predict_folder(
    run: Run | str | Path,
    folder: str | Path,
    *,
    workers: int | None = None,
    accelerator: str = "auto",
    precision: str = "auto",
) -> pd.DataFrame:
    r"""Return the prediction of a trained network for every image in a folder.

    With the logits z of an image, the network gives class c the probability :math:`p_c = e^{z_c} / \sum_k e^{z_k}`. The
    images are read as in training: turned upright, resized and cropped to the size of the training images. They are
    converted to grey if the network was trained on grey images.

    Parameters
    ----------
    run : Run, str or Path
        A run with weights, or its folder.
    folder : path
        Its sub-folders are read, too.
    workers : int, optional
        Number of processes that read images, see `Streamed`.
    accelerator, precision : str
        As in `distill`.

    Returns
    -------
    DataFrame
        One row per image, sorted by file within each folder. The columns are:

        - file: path relative to `folder`. Bytes that are not UTF-8 and control characters are written as ``\\xNN``,
        - class: name of the class with the largest probability,
        - confidence: this probability, from 1/C to 1 for C classes,
        - entropy: :math:`-\sum_c p_c \ln p_c` in nats, from 0 to ln C. It is large if the network is not sure,
        - second: name of the class with the second largest probability.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist.
    ValueError
        If the folder has no images, if the run has no weights, or if it was trained on images that are not square or
        have other channels than grey or RGB. Also if `accelerator` or `precision` cannot be used.
    OSError
        If an image cannot be read. The message names its file.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> from PIL import Image
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False)
    >>> Image.new("L", (40, 30), "white").save("photo.png")
    >>> pckd.analysis.predict_folder(run, ".", workers=0)[["file"]]
            file
    0  photo.png
    """
    from torchvision.transforms.v2.functional import rgb_to_grayscale  # slow to import

    run, folder, workers = as_run(run), user_path(folder, "folder"), checked(Workers, "workers", workers)
    network, info = run.model(), run.settings["data"]
    height, width = size = tuple(info["image_size"])
    channels = len(info["mean"])
    if height != width or channels not in (1, 3):
        raise ValueError(
            f"the run {run.title} was trained on images of {channels}×{height}×{width}: image files can only be "
            "read as square images with 1 or 3 channels"
        )
    is_imagenet = info["name"].split(":")[0] == "imagenet"
    images = read_images(folder, height, random_crop=is_imagenet, workers=workers)
    fabric, _ = make_fabric(accelerator, precision)
    images = images.to(fabric.device)
    mean, std = (torch.tensor(info[name], dtype=torch.float32, device=fabric.device) for name in ("mean", "std"))
    batches = images.read(torch.arange(len(images)).split(images_per_batch(size)))
    batches = batches if channels == 3 else map(rgb_to_grayscale, batches)
    log_p = torch.cat([output.logits.cpu() for output in run_batches(network, batches, mean, std, fabric)]).log_softmax(
        1
    )
    (confidence, _), (first, second) = log_p.exp().topk(2).values.T, log_p.topk(2).indices.T
    classes = np.array(info["classes"], dtype=object)
    return pd.DataFrame(
        {
            "file": [readable_name(name) for name in images.names.tolist()],
            "class": classes[first],
            "confidence": confidence,
            "entropy": -(log_p.exp() * log_p).nan_to_num().sum(1),
            "second": classes[second],
        }
    )

r"""The loss of CRD, contrastive representation distillation, with its memories and its negatives.

In the shapes, B is the number of images in the batch, K the number of negatives per image, n the number of training
images, and D the number of values of an embedding.

Examples
--------
>>> import torch
>>> from pckd_nb.methods.terms import contrast
>>> labels = torch.arange(30) % 3
>>> index = torch.tensor([4, 8])
>>> negatives = contrast.draw_negatives(labels, index, count=5, seed=0, epoch=1, step=0)
>>> crd = contrast.CRD(student_dim=16, teacher_dim=64, num_images=30)
>>> student_anchor, teacher_anchor = crd(torch.rand(2, 16), torch.rand(2, 64), index, negatives)
>>> student_anchor.shape
torch.Size([])
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from ...tensor_checks import (
    LABEL_DTYPES,
    as_number,
    check_labels,
    check_same_shape,
    check_temperature,
    check_whole_number,
)
from .numerics import full_precision, unit_vectors

CRD_EPSILON = 1e-7  # added to the probability of noise


@full_precision
def noise_contrast(log_scores: Tensor, num_images: int) -> Tensor:
    r"""Return the loss of CRD for one kind of anchor.

    .. math::

        h(x) = -\frac{1}{B} \sum_i \left[
            \log \frac{x_{i0}}{x_{i0} + K/n + \varepsilon}
            + \sum_{k=1}^{K} \log \frac{K/n}{x_{ik} + K/n + \varepsilon}
        \right]

    x_i0 is the score of the positive, and the other x_ik are the scores of the negatives. ε is 1e-7. It is noise
    contrastive estimation: a classifier tells the positive from K negatives.

    The traps: the loss is a sum over the negatives, not a mean. And n is the number of images that are used for
    training, without those of a held-out split.

    Parameters
    ----------
    log_scores : Tensor of shape (B, 1 + K)
        log x. The positive is in the first column.
    num_images : int, at least 1
        n.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If `log_scores` is not a tensor, or if `num_images` is not a whole number.
    ValueError
        If the shape or dtype does not fit, if there is no negative, or if `num_images` is less than 1.

    References
    ----------
    Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699. The form is that of the
    authors' repository HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.contrast import noise_contrast
    >>> scores = torch.tensor([[0.5, 0.5]])  # K/n is 0.5 too
    >>> round(noise_contrast(scores.log(), num_images=2).item(), 4)  # −2·log(1/2)
    1.3863
    """
    check_same_shape("scores", log_scores, log_scores)
    check_whole_number("num_images", num_images, 1)
    count = log_scores.shape[1] - 1
    if count < 1:
        raise ValueError(f"scores must have a column for the positive and one per negative, got {count + 1} columns")
    noise = count / num_images
    positive, negatives = log_scores[:, 0], log_scores[:, 1:].exp()
    of_positive = positive - (positive.exp() + (noise + CRD_EPSILON)).log()
    of_negatives = -torch.log1p((negatives + CRD_EPSILON) / noise)  # the logarithm of the fraction, without rounding
    return -(of_positive.sum() + of_negatives.sum()) / len(log_scores)


class CRD(nn.Module):
    r"""Contrastive representation distillation.

    The embeddings of image i are

    .. math::

        u_i = \frac{W_s f_{s,i} + b_s}{\|W_s f_{s,i} + b_s\|}, \qquad
        v_i = \frac{W_t f_{t,i} + b_t}{\|W_t f_{t,i} + b_t\|}

    f are penultimate features. There are two memories with one row per training image: M_s has embeddings of the
    student, and M_t of the teacher. An image is compared with the rows j_0, the image itself, and j_1, …, j_K, images
    of other classes. The scores are

    .. math::

        x_{s,ik} = \frac{1}{Z_s} \exp\left( \frac{u_i \cdot M_t[j_k]}{\tau} \right), \qquad
        x_{t,ik} = \frac{1}{Z_t} \exp\left( \frac{v_i \cdot M_s[j_k]}{\tau} \right)

    The term of the method is h(x_s) + h(x_t), where h is `noise_contrast`. The total is CE + 0.8·term. With KD, the
    total also contains 1·KD, and the weight of the cross-entropy is still 1. The published settings are K = 16384,
    τ = 0.07, D = 128 and the momentum 0.5.

    Z_s is n times the mean of all exp(u·M_t/τ) in the first batch, and Z_t is the same for v and M_s. They are constant
    afterwards and have no gradient.

    The memories and the constants are buffers, so `state_dict` contains them. Both linear layers are trained.

    There are three traps:

    - The embedding of the student is compared with the memory of the teacher, and that of the teacher with the memory
      of the student.
    - The positive is also a row of the memory, not an embedding of this batch. The rows are updated after the scores.
    - If the sampler repeats an image in a batch, its row of the memory has two new values. See `update`.

    The scores of a batch with all n images are computed first, and K + 1 of them are used. The authors' code copies
    B·(K + 1) rows of length D instead, which need more space for the published K.

    With several processes, every process must have the same memories. Collect the embeddings and indices of all
    processes before `update`, and make the constants the same after the first batch.

    Parameters
    ----------
    student_dim, teacher_dim : int
        Numbers of penultimate features.
    num_images : int
        n, the number of training images.
    embed_dim : int
        D.
    temperature : float, in [1e-6, 1e6]
        τ.
    momentum : float, in [0, 1)
        Part of the old row that is kept in `update`.

    Attributes
    ----------
    memory_student, memory_teacher : Tensor of shape (n, D)
        Initially uniform in [−√(3 / D), √(3 / D)].
    z_student, z_teacher : scalar Tensor
        The constants. 0 means that they are not set yet.

    Raises
    ------
    TypeError
        If a setting has the wrong type.
    ValueError
        If a setting is outside its range.

    References
    ----------
    Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699. The settings are from the
    authors' repository HobbitLong/RepDistiller.

    Examples
    --------
    >>> from pckd_nb.methods.terms.contrast import CRD
    >>> crd = CRD(student_dim=16, teacher_dim=64, num_images=30)
    >>> [name for name, _ in crd.named_buffers()]
    ['memory_student', 'memory_teacher', 'z_student', 'z_teacher']
    """

    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_images: int,
        embed_dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        sizes = {"student_dim": student_dim, "teacher_dim": teacher_dim, "num_images": num_images}
        for name, value in {**sizes, "embed_dim": embed_dim}.items():
            check_whole_number(name, value, 1)
        check_temperature("temperature", temperature)
        if not 0 <= as_number("momentum", momentum) < 1:
            raise ValueError(f"momentum must be at least 0 and less than 1, got {momentum}")
        self.num_images, self.temperature, self.momentum = num_images, temperature, momentum
        self.embed_student = nn.Linear(student_dim, embed_dim)
        self.embed_teacher = nn.Linear(teacher_dim, embed_dim)
        bound = math.sqrt(3 / embed_dim)
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, torch.empty(num_images, embed_dim).uniform_(-bound, bound))
        for name in ("z_student", "z_teacher"):
            self.register_buffer(name, torch.zeros(()))

    def forward(
        self, student_features: Tensor, teacher_features: Tensor, index: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return both losses. In train mode, also set the constants if they are not set, and update the memories.

        Parameters
        ----------
        student_features : Tensor of shape (B, student_dim)
        teacher_features : Tensor of shape (B, teacher_dim)
            They get no gradient.
        index : int Tensor of shape (B,)
            The numbers of the images among the training images, from 0.
        negatives : int Tensor of shape (B, K)
            The numbers of images of other classes, from `draw_negatives`.

        Returns
        -------
        student_anchor, teacher_anchor : scalar Tensor
            h(x_s) and h(x_t). The term of the method is their sum.

        Raises
        ------
        TypeError
            If an argument is not a tensor.
        ValueError
            If shapes, dtypes or devices do not match.
        """
        student, teacher = self.embed(student_features, teacher_features)
        losses = self.losses(student, teacher, index, negatives)
        if self.training:
            self.update(student, teacher, index)
        return losses

    @full_precision
    def embed(self, student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings u and v.

        Parameters
        ----------
        student_features : Tensor of shape (B, student_dim)
        teacher_features : Tensor of shape (B, teacher_dim)

        Returns
        -------
        student, teacher : Tensor of shape (B, D)
            Vectors of L2 norm 1.
        """
        for features in (student_features, teacher_features):
            check_same_shape("features", features, features)
        if len(student_features) != len(teacher_features):
            got = f"{len(student_features)} and {len(teacher_features)}"
            raise ValueError(f"features of both networks must have the same number of rows, got {got}")
        student = unit_vectors(self.embed_student(student_features))
        return student, unit_vectors(self.embed_teacher(teacher_features.detach()))

    @full_precision
    def losses(self, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Return both losses. In train mode, set the constants if they are not set.

        Parameters
        ----------
        student, teacher : Tensor of shape (B, D)
            From `embed`.
        index : int Tensor of shape (B,)
        negatives : int Tensor of shape (B, K)

        Returns
        -------
        student_anchor, teacher_anchor : scalar Tensor
        """
        check_same_shape("embeddings", student, teacher)
        rows = torch.cat([_rows("index", index, student, 1)[:, None], _rows("negatives", negatives, student, 2)], 1)
        return (
            self._anchor_loss(student, self.memory_teacher, self.z_student, rows),
            self._anchor_loss(teacher, self.memory_student, self.z_teacher, rows),
        )

    @torch.no_grad()
    @full_precision
    def update(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        r"""Move the rows of the memories towards the embeddings of the batch.

        .. math::

            M_s[j] \leftarrow \frac{m \, M_s[j] + (1 - m) \, u}{\| m \, M_s[j] + (1 - m) \, u \|}

        m is the momentum. M_t is updated by v in the same way. If an image occurs several times in the batch, only its
        last embedding counts. This is what the authors' code does on a CPU. On a GPU, its result is random.

        Parameters
        ----------
        student, teacher : Tensor of shape (B, D)
            From `embed`.
        index : int Tensor of shape (B,)
        """
        check_same_shape("embeddings", student, teacher)
        index = _rows("index", index, student, 1)
        position = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, position, 0).amax(1)  # (B,): where the same image occurs last
        for memory, embedding in ((self.memory_student, student), (self.memory_teacher, teacher)):
            row = self.momentum * memory[index] + (1 - self.momentum) * embedding[last].to(memory.dtype)
            memory[index] = unit_vectors(row)

    def _anchor_loss(self, anchors: Tensor, memory: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            memory = memory.clone()  # the backward pass needs it as it was before the update
        scores = (anchors @ memory.T).gather(1, rows) / self.temperature
        first = scores.detach().exp().mean() * self.num_images
        constant = torch.where(z > 0, z, first.to(z.dtype))  # no `if`: the program would have to wait for the GPU
        if self.training:
            z.copy_(constant)
        return noise_contrast(scores - constant.log(), self.num_images)


def draw_negatives(labels: Tensor, index: Tensor, count: int, seed: int, epoch: int, step: int) -> Tensor:
    """Draw images of other classes for every image of a batch.

    The result depends on the arguments only. The draw of an image does not depend on the other images of the batch. So
    several processes that share a batch draw the same images as one process.

    The draw is without replacement. If `count` is larger than the number of images of other classes, it is with
    replacement. The trap: without given negatives, the authors' code draws from all images, also from the same class.

    Parameters
    ----------
    labels : int Tensor of shape (n,)
        Labels of all training images.
    index : int Tensor of shape (B,)
        The numbers of the images of the batch, from 0.
    count : int, at least 1
        K. The authors use 16384.
    seed, epoch, step : int, at least 0

    Returns
    -------
    int64 Tensor of shape (B, K)
        On the CPU.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes or dtypes do not fit, if an index is not a training image, or if an image has no image of another
        class.

    References
    ----------
    Tian, Krishnan and Isola, arXiv 1910.10699.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.contrast import draw_negatives
    >>> labels = torch.tensor([0, 1, 0, 1])
    >>> draw_negatives(labels, torch.tensor([0, 3]), count=2, seed=0, epoch=1, step=0).sort().values.tolist()
    [[1, 3], [0, 2]]
    """
    check_labels(labels, labels)
    check_whole_number("count", count, 1)
    for name, value in {"seed": seed, "epoch": epoch, "step": step}.items():
        check_whole_number(name, value, 0)
    classes, images = labels.cpu().numpy(), _rows("index", index, labels, 1).cpu().numpy()
    if len(images) and not 0 <= images.min() <= images.max() < len(classes):
        got = f"{images.min()} to {images.max()}"
        raise ValueError(f"index must be from 0 to {len(classes) - 1}, the training images, got {got}")

    order = np.argsort(classes, kind="stable")  # the images of a class are neighbours
    starts, stops = (np.searchsorted(classes[order], classes[images], side) for side in ("left", "right"))
    result = np.empty((len(images), count), dtype=np.int64)
    for row, image, start, stop in zip(result, images, starts, stops, strict=True):
        others = len(classes) - (stop - start)
        if not others:
            raise ValueError(f"image {image} has no negatives: all training images have the label {classes[image]}")
        generator = np.random.default_rng([seed, epoch, step, int(image)])
        drawn = generator.choice(others, count, replace=count > others, shuffle=False)
        row[:] = order[drawn + (drawn >= start) * (stop - start)]
    return torch.from_numpy(result)


def _rows(name: str, rows: Tensor, batch: Tensor, dimensions: int) -> Tensor:
    """Check numbers of training images, and return them as int64 on the device of the batch."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(rows).__name__}")
    if rows.dtype not in LABEL_DTYPES:
        raise ValueError(f"{name} must be whole numbers, got {rows.dtype}")
    if rows.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimensions, got shape {tuple(rows.shape)}")
    return rows.to(batch.device, torch.int64)

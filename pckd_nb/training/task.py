"""Everything that one training needs: networks, data, method and recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .. import ranks, views
from ..data import Dataset
from ..evaluation import pixel_statistics
from ..methods import Method, TrainingInfo
from ..models import Classifier, FeatureMaps, Output
from ..models.maps import MapKind
from ..recipes import Recipe
from ..runs import Run


@dataclass
class Task:
    """Networks, data, method and recipe of one training.

    Parameters
    ----------
    student : Classifier
    teacher : Classifier or None
        None for a method without a teacher.
    data : Dataset
    method : Method
        A copy of the caller's method, with a value for every setting. It may have layers of its own ("heads"), which
        are trained together with the student. `bind` creates them.
    recipe : Recipe
    seed : int
    method_settings : dict
        All settings of the method: {"beta_cc": {"value": 0.005, "from": "recipe"}, …}.
    teacher_run : Run or None
        The run that trained the teacher, if it is known.
    """

    student: Classifier
    teacher: Classifier | None
    data: Dataset
    method: Method
    recipe: Recipe
    seed: int
    method_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    teacher_run: Run | None = None

    @property
    def smallest_batch(self) -> int:
        """Number of images in the smallest batch of an epoch, for all processes together."""
        count = len(self.data.train)
        return count // views.steps_per_epoch(count, self.recipe.batch_size)

    def to(self, device: torch.device) -> Task:
        """Return the same task with its data on `device`."""
        return replace(self, data=self.data.to(device))

    def bind(self, fabric: Fabric) -> None:
        """Create the method's heads for these networks, and synchronise BatchNorm between GPUs.

        A method may replace the student by another network, see `Method.wrap_student`.

        A synchronised BatchNorm layer computes mean and variance over the whole batch, although each GPU gets only a
        part of it.

        Parameters
        ----------
        fabric : Fabric

        Raises
        ------
        ValueError
            If a head has BatchNorm and a batch has only one image.
        """
        example = torch.zeros(1, self.data.channels, *self.data.size)
        if hasattr(self.method, "prepare_training"):  # a method of the user may not have it
            outputs = partial(self.teacher_outputs, fabric) if self.teacher else None
            labels = self.data.train.labels.cpu()
            self.method.prepare_training(TrainingInfo(labels, self.recipe.epochs, self.seed, outputs))
        if isinstance(self.method, Method):  # any other nn.Module trains the student as it is
            self.student = self.method.wrap_student(self.student, self.teacher, example)
        self.method.bind(self.student, self.teacher, *([example] if self.method.needs_maps else []))
        if self.smallest_batch * self.method.views == 1 and has_batchnorm(self.method):
            raise ValueError(
                f"batch_size {self.recipe.batch_size} gives a batch of one image: BatchNorm needs at least 2 images, "
                "choose another batch_size"
            )
        for term, reason in self.method.left_out.items():
            warnings.warn(f"the loss term {term} is left out: {reason}", stacklevel=3)
        if fabric.world_size > 1 and has_batchnorm(self.student):
            if fabric.device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
            elif fabric.is_global_zero:
                warnings.warn(
                    "each process computes BatchNorm from its own part of a batch, because BatchNorm can be "
                    "synchronised on GPUs only",
                    stacklevel=3,
                )

    def teacher_outputs(self, fabric: Fabric, kind: MapKind | None = None) -> Iterator[Output]:
        """Iterate over the outputs of the teacher for all training images, see `TrainingInfo`.

        Every process computes its part of a batch, and gets the outputs for the whole batch.

        Parameters
        ----------
        fabric : Fabric
        kind : str, optional
            Kind of the feature maps, see `models.FeatureMaps`. None means no maps.

        Yields
        ------
        Output
            As many images as in a batch of the training.
        """
        assert self.teacher is not None
        teacher, train = self.teacher.to(fabric.device), self.data.train
        example = torch.zeros(1, self.data.channels, *self.data.size)
        forward: Callable[[Tensor], Output] = teacher
        if kind is not None:
            forward = partial(FeatureMaps(teacher, example, kind=kind), teacher)
        mean, std = pixel_statistics(self.data, fabric.device)
        batches = torch.arange(len(train)).tensor_split(views.steps_per_epoch(len(train), self.recipe.batch_size))
        parts = [ranks.local_part(index, fabric) for index in batches]
        was_training = teacher.training
        try:
            teacher.eval()
            for index, images in zip(batches, train.read(parts), strict=True):
                with torch.no_grad():
                    output = forward(views.normalise(images.to(fabric.device), mean, std))
                yield ranks.gather(output, len(index), fabric)
        finally:
            teacher.train(was_training)


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether a network has a BatchNorm layer."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())

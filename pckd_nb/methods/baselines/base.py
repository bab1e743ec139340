"""The base class of the baselines, and how they call torchdistill."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from ...models import Classifier, FeatureMaps, Output
from ...validation import Count, NotNegative, Views, check, plain
from ..base import (
    Batch,
    Method,
    Terms,
    TrainingInfo,
    check_same_classes,
    classification_loss,
    equal_weights,
    require_teacher,
    upright_cross_entropy,
)
from ..published import PUBLISHED_SETTINGS

Shape = tuple[int, int, int]  # (C, H, W) of a feature map
Shapes = Sequence[Shape]
PUBLISHED_EPOCHS = 240
Layers = Sequence[str] | None  # names of layers, see `models.FeatureMaps`


class Baseline(Method):
    """Base class of the baselines. A subclass computes `term`.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    views : int, from 1 to 4
        V, number of rotated views of every image. The term compares all V·B rows, where each row is a view of an image.
        The cross-entropy is that of the images that are not rotated. Most methods were published with V = 1.

    Attributes
    ----------
    cross_entropy_weight : float
        Weight of the cross-entropy.
    warmup_epochs : int
        The weight of the term grows linearly over these epochs. 1 means that it is constant.
    description : str
        The paper and the published weight.

    Raises
    ------
    TypeError
        If a setting has the wrong type.
    ValueError
        If a setting is outside its range, or if torchdistill is needed and not installed.
    """

    warmup_epochs = 1
    cross_entropy_weight = 1.0
    description: str

    def __init__(self, weight: float, views: int = 1):
        super().__init__()
        self.weight, self.views = weight, plain(views)
        self._training: TrainingInfo | None = None  # private, because run.json would record it as a setting
        Baseline.check(self)  # not `self.check()`: a subclass has not set all its attributes yet

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        check(NotNegative, weight=self.weight)
        check(Views, views=self.views)
        check(Count, warmup_epochs=self.warmup_epochs)
        for name in ("layers", "teacher_layers"):
            layers = getattr(self, name)
            if layers is None:
                continue
            if not isinstance(layers, list | tuple) or not all(isinstance(item, str) for item in layers):
                raise TypeError(f"{name} must be a list of layer names, got {layers!r}")
            if not layers:
                raise ValueError(f"{name} names no layer: name at least one, or use None for the published maps")
        if self.layers is not None and self.teacher_layers is not None and len(self.layers) != len(self.teacher_layers):
            counts = f"{len(self.layers)} and {len(self.teacher_layers)}"
            raise ValueError(f"layers and teacher_layers must have the same length, got {counts}")

    def published_settings(self, teacher: str | None, student: str | None) -> Mapping[str, Any]:
        """Return the settings that were published for a pair of networks, see `Method.published_settings`."""
        names = (cls.__name__ for cls in type(self).__mro__)  # a subclass has the settings of its base class
        pairs = next((PUBLISHED_SETTINGS[name] for name in names if name in PUBLISHED_SETTINGS), {})
        return pairs.get((teacher, student), {}) if teacher and student else {}

    def prepare_training(self, info: TrainingInfo) -> None:
        """Keep what is known about the training."""
        self._training = info

    @property
    def epochs_in_training(self) -> int:
        """Return the number of epochs of the training, or the published number if it is not known yet."""
        return self._training.epochs if self._training else PUBLISHED_EPOCHS

    def bind(self, student: Classifier, teacher: Classifier, example: Tensor | None = None) -> "Baseline":
        """Create the modules that are trained with the student.

        If the method needs feature maps, both networks are run on the example in eval mode. The maps are paired from
        the end: last with last, second-to-last with second-to-last. If one network has more maps, its first maps are
        not used.

        Parameters
        ----------
        student, teacher : Classifier
        example : Tensor of shape (1, C, H, W), optional
            One image. Needed only if `needs_maps` is True.

        Returns
        -------
        Baseline
            This object.

        Raises
        ------
        ValueError
            If the numbers of classes differ, if the example is missing, or if a network has no feature map.
        """
        check_same_classes(student, teacher)
        if not self.needs_maps:
            self.prepare(student, teacher)
            return self
        if example is None:
            raise ValueError(f"{self.title} compares feature maps: pass an example image of shape (1, C, H, W) to bind")
        shapes = {
            "student": FeatureMaps(student, example, self.layers, self.student_maps).shapes,
            "teacher": FeatureMaps(teacher, example, self.teacher_layers, self.teacher_maps).shapes,
        }
        for network, found in shapes.items():
            if not any(height * width > 1 for _, height, width in found):
                raise ValueError(
                    f"{self.title} compares feature maps, and the {network} has none larger than one pixel: "
                    "choose another network"
                )
        self.prepare(student, teacher, *last_pairs(*shapes.values()))
        return self

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the modules whose sizes depend on the networks.

        Parameters
        ----------
        student, teacher : Classifier
        student_shapes, teacher_shapes : sequence of (C, H, W)
            Shapes of the feature maps. The two sequences have the same length.
        """

    def classification(self, student: Output, batch: Batch, cross_entropy: Tensor) -> Tensor:
        """Return the cross-entropy term of the objective, see `classification_loss`."""
        return classification_loss(student, batch, cross_entropy)

    def repeat_batch(self, batch: Batch) -> Batch:
        """Return the batch with V·B labels and positions, one per row, as `term` takes it."""
        return Batch(batch.labels.repeat(self.views), batch.index.repeat(self.views))

    def weight_in(self, epoch: int) -> float:
        """Return the weight of the term in an epoch, counted from 1."""
        return self.weight * min(1, epoch / self.warmup_epochs)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the term that is added to the cross-entropy.

        Parameters
        ----------
        student, teacher : Output
            V·B rows, with feature maps if `needs_maps` is True. The teacher's output has no gradient.
        batch : Batch
            With V·B labels and positions, one per row.
        epoch : int
            Counted from 1.

        Returns
        -------
        scalar Tensor
            Before it is multiplied by the weight.
        """
        raise NotImplementedError

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student, teacher : Output
            V·B rows, sorted by view and then by image, with feature maps if `needs_maps` is True. The images of the
            first view are not rotated.
        batch : Batch
        epoch : int
            Counted from 1, for the warm-up.

        Returns
        -------
        Terms
            All sample weights are 1.

        Raises
        ------
        TypeError
            If logits or labels are not tensors.
        ValueError
            If shapes, dtypes or devices do not match, or if `teacher` is None.
        """
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        require_teacher(self, teacher)
        terms = {"cross_entropy": self.classification(student, batch, cross_entropy)}
        terms[self.title.lower()] = term = self.term(student, teacher.detach(), self.repeat_batch(batch), epoch)
        total = self.cross_entropy_weight * terms["cross_entropy"] + self.weight_in(epoch) * term
        return Terms(total, terms, *equal_weights(cross_entropy))


class MapBaseline(Baseline):
    """Base class of the baselines that compare feature maps, and let the caller choose the layers.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.
    """

    needs_maps = True

    def __init__(self, weight: float, layers: Layers = None, teacher_layers: Layers = None, views: int = 1):
        super().__init__(weight, views)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)


class StagedBaseline(Baseline):
    """Base class of the baselines that train something before the first epoch, see `methods.Stage`.

    The published number of epochs of the stage belongs to a training of 240 epochs. For another training, it is
    multiplied by epochs/240, rounded, and at least 1.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    stage_epochs : int, at least 1, optional
        Number of epochs of the stage. None means the published number, as described above.
    views : int, from 1 to 4
        See `Baseline`.

    Attributes
    ----------
    published_stage_epochs : int
        The published number of epochs of the stage.
    """

    published_stage_epochs = 30

    def __init__(self, weight: float, stage_epochs: int | None = None, views: int = 1):
        super().__init__(weight, views)
        self.stage_epochs = plain(stage_epochs)
        StagedBaseline.check(self)

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Count | None, stage_epochs=self.stage_epochs)

    @property
    def stage_length(self) -> int:
        """Return the number of epochs of the stage."""
        return self.stage_epochs or max(
            1, round(self.published_stage_epochs * self.epochs_in_training / PUBLISHED_EPOCHS)
        )


def torchdistill(part: str) -> ModuleType:
    """Import a module of torchdistill.

    Parameters
    ----------
    part : "losses" or "models"

    Returns
    -------
    module

    Raises
    ------
    ValueError
        If torchdistill is not installed.
    """
    try:
        if part == "losses":
            from torchdistill.losses import mid_level as module
        else:
            from torchdistill.models import wrapper as module
    except ImportError:
        raise ValueError("this baseline needs the package torchdistill: pip install 'pckd_nb[baselines]'") from None
    return module


def torchdistill_outputs(*outputs: Any) -> dict[str, dict[str, Any]]:
    """Return outputs in the form that torchdistill expects.

    torchdistill finds an output by the path of its module in the network. Here the paths are just "0", "1" and so on.
    """
    return {str(number): {"output": output} for number, output in enumerate(outputs)}


def torchdistill_pairs(count: int) -> dict[str, Any]:
    """Return the configuration that pairs the first `count` outputs of student and teacher in torchdistill."""
    outputs = [{"io": "output", "path": str(number)} for number in range(count)]
    return {output["path"]: {"student": output, "teacher": output} for output in outputs}


def last_pairs(student: Sequence[Any], teacher: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the last items of both sequences, as many as the shorter one has."""
    count = min(len(student), len(teacher))
    return student[len(student) - count :], teacher[len(teacher) - count :]

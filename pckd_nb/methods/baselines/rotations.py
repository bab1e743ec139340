"""Baselines that train on rotated images."""

import torch
from torch import Tensor, nn

from ...models import Classifier, Output
from ...models.auxiliary import auxiliary_heads
from ...validation import NotNegative, check
from ..base import Batch, Stage, Temperature
from ..terms import rotations as terms
from .base import Layers, Shapes, StagedBaseline


class SSKD(StagedBaseline):
    r"""Self-supervised knowledge distillation: the student compares rotated images as the teacher does.

    .. math::

        \mathrm{term} = w_{\mathrm{kd}} \, L_{\mathrm{kd}} + w_{\mathrm{tf}} \, L_{\mathrm{tf}}
            + w_{\mathrm{ss}} \, L_{\mathrm{ss}}

    L_kd is KD for the images that are not rotated, and L_tf ("transformed") for the rotated ones. L_ss
    ("self-supervised") is KD for similarities: each rotated image is compared with all images that are not rotated.
    `terms.rotations.sskd_losses` defines all three. L_tf and L_ss use the rows for which the teacher is right, and a
    share of the other rows.

    Both networks have a small head, `terms.rotations.SSHead`, whose outputs are compared. The teacher's head is trained
    first, while the teacher is frozen: for 60 epochs before 240 epochs of training. The learning rate of this stage is
    0.05, times 0.1 after 30 and 45 of 60 epochs. Then the teacher's head is frozen, and the student's head is trained
    with the student.

    In the publication, every view is cropped separately, after the rotation. Set `crop_per_view` of the recipe to True
    for this. The recipe "cifar100_paper" has it.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    kd_weight, tf_weight, ss_weight : float
        w_kd, w_tf and w_ss, at least 0.
    cross_entropy_weight : float
        Weight of the cross-entropy, at least 0.
    temperature : float, in [1e-6, 1e6]
        Temperature of L_kd and L_tf.
    ss_temperature : float, in [1e-6, 1e6]
        Temperature of L_ss.
    tf_ratio, ss_ratio : float, from 0 to 1
        L_tf and L_ss use this share of the rows for which the teacher is wrong, see `terms.rotations.rows_to_keep`.
    stage_epochs : int, at least 1, optional
        Number of epochs of the stage. None means 60 for 240 epochs of training, see `StagedBaseline`.
    views : int, from 2 to 4
        V, number of rotated views of every image.

    References
    ----------
    Xu et al., "Knowledge Distillation Meets Self-Supervision", arXiv 2006.07114. All settings are those of the authors'
    code.
    """

    description = (
        "self-supervision, arXiv 2006.07114; weight 1 for the sum of 0.9·KD, 2.7·KD of rotated images and "
        "10·similarities, cross-entropy 0.1, after a stage of 60 epochs before the 240 epochs of training "
        "(authors' code)"
    )
    published_stage_epochs = 60

    def __init__(
        self,
        weight: float = 1,
        kd_weight: float = 0.9,
        tf_weight: float = 2.7,
        ss_weight: float = 10,
        cross_entropy_weight: float = 0.1,
        temperature: float = 4,
        ss_temperature: float = 0.5,
        tf_ratio: float = 1,
        ss_ratio: float = 0.75,
        stage_epochs: int | None = None,
        views: int = 4,
    ):
        super().__init__(weight, stage_epochs, views)
        self.kd_weight, self.tf_weight, self.ss_weight = kd_weight, tf_weight, ss_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.temperature, self.ss_temperature = temperature, ss_temperature
        self.tf_ratio, self.ss_ratio = tf_ratio, ss_ratio
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, kd_weight=self.kd_weight, tf_weight=self.tf_weight, ss_weight=self.ss_weight)
        check(NotNegative, cross_entropy_weight=self.cross_entropy_weight)
        check(Temperature, temperature=self.temperature, ss_temperature=self.ss_temperature)
        for name in ("tf_ratio", "ss_ratio"):
            check(NotNegative, **{name: getattr(self, name)})
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.views < 2:
            raise ValueError(
                f"SSKD compares rotated images and needs 2 or more views, got {self.views}: pass views=4 to SSKD, "
                "even if the default of the data set is views=1"
            )

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the heads of both networks."""
        self.student_head = terms.SSHead(student.feature_width)
        self.teacher_head = terms.SSHead(teacher.feature_width).requires_grad_(False)  # only the stage trains it

    def stages(self, student: Classifier, teacher: Classifier | None) -> list[Stage]:
        """Return the stage that trains the teacher's head, see `Method.stages`."""
        return [
            Stage(
                "teacher head",
                self.stage_length,
                [self.teacher_head],
                self.head_loss,
                views=self.views,
                lr=0.05,
                milestones=(30 / 60, 45 / 60),
            )
        ]

    def head_loss(self, student: Output | None, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss of the stage, see `terms.rotations.contrast_loss`.

        Parameters
        ----------
        student : Output or None
            Not used.
        teacher : Output
            V·B rows.
        batch : Batch
            With B labels.

        Returns
        -------
        scalar Tensor
        """
        return terms.contrast_loss(self.teacher_head(teacher.features.detach()), len(batch.labels))

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the weighted sum of the three parts."""
        losses = terms.sskd_losses(
            student.logits,
            teacher.logits,
            self.student_head(student.features),
            self.teacher_head(teacher.features),
            batch.labels[: len(batch.labels) // self.views],
            self.temperature,
            self.ss_temperature,
            self.tf_ratio,
            self.ss_ratio,
        )
        kd, transformed, self_supervised = losses
        return self.kd_weight * kd + self.tf_weight * transformed + self.ss_weight * self_supervised


class HSAKD(StagedBaseline):
    r"""Hierarchical self-supervision: after every stage, the student predicts class and rotation as the teacher does.

    .. math::

        \mathrm{term} = L_{\mathrm{logits}} + \sum_h L_h

    L_logits is KD for the logits of all rotated images. L_h is KD for the outputs of auxiliary head h, which has four
    outputs per class, one for each rotation. `terms.rotations.hsakd_losses` defines both.

    Both networks have one auxiliary head per stage. A head takes the map after its stage. It has the layers that follow
    in the network, with weights of its own, see `models.auxiliary.auxiliary_heads`. The teacher's heads are trained
    first, while the teacher is frozen: for 100 epochs before 240 epochs of training, with the cross-entropy of the
    pairs of class and rotation. The learning rate of this stage is 0.05, times 0.1 after 30, 60 and 90 of 100 epochs.
    Then the teacher's heads are frozen, and the student's heads are trained with the student. Run folders contain the
    heads, but they are not a part of the student. With several processes, every process runs the heads for the whole
    batch.

    The paper has two teachers. One is trained first and then frozen, as here. The other one, which the authors mark
    with a star, is trained together with its heads, and becomes better. This package does not have it. The authors'
    optimizer has Nesterov momentum, and the recipes of this package do not. In the publication, all views are rotations
    of the same crop. The recipe "cifar100_paper" crops every view separately, so set its `crop_per_view` to False. The
    authors' VGG has its heads after the blocks 0, 1, 2 and 4. They are a published setting for vgg13 → MobileNetV2.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    temperature : float, in [1e-6, 1e6]
    stage_epochs : int, at least 1, optional
        Number of epochs of the stage. None means 100 for 240 epochs of training, see `StagedBaseline`.
    layers, teacher_layers : sequence of str, optional
        The stages that have a head, from `Classifier.stages`. None means all stages, without the stem.
    views : int
        V. It must be 4.

    References
    ----------
    Yang et al., "Hierarchical Self-supervised Augmented Knowledge Distillation", arXiv 2107.13715. All settings are
    those of the authors' code.
    """

    description = (
        "hierarchical self-supervision, arXiv 2107.13715; weight 1 for the sum of KD and KD of auxiliary heads, T = 3, "
        "after a stage of 100 epochs before the 240 epochs of training (authors' code)"
    )
    published_stage_epochs = 100
    needs_maps = True

    def __init__(
        self,
        weight: float = 1,
        temperature: float = 3,
        stage_epochs: int | None = None,
        layers: Layers = None,
        teacher_layers: Layers = None,
        views: int = 4,
    ):
        super().__init__(weight, stage_epochs, views)
        self.temperature = temperature
        self.layers, self.teacher_layers = layers, teacher_layers
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Temperature, temperature=self.temperature)
        if self.views != terms.ROTATIONS:
            raise ValueError(
                f"HSAKD predicts which of 4 rotations an image has and needs 4 views, got {self.views}: pass views=4 "
                "to HSAKD, even if the default of the data set is views=1"
            )

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the heads of both networks."""
        outputs, heads = self.views * student.num_classes, len(student_shapes)
        self.student_heads = auxiliary_heads(student, (self.layers or student.stages)[-heads:], outputs)
        self.teacher_heads = auxiliary_heads(teacher, (self.teacher_layers or teacher.stages)[-heads:], outputs)
        self.teacher_heads.requires_grad_(False)  # only the stage trains them

    def stages(self, student: Classifier, teacher: Classifier | None) -> list[Stage]:
        """Return the stage that trains the teacher's heads, see `Method.stages`."""
        return [
            Stage(
                "teacher heads",
                self.stage_length,
                [self.teacher_heads],
                self.head_loss,
                views=self.views,
                lr=0.05,
                milestones=(30 / 100, 60 / 100, 90 / 100),
            )
        ]

    def head_loss(self, student: Output | None, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss of the stage, see `terms.rotations.joint_cross_entropy`.

        Parameters
        ----------
        student : Output or None
            Not used.
        teacher : Output
            V·B rows, with feature maps.
        batch : Batch
            With B labels.

        Returns
        -------
        scalar Tensor
        """
        return terms.joint_cross_entropy(head_logits(self.teacher_heads, teacher.detach()), batch.labels)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum of the KD terms of the logits and of all heads."""
        self.teacher_heads.eval()  # the method is in train mode, but only the stage trains these heads
        student_heads = head_logits(self.student_heads, student)
        teacher_heads = head_logits(self.teacher_heads, teacher)
        args = student.logits, teacher.logits, student_heads, teacher_heads
        of_logits, of_heads = terms.hsakd_losses(*args, self.temperature)
        return torch.stack([of_logits, *of_heads]).sum()


def head_logits(heads: nn.ModuleList, output: Output) -> list[Tensor]:
    """Return the logits of auxiliary heads for the last feature maps of a network, one per head.

    Parameters
    ----------
    heads : ModuleList of Classifier
    output : Output
        With at least as many maps as there are heads.

    Returns
    -------
    list of Tensor of shape (V·B, V·C)
    """
    maps = output.maps[len(output.maps) - len(heads) :]
    return [head(x).logits for head, x in zip(heads, maps, strict=True)]

"""The network of SimKD: the body of a student, a projector, and the last layer of a teacher."""

from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .maps import record_maps
from .output import Classifier
from .wrapper import WrappedClassifier


class SimKDProjector(nn.Module):
    """Projector of SimKD: it maps the student's last feature map to that of the teacher.

    It has three convolutions without bias: 1×1 from C_s to C_t/2 channels, 3×3 from C_t/2 to C_t/2, and 1×1 from C_t/2
    to C_t. Every one is followed by BatchNorm and ReLU, also the last one. A student's map that is larger than the
    teacher's is pooled to the teacher's size first.

    Parameters
    ----------
    student_shape, teacher_shape : (C, H, W)
    factor : int
        The hidden layers have C_t / factor channels.

    References
    ----------
    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", arXiv 2203.14001. The layers are those of
    the authors' repository DefangChen/SimKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.models.simkd import SimKDProjector
    >>> tuple(SimKDProjector((5, 8, 8), (10, 4, 4))(torch.rand(2, 5, 8, 8)).shape)
    (2, 10, 4, 4)
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int], factor: int = 2):
        super().__init__()
        (channels, *size), (teacher_channels, *teacher_size) = student_shape, teacher_shape
        hidden = max(1, teacher_channels // factor)
        self.size = min(size[0], teacher_size[0]), min(size[1], teacher_size[1])
        self.conv0, self.bn0 = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.conv1, self.bn1 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, teacher_channels, 1, bias=False), nn.BatchNorm2d(teacher_channels)

    def forward(self, student_map: Tensor) -> Tensor:
        """Return the projected map.

        Parameters
        ----------
        student_map : Tensor of shape (B, C_s, H, W)

        Returns
        -------
        Tensor of shape (B, C_t, H, W)
            With the smaller size of the two networks.
        """
        x = student_map if student_map.shape[2:] == self.size else F.adaptive_avg_pool2d(student_map, self.size)
        x = self.bn0(self.conv0(x)).relu()
        x = self.bn1(self.conv1(x)).relu()
        return cast(Tensor, self.bn2(self.conv2(x)).relu())


class SimKDNetwork(Classifier):
    r"""The network that SimKD trains: the body of a student, a projector, and the last layer of a teacher.

    .. math::

        f = \mathrm{mean}\left( P(F_s) \right), \qquad z = W_t f + b_t

    F_s is the student's last feature map, and P is `models.simkd.SimKDProjector`. The mean is over the positions. W_t
    and b_t are the last layer of the teacher, which is not trained. The last layer of the student would never be
    trained, so it is removed.

    Parameters
    ----------
    student : Classifier
        It becomes a part of this network, and loses its last layer.
    layer : str
        Name of the layer whose output is F_s, as in `student.named_modules()`.
    student_shape, teacher_shape : (C, H, W)
        Shapes of the last feature maps of both networks.
    factor : int
        The hidden layers of the projector have C_t / factor channels.
    bias : bool
        Whether the teacher's last layer has a bias.

    Attributes
    ----------
    body : nn.Module
        The student without its last layer.
    fc : nn.Linear
        The last layer. Load the weights of the teacher's last layer into it.
    projector_settings : dict
        All arguments but the first, as run.json records them.

    Raises
    ------
    ValueError
        If the student has no such layer, or if it has lost its last layer already.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> student, teacher = (pckd.create_model(name, num_classes=10) for name in ("resnet8", "wrn_16_2"))
    >>> network = pckd.models.SimKDNetwork(student, "layer3", (64, 8, 8), (128, 8, 8))
    >>> loaded = network.fc.load_state_dict(teacher.head.state_dict())
    >>> network(torch.zeros(2, 3, 32, 32)).features.shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        student: Classifier,
        layer: str,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        factor: int = 2,
        bias: bool = True,
    ):
        super().__init__()
        if layer not in dict(student.named_modules()):
            raise ValueError(f"the network has no layer {layer!r}: name the layer that returns its last feature map")
        self.projector_settings: dict[str, Any] = {
            "layer": layer,
            "student_shape": list(student_shape),
            "teacher_shape": list(teacher_shape),
            "factor": factor,
            "bias": bias,
        }
        self.name, self.weights_from, self.trained_on = student.name, student.weights_from, student.trained_on
        weight = student.head.weight
        self.body: nn.Module = student.module if isinstance(student, WrappedClassifier) else student
        self.map_layer = layer if self.body is student else layer.removeprefix("module.")
        self.body.set_submodule(student.head_name, RemovedLayer())
        self.projector = SimKDProjector(student_shape, teacher_shape, factor)
        self.fc = nn.Linear(teacher_shape[0], len(weight), bias).requires_grad_(False)
        self.stages, self.preactivations, self.norms = (
            tuple(f"body.{name}" for name in names) for names in (student.stages, student.preactivations, student.norms)
        )
        self.last_map = "projector"
        self.to(weight.device, weight.dtype)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features, shape (N, C_t): the mean of the projected map over its positions."""
        maps: list[Tensor] = []
        with record_maps(self.body, [self.map_layer], lambda name, output: maps.append(output)):
            self.body.features(x) if isinstance(self.body, Classifier) else self.body(x)
        if not maps:
            raise ValueError(f"layer {self.map_layer!r} returns no feature map: name another layer")
        return cast(Tensor, self.projector(maps[-1]).mean((2, 3)))


class RemovedLayer(nn.Identity):
    """Stands for the last layer of a student that has become a part of a `SimKDNetwork`."""

    def _raise_error(self) -> Any:
        raise ValueError(
            "this network has no last layer any more, because SimKD has replaced it: use the network of the run, "
            "run.model(), or create a new one"
        )

    weight = bias = in_features = out_features = property(_raise_error)

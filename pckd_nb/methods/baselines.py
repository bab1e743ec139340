"""Other distillation methods to compare with: `baseline("AT")` and so on.

The losses are torchdistill's (the extra "baselines"), but FitNet's, a mean squared error, and DKD's, which it lacks.
torchdistill names tensors by module paths; here a path is any word, and the loop's hooks bring the feature maps: the
last of every resolution, see `FeatureMaps`. The comparisons that weights are published for took theirs by hand, at the
ends of stages: of ResNets and VGG these are the same, WRN's last one here has BatchNorm behind it, and at 32×32 pixels
VGG and the ShuffleNets have one more, at full resolution. Where a loss of torchdistill is not its paper's, the class
below says so. Each is L = mean CE + weight · term, with the weight published for CIFAR-100 and the loop's own
optimiser, batches and views=1.
"""

import inspect
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses
from ..catalogue import NOT_BUILT
from ..models import Classifier, FeatureMaps, Output
from ..validation import Count, check
from .base import (
    Batch,
    Method,
    Terms,
    check_labels,
    check_settings,
    classification_loss,
    needs_teacher,
    same_classes,
    unweighted,
    upright_cross_entropy,
)

Shape = tuple[int, int, int]  # (C, H, W) of a feature map
Shapes = Sequence[Shape]
Layers = Sequence[str] | None  # names, see `FeatureMaps`


class Baseline(Method):
    """L = cross_entropy_weight · mean CE + weight · term. Subclasses compute the term and say where it is published.

    weight ≥ 0; raises ValueError otherwise, and where the extra that holds the loss is not installed.
    """

    warmup_epochs = 1  # the weight grows in equal steps and is whole from this epoch on
    cross_entropy_weight = 1.0
    about: str  # paper and published weight

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight
        Baseline.check(self)

    def check(self) -> None:
        check_settings({"weight": self.weight}, {})
        check(Count, warmup_epochs=self.warmup_epochs)
        for name in ("layers", "teacher_layers"):
            chosen = getattr(self, name)
            if chosen is not None and (isinstance(chosen, str) or not all(isinstance(item, str) for item in chosen)):
                raise TypeError(f"{name} must be a list of names of layers, got {chosen!r}")
        if self.layers is not None and self.teacher_layers is not None and len(self.layers) != len(self.teacher_layers):
            counts = f"{len(self.layers)} and {len(self.teacher_layers)}"
            raise ValueError(f"layers and teacher_layers pair up: there must be as many of both, got {counts}")

    def bind(self, student: Classifier, teacher: Classifier, example: Tensor | None = None) -> "Baseline":
        """Make the parts that train with the student. example: one image, (1, C, H, W), where maps are needed; both
        networks are run on it in eval mode. Maps pair up by resolution, counted from the last. Raises ValueError for
        networks of different classes, where the example is missing, or where a network has no map."""
        same_classes(student, teacher)
        if not self.needs_maps:
            self.prepare(student, teacher)
            return self
        if example is None:
            raise ValueError(f"{self.title} compares feature maps: bind it with an example image, (1, C, H, W)")
        shapes = {
            "student": FeatureMaps(student, example, self.layers).shapes,
            "teacher": FeatureMaps(teacher, example, self.teacher_layers).shapes,
        }
        for who, found in shapes.items():
            if not found:
                raise ValueError(f"{self.title} compares feature maps, and the {who} has none larger than one pixel")
        self.prepare(student, teacher, *aligned(*shapes.values()))
        return self

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        """Make the modules that need the networks' sizes. narrow, wide: paired shapes of student's, teacher's maps."""

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """What is added to the cross-entropy, a scalar."""
        raise NotImplementedError

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """The objective of B upright rows of both networks, with maps where the method needs them. epoch: from 1, for
        the warm-up. Raises ValueError for what does not fit together, TypeError for what is no tensor."""
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        needs_teacher(self, teacher)
        terms = {"cross_entropy": classification_loss(student, batch, cross_entropy)}
        terms[self.title.lower()] = term = self.term(student, teacher.detach(), batch)
        weight = self.weight * min(1, epoch / self.warmup_epochs)
        total = self.cross_entropy_weight * terms["cross_entropy"] + weight * term
        return Terms(total, terms, *unweighted(cross_entropy))


class FitNet(Baseline):
    """Mean squared error between a middle map of the teacher, the last but one, and the student's through a regressor:
    1×1 convolution, BatchNorm, ReLU. The paper trains in two stages; here, as in CRD's comparison, in one."""

    about = "hints, arXiv 1412.6550; weight 100 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 100, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        self.hint = -min(2, len(narrow))
        channels = narrow[self.hint][0], wide[self.hint][0]
        self.regressor = nn.Sequential(nn.Conv2d(*channels, 1), nn.BatchNorm2d(channels[1]), nn.ReLU())

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        own, known = same_size(student.maps[self.hint], teacher.maps[self.hint])
        return F.mse_loss(self.regressor(own), known)


class AT(Baseline):
    """Attention: the mean squared difference of the maps' normalised energy, Σ over the pairs. It is the form of the
    authors' code, for which the weight is published; the paper's equation has a norm in place of the mean square."""

    about = "attention transfer, arXiv 1612.03928; weight 1000 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 1000, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.make = torchdistill("losses").ATLoss

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        self.loss = self.make(pairs(len(narrow)), mode="code")

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        resized = [same_size(*pair) for pair in zip(*aligned(student.maps, teacher.maps), strict=True)]
        return self.loss(*(io(*maps) for maps in zip(*resized, strict=True)))


class SP(Baseline):
    """Which samples of a batch look alike: squared difference of the B×B similarities of the last maps, over B².

    The paper divides every row of similarities by its L2 norm, and so it is here. torchdistill 1.1 divides by the L1
    norm (its `1` lands on p), which makes the loss some B times smaller than the one the weight was published for.
    """

    about = "similarity-preserving, arXiv 1907.09682; weight 3000 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 3000, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.loss = torchdistill("losses").SPKDLoss("0", "0", reduction="batchmean")
        self.loss.matmul_and_normalize = similarities

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return self.loss(io(student.maps[-1]), io(teacher.maps[-1]))


class CC(Baseline):
    """Correlation congruence: distance of the B×B kernel matrices of both features, each through a linear layer to
    128 that trains along; Taylor expansion of a Gaussian kernel, γ = 0.4, second order. torchdistill takes the norm
    of the difference over B², the paper its square; and neither it nor CRD's comparison divides the features by their
    norm, without which the polynomial is not the Gaussian's. CRD's weight was published for a loss of another form, on
    neighbours in the batch; torchdistill's own configuration has 0.003, beside KD."""

    about = "correlation congruence, arXiv 1904.01802; weight 0.02 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 0.02):
        super().__init__(weight)
        kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
        self.loss = torchdistill("losses").CCKDLoss("0", "0", kernel, reduction="batchmean")

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        self.embed_student = nn.Linear(student.feature_width, 128)
        self.embed_teacher = nn.Linear(teacher.feature_width, 128)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return self.loss(io(self.embed_student(student.features)), io(self.embed_teacher(teacher.features)))


class VID(Baseline):
    """Variational information: negative log-likelihood of the teacher's maps under a Gaussian whose mean a regressor
    (three 1×1 convolutions) reads from the student's and whose variance, one a channel, is learned; Σ over the pairs.
    It may be negative. Without the constant ½·log 2π, as everywhere."""

    about = "variational information, arXiv 1904.05835; weight 1 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 1, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.make, self.regressor = torchdistill("losses").VIDLoss, torchdistill("models").Regressor4VID

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        self.loss = self.make(pairs(len(narrow)))
        sizes = ((own[0], known[0], known[0]) for own, known in zip(narrow, wide, strict=True))
        self.regressors = nn.ModuleList(self.regressor(*size, eps=1e-5, init_pred_var=5.0) for size in sizes).float()

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        resized = [same_size(*pair) for pair in zip(*aligned(student.maps, teacher.maps), strict=True)]
        own, known = zip(*resized, strict=True)
        expected = [regressor(own_map) for regressor, own_map in zip(self.regressors, own, strict=True)]
        return self.loss(io(*expected), io(*known))


class RKD(Baseline):
    """Relations: smooth L1 between the distances of all pairs (over their mean) and the angles of all triples of
    features, weighed 25 to 50. Memory grows with B³."""

    about = "relational, arXiv 1904.05068; weight 1, distance 25, angle 50 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 1, distance: float = 25, angle: float = 50):
        super().__init__(weight)
        self.distance, self.angle, self.make = distance, angle, torchdistill("losses").RKDLoss
        self.check()

    def check(self) -> None:
        super().check()
        check_settings({"distance": self.distance, "angle": self.angle}, {})

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        self.loss = self.make("0", "0", self.distance, self.angle, reduction="mean")

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return self.loss(io(student.features), io(teacher.features))


class PKT(Baseline):
    """Probabilistic knowledge: KL divergence between how probably samples of a batch are neighbours, by the cosine of
    their features. The mean over all B² entries, where the paper has the sum; the weight is published for the mean."""

    about = "probabilistic knowledge, arXiv 1803.10837; weight 30000 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 30_000):
        super().__init__(weight)
        self.loss = torchdistill("losses").PKTLoss("0", "output", "0", "output")

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return self.loss(io(student.features), io(teacher.features))


class ReviewKD(Baseline):
    """Knowledge review: from the last map to the first, each of the student's is fused with the deeper ones by
    attention and compared with the teacher's at several scales; the pooled features are the deepest map. The weight
    grows over the first `warmup_epochs`. The authors compare maps before their ReLU, here they are as the networks'
    blocks give them; and a student's map of another size is resized before the fusion, theirs after it."""

    about = (
        "knowledge review, arXiv 2104.09044; weight 0.6 for resnet56 → resnet20, its release has 1 for "
        "resnet110 → resnet32, 5 for the wide pairs, 8 for ShuffleV2"
    )
    needs_maps = True

    def __init__(
        self, weight: float = 0.6, warmup_epochs: int = 20, layers: Layers = None, teacher_layers: Layers = None
    ):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.warmup_epochs = warmup_epochs
        self.check()
        self.fusion = torchdistill("models").AttentionBasedFusion
        self.loss = torchdistill("losses").HierarchicalContextLoss("0", "output", "0", "output")

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        for _, height, width in wide:
            if height != width:
                raise ValueError(f"ReviewKD fuses square feature maps, the teacher's are {height}×{width}")
        inputs = [shape[0] for shape in narrow] + [student.feature_width]
        outputs = [shape[0] for shape in wide] + [teacher.feature_width]
        middle, deepest = min(512, inputs[-1]), len(inputs) - 1
        sizes = enumerate(zip(inputs, outputs, strict=True))
        self.fusions = nn.ModuleList(self.fusion(a, middle, b, uses_attention=i < deepest) for i, (a, b) in sizes)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        own, known = aligned(student.maps, teacher.maps)
        own = [F.interpolate(ours, theirs.shape[2:]) for ours, theirs in zip(own, known, strict=True)]
        own, known = [*own, student.features[:, :, None, None]], [*known, teacher.features[:, :, None, None]]
        total, fused = student.features.new_zeros(()), None
        for fusion, ours, theirs in zip(reversed(self.fusions), reversed(own), reversed(known), strict=True):
            output, fused = fusion(ours, fused, theirs.shape[-1])
            total = total + self.loss(io((output, fused)), io(theirs))
        return total


class DIST(Baseline):
    """Relations of predictions: 1 − Pearson's correlation between the probabilities of teacher and student, by sample
    and by class, both × τ². torchdistill's β and γ are 1: the paper's 2 and 2 are in the weight."""

    about = "stronger teacher, arXiv 2205.10536; weight 2 on both relations, τ = 4 on CIFAR-100"

    def __init__(self, weight: float = 2, temperature: float = 4):
        super().__init__(weight)
        self.temperature, self.make = temperature, torchdistill("losses").DISTLoss
        self.check()

    def check(self) -> None:
        super().check()
        check_settings({}, {"temperature": self.temperature})

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        self.loss = self.make("0", "output", "0", "output", tau=self.temperature)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return self.loss(io(student.logits), io(teacher.logits))


class LSKD(Baseline):
    """Logit standardisation: KD between logits of mean 0 and deviation 1 (over C − 1), × T². Cross-entropy counts 0.1,
    as in its authors' comparison of KD. torchdistill leaves out T² where it is not given the labels, so it is here."""

    about = "logit standardisation, arXiv 2403.01427; weight 9, T = 2, cross-entropy 0.1"

    def __init__(self, weight: float = 9, temperature: float = 2, cross_entropy_weight: float = 0.1):
        super().__init__(weight)
        self.temperature, self.cross_entropy_weight = temperature, cross_entropy_weight
        self.make = torchdistill("losses").LogitStdKDLoss
        self.check()

    def check(self) -> None:
        super().check()
        check_settings({"cross_entropy_weight": self.cross_entropy_weight}, {"temperature": self.temperature})

    def prepare(self, student: Classifier, teacher: Classifier, narrow: Shapes = (), wide: Shapes = ()) -> None:
        self.loss = self.make("0", "output", "0", "output", self.temperature, alpha=0)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return self.temperature**2 * self.loss(io(student.logits), io(teacher.logits))


class DKD(Baseline):
    """Decoupled KD: α · KL of "this class or another" + β · KL among the others, both × T², as in `decoupled_kl`; one
    β for all samples, where KD's is 1 − the teacher's p of the class. The weight grows over the first `warmup_epochs`.
    """

    about = (
        "decoupled, arXiv 2203.08679; weight 1, α = 1, T = 4, β = 2 for resnet56 → resnet20 and resnet110 → resnet32, "
        "its release has 8 for resnet32x4 → resnet8x4"
    )

    def __init__(
        self,
        weight: float = 1,
        alpha: float = 1,
        beta: float = 2,
        temperature: float = 4,
        warmup_epochs: int = 20,
    ):
        super().__init__(weight)
        self.alpha, self.beta, self.temperature, self.warmup_epochs = alpha, beta, temperature, warmup_epochs
        self.check()

    def check(self) -> None:
        super().check()
        check_settings({"alpha": self.alpha, "beta": self.beta}, {"temperature": self.temperature})

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        target, others = decoupled_kl(student.logits, teacher.logits, batch.labels, self.temperature)
        return (self.alpha * target + self.beta * others).mean()


BUILT = {cls.__name__: cls for cls in (FitNet, AT, SP, CC, VID, RKD, PKT, ReviewKD, DIST, LSKD, DKD)}

# What there is, with paper and published weight. `catalogue` has the names alone, and NOT_BUILT.
BASELINES: dict[str, str] = {name: cls.about for name, cls in BUILT.items()}


def baseline(name: str, **settings: Any) -> Baseline:
    """A method to compare with, by a name in `BASELINES`, in capitals or not; settings such as weight=… replace the
    published ones. Raises ValueError for an unknown name or setting, one in `NOT_BUILT` with the reason, and where
    torchdistill is needed and not installed; TypeError for a name that is no text."""
    if not isinstance(name, str):
        raise TypeError(f"a baseline is chosen by its name, got {type(name).__name__}")
    names = {known.lower(): known for known in (*BUILT, *NOT_BUILT)}
    found = names.get(name.lower())
    if found is None:
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    if found in NOT_BUILT:
        raise ValueError(f"{found} is not built: {NOT_BUILT[found]}; known: {', '.join(BASELINES)}")
    takes = inspect.signature(BUILT[found]).parameters
    if unknown := settings.keys() - takes.keys():
        raise ValueError(f"{found} has no setting {min(unknown)!r}; it has {', '.join(takes)}")
    return BUILT[found](**settings)


def decoupled_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T² · KL(teacher ‖ student) in two parts (arXiv 2203.08679), (B,) each, in nats, ≥ 0: between "the class of the
    label" and "another one", and among the others, renormalised. KD is target + (1 − p) · others, p being the teacher's
    probability of the label.

    student, teacher: logits, (B, C) · labels: (B,). Raises ValueError for what does not fit, TypeError for what is no
    tensor or no number.
    """
    losses.check_same_shape("logits", student, teacher)
    check_labels(labels, student)
    losses.check_temperature("temperature", temperature)
    label = F.one_hot(labels.long(), student.shape[1]).bool()

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = (logits / temperature).log_softmax(1)
        others = log_p.masked_fill(label, -math.inf).logsumexp(1)
        binary = torch.stack([log_p[label], others], 1)
        return binary, log_p[~label].unflatten(0, (len(labels), -1)).log_softmax(1)

    both = zip(parts(student), parts(teacher), strict=True)
    target, others = (F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1) for ours, theirs in both)
    return temperature**2 * target, temperature**2 * others


def torchdistill(part: str) -> ModuleType:
    """Its module of losses or of models, imported only when a baseline asks for it. Raises ValueError without it."""
    try:
        if part == "losses":
            from torchdistill.losses import mid_level as module
        else:
            from torchdistill.models import wrapper as module
    except ImportError:
        raise ValueError("this baseline needs the package torchdistill: pip install 'pckd_nb[baselines]'") from None
    return module


def io(*outputs: Any) -> dict[str, dict[str, Any]]:
    """What torchdistill takes for the outputs of modules: here their paths are "0", "1", …"""
    return {str(number): {"output": output} for number, output in enumerate(outputs)}


def pairs(count: int) -> dict[str, Any]:
    """torchdistill's pairing of the first `count` outputs of student and teacher."""
    place = [{"io": "output", "path": str(number)} for number in range(count)]
    return {where["path"]: {"student": where, "teacher": where} for where in place}


def aligned(student: Sequence[Any], teacher: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Both cut to the shorter one's length, counted from the end."""
    count = min(len(student), len(teacher))
    return student[len(student) - count :], teacher[len(teacher) - count :]


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller one's resolution, the larger averaged down to it."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    a, b = (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return a, b


def similarities(maps: Tensor) -> Tensor:
    """Inner products of all pairs of samples, each row over its L2 norm: (B, …) -> (B, B)."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)

"""The base class of all methods, and the two simplest methods: `Supervised` and `KD`."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Annotated, Any, Concatenate, Literal, NamedTuple, ParamSpec, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import losses, preview
from ..messages import one_line
from ..models import Classifier, Output
from ..models.maps import MapKind
from ..provenance import code_fingerprint, describe, public_attributes, structure_fingerprint
from ..short_help import ShortHelpModule
from ..tensor_checks import FLOAT_DTYPES, TEMPERATURE_RANGE, check_labels
from ..validation import Count, Fraction, NotNegative, Positive, Views, check, plain

P = ParamSpec("P")
Temperature = Annotated[Positive, Field(ge=TEMPERATURE_RANGE[0], le=TEMPERATURE_RANGE[1])]


class Batch(NamedTuple):
    """One batch, as a method receives it.

    Parameters
    ----------
    labels : int Tensor of shape (B,)
        Classes.
    index : int64 Tensor of shape (B,)
        Positions of the images in the training set.
    targets : float Tensor of shape (B, C), or None
        Class probabilities to learn instead of the labels, if labels are smoothed or mixed.
    """

    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # replaces tuple.index, which searches for a value
    targets: Tensor | None = None


class TrainingInfo(NamedTuple):
    """What a method may need to know before a training starts.

    Parameters
    ----------
    labels : int Tensor of shape (n,)
        Classes of all training images, on the CPU.
    epochs : int
        Number of epochs.
    seed : int
        Seed of the training.
    teacher_outputs : callable, optional
        A function that iterates over the outputs of the teacher for all training images: in batches, and in the order
        of `labels`. The images are neither augmented nor rotated. Its argument is the kind of feature maps that the
        outputs have, see `models.FeatureMaps`, or None for outputs without maps. The teacher is in eval mode, and
        computes in the dtype of its weights. Call the function in `Method.stages`. None without a teacher.
    """

    labels: Tensor
    epochs: int
    seed: int
    teacher_outputs: Callable[[MapKind | None], Iterable[Output]] | None = None


class Terms(NamedTuple):
    """The objective of one batch and the values to record.

    Parameters
    ----------
    total : scalar Tensor
        The objective.
    terms : dict of str to scalar Tensor
        Every loss term by name. It is not yet multiplied by its β.
    cross_entropy, difficulty, weight : float Tensor of shape (B,)
        One value per sample, without gradient. `preview` defines difficulty and weight.
    """

    total: Tensor
    terms: dict[str, Tensor]
    cross_entropy: Tensor
    difficulty: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Stage:
    """Something that a method trains before the first epoch of the training, see `Method.stages`.

    The `modules` are in train mode and get gradients. Everything else is frozen and in eval mode: student, teacher, and
    the other modules of the method. Optimizer, batch size and augmentation are those of the recipe. But images are not
    mixed, and the learning rate is constant except at the `milestones`.

    Parameters
    ----------
    name : str
        For messages and run.json.
    epochs : int, at least 1
    modules : sequence of nn.Module
        What is trained: the student, or modules of the method.
    loss : callable
        Takes the output of the student, the output of the teacher, and the `Batch`, and returns a scalar Tensor. The
        outputs have V·B rows. An output is None if the network is not needed.
    needs_student : bool
        Whether the loss needs the output of the student. If not, the student does not run.
    frozen : sequence of nn.Module
        Parts of `modules` that are not trained.
    views : int, from 1 to 4
        V, number of views of every image in this stage.
    lr : float, optional
        Learning rate for SGD. None means the recipe's, which is also used with any other optimizer.
    milestones : sequence of float, in [0, 1)
        When the learning rate is multiplied by `lr_decay`, as fractions of `epochs`.
    lr_decay : float

    Raises
    ------
    TypeError
        If a field has the wrong type.
    ValueError
        If a field is outside its range, or if there is no module.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> from torch import nn
    >>> class WithAutoencoder(pckd.KD):
    ...     def bind(self, student, teacher):
    ...         self.autoencoder = nn.Linear(teacher.feature_width, teacher.feature_width)
    ...         self.autoencoder.requires_grad_(False)  # it is trained in the stage only
    ...         return super().bind(student, teacher)
    ...     def stages(self, student, teacher):
    ...         def loss(student, teacher, batch):
    ...             return (self.autoencoder(teacher.features) - teacher.features).square().mean()
    ...         return [pckd.methods.Stage("autoencoder", 2, [self.autoencoder], loss)]
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> teacher, student = (pckd.create_model("resnet8", data, seed=seed) for seed in (0, 1))
    >>> run = pckd.distill(student, teacher, data, WithAutoencoder(), epochs=1, progress=False)
    >>> run.settings["stages"][0]["name"], len(run.settings["stages"][0]["loss"])
    ('autoencoder', 2)
    """

    name: str
    epochs: int
    modules: Sequence[nn.Module]
    loss: Callable[[Any, Any, Batch], Tensor]  # each output is an Output or None
    needs_student: bool = False
    frozen: Sequence[nn.Module] = ()
    views: int = 1
    lr: float | None = None
    milestones: Sequence[float] = ()
    lr_decay: float = 0.1

    def __post_init__(self) -> None:
        check(Count, epochs=self.epochs)
        check(Views, views=self.views)
        check(Positive | None, lr=self.lr)
        check(Positive, lr_decay=self.lr_decay)
        check(Sequence[Fraction], milestones=self.milestones)
        for field in ("modules", "frozen"):
            modules: object = getattr(self, field)
            is_list = isinstance(modules, list | tuple | nn.ModuleList)
            if not is_list or not all(isinstance(module, nn.Module) for module in cast(Sequence[object], modules)):
                got = one_line(repr(modules))
                raise TypeError(f"{field} of the stage {self.name} must be a list of modules, got {got}")
        if not self.modules:
            raise ValueError(f"the stage {self.name} trains no module: pass at least one in modules")
        if not callable(self.loss):
            raise TypeError(f"loss of the stage {self.name} must be a function, got {one_line(repr(self.loss))}")


def remember_arguments(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Decorate an `__init__` so that it records which settings the caller chose.

    A recipe may replace only the settings that the caller did not choose. `Method` decorates the `__init__` of all its
    subclasses. If your method is a plain nn.Module, decorate its `__init__` yourself. Otherwise, no recipe can replace
    its settings.

    These settings count as chosen:

    - an argument that the caller passed,
    - a value that a subclass passes to `super().__init__`, but not if the subclass has an argument of the same name:
      then it counts only if the caller passed this argument,
    - a value that a subclass assigns after `super().__init__()`,
    - a value that a subclass defines as a class attribute.

    Parameters
    ----------
    init : callable
        The `__init__` to decorate.

    Returns
    -------
    callable
        The decorated `__init__`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> class Mine(pckd.PCKD):
    ...     def __init__(self, gamma=1.0, beta_fa=3):
    ...         super().__init__(beta_fa=beta_fa, beta_kd=2)
    ...         self.gamma = gamma
    >>> Mine(gamma=5).explicit  # a recipe may replace all settings except these two
    {'beta_kd': 2, 'gamma': 5}
    """
    if getattr(init, "records_arguments", False):
        return init
    parameters = list(inspect.signature(init).parameters.values())[1:]
    own_parameters = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    own_names = {parameter.name for parameter in own_parameters}

    @wraps(init)
    def wrapped(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        given = inspect.signature(init).bind(self, *args, **kwargs).arguments
        init(self, *args, **kwargs)
        # The record of the base class's `__init__`, without the settings that are arguments of this one too.
        chosen = {name: value for name, value in vars(self).get("_chosen", {}).items() if name not in own_names}
        defaults = {name: value for name, value in vars(self).get("_defaults", {}).items() if name not in own_names}
        initial = vars(self).get("_initial_values", {})
        for name in list(defaults):  # this `__init__` has replaced a default of the base class
            if name in initial and not is_unchanged(getattr(self, name), initial[name]):
                chosen[name] = getattr(self, name)
                del defaults[name]
        for parameter in own_parameters:
            (chosen if parameter.name in given else defaults)[parameter.name] = given.get(
                parameter.name, parameter.default
            )
        for name, value in subclass_attributes(type(self), wrapped):
            if name in defaults:  # a class attribute of a subclass replaces a default
                setattr(self, name, value)
                del defaults[name]
                chosen[name] = value
        self._chosen, self._defaults = chosen, defaults
        names = [*(parameter.name for parameter in own_parameters), *vars(self).get("_setting_names", [])]
        self._setting_names = list(dict.fromkeys(name for name in names if name in chosen or name in defaults))
        self._initial_values = {name: getattr(self, name) for name in self._setting_names if hasattr(self, name)}
        self._initial_modules = list(self._modules)

    wrapped.records_arguments = True  # type: ignore[attr-defined]
    return wrapped


def subclass_attributes(cls: type, init: Callable[..., None]) -> Iterator[tuple[str, Any]]:
    """Yield the class attributes of a class and its base classes, up to the one that defines a given `__init__`.

    The attributes of that base class are not included.

    Parameters
    ----------
    cls : type
        The class of the object.
    init : callable
        `__init__` of `cls` or of one of its base classes.

    Yields
    ------
    name : str
    value : object
    """
    for base in cls.__mro__:
        if vars(base).get("__init__") is init:
            return
        for name, value in vars(base).items():
            if not name.startswith("_") and not callable(value) and not isinstance(value, property):
                yield name, value


class Method(ShortHelpModule):
    """Base class of all methods: a method turns the outputs of both networks into one objective.

    A subclass computes the objective in `forward`. It may create modules that are trained with the student in `bind`.
    The arguments of its `__init__` are its settings. It stores them in attributes of the same names. run.json records
    them, and a recipe may replace those that the caller did not choose.

    Any other nn.Module with `bind` and `forward` can be used too. Its attributes are recorded. A recipe can change them
    only if the `__init__` of the module is decorated with `remember_arguments`.

    Attributes
    ----------
    title : str
        Name in tables and legends. Default: the class name.
    views : int
        V, number of views of every image: the first V of the rotations by 0°, 90°, 180° and 270°.
    view_kind : {"rotations", "strong"}
        What the views are. "strong" means two views of every image, the second one with another crop and flip, and with
        strong augmentation, see `views.strong_transform`.
    uses_teacher : bool
        Whether the teacher's output is needed.
    needs_maps : bool
        Whether outputs must include feature maps: outputs of layers before pooling, of shape (B, channels, height,
        width). If so, `bind` gets an example image as a third argument.
    layers : list of str or None
        Names of the layers of the student whose outputs are the feature maps. None means the maps that distillation
        papers compare, see `models.FeatureMaps`.
    teacher_layers : list of str or None
        The same for the teacher.
    student_maps, teacher_maps : str
        Which maps to use if no layers are named, see the argument `kind` of `models.FeatureMaps`.
    epsilon : float or None
        ε of the preview threshold, which is ε to the power of the epoch. history.csv records the threshold of every
        epoch. None if the method has no threshold.
    left_out : dict
        After `bind`: the terms that cannot be computed for this pair of networks, and the reason for each.
    teacher_only_in_stages : bool
        Whether only the `stages` need the teacher. The epochs after them then run without it, and the teacher's output
        is None in `forward`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> class Doubled(pckd.KD):
    ...     def forward(self, student, teacher, batch, epoch):
    ...         terms = super().forward(student, teacher, batch, epoch)
    ...         return terms._replace(total=2 * terms.total)
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> teacher, student = (pckd.create_model("resnet8", data, seed=seed) for seed in (0, 1))
    >>> run = pckd.distill(student, teacher, data, Doubled(), epochs=1, progress=False)
    >>> run.settings["method"]["title"]
    'Doubled'
    """

    title: str
    views: int = 1
    uses_teacher: bool = True
    view_kind: Literal["rotations", "strong"] = "rotations"
    needs_maps: bool = False
    layers: Sequence[str] | None = None
    teacher_layers: Sequence[str] | None = None
    student_maps: MapKind = "stages"
    teacher_maps: MapKind = "stages"
    epsilon: float | None = None
    left_out: Mapping[str, str] = MappingProxyType({})
    teacher_only_in_stages: bool = False
    _help_only_here = (  # members that most methods do not define: see `short_help`
        "prepare_training", "published_settings", "wrap_student", "stages", "view_kind", "needs_maps", "layers",
        "teacher_layers", "student_maps", "teacher_maps", "teacher_only_in_stages",
    )  # fmt: skip

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = remember_arguments(cls.__init__)  # type: ignore[method-assign, assignment]
        if "title" not in vars(cls):
            cls.title = cls.__name__

    @property
    def explicit(self) -> dict[str, Any]:
        """Return the settings that the caller chose, by name."""
        return dict(vars(self).get("_chosen", {}))

    def check(self) -> None:
        """Check the settings.

        This runs again when a training begins, because attributes may have changed since construction.

        Raises
        ------
        ValueError
            If a setting is outside its range.
        TypeError
            If a setting has the wrong type.
        """

    def published_settings(self, teacher: str | None, student: str | None) -> Mapping[str, Any]:
        """Return the settings that were published for a pair of networks.

        They are used instead of the defaults, but not instead of settings that the caller or the recipe chose.

        Parameters
        ----------
        teacher, student : str or None
            Names of the networks, as in `create_model`. None if a network has no name.

        Returns
        -------
        dict
            Name → value.
        """
        return {}

    def prepare_training(self, info: TrainingInfo) -> None:
        """Take what is known before the training starts. It is called before `bind`.

        Parameters
        ----------
        info : TrainingInfo
        """

    def wrap_student(self, student: Classifier, teacher: Classifier | None, example: Tensor) -> Classifier:
        """Return the network that is trained, evaluated and saved. It is called before `bind`.

        Most methods train the student as it is. A run folder can store other networks only if `Run.model` can create
        them, such as `models.SimKDNetwork`.

        Parameters
        ----------
        student : Classifier
        teacher : Classifier or None
        example : Tensor of shape (1, C, H, W)
            One image.

        Returns
        -------
        Classifier
            `student` by default.
        """
        return student

    def stages(self, student: Classifier, teacher: Classifier | None) -> Sequence[Stage]:
        """Return what is trained before the first epoch, in this order. It is called after `bind`.

        A module that is trained in a stage only needs `requires_grad_(False)` in `bind`. The stage trains it anyway.

        A method can also compute something from the training images here, see `TrainingInfo.teacher_outputs`. Store it
        in a buffer, and do not compute it again if a resumed run has it already.

        Parameters
        ----------
        student : Classifier
        teacher : Classifier or None

        Returns
        -------
        sequence of Stage
            Empty by default.
        """
        return ()

    def _bind(self, student: Classifier, teacher: Classifier | None = None, *example: Tensor) -> object:
        """Create the modules that are trained with the student.

        Do not store a network in an attribute: it would become a part of the method.

        Parameters
        ----------
        student : Classifier
        teacher : Classifier or None
        *example : Tensor of shape (1, C, H, W)
            One image, given only if `needs_maps` is True.

        Returns
        -------
        object
            The method itself. The return value is not used.
        """
        return self

    def _forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student : Output
            V·B rows: first the B images that are not rotated, then the B images rotated by 90°, and so on.
        teacher : Output or None
            The same rows of the teacher.
        batch : Batch
        epoch : int
            Counted from 1.

        Returns
        -------
        Terms
            The objective, its terms, and the values to record.
        """
        raise NotImplementedError

    # Declared as callables, as nn.Module declares forward. Type checkers then accept other arguments in a subclass.
    bind: Callable[..., object] = _bind
    forward: Callable[..., Terms] = _forward

    def extra_repr(self) -> str:
        """Return the settings that the caller chose, for `repr`."""
        return ", ".join(f"{name}={describe(value)!r}" for name, value in self.explicit.items())


# Attributes that a plain nn.Module does not need to define.
OPTIONAL_ATTRIBUTES = (
    "views", "view_kind", "uses_teacher", "needs_maps", "layers", "teacher_layers", "student_maps", "teacher_maps",
    "epsilon", "left_out", "teacher_only_in_stages",
)  # fmt: skip


def require_method(method: object) -> None:
    """Check that `method` can train a student.

    Parameters
    ----------
    method : object

    Raises
    ------
    TypeError
        If `method` is a class, or if it is not an nn.Module with `bind` and `forward`.
    """
    if isinstance(method, type):
        raise TypeError(f"method must be an object: write {method.__name__}(), not {method.__name__}")
    if not isinstance(method, nn.Module):
        raise TypeError(f"method must be an nn.Module such as PCKD(), got {type(method).__name__}")
    for name in ("bind", "forward"):
        if not callable(getattr(method, name, None)) or getattr(type(method), name, None) is nn.Module.forward:
            raise TypeError(f"method {type(method).__name__} has no {name}(): see pckd_nb.methods.Method")


class Supervised(Method):
    r"""Training with the labels only, without a teacher.

    .. math::

        L = \frac{1}{B} \sum_i \mathrm{CE}_i

    CE_i is the cross-entropy of image i, and B is the batch size.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> student = pckd.create_model("resnet8", data, seed=0)
    >>> run = pckd.distill(student, None, data, pckd.Supervised(), epochs=1, progress=False)
    >>> len(run.history)
    1
    """

    title = "supervised"
    uses_teacher = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student : Output
            B rows.
        teacher : Output or None
            Not used.
        batch : Batch
        epoch : int
            Not used.

        Returns
        -------
        Terms
            All sample weights are 1.

        Raises
        ------
        TypeError
            If logits or labels are not tensors.
        ValueError
            If logits and labels do not match.
        """
        return supervised_terms(student, batch, self.views)


class KD(Method):
    r"""Knowledge distillation: the student learns from the labels and from the teacher's logits.

    .. math::

        L = w_{\mathrm{CE}} \, \overline{\mathrm{CE}} + \beta_{\mathrm{kd}} \, \overline{L_{\mathrm{KD}}}

    CE is the cross-entropy, and its bar is the mean over the B images of the batch. L_KD is `losses.distillation_kl`,
    and its bar is the mean over all V·B rows. A row is one of V rotated views of an image.

    Publications use different weights. RepDistiller, mdistiller and SSKD have w_CE = 0.1 and β_kd = 0.9 with T = 4.
    Many tables of results use these weights too. SimKD has 1 and 1, which are the defaults here.

    Parameters
    ----------
    temperature : float, in [1e-6, 1e6]
        T of L_KD.
    beta_kd : float
        β_kd, at least 0.
    ce_weight : float
        w_CE, at least 0.
    views : int, from 1 to 4
        V. KD has one view in all publications. With as many views as `PCKD`, it sees the same images. Compare it with
        KD with one view to see the effect of the rotations alone.

    Raises
    ------
    TypeError
        If a setting is not a number.
    ValueError
        If a setting is outside its range.

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> teacher, student = (pckd.create_model("resnet8", data, seed=seed) for seed in (0, 1))
    >>> run = pckd.distill(student, teacher, data, pckd.KD(temperature=2), epochs=1, progress=False)
    >>> "distillation_kl" in run.history
    True
    """

    title = "KD"

    def __init__(self, temperature: float = 4.0, beta_kd: float = 1.0, ce_weight: float = 1.0, views: int = 1):
        super().__init__()
        self.temperature, self.beta_kd, self.ce_weight, self.views = temperature, beta_kd, ce_weight, plain(views)
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        check(NotNegative, beta_kd=self.beta_kd, ce_weight=self.ce_weight)
        check(Temperature, temperature=self.temperature)
        check(Views, views=self.views)

    def bind(self, student: Classifier, teacher: Classifier) -> "KD":
        """Check that both networks have the same number of classes. KD trains no modules of its own.

        Parameters
        ----------
        student, teacher : Classifier

        Returns
        -------
        KD
            This object.

        Raises
        ------
        ValueError
            If the numbers of classes differ.
        """
        check_same_classes(student, teacher)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student, teacher : Output
            V·B rows: first the B images that are not rotated, then the B images rotated by 90°, and so on.
        batch : Batch
        epoch : int
            Not used.

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
        kl = losses.distillation_kl(student.logits, teacher.logits.detach(), self.temperature).mean()
        terms = {"cross_entropy": classification_loss(student, batch, cross_entropy), "distillation_kl": kl}
        total = self.ce_weight * terms["cross_entropy"] + self.beta_kd * kl
        return Terms(total, terms, *equal_weights(cross_entropy))


def supervised_terms(student: Output, batch: Batch, views: int) -> Terms:
    """Return the objective of supervised training, which is the classification term alone.

    Parameters
    ----------
    student : Output
        V·B rows.
    batch : Batch
    views : int
        V.

    Returns
    -------
    Terms
        All sample weights are 1.
    """
    cross_entropy = upright_cross_entropy(student, batch, views)
    total = classification_loss(student, batch, cross_entropy)
    return Terms(total, {"cross_entropy": total}, *equal_weights(cross_entropy))


def upright_cross_entropy(student: Output, batch: Batch, views: int | None = None) -> Tensor:
    """Return the cross-entropy of every sample in the upright view, which is the image that is not rotated.

    Parameters
    ----------
    student : Output
        Its logits have shape (V·B, C). The first B rows are the upright view.
    batch : Batch
    views : int, optional
        V. None accepts any number of views.

    Returns
    -------
    float Tensor of shape (B,)
        In nats.

    Raises
    ------
    TypeError
        If logits or labels are not tensors.
    ValueError
        If the shapes of logits and labels do not match, if a dtype is wrong, or if a label is outside the range of
        classes.
    """
    logits, labels = student.logits, batch.labels
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"logits and labels must be tensors, got {type(logits).__name__} and {type(labels).__name__}")
    if logits.ndim != 2 or 0 in logits.shape or logits.dtype not in FLOAT_DTYPES:
        raise ValueError(f"logits must be floats of shape (N, C), got {logits.dtype} of shape {tuple(logits.shape)}")
    if labels.ndim != 1 or not len(labels) or len(logits) % len(labels):
        raise ValueError(
            f"the number of rows of logits must be a multiple of the number of labels, got {len(logits)} rows and "
            f"labels of shape {tuple(labels.shape)}"
        )
    if views is not None and len(logits) != views * len(labels):
        raise ValueError(
            f"logits must have one row per view and label, got {len(logits)} rows for {views} views and "
            f"{len(labels)} labels"
        )
    upright = logits[: len(labels)]
    check_labels(labels, upright, num_classes=upright.shape[1])
    return F.cross_entropy(upright, labels.long(), reduction="none")


def classification_loss(student: Output, batch: Batch, cross_entropy: Tensor) -> Tensor:
    """Return the classification term of the objective for the upright view.

    If the batch has soft targets, this is the mean cross-entropy with them. Otherwise it is the mean of
    `cross_entropy`.

    Parameters
    ----------
    student : Output
    batch : Batch
    cross_entropy : float Tensor of shape (B,)
        Cross-entropy of the labels, in nats.

    Returns
    -------
    scalar Tensor
        In nats.
    """
    if batch.targets is None:
        return cross_entropy.mean()
    return F.cross_entropy(student.logits[: len(batch.labels)], batch.targets)


def resolve_settings(
    method: nn.Module,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    pair: tuple[str | None, str | None] = (None, None),
) -> tuple[Method, dict[str, dict[str, Any]]]:
    """Return a copy of a method with the final values of its settings, and the source of every value.

    The first of these that exists is used: the value that the caller chose, the value in the recipe, the value that was
    published for this pair of networks, the value in the data set, the default. The data set can only lower the number
    of views. Other attributes of your own method are copied and recorded, but not changed.

    Parameters
    ----------
    method : Method, or nn.Module with `bind` and `forward`
    recipe : dict
        Settings from a recipe, by name.
    data : dict
        Settings that the data set defines: {"views": its default number of views}.
    pair : (str or None, str or None)
        Names of teacher and student, to look up the published settings, see `Method.published_settings`.

    Returns
    -------
    method : Method
        The copy. An nn.Module that is not a `Method` gets the missing attributes.
    settings : dict
        {"beta_cc": {"value": 0.005, "from": "recipe"}, …}, as in run.json. "from" is "argument", "attribute" (changed
        after construction), "recipe", "published for TEACHER → STUDENT", "data set" or "default".

    Raises
    ------
    TypeError
        If `method` is not a method, or if it cannot be copied.
    ValueError
        If a setting is not valid, if no method has a setting of the recipe, or if the method does not store a setting
        of the recipe in an attribute of the same name.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> method, settings = pckd.methods.resolve_settings(pckd.KD(), {"temperature": 2.0}, {})
    >>> method.temperature
    2.0
    >>> settings["temperature"]
    {'value': 2.0, 'from': 'recipe'}
    """
    require_method(method)
    attributes = vars(method)
    known_names = all_setting_names().union(attributes.get("_setting_names", []))
    if unknown := [name for name in recipe if name not in known_names]:
        raise ValueError(f"the recipe sets {unknown[0]}, but no method has a setting of this name")
    initial, chosen, defaults = (attributes.get(name, {}) for name in ("_initial_values", "_chosen", "_defaults"))
    changed = {name for name, value in initial.items() if not is_unchanged(getattr(method, name, None), value)}
    copied = copy_method(method)
    missing = {name: getattr(Method, name) for name in OPTIONAL_ATTRIBUTES} | {"title": type(method).__name__}
    for name, value in missing.items():
        if not hasattr(copied, name):
            setattr(copied, name, value)
    settings = {}
    published: Mapping[str, Any] = getattr(method, "published_settings", lambda *names: {})(*pair)
    sources = (("recipe", recipe), (f"published for {pair[0]} → {pair[1]}", published), ("data set", data))
    for name in attributes.get("_setting_names", []):
        source = "attribute" if name in changed else "argument" if name in chosen else "default"
        if source == "default":
            for source_of, values in sources:
                if name in values and not (source_of == "data set" and values[name] > getattr(copied, name, math.inf)):
                    if name not in initial:
                        raise ValueError(
                            f"the {source_of} sets {name}, but {type(method).__name__} does not store it: "
                            f"write self.{name} = {name} in its __init__"
                        )
                    setattr(copied, name, values[name])
                    source = source_of
                    break
        value = getattr(copied, name) if source != "argument" and name in initial else {**defaults, **chosen}[name]
        settings[name] = {"value": value, "from": source}
    recorded = {*settings, "title", "left_out"}
    others = {name: value for name, value in public_attributes(method).items() if name not in recorded}
    if code_fingerprint(type(method)) is None:  # a method of this package: record only attributes that were changed
        others = {name: value for name, value in others.items() if hasattr(type(method), name)}
    else:
        parts = [(name, method._modules[name]) for name in attributes.get("_initial_modules", method._modules)]
        others |= {name: f"{type(part).__name__} [{structure_fingerprint(part)}]" for name, part in parts if part}
    settings |= {name: {"value": value, "from": "attribute"} for name, value in others.items()}
    if isinstance(copied, Method):
        copied.check()
    return cast(Method, copied), settings


def all_setting_names() -> set[str]:
    """Return the names of the settings of all methods in this package."""
    found, classes = set[str](), [Method]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if "__init__" in vars(cls) and code_fingerprint(cls) is None:
            found |= set(inspect.signature(cls).parameters)
    return found


def copy_method(method: nn.Module) -> nn.Module:
    """Return a deep copy of a method.

    Raises
    ------
    TypeError
        If it cannot be copied.
    """
    try:
        return copy.deepcopy(method)
    except Exception as error:  # an attribute that cannot be copied may raise any exception
        reason = one_line(error)
        raise TypeError(f"method {type(method).__name__} can't be copied for this training: {reason}") from error


def is_unchanged(value: Any, initial: Any) -> bool:
    """Return whether an attribute still has the value that `__init__` gave it."""
    return value is initial or (type(value) is type(initial) and describe(value) == describe(initial))


def equal_weights(cross_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy, difficulty and weight, as in `Terms`, for a method that gives every sample the weight 1.

    Parameters
    ----------
    cross_entropy : float Tensor of shape (B,)
        In nats.

    Returns
    -------
    cross_entropy : float Tensor of shape (B,)
        Without gradient.
    difficulty : float Tensor of shape (B,)
        γ ≥ 0.
    weight : float Tensor of shape (B,)
        All 1.

    Raises
    ------
    TypeError
        As in `preview.difficulty`.
    ValueError
        As in `preview.difficulty`.
    """
    cross_entropy = cross_entropy.detach()
    return cross_entropy, preview.difficulty(cross_entropy), torch.ones_like(cross_entropy)


def check_same_classes(student: Classifier, teacher: Classifier) -> None:
    """Raise ValueError if the networks have different numbers of classes."""
    if student.num_classes != teacher.num_classes:
        counts = f"the teacher has {teacher.num_classes} classes, the student {student.num_classes}"
        raise ValueError(f"teacher and student must have the same classes: {counts}")


def require_teacher(method: nn.Module, output: Output | None) -> None:
    """Raise ValueError if the teacher's output is None."""
    if output is None:
        raise ValueError(
            f"{method.title} compares the student's output with the teacher's, but the teacher's is None: pass the "
            "teacher's output to forward"
        )

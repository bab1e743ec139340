"""The base class of all methods, and the two simplest ones: `Supervised` and `KD`."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, NamedTuple, ParamSpec, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses, preview
from ..downloads import one_line
from ..models import Classifier, Output
from ..provenance import code_fingerprint, describe, public_attributes, structure_fingerprint
from ..short_help import ShortHelpModule
from ..validation import NotNegative, Positive, check

P = ParamSpec("P")


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


class Terms(NamedTuple):
    """The objective of one batch and the values to record.

    Parameters
    ----------
    total : scalar Tensor
        The objective.
    terms : dict of str to scalar Tensor
        Every loss term by name, as in the objective but before it is multiplied by its β.
    cross_entropy, difficulty, weight : float Tensor of shape (B,)
        One value per sample, without gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]
    cross_entropy: Tensor
    difficulty: Tensor
    weight: Tensor


def remember_arguments(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Make an `__init__` record which settings the caller chose. A recipe may replace only the others.

    `Method` does this for all of its subclasses. A plain nn.Module needs the decorator.

    Settings that a subclass passes to `super().__init__` count as chosen. The exception is a setting that is also an
    argument of the subclass. It is chosen only if the caller of the subclass passed it. A value that a subclass assigns
    after `super().__init__()`, or as a class attribute, counts as chosen too.

    Parameters
    ----------
    init : callable
        The `__init__` to decorate.

    Returns
    -------
    callable

    Examples
    --------
    >>> class Mine(PCKD):
    ...     def __init__(self, gamma=1.0, beta_fa=3):
    ...         super().__init__(beta_fa=beta_fa, beta_kd=2)
    ...         self.gamma = gamma

    `Mine(gamma=5)` has chosen gamma and beta_kd. A recipe may replace beta_fa and all other settings.
    """
    if getattr(init, "remembers", False):
        return init
    parameters = list(inspect.signature(init).parameters.values())[1:]
    own = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    own_names = {parameter.name for parameter in own}

    @wraps(init)
    def wrapped(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        given = inspect.signature(init).bind(self, *args, **kwargs).arguments
        init(self, *args, **kwargs)
        # What the `__init__` of a base class has recorded, without the settings that are arguments of this one too.
        chosen = {name: value for name, value in vars(self).get("_chosen", {}).items() if name not in own_names}
        left_open = {name: value for name, value in vars(self).get("_open", {}).items() if name not in own_names}
        built = vars(self).get("_built", {})
        for name in list(left_open):  # this `__init__` set a value that the inner one left open
            if name in built and not same(getattr(self, name), built[name]):
                chosen[name] = getattr(self, name)
                del left_open[name]
        for parameter in own:
            (chosen if parameter.name in given else left_open)[parameter.name] = given.get(
                parameter.name, parameter.default
            )
        for name, value in set_by_subclass(type(self), wrapped):
            if name in left_open:  # a class attribute of a subclass replaces an argument
                setattr(self, name, value)
                del left_open[name]
                chosen[name] = value
        self._chosen, self._open = chosen, left_open
        known = [*(parameter.name for parameter in own), *vars(self).get("_order", [])]
        self._order = list(dict.fromkeys(name for name in known if name in chosen or name in left_open))
        self._built = {name: getattr(self, name) for name in self._order if hasattr(self, name)}
        self._parts = list(self._modules)

    wrapped.remembers = True  # type: ignore[attr-defined]
    return wrapped


def set_by_subclass(cls: type, init: Callable[..., None]) -> Iterator[tuple[str, Any]]:
    """Find the class attributes that subclasses of the class with this `__init__` define.

    Parameters
    ----------
    cls : type
    init : callable

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
    """Base class of distillation methods: it combines the outputs of both networks into one objective.

    A subclass computes the objective in `forward`. It may create modules that are trained with the student in `bind`.
    Arguments of its `__init__` that are stored under their own names are its settings. run.json records them, and a
    recipe may replace those that the caller did not choose.

    Any other nn.Module with `bind` and `forward` can be used too. Its attributes are recorded, and a recipe does not
    change them.

    Parameters
    ----------
    title : str
        Name in tables and legends. Default: the class name.
    views : int
        Number of rotations of every image that the networks see, from 1 to 4.
    uses_teacher : bool
        Whether the teacher's output is needed.
    needs_maps : bool
        Whether outputs must include feature maps. If so, `bind` gets an example image as a third argument.
    layers : list of str or None
        Layers of the student whose outputs are these maps. None finds the last one of every resolution, see
        `FeatureMaps`.
    teacher_layers : list of str or None
        The same for the teacher.
    epsilon : float or None
        Base of the preview threshold, which history.csv records for every epoch. None if the method has no threshold.
    left_out : dict
        After `bind`: terms that are not computed for this pair of networks, each with the reason.
    """

    title: str
    views: int = 1
    uses_teacher: bool = True
    needs_maps: bool = False
    layers: Sequence[str] | None = None
    teacher_layers: Sequence[str] | None = None
    epsilon: float | None = None
    left_out: Mapping[str, str] = MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = remember_arguments(cls.__init__)  # type: ignore[method-assign, assignment]
        if "title" not in vars(cls):
            cls.title = cls.__name__

    @property
    def explicit(self) -> dict[str, Any]:
        """The settings that the caller chose, by name."""
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

    def _bind(self, student: Classifier, teacher: Classifier | None = None, *example: Tensor) -> object:
        """Create the modules that are trained with the student. Do not keep a reference to a network.

        Parameters
        ----------
        student : Classifier
        teacher : Classifier or None
        *example : Tensor of shape (1, C, H, W)
            An image, only if `needs_maps`.
        """
        return self

    def _forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student : Output
            V·B rows, view-major: all rows of the upright view come first.
        teacher : Output or None
            The same rows of the teacher.
        batch : Batch
        epoch : int
            Counted from 1.

        Returns
        -------
        Terms
        """
        raise NotImplementedError

    # Declared as callables, as nn.Module declares forward. Type checkers then accept other arguments in a subclass.
    bind: Callable[..., object] = _bind
    forward: Callable[..., Terms] = _forward

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={describe(value)!r}" for name, value in self.explicit.items())


# Attributes that a plain nn.Module does not need to define.
OPTIONAL = ("views", "uses_teacher", "needs_maps", "layers", "teacher_layers", "epsilon", "left_out")


def require_method(method: object) -> None:
    """Check that `method` can train a student.

    Parameters
    ----------
    method : object

    Raises
    ------
    TypeError
        If it is a class, or is not an nn.Module with `bind` and `forward`.
    """
    if isinstance(method, type):
        raise TypeError(f"method must be an object: write {method.__name__}(), not {method.__name__}")
    if not isinstance(method, nn.Module):
        raise TypeError(f"method must be an nn.Module such as PCKD(), got {type(method).__name__}")
    for name in ("bind", "forward"):
        if not callable(getattr(method, name, None)) or getattr(type(method), name, None) is nn.Module.forward:
            raise TypeError(f"method {type(method).__name__} has no {name}: see pckd_nb.methods.Method")


class Supervised(Method):
    """Cross-entropy of the upright view, without a teacher.

    Examples
    --------
    >>> run = distill(student, None, data, Supervised())
    """

    title = "supervised"
    uses_teacher = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of B upright rows. `teacher` and `epoch` are ignored.

        Raises the errors of `upright_cross_entropy`.
        """
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        total = classification_loss(student, batch, cross_entropy)
        terms = {"cross_entropy": total}
        return Terms(total, terms, *unweighted(cross_entropy))


class KD(Method):
    """Hinton's knowledge distillation (arXiv 1503.02531).

        L = mean CE + β_kd · mean L_KD

    Parameters
    ----------
    temperature : float
        From 1e-6 to 1e6.
    beta_kd : float
        Weight of L_KD, at least 0.

    Raises
    ------
    ValueError
        If a setting is outside its range.
    TypeError
        If a setting is not a number.

    Examples
    --------
    >>> run = distill(student, teacher, data, KD(temperature=2))
    """

    title = "KD"

    def __init__(self, temperature: float = 4.0, beta_kd: float = 1.0):
        super().__init__()
        self.temperature, self.beta_kd = temperature, beta_kd
        self.check()

    def check(self) -> None:
        check_settings({"beta_kd": self.beta_kd}, {"temperature": self.temperature})

    def bind(self, student: Classifier, teacher: Classifier) -> "KD":
        """Check that both networks have the same number of classes. Raises ValueError otherwise. KD has no heads."""
        same_classes(student, teacher)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of B upright rows of both networks. `epoch` is ignored.

        Raises
        ------
        ValueError
            If shapes, dtypes or devices do not match, or if `teacher` is None.
        TypeError
            If an argument is not a tensor.
        """
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        needs_teacher(self, teacher)
        kl = losses.distillation_kl(student.logits, teacher.logits.detach(), self.temperature).mean()
        terms = {"cross_entropy": classification_loss(student, batch, cross_entropy), "distillation_kl": kl}
        total = terms["cross_entropy"] + self.beta_kd * kl
        return Terms(total, terms, *unweighted(cross_entropy))


def upright_cross_entropy(student: Output, batch: Batch, views: int | None = None) -> Tensor:
    """Return the cross-entropy of every sample in the upright view.

    Parameters
    ----------
    student : Output
        Its logits have shape (V·B, C), the upright rows first.
    batch : Batch
    views : int, optional
        The required number of views V.

    Returns
    -------
    float Tensor of shape (B,)
        In nats.

    Raises
    ------
    ValueError
        If logits and labels do not match.
    TypeError
        If logits or labels are not tensors.
    """
    logits, labels = student.logits, batch.labels
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"logits and labels must be tensors, got {type(logits).__name__} and {type(labels).__name__}")
    if logits.ndim != 2 or 0 in logits.shape or logits.dtype not in losses.FLOATS:
        raise ValueError(f"logits must be numbers of shape (N, C), got {logits.dtype} of {tuple(logits.shape)}")
    if labels.ndim != 1 or not len(labels) or len(logits) % len(labels):
        raise ValueError(f"logits have {len(logits)} rows, which is no multiple of labels {tuple(labels.shape)}")
    if views is not None and len(logits) != views * len(labels):
        raise ValueError(f"logits have {len(logits)} rows, for {views} views and {len(labels)} labels")
    upright = logits[: len(labels)]
    check_labels(labels, upright)
    return F.cross_entropy(upright, labels.long(), reduction="none")


def classification_loss(student: Output, batch: Batch, cross_entropy: Tensor) -> Tensor:
    """Return the classification term of the objective for the upright view.

    It is the mean cross-entropy with the soft targets of the batch. Without soft targets it is the mean of
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


def resolve(
    method: nn.Module, recipe: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[Method, dict[str, dict[str, Any]]]:
    """Return a copy of `method` with all settings decided, and the source of each setting.

    A setting is the caller's argument or attribute. Otherwise it is the recipe's value, then the data set's, then the
    default. Other attributes of your own method are copied and recorded unchanged.

    Parameters
    ----------
    method : Method, or nn.Module with bind and forward
    recipe, data : dict of str to value
        Settings from a recipe and from a data set, by name.

    Returns
    -------
    method : Method
        The copy. An nn.Module that is not a `Method` gets the missing attributes.
    settings : dict
        {"beta_cc": {"value": 0.005, "from": "recipe"}, …}, as in run.json. "from" is "argument", "attribute" (changed
        after construction), "recipe", "data set" or "default".

    Raises
    ------
    TypeError
        If `method` is not a method, or cannot be copied.
    ValueError
        If a setting is invalid, or if a recipe sets one that the method does not store under its name.
    """
    require_method(method)
    own = vars(method)
    known = known_settings().union(own.get("_order", []))
    if unknown := [name for name in recipe if name not in known]:
        raise ValueError(f"the recipe sets {unknown[0]}, which is a setting of no method")
    built, chosen, left_open = (own.get(name, {}) for name in ("_built", "_chosen", "_open"))
    changed = {name for name, value in built.items() if not same(getattr(method, name, None), value)}
    copied = copy_of(method)
    for name, value in {**{name: getattr(Method, name) for name in OPTIONAL}, "title": type(method).__name__}.items():
        if not hasattr(copied, name):
            setattr(copied, name, value)
    settings = {}
    for name in own.get("_order", []):
        source = "attribute" if name in changed else "argument" if name in chosen else "default"
        if source == "default":
            for source_of, values in (("recipe", recipe), ("data set", data)):
                if name in values:
                    if name not in built:
                        raise ValueError(f"the {source_of} sets {name}, which {type(method).__name__} does not keep")
                    setattr(copied, name, values[name])
                    source = source_of
                    break
        value = getattr(copied, name) if source != "argument" and name in built else {**left_open, **chosen}[name]
        settings[name] = {"value": value, "from": source}
    others = {
        name: value for name, value in public_attributes(method).items() if name not in {*settings, "title", "left_out"}
    }
    if code_fingerprint(type(method)) is None:  # methods of this package: only what was changed after construction
        others = {name: value for name, value in others.items() if hasattr(type(method), name)}
    else:
        parts = [(name, method._modules[name]) for name in own.get("_parts", method._modules)]
        others |= {name: f"{type(part).__name__} [{structure_fingerprint(part)}]" for name, part in parts if part}
    settings |= {name: {"value": value, "from": "attribute"} for name, value in others.items()}
    if isinstance(copied, Method):
        copied.check()
    return cast(Method, copied), settings


def known_settings() -> set[str]:
    """Return the names of the settings of all methods in this package."""
    found, classes = set[str](), [Method]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if "__init__" in vars(cls) and code_fingerprint(cls) is None:
            found |= set(inspect.signature(cls).parameters)
    return found


def copy_of(method: nn.Module) -> nn.Module:
    """Return a deep copy. Raises TypeError, with the method's name, if it cannot be copied."""
    try:
        return copy.deepcopy(method)
    except Exception as error:  # an attribute that can't be copied may raise anything
        what = one_line(error)
        raise TypeError(f"method {type(method).__name__} can't be copied for this training: {what}") from error


def same(now: Any, before: Any) -> bool:
    """Return whether an attribute still has the value that `__init__` gave it."""
    return now is before or (type(now) is type(before) and describe(now) == describe(before))


def unweighted(cross_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last three fields of `Terms` for a method that weights all samples equally.

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
    ValueError
        As in `preview.difficulty`.
    TypeError
        As in `preview.difficulty`.
    """
    cross_entropy = cross_entropy.detach()
    return cross_entropy, preview.difficulty(cross_entropy), torch.ones_like(cross_entropy)


def same_classes(student: Classifier, teacher: Classifier) -> None:
    """Raise ValueError if the networks have different numbers of classes."""
    if student.num_classes != teacher.num_classes:
        raise ValueError(f"the teacher knows {teacher.num_classes} classes, the student {student.num_classes}")


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Check that labels match the logits.

    Labels outside the range of classes are detected only on a CPU. A GPU would have to wait for this check.

    Parameters
    ----------
    labels : int Tensor of shape (B,)
    logits : float Tensor of shape (B, C)

    Raises
    ------
    ValueError
        If the labels are not integers from 0 to C − 1, one per row and on the same device.
    TypeError
        If `labels` is not a tensor.
    """
    losses.check_labels(labels, logits)
    if labels.device.type == "cpu":
        lowest, highest = map(int, labels.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}, got {lowest} to {highest}")


def needs_teacher(method: nn.Module, output: Output | None) -> None:
    """Raise ValueError if the teacher's output is None."""
    if output is None:
        raise ValueError(f"{method.title} compares the student's output with the teacher's, which is None")


def check_settings(not_negative: dict[str, float], positive: dict[str, float]) -> None:
    """Check the types and ranges of settings. Errors name the setting.

    Parameters
    ----------
    not_negative : dict
        Values that must be finite and at least 0.
    positive : dict
        Values that must be finite and positive. Temperatures must also be in `losses.TEMPERATURES`.

    Raises
    ------
    TypeError
        If a value is not a number.
    ValueError
        If a value is outside its range.
    """
    check(NotNegative, **not_negative)
    check(Positive, **positive)
    for name, value in positive.items():
        if name.endswith("temperature"):
            losses.check_temperature(name, value)

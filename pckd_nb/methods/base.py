"""What all methods share, and the two plain ones: `Supervised` and `KD`."""

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
from ..provenance import code_fingerprint, describe, public, structure_fingerprint
from ..validation import NotNegative, Positive, check

P = ParamSpec("P")


class Batch(NamedTuple):
    """One batch, as a method sees it.

    labels : (B,) categories · index : (B,) positions of the images in the training set · targets : (B, C) probabilities
    to learn in place of the labels, where these are smoothed or mixed; else None.
    """

    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which looks for a value
    targets: Tensor | None = None


class Terms(NamedTuple):
    """What one batch gave.

    total: the objective, a scalar · terms: every loss term by name, a scalar each, as it enters the objective but
    before its β · cross_entropy, difficulty, weight: (B,), without gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]
    cross_entropy: Tensor
    difficulty: Tensor
    weight: Tensor


def remember_arguments(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Let an `__init__` record which settings the caller chose. A recipe may replace only the others.

    `Method` does this for all of its subclasses. A plain nn.Module needs the decorator.

    Settings that a subclass passes to `super().__init__` count as chosen. The exception is a setting that is also an
    argument of the subclass: it is chosen only if the caller of the subclass gave it. A value that a subclass assigns
    after `super().__init__()`, or as a class attribute, counts as chosen too.

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
    own = [about for about in parameters if about.kind not in (about.VAR_POSITIONAL, about.VAR_KEYWORD)]
    own_names = {about.name for about in own}

    @wraps(init)
    def wrapped(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        given = inspect.signature(init).bind(self, *args, **kwargs).arguments
        init(self, *args, **kwargs)
        # What the `__init__` of a base class has written down, without what is a setting of this one too.
        chosen = {name: value for name, value in vars(self).get("_chosen", {}).items() if name not in own_names}
        left_open = {name: value for name, value in vars(self).get("_open", {}).items() if name not in own_names}
        built = vars(self).get("_built", {})
        for name in list(left_open):  # this `__init__` has set what the inner one left open
            if name in built and not same(getattr(self, name), built[name]):
                chosen[name] = getattr(self, name)
                del left_open[name]
        for about in own:
            (chosen if about.name in given else left_open)[about.name] = given.get(about.name, about.default)
        for name, value in set_by_subclass(type(self), wrapped):
            if name in left_open:  # a class attribute of a subclass stands for an argument
                setattr(self, name, value)
                del left_open[name]
                chosen[name] = value
        self._chosen, self._open = chosen, left_open
        known = [*(about.name for about in own), *vars(self).get("_order", [])]
        self._order = list(dict.fromkeys(name for name in known if name in chosen or name in left_open))
        self._built = {name: getattr(self, name) for name in self._order if hasattr(self, name)}
        self._parts = list(self._modules)

    wrapped.remembers = True  # type: ignore[attr-defined]
    return wrapped


def set_by_subclass(cls: type, init: Callable[..., None]) -> Iterator[tuple[str, Any]]:
    """Class attributes of the subclasses of the class that has this `__init__`."""
    for base in cls.__mro__:
        if vars(base).get("__init__") is init:
            return
        for name, value in vars(base).items():
            if not name.startswith("_") and not callable(value) and not isinstance(value, property):
                yield name, value


class Method(nn.Module):
    """What makes a student learn: how the outputs of both networks become one objective.

    A subclass computes the objective in `forward`, and may make parts that train with the student in `bind`. Arguments
    of its `__init__` that are kept under their own names are its settings: run.json records them, and a recipe may
    replace those that the caller left open. Any other nn.Module with `bind` and `forward` will do too; its attributes
    are recorded, and no recipe changes them.

    Attributes
    ----------
    title : str
        Name in tables and legends. Default: the name of the class.
    views : int
        How many rotations of every image the networks see, 1 to 4.
    uses_teacher : bool
        Whether the teacher's output is needed.
    needs_maps : bool
        Whether outputs must come with feature maps. Then `bind` gets an example image as a third argument.
    layers : list of str or None
        The student's layers whose outputs are these maps; None finds the last one of every resolution, see
        `FeatureMaps`.
    teacher_layers : list of str or None
        The teacher's likewise.
    epsilon : float or None
        Base of the preview threshold, which history.csv records for every epoch; None if the method has none.
    left_out : dict
        After `bind`: terms that are not computed for this pair of networks, and why.
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
        """Raise ValueError or TypeError for invalid settings. Called again when a training begins, because attributes
        may have changed since construction."""

    def _bind(self, student: Classifier, teacher: Classifier | None = None, *example: Tensor) -> object:
        """Make the parts that train with the student. No reference to a network may be kept."""
        return self

    def _forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """The objective of one batch. Rows of both outputs are view-major; epochs count from 1."""
        raise NotImplementedError

    # Declared as callables, as nn.Module declares forward: a subclass may then take other arguments for type checkers.
    bind: Callable[..., object] = _bind
    forward: Callable[..., Terms] = _forward

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={describe(value)!r}" for name, value in self.explicit.items())


# What a plain nn.Module need not say of itself.
OPTIONAL = ("views", "uses_teacher", "needs_maps", "layers", "teacher_layers", "epsilon", "left_out")


def require_method(method: object) -> None:
    """Raises TypeError unless `method` can train a student."""
    if isinstance(method, type):
        raise TypeError(f"method must be an object: write {method.__name__}(), not {method.__name__}")
    if not isinstance(method, nn.Module):
        raise TypeError(f"method must be an nn.Module such as PCKD(), got {type(method).__name__}")
    for name in ("bind", "forward"):
        if not callable(getattr(method, name, None)) or getattr(type(method), name, None) is nn.Module.forward:
            raise TypeError(f"method {type(method).__name__} has no {name}: see pckd_nb.methods.Method")


class Supervised(Method):
    """Cross-entropy of the upright view alone, and no teacher."""

    title = "supervised"
    uses_teacher = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """The objective of B upright rows; teacher and epoch are not looked at. Raises as `upright_cross_entropy`."""
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        total = classification_loss(student, batch, cross_entropy)
        terms = {"cross_entropy": total}
        return Terms(total, terms, *unweighted(cross_entropy))


class KD(Method):
    """Hinton's distillation (arXiv 1503.02531): L = mean CE + β_kd · mean L_KD.

    temperature from 1e-6 to 1e6, beta_kd ≥ 0; raises ValueError otherwise, TypeError for what is no number.
    """

    title = "KD"

    def __init__(self, temperature: float = 4.0, beta_kd: float = 1.0):
        super().__init__()
        self.temperature, self.beta_kd = temperature, beta_kd
        self.check()

    def check(self) -> None:
        check_settings({"beta_kd": self.beta_kd}, {"temperature": self.temperature})

    def bind(self, student: Classifier, teacher: Classifier) -> "KD":
        """Nothing to make: it has no heads. Raises ValueError where the networks know different numbers of classes."""
        same_classes(student, teacher)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """The objective of B upright rows of both networks; the epoch, from 1, is not looked at. Raises ValueError for
        what does not fit together, or without a teacher's output; TypeError for what is no tensor."""
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        needs_teacher(self, teacher)
        kl = losses.distillation_kl(student.logits, teacher.logits.detach(), self.temperature).mean()
        terms = {"cross_entropy": classification_loss(student, batch, cross_entropy), "distillation_kl": kl}
        total = terms["cross_entropy"] + self.beta_kd * kl
        return Terms(total, terms, *unweighted(cross_entropy))


def upright_cross_entropy(student: Output, batch: Batch, views: int | None = None) -> Tensor:
    """Per-sample cross-entropy of the upright view, (B,), in nats. views: so many there must be, if it is given.

    Raises ValueError for logits and labels that do not fit together, TypeError for what is no tensor.
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
    """The mean cross-entropy of the upright view that enters the objective, a scalar in nats: with the soft targets of
    the batch where it has any, else the mean of `cross_entropy`, (B,), that of the labels."""
    if batch.targets is None:
        return cross_entropy.mean()
    return F.cross_entropy(student.logits[: len(batch.labels)], batch.targets)


def resolve(
    method: nn.Module, recipe: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[Method, dict[str, dict[str, Any]]]:
    """A copy of `method` with all its settings, and where each of them is from.

    A setting is the caller's argument or attribute, else the recipe's, else the data set's, else the default. Other
    attributes of a method of your own are copied and recorded as they are.

    Parameters
    ----------
    method : Method, or nn.Module with bind and forward
    recipe, data : dict of str to value
        What a recipe and a data set have to say about settings, by name.

    Returns
    -------
    method : Method
        The copy. An nn.Module that is no `Method` has got the missing attributes of one.
    settings : dict
        {"beta_cc": {"value": 0.005, "from": "recipe"}, …}, as run.json has it. "from" is "argument", "attribute"
        (changed after construction), "recipe", "data set" or "default".

    Raises
    ------
    TypeError
        If `method` is not a method, or cannot be copied.
    ValueError
        If a setting is invalid, or if a recipe sets one that the method does not keep under its name.
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
    others = {name: value for name, value in public(method).items() if name not in {*settings, "title", "left_out"}}
    if code_fingerprint(type(method)) is None:  # of this package's methods: what was changed after construction
        others = {name: value for name, value in others.items() if hasattr(type(method), name)}
    else:
        parts = [(name, method._modules[name]) for name in own.get("_parts", method._modules)]
        others |= {name: f"{type(part).__name__} [{structure_fingerprint(part)}]" for name, part in parts if part}
    settings |= {name: {"value": value, "from": "attribute"} for name, value in others.items()}
    if isinstance(copied, Method):
        copied.check()
    return cast(Method, copied), settings


def known_settings() -> set[str]:
    """The names of all settings that methods of this package have."""
    found, classes = set[str](), [Method]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if "__init__" in vars(cls) and code_fingerprint(cls) is None:
            found |= set(inspect.signature(cls).parameters)
    return found


def copy_of(method: nn.Module) -> nn.Module:
    """A deep copy. Raises TypeError, naming the method, where there can be none."""
    try:
        return copy.deepcopy(method)
    except Exception as error:  # whatever an attribute raises that can't be copied
        what = one_line(error)
        raise TypeError(f"method {type(method).__name__} can't be copied for this training: {what}") from error


def same(now: Any, before: Any) -> bool:
    """Whether an attribute still has the value that it was given in `__init__`."""
    return now is before or (type(now) is type(before) and describe(now) == describe(before))


def unweighted(cross_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last three fields of `Terms`, (B,) each, for a method in which every sample counts alike: cross-entropy in
    nats, difficulty γ ≥ 0, weight 1. cross_entropy: (B,). Raises as `preview.difficulty`."""
    cross_entropy = cross_entropy.detach()
    return cross_entropy, preview.difficulty(cross_entropy), torch.ones_like(cross_entropy)


def same_classes(student: Classifier, teacher: Classifier) -> None:
    """Raises ValueError where the networks know different numbers of classes."""
    if student.num_classes != teacher.num_classes:
        raise ValueError(f"the teacher knows {teacher.num_classes} classes, the student {student.num_classes}")


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Raises ValueError unless labels are categories of the logits, one a row; TypeError for no tensor. Labels
    beyond the categories are found on a CPU alone: a GPU would have to wait for them."""
    losses.check_labels(labels, logits)
    if labels.device.type == "cpu":
        lowest, highest = map(int, labels.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}, got {lowest} to {highest}")


def needs_teacher(method: nn.Module, output: Output | None) -> None:
    """Raises ValueError where there is no output of a teacher."""
    if output is None:
        raise ValueError(f"{method.title} compares the student's output with the teacher's, which is None")


def check_settings(not_negative: dict[str, float], positive: dict[str, float]) -> None:
    """Raise TypeError for a value that is not a number, and ValueError for one outside its range, both with its name.

    Parameters
    ----------
    not_negative : dict
        Values that must be 0 or more, and finite.
    positive : dict
        Values that must be positive and finite. Temperatures have a range, see `losses.TEMPERATURES`.
    """
    check(NotNegative, **not_negative)
    check(Positive, **positive)
    for name, value in positive.items():
        if name.endswith("temperature"):
            losses.check_temperature(name, value)

"""Group runs for comparison, and compute the numbers that figures show.

- An *arm* is a set of runs that differ only in their seed.
- A *study* is a set of runs that may be compared. They use the same data, student and teacher. They also use the same
  recipe, apart from the number of epochs. They may differ in the method.
- A *sweep* is a set of PCKD runs in which one setting, the *factor*, has several values.
- A *budget* is a number of epochs. Runs of one method with several budgets show how accuracy depends on it.
- A method is *without options* if the user chose none of its settings. Its settings then come from the recipe or are
  defaults.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..analysis import Summary, paired_difference, summarise, teraflops
from ..analysis import training_flops as training_flops  # older code imports it from here
from ..deprecation import renamed
from ..html import counted
from ..recipes import Recipe
from ..runs import SYMBOLS, Run
from .canvas import check_runs, is_teacher

# Factor of a sweep → the letter of its panel in the paper's figure 5, and its default in the paper.
FACTORS = {"beta_cc": ("a", 0.05), "beta_fa": ("b", 20), "beta_ca": ("c", 1), "epsilon": ("d", 1.005)}
# Settings in the recipe that `study_key` leaves out. Only methods of `baselines` use them, and older runs lack them.
BASELINE_SETTINGS = {"warmup_epochs"}
METHODS = ("supervised", "KD", "PCKD")  # titles of the three main methods

RunsBySeed = dict[int, Run]


class Arm(NamedTuple):
    """The properties that the runs of an arm share.

    Parameters
    ----------
    study : hashable
        The `study_key` of the runs. Together with `teacher`, it identifies their study.
    teacher : str or None
        Name of the teacher's network.
    student : str or None
        Name of the student's network.
    title : str
        Title of the method.
    variant : str
        Options of the method that the user chose, such as "β_cc = 0". Empty if there are none.
    epochs : int
        Number of epochs in the recipe.
    """

    study: Hashable
    teacher: str | None
    student: str | None
    title: str
    variant: str
    epochs: int


def group_by_arm(runs: Iterable[Run]) -> dict[Arm, RunsBySeed]:
    """Group runs by arm and seed.

    Parameters
    ----------
    runs : iterable of Run

    Returns
    -------
    dict of Arm to dict of int to Run
        If two runs of an arm have the same seed, the first one is used.
    """
    found: dict[Arm, RunsBySeed] = {}
    for run in runs:
        settings = run.settings
        student, title = settings["model"]["name"], settings["method"]["title"]
        arm = Arm(study_key(run), teacher_name(run), student, title, run.variant, settings["recipe"]["epochs"])
        found.setdefault(arm, {}).setdefault(settings["seed"], run)
    return found


def study_key(run: Run) -> Hashable:
    """Return a key that is equal for runs with the same data, student and recipe.

    Teacher, method and number of epochs do not change the key.

    Parameters
    ----------
    run : Run

    Returns
    -------
    hashable
    """
    settings = run.settings
    defaults = Recipe(name="", epochs=1).settings()  # for fields that older runs lack
    recipe = {name: value for name, value in {**defaults, **settings["recipe"]}.items() if name != "epochs"}
    recipe["method"] = {name: value for name, value in recipe["method"].items() if name not in BASELINE_SETTINGS}
    return run.data_fingerprint, settings["model"]["name"], json.dumps(recipe, sort_keys=True)


def teacher_name(run: Run) -> str | None:
    """Return the name of the teacher's network.

    Parameters
    ----------
    run : Run

    Returns
    -------
    str or None
        "network" if the teacher is a network of your own, and None if the student was trained without a teacher.
    """
    teacher = run.settings["teacher"]
    return teacher and (teacher["name"] or "network")


def group_by_study(runs: list[Run]) -> list[list[Run]]:
    """Group runs by study: same data, student, teacher and recipe, any number of epochs.

    A student that was trained without a teacher is added to every study with the same data, student and recipe,
    whatever the teacher is. Runs of teachers are left out.

    Parameters
    ----------
    runs : list of Run

    Returns
    -------
    list of list of Run
        One list per study.
    """
    found: dict[Hashable, dict[str | None, list[Run]]] = {}
    for run in runs:
        if not is_teacher(run, runs):
            found.setdefault(study_key(run), {}).setdefault(teacher_name(run), []).append(run)
    return [
        [*by_teacher[teacher], *(by_teacher.get(None, []) if teacher else [])]
        for by_teacher in found.values()
        for teacher in by_teacher
    ]


def comparable_runs(run: Run, runs: Iterable[Run], title: str) -> RunsBySeed:
    """Return the runs of another method that `run` may be compared with.

    These runs have the same data, student, teacher, recipe and number of epochs as `run`, and are without options. If
    `run` has no teacher, their teacher may be any.

    Parameters
    ----------
    run : Run
    runs : iterable of Run
        The runs to search.
    title : str
        Title of the other method.

    Returns
    -------
    dict of int to Run
        One run per seed. Empty if no run matches, or if matching runs have several teachers.
    """
    epochs = run.settings["recipe"]["epochs"]
    by_teacher: dict[str | None, list[Run]] = {}
    for other in runs:
        same = study_key(other) == study_key(run) and other.settings["recipe"]["epochs"] == epochs
        if same and teacher_name(run) in (None, teacher_name(other)):
            by_teacher.setdefault(teacher_name(other), []).append(other)
    found = [seeds for group in by_teacher.values() if (seeds := runs_by_seed(group, title))]
    return found[0] if len(found) == 1 else {}


def runs_by_seed(runs: Iterable[Run], title: str) -> RunsBySeed:
    """Return the runs of a method without options, by seed.

    Parameters
    ----------
    runs : iterable of Run
    title : str
        Title of the method.

    Returns
    -------
    dict of int to Run
        If two runs have the same seed, the first one is used.
    """
    found: RunsBySeed = {}
    for run in runs:
        if run.settings["method"]["title"] == title and not run.variant:
            found.setdefault(run.settings["seed"], run)
    return found


def common_seed_filter(points: Sequence[RunsBySeed]) -> Callable[[RunsBySeed], RunsBySeed]:
    """Return a function that keeps only the seeds that all points have.

    If no seed is in all points, the function keeps everything.

    Parameters
    ----------
    points : sequence of dict of int to Run
        The runs by seed of each point in a figure.

    Returns
    -------
    callable
        It takes and returns a dict of int to Run.
    """
    common = set.intersection(*(set(seeds) for seeds in points))
    return lambda seeds: {seed: run for seed, run in sorted(seeds.items()) if seed in common or not common}


def accuracies(seeds: RunsBySeed) -> np.ndarray:
    """Return the final top-1 accuracies of runs.

    Parameters
    ----------
    seeds : dict of int to Run
        The runs by seed.

    Returns
    -------
    array of shape (seeds,), in percent
        In ascending order of the seeds.
    """
    return np.array([run.accuracy for _, run in sorted(seeds.items())])


def accuracy_difference(a: RunsBySeed, b: RunsBySeed) -> Summary:
    """Return the accuracy of `a` minus that of `b`, paired by seed.

    Parameters
    ----------
    a, b : dict of int to Run
        The runs by seed.

    Returns
    -------
    Summary
        In percentage points.

    Raises
    ------
    ValueError
        If `a` and `b` have no seed in common.
    """
    a_accuracy, b_accuracy = ({seed: run.accuracy for seed, run in seeds.items()} for seeds in (a, b))
    return paired_difference(a_accuracy, b_accuracy)


def unique_runs(*points: RunsBySeed) -> list[Run]:
    """Return all runs of the points, without duplicates.

    Parameters
    ----------
    *points : dict of int to Run
        The runs by seed of each point in a figure.

    Returns
    -------
    list of Run
        In the order of their first appearance.
    """
    return list({id(run): run for seeds in points for run in seeds.values()}.values())


class Sweep(NamedTuple):
    """Runs of PCKD that differ in one factor at a time.

    Parameters
    ----------
    points : dict of str to dict of float to dict of int to Run
        Factor → its value → seed → run.
    references : dict of str to dict of int to Run
        "KD" or "supervised" → seed → run.
    default : dict of str to float
        Factor → its value in PCKD without options. At this value, all factors have the same runs.
    """

    points: dict[str, dict[float, RunsBySeed]]
    references: dict[str, RunsBySeed]
    default: dict[str, float]


def find_sweep(runs: Run | Sequence[Run], factors: Iterable[str] = FACTORS) -> Sweep:
    """Find the runs that differ from PCKD without options in exactly one factor.

    All runs of the sweep have the same data, networks, recipe and number of epochs. If the runs contain several sweeps,
    the one with the most runs is used. If all its points have some seeds in common, only these seeds are used. So all
    means are over the same seeds.

    Parameters
    ----------
    runs : Run or sequence of Run
    factors : iterable of str
        Keys of `FACTORS`.

    Returns
    -------
    Sweep
        Values of ε are converted to ε^(epochs/240). The threshold of the last epoch is ε^epochs. So equal converted
        values mean equal last thresholds, for every number of epochs.

    Raises
    ------
    ValueError
        If no run differs from PCKD without options in exactly one factor.
    """
    best, most = None, 0
    for study in group_by_study(check_runs(runs, whole_epoch=True)):
        for epochs in sorted({run.settings["recipe"]["epochs"] for run in study}):
            found = _sweep_in([run for run in study if run.settings["recipe"]["epochs"] == epochs], factors)
            count = sum(len(seeds) for values in found.points.values() for seeds in values.values())
            if count > most:
                best, most = found, count
    if best is None:
        names = " or ".join(SYMBOLS[factor] for factor in factors)
        raise ValueError(
            f"the runs contain no sweep, which needs PCKD runs that differ from PCKD without options in {names} alone; "
            "train them with `pckd-nb sweep`"
        )
    points = [*(seeds for values in best.points.values() for seeds in values.values()), *best.references.values()]
    keep = common_seed_filter(points)
    return best._replace(
        points={name: {value: keep(seeds) for value, seeds in values.items()} for name, values in best.points.items()},
        references={title: keep(seeds) for title, seeds in best.references.items()},
    )


def _sweep_in(runs: list[Run], factors: Iterable[str]) -> Sweep:
    """Find a sweep in runs of one study and one number of epochs. Without one, the result has no points."""
    references = {title: runs_by_seed(runs, title) for title in ("KD", "supervised")}
    references = {title: seeds for title, seeds in references.items() if seeds}
    base = runs_by_seed(runs, "PCKD")
    if not base:
        return Sweep({}, references, {})
    base_settings = next(iter(base.values())).method_settings
    epochs = runs[0].settings["recipe"]["epochs"]
    default = {factor: _axis_value(factor, base_settings[factor], epochs) for factor in factors}
    points = {factor: {default[factor]: dict(base)} for factor in factors}
    for run in runs:
        if run.settings["method"]["title"] == "PCKD":
            settings = run.method_settings
            changed = [name for name in base_settings if settings.get(name) != base_settings[name]]
            if len(changed) == 1 and changed[0] in points:
                value = _axis_value(changed[0], settings[changed[0]], run.settings["recipe"]["epochs"])
                points[changed[0]].setdefault(value, {}).setdefault(run.settings["seed"], run)
    return Sweep({name: values for name, values in points.items() if len(values) > 1}, references, default)


def _axis_value(factor: str, value: float, epochs: int) -> float:
    """Return a factor's value on the axis. ε is converted to 240 epochs, see `find_sweep`."""
    return round(value ** (epochs / 240), 6) if factor == "epsilon" else value


def find_budgets(runs: Run | Sequence[Run]) -> dict[str, dict[int, RunsBySeed]]:
    """Find the runs that `figures.budget` draws: supervised training, KD and PCKD, by number of epochs.

    Without options, these methods are returned with all their numbers of epochs. With options, such as
    "PCKD, views = 1", a method is returned only if it was trained for several numbers of epochs. If there are several
    studies, the one with the most points is used. Other methods are left out.

    Parameters
    ----------
    runs : Run or sequence of Run

    Returns
    -------
    dict of str to dict of int to dict of int to Run
        Method and options → number of epochs → seed → run.

    Raises
    ------
    ValueError
        If none of the three methods was trained for several numbers of epochs.
    """
    best: dict[str, dict[int, RunsBySeed]] = {}
    for study in group_by_study(check_runs(runs, whole_epoch=True)):
        found: dict[str, dict[int, RunsBySeed]] = {title: {} for title in METHODS}
        for arm, seeds in sorted(group_by_arm(study).items(), key=lambda item: item[0].epochs):
            if arm.title in METHODS:
                name = ", ".join(part for part in (arm.title, arm.variant) if part)
                found.setdefault(name, {})[arm.epochs] = dict(sorted(seeds.items()))
        found = {name: points for name, points in found.items() if points and (name in METHODS or len(points) > 1)}
        if sum(map(len, found.values())) > sum(map(len, best.values())):
            best = found
    if max(map(len, best.values()), default=0) < 2:
        raise ValueError(
            "no method was trained with several numbers of epochs; train one on the same data with different epochs"
        )
    return best


class ComputePoint(NamedTuple):
    """Accuracy and compute of an arm.

    Parameters
    ----------
    arm : Arm
    seeds : dict of int to Run
        The runs of the arm, by seed.
    teraflops : float
        10¹² operations of one training.
    top1 : Summary
        Top-1 accuracy in percent.
    """

    arm: Arm
    seeds: RunsBySeed
    teraflops: float
    top1: Summary

    @property
    def name(self) -> str:
        """Method, options and number of epochs, such as "PCKD, views = 1, 10 epochs"."""
        return ", ".join(filter(None, (self.arm.title, self.arm.variant, counted(self.arm.epochs, "epoch"))))


def find_compute(runs: Run | Sequence[Run]) -> list[ComputePoint]:
    """Return accuracy and compute of the arms of one study: the one with the most arms.

    Parameters
    ----------
    runs : Run or sequence of Run

    Returns
    -------
    list of ComputePoint
        In ascending order of compute and accuracy. Runs of teachers are left out.

    Raises
    ------
    ValueError
        If there is no run of a student, if a run has no complete epoch, or if a network was not made by
        `create_model`.
    """
    studies = [group_by_arm(study) for study in group_by_study(check_runs(runs, whole_epoch=True))]
    if not studies:
        raise ValueError("there is no run of a student to draw, only of teachers; pass one run or more")
    points = [
        ComputePoint(arm, seeds, training_flops(next(iter(seeds.values()))) / 1e12, summarise(accuracies(seeds)))
        for arm, seeds in max(studies, key=len).items()
    ]
    return sorted(points, key=lambda point: (point.teraflops, point.top1.mean))


def best_by_compute(points: Iterable[ComputePoint]) -> list[ComputePoint]:
    """Return the points whose mean accuracy no other point reaches with the same compute or less.

    Parameters
    ----------
    points : iterable of ComputePoint

    Returns
    -------
    list of ComputePoint
        In ascending order of compute. So their accuracies are in ascending order, too.
    """
    best: list[ComputePoint] = []
    for point in sorted(points, key=lambda point: (point.teraflops, -point.top1.mean)):
        if not best or point.top1.mean > best[-1].top1.mean:
            best.append(point)
    return best


def comparison_table(runs: Run | Sequence[Run]) -> pd.DataFrame:
    """Return one row per arm: its accuracy over seeds, its compute, and its difference from KD.

    Parameters
    ----------
    runs : Run or sequence of Run

    Returns
    -------
    DataFrame
        - data, train_images, teacher, student, method, variant, epochs: what was trained.
        - teraflops: 10¹² operations of one training, see `analysis.teraflops`. NaN for a network of your own.
        - n: number of seeds.
        - mean, sd, low, high: top-1 accuracy in percent, with the 95 % confidence interval of the mean.
        - minus_kd, minus_kd_sd, minus_kd_low, minus_kd_high: difference from KD without options in percentage
          points, paired by seed. NaN for KD itself, and if there are no comparable runs of KD.
        - paired_n: number of seeds in that difference.

    Raises
    ------
    ValueError
        If there is no run, or if a run has no complete epoch.
    """
    runs = check_runs(runs, whole_epoch=True)
    rows = []
    for arm, seeds in group_by_arm(runs).items():
        first = next(iter(seeds.values()))
        settings = first.settings
        kd = comparable_runs(first, runs, "KD")
        shared = kd.keys() & seeds.keys() if arm.title != "KD" or arm.variant else ()
        found = summarise(accuracies(seeds))
        to_kd = accuracy_difference(seeds, kd) if shared else None
        rows.append(
            {
                "data": settings["data"]["name"],
                "train_images": settings["data"]["train_images"],
                "teacher": arm.teacher,
                "student": arm.student,
                "method": arm.title,
                "variant": arm.variant,
                "epochs": arm.epochs,
                "teraflops": teraflops(first),
                "n": found.count,
                **{name: getattr(found, name) for name in ("mean", "sd", "low", "high")},
                **{f"minus_kd{end}": getattr(to_kd, name, np.nan) for end, name in MINUS_KD.items()},
                "paired_n": getattr(to_kd, "count", 0),
            }
        )
    return pd.DataFrame(rows)


MINUS_KD = {"": "mean", "_sd": "sd", "_low": "low", "_high": "high"}  # ending of a column → field of its `Summary`


def measured_gains(runs: list[Run]) -> list[list[tuple[str, RunsBySeed, RunsBySeed]]]:
    """Return the arms that can be compared with supervised training, by data set.

    Points of a sweep are left out. All arms of a data set have the same study and number of epochs: those with the most
    arms.

    Parameters
    ----------
    runs : list of Run

    Returns
    -------
    list of list of tuple
        One list per data set. Each tuple has the label of an arm, its runs by seed, and the supervised runs by seed.
    """
    best: dict[str, list[tuple[str, RunsBySeed, RunsBySeed]]] = {}
    for study in group_by_study(runs):
        for epochs in sorted({run.settings["recipe"]["epochs"] for run in study}):
            same_epochs = [run for run in study if run.settings["recipe"]["epochs"] == epochs]
            supervised = runs_by_seed(same_epochs, "supervised")
            arms = [
                (", ".join(part for part in (arm.title, arm.variant) if part), seeds, supervised)
                for arm, seeds in group_by_arm(same_epochs).items()
                if arm.title != "supervised" and seeds.keys() & supervised.keys() and not _is_sweep_point(seeds)
            ]
            rank = {"KD": 0, "PCKD": 2}  # other methods have rank 1
            arms.sort(key=lambda arm: (rank.get(arm[0].split(",")[0], 1), arm[0] != "PCKD"))
            name = same_epochs[0].data_fingerprint
            if len(arms) > len(best.get(name, [])):
                best[name] = arms
    return sorted(best.values(), key=len, reverse=True)


def _is_sweep_point(seeds: RunsBySeed) -> bool:
    """Return whether the user set a factor to a value other than 0. An arm with the value 0 is an ablation."""
    chosen = next(iter(seeds.values())).chosen_settings
    return any(name in FACTORS and value != 0 for name, value in chosen.items())


__getattr__ = renamed(__name__)

"""Which runs may be compared with which: arms, studies, sweeps, budgets; and the numbers that figures draw of them."""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..analysis import Summary, paired_difference, summarise
from ..models import flops_of
from ..runs import SYMBOLS, Run
from .canvas import checked, is_teacher

# Factor of figure 5 → the letter of its panel and its published default.
FACTORS = {"beta_cc": ("a", 0.05), "beta_fa": ("b", 20), "beta_ca": ("c", 1), "epsilon": ("d", 1.005)}
OF_BASELINES = {"warmup_epochs"}  # what a recipe says to baselines alone; older records lack it
METHODS = ("supervised", "KD", "PCKD")  # their titles

Seeds = dict[int, Run]


class Arm(NamedTuple):
    """What runs that differ in their seed alone have in common."""

    study: Hashable
    teacher: str | None
    student: str | None
    title: str
    variant: str
    epochs: int


def arms_of(runs: Iterable[Run]) -> dict[Arm, Seeds]:
    """Runs by arm and seed; of two runs of one seed the first counts."""
    found: dict[Arm, Seeds] = {}
    for run in runs:
        about = run.settings
        student, title = about["model"]["name"], about["method"]["title"]
        arm = Arm(study_of(run), teacher_name(run), student, title, run.variant, about["recipe"]["epochs"])
        found.setdefault(arm, {}).setdefault(about["seed"], run)
    return found


def study_of(run: Run) -> Hashable:
    """Same for runs on the same data with the same student and recipe, whatever the method and the epochs."""
    about = run.settings
    recipe = {name: value for name, value in about["recipe"].items() if name != "epochs"}
    recipe["method"] = {name: value for name, value in recipe["method"].items() if name not in OF_BASELINES}
    return run.data_fingerprint, about["model"]["name"], json.dumps(recipe, sort_keys=True)


def teacher_name(run: Run) -> str | None:
    """The teacher's network, "network" for one of your own, None where the student learned alone."""
    teacher = run.settings["teacher"]
    return teacher and (teacher["name"] or "network")


def studies(runs: list[Run]) -> list[list[Run]]:
    """Runs that may be compared: same data, student, recipe but for its epochs, and teacher; a student that learned
    alone belongs to the studies with every teacher. Teachers are left out."""
    found: dict[Hashable, dict[str | None, list[Run]]] = {}
    for run in runs:
        if not is_teacher(run, runs):
            found.setdefault(study_of(run), {}).setdefault(teacher_name(run), []).append(run)
    return [
        [*of_teachers[teacher], *(of_teachers.get(None, []) if teacher else [])]
        for of_teachers in found.values()
        for teacher in of_teachers
    ]


def beside(run: Run, runs: Iterable[Run], title: str) -> Seeds:
    """The runs by method `title` without options that `run` may be compared with; none where several teachers'
    could be meant."""
    epochs = run.settings["recipe"]["epochs"]
    arms: dict[str | None, list[Run]] = {}
    for other in runs:
        same = study_of(other) == study_of(run) and other.settings["recipe"]["epochs"] == epochs
        if same and teacher_name(run) in (None, teacher_name(other)):
            arms.setdefault(teacher_name(other), []).append(other)
    found = [seeds for some in arms.values() if (seeds := by_seed(some, title))]
    return found[0] if len(found) == 1 else {}


def by_seed(runs: Iterable[Run], title: str) -> Seeds:
    """Seed → run of a method without options."""
    found: Seeds = {}
    for run in runs:
        if run.settings["method"]["title"] == title and not run.variant:
            found.setdefault(run.settings["seed"], run)
    return found


def same_seeds(points: Sequence[Seeds]) -> Callable[[Seeds], Seeds]:
    """Cuts any of `points` to the seeds that all have in common; leaves them as they are where there are none."""
    common = set.intersection(*(set(seeds) for seeds in points))
    return lambda seeds: {seed: run for seed, run in sorted(seeds.items()) if seed in common or not common}


def accuracies(seeds: Seeds) -> np.ndarray:
    """Top-1 in percent, by rising seed."""
    return np.array([run.accuracy for _, run in sorted(seeds.items())])


def difference(a: Seeds, b: Seeds) -> Summary:
    """Accuracy of a minus that of b, paired by seed."""
    of_a, of_b = ({seed: run.accuracy for seed, run in seeds.items()} for seeds in (a, b))
    return paired_difference(of_a, of_b)


def all_of(*points: Seeds) -> list[Run]:
    """Every run once, in the order met."""
    return list({id(run): run for seeds in points for run in seeds.values()}.values())


class Sweep(NamedTuple):
    """points: factor → its value → seed → run · references: title → seed → run, KD and supervised · default: factor →
    its value in the arm that all panels share, PCKD without options."""

    points: dict[str, dict[float, Seeds]]
    references: dict[str, Seeds]
    default: dict[str, float]


def swept(runs: Run | Sequence[Run], factors: Iterable[str] = FACTORS) -> Sweep:
    """The runs that differ from PCKD without options in one of `factors` alone: same data, networks, recipe and epochs.

    ε counts as its equivalent over 240 epochs, ε^(epochs/240). Where all points have some seeds in common, those alone
    are taken, so that every mean is of the same seeds. Of several studies the one with most runs is taken.
    Raises ValueError where there is none.
    """
    best, most = None, 0
    for study in studies(checked(runs, whole_epoch=True)):
        for epochs in sorted({run.settings["recipe"]["epochs"] for run in study}):
            found = _sweep_of([run for run in study if run.settings["recipe"]["epochs"] == epochs], factors)
            count = sum(len(seeds) for values in found.points.values() for seeds in values.values())
            if count > most:
                best, most = found, count
    if best is None:
        names = " or ".join(SYMBOLS[factor] for factor in factors)
        raise ValueError(f"no sweep: that takes PCKD runs that differ from PCKD without options in {names} alone")
    points = [*(seeds for values in best.points.values() for seeds in values.values()), *best.references.values()]
    same = same_seeds(points)
    return best._replace(
        points={name: {value: same(seeds) for value, seeds in values.items()} for name, values in best.points.items()},
        references={title: same(seeds) for title, seeds in best.references.items()},
    )


def _sweep_of(runs: list[Run], factors: Iterable[str]) -> Sweep:
    references = {title: by_seed(runs, title) for title in ("KD", "supervised")}
    references = {title: seeds for title, seeds in references.items() if seeds}
    base = by_seed(runs, "PCKD")
    if not base:
        return Sweep({}, references, {})
    usual = next(iter(base.values())).method_settings
    default = {factor: _shown(factor, usual[factor], runs[0].settings["recipe"]["epochs"]) for factor in factors}
    points = {factor: {default[factor]: dict(base)} for factor in factors}
    for run in runs:
        if run.settings["method"]["title"] == "PCKD":
            settings = run.method_settings
            changed = [name for name in usual if settings.get(name) != usual[name]]
            if len(changed) == 1 and changed[0] in points:
                value = _shown(changed[0], settings[changed[0]], run.settings["recipe"]["epochs"])
                points[changed[0]].setdefault(value, {}).setdefault(run.settings["seed"], run)
    return Sweep({name: values for name, values in points.items() if len(values) > 1}, references, default)


def _shown(factor: str, value: float, epochs: int) -> float:
    """What the axis of a factor shows: for ε what it would be over 240 epochs, so that the thresholds end alike."""
    return round(value ** (epochs / 240), 6) if factor == "epsilon" else value


def budgets(runs: Run | Sequence[Run]) -> dict[str, dict[int, Seeds]]:
    """Name of an arm → epochs → seed → run: what `budget` draws. Methods without options are there with all their
    epochs, arms with options, "PCKD, views = 1", where they were trained for several numbers of epochs."""
    best: dict[str, dict[int, Seeds]] = {}
    for study in studies(checked(runs, whole_epoch=True)):
        found: dict[str, dict[int, Seeds]] = {title: {} for title in METHODS}
        for arm, seeds in sorted(arms_of(study).items(), key=lambda item: item[0].epochs):
            if arm.title in METHODS:
                name = ", ".join(part for part in (arm.title, arm.variant) if part)
                found.setdefault(name, {})[arm.epochs] = dict(sorted(seeds.items()))
        found = {name: of for name, of in found.items() if of and (name in METHODS or len(of) > 1)}
        if sum(map(len, found.values())) > sum(map(len, best.values())):
            best = found
    if max(map(len, best.values()), default=0) < 2:
        raise ValueError("no budgets: that takes runs of a method with several numbers of epochs on the same data")
    return best


def training_flops(run: Run) -> int:
    """Floating point operations of the networks in a whole training: epochs × images × views × (three times the
    student's forward pass, which is forward and backward, and the teacher's once).

    The method's heads and losses, augmentation, and the training of the teacher are not counted. Recorded seconds say
    less: they come from a shared machine, with what the teacher says kept from run to run.
    Raises ValueError for a network that `create_model` can't make.
    """
    about = run.settings
    student, teacher = (_forward_flops(about, network) for network in (about["model"], about["teacher"]))
    rows = len(run.history) * about["data"]["train_images"] * about["method"]["views"]
    return rows * (3 * student + teacher)


def _teraflops(run: Run) -> float:
    try:
        return training_flops(run) / 1e12
    except ValueError:
        return float("nan")


def _forward_flops(about: dict, network: dict | None) -> int:
    if network is None:
        return 0
    if network["name"] is None:
        raise ValueError("the compute of a network of your own is not known: only `create_model`'s can be counted")
    shape = network["in_channels"], *about["data"]["image_size"]
    return flops_of(network["name"], network["num_classes"], shape)


def comparison_table(runs: Run | Sequence[Run]) -> pd.DataFrame:
    """One row a data set, pair, method, variant and number of epochs: compute of one training (10¹² operations of
    `training_flops`, NaN for a network of your own), n seeds, mean and standard deviation of top-1 accuracy (percent)
    with the 95 % interval of the mean, and the difference to KD without options, paired by seed, with its interval
    (points; NaN where KD was not run beside it, or for KD itself)."""
    runs = checked(runs, whole_epoch=True)
    rows = []
    for arm, seeds in arms_of(runs).items():
        first = next(iter(seeds.values()))
        about = first.settings
        kd = beside(first, runs, "KD")
        shared = kd.keys() & seeds.keys() if arm.title != "KD" or arm.variant else ()
        found = summarise(accuracies(seeds))
        to_kd = difference(seeds, kd) if shared else None
        rows.append(
            {
                "data": about["data"]["name"],
                "train_images": about["data"]["train_images"],
                "teacher": arm.teacher,
                "student": arm.student,
                "method": arm.title,
                "variant": arm.variant,
                "epochs": arm.epochs,
                "teraflops": _teraflops(first),
                "n": found.count,
                **{name: getattr(found, name) for name in ("mean", "sd", "low", "high")},
                **{f"minus_kd{end}": getattr(to_kd, name, np.nan) for end, name in MINUS_KD.items()},
                "paired_n": getattr(to_kd, "count", 0),
            }
        )
    return pd.DataFrame(rows)


MINUS_KD = {"": "mean", "_sd": "sd", "_low": "low", "_high": "high"}


def measured_gains(runs: list[Run]) -> list[list[tuple[str, Seeds, Seeds]]]:
    """A list a data set: label, runs, and the lone student's, of every arm of its largest study but sweeps."""
    best: dict[str, list[tuple[str, Seeds, Seeds]]] = {}
    for study in studies(runs):
        for epochs in sorted({run.settings["recipe"]["epochs"] for run in study}):
            some = [run for run in study if run.settings["recipe"]["epochs"] == epochs]
            alone = by_seed(some, "supervised")
            arms = [
                (", ".join(part for part in (arm.title, arm.variant) if part), seeds, alone)
                for arm, seeds in arms_of(some).items()
                if arm.title != "supervised" and seeds.keys() & alone.keys() and not _is_sweep_point(seeds)
            ]
            first = {"KD": 0, "PCKD": 2}
            arms.sort(key=lambda arm: (first.get(arm[0].split(",")[0], 1), arm[0] != "PCKD"))
            name = some[0].data_fingerprint
            if len(arms) > len(best.get(name, [])):
                best[name] = arms
    return sorted(best.values(), key=len, reverse=True)


def _is_sweep_point(seeds: Seeds) -> bool:
    chosen = next(iter(seeds.values())).chosen_settings
    return any(name in FACTORS and value != 0 for name, value in chosen.items())

"""Figures of trainings with wrong labels: which measures find them, and which methods suffer from them."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .. import analysis
from ..analysis import summarise
from ..html import counted
from ..measures import DIRECTIONS, hardness
from ..runs import Run, describe_noise, require_parts
from .arms import RunsBySeed, accuracies, teacher_name, unique_runs
from .canvas import CLASS_COLORS, COLORS, DARK_GRAY, MORE_COLORS, Drawing, check_runs, new_figure

__all__ = ["noise_curves", "precision_at_k"]

SHOWN_MEASURES = ("cross_entropy_mean", "area_under_margin", "el2n", "gamma", "forgetting_events", "variability")
POINTS = 40  # of a precision curve


def precision_at_k(runs: Run | Sequence[Run], measures: Sequence[str] = SHOWN_MEASURES) -> Drawing:
    """Draw how many of the k most suspicious training images have a wrong label, by k and measure of difficulty.

    A line is the mean over the runs, and a band its 95 % confidence interval, for three runs or more. The dotted lines
    show the number of wrong labels, and the precision of an order at random. See `analysis.precision_at_k`.

    Parameters
    ----------
    runs : Run or sequence of Run
        Trainings with label noise and recorded samples: one method, with several seeds.
    measures : sequence of str
        Columns of `Run.samples`, from `measures.DIRECTIONS`.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no recorded samples or no wrong labels, if a measure is unknown or was not recorded, or if the runs
        have different numbers of images or of wrong labels.
    """
    runs = check_runs(runs, whole_epoch=True)
    if unknown := [name for name in measures if name not in DIRECTIONS]:
        raise ValueError(f"unknown measure {unknown[0]!r}: choose from {', '.join(DIRECTIONS)}")
    tables, wrong = [], []
    for run in runs:
        require_parts(run, "samples")
        if run.true_labels is None or not (flipped := run.true_labels != run.labels).any():
            raise ValueError(f"the run {run.title} has no wrong labels: use runs with label noise")
        table = run.samples()
        if missing := [name for name in measures if name not in table]:
            raise ValueError(f"the run {run.title} has not recorded {missing[0]}: choose other measures")
        tables.append(table)
        wrong.append(flipped)
    if len({(len(flipped), int(flipped.sum())) for flipped in wrong}) > 1:
        raise ValueError("the runs have different numbers of images or of wrong labels: use runs with the same noise")
    images, count = len(wrong[0]), int(wrong[0].sum())
    sizes = np.unique(np.linspace(1, min(2 * count, images), POINTS).round().astype(int))
    note = f"{counted(images, 'training image')}, {count:,} of them with a wrong label. {counted(len(runs), 'run')}."
    with new_figure(runs, 6.5, 4, note) as figure:
        ax = figure.subplots()
        for color, name in zip(CLASS_COLORS, measures, strict=False):
            curves = [
                [analysis.precision_at_k(hardness(table, name), flipped, int(k)) for k in sizes]
                for table, flipped in zip(tables, wrong, strict=True)
            ]
            points = [summarise(values) for values in zip(*curves, strict=True)]
            ax.plot(sizes, [100 * point.mean for point in points], color=color, label=name)
            if len(runs) > 2:
                low, high = ([100 * getattr(point, end) for point in points] for end in ("low", "high"))
                ax.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
        look: dict[str, Any] = {"color": DARK_GRAY, "linewidth": 0.8, "linestyle": ":"}
        ax.axvline(count, **look)
        ax.axhline(100 * count / images, **look)
        ax.set(xlabel="k: number of most suspicious images", ylabel="with a wrong label (%)", ylim=(0, 102))
        ax.set_title("Precision at k: which measure finds wrong labels?")
        figure.legend(loc="outside right upper")
    return figure


def noise_curves(runs: Run | Sequence[Run]) -> Drawing:
    """Draw the test accuracy of every method against the share of wrong labels in the training set.

    A marker is the mean over seeds, and a vertical line its 95 % confidence interval, for three seeds or more.

    Parameters
    ----------
    runs : Run or sequence of Run
        Trainings on one data set, with one student, teacher and number of epochs. Those without label noise count as a
        share of 0.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If no run has label noise, or if the runs have different data sets, students, teachers, numbers of epochs or
        kinds of noise.
    """
    runs = check_runs(runs, whole_epoch=True)
    kinds = {run.settings["data"]["options"].get("noise") for run in runs if describe_noise(run.settings)}
    if not kinds:
        raise ValueError("no run has label noise: train some with label_noise=…")
    same = {_training(run) for run in runs}
    teachers = {teacher_name(run) for run in runs} - {None}
    if len(same) > 1 or len(kinds) > 1 or len(teachers) > 1:
        raise ValueError(
            "the runs have different data sets, students, teachers, numbers of epochs or kinds of noise: select some"
        )
    methods: dict[str, dict[float, RunsBySeed]] = {}
    for run in runs:
        name = ", ".join(filter(None, (run.settings["method"]["title"], run.variant)))
        rate = float(run.settings["data"].get("options", {}).get("label_noise") or 0)
        methods.setdefault(name, {}).setdefault(rate, {})[run.settings["seed"]] = run
    others = iter(MORE_COLORS * len(methods))
    note = f"Label noise: {next(iter(kinds))}. Mean over seeds, and 95 % confidence interval for three seeds or more."
    used = unique_runs(*(seeds for rates in methods.values() for seeds in rates.values()))
    with new_figure(used, 6.5, 4, note) as figure:
        ax = figure.subplots()
        for number, (name, rates) in enumerate(methods.items()):
            color = COLORS.get(name) or next(others)
            shift = (number - (len(methods) - 1) / 2) * 0.4  # percent, so that intervals do not hide each other
            points = [(100 * rate + shift, summarise(accuracies(seeds))) for rate, seeds in sorted(rates.items())]
            ax.plot([x for x, _ in points], [point.mean for _, point in points], "o-", color=color, label=name)
            for x, point in points:
                if point.count > 2:
                    ax.plot([x, x], [point.low, point.high], color=color, linewidth=1.2, alpha=0.5)
        ax.set(xlabel="wrong labels in the training set (%)", ylabel="top-1 accuracy on test images (%)")
        ax.set_title("Accuracy by label noise")
        figure.legend(loc="outside right upper")
    return figure


def _training(run: Run) -> Hashable:
    """Return what the runs of `noise_curves` must have in common, apart from the teacher."""
    data = run.settings["data"]
    return data["name"], data["train_images"], run.settings["model"]["name"], len(run.history)

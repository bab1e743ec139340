"""Figures of a search for settings: its trials on validation images, and what it chose on test images."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..analysis import summarise
from ..html import counted
from ..paths import user_path
from ..runs import Run
from .arms import RunsBySeed, accuracies, study_key, unique_runs
from .canvas import COLORS, DARK_GRAY, MORE_COLORS, Drawing, check_runs, new_figure

__all__ = ["chosen_settings", "search"]

TITLES = {"kd": "KD", "pckd": "PCKD"}  # of methods whose title is not their name


def search(folder: str | Path) -> Drawing:
    """Draw the validation accuracy of every trial of a search, and the best one so far, by method.

    A ring marks the first trial, which has the default settings. A cross at the bottom is a failed trial. If the lines
    still rise at the right end, more trials may find better settings.

    Parameters
    ----------
    folder : path
        Folder of the search. It need not be finished.

    Returns
    -------
    Drawing

    Raises
    ------
    FileNotFoundError
        If there is no search in the folder.
    ValueError
        If no trial is finished yet, or if a file of the search is damaged.
    """
    from ..experiments import read_search, search_trials  # slow to import

    folder = user_path(folder, "folder")
    record, trials = read_search(folder), search_trials(folder)
    if not (trials["status"] == "finished").any():
        raise ValueError(f"no trial of the search in '{folder}' is finished yet: wait for the first one")
    others = iter(MORE_COLORS * len(record.space))
    note = (
        f"{record.data['name']}, {record.teacher['name']} → {record.student}, "
        f"{counted(record.recipe['epochs'], 'epoch')}, "
        f"{record.trials} trials per method, on validation images. Dots: trials. Ring: default settings. Lines: best "
        "trial so far. Crosses: failed trials."
    )
    with new_figure([], 7.5, 3.6, note) as figure:
        ax = figure.subplots()
        for method in record.space:
            rows = trials[trials["method"] == method]
            finished = rows[rows["status"] == "finished"]
            title = TITLES.get(method, method)
            color = COLORS.get(title) or next(others)
            ax.step(finished["trial"], np.maximum.accumulate(finished["val_top1"]), where="post", color=color)
            ax.plot(finished["trial"], finished["val_top1"], "o", color=color, markersize=4, label=title)
            default = finished[finished["trial"] == 0]
            ax.plot(default["trial"], default["val_top1"], "o", color=color, markersize=10, fillstyle="none")
            failed = rows[rows["status"] == "failed"]["trial"]
            ax.plot(failed, [0.03] * len(failed), "x", color=color, markersize=6, transform=ax.get_xaxis_transform())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="trial", ylabel="top-1 accuracy (%)", title="accuracy on validation images", xlim=(-0.5, None))
        figure.legend(loc="outside upper left", ncols=min(len(record.space), 5))
    return figure


class _Method(NamedTuple):
    """A method of a search: its runs with default settings and with chosen settings, by seed."""

    default: RunsBySeed
    chosen: RunsBySeed

    @property
    def first(self) -> Run:
        """One of the runs with chosen settings."""
        return next(iter(self.chosen.values()))

    @property
    def title(self) -> str:
        """Title of the method."""
        return str(self.first.settings["method"]["title"])

    @property
    def label(self) -> str:
        """Title, and the settings that were not searched, such as "KD, views = 4"."""
        default = next(iter(self.default.values()), None)
        fixed = default.variant if default else ""
        return textwrap.fill(", ".join(filter(None, (self.title, fixed))), 24)


def chosen_settings(folder: str | Path, runs: Run | Sequence[Run]) -> Drawing:
    """Draw the test accuracy of every method of a search, with its default settings and with the chosen ones.

    A marker is the mean over seeds, and a line its 95 % confidence interval. An open marker has the default settings, a
    filled one the settings that the search chose on validation images. The methods are sorted by the accuracy of the
    chosen settings, best first. Supervised training is drawn as a band, if the runs contain it.

    Parameters
    ----------
    folder : path
        Folder of a finished search.
    runs : Run or sequence of Run
        The runs of a grid with the default settings of every method and the chosen ones, as `runs.load_runs` returns
        them. A run belongs to the arm that its folder is named after. Runs of other arms are left out.

    Returns
    -------
    Drawing

    Raises
    ------
    FileNotFoundError
        If there is no search in the folder.
    ValueError
        If the search is not finished, if no run has chosen settings, or if the runs have different data, students,
        recipes or numbers of epochs.
    """
    from ..experiments import chosen_arms  # slow to import

    arms, found = chosen_arms(folder), _by_arm(check_runs(runs, whole_epoch=True))
    methods = [_Method(found.get(method, {}), found[str(arm)]) for method, arm in arms.items() if str(arm) in found]
    if not methods:
        names = ", ".join(map(str, arms.values()))
        raise ValueError(f"no run has settings that the search in '{folder}' chose: train {names}")
    supervised = found.get("supervised", {})
    used = unique_runs(*(seeds for method in methods for seeds in method), supervised)
    if len({(study_key(run), len(run.history)) for run in used}) > 1:
        raise ValueError("the runs have different data, students, recipes or numbers of epochs: pass those of one grid")
    methods.sort(key=lambda method: accuracies(method.chosen).mean())
    note = "Mean over seeds, and 95 % confidence interval. Settings were chosen on validation images."
    with new_figure(used, 7.5, 1.4 + 0.42 * len(methods), note) as figure:
        ax = figure.subplots()
        for place, method in enumerate(methods):
            color = COLORS.get(method.title, MORE_COLORS[0])
            for seeds, shift, face in ((method.default, 0.15, "white"), (method.chosen, -0.15, color)):
                if seeds:
                    one, y = summarise(accuracies(seeds)), place + shift
                    ax.plot([one.low, one.high], [y, y], color=color, linewidth=1.2)
                    ax.plot(one.mean, y, "o", color=color, markerfacecolor=face)
        if supervised:
            one = summarise(accuracies(supervised))
            ax.axvline(one.mean, color=COLORS["supervised"], linewidth=1, zorder=0)
            ax.axvspan(one.low, one.high, color=COLORS["supervised"], alpha=0.15, linewidth=0, zorder=0)
        ax.set_yticks(range(len(methods)), [method.label for method in methods])
        ax.set(xlabel="top-1 accuracy on test images (%)", ylim=(-0.6, len(methods) - 0.4))
        handles = [
            Line2D([], [], color=DARK_GRAY, marker="o", markerfacecolor=face, linewidth=1.2, label=label)
            for face, label in (("white", "default settings"), (DARK_GRAY, "chosen settings"))
        ]
        handles += [Line2D([], [], color=COLORS["supervised"], label="supervised")] if supervised else []
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _by_arm(runs: Sequence[Run]) -> dict[str, RunsBySeed]:
    """Group runs by the arm that their folder is named after, and by seed."""
    found: dict[str, RunsBySeed] = {}
    for run in runs:
        if run.path:
            found.setdefault(run.path.parent.name, {}).setdefault(run.settings["seed"], run)
    return found

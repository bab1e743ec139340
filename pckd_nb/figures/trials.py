"""Figure of a search for settings: the accuracy of its trials on validation images."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..html import counted
from ..paths import user_path
from .canvas import COLORS, MORE_COLORS, Drawing, new_figure

__all__ = ["search"]

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

"""Samples: how hard each of them is, and how much it counts."""

import textwrap

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from .. import analysis, preview
from ..runs import Run
from .canvas import INK, PALE, canvas, checked, color_of, epoch_axis


def difficulty_gallery(run: Run, rows: int = 4, columns: int = 10) -> Figure:
    """Training images from easy to hard, read like text, with their class and γ after the last epoch."""
    runs = checked(run)
    if run.gallery is None:
        raise ValueError(f"the run {run.title} has no gallery: it has no whole epoch yet")
    gallery, classes = run.gallery, run.settings["data"]["classes"]
    shown = np.unique(np.linspace(0, len(gallery["images"]) - 1, rows * columns).round().astype(int))
    names = ["\n".join(textwrap.wrap(classes[c], 14)[:2]) for c in gallery["labels"]]
    height = 1.52 if any("\n" in names[i] for i in shown) else 1.4  # of a row, its text included; an image is 1
    lines = -(-len(shown) // columns)
    with canvas(runs, columns * 0.96, lines * height * 0.89 + 0.6) as figure:
        ax = figure.subplots()
        for place, i in enumerate(shown):
            x, y = place % columns * 1.08, place // columns * height
            picture = gallery["images"][i].transpose(1, 2, 0)
            picture = picture.repeat(3, 2) if picture.shape[2] == 1 else picture
            ax.imshow(picture, extent=(x, x + 1, y + 1, y), interpolation="nearest")
            ax.text(x + 0.5, y + 1.05, f"γ = {gallery['difficulty'][i]:.2f}", ha="center", va="top", fontweight="bold",
                    fontsize=8)  # fmt: skip
            ax.text(x + 0.5, y + 1.2, names[i], ha="center", va="top", fontsize=6.8, linespacing=1.15)
        ax.set(xlim=(-0.02, columns * 1.08 - 0.06), ylim=(lines * height, -0.02), aspect="equal")
        ax.axis("off")
        epoch = len(run.history)
        ax.set_title(f"Training images from easy to hard, as {run.title} finds them in epoch {epoch} (γ = 1: average)")
    return figure


def preview_weights(run: Run) -> Figure:
    """The preview strategy at work: threshold and weights by epoch; γ and its weights in the first and last epoch."""
    runs = checked(run, whole_epoch=True)
    name = run.settings["method"]["settings"].get("strategy", {}).get("value")
    if "threshold" not in run.history or name not in preview.STRATEGIES:
        raise ValueError(f"the run {run.title} weights no sample by a strategy of preview.py")
    color, history = color_of(run, runs), run.history
    with canvas(runs, 9.6, 4.4) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(1.1, 1, 1))
        ax = figure.add_subplot(grid[0, 0])
        ax.plot(history["epoch"], history["threshold"], color=INK)
        ax.set(title="threshold ε_t", ylabel="γ")
        epoch_axis(ax)
        ax = figure.add_subplot(grid[1, 0])
        ax.plot(history["epoch"], history["mean_weight"], color=color, label="mean weight")
        ax.plot(history["epoch"], history["full_weight_share"], color=INK, dashes=(2, 2), label="share with v = 1")
        ax.set(title="preview weights v", ylabel="mean, share", ylim=(0, 1.03))
        ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0))
        epoch_axis(ax)

        last = len(history)
        gammas = run.difficulty[[0, last - 1]].astype(np.float32)
        right = max(4, float(np.quantile(gammas, 0.995)), 1.2 * float(history["threshold"].max()))
        for column, epoch, gamma in zip((1, 2), (1, last), gammas, strict=True):
            row = epoch - 1
            limit = float(history["threshold"][row])
            above, below = (figure.add_subplot(grid[line, column]) for line in (0, 1))
            above.hist(gamma.clip(0, right), bins=40, range=(0, right), color=PALE)
            above.set(title=f"epoch {epoch}: difficulty γ", ylabel="training images")
            ce = run.cross_entropy[row].astype(np.float32)
            weights = preview.STRATEGIES[name](torch.from_numpy(ce), torch.from_numpy(gamma), limit).numpy()
            below.plot(gamma.clip(0, right), weights, ".", color=color, markersize=3, alpha=0.5, rasterized=True)
            below.set(title=f"epoch {epoch}: weights v", ylabel="v", ylim=(-0.03, 1.06))
            for ax in (above, below):
                ax.axvline(limit, color=INK, linewidth=1, linestyle=":")
                ax.set(xlim=(0, right), xlabel="γ")
            side, shift = ("right", -4) if limit > 0.6 * right else ("left", 4)
            place = dict(xycoords=("data", "axes fraction"), textcoords="offset points")
            above.annotate(f"ε_t = {limit:.2f}", (limit, 0.9), (shift, 0), ha=side, **place)
        figure.suptitle(
            f"{run.title}: hard samples are previewed with small weights", x=0.01, ha="left", fontweight="bold"
        )
    return figure


def difficulty_against_truth(run: Run, bins: int = 8) -> Figure:
    """γ after the last epoch against the known difficulty: median, middle half and middle nine tenths a bin."""
    runs = checked(run)
    correlation = analysis.difficulty_vs_truth(run)
    frame = pd.DataFrame({"truth": run.ground_truth.astype(np.float32), "gamma": analysis.last_difficulty(run)})
    frame["bin"] = (frame["truth"] * bins).astype(int).clip(0, bins - 1)
    spread = frame.groupby("bin")["gamma"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()
    x = (spread.index + 0.5) / bins
    with canvas(runs, 6.5, 4) as figure:
        ax = figure.subplots()
        color = color_of(run, runs)
        ax.fill_between(x, spread[0.05], spread[0.95], color=color, alpha=0.15, linewidth=0, label="5 – 95 %")
        ax.fill_between(x, spread[0.25], spread[0.75], color=color, alpha=0.35, linewidth=0, label="25 – 75 %")
        ax.plot(x, spread[0.5], "o-", color=color, label="median")
        ax.axhline(1, color=INK, linewidth=1, linestyle=":")
        ax.set(xlim=(0, 1), xlabel="known difficulty of the image (0 … 1)", ylabel="γ (1 = average of the batch)")
        ax.set_ylim(bottom=0)
        ax.set_title(f"{run.title}: γ against the truth, Spearman ρ = {correlation:.2f}")
        figure.legend(loc="outside right upper")
    return figure

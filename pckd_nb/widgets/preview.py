"""Explorer of the preview strategy: how much each training sample counts."""

import ipywidgets
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .. import preview
from ..figures.canvas import COLORS, DARK_GRAY, LIGHT_GRAY, Drawing
from ..runs import Run
from .explorer import (
    HARD_COLOR,
    Explorer,
    check_epoch,
    check_run,
    control_options,
    epoch_control,
    new_widget_figure,
    thumbnails,
)


def preview_explorer(run: Run) -> Explorer:
    """Return an explorer that shows how ε, epoch and strategy decide how much each training image counts.

    It shows `preview_state`.

    Parameters
    ----------
    run : Run
        With recorded samples and a gallery.

    Returns
    -------
    Explorer

    Raises
    ------
    ValueError
        If the run has no complete epoch, no recorded samples or no gallery.
    """
    run = check_run(run, "samples", "gallery")
    epochs, trained_epsilon = len(run.history), run.method_settings.get("epsilon")
    highest = 10 ** (1 / epochs)  # with this ε, the threshold is 10 in the last epoch
    epsilon = trained_epsilon or run.settings["recipe"]["final_threshold"] ** (1 / epochs)
    min_step = (highest - 1) / 50
    step = next(n * 10.0**k for k in range(-9, 3) for n in (1, 2, 5) if n * 10.0**k >= min_step)
    controls = {
        "epsilon": ipywidgets.FloatSlider(
            value=epsilon, min=1, max=max(highest, epsilon), step=step, readout_format=".4f", continuous_update=False,
            **control_options("ε", "base of the threshold: ε_t = ε^epoch"),
        ),
        "epoch": epoch_control(epochs),
        "strategy": ipywidgets.Dropdown(
            options=list(preview.STRATEGIES), **control_options("strategy", "how the weight depends on the difficulty")
        ),
    }  # fmt: skip
    return Explorer(controls, lambda **values: preview_state(run, **values))


def preview_state(run: Run, epsilon: float, epoch: int, strategy: str = "preview") -> Drawing:
    """Draw the weights v that a strategy gives to the training samples of one epoch.

    The figure shows v against γ, a histogram of γ, and images of the gallery. The frame of an image shows whether it
    has full weight.

    γ and cross-entropy are those that the run recorded. Training with another ε or strategy would have changed them.

    Parameters
    ----------
    run : Run
        With recorded samples and a gallery.
    epsilon : float
        Base ε of the threshold, positive.
    epoch : int
        Counted from 1.
    strategy : str
        A key of `preview.STRATEGIES`.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the run has no complete epoch, no recorded samples or no gallery, or if an argument is outside its range.
    """
    run = check_run(run, "samples", "gallery")
    check_epoch(run, epoch)
    if strategy not in preview.STRATEGIES:
        raise ValueError(f"unknown strategy '{strategy}'; known: {', '.join(preview.STRATEGIES)}")
    threshold = preview.threshold(epoch, epsilon)
    ce, gamma = (values[epoch - 1].astype(np.float32) for values in (run.cross_entropy, run.difficulty))
    strategy_function = preview.STRATEGIES[strategy]
    weight = strategy_function(torch.from_numpy(ce), torch.from_numpy(gamma), threshold).numpy()
    full, mean = int((weight == 1).sum()), float(weight.mean())
    x_max = max(4, float(np.quantile(gamma, 0.995)), 1.1 * min(threshold, 10))

    index = run.gallery["index"][np.argsort(gamma[run.gallery["index"]], kind="stable")]
    shown = index[np.unique(np.linspace(0, len(index) - 1, 24).round().astype(int))]
    places = {int(sample): place for place, sample in enumerate(run.gallery["index"])}
    reduced = int((weight[shown] < 1).sum())

    settings = run.method_settings
    trained_with = (
        f" with ε = {settings['epsilon']:.4g}, strategy {settings['strategy']}" if "epsilon" in settings else ""
    )
    note = f"v: computed from this ε and strategy. γ: recorded in training{trained_with}."
    with new_widget_figure([run], 4.3, note) as figure:
        above, below = figure.add_axes((0.08, 0.63, 0.39, 0.29)), figure.add_axes((0.08, 0.19, 0.39, 0.29))
        if (
            strategy == "focal"
        ):  # its weight depends on the cross-entropy, so samples with equal γ may have different weights
            above.plot(gamma, weight, ".", color=COLORS["PCKD"], markersize=2)
        else:
            grid = np.union1d(np.linspace(0, x_max, 400), [threshold, np.nextafter(threshold, np.inf)])
            at = torch.from_numpy(grid)
            is_constant = strategy.startswith("constant")  # the weight is the mean over the samples, not over the grid
            curve = np.full(len(grid), mean) if is_constant else strategy_function(at, at, threshold).numpy()
            above.plot(grid, curve, color=COLORS["PCKD"])
        above.set_title(f"weight v, strategy {strategy}")
        above.set(ylim=(-0.04, 1.08), ylabel="v", yticks=(0, 0.5, 1))
        bins = np.linspace(0, x_max, 41)
        clipped = np.minimum(gamma, x_max)
        for weights, color, label in ((None, LIGHT_GRAY, "all"), (weight, COLORS["PCKD"], "weighted by v")):
            below.stairs(np.histogram(clipped, bins, weights=weights)[0], bins, fill=True, color=color, label=label)
        below.set_title("difficulty γ of all training images")
        below.set(ylabel="training images", xlabel=f"γ (1 = average of the batch; last bar: {x_max:.1f} or more)")
        below.legend(loc="upper right", fontsize=7.5)
        ticks = np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, x_max))
        for ax in (above, below):
            ax.set_xticks(ticks[ticks <= x_max])  # set explicitly, because finding ticks is slow
            ax.set_xlim(0, x_max)
            if threshold < x_max:
                ax.axvline(threshold, color=DARK_GRAY, linewidth=1, linestyle=":")
        if threshold < x_max:
            side, shift = ("right", -4) if threshold > 0.6 * x_max else ("left", 4)
            above.annotate(f"ε_t = {threshold:.2f}", (threshold, 0.5), (shift, 0), textcoords="offset points", ha=side)
        ax = figure.add_axes((0.52, 0.14, 0.47, 0.78))
        frames = [COLORS["PCKD"] if v == 1 else HARD_COLOR for v in weight[shown]]
        dashes = ["-" if v == 1 else "--" for v in weight[shown]]
        texts = ["v > 0.99" if 0.995 <= v < 1 else "v < 0.01" if 0 < v < 0.005 else f"v {v:.2f}" for v in weight[shown]]
        thumbnails(ax, [run.gallery["images"][places[int(i)]] for i in shown], 6, texts, 1.36, frames, dashes)
        ax.set_title(f"{len(shown)} images, from easy to hard in epoch {epoch}")
        marks = [
            Line2D([], [], color=COLORS["PCKD"], linewidth=2, label="v = 1: counts fully"),
            Line2D([], [], color=HARD_COLOR, linewidth=2, linestyle="--", label="v < 1: counts less"),
        ]
        ax.legend(handles=marks, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, fontsize=8)
    figure.alt = (
        f"Epoch {epoch} of {len(run.history)}, ε = {epsilon:.4g}, strategy {strategy}: the threshold ε_t is "
        f"{threshold:.2f}. {full:,} of {len(gamma):,} training images ({100 * full / len(gamma):.0f} %) count fully "
        f"(v = 1); the mean weight is {mean:.2f}. Of the {len(shown)} images shown, {reduced} "
        f"count{'s' * (reduced == 1)} less."
    )
    return figure

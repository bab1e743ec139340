"""Explorer of sweeps: accuracy against one setting of PCKD."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np

from ..figures.arms import FACTORS, RunsBySeed, Sweep, accuracies, find_sweep, unique_runs
from ..figures.canvas import COLORS, DARK_GRAY, Drawing, label_epoch_axis
from ..figures.results import REFERENCE_DASHES
from ..runs import SYMBOLS, Run
from .explorer import Explorer, control_options, new_widget_figure


def sweep_explorer(runs: Sequence[Run]) -> Explorer:
    """Return an explorer that shows how accuracy depends on one setting, and the learning curve at each of its values.

    It shows `sweep_state`.

    Parameters
    ----------
    runs : sequence of Run
        `figures.arms.find_sweep` selects those that belong to a sweep.

    Returns
    -------
    Explorer

    Raises
    ------
    ValueError
        If the runs contain no sweep.
    """
    sweeps: dict[str, Sweep] = {}
    for factor in FACTORS:
        try:
            sweeps[factor] = find_sweep(runs, [factor])
        except ValueError:
            if factor == list(FACTORS)[-1] and not sweeps:
                find_sweep(runs)  # raises an error that names all factors

    def value_options(factor: str) -> list[tuple[str, float]]:
        return [(f"{value:g}", value) for value in sorted(sweeps[factor].points[factor])]

    def follow(name: str, controls: Mapping[str, Any]) -> None:
        if name == "factor":
            controls["value"].options = value_options(controls["factor"].value)
            controls["value"].value = sweeps[controls["factor"].value].default[controls["factor"].value]

    first = next(iter(sweeps))
    controls = {
        "factor": ipywidgets.Dropdown(
            options=[(SYMBOLS[factor], factor) for factor in sweeps],
            **control_options("factor", "the setting that differs between the runs"),
        ),
        "value": ipywidgets.SelectionSlider(
            options=value_options(first), value=sweeps[first].default[first], continuous_update=False,
            **control_options("its value", "one of the measured values"),
        ),
    }  # fmt: skip
    return Explorer(controls, lambda factor, value: _draw_sweep(sweeps[factor], factor, value), follow)


def sweep_state(runs: Sequence[Run], factor: str, value: float | None = None) -> Drawing:
    """Draw the final accuracy against one setting of PCKD, and the accuracy by epoch at one of its measured values.

    Parameters
    ----------
    runs : sequence of Run
        `figures.arms.find_sweep` selects those that belong to a sweep.
    factor : {"beta_cc", "beta_fa", "beta_ca", "epsilon"}
        The setting that differs between the runs.
    value : float, optional
        A measured value. By default, the default value of PCKD. ε is converted as in `figures.arms.find_sweep`.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If `factor` is another name, if the runs contain no sweep of it, or if `value` was not measured.
    """
    if factor not in FACTORS:
        raise ValueError(f"unknown factor '{factor}'; known: {', '.join(FACTORS)}")
    sweep = find_sweep(runs, [factor])
    value = sweep.default[factor] if value is None else value
    if value not in sweep.points[factor]:
        known = ", ".join(f"{value:g}" for value in sorted(sweep.points[factor]))
        raise ValueError(f"{SYMBOLS[factor]} = {value} was not measured; measured: {known}")
    return _draw_sweep(sweep, factor, value)


def _draw_sweep(sweep: Sweep, factor: str, value: float) -> Drawing:
    points, symbol, default = sweep.points[factor], SYMBOLS[factor], sweep.default[factor]
    values = sorted(points)
    means = {v: accuracies(seeds).mean() for v, seeds in points.items()}
    references = {title: accuracies(seeds).mean() for title, seeds in sweep.references.items()}
    color = COLORS["PCKD"]
    with new_widget_figure(unique_runs(*points.values(), *sweep.references.values()), 3.9) as figure:
        left, right = figure.add_axes((0.075, 0.27, 0.41, 0.6)), figure.add_axes((0.57, 0.27, 0.41, 0.6))
        x = range(len(values))
        sd = [accuracies(points[v]).std(ddof=1) if len(points[v]) > 1 else 0 for v in values]
        left.errorbar(x, [means[v] for v in values], yerr=sd, color=color, marker="_", markersize=9, linewidth=1.5)
        for place, v in zip(x, values, strict=True):
            left.scatter([place] * len(points[v]), accuracies(points[v]), s=14, color=color, alpha=0.6, linewidth=0)
        left.plot(values.index(value), means[value], "o", markersize=12, markerfacecolor="none", color=DARK_GRAY)
        low, high = left.get_ylim()
        for title, mean in references.items():
            if title == "KD" or mean > low - 0.5 * (
                high - low
            ):  # a line far below would leave little space for the others
                left.axhline(mean, color=COLORS[title], dashes=REFERENCE_DASHES[title], linewidth=1.3)
        left.set_xticks(x, [f"{v:g}" + "\ndefault" * (v == default) for v in values], fontsize=8)
        left.set(xlim=(-0.5, len(values) - 0.5), ylabel="top-1 accuracy (%)")
        converted = " for 240 epochs" if factor == "epsilon" else ""
        left.set_xlabel(f"{symbol}{converted} (not to scale)")
        left.grid(axis="x", visible=False)
        left.set_title("after the last epoch, mean ± sd")
        curves: dict[str, tuple[RunsBySeed, dict[str, Any]]] = {
            f"PCKD, {symbol} = {value:g}": (points[value], dict(color=color))
        }
        if value != default:
            curves[f"PCKD, {symbol} = {default:g} (default)"] = points[default], dict(color=color, dashes=(1, 1.2))
        for title, seeds in sweep.references.items():
            curves[title] = seeds, dict(color=COLORS[title], dashes=REFERENCE_DASHES[title])
        for label, (seeds, line_style) in curves.items():
            by_epoch = np.mean([run.history["test_top1"] for run in seeds.values()], 0)
            dot = "o" if len(by_epoch) < 3 else None
            right.plot(range(1, len(by_epoch) + 1), by_epoch, label=label, marker=dot, **line_style)
        right.set_title(f"by epoch, at {symbol} = {value:g}")
        label_epoch_axis(right)
        right.set_ylim(bottom=0)
        right.legend(loc="best", fontsize=7.5)
    chosen = points[value]
    others = ", ".join(f"{title} {mean:.1f} %" for title, mean in references.items())
    best = max(values, key=means.__getitem__)
    figure.alt = (
        f"PCKD with {symbol} = {value:g}{' (the default)' * (value == default)}: {_mean_and_sd(chosen)} top-1, mean "
        f"over {_seed_text(chosen)}. Of {len(values)} values from {values[0]:g} to {values[-1]:g} the highest mean is "
        f"at {best:g}: {_mean_and_sd(points[best])}." + (f" For comparison: {others}." if others else "")
    )
    return figure


def _mean_and_sd(seeds: RunsBySeed) -> str:
    values = accuracies(seeds)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "") + " %"


def _seed_text(seeds: RunsBySeed) -> str:
    """Return, for example, "seeds 0, 1, 2"."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"

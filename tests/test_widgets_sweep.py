"""The sweep explorer: accuracy against one factor."""

import numpy as np
import pytest

from pckd_nb import widgets

from .test_widgets import panel, swept_runs, trained


@pytest.fixture(scope="module")
def run():
    return trained()[2]


@pytest.fixture(scope="module")
def sweep():
    return swept_runs()


def test_sweep_state_draws_the_measured_values(sweep, run):
    figure = widgets.sweep_state(sweep, "beta_cc", 0.02)
    ax = panel(figure, "after the last epoch")
    assert np.allclose(ax.lines[0].get_ydata(), [run.accuracy - 2, run.accuracy, run.accuracy + 3])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.005\ndefault", "0.02"]
    by_epoch = panel(figure, "by epoch")
    assert np.allclose(by_epoch.lines[0].get_ydata(), run.history["test_top1"] + 3)
    assert [line.get_label() for line in by_epoch.lines][1:] == ["PCKD, β_cc = 0.005 (default)", "KD"]
    assert f"β_cc = 0.02: {run.accuracy + 3:.1f} % top-1, mean over seed 0" in figure.alt
    assert f"highest mean is at 0.02: {run.accuracy + 3:.1f} %" in figure.alt


def test_changing_the_factor_updates_the_list_of_values(sweep):
    explorer = widgets.sweep_explorer(sweep)
    assert [value for _, value in explorer.controls["factor"].options] == ["beta_cc", "beta_fa"]
    explorer.controls["value"].value = 0.02
    explorer.controls["factor"].value = "beta_fa"
    assert [value for _, value in explorer.controls["value"].options] == [5, 20]
    assert explorer.controls["value"].value == 20 and "β_fa = 20 (the default)" in explorer.alt

"""The preview explorer: weights of a run's difficulties for any ε and strategy."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from pckd_nb import preview, widgets

from .test_figures import all_texts
from .test_widgets import gamma_of, panel, trained


@pytest.fixture(scope="module")
def run():
    return trained()[2]


@pytest.mark.parametrize("strategy", preview.STRATEGIES)
def test_preview_computes_weights_from_the_runs_difficulties(run, strategy):
    epsilon, epoch = 1.1, 2
    figure = widgets.preview_state(run, epsilon, epoch, strategy)
    gamma, limit = gamma_of(run, epoch), epsilon**epoch
    ce = run.cross_entropy[epoch - 1].astype(np.float32)
    expected = preview.STRATEGIES[strategy](torch.from_numpy(ce), torch.from_numpy(gamma), limit).numpy()
    everything, counted = (patch.get_data().values for patch in panel(figure, "difficulty γ").patches)
    assert everything.sum() == len(gamma) == 60
    assert counted.sum() == pytest.approx(expected.sum(), rel=1e-5)
    assert f"{(expected == 1).sum()} of 60 training images" in figure.alt
    assert f"mean weight is {expected.mean():.2f}" in figure.alt and f"threshold ε_t is {limit:.2f}" in figure.alt
    curve = panel(figure, "weight v").lines[0]
    if strategy == "focal":
        assert np.array_equal(curve.get_ydata(), expected)
    elif strategy.startswith("constant"):
        assert np.allclose(curve.get_ydata(), expected.mean())
    else:
        for x, v in zip(gamma, expected, strict=True):  # the curve passes through every sample
            at = np.interp(x, curve.get_xdata(), curve.get_ydata())
            assert at == pytest.approx(v, abs=0.02) or x > 4


def test_preview_frames_images_by_their_weight(run):
    figure = widgets.preview_state(run, 1.0, 3, "curriculum")
    ax = panel(figure, "24 images")
    hard = gamma_of(run, 3)[run.gallery["index"]] > 1
    share = [text for text in all_texts(figure) if text.startswith("v 0.00")]
    edges = ax.collections[0].get_edgecolor()
    assert (edges == to_rgba(widgets.HARD_COLOR)).all(1).sum() == len(share)
    assert len(share) == pytest.approx(24 * hard.mean(), abs=1.5)
    assert f"{len(share)} count" in figure.alt
    assert len(set(map(tuple, edges))) == 2


def test_preview_starts_with_the_settings_of_the_run(run):
    explorer = widgets.preview_explorer(run)
    assert explorer.values == {
        "epsilon": pytest.approx(run.settings["method"]["settings"]["epsilon"]["value"]), "epoch": 3,
        "strategy": "preview",
    }  # fmt: skip
    assert f"{run.history['mean_weight'].iloc[-1]:.2f}" in explorer.alt


def test_preview_of_a_run_without_weights_starts_with_the_default_strategy():
    assert "strategy preview" in widgets.preview_explorer(trained()[1]).alt

"""Figures of trainings with wrong labels, on digits."""

import dataclasses

import numpy as np
import pytest

import pckd_nb as pckd
from pckd_nb import analysis, figures
from pckd_nb.measures import HARD_IS

QUIET = dict(epochs=3, batch_size=20, progress=False, accelerator="cpu", precision="32-true")


@pytest.fixture(scope="module")
def runs():
    """Supervised trainings with 0, 20 and 40 % wrong labels, with three seeds each."""
    found = {}
    for rate in (0, 0.2, 0.4):
        data = pckd.load_dataset("digits", train_size=120, test_size=60, label_noise=rate)
        found[rate] = [pckd.fit("resnet8", data, seed=seed, **QUIET) for seed in range(3)]
    return found


def test_precision_curves_are_those_of_the_measures(runs):
    figure = figures.precision_at_k(runs[0.2], ["area_under_margin", "first_learned"])
    ax = figure.axes[0]
    for line, name in zip(ax.lines, ("area_under_margin", "first_learned"), strict=False):
        assert line.get_label() == name
        sizes = line.get_xdata()
        assert sizes[0] == 1 and sizes[-1] == 48  # twice the number of wrong labels
        for k in (1, 24, 48):
            precisions = []
            for run in runs[0.2]:
                scores = (HARD_IS[name] * run.samples()[name].astype(float)).fillna(np.inf)
                precisions.append(analysis.precision_at_k(scores, run.labels != run.true_labels, k))
            place = int(np.abs(sizes - k).argmin())
            if sizes[place] == k:
                assert line.get_ydata()[place] == pytest.approx(100 * np.mean(precisions))
    wrong, random = ax.lines[2:]
    assert wrong.get_xdata()[0] == 24 and random.get_ydata()[0] == 20
    assert len(ax.collections) == 2  # intervals of three runs
    assert not figures.precision_at_k(runs[0.2][:2]).axes[0].collections


def test_precision_curves_need_wrong_labels_and_recorded_measures(runs):
    with pytest.raises(ValueError, match="has no wrong labels: use runs with label noise"):
        figures.precision_at_k(runs[0])
    with pytest.raises(ValueError, match="unknown measure 'loss': choose from gamma"):
        figures.precision_at_k(runs[0.2], ["loss"])
    with pytest.raises(ValueError, match="has not recorded teacher_margin: choose other measures"):
        figures.precision_at_k(runs[0.2], ["teacher_margin"])
    with pytest.raises(ValueError, match="different numbers of images or of wrong labels"):
        figures.precision_at_k([runs[0.2][0], runs[0.4][0]])
    without = dataclasses.replace(runs[0.2][0], cross_entropy=None, difficulty=None, labels=None)
    with pytest.raises(ValueError, match="samples"):
        figures.precision_at_k(without)


def test_noise_curves_have_one_point_per_rate(runs):
    teacher = runs[0][0]
    clean = pckd.load_dataset("digits", train_size=120, test_size=60)
    kd = pckd.distill("resnet8", teacher, clean, "kd", **QUIET)
    figure = figures.noise_curves([*runs[0.4], *runs[0], *runs[0.2], kd])
    lines = {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}
    supervised, points = lines["supervised"], sorted(runs)
    assert supervised.get_xdata() == pytest.approx([100 * rate for rate in points], abs=0.5)
    expected = [np.mean([run.accuracy for run in runs[rate]]) for rate in points]
    assert supervised.get_ydata() == pytest.approx(expected)
    assert lines["KD"].get_ydata().tolist() == [kd.accuracy]
    intervals = [line for line in figure.axes[0].lines if line.get_label().startswith("_")]
    assert len(intervals) == 3  # KD has one seed
    for run, message in (
        (runs[0], "no run has label noise"),
        ([*runs[0.2], dataclasses.replace(kd, history=kd.history[:2])], "different data sets, students, teachers"),
    ):
        with pytest.raises(ValueError, match=message):
            figures.noise_curves(run)

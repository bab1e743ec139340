"""Figures of the geometry of classes by epoch, on made-up runs with known answers."""

import copy
import dataclasses
import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.stats import t

from pckd_nb import analysis, collapse, figures

from .test_figures_space import made_run

EPOCHS = 4


def geometry(seed=0, width=8, classes=12, drift=1.0):
    """Return geometry whose centers move to their last place, and measures that differ by seed and epoch."""
    random = np.random.default_rng(seed)
    end, path = random.normal(size=(classes, width)), random.normal(size=(EPOCHS, classes, width))
    left = drift * np.linspace(1, 0, EPOCHS)[:, None, None]
    arrays = {"epoch": np.arange(1, EPOCHS + 1, dtype=np.int32)}
    arrays |= {name: (1 + seed + np.arange(EPOCHS)).astype(np.float32) for name in collapse.MEASURES}
    return arrays | {name: (end + left * path).astype(np.float16) for name in ("means", "centers")}


def student(seed, title="KD", **changes):
    run = made_run(centers=np.eye(12), title=title, teacher="teacher", fingerprint=f"{title}{seed}", groups={})
    run.settings["seed"] = seed
    return dataclasses.replace(run, geometry=geometry(seed, **changes))


def teacher():
    run = made_run(centers=np.eye(12), name="resnet20", title="supervised", fingerprint="teacher")
    return dataclasses.replace(run, geometry=geometry(50, width=10))


@pytest.fixture
def runs():
    return [teacher(), *(student(seed) for seed in range(3)), student(7, "PCKD")]


def panels(figure):
    return {f"{ax.get_title(loc='left')}, {ax.get_ylabel()}": ax for ax in figure.axes}


def check_all_text_is_visible(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for text in (*figure.texts, figure._supxlabel, *figure.legends, *(ax._left_title for ax in figure.axes)):
        box, page = text.get_window_extent(canvas.get_renderer()), figure.bbox
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text
    figure.savefig(io.BytesIO(), dpi=40)


def test_collapse_shows_the_mean_over_seeds_and_its_interval(runs):
    figure = figures.collapse_over_epochs(runs)
    drawn = panels(figure)
    assert len(drawn) == 8
    for title in ("NC1: variability, tr(Σ_W Σ_B⁺) / C", "NC3: self-duality, ‖W/‖W‖ − M/‖M‖‖"):
        of_teacher, kd, pckd = (line.get_ydata() for line in drawn[title].lines)
        assert np.allclose(of_teacher, [51, 52, 53, 54]) and np.allclose(pckd, [8, 9, 10, 11])
        assert np.allclose(kd, [2, 3, 4, 5])  # of the seeds 0, 1 and 2
        (band,) = drawn[title].collections  # three seeds of KD, one of PCKD
        y = band.get_paths()[0].vertices[:, 1]
        half_width = t.ppf(0.975, 2) / 3**0.5
        assert y.min() == pytest.approx(2 - half_width, abs=1e-5) and y.max() == pytest.approx(5 + half_width)
    assert drawn["NC1: variability, tr(Σ_W Σ_B⁺) / C"].get_yscale() == "log"
    check_all_text_is_visible(figure)


def test_similarity_to_the_teacher_is_that_of_the_table(runs):
    drawn = panels(figures.collapse_over_epochs(runs))
    for title, column in (
        ("CKA of class means, similarity to teacher", "cka_means"),
        ("RSA of centers, similarity to teacher", "rsa_centers"),
    ):
        kd, pckd = (line.get_ydata() for line in drawn[title].lines)
        tables = [analysis.geometry_table(run, runs[0]) for run in runs[1:]]
        assert np.allclose(kd, np.mean([table[column] for table in tables[:3]], 0))
        assert np.allclose(pckd, tables[3][column])


def test_the_lower_row_needs_the_geometry_of_a_teacher(runs):
    assert len(figures.collapse_over_epochs(runs[1:]).axes) == 4
    given = panels(figures.collapse_over_epochs(runs[1:], runs[0].geometry))
    among = panels(figures.collapse_over_epochs(runs))
    assert given.keys() == among.keys()
    for title in given:
        lines = [ax[title].lines[-1].get_ydata() for ax in (given, among)]
        assert np.allclose(*lines)
    assert len(figures.collapse_over_epochs(runs[0]).axes) == 4  # the teacher alone


def test_the_training_images_can_be_shown(runs):
    with pytest.raises(ValueError, match="no geometry of training images"):
        figures.collapse_over_epochs(runs[1], train=True)
    runs[1].geometry |= {f"train_{name}": 3 * array for name, array in runs[1].geometry.items()}
    figure = figures.collapse_over_epochs(runs[1], train=True)
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), [3, 6, 9, 12])
    assert figure._supxlabel.get_text().startswith("Measured on the training images.")


def test_trajectories_end_at_the_last_centers_in_the_plane_of_largest_variance(runs):
    centers = np.zeros((EPOCHS, 12, 8))
    centers[:, :, 3] = np.arange(12)  # variance only in one direction
    centers[0, :, 3] *= -1
    runs[1].geometry["centers"] = centers.astype(np.float16)
    figure = figures.center_trajectories([runs[1], runs[4]], classes=[0, 11])
    first, second, angles = figure.axes
    assert first.get_xlabel() == "100 % of variance" and int(second.get_xlabel().split()[0]) < 100
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 2]
    low, high = (line.get_xdata() for line in first.lines)
    sign = np.sign(high[-1])
    assert np.allclose(sign * low, [5.5, -5.5, -5.5, -5.5]) and np.allclose(sign * high, [-5.5, 5.5, 5.5, 5.5])
    assert np.allclose(angles.lines[0].get_ydata(), [180, 0, 0, 0], atol=1e-3)
    check_all_text_is_visible(figure)


def test_panels_of_trajectories_are_rotated_to_agree(runs):
    turned = dataclasses.replace(runs[4], geometry=dict(runs[4].geometry))
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0]
    turned.geometry["centers"] = runs[4].geometry["centers"].astype(float) @ rotation
    a, b, _ = figures.center_trajectories([runs[4], turned]).axes
    assert len(a.lines) == 10
    for line, other in zip(a.lines, b.lines, strict=True):
        assert np.allclose(line.get_xydata(), other.get_xydata(), atol=1e-2)


def test_runs_that_cannot_be_drawn_are_refused(runs):
    for draw in (figures.collapse_over_epochs, figures.center_trajectories):
        with pytest.raises(ValueError, match=r"has no geometry \(geometry\.npz\)"):
            draw(dataclasses.replace(runs[1], geometry=None))
        other = dataclasses.replace(runs[1], settings={**runs[1].settings})
        other.settings["data"] = {**other.settings["data"], "fingerprint": "other"}
        with pytest.raises(ValueError, match="only if all runs use the same data"):
            draw([runs[2], other])
    small = dataclasses.replace(runs[1], geometry={"epoch": [1], **dict.fromkeys(collapse.MEASURES, [1.0])})
    with pytest.raises(ValueError, match="the run KD resnet8 has recorded no centers"):
        figures.center_trajectories(small)
    assert len(figures.collapse_over_epochs(small).axes) == 4
    with pytest.raises(ValueError, match="the run has recorded no class centers"):
        figures.collapse_over_epochs([runs[0], small])
    second = copy.deepcopy(runs[0])
    second.settings["fingerprint"] = "second"
    of_second = copy.deepcopy(runs[1])
    of_second.settings["teacher"]["fingerprint"] = "second"
    with pytest.raises(ValueError, match="several teachers: draw the students of one teacher at a time"):
        figures.collapse_over_epochs([*runs, second, of_second])
    twice = figures.collapse_over_epochs([runs[0], copy.deepcopy(runs[0]), runs[1]])
    assert len(twice.axes) == 8
    for wrong in ([], [12], range(11)):
        with pytest.raises(ValueError, match="classes must be 1 to 10 numbers below 12"):
            figures.center_trajectories(runs, wrong)


def test_trajectories_show_the_angle_to_a_teacher_of_the_same_width(runs):
    def titles(shown):
        return [ax.get_title(loc="left") for ax in figures.center_trajectories(shown).axes]

    assert titles(runs[:2]) == ["teacher resnet20", "KD resnet8", "angle to the end"]  # the teacher is wider
    same = dataclasses.replace(runs[0], geometry=geometry(50))
    figure = figures.center_trajectories([same, runs[1], runs[4]])
    assert [ax.get_title(loc="left") for ax in figure.axes[3:]] == ["angle to the end", "angle to the teacher"]
    kd, pckd = (line.get_ydata() for line in figure.axes[4].lines)
    assert np.allclose(kd, analysis.geometry_table(runs[1], same)["center_angle_to_teacher"])
    assert np.allclose(pckd, analysis.geometry_table(runs[4], same)["center_angle_to_teacher"])
    assert len(figure.axes[3].lines) == 3
    check_all_text_is_visible(figure)

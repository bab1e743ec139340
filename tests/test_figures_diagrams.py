import dataclasses
import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox

import pckd_nb as pckd
from pckd_nb import figures
from pckd_nb.figures import diagrams

from .conftest import make_data


@pytest.fixture(scope="module")
def runs():
    """A supervised and a PCKD run, trained for three epochs on tiny images."""
    data = make_data(train=60, test=30)
    recipe = pckd.get_recipe("classroom", epochs=3, batch_size=20)
    teacher = pckd.fit(pckd.create_model("resnet8", data, seed=0), data, recipe, progress=False)
    student = pckd.create_model("resnet8", data, seed=1)
    return [teacher, pckd.distill(student, teacher, data, pckd.PCKD(), recipe, progress=False)]


@pytest.fixture(scope="module")
def run(runs):
    return runs[1]


DRAW = {
    "motivation": figures.motivation,
    "framework": figures.framework,
    "framework without a run": lambda run: figures.framework(),
    "feature_weight_matrix": figures.feature_weight_matrix,
}


@pytest.fixture(scope="module")
def drawn(run):
    return {name: draw(run) for name, draw in DRAW.items()}


def with_settings(run, **changed):
    """Return a copy of `run` with changed settings, for example with_settings(run, data={"classes": …})."""
    settings = {name: {**run.settings[name], **values} for name, values in changed.items()}
    return dataclasses.replace(run, settings={**run.settings, **settings})


def with_strategy(run, name):
    settings = {**run.settings["method"]["settings"], "strategy": {"value": name, "from": "argument"}}
    return with_settings(run, method={"settings": settings})


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def visible_texts(figure):
    """Return every visible text of the figure with its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [*figure.texts, figure._supxlabel, *figure.findobj(mpl.text.Annotation)]
    for ax in (*figure.axes, *(child for parent in figure.axes for child in parent.child_axes)):
        texts += ax.texts + (ax.get_legend().get_texts() if ax.get_legend() else [])
        if ax.axison:
            texts.append(ax._left_title)
            for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
                if not axis.get_visible():
                    continue  # hidden axis of twin axes
                texts.append(axis.label)
                inside = [low <= place <= high for place in axis.get_majorticklocs()]
                texts += [label for label, shown in zip(axis.get_ticklabels(), inside, strict=False) if shown]
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in texts if text.get_visible()}
    return [(text, box) for text, box in boxes.items() if text.get_text() and box.width > 1]


def axes_by_title(figure):
    return {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_title(loc="left")}


@pytest.mark.parametrize("name", DRAW)
def test_no_text_is_cut_off_or_overlaps_another(name, drawn):
    texts, page = visible_texts(drawn[name]), drawn[name].bbox
    assert len(texts) > 20
    for number, (text, box) in enumerate(texts):
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text
        for other, another in texts[:number]:
            shared = Bbox.intersection(box, another)
            assert shared is None or min(shared.width, shared.height) < 2, f"{text} on {other}"


@pytest.mark.parametrize("name", ["framework", "framework without a run"])
def test_no_arrow_crosses_a_text_and_every_text_fits_its_box(name, drawn):
    figure = drawn[name]
    texts = visible_texts(figure)
    (ax,) = figure.axes
    boxes = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) > 20 and len(ax.lines) > 30
    for text, extent in texts:
        for line in ax.lines:
            path = line.get_transform().transform_path(line.get_path())
            assert not path.intersects_bbox(extent.padded(-1), filled=False), text
        cut = [box for box in boxes if box.overlaps(extent) and not (box.x0 < extent.x0 and extent.x1 < box.x1)]
        assert not cut, text


@pytest.mark.parametrize("name", ["framework", "framework without a run"])
def test_arrows_lead_from_labels_to_cross_entropy_and_contrast(name, drawn):
    (ax,) = drawn[name].axes
    boxes = [patch.get_path().get_extents(patch.get_transform() - ax.transData)
             for patch in ax.patches if isinstance(patch, FancyBboxPatch)]  # fmt: skip

    def box_of(point):
        (found,) = (box for box in boxes if box.padded(0.01).contains(*point) and box.width < 20)
        inside = (text.get_text() for text in ax.texts if found.contains(*text.get_position()))
        return " ".join(inside).replace("\n", " ")

    ends = [line.get_xydata()[[0, -1]] for line in ax.lines if line.get_linestyle() != "-"]
    ends = [(start, end) for start, end in ends if any(box.padded(0.01).contains(*start) for box in boxes)]
    assert {box_of(end) for start, end in ends if "label" in box_of(start)} == {"L_CE upright", "L_CC all views"}


def test_framework_names_every_term_and_both_networks(drawn):
    words = {text.get_text() for text, _ in visible_texts(drawn["framework"])}
    for term, rows in (
        ("L_CE", "upright"), ("L_KD", "upright"), ("L_FA", "all views"), ("L_CC", "all views"), ("L_CA", "centers")
    ):  # fmt: skip
        assert f"{term}\n{rows}" in words
    assert {"student\ntrained", "teacher\nfrozen", "g", "Aₛ", "Aₜ", "uₛ = Wₛ eₛ", "uₜ = Wₜ eₜ"} <= words
    (objective,) = (word for word in words if word.startswith("L  = "))
    assert all(part in objective for part in ("β_kd · mean(v · L_KD)", "β_fa · L_FA", "β_cc · mean(v · L_CC)"))


def test_framework_shows_the_views_that_training_makes(run, drawn):
    upright, *views = (image.get_array().data for image in drawn["framework"].axes[0].images)
    found = np.abs(run.gallery["images"].astype(int) - upright[..., 0].astype(int)).max((1, 2, 3)) == 0
    assert found.any()  # a training image of the run
    rotated = pckd.views.rotate(as_batch(upright), 4).permute(0, 2, 3, 1).numpy()
    assert len(views) == 4 and all(np.array_equal(*pair) for pair in zip(views, rotated, strict=True))


def as_batch(picture):
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]


def test_the_example_image_is_the_one_that_rotations_change_most(run):
    def change(picture):
        return min(np.abs(np.rot90(picture, turn).astype(int) - picture).mean() for turn in (1, 2, 3))

    assert change(diagrams._example_image(None)) > 50  # the most symmetric of the 100 images has 11
    easier = run.gallery["images"][: len(run.gallery["images"]) // 2]
    assert change(diagrams._example_image(run)) == max(change(image.transpose(1, 2, 0)) for image in easier)


def test_captions_name_the_run_or_data_set_that_was_drawn(run, drawn):
    for name, figure in drawn.items():
        text = figure._supxlabel.get_text().replace("\n", " ")
        assert (run.fingerprint[:8] in text) == ("without" not in name)
    assert "shapes100" in drawn["framework without a run"]._supxlabel.get_text()
    bare = dataclasses.replace(run, gallery=None)
    assert run.fingerprint[:8] not in figures.framework(bare)._supxlabel.get_text()  # the run is not shown


def test_motivation_shows_threshold_and_weights_of_the_history(run, drawn):
    panels = axes_by_title(drawn["motivation"])
    threshold, marks = panels["threshold εₜ"].lines
    assert np.allclose(threshold.get_ydata(), run.history["threshold"])
    assert list(marks.get_xdata()) == [1, 2, 3]
    mean, share = panels["weights v"].lines
    assert np.allclose(mean.get_ydata(), run.history["mean_weight"])
    assert np.allclose(share.get_ydata(), run.history["full_weight_share"])


def test_motivation_shows_difficulty_and_weights_of_three_epochs(run, drawn):
    figure = drawn["motivation"]
    panels = axes_by_title(figure)
    words = [text.get_text() for text, _ in visible_texts(figure)]
    for epoch in (1, 2, 3):
        bars = panels[f"epoch {epoch}"].patches
        gamma = run.difficulty[epoch - 1].astype(np.float32)
        easy = gamma <= run.history["threshold"][epoch - 1]
        heights = [bar.get_height() for bar in bars]
        assert sum(heights) == pytest.approx(100, abs=1e-3)
        assert sum(heights[: len(heights) // 2]) == pytest.approx(100 * easy.mean(), abs=1e-3)
        assert f"easy {round(100 * easy.mean())} %" in words
        assert f"εₜ = {run.history['threshold'][epoch - 1]:.2f}" in words
        (curve,) = (
            line for ax in figure.axes for line in ax.lines
            if len(line.get_ydata()) == 60 and ax.bbox.bounds == panels[f"epoch {epoch}"].bbox.bounds
        )  # fmt: skip
        assert curve.get_ydata().mean() == pytest.approx(run.history["mean_weight"][epoch - 1], abs=2e-3)
        assert np.allclose(curve.get_ydata()[: easy.sum()], 1)
        assert np.allclose(curve.get_ydata()[easy.sum() :], np.exp(-(np.sort(gamma[~easy]) ** 2)), atol=1e-6)


def test_motivation_draws_dots_if_weights_depend_on_more_than_difficulty(run):
    epoch = 1
    for strategy, style in (("preview", "-"), ("constant", "-"), ("focal", "None")):
        figure = figures.motivation(with_strategy(run, strategy))
        place = axes_by_title(figure)[f"epoch {epoch}"].bbox.bounds
        curves = [line for ax in figure.axes if ax.bbox.bounds == place for line in ax.lines]
        assert [line.get_linestyle() for line in curves if len(line.get_ydata()) == 60] == [style]


def test_motivation_works_with_one_and_two_epochs(run):
    for epochs in (1, 2):
        short = dataclasses.replace(run, history=run.history[:epochs], difficulty=run.difficulty[:epochs])
        titles = [title for title in axes_by_title(figures.motivation(short)) if title.startswith("epoch")]
        assert titles == [f"epoch {epoch}" for epoch in range(1, epochs + 1)]


def test_the_matrix_product_uses_the_runs_features_and_centers(run, drawn):
    x, w, z = (image.get_array() for image in drawn["feature_weight_matrix"].axes[0].images)
    embedding = run.embedding
    assert x.shape == (8, 64) and w.shape == (64, 3) and z.shape == (8, 3)
    assert np.array_equal(w.T, embedding["centers"])
    rows = [int(np.flatnonzero((embedding["features"] == row).all(1))[0]) for row in x.data]
    assert len(set(rows)) == 8
    labels = embedding["labels"][rows]
    assert list(labels) == [0, 0, 0, 1, 1, 1, 2, 2]
    expected = embedding["features"][rows].astype(np.float64) @ embedding["centers"].T.astype(np.float64)
    assert np.allclose(z, expected, rtol=1e-4, atol=1e-4)
    assert "bias" in drawn["feature_weight_matrix"]._supxlabel.get_text()


def test_matrices_have_symmetric_colour_limits_and_size_labels(drawn):
    figure = drawn["feature_weight_matrix"]
    for image in figure.axes[0].images:
        low, high = image.get_clim()
        assert -low == high == pytest.approx(float(np.abs(image.get_array()).max()))
    words = [text.get_text() for text, _ in visible_texts(figure)]
    assert {"K = 64 features", "C = 3 of 3 categories", "C = 3", "B = 8", "K = 64"} <= set(words)
    assert words.count("B = 8") == 2


def test_classes_and_samples_can_be_chosen(run):
    figure = figures.feature_weight_matrix(run, classes=[2, 0], samples=2)
    x, w, z = (image.get_array() for image in figure.axes[0].images)
    assert np.array_equal(w.T, run.embedding["centers"][[2, 0]]) and z.shape == (2, 2)
    own = [np.flatnonzero((run.embedding["features"] == row).all(1))[0] for row in x.data]
    assert list(run.embedding["labels"][own]) == [2, 0]
    few = {**run.embedding, "labels": np.array([0] * 29 + [1])}  # one image of class 1
    figure = figures.feature_weight_matrix(dataclasses.replace(run, embedding=few), samples=8)
    x, w, z = (image.get_array() for image in figure.axes[0].images)
    assert z.shape == (5, 2)  # four images of class 0, one of class 1, none of class 2


def test_a_class_may_have_any_name(run):
    named = with_settings(run, data={"classes": ["$x_{$", "a_{b", "a_class_with_a_long_name"]})
    words = [text.get_text() for text, _ in visible_texts(figures.feature_weight_matrix(named))]
    assert {"$x_{$", "a_{b", "a_class_with_a_…"} <= set(words)


@pytest.mark.parametrize("name", DRAW)
def test_drawing_twice_gives_the_same_file_and_leaves_pyplot_unchanged(name, run, drawn):
    before = dict(mpl.rcParams)
    again = DRAW[name](run)
    assert plt.get_fignums() == [] and dict(mpl.rcParams) == before
    assert png(again) == png(DRAW[name](run))


def test_missing_data_and_invalid_arguments_raise_an_error_of_one_line(runs, run):
    bare = dataclasses.replace(run, embedding=None, difficulty=None, cross_entropy=None)
    for draw, message in (
        (lambda: figures.motivation(bare), "PCKD resnet8 has no samples"),
        (lambda: figures.motivation(dataclasses.replace(run, history=pd.DataFrame())), "no complete epoch"),
        (lambda: figures.motivation(runs[0]), "supervised resnet8 was not trained with a strategy"),
        (lambda: figures.motivation(with_strategy(run, "my_own")), "not trained with a strategy of `pckd_nb.preview`"),
        (lambda: figures.feature_weight_matrix(bare), "no embedding"),
        (lambda: figures.feature_weight_matrix(run, classes=[0]), "classes must be 2 to 12"),
        (lambda: figures.feature_weight_matrix(run, classes=[0, 3]), "below 3"),
        (lambda: figures.feature_weight_matrix(run, classes=[1, 1]), "different"),
        (lambda: figures.feature_weight_matrix(run, samples=0), "samples must be a number from 1 to 16, got 0"),
        (lambda: figures.feature_weight_matrix(run, samples=17), "got 17"),
        (lambda: figures.motivation([]), "no run to draw"),
        (lambda: figures.framework("runs/pckd"), "drawn from runs"),
        (lambda: figures.framework([]), "no run to draw"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            draw()
        assert "\n" not in str(error.value)
    labels = np.where(run.embedding["labels"] == 1, 0, run.embedding["labels"])
    without = dataclasses.replace(run, embedding={**run.embedding, "labels": labels})
    with pytest.raises(ValueError, match="no test image of class 'class 1'"):
        figures.feature_weight_matrix(without, classes=[0, 1])

import base64
import dataclasses
import json
import re
import statistics
import time

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from nbconvert import HTMLExporter

import pckd_nb as pckd
from pckd_nb import losses, preview, widgets
from pckd_nb.course import recorded, recorded_runs

from .conftest import make_data

VIEW = "application/vnd.jupyter.widget-view+json"
NASTY = "<b>&\"'"


@pytest.fixture(scope="module")
def data():
    return make_data(train=60, test=30)


@pytest.fixture(scope="module")
def runs(data):
    """A teacher and two students, three epochs on tiny images; one class has a name that HTML would misread."""
    data = dataclasses.replace(data, classes=("class 0", NASTY, "class 2"))
    recipe = pckd.get_recipe("classroom", epochs=3, batch_size=20)
    teacher = pckd.fit(pckd.create_model("resnet14", data, seed=0), data, recipe, progress=False)
    return [teacher] + [
        pckd.distill(pckd.create_model("resnet8", data, seed=0), teacher, data, method, recipe, progress=False)
        for method in (pckd.KD(), pckd.PCKD())
    ]


@pytest.fixture(scope="module")
def run(runs):
    return runs[2]


def swept_point(run, name, value, shift):
    """The run as if it had been trained with another value of a setting, and was `shift` points more accurate."""
    settings = json.loads(json.dumps(run.settings))
    settings["method"]["settings"][name] = {"value": value, "from": "argument"}
    settings["fingerprint"] = f"{name}{value}"
    history = run.history.assign(test_top1=run.history["test_top1"] + shift)
    return dataclasses.replace(run, settings=settings, history=history)


@pytest.fixture(scope="module")
def sweep(runs, run):
    return [*runs, swept_point(run, "beta_cc", 0, -2), swept_point(run, "beta_cc", 0.02, 3)] + [
        swept_point(run, "beta_fa", 5, 1)
    ]


def without(run, *names):
    return dataclasses.replace(run, **dict.fromkeys(names))


def gamma_of(run, epoch):
    return run.difficulty[epoch - 1].astype(np.float32)


def panel(figure, title):
    return next(ax for ax in figure.axes if ax.get_title(loc="left").startswith(title))


def written(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def source(explorer):
    return re.search(r'src="data:image/png;base64,([^"]+)"', explorer.picture.value)[1]


def makers(runs, run, sweep):
    return {
        "preview": lambda: widgets.preview_explorer(run),
        "contrast": lambda: widgets.contrast_explorer(),
        "center": lambda: widgets.center_explorer(runs),
        "browser": lambda: widgets.difficulty_browser(run),
        "sweep": lambda: widgets.sweep_explorer(sweep),
    }


@pytest.fixture(scope="module")
def make(runs, run, sweep):
    return makers(runs, run, sweep)


@pytest.fixture(scope="module")
def explorers(make):
    """All as they are first shown: tests that change one make their own."""
    return {name: maker() for name, maker in make.items()}


CHANGES = {
    "preview": {"epsilon": 2.0, "epoch": 1, "strategy": "uniform"},
    "contrast": {"temperature": 1.0, "beta": 0.1, "batch": 2},
    "center": {"network": "KD resnet8", "category": 2, "sample": 3},
    "browser": {"category": 2, "epoch": 1, "sort": "easiest first", "page": 2},
    "sweep": {"factor": "beta_fa", "value": 0.02},
}


@pytest.mark.parametrize(("name", "control"), [(name, control) for name in CHANGES for control in CHANGES[name]])
def test_every_control_changes_picture_and_sentence(make, name, control):
    explorer = make[name]()
    before = source(explorer), explorer.sentence.value, explorer.alt
    explorer.controls[control].value = CHANGES[name][control]
    after = source(explorer), explorer.sentence.value, explorer.alt
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert base64.b64decode(after[0]) == explorer.png and explorer.png.startswith(b"\x89PNG")


def test_every_control_has_a_label_and_a_tooltip_and_is_an_ordinary_widget(explorers):
    for explorer in explorers.values():
        assert isinstance(explorer, ipywidgets.VBox)
        for control in explorer.controls.values():
            assert type(control).__module__.startswith("ipywidgets.")
            assert control.description and control.tooltip
            assert getattr(control, "continuous_update", False) is False


def test_nothing_leaks_into_pyplot_or_its_settings(make):
    before = dict(mpl.rcParams)
    for name in set(make) - {"center"}:  # whose maps take long
        make[name]()
    assert plt.get_fignums() == [] and dict(mpl.rcParams) == before


def test_where_no_widget_runs_the_first_picture_stands(explorers):
    formatter = InteractiveShell.instance().display_formatter
    for name, explorer in explorers.items():
        bundle, about = formatter.format(explorer)
        assert bundle[VIEW]["model_id"] == explorer.model_id
        picture = base64.b64decode(bundle["image/png"])
        assert picture.startswith(b"\x89PNG") and len(bundle["text/plain"]) > 60
        assert about["image/png"]["alt"] == bundle["text/plain"]
        if name != "browser":  # its picture is of one sample, the page stands for all
            assert picture == explorer.png and bundle["text/plain"] == explorer.alt
    output = nbformat.v4.new_output("display_data", data=bundle, metadata=about)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("explorer", outputs=[output])])
    page, _ = HTMLExporter().from_notebook_node(book)
    assert f"data:image/png;base64,{bundle['image/png'][:60]}" in page and VIEW not in page


def test_the_browser_without_widgets_is_its_page(explorers, run):
    data, _ = explorers["browser"]._repr_mimebundle_()
    assert data["text/plain"] == widgets.difficulty_page(run).alt != explorers["browser"].alt


def test_names_of_classes_are_escaped(make):
    browser, center = make["browser"](), make["center"]()
    browser.controls["category"].value = 1
    center.controls["category"].value = 1
    page = browser.children[1:]
    texts = [widget.value for box in page for widget in walk(box) if isinstance(widget, ipywidgets.HTML)]
    texts += [center.picture.value, center.sentence.value]
    found = [text for text in texts if "&lt;b&gt;&amp;&quot;&#x27;" in text]
    assert len(found) >= 4 + 1 and not any("<b>" in text for text in texts)
    assert NASTY in center.alt


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


# Preview


@pytest.mark.parametrize("strategy", preview.STRATEGIES)
def test_preview_weighs_the_runs_own_difficulties(run, strategy):
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
    elif strategy == "constant":
        assert np.allclose(curve.get_ydata(), expected.mean())
    else:
        for x, v in zip(gamma, expected, strict=True):  # the curve passes through every sample
            at = np.interp(x, curve.get_xdata(), curve.get_ydata())
            assert at == pytest.approx(v, abs=0.02) or x > 4


def test_preview_frames_images_by_their_weight(run):
    figure = widgets.preview_state(run, 1.0, 3, "curriculum")
    ax = panel(figure, "24 of them")
    hard = gamma_of(run, 3)[run.gallery["index"]] > 1
    share = [text for text in written(figure) if text.startswith("v 0.00")]
    edges = ax.collections[0].get_edgecolor()
    assert (edges == to_rgba(widgets.HARD)).all(1).sum() == len(share)
    assert len(share) == pytest.approx(24 * hard.mean(), abs=1.5)
    assert f"{len(share)} count" in figure.alt
    assert len(set(map(tuple, edges))) == 2


def test_preview_starts_as_the_run_was_trained(run):
    explorer = widgets.preview_explorer(run)
    assert explorer.values == {
        "epsilon": pytest.approx(run.settings["method"]["settings"]["epsilon"]["value"]), "epoch": 3,
        "strategy": "preview",
    }  # fmt: skip
    assert f"{run.history['mean_weight'].iloc[-1]:.2f}" in explorer.alt


def test_preview_of_a_run_that_weighted_nothing(runs):
    assert "strategy preview" in widgets.preview_explorer(runs[1]).alt


# Contrast


def test_contrast_draws_similarities_and_true_gradients():
    student, teacher, labels = widgets.contrast_batch(3)
    figure = widgets.contrast_state(2.0, 0.04, 3)
    u = torch.cat([student, teacher]).requires_grad_()
    loss = losses.category_center_contrast_plain(u[:9], u[9:], labels, 2.0).mean()
    (gradient,) = torch.autograd.grad(loss, u)
    (arrows,) = [c for c in figure.axes[2].collections if isinstance(c, mpl.quiver.Quiver)]
    drawn = np.column_stack([arrows.U, arrows.V])
    assert np.allclose(drawn, -0.04 * widgets.RATE * gradient.numpy())
    assert np.allclose(arrows.XY, u.detach().numpy())
    matrix = figure.axes[0].images[0].get_array()
    order = np.argsort(labels.repeat(2).numpy(), kind="stable")
    assert np.allclose(matrix.data, (u @ u.T / 2).detach().numpy()[np.ix_(order, order)])
    assert matrix.mask.sum() == 18 and matrix.mask.diagonal().all()
    outlines = [patch.get_bbox().bounds for patch in figure.axes[0].patches]
    assert outlines == [(start - 0.5, start - 0.5, 6, 6) for start in (0, 6, 12)]
    assert f"L_CC is {loss.item():.1f}" in figure.alt and "45 pairs of positives" in figure.alt


def test_beta_scales_the_arrows_and_the_batch_is_a_seed():
    def arrows(beta):
        return next(c for c in widgets.contrast_state(4, beta, 1).axes[2].collections if hasattr(c, "U")).U

    assert np.allclose(arrows(0.1), 2 * arrows(0.05)) and not arrows(0).any()
    first, again, other = (widgets.contrast_batch(batch)[0] for batch in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# Centers


def test_center_state_marks_the_nearest_centers_of_the_full_space(runs, run):
    figure = widgets.center_state(runs, "PCKD resnet8", 5, 2, 2)
    embedding = run.embedding
    assert embedding["labels"][2] == 2

    def unit(x):
        x = x.astype(np.float64) - x.astype(np.float64).mean(0)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    cosine = unit(embedding["centers"]) @ unit(embedding["features"])[2]
    bars = next(ax for ax in figure.axes if ax.get_title(loc="right").startswith("centers nearest"))
    assert np.allclose([bar.get_width() for bar in bars.patches], np.sort(cosine)[::-1], atol=1e-3)
    names = [tick.get_text() for tick in bars.get_yticklabels()]
    classes = run.settings["data"]["classes"]
    assert names == [f"{classes[c]}  {rank}" for rank, c in enumerate(np.argsort(-cosine), 1)]
    guess = classes[embedding["predictions"][2]]
    assert f"test image 2, class 2, predicted as {guess}" in figure.alt


def test_center_state_of_a_class_leaves_its_own_center_out(runs):
    figure = widgets.center_state(runs, category=0, perplexity=5)
    assert "teacher resnet14" in figure.alt and "class 0 (" not in figure.alt
    own = figure.axes[0].collections[2].get_offsets()
    assert len(own) == 10  # every test image of the class


def test_center_explorer_shows_the_images_of_its_data(runs, data):
    named = dataclasses.replace(data, classes=tuple(runs[0].settings["data"]["classes"]))
    explorer = widgets.center_explorer(runs, named)
    explorer.controls["category"].value = 1
    explorer.controls["sample"].value = 4
    shown = widgets.center_state(runs, None, 5, 1, 4, named)
    picture = [image for ax in shown.axes for image in ax.images][0].get_array()
    assert np.array_equal(picture[:, :, 0], named.test.images[4, 0].numpy())
    assert explorer.alt == shown.alt and "not in the record" not in " ".join(written(shown))
    assert "not in the record" in " ".join(written(widgets.center_state(runs, None, 5, 1, 4)))
    with pytest.raises(ValueError, match="not trained on this data: they want tiny"):
        widgets.center_explorer(runs, make_data(train=60, test=33))


def test_center_explorer_lists_the_samples_of_the_chosen_class(runs):
    explorer = widgets.center_explorer(runs)
    sample = explorer.controls["sample"]
    assert len(sample.options) == 11 and sample.options[0] == ("the category's center", None)
    sample.value = 3
    explorer.controls["network"].value = "PCKD resnet8"
    assert sample.value == 3 and "test image 3" in explorer.alt  # another network, the same image
    explorer.controls["category"].value = 1
    assert sample.value is None and all(row is None or row % 3 == 1 for _, row in sample.options)


def test_seeds_of_one_method_can_be_told_apart(runs, run):
    again = dataclasses.replace(run, settings={**run.settings, "seed": 1})
    explorer = widgets.center_explorer([run, again])
    assert explorer.controls["network"].options == ("PCKD resnet8, seed 0", "PCKD resnet8, seed 1")


# Difficulty


def test_pages_are_sorted_and_of_one_class(run):
    index, labels = run.gallery["index"], run.gallery["labels"]
    for sort, order in (("hardest first", -1), ("easiest first", 1)):
        seen = []
        for page in range(1, 6):
            figure = widgets.difficulty_page(run, None, 2, sort, page)
            seen += [float(text[2:].split("\n")[0]) for text in written(figure) if text.startswith("γ ")]
        assert len(seen) == 60 and np.allclose(seen, order * np.sort(order * gamma_of(run, 2)[index]), atol=0.006)
    figure = widgets.difficulty_page(run, 2, 2, "by number")
    assert sum("class 2" in text for text in written(figure)) == 12
    assert f"of the {(labels == 2).sum()} training images of class 2" in figure.alt


def test_the_page_shows_the_images_of_its_samples(run):
    figure = widgets.difficulty_page(run, sort="by number", page=2)
    sheet = figure.axes[0].images[0].get_array()
    place = int(np.flatnonzero(run.gallery["index"] == np.sort(run.gallery["index"])[12])[0])
    assert np.array_equal(sheet[:8, :8, 0], run.gallery["images"][place, 0])


def test_buttons_choose_a_sample(run):
    explorer = widgets.difficulty_browser(run)
    buttons = [widget for widget in walk(explorer) if isinstance(widget, ipywidgets.Button)]
    hardest = int(gamma_of(run, 3).argmax())
    assert re.fullmatch(rf"sample {hardest}: .+, γ {gamma_of(run, 3)[hardest]:.2f}", buttons[0].description)
    assert explorer.alt.startswith(f"Sample {hardest},") and buttons[0].button_style == "info"
    before = source(explorer)
    buttons[3].click()
    chosen = int(re.match(r"sample (\d+):", buttons[3].description)[1])
    assert explorer.alt.startswith(f"Sample {chosen},") and source(explorer) != before
    assert [button.button_style for button in buttons].index("info") == 3
    texts = [widget.value for widget in walk(explorer) if isinstance(widget, ipywidgets.HTML)]
    images = [text for text in texts if "height: 72px" in text]
    assert len(images) == 12 and sum("chosen" in image for image in images) == 1


def test_a_class_with_few_images_leaves_no_empty_thumbnails(run):
    few = run.gallery["labels"] == 1
    keep = ~few | (np.cumsum(few) <= 2)
    explorer = widgets.difficulty_browser(
        dataclasses.replace(run, gallery={name: value[keep] for name, value in run.gallery.items()})
    )
    explorer.controls["page"].value = 2
    explorer.controls["category"].value = 1
    boxes = [box for box in walk(explorer) if type(box) is ipywidgets.VBox]
    assert [box.layout.display for box in boxes].count("none") == 10
    assert explorer.controls["page"].options == (1,) and explorer.controls["page"].value == 1
    assert "Images 1 to 2 of the 2 training images" in explorer.children[1].value


def test_trajectory_is_the_samples_own(run):
    figure = widgets.sample_trajectory(run, 7, 2)
    for title, values in (("cross-entropy", run.cross_entropy), ("difficulty", run.difficulty)):
        line = next(line for line in panel(figure, title).lines if line.get_label() == "this sample")
        assert np.allclose(line.get_ydata(), values[:, 7].astype(np.float32))
        middle = next(line for line in panel(figure, title).lines if line.get_label() == "all: median")
        assert np.allclose(middle.get_ydata(), np.median(values.astype(np.float32), 1))
    assert f"γ {gamma_of(run, 2)[7]:.2f} in epoch 2" in figure.alt
    assert "not in the\ngallery" in written(widgets.sample_trajectory(without(run, "gallery"), 7))


# Sweeps


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


def test_the_factor_brings_its_own_values(sweep):
    explorer = widgets.sweep_explorer(sweep)
    assert [value for _, value in explorer.controls["factor"].options] == ["beta_cc", "beta_fa"]
    explorer.controls["value"].value = 0.02
    explorer.controls["factor"].value = "beta_fa"
    assert [value for _, value in explorer.controls["value"].options] == [5, 20]
    assert explorer.controls["value"].value == 20 and "β_fa = 20 (the default)" in explorer.alt


# What can't be


def test_a_run_without_what_a_widget_shows_is_refused_at_once(runs, run):
    unbegun = dataclasses.replace(run, history=pd.DataFrame(columns=run.history.columns))
    for make in (widgets.preview_explorer, widgets.difficulty_browser):
        with pytest.raises(ValueError, match="PCKD resnet8 kept no samples"):
            make(without(run, "cross_entropy", "difficulty", "labels"))
        with pytest.raises(ValueError, match="PCKD resnet8 kept no gallery"):
            make(without(run, "gallery"))
        with pytest.raises(ValueError, match="no whole epoch"):
            make(unbegun)
        with pytest.raises(ValueError, match="shows one run, got list"):
            make(runs)
    with pytest.raises(ValueError, match="PCKD resnet8 kept no embedding"):
        widgets.center_explorer([runs[0], without(run, "embedding")])
    other = {**run.settings, "data": {**run.settings["data"], "fingerprint": "other"}}
    with pytest.raises(ValueError, match="same data"):
        widgets.center_explorer([runs[0], dataclasses.replace(run, settings=other)])
    with pytest.raises(ValueError, match="no sweep: .* β_cc or β_fa or β_ca or ε alone"):
        widgets.sweep_explorer(runs)
    with pytest.raises(ValueError, match="no run"):
        widgets.center_explorer([])


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda runs, sweep: widgets.preview_state(runs[2], 0, 1), "epsilon must be positive"),
        (lambda runs, sweep: widgets.preview_state(runs[2], 1.1, 4), "epoch must be 1 to 3, got 4"),
        (lambda runs, sweep: widgets.preview_state(runs[2], 1.1, 1, "best"), "unknown strategy 'best'; known: preview"),
        (lambda runs, sweep: widgets.contrast_state(0), "temperature must be positive"),
        (lambda runs, sweep: widgets.contrast_state(beta=-1), "beta must not be negative"),
        (lambda runs, sweep: widgets.contrast_state(batch=0), "batch must be a whole number from 1"),
        (lambda runs, sweep: widgets.center_state(runs, "KD"), "unknown network 'KD'; known: teacher resnet14"),
        (lambda runs, sweep: widgets.center_state(runs, category=3), "category must be a number from 0 to 2"),
        (lambda runs, sweep: widgets.center_state(runs, category=0, sample=1), "sample 1 is none of the 30"),
        (lambda runs, sweep: widgets.center_state(runs), "perplexity must be below a third"),
        (lambda runs, sweep: widgets.difficulty_page(runs[2], 5), "category must be a number from 0 to 2"),
        (lambda runs, sweep: widgets.difficulty_page(runs[2], epoch=0), "epoch must be 1 to 3, got 0"),
        (lambda runs, sweep: widgets.difficulty_page(runs[2], sort="best"), "unknown sort 'best'; known: hardest"),
        (lambda runs, sweep: widgets.difficulty_page(runs[2], page=6), "page must be 1 to 5, got 6"),
        (lambda runs, sweep: widgets.sample_trajectory(runs[2], 60), "sample must be 0 to 59, got 60"),
        (lambda runs, sweep: widgets.sample_trajectory(runs[2], 0, 4), "epoch must be 1 to 3, got 4"),
        (lambda runs, sweep: widgets.sweep_state(sweep, "beta"), "unknown factor 'beta'; known: beta_cc"),
        (lambda runs, sweep: widgets.sweep_state(sweep, "beta_cc", 7), "was not measured; measured: 0, 0.005, 0.02"),
    ],
)
def test_values_that_cannot_be(runs, sweep, ask, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        ask(runs, sweep)


def test_one_epoch_and_coloured_images_are_enough(run):
    one = dataclasses.replace(
        run,
        history=run.history[:1],
        gallery={**run.gallery, "images": run.gallery["images"].repeat(3, 1)},
    )
    assert "epoch 1" in widgets.difficulty_browser(one).alt and "Epoch 1 of 1" in widgets.preview_explorer(one).alt


# Pictures of real runs


def recorded_explorers():
    place = "shapes100/resnet20-resnet8"
    run = recorded(f"{place}/pckd/seed0")
    runs = [recorded("teachers/shapes100"), run]
    return {name: maker() for name, maker in makers(runs, run, recorded_runs(place)).items()}


def test_no_text_of_a_picture_is_cut_or_too_small(monkeypatch):
    run = recorded("shapes100/resnet20-resnet8/pckd/seed0")
    long = [f"{name} with a long name, which goes on & on" for name in run.settings["data"]["classes"]]
    long[51] = "Donaudampfschifffahrtsgesellschaftskapitaensmuetze"
    run = dataclasses.replace(run, settings={**run.settings, "data": {**run.settings["data"], "classes": long}})
    monkeypatch.setattr(widgets, "_pictures", lambda run, data: np.zeros((2000, 3, 32, 32), np.uint8))
    sample = int(np.flatnonzero(run.embedding["labels"] == 51)[0])
    pictures = {
        "preview": widgets.preview_state(run, 1.12, 1),
        "contrast": widgets.contrast_state(),
        "center": widgets.center_state(run, None, 15, 51),
        "sample": widgets.center_state(run, None, 15, 51, sample),
        "page": widgets.difficulty_page(run),
        "trajectory": widgets.sample_trajectory(run, int(np.flatnonzero(run.labels == 51)[0]), 3),
        "sweep": widgets.sweep_state(recorded_runs("shapes100/resnet20-resnet8"), "beta_cc", 0),
    }
    for name, figure in pictures.items():
        assert isinstance(figure, Figure) and figure.alt
        figure.canvas.draw()
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.x0 >= -0.01 and drawn.x1 <= width + 0.01, name
        assert drawn.y0 >= -0.01 and drawn.y1 <= height + 0.01, name
        assert all(text.get_fontsize() >= 6.5 for text in figure.findobj(mpl.text.Text)), name


GENEROUS = 3  # of the promised time: this machine may be half as fast as an ordinary one, or busy


@pytest.mark.slow
@pytest.mark.alone
def test_after_the_first_draw_an_answer_takes_at_most_200_ms():
    asked = {
        "preview": ("epoch", range(1, 8)),
        "contrast": ("batch", range(2, 9)),
        "center": ("category", range(1, 8)),
        "browser": ("page", range(2, 9)),
        "sweep": ("factor", ["beta_fa", "beta_cc"] * 4),
    }
    for name, explorer in recorded_explorers().items():
        control, values = asked[name]
        seconds = []
        for value in values:
            started = time.process_time()
            explorer.controls[control].value = value
            seconds.append(time.process_time() - started)
        assert statistics.median(seconds) < GENEROUS * 0.2, name

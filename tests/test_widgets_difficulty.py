"""The difficulty browser: pages of thumbnails, and the trajectory of the chosen sample."""

import dataclasses
import re

import ipywidgets
import numpy as np
import pytest

from pckd_nb import widgets

from .test_figures import all_texts
from .test_widgets import gamma_of, panel, shown_png, trained, walk, without


@pytest.fixture(scope="module")
def run():
    return trained()[2]


def test_pages_can_be_sorted_and_limited_to_one_class(run):
    index, labels = run.gallery["index"], run.gallery["labels"]
    for sort, order in (("hardest first", -1), ("easiest first", 1)):
        seen = []
        for page in range(1, 6):
            figure = widgets.difficulty_page(run, None, 2, sort, page)
            seen += [float(text[2:].split("\n")[0]) for text in all_texts(figure) if text.startswith("γ ")]
        assert len(seen) == 60 and np.allclose(seen, order * np.sort(order * gamma_of(run, 2)[index]), atol=0.006)
    figure = widgets.difficulty_page(run, 2, 2, "by number")
    assert sum("class 2" in text for text in all_texts(figure)) == 12
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
    before = shown_png(explorer)
    buttons[3].click()
    chosen = int(re.match(r"sample (\d+):", buttons[3].description)[1])
    assert explorer.alt.startswith(f"Sample {chosen},") and shown_png(explorer) != before
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


def test_trajectory_shows_the_chosen_sample_and_the_median(run):
    figure = widgets.sample_trajectory(run, 7, 2)
    for title, values in (("cross-entropy", run.cross_entropy), ("difficulty", run.difficulty)):
        line = next(line for line in panel(figure, title).lines if line.get_label() == "this sample")
        assert np.allclose(line.get_ydata(), values[:, 7].astype(np.float32))
        middle = next(line for line in panel(figure, title).lines if line.get_label() == "median of all samples")
        assert np.allclose(middle.get_ydata(), np.median(values.astype(np.float32), 1))
    assert f"γ {gamma_of(run, 2)[7]:.2f} in epoch 2" in figure.alt
    assert "not in the\ngallery" in all_texts(widgets.sample_trajectory(without(run, "gallery"), 7))


def test_the_difficulty_browser_accepts_two_epochs(run):
    kept = {name: getattr(run, name)[:2] for name in ("history", "cross_entropy", "difficulty")}
    assert "in epoch 2" in widgets.difficulty_browser(dataclasses.replace(run, **kept)).alt

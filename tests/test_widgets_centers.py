"""The center explorer: maps, nearest centers, and the images behind them."""

import dataclasses

import numpy as np
import pytest

from pckd_nb import widgets
from pckd_nb.widgets.explorer import NONE_OPTION, figure_png

from .conftest import make_data
from .test_figures import all_texts
from .test_widgets import trained


@pytest.fixture(scope="module")
def runs():
    return trained()


@pytest.fixture(scope="module")
def run():
    return trained()[2]


def test_center_state_shows_the_nearest_centers_in_the_full_space(runs, run):
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
    prediction = classes[embedding["predictions"][2]]
    assert f"test image 2, class 2, predicted as {prediction}" in figure.alt


def test_center_state_of_a_class_leaves_out_its_own_center(runs):
    figure = widgets.center_state(runs, category=0, perplexity=5)
    assert "teacher resnet14" in figure.alt and "class 0 (" not in figure.alt
    own = figure.axes[0].collections[2].get_offsets()
    assert len(own) == 10  # every test image of the class


def test_center_explorer_shows_the_images_of_its_data(runs):
    named = dataclasses.replace(make_data(train=60, test=30), classes=tuple(runs[0].settings["data"]["classes"]))
    explorer = widgets.center_explorer(runs, named)
    explorer.controls["category"].value = 1
    explorer.controls["sample"].value = 4
    shown = widgets.center_state(runs, None, 5, 1, 4, named)
    picture = [image for ax in shown.axes for image in ax.images][0].get_array()
    assert np.array_equal(picture[:, :, 0], named.test.images[4, 0].numpy())
    assert explorer.png == figure_png(shown) and explorer.alt == shown.alt
    assert "(no images" not in " ".join(all_texts(shown))
    assert "(no images: pass data)" in " ".join(all_texts(widgets.center_state(runs, None, 5, 1, 4)))
    with pytest.raises(ValueError, match="not trained on this data: load tiny"):
        widgets.center_explorer(runs, make_data(train=60, test=33))


def test_center_explorer_lists_the_samples_of_the_chosen_class(runs):
    explorer = widgets.center_explorer(runs)
    sample = explorer.controls["sample"]
    assert len(sample.options) == 11 and sample.options[0] == ("the category's center", NONE_OPTION)
    sample.value = 3
    explorer.controls["network"].value = "PCKD resnet8"
    assert sample.value == 3 and "test image 3" in explorer.alt  # another network, the same image
    explorer.controls["category"].value = 1
    assert sample.value == NONE_OPTION and [row for _, row in sample.options] == [NONE_OPTION, *range(1, 30, 3)]


def test_seeds_of_one_method_have_different_names(runs, run):
    again = dataclasses.replace(run, settings={**run.settings, "seed": 1})
    explorer = widgets.center_explorer([run, again])
    assert explorer.controls["network"].options == ("PCKD resnet8, seed 0", "PCKD resnet8, seed 1")

"""Tests of all explorers. The files test_widgets_*.py test what each of them shows."""

import base64
import dataclasses
import json
import re
import statistics
import time
from functools import cache, partial
from itertools import cycle, islice

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from nbconvert import HTMLExporter

import pckd_nb as pckd
from pckd_nb import widgets
from pckd_nb.course import recorded, recorded_runs

from .conftest import make_data, time_limit

VIEW = "application/vnd.jupyter.widget-view+json"
NASTY = "<b>&\"'"


@cache
def trained():
    """Return a teacher and two students, trained for three epochs. One class name needs escaping in HTML."""
    data = dataclasses.replace(make_data(train=60, test=30), classes=("class 0", NASTY, "class 2"))
    recipe = pckd.get_recipe("classroom", epochs=3, batch_size=20)
    teacher = pckd.fit(pckd.create_model("resnet14", data, seed=0), data, recipe, progress=False)
    return [teacher] + [
        pckd.distill(pckd.create_model("resnet8", data, seed=0), teacher, data, method, recipe, progress=False)
        for method in (pckd.KD(), pckd.PCKD())
    ]


@pytest.fixture(scope="module")
def runs():
    return trained()


@pytest.fixture(scope="module")
def run():
    return trained()[2]


def swept_point(run, name, value, shift):
    """Return a copy of `run` with another value of a setting and an accuracy that is higher by `shift` points."""
    settings = json.loads(json.dumps(run.settings))
    settings["method"]["settings"][name] = {"value": value, "from": "argument"}
    settings["fingerprint"] = f"{name}{value}"
    history = run.history.assign(test_top1=run.history["test_top1"] + shift)
    return dataclasses.replace(run, settings=settings, history=history)


def swept_runs():
    points = ("beta_cc", 0, -2), ("beta_cc", 0.02, 3), ("beta_fa", 5, 1)
    return [*trained(), *(swept_point(trained()[2], *point) for point in points)]


@pytest.fixture(scope="module")
def sweep():
    return swept_runs()


def without(run, *names):
    return dataclasses.replace(run, **dict.fromkeys(names))


def gamma_of(run, epoch):
    return run.difficulty[epoch - 1].astype(np.float32)


def panel(figure, title):
    return next(ax for ax in figure.axes if ax.get_title(loc="left").startswith(title))


def shown_png(explorer):
    return re.search(r'src="data:image/png;base64,([^"]+)"', explorer.picture.value)[1]


def explorer_makers(runs, run, sweep):
    return {
        "preview": lambda: widgets.preview_explorer(run),
        "contrast": lambda: widgets.contrast_explorer(),
        "center": lambda: widgets.center_explorer(runs),
        "browser": lambda: widgets.difficulty_browser(run),
        "sweep": lambda: widgets.sweep_explorer(sweep),
    }


@pytest.fixture(scope="module")
def make(runs, run, sweep):
    return explorer_makers(runs, run, sweep)


@pytest.fixture(scope="module")
def explorers(make):
    """All explorers in their first state. Tests that change one make their own."""
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
    before = shown_png(explorer), explorer.sentence.value, explorer.alt
    explorer.controls[control].value = CHANGES[name][control]
    after = shown_png(explorer), explorer.sentence.value, explorer.alt
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert base64.b64decode(after[0]) == explorer.png and explorer.png.startswith(b"\x89PNG")


def test_every_control_is_a_standard_widget_with_a_label_and_a_tooltip(explorers):
    for name, explorer in explorers.items():
        assert isinstance(explorer, ipywidgets.VBox)
        assert explorer.controls.keys() - {"perplexity"} == CHANGES[name].keys()  # one value, as there are few images
        for control in explorer.controls.values():
            assert getattr(control, "index", 0) is not None  # a list without a selection is blank
            # JupyterLab uses the arrow keys of these two itself
            assert not isinstance(control, ipywidgets.Select | ipywidgets.RadioButtons)
            assert type(control).__module__.startswith("ipywidgets.")
            assert control.description and control.tooltip
            assert getattr(control, "continuous_update", False) is False


def test_explorers_leave_pyplot_and_rcparams_unchanged(make):
    before = dict(mpl.rcParams)
    for name in set(make) - {"center"}:  # its maps take long
        make[name]()
    assert plt.get_fignums() == [] and dict(mpl.rcParams) == before


def test_without_widget_support_the_first_picture_is_shown(explorers):
    formatter = InteractiveShell.instance().display_formatter
    for name, explorer in explorers.items():
        bundle, metadata = formatter.format(explorer)
        assert bundle[VIEW]["model_id"] == explorer.model_id
        picture = base64.b64decode(bundle["image/png"])
        assert picture.startswith(b"\x89PNG") and len(bundle["text/plain"]) > 60
        assert metadata["image/png"]["alt"] == bundle["text/plain"]
        if name != "browser":  # it shows its page instead of the picture of one sample
            assert picture == explorer.png and bundle["text/plain"] == explorer.alt
    output = nbformat.v4.new_output("display_data", data=bundle, metadata=metadata)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("explorer", outputs=[output])])
    page, _ = HTMLExporter().from_notebook_node(book)
    assert f"data:image/png;base64,{bundle['image/png'][:60]}" in page and VIEW not in page


def test_without_widget_support_the_difficulty_browser_shows_its_page(explorers, run):
    data, _ = explorers["browser"]._repr_mimebundle_()
    assert data["text/plain"] == widgets.difficulty_page(run).alt != explorers["browser"].alt


def test_class_names_are_escaped(make):
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


# Invalid arguments


def test_a_run_without_the_needed_data_is_refused(runs, run):
    without_epochs = dataclasses.replace(run, history=pd.DataFrame(columns=run.history.columns))
    for make in (widgets.preview_explorer, widgets.difficulty_browser):
        with pytest.raises(ValueError, match="PCKD resnet8 has no samples"):
            make(without(run, "cross_entropy", "difficulty", "labels"))
        with pytest.raises(ValueError, match="PCKD resnet8 has no gallery"):
            make(without(run, "gallery"))
        with pytest.raises(ValueError, match="no complete epoch"):
            make(without_epochs)
        with pytest.raises(ValueError, match="shows one run, got list"):
            make(runs)
    with pytest.raises(ValueError, match="PCKD resnet8 has no embedding"):
        widgets.center_explorer([runs[0], without(run, "embedding")])
    other = {**run.settings, "data": {**run.settings["data"], "fingerprint": "other"}}
    with pytest.raises(ValueError, match="same data"):
        widgets.center_explorer([runs[0], dataclasses.replace(run, settings=other)])
    with pytest.raises(ValueError, match="no sweep, .* β_cc or β_fa or β_ca or ε alone"):
        widgets.sweep_explorer(runs)
    with pytest.raises(ValueError, match="no run"):
        widgets.center_explorer([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda runs, sweep: widgets.preview_state(runs[2], 0, 1), "epsilon must be positive"),
        (lambda runs, sweep: widgets.preview_state(runs[2], 1.1, 4), "epoch must be 1 to 3, got 4"),
        (lambda runs, sweep: widgets.preview_state(runs[2], 1.1, 1, "best"), "unknown strategy 'best'; known: preview"),
        (lambda runs, sweep: widgets.contrast_state(0), "temperature must be positive"),
        (lambda runs, sweep: widgets.contrast_state(beta=-1), "beta must not be negative"),
        (lambda runs, sweep: widgets.contrast_state(batch=0), "batch must be a whole number, 1 or more"),
        (lambda runs, sweep: widgets.center_state(runs, "KD"), "unknown network 'KD'; known: teacher resnet14"),
        (lambda runs, sweep: widgets.center_state(runs, category=3), "category must be a number from 0 to 2"),
        (
            lambda runs, sweep: widgets.center_state(runs, category=0, sample=1),
            "sample must be the row of a test image of category 0 (0, 3, 6, …), got 1",
        ),
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
def test_invalid_arguments_are_refused(runs, sweep, call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(runs, sweep)


def test_explorers_accept_one_epoch_and_colour_images(run):
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
    return {name: maker() for name, maker in explorer_makers(runs, run, recorded_runs(place)).items()}


def test_no_text_of_a_picture_is_cut_off_or_too_small(monkeypatch):
    run = recorded("shapes100/resnet20-resnet8/pckd/seed0")
    long = [f"{name} with a long name, which goes on & on" for name in run.settings["data"]["classes"]]
    long[51] = "Donaudampfschifffahrtsgesellschaftskapitaensmuetze"
    run = dataclasses.replace(run, settings={**run.settings, "data": {**run.settings["data"], "classes": long}})
    monkeypatch.setattr(widgets.centers, "_test_images", lambda run, data: np.zeros((2000, 3, 32, 32), np.uint8))
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


SECONDS = 0.2  # of processor time per update, on the machine for which the documentation states times


def other_values(control, count=5):
    """Return values for a control. Each differs from the one before."""
    if not hasattr(control, "options"):
        return [type(control.value)(value) for value in np.linspace(control.min, control.max, count)]
    values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    start = values.index(control.value) + 1
    return list(islice(cycle(values), start, start + count)) if len(values) > 1 else []


def processor_seconds(change):
    started = time.process_time()
    change()
    return time.process_time() - started


@pytest.mark.slow
@pytest.mark.alone
def test_an_update_takes_at_most_200_ms():
    """Limit the median time from a control's new value to the new picture, for every control.

    Processor time also grows when other programs share the core and its caches. So a control that was slow is measured
    again, at most twice, together with a new measurement of the machine.
    """
    changes = {}
    for name, explorer in recorded_explorers().items():
        for what, control in explorer.controls.items():
            start, pictures = control.value, [explorer.png]
            for value in other_values(control):
                control.value = value
                pictures.append(explorer.png)
            assert len(set(pictures)) > 1, f"{name}, {what}: the picture did not change"
            control.value = start
            values = [*other_values(control), start]
            changes[f"{name}, {what}"] = [partial(setattr, control, "value", value) for value in values]
        buttons = [widget for widget in walk(explorer) if isinstance(widget, ipywidgets.Button)]
        changes |= {f"{name}, a sample": [button.click for button in buttons[:5]]} if buttons else {}
    assert len(changes) == 17
    slow = dict.fromkeys(changes)
    for _ in range(3):
        limit = time_limit(SECONDS)
        medians = {what: statistics.median(map(processor_seconds, changes[what])) for what in slow}
        slow = {what: seconds for what, seconds in medians.items() if seconds > limit}
    assert not slow

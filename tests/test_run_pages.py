"""Pages about runs: they are whole, need nothing else, escape all names, and show the numbers that were computed."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

import pckd_nb as pckd
from pckd_nb import Dataset, figures, pages
from pckd_nb.evaluation import Predictions
from pckd_nb.measures import HARD_IS
from pckd_nb.pages.rendering import Sample, cell_text, render, thumbnail

BAD_NAME = "<script>alert('a & b')</script>"
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """The parts of a page that the tests look at. It fails if elements are not nested correctly."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        assert not self.open, self.open
        self.images = [attributes for tag, attributes in self.tags if tag == "img"]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def check_alone(html):
    """Check that a page needs no other file, and that all its pictures are described or beside their text."""
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#")), (tag, attributes)
    assert "url(" not in html and "@import" not in html and "<script" not in html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"} <= set(ids)
    assert all("alt" in image for image in page.images)
    return page


@pytest.fixture(scope="module")
def data():
    """Images of four classes, one of them with a name that is HTML, and with file names."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 8, 8), generator=random, dtype=torch.uint8)
    labels = torch.arange(60) % 4
    images[torch.arange(60), :, labels, labels] = 255
    split = (images[:40], labels[:40]), (images[40:], labels[40:])
    return Dataset.from_arrays(*split, classes=("cat", BAD_NAME, "owl", "dog"), name="photos & more")


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = dict(epochs=2, batch_size=10, progress=False, precision="32-true")
    teacher = pckd.fit("resnet8", data, out=folder / "teacher", **options)
    return teacher, pckd.distill("resnet8", teacher, data, "pckd", out=folder / "student", **options)


def test_report_shows_the_numbers_of_the_run(runs, data):
    teacher, student = runs
    page = check_alone(pages.report_page(student, data, precision="32-true"))
    scores = pckd.evaluate(student, data, precision="32-true")
    predictions = pckd.predict(student, data, precision="32-true")
    found = pckd.analysis.calibration(predictions)
    assert f"test top-1 {scores.top1:.1f} %" in page.words and f"test top-5 {scores.top5:.1f} %" in page.words
    assert f"calibration error {found.ece:.1f} points" in page.words and "teacher resnet8" in page.words
    wrong = int((predictions.logits.argmax(1) != predictions.labels).sum())
    assert f"Wrong: {wrong} images of 20." in page.words and BAD_NAME in page.words
    titles = [
        "Learning curves",
        "Classes",
        "Calibration",
        "Mistakes",
        "Difficulty of the training images",
        "Maps",
        "Settings",
    ]
    headings = [attributes["id"] for tag, attributes in page.tags if tag == "h2"]
    assert headings == [re.sub(r"\W+", "-", title.lower()) for title in titles]
    assert len([image for image in page.images if not image["alt"]]) == wrong  # a thumbnail for every mistake
    assert "beta_fa 20 recipe" in page.words or "beta_fa 20 default" in page.words


def test_report_says_what_is_left_out(runs, data, tmp_path):
    teacher, student = runs
    page = check_alone(pages.report_page(student))
    assert "Left out: confusion matrix, calibration and mistakes: they need the images" in page.words
    student_alone = pckd.load_run(student.path)
    student_alone.save(tmp_path / "run", weights=False)
    page = check_alone(pages.report_page(tmp_path / "run", data))
    assert "this run was saved without weights" in page.words and "Mistakes" not in page.words


def test_report_leaves_out_what_a_run_cannot_show(tmp_path):
    noisy = pckd.load_dataset("digits", train_size=60, test_size=20, val=0.2, label_noise=0.3)
    trial = pckd.fit("resnet8", noisy.without_test(), epochs=1, batch_size=10, progress=False)
    page = check_alone(pages.report_page(trial, noisy.without_test()))
    assert "learning curves: the run supervised resnet8 was trained without test images" in page.words
    assert "30 % wrong labels (uniform)" in page.words and "label noise 0.3 data" in page.words
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 4, 8, 8), generator=random, dtype=torch.uint8)
    labels = torch.arange(80) % 40
    many = Dataset.from_arrays((images[:40], labels[:40]), (images[40:], labels[40:]), mean=(0.5,) * 4, std=(0.3,) * 4)
    run = pckd.fit("resnet8", many, epochs=1, batch_size=10, progress=False)
    page = check_alone(pages.report_page(run, many))  # 40 classes without groups, and four channels
    assert "Left out" not in page.words and "Maps" in page.words


def test_report_says_if_its_parts_are_of_different_images(noisy):
    run, data = noisy
    few = pckd.load_dataset("digits", train_size=200, test_size=10, label_noise=0.2)
    page = check_alone(pages.report_page(run, few))
    assert "Classes, calibration and mistakes are of 10 images of digits. The accuracies above are" in page.words
    assert "The accuracies above" not in check_alone(pages.report_page(run, data)).words


def test_difference_page_shows_the_images_on_which_one_network_is_right(runs, data):
    html = pages.difference_page(*runs, data, precision="32-true")
    page, found = check_alone(html), pckd.analysis.agreement(*runs, data, precision="32-true")
    both, only_a, only_b, neither = found.counts
    for name, count in {"only A": only_a, "only B": only_b, "both": both, "neither": neither}.items():
        assert f"{name} {count}" in page.words
    assert len(page.images) == only_a + only_b + neither
    assert ("Only A is right" in page.words) == (only_a > 0) and ("Only B is right" in page.words) == (only_b > 0)
    assert "method supervised PCKD" in page.words and "beta_fa – 20" in page.words
    assert "momentum" not in page.words  # the same in both
    noise = pckd.load_dataset("digits", train_size=60, test_size=20, label_noise=0.3)
    clean = pckd.load_dataset("digits", train_size=60, test_size=20)
    pair = [pckd.fit("resnet8", found, epochs=1, batch_size=20, progress=False) for found in (clean, noise)]
    assert "data: label_noise – 0.3" in check_alone(pages.difference_page(*pair, clean)).words
    same = check_alone(pages.difference_page(runs[0], runs[0], data, precision="32-true"))
    assert "None." in same.words and "Only A is right" not in same.words


def test_tables_and_thumbnails():
    assert [cell_text(value) for value in (1.25, 0.01234, float("nan"), 12345, "x")] == [
        "1.2",
        "0.0123",
        "–",
        "12,345",
        "x",
    ]
    grey, wide = np.zeros((1, 8, 8), np.uint8), np.zeros((3, 400, 200), np.uint8)
    many = np.zeros((5, 8, 8), np.uint8)
    assert all(thumbnail(image).startswith("data:image/png;base64,") for image in (grey, wide, many))
    with pytest.raises(UndefinedError, match="'a' is undefined"):
        render("difference.html", title="x")
    assert Sample(grey, ("a",)).lines == ("a",)


# ------------------------------------------------------------------------------------------------------ ranking


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run on digits of which a fifth have wrong labels."""
    data = pckd.load_dataset("digits", train_size=200, test_size=20, label_noise=0.2)
    out = tmp_path_factory.mktemp("noisy") / "run"
    return pckd.fit("resnet8", data, epochs=6, batch_size=20, out=out, progress=False, precision="32-true"), data


def test_samples_are_ranked_from_hard_to_easy(noisy):
    run, data = noisy
    table = run.samples()
    for by, sign in {**HARD_IS}.items():
        found = pckd.analysis.rank_samples(run, by)
        values = sign * found[by].astype(float).fillna(sign * np.inf).to_numpy()
        assert len(found) == 200 and (np.diff(values[np.isfinite(values)]) <= 0).all(), by
        assert np.isinf(values[: np.isinf(values).sum()]).all()  # never learned: first
    top = pckd.analysis.rank_samples(run, "area_under_margin", 7)
    assert top.index.tolist() == table["area_under_margin"].sort_values(kind="stable").index[:7].tolist()
    pd.testing.assert_frame_equal(top, table.loc[top.index])
    suspects = pckd.analysis.rank_samples(run, suspects=True)
    assert sorted(suspects.index) == table.index[table["area_under_margin"] < 0].tolist()
    wrong = table["label"] != table["true_label"]
    assert wrong.sum() == 40 and wrong[top.index].mean() > 2 * wrong.mean()
    by_class = pckd.analysis.rank_samples(run, "gamma", 2, per_class=True, classes=["3", "7"])
    assert by_class["class"].tolist() == ["3", "3", "7", "7"]
    for name in ("3", "7"):
        own = table[table["class"] == name].sort_values("gamma", ascending=False, kind="stable")
        assert by_class.index[by_class["class"] == name].tolist() == own.index[:2].tolist()
    for arguments, message in {
        ("loss",): "unknown measure 'loss': choose from gamma, gamma_mean",
        ("teacher_margin",): "this run has not recorded teacher_margin: choose from",
    }.items():
        with pytest.raises(ValueError, match=message):
            pckd.analysis.rank_samples(run, *arguments)
    with pytest.raises(ValueError, match="unknown class '11': choose from 0, 1"):
        pckd.analysis.rank_samples(run, classes=["11"])
    old = dataclasses.replace(run, margin=None)
    with pytest.raises(ValueError, match="suspects need recorded margins"):
        pckd.analysis.rank_samples(old, suspects=True)


def test_ranking_page_shows_every_image_in_order(noisy, runs, data):
    run, digits = noisy
    table = pckd.analysis.rank_samples(run, "cross_entropy_mean", 12)
    html = pages.ranking_page(run, table, digits, "cross_entropy_mean")
    page = Page(re.sub(r"<script>.*?</script>", "", html, flags=re.S))
    items = [attributes for tag, attributes in page.tags if tag == "li"]
    assert [item["data-name"] for item in items] == table["id"].astype(str).tolist()
    assert [item["data-label"] for item in items] == table["class"].tolist()
    assert json.loads(items[0]["data-values"])["gamma"] == pytest.approx(table["gamma"].iloc[0])
    for image, row in zip(page.images, table.index, strict=True):
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), digits.train.images[row, 0])
    wrong = table[table["label"] != table["true_label"]]
    assert html.count("true label: ") == len(wrong) > 0
    # names are escaped, and teachers are shown
    _, student = runs
    html = pages.ranking_page(student, pckd.analysis.rank_samples(student, top=5), data, "cross_entropy_mean")
    assert html.count("<script") == 1 and BAD_NAME not in html and html.count("teacher: ") == 5
    with pytest.raises(ValueError, match="the run has 200 training images, but photos & more has 40: use the data of"):
        pages.ranking_page(run, table, data, "gamma")
    clean = pckd.load_dataset("digits", train_size=200, test_size=20)
    with pytest.raises(ValueError, match="the images of digits are not those that the run was trained with"):
        pages.ranking_page(run, table, clean, "gamma")


@pytest.mark.slow
@pytest.mark.alone
def test_ranking_page_sorts_and_filters_in_a_browser(noisy, tmp_path):
    from .browser import chromium, watched_page

    run, digits = noisy
    table = pckd.analysis.rank_samples(run, "cross_entropy_mean", 30)
    html = pages.ranking_page(run, table, digits, "cross_entropy_mean")
    shown = "[...document.querySelectorAll('#samples li')].filter(i => !i.hidden).map(i => i.dataset.name)"
    with chromium(tmp_path / "home") as browser, watched_page(browser) as (page, wrong):
        page.set_content(html)
        assert page.evaluate(shown) == table["id"].astype(str).tolist()
        page.get_by_label("Sort by").select_option("area_under_margin")
        expected = table.sort_values("area_under_margin", kind="stable")["id"].astype(str).tolist()
        assert page.evaluate(shown) == expected
        page.get_by_label("Order").select_option("easy")
        assert page.evaluate(shown)[0] == expected[-1]
        label = table["class"].iloc[0]
        page.get_by_label("Label").select_option(label)
        count = int((table["class"] == label).sum())
        assert len(page.evaluate(shown)) == count and page.get_by_role("status").inner_text() == f"{count} of 30 images"
        page.get_by_label("Name contains").fill("no such name")
        assert page.evaluate(shown) == []
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert not wrong


# ---------------------------------------------------------------------------------------- calibration and confusion


def test_calibration_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.26, 0.74], [0.6, 0.4]])
    found = pckd.analysis.calibration(Predictions(torch.zeros(4, 1), p.log(), torch.tensor([0, 1, 1, 1])), bins=4)
    assert found.bins["images"].tolist() == [0, 0, 2, 2]  # 60 and 74 % are in (50, 75], 95 % in (75, 100]
    assert (
        found.bins["confidence"].tolist()[2:] == pytest.approx([67, 95]) and found.bins["confidence"][:2].isna().all()
    )
    assert found.bins["accuracy"].tolist()[2:] == [50, 50]
    assert found.ece == pytest.approx(0.5 * 17 + 0.5 * 45) and found.accuracy == 50
    assert found.confidence == pytest.approx((95 + 95 + 74 + 60) / 4)


def test_a_perfectly_confident_network_has_the_error_of_its_mistakes():
    logits = 1000 * torch.eye(3)[[0, 1, 2, 2]]
    found = pckd.analysis.calibration(Predictions(torch.zeros(4, 1), logits, torch.tensor([0, 1, 2, 0])), bins=1)
    assert (found.ece, found.confidence, found.accuracy) == (25, 100, 75)
    with pytest.raises(TypeError, match="predictions must be Predictions, got list"):
        pckd.analysis.calibration([1])
    with pytest.raises(ValueError, match="bins"):
        pckd.analysis.calibration(Predictions(torch.zeros(4, 1), logits, torch.tensor([0, 1, 2, 0])), bins=0)


def test_confusion_figure_has_one_row_per_class(runs, data):
    predictions = pckd.predict(runs[0], data)
    figure = figures.confusion(runs[0], predictions)
    shares = figure.axes[0].images[0].get_array()
    predicted, labels = predictions.logits.argmax(1), predictions.labels
    for row in range(4):
        own = predicted[labels == row]
        assert shares[row].tolist() == pytest.approx(
            [100 * (own == column).double().mean().item() for column in range(4)]
        )
    texts = [int(text.get_text()) for text in figure.axes[0].texts]
    assert texts == [round(value) for value in np.asarray(shares).ravel().tolist()]
    with pytest.raises(ValueError, match="has 4 classes, but the predictions have 3: use its own"):
        figures.confusion(runs[0], predictions._replace(logits=predictions.logits[:, :3]))


def test_confusion_figure_of_many_classes_lists_the_most_confused_pairs():
    data = pckd.load_dataset("shapes100", train_size=100, test_size=200)
    run = pckd.fit("resnet8", data, epochs=1, progress=False)
    labels = data.test.labels
    predicted = labels.clone()
    predicted[(labels == 3).nonzero()[:2, 0]] = 7
    predicted[(labels == 7).nonzero()[:1, 0]] = 3
    predicted[(labels == 5).nonzero()[:1, 0]] = 6
    figure = figures.confusion(run, Predictions(torch.zeros(200, 1), torch.eye(100)[predicted], labels))
    names = data.classes
    assert [text.get_text() for text in figure.axes[1].texts] == [
        f"{names[5]} – {names[6]}: 1", f"{names[3]} – {names[7]}: 3",
    ]  # fmt: skip


def test_reliability_figure_draws_the_bins(runs, data):
    predictions = pckd.predict(runs[0], data)
    found, figure = pckd.analysis.calibration(predictions, 5), figures.reliability(runs[0], predictions, bins=5)
    bins = found.bins[found.bins["images"] > 0]
    _, line, *_ = figure.axes[0].lines
    assert line.get_xydata() == pytest.approx(bins[["confidence", "accuracy"]].to_numpy())
    assert [bar.get_height() for bar in figure.axes[1].patches] == found.bins["images"].tolist()
    assert f"ECE = {found.ece:.1f} points" in figure.axes[0].get_title(loc="left") + figure.axes[0].get_title()

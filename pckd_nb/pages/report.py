"""The report of one run."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import figures
from ..analysis import Calibration, calibration
from ..arguments import as_dataset, as_run
from ..data import Dataset
from ..evaluation import Predictions, predict
from ..html import counted, value_text
from ..messages import one_line
from ..runs import Run, describe_noise
from .rendering import Sample, image_names, percent, read_images, render

SHOWN_SAMPLES = 24
MANY_CLASSES = 30  # from this number on, the map of class centers is shown, too


@dataclass
class ReportSection:
    """A section of the report.

    Parameters
    ----------
    title : str
    texts : list of str
        Paragraphs.
    figures : dict of str to Figure
        Alternative text → figure.
    samples : list of Sample
        Images.
    table : DataFrame, optional
    """

    title: str
    texts: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    table: pd.DataFrame | None = None

    @property
    def anchor(self) -> str:
        """Name of the section in an address."""
        return re.sub(r"\W+", "-", self.title.lower())


def report_page(run: Run | str | Path, data: Dataset | str | None = None, **options: Any) -> str:
    """Return a page about one run: learning curves, confusion matrix, calibration, mistakes, maps and settings.

    Parameters
    ----------
    run : Run, str or Path
        A run, or its folder.
    data : Dataset or str, optional
        The data set whose test images are classified, usually that of the run. Without it, or if the run was saved
        without weights, the page has only what the run has recorded.
    **options
        `accelerator`, `precision` and `fabric`, as in `predict`.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    ValueError
        If the run has no complete epoch, or as in `predict`.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False)
    >>> page = pckd.pages.report_page(run, data)
    >>> page[:15]
    '<!DOCTYPE html>'
    """
    run = as_run(run)
    dataset = None if data is None else as_dataset(data)
    last = run.history.iloc[-1].to_dict() if len(run.history) else {}
    numbers, notes = {"epochs": str(len(run.history))}, list[str]()
    for split in ("test", "val"):
        if f"{split}_top1" in last:
            numbers |= {f"{split} top-1": f"{last[f'{split}_top1']:.1f} %"}
            numbers |= {f"{split} top-5": f"{last[f'{split}_top5']:.1f} %"} if f"{split}_top5" in last else {}
    numbers["parameters"] = f"{run.parameters:,}"
    sections, missing = list[ReportSection](), list[str]()
    _add(sections, missing, "learning curves", _curves, run)
    if dataset is not None and run.student_state:
        predictions = predict(run, dataset, run.scored_split, **options)
        calibrated = calibration(predictions)
        numbers["calibration error"] = f"{calibrated.ece:.1f} points"
        _add(sections, missing, "classes", lambda run: _confusion(run, predictions), run)
        _add(sections, missing, "calibration", lambda run: _calibration(run, predictions, calibrated), run)
        sections.append(_mistakes(run, dataset, predictions))
        same = dataset.fingerprint == run.data_fingerprint and len(predictions.labels) == run.settings["data"].get(
            f"{run.scored_split}_images", len(predictions.labels)
        )
        if not same:
            note = f"{len(predictions.labels):,} images of {dataset.name}"
            notes = [
                f"Classes, calibration and mistakes are of {note}. The accuracies above are those of the training."
            ]
    elif not run.student_state:
        missing.append("confusion matrix, calibration and mistakes: this run was saved without weights")
    else:
        missing.append("confusion matrix, calibration and mistakes: they need the images")
    _add(sections, missing, "difficulty", _difficulty, run)
    _add(sections, missing, "maps", _maps, run)
    sections.append(_settings(run))
    teacher = (run.settings["teacher"] or {}).get("name")
    name = run.settings["data"]["name"] + describe_noise(run.settings)
    values = dict(run=run, data=name, teacher=teacher, numbers=numbers, sections=sections, missing=missing, notes=notes)
    return render("report.html", title=f"{run.title} on {run.settings['data']['name']}", **values)


def _add(
    sections: list[ReportSection],
    missing: list[str],
    name: str,
    make: Callable[[Run], ReportSection | None],
    run: Run,
) -> None:
    """Add a section if the run has what it shows, or the reason why it cannot be made from this run."""
    try:
        if section := make(run):
            sections.append(section)
    except ValueError as error:
        missing.append(f"{name}: {one_line(error)}")


def _settings(run: Run) -> ReportSection:
    settings, recipe = run.settings["method"]["settings"], run.settings["recipe"]
    rows = [(name, value_text(entry["value"]), entry["from"]) for name, entry in settings.items()]
    options = run.settings["data"].get("options", {})
    rows += [
        (name.replace("_", " "), value_text(value), "data") for name, value in options.items() if value is not None
    ]
    rows += [
        (name.replace("_", " "), value_text(value), "recipe")
        for name, value in recipe.items()
        if isinstance(value, int | float | str) and name != "name"
    ]
    return ReportSection("Settings", table=pd.DataFrame(rows, columns=["setting", "value", "from"]))


def _curves(run: Run) -> ReportSection:
    drawing = figures.learning_curves(run)
    return ReportSection("Learning curves", figures={"Accuracy, loss terms and weights by epoch": drawing})


def _confusion(run: Run, predictions: Predictions) -> ReportSection:
    classes = run.settings["data"]["classes"]
    predicted, labels = predictions.logits.argmax(1).numpy(), predictions.labels.numpy()
    rows = []
    for label, name in enumerate(classes):
        own = predicted[labels == label]
        wrong = own[own != label]
        taken_for = "" if not len(wrong) else classes[np.bincount(wrong).argmax()]
        share = 100 * float((own == label).mean()) if len(own) else float("nan")
        rows.append((name, len(own), share, taken_for))
    columns = ["class", "images", "accuracy (%)", "most often taken for"]
    table = pd.DataFrame(rows, columns=columns).sort_values("accuracy (%)", kind="stable")
    drawing = figures.confusion(run, predictions)
    return ReportSection(
        "Classes", figures={"Confusion matrix: correct against predicted classes": drawing}, table=table
    )


def _calibration(run: Run, predictions: Predictions, found: Calibration) -> ReportSection:
    difference = found.confidence - found.accuracy
    kind = "overconfident" if difference > 0 else "underconfident"
    kind = f"{kind} by {abs(difference):.1f} points" if abs(difference) >= 0.05 else "neither over- nor underconfident"
    text = (
        f"The mean confidence is {found.confidence:.1f} %, and the accuracy {found.accuracy:.1f} %. So the network is "
        f"{kind} on average. The expected calibration error is {found.ece:.1f} points."
    )
    return ReportSection("Calibration", [text], {"Reliability diagram": figures.reliability(run, predictions)})


def _mistakes(run: Run, data: Dataset, predictions: Predictions) -> ReportSection:
    classes, split = run.settings["data"]["classes"], getattr(data, run.scored_split)
    confidence, predicted = predictions.logits.double().softmax(1).max(1)
    wrong = (predicted != predictions.labels).nonzero()[:, 0].numpy()
    rows = wrong[np.argsort(-confidence[wrong].numpy(), kind="stable")][:SHOWN_SAMPLES]
    samples = [
        Sample(
            image,
            (
                f"{classes[predicted[row]]}, {percent(float(confidence[row]))}",
                f"label: {classes[predictions.labels[row]]}",
                name,
            ),
        )
        for image, row, name in zip(read_images(split, rows), rows, image_names(split, rows), strict=True)
    ]
    text = f"Wrong: {counted(len(wrong), 'image')} of {len(predicted):,}."
    text += " Those with the highest confidence:" if len(wrong) > len(rows) else ""
    return ReportSection("Mistakes", [text], samples=samples)


def _difficulty(run: Run) -> ReportSection | None:
    pictures: dict[str, Callable[[Run], Figure]] = {}
    if run.gallery:
        pictures["Training images from easy to hard"] = figures.difficulty_gallery
    if run.difficulty is not None and "strategy" in run.method_settings:
        pictures["Difficulty and preview weight of the training images"] = figures.preview_weights
    if run.difficulty is not None and run.ground_truth is not None:
        pictures["Difficulty in training against known difficulty"] = figures.difficulty_against_truth
    drawn = {alt: draw(run) for alt, draw in pictures.items()}
    return ReportSection("Difficulty of the training images", figures=drawn) if drawn else None


def _maps(run: Run) -> ReportSection | None:
    if not run.embedding:
        return None
    drawn: dict[str, Figure] = {"t-SNE map of test images and class centers": figures.feature_map(run)}
    if run.settings["data"]["groups"] and len(run.settings["data"]["classes"]) >= MANY_CLASSES:
        drawn["Map of the class centers"] = figures.center_map(run)
    text = (
        "Each point is a test image, and each star a class center. Points that are close to each other have similar "
        "features. Large distances and the sizes of groups mean little in t-SNE."
    )
    return ReportSection("Maps", [text], drawn)

"""The page about two runs: what they were trained with, and on which images only one of them is right."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analysis.predictions import compare_predictions
from ..arguments import as_dataset, as_run
from ..data import Dataset
from ..evaluation import predict
from ..html import counted, p_value_text, value_text
from ..runs import Run
from .rendering import Sample, image_names, percent, read_images, render

SHOWN_SAMPLES = 24
TITLES = {"only a": "Only A is right", "only b": "Only B is right", "both wrong": "Both are wrong"}


def difference_page(
    run_a: Run | str | Path, run_b: Run | str | Path, data: Dataset | str, split: str = "test", **options: Any
) -> str:
    """Return a page that compares two runs image by image: images, classes, and settings that differ.

    Parameters
    ----------
    run_a, run_b : Run, str or Path
        Runs with weights, or their folders.
    data : Dataset or str
        A data set with the classes of both runs.
    split : {"test", "train", "val"}
    **options
        `accelerator`, `precision` and `fabric`, as in `predict`.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        As in `analysis.agreement`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> runs = [pckd.fit("resnet8", data, epochs=1, seed=seed, progress=False) for seed in (0, 1)]
    >>> page = pckd.pages.difference_page(*runs, data)
    >>> page[:15]
    '<!DOCTYPE html>'
    """
    a, b, data = as_run(run_a), as_run(run_b), as_dataset(data)
    of_a, of_b = (predict(run, data, split, **options) for run in (a, b))
    found = compare_predictions(of_a, of_b, data, split)
    p_a, p_b = (outputs.logits.double().softmax(1).numpy() for outputs in (of_a, of_b))
    labels = found.samples["label"].to_numpy()
    rows = np.arange(len(labels))
    gap = np.abs(p_a[rows, labels] - p_b[rows, labels])
    groups = []
    for outcome, title in TITLES.items():
        chosen = np.flatnonzero(found.samples["outcome"] == outcome)
        order = chosen[np.argsort(-gap[chosen], kind="stable")][:SHOWN_SAMPLES]
        if len(order):
            text = f"{counted(len(chosen), 'image')}."
            if len(chosen) > len(order):
                text += (
                    f" The page shows the {len(order)} on which A and B differ most in the probability of the label."
                )
            samples = _samples(data, split, order, (p_a, p_b))
            groups.append({"title": title, "text": text, "samples": samples})
    both, only_a, only_b, neither = map(int, found.counts)
    count = len(labels)
    numbers = {
        "A is right": f"{100 * (both + only_a) / count:.1f} %",
        "B is right": f"{100 * (both + only_b) / count:.1f} %",
        "only A": f"{only_a:,}",
        "only B": f"{only_b:,}",
        "both": f"{both:,}",
        "neither": f"{neither:,}",
        "same prediction": f"{found.same_prediction:.1f} %",
    }
    classes = found.classes.rename(columns={"p_holm": "p (Holm)", "only_a": "only A", "only_b": "only B"})
    classes = classes.rename(columns={"a": "A", "b": "B", "difference": "A − B"}).sort_values("p", kind="stable")
    classes[["p", "p (Holm)"]] = classes[["p", "p (Holm)"]].map(p_value_text)
    test = (
        f"McNemar's test on all images: p {p_value_text(found.p_value)}. It says whether the difference in accuracy is "
        "larger than expected by chance. It says nothing about other seeds of the same methods."
    )
    values = dict(a=a, b=b, numbers=numbers, groups=groups, classes=classes, test=test, settings=_differences(a, b))
    return render(
        "difference.html",
        title="Two networks image by image",
        images=f"{count:,} {split} images of {data.name}",
        **values,
    )


def _samples(data: Dataset, split: str, rows: np.ndarray, probabilities: tuple[np.ndarray, np.ndarray]) -> list[Sample]:
    images_of_split = getattr(data, split)
    labels = images_of_split.labels.cpu().numpy()
    samples = []
    images, names = read_images(images_of_split, rows), image_names(images_of_split, rows)
    for image, row, name in zip(images, rows, names, strict=True):
        lines = [f"label: {data.classes[labels[row]]}"]
        for letter, p in zip("AB", probabilities, strict=True):
            lines.append(f"{letter}: {data.classes[p[row].argmax()]}, {percent(p[row].max())}")
        samples.append(Sample(image, (*lines, name)))
    return samples


def _differences(a: Run, b: Run) -> pd.DataFrame | None:
    """Return a table of the settings that differ between two runs, or None if there are none."""
    found = [_all_settings(run) for run in (a, b)]
    names = dict.fromkeys([*found[0], *found[1]])
    rows = [
        (name, *(one.get(name, "–") for one in found)) for name in names if found[0].get(name) != found[1].get(name)
    ]
    return pd.DataFrame(rows, columns=["setting", "A", "B"]) if rows else None


def _all_settings(run: Run) -> dict[str, str]:
    settings = run.settings
    teacher = settings["teacher"] or {}
    values = {
        "data": settings["data"]["name"],
        "training images": settings["data"]["train_images"],
        **{f"data: {name}": value for name, value in settings["data"].get("options", {}).items()},
        "network": settings["model"]["name"],
        "initial weights": settings["model"].get("weights_from") or settings["model"].get("start"),
        "teacher": teacher.get("name"),
        "teacher's weights": teacher.get("fingerprint"),
        "method": settings["method"]["title"],
        "seed": settings["seed"],
        **{name: value for name, value in settings["recipe"].items() if not isinstance(value, dict)},
        **run.method_settings,
    }
    return {name: value_text(value) for name, value in values.items()}

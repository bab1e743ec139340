"""The page with training images, sorted by a measure of difficulty."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..arguments import as_dataset, as_run
from ..data import Dataset
from ..html import counted
from ..measures import DIRECTIONS
from ..runs import Run
from .rendering import read_images, render


def ranking_page(run: Run | str | Path, table: pd.DataFrame, data: Dataset | str, by: str) -> str:
    """Return a page with the images of a ranking. In the browser, they can be sorted and filtered.

    Parameters
    ----------
    run : Run, str or Path
        A run, or its folder.
    table : DataFrame
        Rows of `Run.samples`, as `analysis.rank_samples` returns them. The page shows them in this order at first.
    data : Dataset or str
        The data set of the run. Its training images are shown.
    by : str
        The measure by which the table is sorted.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    ValueError
        If the data set has other images than the run was trained with.
    TypeError
        If an argument has the wrong type.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False)
    >>> hardest = pckd.analysis.rank_samples(run, "gamma", top=5)
    >>> page = pckd.pages.ranking_page(run, hardest, data, "gamma")
    >>> page.count("<img")
    5
    """
    run, data = as_run(run), as_dataset(data)
    recorded, found = run.settings["data"]["train_images"], len(data.train)
    if recorded != found:
        raise ValueError(
            f"the run has {recorded:,} training images, but {data.name} has {found:,}: use the data of the run"
        )
    if data.fingerprint != run.data_fingerprint:
        raise ValueError(
            f"the images of {data.name} are not those that the run was trained with: they have changed since, or it is "
            "another data set"
        )
    directions = {name: sign for name, sign in DIRECTIONS.items() if name in table}
    images = read_images(data.train, table.index.to_numpy())
    samples = [
        _sample(row, image, list(directions), data) for (_, row), image in zip(table.iterrows(), images, strict=True)
    ]
    return render(
        "ranking.html",
        title=f"{counted(len(table), 'training image')} of {data.name}",
        run=run,
        samples=samples,
        measures=list(directions),
        directions=directions,
        by=by,
        classes=sorted(set(table["class"])),
    )


def _sample(row: pd.Series, image: Any, shown: list[str], data: Dataset) -> dict[str, Any]:
    values = {name: float(row[name]) if pd.notna(row[name]) and np.isfinite(row[name]) else None for name in shown}
    lines = []
    if "predicted_class" in row:
        lines.append(f"predicted: {row['predicted_class']}")
    if row.get("teacher_prediction", -1) >= 0:
        lines.append(f"teacher: {data.classes[int(row['teacher_prediction'])]}")
    if "true_label" in row and row["true_label"] != row["label"]:
        lines.append(f"true label: {data.classes[int(row['true_label'])]}")
    return {"id": str(row["id"]), "label": row["class"], "image": image, "values": values, "lines": lines}

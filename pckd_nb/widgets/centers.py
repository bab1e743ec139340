"""Explorer of the feature space: where categories and their samples lie."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import torch

from .. import analysis
from ..data import Dataset, load_dataset
from ..figures.canvas import CLASS_COLORS, LIGHT_GRAY, Drawing, draw_thumbnail, run_label
from ..figures.space import check_embeddings
from ..runs import Run
from .explorer import HARD_COLOR, NONE_OPTION, Explorer, check_category, control_options, new_widget_figure, shorten

PERPLEXITIES = (5, 15, 50)
MAX_MAP_POINTS = 400  # samples and centers on a map: takes 0.7 s on one core
NEAREST_CENTERS = 5
DATA_WITHOUT_DOWNLOAD = ("shapes100", "digits")  # included in a library, or generated in seconds

Map = tuple[np.ndarray, np.ndarray]  # positions of samples (N, 2) and of centers (C, 2)


def center_explorer(runs: Run | Sequence[Run], data: Dataset | None = None) -> Explorer:
    """Return an explorer that shows where categories and samples lie, and which category centers are nearest to them.

    It shows `center_state`. All t-SNE maps are computed first, one per run and perplexity. A map takes about 0.7 s on
    one core.

    Parameters
    ----------
    runs : Run or sequence of Run
        With embeddings of the same data.
    data : Dataset, optional
        The data set of the runs, to show its images. Not needed for shapes100 and digits.

    Returns
    -------
    Explorer

    Raises
    ------
    ValueError
        If a run has no embedding, if the runs are of different data, if there are too few test images for a map, or if
        the runs were not trained on `data`.
    """
    runs = check_embeddings(runs)
    networks = _runs_by_name(runs)
    perplexities = _perplexities(runs[0])
    rows = _map_rows(runs[0])
    maps: dict[tuple[str, float], Map] = {
        (name, p): _map(run, rows, p) for name, run in networks.items() for p in perplexities
    }
    images = _test_images(runs[0], data)
    classes, labels = runs[0].settings["data"]["classes"], runs[0].embedding["labels"]

    def sample_options(category: int, network: str) -> list[tuple[str, int]]:
        """Return the options of the control `sample`: the center, and the test images of the category."""
        predictions = networks[network].embedding["predictions"]
        samples = [int(row) for row in rows if labels[row] == category]
        return [("the category's center", NONE_OPTION)] + [
            (f"sample {row}, predicted as {shorten(classes[predictions[row]], 30)}", row) for row in samples
        ]

    def follow(name: str, controls: Mapping[str, Any]) -> None:
        """Update the options of `sample` when another category or network is chosen."""
        if name in ("category", "network"):
            before, sample = controls["sample"].value, controls["sample"]
            sample.options = sample_options(controls["category"].value, controls["network"].value)
            sample.value = before if name == "network" else NONE_OPTION

    first = next(iter(networks))
    start = int(labels[rows[0]])
    controls = {
        "network": ipywidgets.Dropdown(
            options=list(networks), **control_options("network", "the network whose features and centers are shown")
        ),
        "perplexity": ipywidgets.Dropdown(
            options=perplexities, value=perplexities[len(perplexities) // 2],
            **control_options("perplexity", "number of neighbours that t-SNE tries to preserve"),
        ),
        "category": ipywidgets.Dropdown(
            options=[(name, c) for c, name in enumerate(classes)], value=start,
            **control_options("category", "coloured on the map"),
        ),
        "sample": ipywidgets.Dropdown(  # not a list box, because JupyterLab uses its arrow keys for itself
            options=sample_options(start, first),
            **control_options("show", "the center, or a test image of the category", 520),
        ),
    }  # fmt: skip

    def draw(network: str, perplexity: float, category: int, sample: int | None) -> Drawing:
        choice = (network, perplexity, category, sample)
        return _draw_centers(networks[network], *choice, rows, maps[network, perplexity], images)

    return Explorer(controls, draw, follow)


def center_state(
    runs: Run | Sequence[Run],
    network: str | None = None,
    perplexity: float = 15,
    category: int = 0,
    sample: int | None = None,
    data: Dataset | None = None,
) -> Drawing:
    """Draw a t-SNE map of test features and category centers, and mark the centers nearest to a category or a sample.

    Nearest means the largest cosine similarity in the full feature space. Computing the map takes about 0.7 s.

    Parameters
    ----------
    runs : Run or sequence of Run
        With embeddings of the same data.
    network : str, optional
        Label of one of the runs, such as "KD resnet8". By default, the first run.
    perplexity : float
        Perplexity of t-SNE. Less than a third of the number of points on the map.
    category : int
        The category whose center and samples are marked.
    sample : int, optional
        Row number in `run.embedding` of a test image of the category. The centers nearest to this image are marked, and
        the image is shown. By default, the centers nearest to the category's center are marked.
    data : Dataset, optional
        As in `center_explorer`.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If a run has no embedding, if the runs are of different data, if another argument is outside its range, or if
        the runs were not trained on `data`.
    """
    runs = check_embeddings(runs)
    networks = _runs_by_name(runs)
    network = next(iter(networks)) if network is None else network
    if network not in networks:
        raise ValueError(f"unknown network '{network}'; known: {', '.join(networks)}")
    run = networks[network]
    labels = run.embedding["labels"]
    check_category(run, category)
    if sample is not None and not (0 <= sample < len(labels) and labels[sample] == category):
        examples = ", ".join(map(str, np.flatnonzero(labels == category)[:3]))
        raise ValueError(f"sample must be the row of a test image of category {category} ({examples}, …), got {sample}")
    rows = _map_rows(run, sample)
    choice = (network, perplexity, category, sample)
    return _draw_centers(run, *choice, rows, _map(run, rows, perplexity), _test_images(run, data))


def _draw_centers(
    run: Run,
    network: str,
    perplexity: float,
    category: int,
    sample: int | None,
    rows: np.ndarray,
    positions: Map,
    images: np.ndarray | None,
) -> Drawing:
    xy, centers_xy = positions
    classes, embedding = run.settings["data"]["classes"], run.embedding
    centers = analysis.directions(embedding["centers"])
    if sample is None:
        cosine = centers @ centers[category]
        cosine[category] = -np.inf  # leave out the center itself
    else:
        cosine = centers @ analysis.directions(embedding["features"])[sample]
    nearest = np.argsort(-cosine, kind="stable")[: min(NEAREST_CENTERS, np.isfinite(cosine).sum())]
    own = embedding["labels"][rows] == category
    name = shorten(classes[category], 40)
    nearest_color = CLASS_COLORS[1]
    with new_widget_figure([run], 4.6) as figure:
        ax = figure.add_axes((0.015, 0.13, 0.5, 0.79))
        ax.scatter(xy[~own, 0], xy[~own, 1], s=9, color=LIGHT_GRAY, alpha=0.7, linewidth=0)
        ax.scatter(centers_xy[:, 0], centers_xy[:, 1], s=28, marker="*", color="#8A8A8A", linewidth=0)
        ax.scatter(xy[own, 0], xy[own, 1], s=26, color=CLASS_COLORS[0], linewidth=0, zorder=3)
        x, y = centers_xy[category]
        ax.scatter(x, y, s=230, marker="*", color=CLASS_COLORS[0], edgecolor="black", zorder=4)
        for rank, c in enumerate(nearest, 1):
            if c != category:
                x, y = centers_xy[c]
                ax.scatter(x, y, s=110, marker="*", color=nearest_color, edgecolor="black", linewidth=0.6, zorder=4)
            ax.annotate(
                str(rank), centers_xy[c], (6, 5), textcoords="offset points", fontweight="bold", fontsize=8, zorder=6
            )
        if sample is not None:
            x, y = xy[np.flatnonzero(rows == sample)[0]]
            ax.scatter(x, y, s=120, facecolor="none", edgecolor=HARD_COLOR, linewidth=2, zorder=5)
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(True)
        ax.set_title(f"t-SNE of {shorten(network, 28)}, perplexity {perplexity:g}")

        bars = figure.add_axes((0.74, 0.2, 0.23, 0.36))
        colors = [CLASS_COLORS[0] if c == category else nearest_color for c in nearest]
        bars.barh(range(len(nearest)), cosine[nearest], color=colors, height=0.65)
        names = [f"{shorten(classes[c], 24)}  {rank}" for rank, c in enumerate(nearest, 1)]
        bars.set_yticks(range(len(nearest)), names, fontsize=7.5)
        bars.set(ylim=(len(nearest) - 0.4, -0.6), xlim=(min(0, float(cosine[nearest].min())), 1))
        bars.set_xlabel("cosine in the full feature space", fontsize=8)
        bars.tick_params(axis="x", labelsize=7)
        bars.grid(axis="y", visible=False)

        top = figure.add_axes((0.535, 0.6, 0.455, 0.32))
        top.axis("off")
        title = "centers nearest to this one" if sample is None else "centers nearest to this sample"
        bars.set_title(title, fontsize=8.5, loc="right")
        prediction = "" if sample is None else classes[embedding["predictions"][sample]]
        shown = [sample] if sample is not None else [int(row) for row in rows[own][:3]]
        lines = textwrap.wrap(classes[category], 26)[:2]
        if sample is not None:
            lines += [f"test image {sample}", "", "predicted:", *textwrap.wrap(prediction, 26)[:2]]
        if images is None:
            lines += ["", "(no images: pass data)"]
            x, y = 0.0, 0.0
        else:  # the text is right of one image, and below several
            for i, row in enumerate(shown):
                draw_thumbnail(top, images[row], 1.08 * i, 0)
            x, y = (1.14, 0.0) if sample is not None else (0.0, 1.04)
        top.text(x, y, "\n".join(lines), va="top", fontsize=8, linespacing=1.3)
        top.set(xlim=(0, 3.2), ylim=(1.23, -0.03), aspect="equal", anchor="NW")
        for marker, size, color, label in (
            ("o", 5, CLASS_COLORS[0], "its test images"),
            ("*", 11, CLASS_COLORS[0], "its center"),
            ("*", 8, nearest_color, "nearest centers"),
        ):
            edge = "black" if marker == "*" else color
            ax.plot([], [], marker, markersize=size, color=color, markeredgecolor=edge, label=label)
        below: dict[str, Any] = dict(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, columnspacing=1)
        ax.legend(fontsize=7.5, handletextpad=0.1, **below)
    listed = ", ".join(f"{classes[c]} ({cosine[c]:.2f})" for c in nearest)
    subject = f"the center of {name}" if sample is None else f"test image {sample}, {name}, predicted as {prediction}"
    figure.alt = (
        f"t-SNE map of {len(rows)} test images and {len(centers_xy)} category centers of {network}, perplexity "
        f"{perplexity:g}. Marked: {subject}. Nearest centers by cosine in the full feature space: {listed}."
    )
    return figure


def _runs_by_name(runs: list[Run]) -> dict[str, Run]:
    """Return the runs by label. If several runs have the same label, the seed is added to it."""
    labels = [run_label(run, runs) for run in runs]
    names = [
        f"{label}, seed {run.settings['seed']}" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]
    return {
        name if names.count(name) == 1 else f"{name} ({i})": run
        for i, (name, run) in enumerate(zip(names, runs, strict=True), 1)
    }


def _perplexities(run: Run) -> list[int]:
    points = len(_map_rows(run)) + len(run.embedding["centers"])
    found = [perplexity for perplexity in PERPLEXITIES if perplexity < points / 3]
    if not found:
        raise ValueError(f"a map needs more than {3 * PERPLEXITIES[0]} test images and centers, got {points}")
    return found


def _map_rows(run: Run, sample: int | None = None) -> np.ndarray:
    """Return the rows of the embedding that a map shows: the first ones of each category, and `sample`."""
    labels = run.embedding["labels"]
    count = len(run.embedding["centers"])
    each = max(1, (MAX_MAP_POINTS - count) // count)
    rows = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(count)])
    return np.union1d(rows, [] if sample is None else [sample]).astype(int)


def _map(run: Run, rows: np.ndarray, perplexity: float) -> Map:
    return analysis.embed(run.embedding["features"][rows], run.embedding["centers"], 0, perplexity)


def _test_images(run: Run, data: Dataset | None) -> np.ndarray | None:
    """Return the test images of the embedding's rows, or None if they would have to be downloaded."""
    info = run.settings["data"]
    if data is None:
        if info["name"] not in DATA_WITHOUT_DOWNLOAD:
            return None
        data = load_dataset(info["name"], **info["options"])
        if data.fingerprint != run.data_fingerprint:
            return None
    elif data.fingerprint != run.data_fingerprint:
        raise ValueError(
            f"the runs were not trained on this data: load {info['name']} with the options {info['options']}"
        )
    count = len(run.embedding["labels"])
    # The same choice as in `recording.embedding`.
    chosen = torch.linspace(0, info["test_images"] - 1, count).round().long()
    return torch.cat(list(data.test.read(chosen.split(50)))).cpu().numpy()

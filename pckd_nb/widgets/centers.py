"""Centers: where categories and their samples lie."""

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
MAX_MAP_POINTS = 400  # samples and centers on a map: 0.7 s of one core
NEAREST_CENTERS = 5
DATA_WITHOUT_DOWNLOAD = ("shapes100", "digits")  # data sets that are there, or drawn in seconds

Map = tuple[np.ndarray, np.ndarray]  # positions of samples, of centers: (N, 2), (C, 2)


def center_explorer(runs: Run | Sequence[Run], data: Dataset | None = None) -> Explorer:
    """Where does a category lie, where a sample, and which centers are nearest? Redraws `center_state`.

    All its t-SNE maps are computed first: about 0.7 s each on one core, `PERPLEXITIES` times runs. data: what the runs
    were trained on, for the images; it may be left out for shapes100 and digits.
    """
    runs = check_embeddings(runs)
    networks = _runs_by_name(runs)
    perplexities = _perplexities(runs[0])
    rows = _map_rows(runs[0])
    maps: dict[tuple[str, float], Map] = {
        (name, p): _map(run, rows, p) for name, run in networks.items() for p in perplexities
    }
    pictures = _test_images(runs[0], data)
    classes, labels = runs[0].settings["data"]["classes"], runs[0].embedding["labels"]

    def samples_of(category: int, network: str) -> list[tuple[str, int]]:
        guesses = networks[network].embedding["predictions"]
        some = [int(row) for row in rows if labels[row] == category]
        return [("the category's center", NONE_OPTION)] + [
            (f"sample {row}, predicted as {shorten(classes[guesses[row]], 30)}", row) for row in some
        ]

    def follow(name: str, controls: Mapping[str, Any]) -> None:
        if name in ("category", "network"):
            before, sample = controls["sample"].value, controls["sample"]
            sample.options = samples_of(controls["category"].value, controls["network"].value)
            sample.value = before if name == "network" else NONE_OPTION

    first = next(iter(networks))
    start = int(labels[rows[0]])
    controls = {
        "network": ipywidgets.Dropdown(options=list(networks), **control_options("network", "whose features and centers")),
        "perplexity": ipywidgets.Dropdown(
            options=perplexities, value=perplexities[len(perplexities) // 2],
            **control_options("perplexity", "how many neighbours t-SNE tries to keep"),
        ),
        "category": ipywidgets.Dropdown(
            options=[(name, c) for c, name in enumerate(classes)], value=start,
            **control_options("category", "coloured on the map"),
        ),
        "sample": ipywidgets.Dropdown(  # of a list box JupyterLab takes the arrow keys for itself
            options=samples_of(start, first),
            **control_options("show", "the center, or a test image of the category", 520),
        ),
    }  # fmt: skip

    def draw(network: str, perplexity: float, category: int, sample: int | None) -> Drawing:
        picture = (network, perplexity, category, sample)
        return _draw_centers(networks[network], *picture, rows, maps[network, perplexity], pictures)

    return Explorer(controls, draw, follow)


def center_state(
    runs: Run | Sequence[Run],
    network: str | None = None,
    perplexity: float = 15,
    category: int = 0,
    sample: int | None = None,
    data: Dataset | None = None,
) -> Drawing:
    """t-SNE of test features and category centers: a category's, its samples', and its nearest centers by cosine in the
    full space; or those of one sample, with its image.

    network: one of the runs as the legends call it, as in "KD resnet8"; the first unless said. sample: a row of
    run.embedding, of the category. data: as in `center_explorer`. Computes its map: about 0.7 s.
    Raises ValueError for a run without embedding, runs on several data sets, or a value that can't be.
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
        raise ValueError(f"sample {sample} is none of the {len(labels)} recorded test images, or of another category")
    rows = _map_rows(run, sample)
    picture = (network, perplexity, category, sample)
    return _draw_centers(run, *picture, rows, _map(run, rows, perplexity), _test_images(run, data))


def _draw_centers(
    run: Run,
    network: str,
    perplexity: float,
    category: int,
    sample: int | None,
    rows: np.ndarray,
    place: Map,
    pictures: np.ndarray | None,
) -> Drawing:
    xy, stars = place
    classes, embedding = run.settings["data"]["classes"], run.embedding
    centers = analysis.directions(embedding["centers"])
    if sample is None:
        cosine = centers @ centers[category]
        cosine[category] = -np.inf  # a center's nearest is not itself
    else:
        cosine = centers @ analysis.directions(embedding["features"])[sample]
    nearest = np.argsort(-cosine, kind="stable")[: min(NEAREST_CENTERS, np.isfinite(cosine).sum())]
    own = embedding["labels"][rows] == category
    name = shorten(classes[category], 40)
    near = CLASS_COLORS[1]
    with new_widget_figure([run], 4.6) as figure:
        ax = figure.add_axes((0.015, 0.13, 0.5, 0.79))
        ax.scatter(xy[~own, 0], xy[~own, 1], s=9, color=LIGHT_GRAY, alpha=0.7, linewidth=0)
        ax.scatter(stars[:, 0], stars[:, 1], s=28, marker="*", color="#8A8A8A", linewidth=0)
        ax.scatter(xy[own, 0], xy[own, 1], s=26, color=CLASS_COLORS[0], linewidth=0, zorder=3)
        x, y = stars[category]
        ax.scatter(x, y, s=230, marker="*", color=CLASS_COLORS[0], edgecolor="black", zorder=4)
        for rank, c in enumerate(nearest, 1):
            if c != category:
                x, y = stars[c]
                ax.scatter(x, y, s=110, marker="*", color=near, edgecolor="black", linewidth=0.6, zorder=4)
            ax.annotate(
                str(rank), stars[c], (6, 5), textcoords="offset points", fontweight="bold", fontsize=8, zorder=6
            )
        if sample is not None:
            x, y = xy[np.flatnonzero(rows == sample)[0]]
            ax.scatter(x, y, s=120, facecolor="none", edgecolor=HARD_COLOR, linewidth=2, zorder=5)
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(True)
        ax.set_title(f"t-SNE of {shorten(network, 28)}, perplexity {perplexity:g}")

        bars = figure.add_axes((0.74, 0.2, 0.23, 0.36))
        colors = [CLASS_COLORS[0] if c == category else near for c in nearest]
        bars.barh(range(len(nearest)), cosine[nearest], color=colors, height=0.65)
        names = [f"{shorten(classes[c], 24)}  {rank}" for rank, c in enumerate(nearest, 1)]
        bars.set_yticks(range(len(nearest)), names, fontsize=7.5)
        bars.set(ylim=(len(nearest) - 0.4, -0.6), xlim=(min(0, float(cosine[nearest].min())), 1))
        bars.set_xlabel("cosine, in the full space", fontsize=8)
        bars.tick_params(axis="x", labelsize=7)
        bars.grid(axis="y", visible=False)

        top = figure.add_axes((0.535, 0.6, 0.455, 0.32))
        top.axis("off")
        what = "centers nearest to this one" if sample is None else "centers nearest to this sample"
        bars.set_title(what, fontsize=8.5, loc="right")
        guess = "" if sample is None else classes[embedding["predictions"][sample]]
        some = [sample] if sample is not None else [int(row) for row in rows[own][:3]]
        lines = textwrap.wrap(classes[category], 26)[:2]
        if sample is not None:
            lines += [f"test image {sample}", "", "predicted:", *textwrap.wrap(guess, 26)[:2]]
        if pictures is None:
            lines += ["", "(images are not in the record)"]
            x, y = 0.0, 0.0
        else:  # beside one picture, below several
            for i, row in enumerate(some):
                draw_thumbnail(top, pictures[row], 1.08 * i, 0)
            x, y = (1.14, 0.0) if sample is not None else (0.0, 1.04)
        top.text(x, y, "\n".join(lines), va="top", fontsize=8, linespacing=1.3)
        top.set(xlim=(0, 3.2), ylim=(1.23, -0.03), aspect="equal", anchor="NW")
        for marker, size, color, label in (
            ("o", 5, CLASS_COLORS[0], "its test images"),
            ("*", 11, CLASS_COLORS[0], "its center"),
            ("*", 8, near, "nearest centers"),
        ):
            edge = "black" if marker == "*" else color
            ax.plot([], [], marker, markersize=size, color=color, markeredgecolor=edge, label=label)
        below: dict[str, Any] = dict(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, columnspacing=1)
        ax.legend(fontsize=7.5, handletextpad=0.1, **below)
    listed = ", ".join(f"{classes[c]} ({cosine[c]:.2f})" for c in nearest)
    subject = f"the center of {name}" if sample is None else f"test image {sample}, {name}, predicted as {guess}"
    figure.alt = (
        f"t-SNE map of {len(rows)} test images and {len(stars)} category centers of {network}, perplexity "
        f"{perplexity:g}. Marked: {subject}. Nearest centers by cosine in the full space: {listed}."
    )
    return figure


def _runs_by_name(runs: list[Run]) -> dict[str, Run]:
    """Runs by their labels, with the seed where several share one."""
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
    """Rows of the embedding that a map shows: the first few of every category, and `sample`."""
    labels = run.embedding["labels"]
    count = len(run.embedding["centers"])
    each = max(1, (MAX_MAP_POINTS - count) // count)
    rows = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(count)])
    return np.union1d(rows, [] if sample is None else [sample]).astype(int)


def _map(run: Run, rows: np.ndarray, perplexity: float) -> Map:
    return analysis.embed(run.embedding["features"][rows], run.embedding["centers"], 0, perplexity)


def _test_images(run: Run, data: Dataset | None) -> np.ndarray | None:
    """The test images behind the rows of the embedding, uint8 (N, channels, height, width); None where they can't be
    had without a download. Raises ValueError for `data` on which the run was not trained."""
    about = run.settings["data"]
    if data is None:
        if about["name"] not in DATA_WITHOUT_DOWNLOAD:
            return None
        data = load_dataset(about["name"], **about["options"])
        if data.fingerprint != run.data_fingerprint:
            return None
    elif data.fingerprint != run.data_fingerprint:
        raise ValueError(f"the runs were not trained on this data: they want {about['name']}, {about['options']}")
    count = len(run.embedding["labels"])
    chosen = torch.linspace(0, about["test_images"] - 1, count).round().long()  # as `recording.embedding` has it
    return torch.cat(list(data.test.read(chosen.split(50)))).cpu().numpy()

"""Widgets of the course: plain ipywidgets, so that they work by keyboard, and one function a picture.

    explorer                         its pictures as plain functions
    preview_explorer(run)            preview_state(run, epsilon, epoch, strategy)
    contrast_explorer()              contrast_state(temperature, beta, batch)
    center_explorer(runs)            center_state(runs, network, perplexity, category, sample)
    difficulty_browser(run)          difficulty_page(run, category, epoch, sort, page), sample_trajectory(run, sample)
    sweep_explorer(runs)             sweep_state(runs, factor, value)

A picture is a Figure that says in words what it shows in its attribute `alt`. An explorer shows one beside its controls
and draws it anew when one of them changes. Where no widgets run, the picture it began with stands in its place.
Categories are numbers, as in `run.labels`. A run without what a widget shows is a ValueError.
"""

import base64
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from io import BytesIO
from typing import Any

import ipywidgets
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from . import analysis, losses, preview
from .datasets import Dataset, load_dataset
from .figures.arms import FACTORS, Seeds, Sweep, accuracies, all_of, swept
from .figures.canvas import (
    CLASS_COLORS,
    COLORS,
    INK,
    MORE_COLORS,
    PALE,
    caption,
    checked,
    epoch_axis,
    label_of,
    style,
)
from .runs import SYMBOLS, Run

DPI = 100
WIDTH = 8.2  # inches of every picture
SMALL = 6.5  # points, of what stands beside small pictures
HARD = MORE_COLORS[1]  # vermilion, which no one takes for PCKD's green

TEMPERATURES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
BATCHES = 8  # toy batches to choose from
RATE = 3  # learning rate of the step that an arrow is
PERPLEXITIES = (5, 15, 50)
MAP_POINTS = 400  # samples and centers on a map: 0.7 s of one core
NEAREST = 5
NO_DOWNLOAD = ("shapes100", "digits")  # data sets that are there, or drawn in seconds
SORTS = ("hardest first", "easiest first", "by number")
PAGE_IMAGES = 12


class Explorer(ipywidgets.VBox):
    """Controls, a picture, and the sentence that says what it shows, which is the picture's alternative text too.

    controls: name → widget; their values are the arguments of `draw`, which returns a Figure with `alt`.
    follow(name, controls): called after a control has changed and before anything is drawn, to set others. between:
    widgets above the picture. static(**values): the Figure where no widgets run, if another than `draw`'s.
    """

    def __init__(
        self,
        controls: Mapping[str, Any],
        draw: Callable[..., Figure],
        follow: Callable[[str, Mapping[str, Any]], None] | None = None,
        between: Sequence[ipywidgets.Widget] = (),
        static: Callable[..., Figure] | None = None,
    ):
        self.controls, self._draw, self._follow, self._static = dict(controls), draw, follow, static
        self.picture, self.sentence = ipywidgets.HTML(), ipywidgets.HTML()
        self._following = False
        box = ipywidgets.Box(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        super().__init__([box, *between, self.picture, self.sentence])
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._changed(name), "value")
        self.redraw()

    @property
    def values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def redraw(self) -> None:
        figure = self._draw(**self.values)
        self.png, self.alt = _png(figure), figure.alt
        self.picture.value = _img(self.png, self.alt, "max-width: 100%")
        self.sentence.value = f'<p role="status" style="line-height: 1.4; max-width: 60em">{escape(self.alt)}</p>'

    def _changed(self, name: str) -> None:
        if self._following:  # it was set by `follow`, which draws once when all is set
            return
        if self._follow:
            self._following = True
            try:
                self._follow(name, self.controls)
            finally:
                self._following = False
        self.redraw()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and for whoever can't show it (GitHub, nbconvert, the site) its picture and its sentence."""
        png, alt = self.png, self.alt
        if self._static:
            figure = self._static(**self.values)
            png, alt = _png(figure), figure.alt
        still = {"text/plain": alt, "image/png": base64.b64encode(png).decode()}
        return {**super()._repr_mimebundle_(**kwargs), **still}, {"image/png": {"alt": alt}}


# Preview: which samples count how much.


def preview_explorer(run: Run) -> Explorer:
    """How do ε, epoch and strategy decide what each training image counts? Redraws `preview_state`."""
    run = _with_gallery(run)
    epochs, own = len(run.history), _own(run, "epsilon")
    highest = 10 ** (1 / epochs)  # there the threshold ends at 10
    epsilon = own or run.settings["recipe"]["final_threshold"] ** (1 / epochs)
    rough = (highest - 1) / 50
    step = next(n * 10.0**k for k in range(-9, 3) for n in (1, 2, 5) if n * 10.0**k >= rough)
    controls = {
        "epsilon": ipywidgets.FloatSlider(
            value=epsilon, min=1, max=max(highest, epsilon), step=step, readout_format=".4f", continuous_update=False,
            **_about("ε", "base of the threshold: ε_t = ε^epoch"),
        ),
        "epoch": _epoch_control(epochs),
        "strategy": ipywidgets.Dropdown(
            options=list(preview.STRATEGIES), **_about("strategy", "from difficulty and threshold to weight")
        ),
    }  # fmt: skip
    return Explorer(controls, lambda **values: preview_state(run, **values))


def preview_state(run: Run, epsilon: float, epoch: int, strategy: str = "preview") -> Figure:
    """Weights v that a strategy of `preview.STRATEGIES` gives the samples of an epoch under ε: as a curve over γ,
    a histogram of all γ, and images of the gallery, framed by what they count.

    γ and cross-entropy are the run's own, whatever it was trained with: of another ε they would have become others.
    Raises ValueError where the run kept no samples or no gallery, or for a value that can't be.
    """
    run = _with_gallery(run)
    _known_epoch(run, epoch)
    if strategy not in preview.STRATEGIES:
        raise ValueError(f"unknown strategy '{strategy}'; known: {', '.join(preview.STRATEGIES)}")
    limit = preview.threshold(epoch, epsilon)
    ce, gamma = (values[epoch - 1].astype(np.float32) for values in (run.cross_entropy, run.difficulty))
    weigh = preview.STRATEGIES[strategy]
    weight = weigh(torch.from_numpy(ce), torch.from_numpy(gamma), limit).numpy()
    full, mean = int((weight == 1).sum()), float(weight.mean())
    right = max(4, float(np.quantile(gamma, 0.995)), 1.1 * min(limit, 10))

    index = run.gallery["index"][np.argsort(gamma[run.gallery["index"]], kind="stable")]
    shown = index[np.unique(np.linspace(0, len(index) - 1, 24).round().astype(int))]
    places = {int(sample): place for place, sample in enumerate(run.gallery["index"])}
    less = int((weight[shown] < 1).sum())

    note = "v from this ε and strategy, γ from the run as it was trained" + (
        f" (ε = {_own(run, 'epsilon'):.4g}, {_own(run, 'strategy')})." if _own(run, "epsilon") else "."
    )
    with _picture([run], 4.3, note) as figure:
        above, below = figure.add_axes((0.08, 0.63, 0.39, 0.29)), figure.add_axes((0.08, 0.19, 0.39, 0.29))
        if strategy == "focal":  # its weight is of the cross-entropy, and samples of one γ differ in that
            above.plot(gamma, weight, ".", color=COLORS["PCKD"], markersize=2)
        else:
            grid = np.union1d(np.linspace(0, right, 400), [limit, np.nextafter(limit, np.inf)])
            at = torch.from_numpy(grid)
            curve = weigh(at, at, limit).numpy() if strategy != "constant" else np.full(len(grid), mean)
            above.plot(grid, curve, color=COLORS["PCKD"])
        above.set_title(f"weight v, strategy {strategy}")
        above.set(ylim=(-0.04, 1.08), ylabel="v", yticks=(0, 0.5, 1))
        bins = np.linspace(0, right, 41)
        beyond = np.minimum(gamma, right)
        for weights, color, label in ((None, PALE, "all"), (weight, COLORS["PCKD"], "each counted v times")):
            below.stairs(np.histogram(beyond, bins, weights=weights)[0], bins, fill=True, color=color, label=label)
        below.set_title("difficulty γ of all training images")
        below.set(ylabel="training images", xlabel=f"γ (1: average of the batch; last bar: {right:.1f} and more)")
        below.legend(loc="upper right", fontsize=7.5)
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, right)
        for ax in (above, below):
            ax.set_xticks(ticks[ticks <= right])  # looked for once: it takes long
            ax.set_xlim(0, right)
            if limit < right:
                ax.axvline(limit, color=INK, linewidth=1, linestyle=":")
        if limit < right:
            side, shift = ("right", -4) if limit > 0.6 * right else ("left", 4)
            above.annotate(f"ε_t = {limit:.2f}", (limit, 0.5), (shift, 0), textcoords="offset points", ha=side)
        ax = figure.add_axes((0.52, 0.14, 0.47, 0.78))
        frames = np.where(weight[shown] == 1, COLORS["PCKD"], HARD)
        dashes = np.where(weight[shown] == 1, "-", "--")
        texts = ["v > 0.99" if 0.995 <= v < 1 else "v < 0.01" if 0 < v < 0.005 else f"v {v:.2f}" for v in weight[shown]]
        _thumbnails(ax, [run.gallery["images"][places[int(i)]] for i in shown], 6, texts, 1.36, frames, dashes)
        ax.set_title(f"{len(shown)} of them, from easy to hard in epoch {epoch}")
        marks = [
            Line2D([], [], color=COLORS["PCKD"], linewidth=2, label="v = 1: counts fully"),
            Line2D([], [], color=HARD, linewidth=2, linestyle="--", label="v < 1: counts less"),
        ]
        ax.legend(handles=marks, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, fontsize=8)
    figure.alt = (
        f"Epoch {epoch} of {len(run.history)}, ε = {epsilon:.4g}, strategy {strategy}: the threshold ε_t is "
        f"{limit:.2f}. {full:,} of {len(gamma):,} training images ({100 * full / len(gamma):.0f} %) count fully "
        f"(v = 1); the mean weight is {mean:.2f}. Of the {len(shown)} images shown, {less} "
        f"count{'s' * (less == 1)} less."
    )
    return figure


# Contrast: what attracts and what repels.


def contrast_explorer() -> Explorer:
    """What do τ and β do to the pull of L_CC in two dimensions? Redraws `contrast_state`."""
    controls = {
        "temperature": ipywidgets.SelectionSlider(
            options=TEMPERATURES, value=4.0, continuous_update=False,
            **_about("temperature τ", "small: only the most similar vectors repel; large: all do alike"),
        ),
        "beta": ipywidgets.FloatSlider(
            value=0.05, min=0, max=0.1, step=0.01, continuous_update=False,
            **_about("β", "weight of the term: the length of its gradient"),
        ),
        "batch": ipywidgets.Dropdown(
            options=list(range(1, BATCHES + 1)), **_about("batch", "which images were drawn: a seed")
        ),
    }  # fmt: skip
    return Explorer(controls, contrast_state)


def contrast_batch(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A made-up batch, the same for the same number from 1: score vectors u_s, u_t, float64 (9, 2), labels (9,).

    Three categories with three images each. Each category has a direction; the teacher's centers see an image near
    it, the student's at twice the distance.
    """
    if batch != int(batch) or batch < 1:
        raise ValueError(f"batch must be a whole number from 1, got {batch}")
    labels = torch.arange(3).repeat_interleave(3)
    angle = np.pi / 2 + 2 * np.pi / 3 * labels.numpy()
    middle = 1.6 * np.column_stack([np.cos(angle), np.sin(angle)])
    rng = np.random.default_rng(int(batch))
    student, teacher = (torch.from_numpy(middle + sd * rng.standard_normal(middle.shape)) for sd in (0.8, 0.4))
    return student, teacher, labels


def contrast_state(temperature: float = 4.0, beta: float = 0.05, batch: int = 1) -> Figure:
    """Category center contrast of `contrast_batch`: the similarities a·q/τ of all score vectors by category, positives
    outlined, and in the plane of the scores the step −β·∂L_CC/∂u of every vector, L_CC averaged over images.

    Raises ValueError for a temperature that is not positive, a negative β, or a batch that is not a number from 1.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    student, teacher, labels = contrast_batch(batch)
    scores = student.requires_grad_(), teacher.requires_grad_()
    loss = losses.category_center_contrast(*scores, labels, temperature).mean()
    steps = torch.cat([-beta * gradient for gradient in torch.autograd.grad(loss, scores)]).numpy()
    vectors, category = torch.cat(scores).detach().numpy(), labels.repeat(2).numpy()
    of_student = np.arange(len(category)) < len(labels)
    order = np.argsort(category, kind="stable")
    similarity = (vectors @ vectors.T / temperature)[np.ix_(order, order)]
    itself = np.eye(len(order), dtype=bool)
    same = (category[order][:, None] == category[order]) & ~itself
    positive, negative = similarity[same].mean(), similarity[~same & ~itself].mean()
    longest = float(np.linalg.norm(steps, axis=1).max())

    note = "A made-up batch of 3 categories, 3 images each, 2 scores a vector; losses.category_center_contrast of it."
    with _picture([], 4.3, note) as figure:
        ax = figure.add_axes((0.08, 0.13, 0.375, 0.76))
        largest = float(np.abs(similarity[~itself]).max())
        shown = np.ma.array(similarity, mask=itself)
        image = ax.imshow(shown, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
        count, each = len(order), len(order) // 3
        for c in range(3):
            corner = c * each - 0.5
            ax.add_patch(Rectangle((corner, corner), each, each, fill=False, edgecolor=INK, linewidth=2, zorder=3))
            place = dict(va="center", ha="center", fontweight="bold", fontsize=11)
            ax.text(-2.6, corner + each / 2, "ABC"[c], color=CLASS_COLORS[c], **place)
        halves = [c * each + (each - 1) / 4 + half * each / 2 for c in range(3) for half in (0, 1)]
        ax.set_yticks(halves, ["u_s", "u_t"] * 3, fontsize=7.5)
        ax.set_xticks(halves, ["u_s", "u_t"] * 3, fontsize=7.5)
        ax.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), anchor="N")
        ax.grid(visible=False)
        ax.set_title("similarity a·q/τ, positives outlined")
        bar = figure.colorbar(image, cax=figure.add_axes((0.465, 0.19, 0.012, 0.64)))
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)

        ax = figure.add_axes((0.565, 0.13, 0.42, 0.76))
        for c in range(3):
            for who, marker, face in ((of_student, "o", CLASS_COLORS[c]), (~of_student, "s", "white")):
                chosen = who & (category == c)
                ax.scatter(*vectors[chosen].T, s=34, marker=marker, facecolor=face, edgecolor=CLASS_COLORS[c], zorder=3)
        ax.quiver(*vectors.T, *(RATE * steps).T, color=[CLASS_COLORS[c] for c in category], angles="xy",
                  scale_units="xy", scale=1, width=0.006, zorder=2)  # fmt: skip
        ax.axhline(0, color=PALE, linewidth=0.8, zorder=0)
        ax.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        ax.set(xlim=(-4.4, 4.4), ylim=(-4.4, 4.4), aspect="equal", anchor="N", xlabel="score 1", ylabel="score 2")
        ax.set_title(f"one step down −β·∂L_CC/∂u (drawn × {RATE})")
        marks = [Line2D([], [], linestyle="", marker="o", color=CLASS_COLORS[c], label="ABC"[c]) for c in range(3)]
        marks += [
            Line2D([], [], linestyle="", marker="o", color=INK, label="student's u_s"),
            Line2D([], [], linestyle="", marker="s", markerfacecolor="white", color=INK, label="teacher's u_t"),
        ]
        ax.legend(handles=marks, loc="upper right", fontsize=7, handletextpad=0.1, labelspacing=0.25, borderaxespad=0.2)
    figure.alt = (
        f"Toy batch {int(batch)}, τ = {temperature:g}, β = {beta:g}: L_CC is {loss.item():.1f} on average. "
        f"Similarities a·q/τ are {positive:.2f} on average among vectors of the same category ({same.sum() // 2} pairs "
        f"of positives) and {negative:.2f} between categories. The longest step −β·∂L_CC/∂u has length {longest:.3f}."
    )
    return figure


# Centers: where categories and their samples lie.


def center_explorer(runs: Run | Sequence[Run], data: Dataset | None = None) -> Explorer:
    """Where does a category lie, where a sample, and which centers are nearest? Redraws `center_state`.

    All its t-SNE maps are computed first: about 0.7 s each on one core, `PERPLEXITIES` times runs. data: what the runs
    were trained on, for the images; it may be left out for shapes100 and digits.
    """
    runs = _with_embedding(runs)
    networks = _networks(runs)
    perplexities = _perplexities(runs[0])
    rows = _mapped(runs[0])
    maps = {(name, p): _map(run, rows, p) for name, run in networks.items() for p in perplexities}
    pictures = _pictures(runs[0], data)
    classes, labels = runs[0].settings["data"]["classes"], runs[0].embedding["labels"]

    def samples_of(category: int, network: str) -> list[tuple[str, int | None]]:
        guesses = networks[network].embedding["predictions"]
        some = [int(row) for row in rows if labels[row] == category]
        return [("the category's center", None)] + [
            (f"sample {row}: {_cut(classes[category], 30)}, predicted as {_cut(classes[guesses[row]], 30)}", row)
            for row in some
        ]

    def follow(name: str, controls: Mapping[str, Any]) -> None:
        if name in ("category", "network"):
            before, sample = controls["sample"].value, controls["sample"]
            sample.options = samples_of(controls["category"].value, controls["network"].value)
            sample.value = before if name == "network" else None

    first = next(iter(networks))
    start = int(labels[rows[0]])
    controls = {
        "network": ipywidgets.Dropdown(options=list(networks), **_about("network", "whose features and centers")),
        "perplexity": ipywidgets.Dropdown(
            options=perplexities, value=perplexities[len(perplexities) // 2],
            **_about("perplexity", "how many neighbours t-SNE tries to keep"),
        ),
        "category": ipywidgets.Dropdown(
            options=[(name, c) for c, name in enumerate(classes)], value=start,
            **_about("category", "coloured on the map"),
        ),
        "sample": ipywidgets.Select(
            options=samples_of(start, first), rows=4,
            **_about("show", "the center, or a test image of the category", 420),
        ),
    }  # fmt: skip

    def draw(network: str, perplexity: float, category: int, sample: int | None) -> Figure:
        picture = (network, perplexity, category, sample)
        return _draw_centers(runs, networks[network], *picture, rows, maps[network, perplexity], pictures)

    return Explorer(controls, draw, follow)


def center_state(
    runs: Run | Sequence[Run],
    network: str | None = None,
    perplexity: float = 15,
    category: int = 0,
    sample: int | None = None,
    data: Dataset | None = None,
) -> Figure:
    """t-SNE of test features and category centers: a category's, its samples', and its nearest centers by cosine in the
    full space; or those of one sample, with its image.

    network: one of the runs as the legends call it, as in "KD resnet8"; the first unless said. sample: a row of
    run.embedding, of the category. data: as in `center_explorer`. Computes its map: about 0.7 s.
    Raises ValueError for a run without embedding, runs on several data sets, or a value that can't be.
    """
    runs = _with_embedding(runs)
    networks = _networks(runs)
    network = next(iter(networks)) if network is None else network
    if network not in networks:
        raise ValueError(f"unknown network '{network}'; known: {', '.join(networks)}")
    run = networks[network]
    labels = run.embedding["labels"]
    _known_category(run, category)
    if sample is not None and not (0 <= sample < len(labels) and labels[sample] == category):
        raise ValueError(f"sample {sample} is none of the {len(labels)} recorded test images, or of another category")
    rows = _mapped(run, sample)
    picture = (network, perplexity, category, sample)
    return _draw_centers(runs, run, *picture, rows, _map(run, rows, perplexity), _pictures(run, data))


def _draw_centers(
    runs: list[Run],
    run: Run,
    network: str,
    perplexity: float,
    category: int,
    sample: int | None,
    rows: np.ndarray,
    place: tuple[np.ndarray, np.ndarray],
    pictures: np.ndarray | None,
) -> Figure:
    xy, stars = place
    classes, embedding = run.settings["data"]["classes"], run.embedding
    centers = analysis.directions(embedding["centers"])
    if sample is None:
        cosine = centers @ centers[category]
        cosine[category] = -np.inf  # a center's nearest is not itself
    else:
        cosine = centers @ analysis.directions(embedding["features"])[sample]
    nearest = np.argsort(-cosine, kind="stable")[: min(NEAREST, np.isfinite(cosine).sum())]
    own = embedding["labels"][rows] == category
    name = _cut(classes[category], 40)
    near = CLASS_COLORS[1]
    with _picture([run], 4.6) as figure:
        ax = figure.add_axes((0.015, 0.13, 0.5, 0.79))
        ax.scatter(*xy[~own].T, s=9, color=PALE, alpha=0.7, linewidth=0)
        ax.scatter(*stars.T, s=28, marker="*", color="#8A8A8A", linewidth=0)
        ax.scatter(*xy[own].T, s=26, color=CLASS_COLORS[0], linewidth=0, zorder=3)
        ax.scatter(*stars[category], s=230, marker="*", color=CLASS_COLORS[0], edgecolor="black", zorder=4)
        for rank, c in enumerate(nearest, 1):
            if c != category:
                ax.scatter(*stars[c], s=110, marker="*", color=near, edgecolor="black", linewidth=0.6, zorder=4)
            ax.annotate(
                str(rank), stars[c], (6, 5), textcoords="offset points", fontweight="bold", fontsize=8, zorder=6
            )
        if sample is not None:
            where = xy[np.flatnonzero(rows == sample)[0]]
            ax.scatter(*where, s=120, facecolor="none", edgecolor=HARD, linewidth=2, zorder=5)
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(True)
        ax.set_title(f"t-SNE of {_cut(network, 28)}, perplexity {perplexity:g}")

        bars = figure.add_axes((0.74, 0.2, 0.23, 0.36))
        color = [CLASS_COLORS[0] if c == category else near for c in nearest]
        bars.barh(range(len(nearest)), cosine[nearest], color=color, height=0.65)
        names = [f"{_cut(classes[c], 24)}  {rank}" for rank, c in enumerate(nearest, 1)]
        bars.set_yticks(range(len(nearest)), names, fontsize=7.5)
        bars.set(ylim=(len(nearest) - 0.4, -0.6), xlim=(min(0, float(cosine[nearest].min())), 1))
        bars.set_xlabel("cosine, in the full space", fontsize=8)
        bars.tick_params(axis="x", labelsize=7)
        bars.grid(axis="y", visible=False)

        top = figure.add_axes((0.535, 0.6, 0.455, 0.32))
        top.axis("off")
        what = "centers nearest to this one" if sample is None else "centers nearest to this sample"
        bars.set_title(what, fontsize=8.5, loc="right")
        guess = None if sample is None else classes[embedding["predictions"][sample]]
        some = [sample] if sample is not None else [int(row) for row in rows[own][:3]]
        for i, row in enumerate(some if pictures is not None else ()):
            _image(top, pictures[row], 1.08 * i, 0)
        lines = textwrap.wrap(classes[category], 26)[:2]
        if sample is not None:
            lines += [f"test image {sample}", "", "predicted:", *textwrap.wrap(guess, 26)[:2]]
        if pictures is None:
            lines += ["", "(images are not in the record)"]
        beside = (1.14, 0) if sample is not None and pictures is not None else (0, 1.04 if pictures is not None else 0)
        top.text(*beside, "\n".join(lines), va="top", fontsize=8, linespacing=1.3)
        top.set(xlim=(0, 3.2), ylim=(1.23, -0.03), aspect="equal", anchor="NW")
        for marker, size, color, label in (
            ("o", 5, CLASS_COLORS[0], "its test images"),
            ("*", 11, CLASS_COLORS[0], "its center"),
            ("*", 8, near, "nearest centers"),
        ):
            edge = "black" if marker == "*" else color
            ax.plot([], [], marker, markersize=size, color=color, markeredgecolor=edge, label=label)
        place = dict(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, columnspacing=1)
        ax.legend(fontsize=7.5, handletextpad=0.1, **place)
    listed = ", ".join(f"{classes[c]} ({cosine[c]:.2f})" for c in nearest)
    subject = f"the center of {name}" if sample is None else f"test image {sample}, {name}, predicted as {guess}"
    figure.alt = (
        f"t-SNE map of {len(rows)} test images and {len(stars)} category centers of {network}, perplexity "
        f"{perplexity:g}. Marked: {subject}. Nearest centers by cosine in the full space: {listed}."
    )
    return figure


# Difficulty: one image after the other.


def difficulty_browser(run: Run) -> Explorer:
    """Which images were hard, and when? Pages of the gallery's images, and `sample_trajectory` of the one chosen.

    Every thumbnail has a button. The gallery holds at most 100 of the training images, spread evenly over γ.
    """
    run = _with_gallery(run)
    spread = _spread(run)
    classes, labels = run.settings["data"]["classes"], run.gallery["labels"]
    found = np.unique(labels)
    controls = {
        "category": ipywidgets.Dropdown(
            options=[(f"all ({len(labels)} images)", None)]
            + [(f"{classes[c]} ({int((labels == c).sum())})", int(c)) for c in found],
            **_about("category", "of the images in the gallery"),
        ),
        "epoch": _epoch_control(len(run.history)),
        "sort": ipywidgets.Dropdown(options=SORTS, **_about("sort", "by γ in the chosen epoch")),
        "page": ipywidgets.Dropdown(options=[1], **_about("page", f"{PAGE_IMAGES} images each")),
    }
    words = ipywidgets.HTML()
    cells = [(ipywidgets.HTML(), ipywidgets.Button(layout={"width": "auto"})) for _ in range(PAGE_IMAGES)]
    boxes = [ipywidgets.VBox(cell) for cell in cells]
    grid = ipywidgets.GridBox(boxes, layout={"grid_template_columns": "repeat(auto-fill, minmax(200px, 1fr))"})
    now: dict[str, Any] = {}

    def turn(name: str, controls: Mapping[str, Any]) -> None:
        category, page = controls["category"].value, controls["page"]
        if name == "category":
            page.options = list(range(1, _pages(run, category) + 1))
        if name in ("category", "sort"):
            page.value = 1
        now["samples"] = _page(run, **{name: control.value for name, control in controls.items()})
        if name != "epoch":
            now["sample"] = int(now["samples"][0])

    def draw(category: int | None, epoch: int, sort: str, page: int) -> Figure:
        label = _page_words(run, category, epoch, sort, page)
        words.value = f'<p role="status" style="line-height: 1.4">{escape(label)}</p>'
        for (picture, button), box, sample in zip(cells, boxes, [*now["samples"], *[None] * PAGE_IMAGES], strict=False):
            box.layout.display = "none" if sample is None else ""
            if sample is not None:
                text, chosen = _sample_label(run, int(sample), epoch), int(sample) == now["sample"]
                button.description = button.tooltip = text
                button.button_style = "info" if chosen else ""
                image = run.gallery["images"][np.flatnonzero(run.gallery["index"] == sample)[0]]
                frame = f"outline: 3px solid {CLASS_COLORS[0] if chosen else 'transparent'}; margin: 4px"
                picture.value = _img(
                    _encoded(_upright(image)), text + ", chosen" * chosen, f"height: 72px; {frame}; {PIXELS}"
                )
        return _draw_trajectory(run, now["sample"], epoch, spread)

    def choose(place: int) -> None:
        now["sample"] = int(now["samples"][place])
        explorer.redraw()

    for place, (_, button) in enumerate(cells):
        button.style.font_size = "11px"
        button.on_click(lambda _, place=place: choose(place))
    turn("category", controls)
    still = lambda **values: difficulty_page(run, **values)  # noqa: E731
    explorer = Explorer(controls, draw, turn, [words, grid], still)
    return explorer


PIXELS = "image-rendering: pixelated"


def difficulty_page(
    run: Run, category: int | None = None, epoch: int | None = None, sort: str = SORTS[0], page: int = 1
) -> Figure:
    """A page of the gallery's images with their γ in an epoch, the last unless said; of one category or of all (None).

    sort: one of `SORTS`; pages count from 1 and hold `PAGE_IMAGES`. Raises ValueError where the run kept no samples or
    no gallery, or for a value that can't be.
    """
    run = _with_gallery(run)
    epoch = len(run.history) if epoch is None else epoch
    samples = _page(run, category, epoch, sort, page)
    places = {int(sample): place for place, sample in enumerate(run.gallery["index"])}
    classes = run.settings["data"]["classes"]
    gamma = run.difficulty[epoch - 1].astype(np.float32)
    texts = [
        f"γ {gamma[i]:.2f}\n" + "\n".join(textwrap.wrap(classes[run.gallery["labels"][places[int(i)]]], 17)[:2])
        for i in samples
    ]
    with _picture([run], 4.15) as figure:
        ax = figure.add_axes((0.01, 0.07, 0.98, 0.85))
        _thumbnails(ax, [run.gallery["images"][places[int(i)]] for i in samples], 6, texts, 1.48, rows=2)
        ax.set_title(f"Training images, {sort}, epoch {epoch}: page {page} of {_pages(run, category)}")
    figure.alt = _page_words(run, category, epoch, sort, page)
    return figure


def sample_trajectory(run: Run, sample: int, epoch: int | None = None) -> Figure:
    """Cross-entropy and γ of a training sample by epoch, before the middle half of all samples. epoch: to be marked.

    sample: its position in the training set. Its image is shown where the gallery has it.
    Raises ValueError where the run kept no samples, or for a sample or epoch that it has not.
    """
    run = _with_samples(run)
    if not 0 <= sample < run.difficulty.shape[1]:
        raise ValueError(f"sample must be 0 to {run.difficulty.shape[1] - 1}, got {sample}")
    if epoch is not None:
        _known_epoch(run, epoch)
    return _draw_trajectory(run, int(sample), epoch, _spread(run))


def _draw_trajectory(run: Run, sample: int, epoch: int | None, spread: dict[str, np.ndarray]) -> Figure:
    epochs, color = run.history["epoch"].to_numpy(), CLASS_COLORS[0]
    name = run.settings["data"]["classes"][int(run.labels[sample])]
    kept = np.flatnonzero(run.gallery["index"] == sample) if run.gallery else []
    values = {
        "cross-entropy (nats)": run.cross_entropy[: len(epochs), sample].astype(np.float32),
        "difficulty γ": run.difficulty[: len(epochs), sample].astype(np.float32),
    }
    with _picture([run], 2.9) as figure:
        ax = figure.add_axes((0.01, 0.38, 0.13, 0.5))
        ax.axis("off")
        if len(kept):
            _image(ax, run.gallery["images"][kept[0]], 0, 0)
        else:
            ax.text(0.5, 0.5, "not in the\ngallery", ha="center", va="center", fontsize=SMALL, color="#777777")
        ax.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", anchor="N")
        below = "\n".join([*textwrap.wrap(name, 16)[:3], f"sample {sample}"])
        figure.text(0.075, 0.49, below, ha="center", va="top", fontsize=7.5)
        for left, (label, of_sample) in zip((0.21, 0.64), values.items(), strict=True):
            ax = figure.add_axes((left, 0.27, 0.35, 0.6))
            dot = "o" if len(epochs) < 3 else None  # one epoch makes no line
            low, middle, high = spread[label]
            ax.fill_between(epochs, low, high, color=PALE, alpha=0.4, linewidth=0, label="all: middle half")
            ax.plot(epochs, middle, color="#888888", linewidth=1.2, marker=dot, label="all: median")
            ax.plot(epochs, of_sample, color=color, marker=dot, label="this sample")
            if label.startswith("difficulty") and "threshold" in run.history:
                ax.plot(epochs, run.history["threshold"], ":", color=INK, linewidth=1.2, label="threshold ε_t")
            if epoch is not None:
                ax.axvline(epoch, color=PALE, linewidth=1, zorder=0)
                ax.plot(epoch, of_sample[epoch - 1], "o", color=color, markersize=6)
            top = 1.12 * max(float(line.get_ydata().max()) for line in ax.lines if len(line.get_xdata()) == len(epochs))
            ax.set_ylim(0, max(1.2, top))
            ax.set_title(label, fontsize=9)
            epoch_axis(ax)
        ax.legend(*ax.get_legend_handles_labels(), loc="best", fontsize=SMALL, labelspacing=0.3, handlelength=1.6)
    ce, gamma = values.values()
    first = f"cross-entropy from {ce[0]:.2f} in epoch 1 to {ce[-1]:.2f} in epoch {len(ce)} nats"
    at = f", γ {gamma[epoch - 1]:.2f} in epoch {epoch}" if epoch is not None else ""
    figure.alt = (
        f"Sample {sample}, {name}: {first}{at}; highest γ {gamma.max():.2f} in epoch {int(gamma.argmax()) + 1}."
    )
    return figure


# Sweeps: accuracy against one factor.


def sweep_explorer(runs: Sequence[Run]) -> Explorer:
    """How does accuracy depend on a factor, and how does training go at each of its values? Redraws `sweep_state`."""
    sweeps = {}
    for factor in FACTORS:
        try:
            sweeps[factor] = swept(runs, [factor])
        except ValueError:
            if factor == list(FACTORS)[-1] and not sweeps:
                swept(runs)  # raises, and names all factors

    def values_of(factor: str) -> list[tuple[str, float]]:
        return [(f"{value:g}", value) for value in sorted(sweeps[factor].points[factor])]

    def follow(name: str, controls: Mapping[str, Any]) -> None:
        if name == "factor":
            controls["value"].options = values_of(controls["factor"].value)
            controls["value"].value = sweeps[controls["factor"].value].default[controls["factor"].value]

    first = next(iter(sweeps))
    controls = {
        "factor": ipywidgets.Dropdown(
            options=[(SYMBOLS[factor], factor) for factor in sweeps],
            **_about("factor", "what is changed, all else kept"),
        ),
        "value": ipywidgets.SelectionSlider(
            options=values_of(first), value=sweeps[first].default[first], continuous_update=False,
            **_about("its value", "one of those measured"),
        ),
    }  # fmt: skip
    return Explorer(controls, lambda factor, value: _draw_sweep(sweeps[factor], factor, value), follow)


def sweep_state(runs: Sequence[Run], factor: str, value: float | None = None) -> Figure:
    """Final accuracy against one factor of `figures.arms.FACTORS`, and accuracy by epoch at one of its measured values,
    the runs' default unless said; which runs are compared says `figures.arms.swept`. ε is that of 240 epochs.

    Raises ValueError for an unknown factor, runs that are no sweep of it, or a value that was not measured.
    """
    if factor not in FACTORS:
        raise ValueError(f"unknown factor '{factor}'; known: {', '.join(FACTORS)}")
    sweep = swept(runs, [factor])
    value = sweep.default[factor] if value is None else value
    if value not in sweep.points[factor]:
        known = ", ".join(f"{value:g}" for value in sorted(sweep.points[factor]))
        raise ValueError(f"{SYMBOLS[factor]} = {value} was not measured; measured: {known}")
    return _draw_sweep(sweep, factor, value)


def _draw_sweep(sweep: Sweep, factor: str, value: float) -> Figure:
    points, symbol, default = sweep.points[factor], SYMBOLS[factor], sweep.default[factor]
    values = sorted(points)
    means = {v: accuracies(seeds).mean() for v, seeds in points.items()}
    references = {title: accuracies(seeds).mean() for title, seeds in sweep.references.items()}
    color = COLORS["PCKD"]
    with _picture(all_of(*points.values(), *sweep.references.values()), 3.9) as figure:
        left, right = figure.add_axes((0.075, 0.27, 0.41, 0.6)), figure.add_axes((0.57, 0.27, 0.41, 0.6))
        x = range(len(values))
        sd = [accuracies(points[v]).std(ddof=1) if len(points[v]) > 1 else 0 for v in values]
        left.errorbar(x, [means[v] for v in values], yerr=sd, color=color, marker="_", markersize=9, linewidth=1.5)
        for place, v in zip(x, values, strict=True):
            left.scatter([place] * len(points[v]), accuracies(points[v]), s=14, color=color, alpha=0.6, linewidth=0)
        left.plot(values.index(value), means[value], "o", markersize=12, markerfacecolor="none", color=INK)
        low, high = left.get_ylim()
        for title, mean in references.items():
            if title == "KD" or mean > low - 0.5 * (high - low):  # one far below would squeeze all else
                left.axhline(mean, color=COLORS[title], dashes=LINES[title], linewidth=1.3)
        left.set_xticks(x, [f"{v:g}" + "\ndefault" * (v == default) for v in values], fontsize=8)
        left.set(xlim=(-0.5, len(values) - 0.5), ylabel="top-1 accuracy (%)")
        as_published = " as over 240 epochs" if factor == "epsilon" else ""
        left.set_xlabel(f"{symbol}{as_published} (not to scale)")
        left.grid(axis="x", visible=False)
        left.set_title("after the last epoch, mean ± sd")
        curves = {f"PCKD, {symbol} = {value:g}": (points[value], dict(color=color))}
        if value != default:
            curves[f"PCKD, {symbol} = {default:g} (default)"] = points[default], dict(color=color, dashes=(1, 1.2))
        for title, seeds in sweep.references.items():
            curves[title] = seeds, dict(color=COLORS[title], dashes=LINES[title])
        for label, (seeds, look) in curves.items():
            by_epoch = np.mean([run.history["test_top1"] for run in seeds.values()], 0)
            dot = "o" if len(by_epoch) < 3 else None
            right.plot(range(1, len(by_epoch) + 1), by_epoch, label=label, marker=dot, **look)
        right.set_title(f"by epoch, at {symbol} = {value:g}")
        epoch_axis(right)
        right.set_ylim(bottom=0)
        right.legend(loc="best", fontsize=7.5)
    chosen = points[value]
    beside = ", ".join(f"{title} {mean:.1f} %" for title, mean in references.items())
    best = max(values, key=means.get)
    figure.alt = (
        f"PCKD with {symbol} = {value:g}{' (the default)' * (value == default)}: {_mean_and_sd(chosen)} top-1, mean "
        f"over {_seeds(chosen)}. Of {len(values)} values from {values[0]:g} to {values[-1]:g} the highest mean is at "
        f"{best:g}: {_mean_and_sd(points[best])}." + (f" Beside it: {beside}." if beside else "")
    )
    return figure


LINES = {"KD": (5, 2), "supervised": (1.5, 1.5)}


def _mean_and_sd(seeds: Seeds) -> str:
    values = accuracies(seeds)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "") + " %"


def _seeds(seeds: Seeds) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


# What several of them share.


@contextmanager
def _picture(runs: list[Run], height: float, note: str = "") -> Iterator[Figure]:
    """An empty figure in our style, its caption under it. No pyplot, and nothing that takes long: a layout engine
    draws twice, titles that look for room measure every tick."""
    with style(), mpl.rc_context({"axes.titley": 1.0}):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure
        figure.runs = runs
        text = textwrap.fill(f"{note} {caption(runs, 2)}".strip() if runs else note, int(WIDTH * 17.5))
        figure.text(0.01, 0.008, text, va="bottom", fontsize=SMALL, color="#777777")


def _png(figure: Figure) -> bytes:
    with style():
        figure.canvas.draw()
    return _encoded(np.asarray(figure.canvas.buffer_rgba())[:, :, :3])


def _encoded(picture: np.ndarray) -> bytes:
    """A PNG of (height, width, 3), uint8."""
    with BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(picture)).save(file, format="png", compress_level=3)
        return file.getvalue()


def _img(png: bytes, alt: str, css: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}" style="{css}">'


def _about(description: str, tooltip: str, width: int = 280) -> dict[str, Any]:
    """What every control has: a label in full, and a tooltip."""
    layout = {"width": f"{width}px", "margin": "2px 16px 2px 2px"}
    return {"description": description, "tooltip": tooltip, "style": {"description_width": "initial"}, "layout": layout}


def _epoch_control(epochs: int) -> ipywidgets.Widget:
    about = _about("epoch", f"1 to {epochs}")
    if epochs == 1:  # a slider needs two places
        return ipywidgets.Dropdown(options=[1], **about)
    return ipywidgets.IntSlider(value=epochs, min=1, max=epochs, continuous_update=False, **about)


def _upright(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) as (height, width, 3); grey gets three equal channels."""
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))


def _image(ax: Axes, image: np.ndarray, x: float, y: float) -> None:
    """An image (channels, height, width), uint8, as a square of 1 × 1 whose upper left corner is x, y."""
    ax.imshow(_upright(image), extent=(x, x + 1, y + 1, y), interpolation="nearest")


def _thumbnails(
    ax: Axes,
    images: Sequence[np.ndarray],
    columns: int,
    texts: Sequence[str],
    height: float,
    frames: Sequence[str] | None = None,
    dashes: Sequence[str] | None = None,
    rows: int | None = None,
) -> None:
    """Images in rows, read like text, each with its text below; a row is about `height` widths of an image high."""
    rows = rows or -(-len(images) // columns)
    high, wide = images[0].shape[1:]
    step, drop = round(1.15 * wide), round(height * high)  # in pixels of the images
    sheet = np.full((rows * drop, columns * step, 3), 255, np.uint8)  # one picture is drawn sooner than twenty
    spots = []
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(place, columns)
        top, left = row * drop, column * step
        sheet[top : top + high, left : left + wide] = _upright(image)
        spots.append((left / wide, top / high))
        ax.text(left / wide + 0.5, top / high + 1.06, text, ha="center", va="top", fontsize=7, linespacing=1.2)
    ax.imshow(sheet, extent=(0, columns * step / wide, rows * drop / high, 0), interpolation="nearest")
    if frames is not None:
        squares = [Rectangle(spot, 1, 1) for spot in spots]
        ax.add_collection(
            PatchCollection(squares, facecolor="none", edgecolor=frames, linestyle=dashes, linewidth=2, zorder=3)
        )
    ax.set(xlim=(-0.05, columns * step / wide - 0.1), ylim=(rows * height, -0.05), aspect="equal", anchor="NW")
    ax.axis("off")


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1].rstrip()}…"


def _own(run: Run, setting: str) -> Any:
    """A setting of the run's method; None where it has none of that name."""
    return run.settings["method"]["settings"].get(setting, {}).get("value")


def _one(run: Run) -> Run:
    if not isinstance(run, Run):
        raise ValueError(f"this widget shows one run, got {type(run).__name__}; load_run(folder) reads one")
    return checked(run, whole_epoch=True)[0]


def _with_samples(run: Run) -> Run:
    run = _one(run)
    if run.cross_entropy is None or run.difficulty is None or run.labels is None:
        raise ValueError(f"the run {run.title} kept no samples (samples.npz): nothing is known of their difficulty")
    return run


def _with_gallery(run: Run) -> Run:
    run = _with_samples(run)
    if run.gallery is None:
        raise ValueError(f"the run {run.title} kept no gallery (gallery.npz): there is no image to show")
    return run


def _with_embedding(runs: Run | Sequence[Run]) -> list[Run]:
    runs = checked(runs)
    for run in runs:
        if run.embedding is None:
            raise ValueError(f"the run {run.title} kept no embedding (embedding.npz): there is nothing to map")
    if len({run.settings["data"]["fingerprint"] for run in runs}) > 1:
        raise ValueError("maps to choose from need runs on the same data")
    return runs


def _known_epoch(run: Run, epoch: int) -> None:
    if epoch not in range(1, len(run.history) + 1):
        raise ValueError(f"epoch must be 1 to {len(run.history)}, got {epoch}")


def _known_category(run: Run, category: int) -> None:
    count = len(run.settings["data"]["classes"])
    if category not in range(count):
        raise ValueError(f"category must be a number from 0 to {count - 1}, got {category}")


def _networks(runs: list[Run]) -> dict[str, Run]:
    """Runs by their labels, with the seed where several share one."""
    labels = [label_of(run, runs) for run in runs]
    names = [
        f"{label}, seed {run.settings['seed']}" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]
    return {
        name if names.count(name) == 1 else f"{name} ({i})": run
        for i, (name, run) in enumerate(zip(names, runs, strict=True), 1)
    }


def _perplexities(run: Run) -> list[int]:
    points = len(_mapped(run)) + len(run.embedding["centers"])
    found = [perplexity for perplexity in PERPLEXITIES if perplexity < points / 3]
    if not found:
        raise ValueError(f"a map needs more than {3 * PERPLEXITIES[0]} test images and centers, got {points}")
    return found


def _mapped(run: Run, sample: int | None = None) -> np.ndarray:
    """Rows of the embedding that a map shows: the first few of every category, and `sample`."""
    labels = run.embedding["labels"]
    count = len(run.embedding["centers"])
    each = max(1, (MAP_POINTS - count) // count)
    rows = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(count)])
    return np.union1d(rows, [] if sample is None else [sample]).astype(int)


def _map(run: Run, rows: np.ndarray, perplexity: float) -> tuple[np.ndarray, np.ndarray]:
    return analysis.embed(run.embedding["features"][rows], run.embedding["centers"], 0, perplexity)


def _pictures(run: Run, data: Dataset | None) -> np.ndarray | None:
    """The test images behind the rows of the embedding, uint8 (N, channels, height, width); None where they can't be
    had without a download. Raises ValueError for `data` on which the run was not trained."""
    about = run.settings["data"]
    if data is None:
        if about["name"] not in NO_DOWNLOAD:
            return None
        data = load_dataset(about["name"], **about["options"])
        if data.fingerprint != about["fingerprint"]:
            return None
    elif data.fingerprint != about["fingerprint"]:
        raise ValueError(f"the runs were not trained on this data: they want {about['name']}, {about['options']}")
    count = len(run.embedding["labels"])
    chosen = torch.linspace(0, about["test_images"] - 1, count).round().long()  # as `recording.embedding` has it
    return torch.cat(list(data.test.read(chosen.split(50)))).cpu().numpy()


def _page(run: Run, category: int | None, epoch: int, sort: str, page: int) -> np.ndarray:
    """Positions in the training set of the images on a page."""
    _known_epoch(run, epoch)
    pages = _pages(run, category)
    if sort not in SORTS:
        raise ValueError(f"unknown sort '{sort}'; known: {', '.join(SORTS)}")
    if page not in range(1, pages + 1):
        raise ValueError(f"page must be 1 to {pages}, got {page}")
    samples = np.sort(run.gallery["index"][_of_category(run, category)])
    gamma = run.difficulty[epoch - 1, samples].astype(np.float32)
    order = {"hardest first": np.argsort(-gamma, kind="stable"), "easiest first": np.argsort(gamma, kind="stable")}
    samples = samples[order[sort]] if sort in order else samples
    return samples[(page - 1) * PAGE_IMAGES : page * PAGE_IMAGES]


def _pages(run: Run, category: int | None) -> int:
    return -(-int(_of_category(run, category).sum()) // PAGE_IMAGES)


def _of_category(run: Run, category: int | None) -> np.ndarray:
    """Which images of the gallery are of a category."""
    labels = run.gallery["labels"]
    if category is None:
        return np.ones(len(labels), bool)
    _known_category(run, category)
    if category not in labels:
        raise ValueError(f"the gallery has no image of {run.settings['data']['classes'][category]} ({category})")
    return labels == category


def _page_words(run: Run, category: int | None, epoch: int, sort: str, page: int) -> str:
    samples = _page(run, category, epoch, sort, page)
    gamma = run.difficulty[epoch - 1, samples].astype(np.float32)
    of = "" if category is None else f" of {run.settings['data']['classes'][category]}"
    among = int(_of_category(run, category).sum())
    first = (page - 1) * PAGE_IMAGES + 1
    return (
        f"Images {first} to {first + len(samples) - 1} of the {among} training images{of} in the gallery, {sort}, "
        f"epoch {epoch}: γ from {gamma.min():.2f} to {gamma.max():.2f}. The gallery has {len(run.gallery['labels'])} "
        f"of all {run.difficulty.shape[1]:,} training images, spread evenly over γ after the last epoch."
    )


def _sample_label(run: Run, sample: int, epoch: int) -> str:
    name = run.settings["data"]["classes"][int(run.labels[sample])]
    return f"sample {sample}: {name}, γ {float(run.difficulty[epoch - 1, sample]):.2f}"


def _spread(run: Run) -> dict[str, np.ndarray]:
    """What `_draw_trajectory` has of all samples: lower quartile, median and upper quartile by epoch, (3, epochs)."""
    both = {"cross-entropy (nats)": run.cross_entropy, "difficulty γ": run.difficulty}
    return {
        name: np.quantile(values[: len(run.history)].astype(np.float32), (0.25, 0.5, 0.75), axis=1)
        for name, values in both.items()
    }

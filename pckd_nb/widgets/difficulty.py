"""Browser of training images by difficulty."""

from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets
import numpy as np

from ..figures.canvas import (
    CLASS_COLORS,
    DARK_GRAY,
    LIGHT_GRAY,
    Drawing,
    as_rgb,
    class_lines,
    draw_thumbnail,
    label_epoch_axis,
)
from ..runs import Run
from .explorer import (
    NONE_OPTION,
    SMALL_FONT,
    Explorer,
    check_category,
    check_epoch,
    check_run,
    control_options,
    control_values,
    epoch_control,
    image_tag,
    new_widget_figure,
    png_bytes,
    thumbnails,
)

SORT_ORDERS = ("hardest first", "easiest first", "by number")
IMAGES_PER_PAGE = 12
PIXELATED_CSS = "image-rendering: pixelated"


def difficulty_browser(run: Run) -> Explorer:
    """Return an explorer that shows which images were hard, and in which epochs.

    It shows pages of images with their γ, and `sample_trajectory` of the chosen image. Each image has a button that
    chooses it. The images are those of the gallery: at most 100 training images, evenly spaced over γ.

    Parameters
    ----------
    run : Run
        With recorded samples and a gallery.

    Returns
    -------
    Explorer

    Raises
    ------
    ValueError
        If the run has no complete epoch, no recorded samples or no gallery.
    """
    run = check_run(run, "samples", "gallery")
    quartiles = _quartiles(run)
    classes, labels = run.settings["data"]["classes"], run.gallery["labels"]
    found = np.unique(labels)
    controls = {
        "category": ipywidgets.Dropdown(
            options=[(f"all ({len(labels)} images)", NONE_OPTION)]
            + [(f"{classes[c]} ({int((labels == c).sum())})", int(c)) for c in found],
            **control_options("category", "category of the images in the gallery"),
        ),
        "epoch": epoch_control(len(run.history)),
        "sort": ipywidgets.Dropdown(
            options=SORT_ORDERS,
            **control_options("sort", "order by γ in the chosen epoch, or by position in the training set"),
        ),
        "page": ipywidgets.Dropdown(options=[1], **control_options("page", f"{IMAGES_PER_PAGE} images per page")),
    }
    sentence = ipywidgets.HTML()
    cells = [(ipywidgets.HTML(), ipywidgets.Button(layout={"width": "auto"})) for _ in range(IMAGES_PER_PAGE)]
    boxes = [ipywidgets.VBox(cell) for cell in cells]
    grid = ipywidgets.GridBox(boxes, layout={"grid_template_columns": "repeat(auto-fill, minmax(250px, 1fr))"})
    state: dict[str, Any] = {}  # the samples of the page, and the chosen one

    def follow(name: str, controls: Mapping[str, Any]) -> None:
        category, page = control_values(controls)["category"], controls["page"]
        if name == "category":
            page.options = list(range(1, _page_count(run, category) + 1))
        if name in ("category", "sort"):
            page.value = 1
        state["samples"] = _page_samples(run, **control_values(controls))
        if name != "epoch":
            state["sample"] = int(state["samples"][0])

    def draw(category: int | None, epoch: int, sort: str, page: int) -> Drawing:
        label = _page_sentence(run, category, epoch, sort, page)
        sentence.value = f'<p role="status" style="line-height: 1.4">{escape(label)}</p>'
        for (picture, button), box, sample in zip(
            cells, boxes, [*state["samples"], *[None] * IMAGES_PER_PAGE], strict=False
        ):
            box.layout.display = "none" if sample is None else ""
            if sample is not None:
                text, chosen = _sample_label(run, int(sample), epoch), int(sample) == state["sample"]
                button.description = button.tooltip = text
                button.button_style = "info" if chosen else ""
                image = run.gallery["images"][np.flatnonzero(run.gallery["index"] == sample)[0]]
                frame = f"outline: 3px solid {CLASS_COLORS[0] if chosen else 'transparent'}; margin: 4px"
                picture.value = image_tag(
                    png_bytes(as_rgb(image)),
                    text + ", chosen" * chosen,
                    f"display: block; height: 72px; {frame}; {PIXELATED_CSS}",
                )
        return _draw_trajectory(run, state["sample"], epoch, quartiles)

    def choose(place: int) -> None:
        state["sample"] = int(state["samples"][place])
        explorer.redraw()

    for place, (_, button) in enumerate(cells):
        button.style.font_size = "11px"
        button.on_click(lambda _, place=place: choose(place))
    follow("category", controls)
    static = lambda **values: difficulty_page(run, **values)  # noqa: E731
    explorer = Explorer(controls, draw, follow, [sentence, grid], static)
    return explorer


def difficulty_page(
    run: Run, category: int | None = None, epoch: int | None = None, sort: str = SORT_ORDERS[0], page: int = 1
) -> Drawing:
    """Draw a page of the gallery's images with their γ in one epoch.

    Parameters
    ----------
    run : Run
        With recorded samples and a gallery.
    category : int, optional
        Show only images of this category. By default, all images.
    epoch : int, optional
        Counted from 1. By default, the last epoch.
    sort : {"hardest first", "easiest first", "by number"}
        The order of the images. "by number" means by their positions in the training set.
    page : int
        Counted from 1. A page has `IMAGES_PER_PAGE` images.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the run has no complete epoch, no recorded samples or no gallery, or if an argument is outside its range.
    """
    run = check_run(run, "samples", "gallery")
    epoch = len(run.history) if epoch is None else epoch
    samples = _page_samples(run, category, epoch, sort, page)
    places = {int(sample): place for place, sample in enumerate(run.gallery["index"])}
    gamma = run.difficulty[epoch - 1].astype(np.float32)
    names = [class_lines(run, i, run.gallery["labels"][places[int(i)]], width=17) for i in samples]
    texts = ["\n".join([f"γ {gamma[i]:.2f}", *name]) for i, name in zip(samples, names, strict=True)]
    height = 1.48 + 0.12 * max(0, *(len(name) - 2 for name in names))  # of a row, relative to that of an image
    with new_widget_figure([run], 4.15) as figure:
        ax = figure.add_axes((0.01, 0.07, 0.98, 0.85))
        thumbnails(ax, [run.gallery["images"][places[int(i)]] for i in samples], 6, texts, height, rows=2)
        ax.set_title(f"Training images, {sort}, epoch {epoch}: page {page} of {_page_count(run, category)}")
    figure.alt = _page_sentence(run, category, epoch, sort, page)
    return figure


def sample_trajectory(run: Run, sample: int, epoch: int | None = None) -> Drawing:
    """Draw cross-entropy and γ of one training sample by epoch.

    Grey shows the median and the middle half of all samples. The image is shown if it is in the gallery.

    Parameters
    ----------
    run : Run
        With recorded samples.
    sample : int
        Position in the training set.
    epoch : int, optional
        Epoch to mark, counted from 1.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If the run has no complete epoch or no recorded samples, or if `sample` or `epoch` is outside its range.
    """
    run = check_run(run, "samples")
    if not 0 <= sample < run.difficulty.shape[1]:
        raise ValueError(f"sample must be 0 to {run.difficulty.shape[1] - 1}, got {sample}")
    if epoch is not None:
        check_epoch(run, epoch)
    return _draw_trajectory(run, int(sample), epoch, _quartiles(run))


def _draw_trajectory(run: Run, sample: int, epoch: int | None, quartiles: dict[str, np.ndarray]) -> Drawing:
    epochs, color = run.history["epoch"].to_numpy(), CLASS_COLORS[0]
    names = class_lines(run, sample, int(run.labels[sample]), width=16, count=3)
    kept = np.flatnonzero(run.gallery["index"] == sample) if run.gallery else np.empty(0, int)
    values = {
        "cross-entropy (nats)": run.cross_entropy[: len(epochs), sample].astype(np.float32),
        "difficulty γ": run.difficulty[: len(epochs), sample].astype(np.float32),
    }
    with new_widget_figure([run], 2.9) as figure:
        ax = figure.add_axes((0.01, 0.38, 0.13, 0.5))
        ax.axis("off")
        if len(kept):
            draw_thumbnail(ax, run.gallery["images"][kept[0]], 0, 0)
        else:
            ax.text(0.5, 0.5, "not in the\ngallery", ha="center", va="center", fontsize=SMALL_FONT, color="#777777")
        ax.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", anchor="N")
        below = "\n".join([*names, f"sample {sample}"])
        figure.text(0.075, 0.49, below, ha="center", va="top", fontsize=7.5)
        for left, (label, of_sample) in zip((0.21, 0.64), values.items(), strict=True):
            ax = figure.add_axes((left, 0.27, 0.35, 0.6))
            dot = "o" if len(epochs) < 3 else None  # short lines are hard to see
            low, middle, high = quartiles[label]
            ax.fill_between(
                epochs, low, high, color=LIGHT_GRAY, alpha=0.4, linewidth=0, label="middle half of all samples"
            )
            ax.plot(epochs, middle, color="#888888", linewidth=1.2, marker=dot, label="median of all samples")
            ax.plot(epochs, of_sample, color=color, marker=dot, label="this sample")
            if label.startswith("difficulty") and "threshold" in run.history:
                ax.plot(epochs, run.history["threshold"], ":", color=DARK_GRAY, linewidth=1.2, label="threshold ε_t")
            if epoch is not None:
                ax.axvline(epoch, color=LIGHT_GRAY, linewidth=1, zorder=0)
                ax.plot(epoch, of_sample[epoch - 1], "o", color=color, markersize=6)
            drawn = [y for x, y in (np.asarray(line.get_data()) for line in ax.lines) if len(x) == len(epochs)]
            ax.set_ylim(0, max(1.2, 1.12 * float(np.max(drawn))))
            ax.set_title(label, fontsize=9)
            label_epoch_axis(ax)
        ax.legend(*ax.get_legend_handles_labels(), loc="best", fontsize=SMALL_FONT, labelspacing=0.3, handlelength=1.6)
    ce, gamma = values.values()
    first = f"cross-entropy from {ce[0]:.2f} nats in epoch 1 to {ce[-1]:.2f} in epoch {len(ce)}"
    at = f", γ {gamma[epoch - 1]:.2f} in epoch {epoch}" if epoch is not None else ""
    highest = f"highest γ {gamma.max():.2f} in epoch {int(gamma.argmax()) + 1}"
    figure.alt = f"Sample {sample}, {_class_text(run, sample)}: {first}{at}; {highest}."
    return figure


def _page_samples(run: Run, category: int | None, epoch: int, sort: str, page: int) -> np.ndarray:
    """Return the positions in the training set of the images on a page."""
    check_epoch(run, epoch)
    pages = _page_count(run, category)
    if sort not in SORT_ORDERS:
        raise ValueError(f"unknown sort '{sort}'; known: {', '.join(SORT_ORDERS)}")
    if page not in range(1, pages + 1):
        raise ValueError(f"page must be 1 to {pages}, got {page}")
    samples = np.sort(run.gallery["index"][_of_category(run, category)])
    gamma = run.difficulty[epoch - 1, samples].astype(np.float32)
    order = {"hardest first": np.argsort(-gamma, kind="stable"), "easiest first": np.argsort(gamma, kind="stable")}
    samples = samples[order[sort]] if sort in order else samples
    return samples[(page - 1) * IMAGES_PER_PAGE : page * IMAGES_PER_PAGE]


def _page_count(run: Run, category: int | None) -> int:
    return -(-int(_of_category(run, category).sum()) // IMAGES_PER_PAGE)


def _of_category(run: Run, category: int | None) -> np.ndarray:
    """Return a mask of the gallery's images that belong to a category. With None, all images belong."""
    labels = run.gallery["labels"]
    if category is None:
        return np.ones(len(labels), bool)
    check_category(run, category)
    if category not in labels:
        raise ValueError(f"the gallery has no image of {run.settings['data']['classes'][category]} ({category})")
    return labels == category


def _page_sentence(run: Run, category: int | None, epoch: int, sort: str, page: int) -> str:
    samples = _page_samples(run, category, epoch, sort, page)
    gamma = run.difficulty[epoch - 1, samples].astype(np.float32)
    of = "" if category is None else f" of {run.settings['data']['classes'][category]}"
    among = int(_of_category(run, category).sum())
    first = (page - 1) * IMAGES_PER_PAGE + 1
    return (
        f"Images {first} to {first + len(samples) - 1} of the {among} training images{of} in the gallery, {sort}, "
        f"epoch {epoch}: γ from {gamma.min():.2f} to {gamma.max():.2f}. The gallery has {len(run.gallery['labels'])} "
        f"of all {run.difficulty.shape[1]:,} training images, evenly spaced over γ in the last epoch."
    )


def _sample_label(run: Run, sample: int, epoch: int) -> str:
    return f"sample {sample}: {_class_text(run, sample)}, γ {float(run.difficulty[epoch - 1, sample]):.2f}"


def _class_text(run: Run, sample: int) -> str:
    """Return the class of a sample, and also its true class if its label is known to be wrong."""
    name, true_class = run.settings["data"]["classes"][int(run.labels[sample])], run.true_class(sample)
    return name if true_class is None else f"{name} (true: {true_class})"


def _quartiles(run: Run) -> dict[str, np.ndarray]:
    """Return lower quartile, median and upper quartile of all samples by epoch, of shape (3, epochs)."""
    both = {"cross-entropy (nats)": run.cross_entropy, "difficulty γ": run.difficulty}
    return {
        name: np.quantile(values[: len(run.history)].astype(np.float32), (0.25, 0.5, 0.75), axis=1)
        for name, values in both.items()
    }

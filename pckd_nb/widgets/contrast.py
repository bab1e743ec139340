"""Explorer of the category center contrast L_CC: which vectors attract and which repel each other."""

from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .. import losses
from ..figures.canvas import CLASS_COLORS, DARK_GRAY, LIGHT_GRAY, Drawing
from .explorer import Explorer, control_options, new_widget_figure

TEMPERATURES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
BATCH_COUNT = 8  # number of toy batches to choose from
ARROW_SCALE = 3  # length of an arrow divided by the length of the gradient step


def contrast_explorer() -> Explorer:
    """Return an explorer that shows how τ and β change the gradients of L_CC, in two dimensions.

    It shows `contrast_state`.

    Returns
    -------
    Explorer
    """
    controls = {
        "temperature": ipywidgets.SelectionSlider(
            options=TEMPERATURES, value=4.0, continuous_update=False,
            **control_options("temperature τ", "small: only the most similar vectors repel; large: all repel equally"),
        ),
        "beta": ipywidgets.FloatSlider(
            value=0.05, min=0, max=0.1, step=0.01, continuous_update=False,
            **control_options("β", "weight of L_CC: scales the gradient"),
        ),
        "batch": ipywidgets.Dropdown(
            options=list(range(1, BATCH_COUNT + 1)), **control_options("batch", "seed of the toy batch")
        ),
    }  # fmt: skip
    return Explorer(controls, contrast_state)


def contrast_batch(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a toy batch: score vectors of three categories with three images each.

    A score vector u holds the products of an embedding with the category centers. Here it has only two numbers instead
    of one per category, so that it can be drawn. Each category has its own point, and its vectors lie around it. The
    student's vectors have twice the standard deviation of the teacher's.

    Parameters
    ----------
    batch : int
        Number of the batch, 1 or more. The same number gives the same batch.

    Returns
    -------
    student : float64 Tensor of shape (9, 2)
        Score vectors u_s.
    teacher : float64 Tensor of shape (9, 2)
        Score vectors u_t.
    labels : int64 Tensor of shape (9,)

    Raises
    ------
    ValueError
        If `batch` is not a whole number, or is less than 1.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> student, teacher, labels = pckd.widgets.contrast_batch(1)
    >>> labels
    tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    """
    if batch != int(batch) or batch < 1:
        raise ValueError(f"batch must be a whole number, 1 or more, got {batch}")
    labels = torch.arange(3).repeat_interleave(3)
    angle = np.pi / 2 + 2 * np.pi / 3 * labels.numpy()
    middle = 1.6 * np.column_stack([np.cos(angle), np.sin(angle)])
    rng = np.random.default_rng(int(batch))
    student, teacher = (torch.from_numpy(middle + sd * rng.standard_normal(middle.shape)) for sd in (0.8, 0.4))
    return student, teacher, labels


def contrast_state(temperature: float = 4.0, beta: float = 0.05, batch: int = 1) -> Drawing:
    r"""Draw the category center contrast L_CC of a toy batch: similarities (left) and gradient steps (right).

    .. math:: u \leftarrow u - \beta \frac{\partial L_{CC}}{\partial u}

    u is a score vector of the student or the teacher, see `contrast_batch`. The left panel shows the similarity a·q/τ
    of each pair of score vectors a and q, ordered by category. Pairs of the same category are positives, and their
    blocks have an outline. The right panel shows the score vectors as points, and the step of every vector as an arrow.
    L_CC is averaged over the images.

    Parameters
    ----------
    temperature : float
        τ, positive.
    beta : float
        β_cc, not negative.
    batch : int
        Number of the toy batch, see `contrast_batch`.

    Returns
    -------
    Drawing

    Raises
    ------
    ValueError
        If an argument is outside its range.
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
    diagonal = np.eye(len(order), dtype=bool)  # a vector is not its own positive
    same = (category[order][:, None] == category[order]) & ~diagonal
    positive, negative = similarity[same].mean(), similarity[~same & ~diagonal].mean()
    longest = float(np.linalg.norm(steps, axis=1).max())

    note = "A toy batch: 3 categories with 3 images each, 2 scores per vector. Loss: losses.category_center_contrast."
    with new_widget_figure([], 4.3, note) as figure:
        ax = figure.add_axes((0.08, 0.13, 0.375, 0.76))
        largest = float(np.abs(similarity[~diagonal]).max())
        shown = np.ma.array(similarity, mask=diagonal)
        image = ax.imshow(shown, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
        count, each = len(order), len(order) // 3
        for c in range(3):
            corner = c * each - 0.5
            ax.add_patch(
                Rectangle((corner, corner), each, each, fill=False, edgecolor=DARK_GRAY, linewidth=2, zorder=3)
            )
            place: dict[str, Any] = dict(va="center", ha="center", fontweight="bold", fontsize=11)
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
                x, y = vectors[chosen].T
                ax.scatter(x, y, s=34, marker=marker, facecolor=face, edgecolor=CLASS_COLORS[c], zorder=3)
        ax.quiver(*vectors.T, *(ARROW_SCALE * steps).T, color=[CLASS_COLORS[c] for c in category], angles="xy",
                  scale_units="xy", scale=1, width=0.006, zorder=2)  # fmt: skip
        ax.axhline(0, color=LIGHT_GRAY, linewidth=0.8, zorder=0)
        ax.axvline(0, color=LIGHT_GRAY, linewidth=0.8, zorder=0)
        ax.set(xlim=(-4.4, 4.4), ylim=(-4.4, 4.4), aspect="equal", anchor="N", xlabel="score 1", ylabel="score 2")
        ax.set_title(f"gradient step −β·∂L_CC/∂u (drawn × {ARROW_SCALE})")
        marks = [Line2D([], [], linestyle="", marker="o", color=CLASS_COLORS[c], label="ABC"[c]) for c in range(3)]
        marks += [
            Line2D([], [], linestyle="", marker="o", color=DARK_GRAY, label="student's u_s"),
            Line2D([], [], linestyle="", marker="s", markerfacecolor="white", color=DARK_GRAY, label="teacher's u_t"),
        ]
        ax.legend(handles=marks, loc="upper right", fontsize=7, handletextpad=0.1, labelspacing=0.25, borderaxespad=0.2)
    figure.alt = (
        f"Toy batch {int(batch)}, τ = {temperature:g}, β = {beta:g}: L_CC is {loss.item():.1f} on average. "
        f"Similarities a·q/τ are {positive:.2f} on average among vectors of the same category ({same.sum() // 2} pairs "
        f"of positives) and {negative:.2f} between categories. The longest step −β·∂L_CC/∂u has length {longest:.3f}."
    )
    return figure

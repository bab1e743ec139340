"""The contrast explorer: similarities and gradients of a toy batch."""

import matplotlib as mpl
import numpy as np
import torch

from pckd_nb import losses, widgets


def test_contrast_draws_similarities_and_true_gradients():
    student, teacher, labels = widgets.contrast_batch(3)
    figure = widgets.contrast_state(2.0, 0.04, 3)
    u = torch.cat([student, teacher]).requires_grad_()
    loss = losses.category_center_contrast_plain(u[:9], u[9:], labels, 2.0).mean()
    (gradient,) = torch.autograd.grad(loss, u)
    (arrows,) = [c for c in figure.axes[2].collections if isinstance(c, mpl.quiver.Quiver)]
    drawn = np.column_stack([arrows.U, arrows.V])
    assert np.allclose(drawn, -0.04 * widgets.ARROW_SCALE * gradient.numpy())
    assert np.allclose(arrows.XY, u.detach().numpy())
    matrix = figure.axes[0].images[0].get_array()
    order = np.argsort(labels.repeat(2).numpy(), kind="stable")
    assert np.allclose(matrix.data, (u @ u.T / 2).detach().numpy()[np.ix_(order, order)])
    assert matrix.mask.sum() == 18 and matrix.mask.diagonal().all()
    outlines = [patch.get_bbox().bounds for patch in figure.axes[0].patches]
    assert outlines == [(start - 0.5, start - 0.5, 6, 6) for start in (0, 6, 12)]
    assert f"L_CC is {loss.item():.1f}" in figure.alt and "45 pairs of positives" in figure.alt


def test_beta_scales_the_arrows_and_each_batch_number_gives_another_batch():
    def arrows(beta):
        return next(c for c in widgets.contrast_state(4, beta, 1).axes[2].collections if hasattr(c, "U")).U

    assert np.allclose(arrows(0.1), 2 * arrows(0.05)) and not arrows(0).any()
    first, again, other = (widgets.contrast_batch(batch)[0] for batch in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)

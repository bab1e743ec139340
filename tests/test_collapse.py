"""Measures of neural collapse, on cases that can be computed by hand."""

import numpy as np
import pytest

from pckd_nb import collapse

FEATURES = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
LABELS = np.array([0, 0, 1, 1])
MEANS = np.array([[3.0, 0.0], [0.0, 3.0]])


def simplex(count, width=None, seed=0):
    """Return the corners of a regular simplex, as rows, in a rotated space."""
    corners = np.eye(count, width or count) - np.eye(count, width or count).mean(0)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(corners.shape[1],) * 2))[0]
    return corners @ rotation


def test_class_means_average_the_features_of_each_class():
    assert np.array_equal(collapse.class_means(FEATURES, LABELS, 2), MEANS)
    found = collapse.class_means(FEATURES[:3], LABELS[:3], 3)
    assert np.array_equal(found, [[3, 0], [0, 2], [np.nan, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 0, 1], "labels must be 4 whole numbers, got int64 of shape (3,)"),
        ([0.0, 0, 1, 1], "labels must be 4 whole numbers, got float64 of shape (4,)"),
        ([0, 0, 1, 2], "labels must be from 0 to 1, got 0 to 2"),
        ([-1, 0, 1, 1], "labels must be from 0 to 1, got -1 to 1"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ValueError) as caught:
        collapse.class_means(FEATURES, np.array(labels), 2)
    assert str(caught.value) == message


def test_variability_by_hand():
    """The covariances are diag(1/2, 1/2) and 9/4·[[1, −1], [−1, 1]]. The latter has the pseudo-inverse of 1/9 · it."""
    found = collapse.variability(FEATURES, LABELS, MEANS)
    assert found == pytest.approx((1 / 18, 1.0, 4.5))


@pytest.mark.parametrize("classes, width", [(3, 8), (6, 4)])
def test_variability_is_the_trace_with_the_pseudo_inverse(classes, width):
    random = np.random.default_rng(1)
    features, labels = random.normal(size=(60, width)), random.integers(0, classes, 60)
    features += 2 * random.normal(size=(classes, width))[labels]
    means = collapse.class_means(features, labels, classes)
    residuals, centred = features - means[labels], means - means.mean(0)
    within, between = residuals.T @ residuals / 60, centred.T @ centred / classes
    found = collapse.variability(features, labels, means)
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / classes
    assert found == pytest.approx((nc1, np.trace(within), np.trace(between)), rel=1e-5)


def test_variability_ignores_directions_in_which_means_do_not_differ_and_the_origin():
    wide = np.hstack([FEATURES, [[7.0], [9.0], [7.0], [9.0]]])
    found = collapse.variability(wide, LABELS, collapse.class_means(wide, LABELS, 2))
    assert found == pytest.approx((1 / 18, 2.0, 4.5))
    moved = collapse.variability(FEATURES + 100, LABELS, MEANS + 100)
    assert moved == pytest.approx((1 / 18, 1.0, 4.5))


def test_variability_of_collapsed_features_is_0_and_of_equal_means_unknown():
    assert collapse.variability(MEANS[LABELS], LABELS, MEANS) == pytest.approx((0, 0, 4.5))
    same = np.array([[1.0, 0.1], [-1.0, 0.1], [2.0, 0.1], [-2.0, 0.1]])
    nc1, within, between = collapse.variability(same, LABELS, collapse.class_means(same, LABELS, 2))
    assert np.isnan(nc1) and within == pytest.approx(2.5) and between == 0


def test_variability_of_one_image_per_class_is_unknown():
    nc1, within, between = collapse.variability(MEANS, np.array([0, 1]), MEANS)
    assert np.isnan(nc1) and within == 0 and between == pytest.approx(4.5)


def test_equinorm_by_hand():
    assert collapse.equinorm([[1, 0], [0, 3]]) == 0.5  # sd 1, mean 2
    assert collapse.equinorm([[0, 2], [2, 0], [-2, 0]]) == 0
    assert np.isnan(collapse.equinorm(np.zeros((2, 2))))


def test_angles_by_hand():
    vectors = [[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]  # cosines 0, −1 and 0
    assert collapse.equiangularity(vectors) == pytest.approx(np.sqrt(2) / 3)
    assert collapse.max_angle(vectors) == pytest.approx(0.5)  # all cosines are 1/2 away from −1/2
    assert collapse.max_angle(np.eye(3)) == pytest.approx(0.5) and collapse.equiangularity(np.eye(3)) == 0
    assert np.isnan(collapse.max_angle([[1.0, 2.0]])) and np.isnan(collapse.equiangularity([[1.0, 2.0]]))
    assert collapse.max_angle([[0.0, 0.0], [1.0, 0.0]]) == 1  # cosine 0 instead of −1


@pytest.mark.parametrize("count, width", [(3, 3), (5, 9)])
def test_a_simplex_is_collapsed(count, width):
    corners = 4 * simplex(count, width)
    assert collapse.equinorm(corners) == pytest.approx(0, abs=1e-12)
    assert collapse.equiangularity(corners) == pytest.approx(0, abs=1e-12)
    assert collapse.max_angle(corners) == pytest.approx(0, abs=1e-12)


def test_self_duality_compares_directions_of_centers_and_centred_means():
    corners = simplex(4)
    assert collapse.self_duality(0.1 * corners, 7 * corners + 3) == pytest.approx(0, abs=1e-12)
    assert collapse.self_duality(-corners, corners) == pytest.approx(2)
    assert collapse.self_duality([[1, 1], [-1, -1]], [[1, -1], [-1, 1]]) == pytest.approx(np.sqrt(2))
    assert np.isnan(collapse.self_duality(np.zeros((2, 2)), MEANS)) and np.isnan(
        collapse.self_duality(MEANS, MEANS * 0)
    )
    with pytest.raises(ValueError, match=r"must have the same shape, got \(2, 2\) and \(3, 2\)"):
        collapse.self_duality(MEANS, np.ones((3, 2)))


def test_nearest_mean_by_hand():
    means = np.array([[0.0, 0.0], [np.nan, np.nan], [4.0, 0.0]])
    features = np.array([[1.9, 5.0], [2.1, -5.0], [9.0, 9.0], [2.0, 0.0]])  # the last one is equally near to both
    assert collapse.nearest_mean(features, means).tolist() == [0, 2, 2, 0]
    assert collapse.nearest_mean_agreement(features, means, np.array([0, 2, 0, 1])) == 50


def test_all_measures_leave_out_classes_without_images():
    centers = np.array([[1.0, -1.0], [5.0, 5.0], [-1.0, 1.0]])
    labels = 2 * LABELS
    means = collapse.class_means(FEATURES, labels, 3)
    found = collapse.collapse_measures(FEATURES, labels, labels, centers, means)
    assert tuple(found) == collapse.MEASURES
    assert [found[name] for name in ("nc1", "within_variance", "between_variance")] == pytest.approx([1 / 18, 1, 4.5])
    assert [value for name, value in found.items() if name.startswith("nc2")] == pytest.approx([0] * 6)
    assert found["nc3"] == pytest.approx(0, abs=1e-7) and found["nc4"] == 100


@pytest.mark.parametrize("measure", [collapse.equinorm, collapse.equiangularity, collapse.max_angle])
@pytest.mark.parametrize("wrong", [np.ones(3), np.array([[np.nan, 1.0]]), [["a", "b"]]])
def test_vectors_that_are_no_finite_matrix_are_refused(measure, wrong):
    with pytest.raises(ValueError, match="^vectors must be "):
        measure(wrong)

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from pckd_nb import analysis


@pytest.fixture
def clusters():
    """Features (90, 8) in three well separated positive clusters, and their centers (3, 8), far from the features."""
    random = np.random.default_rng(0)
    centers = np.eye(3, 8)
    labels = np.repeat([0, 1, 2], 30)
    return 5 + 4 * centers[labels] + 0.3 * random.random((90, 8)), centers, labels


def test_a_center_lands_in_its_class(clusters):
    features, centers, labels = clusters
    xy, xy_centers = analysis.embed(features.astype(np.float16), centers, perplexity=20)
    assert xy.shape == (90, 2) and xy_centers.shape == (3, 2)
    means = np.stack([xy[labels == c].mean(0) for c in range(3)])
    nearest = np.linalg.norm(xy_centers[:, None] - means, axis=2).argmin(1)
    assert nearest.tolist() == [0, 1, 2]


def test_the_same_seed_gives_the_same_map(clusters):
    features, centers, _ = clusters
    first, again = (analysis.embed(features, centers, seed=3, perplexity=10)[0] for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("perplexity", [31, 93, 0])
def test_perplexity_must_suit_the_points(clusters, perplexity):
    features, centers, _ = clusters  # 93 points
    with pytest.raises(ValueError, match="third of the 93 points"):
        analysis.embed(features, centers, perplexity=perplexity)


def test_centers_of_another_width_are_refused(clusters):
    with pytest.raises(ValueError, match="width 8, centers 4"):
        analysis.embed(clusters[0], np.eye(3, 4))


def test_purity_is_1_for_clusters_and_chance_for_shuffled_labels(clusters):
    features, _, labels = clusters
    assert analysis.neighbourhood_purity(features, labels) == 1
    shuffled = np.random.default_rng(1).permutation(labels)
    assert analysis.neighbourhood_purity(features, shuffled) == pytest.approx(1 / 3, abs=0.1)
    with pytest.raises(ValueError, match="k must be"):
        analysis.neighbourhood_purity(features, labels, k=90)


def test_purity_does_not_count_a_sample_as_its_own_neighbour():
    features, labels = np.array([[0.0, 1], [0, 1.1], [1, 0], [1.1, 0]]), np.array([0, 1, 0, 1])
    assert analysis.neighbourhood_purity(features, labels, k=1) == 0


def fake_run(gamma, truth, epochs):
    return SimpleNamespace(
        title="PCKD resnet8",
        settings={"data": {"name": "mine"}},
        history=pd.DataFrame({"epoch": range(1, epochs + 1)}),
        difficulty=gamma,
        ground_truth=truth,
    )


def test_difficulty_vs_truth_reads_the_last_whole_epoch():
    truth = np.linspace(0, 1, 20, dtype=np.float16)
    rising, falling = np.arange(20.0), -np.arange(20.0)
    gamma = np.stack([falling, rising**3, np.full(20, np.nan)]).astype(np.float16)  # the third epoch was cut
    assert analysis.difficulty_vs_truth(fake_run(gamma, truth, epochs=2)) == pytest.approx(1)
    assert analysis.difficulty_vs_truth(fake_run(gamma, truth, epochs=1)) == pytest.approx(-1)
    with pytest.raises(ValueError, match="no whole epoch"):
        analysis.difficulty_vs_truth(fake_run(gamma, truth, epochs=0))
    with pytest.raises(ValueError, match="mine images is not known"):
        analysis.difficulty_vs_truth(fake_run(gamma, None, epochs=2))


def test_center_similarity_is_cosine_seen_from_the_mean():
    centers = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    expected = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]
    assert np.allclose(analysis.center_similarity(centers), expected)
    assert np.allclose(analysis.center_similarity(centers + 100), expected, atol=1e-4)


def test_center_agreement_ignores_rotation_shift_and_width():
    random = np.random.default_rng(0)
    centers = random.normal(size=(20, 6))
    rotation, _ = np.linalg.qr(random.normal(size=(6, 6)))
    wider = np.hstack([3 * centers @ rotation + 1, np.ones((20, 4))])
    assert analysis.center_agreement(centers, wider) == pytest.approx(1, abs=1e-5)
    assert abs(analysis.center_agreement(centers, random.normal(size=(20, 6)))) < 0.3
    with pytest.raises(ValueError, match="got 20 and 19"):
        analysis.center_agreement(centers, centers[:19])


def test_summaries_agree_with_scipy():
    values = [70.1, 72.4, 69.0, 71.3]
    found = analysis.summarise(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert found == pytest.approx((np.mean(values), np.std(values, ddof=1), low, high, 4))
    assert str(found) == f"{found.mean:.1f} ± {found.sd:.1f} [{found.low:.1f}, {found.high:.1f}]"


def test_one_measurement_has_no_spread():
    found = analysis.summarise([70.0])
    assert found.mean == 70 and found.count == 1 and np.isnan([found.sd, found.low, found.high]).all()
    assert str(found) == "70.0 (one seed)"


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_nothing_to_summarise(values):
    with pytest.raises(ValueError, match="finite measurement"):
        analysis.summarise(values)


def test_pairs_share_their_seeds():
    a, b = {0: 70.0, 1: 60.0, 2: 80.0, 7: 0.0}, {0: 69.0, 1: 59.5, 2: 78.5, 8: 100.0}
    assert analysis.paired_difference(a, b) == analysis.summarise([1.0, 0.5, 1.5])
    with pytest.raises(ValueError, match="no seed in common"):
        analysis.paired_difference({0: 1.0}, {1: 1.0})

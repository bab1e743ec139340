import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import openTSNE
import pandas as pd
import pytest
import scipy.stats
import torch
from PIL import Image
from torch import nn

import pckd_nb as pckd
from pckd_nb import Dataset, analysis


@pytest.fixture
def clusters():
    """Positive features (90, 8) in three well separated clusters, and centers (3, 8) that are far from the features."""
    random = np.random.default_rng(0)
    centers = np.eye(3, 8)
    labels = np.repeat([0, 1, 2], 30)
    return 5 + 4 * centers[labels] + 0.3 * random.random((90, 8)), centers, labels


def test_each_center_is_placed_within_its_class(clusters):
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


@pytest.mark.slow
def test_maps_use_exact_neighbours_for_any_number_of_points():
    """openTSNE's default for more than 1000 points is approximate and depends on the number of cores."""
    random = np.random.default_rng(0)
    features, centers = random.random((1000, 8)), random.random((5, 8))
    together = np.concatenate([analysis.directions(features), analysis.directions(centers)])
    exact, approximate = (
        np.asarray(openTSNE.TSNE(perplexity=20, neighbors=method, random_state=0, n_jobs=1).fit(together))
        for method in ("exact", "auto")
    )
    found = np.concatenate(analysis.embed(features, centers, perplexity=20))
    assert np.array_equal(found, exact.astype("float32")) and not np.allclose(found, approximate)


def test_embed_centers_requires_30_centers():
    centers = 10 * np.repeat(np.eye(4, 8), 10, axis=0) + np.random.default_rng(0).random((40, 8))
    xy = analysis.embed_centers(centers, seed=1)
    assert xy.shape == (40, 2) and np.array_equal(xy, analysis.embed_centers(centers, seed=1))
    assert analysis.neighbourhood_purity(np.hstack([xy, xy]), np.repeat(range(4), 10), 3) > 0.9
    with pytest.raises(ValueError, match="30 or more, got 29"):
        analysis.embed_centers(centers[:29])


@pytest.mark.parametrize("perplexity", [31, 93, 0])
def test_perplexity_must_be_below_a_third_of_the_points(clusters, perplexity):
    features, centers, _ = clusters  # 93 points
    with pytest.raises(ValueError, match="third of the 93 points"):
        analysis.embed(features, centers, perplexity=perplexity)


def test_centers_of_another_width_are_refused(clusters):
    with pytest.raises(ValueError, match="width 8, but centers have width 4"):
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


def test_chance_purity_matches_shuffled_labels(clusters):
    features, _, labels = clusters
    assert analysis.chance_purity([0, 0, 0]) == 1 and analysis.chance_purity(["a", "b"]) == 0
    assert analysis.chance_purity(np.repeat(range(10), 10)) == pytest.approx(9 / 99)
    uneven = np.where(labels == 2, 1, labels)
    shuffled = [np.random.default_rng(seed).permutation(uneven) for seed in range(50)]
    mean = np.mean([analysis.neighbourhood_purity(features, each) for each in shuffled])
    assert analysis.chance_purity(uneven) == pytest.approx(mean, abs=0.02)
    with pytest.raises(ValueError, match="two labels or more"):
        analysis.chance_purity([0])


def fake_run(gamma, truth, epochs):
    return SimpleNamespace(
        title="PCKD resnet8",
        settings={"data": {"name": "mine"}},
        history=pd.DataFrame({"epoch": range(1, epochs + 1)}),
        difficulty=gamma,
        ground_truth=truth,
    )


def test_difficulty_vs_truth_uses_the_last_complete_epoch():
    truth = np.linspace(0, 1, 20, dtype=np.float16)
    rising, falling = np.arange(20.0), -np.arange(20.0)
    gamma = np.stack([falling, rising**3, np.full(20, np.nan)]).astype(np.float16)  # the third epoch is incomplete
    assert analysis.difficulty_vs_truth(fake_run(gamma, truth, epochs=2)) == pytest.approx(1)
    assert analysis.difficulty_vs_truth(fake_run(gamma, truth, epochs=1)) == pytest.approx(-1)
    with pytest.raises(ValueError, match="no complete epoch"):
        analysis.difficulty_vs_truth(fake_run(gamma, truth, epochs=0))
    with pytest.raises(ValueError, match="mine images is not known"):
        analysis.difficulty_vs_truth(fake_run(gamma, None, epochs=2))


def test_kinds_of_samples_follow_their_definitions():
    low, high = 0.1, 3.0
    # of eight epochs, the last two thirds start with the third, the first half ends with the fourth,
    # and the last quarter starts with the seventh
    ce = {
        "learned early": [[low] * 8, [high, high] + [low] * 6],
        "learned late": [[high] * 4 + [low] * 4, [high] * 4 + [low, high, low, low]],
        "never learned": [[high] * 8, [0.7] * 8],  # ln 2 is 0.693
        None: [[high] * 3 + [low] * 5, [high] * 7 + [low], [low] * 7 + [high], [low, high] * 4],
    }
    kinds = [kind for kind, rows in ce.items() for _ in rows]
    table = np.array([row for rows in ce.values() for row in rows], np.float16).T
    table = np.vstack([table, np.full((2, len(kinds)), np.nan)])  # two epochs that training did not reach
    run = SimpleNamespace(title="KD resnet8", cross_entropy=table, history=pd.DataFrame({"epoch": range(1, 9)}))
    found = analysis.kinds_of_samples(run)
    assert tuple(found) == analysis.SAMPLE_KINDS
    assert {kind: rows.tolist() for kind, rows in found.items()} == {
        kind: [i for i, each in enumerate(kinds) if each == kind] for kind in analysis.SAMPLE_KINDS
    }


@pytest.mark.parametrize("epochs", range(2, 13))
def test_a_sample_has_at_most_one_kind(epochs):
    trajectories = np.array(np.meshgrid(*[[0.1, 3.0]] * epochs)).reshape(epochs, -1)  # all possible trajectories
    run = SimpleNamespace(title="KD", cross_entropy=trajectories, history=pd.DataFrame({"epoch": range(1, epochs + 1)}))
    found = np.concatenate(list(analysis.kinds_of_samples(run).values()))
    assert len(found) == len(set(found)) > 2


def test_kinds_of_samples_require_epochs_and_samples():
    run = SimpleNamespace(title="KD", cross_entropy=np.zeros((3, 4)), history=pd.DataFrame({"epoch": [1]}))
    with pytest.raises(ValueError, match="the run KD has 1 complete epoch"):
        analysis.kinds_of_samples(run)
    with pytest.raises(ValueError, match="the run KD has no recorded samples"):
        analysis.kinds_of_samples(
            SimpleNamespace(title="KD", cross_entropy=None, history=pd.DataFrame({"epoch": [1, 2]}))
        )


def test_center_similarity_is_the_cosine_of_centered_vectors():
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


def test_center_cka_ignores_rotation_shift_and_width():
    random = np.random.default_rng(0)
    centers = random.normal(size=(60, 6))
    rotation, _ = np.linalg.qr(random.normal(size=(6, 6)))
    wider = np.hstack([3 * centers @ rotation + 1, np.ones((60, 4))])
    assert analysis.center_cka(centers, wider) == pytest.approx(1)
    other = random.normal(size=(60, 6))
    a, b = (x - x.mean(0) for x in (centers, other))
    by_samples = np.sum((a @ a.T) * (b @ b.T)) / np.linalg.norm(a @ a.T) / np.linalg.norm(b @ b.T)
    assert analysis.center_cka(centers, other) == pytest.approx(by_samples) and by_samples < 0.4
    with pytest.raises(ValueError, match="got 60 and 59"):
        analysis.center_cka(centers, centers[:59])


def test_logit_correlation_matches_numpy_on_logits_with_bias():
    random = np.random.default_rng(0)
    features, centers, bias = random.random((50, 6)), random.normal(size=(4, 6)), random.normal(size=4)
    expected = np.corrcoef(features @ centers.T + bias, rowvar=False)
    assert np.allclose(analysis.logit_correlation(features, centers), expected)


def test_a_constant_logit_has_zero_correlation():
    features = np.random.default_rng(0).random((50, 6)).astype(np.float16)
    found = analysis.logit_correlation(features, np.vstack([np.eye(2, 6), np.zeros((1, 6)), -np.eye(1, 6)]))
    assert found[2].tolist() == [0, 0, 1, 0] and found[0, 3] == pytest.approx(-1)
    for wrong in (features[:1], features[:, :5]):
        with pytest.raises(ValueError, match="centers' width 6"):
            analysis.logit_correlation(wrong, np.eye(2, 6))


def test_difference_of_pairs_leaves_out_the_diagonal():
    a = np.array([[9.0, 1, 2], [1, 9, 3], [2, 3, 9]])
    assert analysis.difference_of_pairs(a, 2 * a - 8 * np.eye(3)) == pytest.approx((2, 1))
    mean, correlation = analysis.difference_of_pairs(a, np.ones((3, 3)))
    assert mean == pytest.approx(1) and np.isnan(correlation)
    with pytest.raises(ValueError, match="same shape, for 2 classes or more"):
        analysis.difference_of_pairs(a, a[:2, :2])


def test_summaries_agree_with_scipy():
    values = [70.1, 72.4, 69.0, 71.3]
    found = analysis.summarise(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert found == pytest.approx((np.mean(values), np.std(values, ddof=1), low, high, 4))
    assert str(found) == f"{found.mean:.1f} ± {found.sd:.1f} [{found.low:.1f}, {found.high:.1f}]"


def test_a_single_value_has_no_spread():
    found = analysis.summarise([70.0])
    assert found.mean == 70 and found.count == 1 and np.isnan([found.sd, found.low, found.high]).all()
    assert str(found) == "70.0 (one seed)"


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_summarise_requires_finite_values(values):
    with pytest.raises(ValueError, match="non-empty list of finite numbers"):
        analysis.summarise(values)


def test_paired_difference_uses_common_seeds():
    a, b = {0: 70.0, 1: 60.0, 2: 80.0, 7: 0.0}, {0: 69.0, 1: 59.5, 2: 78.5, 8: 100.0}
    assert analysis.paired_difference(a, b) == analysis.summarise([1.0, 0.5, 1.5])
    with pytest.raises(ValueError, match="no seed in common"):
        analysis.paired_difference({0: 1.0}, {1: 1.0})


def test_p_value_is_that_of_the_paired_t_test():
    a, b = [70.1, 72.4, 69.0, 71.3], [69.0, 71.9, 69.2, 70.0]
    found = analysis.paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    assert found.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    assert analysis.summarise([1.0, 2.0, 3.0]).p_value == pytest.approx(0.0742, abs=5e-5)  # t = 2·√3 with 2 degrees
    assert analysis.summarise([-1.0, -2.0, -3.0]).p_value == analysis.summarise([1.0, 2.0, 3.0]).p_value
    assert analysis.summarise([-1.0, 1.0]).p_value == 1


@pytest.mark.parametrize("level", [0.95, 0.6])
def test_p_value_agrees_with_the_interval(level):
    random = np.random.default_rng(0)
    excluded = 0
    for values in random.normal(1, 1, (200, 4)):
        found = analysis.summarise(values, level)
        assert (found.p_value < 1 - level) == (found.low > 0 or found.high < 0)
        excluded += found.p_value < 1 - level
    assert 20 < excluded < 180


def test_without_spread_there_is_no_p_value():
    assert np.isnan(analysis.summarise([1.0]).p_value)
    # 70.3 − 69.2 and 72.4 − 71.3 differ in the last bits
    differences = analysis.paired_difference({0: 70.3, 1: 72.4}, {0: 69.2, 1: 71.3})
    assert differences.sd > 0 and np.isnan(differences.p_value)
    assert np.isnan(analysis.summarise([0.0, 0.0]).p_value)


def test_holm_by_hand():
    # in ascending order: 4·0.005, 3·0.01, 2·0.03, and 0.04, which must not be below 0.06
    assert analysis.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert analysis.holm([0.4, 0.6]) == pytest.approx([0.8, 0.8]) and analysis.holm([0.6, 0.7]).tolist() == [1, 1]
    assert analysis.holm([0.02]).tolist() == [0.02] and len(analysis.holm([])) == 0


def test_holm_leaves_out_what_was_not_tested():
    found = analysis.holm(pd.Series([0.02, np.nan, 0.01]))
    assert found[[0, 2]] == pytest.approx([0.02, 0.02]) and np.isnan(found[1])
    assert np.isnan(analysis.holm([np.nan, np.nan])).all()


def test_holm_does_not_change_its_argument():
    given = np.array([0.01, 0.04])
    assert analysis.holm(given).tolist() == [0.02, 0.04] and given.tolist() == [0.01, 0.04]


def test_mcnemar_by_hand():
    assert analysis.mcnemar(1, 5) == analysis.mcnemar(5, 1) == 2 * (1 + 6) / 2**6
    assert analysis.mcnemar(0, 8) == 2 / 2**8
    assert analysis.mcnemar(0, 0) == analysis.mcnemar(3, 3) == 1


class ReadsPixels(nn.Sequential):
    """A network that predicts the class of the brightest pixel in one of the two rows of an image."""

    def __init__(self, row):
        super().__init__(nn.Flatten(), nn.Linear(6, 3, bias=False))
        self[1].weight.data = torch.eye(6)[3 * row : 3 * row + 3]


@pytest.fixture
def read_twice():
    """Images of three classes whose rows have the predictions of two networks. There is no image of class 2."""
    #        both right      only a     only b  both wrong, same, and not the same
    labels = [0, 0, 1] + [0, 0, 0, 0] + [1] + [1, 1]
    first = [0, 0, 1] + [0, 0, 0, 0] + [2] + [0, 0]
    second = [0, 0, 1] + [1, 1, 2, 2] + [1] + [0, 2]
    images = 255 * torch.stack([nn.functional.one_hot(torch.tensor(row), 3) for row in (first, second)], 1)[:, None]
    split = images.to(torch.uint8), torch.tensor(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal images in both splits, and a class without images
        return Dataset.from_arrays(split, split, classes=("cat", "dog", "owl"), mean=(0.5,), std=(0.5,), name="pixels")


def test_agreement_by_hand(read_twice):
    found = analysis.agreement(ReadsPixels(0), ReadsPixels(1), read_twice, accelerator="cpu", precision="32-true")
    assert found.counts.to_dict() == {"both right": 3, "only a": 4, "only b": 1, "both wrong": 2}
    assert found.p_value == 2 * (1 + 5) / 2**5 and found.same_prediction == 40
    assert found.samples["outcome"].tolist() == np.repeat(analysis.OUTCOMES, [3, 4, 1, 2]).tolist()
    assert found.samples.loc[3, ["label", "a", "b"]].tolist() == [0, 0, 1] and "id" not in found.samples
    cat, dog, owl = found.classes.to_dict("records")
    assert cat == {"class": "cat", "images": 6, "a": 100, "b": pytest.approx(100 / 3), "only_a": 4, "only_b": 0,
                   "difference": pytest.approx(200 / 3), "p": 2 / 2**4, "p_holm": 2 * 2 / 2**4}  # fmt: skip
    assert (dog["images"], dog["a"], dog["b"], dog["p"], dog["p_holm"]) == (4, 25, 50, 1, 1)
    assert owl["images"] == owl["only_a"] == 0 and np.isnan([owl[name] for name in ("a", "difference", "p")]).all()


def test_agreement_is_symmetric(read_twice):
    one, other = ReadsPixels(0), ReadsPixels(1)
    found, swapped = analysis.agreement(one, other, read_twice), analysis.agreement(other, one, read_twice)
    assert found.counts.tolist() == swapped.counts[["both right", "only b", "only a", "both wrong"]].tolist()
    assert found.p_value == swapped.p_value and found.classes["p_holm"].equals(swapped.classes["p_holm"])
    assert found.classes["difference"].equals(-swapped.classes["difference"])
    same = analysis.agreement(one, one, read_twice)
    assert same.same_prediction == 100 and same.p_value == 1 and same.counts[["only a", "only b"]].sum() == 0


def test_agreement_keeps_the_names_of_images(read_twice):
    names = [f"{number}.png" for number in range(len(read_twice.test))]
    test = dataclasses.replace(read_twice.test, ids=np.array(names))
    found = analysis.agreement(ReadsPixels(0), ReadsPixels(1), dataclasses.replace(read_twice, test=test))
    assert found.samples["id"].tolist() == names


@pytest.fixture
def photos(tmp_path):
    """A folder data set whose images have different sizes, one of them in 16-bit grey."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (16 + number, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    grey = random.integers(0, 60_000, (16, 16), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "photos" / "test" / "dog" / "0.png")
    return tmp_path / "photos"


def test_predictions_of_a_folder_are_those_of_the_same_images_as_a_data_set(photos):
    data = pckd.load_dataset(f"folder:{photos}", image_size=16)
    run = pckd.fit("resnet8", data, epochs=2, batch_size=3, progress=False, precision="32-true")
    found = analysis.predict_folder(run, photos / "test", workers=0, precision="32-true")
    p = pckd.predict(run, data, precision="32-true").logits.double().softmax(1).numpy()
    assert found["file"].tolist() == [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    assert found["class"].tolist() == [data.classes[label] for label in p.argmax(1)]
    assert found["second"].tolist() == [data.classes[label] for label in p.argmin(1)]
    assert found["confidence"].to_numpy() == pytest.approx(p.max(1), abs=1e-5)
    assert found["entropy"].to_numpy() == pytest.approx(-(p * np.log(p)).sum(1), abs=1e-5)
    (photos / "test" / "cat" / "0.png").write_text("no image")
    with pytest.raises(OSError, match=r"cannot read the image .*cat/0\.png \(it is not an image\): replace it"):
        analysis.predict_folder(run, photos / "test", workers=0)
    (photos / "new").mkdir()
    (photos / "new" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="has no images: put files there.*without an image extension"):
        analysis.predict_folder(run, photos / "new")


def test_a_network_for_grey_images_predicts_coloured_ones(tmp_path):
    data = pckd.load_dataset("digits", train_size=100, test_size=20)
    run = pckd.fit("resnet8", data, epochs=2, batch_size=20, progress=False, precision="32-true")
    for number, pixels in enumerate(data.test.images.numpy()):
        Image.fromarray(np.stack([pixels[0]] * 3, 2)).save(tmp_path / f"{number:02}.png")
    found = analysis.predict_folder(run, tmp_path, workers=0, precision="32-true")
    predicted = pckd.predict(run, data, precision="32-true").logits.argmax(1)
    assert found["class"].tolist() == [data.classes[label] for label in predicted]


def test_only_runs_on_square_grey_or_rgb_images_predict_a_folder(tmp_path):
    images = torch.zeros(8, 3, 8, 16, dtype=torch.uint8).random_(generator=torch.Generator().manual_seed(0))
    data = Dataset.from_arrays((images, torch.arange(8) % 2), (images[:4] + 1, torch.arange(4) % 2))
    run = pckd.fit("resnet8", data, epochs=1, batch_size=4, progress=False)
    with pytest.raises(ValueError, match="was trained on images of 3×8×16: image files can only be read as square"):
        analysis.predict_folder(run, tmp_path)


# ---------------------------------------------------------------------------------------------------- attribution


def test_grad_cam_of_a_resnet_is_its_class_activation_map():
    """The last map of a resnet is averaged to the features. So α_k is w_ck / (hw), as in Zhou et al., CVPR 2016."""
    data = pckd.load_dataset("digits", train_size=40, test_size=20)
    model = pckd.create_model("resnet8", data, seed=0)
    rows, classes = [3, 0, 7], [1, 9, 4]
    found = analysis.grad_cam(model, data, rows, classes)
    x = pckd.views.normalise(data.test.images[rows], torch.tensor(data.mean), torch.tensor(data.std))
    with torch.no_grad():
        (last,) = pckd.models.FeatureMaps(model, x[:1], kind="last")(model.eval(), x).maps
        expected = (model.head.weight[classes][:, :, None, None] * last).sum(1, keepdim=True).relu()
        expected = nn.functional.interpolate(expected, data.size, mode="bilinear", align_corners=False)[:, 0]
    expected /= expected.amax((1, 2), keepdim=True)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.max((1, 2)) == pytest.approx(1) and found.min() >= 0


def test_grad_cam_takes_the_correct_classes_and_leaves_the_network_as_it_was():
    data = pckd.load_dataset("digits", train_size=40, test_size=20)
    model = pckd.create_model("vgg8", data, seed=0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = np.arange(5)
    labels = data.test.labels[:5].tolist()
    assert np.array_equal(analysis.grad_cam(model, data, rows), analysis.grad_cam(model, data, rows, labels))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert analysis.grad_cam(model, data, [39], split="train").shape == (1, 16, 16)
    with torch.no_grad():
        assert analysis.grad_cam(model, data, [0]).shape == (1, 16, 16)
    other = pckd.load_dataset("shapes100", train_size=100, test_size=100)
    with pytest.raises(ValueError, match="the network has 10 classes, but shapes100 has 100"):
        analysis.grad_cam(model, other, [0])
    for rows, classes, message in (
        ([20], None, "rows must be from 0 to 19, got 20 to 20"),
        ([-1, 3], None, "rows must be from 0 to 19, got -1 to 3"),
        ([0], [0, 1], "there must be one class per image, got 1 images and 2 classes"),
        ([0], [10], "classes must be from 0 to 9, got 10 to 10"),
    ):
        with pytest.raises(ValueError, match=message):
            analysis.grad_cam(model, data, rows, classes)


def test_grad_cam_figure_has_one_row_per_network():
    data = pckd.load_dataset("digits", train_size=40, test_size=20)
    runs = [pckd.fit(name, data, epochs=1, progress=False) for name in ("resnet8", "resnet14")]
    figure = pckd.figures.grad_cam(runs, data, [4, 2, 11])
    axes = np.array(figure.axes).reshape(3, 3)
    titles = [ax.get_title(loc="center") or ax.get_title() for ax in axes[0]]
    assert titles == [data.classes[data.test.labels[row]] for row in (4, 2, 11)]
    for row, run in zip(axes[1:], runs, strict=True):
        p = pckd.predict(run, data).logits.softmax(1)[[4, 2, 11]]
        assert [ax.get_xlabel() for ax in row] == [
            f"{data.classes[one.argmax()]}\n{100 * one.max():.0f} %" for one in p
        ]
        cams = np.stack([np.asarray(ax.images[1].get_array()) for ax in row])
        assert np.array_equal(cams, analysis.grad_cam(run, data, [4, 2, 11]))


# ------------------------------------------------------------------------------------------------------ aligned maps


@pytest.fixture
def spread():
    """Features (60, 6) in six clusters."""
    random = np.random.default_rng(1)
    return 4 * np.eye(6)[np.repeat(range(6), 10)] + random.normal(size=(60, 6)) * 0.5


def test_aligned_maps_of_rotated_features_are_almost_the_same(spread):
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    one, other = analysis.aligned_maps([spread, spread @ rotation + 3], perplexity=8)
    alone = analysis.tsne_map(analysis.directions(spread @ rotation), seed=5, perplexity=8)
    assert np.abs(one - other).mean() < 0.1 * one.std()
    assert np.abs(one - (alone - alone.mean(0))).mean() > 0.5 * one.std()


def test_a_moved_cluster_moves_on_the_aligned_map(spread):
    moved = spread.copy()
    moved[:10] = spread[50:]  # the first cluster joins the last one
    one, other = analysis.aligned_maps([spread, moved], perplexity=8)
    distance = np.linalg.norm(one - other, axis=1)
    assert distance[:10].min() > 2 * np.median(distance[10:50])


def test_maps_are_aligned_to_the_map_before_or_to_the_first(spread):
    wide = np.hstack([spread, spread])
    snapshots = [spread, spread[:, ::-1] ** 2, wide]
    before, first = (analysis.aligned_maps(snapshots, perplexity=8, to_first=to_first) for to_first in (False, True))
    assert before.shape == (3, 60, 2) and before.dtype == np.float32
    assert np.array_equal(before[:2], first[:2]) and not np.array_equal(before[2], first[2])
    assert np.abs(first[2] - first[0]).mean() < np.abs(before[2] - before[0]).mean()
    assert np.array_equal(before, analysis.aligned_maps(snapshots, perplexity=8))
    for wrong, message in (
        ([], "one matrix of features or more"),
        ([spread, spread[:50]], "all snapshots must have the same samples, got 60 and 50 rows"),
        ([[[np.nan, 1]]], "snapshots must be finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            analysis.aligned_maps(wrong, perplexity=8)
    with pytest.raises(ValueError, match="perplexity must be below a third of the 60 points and above 0, got 20"):
        analysis.aligned_maps([spread], perplexity=20)

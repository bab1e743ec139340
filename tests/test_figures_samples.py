"""Galleries of several data sets, weights by epoch and trajectories of single samples, on made-up runs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from pckd_nb import analysis, figures, measures

from .test_figures_space import check_texts_fit, made_run, rendered

LOW, HIGH = 0.1, 3.0


def run_with_samples(name="made", truth=False, gallery=20, epochs=8, threshold=False):
    """Make a run with 50 samples: 30 learned early, 10 learned late, 6 never learned, 4 of no kind.

    Within a kind, each sample is slightly harder than the one before. The gallery has every second sample, sorted from
    easy to hard by γ of the last epoch.
    """
    step = np.arange(1, epochs + 1)[:, None]
    easy, late = np.full((epochs, 30), LOW), np.where(step > 0.6 * epochs, LOW, HIGH).repeat(10, 1)
    never, none = np.full((epochs, 6), HIGH), np.where(step < epochs, HIGH, LOW).repeat(4, 1)
    none[1] = LOW
    ce = np.hstack([easy, late, never, none]) + 0.005 * np.arange(50)
    gamma = (ce / ce.mean(1, keepdims=True)).astype(np.float16)
    order = np.argsort(gamma[-1], kind="stable")
    index = order[:: max(1, 50 // gallery)][:gallery] if gallery else order[:0]
    random = np.random.default_rng(0)
    run = made_run(
        history=pd.DataFrame({"epoch": step[:, 0]} | ({"threshold": 1.1 ** step[:, 0]} if threshold else {})),
        centers=np.zeros((5, 2)),
        cross_entropy=ce.astype(np.float16),
        difficulty=gamma,
        labels=np.arange(50) % 5,
        ground_truth=np.linspace(0, 1, 50).astype(np.float16) if truth else None,
        gallery={
            "images": random.integers(0, 255, (len(index), 3 if truth else 1, 8, 8), dtype=np.uint8),
            "labels": index % 5,
            "index": index,
            "difficulty": gamma[-1][index],
        },
        classes=["cat", "dog", "a class with a very long name, which goes on & on", "$x", "e_{"],
    )
    run.settings["data"]["name"] = name
    return run


def run_with_margins():
    """Make a run whose images are right wherever their label has a probability above one half, except image 0."""
    run = run_with_samples()
    run.margin = np.where(run.cross_entropy < np.log(2), 1, -1).astype(np.float16)
    run.margin[:, 0] = -1
    return run


def run_with_weights(strategy, mean, full, seed=0, **chosen):
    history = pd.DataFrame({"epoch": [1, 2, 3], "mean_weight": mean, "full_weight_share": full})
    run = made_run(title="PCKD", history=history, variant=chosen, fingerprint=f"{strategy}{seed}")
    run.settings["seed"] = seed
    origin = "default" if strategy == "preview" else "argument"
    run.settings["method"]["settings"]["strategy"] = {"value": strategy, "from": origin}
    return run


def runs_of_all_strategies():
    return [
        run_with_weights("preview", [0.7, 0.8, 0.9], [0.6, 0.7, 0.9]),
        run_with_weights("uniform", [1, 1, 1], [1, 1, 1]),
        run_with_weights("constant", [0.7, 0.8, 0.9], [0, 0, 0]),
        run_with_weights("curriculum", [0.6, 0.7, 0.8], [0.6, 0.7, 0.8]),
        run_with_weights("focal", [0.9, 0.5, 0.2], [0, 0, 0]),
    ]


def four_data_sets():
    names = ("digits", "shapes", "fashion", "folder:/somewhere/a_name_that_is_far_too_long")
    return [run_with_samples(name, truth=name == "shapes") for name in names]


DRAWINGS = {
    "galleries": lambda: figures.difficulty_galleries(four_data_sets()),
    "gallery": lambda: figures.difficulty_galleries(run_with_samples(), rows=1, columns=12),
    "weights": lambda: figures.weights_over_epochs(runs_of_all_strategies()),
    "long names": lambda: figures.weights_over_epochs(
        [run_with_weights("preview", [1] * 3, [1] * 3, beta_cc=value, beta_fa=2.5, views=1) for value in (0.001, 0.002)]
    ),
    "trajectories": lambda: figures.trajectories(run_with_samples(threshold=True)),
    "data map": lambda: figures.data_map(run_with_margins()),
    "data map without margins": lambda: figures.data_map(run_with_samples("folder:/a/name/that/is/long"), marked=0),
    "five trajectories": lambda: figures.trajectories(run_with_samples(gallery=0), each=5),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_no_text_is_cut_off_and_drawing_twice_gives_the_same_picture(draw):
    check_texts_fit(draw())
    assert rendered(draw()) == rendered(draw())


def texts_starting_with(ax, start):
    return [text.get_text() for text in ax.texts if text.get_text().startswith(start)]


def test_galleries_have_one_band_of_thumbnails_per_data_set():
    runs = four_data_sets()
    ax = figures.difficulty_galleries(runs, rows=2, columns=5).axes[0]
    assert len(ax.images) == 4 * 10
    shown = np.linspace(0, 19, 10).round().astype(int)
    gammas = runs[0].gallery["difficulty"][shown].astype(float)
    assert texts_starting_with(ax, "γ ")[:10] == [f"γ {value:.2f}" for value in gammas]
    truth = runs[1].ground_truth[runs[1].gallery["index"][shown]]
    assert texts_starting_with(ax, "known") == [f"known {value:.2f}" for value in truth]
    assert [text.get_text() for text in ax.texts if text.get_text() in ("digits", "shapes", "fashion")] == [
        "digits", "shapes", "fashion",
    ]  # fmt: skip
    rho = analysis.difficulty_vs_truth(runs[1])
    assert [text for text in texts_starting_with(ax, "KD") if f"ρ = {rho:.2f}" in text] == [
        f"KD resnet8\nepoch 8\nγ and known:\nρ = {rho:.2f}"
    ]


def test_a_band_is_sorted_from_easy_on_the_left_to_hard_on_the_right():
    run = run_with_samples()
    ax = figures.difficulty_galleries(run, rows=2, columns=4).axes[0]
    shown = np.linspace(0, 19, 8).round().astype(int)
    corners = [image.get_extent() for image in ax.images]
    assert [round(corner[0], 2) for corner in corners] == sorted(round(corner[0], 2) for corner in corners)
    assert corners[0][0] == corners[1][0] and corners[0][3] < corners[1][3] and corners[1][0] < corners[2][0]
    for image, i in zip(ax.images, shown, strict=True):
        assert np.array_equal(image.get_array(), run.gallery["images"][i].transpose(1, 2, 0).repeat(3, 2))


def test_a_difficulty_of_minus_zero_is_shown_without_a_sign():
    run = run_with_samples()
    run.gallery["difficulty"][0] = -0.0
    assert texts_starting_with(figures.difficulty_galleries(run).axes[0], "γ ")[0] == "γ 0.00"


def test_galleries_require_thumbnails_and_one_run_per_data_set():
    bare = dataclasses.replace(run_with_samples("bare"), gallery=None)
    caption = figures.difficulty_galleries([bare, run_with_samples("digits")])._supxlabel.get_text()
    assert "digits, 50" in caption and "bare" not in caption
    for runs, message in (
        ([bare], "none of the runs has a gallery"),
        ([run_with_samples("digits"), run_with_samples("digits")], "one run per data set, got 2 runs of digits"),
        ([], "no run to draw"),
    ):
        with pytest.raises(ValueError, match=message):
            figures.difficulty_galleries(runs)
    with pytest.raises(ValueError, match="columns at least 2, got rows=2 and columns=1"):
        figures.difficulty_galleries(run_with_samples(), columns=1)


def test_runs_that_differ_only_in_their_strategy_are_named_by_it():
    runs = runs_of_all_strategies()
    figure = figures.weights_over_epochs(runs)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["preview", "uniform", "constant", "curriculum", "focal"]
    for ax, column in zip(figure.axes, ("mean_weight", "full_weight_share"), strict=True):
        for line, run, name in zip(ax.lines, runs, names, strict=True):
            assert line.get_label() == name and np.array_equal(line.get_ydata(), run.history[column])
    assert figure.axes[0].lines[0].get_color() == figures.COLORS["PCKD"]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 5
    _, _, constant, _, focal = figure.axes[1].lines  # equal, as no sample has v = 1, but both are visible
    assert np.array_equal(constant.get_ydata(), focal.get_ydata())
    assert constant.is_dashed() and focal.is_dashed() and constant._dash_pattern != focal._dash_pattern


def test_seeds_share_a_legend_entry_and_other_settings_are_named():
    runs = [run_with_weights("preview", [0.5] * 3, [0.5] * 3, seed) for seed in (0, 1)]
    figure = figures.weights_over_epochs([*runs, run_with_weights("uniform", [1] * 3, [1] * 3, beta_cc=0)])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 2 and names[0] == "PCKD resnet8" and "β_cc = 0" in names[1]
    first, second, _ = figure.axes[0].lines
    assert first.get_color() == second.get_color() and len(figure.axes[0].lines) == 3


def test_weights_over_epochs_require_an_epoch():
    empty = run_with_weights("preview", [1] * 3, [1] * 3)
    empty.history = empty.history[:0]
    with pytest.raises(ValueError, match="no complete epoch"):
        figures.weights_over_epochs(empty)


def test_data_map_shows_every_image_and_how_often_it_was_right():
    run = run_with_margins()
    ax, bar = figures.data_map(run, marked=3).axes
    p = np.exp(-run.cross_entropy.astype(float))
    shown = np.column_stack([ax.collections[0].get_offsets().data, ax.collections[0].get_array()])
    expected = np.column_stack([p.std(0), p.mean(0), (run.margin > 0).mean(0)])
    assert np.allclose(shown[np.lexsort(shown.T)], expected[np.lexsort(expected.T)], atol=1e-3)
    hardest, ambiguous = ax.lines[:2]
    assert sorted(hardest.get_ydata()) == pytest.approx(np.sort(p.mean(0))[:3], abs=1e-3)
    assert sorted(ambiguous.get_xdata()) == pytest.approx(np.sort(p.std(0))[-3:], abs=1e-3)
    assert [line.get_label() for line in (hardest, ambiguous)] == ["the 3 hardest", "the 3 most ambiguous"]
    assert bar.get_ylabel() == "share of epochs in which it is classified correctly"


def test_data_map_says_how_many_images_are_in_every_region():
    run = run_with_margins()
    ax = figures.data_map(run).axes[0]
    regions = measures.data_map(run.cross_entropy)["region"]
    assert [text.get_text() for text in ax.texts] == [
        f"{region}:\n{100 * (regions == region).mean():.1f} %" for region in measures.REGIONS
    ]
    assert 0 < (regions == "ambiguous").sum() < 50
    vertical, horizontal = ax.lines[2:]
    inside = run.cross_entropy[:, regions == "ambiguous"]
    border = np.exp(-inside.astype(float)).std(0).min()
    assert vertical.get_xdata() == pytest.approx([border] * 2, abs=1e-4) and list(horizontal.get_ydata()) == [0.5, 0.5]


def test_data_map_of_an_older_run_uses_probabilities_and_draws_at_most_some_images(monkeypatch):
    monkeypatch.setattr(figures.samples, "MAX_POINTS", 20)
    run = run_with_samples()
    ax, bar = figures.data_map(run).axes
    shown = np.linspace(0, 49, 20).round().astype(int)
    share = (run.cross_entropy < np.log(2)).mean(0)[shown]
    assert sorted(ax.collections[0].get_array()) == pytest.approx(sorted(share))
    assert bar.get_ylabel() == "share of epochs in which its label has p > 1/2"
    assert "50 training images" in figures.data_map(run)._supxlabel.get_text()


def test_data_map_needs_two_epochs_samples_and_a_number_of_marks():
    run = run_with_samples()
    with pytest.raises(ValueError, match="needs two complete epochs, but the run KD resnet8 has 1"):
        figures.data_map(dataclasses.replace(run, history=run.history[:1]))
    with pytest.raises(ValueError, match="has no samples"):
        figures.data_map(dataclasses.replace(run, cross_entropy=None))
    with pytest.raises(ValueError, match="marked must be at least 0 images, got -1"):
        figures.data_map(run, marked=-1)


def test_trajectories_show_samples_of_each_kind():
    run = run_with_samples(threshold=True)
    kinds = analysis.kinds_of_samples(run)
    assert [len(found) for found in kinds.values()] == [30, 10, 6]
    figure = figures.trajectories(run)
    titles = [ax.get_title(loc="left") for ax in figure.axes[:3]]
    assert titles == ["learned early: 30 (60.0 %)", "learned late: 10 (20.0 %)", "never learned: 6 (12.0 %)"]
    kept = set(run.gallery["index"].tolist())
    for column, found in enumerate(kinds.values()):
        pictures, above, below = figure.axes[column::3]
        median, *lines = above.lines
        assert np.allclose(median.get_ydata(), np.median(run.cross_entropy.astype(float), axis=1), atol=1e-3)
        samples = [
            int(np.flatnonzero((run.cross_entropy.astype(np.float32) == line.get_ydata()[:, None]).all(0))[0])
            for line in lines
        ]
        assert len(samples) == 3 and set(samples) <= set(found.tolist())
        assert len(pictures.images) == len(set(samples) & kept)
        if len(kept & set(found.tolist())) >= 3:  # samples with a thumbnail come first, from the easiest to the hardest
            among = sorted(kept & set(found.tolist()))
            assert samples[0] == among[0] and samples[2] == among[-1] and set(samples) <= kept
        for line, sample in zip(below.lines[1:], samples, strict=False):
            assert np.array_equal(line.get_ydata(), run.difficulty[:, sample].astype(np.float32))
        assert np.array_equal(below.lines[-1].get_ydata(), run.history["threshold"])
        frames = [patch.get_edgecolor() for patch in pictures.patches]
        assert [tuple(c) for c in frames] == [to_rgba(line.get_color()) for line in lines]


@pytest.mark.parametrize("threshold", [True, False])
def test_legends_of_trajectories_are_in_the_panels_of_their_lines(threshold):
    figure = figures.trajectories(run_with_samples(threshold=threshold))
    found = {}
    for ax in figure.axes:
        if ax.get_legend():
            found[ax.get_ylabel()] = entries = [text.get_text() for text in ax.get_legend().get_texts()]
            assert set(entries) <= {artist.get_label() for artist in [*ax.lines, *ax.collections]}
    of_samples = {"cross-entropy (nats)": ["middle half of all samples", "median of all samples"]}
    assert found == of_samples | ({"difficulty γ": ["threshold ε_t"]} if threshold else {})


def test_a_sample_without_a_thumbnail_has_an_empty_frame_and_a_kind_may_be_empty():
    run = run_with_samples(gallery=0)
    run.gallery = None
    run.cross_entropy[:, :30] = HIGH  # now no sample is easy
    figure = figures.trajectories(run, each=2)
    assert not any(ax.images for ax in figure.axes)
    assert [text.get_text() for text in figure.axes[0].texts] == ["none"]
    assert texts_starting_with(figure.axes[2], "not in the\ngallery") == ["not in the\ngallery"] * 2


def test_trajectories_require_two_epochs_and_samples():
    run = run_with_samples()
    with pytest.raises(ValueError, match="has 1 complete epoch"):
        figures.trajectories(dataclasses.replace(run, history=run.history[:1]))
    with pytest.raises(ValueError, match="has no recorded samples"):
        figures.trajectories(dataclasses.replace(run, cross_entropy=None, difficulty=None))
    with pytest.raises(ValueError, match="each must be 1 to 5"):
        figures.trajectories(run, each=6)
    with pytest.raises(ValueError, match="drawn from runs"):
        figures.trajectories("runs/pckd")

"""Maps of features and centers, and comparisons of two networks' geometry, on made-up runs with known answers."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pckd_nb import analysis, figures
from pckd_nb.runs import Run

GROUPS = {"family": [f"family {c % 5}" for c in range(40)], "shade": ["dark" if c < 20 else "light" for c in range(40)]}


def made_run(
    features=None, centers=None, *, groups=None, name="resnet8", title="KD", variant=None, teacher=None,
    fingerprint="student", classes=None, **kept,
):  # fmt: skip
    """Make a run of two epochs with this embedding, without training. variant: non-default settings of its method."""
    count = 40 if centers is None else len(centers)
    chosen = {key: {"value": value, "from": "argument"} for key, value in (variant or {}).items()}
    settings = {
        "status": "finished",
        "method": {"name": title, "title": title, "views": 1, "settings": chosen, "left_out": {}},
        "model": {"name": name, "num_classes": count, "in_channels": 3, "feature_width": 8, "parameters": 1000},
        "teacher": teacher and {"fingerprint": teacher, "name": "resnet20"},
        "data": {
            "name": "made", "fingerprint": "data", "classes": classes or [f"class {c}" for c in range(count)],
            "groups": groups or {}, "train_images": 50, "test_images": 200, "image_size": [8, 8],
        },
        "recipe": {"epochs": 2}, "seed": 0, "hardware": "made up, 1 thread", "fingerprint": fingerprint,
    }  # fmt: skip
    if features is not None:
        labels = np.arange(len(features)) % count
        kept["embedding"] = {"features": features, "centers": centers, "labels": labels, "predictions": labels}
    history = kept.pop("history", None)
    history = pd.DataFrame({"epoch": [1, 2]}) if history is None else history
    return Run(settings, history, pd.DataFrame({"epoch": history["epoch"], "seconds": 1.0}), {}, **kept)


def clustered(groups, width=8, seed=0):
    """Return centers that are close together within a group and far apart otherwise."""
    random = np.random.default_rng(seed)
    names = sorted(set(groups))
    return 10 * np.eye(len(names), width)[[names.index(name) for name in groups]] + random.normal(
        0, 0.1, (len(groups), width)
    )


def pair(count=40, groups=GROUPS, classes=None, **student):
    """Return a teacher, and a student with the teacher's features and centers in a rotated, wider space."""
    random = np.random.default_rng(1)
    centers = clustered(groups["family"] if groups else [str(c % 5) for c in range(count)])
    features = random.random((200, 8))
    rotation, _ = np.linalg.qr(random.normal(size=(12, 12)))
    widen, names = 2 * rotation[:8], {"groups": groups, "classes": classes}
    return [
        made_run(features, centers, name="resnet20", title="supervised", fingerprint="teacher", **names),
        made_run(features @ widen, centers @ widen, teacher="teacher", **names, **student),
    ]


def many_groups():
    """Return runs with 40 classes of 20 groups with long names, and a student with a long variant."""
    names = [f"the superclass number {c % 20}, with its long name" for c in range(40)]
    return pair(groups={"family": names}, variant={"beta_cc": 0.00125, "views": 1, "strategy": "curriculum"})


def few_classes():
    """Return runs with four classes without groups."""
    return pair(4, {}, classes=["cat", "dog", "a very long name of a class & more", "$x"])


def rendered(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=50, metadata={"Software": None})
    return file.getvalue()


def check_texts_fit(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    texts = [*figure.texts, figure._supxlabel, *figure.legends]
    for ax in [*figure.axes, *(child for parent in figure.axes for child in parent.child_axes)]:
        texts += [ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *filter(None, [ax.get_legend()])]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for text in texts:
        box = text.get_window_extent(canvas.get_renderer())
        if text.get_visible() and box.width > 1:
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
            assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text


@pytest.mark.parametrize("runs", [pair, many_groups, few_classes])
@pytest.mark.parametrize("draw", [figures.center_map, figures.logit_correlation, figures.center_geometry])
def test_no_text_is_cut_off_and_drawing_twice_gives_the_same_picture(draw, runs):
    figure = draw(runs())
    check_texts_fit(figure)
    assert rendered(draw(runs())) == rendered(draw(runs()))
    assert "made, 50 training and 200 test images" in figure._supxlabel.get_text().replace("\n", " ")


def test_center_map_says_how_many_nearest_centers_share_a_group():
    runs = pair()
    panels = [ax for ax in figures.center_map(runs).axes if ax.collections]
    assert [ax.get_title(loc="left") for ax in panels] == ["teacher resnet20", "KD resnet8", "", ""]
    assert [len(ax.collections) for ax in panels] == [5, 5, 2, 2]
    assert panels[0].get_xlabel() == "100 % of 3 nearest share\nthe family (chance 18 %)"  # 7 of 39 others
    centers = runs[0].embedding["centers"]
    share = analysis.neighbourhood_purity(centers, np.arange(40) < 20, 3)
    assert panels[2].get_xlabel() == f"{100 * share:.0f} % of 3 nearest share\nthe shade (chance 49 %)"
    drawn = np.concatenate([dots.get_offsets() for dots in panels[0].collections])
    expected = analysis.embed_centers(centers)
    assert np.allclose(drawn, np.concatenate([expected[c::5] for c in range(5)]))


def test_few_classes_are_drawn_as_a_similarity_matrix():
    runs = few_classes()
    panels = [ax for ax in figures.center_map(runs).axes if ax.images]
    assert len(panels) == 2
    similarity = analysis.center_similarity(runs[0].embedding["centers"])
    assert np.allclose(panels[0].images[0].get_array(), similarity)
    names = [tick.get_text() for tick in panels[0].get_yticklabels()]
    assert names == ["cat", "dog", "a very long name …", "$x"]
    first, second = sorted(np.unravel_index(np.argmax(similarity - 2 * np.eye(4)), (4, 4)))
    names = ["cat", "dog", "a very long …", "$x"]
    closest = f"closest: {names[first]}\nand {names[second]} ({similarity[first, second]:.2f})"
    assert panels[0].get_xlabel() == closest


def test_few_classes_with_groups_are_sorted_by_group():
    groups = {"kind": ["a", "b", "a", "b", "b", "b", "a", "a"]}
    centers = clustered(groups["kind"])
    run = made_run(np.random.default_rng(0).random((40, 8)), centers, groups=groups)
    (ax,) = [ax for ax in figures.center_map(run).axes if ax.images]
    order = [0, 2, 6, 7, 1, 3, 4, 5]
    assert np.allclose(ax.images[0].get_array(), analysis.center_similarity(centers)[np.ix_(order, order)])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_yticks().tolist() == [1.5, 5.5]
    assert ax.get_xlabel() == "100 % of 3 nearest share\nthe kind (chance 43 %)"


def test_logit_correlation_of_equivalent_networks_has_no_difference():
    teacher, student = pair()
    axes = [ax for ax in figures.logit_correlation([student, teacher]).axes if ax.images]  # in any order
    matrices = [ax for ax in axes if ax.get_title(loc="left") in ("teacher resnet20", "KD resnet8")]
    (difference,) = [ax for ax in axes if ax.get_title(loc="left") == "student − teacher"]
    assert matrices[0].get_title(loc="left") == "teacher resnet20"
    assert difference.get_xlabel() == "mean |difference| 0.000\nr over pairs 1.00"
    assert np.allclose(difference.images[0].get_array(), 0, atol=1e-6)
    order = np.argsort(np.arange(40) % 5, kind="stable")
    expected = analysis.logit_correlation(teacher.embedding["features"], teacher.embedding["centers"])
    assert np.allclose(matrices[0].images[0].get_array(), expected[np.ix_(order, order)])


def test_logit_correlation_shows_the_difference_of_two_networks():
    teacher, student = pair()
    student.embedding["centers"] = np.random.default_rng(2).normal(size=student.embedding["centers"].shape)
    embeddings = teacher.embedding, student.embedding
    a, b = (analysis.logit_correlation(each["features"], each["centers"]) for each in embeddings)
    mean, correlation = analysis.difference_of_pairs(a, b)
    labels = [ax.get_xlabel() for ax in figures.logit_correlation([teacher, student]).axes]
    assert mean > 0.1 and f"mean |difference| {mean:.3f}\nr over pairs {correlation:.2f}" in labels


def test_center_geometry_ignores_rotation_and_width():
    teacher, student = pair()
    figure = figures.center_geometry([teacher, student])
    (below,) = [ax for ax in figure.axes if ax.collections and ax.get_xlabel() == "teacher's similarity"]
    assert below.get_title(loc="left") == "r = 1.00, CKA = 1.00"
    points = [dots.get_offsets() for dots in below.collections]
    # 380 pairs share the shade and 140 the family; the 60 that share both have the shade's colour
    assert [len(p) for p in points] == [320, 80, 380]
    assert np.allclose(np.diff(np.concatenate(points), axis=1), 0, atol=1e-4)  # on the diagonal
    legend = [text.get_text() for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    assert legend == ["nothing", "family", "shade"]


def test_center_geometry_of_an_unrelated_student():
    teacher, student = pair()
    student.embedding["centers"] = centers = np.random.default_rng(2).normal(size=(40, 12))
    r = analysis.center_agreement(teacher.embedding["centers"], centers)
    cka = analysis.center_cka(teacher.embedding["centers"], centers)
    titles = [ax.get_title(loc="left") for ax in figures.center_geometry([teacher, student]).axes]
    assert abs(r) < 0.3 and f"r = {r:.2f}, CKA = {cka:.2f}" in titles


def test_students_are_labelled_with_their_variant():
    teacher, student = pair(variant={"beta_cc": 0})
    for draw in (figures.logit_correlation, figures.center_geometry, figures.center_map):
        assert "KD resnet8\nβ_cc = 0" in [ax.get_title(loc="left") for ax in draw([teacher, student]).axes]


def test_a_feature_map_shows_at_most_50_samples_per_class():
    random = np.random.default_rng(0)
    centers = np.eye(3, 8)
    features = 5 * centers[np.arange(450) % 3] + random.random((450, 8))
    ax = figures.feature_map(made_run(features, centers)).axes[0]
    assert [len(dots.get_offsets()) for dots in ax.collections] == [50, 1] * 3
    assert ax.get_xlabel().startswith("100 % of 5 nearest")


@pytest.mark.parametrize("draw", [figures.center_map, figures.logit_correlation, figures.center_geometry])
def test_unsuitable_runs_raise_an_error_of_one_line(draw):
    teacher, student = pair()
    elsewhere = {**student.settings, "data": {**student.settings["data"], "fingerprint": "another"}}
    for runs, message in (
        ([], "no run to draw"),
        (["runs/kd"], "drawn from runs"),
        ([teacher, dataclasses.replace(student, embedding=None)], "KD resnet8 has no embedding"),
        ([teacher, dataclasses.replace(student, settings=elsewhere)], "same data"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            draw(runs)
        assert "\n" not in str(error.value)


def test_students_require_exactly_one_teacher():
    teacher, student = pair()
    for draw in (figures.logit_correlation, figures.center_geometry):
        for runs in ([student], [teacher], [teacher, student, dataclasses.replace(teacher)]):
            with pytest.raises(ValueError, match="exactly one teacher of them"):
                draw(runs)


def test_many_classes_without_groups_have_no_center_map():
    teacher, student = pair(groups={})
    with pytest.raises(ValueError, match="classes of made have no groups"):
        figures.center_map([teacher, student])


def test_aligned_maps_draw_the_same_images_with_lines_to_the_first_map():
    runs = pair()
    figure = figures.aligned_feature_maps(runs, classes=[0, 3, 7])
    first, second = figure.axes[:2]
    shown = np.flatnonzero(np.isin(runs[0].embedding["labels"], [0, 3, 7]))
    features = [run.embedding["features"][shown] for run in runs]
    maps = analysis.aligned_maps(features, 0, len(shown) / 4, to_first=True)
    labels = runs[0].embedding["labels"][shown]
    for ax, xy in zip((first, second), maps, strict=True):
        dots = [part.get_offsets() for part in ax.collections if len(part.get_offsets()) > 1]
        expected = np.concatenate([xy[labels == c] for c in (0, 3, 7)])
        assert np.asarray(np.concatenate(dots)) == pytest.approx(expected)
    lines = next(part for part in second.collections if hasattr(part, "get_segments")).get_segments()
    assert np.stack(lines) == pytest.approx(np.stack([maps[0], maps[1]], 1))
    assert not any(hasattr(part, "get_segments") for part in first.collections)
    assert first.get_xlim() == second.get_xlim() and [text.get_text() for text in figure.legends[0].get_texts()] == [
        "class 0", "class 3", "class 7",
    ]  # fmt: skip
    runs[1].embedding["labels"] = runs[1].embedding["labels"][::-1]
    with pytest.raises(ValueError, match="embeddings of different images: use runs with the same test images"):
        figures.aligned_feature_maps(runs)
    with pytest.raises(ValueError, match="classes must be 1 to 10 numbers below 40, got"):
        figures.aligned_feature_maps(pair(), classes=[40])

import dataclasses

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import pckd_nb as pckd
from pckd_nb import figures
from pckd_nb.figures import canvas as canvas_module
from pckd_nb.figures.arms import group_by_study
from pckd_nb.figures.canvas import line_styles, new_figure, run_color

from .conftest import make_data


@pytest.fixture(scope="module")
def runs():
    """A teacher and three students, trained for two epochs on tiny images of known difficulty."""
    data = make_data(train=60, test=30)
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=20)
    teacher = pckd.fit(pckd.create_model("resnet14", data, seed=0), data, recipe, progress=False)
    methods = pckd.Supervised(), pckd.KD(), pckd.PCKD()
    return [teacher] + [
        pckd.distill(pckd.create_model("resnet8", data, seed=0), teacher, data, method, recipe, progress=False)
        for method in methods
    ]


def draw_all(runs):
    return {
        "learning_curves": figures.learning_curves(runs),
        "accuracy": figures.accuracy(runs),
        "difficulty_gallery": figures.difficulty_gallery(runs[3]),
        "preview_weights": figures.preview_weights(runs[3]),
        "feature_map": figures.feature_map(runs),
        "difficulty_against_truth": figures.difficulty_against_truth(runs[3]),
    }


@pytest.fixture(scope="module")
def drawn(runs):
    return draw_all(runs)


def all_texts(figure):
    found = figure.findobj(mpl.text.Text)
    return [text.get_text() for text in found if text.get_text()]


def with_history(run, **columns):
    return dataclasses.replace(run, history=run.history.assign(**columns))


def test_no_text_of_a_figure_is_cut_off(drawn):
    for name, figure in drawn.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        written = [text for ax in figure.axes for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
        for text in (*figure.texts, figure._supxlabel, *figure.legends, *written):
            box, page = text.get_window_extent(canvas.get_renderer()), figure.bbox
            if box.width > 1:
                assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, f"{name}: {text}"
                assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, f"{name}: {text}"


def test_drawing_leaves_pyplot_and_rcparams_unchanged(runs):
    before = dict(mpl.rcParams)
    figures.accuracy(runs)
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_log_axes_have_plain_text_labels(runs):
    def labels(figure):
        FigureCanvasAgg(figure).draw()
        axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
        return [{label.get_text() for label in axis.get_ticklabels(which="both")} for axis in axes]

    with new_figure(runs, 5, 3) as figure:
        ax = figure.subplots()
        ax.plot([1, 1000], [1e-6, 1e-4])
        ax.set(xscale="log", yscale="log")
        inside = ax.inset_axes((0.5, 0.5, 0.4, 0.4))
        inside.plot([1, 2], [-100, 100])
        inside.set_yscale("symlog")
    x, y = labels(figure)
    assert {"1", "10", "100", "1,000"} <= x and {"10⁻⁶", "10⁻⁵", "0.0001"} <= y
    assert {"−10", "0", "10"} <= {label.get_text() for label in inside.get_yticklabels()}
    assert not any("$" in text for text in all_texts(figure))

    first = plt.figure()
    with figures.style():
        figure, ax = plt.subplots()
        ax.plot([1, 2, 5], [1, 1e6, 3e6])
        ax.set(xscale="log", yscale="log")
    x, y = labels(figure)
    assert {"1", "2", "4"} <= x and "10⁶" in y and not any("$" in text for text in all_texts(figure))
    assert plt.gcf() is figure
    plt.close(figure)
    plt.close(first)


def test_every_figure_names_its_data_seed_and_networks(drawn, runs):
    for figure in drawn.values():
        written = " ".join(all_texts(figure)).replace("\n", " ")
        assert "tiny, 60 training and 30 test images of 8×8 pixels; 2 epochs; seed 0" in written
        assert pckd.runs.fingerprint(runs[3].student_state)[:8] in written


def test_learning_curves_have_a_panel_for_every_term_and_accuracy(drawn, runs):
    panels = {ax.get_title(loc="left"): ax for ax in drawn["learning_curves"].axes}
    assert len(panels) == 2 + 1 + 5  # accuracies, objective, terms
    assert len(panels["accuracy on test images"].lines) == 4
    assert len(panels["distillation of logits"].lines) == 2
    (contrast,) = panels["center contrast"].lines
    assert np.allclose(contrast.get_ydata(), runs[3].history["category_center_contrast"])
    assert contrast.get_color() == figures.COLORS["PCKD"]
    assert all(ax.get_xlabel() == "epoch" and ax.get_ylabel() for ax in panels.values())


def test_learning_curves_accept_one_run_and_custom_terms(runs):
    assert len(figures.learning_curves(runs[1]).axes) == 3  # its objective is its only term
    custom = with_history(runs[1], my_term=[2.0, 1.0])
    titles = [ax.get_title(loc="left") for ax in figures.learning_curves(custom).axes]
    assert titles[-1] == "my_term"


def test_accuracy_shows_numbers_and_the_spread_over_seeds(runs):
    again = with_history(runs[1], test_top1=[0.0, runs[1].accuracy - 10])
    again.settings = {**again.settings, "seed": 1}
    written = all_texts(figures.accuracy([*runs, again]))
    assert f"{runs[3].accuracy:.1f}" in written
    assert f"{runs[1].accuracy - 5:.1f} ± {10 / 2**0.5:.1f}  (2 seeds)" in written
    assert {"teacher resnet14", "supervised resnet8", "KD resnet8", "PCKD resnet8"} <= set(written)
    (note,) = (" ".join(text.split()) for text in written if "seeds" in text and "Networks" in text)
    assert note.startswith("± and whiskers: standard deviation over seeds. One dot per seed. ") and "seeds 0, 1" in note


def test_the_teacher_has_its_own_colour_only_next_to_its_students(runs):
    assert run_color(runs[0], runs) == figures.COLORS["teacher"]
    assert run_color(runs[0], runs[:1]) == figures.COLORS["supervised"]


def test_a_student_with_the_teachers_weights_is_not_taken_for_a_teacher(runs, tmp_path):
    data, recipe = make_data(train=60, test=30), pckd.get_recipe("classroom", epochs=1, batch_size=20)

    def network():
        return pckd.create_model("resnet8", data, seed=0)

    teacher = pckd.fit(network(), data, recipe, seed=0, progress=False)
    methods = {"a_supervised": pckd.Supervised(), "kd": pckd.KD()}
    supervised, distilled = (
        pckd.distill(network(), teacher, data, method, recipe, seed=0, progress=False) for method in methods.values()
    )
    assert supervised.fingerprint == teacher.fingerprint
    three = [teacher, supervised, distilled]
    names = ["teacher resnet8", "supervised resnet8", "KD resnet8"]
    assert [line["label"] for line in line_styles(three)] == names
    assert len(figures.center_geometry(three).axes) > 0  # it requires exactly one teacher

    teacher.save(tmp_path / "z_teacher")  # the supervised student is loaded first
    distilled.settings["teacher"]["run"] = "../z_teacher"
    for name, run in zip(methods, three[1:], strict=True):
        run.save(tmp_path / name)
    loaded = pckd.runs.load_runs(tmp_path)
    assert [line["label"] for line in line_styles(loaded)] == ["supervised resnet8", "KD resnet8", "teacher resnet8"]
    assert [line["label"] for line in line_styles(loaded[:2])] == ["supervised resnet8", "KD resnet8"]
    assert [run.path.name for run in group_by_study(loaded)[-1]] == ["kd", "a_supervised"]


@pytest.fixture
def no_glyph_warning_yet(monkeypatch):
    monkeypatch.setattr(canvas_module, "_words_without_glyphs", [])


def with_classes(run, classes):
    return dataclasses.replace(run, settings={**run.settings, "data": {**run.settings["data"], "classes": classes}})


@pytest.mark.filterwarnings("error")
def test_characters_missing_from_the_font_are_drawn_in_the_users_fonts(runs, no_glyph_warning_yet, caplog):
    """STIXGeneral comes with matplotlib and has U+20DD, which DejaVu Sans lacks."""
    run = with_classes(runs[3], ["\u20dd", "b", "c"])
    with mpl.rc_context({"font.family": ["serif", "no such font"], "font.serif": ["STIXGeneral"]}):
        with figures.style():
            assert mpl.rcParams["font.family"][:2] == ["DejaVu Sans", "STIXGeneral"]
            with figures.style():
                assert mpl.rcParams["font.family"] == canvas_module.font_families()
        FigureCanvasAgg(figures.feature_map(run)).draw()
    assert not caplog.records


def test_only_installed_fonts_are_used_and_cjk_fonts_come_last(monkeypatch):
    monkeypatch.setattr(canvas_module, "CJK_FONTS", ("no such font", "STIXGeneral"))
    with mpl.rc_context({"font.family": "monospace", "font.monospace": ["no such font", "cmtt10"]}):
        assert canvas_module.font_families() == ["DejaVu Sans", "cmtt10", "STIXGeneral"]


def test_names_that_no_font_can_draw_give_one_warning(runs, no_glyph_warning_yet):
    """U+10FFFD is for private use, so no font has it."""
    run = with_classes(runs[3], ["\U0010fffd one", "\U0010fffd two", "three"])
    with pytest.warns(UserWarning) as warned:
        for draw in (figures.feature_map, figures.feature_weight_matrix):
            figure = draw(run)
            FigureCanvasAgg(figure).draw()
            figure.get_tightbbox()
    (message,) = (str(warning.message) for warning in warned)
    assert message.startswith("no installed font can draw '\U0010fffd one', '\U0010fffd two': install one that can")
    assert "fonts-noto-cjk" in message and "\n" not in message and "three" not in message


def test_two_networks_with_the_same_method_have_different_dashes(runs):
    drawn = line_styles([runs[1], dataclasses.replace(runs[0])])
    assert drawn[0]["color"] == drawn[1]["color"] and drawn[0]["dashes"] != drawn[1]["dashes"]


def test_gallery_is_sorted_from_easy_to_hard(runs):
    figure = figures.difficulty_gallery(runs[3], rows=2, columns=4)
    ax = figure.axes[0]
    gammas = [float(text.get_text()[4:]) for text in ax.texts if text.get_text().startswith("γ = ")]
    assert len(ax.images) == 8 and gammas == sorted(gammas)
    assert gammas[-1] == pytest.approx(float(runs[3].gallery["difficulty"].max()), abs=0.01)
    assert ax.images[0].get_array().shape == (8, 8, 3)  # drawn in grey, not with a colour map


def test_a_class_may_have_any_name(runs, tmp_path):
    names = ["$x_{$", "a_{b", "a class with a very long name, which goes on & on"]
    settings = {**runs[3].settings, "data": {**runs[3].settings["data"], "classes": names}}
    run = dataclasses.replace(runs[3], settings=settings)
    figures.difficulty_gallery(run).savefig(tmp_path / "gallery.png")
    figures.feature_map(run).savefig(tmp_path / "map.png")


def test_preview_weights_match_those_of_training(drawn, runs):
    panels = {ax.get_title(loc="left"): ax for ax in drawn["preview_weights"].axes}
    below = panels["epoch 1: weights v"]
    assert below.lines[0].get_ydata().mean() == pytest.approx(runs[3].history["mean_weight"][0], abs=2e-3)
    assert np.allclose(panels["threshold ε_t"].lines[0].get_ydata(), runs[3].history["threshold"])


def test_feature_map_draws_the_chosen_classes_in_every_panel(drawn, runs):
    panels = drawn["feature_map"].axes
    assert len(panels) == 4
    for ax in panels:
        assert "neighbours share the class" in ax.get_xlabel()
        assert len(ax.collections) == 2 * 3  # dots and a star for every class
    figure = figures.feature_map(runs[3], classes=[0, 2])
    assert len(figure.axes[0].collections) == 4
    with pytest.raises(ValueError, match="classes must be"):
        figures.feature_map(runs[3], classes=[3])


def test_difficulty_against_truth_shows_the_correlation(drawn, runs):
    correlation = pckd.analysis.difficulty_vs_truth(runs[3])
    assert f"ρ = {correlation:.2f}" in drawn["difficulty_against_truth"].axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    "draw",
    [
        figures.caption,
        figures.learning_curves,
        figures.accuracy,
        figures.feature_map,
        figures.difficulty_gallery,
        figures.preview_weights,
        figures.difficulty_against_truth,
    ],
)
def test_without_runs_the_error_is_one_line(draw):
    for nothing in ([], ["runs/pckd"]):
        with pytest.raises(ValueError, match="no run to draw|drawn from runs") as error:
            draw(nothing)
        assert "\n" not in str(error.value)


def test_a_run_without_the_needed_data_is_refused(runs):
    bare = dataclasses.replace(runs[3], gallery=None, embedding=None, ground_truth=None, history=pd.DataFrame())
    for draw, message in (
        (figures.learning_curves, "no complete epoch"),
        (figures.accuracy, "no complete epoch"),
        (figures.preview_weights, "no complete epoch"),
        (figures.difficulty_gallery, "no gallery"),
        (figures.feature_map, "no embedding"),
        (lambda run: figures.preview_weights(dataclasses.replace(runs[3], difficulty=None)), "has no samples"),
        (figures.difficulty_against_truth, "not known"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(bare)
    with pytest.raises(ValueError, match="KD resnet8 was not trained with a strategy"):
        figures.preview_weights(runs[2])
    other = {**runs[3].settings, "data": {**runs[3].settings["data"], "fingerprint": "another"}}
    with pytest.raises(ValueError, match="same data"):
        figures.feature_map([runs[2], dataclasses.replace(runs[3], settings=other)])

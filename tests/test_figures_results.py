import copy
import dataclasses
import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

import pckd_nb as pckd
from pckd_nb import figures
from pckd_nb.analysis import summarise, training_flops
from pckd_nb.figures import results
from pckd_nb.figures.arms import FACTORS, best_by_compute, find_budgets, find_compute, find_sweep
from pckd_nb.figures.canvas import run_label
from pckd_nb.models import count_flops

from .conftest import make_data


@pytest.fixture(scope="module")
def trained():
    """A teacher and one run per method, trained for two epochs on tiny images."""
    data = make_data(train=40, test=20)
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=20)
    teacher = pckd.fit(pckd.create_model("resnet14", data, seed=0), data, recipe, progress=False)
    methods = {"supervised": pckd.Supervised(), "KD": pckd.KD(), "PCKD": pckd.PCKD()}
    students = {
        title: pckd.distill(pckd.create_model("resnet8", data, seed=0), teacher, data, method, recipe, progress=False)
        for title, method in methods.items()
    }
    return {"teacher": teacher, **students}


def variant_of(run, top1, seed=0, epochs=None, parts=None, **settings):
    """Return a copy of `run` with another final accuracy, seed and `settings` of its method.

    parts: changes to other parts of run.json.
    """
    changed = copy.deepcopy(run.settings)
    changed["seed"] = seed
    history = run.history
    if epochs:
        changed["recipe"]["epochs"] = epochs
        if "epsilon" in changed["method"]["settings"]:
            changed["method"]["settings"]["epsilon"]["value"] = (1.005**240) ** (1 / epochs)
        history = pd.concat([history] * epochs, ignore_index=True)[:epochs].assign(epoch=range(1, epochs + 1))
    for name, value in settings.items():
        changed["method"]["settings"][name] = {"value": value, "from": "argument"}
    for part, changes in (parts or {}).items():
        changed[part] = {**changed[part], **changes}
    changed["fingerprint"] = f"{abs(hash((json.dumps(changed, sort_keys=True), top1))):016x}"[:16]
    history = history.assign(test_top1=[*history["test_top1"][:-1], top1])
    return dataclasses.replace(run, settings=changed, history=history)


@pytest.fixture(scope="module")
def many(trained):
    """Runs of PCKD, its sweeps, KD and supervised training, with two seeds each. Some are longer."""
    found = [variant_of(trained["PCKD"], 80 + 2 * seed, seed) for seed in (0, 1)]
    found += [variant_of(trained["PCKD"], 70 + seed, seed, beta_cc=0.05) for seed in (0, 1)]
    found += [variant_of(trained["PCKD"], 78 + seed, seed, beta_cc=0) for seed in (0, 1)]
    found += [variant_of(trained["PCKD"], 79 + seed, seed, beta_fa=5) for seed in (0, 1)]
    found += [variant_of(trained["PCKD"], 77 + seed, seed, beta_ca=10) for seed in (0, 1)]
    found += [variant_of(trained["PCKD"], 76 + seed, seed, epsilon=1.01**120) for seed in (0, 1)]
    found += [variant_of(trained["KD"], 75 + 2 * seed, seed) for seed in (0, 1)]
    found += [variant_of(trained["supervised"], 50 + 2 * seed, seed) for seed in (0, 1)]
    for title, top1 in (("PCKD", 90), ("KD", 88), ("supervised", 60)):
        found += [variant_of(trained[title], top1 + seed, seed, epochs=4) for seed in (0, 1)]
    return found


def panels(figure):
    return {ax.get_title(loc="left"): ax for ax in figure.axes}


def drawn_points(ax, color):
    """Return the points of one color: x → (mean, lower end and upper end of its error bar, value of each seed)."""
    bars = next(box for box in ax.containers if to_hex(box[0].get_color()).upper() == color)
    ends = {segment[0, 0]: sorted(segment[:, 1]) for segment in bars[2][0].get_segments()}
    dots: dict[float, list[float]] = {}
    for cloud in ax.collections:
        if isinstance(cloud, PathCollection) and to_hex(cloud.get_facecolor()[0]).upper() == color:
            for x, y in np.ma.getdata(cloud.get_offsets()):
                dots.setdefault(float(x), []).append(float(y))
    return {x: (y, *ends[x], sorted(dots[float(x)])) for x, y in zip(*bars[0].get_data(), strict=True)}


def tick_labels(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_sweep_shows_the_mean_the_spread_and_every_seed(many):
    figure = results.sweep(many, "beta_cc")
    ax = panels(figure)["(a) β_cc"]
    assert tick_labels(ax) == ["0", "0.005\nclassroom recipe", "0.05\npublished"]
    points = drawn_points(ax, figures.COLORS["PCKD"])
    sd = 2**0.5
    for x, mean, spread, seeds in ((0, 78.5, sd / 2, [78, 79]), (1, 81, sd, [80, 82]), (2, 70.5, sd / 2, [70, 71])):
        assert points[x][0] == pytest.approx(mean)
        assert points[x][1:3] == pytest.approx((mean - spread, mean + spread))
        assert points[x][3] == seeds
    level = [line.get_ydata()[0] for line in ax.lines if line.get_color() == figures.COLORS["KD"]]
    assert level == [76] and "KD: 76.0" in legend_texts(figure)
    (supervised,) = (line for line in ax.lines if line.get_color() == figures.COLORS["supervised"])
    assert supervised.get_ydata()[0] == 51 < ax.get_ylim()[0]  # below the axis, which would become too coarse
    assert "supervised: 51.0" in legend_texts(figure)


def test_sweeps_have_one_panel_per_factor_and_share_the_default_arm(many):
    found = panels(results.sweeps(many))
    assert list(found) == ["(a) β_cc", "(b) β_fa", "(c) β_ca", "(d) ε"]
    for ax in found.values():
        (low, high), (shown, *_) = ax.get_ylim(), ax.get_lines()
        assert high - low >= 12 and low < shown.get_ydata()[0] < high  # KD's line
    for title, place in (("(a) β_cc", 1), ("(b) β_fa", 1), ("(c) β_ca", 0), ("(d) ε", 0)):
        assert drawn_points(found[title], figures.COLORS["PCKD"])[place][0] == 81
    assert tick_labels(found["(b) β_fa"]) == ["5", "20\npublished"]
    assert tick_labels(found["(c) β_ca"]) == ["1\npublished", "10"]
    assert tick_labels(found["(d) ε"]) == ["1.005\npublished", "1.01"]  # over 240 epochs; here 3.31^(1/2) and 1.01^120
    assert "for 240 epochs" in found["(d) ε"].get_xlabel()


def test_the_published_defaults_are_those_of_the_method():
    method = pckd.PCKD()
    assert {name: published for name, (_, published) in FACTORS.items()} == {
        name: getattr(method, name) for name in FACTORS
    }


def test_the_published_value_is_marked_even_if_no_run_has_it(many):
    few = [run for run in many if "β_cc = 0.05" not in run.variant]
    assert tick_labels(panels(results.sweep(few, "beta_cc"))["(a) β_cc"])[-1] == "0.05\npublished"


def test_a_run_with_other_differences_is_not_on_the_sweep(many):
    base = many[0]
    before = find_sweep(many).points
    other = [
        variant_of(base, 1, 0, beta_cc=0.02, beta_fa=5),
        variant_of(base, 2, 0, beta_cc=0.02, views=1),
        variant_of(base, 3, 0, epochs=4, beta_cc=0.02),
        variant_of(base, 4, 0, parts={"data": {"fingerprint": "other"}}, beta_cc=0.02),
        variant_of(base, 5, 0, parts={"model": {"name": "resnet20"}}, beta_cc=0.02),
        variant_of(base, 6, 0, parts={"recipe": {"lr": 0.1}}, beta_cc=0.02),
        variant_of(base, 7, 0, parts={"teacher": {"name": "resnet56"}}, beta_cc=0.02),
    ]
    assert find_sweep([*other, *many]).points == before
    older = {name: value for name, value in base.settings["recipe"]["method"].items() if name != "warmup_epochs"}
    for recipe in ({}, {"method": older}):  # PCKD ignores a recipe's settings for baselines
        fits = variant_of(base, 8, 0, parts={"recipe": recipe}, beta_cc=0.02)
        assert find_sweep([*many, fits]).points["beta_cc"][0.02] == {0: fits}
    assert older != base.settings["recipe"]["method"]


def test_all_points_of_a_sweep_have_the_same_seeds(many):
    third = [variant_of(many[0], 20, 2), variant_of(many[2], 20, 2, beta_cc=0.05)]  # a third seed, but only of two arms
    found = find_sweep([*many, *third])
    assert {tuple(seeds) for values in found.points.values() for seeds in values.values()} == {(0, 1)}
    apart = find_sweep([variant_of(many[0], 80, 0), variant_of(many[0], 70, 1, beta_cc=0)])
    assert apart.points == {"beta_cc": {0.005: apart.points["beta_cc"][0.005], 0: apart.points["beta_cc"][0]}}
    # without a common seed, all seeds are shown
    assert [list(seeds) for seeds in apart.points["beta_cc"].values()] == [[0], [1]]


def test_unknown_factors_and_missing_sweeps_are_refused(many, trained):
    with pytest.raises(ValueError, match="unknown factor 'beta'; known: beta_cc, beta_fa"):
        results.sweep(many, "beta")
    with pytest.raises(ValueError, match="no sweep, .* in β_cc alone"):
        results.sweep([run for run in many if "β_cc" not in run.variant], "beta_cc")
    with pytest.raises(ValueError, match="no sweep"):
        results.sweeps([run for run in many if run.variant])  # without the default arm


def test_training_flops_by_hand(trained):
    student, teacher = (
        count_flops(pckd.create_model(name, num_classes=3, in_channels=1), (1, 8, 8))
        for name in ("resnet8", "resnet14")
    )
    assert training_flops(trained["supervised"]) == 2 * 40 * 3 * student
    assert training_flops(trained["KD"]) == 2 * 40 * (3 * student + teacher)
    assert training_flops(trained["PCKD"]) == 2 * 40 * 4 * (3 * student + teacher)
    custom = variant_of(trained["KD"], 50, parts={"model": {"name": None}})
    with pytest.raises(ValueError, match="network of your own"):
        training_flops(custom)


def test_budget_shows_accuracy_by_epochs_and_by_compute(many, trained):
    found = panels(results.budget(many))
    left, right = found["by epochs"], found["by compute of student and teacher"]
    for title, means in (("supervised", (51, 60.5)), ("KD", (76, 88.5)), ("PCKD", (81, 90.5))):
        by_epochs = drawn_points(left, figures.COLORS[title])
        assert list(by_epochs) == [2, 4] and [point[0] for point in by_epochs.values()] == pytest.approx(means)
        cost = training_flops(trained[title]) / 1e12
        by_cost = drawn_points(right, figures.COLORS[title])
        assert list(by_cost) == pytest.approx([cost, 2 * cost])
        assert list(by_cost.values()) == list(by_epochs.values())
    assert left.get_xscale() == right.get_xscale() == "log"


def markers(figure):
    """Return what a figure of compute shows: label of each marker → x, mean, and whether it is filled."""
    lines = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    return {
        line.get_label(): (*line.get_xydata()[0], to_hex(line.get_markerfacecolor()) == to_hex(line.get_color()))
        for line in lines
    }


def test_compute_shows_one_marker_per_arm(many, trained):
    figure = figures.accuracy_against_compute(many)
    found, ax = markers(figure), figure.axes[0]
    assert len({x for x, *_ in found.values()}) == 11  # arms of equal compute are side by side
    for title, means in (("supervised", (51, 60.5)), ("KD", (76, 88.5)), ("PCKD", (81, 90.5))):
        for epochs, mean in zip((2, 4), means, strict=True):
            x, y, filled = found.pop(f"{title}, {epochs} epochs")
            cost = training_flops(trained[title]) / 1e12 * epochs / 2
            assert (y, filled) == (mean, True) and x == pytest.approx(cost, rel=0.1)
    assert {name: point[1:] for name, point in found.items()} == {
        "PCKD, β_cc = 0.05, 2 epochs": (70.5, False),
        "PCKD, β_cc = 0, 2 epochs": (78.5, False),
        "PCKD, β_fa = 5, 2 epochs": (79.5, False),
        "PCKD, β_ca = 10, 2 epochs": (77.5, False),
        f"PCKD, ε = {1.01**120:.4g}, 2 epochs": (76.5, False),
    }
    assert ax.get_xscale() == "log" and len({line.get_marker() for line in ax.lines} - {"None"}) == 3
    assert len(figure.runs) == len(many)


def test_best_arms_are_those_that_no_cheaper_arm_reaches(many):
    best = [(point.arm.title, point.arm.epochs) for point in best_by_compute(find_compute(many))]
    assert best == [("supervised", 2), ("KD", 2), ("KD", 4), ("PCKD", 4)]  # PCKD has four views
    figure = figures.accuracy_against_compute(many)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["1  supervised, 2 epochs", "2  KD, 2 epochs", "3  KD, 4 epochs", "4  PCKD, 4 epochs"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "3", "4"]
    (dashed,) = [line for line in figure.axes[0].lines if line.is_dashed()]
    assert dashed.get_ydata().tolist() == [51, 76, 88.5, 90.5]
    point = find_compute(many)[0]
    higher, costlier = point._replace(top1=summarise([90])), point._replace(teraflops=2 * point.teraflops)
    assert best_by_compute([point, higher, costlier]) == [higher]


def test_compute_draws_intervals_for_three_seeds(trained):
    runs = [variant_of(trained["KD"], 50 + seed, seed) for seed in range(3)]
    runs += [variant_of(trained["supervised"], top1, seed) for seed, top1 in enumerate((1, 99))]
    figure = figures.accuracy_against_compute([trained["teacher"], *runs])
    (interval,) = [line for line in figure.axes[0].lines if line.get_marker() == "None" and not line.is_dashed()]
    expected = summarise([50, 51, 52])
    assert interval.get_ydata() == pytest.approx([expected.low, expected.high])
    note = " ".join(figure._supxlabel.get_text().split())
    assert note.startswith("Mean over seeds, and its 95 % confidence interval for three seeds or more. tiny")
    assert len(figure.runs) == 5  # without the teacher


def test_no_text_of_the_figure_of_compute_is_cut_off(trained):
    runs = [variant_of(trained["KD"], 50 + n, parts={"method": {"title": f"method {n}"}}) for n in range(9)]
    runs += [variant_of(trained["PCKD"], 99, **dict.fromkeys(("beta_cc", "beta_fa", "beta_ca", "temperature"), 2.5))]
    figure = figures.accuracy_against_compute(runs)
    renderer = (canvas := FigureCanvasAgg(figure)).get_renderer()
    canvas.draw()
    ax, below = figure.axes
    for text in (*figure.legends, figure._supxlabel, below.get_legend(), ax.xaxis.label, ax.yaxis.label):
        box = text.get_window_extent(renderer)
        assert box.x0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y0 > -1 and box.y1 < figure.bbox.y1 + 1, text
    assert below.get_legend().get_window_extent(renderer).y0 >= figure._supxlabel.get_window_extent(renderer).y1
    entries = figure.legends[0].get_lines()
    assert len({(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in entries}) == 11


def test_compute_needs_networks_of_the_package(trained):
    with pytest.raises(ValueError, match="network of your own"):
        figures.accuracy_against_compute(variant_of(trained["KD"], 50, parts={"model": {"name": None}}))


def test_the_budget_caption_explains_error_bars_and_seed_counts(many):
    def note(runs):
        return " ".join(results.budget(runs)._supxlabel.get_text().split())

    assert note(many).startswith("Mean ± standard deviation, one dot per seed. tiny, ")
    more = [*many, variant_of(many[0], 9, 0, epochs=8), variant_of(many[0], 9, 2)]
    numbers = "Number of seeds: 2 or 3 at 2, 2 at 4, 1 at 8 epochs."
    assert note(more).startswith(f"Mean ± standard deviation, one dot per seed. {numbers} ")


def test_budget_uses_arms_with_several_lengths_on_the_same_data(many):
    plain = {m: [2, 4] for m in ("supervised", "KD", "PCKD")}
    assert {name: list(of) for name, of in find_budgets(many).items()} == plain
    twice = find_budgets([*many, variant_of(many[0], 9, 0, epochs=8, beta_cc=0)])
    assert {name: list(of) for name, of in twice.items()} == {**plain, "PCKD, β_cc = 0": [2, 8]}
    assert [len(seeds) for seeds in twice["PCKD, β_cc = 0"].values()] == [2, 1]
    other = variant_of(many[0], 9, 0, epochs=8, parts={"data": {"fingerprint": "other"}})
    once = variant_of(many[0], 9, 0, epochs=8, beta_kd=0)
    assert find_budgets([*many, other, once]) == find_budgets(many)
    with pytest.raises(ValueError, match="no method was trained with several numbers of epochs"):
        results.budget([run for run in many if len(run.history) == 2])


def test_comparison_table_by_hand(many):
    table = results.comparison_table(many)
    assert len(table) == 11
    row = table[(table["method"] == "PCKD") & (table["variant"] == "") & (table["epochs"] == 2)].iloc[0]
    assert (row["data"], row["teacher"], row["student"], row["n"]) == ("tiny", "resnet14", "resnet8", 2)
    assert row["mean"] == 81 and row["sd"] == pytest.approx(2**0.5)
    assert (row["low"], row["high"]) == pytest.approx(summarise([80, 82])[2:4])
    assert (row["minus_kd"], row["minus_kd_sd"], row["paired_n"]) == (5, 0, 2)  # 80 − 75 and 82 − 77
    supervised = table[(table["method"] == "supervised") & (table["epochs"] == 4)].iloc[0]
    assert supervised["minus_kd"] == -28 and np.isnan(supervised["teacher"] or np.nan)
    kd = table[table["method"] == "KD"]
    assert kd["minus_kd"].isna().all() and (kd["paired_n"] == 0).all()


def test_the_difference_to_kd_requires_exactly_one_kd_arm(many):
    without = results.comparison_table([run for run in many if run.settings["method"]["title"] != "KD"])
    assert without["minus_kd"].isna().all()
    two_kd_arms = [*many, variant_of(many[12], 60, 0, parts={"teacher": {"name": "resnet56"}})]
    assert two_kd_arms[-1].title.startswith("KD")
    table = results.comparison_table(two_kd_arms)
    supervised = table[(table["method"] == "supervised") & (table["epochs"] == 2)]
    assert supervised["minus_kd"].isna().all()  # KD was trained with two teachers
    assert table[(table["variant"] == "") & (table["method"] == "PCKD")]["minus_kd"].notna().all()


def test_only_the_first_of_two_runs_with_the_same_seed_counts(trained):
    table = results.comparison_table([variant_of(trained["KD"], 70), variant_of(trained["KD"], 10)])
    assert table[["n", "mean"]].values.tolist() == [[1, 70]]


def test_published_numbers_are_read_from_the_files():
    table = results.published_table()
    assert list(table) == ["dataset", "teacher", "student", "method", "metric", "value", "source"]
    gains = results.published_gains(table)
    assert gains.shape == (22, 7)
    assert gains.loc["KD", ("cifar100", "wrn_40_2", "wrn_16_2")] == pytest.approx(74.92 - 73.26)
    assert np.isnan(gains.loc["MLD", ("cifar100", "resnet110", "resnet20")])  # not published
    assert list(gains.index[[0, -1]]) == ["KD", "PCKD"]
    imagenet = table[table["dataset"] == "imagenet"]
    assert imagenet.set_index("method")["value"].to_dict() == {"DKD": 71.70, "KD": 71.03}
    assert len(table.drop_duplicates(["dataset", "teacher", "student"])) == 13


def test_missing_published_numbers_raise_an_error(tmp_path, many):
    with pytest.raises(ValueError, match="no cifar100_same_family.csv in .* data/paper of the repository"):
        results.published_and_measured(many, tmp_path)


def test_published_and_measured_gains_have_separate_panels(many):
    figure = results.published_and_measured(many)
    left, right = figure.axes
    assert [part._suptitle.get_text() for part in figure.subfigs] == ["Published", "Measured here"]
    assert "CIFAR-100, 240 epochs" in left.get_title(loc="left")
    assert "tiny,\n2 epochs, resnet14 → resnet8" in right.get_title(loc="left")
    assert to_hex(left.get_facecolor()) != to_hex(right.get_facecolor())

    gains = results.published_gains(results.published_table())
    assert [label.get_text() for label in left.get_yticklabels()][-2:] == ["PCKD without L_KD", "PCKD"]
    assert np.allclose(left.collections[-1].get_offsets()[:, 0], gains.loc["PCKD"])
    assert not left.collections[-1].get_facecolor().size  # published dots are open, measured ones filled

    labels = [label.get_text() for label in right.get_yticklabels()]
    assert labels == ["KD", "PCKD", "PCKD, β_cc = 0"]  # other points of the sweep are left out
    measured = [sorted(dots.get_offsets()[:, 0]) for dots in right.collections]
    assert measured == [[25, 25], [30, 30], [27, 28]]
    assert right.collections[0].get_facecolor().size


def test_the_interval_of_a_gain_comes_from_paired_differences(trained):
    gains = 10, 13, 11
    runs = [variant_of(trained["supervised"], 50 + seed, seed) for seed in range(3)]
    runs += [variant_of(trained["KD"], 50 + seed + gain, seed) for seed, gain in enumerate(gains)]
    right = results.published_and_measured(runs).axes[1]
    wanted = summarise(gains)
    ends = [line.get_xdata() for line in right.lines if line.get_linewidth() == 4]
    assert np.allclose(ends, [[wanted.low, wanted.high]])


def test_without_runs_to_compare_an_error_is_raised(trained):
    with pytest.raises(ValueError, match="nothing to compare"):
        results.published_and_measured([trained["KD"], trained["PCKD"]])


def test_learning_curves_show_mean_and_band_over_seeds(trained):
    runs = [variant_of(trained["KD"], 70), variant_of(trained["KD"], 80, 1), variant_of(trained["PCKD"], 85)]
    figure = results.learning_curves(runs)
    ax = panels(figure)["accuracy on test images"]
    assert len(ax.lines) == 2 and len(ax.collections) == 1
    assert ax.lines[0].get_ydata()[-1] == 75
    band = ax.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 2][:, 1].max() == pytest.approx(75 + 10 / 2**0.5)
    assert legend_texts(figure) == ["KD resnet8", "PCKD resnet8"]


def test_learning_curves_do_not_merge_teachers_and_show_validation_accuracy(trained):
    other = {"teacher": {"fingerprint": "0" * 16}}
    runs = [variant_of(trained["KD"], 70), variant_of(trained["KD"], 80, 1, parts=other)]
    found = panels(results.learning_curves(runs))
    assert [line.get_ydata()[-1] for line in found["accuracy on test images"].lines] == [70, 80]
    for run in runs[:1]:
        run.history = run.history.assign(val_top1=[50.0, 97.0], val_top5=99.0, val_cross_entropy=1.0)
    with_val = panels(results.learning_curves(runs))
    assert with_val.keys() == found.keys() | {"accuracy on validation images"}
    ax = with_val["accuracy on validation images"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[50, 97]] and ax.get_ylabel() == "top-1 accuracy (%)"
    assert ax.get_ylim()[1] >= 97


def test_labels_distinguish_variants_and_lengths(trained):
    plain, off, longer = (
        variant_of(trained["PCKD"], 1),
        variant_of(trained["PCKD"], 2, beta_cc=0),
        variant_of(trained["PCKD"], 3, epochs=4),
    )
    runs = [plain, off, longer]
    assert [run_label(run, runs[:2]) for run in runs[:2]] == ["PCKD resnet8", "PCKD resnet8, β_cc = 0"]
    assert [run_label(run, runs) for run in runs] == [
        "PCKD resnet8, 2 epochs",
        "PCKD resnet8, β_cc = 0",
        "PCKD resnet8, 4 epochs",
    ]
    figure = results.learning_curves(runs)
    assert len(legend_texts(figure)) == 3 == len(panels(figure)["accuracy on test images"].lines)


@pytest.mark.parametrize(
    "draw",
    [
        lambda runs: results.sweep(runs, "epsilon"),
        results.sweeps,
        results.budget,
        results.published_and_measured,
        results.learning_curves,
    ],
)
def test_no_text_is_cut_off_and_captions_name_the_seeds(draw, many):
    figure = draw(many)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ticks = [
        label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for label in axis.get_ticklabels(which="both")
    ]
    for text in set(figure.findobj(mpl.text.Text)) - set(ticks):  # ticks outside of an axis are not drawn
        box, page = text.get_window_extent(canvas.get_renderer()), figure.bbox
        if text.get_visible() and text.get_text() and box.width > 1:
            assert text.get_fontsize() >= 6.5
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
            assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text
    assert "seeds 0, 1" in figure._supxlabel.get_text().replace("\n", " ")


@pytest.mark.parametrize(
    "draw",
    [
        results.accuracy_against_compute,
        results.sweeps,
        results.budget,
        results.published_and_measured,
        results.comparison_table,
    ],
)
def test_without_runs_the_error_is_one_line(draw):
    for nothing in ([], ["runs/pckd"]):
        with pytest.raises(ValueError, match="no run to draw|drawn from runs") as error:
            draw(nothing)
        assert "\n" not in str(error.value)

import copy
import shutil

import pandas as pd
import pytest
from PIL import Image

import pckd_nb as pckd
from pckd_nb import runs as records
from pckd_nb.figures import collection
from pckd_nb.figures.collection import CAPTIONS, FIGURES, draw_all

from .conftest import make_data
from .test_figures_results import variant_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of a study: a teacher, three methods and a sweep point with two seeds each, and a second data set.

    Only the first seed has samples, a gallery and an embedding.
    """
    root = tmp_path_factory.mktemp("study")
    data = make_data(train=60, test=40, classes=4)
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=20)
    teacher = pckd.fit(pckd.create_model("resnet14", data, seed=0), data, recipe, progress=False)
    teacher.save(root / "teachers" / "tiny", weights=False)
    methods = {"supervised": pckd.Supervised(), "kd": pckd.KD(), "pckd": pckd.PCKD()}
    for name, method in methods.items():
        student = pckd.create_model("resnet8", data, seed=0)
        run = pckd.distill(student, teacher, data, method, recipe, progress=False)
        if run.settings["teacher"]:
            run.settings["teacher"]["run"] = "../../../../teachers/tiny"
        run.save(root / "tiny" / "resnet14-resnet8" / name / "seed0", weights=False)
        bare = {
            name: None for name in ("cross_entropy", "difficulty", "labels", "ground_truth", "gallery", "embedding")
        }
        points = {"seed1": variant_of(run, 70, 1)}
        points |= {f"long{seed}": variant_of(run, 80, seed, epochs=4) for seed in (0, 1)}
        if name == "pckd":
            points |= {f"cc{seed}": variant_of(run, 60 + seed, seed, beta_cc=0.05) for seed in (0, 1)}
            points["uniform"] = variant_of(run, 65, 0, strategy="uniform")
        for label, point in points.items():
            vars(point).update(bare)
            point.save(root / "tiny" / "resnet14-resnet8" / name / label, weights=False)
        if name != "supervised":
            other = copy.deepcopy(run)
            other.settings["data"] |= {"name": "folder:some/Other set", "fingerprint": "other"}
            other.save(root / "other" / name, weights=False)
    return root


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    out, messages = tmp_path_factory.mktemp("out") / "figures", []
    return draw_all(folder, out, say=messages.append), messages


def figure_names(paths):
    return [path.stem for path in paths if path.suffix == ".png"]


def test_every_figure_has_a_caption_and_single_data_set_figures_are_drawn_for_each(drawn):
    paths, messages = drawn
    assert messages == []
    assert [name for name in figure_names(paths) if not name.endswith("_Other_set")] == list(FIGURES)
    assert {"06_feature_map_Other_set", "07_trajectories_Other_set", "11_learning_curves_Other_set"} <= set(
        figure_names(paths)
    )
    assert not {"01_motivation_Other_set", "10_published_Other_set", "05_sweeps_Other_set"} & set(figure_names(paths))
    assert sorted(paths) == sorted(paths[0].parent.iterdir())  # no other files
    for path in paths:
        assert path.with_suffix(".txt").is_file() and path.with_suffix(".png").is_file()


def test_the_same_runs_give_identical_files(drawn, folder, tmp_path):
    again = draw_all(folder, tmp_path)
    assert [path.name for path in again] == [path.name for path in drawn[0]]
    for first, second in zip(drawn[0], again, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_png_metadata_has_title_runs_and_version(drawn, folder):
    fingerprints = {run.fingerprint for run in records.load_runs(folder)}
    for path in drawn[0]:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                metadata = picture.text
                assert picture.info["dpi"] == pytest.approx((160, 160), abs=0.1)
            assert set(metadata) == {"Title", "Runs", "Software"}  # and no date
            assert metadata["Title"] == path.stem
            assert metadata["Software"] == f"pckd_nb {pckd.__version__}"
            assert metadata["Runs"] and set(metadata["Runs"].split()) <= fingerprints


def test_a_caption_describes_the_figure_and_its_runs(drawn, folder):
    (path,) = [path for path in drawn[0] if path.name == "05_sweeps.txt"]
    description, training = path.read_text(encoding="utf-8").strip().split("\n\n")
    assert description.startswith("Top-1 accuracy against (a) β_cc")
    assert "\n" not in description and "  " not in description
    assert "tiny, 60 training and 40 test images of 8×8 pixels; 2 epochs; seeds 0, 1" in training
    assert training.endswith(f"Drawn by pckd_nb {pckd.__version__}.")
    for run in records.load_runs(folder / "tiny" / "resnet14-resnet8" / "pckd"):
        on_sweep = len(run.history) == 2 and "strategy" not in run.variant
        assert (run.fingerprint[:8] in training) == on_sweep
    assert list(CAPTIONS) == list(FIGURES) and all(len(text) > 80 for text in CAPTIONS.values())


def test_only_selects_figures_by_prefix(folder, tmp_path):
    assert figure_names(draw_all(folder, tmp_path, only=["05", "09_bud"])) == ["05_sweeps", "09_budget"]
    with pytest.raises(
        ValueError, match="no name of a figure begins with 'nonsense'; known: 01_motivation, 02_framework"
    ):
        draw_all(folder, tmp_path, only=["05", "nonsense"])


def test_a_figure_without_its_runs_is_left_out_with_one_line(folder, tmp_path):
    part = tmp_path / "runs"
    for name in ("supervised", "kd", "pckd"):
        shutil.copytree(folder / "tiny" / "resnet14-resnet8" / name / "seed1", part / name)
    messages = []
    paths = draw_all(part, tmp_path / "out", say=messages.append)
    assert figure_names(paths) == ["07_weights", "10_published", "11_learning_curves", "12_compute"]
    assert len(messages) == len(FIGURES) - len(figure_names(paths)) and not any("\n" in line for line in messages)
    assert "05_sweeps is left out: the runs contain no sweep, which needs PCKD runs that differ" in " ".join(messages)
    assert "06_feature_map is left out: there is no PCKD run without options that has recorded embedding" in " ".join(
        messages
    )


def test_by_default_left_out_figures_are_reported_on_stderr(folder, tmp_path, capsys):
    draw_all(folder / "tiny" / "resnet14-resnet8" / "kd", tmp_path, only=["05", "11"])
    written = capsys.readouterr()
    assert written.out == "" and written.err.startswith("05_sweeps is left out: ")


def test_if_nothing_can_be_drawn_an_error_is_raised_and_nothing_written(folder, tmp_path):
    alone = folder / "tiny" / "resnet14-resnet8" / "supervised" / "seed1"
    with pytest.raises(ValueError, match="no figure can be drawn from the runs in .*: 05_sweeps is left out"):
        draw_all(alone, tmp_path / "out", only=["05"])
    with pytest.raises(FileNotFoundError, match="no finished run"):
        draw_all(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; figures need a folder"):
        draw_all(folder, tmp_path / "file")


def test_the_teacher_is_found_among_the_runs_or_by_its_students_path(folder):
    everything = records.table(records.load_runs(folder))
    pckd_run = collection._default_pckd_run(everything, "embedding")
    assert collection._find_teacher(pckd_run, everything).path == folder / "teachers" / "tiny"
    without = records.table(records.load_runs(folder / "tiny"))
    found = collection._find_teacher(collection._default_pckd_run(without, "embedding"), without)
    assert found.path.resolve() == folder / "teachers" / "tiny"
    pckd_run.settings["teacher"]["run"] = "../nowhere"
    assert collection._find_teacher(pckd_run, without) is None
    pckd_run.settings["teacher"]["run"] = None
    assert collection._find_teacher(pckd_run, without) is None


def test_teacher_and_methods_have_one_run_per_method_with_one_seed(folder):
    chosen = collection._teacher_and_methods(records.table(records.load_runs(folder)))
    assert [run.title for run in chosen] == ["supervised resnet14", "supervised resnet8", "KD resnet8", "PCKD resnet8"]
    assert all(run.settings["seed"] == 0 and not run.variant and len(run.history) == 2 for run in chosen)


def test_the_main_comparison_is_the_one_with_most_runs(folder):
    rows = collection._main_comparison(records.table(records.load_runs(folder)))
    assert set(rows["data"]) == {"tiny"} and set(rows["epochs"]) == {2} and set(rows["student"]) == {"resnet8"}
    assert rows["method"].value_counts().to_dict() == {"PCKD": 5, "KD": 2, "supervised": 2}
    with pytest.raises(ValueError, match="no distilled run"):
        collection._main_comparison(pd.DataFrame({"teacher": [None], "data": ["tiny"]}))


def test_a_teacher_identical_to_the_supervised_student_is_drawn_once(tmp_path):
    data, recipe = make_data(train=60, test=40, classes=4), pckd.get_recipe("classroom", epochs=1, batch_size=20)
    root = tmp_path / "runs"
    teacher = pckd.fit(pckd.create_model("resnet8", data, seed=0), data, recipe, progress=False, out=root / "a_teacher")
    for name, method in {"supervised": pckd.Supervised(), "kd": pckd.KD(), "pckd": pckd.PCKD()}.items():
        student = pckd.create_model("resnet8", data, seed=0)
        pckd.distill(student, teacher, data, method, recipe, progress=False, out=root / "resnet8-resnet8" / name)
    everything = records.table(records.load_runs(root))
    chosen = [(run.title, run.path.name) for run in collection._teacher_and_methods(everything)]
    students = [("supervised resnet8", "supervised"), ("KD resnet8", "kd"), ("PCKD resnet8", "pckd")]
    assert chosen == [("supervised resnet8", "a_teacher"), *students]
    only_students = records.table(records.load_runs(root / "resnet8-resnet8"))
    assert [(run.title, run.path.name) for run in collection._teacher_and_methods(only_students)] == chosen
    drawn = figure_names(draw_all(root, tmp_path / "out", only=["08", "10"]))
    assert drawn == ["08_logit_correlation", "08_center_geometry", "10_published"]

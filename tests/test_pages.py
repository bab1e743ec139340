"""The Python code on the pages runs as it stands there, and the README stays short."""

import importlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision import datasets

import pckd_nb as pckd

ROOT = Path(__file__).parents[1]
README_WORDS = 450  # without code, addresses and equations: at most two and a half screens


def code_blocks(page: str) -> list[str]:
    """Return the Python code of a page, one text per block."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.S | re.M)


def run_block(code: str, **names) -> dict:
    """Execute a block and return its names."""
    exec(compile(code, "page", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_readme_trains_a_teacher_and_a_student(capsys):
    (code,) = code_blocks("README.md")
    assert len([line for line in code.splitlines() if line]) <= 7  # the import and six lines
    run = run_block(code)["run"]
    assert run.finished and run.method_settings["beta_kd"] == 1 and run.settings["teacher"]
    assert capsys.readouterr().out.splitlines()[-1] == str(run.accuracy)


def test_the_readme_is_short_and_links_every_notebook():
    text = (ROOT / "README.md").read_text("utf-8")
    prose = re.sub(r"^```.*?^```|\$\$.*?\$\$|(?<=\])\([^)]*\)", "", text, flags=re.S | re.M)
    assert len(re.findall(r"\w[^\s|·]*", prose)) <= README_WORDS
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"](notebooks/{notebook.name})" in text
    assert f"| other methods | {len(pckd.methods.BASELINES) + 1} |" in text  # with KD


def test_the_geometry_page_compares_a_student_with_its_teacher(data, monkeypatch, capsys):
    (code,) = code_blocks("docs/geometry.md")
    monkeypatch.setattr(pckd, "load_dataset", lambda name: data, raising=False)
    names = run_block(code)
    assert len(names["table"]) == 3 and names["table"]["rsa_means"].notna().all()
    assert "cka_centers" in capsys.readouterr().out and len(names["gains"]) == data.num_classes
    assert Path("collapse.png").stat().st_size > 10_000 and Path("trajectories.png").stat().st_size > 10_000


def test_train_and_compare_shows_what_a_run_has(data, monkeypatch):
    code, *_ = code_blocks("docs/experiments.md")
    monkeypatch.setattr(pckd, "load_dataset", lambda name: data, raising=False)
    names = run_block(code)
    assert names["run"].finished and len(names["run"].history) == names["run"].settings["recipe"]["epochs"]
    assert names["run"].difficulty.shape == (len(names["run"].history), len(data.train))


def test_train_and_compare_explains_every_column_of_the_table_of_samples(data, recipe):
    networks = [pckd.create_model(name, data, seed=0) for name in ("resnet8", "resnet14")]
    pckd.distill(*networks, data, pckd.PCKD(), recipe, progress=False, out="runs/pckd")
    *_, code = code_blocks("docs/experiments.md")
    table = run_block(code)["samples"]
    assert len(pd.read_csv("hard.csv")) == (table["region"] == "hard to learn").sum()
    page = (ROOT / "docs" / "experiments.md").read_text("utf-8")
    explained = set(re.findall(r"`(\w+)`", page[page.index("| column | what it measures") :].split("\n\n")[0]))
    described = {"id", "label", "class", "prediction", "predicted_class", "known_difficulty"}
    assert explained == set(table) - described


def test_grids_are_compared_over_their_teachers(tmp_path, capsys):
    for number, gain in enumerate((1.0, 2.0, 6.0)):
        rows = [(arm, seed, 60.0 + seed + gain * (arm == "pckd")) for arm in ("kd", "pckd") for seed in (0, 1)]
        table = pd.DataFrame(rows, columns=["arm", "seed", "top1"])
        table = table.assign(data="digits", teacher="resnet14", student="resnet8", pair="resnet14-resnet8")
        (tmp_path / "runs" / f"teacher{number}").mkdir(parents=True)
        table.to_csv(tmp_path / "runs" / f"teacher{number}" / "results.csv", index=False)
    _, code, _ = code_blocks("docs/experiments.md")
    found = run_block(code)["over_teachers"].set_index("arm").loc["pckd"]
    assert (found["teachers"], found["difference"], found["pairs"]) == (3, 3.0, 3)
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("| resnet14-resnet8 | pckd | 3 | **63.50 ± 2.65** | +3.00")
    )


def test_measures_of_wrong_labels_are_compared(capsys):
    data = pckd.load_dataset("digits", train_size=300, label_noise=0.2)
    pckd.fit("resnet8", data, epochs=2, out="runs/noisy", progress=False)
    (code,) = code_blocks("docs/data.md")
    run_block(code)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["measure", *(f"precision_at_{k}" for k in (50, 100, 200)), "average_precision", "auc"]
    assert [line.split()[0] for line in lines[1:]] == list(pckd.measures.HARD_IS)


def test_networks_come_from_three_places(data):
    pytest.importorskip("timm")
    (code,) = code_blocks("docs/networks.md")
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, data.num_classes))
    run_block(code, pckd=pckd, data=data, my_module=layers)


class TestMakeItYours:
    def test_a_torch_dataset_with_adamw_cosine_randaugment_and_tensorboard(self, monkeypatch, tmp_path):
        images, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 4
        asked = []

        def fashion_mnist(root, train=True, download=False):
            asked.append((root, train, download))
            return TensorDataset(images, labels) if train else TensorDataset(images[:8], labels[:8])

        monkeypatch.setattr(datasets, "FashionMNIST", fashion_mnist)
        code = code_blocks("docs/make_it_yours.md")[0]
        run = run_block(code)["run"]
        assert asked == [("data", True, True), ("data", False, False)]
        recipe = run.settings["recipe"]
        assert recipe["optimizer"].startswith("torch.optim.adamw.AdamW(") and recipe["schedule"] == "cosine"
        assert "RandAugment" in recipe["augment"] and recipe["warmup_epochs"] == 1 and "val_top1" in run.history
        assert list((tmp_path / "logs").rglob("events.out.tfevents*"))

    def test_a_method_and_a_callback_of_your_own(self, data):
        _, method, callback = code_blocks("docs/make_it_yours.md")
        scaled = run_block(method, pckd=pckd)["ScaledPCKD"](scale=5)
        stop = run_block(callback, pckd=pckd)["StopWhenGood"](top1=0)
        student, teacher = (pckd.create_model(name, data, seed=0) for name in ("resnet8", "resnet14"))
        run = pckd.distill(student, teacher, data, scaled, epochs=3, callbacks=[stop], progress=False)
        assert run.method_settings["scale"] == 5 and len(run.history) == 1
        assert run.settings["finished_early"] == "test top-1 has reached 0 %"


@pytest.fixture(scope="module")
def make_methods():
    """The script that writes the page of methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield importlib.import_module("make_methods")


class TestThePageOfMethods:
    def test_it_is_up_to_date(self, make_methods):
        page = make_methods.PAGE.read_text("utf-8")
        assert make_methods.fill(page, make_methods.tables()) == page, "run python docs/make_methods.py"

    def test_every_method_has_one_row_in_both_tables(self, make_methods):
        tables = make_methods.tables()
        rows = [line for place in make_methods.PLACES for line in tables[place].splitlines()[2:]]
        names = [*pckd.methods.METHODS, *pckd.methods.BASELINES]
        assert len(rows) == len(names)
        for row in rows:
            cells = row.strip("| ").split(" | ")
            assert len(cells) == 7 and cells[1], row
        rows = tables["equations"].splitlines()[2:]
        assert len(rows) == len(names)
        for row in rows:
            cells = row.strip("| ").split(" | ")
            assert len(cells) == 3 and cells[2], row
            assert cells[1] == "see its API page" or (cells[1][0] + cells[1][-1] == "$$" and cells[1].count("$") == 2)
        assert tables["published"].count("\n") == 1 + 12

    def test_the_picture_has_one_row_per_measured_method(self, make_methods, tmp_path):
        measured = json.loads(make_methods.MEASURED.read_text("utf-8"))
        for pair in measured["pairs"].values():
            pair["methods"]["KDSVD"] = {"refused": "other widths"}
        make_methods.draw(measured, tmp_path / "costs.png")
        with Image.open(tmp_path / "costs.png") as picture, Image.open(make_methods.PICTURE) as stored:
            assert picture.width == stored.width == 800
        tables = make_methods.family_table([make_methods.method_info("KDSVD")], measured)
        assert "not for this pair" in tables

    def test_the_table_of_trials_has_one_row_per_method(self, make_methods):
        rows = make_methods.tables()["trials"].splitlines()[2:]
        assert len(rows) == len([*pckd.methods.METHODS, *pckd.methods.BASELINES])
        for row in rows:
            cells = row.strip("| ").split(" | ")
            assert len(cells) == 1 + len(make_methods.TRIALS) and all(cells[1:]), row

    @pytest.mark.parametrize(
        ("results", "cell"),
        [
            ([{"status": "passed"}], "✓"),
            ([{"status": "passed", "found": "without_x"}, {"status": "passed"}], r"✓ (without\_x)"),
            ([{"status": "passed"}, {"status": "refused", "found": "x"}], "✓ 1 of 2, others refused"),
            ([{"status": "refused", "found": "x"}], "refused"),
            ([{"status": "failed", "found": "x"}, {"status": "refused", "found": "y"}], "failed and refused"),
            ([{}], "not tried"),
            ([{"status": "passed"}, {}], "not tried"),
        ],
    )
    def test_a_cell_of_the_table_of_trials(self, results, cell, make_methods):
        assert make_methods.trial_cell(results) == cell

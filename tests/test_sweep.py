"""Every argument of the Python API refuses the most common wrong values.

`ENTRIES` gives the kind of each argument and how to call the function, `WRONG_VALUES` the wrong values of each kind.
The call must fail with one line that names the argument or the value, and must write nothing. Add new arguments of
public functions: `test_every_argument_is_tested` fails without them. The command line has its own table, `BAD` in
test_properties_cli.py.
"""

import dataclasses
import inspect
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import pckd_nb as pckd
from pckd_nb import Dataset, analysis, checkpoints, experiments, figures, leaderboard, runs
from pckd_nb.figures import collection

QUIET = dict(epochs=1, batch_size=8, progress=False, accelerator="cpu", precision="32-true")
IMAGES, LABELS = torch.zeros(12, 1, 8, 8), torch.arange(12) % 3
RESULTS = pd.DataFrame({"pair": "p", "arm": ["kd", "pckd"], "seed": 0, "top1": 60.0, "teacher": "a", "student": "b"})


class Workspace:
    """A folder with files that users confuse, and valid values of all arguments."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "empty").mkdir()
        (folder / "empty.file").write_bytes(b"")
        (folder / "notes.txt").write_text("some notes\n")
        Image.new("L", (8, 8)).save(folder / "picture.png")
        self.data = Dataset.from_arrays((IMAGES, LABELS), (IMAGES, LABELS), mean=(0.5,), std=(0.5,))
        self.run = pckd.fit(pckd.create_model("resnet8", self.data, seed=0), self.data, out=folder / "run", **QUIET)
        torch.save(self.run.student_state, folder / "weights.pth")
        rows = [("picture.png", name, part) for part in ("train", "test") for name in "ab"]
        pd.DataFrame(rows, columns=["path", "class", "split"]).to_csv(folder / "table.csv", index=False)

    @property
    def network(self):
        return pckd.create_model("resnet8", self.data, seed=1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Workspace(tmp_path_factory.mktemp("sweep"))


NOT_PATHS = {"a number": 5, "bytes": b"x", "empty": "", "a null": "a\0b", "no such home": "~nobody9/x"}
FILES = {"a missing one": "nowhere", "an empty file": "empty.file", "text": "notes.txt", "a picture": "picture.png"}
WRONG_VALUES = {  # kind of argument → wrong values by name
    "run folder": {**NOT_PATHS, **FILES, "an empty folder": "empty", "weights": "weights.pth", "None": None},
    "file of weights": {**NOT_PATHS, **FILES, "an empty folder": "empty", "an address": "ftp://x/y", "None": None},
    "table": {**NOT_PATHS, **FILES, "a folder": "empty", "a list": [1], "a dict": {"path": 1}, "None": None},
    "folder to read": {**NOT_PATHS},
    "folder to write": {**NOT_PATHS, "a file": "notes.txt", "below a file": "notes.txt/x"},
    "network": {"None": None, "a number": 5, "empty": "", "unknown name": "rsnet8", "a class": nn.Linear,
                "no last layer": nn.Identity(), "a tensor": IMAGES, "a missing folder": "runs/nowhere",
                "a file": "notes.txt"},
    "module": {"None": None, "a number": 5, "a name": "resnet8", "a class": nn.Linear, "no last layer": nn.Identity()},
    "data": {"None": None, "a number": 5, "empty": "", "unknown name": "digit", "a class": Dataset, "a list": [IMAGES],
             "a tensor": IMAGES, "a folder that is not there": "folder:nowhere", "a path": "empty"},
    "method": {"None": None, "a number": 5, "empty": "", "unknown name": "pckdd", "a network": nn.Identity(),
               "a list": ["kd"]},
    "recipe": {"None": None, "a number": 5, "empty": "", "unknown name": "class"},
    "name of a network": {"None": None, "a number": 5, "empty": "", "unknown name": "rsnet8", "a class": nn.Linear},
    "split": {"None": None, "a number": 5, "empty": "", "unknown name": "valid"},
    "count": {"text": "5", "half": 1.5, "negative": -1, "nan": float("nan"), "a list": [5], "an array": np.ones(2)},
    "share": {"text": "0.1", "negative": -0.1, "one": 1, "nan": float("nan"), "percent": 10, "a list": [0.1]},
    "flag": {"text": "yes", "a number": 5, "None": None},
    "constants": {"a number": 0.5, "too many": (0.5,) * 4, "text": "0.5", "nan": (float("nan"),), "of 255": (123.7,)},
    "pixels": {"text": "8", "zero": 0, "half": 8.5, "negative": -8, "a list": [8, 8, 8]},
    "size of a file": {"too large": 10**9},
    "sum of a file": {"too short": "abc", "another": "0" * 64},
    "choice": {"a number": 5, "empty": "", "unknown name": "gpux"},
    "list": {"a number": 5, "text": "x", "of numbers": [5]},
    "layer": {"a number": 5, "empty": "", "unknown name": "layer9"},
    "text": {"a number": 5, "a list": ["x"], "a class": Dataset},
    "example": {"a number": 5, "text": "x", "of another size": IMAGES[:1, :, :4]},
    "data frame": {"None": None, "a number": 5, "text": "x", "a list": [1], "other columns": pd.DataFrame({"x": [1]})},
    "positive": {"text": "5", "negative": -1, "zero": 0, "nan": float("nan"), "a list": [5]},
    "arrays": {"None": None, "a number": 5, "images alone": IMAGES, "text": "images", "no labels": (IMAGES, None),
               "too few labels": (IMAGES, LABELS[:5]), "too many labels": (IMAGES, torch.arange(13) % 3),
               "one-hot labels": (IMAGES, torch.eye(3)[LABELS]), "nan": (IMAGES, [float("nan")] * 12),
               "negative labels": (IMAGES, LABELS - 1), "no images": (IMAGES[:0], LABELS[:0]),
               "text images": (["a"] * 12, LABELS), "two-dimensional": (IMAGES[:, 0, 0], LABELS)},
    "torch data set": {"None": None, "a number": 5, "text": "images", "pairs of text": [("a.png", 1)] * 12,
                       "dicts": [{"image": IMAGES[0], "label": 1}] * 12, "an empty list": []},
}  # fmt: skip

OUT = "new/out"
PAIR = "resnet56", "resnet20"
ENTRIES = {  # function, argument → kind, function that makes the call with a value
    ("load_run", "path"): ("run folder", lambda p, x: pckd.load_run(x)),
    ("load_run", "tables_only"): ("flag", lambda p, x: pckd.load_run("run", tables_only=x)),
    ("load_runs", "folder"): ("run folder", lambda p, x: runs.load_runs(x)),
    ("load_runs", "skip_damaged"): ("flag", lambda p, x: runs.load_runs(p.run.path, skip_damaged=x)),
    ("load_runs", "tables_only"): ("flag", lambda p, x: runs.load_runs(p.run.path, tables_only=x)),
    ("load_checkpoint", "model"): ("module", lambda p, x: pckd.load_checkpoint(x, "weights.pth")),
    ("load_checkpoint", "source"): ("file of weights", lambda p, x: pckd.load_checkpoint(p.network, x)),
    ("load_checkpoint", "sha256"): (
        "sum of a file", lambda p, x: pckd.load_checkpoint(p.network, "weights.pth", sha256=x),
    ),
    ("load_checkpoint", "size"): (
        "size of a file", lambda p, x: pckd.load_checkpoint(p.network, "weights.pth", size=x),
    ),
    ("load_checkpoint", "root"): (
        "folder to read", lambda p, x: pckd.load_checkpoint(p.network, "https://localhost:1/x.pth", root=x),
    ),
    ("fetch", "url"): ("file of weights", lambda p, x: checkpoints.fetch(x)),
    ("fetch", "sha256"): ("sum of a file", lambda p, x: checkpoints.fetch("https://localhost:1/x.pth", sha256=x[:9])),
    ("fetch", "root"): ("folder to read", lambda p, x: checkpoints.fetch("https://localhost:1/x.pth", root=x)),
    ("load_dataset", "name"): ("data", lambda p, x: pckd.load_dataset(x)),
    ("load_dataset", "root"): ("folder to read", lambda p, x: pckd.load_dataset("digits", x)),
    ("load_dataset", "train_size"): ("count", lambda p, x: pckd.load_dataset("digits", train_size=x)),
    ("load_dataset", "test_size"): ("count", lambda p, x: pckd.load_dataset("digits", test_size=x)),
    ("load_dataset", "image_size"): ("pixels", lambda p, x: pckd.load_dataset("stl10", image_size=x)),
    ("load_dataset", "workers"): ("count", lambda p, x: pckd.load_dataset("digits", workers=x)),
    ("load_dataset", "seed"): ("count", lambda p, x: pckd.load_dataset("digits", seed=x)),
    ("load_dataset", "val"): ("share", lambda p, x: pckd.load_dataset("digits", val=x)),
    ("load_dataset", "val_seed"): ("count", lambda p, x: pckd.load_dataset("digits", val=0.1, val_seed=x)),
    ("load_dataset", "label_noise"): ("share", lambda p, x: pckd.load_dataset("digits", label_noise=x)),
    ("load_dataset", "noise"): ("choice", lambda p, x: pckd.load_dataset("digits", label_noise=0.1, noise=x)),
    ("load_dataset", "noise_seed"): (
        "count", lambda p, x: pckd.load_dataset("digits", label_noise=0.1, noise_seed=x),
    ),
    ("load_dataset", "test"): ("flag", lambda p, x: pckd.load_dataset("digits", val=0.1, test=x)),
    ("with_validation", "share"): ("share", lambda p, x: p.data.with_validation(x)),
    ("with_validation", "seed"): ("count", lambda p, x: p.data.with_validation(0.3, x)),
    ("with_label_noise", "rate"): ("share", lambda p, x: p.data.with_label_noise(x)),
    ("with_label_noise", "kind"): ("choice", lambda p, x: p.data.with_label_noise(0.3, x)),
    ("with_label_noise", "seed"): ("count", lambda p, x: p.data.with_label_noise(0.3, seed=x)),
    ("noise_detection", "table"): ("data frame", lambda p, x: analysis.noise_detection(x, [True, False], ["ce"], (1,))),
    ("noise_detection", "flipped"): (
        "list", lambda p, x: analysis.noise_detection(RESULTS, x, ["top1"], (1,)),
    ),
    ("noise_detection", "measures"): (
        "list", lambda p, x: analysis.noise_detection(RESULTS, [True, False], x, (1,)),
    ),
    ("noise_detection", "k"): (
        "list", lambda p, x: analysis.noise_detection(RESULTS, [True, False], ["top1"], x),
    ),
    ("precision_at_k", "scores"): ("list", lambda p, x: analysis.precision_at_k(x, [True, False], 1)),
    ("precision_at_k", "flipped"): ("list", lambda p, x: analysis.precision_at_k([0.1, 0.2], x, 1)),
    ("precision_at_k", "k"): ("positive", lambda p, x: analysis.precision_at_k([0.1, 0.2], [True, False], x)),
    ("confident_learning", "labels"): ("list", lambda p, x: analysis.confident_learning(x, np.eye(3))),
    ("confident_learning", "probabilities"): ("list", lambda p, x: analysis.confident_learning([0, 1, 2], x)),
    ("from_arrays", "train"): ("arrays", lambda p, x: Dataset.from_arrays(x, (IMAGES, LABELS))),
    ("from_arrays", "test"): ("arrays", lambda p, x: Dataset.from_arrays((IMAGES, LABELS), x)),
    ("from_arrays", "val"): ("arrays", lambda p, x: Dataset.from_arrays(*[(IMAGES, LABELS)] * 2, val=x)),
    ("from_arrays", "classes"): ("list", lambda p, x: Dataset.from_arrays(*[(IMAGES, LABELS)] * 2, classes=x)),
    ("from_arrays", "name"): ("text", lambda p, x: Dataset.from_arrays(*[(IMAGES, LABELS)] * 2, name=x)),
    ("from_arrays", "mean"): ("constants", lambda p, x: Dataset.from_arrays(*[(IMAGES, LABELS)] * 2, mean=x, std=(1,))),
    ("from_arrays", "std"): ("constants", lambda p, x: Dataset.from_arrays(*[(IMAGES, LABELS)] * 2, mean=(0,), std=x)),
    ("from_arrays", "ids"): ("list", lambda p, x: Dataset.from_arrays(*[(IMAGES, LABELS)] * 2, ids=x)),
    ("from_torch", "ids"): ("list", lambda p, x: Dataset.from_torch(*[torch_data()] * 2, ids=x)),
    ("from_arrays", "default_views"): (
        "count", lambda p, x: Dataset.from_arrays(*[(IMAGES, LABELS)] * 2, default_views=x),
    ),
    ("from_torch", "train"): ("torch data set", lambda p, x: Dataset.from_torch(x, torch_data())),
    ("from_torch", "test"): ("torch data set", lambda p, x: Dataset.from_torch(torch_data(), x)),
    ("from_torch", "val"): ("torch data set", lambda p, x: Dataset.from_torch(torch_data(), torch_data(), val=x)),
    ("from_torch", "classes"): ("list", lambda p, x: Dataset.from_torch(torch_data(), torch_data(), classes=x)),
    ("from_torch", "name"): ("text", lambda p, x: Dataset.from_torch(torch_data(), torch_data(), name=x)),
    ("from_torch", "mean"): (
        "constants", lambda p, x: Dataset.from_torch(torch_data(), torch_data(), mean=x, std=(1,)),
    ),
    ("from_torch", "std"): ("constants", lambda p, x: Dataset.from_torch(torch_data(), torch_data(), mean=(0,), std=x)),
    ("from_torch", "default_views"): (
        "count", lambda p, x: Dataset.from_torch(torch_data(), torch_data(), default_views=x),
    ),
    ("from_table", "table"): ("table", lambda p, x: Dataset.from_table(x)),
    ("from_table", "image"): ("layer", lambda p, x: Dataset.from_table("table.csv", image=x)),
    ("from_table", "label"): ("layer", lambda p, x: Dataset.from_table("table.csv", label=x)),
    ("from_table", "split"): ("layer", lambda p, x: Dataset.from_table("table.csv", split=x)),
    ("from_table", "root"): ("folder to read", lambda p, x: Dataset.from_table("table.csv", root=x)),
    ("from_table", "image_size"): ("pixels", lambda p, x: Dataset.from_table("table.csv", image_size=x)),
    ("from_table", "workers"): ("count", lambda p, x: Dataset.from_table("table.csv", workers=x)),
    ("from_table", "classes"): ("list", lambda p, x: Dataset.from_table("table.csv", classes=x)),
    ("from_table", "name"): ("text", lambda p, x: Dataset.from_table("table.csv", name=x)),
    ("from_table", "mean"): ("constants", lambda p, x: Dataset.from_table("table.csv", mean=x, std=(1,) * 3)),
    ("from_table", "std"): ("constants", lambda p, x: Dataset.from_table("table.csv", mean=(0,) * 3, std=x)),
    ("from_table", "default_views"): ("count", lambda p, x: Dataset.from_table("table.csv", default_views=x)),
    ("create_model", "name"): ("name of a network", lambda p, x: pckd.create_model(x, p.data)),
    ("create_model", "data"): ("data", lambda p, x: pckd.create_model("resnet8", x)),
    ("create_model", "num_classes"): ("count", lambda p, x: pckd.create_model("resnet8", num_classes=x)),
    ("create_model", "in_channels"): ("count", lambda p, x: pckd.create_model("resnet8", num_classes=3, in_channels=x)),
    ("create_model", "seed"): ("count", lambda p, x: pckd.create_model("resnet8", p.data, seed=x)),
    ("as_classifier", "module"): ("module", lambda p, x: pckd.as_classifier(x)),
    ("as_classifier", "head"): ("layer", lambda p, x: pckd.as_classifier(plain_network(), head=x)),
    ("as_classifier", "example"): (
        "example", lambda p, x: pckd.as_classifier(plain_network(), example=x),
    ),
    ("with_preprocessing", "model"): ("module", lambda p, x: pckd.with_preprocessing(x, p.data, mean=(0.1,))),
    ("with_preprocessing", "data"): ("data", lambda p, x: pckd.with_preprocessing(p.network, x)),
    ("with_preprocessing", "mean"): ("constants", lambda p, x: pckd.with_preprocessing(p.network, p.data, mean=x)),
    ("with_preprocessing", "std"): ("constants", lambda p, x: pckd.with_preprocessing(p.network, p.data, std=x)),
    ("with_preprocessing", "size"): ("pixels", lambda p, x: pckd.with_preprocessing(p.network, p.data, size=x)),
    ("get_recipe", "recipe"): ("recipe", lambda p, x: pckd.get_recipe(x)),
    ("fit", "model"): ("network", lambda p, x: pckd.fit(x, p.data, out=OUT, **QUIET)),
    ("fit", "data"): ("data", lambda p, x: pckd.fit(p.network, x, out=OUT, **QUIET)),
    ("fit", "recipe"): ("recipe", lambda p, x: pckd.fit(p.network, p.data, x, out=OUT, **QUIET)),
    ("distill", "student"): ("network", lambda p, x: distill(p, student=x)),
    ("distill", "teacher"): ("network", lambda p, x: distill(p, teacher=x)),
    ("distill", "data"): ("data", lambda p, x: distill(p, data=x)),
    ("distill", "method"): ("method", lambda p, x: distill(p, method=x)),
    ("distill", "recipe"): ("recipe", lambda p, x: distill(p, recipe=x)),
    ("distill", "seed"): ("count", lambda p, x: distill(p, seed=x)),
    ("distill", "out"): ("folder to write", lambda p, x: distill(p, out=x)),
    ("distill", "resume"): ("flag", lambda p, x: distill(p, resume=x)),
    ("distill", "overwrite"): ("flag", lambda p, x: distill(p, overwrite=x)),
    ("distill", "val"): ("share", lambda p, x: distill(p, val=x)),
    ("distill", "callbacks"): ("list", lambda p, x: distill(p, callbacks=x)),
    ("distill", "loggers"): ("list", lambda p, x: distill(p, loggers=x)),
    ("distill", "accelerator"): ("choice", lambda p, x: distill(p, accelerator=x)),
    ("distill", "precision"): ("choice", lambda p, x: distill(p, precision=x)),
    ("distill", "devices"): ("count", lambda p, x: distill(p, devices=x)),
    ("distill", "nodes"): ("count", lambda p, x: distill(p, nodes=x)),
    ("distill", "compile"): ("choice", lambda p, x: distill(p, compile=x)),
    ("distill", "teacher_cache"): ("folder to write", lambda p, x: distill(p, teacher_cache=x)),
    ("distill", "teacher_cache_gb"): (
        "positive", lambda p, x: distill(p, teacher_cache="new/cache", teacher_cache_gb=x),
    ),
    ("distill", "progress"): ("choice", lambda p, x: distill(p, progress=x)),
    ("evaluate", "model"): ("network", lambda p, x: pckd.evaluate(x, p.data)),
    ("evaluate", "data"): ("data", lambda p, x: pckd.evaluate(p.network, x)),
    ("evaluate", "split"): ("split", lambda p, x: pckd.evaluate(p.network, p.data, x)),
    ("predict", "model"): ("network", lambda p, x: pckd.predict(x, p.data)),
    ("predict", "data"): ("data", lambda p, x: pckd.predict(p.network, x)),
    ("predict", "split"): ("split", lambda p, x: pckd.predict(p.network, p.data, x)),
    ("predict", "accelerator"): ("choice", lambda p, x: pckd.predict(p.network, p.data, accelerator=x)),
    ("predict", "precision"): ("choice", lambda p, x: pckd.predict(p.network, p.data, precision=x)),
    ("transfer", "run"): ("run folder", lambda p, x: pckd.transfer(x, p.data)),
    ("transfer", "data"): ("data", lambda p, x: pckd.transfer("run", x)),
    ("transfer", "model"): ("network", lambda p, x: pckd.transfer("run", p.data, model=x)),
    ("transfer_table", "runs"): ("run folder", lambda p, x: pckd.transfer_table([x], p.data)),
    ("transfer_table", "data"): ("data", lambda p, x: pckd.transfer_table(["run"], x)),
    ("agreement", "run_a"): ("network", lambda p, x: analysis.agreement(x, p.network, p.data)),
    ("agreement", "run_b"): ("network", lambda p, x: analysis.agreement(p.network, x, p.data)),
    ("agreement", "data"): ("data", lambda p, x: analysis.agreement(p.network, p.network, x)),
    ("agreement", "split"): ("split", lambda p, x: analysis.agreement(p.network, p.network, p.data, x)),
    ("rank_samples", "run"): ("run folder", lambda p, x: analysis.rank_samples(x)),
    ("rank_samples", "by"): ("choice", lambda p, x: analysis.rank_samples(p.run, x)),
    ("rank_samples", "top"): ("count", lambda p, x: analysis.rank_samples(p.run, top=x)),
    ("rank_samples", "classes"): ("list", lambda p, x: analysis.rank_samples(p.run, classes=x)),
    ("rank_samples", "per_class"): ("flag", lambda p, x: analysis.rank_samples(p.run, per_class=x)),
    ("rank_samples", "suspects"): ("flag", lambda p, x: analysis.rank_samples(p.run, suspects=x)),
    ("grad_cam", "model"): ("network", lambda p, x: analysis.grad_cam(x, p.data, [0])),
    ("grad_cam", "data"): ("data", lambda p, x: analysis.grad_cam(p.network, x, [0])),
    ("grad_cam", "rows"): ("list", lambda p, x: analysis.grad_cam(p.network, p.data, x)),
    ("grad_cam", "classes"): ("list", lambda p, x: analysis.grad_cam(p.network, p.data, [0], x)),
    ("grad_cam", "split"): ("split", lambda p, x: analysis.grad_cam(p.network, p.data, [0], split=x)),
    ("predict_folder", "run"): ("run folder", lambda p, x: analysis.predict_folder(x, ".")),
    ("predict_folder", "folder"): ("run folder", lambda p, x: analysis.predict_folder("run", x)),
    ("predict_folder", "workers"): ("count", lambda p, x: analysis.predict_folder("run", ".", workers=x)),
    ("predict_folder", "accelerator"): ("choice", lambda p, x: analysis.predict_folder("run", ".", accelerator=x)),
    ("predict_folder", "precision"): ("choice", lambda p, x: analysis.predict_folder("run", ".", precision=x)),
    ("fidelity", "student"): ("network", lambda p, x: analysis.fidelity(x, p.network, p.data)),
    ("fidelity", "teacher"): ("network", lambda p, x: analysis.fidelity(p.network, x, p.data)),
    ("fidelity", "data"): ("data", lambda p, x: analysis.fidelity(p.network, p.network, x)),
    ("fidelity", "split"): ("split", lambda p, x: analysis.fidelity(p.network, p.network, p.data, x)),
    ("class_geometry", "model"): ("network", lambda p, x: analysis.class_geometry(x, p.data)),
    ("class_geometry", "data"): ("data", lambda p, x: analysis.class_geometry(p.network, x)),
    ("class_geometry", "split"): ("split", lambda p, x: analysis.class_geometry(p.network, p.data, x)),
    ("class_gains", "run"): ("network", lambda p, x: analysis.class_gains(x, p.network, p.data)),
    ("class_gains", "reference"): ("network", lambda p, x: analysis.class_gains(p.network, x, p.data)),
    ("class_gains", "data"): ("data", lambda p, x: analysis.class_gains(p.network, p.network, x)),
    ("geometry_table", "run"): ("run folder", lambda p, x: analysis.geometry_table(x)),
    ("geometry_table", "teacher_geometry"): ("run folder", lambda p, x: analysis.geometry_table(p.run, x)),
    ("geometry_table", "train"): ("flag", lambda p, x: analysis.geometry_table(p.run, train=x)),
    ("comparison", "table"): ("data frame", lambda p, x: experiments.comparison(x)),
    ("comparison", "reference"): ("text", lambda p, x: experiments.comparison(RESULTS, x)),
    ("comparison_over_teachers", "table"): ("data frame", lambda p, x: experiments.comparison_over_teachers(x)),
    ("comparison_over_teachers", "reference"): (
        "text", lambda p, x: experiments.comparison_over_teachers(RESULTS, x),
    ),
    ("format_comparison", "compared"): ("data frame", lambda p, x: experiments.format_comparison(x)),
    ("format_comparison", "format"): (
        "choice", lambda p, x: experiments.format_comparison(experiments.comparison(RESULTS), x),
    ),
    ("format_comparison", "reference"): (
        "text", lambda p, x: experiments.format_comparison(experiments.comparison(RESULTS), reference=x),
    ),
    ("format_comparison", "pivot"): (
        "flag", lambda p, x: experiments.format_comparison(experiments.comparison(RESULTS), pivot=x),
    ),
    ("accuracy_against_compute", "runs"): ("list", lambda p, x: figures.accuracy_against_compute(x)),
    ("draw_all", "runs_folder"): ("run folder", lambda p, x: collection.draw_all(x, "new/figures")),
    ("draw_all", "out"): ("folder to write", lambda p, x: collection.draw_all("run", x, only=["x"])),
    ("draw_all", "only"): ("list", lambda p, x: collection.draw_all("run", "new/figures", only=x)),
    ("Grid", "data"): ("data", lambda p, x: grid(data=x)),
    ("Grid", "pairs"): ("run folder", lambda p, x: grid(pairs=[(x, "resnet8")])),
    ("Grid", "arms"): ("list", lambda p, x: grid(arms=x)),
    ("Grid", "seeds"): ("list", lambda p, x: grid(seeds=x if isinstance(x, int) else ["x"])),
    ("Grid", "out"): ("folder to write", lambda p, x: grid(out=x)),
    ("Grid", "recipe"): ("recipe", lambda p, x: grid(recipe=x)),
    ("Grid", "teacher_cache"): ("folder to write", lambda p, x: grid(teacher_cache=x)),
    ("Search", "data"): ("data", lambda p, x: search(data=x)),
    ("Search", "teacher"): ("run folder", lambda p, x: search(teacher=x)),
    ("Search", "student"): ("name of a network", lambda p, x: search(student=x)),
    ("Search", "methods"): ("list", lambda p, x: search(methods=x)),
    ("Search", "out"): ("folder to write", lambda p, x: search(out=x)),
    ("Search", "trials"): ("count", lambda p, x: search(trials=x)),
    ("Search", "val"): ("share", lambda p, x: search(val=x)),
    ("Search", "seed"): ("count", lambda p, x: search(seed=x)),
    ("Search", "space"): ("list", lambda p, x: search(space=x)),
    ("Search", "recipe"): ("recipe", lambda p, x: search(recipe=x)),
    ("Search", "teacher_cache"): ("folder to write", lambda p, x: search(teacher_cache=x)),
    ("search_trials", "folder"): ("run folder", lambda p, x: experiments.search_trials(x)),
    ("search_summary", "folder"): ("run folder", lambda p, x: experiments.search_summary(x)),
    ("read_search", "folder"): ("run folder", lambda p, x: experiments.read_search(x)),
    ("search", "folder"): ("run folder", lambda p, x: pckd.figures.search(x)),
    ("chosen_settings", "folder"): ("run folder", lambda p, x: pckd.figures.chosen_settings(x, p.run)),
    ("chosen_arms", "folder"): ("run folder", lambda p, x: experiments.chosen_arms(x)),
    ("check_same_training", "folder"): ("run folder", lambda p, x: experiments.check_same_training(x, grid())),
    ("find_pairs", "folder"): ("run folder", lambda p, x: experiments.find_pairs(x, [("resnet56", "resnet8")])),
    ("find_pairs", "pairs"): ("list", lambda p, x: experiments.find_pairs("run", x)),
    ("parse_arm", "text"): ("method", lambda p, x: experiments.parse_arm(x).build(pckd.get_recipe("classroom"))),
    ("load_published", "folder"): ("folder to read", lambda p, x: pckd.load_published(x)),
    ("find_numbers", "pair"): ("text", lambda p, x: leaderboard.find_numbers(x)),
    ("find_numbers", "dataset"): ("choice", lambda p, x: leaderboard.find_numbers(PAIR, x)),
    ("find_numbers", "method"): ("choice", lambda p, x: leaderboard.find_numbers(PAIR, method=x)),
    ("find_numbers", "runs"): ("run folder", lambda p, x: leaderboard.find_numbers(PAIR, runs=x)),
    ("compare", "sort"): ("choice", lambda p, x: leaderboard.compare(leaderboard.find_numbers(PAIR), x)),
    ("Run.save", "folder"): ("folder to write", lambda p, x: dataclasses.replace(p.run).save(x)),
}  # fmt: skip

WORDS = {  # kind of argument → other words that messages use for it
    "arrays": ("images", "labels", "image"), "torch data set": ("images", "labels"), "share": ("val",),
    "module": ("network", "weights"), "size of a file": ("bytes",), "list": ("labels",), "data": ("nowhere",),
    "run folder": ("folder", "teacher"),
}  # fmt: skip
OTHER_NAMES = {  # as their docstrings say
    ("with_validation", "seed"): "val_seed", ("with_label_noise", "rate"): "label_noise",
    ("with_label_noise", "kind"): "noise", ("with_label_noise", "seed"): "noise_seed",
}  # fmt: skip
ACCEPTED = {  # function, argument, value that is valid for it
    ("create_model", "data", "None"),  # refused because num_classes is missing
    ("find_numbers", "runs", "None"), ("grad_cam", "rows", "of numbers"),
    ("geometry_table", "teacher_geometry", "None"),
    ("transfer", "model", "None"), ("from_arrays", "val", "None"), ("from_torch", "val", "None"),
}  # fmt: skip

NOT_TESTED = {  # function, argument → reason
    ("fetch", "size"): "compared after a download, see test_checkpoints.py",
    ("predict", "fabric"): "a Lightning object, made by make_fabric",
    ("Grid", "data_options"): "arguments of load_dataset",
    ("Grid", "options"): "arguments of distill",
    ("Search", "data_options"): "arguments of load_dataset",
    ("Search", "options"): "arguments of distill",
    ("check_same_training", "grid"): "a Grid, which has checked its arguments",
    ("draw_all", "say"): "a function",
    ("find_numbers", "published"): "the table of load_published",
    ("compare", "numbers"): "the table of find_numbers",
}
TESTED_FUNCTIONS = [
    pckd.as_classifier, pckd.create_model, pckd.distill, pckd.evaluate, pckd.fit, pckd.get_recipe, pckd.load_checkpoint,
    pckd.load_dataset, pckd.load_run, pckd.predict, pckd.transfer, pckd.transfer_table, pckd.with_preprocessing,
    Dataset.with_validation, Dataset.with_label_noise, Dataset.from_arrays, Dataset.from_torch, Dataset.from_table,
    runs.load_runs,
    checkpoints.fetch, experiments.Grid, experiments.find_pairs, experiments.parse_arm, collection.draw_all,
    analysis.agreement, analysis.predict_folder, analysis.grad_cam, analysis.rank_samples,
    analysis.fidelity, analysis.class_geometry, analysis.class_gains, analysis.geometry_table,
    analysis.confident_learning, analysis.noise_detection, analysis.precision_at_k,
    pckd.load_published, leaderboard.find_numbers, leaderboard.compare, figures.accuracy_against_compute,
    experiments.comparison, experiments.comparison_over_teachers, experiments.format_comparison, experiments.Search,
    experiments.search_trials, experiments.search_summary, experiments.chosen_arms, experiments.check_same_training,
    experiments.read_search, pckd.figures.search,
]  # fmt: skip


def torch_data():
    return torch.utils.data.TensorDataset(IMAGES, LABELS)


def plain_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3))


def distill(workspace, **changes):
    arguments = dict(
        student=workspace.network, teacher=workspace.run, data=workspace.data, method="kd", out=OUT, **QUIET
    )
    return pckd.distill(**{**arguments, **changes})


def grid(**changes):
    arguments = dict(data="digits", pairs=[("run", "resnet8")], arms=[experiments.parse_arm("kd")], seeds=[0], out=OUT)
    return experiments.Grid(**{**arguments, **changes})


def search(**changes):
    arguments = dict(data="digits", teacher="run", student="resnet8", methods=[experiments.parse_arm("kd")], out=OUT)
    return experiments.Search(**{**arguments, **changes})


def cases():
    for (function, argument), (kind, _) in ENTRIES.items():
        for wrong in WRONG_VALUES[kind]:
            if (function, argument, wrong) not in ACCEPTED:
                yield pytest.param(function, argument, wrong, id=f"{function}, {argument}, {wrong}")


@pytest.mark.parametrize(("function", "argument", "wrong"), cases())
def test_wrong_value_is_refused_in_one_line(function, argument, wrong, workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setenv("PCKD_DATA", str(workspace.folder / "data"))
    kind, call = ENTRIES[function, argument]
    value = WRONG_VALUES[kind][wrong]
    before = sorted(path for path in workspace.folder.rglob("*") if path.name != ".lock")
    with warnings.catch_warnings(), pytest.raises((ValueError, TypeError, OSError)) as caught:
        warnings.simplefilter("ignore")
        call(workspace, value)
    message = str(caught.value)
    assert message and len(message) < 700 and message.isprintable(), message
    given = {repr(value)[:20], str(value)[:20], Path(str(value)).name, getattr(value, "__name__", "")} - {""}
    name = OTHER_NAMES.get((function, argument), argument)
    named = {name, name.rstrip("s"), kind, *WORDS.get(kind, ())} | given
    assert any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in named), (message, named)
    assert sorted(path for path in workspace.folder.rglob("*") if path.name != ".lock") == before


def test_every_argument_is_tested():
    for function in TESTED_FUNCTIONS:
        name = function.__name__
        for argument, parameter in inspect.signature(function).parameters.items():
            if argument != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                assert (name, argument) in ENTRIES.keys() | NOT_TESTED.keys(), f"{name}({argument}) is not in ENTRIES"
    public = {name for name in pckd.__all__ if inspect.isfunction(getattr(pckd, name))}
    assert public <= {function.__name__ for function in TESTED_FUNCTIONS}

"""Twelve common uses of the package. Each needs only public names and a few lines."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

import pckd_nb as pckd
from pckd_nb.cli import main

QUIET = dict(progress=False, epochs=2, batch_size=16)


def networks(data, student="resnet8", teacher="resnet14"):
    return pckd.create_model(student, data, seed=1), pckd.create_model(teacher, data, seed=2)


def test_adamw_cosine_and_warm_up(data):
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    run = pckd.distill(
        *networks(data), data, pckd.KD(), optimizer=optimizer, schedule="cosine", warmup_epochs=1, **QUIET
    )
    assert run.history["lr"].iloc[0] == pytest.approx(1e-3) and run.history["lr"].iloc[1] < 1e-3
    assert run.settings["recipe"]["optimizer"] == "torch.optim.adamw.AdamW(lr=0.001)"


def test_randaugment(data):
    augmented = pckd.distill(*networks(data), data, pckd.KD(), augment=v2.RandAugment(), **QUIET)
    plain = pckd.distill(*networks(data), data, pckd.KD(), **QUIET)
    assert augmented.fingerprint != plain.fingerprint and "RandAugment" in augmented.settings["recipe"]["augment"]


def test_mixup(data):
    mixed = pckd.distill(*networks(data), data, pckd.PCKD(), mix=v2.MixUp(num_classes=data.num_classes), **QUIET)
    plain = pckd.distill(*networks(data), data, pckd.PCKD(), **QUIET)
    assert mixed.history["cross_entropy"].iloc[0] > plain.history["cross_entropy"].iloc[0]


def test_a_torch_dataset():
    images, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 4
    data = pckd.Dataset.from_torch(TensorDataset(images, labels), TensorDataset(images[:8], labels[:8]))
    run = pckd.distill(*networks(data), data, "pckd", **QUIET)
    assert run.finished and run.settings["data"]["classes"] == ["0", "1", "2", "3"]


def test_a_table_of_paths_with_validation_and_early_stopping(tmp_path):
    rows = [(f"{i}.png", ["cat", "dog"][i % 2], "test" if i >= 32 else "train") for i in range(40)]
    for path, _, _ in rows:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)).save(tmp_path / path)
    pd.DataFrame(rows, columns=["path", "class", "split"]).to_csv(tmp_path / "pets.csv", index=False)
    data = pckd.Dataset.from_table(tmp_path / "pets.csv", image_size=16)
    stop = pckd.EarlyStopping("val_top1", patience=1)
    run = pckd.distill(*networks(data), data, pckd.KD(), val=0.25, callbacks=[stop], **{**QUIET, "epochs": 9})
    assert run.finished and len(run.history) < 9 and "val_top1" in run.settings["finished_early"]
    assert set(run.ids) < {path.encode() for path, *_ in rows} and len(run.ids) == 24


def test_tensorboard(data, tmp_path):
    from lightning_fabric.loggers import TensorBoardLogger

    pckd.distill(*networks(data), data, pckd.KD(), loggers=[TensorBoardLogger(tmp_path, name="kd")], **QUIET)
    assert list((tmp_path / "kd").rglob("events.out.tfevents*"))


def test_weight_averaging(data):
    averaged = pckd.distill(*networks(data), data, pckd.KD(), ema=0.9, **QUIET)
    plain = pckd.distill(*networks(data), data, pckd.KD(), **QUIET)
    assert averaged.fingerprint != plain.fingerprint
    assert averaged.history["cross_entropy"].equals(plain.history["cross_entropy"])


def test_label_smoothing_and_clipping(data):
    run = pckd.fit(networks(data)[0], data, label_smoothing=0.1, clip_norm=1e-6, **QUIET)
    sharp = pckd.fit(networks(data)[0], data, clip_norm=1e-6, weight_decay=0.0, **QUIET)
    assert run.history["cross_entropy"].iloc[0] != sharp.history["cross_entropy"].iloc[0]
    assert sharp.history["cross_entropy"].iloc[1] == pytest.approx(sharp.history["cross_entropy"].iloc[0], rel=0.02)


class ScaledPCKD(pckd.PCKD):
    def __init__(self, gamma=1.0, **settings):
        super().__init__(**settings)
        self.gamma = gamma

    def forward(self, student, teacher, batch, epoch):
        terms = super().forward(student, teacher, batch, epoch)
        return terms._replace(total=self.gamma * terms.total)


def test_a_subclass_of_pckd_with_its_own_arguments(data):
    run = pckd.distill(*networks(data), data, ScaledPCKD(gamma=5, beta_fa=2), **QUIET)
    assert run.method_settings["gamma"] == 5 and run.method_settings["beta_fa"] == 2
    assert run.method_settings["beta_cc"] == 0.005  # from the recipe
    assert run.history["total"].iloc[0] > 4 * run.history["cross_entropy"].iloc[0]


METHOD = """
import pckd_nb as pckd
class Doubled(pckd.KD):
    def forward(self, student, teacher, batch, epoch):
        terms = super().forward(student, teacher, batch, epoch)
        return terms._replace(total=2 * terms.total)
"""


def test_custom_method_on_the_command_line_and_in_compare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METHOD)
    small = ["--data=digits", "--train-size=40", "--test-size=20", "--epochs=1", "--accelerator=cpu"]
    assert main(["train", *small, "--model=resnet8", "--out=teacher"]) == 0
    distill = ["distill", *small, "--teacher=teacher", "--student=resnet8", "--method=mine.py:Doubled", "--out=run"]
    assert main(distill) == 0 and pckd.load_run("run").settings["method"]["name"] == "Doubled"
    arms = "--methods=kd,mine.py:Doubled-beta_kd=2"
    compare = ["compare", *small, "--teacher=teacher", "--student=resnet8", arms, "--seeds=0", "--out=grid"]
    assert main(compare) == 0
    assert pd.read_csv("grid/results.csv")["arm"].tolist() == ["kd", "Doubled-beta_kd=2"]


def test_vit_teacher_with_its_own_normalisation_and_cnn_student(data):
    pytest.importorskip("timm")
    teacher = pckd.create_model("timm:vit_tiny_patch16_224,img_size=32,patch_size=8", data, seed=0)
    teacher = pckd.with_preprocessing(teacher, data, size=32, mean=[0.5] * data.channels, std=[0.5] * data.channels)
    run = pckd.distill(networks(data)[0], teacher, data, pckd.PCKD(beta_ca=0), **QUIET)
    assert run.settings["teacher"]["preprocessing"]["size"] == [32, 32]


def test_feature_maps_by_layer_name(data):
    pytest.importorskip("torchdistill")
    student, teacher = networks(data)
    names = [name for name, _ in student.named_children() if name.startswith("layer")]
    run = pckd.distill(student, teacher, data, pckd.methods.baseline("AT", layers=names[:2]), **QUIET)
    assert run.method_settings["layers"] == names[:2]

"""HSAKD: auxiliary heads after every stage of both networks."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pckd_nb as pckd
from pckd_nb import cli, losses
from pckd_nb.methods import Batch, baseline
from pckd_nb.models import FeatureMaps
from pckd_nb.runs import load_run

from .conftest import make_data
from .test_auxiliary import Continued, convolutions

QUIET = {"progress": False, "precision": "32-true", "accelerator": "cpu"}


@pytest.mark.parametrize(
    ("teacher_name", "student_name", "heads"),
    [("resnet14", "resnet8", 3), ("vgg8", "resnet8", 3), ("wrn_16_2", "ShuffleV1", 3), ("ResNet50", "MobileNetV2", 4)],
)
def test_hsakd_compares_the_heads_from_the_last_to_the_first(teacher_name, student_name, heads):
    student, teacher = (
        pckd.create_model(name, num_classes=5, seed=seed) for seed, name in enumerate((student_name, teacher_name))
    )
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    rows = pckd.views.rotate(x, 4)
    torch.manual_seed(0)
    method = baseline("HSAKD").bind(student, teacher, x[:1]).train()
    assert len(method.student_heads) == len(method.teacher_heads) == heads
    ours, theirs = (FeatureMaps(model, x[:1])(model.eval(), rows) for model in (student, teacher))
    found = method(ours, theirs, Batch(labels, torch.arange(2)), 1)
    expected = losses.distillation_kl(ours.logits, theirs.logits, 3).mean()
    teacher_heads, student_heads = method.teacher_heads.eval(), method.student_heads
    for i in range(1, heads + 1):
        head_outputs = student_heads[-i](ours.maps[-i]).logits, teacher_heads[-i](theirs.maps[-i]).logits
        assert all(logits.shape == (8, 20) for logits in head_outputs)
        expected = expected + losses.distillation_kl(*head_outputs, 3).mean()
    assert found.terms["hsakd"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.total.item() == pytest.approx((F.cross_entropy(ours.logits[:2], labels) + expected).item(), rel=1e-5)
    found.total.backward()
    assert all(weight.grad is not None for weight in (*student.parameters(), *student_heads.parameters()))
    assert all(weight.grad is None for weight in (*teacher.parameters(), *teacher_heads.parameters()))
    gradient = torch.autograd.grad(student_heads[0](ours.maps[-heads]).logits.sum(), ours.maps[-heads])[0]
    assert gradient.abs().sum() > 0, "the heads train the body of the student"


@pytest.mark.parametrize(
    ("teacher_name", "student_name"), [("resnet14", "resnet8"), ("vgg8", "resnet8"), ("wrn_16_2", "ShuffleV1")]
)
def test_hsakd_trains_and_its_heads_are_not_a_part_of_the_student(teacher_name, student_name, tmp_path):
    data = make_data(train=16, test=6, size=32, channels=3)
    student, teacher = (
        pckd.create_model(name, data, seed=seed) for seed, name in enumerate((student_name, teacher_name))
    )
    plain = pckd.create_model(student_name, data, seed=0)
    run = pckd.distill(student, teacher, data, baseline("HSAKD"), epochs=1, batch_size=8, out=tmp_path / "run", **QUIET)
    assert run.finished and np.isfinite(run.history[["total", "hsakd"]].to_numpy()).all()
    [stage] = run.settings["stages"]
    assert (stage["name"], stage["epochs"]) == ("teacher heads", 1)
    assert run.settings["model"]["parameters"] == sum(weight.numel() for weight in plain.parameters())
    assert run.student_state.keys() == plain.state_dict().keys()
    assert {key.partition(".")[0] for key in run.method_state} == {"student_heads", "teacher_heads"}
    loaded = load_run(tmp_path / "run").model()
    assert type(loaded) is type(plain) and pckd.evaluate(loaded, data, accelerator="cpu").top1 == run.accuracy
    drawn = baseline("HSAKD").bind(plain, teacher, torch.zeros(1, 3, 32, 32)).state_dict()
    assert {key: x.shape for key, x in drawn.items()} == {key: x.shape for key, x in run.method_state.items()}


def test_hsakd_has_heads_where_the_authors_have_them_for_vgg13():
    student, teacher = (pckd.create_model(name, num_classes=5, seed=0) for name in ("MobileNetV2", "vgg13"))
    method, settings = pckd.methods.resolve_settings(baseline("HSAKD"), {}, {"views": 4}, ("vgg13", "MobileNetV2"))
    assert settings["teacher_layers"]["from"] == "published for vgg13 → MobileNetV2"
    method.bind(student, teacher, torch.zeros(1, 3, 32, 32))
    counts = [len(convolutions(head)) for head in method.teacher_heads]
    assert counts == [8, 6, 4, 4]  # the blocks have two convolutions each
    assert [convolutions(head)[0].in_channels for head in method.teacher_heads] == [64, 128, 256, 512]
    default = baseline("HSAKD").bind(student, teacher, torch.zeros(1, 3, 32, 32))
    assert [convolutions(head)[0].in_channels for head in default.teacher_heads] == [128, 256, 512, 512]


def test_hsakd_takes_the_stages_that_have_a_head(data):
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    method = baseline("HSAKD", layers=["layer1", "layer3"], teacher_layers=["relu", "layer2"])
    method.bind(student, teacher, torch.zeros(1, 1, 8, 8))
    for heads, channels in ((method.student_heads, [16, 64]), (method.teacher_heads, [16, 32])):
        assert [convolutions(head)[0].in_channels for head in heads] == channels
    assert len(convolutions(method.teacher_heads[0])) == len(convolutions(teacher)) - 1  # all but the stem


def test_networks_of_the_user_can_have_heads(data):
    run = pckd.distill(Continued(), Continued(), data, baseline("HSAKD"), epochs=1, **QUIET)
    assert run.finished and len([key for key in run.method_state if key.startswith("student_heads.1.")]) == 4


def test_heads_of_a_student_with_frozen_layers_are_trained(data):
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    student.layer3.requires_grad_(False)
    method = baseline("HSAKD").bind(student, teacher, torch.zeros(1, 1, 8, 8))
    assert all(weight.requires_grad for weight in method.student_heads.parameters())
    assert not any(weight.requires_grad for weight in method.teacher_heads.parameters())


def test_hsakd_refuses_what_does_not_fit(data):
    for views in (1, 2, 3):
        with pytest.raises(ValueError, match=f"^HSAKD predicts .* needs 4 views, got {views}: pass views=4 to HSAKD"):
            baseline("HSAKD", views=views)
    with pytest.raises(ValueError, match="^temperature must be greater than 0"):
        baseline("HSAKD", temperature=0)
    pictures = make_data(train=8, test=4, size=32, channels=3)
    vit, resnet = (pckd.create_model(name, pictures, seed=0) for name in ("timm:test_vit,img_size=32", "resnet8"))
    for networks in ((vit, resnet), (resnet, vit)):
        with pytest.raises(ValueError, match=r"those of timm:test_vit,img_size=32 are not known: choose a network of"):
            pckd.distill(*networks, pictures, baseline("HSAKD"), epochs=1, **QUIET)
    networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    method = baseline("HSAKD", layers=["layer1", "layer2.0"])
    with pytest.raises(ValueError, match="^an auxiliary head follows one of the stages .*, got 'layer2.0'$"):
        pckd.distill(*networks, data, method, epochs=1, **QUIET)


def test_hsakd_trains_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--data", "digits", "--train-size", "48", "--test-size", "24", "--epochs", "1", "--batch-size", "16"]
    assert cli.main(["train", "--model", "resnet14", *data, "--out", "teacher"]) == 0
    distill = ["distill", "--student", "resnet8", "--teacher", "teacher", *data, "--out", "student"]
    capsys.readouterr()
    assert cli.main([*distill, "--method", "HSAKD"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "needs 4 views, got 1: pass --views 4 to HSAKD" in line and not (tmp_path / "student").exists()
    assert cli.main([*distill, "--method", "HSAKD", "--views", "4"]) == 0
    settings = json.loads((tmp_path / "student" / "run.json").read_text())
    assert settings["method"]["name"] == "HSAKD" and settings["method"]["views"] == 4
    assert [stage["name"] for stage in settings["stages"]] == ["teacher heads"]

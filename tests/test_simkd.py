"""SimKD: the network that is trained is the student's body, a projector and the teacher's last layer."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb import cli, runs
from pckd_nb.figures.arms import training_flops
from pckd_nb.methods import Batch, baseline
from pckd_nb.models import FeatureMaps, Preprocessed, SimKDNetwork, count_flops
from pckd_nb.training.callbacks import StopOnSignal

from .conftest import make_data
from .test_reference_methods import FILES, Values

QUIET = {"progress": False, "precision": "32-true", "accelerator": "cpu"}


class MapNetwork(pckd.models.Classifier):
    """A network whose last feature map is the output of a given layer."""

    last_map = "map"

    def __init__(self, map: nn.Module, channels: int, classes: int):
        super().__init__()
        self.map, self.fc = map, nn.Linear(channels, classes)

    def features(self, x):
        return self.map(x).mean((2, 3))


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("simkd")], ids=lambda path: path.stem)
def test_agrees_with_the_authors(path):
    v = Values(path, torch.float64)
    _, channels, size, _ = v.teacher_m0.shape
    classes = len(v.teacher_classifier_weight)
    teacher_map = nn.Sequential(nn.Conv2d(v.student_m0.shape[1], channels, 1), nn.AdaptiveAvgPool2d(size))
    teacher = MapNetwork(teacher_map, channels, classes).double()
    teacher.fc.load_state_dict({name: v[f"teacher_classifier_{name}"].detach() for name in ("weight", "bias")})
    student = MapNetwork(nn.Identity(), v.student_m0.shape[1], classes).double()
    method, example = baseline("SimKD"), v.student_m0[:1].detach()
    assert (method.weight, method.cross_entropy_weight, method.factor) == (v.weight, v.weight_ce, v.factor)

    network = method.wrap_student(student, teacher, example)
    v.load(network.projector, "projector")
    method.bind(network, teacher, example)
    output = FeatureMaps(network, example, kind="last")(network.train(), v.student_m0)
    labels = torch.zeros(len(output.logits), dtype=torch.int64)
    terms = method(output, output._replace(maps=(v.teacher_m0,)), Batch(labels, labels), 1)
    for name, value in (("projected", output.maps[0]), ("student_logits_reused", output.logits)):
        assert torch.allclose(value, v[name], rtol=0, atol=1e-12 * v[name].abs().max().item())
    for name, value in (("loss", terms.terms["simkd"]), ("total", terms.total)):
        assert value.item() == pytest.approx(v[name].item(), rel=1e-10)
    assert len(v.gradients) == 10
    for key, (_, name) in v.gradients.items():
        found = torch.autograd.grad(terms.total, v[name], retain_graph=True)[0]
        assert torch.allclose(found, v[key], rtol=0, atol=1e-9 * v[key].abs().max().item()), key


@pytest.fixture
def networks(data):
    return pckd.create_model("resnet8", data, seed=2), pckd.create_model("wrn_16_2", data, seed=1)


@pytest.fixture
def run(networks, data, recipe, tmp_path):
    return pckd.distill(*networks, data, "simkd", recipe, out=tmp_path / "run", val=0.25, **QUIET)


def test_the_network_with_the_teachers_last_layer_is_trained_and_kept(networks, run, data):
    student, teacher = networks
    loaded = pckd.load_run(run.path)
    network, best = loaded.model(), loaded.model("best")
    assert isinstance(network, SimKDNetwork) and isinstance(best, SimKDNetwork) and network.name == "resnet8"
    for model in (network, best):
        assert torch.equal(model.fc.weight, teacher.fc.weight) and torch.equal(model.fc.bias, teacher.fc.bias)
    assert not any(name.startswith("body.fc") for name in loaded.student_state) and not loaded.method_state
    assert {name.split(".")[0] for name in loaded.student_state} == {"body", "projector", "fc"}
    scores = pckd.evaluate(network, data, accelerator="cpu", precision="32-true")
    last = loaded.history.iloc[-1]
    assert tuple(scores) == (loaded.accuracy, last["test_top5"], pytest.approx(last["test_cross_entropy"], rel=1e-6))
    assert np.allclose(loaded.history["total"], loaded.history["simkd"])
    # as in the paper, the projector counts: 1×1, 3×3 and 1×1 convolutions, each with BatchNorm
    body = sum(weight.numel() for weight in student.parameters())
    projector = 64 * 64 + 9 * 64 * 64 + 64 * 128 + 2 * (64 + 64 + 128)
    assert loaded.parameters == body + projector + 3 * 128 + 3
    assert loaded.embedding["centers"].shape == (3, 128) and loaded.embedding["features"].shape[1] == 128
    assert np.array_equal(loaded.embedding["centers"], teacher.fc.weight.detach().half().numpy())
    assert loaded.settings["model"]["feature_width"] == 128 and loaded.title == "SimKD resnet8"


def test_the_students_own_last_layer_is_gone_and_its_body_is_trained_in_place(networks, run, data):
    student, _ = networks
    state = student.state_dict()
    assert all(torch.equal(state[name.removeprefix("body.")], value) for name, value in run.student_state.items()
               if name.startswith("body."))  # fmt: skip
    message = r"^this network has no last layer any more, because SimKD has replaced it: use .* run\.model\(\)"
    with pytest.raises(ValueError, match=message):
        student(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=message):
        pckd.evaluate(student, data)
    with pytest.raises(ValueError, match="these weights belong to another network: 'conv1.weight' is missing"):
        pckd.load_checkpoint(pckd.create_model("resnet8", data), run.path)


@pytest.mark.parametrize("names", [("resnet8", "resnet14"), ("resnet8", "vgg8"), ("ShuffleV1", "wrn_16_2")], ids=str)
@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}], ids=str)
def test_pairs_of_networks_for_images_of_32_pixels(names, changes, tmp_path):
    data = make_data(train=8, test=4, size=32, channels=3)
    student, teacher = (pckd.create_model(name, data, seed=0) for name in names)
    before = copy.deepcopy(student.state_dict())
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=4, **changes)
    pckd.distill(student, teacher, data, "simkd", recipe, out=tmp_path / "run", **QUIET)
    run = pckd.load_run(tmp_path / "run")
    model = run.model()
    assert torch.equal(model.fc.weight, teacher.head.weight)
    cross_entropy = pckd.evaluate(model, data, accelerator="cpu", precision="32-true").cross_entropy
    assert cross_entropy == pytest.approx(run.history["test_cross_entropy"].iloc[-1], rel=1e-6)
    assert not any(torch.equal(before[name], weight) for name, weight in student.named_parameters())
    smaller = min(run.settings["model"]["projector"][f"{role}_shape"][1] for role in ("student", "teacher"))
    assert model.projector.size == (smaller, smaller)


@pytest.mark.parametrize("stopped_at", [(1, 2), (2, 1)])
def test_an_interrupted_run_goes_on_with_the_same_bits(stopped_at, data, recipe, tmp_path, monkeypatch):
    def train(folder, **options):
        networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("wrn_16_2", data, seed=1)
        options |= dict(ema=0.9, val=0.25, out=tmp_path / folder)
        return pckd.distill(*networks, data, "simkd", recipe, **options, **QUIET)

    def stop_once(callback, trainer):
        trainer.should_stop = (trainer.recorder.epoch, trainer.recorder.step) == stopped_at

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", stop_once)
        assert not train("cut").finished
    with pytest.warns(UserWarning, match="is not finished"):
        assert isinstance(pckd.load_run(tmp_path / "cut").model(), SimKDNetwork)
    resumed = train("cut", resume=True)
    for ours, theirs in ((resumed.student_state, whole.student_state), (resumed.best_state, whole.best_state)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert resumed.history.equals(whole.history)
    again = train("cut", resume=True)  # the finished run is loaded
    assert again.fingerprint == whole.fingerprint


def test_the_command_line_trains_evaluates_and_probes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--data", "digits", "--train-size", "60", "--test-size", "40", "--epochs", "1"]
    assert cli.main(["train", *small, "--model", "resnet14", "--out", "teacher"]) == 0
    command = ["distill", *small, "--teacher", "teacher", "--student", "resnet8", "--method", "simkd", "--out", "run"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--resume"]) == 0
    run = pckd.load_run("run")
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "--precision", "32-true", "--expect", f"{run.accuracy:.2f}"]) == 0
    assert f"top-1 {run.accuracy:.2f} %" in capsys.readouterr().out
    assert cli.main(["transfer", "run", "--data", "digits", "--train-size", "60", "--test-size", "40"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "resnet8" in line]
    assert len(rows) == 2 and "SimKD" in rows[0] and "untrained" in rows[1]
    assert cli.main(["methods", "simkd"]) == 0
    assert "2203.14001" in capsys.readouterr().out


def test_the_run_can_be_a_teacher_or_be_trained_further(run, data, recipe):
    teacher = run.model()
    for method in ("kd", "at", "simkd"):
        distilled = pckd.distill("resnet8", run, data, method, recipe, **QUIET)
        assert distilled.finished and distilled.settings["teacher"]["fingerprint"] == run.fingerprint
        assert distilled.settings["teacher"]["projector"] == run.settings["model"]["projector"]
    assert torch.equal(distilled.model().fc.weight, teacher.fc.weight)
    further = pckd.fit(run, data, recipe, val=0.25, **QUIET)
    assert isinstance(further.model(), SimKDNetwork) and further.fingerprint != run.fingerprint
    assert torch.equal(further.model().fc.weight, teacher.fc.weight), "the teacher's last layer stays as it is"
    assert further.model("best").trained_on == further.trained_on


def test_the_projector_counts_in_the_operations_and_in_the_untrained_network(networks, run, data):
    own, plain = count_flops(run.model(), (1, 8, 8)), count_flops(pckd.create_model("resnet8", data), (1, 8, 8))
    assert own > plain
    teacher = count_flops(networks[1], (1, 8, 8))
    assert training_flops(run) == len(run.history) * run.settings["data"]["train_images"] * (3 * own + teacher)
    first, second = (runs.create_network(run.settings["model"], seed=0) for _ in range(2))
    assert torch.equal(first.projector.conv1.weight, second.projector.conv1.weight) and first.feature_width == 128


def test_a_student_that_converts_its_input_keeps_the_conversion(tmp_path):
    data = make_data(train=8, test=4, size=32, channels=3)
    student = pckd.create_model("torchvision:resnet18", data, seed=0)
    student = pckd.with_preprocessing(student, data, mean=(0.4,) * 3, std=(0.2,) * 3, size=64)
    teacher = pckd.create_model("resnet8", data, seed=0)
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=4)
    pckd.distill(student, teacher, data, "simkd", recipe, out=tmp_path / "run", **QUIET)
    run = pckd.load_run(tmp_path / "run")
    model = run.model()
    assert isinstance(model, Preprocessed) and isinstance(model.model, SimKDNetwork) and model.resize_to == (64, 64)
    cross_entropy = pckd.evaluate(model, data, accelerator="cpu", precision="32-true").cross_entropy
    assert cross_entropy == pytest.approx(run.history["test_cross_entropy"].iloc[-1], rel=1e-6)
    assert run.settings["model"]["projector"]["layer"] == "module.layer4"


def test_a_network_of_your_own_is_put_together_again(networks, data, recipe, tmp_path):
    def own_network():
        return MapNetwork(nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU()), 5, 3)

    pckd.distill(own_network(), networks[1], data, "simkd", recipe, out=tmp_path / "run", **QUIET)
    run = pckd.load_run(tmp_path / "run")
    message = r"create it, put it into models\.SimKDNetwork with run\.settings\['model'\]\['projector'\], then call"
    with pytest.raises(ValueError, match=message):
        run.model()
    network = SimKDNetwork(own_network(), **run.settings["model"]["projector"])
    network.load_state_dict(run.student_state)
    assert pckd.evaluate(network, data, accelerator="cpu", precision="32-true").top1 == run.accuracy


def test_a_teacher_without_bias(networks, data, recipe, tmp_path):
    teacher = networks[1]
    teacher.fc.bias = None
    pckd.distill(networks[0], teacher, data, "simkd", recipe, out=tmp_path / "run", **QUIET)
    assert pckd.load_run(tmp_path / "run").model().fc.bias is None


def test_networks_that_do_not_fit_are_refused(networks, run, data, recipe):
    vit, resnet = (pckd.create_model(name, num_classes=3) for name in ("timm:test_vit,img_size=32", "resnet8"))
    example, method = torch.zeros(1, 3, 32, 32), baseline("SimKD")
    for student, teacher, role in ((resnet, vit, "teacher"), (vit, resnet, "student")):
        message = f"SimKD needs features that are the mean of the last feature map, but those of the {role} are not"
        with pytest.raises(ValueError, match=f"^{message}: choose another network$"):
            method.wrap_student(student, teacher, example)
    with pytest.raises(ValueError, match="the student has the last layer of a teacher already: SimKD needs a new"):
        pckd.distill(run, networks[1], data, "simkd", recipe, **QUIET)
    with pytest.raises(ValueError, match=r"pass the result of wrap_student\(student, teacher, example\) to bind$"):
        method.bind(resnet, pckd.create_model("resnet14", num_classes=3), example)
    with pytest.raises(ValueError, match="the teacher has 5 classes, the student 3"):
        method.wrap_student(resnet, pckd.create_model("resnet14", num_classes=5), example)
    with pytest.raises(ValueError, match="factor must be at least 1, got 0"):
        baseline("SimKD", factor=0)
    for layer, match in (("layer9", "has no layer 'layer9'"), ("fc", "layer 'fc' returns no feature map")):
        with pytest.raises(ValueError, match=match):
            plain = pckd.create_model("resnet8", num_classes=3)
            SimKDNetwork(plain, layer, (64, 8, 8), (64, 8, 8))(example)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"layer": "layer9"}, "^the network has no layer 'layer9'"),
        ({"teacher_shape": [64, 2, 2]}, "these weights belong to another network: 'projector.conv0.weight' has shape"),
        ({"teacher_shape": [10**9, 2, 2]}, "run.json' is damaged: .*projector.teacher_shape"),
        ({"student_shape": [64, 2]}, "run.json' is damaged: .*projector.student_shape"),
        ({"factor": 0}, "run.json' is damaged: .*projector.factor"),
        ({"bias": False}, "these weights belong to another network: 'fc.bias' does not exist in this one"),
    ],
    ids=str,
)
def test_a_damaged_description_gives_one_line(changes, match, run):
    settings = json.loads((run.path / "run.json").read_text("utf-8"))
    settings["model"]["projector"] |= changes
    (run.path / "run.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(ValueError, match=match) as caught:
        pckd.load_run(run.path).model()
    assert "\n" not in str(caught.value)


def test_a_plain_module_has_no_wrap_student(networks, data, recipe):
    class Plain(nn.Module):
        def bind(self, student, teacher):
            pass

        def forward(self, student, teacher, batch, epoch):
            return pckd.Supervised()(student, teacher, batch, epoch)

    assert pckd.distill(*networks, data, Plain(), recipe, **QUIET).finished

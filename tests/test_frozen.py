import copy
import warnings

import pytest
import torch

import pckd_nb as pckd
from pckd_nb import hardware
from pckd_nb.evaluation import make_fabric
from pckd_nb.training import teacher as teacher_module
from pckd_nb.training.teacher import FrozenTeacher

from .conftest import make_data

FABRIC = make_fabric("cpu", "32-true")[0]
AVX2 = bool(torch.cpu.get_capabilities().get("avx2"))


@pytest.fixture(scope="module")
def data():
    return make_data(train=400, size=16)


@pytest.fixture(scope="module")
def trained(data):
    model = pckd.create_model("resnet14", data, seed=0)
    pckd.fit(
        model, data, pckd.get_recipe("classroom", epochs=3), accelerator="cpu", precision="32-true", progress=False
    )
    return model.eval()


@pytest.fixture
def every_form(monkeypatch):
    """Pretend that the processor supports int8 and bfloat16. torch emulates them if it does not."""
    monkeypatch.setattr(hardware, "computes_in_int8", lambda device: True)
    monkeypatch.setattr(hardware, "computes_in_bfloat16", lambda device: True)


def freeze(model, data, exact=False) -> FrozenTeacher:
    teacher = FrozenTeacher(copy.deepcopy(model), data, 4, FABRIC, exact)
    teacher.choose_form()
    return teacher


def relative_difference(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_in_full_precision_the_teacher_is_the_network_itself(trained, data):
    teacher = freeze(trained, data, exact=True)
    x = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        expected = trained(x)
    assert teacher.form == "float32" and torch.equal(teacher(x).logits, expected.logits)
    assert teacher.features(x).dtype == torch.float32


@pytest.mark.skipif(not AVX2, reason="int8 was measured on x86 processors with AVX2 alone")
def test_int8_is_used_where_it_is_accurate_enough(trained, data, monkeypatch):
    # quantisation errors are larger in so small a network
    monkeypatch.setattr(teacher_module, "MAX_LOGITS_ERROR", 0.05)
    teacher = freeze(trained, data)
    assert teacher.form == "int8" and 0 < teacher.error <= teacher_module.MAX_LOGITS_ERROR
    x = pckd.views.normalise(data.test.images, torch.tensor(data.mean), torch.tensor(data.std))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = teacher(x), trained.float()(x).float()
    assert found.features.dtype == found.logits.dtype == torch.float32
    assert relative_difference(found.logits, expected.logits) < 2 * teacher_module.MAX_LOGITS_ERROR
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(value.requires_grad for value in (*teacher(x)[:2], teacher.features(x)))
    assert not teacher.output(teacher.features(x)).logits.requires_grad


def test_an_inaccurate_form_is_replaced_by_the_next_one(trained, data, monkeypatch, every_form):
    def noisy(model, calibration):
        return lambda x: model.features(x) * 1.5

    monkeypatch.setattr(teacher_module, "_int8", noisy)
    with pytest.warns(UserWarning, match=r"in int8 differ by \d+\.\d % from float32: the next form is tried"):
        teacher = freeze(trained, data)
    assert teacher.form == "bfloat16" and 0 < teacher.error <= teacher_module.MAX_LOGITS_ERROR
    monkeypatch.setattr(teacher_module, "_bfloat16", noisy)
    with pytest.warns(UserWarning, match="in bfloat16 differ by"):
        teacher = freeze(trained, data)
    assert teacher.form == "folded" and 0 < teacher.error < 1e-3
    monkeypatch.setattr(teacher_module, "_folded_float32", noisy)
    with pytest.warns(UserWarning, match="in folded differ by"):
        teacher = freeze(trained, data)
    x = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        rounded = trained.output(trained.features(x).half().float())  # the precision that the cache stores
        assert teacher.form == "float32" and torch.equal(teacher(x).logits, rounded.logits)


def test_networks_that_cannot_be_quantised_run_in_bfloat16(data, every_form):
    for name in ("vgg8", "torchvision:resnet18"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert freeze(pckd.create_model(name, data, seed=0), data).form == "bfloat16"


@pytest.mark.parametrize(
    ("int8", "bfloat16", "needs_maps", "forms"),
    [
        (True, True, False, ["int8", "bfloat16", "folded"]),  # AVX-512 with bfloat16
        (True, False, False, ["int8", "folded"]),  # AVX2 alone
        (False, False, False, ["folded"]),
        (True, True, True, ["autocast"]),
        (True, False, True, []),
    ],
)
def test_forms_depend_on_the_hardware(monkeypatch, int8, bfloat16, needs_maps, forms):
    monkeypatch.setattr(hardware, "computes_in_int8", lambda device: int8)
    monkeypatch.setattr(hardware, "computes_in_bfloat16", lambda device: bfloat16)
    assert list(teacher_module.fast_forms(torch.device("cpu"), needs_maps)) == forms


def test_features_do_not_depend_on_the_rest_of_the_batch(trained, data):
    teacher = freeze(trained, data)
    x = torch.randn(40, 1, 16, 16)
    assert torch.equal(teacher.features(x)[:7], teacher.features(x[:7]))


def test_run_json_records_the_form_of_the_teacher(trained, data, recipe):
    student = pckd.create_model("resnet8", data, seed=1)
    run = pckd.distill(
        student, trained, data, pckd.KD(), recipe, accelerator="cpu", precision="bf16-mixed", progress=False
    )
    info = run.settings["teacher"]
    assert (
        info["form"] in ("int8", "bfloat16", "folded")
        and not info["exact"]
        and 0 < info["logits_error"] <= teacher_module.MAX_LOGITS_ERROR
    )

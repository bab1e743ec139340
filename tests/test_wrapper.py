"""Networks of torchvision, timm and the user, wrapped as classifiers."""

import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb.methods import Batch
from pckd_nb.models import Classifier
from pckd_nb.provenance import attributes_of, structure_fingerprint

# small networks of all kinds: residual, dense, inverted residual, grouped, plain, transformer, mixer
TORCHVISION = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "densenet121", "googlenet"]
TORCHVISION += ["regnet_y_400mf", "vit_b_16,image_size=32"]
TIMM = ["mobilenetv3_small_050", "test_resnet", "test_efficientnet", "convnext_atto", "ghostnet_050"]
TIMM += ["vit_tiny_patch16_224,img_size=32,depth=2", "mixer_s32_224,img_size=32", "repvgg_a0"]


class Own(nn.Module):
    """A custom network for which it is unclear which linear layer is the last: both have 5 outputs."""

    def __init__(self, after: nn.Module | None = None):
        super().__init__()
        self.out = nn.Linear(5, 5)
        self.hidden = nn.Linear(3 * 32 * 32, 5)
        self.after = after or nn.Identity()

    def forward(self, x):
        return self.after(self.out(self.hidden(x.flatten(1)).relu()))


def count_hooks(module: nn.Module) -> int:
    """Count all hooks of a network's modules and parameters."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    own = sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)
    return own + sum(len(parameter._backward_hooks or ()) for parameter in module.parameters())


@pytest.mark.parametrize(
    "name",
    [f"torchvision:{name}" for name in TORCHVISION] + [f"timm:{name}" for name in TIMM],
)
def test_pckd_trains_networks_of_other_libraries(name):
    student = pckd.create_model(name, num_classes=5, seed=0)
    teacher = pckd.create_model("resnet8", num_classes=5, seed=1)
    before = count_hooks(student)
    method = pckd.PCKD(views=2).bind(student, teacher)
    labels, images = torch.tensor([0, 1, 1, 4]), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = pckd.views.rotate(images, 2)
    with torch.no_grad():
        teacher_output = teacher.eval()(rows)
    output = student.train()(rows)
    assert torch.allclose(nn.functional.linear(output.features, output.centers, output.bias), output.logits, atol=1e-4)
    terms = method(output, teacher_output, Batch(labels, torch.arange(4)), epoch=1)
    terms.total.backward()
    assert terms.total.isfinite()
    assert [key for key, value in student.named_parameters() if value.grad is None] == []
    assert all(value.grad.isfinite().all() for value in student.parameters())
    assert output.centers.grad.abs().sum() > 0
    assert count_hooks(student) == before == 0


def test_a_wrapped_network_keeps_its_own_names_and_weights(tmp_path, data, recipe):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    student = pckd.as_classifier(module)
    assert pckd.as_classifier(student) is student
    assert student.state_dict().keys() == module.state_dict().keys()
    assert (student.feature_width, student.num_classes, student.head_name) == (16, 3, "4")
    run = pckd.fit(student, data, recipe, out=tmp_path / "run", accelerator="cpu", progress=False)
    module.load_state_dict(pckd.load_run(tmp_path / "run").student_state)
    assert run.accuracy > 40
    with pytest.raises(ValueError, match="your own"):
        run.model()


def test_a_library_network_can_be_rebuilt_from_its_run(tmp_path, data, recipe):
    student = pckd.create_model("timm:test_resnet", data, seed=0)
    assert "timm:test_resnet" in pckd.fit(student, data, recipe, out=tmp_path / "run", progress=False).title
    images = torch.randn(2, 1, 8, 8)
    again = pckd.load_run(tmp_path / "run").model()
    assert torch.allclose(again.eval()(images).logits, student.cpu().eval()(images).logits, atol=1e-6)


def test_the_last_layer_is_found_or_given_by_name():
    with pytest.raises(
        ValueError, match="2 linear layers with 5 outputs: 'out', 'hidden'; give the name of the last one as head="
    ):
        pckd.as_classifier(Own())
    assert pckd.as_classifier(Own(), head="out").head_name == "out"
    assert pckd.as_classifier(Own(), example=torch.randn(2, 3, 32, 32)).head_name == "out"
    with pytest.raises(ValueError, match="no linear layer 'fc'; it has 'out', 'hidden'"):
        pckd.as_classifier(Own(), head="fc")
    with pytest.raises(ValueError, match="not the output of its layer 'hidden'.*another layer is the last one"):
        pckd.as_classifier(Own(), head="hidden")(torch.randn(2, 3, 32, 32))


def test_unsuitable_networks_are_refused_with_the_reason():
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="SqueezeNet has no nn.Linear.*AdaptiveAvgPool2d"):
        pckd.create_model("torchvision:squeezenet1_0", num_classes=5)
    with pytest.raises(ValueError, match="'head', 'head_dist'"):
        pckd.create_model("timm:deit_tiny_distilled_patch16_224", num_classes=5)
    softmax = Own(after=nn.LogSoftmax(dim=1))
    with pytest.raises(ValueError, match="softmax"):
        pckd.as_classifier(softmax, head="out")(images)
    with pytest.raises(ValueError, match="the result of Own is not the output of a linear layer"):
        pckd.as_classifier(softmax, example=images)
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(32 * 32, 5))
    with pytest.raises(ValueError, match=r"the input of layer '1' has shape \(2, 3, 1024\)"):
        pckd.as_classifier(tokens)(images)
    twice = nn.Linear(5, 5)
    with pytest.raises(ValueError, match="ran 2 times"):
        pckd.as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), twice, twice), head="2")(images)
    assert count_hooks(softmax) == count_hooks(tokens) == 0


def test_names_and_options_of_other_libraries():
    for name, match in [
        ("torchvision:resnet19", "unknown torchvision network 'resnet19'.*resnet18"),
        ("timm:vit_tiny", "unknown timm network 'vit_tiny'"),
        ("keras:resnet", "unknown library 'keras'"),
        ("timm:test_vit,img_size", "'img_size' is not an option"),
        ("timm:test_vit,img=32", "'test_vit' does not take the options img=32"),
        ("timm:test_vit,depth=two", "'test_vit' does not take the options depth=two"),
        (
            "timm:resnet18,num_classes=7",
            "^'num_classes=7' is not an option: the numbers of classes and channels are taken",
        ),
        ("timm:resnet18,in_chans=1", "^'in_chans=1' is not an option: the numbers of classes and channels are taken"),
        ("torchvision:resnet18,num_classes=7", "^'num_classes=7' is not an option: the numbers of classes and"),
        ("timm:test_resnet,head=head", "no linear layer 'head'; it has 'fc'"),
    ]:
        with pytest.raises(ValueError, match=match):
            pckd.create_model(name, num_classes=5)


def test_the_last_layer_is_an_option_of_the_network_name():
    name = "timm:deit_tiny_distilled_patch16_224,img_size=32,depth=1"
    with pytest.raises(
        ValueError, match="'head', 'head_dist': if a softmax or an average of heads follows the last one"
    ):
        pckd.create_model(name, num_classes=5)  # in evaluation mode it averages both heads
    chosen = pckd.create_model(f"{name}, head=head_dist", num_classes=5)
    assert chosen.head_name == "head_dist"
    with pytest.raises(ValueError, match="not the output of its layer 'head_dist'.* an average of heads"):
        chosen.eval()(torch.zeros(1, 3, 32, 32))
    # three heads, but only one is used; in training mode the network returns a namedtuple of three
    clear = pckd.create_model("torchvision:googlenet,aux_logits=True", num_classes=5)
    assert clear.head_name == "fc"
    assert clear.train()(torch.zeros(2, 3, 224, 224)).logits.shape == (2, 5)


def test_non_modules_are_refused_and_wrappers_are_unwrapped():
    model = pckd.create_model("resnet8", num_classes=5)
    assert pckd.as_classifier(nn.DataParallel(model)) is model
    assert pckd.as_classifier(torch.compile(model)) is model
    for given, words in {
        Own: r"got type: write Own\(...\), not Own",
        "resnet18": r"got str: create_model\(NAME, data\) makes a network",
    }.items():
        with pytest.raises(TypeError, match=words):
            pckd.as_classifier(given)


def test_library_networks_take_one_channel_and_a_seed():
    for name in ("torchvision:resnet18", "timm:test_resnet"):
        first, second = (pckd.create_model(name, num_classes=5, in_channels=1, seed=3) for _ in range(2))
        assert first(torch.randn(2, 1, 32, 32)).logits.shape == (2, 5)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_images_of_the_wrong_size_are_refused_before_anything_is_written(tmp_path, data):
    student = pckd.create_model("timm:test_vit", data)
    with pytest.raises(ValueError, match="can't take images of 1×8×8"):
        pckd.fit(student, data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class WithNamesOfTimm(nn.Module):
    """A module with attributes of the same names as those of a Classifier, but with other meanings."""

    num_features, head_name = 99, "mine"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 5)
        self.head = nn.Identity()

    def forward_features(self, x):
        raise AssertionError("only its forward() is called")

    def get_classifier(self):
        return "mine"

    def forward(self, x):
        return self.fc(x.flatten(1))


def networks_with_and_without_wrappers(data):
    own = pckd.create_model("resnet8", data, seed=0)
    return {
        "own": (own, 64),
        "preprocessed": (pckd.with_preprocessing(own, data, mean=[0.4], std=[0.2], size=16), 64),
        "wrapped": (pckd.as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 3))), 7),
        "timm": (pckd.create_model("timm:test_resnet", data, seed=0), 96),
        "both": (pckd.with_preprocessing(pckd.create_model("timm:test_resnet", data, seed=0), data, mean=[0.4]), 96),
    }


@pytest.mark.parametrize("kind", ["own", "preprocessed", "wrapped", "timm", "both"])
def test_a_classifier_also_has_the_names_of_timm(kind, data):
    model, width = networks_with_and_without_wrappers(data)[kind]
    model.eval()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    output = model(x)
    assert model.num_features == model.feature_width == output.features.shape[1] == width
    assert torch.equal(model.forward_features(x), output.features)
    assert torch.equal(model.forward_features(x), model.features(x))
    assert model.get_classifier() is model.head and model.get_classifier().weight is output.centers
    assert not {"num_features", "get_classifier", "forward_features"} & {*vars(model), *attributes_of(model)}
    assert not any("num_features" in key for key in model.state_dict())


def test_a_wrapped_module_keeps_its_own_attributes():
    module = WithNamesOfTimm()
    before = structure_fingerprint(module)
    model = pckd.as_classifier(module)
    x = torch.zeros(2, 3, 8, 8)
    assert model.forward_features(x).shape == (2, 192) and model.num_features == 192
    assert model.get_classifier() is module.fc
    assert module.num_features == 99 and module.get_classifier() == "mine"
    assert structure_fingerprint(module) == before and model.state_dict().keys() == {"fc.weight", "fc.bias"}


def test_a_custom_classifier_may_define_the_names_of_timm(data, recipe, tmp_path):
    class Mine(Classifier):
        def __init__(self, num_features):
            super().__init__()
            self.num_features = num_features
            self.fc = nn.Linear(self.num_features, 3)

        def forward_features(self, x):
            return x.flatten(1)

        def features(self, x):
            return self.forward_features(x)

    class Plain(Classifier):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 3)

    model = Mine(64)
    assert model.num_features == 64 and attributes_of(model) == {"num_features": 64}
    assert attributes_of(Plain()) == {} and Plain().num_features == 64
    assert structure_fingerprint(Mine(64)) == structure_fingerprint(model) != structure_fingerprint(Mine(63))
    run = pckd.fit(model, data, recipe, out=tmp_path / "run", accelerator="cpu", progress=False)
    assert run.accuracy > 40


def test_images_in_bfloat16_are_resized_as_in_float32(data):
    network = pckd.with_preprocessing(pckd.create_model("resnet8", data, seed=0), data, mean=[0.4], std=[0.2], size=16)
    images = torch.rand(2, data.channels, *data.size)
    expected = network.convert_input(images)
    assert network.double().convert_input(images.double()).dtype == torch.float64
    found = network.bfloat16().convert_input(images.bfloat16())
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert torch.allclose(found.float(), expected, atol=0.1)

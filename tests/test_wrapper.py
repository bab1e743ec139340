"""Networks of other libraries, and one's own, as they are."""

import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb.methods import Batch

# small, and of every kind: residual, dense, inverted residual, grouped, plain, transformer, mixer
TORCHVISION = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "densenet121", "googlenet"]
TORCHVISION += ["regnet_y_400mf", "vit_b_16,image_size=32"]
TIMM = ["mobilenetv3_small_050", "test_resnet", "test_efficientnet", "convnext_atto", "ghostnet_050"]
TIMM += ["vit_tiny_patch16_224,img_size=32,depth=2", "mixer_s32_224,img_size=32", "repvgg_a0"]


class Own(nn.Module):
    """The last layer is registered first, and as many hidden units as classes make two layers look like the last."""

    def __init__(self, after: nn.Module | None = None):
        super().__init__()
        self.out = nn.Linear(5, 5)
        self.hidden = nn.Linear(3 * 32 * 32, 5)
        self.after = after or nn.Identity()

    def forward(self, x):
        return self.after(self.out(self.hidden(x.flatten(1)).relu()))


def hooks(module: nn.Module) -> int:
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
    before = hooks(student)
    method = pckd.PCKD(views=2).bind(student, teacher)
    labels, images = torch.tensor([0, 1, 1, 4]), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = pckd.views.rotate(images, 2)
    with torch.no_grad():
        known = teacher.eval()(rows)
    output = student.train()(rows)
    assert torch.allclose(nn.functional.linear(output.features, output.centers, output.bias), output.logits, atol=1e-4)
    terms = method(output, known, Batch(labels, torch.arange(4)), epoch=1)
    terms.total.backward()
    assert terms.total.isfinite()
    assert [key for key, value in student.named_parameters() if value.grad is None] == []
    assert all(value.grad.isfinite().all() for value in student.parameters())
    assert output.centers.grad.abs().sum() > 0
    assert hooks(student) == before == 0


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


def test_a_library_network_is_rebuilt_from_its_run(tmp_path, data, recipe):
    student = pckd.create_model("timm:test_resnet", data, seed=0)
    assert "timm:test_resnet" in pckd.fit(student, data, recipe, out=tmp_path / "run", progress=False).title
    images = torch.randn(2, 1, 8, 8)
    again = pckd.load_run(tmp_path / "run").model()
    assert torch.allclose(again.eval()(images).logits, student.cpu().eval()(images).logits, atol=1e-6)


def test_the_last_layer_is_found_named_or_asked_for():
    with pytest.raises(ValueError, match="2 linear layers with 5 outputs: 'out', 'hidden'; name its last one"):
        pckd.as_classifier(Own())
    assert pckd.as_classifier(Own(), head="out").head_name == "out"
    assert pckd.as_classifier(Own(), example=torch.randn(2, 3, 32, 32)).head_name == "out"
    with pytest.raises(ValueError, match="no linear layer 'fc'; it has 'out', 'hidden'"):
        pckd.as_classifier(Own(), head="fc")
    with pytest.raises(ValueError, match="'hidden' gives.*another layer is its last"):
        pckd.as_classifier(Own(), head="hidden")(torch.randn(2, 3, 32, 32))


def test_what_can_not_be_used_says_why():
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="SqueezeNet has no nn.Linear.*AdaptiveAvgPool2d"):
        pckd.create_model("torchvision:squeezenet1_0", num_classes=5)
    with pytest.raises(ValueError, match="'head', 'head_dist'"):
        pckd.create_model("timm:deit_tiny_distilled_patch16_224", num_classes=5)
    softmax = Own(after=nn.LogSoftmax(dim=1))
    with pytest.raises(ValueError, match="softmax"):
        pckd.as_classifier(softmax, head="out")(images)
    with pytest.raises(ValueError, match="no linear layer of Own gives"):
        pckd.as_classifier(softmax, example=images)
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(32 * 32, 5))
    with pytest.raises(ValueError, match=r"values of shape \(2, 3, 1024\)"):
        pckd.as_classifier(tokens)(images)
    twice = nn.Linear(5, 5)
    with pytest.raises(ValueError, match="ran 2 times"):
        pckd.as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), twice, twice), head="2")(images)
    assert hooks(softmax) == hooks(tokens) == 0


def test_names_and_options_of_other_libraries():
    for name, match in [
        ("torchvision:resnet19", "unknown torchvision network 'resnet19'.*resnet18"),
        ("timm:vit_tiny", "unknown timm network 'vit_tiny'"),
        ("keras:resnet", "unknown library 'keras'"),
        ("timm:test_vit,img_size", "'img_size' is not an option"),
        ("timm:test_vit,img=32", "'test_vit' does not take the options img=32"),
        ("timm:test_vit,depth=two", "'test_vit' does not take the options depth=two"),
        ("timm:resnet18,num_classes=7", "^'num_classes=7' is not an option: the numbers of classes and channels are"),
        ("timm:resnet18,in_chans=1", "^'in_chans=1' is not an option: the numbers of classes and channels are"),
        ("torchvision:resnet18,num_classes=7", "^'num_classes=7' is not an option: the numbers of classes and"),
        ("timm:test_resnet,head=head", "no linear layer 'head'; it has 'fc'"),
    ]:
        with pytest.raises(ValueError, match=match):
            pckd.create_model(name, num_classes=5)


def test_the_last_layer_is_an_option_of_a_network_by_its_name():
    name = "timm:deit_tiny_distilled_patch16_224,img_size=32,depth=1"
    with pytest.raises(
        ValueError, match="'head', 'head_dist': does a softmax follow the last one, or an average of two"
    ):
        pckd.create_model(name, num_classes=5)  # in evaluation, it averages both
    chosen = pckd.create_model(f"{name}, head=head_dist", num_classes=5)
    assert chosen.head_name == "head_dist"
    with pytest.raises(ValueError, match="not what its layer 'head_dist' gives.* an average of heads"):
        chosen.eval()(torch.zeros(1, 3, 32, 32))
    clear = pckd.create_model("torchvision:googlenet,aux_logits=True", num_classes=5)  # three heads, one of them used
    assert clear.head_name == "fc"
    assert clear.train()(torch.zeros(2, 3, 224, 224)).logits.shape == (2, 5)  # from a namedtuple of three


def test_what_is_no_module_is_named_and_wrappers_are_seen_through():
    model = pckd.create_model("resnet8", num_classes=5)
    assert pckd.as_classifier(nn.DataParallel(model)) is model
    assert pckd.as_classifier(torch.compile(model)) is model
    for given, words in {
        Own: r"got type: write Own\(...\), not Own",
        "resnet18": "got str: create_model makes one",
    }.items():
        with pytest.raises(TypeError, match=words):
            pckd.as_classifier(given)


def test_one_channel_and_the_same_weights_from_the_same_seed():
    for name in ("torchvision:resnet18", "timm:test_resnet"):
        first, second = (pckd.create_model(name, num_classes=5, in_channels=1, seed=3) for _ in range(2))
        assert first(torch.randn(2, 1, 32, 32)).logits.shape == (2, 5)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_images_of_the_wrong_size_are_refused_before_anything_is_written(tmp_path, data):
    student = pckd.create_model("timm:test_vit", data)
    with pytest.raises(ValueError, match="can't take images of 1×8×8"):
        pckd.fit(student, data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

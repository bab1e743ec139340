import argparse
import builtins
import hashlib
import io
import os
import pickle
import re
import subprocess
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import pckd_nb as pckd
from pckd_nb.checkpoints import WEIGHT_KEYS, fetch, load_checkpoint

from .web import serving


def network(seed: int = 0, classes: int = 10) -> nn.Module:
    return pckd.create_model("resnet8", num_classes=classes, seed=seed)


STATE = network(seed=1).state_dict()
STATE["bn1.num_batches_tracked"] += 7
TEACHER = pckd.create_model("resnet14", num_classes=10, seed=2).state_dict()
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.05, "params": [0]}]}


def prefixed(prefix: str, state=STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def saved(content, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def same(model: nn.Module, state=STATE) -> bool:
    ours = model.state_dict()
    return list(ours) == list(state) and all(torch.equal(ours[name], state[name]) for name in ours)


def refusal(source, error=ValueError, model=None, **options) -> str:
    """Return the message with which loading `source` fails. Check that the network is unchanged."""
    model = network() if model is None else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error) as caught:
        load_checkpoint(model, source, **options)
    message = str(caught.value)
    assert same(model, before)
    assert message.isprintable() and len(message) < 700, message  # a line break is not printable
    return message


ACCURACIES = (torch.tensor(71.5), 71.5, np.float64(71.5), np.float32(71.5), np.array([71.5, 93.0]))
OPTIONS = argparse.Namespace(model="resnet8", lr=0.05, steps=[150, 180], out=Path("runs"), more=argparse.Namespace())
FILES = {
    **{
        f"RepDistiller with {type(value).__name__}": {"epoch": 240, "model": STATE, "best_acc": value}
        for value in ACCURACIES
    },
    "PCKD release": {"epoch": 240, "model": STATE, "accuracy": np.float64(71.5), "optimizer": OPTIMIZER},
    "CRD": {"opt": OPTIONS, "model": STATE, "optimizer": OPTIMIZER},
    "mdistiller's student_best": {"model": STATE, "epoch": 9},
    "mdistiller": {
        "epoch": 9,
        "model": {
            **prefixed("module.teacher.", TEACHER),
            **prefixed("module.student."),
            "module.conv_reg.weight": torch.ones(2),
        },
        "optimizer": OPTIMIZER,
        "best_acc": 71.5,
    },
    "plain": STATE,
    "plain, ordered, of parameters": OrderedDict((name, nn.Parameter(value, False)) for name, value in STATE.items()),
    "timm": {"arch": "resnet8", "args": OPTIONS, "state_dict_ema": network(3).state_dict(), "state_dict": STATE},
    "timm's average alone": {"state_dict_ema": STATE, "epoch": 9},
    "DataParallel": {"state_dict": prefixed("module.")},
    "torch.compile": prefixed("_orig_mod."),
    "DataParallel of torch.compile": prefixed("module._orig_mod."),
    "mdistiller of torch.compile": {"model": prefixed("module.student._orig_mod.")},
    "Lightning": {"state_dict": {**prefixed("model."), "loss.weight": torch.ones(3)}, "pytorch-lightning_version": "2"},
    "Lightning's net": {"state_dict": prefixed("net.")},
    "Lightning with a teacher": {"state_dict": {**prefixed("student.model."), **prefixed("teacher.model.", TEACHER)}},
    "Lightning with an average": {
        "state_dict": {**prefixed("model."), **prefixed("ema_model.", network(3).state_dict())}
    },
    "Lightning of torch.compile": {"state_dict": prefixed("model._orig_mod.")},
    "torch.compile of DataParallel": prefixed("_orig_mod.module."),
    "custom prefix": prefixed("encoder."),
    "AveragedModel": {"model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.")}},
    **{f"under {place!r}": {"epoch": 3, place: STATE} for place in WEIGHT_KEYS},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", FILES)
def test_weights_are_loaded_from_every_format(name, legacy, tmp_path):
    model = network()
    assert load_checkpoint(model, saved(FILES[name], tmp_path / "file.pth", legacy)) is model
    assert same(model)


@pytest.mark.parametrize("prefix", ["model.", "module.net.", "student."])
def test_prefixes_are_removed_in_safetensors(prefix, tmp_path):
    save_file(prefixed(prefix), tmp_path / "file.safetensors")
    assert same(load_checkpoint(network(), tmp_path / "file.safetensors"))


def test_file_with_the_network_twice_is_refused(tmp_path):
    state = {**prefixed("model."), **prefixed("net.", network(3).state_dict())}
    assert "has the network 2 times, 'model.' and 'net.': save only one" in refusal(saved(state, tmp_path / "file.pth"))
    single = nn.Sequential(nn.Linear(2, 2))  # a longer name with the same end is not a prefix
    state = {"10.weight": torch.ones(2, 2), "10.bias": torch.ones(2)}
    assert "'0.weight' is missing" in refusal(saved(state, tmp_path / "file.pth"), model=single)


# network → function that turns the name of a weight into the one in torchvision's own files
OLD_NAMES = {
    "densenet121": lambda name: re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2", name),
    "vit_b_16,image_size=32": lambda name: name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."),
    "mnasnet0_5": lambda name: name,  # torchvision needs the version of the module, which a plain dict does not have
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_in_torchvision_files_are_translated(name, tmp_path):
    state = pckd.create_model(f"torchvision:{name}", num_classes=3, seed=1).state_dict()
    old = {OLD_NAMES[name](key): value for key, value in state.items()}
    assert name == "mnasnet0_5" or old.keys() != state.keys()
    model = pckd.create_model(f"torchvision:{name}", num_classes=3, seed=2)
    assert same(load_checkpoint(model, saved(old, tmp_path / "file.pth")), state)


@pytest.mark.parametrize("name, heads", [("googlenet", 2), ("inception_v3", 1)])
def test_auxiliary_heads_are_left_out_or_loaded(name, heads, tmp_path):
    build = getattr(torchvision.models, name)
    state = build(num_classes=3, aux_logits=True, init_weights=False).state_dict()
    file = saved({"state_dict": prefixed("module.", state)}, tmp_path / "file.pth")
    model = pckd.create_model(f"torchvision:{name}", num_classes=3)
    with pytest.warns(UserWarning, match="torchvision's own file, the network needs transform_input=True"):
        load_checkpoint(model, file)
    ours = model.state_dict()
    left = {key.partition(".")[0] for key in state.keys() - ours.keys()}
    assert left == ({"aux1", "aux2"} if heads == 2 else {"AuxLogits"})
    assert all(torch.equal(ours[key], state[key]) for key in ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(pckd.create_model(f"torchvision:{name},transform_input=True", num_classes=3), file)
    whole = pckd.create_model(f"torchvision:{name},aux_logits=True,transform_input=True", num_classes=3)
    assert whole.head_name == "fc" and same(load_checkpoint(whole, file), state)
    other = pckd.create_model(f"torchvision:{name},aux_logits=True", num_classes=5)
    assert refusal(file, model=other).endswith(": the file has 3 classes, the network 5")


def test_hugging_face_folder_is_loaded(tmp_path):
    assert "no run.json, model.safetensors or pytorch_model.bin; give" in refusal(tmp_path, FileNotFoundError)
    saved(STATE, tmp_path / "pytorch_model.bin")
    model = load_checkpoint(network(), tmp_path)
    assert same(model) and model.weights_from == tmp_path.name
    save_file(TEACHER, tmp_path / "model.safetensors")
    assert same(load_checkpoint(pckd.create_model("resnet14", num_classes=10), tmp_path), TEACHER)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_error_names_a_pickle_protocol_that_is_too_new(protocol, legacy, tmp_path):
    file = tmp_path / "file.pth"
    torch.save({"model": STATE}, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert (
        f"it is a pickle file of protocol {protocol}, which PyTorch can't read without running code: "
        "save it again without pickle_protocol=…, or as safetensors"
    ) in refusal(file)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_error_for_an_archive_says_to_unpack_it(mode, tmp_path):
    with tarfile.open(tmp_path / "teachers.tar.gz", mode) as archive:
        archive.add(saved(STATE, tmp_path / "file.pth"), "file.pth")
    message = refusal(tmp_path / "teachers.tar.gz")
    assert message.endswith("teachers.tar.gz' is an archive: unpack it and give the file of weights inside")


def test_git_lfs_pointer_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")
    assert "is only a Git LFS pointer to the weights: get the file with git lfs pull" in refusal(
        tmp_path / "model.safetensors"
    )


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:densenet121", "timm:test_resnet"])
def test_error_gives_the_number_of_classes_in_the_file(name, tmp_path):
    many = saved(pckd.create_model(name, num_classes=12).state_dict(), tmp_path / "file.pth")
    model = pckd.create_model(name, num_classes=5)
    for each in (model, nn.DataParallel(model)):
        assert refusal(many, model=each).endswith(": the file has 12 classes, the network 5")


@pytest.mark.parametrize("model, source", [("resnet8", "file.pth"), (network(), None), (type(network()), "file.pth")])
def test_arguments_of_the_wrong_type_are_refused(model, source):
    with pytest.raises(
        TypeError, match="model must be a network, got|source must be a path or an address, got NoneType"
    ):
        load_checkpoint(model, source)


@pytest.mark.parametrize("name", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_of_any_numpy_version_are_accepted(name, tmp_path):
    content = io.BytesIO()
    torch.save({"model": STATE, "acc": np.float64(1)}, content, _use_new_zipfile_serialization=False)
    data = content.getvalue().replace(b"numpy._core.multiarray", name.encode())
    assert name.encode() in data
    (tmp_path / "file.pth").write_bytes(data)
    assert same(load_checkpoint(network(), tmp_path / "file.pth"))


def test_safetensors_with_and_without_method_weights_are_loaded(tmp_path):
    save_file(STATE, tmp_path / "plain.safetensors")
    save_file({**STATE, "method.projector.weight": torch.ones(2)}, tmp_path / "student.safetensors")
    for file in ("plain.safetensors", "student.safetensors"):
        assert same(load_checkpoint(network(), tmp_path / file))
        (tmp_path / file).rename(tmp_path / "renamed.pth")
        assert same(load_checkpoint(network(), str(tmp_path / "renamed.pth")))


def test_run_folder_and_its_weights_file_are_loaded(data, recipe, tmp_path):
    run = pckd.fit(pckd.create_model("resnet8", data, seed=1), data, recipe, out=tmp_path / "run", progress=False)
    for source in (run.path, run.path / "student.safetensors"):
        assert same(load_checkpoint(pckd.create_model("resnet8", data), source), run.student_state)
    assert "sha256 and size can only be given for a file" in refusal(run.path, size=3)
    run.save(tmp_path / "record", weights=False)
    assert "is a record of a run, without its weights: give a run folder with weights" in refusal(tmp_path / "record")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_wrapped_model_accepts_any_prefix(wrap, prefix, tmp_path):
    model = network()
    load_checkpoint(wrap(model), saved(prefixed(prefix), tmp_path / "file.pth"))
    assert same(model)


def test_submodules_called_module_or_student_are_not_prefixes(tmp_path):
    for names in (("module", "head"), ("student", "teacher"), ("method", "fc")):
        model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
        state = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
        assert same(load_checkpoint(model, saved(state, tmp_path / "file.pth")), state)


def test_files_without_batch_counters_are_loaded(tmp_path):
    old = {name: value for name, value in STATE.items() if not name.endswith("num_batches_tracked")}
    model = network()
    model.bn1.num_batches_tracked += 3
    load_checkpoint(model, saved({"model": old}, tmp_path / "file.pth", legacy=True))
    assert model.bn1.num_batches_tracked == 3 and torch.equal(model.fc.weight, STATE["fc.weight"])


def test_half_precision_and_compressed_files_are_loaded(tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in STATE.items()}
    model = load_checkpoint(network(), saved(half, tmp_path / "half.pth"))
    assert model.fc.weight.dtype == torch.float32
    assert same(model, {name: value.to(STATE[name].dtype) for name, value in half.items()})
    with zipfile.ZipFile(saved(STATE, tmp_path / "file.pth")) as ours:
        with zipfile.ZipFile(tmp_path / "smaller.pth", "w", zipfile.ZIP_DEFLATED) as smaller:
            for name in ours.namelist():
                smaller.writestr(name, ours.read(name))
    assert same(load_checkpoint(network(), tmp_path / "smaller.pth"))


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker: Path) -> dict[str, Evil]:
    shell, python = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    return {
        "posix.system": Evil(os.system, shell),
        "eval": Evil(builtins.eval, python),
        "exec": Evil(builtins.exec, python),
        "subprocess.Popen": Evil(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Evil(getattr, [], "append"),
        "torch.serialization.load": Evil(torch.load, str(marker)),
        "torch.hub.load_state_dict_from_url": Evil(torch.hub.load_state_dict_from_url, "https://example.org/x"),
    }


@pytest.mark.skipif(os.name != "posix", reason="the names of the functions are those of Linux and macOS")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("function", attacks(Path("x")))
def test_code_in_a_checkpoint_is_named_and_not_run(function, legacy, tmp_path):
    evil = attacks(tmp_path / "marker")[function]
    for place, content in {
        "alone": evil,
        "beside": {"model": STATE, "best_acc": evil},
        "before": {"best_acc": evil, "model": STATE},
        "in the weights": {"model": {**STATE, "fc.weight": evil}},
        "in options": {"model": STATE, "opt": argparse.Namespace(lr=evil)},
    }.items():
        message = refusal(saved(content, tmp_path / f"{place}.pth", legacy))
        assert (
            f"was refused: it is a pickle file that would call '{function}', and code in a checkpoint is never run"
            in message
        )
        assert "ask its author for a safetensors file" in message
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", attacks(Path("x")))
def test_plain_pickle_file_is_refused_and_not_run(function, protocol, tmp_path):
    (tmp_path / "file.pth").write_bytes(pickle.dumps(attacks(tmp_path / "marker")[function], protocol))
    message = refusal(tmp_path / "file.pth")
    assert "refused: it is a pickle file" in message if protocol >= 2 else "is not a file of weights" in message
    assert not (tmp_path / "marker").exists()


def test_pickled_network_is_refused(tmp_path):
    message = refusal(saved({"model": network()}, tmp_path / "file.pth"))
    assert "would call 'pckd_nb.models.resnet.ResNet'" in message
    assert message.endswith("or save only model.state_dict() if you have the network")


def test_control_characters_in_names_are_escaped(tmp_path):
    (tmp_path / "file.pth").write_bytes(b"\x80\x02c\x1b[2Jevil\r\x0b\nname\rOK\n)R.")
    assert r"call '\x1b[2Jevil\r\x0b.name\rOK'" in refusal(tmp_path / "file.pth")
    assert "has no weights: expected" in refusal(saved({"bad\nname": torch.ones(1)}, tmp_path / "file.pth"))


def test_torchscript_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as file:
        file.writestr("file/constants.pkl", b"")
        file.writestr("file/data.pkl", b"")
    assert "TorchScript program, and code in a checkpoint is never run" in refusal(tmp_path / "file.pt")


def test_errors_distinguish_kinds_of_broken_files(tmp_path):
    file = tmp_path / "file.pth"

    def message(content: bytes, name: str = "file.pth") -> str:
        (tmp_path / name).write_bytes(content)
        return refusal(tmp_path / name)

    assert "no such file" in refusal(tmp_path / "none.pth", FileNotFoundError)
    assert "is not a run folder: it has no run.json" in refusal(tmp_path, FileNotFoundError)
    assert "is empty" in message(b"")
    for page in (b"<!DOCTYPE html>", b"\n  <html><body>404", b"\xef\xbb\xbf<!doctype html>", b"<?xml version='1.0'?>"):
        assert "is a web page" in message(page)
    assert "is not a file of weights" in message(np.random.default_rng(0).bytes(3000))
    assert "is not a file of weights" in message(b"P")
    assert "as safetensors" in message(np.random.default_rng(0).bytes(3000), "file.safetensors")
    assert "refused: it is a pickle file that is damaged or contains more than weights" in message(
        b"\x80" + np.random.default_rng(0).bytes(3000)
    )

    whole = saved({"model": STATE}, file).read_bytes()
    for part in (0.01, 0.5, 0.99, 0.9999):
        assert "incomplete or damaged: reading it as a zip archive failed" in message(whole[: int(part * len(whole))])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.jpg", b"")
    assert "a zip archive, but not a PyTorch file" in refusal(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("file/data.pkl", b"\x80\x02}q\x00\xff")
    assert "file.pth' is damaged" in refusal(file) or "refused" in refusal(file)

    whole = saved({"model": STATE}, file, legacy=True).read_bytes()
    for end in (*range(1, 4000, 37), len(whole) // 2, len(whole) - 1):
        assert "incomplete: the file ends in the middle" in message(whole[:end]), end

    save_file(STATE, file)
    whole = file.read_bytes()
    for name in ("file.safetensors", "file.pth"):
        for end in (100, len(whole) // 2, len(whole) - 1):
            assert "incomplete or damaged: reading it as safetensors failed" in message(whole[:end], name)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_randomly_damaged_file_is_refused_in_one_line_or_loaded(legacy, tmp_path):
    file = saved({"model": STATE, "opt": OPTIONS}, tmp_path / "file.pth", legacy)
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for position in random.integers(-5000, 5000, 6):  # the descriptions of the weights are at both ends of the file
            damaged[position] = random.integers(256)
        file.write_bytes(damaged)
        try:
            load_checkpoint(network(), file)
        except ValueError as error:
            assert str(error).isprintable(), str(error)


@pytest.mark.parametrize(
    "content, found",
    [
        ({"epoch": 3, "optimizer": OPTIMIZER}, "found 'epoch', 'optimizer'"),
        (OPTIMIZER, "found 'state', 'param_groups', the keys of an optimizer"),
        ({}, "found nothing"),
        ({"model": {}}, "found 'model'"),
        ({0: STATE, "x": 1}, "found a key of type int, 'x'"),
        ([STATE], "found something else (list)"),
        (torch.ones(3), "found something else (Tensor)"),
        (argparse.Namespace(model=STATE), "found something else (IgnoredObject)"),
    ],
)
def test_error_names_what_was_found_instead_of_weights(content, found, tmp_path):
    places = "'model', 'state_dict', 'model_state_dict', 'net', 'network', 'student', 'weights', 'params', "
    places += "'state_dict_ema', 'model_ema' or 'ema'"
    message = refusal(saved(content, tmp_path / "file.pth"))
    assert f"has no weights: expected a dict of names and tensors, or one under {places}, {found}" in message


def test_errors_for_weights_of_another_network_name_the_difference(tmp_path):
    file = tmp_path / "file.pth"

    def message(**changed) -> str:
        state = {name: value for name, value in {**STATE, **changed}.items() if value is not None}
        return refusal(saved({"model": state}, file))

    assert "'layer1.0.conv1.weight' is missing" in message(
        **{"layer1.0.conv1.weight": None, "layer2.0.conv1.weight": None}
    )
    assert "'layer1.1.conv1.weight' is missing; the file has 'body.0.weight' instead" in refusal(
        saved({"model": {**STATE, "body.0.weight": torch.ones(1)}}, file),
        model=pckd.create_model("resnet14", num_classes=10),
    )
    assert "'layer9.weight' does not exist in this one" in message(**{"layer9.weight": torch.ones(1)})
    assert "'conv1.weight' has shape (16, 1, 3, 3) instead of (16, 3, 3, 3)" in message(
        **{"conv1.weight": torch.ones(16, 1, 3, 3), "fc.weight": torch.ones(100, 64)}
    )
    assert "'layer1.1.conv1.weight' is missing" in refusal(
        saved(STATE, file), model=pckd.create_model("resnet14", num_classes=10)
    )
    assert "'fc.weight' has shape (10, 32) instead of (10, 64)" in message(**{"fc.weight": torch.ones(10, 32)})
    saved(network(classes=100).state_dict(), file)
    for model in (None, nn.DataParallel(network())):
        assert refusal(file, model=model).endswith(
            "fc.weight' has shape (100, 64) instead of (10, 64): the file has 100 classes, the network 10"
        )


@pytest.mark.parametrize(
    "weight",
    [torch.ones(10, dtype=torch.int8), torch.ones(10).to_sparse(), torch.ones(10, device="meta")],
    ids=["integers", "sparse", "meta"],
)
def test_weights_of_unsupported_types_are_refused(weight, tmp_path):
    assert "'fc.bias' is " in refusal(saved({**STATE, "fc.bias": weight}, tmp_path / "file.pth"))


def test_checksum_and_size_of_a_local_file_are_checked(tmp_path):
    file = saved(STATE, tmp_path / "file.pth")
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert same(load_checkpoint(network(), file, sha256=digest.upper(), size=len(data)))
    assert f"has {len(data):,} bytes instead of 3" in refusal(file, OSError, size=3)
    assert f"has the SHA-256 sum {digest} instead of {'0' * 64}" in refusal(file, OSError, sha256="0" * 64)
    assert "64 hexadecimal digits" in refusal(file, sha256="abc")


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def content() -> bytes:
    file = io.BytesIO()
    torch.save({"model": STATE}, file)
    return file.getvalue()


def failure(error, url, root, **options) -> str:
    """Return the message with which a download fails. Check that it leaves no new file."""
    before = {path for path in root.rglob("*") if not path.is_dir()}
    with pytest.raises(error) as caught:
        fetch(url, root=root, **options)
    assert str(caught.value).isprintable() and {path for path in root.rglob("*") if not path.is_dir()} <= before
    return str(caught.value)


def test_checkpoint_is_downloaded_once_and_loaded(server, content, tmp_path, monkeypatch):
    (handler,) = pooch.get_logger().handlers
    log = io.StringIO()
    monkeypatch.setattr(handler, "stream", log)
    pooch.get_logger().setLevel("INFO")  # the default level, in case an earlier test changed it
    server.files["/a/ckpt_epoch_240.pth"] = content
    url, digest = f"{server.address}/a/ckpt_epoch_240.pth", hashlib.sha256(content).hexdigest()
    for options in ({}, {"sha256": digest}, {"size": len(content)}, {"sha256": digest.upper(), "size": len(content)}):
        assert same(load_checkpoint(network(), url, root=tmp_path, **options))
    assert server.requests == ["/a/ckpt_epoch_240.pth"]
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert file.name.endswith("-ckpt_epoch_240.pth") and file.read_bytes() == content
    assert not log.getvalue(), "pooch must not print its own advice"

    monkeypatch.setenv("PCKD_DATA", str(tmp_path / "elsewhere"))
    assert fetch(url) == tmp_path / "elsewhere" / "checkpoints" / file.name and len(server.requests) == 2


def test_different_addresses_get_different_files(server, tmp_path):
    paths = ["/a/ckpt_epoch_240.pth", "/b/ckpt_epoch_240.pth", "/", "/a/b%20c%2F..%2Fd.pth", "/" + 300 * "x" + ".pth"]
    server.files = {path: path.encode() for path in paths}
    files = {fetch(server.address + path, root=tmp_path): path for path in paths}
    files[fetch(server.address + paths[0] + "?version=2", root=tmp_path)] = paths[0]
    assert len(files) == 6 and all(file.parent == tmp_path / "checkpoints" for file in files)
    assert all(file.read_bytes() == path.encode() for file, path in files.items())


def test_download_with_a_wrong_checksum_or_size_is_deleted(server, content, tmp_path):
    server.files["/x.pth"] = content
    url, digest = f"{server.address}/x.pth", hashlib.sha256(content).hexdigest()
    message = failure(OSError, url, tmp_path, sha256="0" * 64)
    assert f"has the SHA-256 sum {digest} instead of {'0' * 64}: the downloaded file was deleted" in message
    message = failure(OSError, url, tmp_path, size=12)
    assert "has more than the expected 12 bytes: it was not kept" in message
    message = failure(OSError, url, tmp_path, size=len(content) + 1)
    assert f"has {len(content):,} bytes instead of {len(content) + 1:,}: the downloaded file was deleted" in message
    assert len(server.requests) == 3
    assert "64 hexadecimal digits" in failure(ValueError, url, tmp_path, sha256="12")
    assert len(server.requests) == 3


@pytest.mark.parametrize("keep", [0, 100])
def test_incomplete_download_is_deleted_and_fetched_again(server, content, tmp_path, keep):
    server.files["/x.pth"] = content[:keep]  # a server that states no length
    url = f"{server.address}/x.pth"
    with pytest.raises(ValueError, match="the downloaded file was deleted"):
        load_checkpoint(network(), url, root=tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    server.files["/x.pth"] = content
    assert same(load_checkpoint(network(), url, root=tmp_path)) and len(server.requests) == 2


def test_permissions_of_a_download_follow_the_umask(server, content, tmp_path):
    server.files["/x.pth"] = content
    before = os.umask(0o027)
    try:
        assert fetch(f"{server.address}/x.pth", root=tmp_path).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_outdated_file_is_fetched_again_once(server, content, tmp_path):
    server.files["/x.pth"] = b"before"
    url, digest = f"{server.address}/x.pth", hashlib.sha256(content).hexdigest()
    assert fetch(url, root=tmp_path).read_bytes() == b"before"
    server.files["/x.pth"] = content
    assert fetch(url, root=tmp_path, sha256=digest).read_bytes() == content
    assert fetch(url, root=tmp_path, sha256=digest).read_bytes() == content and len(server.requests) == 2
    fetch(url, root=tmp_path).write_bytes(b"damaged")
    assert fetch(url, root=tmp_path, size=len(content)).read_bytes() == content and len(server.requests) == 3
    failure(OSError, url, tmp_path, size=1)
    assert len(server.requests) == 4


def test_broken_connection_is_retried(server, content, tmp_path):
    server.files["/x.pth"], server.broken = content, 2
    assert fetch(f"{server.address}/x.pth", root=tmp_path).read_bytes() == content and len(server.requests) == 3
    server.files["/y.pth"], server.broken = content, 9
    message = failure(OSError, f"{server.address}/y.pth", tmp_path)
    assert "could not download" in message and "in 3 tries" in message and len(server.requests) == 6


def test_errors_for_missing_server_and_file(server, tmp_path):
    url = server.address + "/none.pth"
    assert failure(OSError, url, tmp_path) == f"could not download '{url}': the server answered 404 Not Found"
    server.files["/none.pth"] = 403
    assert "answered 403 Forbidden" in failure(OSError, url, tmp_path) and len(server.requests) == 2
    server.shutdown()
    server.server_close()
    assert "in 3 tries" in failure(OSError, url, tmp_path)


def test_downloaded_web_page_is_refused(server, tmp_path):
    server.files["/x.pth"] = b"\n<!DOCTYPE html><html>Sign in</html>"
    assert "gave a web page" in failure(OSError, f"{server.address}/x.pth", tmp_path)
    assert "gave a web page" in refusal(f"{server.address}/x.pth", OSError, root=tmp_path, sha256="0" * 64)


def test_error_for_a_damaged_download_names_address_and_file(server, tmp_path):
    server.files["/x.pth"] = b"damaged"
    message = refusal(f"{server.address}/x.pth", root=tmp_path)
    assert f"'{server.address}/x.pth' (kept as '{tmp_path}" in message and "is not a file of weights" in message


def test_only_https_addresses_are_fetched(server, content, tmp_path, monkeypatch):
    import requests

    def fail(*_, **__):
        raise AssertionError("a request was made")

    addresses = ["http://example.org/x.pth", "ftp://example.org/x", "file:///etc/passwd", "http://127.0.0.1@evil.org/x"]
    with monkeypatch.context() as patched:
        patched.setattr(requests, "get", fail)
        for url in (*addresses, "http://127.0.0.1.evil.org/x", "https:///x"):
            assert "use an https address, or download it by hand and give the file" in failure(
                ValueError, url, tmp_path
            )
            assert "use an https address" in refusal(url, root=tmp_path)
    server.files = {"/away.pth": addresses[0], "/here.pth": "/x.pth", "/x.pth": content}
    assert f"'{addresses[0]}' can't be downloaded" in failure(ValueError, f"{server.address}/away.pth", tmp_path)
    assert fetch(f"{server.address}/here.pth", root=tmp_path).read_bytes() == content

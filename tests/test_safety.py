"""Safety: malicious files run no code, names are escaped in HTML, and nothing uses the network unasked."""

import ast
import dataclasses
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections import OrderedDict
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pckd_nb as pckd
from pckd_nb import widgets
from pckd_nb.cli import main

from .test_checkpoints import Evil

ROOT = Path(__file__).parents[1]
STATE = pckd.create_model("resnet8", num_classes=10, in_channels=1, seed=1).state_dict()


def shell(*arguments: object) -> str:
    return " ".join(map(str, arguments))


def touch(canary: Path) -> Evil:
    return Evil(os.system, shell("touch", canary))


# ---------------------------------------------------------------------------------------------------- checkpoints


class EvilDict(OrderedDict):
    """A dict whose pickle contains a call."""

    def __reduce__(self):
        return os.system, (self.shell,)


def evil_dict(canary: Path) -> EvilDict:
    evil = EvilDict(STATE)
    evil.shell = shell("touch", canary)
    return evil


def torch_zip(file: Path, pickled: bytes, **entries: bytes) -> None:
    """Write a file like torch.save, but with the given pickle."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"archive/{name}", content)


def persistent(evil: object) -> bytes:
    """Return a pickle whose tensor refers to its storage by a persistent id with a call."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", evil, "0", "cpu", 1) if value == "here" else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"fc.weight": "here"})
    return buffer.getvalue()


def pickled_call(module: str, name: str, argument: str) -> bytes:
    """Return a pickle, written by hand, that calls module.name(argument)."""
    text = argument.encode()
    return f"\x80\x02c{module}\n{name}\n".encode("latin1") + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def old_tar(file: Path, evil: object) -> None:
    """Write a tar of pickles, as torch.save did before 2017."""
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickle.dumps(evil, 2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def zip_bomb(file: Path) -> None:
    """Write 100 MB of zeros, compressed to a thousandth."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(100_000_000))


def false_size(file: Path, size: int) -> None:
    """Write a zip archive whose directory gives `size` as the size of its weights."""
    torch.save(STATE, file)
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 20 : entry + 28] = struct.pack("<II", size, size)
    file.write_bytes(content)


def safetensors(file: Path, header: object, data: bytes = bytes(80), length: int | None = None) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(dtype: str = "F32", shape: tuple[int, ...] = (10,), start: int = 0, end: int = 40) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def photo_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../photo.jpg", b"")


def truncated(file: Path) -> None:
    torch.save(STATE, file)
    file.write_bytes(file.read_bytes()[:-1000])


def doubled_lists(depth: int = 60) -> list:
    """Return a list that contains the same list twice, and so on. It is small as a pickle, but has 2^depth leaves."""
    value: list = ["ha"]
    for _ in range(depth):
        value = [value, value]
    return value


def nested_lists(depth: int = 5000) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def state_with(**weights: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**STATE, **{name.replace("__", "."): value for name, value in weights.items()}}


WITHOUT_BIAS = {name: value for name, value in STATE.items() if name != "fc.bias"}
HUGE = torch.zeros(1).expand(2**40)

# case → (function that writes the file, part of the message)
CHECKPOINTS = {
    "os.system": (lambda f, c: torch.save(touch(c), f), "would call 'posix.system'"),
    "os.system, legacy": (
        lambda f, c: torch.save({"model": touch(c)}, f, _use_new_zipfile_serialization=False),
        "would call 'posix.system'",
    ),
    "os.system in a bare pickle": (lambda f, c: f.write_bytes(pickle.dumps(touch(c))), "it is a pickle"),
    "os.system in a pickle of protocol 0": (
        lambda f, c: f.write_bytes(pickle.dumps(touch(c), 0)),
        "is not a file of weights",
    ),
    "in a persistent id": (lambda f, c: torch_zip(f, persistent(touch(c))), "would call 'posix.system'"),
    "in a subclass of dict": (lambda f, c: torch.save({"model": evil_dict(c)}, f), "would call 'posix.system'"),
    "in an array of objects": (
        lambda f, c: torch.save({"model": STATE, "best": np.array([touch(c)], object)}, f),
        "would call 'posix.system'",
    ),
    "builtins.exec by hand": (
        lambda f, c: torch_zip(f, pickled_call("builtins", "exec", f"open({str(c)!r}, 'w')")),
        "would call 'exec'",
    ),
    "builtins of Python 2": (
        lambda f, c: torch_zip(f, pickled_call("__builtin__", "eval", f"open({str(c)!r}, 'w')")),
        "would call",
    ),
    "code": (lambda f, c: torch_zip(f, pickled_call("types", "CodeType", "")), "would call 'types.CodeType'"),
    "an import": (lambda f, c: torch_zip(f, pickled_call("importlib", "import_module", "antigravity")), "would call"),
    "getattr": (lambda f, c: torch.save(Evil(getattr, [], "append"), f), "would call"),
    "torch.load": (lambda f, c: torch.save(Evil(torch.load, str(c)), f), "would call 'torch.serialization.load'"),
    "a file of the first PyTorch versions": (lambda f, c: old_tar(f, touch(c)), "is not a file of weights"),
    "a TorchScript program": (lambda f, c: torch_zip(f, b"", **{"constants.pkl": b""}), "a TorchScript program"),
    "cut short": (lambda f, c: truncated(f), "incomplete or damaged"),
    "a bomb": (lambda f, c: zip_bomb(f), "would unpack to 100,000,0"),
    "claims 4 GB": (lambda f, c: false_size(f, 2**32 - 2), "would unpack to 4,29"),
    "a view of 4 TB": (lambda f, c: torch.save(state_with(fc__bias=HUGE), f), "has shape (1099511627776,)"),
    "exponentially nested lists": (lambda f, c: torch.save(doubled_lists(), f), "has no weights: expected"),
    "deeply nested": (lambda f, c: torch_zip(f, nested_lists()), "has no weights: expected"),
    "safetensors, huge header": (lambda f, c: safetensors(f, {}, length=2**60), "as safetensors failed, "),
    "safetensors, header past the end": (lambda f, c: safetensors(f, {}, length=10**6), "as safetensors failed, "),
    "safetensors, overlapping": (
        lambda f, c: safetensors(f, {"a": entry(), "b": entry(start=20, end=60)}),
        "as safetensors failed, ",
    ),
    "safetensors, past the end": (lambda f, c: safetensors(f, {"a": entry(end=10**9)}), "as safetensors failed, "),
    "safetensors, unknown dtype": (lambda f, c: safetensors(f, {"a": entry("EVIL")}), "as safetensors failed, "),
    "safetensors, too short": (lambda f, c: safetensors(f, {"a": entry("F64")}), "as safetensors failed, "),
    "safetensors, huge shape": (
        lambda f, c: safetensors(f, {"a": entry(shape=(2**62, 2**62))}),
        "as safetensors failed, ",
    ),
    "safetensors of integers": (
        lambda f, c: save_file(state_with(fc__bias=torch.ones(10, dtype=torch.int8)), f),
        "'fc.bias' is torch.int8",
    ),
    "not finite": (
        lambda f, c: torch.save(state_with(fc__bias=torch.full((10,), torch.nan)), f),
        "'fc.bias' has values that are not finite",
    ),
    "another shape": (lambda f, c: torch.save(state_with(fc__bias=torch.ones(11)), f), "'fc.bias' has shape (11,)"),
    "another name": (lambda f, c: torch.save(state_with(evil=torch.ones(1)), f), "'evil' does not exist in this one"),
    "one weight missing": (lambda f, c: torch.save(WITHOUT_BIAS, f), "'fc.bias' is missing"),
    "no names": (lambda f, c: torch.save({0: torch.ones(1)}, f), "has no weights: expected"),
    "a zip of photographs": (lambda f, c: photo_zip(f), "a zip archive, but not a PyTorch file"),
    "a text": (lambda f, c: f.write_text("weights"), "is not a file of weights"),
    "a web page": (lambda f, c: f.write_text("<!doctype html>Sign in"), "is a web page"),
    "empty": (lambda f, c: f.write_bytes(b""), "is empty"),
    "missing": (lambda f, c: None, None),
    "a folder": (lambda f, c: f.mkdir(), "is not a run"),
    "a link to itself": (lambda f, c: f.symlink_to(f), None),
    "a named pipe": (lambda f, c: os.mkfifo(f), None),
}


def one_line(capsys) -> str:
    """The only line on stderr."""
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("pckd-nb: ") and "Traceback" not in printed.out + line and len(line) < 900
    return line


@pytest.mark.skipif(os.name != "posix", reason="the calls are those of Linux and macOS")
@pytest.mark.parametrize("what", CHECKPOINTS)
def test_malicious_checkpoint_gives_one_line_and_runs_no_code(what, tmp_path, capsys):
    write, message = CHECKPOINTS[what]
    file, canary = tmp_path / "file.pth", tmp_path / "canary"
    write(file, canary)
    options = ["--model", "resnet8", "--data", "digits", "--test-size", "10", "--accelerator", "cpu"]
    assert main(["evaluate", str(file), *options]) == 2
    line = one_line(capsys)
    assert "file.pth" in line and (message or "there is no such file") in line
    assert not canary.exists()


def test_malicious_pickles_would_run_code(tmp_path):
    """Python's own unpickling runs what is refused above."""
    for number, pickled in enumerate((pickle.dumps(touch(tmp_path / "0")), pickle.dumps(evil_dict(tmp_path / "1")))):
        pickle.loads(pickled)
        assert (tmp_path / str(number)).exists()
    pickle.loads(pickled_call("builtins", "exec", f"open({str(tmp_path / '2')!r}, 'w')"))
    assert (tmp_path / "2").exists()


@pytest.mark.parametrize(
    "option",
    ["checkpoint_path=file.pth", "pretrained=True", "pretrained_cfg_overlay={'file': 'file.pth'}", "cache_dir=here"],
)
def test_options_in_timm_names_load_no_weights(option, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    torch.save(touch(tmp_path / "canary"), tmp_path / "file.pth")
    with pytest.raises(ValueError, match="is not an option: create_model gives random weights"):
        pckd.create_model(f"timm:test_resnet,{option}", num_classes=10)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("option", ["weights=DEFAULT", "weights='IMAGENET1K_V1'", "weights_backbone=DEFAULT"])
def test_options_in_torchvision_names_load_no_weights(option):
    with pytest.raises(ValueError, match="is not an option: create_model gives random weights"):
        pckd.create_model(f"torchvision:resnet18,{option}", num_classes=10)


# ---------------------------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one epoch on digits."""
    folder = tmp_path_factory.mktemp("run") / "run"
    data = pckd.load_dataset("digits", train_size=40, test_size=20)
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=20)
    pckd.fit(pckd.create_model("resnet8", data, seed=1), data, recipe, out=folder, accelerator="cpu", progress=False)
    return folder


def edit_settings(folder: Path, change) -> None:
    content = json.loads((folder / "run.json").read_text("utf-8"))
    change(content)
    (folder / "run.json").write_text(json.dumps(content), "utf-8")


def edit_npz(folder: Path, name: str, **arrays: np.ndarray) -> None:
    with np.load(folder / f"{name}.npz") as file:
        arrays = {**file, **arrays}
    np.savez(folder / f"{name}.npz", **arrays)


def array_of_objects(canary: Path) -> np.ndarray:
    return np.array([touch(canary)], object)


def huge_array(folder: Path) -> None:
    """Write an array whose header gives its size as 8 EB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**60,)})
    with zipfile.ZipFile(folder / "samples.npz", "w") as file:
        file.writestr("labels.npy", header.getvalue())


RUNS = {
    "samples.npz with objects": lambda f, c: edit_npz(f, "samples", labels=array_of_objects(c)),
    "gallery.npz with objects": lambda f, c: edit_npz(f, "gallery", images=array_of_objects(c)),
    "embedding.npz with objects": lambda f, c: edit_npz(f, "embedding", centers=array_of_objects(c)),
    "geometry.npz with objects": lambda f, c: edit_npz(f, "geometry", means=array_of_objects(c)),
    "geometry.npz with words": lambda f, c: edit_npz(f, "geometry", nc1=np.array(["word"])),
    "geometry.npz of other classes": lambda f, c: edit_npz(f, "geometry", centers=np.ones((1, 3, 64), np.float16)),
    "geometry.npz of some training images": lambda f, c: edit_npz(f, "geometry", train_epoch=np.ones(1, np.int32)),
    "geometry.npz of another length": lambda f, c: edit_npz(f, "geometry", epoch=np.ones(7, np.int32)),
    "samples.npz is a pickle": lambda f, c: (f / "samples.npz").write_bytes(pickle.dumps(touch(c))),
    "samples.npz is one array": lambda f, c: np.save((f / "samples.npz").open("wb"), np.ones(3)),
    "samples.npz with an extra array": lambda f, c: edit_npz(f, "samples", path=np.ones(3)),
    "samples.npz of 8 EB": lambda f, c: huge_array(f),
    "samples.npz of other samples": lambda f, c: edit_npz(f, "samples", labels=np.zeros(3, np.int64)),
    "samples.npz with invalid labels": lambda f, c: edit_npz(f, "samples", labels=np.full(40, 99)),
    "samples.npz in one dimension": lambda f, c: edit_npz(f, "samples", difficulty=np.ones(3, np.float16)),
    "samples.npz with margins of two epochs": lambda f, c: edit_npz(f, "samples", margin=np.ones((2, 40), np.float16)),
    "samples.npz with too few error norms": lambda f, c: edit_npz(f, "samples", error_norms=np.ones((1, 3), "f2")),
    "samples.npz with error norms as words": lambda f, c: edit_npz(f, "samples", error_norms=np.full((1, 40), "x")),
    "samples.npz with invalid predictions": lambda f, c: edit_npz(f, "samples", prediction=np.full(40, 99)),
    "gallery.npz with words": lambda f, c: edit_npz(f, "gallery", images=np.array(["<script>"])),
    "gallery.npz with too few": lambda f, c: edit_npz(f, "gallery", labels=np.zeros(1, np.int64)),
    "embedding.npz with words": lambda f, c: edit_npz(f, "embedding", features=np.array(["word"])),
    "student.safetensors is a pickle": lambda f, c: torch.save(touch(c), f / "student.safetensors"),
    "student.safetensors overlapping": lambda f, c: safetensors(
        f / "student.safetensors", {"a": entry(), "b": entry(start=20, end=60)}
    ),
    "student.safetensors of another network": lambda f, c: save_file(
        {"fc.bias": torch.ones(3)}, f / "student.safetensors"
    ),
    "history.csv with words": lambda f, c: (f / "history.csv").write_text("epoch,test_top1,test_top5\n1,<b>,2\n"),
    "history.csv without columns": lambda f, c: (f / "history.csv").write_text("a,b\n1,2\n"),
    "history.csv is binary": lambda f, c: (f / "history.csv").write_bytes(b"\xff\xfe\x00" * 99),
    "timing.csv is empty": lambda f, c: (f / "timing.csv").write_bytes(b""),
    "run.json is empty": lambda f, c: (f / "run.json").write_bytes(b""),
    "run.json is a list": lambda f, c: (f / "run.json").write_text("[1]"),
    "run.json is a number": lambda f, c: (f / "run.json").write_text("1e999"),
    "run.json is binary": lambda f, c: (f / "run.json").write_bytes(b"\xff\x00"),
    "run.json deeply nested": lambda f, c: (f / "run.json").write_text('{"a":' * 200_000),
    "run.json deeply nested and complete": lambda f, c: (f / "run.json").write_text("[" * 200_000 + "]" * 200_000),
    "run.json with a number of a million digits": lambda f, c: (f / "run.json").write_text(
        f'{{"format": {"9" * 1_000_000}}}'
    ),
    "run.json with one key": lambda f, c: (f / "run.json").write_text('{"format": 1}'),
    "run.json of another format": lambda f, c: edit_settings(f, lambda info: info.update(format=["evil"] * 9999)),
    "no model": lambda f, c: edit_settings(f, lambda info: info.update(model=None)),
    "no status": lambda f, c: edit_settings(f, lambda info: info.pop("status")),
    "classes that are not names": lambda f, c: edit_settings(f, lambda info: info["data"].update(classes=[{}] * 10)),
    "too many classes": lambda f, c: edit_settings(f, lambda info: info["model"].update(num_classes=10**12)),
    "too many channels": lambda f, c: edit_settings(f, lambda info: info["model"].update(in_channels=10**9)),
    "negative channels": lambda f, c: edit_settings(f, lambda info: info["model"].update(in_channels=-1)),
    "an unknown network": lambda f, c: edit_settings(f, lambda info: info["model"].update(name="os.system")),
    "a network that loads a file": lambda f, c: edit_settings(
        f, lambda info: info["model"].update(name=f"timm:test_resnet,checkpoint_path={evil_file(f, c)}")
    ),
    "an unknown data set": lambda f, c: edit_settings(f, lambda info: info["data"].update(name="../../etc")),
    "no model name": lambda f, c: edit_settings(f, lambda info: info["model"].pop("name")),
    "no hardware": lambda f, c: edit_settings(f, lambda info: info.pop("hardware")),
    "no fingerprint": lambda f, c: edit_settings(f, lambda info: info.pop("fingerprint")),
    "no image size": lambda f, c: edit_settings(f, lambda info: info["data"].pop("image_size")),
    "an empty image size": lambda f, c: edit_settings(f, lambda info: info["data"].update(image_size=[])),
    "a teacher without fingerprint": lambda f, c: edit_settings(f, lambda info: info.update(teacher={"name": "x"})),
    "data of another folder": lambda f, c: edit_settings(f, lambda info: info["data"]["options"].update(root=str(c))),
    "data option of the wrong type": lambda f, c: edit_settings(
        f, lambda info: info["data"]["options"].update(train_size="all")
    ),
    "invalid settings": lambda f, c: edit_settings(f, lambda info: info["method"].update(settings={"T": 4})),
}


MESSAGES = {  # parts of messages that do not name the folder
    "an unknown network": "unknown model 'os.system'",
    "a network that loads a file": "is not an option",
    "an unknown data set": "unknown data set '../../etc'",
}


def evil_file(folder: Path, canary: Path) -> Path:
    torch.save(touch(canary), folder / "file.pth")
    return folder / "file.pth"


@pytest.mark.parametrize("what", RUNS)
def test_malicious_run_folder_gives_one_line_and_runs_no_code(what, finished, tmp_path, capsys):
    folder, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(finished, folder)
    RUNS[what](folder, canary)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["evaluate", str(folder), "--accelerator", "cpu"]) == 2
    assert MESSAGES.get(what, str(folder)) in one_line(capsys) and not canary.exists()
    if what != "an unknown data set":  # the model does not need it
        with pytest.raises(ValueError) as caught:
            pckd.load_run(folder).model()
        assert str(caught.value).isprintable()
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()} and not canary.exists()


def test_operations_of_a_recorded_network_are_counted_without_running_its_code(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Net:\n    pass\n")
    edit_settings(tmp_path / "run", lambda info: info["model"].update(name=f"{tmp_path / 'evil.py'}:Net"))
    run = pckd.load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="^cannot count the operations of a network of your own"):
        pckd.analysis.training_flops(run)
    assert np.isnan(pckd.analysis.teraflops(run)) and not canary.exists()


def test_unchanged_run_folder_can_be_evaluated(finished, capsys):
    assert main(["evaluate", str(finished), "--accelerator", "cpu"]) == 0
    assert "top-1" in capsys.readouterr().out


RESUMED = {
    "os.system": lambda f, c: torch.save(touch(c), f),
    "os.system beside the weights": lambda f, c: torch.save({"student": STATE, "recorder": touch(c)}, f),
    "legacy": lambda f, c: torch.save({"student": touch(c)}, f, _use_new_zipfile_serialization=False),
    "a bare pickle": lambda f, c: f.write_bytes(pickle.dumps(touch(c))),
    "exec by hand": lambda f, c: torch_zip(f, pickled_call("builtins", "exec", f"open({str(c)!r}, 'w')")),
    "a list": lambda f, c: torch.save([1], f),
    "weights alone": lambda f, c: torch.save({"student": STATE}, f),
    "empty": lambda f, c: f.write_bytes(b""),
    "a text": lambda f, c: f.write_text("weights"),
    "deeply nested": lambda f, c: torch_zip(f, nested_lists()),
}


@pytest.mark.parametrize("what", RESUMED)
def test_resume_refuses_a_malicious_checkpoint(what, finished, tmp_path):
    folder, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(finished, folder)
    edit_settings(folder, lambda info: info.update(status="interrupted"))
    RESUMED[what](folder / "checkpoint.pt", canary)
    data = pckd.load_dataset("digits", train_size=40, test_size=20)
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=20)
    student = pckd.create_model("resnet8", data, seed=1)
    with pytest.raises(
        ValueError, match="checkpoint.* can't be (read|used): .*; start again with overwrite=True"
    ) as caught:
        pckd.fit(student, data, recipe, out=folder, resume=True, accelerator="cpu", progress=False)
    assert str(caught.value).isprintable() and "trust" not in str(caught.value)  # torch would advise to unpickle it
    assert not canary.exists() and (folder / "checkpoint.pt").exists()


# ----------------------------------------------------------------------------------------------------------- HTML

SCRIPT, PICTURE = "<script>alert(1)</script>", "<img src=x onerror=alert(2)>"
NAMES = (SCRIPT, PICTURE, "'\"><b>&amp;")


@pytest.fixture(scope="module")
def html_run(tmp_path_factory):
    """A run whose classes and folder have names that are HTML."""
    from .conftest import make_data

    data = dataclasses.replace(make_data(), classes=NAMES, groups={SCRIPT: (PICTURE,) * 3})
    folder = tmp_path_factory.mktemp("nasty") / PICTURE
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=16)
    pckd.fit(pckd.create_model("resnet8", data, seed=1), data, recipe, out=folder, accelerator="cpu", progress=False)
    return pckd.load_run(folder)


def raw_tags(page: str) -> list[str]:
    """Return the tags of our names that a browser would interpret."""
    return re.findall(r"<script>alert|<img src=x|<b>&", page)


def html_values(widget) -> list[str]:
    """Return all HTML text of a widget and its children."""
    own = [widget.value] if type(widget).__name__.startswith("HTML") else []
    options = [
        getattr(widget, name) for name in ("description_allow_html", "tooltip_allow_html") if hasattr(widget, name)
    ]
    assert not any(options), f"{widget} treats its label as HTML"
    return own + [text for child in getattr(widget, "children", ()) for text in html_values(child)]


def test_widgets_escape_names(html_run):
    for explorer in (widgets.difficulty_browser(html_run), widgets.preview_explorer(html_run)):
        for control in explorer.controls.values():
            for option in list(getattr(control, "options", ()))[:4]:
                control.value = option[1] if isinstance(option, tuple) else option
                texts = html_values(explorer)
                assert texts and raw_tags("".join(texts)) == []
    assert "&lt;" in "".join(html_values(widgets.difficulty_browser(html_run)))


def test_package_and_notebooks_make_html_only_from_escaped_text():
    """ipywidgets.HTML starts empty. Its value is an f-string of tags and `escape`d names. Nothing else makes HTML."""
    code = {file: file.read_text("utf-8") for file in (ROOT / "pckd_nb").rglob("*.py")}
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(file, as_version=4).cells
        code[file] = "\n".join(
            cell.source for cell in cells if cell.cell_type == "code" and cell.source[:1] not in "%!"
        )
    makes_html = re.compile(
        r"\b(display_html|IPython\.display(?! import Pretty, display\n)|HTML\((?!\))|Markdown\(|Javascript\()|"
        r"\b(to_html|(?<!def )_repr_html_)|\.style\.(format|apply|map)|escape=False|allow_html"
    )
    for file, text in code.items():
        assert not makes_html.search(text), f"{file.name}: {makes_html.search(text)}"
    makers = {file.stem: text for file, text in code.items() if re.search(r"HTML\(\)|def _repr_html_|</td>", text)}
    assert makers.keys() >= {"explorer", "difficulty", "runs", "html", "dataset", "output"}
    for name, text in makers.items():
        if re.search(r"return table\(", text) and "</" not in text:
            continue  # `html.table` makes the tags
        strings = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.JoinedStr)]
        tags = [node for node in strings if "<" in ast.unparse(node)[:6]]
        assert tags, f"{name} makes HTML in a way that this test does not see"
        for node in tags:
            inside = [ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
            assert all(re.match(r"escape\(|base64\.|css$|cells$|_accuracy_svg\(", part) for part in inside), inside


@pytest.mark.slow
def test_report_escapes_names_in_every_kind_of_output(html_run, tmp_path, monkeypatch):
    from pckd_nb import demo

    sources = [
        f"import pandas as pd, pckd_nb as pckd\nrun = pckd.load_run({str(html_run.path)!r})",
        "names = run.settings['data']['classes']",
        "print(names, run.path)",
        "names",
        "pd.DataFrame({name: [name] for name in names}, index=pd.Index([names[0]], name=names[1]))",
        "pd.Series(list(names), name=names[0])",
        "pckd.figures.difficulty_gallery(run)",
        "import sys; print(names[1], file=sys.stderr)",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(book, tmp_path / "small.ipynb")
    monkeypatch.setattr(demo, "NOTEBOOK", tmp_path / "small.ipynb")
    (tmp_path / PICTURE).mkdir()
    page = demo.write_report(tmp_path / PICTURE).read_text("utf-8")
    assert raw_tags(page) == []
    assert page.count("&lt;script&gt;alert(1)") >= 5 and "Traceback" not in page and "image/png" in page


def test_site_escapes_captions(tmp_path, monkeypatch):
    pytest.importorskip("myst_parser")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_site
    from docutils.core import publish_string
    from docutils.writers.html5_polyglot import Writer
    from myst_parser.docutils_ import Parser

    name = sorted(make_site.collection.FIGURES)[0]
    (tmp_path / f"{name}_data.png").write_bytes(b"")
    caption = f"Accuracy of {SCRIPT} & {NAMES[2]}."
    (tmp_path / f"{name}_data.txt").write_text(f"{caption}\n\nFrom {PICTURE}, 3 seeds.\n", "utf-8")
    text = make_site.gallery(tmp_path)
    page = publish_string(text, parser=Parser(), writer=Writer(), settings_overrides={"report_level": 5}).decode()
    assert raw_tags(page.partition("<body")[2]) == [] and page.count("&lt;script&gt;") >= 1 and "&lt;img" in page


# -------------------------------------------------------------------------------------------------------- network

UNPLUGGED = """
import socket, sys

attempts = []

def refuse(what):
    def call(*arguments, **_):
        attempts.append((what, arguments))
        raise OSError(f"the network was used: {what} {arguments}")
    return call

def local(call):  # processes on the same machine may communicate
    def checked(self, address):
        if self.family != getattr(socket, "AF_UNIX", None):
            refuse("connect")(address)
        return call(self, address)
    return checked

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, local(getattr(socket.socket, name)))
for name in ("getaddrinfo", "gethostbyname", "create_connection", "gethostbyname_ex"):
    setattr(socket, name, refuse(name))
"""

MAIN_JOB = """
import importlib, os, pkgutil, warnings
import pckd_nb as pckd
from pckd_nb.cli import main

for module in pkgutil.walk_packages(pckd.__path__, "pckd_nb."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

data, runs = ["--data", "digits", "--train-size", "60", "--test-size", "20"], ["--epochs", "1", "--batch-size", "20"]
commands = [
    ["datasets"],
    ["models"],
    ["train", "--model", "resnet14", *data, *runs, "--out", "runs/teacher"],
    ["distill", "--teacher", "runs/teacher", "--student", "resnet8", *data, *runs, "--out", "runs/pckd"],
    ["evaluate", "runs/pckd"],
    ["evaluate", "runs/pckd/student.safetensors", "--model", "resnet8", "--data", "digits"],
    ["transfer", "runs/pckd", *data],
    ["train", "--model", "resnet8", "--data", "shapes100", "--train-size", "100", "--test-size", "100", "--epochs", "1",
     "--out", "shapes"],
    ["figures", "--runs", "runs", "--out", "figures"],
]
for command in commands:
    if command[0] in ("train", "distill", "evaluate", "transfer"):
        command = [*command, "--accelerator", "cpu"]
    assert main(command) == 0, command
assert any(name.endswith(".png") for name in os.listdir("figures"))
assert attempts == [], attempts
assert main(["evaluate", "https://example.org/x.pth", "--model", "resnet8", "--data", "digits"]) == 2  # uses it
assert attempts and any("example.org" in str(arguments) for _, arguments in attempts), attempts
print("unplugged")
"""


@pytest.mark.slow
def test_main_commands_work_without_a_network(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"PCKD_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    waits = "import pckd_nb.downloads\npckd_nb.downloads.RETRY_PAUSES = ()\n"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UNPLUGGED + waits + MAIN_JOB)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0 and done.stdout.endswith("unplugged\n"), done.stdout[-2000:] + done.stderr[-4000:]

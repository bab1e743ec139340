"""Weights that others saved, from a file or a web address, into a network of ours. No code in a file is ever run.

Read are PyTorch files, zip or legacy (RepDistiller/CRD, the PCKD release, mdistiller, timm, torchvision, Lightning),
safetensors, run folders, and folders as on the Hugging Face hub.
"""

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar
from urllib.parse import urlsplit

import torch
from safetensors.torch import load
from torch import Tensor, nn

from .downloads import check_address, default_root, download, one_line
from .models import Classifier, TrainingData
from .models.preprocessing import set_trained_on
from .paths import user_path
from .runs import BEST, HEADS, TRAINED_ON, load_run, load_weights
from .validation import check

PLACES = (  # of the weights in a file, best first
    "model", "state_dict", "model_state_dict", "net", "network", "student", "weights", "params", "state_dict_ema",
    "model_ema", "ema",
)  # fmt: skip
# put before names by DataParallel, torch.compile, Lightning, and mdistiller, which saves teacher and student in one
WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model|net|network|student)\.)+")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception v3 that only their training uses
RENAMED = {  # old names in torchvision's files → the names of today, as torchvision itself changes them
    r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)": r"\1\2",
    r"(mlp\.)linear_1\.": r"\g<1>0.",
    r"(mlp\.)linear_2\.": r"\g<1>3.",
}
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in folders of the Hugging Face hub
ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")
UNPACK = "unpack it, and give the file of weights that is in it"
OLD_TAR = (b"sys_info\0", b"pickle\0", b"tensors\0", b"storages\0")  # how PyTorch's first files begin
LFS_POINTER = b"version https://git-lfs.github.com/"
MAX_PACKED = 50  # times that the weights in a zip archive may be larger than the archive
MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the library
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]")
NOT_RUN = (
    "and code is never run from a checkpoint; ask its author for a file of weights (safetensors), or, if you have the "
    "network, save model.state_dict() alone"
)

Network = TypeVar("Network", bound=nn.Module)


class Ignored:
    """Takes the place of what files hold beside weights, so that not even numpy's or argparse's code sees them."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


IGNORED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Ignored, name)
    for name in (
        "argparse.Namespace",
        "numpy.dtype",
        "numpy.ndarray",
        *(f"numpy.{core}.multiarray.{maker}" for core in ("core", "_core") for maker in ("scalar", "_reconstruct")),
        *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
    )
]


def load_checkpoint(
    model: Network,
    source: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    root: str | Path | None = None,
) -> Network:
    """Load the weights in `source`, a file, a run folder or an https address, into `model`, and return it.

    Every weight must fit, but for counters of batches that old files lack, and auxiliary heads that `model` lacks.
    Prefixes of wrappers, such as "module." or Lightning's "model.", are removed; what is beside the wrapped network is
    not read. Where anything fails the model is left as it was.
    sha256 (64 hexadecimal digits) and size (bytes) are of the file, an address may also end in #sha256=…; root is
    `fetch`'s.
    Raises ValueError (weights of another network, a file that can't be read or holds more than weights),
    FileNotFoundError (no such file, a folder that is no run) or OSError (failed download, wrong sum or size).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, got {type(model).__name__}: create_model(name, data) makes one")
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a path or an address, got {type(source).__name__}")
    _check_sum(sha256)
    if "://" in str(source):
        source, _, fragment = str(source).partition("#sha256=")  # pip's way to write it
        _check_sum(sha256 := sha256 or fragment or None)
        path = fetch(source, sha256=sha256, size=size, root=root)
        label = f"'{source}' (kept as '{path}')"
    else:
        path, label = user_path(source, "source"), f"'{source}'"
    if path.is_dir() and not (path / "run.json").is_file():
        hub = next((path / name for name in HUB_FILES if (path / name).is_file()), None)
        if hub is None:
            raise FileNotFoundError(f"{label} is not a run: it has no run.json, nor {' or '.join(HUB_FILES)}")
        path, label = hub, f"'{hub}'"
    trained_on: TrainingData | None
    if path.is_dir():
        if sha256 is not None or size is not None:
            raise ValueError(f"{label} is a folder: sha256 and size are of a file")
        run = load_run(path)
        state, trained_on = run.student_state, run.trained_on
        if not state:
            raise ValueError(f"{label} is a record without weights")
        run.check_weights()
    elif not path.is_file():
        raise FileNotFoundError(f"{label}: there is no such file")
    else:
        if wrong := _difference(path, sha256, size):
            raise OSError(f"{label} {wrong}")
        try:
            content = _read(path, label)
        except ValueError as error:
            if "://" not in str(source):
                raise
            path.unlink()  # or every later call would find it
            raise ValueError(f"{error}; it was not kept") from error
        state, trained_on = _weights(content, label), training_data_of(path)
    had_auxiliary = any(name.startswith(AUXILIARY) for name in _unwrapped(state))
    state = _fit(model, state, label)
    try:
        load_weights(model, state, label)
    except ValueError as error:
        raise ValueError(f"{error}{_explain(model, state, str(error))}") from None
    if had_auxiliary and any(getattr(module, "transform_input", True) is False for module in model.modules()):
        warnings.warn(
            f"{label} has auxiliary heads: if it is torchvision's own file, the network needs transform_input=True, "
            "as in torchvision:googlenet,transform_input=True",
            stacklevel=2,
        )
    if isinstance(model, Classifier):
        model.weights_from = str(source) if "://" in str(source) else Path(source).name
    set_trained_on(model, trained_on)
    return model


def fetch(url: str, *, sha256: str | None = None, size: int | None = None, root: str | Path | None = None) -> Path:
    """The file at `url`, downloaded once into the folder "checkpoints" of `root` (that of the data sets unless said).

    sha256 (64 hexadecimal digits) and size (bytes) are checked where given; a kept file they don't fit is fetched
    again. A broken connection is tried three times in all. Raises ValueError for an address that is not https (http
    to this machine is allowed), OSError where the download fails or is not what was expected; nothing is kept then.
    """
    check(str, url=url)
    check_address(url)
    _check_sum(sha256)
    folder = (default_root() if root is None else user_path(root, "root")) / "checkpoints"
    name = re.sub(r"[^\w.-]", "_", urlsplit(url).path.rpartition("/")[2])[-80:] or "checkpoint"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if path.is_file():
        if not _difference(path, sha256, size):
            return path
        path.unlink()

    def check_file(file: Path) -> None:
        with open(file, "rb") as opened:
            page = WEB_PAGE.match(opened.read(64))
        if page:
            raise OSError(f"'{url}' gave a web page, not a file of weights: give the address of the file itself")
        if wrong := _difference(file, sha256, size):
            raise OSError(f"'{url}' {wrong}: it was not kept")

    download(url, path, check_file, most=size)
    return path


def _check_sum(sha256: str | None) -> None:
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 is 64 hexadecimal digits, not '{sha256}'")


def _difference(path: Path, sha256: str | None, size: int | None) -> str:
    """What of the file is not as expected; "" if all is."""
    if size is not None and (found := path.stat().st_size) != size:
        return f"has {found:,} bytes instead of {size:,}"
    if sha256 is None:
        return ""
    import pooch

    found = pooch.file_hash(str(path), alg="sha256")
    return "" if found == sha256.lower() else f"has the SHA-256 sum {found} instead of {sha256.lower()}"


def _read(path: Path, label: str) -> Any:
    """What a file holds, with `Ignored` where it is not weights. Raises ValueError where it can't be read safely."""
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if not start:
            raise ValueError(f"{label} is empty")
        if WEB_PAGE.match(start):
            raise ValueError(f"{label} is a web page, not a file of weights: download the file itself")
        if start.startswith(b"PK\3\4"):
            try:
                archive = zipfile.ZipFile(file)
                entries = archive.infolist()
            except Exception as error:  # whoever made the file decides what goes wrong, here and below
                raise ValueError(f"{label} is cut short or damaged: as a zip archive, {_one_line(error)}") from error
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise ValueError(f"{label} was refused: it is a TorchScript program, {NOT_RUN}")
            if not any(entry.filename.endswith("/data.pkl") for entry in entries):
                raise ValueError(f"{label} is a zip archive, but not one of PyTorch's: {UNPACK}")
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > MAX_PACKED * path.stat().st_size:
                raise ValueError(f"{label} was refused: it would unpack to {unpacked:,} bytes, more than weights can")
            if broken := _broken_entry(archive):
                raise ValueError(f"{label} is damaged: {broken} is not what was written")
            # mapped, only what is used is read; what somebody has compressed would be read as noise
            return _unpickle(path, label, mmap=all(entry.compress_type == zipfile.ZIP_STORED for entry in entries))
        if start.startswith(b"\x80"):
            return _unpickle(file, label)
        if start.startswith(ARCHIVES) or (start[257:262] == b"ustar" and not start.startswith(OLD_TAR)):
            raise ValueError(f"{label} is an archive: {UNPACK}")
        if start.startswith(LFS_POINTER):
            raise ValueError(f"{label} only points to the weights: get the file itself by git lfs pull")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return load(path.read_bytes())
        except Exception as error:
            raise ValueError(f"{label} is cut short or damaged: as safetensors, {_one_line(error)}") from error
    raise ValueError(f"{label} is no file of weights: neither PyTorch's (.pth, .pt) nor safetensors")


def _broken_entry(archive: zipfile.ZipFile) -> str | None:
    """Return the first entry whose checksum is wrong. torch does not look at checksums."""
    try:
        return archive.testzip()
    except Exception as error:  # whoever made the file decides what goes wrong
        return f"an entry ({_one_line(error)})"


def training_data_of(source: str | Path) -> TrainingData | None:
    """Return what a run folder, or its student.safetensors, says of the training data of its network.

    Parameters
    ----------
    source : path

    Returns
    -------
    TrainingData or None
        None if `source` is anything else.

    Raises
    ------
    ValueError
        If the run or the file is damaged.
    """
    path = user_path(source, "source")
    if (path / "run.json").is_file():
        return load_run(path, tables_only=True).trained_on
    if not path.is_file():
        return None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file.read(1) != b"{" or length > MAX_HEADER:
            return None
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except ValueError:  # it will say so when its weights are read
            return None
    metadata = header.get("__metadata__")
    text = metadata.get(TRAINED_ON) if isinstance(metadata, dict) else None
    try:
        return None if text is None else TrainingData.model_validate_json(text)
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged: as {TRAINED_ON}, {one_line(error)}") from None


def _unpickle(file: Any, label: str, mmap: bool = False) -> Any:
    """torch.load of a path or an open file, weights alone."""
    try:
        with warnings.catch_warnings(record=True) as said, torch.serialization.safe_globals(IGNORED):
            warnings.simplefilter("always")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        reason = _one_line(error)
        if "unexpected EOF" in reason or (hasattr(file, "read") and not file.read(1)):
            raise ValueError(f"{label} is cut short: the file ends in the middle of its weights") from error
        if found := re.search(r"GLOBAL (.+) (?:was not an allowed global|whose module)", str(error), re.DOTALL):
            called = re.sub(r"^commands\.", "subprocess.", found[1][:100])  # its name in Python 2, which pickles keep
            raise ValueError(f"{label} was refused: it is a pickle that wants to call {called!r}, {NOT_RUN}") from None
        if protocol := re.search(r"pickle protocol ([345]) ", " ".join(str(warning.message) for warning in said)):
            raise ValueError(
                f"{label} was refused: it is a pickle of protocol {protocol[1]}, from which PyTorch reads no weights "
                "without running code: save it again without pickle_protocol=…, or as safetensors"
            ) from None
        if isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{label} was refused: it is a pickle, damaged or of more than weights ({reason}), {NOT_RUN}"
            ) from None
        raise ValueError(f"{label} is damaged: {reason}") from error


def _one_line(error: Exception | str) -> str:
    """The line of an error that says what was wrong: torch.load wraps it in advice to load unsafely."""
    text = re.split(r"\n\nCheck the documentation|\s*\(Could this error", str(error))[0]
    if isinstance(error, pickle.UnpicklingError):
        text = (text.splitlines() or [""])[-1]
    return one_line(text or type(error).__name__)


def _weights(content: Any, label: str) -> dict[str, Tensor]:
    """The state dict in what a file held: all of it, or what is at one of `PLACES`."""
    found = f"something else ({type(content).__name__})"
    if isinstance(content, Mapping):
        for state in (content, *(content.get(place) for place in PLACES)):
            if _is_state(state):
                return dict(state)
        keys = (
            repr(key[:40]) if isinstance(key, str) else f"a key of type {type(key).__name__}"
            for key in list(content)[:8]
        )
        found = ", ".join(keys) or "nothing"
        if {"state", "param_groups"} <= {*content}:
            found += ", which are an optimizer's"
    places = f"{', '.join(map(repr, PLACES[:-1]))} or {PLACES[-1]!r}"
    raise ValueError(f"{label} holds no weights: expected names and tensors, or such under {places}, found {found}")


def _is_state(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and name.isprintable() for name in value)
        and all(isinstance(weight, Tensor) for weight in value.values())
    )


def _fit(model: nn.Module, state: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """`state` by the model's own names, of the network alone.

    Raises ValueError where a weight is no plain number, or not finite.
    """
    own = model.state_dict()
    names = dict(zip(_unwrapped(own), own, strict=True))
    for old, new in RENAMED.items():
        if not any(re.search(old, name) for name in names):
            state = {re.sub(old, new, name): value for name, value in state.items()}
    state = _of_network(state, names, label)
    for beside in ((HEADS, BEST), AUXILIARY):
        if not any(name.startswith(beside) for name in names):
            state = {name: value for name, value in state.items() if not name.startswith(beside)}
    state = {names.get(name, name): value for name, value in state.items()}
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, value)
        found = state.get(name, value)
        plain = found.layout == torch.strided and not found.is_meta and not found.is_quantized
        if not plain or found.is_floating_point() != value.is_floating_point():
            kind = f"{'' if plain else 'not plain '}{found.dtype}"
            raise ValueError(f"{label}: weights of another kind, '{name}' is {kind} instead of {value.dtype}")
        # of another shape, which `load_weights` refuses, it may be a view that claims terabytes
        if found.shape == value.shape and value.is_floating_point() and not found.float().isfinite().all():
            raise ValueError(f"{label}: '{name}' is not finite: the file is damaged, or its training went wrong")
    return state


def _unwrapped(names: Iterable[str]) -> list[str]:
    """The names without what wrappers put before every one of them."""
    names = list(names)
    found = WRAPPERS.match(os.path.commonprefix(names))
    return [name.removeprefix(found[0]) for name in names] if found else names


def _of_network(state: Mapping[str, Tensor], names: Iterable[str], label: str) -> dict[str, Tensor]:
    """The weights of the network with these names, without the prefix that they have in the file.

    Where no prefix fits, or there is none, it is all of `state`: `load_weights` says what is missing or has no place.
    """
    first, *others = [name for name in names if not name.endswith("num_batches_tracked")] or [""]
    prefixes = [name.removesuffix(first) for name in state if name.endswith(first)]
    fitting = [p for p in prefixes if p[-1:] in ("", ".") and all(p + name in state for name in others)]
    usable = [p for p in fitting if WRAPPERS.fullmatch(p) or all(name.startswith(p) for name in state)]
    usable = [""] if "" in fitting else [p for p in usable if "student." in p] or usable
    if len(usable) > 1:
        raise ValueError(f"{label} has the network {len(usable)} times, {' and '.join(map(repr, usable))}: keep one")
    if not usable:
        return dict(zip(_unwrapped(state), state.values(), strict=True))
    return {name.removeprefix(p): value for p in usable for name, value in state.items() if name.startswith(p)}


def _explain(model: nn.Module, state: Mapping[str, Tensor], error: str) -> str:
    """To be added to `error`: what the file has instead of what is missing, or how many classes it is for."""
    own = model.state_dict(keep_vars=True)
    if "is missing" in error and (others := [repr(name) for name in state if name not in own]):
        return f"; the file has {', '.join([*others[:3], '…'] if len(others) > 3 else others)} instead"
    names = {id(value): name for name, value in own.items()}
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        weight = names.get(id(layer.weight), "")
        shape = tuple(state[weight].shape) if weight in state else ()
        if layer.out_features == layers[-1].out_features and f"'{weight}' has shape" in error:
            if shape[1:] == (layer.in_features,):
                return f": the file has {shape[0]} classes, the network {layer.out_features}"
    return ""

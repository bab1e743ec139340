"""Load weights from files of other libraries, from web addresses or from runs. Code in a file is never executed.

These can be loaded: PyTorch files in the zip or the legacy format (RepDistiller/CRD, the PCKD release, mdistiller,
timm, torchvision, Lightning), safetensors files, run folders, and folders in the format of the Hugging Face hub.
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

from .downloads import check_address, default_root, download
from .messages import one_line
from .models import Classifier, TrainingData
from .models.preprocessing import set_trained_on
from .paths import user_path
from .runs import BEST_PREFIX, HEADS_PREFIX, TRAINED_ON, load_run, load_weights
from .validation import check

WEIGHT_KEYS = (  # keys under which files keep the weights; the first match is used
    "model", "state_dict", "model_state_dict", "net", "network", "student", "weights", "params", "state_dict_ema",
    "model_ema", "ema",
)  # fmt: skip
# prefixes that DataParallel, torch.compile, Lightning and mdistiller add to the names of weights; mdistiller saves
# teacher and student in one file
WRAPPER_PREFIXES = re.compile(r"(?:(?:module|_orig_mod|model|net|network|student)\.)+")
# extra output layers in the middle of GoogLeNet and Inception v3, used only for training
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")
OLD_LAYER_NAMES = {  # names in old files of torchvision → today's names; torchvision makes the same changes
    r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)": r"\1\2",
    r"(mlp\.)linear_1\.": r"\g<1>0.",
    r"(mlp\.)linear_2\.": r"\g<1>3.",
}
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # weights in a folder of the Hugging Face hub
# first bytes of archives: gzip, bzip2, xz, 7z, RAR, Zstandard
ARCHIVE_SIGNATURES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")
UNPACK_ADVICE = "unpack it and give the file of weights inside"
# the oldest format of PyTorch is a tar archive, and begins with one of these file names
LEGACY_TAR_NAMES = (b"sys_info\0", b"pickle\0", b"tensors\0", b"storages\0")
LFS_POINTER = b"version https://git-lfs.github.com/"  # start of a file that Git LFS has not downloaded yet
# largest accepted size of an unpacked zip archive, relative to the archive; a larger one is probably a zip bomb
MAX_UNPACK_RATIO = 50
MAX_HEADER_BYTES = 100_000_000  # largest header of a safetensors file, the same limit as in the library safetensors
# start of an HTML page: an optional byte order mark, spaces, and a tag
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]")
NO_CODE_ADVICE = (
    "and code in a checkpoint is never run; ask its author for a safetensors file, or save only model.state_dict() if "
    "you have the network"
)

Network = TypeVar("Network", bound=nn.Module)


class IgnoredObject:
    """Replaces all objects in a file that are not weights, so that no code of their classes runs."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# classes and functions that harmless checkpoints contain besides weights; they are not called
IGNORED_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (IgnoredObject, name)
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
    """Load weights from a file, a run folder or a web address into a network, and return the network.

    The file must have the weights of the network, with the same names and shapes. Before the names are compared,
    prefixes such as "module." of DataParallel or "model." of Lightning are removed. Auxiliary heads, which are extra
    output layers for training, are skipped if only the file has them. If loading fails, the network is not changed.
    Code in a file is never executed.

    Parameters
    ----------
    model : nn.Module
        Its weights are replaced. `create_model` makes a network.
    source : str or Path
        A PyTorch or safetensors file, a run folder, a folder from the Hugging Face hub, or an https address. An address
        can end in #sha256=…
    sha256 : str, optional
        Expected SHA-256 sum of the file, 64 hexadecimal digits.
    size : int, optional
        Expected size of the file in bytes.
    root : str or Path, optional
        Folder for downloads. Default: the folder of the data sets.

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is not an nn.Module or `source` is not a path.
    ValueError
        If the weights belong to another network, if the file cannot be read, or if it contains more than weights.
    FileNotFoundError
        If there is no such file, or if a folder is neither a run nor from the Hugging Face hub.
    OSError
        If the download fails, or if the size or the SHA-256 sum is wrong.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> trained = pckd.create_model("resnet8", num_classes=10, seed=0)
    >>> torch.save(trained.state_dict(), "teacher.pth")
    >>> teacher = pckd.create_model("resnet8", num_classes=10, seed=1)
    >>> teacher = pckd.load_checkpoint(teacher, "teacher.pth")
    >>> torch.equal(teacher.fc.weight, trained.fc.weight)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network, got {type(model).__name__}: create_model(NAME, data) makes one")
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a path or an address, got {type(source).__name__}")
    _check_sha256(sha256)
    if "://" in str(source):
        source, _, fragment = str(source).partition("#sha256=")  # the syntax of pip
        _check_sha256(sha256 := sha256 or fragment or None)
        path = fetch(source, sha256=sha256, size=size, root=root)
        origin = f"'{source}' (kept as '{path}')"
    else:
        path, origin = user_path(source, "source"), f"'{source}'"
    if path.is_dir() and not (path / "run.json").is_file():
        hub = next((path / name for name in HUB_FILES if (path / name).is_file()), None)
        if hub is None:
            raise FileNotFoundError(
                f"{origin} is not a run folder: it has no run.json, {' or '.join(HUB_FILES)}; give a folder that "
                "has one of these files, or a file of weights"
            )
        path, origin = hub, f"'{hub}'"
    trained_on: TrainingData | None
    if path.is_dir():
        if sha256 is not None or size is not None:
            raise ValueError(f"{origin} is a folder: sha256 and size can only be given for a file")
        run = load_run(path)
        state, trained_on = run.student_state, run.trained_on
        if not state:
            raise ValueError(
                f"{origin} is a record of a run, without its weights: give a run folder with weights, or a "
                "file of weights"
            )
        run.check_weights()
    elif not path.is_file():
        raise FileNotFoundError(f"{origin}: there is no such file")
    else:
        if mismatch := _mismatch(path, sha256, size):
            raise OSError(f"{origin} {mismatch}")
        try:
            content = _read(path, origin)
        except ValueError as error:
            if "://" not in str(source):
                raise
            path.unlink()  # otherwise every later call would use it
            raise ValueError(f"{error}; the downloaded file was deleted") from error
        state, trained_on = _weights(content, origin), training_data_of(path)
    had_auxiliary = any(name.startswith(AUXILIARY_HEADS) for name in _unwrapped(state))
    state = _match_names(model, state, origin)
    try:
        load_weights(model, state, origin)
    except ValueError as error:
        raise ValueError(f"{error}{_hint_for_error(model, state, str(error))}") from None
    # torchvision trained the networks with auxiliary heads on images with another normalisation: transform_input=True
    # converts the images to it
    if had_auxiliary and any(getattr(module, "transform_input", True) is False for module in model.modules()):
        warnings.warn(
            f"{origin} has auxiliary heads: if it is torchvision's own file, the network needs transform_input=True. "
            "Create it with this option, as in torchvision:googlenet,transform_input=True",
            stacklevel=2,
        )
    if isinstance(model, Classifier):
        model.weights_from = str(source) if "://" in str(source) else Path(source).name
    set_trained_on(model, trained_on)
    return model


def fetch(url: str, *, sha256: str | None = None, size: int | None = None, root: str | Path | None = None) -> Path:
    """Download a file once, and return its path.

    If the connection breaks, the download is tried up to three times. If the file exists but does not have the expected
    size or SHA-256 sum, it is downloaded again. A file that fails a check is deleted.

    Parameters
    ----------
    url : str
        An https address. An http address is accepted only for this machine (localhost).
    sha256 : str, optional
        Expected SHA-256 sum, 64 hexadecimal digits.
    size : int, optional
        Expected size in bytes.
    root : str or Path, optional
        The file is stored in the subfolder "checkpoints" of this folder. Default: the folder of the data sets.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the address is not accepted.
    OSError
        If the download fails, or if the file is a web page or has the wrong size or SHA-256 sum.
    """
    check(str, url=url)
    check_address(url)
    _check_sha256(sha256)
    folder = (default_root() if root is None else user_path(root, "root")) / "checkpoints"
    name = re.sub(r"[^\w.-]", "_", urlsplit(url).path.rpartition("/")[2])[-80:] or "checkpoint"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if path.is_file():
        if not _mismatch(path, sha256, size):
            return path
        path.unlink()

    def check_file(file: Path) -> None:
        with open(file, "rb") as opened:
            page = WEB_PAGE.match(opened.read(64))
        if page:
            raise OSError(f"'{url}' gave a web page, not a file of weights: give the address of the file itself")
        if mismatch := _mismatch(file, sha256, size):
            raise OSError(f"'{url}' {mismatch}: the downloaded file was deleted")

    download(url, path, check_file, max_bytes=size)
    return path


def _check_sha256(sha256: str | None) -> None:
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got '{sha256}'")


def _mismatch(path: Path, sha256: str | None, size: int | None) -> str:
    """Describe the difference from the expected size or SHA-256 sum. Return "" if there is none."""
    if size is not None and (found := path.stat().st_size) != size:
        return f"has {found:,} bytes instead of {size:,}"
    if sha256 is None:
        return ""
    import pooch

    found = pooch.file_hash(str(path), alg="sha256")
    return "" if found == sha256.lower() else f"has the SHA-256 sum {found} instead of {sha256.lower()}"


def _read(path: Path, origin: str) -> Any:
    """Return the content of a file, with `IgnoredObject` for objects that are not weights."""
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if not start:
            raise ValueError(f"{origin} is empty")
        if WEB_PAGE.match(start):
            raise ValueError(f"{origin} is a web page, not a file of weights: download the file itself")
        if start.startswith(b"PK\3\4"):
            try:
                archive = zipfile.ZipFile(file)
                entries = archive.infolist()
            except Exception as error:  # a damaged file can cause any error, here and below
                raise ValueError(
                    f"{origin} is incomplete or damaged: reading it as a zip archive failed, {_reason(error)}"
                ) from error
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise ValueError(f"{origin} was refused: it is a TorchScript program, {NO_CODE_ADVICE}")
            if not any(entry.filename.endswith("/data.pkl") for entry in entries):
                raise ValueError(f"{origin} is a zip archive, but not a PyTorch file: {UNPACK_ADVICE}")
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > MAX_UNPACK_RATIO * path.stat().st_size:
                raise ValueError(
                    f"{origin} was refused: it would unpack to {unpacked:,} bytes, which is too much for weights"
                )
            if broken := _broken_entry(archive):
                raise ValueError(f"{origin} is damaged: the checksum of {broken} is wrong")
            # memory mapping reads only the weights that are used; it must not be used for compressed entries
            return _unpickle(path, origin, mmap=all(entry.compress_type == zipfile.ZIP_STORED for entry in entries))
        if start.startswith(b"\x80"):
            return _unpickle(file, origin)
        if start.startswith(ARCHIVE_SIGNATURES) or (
            start[257:262] == b"ustar" and not start.startswith(LEGACY_TAR_NAMES)
        ):
            raise ValueError(f"{origin} is an archive: {UNPACK_ADVICE}")
        if start.startswith(LFS_POINTER):
            raise ValueError(f"{origin} is only a Git LFS pointer to the weights: get the file with git lfs pull")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return load(path.read_bytes())
        except Exception as error:
            raise ValueError(
                f"{origin} is incomplete or damaged: reading it as safetensors failed, {_reason(error)}"
            ) from error
    raise ValueError(f"{origin} is not a file of weights: neither PyTorch (.pth, .pt) nor safetensors")


def _broken_entry(archive: zipfile.ZipFile) -> str | None:
    """Return the name of the first entry with a wrong checksum. torch does not test checksums."""
    try:
        return archive.testzip()
    except Exception as error:  # a damaged file can cause any error
        return f"an unknown entry ({_reason(error)})"


def training_data_of(source: str | Path) -> TrainingData | None:
    """Return the description of the training data that a run folder, or its student.safetensors, contains.

    Parameters
    ----------
    source : str or Path

    Returns
    -------
    TrainingData or None
        None for any other file or folder.

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
        if file.read(1) != b"{" or length > MAX_HEADER_BYTES:
            return None
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except ValueError:  # loading the weights from this file raises a clear error
            return None
    metadata = header.get("__metadata__")
    text = metadata.get(TRAINED_ON) if isinstance(metadata, dict) else None
    try:
        return None if text is None else TrainingData.model_validate_json(text)
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged: its entry {TRAINED_ON} is not valid, {one_line(error)}") from None


def _unpickle(file: Any, origin: str, mmap: bool = False) -> Any:
    """Load a path or an open file by torch.load with weights_only=True, which runs no code of the file."""
    try:
        with warnings.catch_warnings(record=True) as warned, torch.serialization.safe_globals(IGNORED_GLOBALS):
            warnings.simplefilter("always")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        reason = _reason(error)
        if "unexpected EOF" in reason or (hasattr(file, "read") and not file.read(1)):
            raise ValueError(f"{origin} is incomplete: the file ends in the middle of its weights") from error
        if found := re.search(r"GLOBAL (.+) (?:was not an allowed global|whose module)", str(error), re.DOTALL):
            function = re.sub(r"^commands\.", "subprocess.", found[1][:100])  # pickles use the name of Python 2
            raise ValueError(
                f"{origin} was refused: it is a pickle file that would call {function!r}, {NO_CODE_ADVICE}"
            ) from None
        if protocol := re.search(r"pickle protocol ([345]) ", " ".join(str(warning.message) for warning in warned)):
            raise ValueError(
                f"{origin} was refused: it is a pickle file of protocol {protocol[1]}, which PyTorch can't read "
                "without running code: save it again without pickle_protocol=…, or as safetensors"
            ) from None
        if isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{origin} was refused: it is a pickle file that is damaged or contains more than weights ({reason}), "
                f"{NO_CODE_ADVICE}"
            ) from None
        raise ValueError(f"{origin} is damaged: {reason}") from error


def _reason(error: Exception | str) -> str:
    """Return the reason of an error in one line. The advice of torch to use weights_only=False is removed."""
    text = re.split(r"\n\nCheck the documentation|\s*\(Could this error", str(error))[0]
    if isinstance(error, pickle.UnpicklingError):
        text = (text.splitlines() or [""])[-1]
    return one_line(text or type(error).__name__)


def _weights(content: Any, origin: str) -> dict[str, Tensor]:
    """Find the state dict in the content of a file: the content itself, or the value of one of `WEIGHT_KEYS`."""
    found = f"something else ({type(content).__name__})"
    if isinstance(content, Mapping):
        for state in (content, *(content.get(key) for key in WEIGHT_KEYS)):
            if _is_state_dict(state):
                return dict(state)
        keys = (
            repr(key[:40]) if isinstance(key, str) else f"a key of type {type(key).__name__}"
            for key in list(content)[:8]
        )
        found = ", ".join(keys) or "nothing"
        if {"state", "param_groups"} <= {*content}:
            found += ", the keys of an optimizer"
    keys_text = f"{', '.join(map(repr, WEIGHT_KEYS[:-1]))} or {WEIGHT_KEYS[-1]!r}"
    raise ValueError(
        f"{origin} has no weights: expected a dict of names and tensors, or one under {keys_text}, found {found}"
    )


def _is_state_dict(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and name.isprintable() for name in value)
        and all(isinstance(weight, Tensor) for weight in value.values())
    )


def _match_names(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Return the weights of the network, under the names of `model`, and check that they are finite numbers."""
    expected = model.state_dict()
    names = dict(zip(_unwrapped(expected), expected, strict=True))
    for old, new in OLD_LAYER_NAMES.items():
        if not any(re.search(old, name) for name in names):
            state = {re.sub(old, new, name): value for name, value in state.items()}
    state = _select_network(state, names, origin)
    # drop weights that the network does not use: heads of a method, a copy of the best epoch, auxiliary heads
    for unused in ((HEADS_PREFIX, BEST_PREFIX), AUXILIARY_HEADS):
        if not any(name.startswith(unused) for name in names):
            state = {name: value for name, value in state.items() if not name.startswith(unused)}
    state = {names.get(name, name): value for name, value in state.items()}
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):  # a counter of BatchNorm, which old files do not have
            state.setdefault(name, value)
        found = state.get(name, value)
        plain = found.layout == torch.strided and not found.is_meta and not found.is_quantized
        if not plain or found.is_floating_point() != value.is_floating_point():
            kind = f"{'' if plain else 'a sparse, quantized or empty (meta) tensor of '}{found.dtype}"
            raise ValueError(f"{origin}: weights of another type, '{name}' is {kind} instead of {value.dtype}")
        # The shape is compared first: a damaged file can announce a tensor of terabytes. `load_weights` refuses it.
        if found.shape == value.shape and value.is_floating_point() and not found.float().isfinite().all():
            raise ValueError(
                f"{origin}: '{name}' has values that are not finite: the file is damaged, or its training diverged"
            )
    return state


def _unwrapped(names: Iterable[str]) -> list[str]:
    """Remove prefixes such as "module." from all names, if all names have the same."""
    names = list(names)
    found = WRAPPER_PREFIXES.match(os.path.commonprefix(names))
    return [name.removeprefix(found[0]) for name in names] if found else names


def _select_network(state: Mapping[str, Tensor], names: Iterable[str], origin: str) -> dict[str, Tensor]:
    """Find the prefix that `state` puts before the names of a network. Return the weights of the network without it.

    For example, a file can have "teacher.fc.weight" and "student.fc.weight" for the name "fc.weight". A prefix of the
    student is preferred. If no prefix gives all names, all of `state` is returned, under the names of `_unwrapped`.
    `load_weights` then reports what is missing or unexpected.
    """
    first, *others = [name for name in names if not name.endswith("num_batches_tracked")] or [""]
    prefixes = [name.removesuffix(first) for name in state if name.endswith(first)]
    complete = [p for p in prefixes if p[-1:] in ("", ".") and all(p + name in state for name in others)]
    # a prefix must be a known one, or all weights in the file must have it
    usable = [p for p in complete if WRAPPER_PREFIXES.fullmatch(p) or all(name.startswith(p) for name in state)]
    usable = [""] if "" in complete else [p for p in usable if "student." in p] or usable
    if len(usable) > 1:
        raise ValueError(
            f"{origin} has the network {len(usable)} times, {' and '.join(map(repr, usable))}: save only one"
        )
    if not usable:
        return dict(zip(_unwrapped(state), state.values(), strict=True))
    return {name.removeprefix(p): value for p in usable for name, value in state.items() if name.startswith(p)}


def _hint_for_error(model: nn.Module, state: Mapping[str, Tensor], error: str) -> str:
    """Return a hint to add to `error`: other names in the file, or its number of classes."""
    expected = model.state_dict(keep_vars=True)
    if "is missing" in error and (others := [repr(name) for name in state if name not in expected]):
        return f"; the file has {', '.join([*others[:3], '…'] if len(others) > 3 else others)} instead"
    names = {id(value): name for name, value in expected.items()}
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        weight = names.get(id(layer.weight), "")
        shape = tuple(state[weight].shape) if weight in state else ()
        if layer.out_features == layers[-1].out_features and f"'{weight}' has shape" in error:
            if shape[1:] == (layer.in_features,):
                return f": the file has {shape[0]} classes, the network {layer.out_features}"
    return ""

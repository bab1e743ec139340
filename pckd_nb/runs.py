"""Run records: what one training was, did and left, in memory and as a folder.

    run.json              settings and where each came from, seed, versions, fingerprints of data and teacher, results
    history.csv           a row an epoch: learning rate, threshold, every loss term, accuracies, preview weights
    timing.csv            seconds an epoch (kept apart: the rest is the same on every repetition)
    samples.npz           raw cross-entropy and difficulty γ of every training sample at every epoch, 16 bit; labels
    student.safetensors   the trained network; under prefixes the method's heads ("method.") and, with a validation
                          split, the network of its best epoch ("best."); records may lack it
    checkpoint.pt         all that resuming needs; gone once the run is finished
    previous.pt           the checkpoint before it, in case that can't be read; gone likewise
    gallery.npz           at most 100 training images, easy to hard
    embedding.npz         features of test images and the category centers, 16 bit; where they were drawn, t-SNE maps

`files.write` makes each of them, so none is ever half there; `resuming` has to do with the folder of a run that trains.
"""

import hashlib
import json
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from . import files
from .catalogue import LIBRARIES
from .config import FORMAT, make_config
from .data import shapes
from .downloads import one_line
from .html import counted, value_text
from .html import table as html_table
from .models import Classifier, TrainingData, create_model, preprocessed
from .paths import user_path
from .plugs import is_plug
from .validation import check

HEADS, BEST = "method.", "best."  # prefixes in student.safetensors
TRAINED_ON = "trained_on"  # its entry of metadata
SYMBOLS = {f"beta_{term}": f"β_{term}" for term in ("kd", "fa", "ca", "cc")} | {"epsilon": "ε", "temperature": "T"}


# Of what a run may lack. It is `having` that asks, where it matters; a type checker would ask at every use.
MaybeNone: TypeAlias = Any


@dataclass(repr=False)
class Run:
    """One training run. `settings` is run.json; the arrays are None where a run kept none.

    cross_entropy, difficulty: float16 (epochs, samples), by position in the training set; NaN in rows of epochs not
    reached · labels: (samples,) · ground_truth: float16 (samples,) known difficulty in [0, 1], for made data sets
    · ids: (samples,) identifiers of the images, such as file names, where they are known.
    """

    settings: dict[str, Any]
    history: pd.DataFrame
    timing: pd.DataFrame
    student_state: dict[str, Tensor]
    method_state: dict[str, Tensor] = field(default_factory=dict)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    cross_entropy: np.ndarray | MaybeNone = None
    difficulty: np.ndarray | MaybeNone = None
    labels: np.ndarray | MaybeNone = None
    ground_truth: np.ndarray | MaybeNone = None
    ids: np.ndarray | MaybeNone = None
    gallery: dict[str, np.ndarray] | MaybeNone = None
    embedding: dict[str, np.ndarray] | MaybeNone = None
    path: Path | None = None

    def __repr__(self) -> str:
        about = self.settings
        data, epochs = about["data"]["name"], f"{len(self.history)} of {counted(about['recipe']['epochs'], 'epoch')}"
        score = f", test top-1 {self.accuracy:.2f} %" if len(self.history) else ""
        return f"Run({self.title!r} on {data!r}, seed {about['seed']}, {about['status']}, {epochs}{score})"

    def _repr_html_(self) -> str:
        """What a notebook shows for a cell that ends in a run: settings, the last row, and the accuracy by epoch."""
        about, last = self.settings, self.history.iloc[-1].to_dict() if len(self.history) else {}
        teacher = (about["teacher"] or {}).get("name") or "none"
        rows = {
            "data": about["data"]["name"],
            "teacher": teacher,
            "method": ", ".join(f"{name} = {value_text(value)}" for name, value in self.method_settings.items()),
            "seed": about["seed"],
            "epochs": f"{len(self.history)} of {about['recipe']['epochs']}, {about['status']}",
            **{name.replace("_", " "): value_text(value) for name, value in last.items() if name.startswith("test_")},
        }
        return html_table(self.title, rows) + _curve(self.history)

    @property
    def title(self) -> str:
        """For legends: "PCKD resnet8"."""
        return f"{self.settings['method']['title']} {self.settings['model']['name'] or 'network'}"

    @property
    def method_settings(self) -> dict[str, Any]:
        """Every setting of the method and its value."""
        return values_of(self.settings["method"]["settings"])

    @property
    def chosen_settings(self) -> dict[str, Any]:
        """Those of the method's settings that its caller chose."""
        settings = self.settings["method"]["settings"].items()
        return values_of({name: about for name, about in settings if about["from"] == "argument"})

    @property
    def variant(self) -> str:
        """The method's settings that its caller chose, "β_cc = 0, views = 1"; "" where all were left open."""
        chosen = self.chosen_settings.items()
        return ", ".join(f"{SYMBOLS.get(name, name)} = {value_text(value)}" for name, value in chosen)

    @property
    def finished(self) -> bool:
        return bool(self.settings["status"] == "finished")

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy on the test images after the last epoch, in percent; NaN before the first."""
        return float(self.history["test_top1"].iloc[-1]) if len(self.history) else float("nan")

    @property
    def seconds(self) -> float:
        return float(self.timing["seconds"].sum())

    @property
    def parameters(self) -> int:
        """Learned numbers of the network, without the method's heads."""
        return int(self.settings["model"]["parameters"])

    @property
    def fingerprint(self) -> str:
        """Of the network's weights, which a recorded run need not have kept."""
        return str(self.settings["fingerprint"])

    @property
    def data_fingerprint(self) -> str:
        """Of the data set, as `data_fingerprint` makes it comparable."""
        return data_fingerprint(self.settings)

    @property
    def trained_on(self) -> TrainingData:
        """The classes that the student's weights were trained with, and the network input that they take."""
        found, about = TrainingData.model_validate(self.settings["data"]), self.settings["model"].get("preprocessing")
        while about:  # the innermost one is what the weights see
            pixels = {"mean": tuple(about["mean"]), "std": tuple(about["std"]), "image_size": tuple(about["size"])}
            found, about = found.model_copy(update=pixels), about.get("inner")
        return found

    def model(self, which: str = "last") -> Classifier:
        """The trained network.

        Parameters
        ----------
        which : {"last", "best"}
            The network after the last epoch, or after the epoch with the best validation accuracy.

        Raises
        ------
        ValueError
            If its weights were not kept or belong to another network, if `create_model` does not know its name, or if
            the best one is asked for and there was no validation split.
        """
        if which not in ("last", "best"):
            raise ValueError(f"which must be 'last' or 'best', got {which!r}")
        about, state = self.settings["model"], self.student_state if which == "last" else self.best_state
        if which == "best" and not state:
            raise ValueError(f"the run {self.title} has no best epoch: it needs a validation split, val=0.1")
        if not state:
            raise ValueError(f"'{self.path}' is a record without weights")
        library, colon, _ = (about["name"] or "").partition(":")
        if about["name"] is None or (colon and library not in LIBRARIES and is_plug(about["name"])):
            raise ValueError("this run's network is your own: build it, then load_state_dict(run.student_state)")
        model = create_model(about["name"], num_classes=about["num_classes"], in_channels=about["in_channels"])
        load_weights(model, state, str(self.path or "this run"))
        if which == "last":
            self.check_weights()
        model.trained_on = self.trained_on
        if "preprocessing" in about:
            data = self.settings["data"]
            shown = SimpleNamespace(mean=data["mean"], std=data["std"], size=tuple(data["image_size"]))
            model = preprocessed(model, shown, about["preprocessing"])
        return model

    def check_weights(self) -> None:
        """Check the weights before they are used.

        Warns if the training is not finished.

        Raises
        ------
        ValueError
            If the weights of a finished run are not those that its run.json records.
        """
        path = f"'{self.path}'" if self.path else "this run"
        if not self.finished:
            epochs = f"{len(self.history)} of {counted(self.settings['recipe']['epochs'], 'epoch')}"
            warnings.warn(f"{path} is not finished: its weights are those after {epochs}", stacklevel=3)
        elif fingerprint(self.student_state) != self.fingerprint:
            raise ValueError(f"the weights in {path} are not those that its run.json records: one of them was replaced")

    def save(self, folder: str | Path, weights: bool = True) -> None:
        """Write everything but the checkpoint; a record for figures can do without weights."""
        folder = user_path(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder
        if weights:
            heads = {HEADS + name: value for name, value in self.method_state.items()}
            best = {BEST + name: value for name, value in self.best_state.items()}
            state = {name: value.contiguous() for name, value in {**self.student_state, **heads, **best}.items()}
            metadata = {TRAINED_ON: self.trained_on.model_dump_json()}
            files.write(folder / "student.safetensors", lambda temporary: temporary.write_bytes(save(state, metadata)))
        files.write(folder / "history.csv", lambda temporary: self.history.to_csv(temporary, index=False))
        files.write(folder / "timing.csv", lambda temporary: self.timing.to_csv(temporary, index=False))
        samples = {name: getattr(self, name) for name in SAMPLES}
        for name, arrays in (("samples", samples), ("gallery", self.gallery), ("embedding", self.embedding)):
            arrays = {key: value for key, value in (arrays or {}).items() if value is not None}
            if arrays:
                files.write(folder / f"{name}.npz", partial(_savez, arrays=arrays))
        write_settings(folder, self.settings)


def _curve(history: pd.DataFrame) -> str:
    """Test accuracy by epoch as a small picture, SVG; "" before the second epoch."""
    if len(history) < 2:
        return ""
    values = history["test_top1"].to_numpy(float)
    low, high = float(values.min()), float(values.max())
    x = np.linspace(4, 236, len(values))
    y = 44 - 40 * (values - low) / ((high - low) or 1)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    said = f"test top-1 by epoch, from {values[0]:.1f} to {values[-1]:.1f} %"
    return (
        f'<svg width="240" height="48" role="img" aria-label="{escape(said)}"><title>{escape(said)}</title>'
        f'<polyline points="{escape(points)}" fill="none" stroke="#0072b2" stroke-width="2"/></svg>'
    )


RUN_FILES = (
    "run.json", "history.csv", "timing.csv", "samples.npz", "gallery.npz", "embedding.npz", "student.safetensors",
)  # fmt: skip
SAMPLES = ("cross_entropy", "difficulty", "labels", "ground_truth", "ids")
KEPT = {"samples": SAMPLES[:3], "gallery": ("gallery",), "embedding": ("embedding",)}  # what a record may lack


def values_of(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Setting → value, of settings that say too where each came from, as in run.json and from `methods.resolve`."""
    return {name: about["value"] for name, about in settings.items()}


def data_fingerprint(settings: Mapping[str, Any]) -> str:
    """The fingerprint of the data in a run.json; of shapes100 drawn by an earlier version, the one that it has now.

    Equal fingerprints mean the same pictures, up to one grey level per pixel in recorded runs. See
    `shapes.REDRAWN_FINGERPRINTS`.
    """
    recorded: str = settings["data"]["fingerprint"]
    return shapes.REDRAWN_FINGERPRINTS.get(recorded, recorded)


def having(run: Run, *parts: str) -> Run:
    """The run, if it kept these parts, "samples", "gallery" or "embedding". Raises ValueError that names the first it
    lacks, and how to get it."""
    for part in parts:
        if any(getattr(run, array) is None for array in KEPT[part]):
            how = "its first whole epoch will bring it" if run.history.empty else "train it again to have it"
            raise ValueError(f"the run {run.title} kept no {part} ({part}.npz): {how}")
    return run


def load_run(path: str | Path, tables_only: bool = False) -> Run:
    """Read a run folder, finished or not. tables_only: leave weights and arrays, which take long, on disk.

    Raises FileNotFoundError where there is no run, ValueError where its files can't be read.
    """
    folder = user_path(path)
    check(bool, tables_only=tables_only)
    settings = read_settings(folder)
    try:
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("history", "timing")}
        if tables_only:
            return _whole(Run(settings=settings, **tables, student_state={}, path=folder))
        kept = folder / "student.safetensors"
        weights = load(kept.read_bytes()) if kept.exists() else {}  # load_file can't take every name of a folder
        heads, best = (
            {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}
            for prefix in (HEADS, BEST)
        )
        return _whole(
            Run(
                settings=settings,
                **tables,
                student_state=weights,
                method_state=heads,
                best_state=best,
                gallery=_loadz(folder / "gallery.npz"),
                embedding=_loadz(folder / "embedding.npz"),
                path=folder,
                **(_loadz(folder / "samples.npz") or {}),
            )
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"run '{folder}' is not complete: {Path(error.filename).name} is missing") from error
    except Exception as error:  # whoever made the files decides what goes wrong
        raise ValueError(f"run '{folder}' is damaged: {one_line(error)}") from error


def _whole(run: Run) -> Run:
    """The run, if its tables and arrays are of the kinds and sizes they have to be. Raises ValueError otherwise."""
    columns = {"history": ("epoch", "test_top1", "test_top5"), "timing": ("epoch", "seconds")}
    for name, frame in (("history", run.history), ("timing", run.timing)):
        for column in columns[name] if len(frame) else ():
            if column not in frame or frame[column].dtype.kind not in "iuf":
                raise ValueError(f"{name}.csv has no numbers under '{column}'")
    of_samples = [getattr(run, name) for name in SAMPLES]
    losses, others = [array for array in of_samples[:2] if array is not None], of_samples[2:]
    if any(array.ndim != 2 or array.dtype.kind != "f" or array.shape != losses[0].shape for array in losses):
        raise ValueError("samples.npz has tables of different shapes, or not of numbers")
    if any(array is not None and array.shape != array_of.shape[1:] for array in others for array_of in losses[:1]):
        raise ValueError("samples.npz has labels of other samples")
    kinds = {"gallery": {"images": "u", "labels": "iu", "index": "iu", "difficulty": "f"},
             "embedding": {"features": "f", "predictions": "iu", "labels": "iu", "centers": "f"}}  # fmt: skip
    for name, wanted in kinds.items():
        arrays = getattr(run, name)
        if arrays is not None and any(key not in arrays or arrays[key].dtype.kind not in wanted[key] for key in wanted):
            raise ValueError(f"{name}.npz needs {', '.join(wanted)}, has {', '.join(arrays)}")
        if arrays is not None and len({len(arrays[key]) for key in wanted if key != "centers"}) != 1:
            raise ValueError(f"{name}.npz has arrays of different lengths")
    count = len(run.settings["data"]["classes"])
    for labels in (run.labels, *((arrays or {}).get("labels") for arrays in (run.gallery, run.embedding))):
        if labels is not None and labels.size:
            if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= count:
                raise ValueError(f"it has labels of none of its {count} categories")
    return run


def read_settings(folder: Path) -> dict[str, Any]:
    """run.json of a folder. Raises FileNotFoundError or ValueError, naming the folder."""
    if not (folder / "run.json").is_file():
        what = "it has no run.json" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"'{folder}' is not a run: {what}")
    try:
        settings: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        version = settings["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"'{folder / 'run.json'}' is damaged: {one_line(repr(error))}") from error
    if version != FORMAT:
        version = reprlib.repr(version)
        raise ValueError(f"'{folder}' is a run of format {version}; this version reads format {FORMAT}")
    try:
        make_config(settings)
    except ValueError as error:
        raise ValueError(f"'{folder / 'run.json'}' is damaged: {error}") from None
    return settings


def summary(runs: list[Run]) -> pd.DataFrame:
    """One row a run: what was trained, how well and how long. The table `pckd-nb demo` prints."""
    rows = [
        {
            "method": run.settings["method"]["title"],
            "network": run.settings["model"]["name"],
            "parameters": run.parameters,
            "epochs": len(run.history),
            "top-1 %": run.accuracy,
            "top-5 %": float(run.history["test_top5"].iloc[-1]) if len(run.history) else float("nan"),
            "seconds": run.seconds,
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


def load_runs(folder: str | Path) -> list[Run]:
    """Every finished run below `folder`, in the order of their paths.

    Raises FileNotFoundError where there is none, ValueError for a damaged one.
    """
    folder = user_path(folder, "folder")
    folders = [file.parent for file in sorted(folder.rglob("run.json"))]
    found = [load_run(path) for path in folders if read_settings(path)["status"] == "finished"]
    if not found:
        raise FileNotFoundError(f"there is no finished run below '{folder}'")
    return found


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run, for comparing many: data, teacher, student, method, variant, epochs, seed, every setting of the
    methods (NaN where a method has it not), top1, top5 (percent), cross_entropy (nats), train_images, seconds, and
    the run itself in the column `run`."""
    rows = []
    for run in runs:
        about, last = run.settings, run.history.iloc[-1] if len(run.history) else {}
        rows.append(
            {
                "data": about["data"]["name"],
                "teacher": (about["teacher"] or {}).get("name"),
                "student": about["model"]["name"],
                "method": about["method"]["title"],
                "variant": run.variant,
                "epochs": about["recipe"]["epochs"],
                "seed": about["seed"],
                **run.method_settings,
                **{name: last.get(f"test_{name}", float("nan")) for name in ("top1", "top5", "cross_entropy")},
                "train_images": about["data"]["train_images"],
                "seconds": run.seconds,
                "run": run,
            }
        )
    return pd.DataFrame(rows)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """load_state_dict with a one-line error: the first parameter that does not fit, and both shapes."""
    expected = model.state_dict()
    for name in expected:
        if name not in state:
            raise ValueError(f"{source}: weights of another network, '{name}' is missing")
        if state[name].shape != expected[name].shape:
            found, wanted = tuple(state[name].shape), tuple(expected[name].shape)
            raise ValueError(f"{source}: weights of another network, '{name}' has shape {found} instead of {wanted}")
    if extra := next((name for name in state if name not in expected), None):
        raise ValueError(f"{source}: weights of another network, '{extra}' has no place in this one")
    expected.update(state)  # with the versions of the modules, which a plain dict lacks and MNASNet asks for
    model.load_state_dict(expected)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state on the CPU, which training it further does not change."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change when any name or weight does."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write run.json of a run folder, whole or not at all."""
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    files.write(folder / "run.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _savez(path: Path, arrays: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:  # given a name, numpy would append .npz to it
        np.savez_compressed(file, **arrays)


def _loadz(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return dict(file)

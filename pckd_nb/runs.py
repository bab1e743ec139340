"""Run records: the settings and results of one training, in memory and as a folder.

A run folder contains these files::

    run.json              all settings and where each one came from, seed, versions, fingerprints, status
    history.csv           one row per epoch: learning rate, loss terms, accuracies, and the threshold and mean weight of
                          the preview, see `preview`
    timing.csv            seconds per epoch; the only file that differs if the same training is repeated
    samples.npz           cross-entropy, difficulty and margin of every training image in every epoch (float16), labels,
                          file names, what student and teacher predicted, and the true labels if some labels are known
                          to be wrong; about 6 bytes per image and epoch
    student.safetensors   weights of the student, of the method's heads (their names begin with "method."), and of the
                          student after its best epoch ("best.")
    checkpoint.pt         everything that resuming needs; removed when the run is finished
    previous.pt           the checkpoint before it, in case checkpoint.pt cannot be read; removed as well
    gallery.npz           at most 100 training images, from easy to hard
    embedding.npz         features of test images and the category centers (float16)
    geometry.npz          class means and category centers (float16) and measures of neural collapse in every epoch

Every file is written as a whole or not at all. `resuming` manages the folder of a run that is being trained.

Examples
--------
>>> import pckd_nb as pckd
>>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
>>> run = pckd.fit("resnet8", data, epochs=1, progress=False, out="runs/teacher")
>>> pckd.runs.table(pckd.runs.load_runs("runs"))[["method", "student", "seed", "train_images"]]
       method  student  seed  train_images
0  supervised  resnet8     0            32
"""

import hashlib
import json
import re
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

from . import catalogue, collapse, files, measures
from .config import FORMAT, make_config
from .data import shapes
from .deprecation import renamed
from .html import counted, value_text
from .html import table as html_table
from .messages import one_line
from .models import Classifier, SimKDNetwork, TrainingData, create_model, restore_preprocessing
from .paths import user_path
from .validation import check

HEADS_PREFIX, BEST_PREFIX = "method.", "best."  # of names in student.safetensors
TRAIN_PREFIX = "train_"  # of names in geometry.npz, for the training images
TRAINED_ON = "trained_on"  # metadata of student.safetensors: what the weights were trained on, see `TrainingData`
SYMBOLS = {f"beta_{term}": f"β_{term}" for term in ("kd", "fa", "ca", "cc")} | {"epsilon": "ε", "temperature": "T"}

# An array of a run may be None. `require_parts` checks this, but type checkers do not know it. With the type Any they
# do not complain where the array is used.
Missing: TypeAlias = Any


@dataclass(repr=False)
class Run:
    """One training run: its settings, results and weights.

    `fit`, `distill` and `load_run` return it. An array is None if the run folder does not contain it.

    Parameters
    ----------
    settings : dict
        The content of run.json.
    history : DataFrame
        The content of history.csv, one row per epoch.
    timing : DataFrame
        The content of timing.csv, one row per epoch.
    student_state : dict of str to Tensor
        Weights of the student after the last epoch. Empty if they were not saved or not loaded.
    method_state : dict of str to Tensor
        Weights of the method's heads, such as projectors.
    best_state : dict of str to Tensor
        Weights of the student after its best epoch. Empty without a validation split.
    cross_entropy : float16 array of shape (epochs, samples), in nats
        Cross-entropy of every training image in every epoch. NaN in epochs that were not reached.
    difficulty : float16 array of shape (epochs, samples), at least 0
        Difficulty γ of every training image in every epoch, see `preview.difficulty`. NaN in epochs that were not
        reached.
    margin : float16 array of shape (epochs, samples)
        Margin of every training image in every epoch, see `measures.margin`. NaN in epochs that were not reached.
    error_norms : float16 array of shape (early epochs, samples)
        `measures.error_norm` of every training image in the first 20 epochs. NaN in epochs that were not reached.
    prediction : int32 array of shape (samples,)
        Class that the student predicted when it last saw each training image, before the weights were updated. -1 if it
        has not seen it.
    teacher_cross_entropy, teacher_margin : float32 array of shape (samples,)
        Cross-entropy and margin of the teacher, averaged over the epochs.
    teacher_prediction : int32 array of shape (samples,)
        Class that the teacher predicted for each training image in the last epoch.
    labels : int64 array of shape (samples,)
        Classes of the training images.
    ground_truth : float16 array of shape (samples,), in [0, 1]
        True difficulty of the training images. It is known for synthetic images only, otherwise None.
    ids : array of shape (samples,)
        Names of the images, such as file names, if they have any.
    true_labels : int64 array of shape (samples,)
        True classes of the training images. None if no label is known to be wrong.
    gallery : dict of str to array
        At most 100 training images, see `recording.gallery`.
    embedding : dict of str to array
        Features of test images, see `recording.embedding`.
    geometry : dict of str to array
        Class means and class centers in every epoch, see `recording.stack_geometry`. They are of the test images, or of
        the validation images if the run was trained without test images. The names of arrays of the training images
        begin with ``train_``, see `training.RecordTrainGeometry`.
    path : Path, optional
        The run folder. None if the run is only in memory.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False)
    >>> run.finished, len(run.history), run.difficulty.shape
    (True, 1, (1, 32))
    """

    settings: dict[str, Any]
    history: pd.DataFrame
    timing: pd.DataFrame
    student_state: dict[str, Tensor]
    method_state: dict[str, Tensor] = field(default_factory=dict)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    cross_entropy: np.ndarray | Missing = None
    difficulty: np.ndarray | Missing = None
    margin: np.ndarray | Missing = None
    error_norms: np.ndarray | Missing = None
    prediction: np.ndarray | Missing = None
    teacher_cross_entropy: np.ndarray | Missing = None
    teacher_margin: np.ndarray | Missing = None
    teacher_prediction: np.ndarray | Missing = None
    labels: np.ndarray | Missing = None
    ground_truth: np.ndarray | Missing = None
    ids: np.ndarray | Missing = None
    true_labels: np.ndarray | Missing = None
    gallery: dict[str, np.ndarray] | Missing = None
    embedding: dict[str, np.ndarray] | Missing = None
    geometry: dict[str, np.ndarray] | Missing = None
    path: Path | None = None

    def __repr__(self) -> str:
        seed, status, data = self.settings["seed"], self.settings["status"], self.settings["data"]["name"]
        last = float(self.history[f"{self.scored_split}_top1"].iloc[-1]) if len(self.history) else float("nan")
        score = f", {self.scored_split} top-1 {last:.2f} %" if len(self.history) else ""
        return f"Run({self.title!r} on {data!r}, seed {seed}, {status}, {self._epochs_done()}{score})"

    def _epochs_done(self) -> str:
        """Return, for example, "3 of 10 epochs"."""
        return f"{len(self.history)} of {counted(self.settings['recipe']['epochs'], 'epoch')}"

    def _repr_html_(self) -> str:
        """Return what a notebook displays: settings, final scores, and accuracy by epoch."""
        settings, last_row = self.settings, self.history.iloc[-1].to_dict() if len(self.history) else {}
        scores = {name: value for name, value in last_row.items() if name.startswith(f"{self.scored_split}_")}
        rows = {
            "data": settings["data"]["name"] + describe_noise(settings),
            "teacher": (settings["teacher"] or {}).get("name") or "none",
            "method": ", ".join(f"{name} = {value_text(value)}" for name, value in self.method_settings.items()),
            "seed": settings["seed"],
            "epochs": f"{len(self.history)} of {settings['recipe']['epochs']}, {settings['status']}",
            **{name.replace("_", " "): value_text(value) for name, value in scores.items()},
        }
        return html_table(self.title, rows) + _accuracy_svg(self.history, self.scored_split)

    @property
    def title(self) -> str:
        """Method and network, as legends of figures show them, such as "PCKD resnet8"."""
        return f"{self.settings['method']['title']} {self.settings['model']['name'] or 'network'}"

    def true_class(self, sample: int) -> str | None:
        """Return the true class of a training image whose label is known to be wrong.

        Parameters
        ----------
        sample : int
            Position in the training set.

        Returns
        -------
        str or None
            None if the label is right, or if the true labels are not known.
        """
        if self.true_labels is None or self.true_labels[sample] == self.labels[sample]:
            return None
        return str(self.settings["data"]["classes"][int(self.true_labels[sample])])

    @property
    def method_settings(self) -> dict[str, Any]:
        """All settings of the method: name → value."""
        return setting_values(self.settings["method"]["settings"])

    @property
    def chosen_settings(self) -> dict[str, Any]:
        """The settings that were passed to the method as arguments: name → value."""
        settings = self.settings["method"]["settings"].items()
        return setting_values({name: setting for name, setting in settings if setting["from"] == "argument"})

    @property
    def variant(self) -> str:
        """`chosen_settings` as text, such as "β_cc = 0, views = 1". Empty if no setting was passed."""
        chosen = self.chosen_settings.items()
        return ", ".join(f"{SYMBOLS.get(name, name)} = {value_text(value)}" for name, value in chosen)

    @property
    def finished(self) -> bool:
        """Whether the training is complete. An interrupted run is not finished."""
        return bool(self.settings["status"] == "finished")

    @property
    def scored_split(self) -> str:
        """The split whose accuracy describes this run: "test", or "val" if it was trained without test images."""
        return "test" if self.settings["data"].get("test_images") else "val"

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy on the test images after the last epoch, in percent.

        NaN before the first epoch, and if the run was trained without test images.
        """
        return float(self.history["test_top1"].iloc[-1]) if "test_top1" in self.history else float("nan")

    @property
    def seconds(self) -> float:
        """Training time of all epochs in seconds, without the evaluation after each epoch."""
        return float(self.timing["seconds"].sum())

    @property
    def parameters(self) -> int:
        """Number of parameters of the student, without the method's heads."""
        return int(self.settings["model"]["parameters"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the student's weights. It is known even if the weights were not saved."""
        return str(self.settings["fingerprint"])

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the data set, see `pckd_nb.runs.data_fingerprint`."""
        return data_fingerprint(self.settings)

    @property
    def trained_on(self) -> TrainingData:
        """Classes and pixel format of the data that the student's weights were trained on."""
        trained_on = TrainingData.model_validate(self.settings["data"])
        preprocessing = self.settings["model"].get("preprocessing")
        while preprocessing:  # the innermost preprocessing is applied last, just before the network
            mean, std, size = (tuple(preprocessing[name]) for name in ("mean", "std", "size"))
            trained_on = trained_on.model_copy(update={"mean": mean, "std": std, "image_size": size})
            preprocessing = preprocessing.get("inner")
        return trained_on

    def samples(self) -> pd.DataFrame:
        r"""Return a table with one row per training image: its name, its label, and all measures of its difficulty.

        Sort and filter it with pandas, as in the example. Only complete epochs count. A column is left out if the run
        has not recorded what it needs. Runs of earlier versions have no margins and predictions.

        Returns
        -------
        DataFrame
            The index is the position in the training set. The columns are, in this order:

            - "id": the file name or other name of the image, or its position if it has no name. Bytes that are not
              UTF-8, and characters such as line breaks, are written as ``\xNN`` or ``\n``. `ids` has the original
              names.
            - "label" and "class": number and name of its class. "true_label" if it is known that labels are wrong.
            - "prediction" and "predicted_class": the class that the student predicted when it last saw the image.
            - "known_difficulty": for synthetic images, from 0 to 1.
            - the measures of `measures.sample_measures`.
            - "teacher_cross_entropy", "teacher_margin" and "teacher_prediction".

        Raises
        ------
        ValueError
            If the run has no recorded samples or no complete epoch.

        Examples
        --------
        >>> import pckd_nb as pckd
        >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
        >>> run = pckd.fit("resnet8", data, epochs=2, progress=False)
        >>> hardest = run.samples().sort_values("cross_entropy_mean", ascending=False).head(5)
        >>> len(hardest), "area_under_margin" in hardest
        (5, True)
        >>> hardest.to_csv("hardest.csv")
        """
        require_parts(self, "samples")
        epochs, classes = len(self.history), np.array(self.settings["data"]["classes"], object)
        if not epochs:
            raise ValueError(f"the run {self.title} has no complete epoch: train it for one epoch or more")
        ids = np.arange(len(self.labels)) if self.ids is None else [readable_name(name) for name in self.ids.tolist()]
        optional = {
            "true_label": getattr(self, "true_labels", None),
            "prediction": self.prediction,
            "predicted_class": None if self.prediction is None else classes[self.prediction],
            "known_difficulty": None if self.ground_truth is None else self.ground_truth.astype(np.float32),
        }
        teacher = {f"teacher_{name}": getattr(self, f"teacher_{name}") for name in TEACHER_COLUMNS}
        by_epoch: list[Any] = [self.cross_entropy, self.difficulty, self.margin, self.error_norms]
        by_epoch = [None if values is None else values[:epochs] for values in by_epoch]
        table = measures.sample_measures(*by_epoch)
        before = {"id": ids, "label": self.labels, "class": classes[self.labels], **optional}
        found = ({name: values for name, values in part.items() if values is not None} for part in (before, teacher))
        left, right = (pd.DataFrame(part, index=table.index) for part in found)
        return pd.concat([left, table, right], axis=1)

    def model(self, which: str = "last") -> Classifier:
        """Return the trained student.

        Parameters
        ----------
        which : {"last", "best"}
            The student after the last epoch, or after the epoch with the best validation accuracy.

        Returns
        -------
        Classifier

        Raises
        ------
        ValueError
            If the run has no such weights, if they belong to another network, or if `create_model` does not know the
            name of the network.
        """
        if which not in ("last", "best"):
            raise ValueError(f"which must be 'last' or 'best', got {which!r}")
        network, state = self.settings["model"], self.student_state if which == "last" else self.best_state
        name = network["name"]
        if which == "best" and not state:
            raise ValueError(
                f"the run {self.title} has no best epoch, because it has no validation split: train it with val=0.1"
            )
        if not state:
            raise ValueError(f"the run in '{self.path}' was saved without weights: train it again to get them")
        if is_own_network(name):
            wrap = ", put it into models.SimKDNetwork with run.settings['model']['projector']"
            raise ValueError(
                "this run's network is your own, so this package can't create it: create it"
                f"{wrap if 'projector' in network else ''}, then call its load_state_dict(run.student_state)"
            )
        model = create_network(network)
        load_weights(model, state, str(self.path or "this run"))
        if which == "last":
            self.check_weights()
        model.trained_on = self.trained_on
        if "preprocessing" in network:
            data = self.settings["data"]
            data_format = SimpleNamespace(mean=data["mean"], std=data["std"], size=tuple(data["image_size"]))
            model = restore_preprocessing(model, data_format, network["preprocessing"])
        return model

    def check_weights(self) -> None:
        """Check that the weights are those of a finished run. Warn if the run is not finished.

        Raises
        ------
        ValueError
            If the weights of a finished run do not match their fingerprint in run.json.
        """
        path = f"'{self.path}'" if self.path else "this run"
        if not self.finished:
            warnings.warn(f"{path} is not finished: it has the weights after {self._epochs_done()}", stacklevel=3)
        elif fingerprint(self.student_state) != self.fingerprint:
            raise ValueError(
                f"the weights in {path} do not match the fingerprint in its run.json: one of the files was replaced"
            )

    def save(self, folder: str | Path, weights: bool = True) -> None:
        """Write the run folder, without a checkpoint.

        Parameters
        ----------
        folder : path
        weights : bool
            Whether to write student.safetensors. Figures and tables do not need it.

        Raises
        ------
        OSError
            If a file cannot be written.
        """
        folder = user_path(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder
        if weights:
            heads = {HEADS_PREFIX + name: value for name, value in self.method_state.items()}
            best = {BEST_PREFIX + name: value for name, value in self.best_state.items()}
            state = {name: value.contiguous() for name, value in {**self.student_state, **heads, **best}.items()}
            metadata = {TRAINED_ON: self.trained_on.model_dump_json()}
            files.write(folder / "student.safetensors", lambda temporary: temporary.write_bytes(save(state, metadata)))
        files.write(folder / "history.csv", lambda temporary: self.history.to_csv(temporary, index=False))
        files.write(folder / "timing.csv", lambda temporary: self.timing.to_csv(temporary, index=False))
        samples = {name: getattr(self, name) for name in SAMPLE_ARRAYS}
        parts = {"samples": samples, "gallery": self.gallery, "embedding": self.embedding, "geometry": self.geometry}
        for name, arrays in parts.items():
            arrays = {key: value for key, value in (arrays or {}).items() if value is not None}
            if arrays:
                files.write(folder / f"{name}.npz", partial(_save_arrays, arrays=arrays))
        write_settings(folder, self.settings)


def readable_name(name: Any) -> Any:
    r"""Return the name of an image as one line of text in UTF-8. Other bytes and control characters become \xNN."""
    text = name.decode(errors="backslashreplace") if isinstance(name, bytes) else name
    if not isinstance(text, str):
        return text
    return UNREADABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _accuracy_svg(history: pd.DataFrame, split: str) -> str:
    """Return a small SVG curve of the accuracy on a split by epoch. Empty before the second epoch."""
    if len(history) < 2:
        return ""
    values = history[f"{split}_top1"].to_numpy(float)
    low, high = float(values.min()), float(values.max())
    x = np.linspace(4, 236, len(values))
    y = 44 - 40 * (values - low) / ((high - low) or 1)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    label = f"{split} top-1 by epoch, from {values[0]:.1f} to {values[-1]:.1f} %"
    return (
        f'<svg width="240" height="48" role="img" aria-label="{escape(label)}"><title>{escape(label)}</title>'
        f'<polyline points="{escape(points)}" fill="none" stroke="#0072b2" stroke-width="2"/></svg>'
    )


RUN_FILES = (
    "run.json", "history.csv", "timing.csv", "samples.npz", "gallery.npz", "embedding.npz", "geometry.npz",
    "student.safetensors",
)  # fmt: skip
UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8
TEACHER_COLUMNS = ("cross_entropy", "margin", "prediction")
EPOCH_ARRAYS = ("cross_entropy", "difficulty", "margin")  # of shape (epochs, samples)
SAMPLE_ARRAYS = (
    *EPOCH_ARRAYS, "error_norms", "labels", "ground_truth", "ids", "true_labels", "prediction",
    *(f"teacher_{name}" for name in TEACHER_COLUMNS),
)  # in samples.npz  # fmt: skip
REQUIRED_ARRAYS = {
    "samples": ("cross_entropy", "difficulty", "labels"), "gallery": ("gallery",), "embedding": ("embedding",),
    "geometry": ("geometry",),
}  # fmt: skip


def is_own_network(name: str | None) -> bool:
    """Return whether a network in a run.json is the user's own, so that creating it would need code of the user.

    Parameters
    ----------
    name : str or None
        Name of the network.

    Returns
    -------
    bool
    """
    return name is None or catalogue.is_own_network(name)


def create_network(network: Mapping[str, Any], seed: int | None = None) -> Classifier:
    """Create the network that a run.json describes, with random weights and without its preprocessing.

    Parameters
    ----------
    network : dict
        The entry "model" of a run.json. Its name is one that `create_model` knows.
    seed : int, optional
        The same seed gives the same weights.

    Returns
    -------
    Classifier

    Raises
    ------
    ValueError
        If `create_model` or `SimKDNetwork` raises it.
    """
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = create_model(network["name"], num_classes=network["num_classes"], in_channels=network["in_channels"])
        if projector := network.get("projector"):
            names = "layer", "student_shape", "teacher_shape", "factor", "bias"
            model = SimKDNetwork(model, **{name: projector[name] for name in names})
    return model


def setting_values(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of settings, without where each one came from.

    Parameters
    ----------
    settings : dict
        As in run.json: {"beta_cc": {"value": 0.005, "from": "recipe"}, …}.

    Returns
    -------
    dict
        Name → value.

    Examples
    --------
    >>> setting_values({"beta_cc": {"value": 0.005, "from": "recipe"}})
    {'beta_cc': 0.005}
    """
    return {name: setting["value"] for name, setting in settings.items()}


def describe_noise(settings: Mapping[str, Any]) -> str:
    """Return a text about the label noise in a run.json, such as ", 20 % wrong labels (uniform)".

    Parameters
    ----------
    settings : dict
        The content of run.json.

    Returns
    -------
    str
        Empty without label noise.

    Examples
    --------
    >>> from pckd_nb.runs import describe_noise
    >>> describe_noise({"data": {"options": {"label_noise": 0.2, "noise": "uniform", "noise_seed": 0}}})
    ', 20 % wrong labels (uniform)'
    """
    options = settings["data"].get("options", {})
    rate = options.get("label_noise")
    return f", {100 * rate:g} % wrong labels ({options.get('noise')})" if isinstance(rate, float) else ""


def data_fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the fingerprint of the data in a run.json.

    Runs with equal fingerprints were trained on the same images. There is one exception: an earlier version drew the
    images of shapes100 slightly differently, by at most one grey level per pixel. For its runs, the fingerprint of the
    current images is returned.

    Parameters
    ----------
    settings : dict
        The content of run.json.

    Returns
    -------
    str
    """
    recorded: str = settings["data"]["fingerprint"]
    return shapes.REDRAWN_FINGERPRINTS.get(recorded, recorded)


def require_parts(run: Run, *parts: str) -> Run:
    """Check that a run has some of its optional parts.

    Parameters
    ----------
    run : Run
    *parts : {"samples", "gallery", "embedding", "geometry"}
        Names of .npz files in the run folder.

    Returns
    -------
    Run
        The same run.

    Raises
    ------
    ValueError
        If the run does not have one of them.
    """
    for part in parts:
        if any(getattr(run, array) is None for array in REQUIRED_ARRAYS[part]):
            hint = "it is written after the first complete epoch" if run.history.empty else "train it again to get it"
            raise ValueError(f"the run {run.title} has no {part} ({part}.npz): {hint}")
    return run


def geometry_of(geometry: Mapping[str, np.ndarray], train: bool = False) -> dict[str, np.ndarray]:
    """Return the recorded geometry of the test images, or that of the training images.

    Parameters
    ----------
    geometry : dict of str to array
        See `Run.geometry`.
    train : bool
        Whether to return that of the training images.

    Returns
    -------
    dict of str to array
        Without the prefix ``train_``. Empty if there is none.
    """
    if not train:
        return {name: array for name, array in geometry.items() if not name.startswith(TRAIN_PREFIX)}
    return {name.removeprefix(TRAIN_PREFIX): array for name, array in geometry.items() if name.startswith(TRAIN_PREFIX)}


def load_run(path: str | Path, tables_only: bool = False) -> Run:
    """Read a run folder. The run need not be finished.

    Parameters
    ----------
    path : path
        The run folder.
    tables_only : bool
        Read run.json, history.csv and timing.csv only. This is faster, because weights and arrays are large.

    Returns
    -------
    Run

    Raises
    ------
    FileNotFoundError
        If there is no run in the folder, or if history.csv or timing.csv is missing.
    ValueError
        If a file is damaged.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> run = pckd.fit("resnet8", data, epochs=1, progress=False, out="runs/first")
    >>> pckd.load_run("runs/first").accuracy == run.accuracy
    True
    """
    folder = user_path(path)
    check(bool, tables_only=tables_only)
    settings = read_settings(folder)
    try:
        tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("history", "timing")}
        if tables_only:
            return _checked(Run(settings=settings, **tables, student_state={}, path=folder))
        file = folder / "student.safetensors"
        weights = load(file.read_bytes()) if file.exists() else {}  # load_file fails if a path is not valid UTF-8
        heads, best = (
            {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}
            for prefix in (HEADS_PREFIX, BEST_PREFIX)
        )
        return _checked(
            Run(
                settings=settings,
                **tables,
                student_state=weights,
                method_state=heads,
                best_state=best,
                gallery=_load_arrays(folder / "gallery.npz"),
                embedding=_load_arrays(folder / "embedding.npz"),
                geometry=_load_arrays(folder / "geometry.npz"),
                path=folder,
                **(_load_arrays(folder / "samples.npz") or {}),
            )
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"run '{folder}' is not complete: {Path(error.filename).name} is missing") from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"run '{folder}' is damaged: {one_line(error)}") from error


def _checked(run: Run) -> Run:
    """Return the run. Raises ValueError if one of its tables or arrays has a wrong dtype or shape."""
    split = run.scored_split
    columns = {"history": ("epoch", f"{split}_top1", f"{split}_top5"), "timing": ("epoch", "seconds")}
    for name, frame in (("history", run.history), ("timing", run.timing)):
        for column in columns[name] if len(frame) else ():
            if column not in frame or frame[column].dtype.kind not in "iuf":
                raise ValueError(f"{name}.csv has no column '{column}' of numbers")
    sample_arrays = {name: array for name in SAMPLE_ARRAYS if (array := getattr(run, name)) is not None}
    matrices = [sample_arrays.pop(name) for name in EPOCH_ARRAYS if name in sample_arrays]  # of shape (epochs, samples)
    if any(array.ndim != 2 or array.dtype.kind != "f" for array in matrices) or len({x.shape for x in matrices}) > 1:
        raise ValueError(f"{', '.join(EPOCH_ARRAYS)} in samples.npz must be 2D float arrays of the same shape")
    early = sample_arrays.pop("error_norms", None)
    if early is not None and (early.ndim != 2 or early.dtype.kind != "f"):
        raise ValueError("error_norms in samples.npz must be a 2D float array")
    shapes_of_samples = {array.shape for array in sample_arrays.values()}
    shapes_of_samples |= {array.shape[1:] for array in (*matrices, early) if array is not None}
    if matrices and len(shapes_of_samples) > 1:
        raise ValueError("the arrays in samples.npz have different numbers of samples")
    dtype_kinds = {"gallery": {"images": "u", "labels": "iu", "index": "iu", "difficulty": "f"},
                   "embedding": {"features": "f", "predictions": "iu", "labels": "iu", "centers": "f"},
                   "geometry": {"epoch": "iu", **dict.fromkeys(collapse.MEASURES, "f")}}  # fmt: skip
    for name, kinds in dtype_kinds.items():
        arrays = getattr(run, name)
        if arrays is None:
            continue
        if any(key not in arrays or arrays[key].dtype.kind not in kinds[key] for key in kinds):
            raise ValueError(f"{name}.npz must contain the arrays {', '.join(kinds)}, it contains {', '.join(arrays)}")
        if len({len(arrays[key]) for key in kinds if key != "centers"}) != 1:
            raise ValueError(f"{name}.npz has arrays of different lengths")
    count = len(run.settings["data"]["classes"])
    if run.geometry is not None:
        for part in (geometry_of(run.geometry), geometry_of(run.geometry, train=True)):
            found = [part[name] for name in ("means", "centers") if name in part]
            shape = (len(part.get("epoch", ())), count, *(found[0].shape[2:3] if found else ()))
            if len(found) == 1 or any(array.shape != shape or array.dtype.kind != "f" for array in found):
                raise ValueError("means and centers in geometry.npz must be float arrays of shape (epochs, classes, D)")
            if part and any(name not in part or len(part[name]) != shape[0] for name in collapse.MEASURES):
                raise ValueError(f"geometry.npz must have one value per epoch of {', '.join(collapse.MEASURES)}")
    recorded = ((arrays or {}).get("labels") for arrays in (run.gallery, run.embedding))
    for labels in (run.labels, run.true_labels, *recorded):
        if labels is not None and labels.size:
            if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= count:
                raise ValueError(f"its labels must be whole numbers from 0 to {count - 1}")
    for predicted in (run.prediction, run.teacher_prediction):
        if predicted is not None and predicted.size:
            if predicted.dtype.kind not in "iu" or predicted.min() < -1 or predicted.max() >= count:
                raise ValueError(f"its predictions must be whole numbers from -1 to {count - 1}")
    return run


def read_settings(folder: Path) -> dict[str, Any]:
    """Read and check the run.json of a folder.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or has no run.json.
    ValueError
        If run.json is damaged, or has the format of another version.
    """
    if not (folder / "run.json").is_file():
        reason = "it has no run.json" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"'{folder}' is not a run: {reason}")
    try:
        settings: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        version = settings["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"'{folder / 'run.json'}' is damaged: {one_line(repr(error))}") from error
    if version != FORMAT:
        version = reprlib.repr(version)
        raise ValueError(
            f"'{folder}' is a run of format {version}, but this version of pckd_nb reads format {FORMAT}: use the "
            "version that trained the run"
        )
    try:
        make_config(settings)
    except ValueError as error:
        raise ValueError(f"'{folder / 'run.json'}' is damaged: {error}") from None
    return settings


def summary(runs: list[Run]) -> pd.DataFrame:
    """Return a short table of a few runs: what was trained, with which accuracy and how long.

    Parameters
    ----------
    runs : list of Run

    Returns
    -------
    DataFrame
        One row per run, with the columns "method", "network", "parameters", "epochs", "top-1 %", "top-5 %" and
        "seconds".
    """
    rows = [
        {
            "method": run.settings["method"]["title"],
            "network": run.settings["model"]["name"],
            "parameters": run.parameters,
            "epochs": len(run.history),
            "top-1 %": run.accuracy,
            "top-5 %": float(run.history["test_top5"].iloc[-1]) if "test_top5" in run.history else float("nan"),
            "seconds": run.seconds,
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


def load_runs(folder: str | Path, tables_only: bool = False, skip_damaged: bool = False) -> list[Run]:
    """Load all finished runs in a folder and its subfolders.

    Parameters
    ----------
    folder : path
    tables_only : bool
        As in `load_run`.
    skip_damaged : bool
        Whether to leave out damaged runs, with a warning for each.

    Returns
    -------
    list of Run
        Sorted by path.

    Raises
    ------
    FileNotFoundError
        If there is no finished run.
    ValueError
        If a run is damaged, unless `skip_damaged` is True.
    TypeError
        If an argument has the wrong type.
    """
    folder = user_path(folder, "folder")
    check(bool, skip_damaged=skip_damaged)
    found = []
    for path in (file.parent for file in sorted(folder.rglob("run.json"))):
        try:
            if read_settings(path)["status"] == "finished":
                found.append(load_run(path, tables_only))
        except ValueError as error:
            if not skip_damaged:
                raise
            warnings.warn(f"left out: {one_line(error)}", stacklevel=2)
    if not found:
        raise FileNotFoundError(f"there is no finished run below '{folder}'")
    return found


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """Return a table for the comparison of many runs.

    Parameters
    ----------
    runs : iterable of Run

    Returns
    -------
    DataFrame
        One row per run, with these columns. The name of a data set includes its label noise, see `describe_noise`.

        - data, teacher, student, method, variant, epochs, seed,
        - every setting of the methods, NaN if a method does not have it,
        - top1 and top5 in percent, and cross_entropy in nats, all on the test images, NaN for a run without them,
        - train_images, seconds, and the `Run` itself in the column run.
    """
    rows = []
    for run in runs:
        settings, last_row = run.settings, run.history.iloc[-1] if len(run.history) else {}
        rows.append(
            {
                "data": settings["data"]["name"] + describe_noise(settings),
                "teacher": (settings["teacher"] or {}).get("name"),
                "student": settings["model"]["name"],
                "method": settings["method"]["title"],
                "variant": run.variant,
                "epochs": settings["recipe"]["epochs"],
                "seed": settings["seed"],
                **run.method_settings,
                **{name: last_row.get(f"test_{name}", float("nan")) for name in ("top1", "top5", "cross_entropy")},
                "train_images": settings["data"]["train_images"],
                "seconds": run.seconds,
                "run": run,
            }
        )
    return pd.DataFrame(rows)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module, like `load_state_dict`, but with a one-line error.

    Parameters
    ----------
    model : nn.Module
    state : dict of str to Tensor
    source : str
        Where the weights come from. The error message begins with it.

    Raises
    ------
    ValueError
        If a weight is missing, has another shape, or does not belong to the module. The message names the first such
        weight.
    """
    expected = model.state_dict()
    for name in expected:
        if name not in state:
            raise ValueError(f"{source}: these weights belong to another network: '{name}' is missing")
        if state[name].shape != expected[name].shape:
            found, wanted = tuple(state[name].shape), tuple(expected[name].shape)
            raise ValueError(
                f"{source}: these weights belong to another network: '{name}' has shape {found} instead of {wanted}"
            )
    if extra := next((name for name in state if name not in expected), None):
        raise ValueError(f"{source}: these weights belong to another network: '{extra}' does not exist in this one")
    # A `state_dict` also has version numbers of the modules, which MNASNet needs. `state` may be a dict without them.
    expected.update(state)
    model.load_state_dict(expected)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's `state_dict` on the CPU. Further training does not change the copy.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict of str to Tensor
    """
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return a fingerprint of weights: 16 hexadecimal digits that change if any name or value changes.

    Parameters
    ----------
    state : dict of str to Tensor

    Returns
    -------
    str
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the run.json of a run folder, as a whole or not at all.

    Parameters
    ----------
    folder : Path
    settings : dict

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    files.write(folder / "run.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:  # numpy would append .npz to a file name
        np.savez_compressed(file, **arrays)


def _load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


__getattr__ = renamed(__name__)

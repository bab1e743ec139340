"""The schema of run.json: all settings of a run, with their types.

Examples
--------
>>> import json
>>> from pathlib import Path
>>> import pckd_nb as pckd
>>> from pckd_nb.config import make_config
>>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
>>> run = pckd.fit("resnet8", data, epochs=1, progress=False, out="run")
>>> make_config(json.loads(Path("run/run.json").read_text(encoding="utf-8"))).model.name
'resnet8'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .validation import Count, Seed, first_error

FORMAT = 1  # version of the format of run folders
MAX_CHANNELS = 4096  # so that a damaged run.json cannot create a network that fills the memory
REBUILD_OPTIONS = {  # of `data.rebuild`
    "train_size", "test_size", "image_size", "seed", "val", "val_seed", "label_noise", "noise", "noise_seed", "test",
}  # fmt: skip
FORBIDDEN_OPTIONS = {"name", "root", "workers"}  # a run.json must not choose a path or a number of processes
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
MapShape = Annotated[list[Channels], Field(min_length=3, max_length=3)]  # channels, height and width of a feature map
Size = Annotated[list[int], Field(min_length=2, max_length=2)]  # height and width


class Section(BaseModel):
    """A section of run.json. It may have more entries than are declared here, because other versions may add some."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True, protected_namespaces=())


class Setting(Section):
    """One setting of a method: its value, and where the value came from.

    Parameters
    ----------
    value : object
    source : str
        The entry "from" in run.json: "argument", "attribute", "recipe", "published for TEACHER → STUDENT",
        "data set" or "default".
    """

    value: Any
    source: str = Field(alias="from")


class MethodConfig(Section):
    """The method.

    Parameters
    ----------
    name : str
        Name of the class.
    title : str
        Name in figures.
    views : int
        Number of views per image.
    settings : dict of str to Setting
    left_out : dict of str to str
        Loss terms that are left out, and why.
    """

    name: str
    title: str
    views: int
    settings: dict[str, Setting]
    left_out: dict[str, str] = {}


class ProjectorConfig(Section):
    """What makes a network a `models.SimKDNetwork`: all its arguments but the first.

    Parameters
    ----------
    layer : str
    student_shape, teacher_shape : [C, H, W]
    factor : int
    bias : bool
    """

    layer: str
    student_shape: MapShape
    teacher_shape: MapShape
    factor: Count
    bias: bool


class NetworkConfig(Section):
    """The student.

    Parameters
    ----------
    name : str or None
        None for a network of your own.
    num_classes, in_channels : int
    parameters : int
        Number of parameters.
    projector : ProjectorConfig, optional
        Only if the student has become a part of a `models.SimKDNetwork`.
    """

    name: str | None
    num_classes: int
    in_channels: Channels
    parameters: int
    projector: ProjectorConfig | None = None


class TeacherConfig(Section):
    """The teacher.

    Parameters
    ----------
    name : str or None
        None for a network of your own.
    fingerprint : str
        Fingerprint of its weights.
    exact : bool
        Whether it runs in float32 without approximation.
    """

    name: str | None
    fingerprint: str
    exact: bool = False


class FileFingerprints(Section):
    """Fingerprints of image files, see `data.dataset.file_fingerprints`.

    They show whether a few image files were repaired, or whether it is another data set.

    Parameters
    ----------
    reading : int
        Version of the functions that read image files.
    names : str
        Fingerprint of file names, labels, class names and image size.
    sizes : str
        Fingerprint of the file sizes.
    """

    reading: int
    names: str
    sizes: str


class DataConfig(Section):
    """The data set: everything that is needed to load it again, and to compare it with another one.

    Parameters
    ----------
    name : str
    options : dict
        Arguments of `load_dataset`.
    fingerprint : str
    train_images, test_images, val_images : int
        Number of images. Missing for a split that the data set does not have.
    image_size : [height, width]
        In pixels.
    mean, std : list of float
        One number per channel, for pixels in [0, 1].
    normalisation : str
        Where mean and std come from.
    classes : list of str
    groups : dict
        Superclasses, as in `Dataset.groups`.
    files : FileFingerprints, optional
        Only if images are read from files during training.
    repaired : list of dict
        One entry for each time that the run was resumed after image files had changed. "fingerprint" is that of the
        data before the change. "files" is a lower bound of the number of changed files.
    """

    name: str
    options: dict[str, Any]
    fingerprint: str
    train_images: int
    test_images: int | None = None
    val_images: int | None = None
    image_size: Size
    mean: list[Any]
    std: list[Any]
    normalisation: str
    classes: list[str]
    groups: dict[str, Any]
    files: FileFingerprints | None = None
    repaired: list[dict[str, Any]] = []

    @model_validator(mode="after")
    def check_splits(self) -> DataConfig:
        """Check that there is a held-out split. Raises ValueError."""
        if self.test_images is None and self.val_images is None:
            raise ValueError("test_images is missing")
        return self

    @field_validator("options")
    @classmethod
    def check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Check that no option is unsafe for `data.rebuild`. Raises ValueError."""
        for name, value in options.items():
            if name in FORBIDDEN_OPTIONS:
                raise ValueError(f"data.options.{name} is not allowed in run.json")
            if name in REBUILD_OPTIONS - {"noise"} and not isinstance(value, int | float | None):
                raise ValueError(f"data.options.{name} needs a number, got {value!r:.60}")
        return options


class RecipeConfig(Section):
    """The recipe, see `recipes.Recipe`."""

    epochs: Count
    method: dict[str, Any]


class StageConfig(Section):
    """A stage of the method that was trained before the first epoch, see `methods.Stage`.

    Parameters
    ----------
    name : str
    epochs : int
    loss : list of float
        Mean loss of every epoch.
    """

    name: str
    epochs: Count
    loss: list[float]


class RunConfig(Section):
    """The content of run.json: all settings of a run, and a few results.

    Parameters
    ----------
    format : int
        Version of the format of the run folder.
    status : {"running", "interrupted", "finished"}
    method : MethodConfig
    model : NetworkConfig
        The student.
    teacher : TeacherConfig or None
    data : DataConfig
    recipe : RecipeConfig
    seed : int
    hardware : str
        The processor that trained.
    precision : str
        Precision of the student.
    compile : bool
        Whether torch.compile was used for the student.
    ranks : int
        Number of processes.
    versions : dict of str to str
        Versions of this package and of the libraries that compute.
    callbacks : list of str
    stages : list of StageConfig
        Missing if the method has no stages, and until they are complete.
    fingerprint : str
        Fingerprint of the student's weights. Missing until the run is saved for the first time.
    finished_early : str
        Why a callback ended the training before the last epoch. Missing if none did.
    best : dict of str to float
        Number and accuracies of the best epoch. Missing without a validation split.
    """

    format: int = FORMAT
    status: Literal["running", "interrupted", "finished"]
    method: MethodConfig
    model: NetworkConfig
    teacher: TeacherConfig | None
    data: DataConfig
    recipe: RecipeConfig
    seed: Seed
    hardware: str
    precision: str = "32-true"
    compile: bool = False
    ranks: int = 1
    versions: dict[str, str] = {}
    callbacks: list[str] = []
    stages: list[StageConfig] = []
    fingerprint: str | None = None
    finished_early: str = ""
    best: dict[str, float] = {}

    @model_validator(mode="after")
    def check_consistency(self) -> RunConfig:
        """Check entries that depend on each other. Raises ValueError."""
        if self.status != "running" and self.fingerprint is None:
            raise ValueError("fingerprint is missing")
        if len(self.data.classes) != self.model.num_classes:
            raise ValueError(
                f"data.classes has {len(self.data.classes)} names, but model.num_classes is {self.model.num_classes}"
            )
        return self

    def dump(self) -> dict[str, Any]:
        """Return the content of run.json as a dict."""
        content: dict[str, Any] = self.model_dump(by_alias=True, exclude_unset=True)
        return content


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """Check the content of a run.json.

    Parameters
    ----------
    settings : dict

    Returns
    -------
    RunConfig

    Raises
    ------
    ValueError
        If an entry is missing or wrong. The message names the first one.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError(str(first_error(error))) from None

"""The schema of run.json: every setting of a run as one typed object, which run.json is the dump of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .validation import Count, Seed, first_error

FORMAT = 1  # of run folders
MAX_CHANNELS = 4096  # an upper limit, so that a damaged run.json can't ask for a network that fills the memory
REBUILD_OPTIONS = {"train_size", "test_size", "image_size", "seed", "val", "val_seed"}  # that `data.rebuild` takes
FORBIDDEN_OPTIONS = {"name", "root", "workers"}  # a run.json must not choose a path, or a number of processes
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Size = Annotated[list[int], Field(min_length=2, max_length=2)]  # height and width


class Part(BaseModel):
    """A part of run.json. It may have more entries than are declared here: those of other versions."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True, protected_namespaces=())


class Setting(Part):
    """A setting of a method: its value, and where that came from.

    `source` is "from" in run.json: "argument", "attribute", "recipe", "data set" or "default".
    """

    value: Any
    source: str = Field(alias="from")


class MethodConfig(Part):
    """The method: name, title in figures, views per image, settings, and terms that are left out with the reason."""

    name: str
    title: str
    views: int
    settings: dict[str, Setting]
    left_out: dict[str, str] = {}


class NetworkConfig(Part):
    """The student: name, sizes, number of parameters, and where its first weights came from."""

    name: str | None
    num_classes: int
    in_channels: Channels
    parameters: int


class TeacherConfig(Part):
    """The teacher: name, the fingerprint of its weights, and whether it computes as it is, in float32."""

    name: str | None
    fingerprint: str
    exact: bool = False


class FilePrints(Part):
    """What tells a few repaired image files from another data set, see `data.dataset.file_fingerprints`."""

    reading: int
    names: str
    sizes: str


class DataConfig(Part):
    """The data set: what is needed to compare it with another one, and to build it once more.

    `files` is there if images stay in files. `repaired` has one entry for each time that the run went on after some of
    these files had changed: the fingerprint of the data before, and at least how many files had changed.
    """

    name: str
    options: dict[str, Any]
    fingerprint: str
    train_images: int
    test_images: int
    image_size: Size
    mean: list[Any]
    std: list[Any]
    normalisation: str
    classes: list[str]
    groups: dict[str, Any]
    files: FilePrints | None = None
    repaired: list[dict[str, Any]] = []

    @field_validator("options")
    @classmethod
    def check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Raise ValueError for an option that `data.rebuild` must not get."""
        for name, value in options.items():
            if name in FORBIDDEN_OPTIONS or (name in REBUILD_OPTIONS and not isinstance(value, int | float | None)):
                raise ValueError(f"data.options.{name} is not allowed to be {value!r:.60}")
        return options


class RecipeConfig(Part):
    """The recipe, see `recipes.Recipe`."""

    epochs: Count
    method: dict[str, Any]


class RunConfig(Part):
    """Every setting of a run, and its outcome in a few words.

    Parameters
    ----------
    format : int
        Of the run folder.
    status : "running", "interrupted" or "finished"
    seed : int
    hardware : str
        What trained.
    precision : str
    compile : bool
        Whether the student was compiled.
    ranks : int
        Processes.
    versions : dict
        Of this package and of the libraries that compute.
    callbacks : list of str
    method : MethodConfig
    model : NetworkConfig
        The student.
    teacher : TeacherConfig or None
    data : DataConfig
    recipe : RecipeConfig
    fingerprint : str
        Of the student's weights. It is missing until the run is saved for the first time.
    finished_early : str
        Why the run ended before its last epoch; missing if it did not.
    best : dict
        Epoch and accuracies of the best epoch; missing without a validation split.
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
    fingerprint: str | None = None
    finished_early: str = ""
    best: dict[str, float] = {}

    @model_validator(mode="after")
    def check_together(self) -> RunConfig:
        """Raise ValueError if two parts do not fit together."""
        if self.status != "running" and self.fingerprint is None:
            raise ValueError("fingerprint is missing")
        if len(self.data.classes) != self.model.num_classes:
            raise ValueError(f"data.classes has not {self.model.num_classes} names")
        return self

    def dump(self) -> dict[str, Any]:
        """Return what run.json holds."""
        settings: dict[str, Any] = self.model_dump(by_alias=True, exclude_unset=True)
        return settings


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """Return the config of a run.json. Raises ValueError, naming the first entry that is missing or wrong."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError(str(first_error(error))) from None

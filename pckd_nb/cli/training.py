"""Commands that train one network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import catalogue, files, launcher
from ..html import counted, value_text
from .app import command
from .options import (
    METHOD_HELP,
    NORMALISATION_HELP,
    DataOptions,
    Init,
    RecipeOptions,
    TrainingOptions,
    check_names,
    given,
    in_method,
    in_networks,
    on_machine,
)
from .sources import load_run_unless, make_network

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Classifier
    from ..runs import Run


@command()
def train(
    model: Annotated[str, in_networks(help="Network: a name that `pckd-nb models` lists.")],
    data: DataOptions,
    options: TrainingOptions,
    recipe: RecipeOptions,
    init: Init = None,
) -> None:
    """Train a network on labels alone: a teacher."""
    catalogue.check_network(model)
    from .. import training
    from ..data import load_dataset

    name, sizes = data
    prepare(name, options, init)
    loaded = load_dataset(name, **sizes)
    announce(loaded, options)
    network = make_network(model, loaded, options["seed"], init, sizes.get("root"))
    report(training.fit(network, loaded, recipe, **with_callbacks(options)), options)


@command()
def distill(
    student: Annotated[str, in_networks(help="Network to train: a name that `pckd-nb models` lists.")],
    data: DataOptions,
    options: TrainingOptions,
    recipe: RecipeOptions,
    teacher: Annotated[str | None, in_networks(help="The teacher: a run folder; or a checkpoint file or URL.")] = None,
    teacher_model: Annotated[
        str | None, in_networks(help="The teacher's network, if --teacher is a checkpoint.")
    ] = None,
    teacher_normalisation: Annotated[str | None, in_networks(help=NORMALISATION_HELP)] = None,
    teacher_image_size: Annotated[
        int | None, in_networks(help="Side of the images in pixels that a checkpoint was trained with.")
    ] = None,
    method: Annotated[str, in_method(help=METHOD_HELP)] = "pckd",
    beta_kd: Annotated[float | None, in_method(help="Weight of L_KD, the distillation of logits.")] = None,
    beta_fa: Annotated[float | None, in_method(help="Weight of L_FA, feature alignment.")] = None,
    beta_ca: Annotated[float | None, in_method(help="Weight of L_CA, category center alignment.")] = None,
    beta_cc: Annotated[float | None, in_method(help="Weight of L_CC, category center contrast.")] = None,
    temperature: Annotated[float | None, in_method(help="T of L_KD.")] = None,
    epsilon: Annotated[float | None, in_method(help="Preview threshold: epsilon to the power of the epoch.")] = None,
    views: Annotated[int | None, in_method(help="Rotations of every image, 1 to 4.")] = None,
    init: Init = None,
    teacher_cache: Annotated[
        Path | None, on_machine(help="Folder that keeps the teacher's features, for other runs.")
    ] = None,
    teacher_cache_gb: Annotated[float, on_machine(help="Its size at most, in gigabytes.")] = 20,
) -> None:
    """Train a student, by default with PCKD. Weights and views left open come from recipe, data set and paper."""
    settings = given(beta_kd=beta_kd, beta_fa=beta_fa, beta_ca=beta_ca, beta_cc=beta_cc, temperature=temperature,
                     epsilon=epsilon, views=views)  # fmt: skip
    check_names(networks=[student, teacher_model], arms=[method])
    pixels: dict[str, Any] = given(size=teacher_image_size)
    if teacher_normalisation is not None:
        pixels["mean"], pixels["std"] = catalogue.read_normalisation(teacher_normalisation)
    if pixels and teacher_model is None:
        raise ValueError("--teacher-normalisation and --teacher-image-size are for a checkpoint: a run says its own")
    from .. import training
    from ..data import load_dataset
    from ..experiments import parse_arm
    from ..models import with_preprocessing

    arm = parse_arm(method)
    for name, value in settings.items():
        arm = arm.plus(name, value)
    built, recipe = arm.build(recipe)
    if built.uses_teacher and teacher is None:
        raise ValueError(f"method {method} needs --teacher, the run folder of a trained network")
    name, sizes = data
    prepare(name, options, init, teacher)
    if teacher_cache:
        files.check_writable(teacher_cache)
    teacher_run = load_run_unless(teacher_model, teacher, "--teacher-model") if teacher else None
    loaded = load_dataset(name, **sizes)
    announce(loaded, options)
    teacher_source: Classifier | Run | None = teacher_run
    if teacher and teacher_model:
        teacher_source = make_network(teacher_model, loaded, options["seed"], teacher, sizes.get("root"))
        if pixels:
            teacher_source = with_preprocessing(teacher_source, loaded, **pixels)
    network = make_network(student, loaded, options["seed"], init, sizes.get("root"))
    if not teacher_cache_gb > 0:
        raise ValueError(f"--teacher-cache-gb must be more than 0, got {teacher_cache_gb}")
    options.update(given(teacher_cache=teacher_cache), teacher_cache_gb=teacher_cache_gb)
    report(training.distill(network, teacher_source, loaded, built, recipe, **with_callbacks(options)), options)


def prepare(data: str, options: dict[str, Any], *used: str | None) -> None:
    """Check the run folder before the images are read. Of several processes, only the first checks it.

    Parameters
    ----------
    data : str
        Name of the data set.
    options : dict
        Options of `distill`, as `training_options` returns them.
    *used : str or None
        Sources of weights. They must not be overwritten.

    Raises
    ------
    ValueError
        If the training would overwrite a source of its weights, or write among the images of its data set.
    OSError
        If the run folder exists or cannot be written, see `resuming.check_run_folder`.
    """
    from .. import resuming, training

    for source in used:
        if options["overwrite"] and source and training.is_same_folder(source, options["out"]):
            raise ValueError(f"'{source}' is used by this training, which would overwrite it: choose another --out")
    catalogue.check_outside_images(options["out"], data)
    if speaks(options):
        resuming.check_run_folder(options["out"], resume=options["resume"], overwrite=options["overwrite"])


def announce(data: "Dataset", options: dict[str, Any]) -> None:
    """Print how many images were found, if they are your own files. Only the first process prints.

    Parameters
    ----------
    data : Dataset
    options : dict
        Options of `distill`.
    """
    if data.notes and speaks(options):
        counts = " and ".join(f"{len(getattr(data, part)):,} {part} images" for part in ("train", *data.held_out))
        print(f"{data.name}: {counts} of {data.num_classes} classes; {data.notes['images']}")


def with_callbacks(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of `distill`, in which early_stopping and logger are replaced by callbacks and loggers.

    Parameters
    ----------
    options : dict
        The words of the command line, as `training_options` returns them.

    Returns
    -------
    dict
        Arguments of `distill`.
    """
    from ..training import EarlyStopping

    arguments = {name: value for name, value in options.items() if name not in ("early_stopping", "logger")}
    if "early_stopping" in options:
        arguments["callbacks"] = [EarlyStopping("val_top1", options["early_stopping"])]
    if "logger" in options:
        arguments["loggers"] = [make_logger(options["logger"], options["out"])]
    return arguments


def make_logger(name: str, out: Path) -> Any:
    """Return the logger that `--logger` names, for the run in the folder `out`."""
    from lightning_fabric import loggers

    from ..training import TrackingLogger

    if name not in ("tensorboard", "csv"):
        return TrackingLogger(name, project=out.parent.name or "pckd_nb", name=out.name)
    place: dict[str, Any] = dict(root_dir=out.parent / "logs", name=out.name, version="")
    if name == "csv":
        return loggers.CSVLogger(**place)
    return loggers.TensorBoardLogger(**place, purge_step=0)  # hides what an earlier run logged there


def speaks(options: dict[str, Any]) -> bool:
    """Return whether this process is the first one of a training. The first process prints the output.

    Parameters
    ----------
    options : dict
        Options of `distill`.

    Returns
    -------
    bool
    """
    return launcher.is_first(options.get("devices"), options["nodes"])


def report(run: "Run", options: dict[str, Any]) -> None:
    """Print the settings and the result of a training. Only the first process prints.

    Parameters
    ----------
    run : Run
    options : dict
        Options of `distill`.

    Raises
    ------
    typer.Exit
        With status 130, as after any Ctrl-C, if the training was interrupted.
    """
    if not speaks(options):  # exit with 0: at any other status Fabric would kill the first process while it saves
        return
    settings = run.settings["method"]["settings"].items()
    if settings:
        shown = (f"{name} {value_text(info['value'])} ({info['from']})" for name, info in settings)
        print("settings: " + ", ".join(shown))
    if not run.finished:
        print(f"interrupted after {counted(len(run.history), 'whole epoch')}; the same command with --resume goes on")
        raise typer.Exit(130)
    top5 = run.history["test_top5"].iloc[-1]
    print(f"{run.title}: top-1 {run.accuracy:.2f} %, top-5 {top5:.2f} % after {counted(len(run.history), 'epoch')}")
    print(f"{run.seconds:.0f} s on {run.settings['hardware']}, saved in {run.path}")

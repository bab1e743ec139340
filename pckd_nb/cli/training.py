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
    drop_none,
    in_method,
    in_networks,
    on_machine,
)
from .sources import load_run_unless_checkpoint, make_network

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Classifier
    from ..runs import Run


@command()
def train(
    model: Annotated[str, in_networks(help="Name of a network. `pckd-nb models` lists them.")],
    data: DataOptions,
    options: TrainingOptions,
    recipe: RecipeOptions,
    init: Init = None,
) -> None:
    """Train a network on labels alone, for example as a teacher."""
    catalogue.check_network(model)
    from .. import training
    from ..data import load_dataset

    name, dataset_options = data
    check_run_folder(name, options, init)
    dataset = load_dataset(name, **dataset_options)
    print_image_counts(dataset, options)
    network = make_network(model, dataset, options["seed"], init, dataset_options.get("root"))
    print_result(training.fit(network, dataset, recipe, **distill_arguments(options)), options)


@command()
def distill(
    student: Annotated[str, in_networks(help="Name of the network to train. `pckd-nb models` lists them.")],
    data: DataOptions,
    options: TrainingOptions,
    recipe: RecipeOptions,
    teacher: Annotated[str | None, in_networks(help="The teacher: a run folder, or a checkpoint file or URL.")] = None,
    teacher_model: Annotated[
        str | None, in_networks(help="Network of the teacher, if --teacher is a checkpoint.")
    ] = None,
    teacher_normalisation: Annotated[str | None, in_networks(help=NORMALISATION_HELP)] = None,
    teacher_image_size: Annotated[
        int | None, in_networks(help="Height and width in pixels of the images that a checkpoint was trained with.")
    ] = None,
    method: Annotated[str, in_method(help=METHOD_HELP)] = "pckd",
    beta_kd: Annotated[float | None, in_method(help="Weight of L_KD, the distillation of logits.")] = None,
    beta_fa: Annotated[float | None, in_method(help="Weight of L_FA, feature alignment.")] = None,
    beta_ca: Annotated[float | None, in_method(help="Weight of L_CA, category center alignment.")] = None,
    beta_cc: Annotated[float | None, in_method(help="Weight of L_CC, category center contrast.")] = None,
    temperature: Annotated[float | None, in_method(help="Temperature T of L_KD.")] = None,
    epsilon: Annotated[
        float | None,
        in_method(
            help="Base of the preview threshold. In epoch t, images with a difficulty above epsilon^t get a "
            "smaller weight."
        ),
    ] = None,
    views: Annotated[
        int | None, in_method(help="Number of views per image, 1 to 4. Each is rotated by another 90 degrees.")
    ] = None,
    init: Init = None,
    teacher_cache: Annotated[
        Path | None, on_machine(help="Folder for the teacher's features, so that other runs can reuse them.")
    ] = None,
    teacher_cache_gb: Annotated[float, on_machine(help="Maximum size of the teacher cache in gigabytes.")] = 20,
) -> None:
    """Train a student with a teacher, by default with PCKD.

    The loss weights (--beta-kd and so on) and --views have defaults from the recipe, the data set or the paper.
    """
    settings = drop_none(beta_kd=beta_kd, beta_fa=beta_fa, beta_ca=beta_ca, beta_cc=beta_cc, temperature=temperature,
                     epsilon=epsilon, views=views)  # fmt: skip
    check_names(networks=[student, teacher_model], arms=[method])
    preprocessing: dict[str, Any] = drop_none(size=teacher_image_size)
    if teacher_normalisation is not None:
        preprocessing["mean"], preprocessing["std"] = catalogue.read_normalisation(teacher_normalisation)
    if preprocessing and teacher_model is None:
        raise ValueError(
            "--teacher-normalisation and --teacher-image-size are only for a checkpoint: a run folder has its own"
        )
    from .. import training
    from ..data import load_dataset
    from ..experiments import parse_arm
    from ..models import with_preprocessing

    arm = parse_arm(method)
    for name, value in settings.items():
        arm = arm.with_setting(name, value)
    method_object, recipe = arm.build(recipe)
    if method_object.uses_teacher and teacher is None:
        raise ValueError(f"method {method} needs --teacher, the run folder of a trained network")
    name, dataset_options = data
    check_run_folder(name, options, init, teacher)
    if teacher_cache:
        files.check_writable(teacher_cache)
    teacher_run = load_run_unless_checkpoint(teacher_model, teacher, "--teacher-model") if teacher else None
    dataset = load_dataset(name, **dataset_options)
    print_image_counts(dataset, options)
    teacher_source: Classifier | Run | None = teacher_run
    if teacher and teacher_model:
        teacher_source = make_network(teacher_model, dataset, options["seed"], teacher, dataset_options.get("root"))
        if preprocessing:
            teacher_source = with_preprocessing(teacher_source, dataset, **preprocessing)
    network = make_network(student, dataset, options["seed"], init, dataset_options.get("root"))
    if not teacher_cache_gb > 0:
        raise ValueError(f"--teacher-cache-gb must be more than 0, got {teacher_cache_gb}")
    options.update(drop_none(teacher_cache=teacher_cache), teacher_cache_gb=teacher_cache_gb)
    run = training.distill(network, teacher_source, dataset, method_object, recipe, **distill_arguments(options))
    print_result(run, options)


def check_run_folder(data: str, options: dict[str, Any], *used: str | None) -> None:
    """Check that the run folder can be written, before the images are read.

    In a training with several processes, only the first one looks into the folder.

    Parameters
    ----------
    data : str
        Name of the data set.
    options : dict
        The result of `training_options`.
    *used : str or None
        Run folders or checkpoints that the training reads. They must not be overwritten.

    Raises
    ------
    ValueError
        If the training would overwrite one of `used`, or write among the images of its data set.
    OSError
        If the run folder must not be replaced or cannot be written; see `resuming.check_run_folder`.
    """
    from .. import resuming, training

    for source in used:
        if options["overwrite"] and source and training.is_same_folder(source, options["out"]):
            raise ValueError(f"'{source}' is used by this training, which would overwrite it: choose another --out")
    catalogue.check_outside_images(options["out"], data)
    if is_first_process(options):
        resuming.check_run_folder(options["out"], resume=options["resume"], overwrite=options["overwrite"])


def print_image_counts(data: "Dataset", options: dict[str, Any]) -> None:
    """Print how many images were found, if the data set consists of image files. Only the first process prints.

    Parameters
    ----------
    data : Dataset
    options : dict
        The result of `training_options`.
    """
    if data.notes and is_first_process(options):
        counts = " and ".join(f"{len(getattr(data, part)):,} {part} images" for part in ("train", *data.held_out))
        print(f"{data.name}: {counts} of {data.num_classes} classes; {data.notes['images']}")


def distill_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `fit` and `distill`: callbacks in place of early_stopping, loggers in place of logger.

    Parameters
    ----------
    options : dict
        The result of `training_options`.

    Returns
    -------
    dict
    """
    from ..training import EarlyStopping

    arguments = {name: value for name, value in options.items() if name not in ("early_stopping", "logger")}
    if "early_stopping" in options:
        arguments["callbacks"] = [EarlyStopping("val_top1", options["early_stopping"])]
    if "logger" in options:
        arguments["loggers"] = [make_logger(options["logger"], options["out"])]
    return arguments


def make_logger(name: str, out: Path) -> Any:
    """Return the logger of the option --logger.

    Parameters
    ----------
    name : str
        "tensorboard", "csv", "trackio" or "wandb".
    out : Path
        The run folder.

    Returns
    -------
    Logger
        A logger of Lightning Fabric.
    """
    from lightning_fabric import loggers

    from ..training import TrackingLogger

    if name not in ("tensorboard", "csv"):
        return TrackingLogger(name, project=out.parent.name or "pckd_nb", name=out.name)
    location: dict[str, Any] = dict(root_dir=out.parent / "logs", name=out.name, version="")
    if name == "csv":
        return loggers.CSVLogger(**location)
    return loggers.TensorBoardLogger(**location, purge_step=0)  # hides the log of an earlier run in the same folder


def is_first_process(options: dict[str, Any]) -> bool:
    """Return whether this process is the first one of the training. Only the first process prints.

    Parameters
    ----------
    options : dict
        The result of `training_options`.

    Returns
    -------
    bool
    """
    return launcher.is_first_rank(options.get("devices"), options["nodes"])


def print_result(run: "Run", options: dict[str, Any]) -> None:
    """Print the settings and the result of a training. Only the first process prints.

    Parameters
    ----------
    run : Run
    options : dict
        The result of `training_options`.

    Raises
    ------
    typer.Exit
        If the training was interrupted. The exit status is 130, as after any Ctrl-C.
    """
    if not is_first_process(options):
        return  # with exit status 0: at any other status, Fabric would kill the first process while it saves
    settings = run.settings["method"]["settings"].items()
    if settings:
        shown = (f"{name} {value_text(info['value'])} ({info['from']})" for name, info in settings)
        print("settings: " + ", ".join(shown))
    if not run.finished:
        epochs = counted(len(run.history), "whole epoch")
        print(f"interrupted after {epochs}; the same command with --resume continues the training")
        raise typer.Exit(130)
    top5 = run.history["test_top5"].iloc[-1]
    print(f"{run.title}: top-1 {run.accuracy:.2f} %, top-5 {top5:.2f} % after {counted(len(run.history), 'epoch')}")
    print(f"{run.seconds:.0f} s on {run.settings['hardware']}, saved in {run.path}")

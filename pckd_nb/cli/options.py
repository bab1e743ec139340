"""Options that several commands share.

A function whose name ends in `_options` defines several options at once. The type below it adds them to a command: a
parameter `data: DataOptions` receives the return value of `data_options`.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer_injector import Depends

from .. import catalogue, launcher

MAX_SEEDS = 10_000
LOGGERS = ("tensorboard", "csv", "trackio", "wandb")

METHOD_HELP = (
    f"One of {', '.join(catalogue.METHODS)}, or a baseline: {', '.join(catalogue.BASELINES)}. Settings can follow, "
    "as in AT-weight=500. In pckd-strategy=NAME, NAME is the way to weight the training images: "
    f"{', '.join(catalogue.STRATEGIES)}."
)

NORMALISATION_HELP = (
    f"Mean and std of the pixels that a checkpoint was trained with. One of {', '.join(catalogue.NORMALISATIONS)}, or "
    "MEAN/STD such as 0.5,0.5,0.5/0.25,0.25,0.25. Default: the values in its file, else those of the data set."
)

# `typer.Option` for each group of the help.
in_networks = partial(typer.Option, rich_help_panel="Networks")
in_data = partial(typer.Option, rich_help_panel="Data")
in_method = partial(typer.Option, rich_help_panel="Method")
in_training = partial(typer.Option, rich_help_panel="Training")
in_grid = partial(typer.Option, rich_help_panel="Grid")
in_ranking = partial(typer.Option, rich_help_panel="Ranking")
on_machine = partial(typer.Option, rich_help_panel="Machine")

Data = Annotated[str, in_data(help="Name of a data set. `pckd-nb datasets` lists them.")]
Root = Annotated[Path | None, in_data(help="Folder of the data sets. Default: $PCKD_DATA, else data/downloads.")]
TestSize = Annotated[int | None, in_data(help="Number of test images to use.")]
ImageSize = Annotated[
    int | None,
    in_data(
        help="Height and width in pixels, to which images are resized. Only for "
        "stl10, tinyimagenet, imagenet and folder:PATH."
    ),
]
Workers = Annotated[
    int | None,
    in_data(
        help="Number of processes that read images, if the images do not fit into memory. Default: one per CPU core, "
        "at most 8."
    ),
]
Val = Annotated[float, in_data(help="Fraction of the training images to hold out as a validation split.")]
Init = Annotated[
    str | None, in_networks(help="Initial weights: a run folder, or a checkpoint file or URL. Default: random weights.")
]
Overwrite = Annotated[bool, in_training("--overwrite", help="Replace the run in --out.")]
Accelerator = Annotated[str, on_machine(help="Device: auto, cpu, cuda or mps.")]
Compile = Annotated[
    bool | None,
    on_machine(
        "--compile/--no-compile",
        help="Use torch.compile, or not. Default: only for large networks of this package, in long runs on a CPU.",
    ),
]
Devices = Annotated[
    int | None,
    on_machine(
        help="Number of processes per machine, one for each GPU. Default: 1, or the number that torchrun started."
    ),
]
Precision = Annotated[
    str, on_machine(help="Floating-point precision: auto, 32-true, bf16-mixed, or on a CUDA device 16-mixed.")
]
Reference = Annotated[str, in_method(help="The method that all others are compared with, seed by seed.")]


def recipe_options(
    recipe: Annotated[
        str, in_training(help=f"Name of a set of training settings, one of {', '.join(catalogue.RECIPES)}.")
    ] = "classroom",
    epochs: Annotated[int | None, in_training(help="Number of epochs. Default: that of the recipe.")] = None,
    batch_size: Annotated[
        int | None, in_training(help="Number of images per training step. Default: that of the recipe.")
    ] = None,
    lr: Annotated[float | None, in_training(help="Learning rate. Default: that of the recipe.")] = None,
    flip: Annotated[
        bool | None,
        in_training("--flip/--no-flip", help="Flip training images at random, or not. Default: as the recipe says."),
    ] = None,
    crop_per_view: Annotated[
        bool | None,
        in_training(
            "--crop-views/--one-crop",
            help="Crop every rotated view of an image separately, or crop the image once. Default: as the recipe says.",
        ),
    ] = None,
    augment: Annotated[
        str | None,
        in_training(
            help="Additional transform of the training images. A class of torchvision.transforms.v2, such as "
            "RandAugment, or your own, as file.py:NAME. Default: none."
        ),
    ] = None,
    mix: Annotated[
        str | None,
        in_training(
            help="Mix pairs of training images and their labels: mixup, cutmix, or your own, as "
            "file.py:NAME. Default: none."
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        in_training(help="Fraction of the probability of the label that is spread over all classes. Default: 0."),
    ] = None,
    optimizer: Annotated[
        str | None, in_training(help="sgd, adamw, or your own, as file.py:NAME. Default: that of the recipe.")
    ] = None,
    weight_decay: Annotated[float | None, in_training(help="Weight decay. Default: that of the recipe.")] = None,
    schedule: Annotated[
        str | None,
        in_training(
            help="Learning-rate schedule: step, cosine, constant, or your own, as file.py:NAME. Default: that of "
            "the recipe."
        ),
    ] = None,
    warmup_epochs: Annotated[
        float | None,
        in_training(help="Number of epochs in which the learning rate rises to --lr. Default: that of the recipe."),
    ] = None,
    clip_norm: Annotated[
        float | None,
        in_training(help="Maximum norm of the gradients. Larger gradients are scaled down to it. Default: none."),
    ] = None,
    ema: Annotated[
        float | None,
        in_training(
            help="Evaluate and save an exponential moving average of the weights, with this decay, such as 0.999. "
            "Default: none."
        ),
    ] = None,
) -> Any:
    """Return the recipe with the values that are given on the command line.

    Parameters
    ----------
    recipe : str
        Name of a recipe.
    epochs, batch_size, lr, flip, crop_per_view, augment, mix, label_smoothing : optional
    optimizer, weight_decay, schedule, warmup_epochs, clip_norm, ema : optional
        Fields of `Recipe`. None keeps the value of the recipe.

    Returns
    -------
    Recipe

    Raises
    ------
    ValueError
        If there is no recipe of this name, or if a value is not valid.
    """
    from ..recipes import get_recipe

    components = drop_none(augment=augment, mix=mix, optimizer=optimizer, schedule=schedule)
    numbers = drop_none(epochs=epochs, batch_size=batch_size, lr=lr, flip=flip, crop_per_view=crop_per_view,
                        label_smoothing=label_smoothing, weight_decay=weight_decay, warmup_epochs=warmup_epochs,
                        clip_norm=clip_norm, ema=ema)  # fmt: skip
    return get_recipe(recipe, **numbers, **components)


RecipeOptions = Annotated[Any, Depends(recipe_options)]  # Any stands for Recipe, whose module is slow to import


def data_options(
    data: Data,
    train_size: Annotated[
        int | None, in_data(help="Number of training images to use. Default: all, or 10,000 for shapes100.")
    ] = None,
    test_size: Annotated[
        int | None, in_data(help="Number of test images to use. Default: all, or 2,000 for shapes100.")
    ] = None,
    image_size: ImageSize = None,
    label_noise: Annotated[
        float | None, in_data(help="Fraction of the training images that get a wrong label. Default: 0.")
    ] = None,
    noise: Annotated[
        str | None,
        in_data(
            help="With --label-noise: which wrong labels. uniform is any other class, confusable a class that looks "
            "similar. Default: uniform."
        ),
    ] = None,
    workers: Workers = None,
    root: Root = None,
) -> tuple[str, dict[str, Any]]:
    """Return the arguments of `load_dataset`.

    The data set is not loaded yet, so that the other options are checked first.

    Parameters
    ----------
    data : str
        Name of the data set.
    train_size, test_size : int, optional
        Number of training and test images.
    image_size : int, optional
        Height and width of the images in pixels.
    label_noise : float, optional
        Fraction of the training images that get a wrong label.
    noise : str, optional
        Kind of the label noise.
    workers : int, optional
        Number of processes that read images.
    root : Path, optional
        Folder of the data sets.

    Returns
    -------
    name : str
    options : dict
        The other arguments that are given on the command line.

    Raises
    ------
    ValueError
        If there is no data set or label noise of this name, or if the fraction of wrong labels is not given.
    """
    catalogue.check_dataset(data)
    if noise is not None:
        catalogue.check_noise(noise)
        if not label_noise:
            raise ValueError("--noise needs the fraction of wrong labels: add --label-noise 0.2")
    sizes = dict(train_size=train_size, test_size=test_size, image_size=image_size)
    return data, drop_none(**sizes, label_noise=label_noise, noise=noise, workers=workers, root=root)


DataOptions = Annotated[tuple[str, dict[str, Any]], Depends(data_options)]


def training_options(
    out: Annotated[Path, in_training(help="The run folder to create.")],
    seed: Annotated[
        int,
        in_training(
            min=0, max=2**31 - 1, help="Seed of the initial weights, and of the order and crops of the images."
        ),
    ] = 0,
    val: Val = 0,
    early_stopping: Annotated[
        int | None, in_training(help="Stop after this many epochs without a better validation accuracy.")
    ] = None,
    logger: Annotated[
        str | None,
        in_training(
            help="Log the values of every epoch also with one of tensorboard, csv, trackio, wandb. The first two write "
            "into the folder logs next to --out."
        ),
    ] = None,
    resume: Annotated[
        bool, in_training("--resume", help="Continue the run in --out, or start it if there is none.")
    ] = False,
    overwrite: Overwrite = False,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    compile: Compile = None,
    devices: Devices = None,
    nodes: Annotated[int, on_machine(help="Number of machines, each with --devices processes.")] = 1,
    strategy: Annotated[
        str,
        on_machine(
            help="How the processes work together. ddp is DistributedDataParallel of PyTorch. auto means the same."
        ),
    ] = "auto",
) -> dict[str, Any]:
    """Return the options of one training.

    Returns
    -------
    dict
        Arguments of `distill`, by name. early_stopping and logger still have the values of the command line;
        `distill_arguments` replaces them.

    Raises
    ------
    ValueError
        If strategy or logger has an unknown value, or if early stopping is asked for without a validation split.
    """
    if strategy not in ("auto", "ddp"):
        message = f"--strategy must be auto or ddp, got {strategy}"
        if strategy in catalogue.STRATEGIES:
            message += "; to choose how PCKD weights the images, use --method pckd-strategy=uniform"
        raise ValueError(message)
    if logger not in (None, *LOGGERS):
        raise ValueError(f"--logger must be one of {', '.join(LOGGERS)}, got {logger}")
    if early_stopping is not None and not val:
        raise ValueError("--early-stopping needs a validation split: add --val 0.1")
    options = dict(seed=seed, out=out, resume=resume, overwrite=overwrite, accelerator=accelerator, precision=precision)
    options |= dict(val=val, **drop_none(early_stopping=early_stopping, logger=logger))
    return {**options, **drop_none(compile=compile, devices=devices), "nodes": nodes}


TrainingOptions = Annotated[dict[str, Any], Depends(training_options)]


class EvaluationRequest(NamedTuple):
    """The options of the command line that say which images a network is evaluated on, and how.

    Parameters
    ----------
    data : dict
        Arguments of `load_dataset` that were given.
    root : Path or None
        Folder of the data sets.
    machine : dict
        Arguments of `evaluation.predict`.
    """

    data: dict[str, Any]
    root: Path | None
    machine: dict[str, str]


def evaluation_options(
    test_size: TestSize = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    root: Root = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> EvaluationRequest:
    """Return the options that commands share if they evaluate trained networks.

    Returns
    -------
    EvaluationRequest
    """
    data = drop_none(test_size=test_size, image_size=image_size, workers=workers)
    return EvaluationRequest(data, root, {"accelerator": accelerator, "precision": precision})


EvaluationOptions = Annotated[EvaluationRequest, Depends(evaluation_options)]


class MachineRequest(NamedTuple):
    """The options of the command line that say how the runs of a grid or of a search are trained.

    Parameters
    ----------
    options : dict
        Arguments of `distill`.
    teacher_cache : Path or None
        Folder of the teacher cache. None means OUT/teacher_cache.
    """

    options: dict[str, Any]
    teacher_cache: Path | None

    def cache_in(self, out: Path) -> Path | None:
        """Return the folder of the teacher cache, if OUT is `out`. None means no cache."""
        if "teacher_cache_gb" not in self.options:
            return None
        return self.teacher_cache or out / "teacher_cache"


def machine_options(
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    compile: Compile = None,
    teacher_cache: Annotated[
        Path | None,
        on_machine(help="Folder for the outputs of the teacher, which all runs share. Default: OUT/teacher_cache."),
    ] = None,
    teacher_cache_gb: Annotated[
        float, on_machine(help="Maximum size of the teacher cache in gigabytes. 0: no cache.")
    ] = 20,
) -> MachineRequest:
    """Return the options that grids and searches share.

    Returns
    -------
    MachineRequest

    Raises
    ------
    ValueError
        If an option is not valid.
    """
    if not teacher_cache_gb >= 0:
        raise ValueError(f"--teacher-cache-gb must be 0 or more, got {teacher_cache_gb}")
    options: dict[str, Any] = dict(accelerator=accelerator, precision=precision, **drop_none(compile=compile))
    if teacher_cache_gb:
        options["teacher_cache_gb"] = teacher_cache_gb
    return MachineRequest(options, teacher_cache)


MachineOptions = Annotated[MachineRequest, Depends(machine_options)]


@dataclass
class GridRequest:
    """The options of the command line that describe a grid, without the methods to compare.

    Parameters
    ----------
    settings : dict
        Arguments of `experiments.Grid`.
    jobs : int
        Number of runs trained at the same time; see `experiments.run_grid`.
    shard : (int, int)
        (i, n) trains only the i-th of n parts; see `experiments.run_grid`.
    cluster : dict
        scheduler and slurm, the other arguments of `experiments.run_grid`.
    dry_run : bool
        Whether to list the runs without training them.
    """

    settings: dict[str, Any]
    jobs: int
    shard: tuple[int, int]
    cluster: dict[str, str | None]
    dry_run: bool


def grid_options(
    out: Annotated[
        Path,
        in_grid(
            help="Folder for all runs, OUT/TEACHER-STUDENT/ARM/seedN, and for the table of results, OUT/results.csv. "
            "An arm is a method with its settings."
        ),
    ],
    data: DataOptions,
    recipe: RecipeOptions,
    machine: MachineOptions,
    teacher: Annotated[
        list[Path] | None,
        in_networks(help="Run folder of a teacher. Repeat the option for several. Not needed for supervised training."),
    ] = None,
    student: Annotated[
        list[str] | None, in_networks(help="Network to train. Repeat the option for several students.")
    ] = None,
    pairs: Annotated[
        str | None,
        in_networks(
            help="Networks of teacher and student, comma-separated, such as resnet56:resnet20,vgg13:vgg8. The word "
            "paper stands for the 13 usual pairs on CIFAR-100. Needs --teachers. Replaces --teacher and --student."
        ),
    ] = None,
    teachers: Annotated[
        Path | None,
        in_networks(
            help="Folder with the trained teachers of --pairs. All finished supervised runs of their networks are used."
        ),
    ] = None,
    seeds: Annotated[str, in_grid(help="Seeds, such as 0,1,2 or 0-4.")] = "0-2",
    val: Val = 0,
    jobs: Annotated[int, in_grid(help="Number of runs to train at the same time. They share cores and GPUs.")] = 1,
    shard: Annotated[
        str,
        in_grid(
            help="Train only one part of the runs: 2/8 means part 2 of 8. All parts have about the same work. Useful "
            "for job arrays on a cluster."
        ),
    ] = "1/1",
    scheduler: Annotated[
        str | None,
        in_grid(help="Address of a Dask scheduler, such as tcp://node1:8786. Its workers train the runs."),
    ] = None,
    slurm: Annotated[
        str | None,
        in_grid(
            help="Submit SLURM jobs that train the runs. --jobs is their number. Their options are NAME=VALUE, "
            "comma-separated. The names cores and memory are required. Others are partition, walltime, gpus, and any "
            "long option of sbatch."
        ),
    ] = None,
    dry_run: Annotated[bool, in_grid("--dry-run", help="Only list the runs, and estimate how long they take.")] = False,
) -> GridRequest:
    """Return the options that the commands compare, ablate and sweep share.

    Returns
    -------
    GridRequest

    Raises
    ------
    ValueError
        If an option is not valid or excludes another one, or if there is no network of this name.
    FileNotFoundError
        If the folder of the teachers has no run of a teacher.
    """
    if not (match := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)):
        raise ValueError(f"--shard must be i/n, such as 2/8, got {shard}")
    from ..validation import Count, check

    check(Count, jobs=jobs)
    part = int(match[1]), int(match[2])
    launcher.check_cluster(scheduler, slurm, jobs, part)
    name, dataset_options = data
    settings = dict(
        data=name,
        pairs=read_pairs(teacher or [], student or [], pairs, teachers),
        seeds=parse_seeds(seeds),
        out=out,
        recipe=recipe,
        data_options={**dataset_options, **({"val": val} if val else {})},
        options=machine.options,
        teacher_cache=machine.cache_in(out),
    )
    return GridRequest(settings, jobs, part, dict(scheduler=scheduler, slurm=slurm), dry_run)


GridOptions = Annotated[GridRequest, Depends(grid_options)]


def read_pairs(
    teacher: Sequence[Path], student: Sequence[str], pairs: str | None, teachers: Path | None
) -> list[tuple[Path | None, str]]:
    """Return the pairs of a grid.

    Parameters
    ----------
    teacher, student, pairs, teachers
        Values of the options.

    Returns
    -------
    list of (Path or None, str)
        Run folder of the teacher, and name of the student network. Without a teacher the folder is None.

    Raises
    ------
    ValueError
        If options are missing or exclude each other, or if a network is unknown.
    FileNotFoundError
        If there is no run of a teacher.
    """
    if (pairs is None) != (teachers is None) or (pairs is not None and (teacher or student)):
        raise ValueError("--pairs and --teachers are used together, instead of --teacher and --student")
    if pairs is not None and teachers is not None:
        names = catalogue.read_pairs(pairs)
        from ..experiments import find_pairs

        return list(find_pairs(teachers, names))
    if not student:
        raise ValueError("no network to train: use --student, or --pairs with --teachers")
    check_names(networks=student)
    folders: Sequence[Path | None] = teacher or [None]
    return list(itertools.product(folders, student))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that the option --seeds lists.

    Parameters
    ----------
    text : str
        Numbers and ranges, comma-separated. Every seed is less than 2³¹.

    Returns
    -------
    list of int
        At most 10,000 seeds.

    Raises
    ------
    ValueError
        If `text` does not have this form, or if a range is empty or too large.
    TypeError
        If `text` is not a string.

    Examples
    --------
    >>> from pckd_nb.cli.options import parse_seeds
    >>> parse_seeds("0,1,5-7")
    [0, 1, 5, 6, 7]
    """
    if not isinstance(text, str):
        raise TypeError(f"--seeds must be text, got {type(text).__name__}")
    seeds: list[int] = []
    for part in text.split(","):
        if not (match := re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part.strip())):
            raise ValueError(f"--seeds must be numbers and ranges, such as 0,1,2 or 0-4, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"--seeds {text!r} has an empty range, {first}-{last}")
        if last >= 2**31 or len(seeds) + last - first >= MAX_SEEDS:
            raise ValueError(f"--seeds must list at most {MAX_SEEDS:,} seeds, each below {2**31}, got {text!r}")
        seeds += range(first, last + 1)
    return seeds


def drop_none(**options: Any) -> dict[str, Any]:
    """Return the options whose value is not None: those that are given on the command line.

    Parameters
    ----------
    **options
        Option = value.

    Returns
    -------
    dict
    """
    return {name: value for name, value in options.items() if value is not None}


def check_names(networks: Sequence[str | None] = (), arms: Sequence[str] = (), data: str | None = None) -> None:
    """Check names before anything slow is imported.

    Parameters
    ----------
    networks : sequence of str or None
        Names of networks. None is skipped.
    arms : sequence of str
        Methods with settings.
    data : str, optional
        Name of a data set.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    for arm in arms:
        catalogue.check_arm(arm)
    for network in networks:
        if network is not None:
            catalogue.check_network(network)
    if data is not None:
        catalogue.check_dataset(data)

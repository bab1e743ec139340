"""Options that several commands share, in the groups of the help.

A function whose name ends in `_options` defines a group of options. The type below it adds these options to a command:
a parameter `data: DataOptions` receives what `data_options` returns.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer_injector import Depends

from .. import catalogue

MAX_SEEDS = 10_000
LOGGERS = ("tensorboard", "csv", "trackio", "wandb")

METHOD_HELP = (
    f"One of {', '.join(catalogue.METHODS)}; or of {', '.join(catalogue.BASELINES)}, "
    f"with settings as in AT-weight=500. pckd-strategy=NAME weighs samples by {', '.join(catalogue.STRATEGIES)}."
)

NORMALISATION_HELP = (
    f"Pixel constants that a checkpoint was trained with: {', '.join(catalogue.NORMALISATIONS)}, or MEAN/STD such as "
    "0.5,0.5,0.5/0.25,0.25,0.25. Default: what its file says, else those of the data set."
)

# Options of each group in the help.
in_networks = partial(typer.Option, rich_help_panel="Networks")
in_data = partial(typer.Option, rich_help_panel="Data")
in_method = partial(typer.Option, rich_help_panel="Method")
in_training = partial(typer.Option, rich_help_panel="Training")
in_grid = partial(typer.Option, rich_help_panel="Grid")
on_machine = partial(typer.Option, rich_help_panel="Machine")

Data = Annotated[str, in_data(help="Data set: a name that `pckd-nb datasets` lists, or folder:PATH.")]
Root = Annotated[Path | None, in_data(help="Where data sets are kept. Default: $PCKD_DATA, else data/downloads.")]
TestSize = Annotated[int | None, in_data(help="Use that many test images.")]
ImageSize = Annotated[int | None, in_data(help="Side of the images in pixels, for photographs.")]
Workers = Annotated[int | None, in_data(help="Processes that read images, if these do not fit into memory.")]
Val = Annotated[float, in_data(help="Share of the training images held out as a validation split.")]
Init = Annotated[str | None, in_networks(help="Start from other weights: a run folder, a checkpoint file or URL.")]
Overwrite = Annotated[bool, in_training("--overwrite", help="Replace the run in --out.")]
Accelerator = Annotated[str, on_machine(help="auto, cpu, cuda or mps.")]
Compile = Annotated[
    bool | None,
    on_machine(
        "--compile/--no-compile",
        help="torch.compile. Default: for our larger networks, in long runs on a CPU.",
    ),
]
Devices = Annotated[
    int | None,
    on_machine(help="Processes of this training per machine, each with its GPU. Default: 1, or as torchrun started."),
]
Precision = Annotated[str, on_machine(help="auto, 32-true, bf16-mixed, or on a CUDA device 16-mixed.")]
Reference = Annotated[str, in_method(help="The arm that the others are compared with, seed by seed.")]


def recipe_options(
    recipe: Annotated[str, in_training(help=f"Optimiser settings: {', '.join(catalogue.RECIPES)}.")] = "classroom",
    epochs: Annotated[int | None, in_training(help="Number of epochs, instead of the recipe's.")] = None,
    batch_size: Annotated[int | None, in_training(help="Images per step, instead of the recipe's.")] = None,
    lr: Annotated[float | None, in_training(help="Learning rate, instead of the recipe's.")] = None,
    flip: Annotated[
        bool | None, in_training("--flip/--no-flip", help="Mirror training images at random, or not.")
    ] = None,
    augment: Annotated[
        str | None, in_training(help="A transform of torchvision.transforms.v2, such as RandAugment; or file.py:NAME.")
    ] = None,
    mix: Annotated[str | None, in_training(help="mixup or cutmix; or file.py:NAME.")] = None,
    label_smoothing: Annotated[float | None, in_training(help="Share of a target spread over all classes.")] = None,
    optimizer: Annotated[str | None, in_training(help="sgd or adamw; or file.py:NAME.")] = None,
    weight_decay: Annotated[float | None, in_training(help="Weight decay, instead of the recipe's.")] = None,
    schedule: Annotated[
        str | None, in_training(help="Of the learning rate: step, cosine or constant; or file.py:NAME.")
    ] = None,
    warmup_epochs: Annotated[float | None, in_training(help="Epochs in which the learning rate rises.")] = None,
    clip_norm: Annotated[float | None, in_training(help="Largest norm of all gradients together.")] = None,
    ema: Annotated[float | None, in_training(help="Decay of averaged weights, such as 0.999.")] = None,
) -> Any:
    """Return the recipe that the options describe.

    Parameters
    ----------
    recipe : str
        Name of a recipe.
    epochs, batch_size, lr, flip, augment, mix, label_smoothing : optional
    optimizer, weight_decay, schedule, warmup_epochs, clip_norm, ema : optional
        Fields of the recipe. None keeps the value of the recipe.

    Returns
    -------
    Recipe

    Raises
    ------
    ValueError
        If there is no recipe of this name, or if a value is not valid.
    """
    from ..recipes import get_recipe

    plugs = given(augment=augment, mix=mix, optimizer=optimizer, schedule=schedule)
    numbers = given(epochs=epochs, batch_size=batch_size, lr=lr, flip=flip, label_smoothing=label_smoothing,
                    weight_decay=weight_decay, warmup_epochs=warmup_epochs, clip_norm=clip_norm, ema=ema)  # fmt: skip
    return get_recipe(recipe, **numbers, **plugs)


RecipeOptions = Annotated[Any, Depends(recipe_options)]  # a Recipe; its module is slow to import


def data_options(
    data: Data,
    train_size: Annotated[
        int | None, in_data(help="Use that many training images (shapes100: draw that many).")
    ] = None,
    test_size: TestSize = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    root: Root = None,
) -> tuple[str, dict[str, Any]]:
    """Return the arguments of `load_dataset`. No images are read yet, so that other options are checked first.

    Parameters
    ----------
    data : str
        Name of the data set.
    train_size, test_size : int, optional
        Number of training and test images.
    image_size : int, optional
        Side of the images in pixels.
    workers : int, optional
        Processes that read images.
    root : Path, optional
        Where data sets are kept.

    Returns
    -------
    name : str
    options : dict
        The options that were given.

    Raises
    ------
    ValueError
        If there is no data set of this name.
    """
    catalogue.check_dataset(data)
    sizes = dict(train_size=train_size, test_size=test_size, image_size=image_size, workers=workers)
    return data, given(**sizes, root=root)


DataOptions = Annotated[tuple[str, dict[str, Any]], Depends(data_options)]


def training_options(
    out: Annotated[Path, in_training(help="The run folder to make.")],
    seed: Annotated[
        int, in_training(min=0, max=2**31 - 1, help="Decides the first weights, and order and crops of the images.")
    ] = 0,
    val: Val = 0,
    early_stopping: Annotated[
        int | None, in_training(help="End after so many epochs without a better validation accuracy.")
    ] = None,
    logger: Annotated[
        str | None,
        in_training(help="tensorboard or csv: also log every epoch, in logs beside --out. Or trackio or wandb."),
    ] = None,
    resume: Annotated[
        bool, in_training("--resume", help="Go on with the run in --out; start it where there is none.")
    ] = False,
    overwrite: Overwrite = False,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    compile: Compile = None,
    devices: Devices = None,
    nodes: Annotated[int, on_machine(help="Machines that take part, with --devices.")] = 1,
    strategy: Annotated[str, on_machine(help="How processes work together: ddp, or auto, the same.")] = "auto",
) -> dict[str, Any]:
    """Return the options of `distill` that the command line gives.

    Returns
    -------
    dict
        Option → value. early_stopping and logger are the words of the command line, see `with_callbacks`.

    Raises
    ------
    ValueError
        If strategy or logger has an unknown value, or if early_stopping is given without a validation split.
    """
    if strategy not in ("auto", "ddp"):
        other = "; weights of samples go with the method, as in --method pckd-strategy=uniform"
        raise ValueError(f"--strategy must be auto or ddp, got {strategy}{other * (strategy in catalogue.STRATEGIES)}")
    if logger not in (None, *LOGGERS):
        raise ValueError(f"--logger must be one of {', '.join(LOGGERS)}, got {logger}")
    if early_stopping is not None and not val:
        raise ValueError("--early-stopping needs a validation split: add --val 0.1")
    options = dict(seed=seed, out=out, resume=resume, overwrite=overwrite, accelerator=accelerator, precision=precision)
    options |= dict(val=val, **given(early_stopping=early_stopping, logger=logger))
    return {**options, **given(compile=compile, devices=devices), "nodes": nodes}


TrainingOptions = Annotated[dict[str, Any], Depends(training_options)]


@dataclass
class GridRequest:
    """The options of the command line that describe a grid. The arms are not among them.

    Parameters
    ----------
    settings : dict
        Arguments of `experiments.Grid`.
    jobs : int
        Points trained at the same time, see `experiments.run_grid`.
    shard : (int, int)
        (i, n) trains the i-th of n parts, see `experiments.run_grid`.
    dry_run : bool
        Whether to list the points without training them.
    """

    settings: dict[str, Any]
    jobs: int
    shard: tuple[int, int]
    dry_run: bool


def grid_options(
    teacher: Annotated[list[Path], in_networks(help="Run folder of a teacher; several make several pairs.")],
    student: Annotated[list[str], in_networks(help="Network to train; several make several pairs.")],
    out: Annotated[Path, in_grid(help="Folder of the grid: OUT/TEACHER-STUDENT/ARM/seedN and OUT/results.csv.")],
    data: DataOptions,
    recipe: RecipeOptions,
    seeds: Annotated[str, in_grid(help="Such as 0,1,2 or 0-4.")] = "0-2",
    val: Val = 0,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    compile: Compile = None,
    teacher_cache: Annotated[
        Path | None, on_machine(help="Folder that keeps the teacher's features. Default: OUT/teacher_cache.")
    ] = None,
    teacher_cache_gb: Annotated[float, on_machine(help="Its size at most, in gigabytes; 0: no cache.")] = 20,
    jobs: Annotated[int, in_grid(help="Points trained at a time, each with its share of the cores.")] = 1,
    shard: Annotated[
        str, in_grid(help="i/n: train the i-th of n parts with about the same work, for job arrays.")
    ] = "1/1",
    dry_run: Annotated[bool, in_grid("--dry-run", help="Only list the points and the projected time.")] = False,
) -> GridRequest:
    """Return the options that compare, ablate and sweep share.

    Returns
    -------
    GridRequest

    Raises
    ------
    ValueError
        If shard, seeds or teacher_cache_gb is not valid, or if there is no network of the given name.
    """
    if not (match := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)):
        raise ValueError(f"--shard must be i/n, such as 2/8, got {shard}")
    if not teacher_cache_gb >= 0:
        raise ValueError(f"--teacher-cache-gb must be 0 or more, got {teacher_cache_gb}")
    check_names(networks=student)
    options: dict[str, Any] = dict(accelerator=accelerator, precision=precision, **given(compile=compile))
    cache = (teacher_cache or out / "teacher_cache") if teacher_cache_gb else None
    if cache:
        options["teacher_cache_gb"] = teacher_cache_gb
    settings = dict(
        data=data[0],
        pairs=tuple(itertools.product(teacher, student)),
        seeds=parse_seeds(seeds),
        out=out,
        recipe=recipe,
        data_options={**data[1], **({"val": val} if val else {})},
        options=options,
        teacher_cache=cache,
    )
    return GridRequest(settings, jobs, (int(match[1]), int(match[2])), dry_run)


GridOptions = Annotated[GridRequest, Depends(grid_options)]


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that a text lists.

    Parameters
    ----------
    text : str
        Numbers and ranges, comma-separated, such as "0,1,5-7". A seed is less than 2³¹.

    Returns
    -------
    list of int
        Such as [0, 1, 5, 6, 7]. At most 10,000 seeds.

    Raises
    ------
    ValueError
        If `text` does not have this form, or if a range is empty or too large.
    TypeError
        If `text` is not a string.
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
            raise ValueError(f"--seeds can be at most {MAX_SEEDS:,}, each below {2**31}, got {text!r}")
        seeds += range(first, last + 1)
    return seeds


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given on the command line.

    Parameters
    ----------
    **options
        None means not given.

    Returns
    -------
    dict
        The options that are not None.
    """
    return {name: value for name, value in options.items() if value is not None}


def check_names(networks: Sequence[str | None] = (), arms: Sequence[str] = (), data: str | None = None) -> None:
    """Check that names are known, before anything slow is imported.

    Parameters
    ----------
    networks : sequence of str or None
        None stands for an option that was not given.
    arms : sequence of str
    data : str, optional
        Name of a data set.

    Raises
    ------
    ValueError
        If a name is not known.
    """
    for arm in arms:
        catalogue.check_arm(arm)
    for network in networks:
        if network is not None:
            catalogue.check_network(network)
    if data is not None:
        catalogue.check_dataset(data)

"""The command line, `pckd-nb` or `python -m pckd_nb`. Every problem is one line on stderr and a non-zero exit.

What needs torch is imported inside the commands: help, lists and typing errors take a moment only.
"""

import inspect
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import catalogue, launcher
from .console import TOGETHER, Command, Group, print_table, print_text
from .recipes import RECIPES, Recipe, get_recipe

if TYPE_CHECKING:
    import pandas as pd

    from .datasets import Dataset
    from .experiments import Arm, Grid
    from .models import Classifier
    from .runs import Run

app = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

METHOD_HELP = (
    f"One of {', '.join(catalogue.METHODS)}; or of {', '.join(catalogue.BASELINES)}, "
    f"with settings as in AT-weight=500. pckd-strategy=NAME weighs samples by {', '.join(catalogue.STRATEGIES)}."
)
TOLERANCE = 0.05  # of --expect, in percentage points
MOST_SEEDS = 10_000

# Options by their group in the help.
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


# A command's parameter whose default is one of these functions stands for the options that the function takes, and gets
# what it returns: `with_shared` does that.


def recipe_of(
    recipe: Annotated[str, in_training(help=f"Optimiser settings: {', '.join(RECIPES)}.")] = "classroom",
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
) -> Recipe:
    plugs = given(augment=augment, mix=mix, optimizer=optimizer, schedule=schedule)
    numbers = given(epochs=epochs, batch_size=batch_size, lr=lr, flip=flip, label_smoothing=label_smoothing,
                    weight_decay=weight_decay, warmup_epochs=warmup_epochs, clip_norm=clip_norm, ema=ema)  # fmt: skip
    return get_recipe(recipe, **numbers, **plugs)


def data_of(
    data: Data,
    train_size: Annotated[
        int | None, in_data(help="Use that many training images (shapes100: draw that many).")
    ] = None,
    test_size: TestSize = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    root: Root = None,
) -> tuple[str, dict[str, Any]]:
    """What `load_dataset` is to be called with: reading images comes after everything that is checked at once."""
    catalogue.check_dataset(data)
    sizes = dict(train_size=train_size, test_size=test_size, image_size=image_size, workers=workers)
    return data, given(**sizes, root=root)


def training_of(
    out: Annotated[Path, in_training(help="The run folder to make.")],
    seed: Annotated[int, in_training(help="Decides the first weights, and order and crops of the images.")] = 0,
    val: Annotated[float, in_data(help="Share of the training images held out as a validation split.")] = 0,
    early_stopping: Annotated[
        int | None, in_training(help="End after so many epochs without a better validation accuracy.")
    ] = None,
    logger: Annotated[
        str | None, in_training(help="tensorboard or csv: also log every epoch, in logs beside --out.")
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
    """Options of `distill`."""
    if strategy not in ("auto", "ddp"):
        other = "; weights of samples go with the method, as in --method pckd-strategy=uniform"
        raise ValueError(f"--strategy must be auto or ddp, got {strategy}{other * (strategy in catalogue.STRATEGIES)}")
    if logger not in (None, "tensorboard", "csv"):
        raise ValueError(f"--logger must be tensorboard or csv, got {logger}")
    if early_stopping is not None and not val:
        raise ValueError("--early-stopping needs a validation split: add --val 0.1")
    options = dict(seed=seed, out=out, resume=resume, overwrite=overwrite, accelerator=accelerator, precision=precision)
    options |= dict(val=val, **given(early_stopping=early_stopping, logger=logger))
    return {**options, **given(compile=compile, devices=devices), "nodes": nodes}


def command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of the app. Its name is the function's, unless another one is given."""
    return lambda function: app.command(name, cls=Command)(with_shared(function))


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the options of shared functions in place of the parameters that stand for them."""

    def flat(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
        for parameter in inspect.signature(function).parameters.values():
            if inspect.isfunction(parameter.default):
                yield from flat(parameter.default)
            else:
                yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    def call(function: Callable[..., Any], options: dict[str, Any]) -> Any:
        parameters = inspect.signature(function).parameters.values()
        return function(
            **{
                about.name: call(about.default, options) if inspect.isfunction(about.default) else options[about.name]
                for about in parameters
            }
        )

    def wrapped(**options: Any) -> None:
        call(command, options)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspect.Signature(list(flat(command)))  # type: ignore[attr-defined]  # `inspect` reads it
    wrapped.__annotations__ = {about.name: about.annotation for about in flat(command)}
    return wrapped


def show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"pckd-nb {version('pckd_nb')}")
        raise typer.Exit


@app.callback()
def general(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a teacher, distil it into a student by PCKD, KD or not at all, and compare.

    Start with: pckd-nb demo. COMMAND --help explains a command and its options. Add --debug to any command for the
    traceback of an error.
    """


@command()
def demo(
    out: Annotated[Path, in_training(help="Folder for the four runs and the report.")] = Path("runs/demo"),
    size: Annotated[
        str | None,
        in_training(help="small, medium or full. Default: the largest that ends in five minutes on this machine."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """The whole story in five minutes, nothing to download: a teacher, one student trained three ways, a report."""
    from .demo import run_demo

    print(run_demo(out, overwrite=overwrite, size=size))


@command()
def doctor() -> None:
    """What this machine is, what training would choose on it and why, and how long the demo would take."""
    from .doctor import report as examine

    for line in examine():
        print(line, flush=True)


@command("datasets")
def list_datasets() -> None:
    """List the data sets."""
    print_table(catalogue.DATASETS.items(), fit=True)


@command("models")
def list_models() -> None:
    """List the networks, and the teacher-student pairs they are compared in."""
    rows = [("name", "parameters", "MFLOPs", "features", "pairs (teacher > student)")]
    for name, network in catalogue.NETWORKS.items():
        pairs = [f">{TOGETHER}{student}" for teacher, student in catalogue.PAIRS if teacher == name]
        pairs += [f"{teacher}{TOGETHER}>" for teacher, student in catalogue.PAIRS if student == name]
        counts = f"{network.parameters:,}", f"{network.flops / 1e6:,.0f}", str(network.feature_width)
        rows.append((name, *counts, ", ".join(pairs)))
    print_table(rows, right=(1, 2, 3), fit=True)
    print()
    print_text(
        "For 100 classes and images of 3×32×32. MFLOPs: millions of operations of one image's forward pass, a "
        "multiplication and an addition counting as two. Features: how many penultimate features an image has. Also "
        "torchvision:NAME and timm:NAME, any network of these libraries that ends in a linear layer."
    )


@command()
def train(
    model: Annotated[str, in_networks(help="Network: a name that `pckd-nb models` lists.")],
    data: Any = data_of,
    options: Any = training_of,
    recipe: Any = recipe_of,
    init: Init = None,
) -> None:
    """Train a network on labels alone: a teacher."""
    catalogue.check_network(model)
    from . import training
    from .datasets import load_dataset

    prepare(options, init)
    name, sizes = data
    loaded = load_dataset(name, **sizes)
    network = make_network(model, loaded, options["seed"], init)
    report(training.fit(network, loaded, recipe, **with_callbacks(options)), options)


@command()
def distill(
    student: Annotated[str, in_networks(help="Network to train: a name that `pckd-nb models` lists.")],
    teacher: Annotated[str | None, in_networks(help="The teacher: a run folder; or a checkpoint file or URL.")] = None,
    teacher_model: Annotated[
        str | None, in_networks(help="The teacher's network, if --teacher is a checkpoint.")
    ] = None,
    method: Annotated[str, in_method(help=METHOD_HELP)] = "pckd",
    data: Any = data_of,
    options: Any = training_of,
    recipe: Any = recipe_of,
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
    from . import training
    from .datasets import load_dataset

    arm = parse_arm(method)
    for name, value in settings.items():
        arm = arm.plus(name, value)
    trained_by, recipe = arm.build(recipe)
    if trained_by.uses_teacher and teacher is None:
        raise ValueError(f"method {method} needs --teacher, the run folder of a trained network")
    prepare(options, init, teacher)
    teacher_run = load_run_unless(teacher_model, teacher, "--teacher-model") if teacher else None
    name, sizes = data
    loaded = load_dataset(name, **sizes)
    knows = teacher_run or (
        make_network(teacher_model, loaded, options["seed"], teacher) if teacher and teacher_model else None
    )
    network = make_network(student, loaded, options["seed"], init)
    if not teacher_cache_gb > 0:
        raise ValueError(f"--teacher-cache-gb must be more than 0, got {teacher_cache_gb}")
    options.update(given(teacher_cache=teacher_cache), teacher_cache_gb=teacher_cache_gb)
    report(training.distill(network, knows, loaded, trained_by, recipe, **with_callbacks(options)), options)


@command()
def evaluate(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run folder; or, with --model, a checkpoint file or URL.")
    ],
    data: Annotated[str | None, in_data(help="Another data set than the run's own.")] = None,
    model: Annotated[str | None, in_networks(help="The network, if SOURCE is a checkpoint.")] = None,
    expect: Annotated[float | None, typer.Option(help=f"Fail unless top-1 is this, ± {TOLERANCE} points.")] = None,
    split: Annotated[str, in_data(help="test or train.")] = "test",
    test_size: TestSize = None,
    image_size: ImageSize = None,
    workers: Workers = None,
    root: Root = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Measure the accuracy of a trained network; --expect holds a published one to its word."""
    if expect is not None and not 0 <= expect <= 100:
        raise ValueError(f"--expect must be a percentage, 0 to 100, got {expect}")
    if split not in ("test", "train"):
        raise ValueError(f"--split must be test or train, got {split}")
    check_names(networks=[model], data=data)
    from .datasets import load_dataset, rebuild
    from .evaluation import evaluate as evaluate_model

    run = load_run_unless(model, source, "--model")
    if data is None and run is None:
        raise ValueError("a checkpoint needs --data, the data set to measure it on")
    about = run.settings["data"] if run else {}
    options = given(test_size=test_size, image_size=image_size, workers=workers)
    if run and data in (None, about["name"]):
        loaded = rebuild(about, root, **options)
    else:
        loaded = load_dataset(cast(str, data), root, **options)
    network = run.model() if run else make_network(cast(str, model), loaded, 0, source)
    if network.num_classes != loaded.num_classes:
        raise ValueError(f"'{source}' knows {network.num_classes} classes, {loaded.name} has {loaded.num_classes}")
    if run and data is None and loaded.fingerprint != about["fingerprint"]:
        print(f"note: {loaded.name} is not the same data that '{source}' was trained with", file=sys.stderr)
    if expect is not None and precision == "auto":
        precision = "32-true"  # in which published accuracies were measured
    scores = evaluate_model(network, loaded, split, accelerator=accelerator, precision=precision)
    title = run.title if run else f"{model} from {source}"
    print(f"{title} on {len(getattr(loaded, split)):,} {split} images of {loaded.name}:")
    print(f"top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, cross-entropy {scores.cross_entropy:.4f}")
    print(f"pixels normalised by the constants of {loaded.normalisation}")
    if expect is not None and not abs(scores.top1 - expect) <= TOLERANCE + 1e-9:
        message = f"top-1 is {scores.top1:.2f} %, not the expected {expect:.2f} ± {TOLERANCE}"
        raise typer.Exit(complain(message, 1))


@command()
def transfer(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders to compare.")],
    data: Any = data_of,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Freeze trained networks and train a linear probe on their features of another data set."""
    from .datasets import load_dataset
    from .runs import load_run
    from .transfer import transfer_table

    chosen = [load_run(folder) for folder in run_folders]
    for run in chosen:
        run.model()  # whose weights can't be used is to be known before the images are read
    name, sizes = data
    loaded = load_dataset(name, **sizes)
    table = transfer_table(chosen, loaded, accelerator=accelerator, precision=precision)
    print(f"linear probe on {len(loaded.train):,} training and {len(loaded.test):,} test images of {loaded.name}:")
    print_table([tuple(table.columns), *(tuple(map(cell_text, row)) for row in table.itertuples(index=False))])


def grid_of(
    teacher: Annotated[list[Path], in_networks(help="Run folder of a teacher; several make several pairs.")],
    student: Annotated[list[str], in_networks(help="Network to train; several make several pairs.")],
    out: Annotated[Path, in_grid(help="Folder of the grid: OUT/TEACHER-STUDENT/ARM/seedN and OUT/results.csv.")],
    data: Any = data_of,
    seeds: Annotated[str, in_grid(help="Such as 0,1,2 or 0-4.")] = "0-2",
    recipe: Any = recipe_of,
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
) -> "tuple[Callable[..., Grid], dict[str, Any]]":
    """What compare, ablate and sweep share: what builds a grid of its arms, and how to run it."""
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
        data_options=data[1],
        options=options,
        teacher_cache=cache,
    )
    return partial(make_grid, settings), dict(jobs=jobs, shard=(int(match[1]), int(match[2])), dry_run=dry_run)


@command()
def compare(
    grid: Any = grid_of,
    methods: Annotated[
        str, in_method(help="Arms, comma-separated: METHOD or METHOD-SETTING=VALUE, such as pckd-strategy=uniform.")
    ] = "supervised,kd,pckd",
    reference: Reference = "kd",
) -> None:
    """Train and compare arms over seeds and pairs of networks. Finished points are kept, cut ones resumed."""
    check_names(arms=[*methods.split(","), reference])
    run_grid(grid, [parse_arm(text) for text in methods.split(",")], reference)


@command()
def ablate(
    grid: Any = grid_of,
    reference: Reference = "pckd",
) -> None:
    """PCKD without each of its terms, with every other strategy, with one view; KD and a lone student beside it."""
    check_names(arms=[reference])
    from .experiments import ablation_arms

    run_grid(grid, ablation_arms(), reference)


@command()
def sweep(
    factor: Annotated[
        list[str],
        in_method(
            help="A setting as NAME=VALUE,VALUE; beta_cc, beta_fa, beta_ca and epsilon_240 need no values. "
            "Several are swept one after the other."
        ),
    ],
    grid: Any = grid_of,
    method: Annotated[str, in_method(help="The arm whose setting is swept.")] = "pckd",
    reference: Annotated[
        str | None, in_method(help="The arm that the others are compared with, seed by seed. Default: --method.")
    ] = None,
) -> None:
    """One factor after the other: an arm with each of its values, the default point shared by all."""
    check_names(arms=[method, *given(reference=reference).values()])
    factors = []
    for text in factor:
        name, _, values = text.partition("=")
        listed = [catalogue.parse_value(value) for value in values.split(",")] if values else []
        factors.append((name, listed))
        for value in listed if name == "strategy" else []:
            catalogue.check_strategy(str(value))
    from .experiments import sweep_arms

    base = parse_arm(method)
    arms = [base]
    for name, listed in factors:
        arms += sweep_arms(name, listed, base)
    run_grid(grid, arms, method if reference is None else reference)


@command()
def figures(
    runs_folder: Annotated[Path, typer.Option("--runs", help="Folder of runs to draw.")] = Path("data/runs"),
    out: Annotated[Path, typer.Option(help="Folder for the figures and their captions.")] = Path("figures"),
    only: Annotated[str | None, typer.Option(help="Comma-separated names, or beginnings such as 05.")] = None,
) -> None:
    """Draw every figure that the runs are enough for, from their folders alone."""
    chosen = None if only is None else only.split(",")
    if chosen is not None and not all(chosen):
        raise ValueError(f"--only must be names of figures or their beginnings, comma-separated, got {only!r}")
    from .experiments import check_writable
    from .figures.collection import draw_all

    check_writable(out)
    for path in draw_all(runs_folder, out, chosen):
        print(path)


def check_names(networks: Sequence[str | None] = (), arms: Sequence[str] = (), data: str | None = None) -> None:
    """Raises ValueError for a name that is not known, before anything slow is imported. None: was not given."""
    for arm in arms:
        catalogue.check_arm(arm)
    for network in networks:
        if network is not None:
            catalogue.check_network(network)
    if data is not None:
        catalogue.check_dataset(data)


def parse_arm(text: str) -> "Arm":
    """`experiments.parse_arm`, imported when it is needed."""
    from . import experiments

    return experiments.parse_arm(text)


def make_grid(settings: dict[str, Any], arms: "list[Arm]") -> "Grid":
    """The grid of these arms with the `settings` that `grid_of` has read."""
    from .experiments import Grid

    return Grid(**settings, arms=arms)


def run_grid(grid: "tuple[Callable[..., Grid], dict[str, Any]]", arms: "list[Arm]", reference: str) -> None:
    """Train a grid of `arms` as the options of `grid_of` say, and print its comparison."""
    from . import experiments

    build, how = grid
    built = build(arms=arms)
    asked = experiments.parse_arm(reference)
    asked.build(built.recipe)
    beside = asked.without_defaults(built.recipe, built.loaded)
    if beside not in built.arms:
        arms_there = ", ".join(map(str, built.arms))
        print(f"note: --reference {reference} is not of this grid, no differences are shown; it has {arms_there}",
              file=sys.stderr)  # fmt: skip
    dry_run = how.pop("dry_run")
    if dry_run:
        points = experiments.my_points(built, how["shard"], how["jobs"])
        left = [point for point in points if not experiments.is_finished(point)]
        print("\n".join(f"{'to train' if point in left else 'finished'}  {point}" for point in points))
        needed = experiments.duration(experiments.projected_seconds(built, left, how["jobs"]))
        print(f"{len(points)} points, {len(left)} to train, projected: {needed}")
        return
    progress = how["jobs"] == 1
    failed = None
    try:
        table = experiments.run_grid(built, **how, progress=progress, say=partial(print, flush=True))
    except FloatingPointError as error:
        failed, table = error, experiments.results(built)
    if len(table):
        print_comparison(experiments.comparison(table, str(beside)), reference)
    if failed:
        raise failed


def print_comparison(compared: "pd.DataFrame", reference: str) -> None:
    """Print a row an arm of `experiments.comparison`."""
    print(f"\ntop-1 accuracy in percent; 95 % intervals; difference to {reference}, paired by seed:")
    print_table([tuple(compared.columns), *(tuple(map(cell_text, row)) for row in compared.itertuples(index=False))])


def parse_seeds(text: str) -> list[int]:
    """ "0,1,5-7" → [0, 1, 5, 6, 7]. Raises ValueError for anything else, TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"--seeds must be text, got {type(text).__name__}")
    seeds: list[int] = []
    for part in text.split(","):
        if not (match := re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part.strip())):
            raise ValueError(f"--seeds must be numbers and ranges, such as 0,1,2 or 0-4, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"--seeds {text!r} has an empty range, {first}-{last}")
        if last >= 2**31 or len(seeds) + last - first >= MOST_SEEDS:
            raise ValueError(f"--seeds can be at most {MOST_SEEDS:,}, each below {2**31}, got {text!r}")
        seeds += range(first, last + 1)
    return seeds


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def load_run_unless(model: str | None, source: str, option: str) -> "Run | None":
    """The run in the folder `source`; None where `model` says whose weights it holds, a checkpoint's."""
    if model is not None:
        return None
    if "://" in source or Path(source).is_file():
        raise ValueError(f"'{source}' is no run folder: say whose weights these are by {option} NAME")
    from .runs import load_run

    return load_run(source)


def make_network(name: str, data: "Dataset", seed: int, init: str | None) -> "Classifier":
    """A network for `data`, with fresh weights or those of the run or checkpoint `init`."""
    from .checkpoints import load_checkpoint
    from .models import create_model

    network = create_model(name, data, seed=seed)
    return network if init is None else load_checkpoint(network, init)


def prepare(options: dict[str, Any], *used: str | None) -> None:
    """Check the run folder before the images are read; of several processes, the first does. used: where weights come
    from, which must not be overwritten."""
    from . import resuming, training

    for source in used:
        if options["overwrite"] and source and training.same_folder(source, options["out"]):
            raise ValueError(f"'{source}' is used by this training, which would overwrite it: choose another --out")
    if speaks(options):
        resuming.prepare(options["out"], resume=options["resume"], overwrite=options["overwrite"])


def with_callbacks(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `distill`, with callbacks and loggers in place of the words of the command line that ask for them."""
    from .training import EarlyStopping

    made = {name: value for name, value in options.items() if name not in ("early_stopping", "logger")}
    if "early_stopping" in options:
        made["callbacks"] = [EarlyStopping("val_top1", options["early_stopping"])]
    if "logger" in options:
        from lightning_fabric import loggers

        kind = loggers.TensorBoardLogger if options["logger"] == "tensorboard" else loggers.CSVLogger
        made["loggers"] = [kind(options["out"].parent / "logs", name=options["out"].name, version="")]
    return made


def speaks(options: dict[str, Any]) -> bool:
    """Whether this process is the first of a training with these options of `distill`."""
    return launcher.is_first(options.get("devices"), options["nodes"])


def report(run: "Run", options: dict[str, Any]) -> None:
    """Say how a training went; leave with 130, as after any Ctrl-C, where it was cut short."""
    if not speaks(options):  # whose exit status counts: for any other than 0 here Fabric would kill it while it saves
        return
    settings = run.settings["method"]["settings"].items()
    if settings:
        shown = (f"{name} {value_text(about['value'])} ({about['from']})" for name, about in settings)
        print("settings: " + ", ".join(shown))
    if not run.finished:
        print(f"interrupted after {len(run.history)} whole epochs; the same command with --resume goes on")
        raise typer.Exit(130)
    top5 = run.history["test_top5"].iloc[-1]
    print(f"{run.title}: top-1 {run.accuracy:.2f} %, top-5 {top5:.2f} % after {len(run.history)} epochs")
    print(f"{run.seconds:.0f} s on {run.settings['hardware']}, saved in {run.path}")


def cell_text(value: Any) -> str:
    """Two decimals, and a dash for what is unknown."""
    return str(value) if not isinstance(value, float) else "-" if value != value else f"{value:.2f}"


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for anything else."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if launcher.is_first():
            print(f"note: {message}", file=sys.stderr)

    warnings.showwarning = note
    try:
        status = app([argument for argument in arguments if argument != "--debug"], standalone_mode=False)
        sys.stdout.flush()  # what its reader does not want should be known here, not at exit
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # the command line itself was wrong
            return complain(f"{error.format_message()} (see --help)", 2)
        if isinstance(error, ValueError | OSError):
            return complain(describe(error), 2)
        if isinstance(error, FloatingPointError):
            return complain(describe(error), 1)
        return complain(f"{type(error).__name__}: {describe(error)} (--debug shows where)", 1)


def describe(error: Exception) -> str:
    """The message in one line; without the errno that OSError puts before it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def one_line(text: str) -> str:
    """Without line breaks, with what a terminal would obey made visible, and its middle left out where it is long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= 600 else f"{text[:400]} … {text[-150:]}"


def complain(message: str, status: int) -> int:
    """One line on stderr. Of several processes only the first says what all find before they have met."""
    distributed = sys.modules.get("torch.distributed")  # processes meet through it
    together = distributed is not None and distributed.is_initialized()
    if launcher.is_first() or together:
        # the first process may have died in the middle of a line, its progress bar
        who = f"\npckd-nb, process {distributed.get_rank()}" if distributed and together else "pckd-nb"
        print(f"{who}: {one_line(message)}", file=sys.stderr)
    return status

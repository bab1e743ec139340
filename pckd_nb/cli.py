"""The command line, `pckd-nb` or `python -m pckd_nb`. Every problem is one line on stderr and a non-zero exit."""

import inspect
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from . import datasets, runs, training
from .evaluation import evaluate as evaluate_model
from .methods import METHODS
from .models import MODELS, Classifier, create_model
from .preview import STRATEGIES
from .recipes import RECIPES, get_recipe
from .runs import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a teacher, distil it into a student by PCKD, KD or not at all, and compare.\n\n"
    "Start with: pckd-nb demo. Add --debug to any command for the traceback of an error.",
)

Data = Annotated[str, typer.Option(help="Data set: a name that `pckd-nb datasets` lists, or folder:PATH.")]
Root = Annotated[Path | None, typer.Option(help="Where data sets are kept. Default: $PCKD_DATA, else data/downloads.")]
TrainSize = Annotated[int | None, typer.Option(help="Use that many training images (shapes100: draw that many).")]
TestSize = Annotated[int | None, typer.Option(help="Likewise for test images.")]
RecipeName = Annotated[str, typer.Option("--recipe", help=f"Optimiser settings: {', '.join(RECIPES)}.")]
Epochs = Annotated[int | None, typer.Option(help="Instead of the recipe's number of epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Instead of the recipe's images per step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Instead of the recipe's learning rate.")]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror training images at random, or not.")]
Seed = Annotated[int, typer.Option(help="Of the networks' first weights, and of order and crops of the images.")]
Out = Annotated[Path, typer.Option(help="The run folder to make.")]
Init = Annotated[Path | None, typer.Option(help="Start from the weights that another run ended with.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; start it where there is none.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="auto, 32-true or bf16-mixed.")]


@app.command()
def train(
    data: Data,
    model: Annotated[str, typer.Option(help="Network: a name that `pckd-nb models` lists.")],
    out: Out,
    recipe: RecipeName = "classroom",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    flip: Flip = None,
    seed: Seed = 0,
    init: Init = None,
    train_size: TrainSize = None,
    test_size: TestSize = None,
    root: Root = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Train a network on labels alone: a teacher."""
    chosen = get_recipe(recipe, **given(epochs=epochs, batch_size=batch_size, lr=lr, flip=flip))
    runs.prepare(out, resume=resume, overwrite=overwrite)
    loaded = datasets.load_dataset(data, root, train_size=train_size, test_size=test_size)
    network = make_network(model, loaded, seed, init)
    options = dict(seed=seed, out=out, resume=resume, overwrite=overwrite)
    report(training.fit(network, loaded, chosen, accelerator=accelerator, precision=precision, **options))


@app.command()
def distill(
    data: Data,
    student: Annotated[str, typer.Option(help="Network to train: a name that `pckd-nb models` lists.")],
    out: Out,
    teacher: Annotated[Path | None, typer.Option(help="Run folder of the teacher; not needed for supervised.")] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "pckd",
    recipe: RecipeName = "classroom",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    flip: Flip = None,
    beta_kd: Annotated[float | None, typer.Option(help="Weight of L_KD, the distillation of logits.")] = None,
    beta_fa: Annotated[float | None, typer.Option(help="Weight of L_FA, feature alignment.")] = None,
    beta_ca: Annotated[float | None, typer.Option(help="Weight of L_CA, category center alignment.")] = None,
    beta_cc: Annotated[float | None, typer.Option(help="Weight of L_CC, category center contrast.")] = None,
    temperature: Annotated[float | None, typer.Option(help="T of L_KD.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Preview threshold: epsilon to the power of the epoch.")] = None,
    views: Annotated[int | None, typer.Option(help="Rotations of every image, 1 to 4.")] = None,
    strategy: Annotated[str | None, typer.Option(help=f"Weights of samples: {', '.join(STRATEGIES)}.")] = None,
    seed: Seed = 0,
    init: Init = None,
    train_size: TrainSize = None,
    test_size: TestSize = None,
    root: Root = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Train a student, by default with PCKD. Weights and views left open come from recipe, data set and paper."""
    settings = given(beta_kd=beta_kd, beta_fa=beta_fa, beta_ca=beta_ca, beta_cc=beta_cc, temperature=temperature,
                     epsilon=epsilon, views=views, strategy=strategy)  # fmt: skip
    trained_by = make_method(method, settings)
    chosen = get_recipe(recipe, **given(epochs=epochs, batch_size=batch_size, lr=lr, flip=flip))
    if trained_by.uses_teacher and teacher is None:
        raise ValueError(f"method {method} needs --teacher, the run folder of a trained network")
    runs.prepare(out, resume=resume, overwrite=overwrite)
    teacher_run = runs.load_run(teacher) if teacher else None
    loaded = datasets.load_dataset(data, root, train_size=train_size, test_size=test_size)
    network = make_network(student, loaded, seed, init)
    options = dict(seed=seed, out=out, resume=resume, overwrite=overwrite)
    report(
        training.distill(
            network, teacher_run, loaded, trained_by, chosen, accelerator=accelerator, precision=precision, **options
        )
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str | None, typer.Option(help="Another data set than the run's own.")] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    root: Root = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Measure the accuracy of a trained network."""
    if split not in ("test", "train"):
        raise ValueError(f"--split must be test or train, got {split}")
    loaded_run = runs.load_run(run)
    about = loaded_run.settings["data"]
    options = about["options"] if data in (None, about["name"]) else {}
    loaded = datasets.load_dataset(data or about["name"], root, **options)
    network = loaded_run.model()
    if network.num_classes != loaded.num_classes:
        raise ValueError(f"'{run}' knows {network.num_classes} classes, {loaded.name} has {loaded.num_classes}")
    if data is None and loaded.fingerprint != about["fingerprint"]:
        print(f"note: {loaded.name} is not the same data that '{run}' was trained with", file=sys.stderr)
    scores = evaluate_model(network, loaded, split, accelerator=accelerator, precision=precision)
    count = len(getattr(loaded, split).labels)
    print(f"{loaded_run.title} on {count:,} {split} images of {loaded.name}:")
    print(f"top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, cross-entropy {scores.cross_entropy:.4f}")


@app.command("datasets")
def list_datasets() -> None:
    """List the data sets."""
    print_table(list(datasets.DATASETS.items()))


@app.command("models")
def list_models() -> None:
    """List the networks, with the number of parameters and the feature width for 100 classes."""
    rows = [("name", "parameters", "feature width")]
    for name in MODELS:
        model = create_model(name, num_classes=100)
        count = sum(parameter.numel() for parameter in model.parameters())
        rows.append((name, f"{count:,}", str(model.feature_width)))
    print_table(rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the four runs and the report.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
) -> None:
    """The whole story in five minutes, nothing to download: a teacher, one student trained three ways, a report."""
    from .demo import run_demo  # pulls in the notebook machinery

    print(run_demo(out, overwrite=overwrite))


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def make_method(name: str, settings: dict[str, Any]) -> Any:
    """A method by name. Raises ValueError for an unknown one, or settings it does not have."""
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'; known: {', '.join(METHODS)}")
    known = inspect.signature(METHODS[name]).parameters
    for setting in settings:
        if setting not in known:
            options = ", ".join(f"--{option.replace('_', '-')}" for option in known) or "none"
            raise ValueError(f"method {name} has no --{setting.replace('_', '-')}; its options: {options}")
    return METHODS[name](**settings)


def make_network(name: str, data: datasets.Dataset, seed: int, init: Path | None) -> Classifier:
    """A network for `data`, with fresh weights or those of the run in `init`."""
    network = create_model(name, data, seed=seed)
    if init:
        runs.load_weights(network, runs.load_run(init).student_state, str(init))
    return network


def report(run: Run) -> None:
    """Say how a training went; leave with 130, as after any Ctrl-C, where it was cut short."""
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


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for anything else."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in arguments
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    try:
        status = app([argument for argument in arguments if argument != "--debug"], standalone_mode=False)
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
        return complain(f"{type(error).__name__}: {describe(error)} (--debug shows where)", 1)


def describe(error: Exception) -> str:
    """The message in one line; without the errno that OSError puts before it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def complain(message: str, status: int) -> int:
    print(f"pckd-nb: {message}", file=sys.stderr)
    return status

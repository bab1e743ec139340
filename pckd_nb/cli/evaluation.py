"""Commands that measure trained networks."""

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from .app import command
from .console import cell_text, complain, print_table
from .options import (
    Accelerator,
    DataOptions,
    ImageSize,
    Precision,
    Root,
    TestSize,
    Workers,
    check_names,
    given,
    in_data,
    in_networks,
)
from .sources import load_run_unless, make_network

TOLERANCE = 0.05  # of --expect, in percentage points


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
    from ..data import load_dataset, rebuild
    from ..evaluation import evaluate as evaluate_model

    run = load_run_unless(model, source, "--model")
    if data is None and run is None:
        raise ValueError("a checkpoint needs --data, the data set to measure it on")
    info = run.settings["data"] if run else {}
    options = given(test_size=test_size, image_size=image_size, workers=workers)
    if run and data in (None, info["name"]):
        loaded = rebuild(info, root, **options)
    else:
        loaded = load_dataset(cast(str, data), root, **options)
    network = run.model() if run else make_network(cast(str, model), loaded, 0, source)
    if network.num_classes != loaded.num_classes:
        raise ValueError(f"'{source}' knows {network.num_classes} classes, {loaded.name} has {loaded.num_classes}")
    if run and data is None and loaded.fingerprint != info["fingerprint"]:
        print(f"note: {loaded.name} is not the same data that '{source}' was trained with", file=sys.stderr)
    if expect is not None and precision == "auto":
        precision = "32-true"  # published accuracies were measured in float32
    scores = evaluate_model(network, loaded, split, accelerator=accelerator, precision=precision)
    title = run.title if run else f"{model} from {source}"
    print(f"{title} on {len(getattr(loaded, split)):,} {split} images of {loaded.name}:")
    print(f"top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, cross-entropy {scores.cross_entropy:.4f}")
    print(f"mean and std that pixels are normalised by: {loaded.normalisation}")
    if expect is not None and not abs(scores.top1 - expect) <= TOLERANCE + 1e-9:
        message = f"top-1 is {scores.top1:.2f} %, not the expected {expect:.2f} ± {TOLERANCE}"
        raise typer.Exit(complain(message, 1))


@command()
def transfer(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders to compare.")],
    data: DataOptions,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Freeze trained networks and train a linear probe on their features of another data set."""
    from ..data import load_dataset
    from ..runs import load_run
    from ..transfer import transfer_table

    chosen = [load_run(folder) for folder in run_folders]
    for run in chosen:
        run.model()  # raises before the images are read, if the weights cannot be used
    name, sizes = data
    loaded = load_dataset(name, **sizes)
    table = transfer_table(chosen, loaded, accelerator=accelerator, precision=precision)
    print(f"linear probe on {len(loaded.train):,} training and {len(loaded.test):,} test images of {loaded.name}:")
    print_table([tuple(table.columns), *(tuple(map(cell_text, row)) for row in table.itertuples(index=False))])

"""Commands that evaluate trained networks."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .. import catalogue
from ..html import counted, p_value_text
from .app import command
from .console import cell_text, check_new_file, print_error, print_table, write_new_file
from .options import (
    NORMALISATION_HELP,
    Accelerator,
    DataOptions,
    EvaluationOptions,
    Precision,
    Workers,
    check_names,
    in_data,
    in_networks,
)
from .sources import load_common_data, load_data_of_run, load_run_unless_checkpoint, make_network

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Classifier

SPLITS = ("test", "train", "val")
Split = Annotated[str, in_data(help="Split to evaluate on: test, train or val.")]
TOLERANCE = 0.05  # between --expect and the measured accuracy, in percentage points
MAX_CLASSES = 10  # in the table of `agree`


@command()
def evaluate(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run folder, or with --model a checkpoint file or URL.")
    ],
    shared: EvaluationOptions,
    data: Annotated[str | None, in_data(help="Data set to evaluate on. Default: that of the run.")] = None,
    model: Annotated[str | None, in_networks(help="Network of the checkpoint, if SOURCE is one.")] = None,
    expect: Annotated[
        float | None,
        typer.Option(
            help=f"Expected top-1 accuracy in percent. The command fails if the "
            f"measured accuracy differs by more than {TOLERANCE} points."
        ),
    ] = None,
    normalisation: Annotated[str | None, in_data(help=NORMALISATION_HELP)] = None,
    same_classes: Annotated[
        bool,
        in_data(
            "--same-classes",
            help="Use this if the data set has the same classes as the training data, in the same order, under "
            "other names.",
        ),
    ] = False,
    split: Split = "test",
) -> None:
    """Measure the accuracy of a trained network. Use --expect to check a published accuracy."""
    if expect is not None and not 0 <= expect <= 100:
        raise ValueError(f"--expect must be a percentage, 0 to 100, got {expect}")
    check_split(split)
    check_names(networks=[model], data=data)
    mean_and_std = None if normalisation is None else catalogue.read_normalisation(normalisation)
    from ..checkpoints import training_data_of
    from ..data import load_dataset
    from ..data.loading import image_size_option
    from ..evaluation import evaluate as evaluate_model
    from ..models import with_preprocessing

    run = load_run_unless_checkpoint(model, source, "--model")
    if data is None and run is None:
        raise ValueError("a checkpoint needs --data, the data set to evaluate it on")
    options, root, machine = shared
    if run:
        dataset, network = load_data_of_run(run, data, root, options), run.model()
    else:
        name = cast(str, data)
        training_data = None if "://" in source else training_data_of(source)
        if training_data:
            options = {**image_size_option(training_data.image_size, name), **options}
        dataset = load_dataset(name, root, **options)
        network = make_network(cast(str, model), dataset, 0, source, root)
    if network.num_classes != dataset.num_classes:
        raise ValueError(f"'{source}' has {network.num_classes} classes, but {dataset.name} has {dataset.num_classes}")
    if same_classes and network.trained_on:
        network.trained_on = network.trained_on.without_classes()
    if mean_and_std:
        network = with_preprocessing(network, dataset, mean=mean_and_std[0], std=mean_and_std[1])
    if expect is not None and machine["precision"] == "auto":
        machine = {**machine, "precision": "32-true"}  # published accuracies were measured in float32
    scores = evaluate_model(network, dataset, split, **machine)
    title = run.title if run else f"{model} from {source}"
    print(f"{title} on {len(getattr(dataset, split)):,} {split} images of {dataset.name}:")
    print(f"top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, cross-entropy {scores.cross_entropy:.4f}")
    print(describe_input(network, dataset, source, normalisation))
    if expect is not None and not abs(scores.top1 - expect) <= TOLERANCE + 1e-9:
        message = f"top-1 is {scores.top1:.2f} %, not the expected {expect:.2f} ± {TOLERANCE}"
        raise typer.Exit(print_error(message, 1))


def describe_input(network: "Classifier", data: "Dataset", source: str, normalisation: str | None) -> str:
    """Return one line about the size and normalisation of the images that the network sees.

    Parameters
    ----------
    network : Classifier
    data : Dataset
    source : str
        The run folder, or the checkpoint file or URL.
    normalisation : str or None
        The option --normalisation.

    Returns
    -------
    str
    """
    from ..models import Preprocessed

    trained_on = network.trained_on
    height, width = (isinstance(network, Preprocessed) and network.resize_to) or data.size
    if normalisation is not None:
        return f"{height}×{width} pixels, normalised with {normalisation}, as given by --normalisation"
    if trained_on is None:
        return (
            f"{height}×{width} pixels, normalised with mean and std ({data.normalisation}). '{source}' does not say "
            "which mean and std it was trained with: if they differ, set --normalisation"
        )
    height, width = trained_on.image_size
    return f"{height}×{width} pixels, normalised with the mean and std that the network was trained with"


def check_split(split: str) -> None:
    """Check the option --split.

    Parameters
    ----------
    split : str

    Raises
    ------
    ValueError
        If it is not in `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"--split must be test, train or val, got {split}")


@command()
def agree(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder of the first network.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run folder of the second network.")],
    shared: EvaluationOptions,
    data: Annotated[str | None, in_data(help="Data set to compare on. Default: the data set of both runs.")] = None,
    split: Split = "test",
) -> None:
    """Compare two trained networks image by image, to see on which images only one of them is right.

    McNemar's test says whether chance can explain that one of these two networks is right more often. It says nothing
    about methods. To compare methods, train several seeds with the command compare.
    """
    check_split(split)
    check_names(data=data)
    from ..analysis import agreement
    from ..runs import load_run

    runs = [load_run(folder) for folder in (first, second)]
    a, b = (run.model() for run in runs)  # if weights are missing, it raises an error before the images are read
    dataset = load_common_data(runs, data, shared.root, shared.data)
    found = agreement(a, b, dataset, split, **shared.machine)
    both, only_a, only_b, neither = found.counts
    images = len(found.samples)
    print(f"A: {runs[0].title}, {first}\nB: {runs[1].title}, {second}")
    print(f"{images:,} {split} images of {dataset.name}:")
    print_table([("", "B right", "B wrong"), ("A right", f"{both:,}", f"{only_a:,}"),
                 ("A wrong", f"{only_b:,}", f"{neither:,}")], right=(1, 2))  # fmt: skip
    print(f"same prediction for {found.same_prediction:.2f} % of the images")
    scores = [100 * int(both + only) / images for only in (only_a, only_b)]
    print(f"A is right for {scores[0]:.2f} %, B for {scores[1]:.2f} %, McNemar's test: p {p_value_text(found.p_value)}")
    count, tested = len(found.classes), found.classes["p"].count()
    shown = f"the {MAX_CLASSES} of {count:,} classes with the smallest p" if count > MAX_CLASSES else "all classes"
    print(f"\n{shown}. a and b: percentage right. p_holm: p corrected for {tested:,} classes")
    classes = found.classes.sort_values("p", kind="stable")[:MAX_CLASSES]
    classes[["p", "p_holm"]] = classes[["p", "p_holm"]].map(p_value_text)
    print_table([tuple(classes), *(tuple(map(cell_text, row)) for row in classes.itertuples(index=False))])


@command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of the network.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of images. Sub-folders are read, too.")],
    out: Annotated[Path | None, typer.Option(help="CSV file to write. Default: print the table.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
    workers: Workers = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Predict the classes of new images.

    The table has one row per image: file, class, confidence (the probability of this class), entropy of all
    probabilities in nats, and the class with the second largest probability.
    """
    if out:
        check_new_file(out, overwrite)
    from ..analysis import predict_folder

    table = predict_folder(run_folder, folder, workers=workers, accelerator=accelerator, precision=precision)
    write: partial[None] = partial(
        table.to_csv, index=False, lineterminator="\n", float_format="%.6g", errors="backslashreplace"
    )
    if out:
        write_new_file(out, write, counted(len(table), "image"))
    else:
        write(sys.stdout)


@command()
def transfer(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of the networks to compare.")],
    data: DataOptions,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> None:
    """Test how useful the features of trained networks are for another data set.

    The networks are frozen. On their features, a linear classifier is trained, which is called a linear probe.
    """
    from ..data import load_dataset
    from ..runs import load_run
    from ..transfer import transfer_table

    chosen = [load_run(folder) for folder in run_folders]
    for run in chosen:
        run.model()  # if the weights cannot be used, it raises an error now, before the images are read
    name, dataset_options = data
    dataset = load_dataset(name, **dataset_options)
    table = transfer_table(chosen, dataset, accelerator=accelerator, precision=precision)
    print(f"linear probe on {len(dataset.train):,} training and {len(dataset.test):,} test images of {dataset.name}:")
    print_table([tuple(table.columns), *(tuple(map(cell_text, row)) for row in table.itertuples(index=False))])

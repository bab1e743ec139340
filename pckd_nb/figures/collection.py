"""Draw all figures that a folder of runs has data for, as PNG files with captions.

A function of `FIGURES` takes the `runs.table` of many runs, selects those that its figure needs, and draws the
figure. Its caption is in `CAPTIONS`. The files contain nothing that changes from call to call, such as a date. So the
same runs give the same bytes.

- A *distilled run* is the run of a student that was trained with a teacher.
- The *main comparison* is the largest set of runs with the same data, student, teacher and number of epochs.
- The *main PCKD run* is the PCKD run of the main comparison without options (see `figures.arms`) and with the lowest
  seed.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from ..files import write
from ..paths import user_path
from ..runs import Run, load_run, load_runs, table
from ..validation import check
from . import diagrams, results, samples, space
from .arms import METHODS
from .canvas import Drawing, caption, is_teacher, style, teacher_folder


def draw_all(
    runs_folder: str | Path,
    out: str | Path,
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> list[Path]:
    """Draw every figure that the runs of a folder have data for.

    Each figure becomes two files: `NAME.png`, with 160 dots per inch, and its caption `NAME.txt`. Most figures show one
    data set: the one with the most distilled runs. The same figure for another data set is named `NAME_DATA`.

    The metadata of a PNG file has its name as Title, the fingerprints of its runs as Runs, and the version of this
    package as Software.

    Parameters
    ----------
    runs_folder : str or Path
        Folder that contains runs, at any depth. Runs that were trained without test images are left out.
    out : str or Path
        Folder for the files.
    only : sequence of str, optional
        Beginnings of names, such as "05". By default, all figures are drawn.
    say : callable
        Called with one line for each figure that is left out because runs are missing. By default, the line is printed
        to stderr.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    FileNotFoundError
        If there is no run in the folder.
    ValueError
        If `out` is a file, if an element of `only` matches no figure, if all runs were trained without test images, or
        if no figure can be drawn.
    TypeError
        If `only` is not a list or tuple of texts.
    """
    out = user_path(out, "out")
    check(list[str] | tuple[str, ...] | None, only=only)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out '{out}' is a file; figures need a folder")
    runs = [run for run in load_runs(runs_folder) if run.scored_split == "test"]
    if not runs:
        raise ValueError(f"all runs in '{runs_folder}' were trained without test images, for a search: draw other runs")
    todo = list(_figures_to_draw(table(runs)))
    for start in only or ():
        if not any(file_name.startswith(start) for file_name, *_ in todo):
            raise ValueError(f"no name of a figure begins with '{start}'; known: {', '.join(FIGURES)}")
    written: list[Path] = []
    missing: list[str] = []
    for file_name, name, rows, report in todo:
        if only and not file_name.startswith(tuple(only)):
            continue
        try:
            figure = FIGURES[name](rows)
        except ValueError as error:
            if report:
                missing.append(f"{file_name} is left out: {error}")
                say(missing[-1])
            continue
        out.mkdir(parents=True, exist_ok=True)
        written += _save(figure, file_name, CAPTIONS[name], out)
    if not written:
        raise ValueError(f"no figure can be drawn from the runs in '{runs_folder}': {missing[0]}")
    return written


def motivation(table: pd.DataFrame) -> Drawing:
    """Draw `figures.motivation` of the main PCKD run."""
    return diagrams.motivation(_default_pckd_run(table, "difficulty"))


def framework(table: pd.DataFrame) -> Drawing:
    """Draw `figures.framework` with an image of the main PCKD run."""
    return diagrams.framework(_default_pckd_run(table, "gallery"))


def feature_weight_matrix(table: pd.DataFrame) -> Drawing:
    """Draw `figures.feature_weight_matrix` of the main PCKD run."""
    return diagrams.feature_weight_matrix(_default_pckd_run(table, "embedding"))


def difficulty(table: pd.DataFrame) -> Drawing:
    """Draw `figures.difficulty_galleries` with one run per data set, PCKD if possible."""
    found = []
    for name in table["data"].unique():
        rows = table[table["data"] == name]
        try:
            found.append(_default_pckd_run(rows, "gallery"))
        except ValueError:  # there is no PCKD run on this data: take any run
            found += [run for run in rows["run"] if run.gallery is not None][:1]
    return samples.difficulty_galleries(found)


def difficulty_truth(table: pd.DataFrame) -> Drawing:
    """Draw `figures.difficulty_against_truth` of the main PCKD run."""
    return samples.difficulty_against_truth(_default_pckd_run(table, "ground_truth"))


def data_map(table: pd.DataFrame) -> Drawing:
    """Draw `figures.data_map` of the main PCKD run."""
    return samples.data_map(_default_pckd_run(table, "cross_entropy"))


def sweeps(table: pd.DataFrame) -> Drawing:
    """Draw `figures.sweeps` of all runs."""
    return results.sweeps(list(table["run"]))


def feature_map(table: pd.DataFrame) -> Drawing:
    """Draw `figures.feature_map` of the teacher and one run per method."""
    return space.feature_map(_teacher_and_methods(table))


def center_map(table: pd.DataFrame) -> Drawing:
    """Draw `figures.center_map` of the teacher and one run per method."""
    return space.center_map(_teacher_and_methods(table))


def weights(table: pd.DataFrame) -> Drawing:
    """Draw `figures.weights_over_epochs` of the main PCKD run and of runs with other strategies."""
    pckd = _default_pckd_run(table)
    rows = _main_comparison(table)
    rows = rows[(rows["method"] == "PCKD") & (rows["seed"] == pckd.settings["seed"])]
    others = rows[rows["variant"].str.fullmatch(r"strategy = \w+")]
    return samples.weights_over_epochs([pckd, *others["run"]])


def trajectories(table: pd.DataFrame) -> Drawing:
    """Draw `figures.trajectories` of the main PCKD run."""
    return samples.trajectories(_default_pckd_run(table, "cross_entropy"))


def logit_correlation(table: pd.DataFrame) -> Drawing:
    """Draw `figures.logit_correlation` of the teacher and one run per method."""
    return space.logit_correlation(_teacher_and_methods(table))


def center_geometry(table: pd.DataFrame) -> Drawing:
    """Draw `figures.center_geometry` of the teacher and one run per method."""
    return space.center_geometry(_teacher_and_methods(table))


def budget(table: pd.DataFrame) -> Drawing:
    """Draw `figures.budget` of all runs."""
    return results.budget(list(table["run"]))


def compute(table: pd.DataFrame) -> Drawing:
    """Draw `figures.accuracy_against_compute` of all runs."""
    return results.accuracy_against_compute(list(table["run"]))


def published(table: pd.DataFrame) -> Drawing:
    """Draw `figures.published_and_measured` of all runs."""
    return results.published_and_measured(list(table["run"]))


def learning_curves(table: pd.DataFrame) -> Drawing:
    """Draw `figures.learning_curves` of all methods without options."""
    rows = _main_comparison(table)
    return results.learning_curves(_sort_by_method(rows[rows["variant"] == ""]))


FIGURES: dict[str, Callable[[pd.DataFrame], Drawing]] = {
    "01_motivation": motivation,
    "02_framework": framework,
    "03_feature_weight_matrix": feature_weight_matrix,
    "04_difficulty": difficulty,
    "04_difficulty_truth": difficulty_truth,
    "04_data_map": data_map,
    "05_sweeps": sweeps,
    "06_feature_map": feature_map,
    "06_center_map": center_map,
    "07_weights": weights,
    "07_trajectories": trajectories,
    "08_logit_correlation": logit_correlation,
    "08_center_geometry": center_geometry,
    "09_budget": budget,
    "10_published": published,
    "11_learning_curves": learning_curves,
    "12_compute": compute,
}
CAPTIONS = {
    "01_motivation": (
        "Why PCKD. (a) The parts of a network that each family of methods uses. Only PCKD uses the category centers in "
        "the last layer. (b) What the preview strategy does. From epoch to epoch, more samples get full "
        "weight. Hard samples get a small weight, but never zero."
    ),
    "02_framework": (
        "The framework of PCKD. Four views of an image go through the frozen teacher and the student. Each loss is "
        "drawn where it compares the two networks. Orange arrows show which losses the preview weight v multiplies. "
        "Gradients flow back along solid arrows."
    ),
    "03_feature_weight_matrix": (
        "Features times the weights of the last layer give the logits, shown with the numbers of a trained student. "
        "Each column of the weight matrix (a row of fc.weight in PyTorch) is the center of a category."
    ),
    "04_difficulty": (
        "Training images of each data set, ordered by their difficulty γ in the last epoch. γ is the cross-entropy of "
        "an image, divided by the mean of its batch. The easiest images are on the left, the hardest on the right."
    ),
    "04_difficulty_truth": (
        "Does the difficulty score γ measure real difficulty? The figure shows γ in the last epoch against the "
        "difficulty with which each image was generated. If the median rises, the images that are hard to see are also "
        "hard for the network."
    ),
    "04_data_map": (
        "Data map (dataset cartography): every dot is a training image. Confidence is the mean probability of its "
        "label over the epochs, and variability is the standard deviation. The third of the images with the highest "
        "variability is called ambiguous. Of the others, those with a confidence of at least one half are easy to "
        "learn. Wrong labels are often among the images that are hard to learn."
    ),
    "05_sweeps": (
        "Top-1 accuracy against (a) β_cc, (b) β_fa, (c) β_ca and (d) ε. These are the weights of center contrast, "
        "feature alignment and center alignment, and the base of the preview threshold. One setting is changed at a "
        "time, and all others have their default values. Shown are mean ± standard deviation, and one dot per seed. "
        "The grey band marks the published default. If the recipe has another default, a tick label marks it. Values "
        "of ε are converted to 240 epochs, ε^(epochs/240), so that equal values mean equal thresholds at the end of "
        "training. Horizontal lines show the mean of KD and of supervised training with the same seeds. A line outside "
        "the axis is not visible. The panels have different scales. Values are evenly spaced, not to scale."
    ),
    "06_feature_map": (
        "t-SNE of test features (dots) and category centers (stars), by method. The percentage under a map is the "
        "share of nearest neighbours that belong to the same class. The higher it is, the better the features separate "
        "the classes. It is computed in the full feature space, because distances on a map say little."
    ),
    "06_center_map": (
        "Do related categories lie together? All category centers of each network, coloured by a property that classes "
        "share. The text under a panel says how many of the 3 nearest centers share this property on average, and how "
        "many would by chance. Nearest centers are found in the full feature space."
    ),
    "07_weights": (
        "How much the samples count, by strategy and epoch: the mean weight v, and the share of samples with full "
        'weight. The strategy "constant" gives every sample of a batch the mean weight of preview. A comparison '
        "with preview shows whether it matters which samples get the small weights."
    ),
    "07_trajectories": (
        "Single training samples during training: cross-entropy (middle row) and difficulty γ (lower row) of samples "
        "that were learned early, late or never. The grey band contains the middle 50 % of all samples."
    ),
    "08_logit_correlation": (
        "Which logits rise together? The correlation of all pairs of logits over test images, with the teacher first. "
        "Below each student is its difference from the teacher. The paler the difference, the better the student "
        "learned which categories the teacher sees as related."
    ),
    "08_center_geometry": (
        "Do students arrange their categories like the teacher? Above: the cosine similarity of all pairs of category "
        "centers. Below: the student's similarity of each pair against the teacher's. On the dotted line they agree."
    ),
    "09_budget": (
        "When is PCKD better at equal cost? Top-1 accuracy (mean ± standard deviation, one dot per seed) against the "
        "training budget. Left: by epochs, so methods are compared at equal epochs. Right: by the floating-point "
        "operations of both networks, so the higher line is better at equal compute. The operations are epochs × "
        "images × views × (3 forward passes of the student + 1 of the teacher). The backward pass of the student "
        "counts as two forward passes. The method's heads and losses and the training of the teacher are not counted. "
        "Measured seconds are not shown. They depend on the machine, and on whether teacher outputs were cached."
    ),
    "10_published": (
        "How much accuracy each method adds to the student trained without a teacher, in percentage points of top-1. "
        "Left, open dots on grey: as published for CIFAR-100 and 240 epochs, one dot per pair of networks. Right, "
        "filled dots on white: measured here, minus the accuracy without a teacher at the same seed, one dot per seed. "
        "The band is the 95 % confidence interval of the mean, for three seeds or more. Data, networks and epochs "
        "differ between left and right. So compare only the sign and the order of the differences, not their size. "
        "The published pairs are those in the table of PCKD's authors."
    ),
    "11_learning_curves": (
        "Accuracy and every loss term by epoch and method: the mean over seeds, and a band of one standard deviation "
        "to each side. The terms are shown before they are multiplied by their β. Terms with v in their label are "
        "multiplied by v before they are averaged."
    ),
    "12_compute": (
        "What does accuracy cost? Every arm, which is a method with its options and its number of epochs, against the "
        "floating-point operations of both networks in one training. A marker is the mean over seeds, and a line is "
        "its 95 % confidence interval, for three seeds or more. The part of a line above 100 % is not drawn. Open "
        "markers are methods with options. The dashed line joins the best arms: no other arm reaches their mean with "
        "the same compute or less. An arm can be among the best by chance, so look at the intervals, too. Arms with "
        "the same compute are moved apart by at most 10 %. What is counted is described below the figure 09_budget."
    ),
}
ALL_DATA_SETS = {"04_difficulty", "10_published"}  # one figure shows all data sets
ONE_DATA_SET = {"01_motivation", "02_framework", "03_feature_weight_matrix"}  # drawn for the main data set only


def _figures_to_draw(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, bool]]:
    """Yield name of the file, name of the figure, rows of the table, and whether to report if it cannot be drawn."""
    distilled = table[table["teacher"].notna()]["data"]
    others = list(distilled.value_counts(sort=False).sort_values(ascending=False, kind="stable").index)
    main = others.pop(0) if others else table["data"].iloc[0]
    for name in FIGURES:
        yield name, name, table if name in ALL_DATA_SETS else table[table["data"] == main], True
        for data in () if name in ALL_DATA_SETS | ONE_DATA_SET else others:
            short = re.sub(r"[^A-Za-z0-9._-]+", "_", re.split(r"[:/\\]", data)[-1])  # the last part of a folder's path
            yield f"{name}_{short}", name, table[table["data"] == data], False


def _save(figure: Drawing, file_name: str, description: str, out: Path) -> list[Path]:
    software = f"pckd_nb {version('pckd_nb')}"
    fingerprints = " ".join(dict.fromkeys(run.fingerprint for run in figure.runs))
    metadata = {"Title": file_name, "Runs": fingerprints, "Software": software}
    training = f"{caption(figure.runs)} " if figure.runs else ""
    text = f"{description}\n\n{training}Drawn by {software}.\n"
    png, txt = out / f"{file_name}.png", out / f"{file_name}.txt"
    with style():
        write(png, lambda temporary: figure.savefig(temporary, format="png", dpi=160, metadata=metadata))
    write(txt, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return [png, txt]


def _main_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the comparison with the most runs: one data set, pair of networks and number of epochs.

    Students that were trained without a teacher are included.
    """
    keys = ["data", "student", "epochs", "train_images"]
    distilled = table[table["teacher"].notna()]
    if distilled.empty:
        raise ValueError("there is no distilled run")
    *largest, teacher = distilled.groupby([*keys, "teacher"], sort=False).size().idxmax()
    same = (table[keys] == largest).all(axis=1)
    return table[same & (table["teacher"].isna() | (table["teacher"] == teacher))]


def _default_pckd_run(table: pd.DataFrame, *parts: str) -> Run:
    """Return the run of PCKD without options with the lowest seed that has the recorded arrays `parts`."""
    rows = _main_comparison(table)
    rows = rows[(rows["method"] == "PCKD") & (rows["variant"] == "")].sort_values("seed", kind="stable")
    for run in rows["run"]:
        if all(getattr(run, name) is not None for name in parts):
            return run
    recorded = f" that has recorded {' and '.join(parts)}" if parts else ""
    raise ValueError(f"there is no PCKD run without options{recorded} in the main comparison; train one first")


def _teacher_and_methods(table: pd.DataFrame) -> list[Run]:
    """Return the teacher and one run per method without options, all of one seed and with embeddings."""
    pckd = _default_pckd_run(table, "embedding")
    rows = _main_comparison(table)
    teacher = _find_teacher(pckd, table)
    rows = rows[(rows["variant"] == "") & (rows["seed"] == pckd.settings["seed"])]
    rows = rows[[run is not teacher for run in rows["run"]]]  # the teacher may have the student's network and seed
    found = [run for run in _sort_by_method(rows.drop_duplicates("method")) if run.embedding is not None]
    if teacher is None or teacher.embedding is None:
        return found
    return [teacher, *found] if teacher.data_fingerprint == pckd.data_fingerprint else found


def _sort_by_method(rows: pd.DataFrame) -> list[Run]:
    """Return the runs of the rows: supervised first, PCKD last, and each method by seed."""
    order = {title: place for place, title in enumerate(METHODS)}
    rows = rows.assign(place=[order.get(title, 1.5) for title in rows["method"]])
    return list(rows.sort_values(["place", "method", "seed"], kind="stable")["run"])


def _find_teacher(run: Run, table: pd.DataFrame) -> Run | None:
    """Find the teacher in the table, or else in the folder that the run recorded. None if it is in neither."""
    teacher, runs = run.settings["teacher"], [run, *table["run"]]
    for other in table["run"]:
        if other.fingerprint == teacher["fingerprint"] and is_teacher(other, runs):
            return other
    try:
        return load_run(folder) if (folder := teacher_folder(run)) else None
    except (FileNotFoundError, ValueError):
        return None

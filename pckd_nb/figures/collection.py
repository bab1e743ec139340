"""All figures that a folder of runs is enough for, as files with captions.

A function of `FIGURES` takes `runs.table` of many runs, selects those its figure needs, and draws it. Its docstring is
the caption. What differs from call to call (a date) is nowhere in a file: the same runs give the same bytes.
"""

import inspect
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
    """Draw every figure that `runs_folder` has runs for: OUT/NAME.png, 160 dots an inch, and its caption, OUT/NAME.txt.

    The figures of one data set are of the one with most distilled runs; of each other they come as NAME_DATA.
    A PNG's metadata has its name as Title, the fingerprints of its runs as Runs, the version of this package as
    Software. only: beginnings of names, such as "05". say: gets a line for every figure that lacks a run.
    Returns the files. Raises FileNotFoundError where there is no run, ValueError for an unknown name, or where no
    figure can be drawn.
    """
    out = user_path(out, "out")
    check(list[str] | tuple[str, ...] | None, only=only)
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file; figures need a folder")
    todo = list(_plan(table(load_runs(runs_folder))))
    for start in only or ():
        if not any(name.startswith(start) for name, *_ in todo):
            raise ValueError(f"no figure begins with '{start}'; known: {', '.join(FIGURES)}")
    written: list[Path] = []
    missing: list[str] = []
    for name, draw, part, asked in todo:
        if only and not name.startswith(tuple(only)):
            continue
        try:
            figure = draw(part)
        except ValueError as error:
            if asked:
                missing.append(f"{name} is left out: {error}")
                say(missing[-1])
            continue
        out.mkdir(parents=True, exist_ok=True)
        written += _save(figure, name, inspect.getdoc(draw) or "", out)
    if not written:
        raise ValueError(f"no figure can be drawn of the runs in '{runs_folder}': {missing[0]}")
    return written


def motivation(table: pd.DataFrame) -> Drawing:
    """Why PCKD: (a) what KD, feature methods and PCKD take of a network: PCKD alone takes what its last layer knows of
    categories; (b) what preview does: each epoch the threshold lets more samples in at full weight, and hard ones
    count little but never nothing."""
    return diagrams.motivation(_pckd(table, "difficulty"))


def framework(table: pd.DataFrame) -> Drawing:
    """The framework: four views of an image go through the frozen teacher and the student; each loss stands where it
    attaches, and v, the preview weight, where it enters. Solid arrows carry a gradient back."""
    return diagrams.framework(_pckd(table, "gallery"))


def feature_weight_matrix(table: pd.DataFrame) -> Drawing:
    """Features times the weights of the last layer are the logits, in a trained student's own numbers: each column of
    the weight matrix (a row of fc.weight in PyTorch) is the center of a category."""
    return diagrams.feature_weight_matrix(_pckd(table, "embedding"))


def difficulty(table: pd.DataFrame) -> Drawing:
    """Training images of each data set ordered by their difficulty γ in the last epoch, the easiest left, the hardest
    right; γ = 1 is the average of a batch."""
    found = []
    for name in table["data"].unique():
        part = table[table["data"] == name]
        try:
            found.append(_pckd(part, "gallery"))
        except ValueError:  # without PCKD on this data, anyone's view of it
            found += [run for run in part["run"] if run.gallery is not None][:1]
    return samples.difficulty_galleries(found)


def difficulty_truth(table: pd.DataFrame) -> Drawing:
    """Does difficulty mean something? γ after the last epoch against the difficulty with which each image was drawn;
    a rising median says that the method finds hard what is hard."""
    return samples.difficulty_against_truth(_pckd(table, "ground_truth"))


def sweeps(table: pd.DataFrame) -> Drawing:
    """Top-1 accuracy against (a) β_cc, (b) β_fa, (c) β_ca and (d) ε, one changed at a time, the rest as in PCKD without
    options: mean ± standard deviation and a dot a seed. The grey band marks the published default; the tick labels
    say where the recipe's own default differs. ε stands as what it would be over 240 epochs, ε^(epochs/240), so that
    thresholds end alike. Lines: mean of KD and of the student alone, with the same seeds, where a panel's scale
    reaches them. Scales differ from panel to panel; values are spaced evenly, not to scale."""
    return results.sweeps(list(table["run"]))


def feature_map(table: pd.DataFrame) -> Drawing:
    """t-SNE of test features (dots) with the category centers (stars), by method: the purer the neighbourhoods, the
    better the features tell classes apart. Distances on a map say little; the percentage is of the full space."""
    return space.feature_map(_side_by_side(table))


def center_map(table: pd.DataFrame) -> Drawing:
    """Do related categories lie together? All category centers of each network, coloured by what classes share; the
    percentages compare their neighbourhoods in the full space with chance."""
    return space.center_map(_side_by_side(table))


def weights(table: pd.DataFrame) -> Drawing:
    """How much the samples count, by strategy and epoch: mean weight v, and the share of samples at full weight. The
    strategy "constant" has preview's mean weight for every sample, and so is its control."""
    pckd = _pckd(table)
    rows = _main(table)
    rows = rows[(rows["method"] == "PCKD") & (rows["seed"] == pckd.settings["seed"])]
    others = rows[rows["variant"].str.fullmatch(r"strategy = \w+")]
    return samples.weights_over_epochs([pckd, *others["run"]])


def trajectories(table: pd.DataFrame) -> Drawing:
    """Single training samples through training: cross-entropy (above) and difficulty γ (below) of some that were
    learned early, late or never, before the middle half of all samples (grey)."""
    return samples.trajectories(_pckd(table, "cross_entropy"))


def logit_correlation(table: pd.DataFrame) -> Drawing:
    """Which logits rise together? Correlation of every two over test images, teacher first, and below each student how
    it differs from the teacher: the paler, the better it took over what the teacher knows of related categories."""
    return space.logit_correlation(_side_by_side(table))


def center_geometry(table: pd.DataFrame) -> Drawing:
    """Do students arrange their categories as the teacher does? Cosine similarity of all pairs of category centers as
    matrices, and each student's against the teacher's: on the dotted line they agree."""
    return space.center_geometry(_side_by_side(table))


def budget(table: pd.DataFrame) -> Drawing:
    """When does PCKD pay? Top-1 accuracy (mean ± standard deviation, a dot a seed) against training budget: left by
    epochs, right by the floating point operations of both networks: images × views × (three forward passes of the
    student, for forward and backward, and one of the teacher). Left, methods are compared at equal epochs; right,
    the higher line wins at equal compute. Not counted: the method's heads and losses, and the teacher's own training.
    Seconds were measured on a shared machine, with a cache of what the teacher says, and would mislead."""
    return results.budget(list(table["run"]))


def published(table: pd.DataFrame) -> Drawing:
    """What methods add to the student that learns alone, in points of top-1. Left, open dots on grey: as published for
    CIFAR-100 and 240 epochs, a dot a pair of networks; right, filled dots on white: measured here, a dot a seed, less
    the lone student of the same seed, with the 95 % interval of the mean where there are three or more. Data, networks
    and lengths of training differ, so only differences to the student may be set side by side, and of them sign and
    order, not size. Published results whose lone student is not published (ImageNet, pairs of two families) can't be
    shown so."""
    return results.published_and_measured(list(table["run"]))


def learning_curves(table: pd.DataFrame) -> Drawing:
    """Accuracy and every loss term by epoch and method: mean over seeds, and a band of one standard deviation to each
    side. Terms stand as they enter the objective, before their β; those with v are weighted."""
    rows = _main(table)
    return results.learning_curves(_by_method(rows[rows["variant"] == ""]))


FIGURES: dict[str, Callable[[pd.DataFrame], Drawing]] = {
    "01_motivation": motivation,
    "02_framework": framework,
    "03_feature_weight_matrix": feature_weight_matrix,
    "04_difficulty": difficulty,
    "04_difficulty_truth": difficulty_truth,
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
}
TOGETHER = {"04_difficulty", "10_published"}  # of all data sets
ONCE = {"01_motivation", "02_framework", "03_feature_weight_matrix"}  # one data set is enough


def _plan(table: pd.DataFrame) -> Iterator[tuple[str, Callable[[pd.DataFrame], Drawing], pd.DataFrame, bool]]:
    """Name of the file, function, its part of the table, and whether it is missed where it can't be drawn."""
    taught = table[table["teacher"].notna()]["data"]
    others = list(taught.value_counts(sort=False).sort_values(ascending=False, kind="stable").index)
    main = others.pop(0) if others else table["data"].iloc[0]
    for name, draw in FIGURES.items():
        yield name, draw, table if name in TOGETHER else table[table["data"] == main], True
        for data in () if name in TOGETHER | ONCE else others:
            short = re.sub(r"[^A-Za-z0-9._-]+", "_", re.split(r"[:/\\]", data)[-1])  # of a folder, its name
            yield f"{name}_{short}", draw, table[table["data"] == data], False


def _save(figure: Drawing, name: str, says: str, out: Path) -> list[Path]:
    by = f"pckd_nb {version('pckd_nb')}"
    about = {"Title": name, "Runs": " ".join(dict.fromkeys(run.fingerprint for run in figure.runs)), "Software": by}
    text = " ".join(says.split()) + "\n\n" + (caption(figure.runs) + " " if figure.runs else "") + f"Drawn by {by}.\n"
    picture, words = out / f"{name}.png", out / f"{name}.txt"
    with style():
        write(picture, lambda temporary: figure.savefig(temporary, format="png", dpi=160, metadata=about))
    write(words, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return [picture, words]


def _main(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the comparison with most runs: one data set, pair of networks and number of epochs, and the lone
    students beside them."""
    keys = ["data", "student", "epochs", "train_images"]
    taught = table[table["teacher"].notna()]
    if taught.empty:
        raise ValueError("there is no distilled run")
    *most, teacher = taught.groupby([*keys, "teacher"], sort=False).size().idxmax()
    same = (table[keys] == most).all(axis=1)
    return table[same & (table["teacher"].isna() | (table["teacher"] == teacher))]


def _pckd(table: pd.DataFrame, *kept: str) -> Run:
    """PCKD without options, of the lowest seed whose run has the arrays `kept`."""
    rows = _main(table)
    rows = rows[(rows["method"] == "PCKD") & (rows["variant"] == "")].sort_values("seed", kind="stable")
    for run in rows["run"]:
        if all(getattr(run, name) is not None for name in kept):
            return run
    has = f" that kept {' and '.join(kept)}" if kept else ""
    raise ValueError(f"there is no PCKD run without options{has} in its main comparison")


def _side_by_side(table: pd.DataFrame) -> list[Run]:
    """Teacher and every method without options, of one seed, as far as they have embeddings."""
    pckd = _pckd(table, "embedding")
    rows = _main(table)
    teacher = _teacher_of(pckd, table)
    rows = rows[(rows["variant"] == "") & (rows["seed"] == pckd.settings["seed"])]
    rows = rows[[run is not teacher for run in rows["run"]]]  # it may be of the student's network and seed
    found = [run for run in _by_method(rows.drop_duplicates("method")) if run.embedding is not None]
    if teacher is None or teacher.embedding is None:
        return found
    return [teacher, *found] if teacher.data_fingerprint == pckd.data_fingerprint else found


def _by_method(rows: pd.DataFrame) -> list[Run]:
    """The runs of `rows`, supervised first, PCKD last, each by seed."""
    order = {title: place for place, title in enumerate(METHODS)}
    rows = rows.assign(place=[order.get(title, 1.5) for title in rows["method"]])
    return list(rows.sort_values(["place", "method", "seed"], kind="stable")["run"])


def _teacher_of(run: Run, table: pd.DataFrame) -> Run | None:
    """Among the runs of the table, else where the run says that it lies; None where it is neither."""
    about, runs = run.settings["teacher"], [run, *table["run"]]
    for other in table["run"]:
        if other.fingerprint == about["fingerprint"] and is_teacher(other, runs):
            return other
    try:
        return load_run(folder) if (folder := teacher_folder(run)) else None
    except (FileNotFoundError, ValueError):
        return None

"""Published accuracies of distillation methods, side by side, with the source of every number.

A method rarely has one published accuracy for a pair of networks. Every number has a *kind*:

- *own*: the authors of the method published it.
- *reproduced*: somebody else trained with the method.
- *copied*: a later table repeats it. A copy is no new measurement.
- *ours*: it was measured with this package, in a run with the same data set, teacher and student.

Accuracies from different sources often have different teachers and different students without a teacher. So compare
their *gain*: the accuracy minus that of the student trained alone, as the same source reports it. Copied numbers get no
gain, because a table may copy a number without the student that belongs to it.

A *mark* says why a number cannot be compared with the others, see `MARKS`.

Examples
--------
>>> import pckd_nb as pckd
>>> numbers = pckd.leaderboard.find_numbers(("resnet56", "resnet20"), method="DKD")
>>> table = pckd.leaderboard.compare(numbers)
>>> table[["method", "own_low", "own_high", "reproduced_low", "reproduced_high", "marks"]]
  method  own_low  own_high  reproduced_low  reproduced_high  marks
0    DKD    71.97     71.97           71.17            71.17  range
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from .catalogue import PAIRS
from .messages import one_line
from .paths import paper_folder, user_path

FILE = "published_results.csv"
NUMBER_COLUMNS = ("teacher_top1", "student_alone_top1", "top1", "sd", "seeds")
COLUMNS = (
    "dataset", "teacher", "student", "teacher_top1", "student_alone_top1", "method", "top1", "sd", "seeds", "epochs",
    "views_or_aug", "source_kind", "source", "checked_in",
)  # fmt: skip
KINDS = ("own", "reproduced", "copied", "ours")
SORT_COLUMNS = {"own": "own_high", "reproduced": "reproduced_median", "gain": "gain"}
USUAL_EPOCHS = {"cifar100": 240, "imagenet": 100}
MARKS = {  # name → meaning. The first letters differ.
    "range": "the published numbers of this method differ",
    "views": "the method sees every image in several views, mixed, or strongly augmented",
    "longer": "a number comes from a longer training than usual (240 epochs on CIFAR-100, 100 on ImageNet)",
    "teacher": "the teacher was trained in another way, together with auxiliary heads",
    "network": "the student is not the usual network",
    "setting": "a number was measured with other loss weights than usual",
}
NOTES = {  # mark → what the column views_or_aug says
    "views": r"rotat|augmentation",
    "teacher": r"teacher trained jointly",
    "network": r"student keeps|other MobileNetV2",
    "setting": r"loss weights",
}
OF_THE_METHOD = r"rotat|augmentation|student keeps"  # notes that hold wherever the method is used
ALONE = "student alone"  # not a method: the table has one such row
SAME_METHOD = {"LSKD": "KD+LS", "PCKD, β_kd = 0": "PCKD without KD"}  # our name → published name


def load_published(folder: str | Path | None = None) -> pd.DataFrame:
    """Return all published accuracies.

    Parameters
    ----------
    folder : str or Path, optional
        Folder with published_results.csv. By default, the table that comes with this package.

    Returns
    -------
    DataFrame
        One row per published number. Columns of numbers are NaN and columns of text are empty if the source does not
        say it:

        - dataset, teacher, student, method: what was trained. An empty teacher means that the pair is not known.
        - top1, sd: accuracy in percent, and its standard deviation over seeds.
        - teacher_top1, student_alone_top1: accuracy in percent of the teacher, and of the student trained without a
          teacher, as the same source reports them.
        - seeds: number of seeds.
        - epochs: number of epochs, as text. "30+100" means two stages.
        - views_or_aug: views, augmentation and other settings, as text.
        - source_kind: own, reproduced or copied, see the top of this page.
        - source, checked_in: who published the number, and where it was seen.
        - year: year of the source, or of the paper that it belongs to.
        - link: web address of `checked_in`.
        - gain: top1 minus student_alone_top1. NaN for copied numbers.
        - marks: names in `MARKS`, comma-separated.

    Raises
    ------
    TypeError
        If `folder` is not a path.
    ValueError
        If there is no table in the folder, or if the table is damaged.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> published = pckd.load_published()
    >>> pair = (published["teacher"] == "resnet56") & (published["student"] == "resnet20")
    >>> pckd_rows = published[pair & (published["method"] == "PCKD")]
    >>> pckd_rows[["top1", "student_alone_top1", "epochs", "views_or_aug", "source_kind"]].to_dict("records")
    [{'top1': 72.21, 'student_alone_top1': 69.06, 'epochs': '240', 'views_or_aug': '4 rotated views',
      'source_kind': 'own'}]
    """
    place = (paper_folder() if folder is None else user_path(folder, "folder")) / FILE
    if not place.is_file():
        raise ValueError(f"no {FILE} in '{place.parent}': it is in data/paper of the repository; pass that folder")
    try:
        table = pd.read_csv(place, dtype=str, keep_default_na=False, index_col=False)
    except ValueError as error:  # the base class of several pandas errors
        raise ValueError(
            f"'{place}' is not a table of comma-separated values ({one_line(error)}): save it as CSV in UTF-8"
        ) from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"'{place}' has no column {missing[0]!r}: it needs {', '.join(COLUMNS)}")
    for name in NUMBER_COLUMNS:
        try:
            table[name] = pd.to_numeric(table[name].replace("", None)).astype(float)
        except ValueError as error:
            raise ValueError(f"'{place}' has a value in the column {name!r} that is not a number: {error}") from None
    if unknown := set(table["source_kind"]) - set(KINDS[:3]):
        kinds = ", ".join(KINDS[:3])
        raise ValueError(f"'{place}' has the unknown source_kind {sorted(unknown)[0]!r}: use one of {kinds}")
    return _complete(table[list(COLUMNS)])


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns year, link, gain and marks."""
    years = table["source"].str.extract(r"arXiv (\d\d)\d\d\.|\b(20\d\d)\b")
    year = pd.to_numeric("20" + years[0]).fillna(pd.to_numeric(years[1]))
    gain = (table["top1"] - table["student_alone_top1"]).round(4).where(table["source_kind"] != "copied")
    return table.assign(
        year=year.astype("Int64"), link=table["checked_in"].map(web_address), gain=gain, marks=_marks(table)
    )


def web_address(place: str) -> str:
    """Return the web address of a place in the column checked_in.

    Parameters
    ----------
    place : str
        `OWNER/REPOSITORY:FILE`, `OWNER/REPOSITORY:FILE@COMMIT`, or a web address.

    Returns
    -------
    str
        Empty for anything else, such as a folder of runs.

    Examples
    --------
    >>> from pckd_nb.leaderboard import web_address
    >>> web_address("megvii-research/mdistiller:README.md@a08d46f")
    'https://github.com/megvii-research/mdistiller/blob/a08d46f/README.md'
    """
    if place.startswith("https://"):
        return place
    found = re.fullmatch(r"([\w.-]+/[\w.-]+):([^@]+?)(?:@(\w+))?", place)
    return f"https://github.com/{found[1]}/blob/{found[3] or 'HEAD'}/{quote(found[2])}" if found else ""


def _marks(table: pd.DataFrame) -> list[str]:
    """Return the marks of every row. "range" is left out, because it belongs to several rows."""
    notes = table["views_or_aug"]
    mixed = table["method"].str.contains("Mix")
    like = notes.str.extract(r"^as ([^:]+): (.*)")  # "as MLKD: …" also describes MLKD
    notes_of: dict[str, set[str]] = {}
    for method, note in (*zip(table["method"], notes, strict=True), *like.dropna().itertuples(index=False)):
        notes_of.setdefault(method, set()).update(re.findall(OF_THE_METHOD, note))
    found = []
    for method, note, dataset, epochs, is_mixed in zip(
        table["method"], notes, table["dataset"], table["epochs"], mixed, strict=True
    ):
        text = " ".join([note, *notes_of[method]])
        has = {mark for mark, words in NOTES.items() if re.search(words, text)}
        has |= {"views"} if is_mixed else set()
        has |= {"longer"} if total_epochs(epochs) > USUAL_EPOCHS.get(dataset, float("inf")) else set()
        found.append(", ".join(mark for mark in MARKS if mark in has))
    return found


def total_epochs(epochs: str) -> int:
    """Return the number of epochs of all stages, or 0 if it is not known.

    Examples
    --------
    >>> from pckd_nb.leaderboard import total_epochs
    >>> total_epochs("30+100"), total_epochs("")
    (130, 0)
    """
    return sum(int(number) for number in re.findall(r"\d+", epochs))


def list_pairs(published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the pairs of networks that have published accuracies.

    Parameters
    ----------
    published : DataFrame, optional
        As returned by `load_published`.

    Returns
    -------
    DataFrame
        One row per data set, teacher and student. methods and numbers count what was published. differing counts the
        methods with more than one distinct number. The usual pairs of CIFAR-100 come first. Rows whose pair is not
        known are left out.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.leaderboard.list_pairs().head(2)
        dataset   teacher   student  methods  numbers  differing
    0  cifar100  wrn_40_2  wrn_16_2       57      170         17
    1  cifar100  wrn_40_2  wrn_40_1       60      172         20
    """
    published = load_published() if published is None else published
    known = published[(published["teacher"] != "") & (published["method"] != ALONE)]
    by_pair = ["dataset", "teacher", "student"]
    values = known.groupby([*by_pair, "method"])["top1"].nunique()
    table = known.groupby(by_pair).agg(methods=("method", "nunique"), numbers=("top1", "size"))
    table["differing"] = (values > 1).groupby(level=by_pair).sum()
    usual = [("cifar100", *pair) for pair in PAIRS]
    order = sorted(table.index, key=lambda key: (usual.index(key) if key in usual else len(usual), key))
    return table.loc[order].reset_index()


def find_numbers(
    pair: Sequence[str],
    dataset: str = "cifar100",
    method: str | None = None,
    published: pd.DataFrame | None = None,
    runs: str | Path | None = None,
) -> pd.DataFrame:
    """Return all published accuracies for a pair of networks.

    Parameters
    ----------
    pair : sequence of two str
        Names of teacher and student.
    dataset : str
    method : str, optional
        Return only the numbers of this method. Upper and lower case are the same.
    published : DataFrame, optional
        As returned by `load_published`.
    runs : path, optional
        Folder of runs. Those with the same data set, teacher and student are added as numbers of the kind "ours".

    Returns
    -------
    DataFrame
        Columns as in `load_published`, sorted by method and kind.

    Raises
    ------
    TypeError
        If `pair` is not a pair of texts.
    ValueError
        If there is no published number for this pair, data set or method. The message contains similar names.
    FileNotFoundError
        If there is no finished run in `runs`.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> numbers = pckd.leaderboard.find_numbers(("vgg13", "vgg8"), method="crd")
    >>> numbers[["top1", "source_kind", "gain"]].drop_duplicates().round(2)
        top1 source_kind  gain
    0  73.94         own  3.58
    1  72.74  reproduced  4.55
    2  74.06  reproduced  3.38
    3  73.94      copied   NaN
    """
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or set(map(type, pair)) != {str}:
        raise TypeError(
            f"pair must be the names of teacher and student, such as ('resnet56', 'resnet20'), got {pair!r}"
        )
    published = load_published() if published is None else published
    teacher, student = pair
    _check_pair(published, teacher, student, dataset)
    found = published
    if runs is not None:
        found = pd.concat([published, measured_numbers(runs)], ignore_index=True)
    found = found[(found["dataset"] == dataset) & (found["teacher"] == teacher) & (found["student"] == student)]
    found = found[found["method"] != ALONE]
    if method is not None:
        names = {name.lower(): name for name in found["method"]}
        if not isinstance(method, str) or method.lower() not in names:
            near = difflib.get_close_matches(str(method).lower(), names, n=3) or sorted(names)[:24]
            raise ValueError(
                f"method {method!r} has no number for {teacher} → {student} on {dataset}: "
                f"did you mean {', '.join(names[name] for name in near)}?"
            )
        found = found[found["method"] == names[method.lower()]]
    order = found.assign(method=found["method"].str.lower(), source_kind=found["source_kind"].map(KINDS.index))
    return found.loc[order.sort_values(["method", "source_kind"], kind="stable").index].reset_index(drop=True)


def _check_pair(published: pd.DataFrame, teacher: str, student: str, dataset: str) -> None:
    """Raise ValueError if there is no published number for this pair on this data set."""
    pairs = [tuple(key) for key in list_pairs(published)[["dataset", "teacher", "student"]].itertuples(index=False)]
    datasets = list(dict.fromkeys(name for name, *_ in pairs))
    if dataset not in datasets:
        raise ValueError(f"dataset must be one of {', '.join(datasets)}, got {dataset!r}")
    if (dataset, teacher, student) in pairs:
        return
    others = [name for name in datasets if (name, teacher, student) in pairs]
    if others:
        raise ValueError(f"{teacher} → {student} has no published number on {dataset}, but on {', '.join(others)}")
    names = [f"{first},{second}" for name, first, second in pairs if name == dataset]
    swapped = [name for name in (f"{student},{teacher}",) if name in names]
    near = swapped or difflib.get_close_matches(f"{teacher},{student}", names, n=3, cutoff=0.5) or names
    raise ValueError(f"no published number for the pair '{teacher},{student}' on {dataset}: did you mean "
                     f"{' or '.join(near)}?")  # fmt: skip


def measured_numbers(runs: str | Path) -> pd.DataFrame:
    """Return the accuracies of runs of this package, in the form of published ones.

    Runs of several seeds are one row. A data set with label noise counts as another data set. A network of torchvision
    or timm has the name that it has there.

    Parameters
    ----------
    runs : path
        Folder of runs.

    Returns
    -------
    DataFrame
        Columns as in `load_published`. source_kind is "ours", top1 is the mean over seeds, and student_alone_top1 is
        the mean of supervised runs of the same student, data and number of epochs. Runs without a teacher get no row.

    Raises
    ------
    FileNotFoundError
        If there is no finished run in the folder.
    """
    from .runs import describe_noise, load_runs, table  # slow to import, because of torch

    loaded = load_runs(runs, tables_only=True, skip_damaged=True)
    measured = table(loaded).assign(
        dataset=[_dataset_name(run.settings["data"]["name"]) + describe_noise(run.settings) for run in loaded],
        teacher=[_network_name((run.settings["teacher"] or {}).get("name")) for run in loaded],
        student=[_network_name(run.settings["model"]["name"]) for run in loaded],
        teacher_top1=[(run.settings["teacher"] or {}).get("test_top1", float("nan")) for run in loaded],
        method_views=[run.settings["method"]["views"] for run in loaded],
        distilled=[run.settings["teacher"] is not None for run in loaded],
        recipe=[json.dumps(run.settings["recipe"], sort_keys=True) for run in loaded],
        weights=[(run.settings["teacher"] or {}).get("fingerprint", "") for run in loaded],
    )
    measured = measured[measured["top1"].notna()]  # trials of a search have no test images
    same = ["dataset", "student", "epochs", "train_images", "recipe"]
    alone = measured[(measured["method"] == "supervised") & (measured["variant"] == "")].groupby(same)["top1"].mean()
    rows: list[Mapping[str, Any]] = []
    groups = measured[measured["distilled"]].groupby(
        [*same, "teacher", "weights", "method", "variant", "method_views"], sort=False
    )
    for key, group in groups:
        dataset, student, epochs, images, recipe, teacher, _, method, variant, views = key
        name = f"{method}, {variant}" if variant else method
        notes = [f"{views} rotated views"] if views > 1 else []
        rows.append(
            {
                "dataset": dataset,
                "teacher": teacher,
                "student": student,
                "teacher_top1": group["teacher_top1"].mean(),
                "student_alone_top1": alone.get((dataset, student, epochs, images, recipe), float("nan")),
                "method": SAME_METHOD.get(name, name),
                "top1": group["top1"].mean(),
                "sd": group["top1"].std(),
                "seeds": float(group["seed"].nunique()),
                "epochs": str(epochs),
                "views_or_aug": "; ".join([*notes, f"{images:,} training images"]),
                "source_kind": "ours",
                "source": "this package",
                "checked_in": str(runs),
            }
        )
    return _complete(pd.DataFrame(rows, columns=list(COLUMNS)))


def _dataset_name(name: str) -> str:
    """Return the name of a data set without the path of its folder."""
    return "imagenet" if name.startswith("imagenet:") else name


def _network_name(name: str | None) -> str:
    """Return the name of a network without that of its library. A network without a name gets an empty one."""
    return re.sub(r"^(torchvision|timm):", "", name or "")


def compare(numbers: pd.DataFrame, sort: str = "own") -> pd.DataFrame:
    """Return one row per method, with the range of its accuracies by kind.

    Parameters
    ----------
    numbers : DataFrame
        As returned by `find_numbers`.
    sort : str
        "own": by the highest number that the authors published. "reproduced": by the median of the reproduced numbers.
        "gain": by the median gain. The best methods come first. Methods without such a number come last, sorted by
        the median of all their published numbers.

    Returns
    -------
    DataFrame
        - method.
        - own_low, own_high, own_count: lowest and highest accuracy in percent, and how many numbers there are. The same
          for reproduced, copied and ours. NaN and 0 if there are none.
        - reproduced_median.
        - gain_low, gain, gain_high: lowest, median and highest gain of own and reproduced numbers, in percentage
          points.
        - alone_low, alone_high: accuracies in percent of the student trained alone, in the sources of these numbers.
        - teacher_low, teacher_high: accuracies of the teachers in percent.
        - marks: names in `MARKS`, comma-separated.

    Raises
    ------
    ValueError
        If `sort` is something else.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> numbers = pckd.leaderboard.find_numbers(("resnet56", "resnet20"))
    >>> pckd.leaderboard.compare(numbers, sort="gain")[["method", "gain_low", "gain_high"]].head(2)
      method  gain_low  gain_high
    0    SKD      6.71       6.71
    1   MLKD      6.42       6.42
    """
    if sort not in SORT_COLUMNS:
        raise ValueError(f"sort must be one of {', '.join(SORT_COLUMNS)}, got {sort!r}")
    rows = []
    for method, group in numbers.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method}
        by_kind = {kind: group.loc[group["source_kind"] == kind, "top1"] for kind in KINDS}
        for kind, values in by_kind.items():
            row |= {f"{kind}_low": values.min(), f"{kind}_high": values.max(), f"{kind}_count": len(values)}
        trained = group[group["source_kind"].isin(["own", "reproduced"])]
        row["reproduced_median"] = by_kind["reproduced"].median()
        row |= {"gain_low": trained["gain"].min(), "gain": trained["gain"].median(), "gain_high": trained["gain"].max()}
        for name, values in (("alone", trained["student_alone_top1"]), ("teacher", group["teacher_top1"])):
            row |= {f"{name}_low": values.min(), f"{name}_high": values.max()}
        published = group.loc[group["source_kind"] != "ours", "top1"]
        has = {mark for text in group["marks"] for mark in text.split(", ")}
        has |= {"range"} if published.nunique() > 1 else set()
        row |= {"marks": ", ".join(mark for mark in MARKS if mark in has), "median": published.median()}
        rows.append(row)
    order = pd.DataFrame(rows).sort_values(
        [SORT_COLUMNS[sort], "median"], ascending=False, na_position="last", kind="stable"
    )
    return order.drop(columns="median").reset_index(drop=True)


def range_text(low: float, high: float, digits: int = 2) -> str:
    """Return a range of numbers as text.

    Parameters
    ----------
    low, high : float
    digits : int
        Number of decimals.

    Returns
    -------
    str
        One number if both are the same, and a dash for NaN.

    Examples
    --------
    >>> from pckd_nb.leaderboard import range_text
    >>> range_text(67.28, 71.68), range_text(71.16, 71.16), range_text(-0.05, 1.49, 1)
    ('67.28–71.68', '71.16', '-0.1 to 1.5')
    """
    if pd.isna(low):
        return "-"
    first, last = f"{low:.{digits}f}", f"{high:.{digits}f}"
    if first == last:
        return first
    return f"{first} to {last}" if low < 0 else f"{first}–{last}"

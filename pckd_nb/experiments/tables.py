"""The results of a grid as tables, and their statistics."""

import warnings
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from scipy.stats import ttest_ind

from .. import runs
from ..validation import check
from .grid import Grid, is_finished

if TYPE_CHECKING:
    from ..analysis import Summary

COMPUTE = ("teraflops", "seconds")  # columns of `results` with compute=True


def results(grid: Grid, compute: bool = False) -> pd.DataFrame:
    """Return a table of the finished points of a grid.

    Parameters
    ----------
    grid : Grid
    compute : bool
        Whether to add what each training cost: teraflops, see `analysis.teraflops`, and the measured seconds of all
        epochs. The seconds depend on the machine, on other programs, and on whether teacher outputs were cached.

    Returns
    -------
    DataFrame
        One row per finished point of every pair, in the order of the grid. A run without a teacher has one row in each
        pair with its student. The columns are data, teacher, teacher_run, student, pair,
        arm, seed, epochs, top1 and top5 (percent), and cross_entropy (nats). With a validation split there is also
        val_top1 (percent). With label noise there are also label_noise, the share of wrong labels, and noise, its kind.
        teacher_run is the seed of the teacher's run and the fingerprint of its weights, such as
        "seed1-0123456789abcdef". It is empty for a method without a teacher. Without `compute`, the table does not
        depend on when or how fast a point was trained.

    Raises
    ------
    TypeError
        If `compute` is not a bool.
    """
    check(bool, compute=compute)
    rows = []
    for pair, point in grid.points_by_pair():
        if is_finished(point):
            run = runs.load_run(point.folder, tables_only=True)
            row = runs.table([run]).iloc[0]
            teacher = run.settings["teacher"]
            seed = runs.read_settings(point.teacher)["seed"] if teacher and point.teacher else None
            teacher_run = teacher and f"seed{seed}-{teacher['fingerprint']}"
            options = run.settings["data"]["options"]
            noise = {name: options[name] for name in ("label_noise", "noise") if name in options}
            names = {
                "data": run.settings["data"]["name"],
                **noise,
                "teacher": row["teacher"],
                "teacher_run": teacher_run,
            }
            shared = {**names, "student": row["student"]}
            scores = {name: row[name] for name in ("epochs", "top1", "top5", "cross_entropy")}
            if "val_top1" in run.history:
                scores["val_top1"] = run.history["val_top1"].iloc[-1]
            if compute:
                from ..analysis import teraflops  # slow to import, because of scikit-learn

                scores |= {"teraflops": teraflops(run), "seconds": run.seconds}
            rows.append({**shared, "pair": pair, "arm": str(point.arm), "seed": point.seed, **scores})
    return pd.DataFrame(rows)


def comparison(table: pd.DataFrame, reference: str = "kd") -> pd.DataFrame:
    """Return the mean accuracy of every arm, and its difference to a reference arm, over seeds.

    Parameters
    ----------
    table : DataFrame
        The table of `results`, or any table with the columns pair, arm, seed and top1 (percent). A pair has one teacher
        network. If there are several teachers, give each of them its own pair.
    reference : str
        The arm that all others are compared with.

    Returns
    -------
    DataFrame
        One row per arm of every teacher-student pair. The columns are:

        - pair and arm,
        - seeds: the number of seeds,
        - mean, sd, low and high: mean, standard deviation and 95 % interval of top1 in percent,
        - difference, d_low and d_high: the difference to the reference arm, paired by seed, and its 95 % interval,
        - pairs: the number of seeds that both arms have,
        - p: two-sided p-value of the paired t-test, see `analysis.Summary.p_value`,
        - p_holm: p corrected for all arms of this pair that are compared with the reference, see `analysis.holm`,
        - teraflops and seconds: what one training cost, the mean over seeds, if the table has these columns.

        In the rows of the reference arm, and where no seed can be paired, the difference and its p-values are NaN and
        pairs is 0. With one common seed, there are no interval and no p-values.

    Raises
    ------
    ValueError
        If a column is missing, or if an arm of a pair has two rows with the same seed.
    TypeError
        If `table` is not a DataFrame, or `reference` not a string.

    Notes
    -----
    All seeds of a pair learn from the same teacher network. So interval and p-value say how the result varies with the
    seed of the student, not with the teacher. For that, see `comparison_over_teachers`.

    Examples
    --------
    >>> import pandas as pd
    >>> from pckd_nb.experiments import comparison
    >>> rows = [("p", "kd", 0, 60.0), ("p", "kd", 1, 62.0), ("p", "pckd", 0, 63.0), ("p", "pckd", 1, 66.0)]
    >>> table = pd.DataFrame(rows, columns=["pair", "arm", "seed", "top1"])
    >>> comparison(table)[["arm", "mean", "difference", "p"]].round(2)
        arm  mean  difference    p
    0    kd  61.0         NaN  NaN
    1  pckd  64.5         3.5  0.09
    """
    from ..analysis import paired_difference, summarise

    _check_table(table, "pair", "arm", "seed", "top1")
    check(str, reference=reference)
    if (doubled := table[table.duplicated(["pair", "arm", "seed"])]).size:
        first = doubled.iloc[0]
        raise ValueError(
            f"the table has several rows of pair {first['pair']}, arm {first['arm']}, seed {first['seed']}: if they "
            "have different teachers, give each teacher its own pair"
        )
    scores = {key: group.set_index("seed")["top1"] for key, group in table.groupby(["pair", "arm"], sort=False)}
    rows = []
    for (pair, arm), group in table.groupby(["pair", "arm"], sort=False):
        found, reference_scores = scores[pair, arm], scores.get((pair, reference), pd.Series(dtype=float))
        shared = arm != reference and len(found.index.intersection(reference_scores.index))
        difference = paired_difference(found, reference_scores) if shared else None
        rows.append(_row(pair, arm, summarise(found.tolist()), difference, group))
    return _with_holm(rows, "seeds")


def comparison_over_teachers(table: pd.DataFrame, reference: str = "kd") -> pd.DataFrame:
    r"""Return the mean accuracy of every arm, and its difference to a reference arm, over teachers.

    Students of one teacher are not independent: they all have its strengths and errors. So more seeds do not show
    whether a result holds for other teachers. Here every teacher counts once. With K teachers of one architecture, let
    :math:`d_k` be the mean difference of the students of teacher k, paired by seed, as in `comparison`. The difference
    is the mean of :math:`d_1, \dots, d_K`, and its interval is

    .. math:: \bar d \pm t_{K-1} \, \frac{\text{sd}(d_1, \dots, d_K)}{\sqrt K}

    with the 97.5 % quantile :math:`t_{K-1}` of Student's t-distribution with K − 1 degrees of freedom.

    An arm without a teacher does not depend on the teachers, however many there are. Its mean, standard deviation and
    interval are over its seeds. Its difference to a reference with a teacher is the mean over the seeds minus the mean
    over the teachers. Both vary independently, so interval and p-value are those of Welch's t-test. They are missing if
    there is only one seed or one teacher. Two arms without a teacher are compared seed by seed.

    Parameters
    ----------
    table : DataFrame
        The table of `results`, or any table with the columns pair, arm, seed, top1, teacher and student. Pairs with the
        same names of teacher and student count as different teachers of one architecture. The column teacher is empty
        in the rows of arms without a teacher.
    reference : str
        The arm that all others are compared with.

    Returns
    -------
    DataFrame
        One row per arm of every architecture. The columns are those of `comparison`, with these meanings:

        - pair: names of teacher and student, as in "resnet20-resnet8",
        - teachers: the number of teachers, in place of seeds. 0 for an arm without a teacher,
        - mean, sd, low and high: mean, standard deviation and 95 % interval over the teachers, where the value of a
          teacher is the mean of its seeds. For an arm without a teacher, over its seeds,
        - difference, d_low and d_high: as defined above,
        - pairs: the number of teachers whose students can be compared. Of two arms without a teacher, the number of
          seeds. 0 if only one of the arms has a teacher,
        - p and p_holm: p-values of the t-test of :math:`d_1, \dots, d_K`, or of Welch's t-test. NaN for fewer than two
          teachers.

    Raises
    ------
    ValueError
        As in `comparison`, and if the table has several data sets.
    TypeError
        As in `comparison`.

    Examples
    --------
    >>> import pandas as pd
    >>> from pckd_nb.experiments import comparison_over_teachers
    >>> top1 = {("first", "kd"): 60.0, ("first", "pckd"): 63.0, ("second", "kd"): 62.0, ("second", "pckd"): 66.0}
    >>> rows = [(*key, seed, value + seed) for key, value in top1.items() for seed in (0, 1)]
    >>> table = pd.DataFrame(rows, columns=["pair", "arm", "seed", "top1"]).assign(teacher="vgg13", student="vgg8")
    >>> comparison_over_teachers(table)[["pair", "arm", "teachers", "difference", "pairs", "p"]].round(2)
             pair   arm  teachers  difference  pairs     p
    0  vgg13-vgg8    kd         2         NaN      0   NaN
    1  vgg13-vgg8  pckd         2         3.5      2  0.09
    """
    from ..analysis import paired_difference, summarise

    _check_table(table, "pair", "arm", "seed", "top1", "teacher", "student")
    if "data" in table and table["data"].nunique() > 1:
        raise ValueError(f"the table has several data sets, {', '.join(table['data'].unique())}: select one of them")
    networks = table.groupby("pair")[["teacher", "student"]].first()  # the first name that is not missing
    compared = comparison(table, reference).join(networks, on="pair")
    empty = table["teacher"].isna().groupby([table["pair"], table["arm"]]).all().rename("alone")
    compared = compared.join(empty, on=["pair", "arm"])
    rows = []
    difference: Summary | Unpaired | None
    for (teacher, student), group in compared.groupby(["teacher", "student"], sort=False):
        values, alone = {}, {}
        for arm, of_arm in group.groupby("arm", sort=False):
            found = table[table["pair"].isin(of_arm["pair"]) & (table["arm"] == arm)]
            alone[arm] = bool(of_arm["alone"].all())
            values[arm] = found.groupby("seed" if alone[arm] else "pair", sort=False)["top1"].mean()
        for arm, of_arm in group.groupby("arm", sort=False):
            difference = None
            if arm == reference or reference not in values:
                pass
            elif alone[arm] and alone[reference]:
                if values[arm].index.intersection(values[reference].index).size:
                    difference = paired_difference(values[arm], values[reference])
            elif alone[arm] or alone[reference]:
                difference = _unpaired_difference(values[arm], values[reference])
            elif differences := of_arm["difference"].dropna().tolist():
                difference = summarise(differences)
            row = _row(f"{teacher}-{student}", arm, summarise(values[arm].tolist()), difference, of_arm)
            rows.append({**row, "count": 0} if alone[arm] else row)
    return _with_holm(rows, "teachers")


class Unpaired(NamedTuple):
    """Difference of the means of two independent samples, with the names of `analysis.Summary`.

    Parameters
    ----------
    mean : float
    low, high : float
        Bounds of its 95 % interval.
    p_value : float
        Of Welch's t-test.
    count : int
        Number of pairs, which is 0.
    """

    mean: float
    low: float = float("nan")
    high: float = float("nan")
    p_value: float = float("nan")
    count: int = 0  # type: ignore[assignment]  # replaces tuple.count, which counts values


def _unpaired_difference(a: pd.Series, b: pd.Series) -> Unpaired:
    """Return mean(a) − mean(b). Interval and p-value are NaN if a sample has one value, or if no sample varies."""
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2 or a.nunique() == b.nunique() == 1:
        return Unpaired(difference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all seeds of one sample may have the same accuracy
        welch = ttest_ind(a, b, equal_var=False)
    interval = welch.confidence_interval()
    return Unpaired(difference, float(interval.low), float(interval.high), float(welch.pvalue))


def _check_table(table: pd.DataFrame, *columns: str) -> None:
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a DataFrame, got {type(table).__name__}: results(grid) returns one")
    if missing := [name for name in columns if name not in table]:
        found = ", ".join(map(str, table)) or "no columns"
        raise ValueError(
            f"the table needs the columns {', '.join(columns)}, but has no {missing[0]}, only {found:.200}"
        )


def _row(
    pair: Hashable, arm: Hashable, top1: "Summary", difference: "Summary | Unpaired | None", group: pd.DataFrame
) -> dict[str, Any]:
    """Return a row of a comparison, without p_holm. `group` may have the columns `COMPUTE`."""
    row: dict[str, Any] = {"pair": pair, "arm": arm, "count": top1.count, "pairs": 0}
    row |= {name: getattr(top1, name) for name in ("mean", "sd", "low", "high")}
    if difference:
        row |= {"difference": difference.mean, "d_low": difference.low, "d_high": difference.high}
        row |= {"pairs": difference.count, "p": difference.p_value}
    return row | {name: group[name].mean() for name in COMPUTE if name in group}


def _with_holm(rows: list[dict[str, Any]], counted: str) -> pd.DataFrame:
    """Return the rows of a comparison as a table with corrected p-values. `counted` is "seeds" or "teachers"."""
    from ..analysis import holm

    columns = ["pair", "arm", "count", "mean", "sd", "low", "high", "difference", "d_low", "d_high", "pairs", "p"]
    compute = [name for name in COMPUTE if any(name in row for row in rows)]
    compared = pd.DataFrame(rows, columns=[*columns, *compute])
    compared.insert(len(columns), "p_holm", compared.groupby("pair")["p"].transform(holm))
    return compared.rename(columns={"count": counted})

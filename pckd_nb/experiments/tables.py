"""The results of a grid as tables."""

import pandas as pd

from .. import runs
from .grid import Grid, is_finished


def results(grid: Grid) -> pd.DataFrame:
    """Return a table of the finished points of a grid.

    Parameters
    ----------
    grid : Grid

    Returns
    -------
    DataFrame
        One row per finished point, in the order of the grid. The columns are data, teacher, teacher_run, student, pair,
        arm, seed, epochs, top1 and top5 (percent), and cross_entropy (nats). With a validation split there is also
        val_top1 (percent). teacher_run is the seed of the teacher's run and the fingerprint of its weights, such as
        "seed1-0123456789abcdef". It is empty for a method without a teacher. The table does not depend on when or how
        fast a point was trained.
    """
    rows = []
    for point in grid.points():
        if is_finished(point):
            run = runs.load_run(point.folder, tables_only=True)
            row = runs.table([run]).iloc[0]
            teacher = run.settings["teacher"]
            seed = runs.read_settings(point.teacher)["seed"] if teacher and point.teacher else None
            teacher_run = teacher and f"seed{seed}-{teacher['fingerprint']}"
            names = {"data": row["data"], "teacher": row["teacher"], "teacher_run": teacher_run}
            shared = {**names, "student": row["student"]}
            scores = {name: row[name] for name in ("epochs", "top1", "top5", "cross_entropy")}
            if "val_top1" in run.history:
                scores["val_top1"] = run.history["val_top1"].iloc[-1]
            rows.append({**shared, "pair": point.folder.parts[-3], "arm": str(point.arm), "seed": point.seed, **scores})
    return pd.DataFrame(rows)


def comparison(table: pd.DataFrame, reference: str = "kd") -> pd.DataFrame:
    """Return the mean accuracy of every arm, and its difference to a reference arm.

    Parameters
    ----------
    table : DataFrame
        The table of `results`, or any table with the columns pair, arm, seed and top1 (percent).
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
        - pairs: the number of seeds that both arms have.

        In the rows of the reference arm, and where no seed can be paired, the difference is NaN and pairs is 0.

    Examples
    --------
    >>> import pandas as pd
    >>> from pckd_nb.experiments import comparison
    >>> rows = [("p", "kd", 0, 60.0), ("p", "kd", 1, 62.0), ("p", "pckd", 0, 63.0), ("p", "pckd", 1, 66.0)]
    >>> table = pd.DataFrame(rows, columns=["pair", "arm", "seed", "top1"])
    >>> comparison(table)[["arm", "mean", "difference"]].round(1)
        arm  mean  difference
    0    kd  61.0         NaN
    1  pckd  64.5         3.5
    """
    from ..analysis import paired_difference, summarise  # slow to import, because of scikit-learn

    rows = []
    for (pair, arm), group in table.groupby(["pair", "arm"], sort=False):
        mean, sd, low, high, count = summarise(group["top1"].tolist())
        row = {"pair": pair, "arm": arm, "seeds": count, "mean": mean, "sd": sd, "low": low, "high": high, "pairs": 0}
        reference_rows = table[(table["pair"] == pair) & (table["arm"] == reference)]
        if arm != reference and set(reference_rows["seed"]) & set(group["seed"]):
            scores, reference_scores = (
                dict(zip(part["seed"], part["top1"], strict=True)) for part in (group, reference_rows)
            )
            difference = paired_difference(scores, reference_scores)
            row |= {"difference": difference.mean, "d_low": difference.low, "d_high": difference.high}
            row["pairs"] = difference.count
        rows.append(row)
    columns = ["pair", "arm", "seeds", "mean", "sd", "low", "high", "difference", "d_low", "d_high", "pairs"]
    return pd.DataFrame(rows, columns=columns)

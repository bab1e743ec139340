"""Results of a grid as tables."""

import pandas as pd

from .. import runs
from .grid import Grid, is_finished


def results(grid: Grid) -> pd.DataFrame:
    """Return one row per finished point of the grid, in its order.

    The columns are data, teacher, student, pair, arm, seed, epochs, top1, top5 (percent) and cross_entropy (nats), and
    val_top1 (percent) if there is a validation split. Nothing in them depends on when or how fast a point was trained.
    """
    rows = []
    for point in grid.points():
        if is_finished(point):
            run = runs.load_run(point.folder, tables_only=True)
            row = runs.table([run]).iloc[0]
            shared = {name: row[name] for name in ("data", "teacher", "student")}
            scores = {name: row[name] for name in ("epochs", "top1", "top5", "cross_entropy")}
            if "val_top1" in run.history:
                scores["val_top1"] = run.history["val_top1"].iloc[-1]
            rows.append({**shared, "pair": point.folder.parts[-3], "arm": str(point.arm), "seed": point.seed, **scores})
    return pd.DataFrame(rows)


def comparison(table: pd.DataFrame, reference: str = "kd") -> pd.DataFrame:
    """`results`, or any table with pair, arm, seed and top1, as one row an arm of every pair: number of seeds, mean, sd
    and 95 % interval (low, high) of top1 in percent, and the difference to the `reference` arm, paired by seed, with
    its interval, and the number of seeds that both have (pairs); NaN, and 0 pairs, where there is no such arm."""
    from ..analysis import paired_difference, summarise  # pulls in scikit-learn

    rows = []
    for (pair, arm), group in table.groupby(["pair", "arm"], sort=False):
        mean, sd, low, high, count = summarise(group["top1"].tolist())
        row = {"pair": pair, "arm": arm, "seeds": count, "mean": mean, "sd": sd, "low": low, "high": high, "pairs": 0}
        beside = table[(table["pair"] == pair) & (table["arm"] == reference)]
        if arm != reference and set(beside["seed"]) & set(group["seed"]):
            ours, theirs = (dict(zip(part["seed"], part["top1"], strict=True)) for part in (group, beside))
            difference = paired_difference(ours, theirs)
            row |= {"difference": difference.mean, "d_low": difference.low, "d_high": difference.high}
            row["pairs"] = difference.count
        rows.append(row)
    columns = ["pair", "arm", "seeds", "mean", "sd", "low", "high", "difference", "d_low", "d_high", "pairs"]
    return pd.DataFrame(rows, columns=columns)

"""Experiments: comparisons, ablations and sweeps as grids of runs.

Every point of a grid is a run folder, and the folders are all the state there is. Finished points are skipped,
interrupted ones are resumed, and shards on several machines share only the folder that they write to.

    OUT/<teacher>-<student>/<arm>/seed<n>     a point
    OUT/results.csv                           one row per finished point

An arm is a method with the settings that differ from its defaults, written as its folder is called: "kd",
"pckd-strategy=uniform", "pckd-beta_cc=0.02", "kd-epochs=40", "AT". Beside the method's own settings it may have the
numbers of a recipe (epochs, batch_size, lr, …) and epsilon_240: the ε of a training of 240 epochs, as in the paper. The
threshold then ends where it ends after these 240 epochs (ε = epsilon_240^(240/epochs)).
"""

from .arms import SWEEPS, Arm, ablation_arms, parse_arm, sweep_arms
from .execution import dealt, my_points, run_grid
from .grid import Grid, Point, is_finished
from .projection import duration, projected_seconds
from .tables import comparison, results

__all__ = [
    "SWEEPS", "Arm", "Grid", "Point", "ablation_arms", "comparison", "dealt", "duration",
    "is_finished", "my_points", "parse_arm", "projected_seconds", "results", "run_grid", "sweep_arms",
]  # fmt: skip

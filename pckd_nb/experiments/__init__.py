"""Comparisons, ablations and sweeps: grids of training runs.

A grid trains several arms over several seeds and teacher-student pairs. An *arm* is a method together with the settings
that differ from its defaults. Its text is also the name of its folder: "kd", "pckd-strategy=uniform",
"pckd-beta_cc=0.02", "kd-epochs=40", "AT".

Every point of a grid is one run, in its own run folder:

    OUT/<teacher>-<student>/<arm>/seed<n>     one point; OUT/<student>/<arm>/seed<n> in a grid without teachers
    OUT/results.csv                           one row per finished point

There is no other state. Finished points are skipped and interrupted ones are resumed, so a grid can be stopped at any
time. Several machines can train one grid if they write to the same folder: in shards that do not communicate, or as
workers of a Dask scheduler.

An arm can also change the numbers of the recipe (epochs, batch_size, lr, …). The setting epsilon_240 is the ε of a
training of 240 epochs, as in the paper. It is converted to the number of epochs of the arm, so that the preview
threshold ends at the same value: ε = epsilon_240^(240/epochs).

A `Search` chooses the settings of methods on validation images, before a grid compares them on test images.

Examples
--------
>>> import pckd_nb as pckd
>>> arm = pckd.experiments.parse_arm("pckd-beta_cc=0.02")
>>> arm.method, arm.settings
('pckd', (('beta_cc', 0.02),))
>>> [str(arm) for arm in pckd.experiments.sweep_arms("views", [1, 4])]
['pckd-views=1', 'pckd-views=4']
"""

from ..deprecation import renamed
from .arms import SWEEPS, Arm, ablation_arms, parse_arm, sweep_arms
from .choosing import check_same_training, chosen_arms, read_search, search_summary, search_trials
from .execution import FailedRunsError, run_grid, shard_points, split_into_shards
from .formatting import format_comparison
from .grid import Grid, Point, is_finished
from .pairs import find_pairs
from .projection import estimate_seconds, format_duration
from .search import Search, run_search
from .tables import comparison, comparison_over_teachers, results

__all__ = [
    "SWEEPS", "Arm", "FailedRunsError", "Grid", "Point", "Search", "ablation_arms", "check_same_training",
    "chosen_arms", "comparison", "comparison_over_teachers", "estimate_seconds", "find_pairs", "format_comparison",
    "format_duration", "is_finished", "parse_arm", "read_search", "results", "run_grid", "run_search",
    "search_summary", "search_trials", "shard_points", "split_into_shards", "sweep_arms",
]  # fmt: skip

__getattr__ = renamed(__name__)

"""Data sets: images and labels of a training and a test split, by name or from your own arrays, datasets or tables.

`load_dataset` loads a data set by its name. `Dataset.from_arrays`, `Dataset.from_torch` and `Dataset.from_table` build
one from your own data.
"""

from ..catalogue import DATASETS
from .dataset import Dataset, Split
from .loading import load_dataset, rebuild
from .streaming import Streamed

__all__ = ["DATASETS", "Dataset", "Split", "Streamed", "load_dataset", "rebuild"]

"""Data sets with a training split, a test split and an optional validation split.

`load_dataset` loads a data set by its name. `Dataset.from_arrays`, `Dataset.from_torch` and `Dataset.from_table` build
one from your own images.

Examples
--------
>>> import pckd_nb as pckd
>>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
>>> data.num_classes, data.train.images.shape
(10, torch.Size([32, 1, 16, 16]))

Your own image files, listed in a table:

>>> import pandas as pd
>>> from PIL import Image
>>> rows = [("red.png", "owl", "train"), ("lime.png", "gull", "train")]
>>> rows += [("blue.png", "owl", "test"), ("black.png", "gull", "test")]
>>> for file, _, _ in rows:
...     Image.new("RGB", (8, 8), file.removesuffix(".png")).save(file)
>>> table = pd.DataFrame(rows, columns=["path", "class", "split"])
>>> pckd.Dataset.from_table(table, image_size=8)
Dataset('table': 2 + 2 images of 3×8×8, 2 classes)
"""

from ..catalogue import DATASETS
from .dataset import Dataset
from .loading import load_dataset, rebuild
from .split import Split
from .streaming import Streamed

__all__ = ["DATASETS", "Dataset", "Split", "Streamed", "load_dataset", "rebuild"]

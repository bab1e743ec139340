"""Measure whole trainings: a sweep with a teacher cache, the accuracy of fast training, and t-SNE of two libraries."""

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_rel
from sklearn.neighbors import NearestNeighbors

import pckd_nb as pckd
from pckd_nb import views
from pckd_nb.analysis import directions
from pckd_nb.data import Dataset
from pckd_nb.models import Classifier

from .measure import spread
from .settings import Settings
from .work import load_shapes, make_teacher, make_trainer

SPLITS = ("train", "test")
SaveRows = Callable[[list[dict[str, Any]]], None]


def sweep(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare five runs in separate processes with five runs in one process that share a teacher cache.

    The first run fills the cache. The start of the processes is part of the time.
    """
    make_teacher(settings, settings.sweep_networks[0])
    single = [seconds_of_process(settings, (beta_cc,)) for beta_cc in settings.sweep_beta_cc]
    with TemporaryDirectory() as folder:
        shared = seconds_of_process(settings, settings.sweep_beta_cc, folder)
    details = {
        "beta_cc": list(settings.sweep_beta_cc),
        "seconds": {"a process each, live teacher": single, "one process, cache": [shared]},
    }
    return {"sweep_over_single_runs": shared / sum(single)}, details


def seconds_of_process(settings: Settings, values: tuple[float, ...], cache: str | None = None) -> float:
    """Return the seconds of a process that trains one run per value of β_cc."""
    arguments = json.dumps({**asdict(settings), "root": settings.root and str(settings.root)}), values, cache
    code = f"from benchmarks.studies import train_students; train_students(*{arguments!r})"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return time.perf_counter() - started


def train_students(settings: str, values: tuple[float, ...], cache: str | None) -> None:
    """Distil one student per value of β_cc. `settings` is JSON."""
    chosen = Settings(**json.loads(settings))
    data = load_shapes(chosen, chosen.sweep_train_size, chosen.sweep_test_size)
    teacher = make_teacher(chosen, chosen.sweep_networks[0])
    recipe = pckd.get_recipe("classroom", epochs=chosen.sweep_epochs)
    for beta_cc in values:
        student = pckd.create_model(chosen.sweep_networks[1], data, seed=0)
        options: dict[str, Any] = {"accelerator": chosen.accelerator, "progress": False, "teacher_cache": cache}
        pckd.distill(student, copy.deepcopy(teacher), data, pckd.PCKD(beta_cc=beta_cc), recipe, seed=0, **options)


def accuracy(
    settings: Settings, done: list[dict[str, Any]], save_rows: SaveRows
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare the accuracy of fast training with that of plain float32, with one pair of runs per seed.

    Parameters
    ----------
    settings : Settings
    done : list of dict
        Rows of an interrupted measurement.
    save_rows : callable
        Called with all rows after every seed.
    """
    rows = list(done)
    for seed in settings.accuracy_seeds:
        if seed not in [row["seed"] for row in rows]:
            rows.append({"seed": seed, **accuracy_of_seed(settings, seed)})
            save_rows(rows)
    fast, plain = ([row[name] for row in rows] for name in ("fast", "plain"))
    values = {"accuracy_difference": statistics.fmean(fast) - statistics.fmean(plain)}
    if len(rows) > 1:
        interval = ttest_rel(fast, plain).confidence_interval(0.95)
        values |= {"accuracy_interval_low": float(interval.low), "accuracy_interval_high": float(interval.high)}
    gaps = [row["teacher_fast"] - row["teacher_float32"] for row in rows]
    values["teacher_accuracy_difference"] = max(gaps, key=abs)
    return values, {"rows": rows}


def accuracy_of_seed(settings: Settings, seed: int) -> dict[str, float]:
    """Return the accuracies of one seed in percent.

    Those of the student are on the test images, and those of the teacher on training and test images. The few test
    images alone are not precise enough for a target of 0.1 points.
    """
    if settings.accuracy_data == "shapes100":
        data = load_shapes(settings, settings.accuracy_train_size, settings.accuracy_test_size)
    else:
        data = pckd.load_dataset(settings.accuracy_data, settings.root)
    recipe = pckd.get_recipe("classroom", epochs=settings.accuracy_epochs)
    common: dict[str, Any] = {"recipe": recipe, "accelerator": settings.accelerator, "progress": False}
    teacher_name, student_name = settings.accuracy_networks
    teacher = pckd.create_model(teacher_name, data, seed=seed)
    pckd.fit(teacher, data, seed=seed, **common)

    def student(**options: Any) -> float:
        network = pckd.create_model(student_name, data, seed=seed)
        run = pckd.distill(network, copy.deepcopy(teacher), data, pckd.PCKD(), seed=seed, **common, **options)
        return run.accuracy

    evaluation = {"accelerator": settings.accelerator, "precision": "32-true"}
    plain = {split: pckd.evaluate(copy.deepcopy(teacher), data, split, **evaluation).top1 for split in SPLITS}
    count = sum(len(getattr(data, split)) for split in SPLITS)
    return {
        "fast": student(compile=settings.accuracy_compile),
        "plain": student(precision="32-true", compile=False),
        "teacher_fast": fast_teacher_accuracy(teacher, data, student_name, **common),
        "teacher_float32": sum(len(getattr(data, split)) * share for split, share in plain.items()) / count,
    }


@torch.no_grad()
def fast_teacher_accuracy(teacher: Classifier, data: Dataset, student: str, **options: Any) -> float:
    """Return the accuracy in percent, on training and test images, of the teacher in the form that training uses."""
    trainer = make_trainer(pckd.create_model(student, data, seed=0), teacher, data, **options)
    correct = []
    for split in (getattr(trainer.data, name) for name in SPLITS):
        for index in torch.arange(len(split)).split(250):
            (images,) = split.read([index])
            x = views.normalise(images, trainer.mean, trainer.std).contiguous(memory_format=torch.channels_last)
            assert trainer.teacher is not None
            prediction = trainer.teacher.network(x).logits.argmax(1)
            correct.append(prediction == split.labels[index.to(prediction.device)])
    return 100 * torch.cat(correct).double().mean().item()


def tsne(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare the time and quality of t-SNE maps of two libraries. The package uses openTSNE."""
    from sklearn.manifold import TSNE

    from pckd_nb.analysis import tsne_map

    points, labels = mixture(settings.tsne_points)
    libraries = {
        "scikit-learn": lambda seed, x: TSNE(perplexity=30, init="pca", random_state=seed).fit_transform(x),
        "openTSNE": lambda seed, x: tsne_map(x, seed, perplexity=30),
    }
    rows: list[dict[str, Any]] = []
    for draw in libraries.values():
        draw(0, points[:500])
    for seed in range(settings.tsne_repetitions):
        for library, draw in libraries.items():
            started = time.perf_counter()
            xy = np.asarray(draw(seed, points))
            seconds = time.perf_counter() - started
            rows.append({"library": library, "seed": seed, "seconds": seconds, **quality(points, xy, labels)})
    by_library = {
        library: {
            name: spread([row[name] for row in rows if row["library"] == library])
            for name in ("seconds", "neighbours_kept", "purity")
        }
        for library in libraries
    }
    details = {"points": len(points), "libraries": by_library, "input_purity": purity(neighbours(points), labels)}
    medians = [found["seconds"]["median"] for found in by_library.values()]
    return {"tsne_ratio": medians[0] / medians[1]} if len(medians) == 2 else {}, details


def mixture(points: int, classes: int = 100, width: int = 64, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Return random points (points + classes, width), as `analysis.embed` prepares them, and their labels.

    First come features from a mixture of Gaussians, one per class, then the centers of the classes. `noise` is the
    standard deviation within a class, relative to that of the centers.
    """
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((classes, width))
    labels = np.arange(points) % classes
    features = centers[labels] + noise * generator.standard_normal((points, width))
    return np.concatenate([directions(features), directions(centers)]), np.concatenate([labels, np.arange(classes)])


def neighbours(x: np.ndarray, k: int = 10) -> np.ndarray:
    """Return the indices of the k nearest neighbours of every row, (N, k)."""
    return NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)


def purity(nearest: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of neighbours with the same class."""
    return float((labels[nearest] == labels[:, None]).mean())


def quality(points: np.ndarray, xy: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the quality of a map.

    Returns
    -------
    dict
        neighbours_kept: share of the 10 nearest neighbours that are also among the 10 nearest on the map. purity: share
        of the 10 nearest neighbours on the map with the same class.
    """
    before, after = neighbours(points), neighbours(xy)
    kept = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(before, after, strict=True)])
    return {"neighbours_kept": float(kept), "purity": purity(after, labels)}

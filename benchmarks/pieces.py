"""Time single pieces of the package, compared with other code: data loading, the contrast loss L_CC, the import."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import pckd_nb as pckd
from pckd_nb import losses
from pckd_nb.data import Streamed

from . import reference
from .measure import Variant, interleave, per_second, ratio, spread
from .settings import Settings
from .work import PackageLoop, load_shapes, make_trainer

ROOT = Path(__file__).parents[1]
VIEWS, CLASSES = 4, 100
MIN_CROPPED_SIDE = 100  # pixels; from this size on, images are cropped at random, like those of ImageNet
CONTRASTS = {"pckd_nb": losses.category_center_contrast, "plain": reference.contrast}
IMPORTS = {"pckd_nb": "import pckd_nb", "torch": "import torch"}
# The package imports torch when it is first needed, so the first use of a name is timed as well.
FIRST_USE = {"pckd_nb and first use": "import pckd_nb; pckd_nb.distill"}
HELP = "pckd-nb --help"


def data(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure how many images per second become normalised batches of four views on the device."""
    images = load_shapes(settings, settings.train_size)
    batch_size = settings.batch_sizes[0]
    recipe = pckd.get_recipe("cifar100_paper", epochs=1, batch_size=batch_size)
    networks = pckd.create_model("resnet8", images, seed=0), pckd.create_model("resnet8", images, seed=1)
    options: dict[str, Any] = {"recipe": recipe, "accelerator": settings.accelerator, "compile": False}
    loop = PackageLoop(make_trainer(*networks, images, progress=False, **options))
    loader = reference.make_loader(images, batch_size)
    batches = iter(loader)

    def load() -> Tensor:
        return reference.four_views(next(batches)[0].to(settings.device))

    def settle() -> None:  # drop batches that the workers made before the clock started
        for _ in range(loader.num_workers * (loader.prefetch_factor or 0)):
            next(batches)

    variants = {
        "pckd_nb": Variant(loop.input, settings.data_batches),
        "plain": Variant(load, settings.data_batches, settle),
    }
    seconds = interleave(variants, settings.repetitions, seconds=0.5 * settings.planned.get("data", inf))
    speedup = ratio(seconds["plain"], seconds["pckd_nb"])
    details = {
        "batch_size": batch_size,
        "workers": loader.num_workers,
        "images_per_second": {name: per_second(times, batch_size) for name, times in seconds.items()},
        "ratio": speedup,
    }
    return {"data_path_ratio": speedup["value"]}, details


def folders(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure how many images per second are read from a folder of JPEG files, compared with torchvision's ImageFolder.

    Small images are not cropped, large ones are cropped at random. Both variants use the same number of workers.
    """
    values: dict[str, float] = {}
    details: dict[str, Any] = {"workers": settings.workers, "batch_size": settings.batch_sizes[0], "sides": {}}
    for side, count in settings.folder_images.items():
        with TemporaryDirectory() as folder:
            write_folder(Path(folder), int(side), count)
            variants = {
                "pckd_nb": Variant(partial(read_streamed, Path(folder), int(side), settings)),
                "ImageFolder": Variant(partial(read_image_folder, Path(folder), int(side), settings)),
            }
            limit = 0.5 * settings.planned.get("folders", inf) / len(settings.folder_images)
            seconds = interleave(variants, settings.repetitions, warmup=1, seconds=limit)
        speeds = {name: per_second(times, count) for name, times in seconds.items()}
        speedup = ratio(seconds["ImageFolder"], seconds["pckd_nb"])
        details["sides"][side] = {"images": count, "images_per_second": speeds, "ratio": speedup}
        values[f"folder_{side}_ratio"] = speedup["value"]
    return values, details


def write_folder(folder: Path, side: int, count: int) -> None:
    """Write smooth random images into two class folders: `side` pixels wide and high, or larger if they get cropped."""
    rng = np.random.default_rng(0)
    size = (side, side) if side < MIN_CROPPED_SIDE else (282, 256)
    for number in range(count):
        place = folder / f"class{number % 2}" / f"{number}.jpg"
        place.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture.resize(size, Image.Resampling.BICUBIC).save(place, quality=90)


def read_streamed(folder: Path, side: int, settings: Settings) -> None:
    """Read all images of a folder once in random order, as a training does."""
    names = np.array([os.fsencode(path.relative_to(folder)) for path in sorted(folder.rglob("*.jpg"))])
    labels = torch.zeros(len(names), dtype=torch.int64)
    split = Streamed(folder, names, labels, side, random_crop=side >= MIN_CROPPED_SIDE, workers=settings.workers)
    for _ in split.read(torch.randperm(len(names)).split(settings.batch_sizes[0]), seed=0, epoch=1):
        pass


def read_image_folder(folder: Path, side: int, settings: Settings) -> None:
    """Read all images of a folder once in random order with torchvision."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    crop = [v2.RandomResizedCrop(side)] if side >= MIN_CROPPED_SIDE else [v2.Resize(side), v2.CenterCrop(side)]
    images = ImageFolder(folder, v2.Compose([*crop, v2.PILToTensor()]))
    for _ in DataLoader(images, settings.batch_sizes[0], shuffle=True, num_workers=settings.workers):
        pass


def contrast(settings: Settings) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Measure time and memory of forward and backward pass of the contrast loss L_CC.

    An anchor is one row of scores, of the student or of the teacher. L_CC compares every pair of anchors, so the time
    is given per pair.
    """
    small, large = settings.contrast_batches
    variants = {}
    for name, function in CONTRASTS.items():
        for batch in (small, large):
            call = partial(forward_backward, function, *contrast_inputs(batch, settings.device))
            variants[f"{name}, {batch}"] = Variant(call, calls=max(1, (large // batch) ** 2 // 8))
    seconds = interleave(variants, settings.repetitions, warmup=1, seconds=0.5 * settings.planned.get("contrast", inf))

    def per_pair(name: str, batch: int) -> list[float]:
        return [1e9 * value / (2 * VIEWS * batch) ** 2 for value in seconds[f"{name}, {batch}"]]

    growth = {name: ratio(per_pair(name, large), per_pair(name, small)) for name in CONTRASTS}
    extra = {name: contrast_memory(name, large, settings.device) for name in CONTRASTS}
    details = {
        "batches": [small, large],
        "anchors": [2 * VIEWS * batch for batch in (small, large)],
        "classes": CLASSES,
        "nanoseconds_per_pair": {
            name: {str(batch): spread(per_pair(name, batch)) for batch in (small, large)} for name in CONTRASTS
        },
        "pair_time_large_over_small": growth,
        "extra_gib": extra,
        "memory_from": "torch.cuda.max_memory_allocated" if settings.device.type == "cuda" else "VmHWM",
    }
    return {"contrast_extra_gib": extra["pckd_nb"], "contrast_pair_ratio": growth["pckd_nb"]["value"]}, details


def contrast_inputs(batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return random scores of student and teacher, (N, C), with rows of length 1, and labels, (N,)."""
    generator = torch.Generator().manual_seed(0)
    u_s, u_t = (F.normalize(torch.randn(VIEWS * batch, CLASSES, generator=generator), dim=1) for _ in range(2))
    labels = torch.randint(CLASSES, (batch,), generator=generator).repeat(VIEWS)
    return u_s.to(device).requires_grad_(), u_t.to(device).requires_grad_(), labels.to(device)


def forward_backward(function: Callable[..., Tensor], u_s: Tensor, u_t: Tensor, labels: Tensor) -> None:
    """Compute a loss and its gradients."""
    u_s.grad = u_t.grad = None
    function(u_s, u_t, labels).mean().backward()


def contrast_memory(name: str, batch: int, device: torch.device) -> float | None:
    """Return the GiB that forward and backward pass need, without their input, or None if that cannot be measured."""
    if device.type != "cuda" and not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "benchmarks.contrast_memory", name, str(batch), str(device)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def imports(settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure the seconds to import the package, to use it, to import torch alone, and to show the help."""
    seconds: dict[str, list[float]] = {name: [] for name in (*IMPORTS, *FIRST_USE, HELP)}
    for _ in range(1 + settings.import_repetitions):  # the first one is a warm-up
        for name, statement in {**IMPORTS, **FIRST_USE}.items():
            seconds[name].append(import_seconds(statement))
        seconds[HELP].append(help_seconds())
    seconds = {name: times[1:] for name, times in seconds.items()}
    import_ratio = ratio(*(seconds[name] for name in IMPORTS))
    first_use_ratio = ratio(seconds[next(iter(FIRST_USE))], seconds["torch"])["value"]
    values = {
        "import_over_torch": import_ratio["value"],
        "first_use_over_torch": first_use_ratio,
        "help_seconds": statistics.median(seconds[HELP]),
    }
    return values, {"seconds": {n: spread(t) for n, t in seconds.items()}, "ratio": import_ratio}


def help_seconds() -> float:
    """Return the seconds from the start of the command to its end, including the start of Python."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pckd_nb", "--help"], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def import_seconds(statement: str) -> float:
    """Return the seconds that a statement takes in a new Python process, without the start of Python."""
    code = f"import time; started = time.perf_counter(); {statement}; print(time.perf_counter() - started)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)

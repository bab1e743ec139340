"""The frozen teacher, in the cheapest form that still says the same, and how a training asks it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from .. import hardware, ranks, views
from ..config import RunConfig
from ..data import Dataset
from ..evaluation import pixel_statistics
from ..models import Classifier, FeatureMaps, Output
from ..provenance import NOT_RECORDED
from .task import Task
from .teacher_cache import TeacherCache

TOLERANCE = 0.02  # of a form's logits, ‖Δ‖ / ‖logits‖, against float32
CHECKED_IMAGES = 256

Features = Callable[[Tensor], Tensor]


class FrozenTeacher:
    """A teacher that is asked and never trained: network input in, a float32 `Output` out.

    exact: it stays as it is, in float32. Else it takes the first form that its processor computes well, see `hardware`,
    and whose logits on 256 training images stay within 2 % of float32: int8 (weights and activations, calibrated on
    other training images), bfloat16, float32 with BatchNorm folded into the convolutions. Its features are then rounded
    to 16 bits. kind: numpy's name of the numbers that features are, also where a `cache.TeacherCache` keeps them: what
    is read is what would be said. needs_maps: its outputs come with feature maps, which hooks take from the network
    itself (from `layers`, if they are named), so it is neither int8 nor rewritten, but runs under autocast where the
    processor computes in bfloat16.
    """

    def __init__(
        self, model: Classifier, data: Dataset, turns: int, fabric: Fabric, exact: bool, needs_maps: bool = False,
        layers: Sequence[str] | None = None,
    ):  # fmt: skip
        self.model = model.to(fabric.device).to(memory_format=torch.channels_last).eval()
        self.maps = FeatureMaps(self.model, torch.zeros(1, data.channels, *data.size), layers) if needs_maps else None
        self.data, self.turns = data, turns
        self.kind = "float32" if exact else "float16"
        self.form, self.error = "", 0.0  # until `choose`, which the first question calls
        self._features: Features = self.model.features

    @torch.no_grad()
    def choose(self) -> None:
        """Take a form. A teacher whose features are all in a cache never needs to."""
        self.form = "float32"
        if self.kind == "float32":
            return
        device = next(self.model.parameters()).device
        calibration, checked = _samples(self.data, self.turns, device)
        expected = self.model(checked).logits
        for form, make in _forms(device, bool(self.maps)).items():
            if (features := make(self.model, calibration)) is None:
                continue
            self._features = features
            error = ((self(checked).logits - expected).norm() / expected.norm()).item()
            if error <= TOLERANCE:
                self.form, self.error = form, error
                return
            warnings.warn(f"the teacher in {form} is off by {100 * error:.1f} %: it takes another form", stacklevel=2)
        self._features = self.model.features

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D), of 16 bits unless it is exact."""
        if not self.form:
            self.choose()
        with torch.autocast(x.device.type, enabled=False):
            features = self._features(x)
        return features if self.kind == "float32" else features.half()

    @torch.no_grad()
    def output(self, features: Tensor) -> Output:
        """What the last layer says of features, (N, D), in float32 where they are of 16 bits."""
        with torch.autocast(features.device.type, enabled=False):
            return self.model.output(features.float() if features.itemsize == 2 else features)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Output:
        def answer(x: Tensor) -> Output:
            return self.output(self.features(x))

        return self.maps(answer, x).float() if self.maps else answer(x)


class Teacher:
    """A `FrozenTeacher` as a training asks it: every process for its part of a batch, and a cache before the network.

    Use it in a `with` block. At its end no file is left half-written, and the network is in its earlier mode again.
    """

    def __init__(self, frozen: FrozenTeacher, fabric: Fabric, mode: bool = False):
        self.frozen, self.fabric, self.mode = frozen, fabric, mode
        self.cache: TeacherCache | None = None

    @classmethod
    def of(cls, task: Task, fabric: Fabric, exact: bool) -> Teacher:
        """Return the teacher of a task, whose data are on the device that trains. exact: see `FrozenTeacher`."""
        model, method = task.teacher, task.method
        assert model is not None
        mode, maps = model.training, (method.needs_maps, method.teacher_layers)
        return cls(FrozenTeacher(model, task.data, method.views, fabric, exact, *maps), fabric, mode)

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *error: object) -> None:
        if self.cache:
            self.cache.close()
        self.frozen.model.train(self.mode)

    def choose(self, root: str | Path | None, gigabytes: float, key: dict[str, Any]) -> dict[str, Any]:
        """Take a form, and keep what is said under the folder `root`, if there is one.

        key: all that decides what the teacher says. A teacher whose features are all in the cache is not asked for its
        form. Returns the form that was taken, and how far its logits are from float32, for run.json.
        """
        frozen = self.frozen
        if root and frozen.maps:
            warnings.warn("feature maps are not cached: the teacher is asked at every step", stacklevel=2)
        elif root:
            shape = (len(frozen.data.train), frozen.turns, frozen.model.feature_width)
            writes = self.fabric.is_global_zero
            self.cache = TeacherCache(root, key, shape, gigabytes, frozen.kind, writes=writes)
        kept = self.cache.form() if self.cache else None
        if kept is None:
            frozen.choose()
            kept = {"form": frozen.form, "logits_error": frozen.error}
            if self.cache:
                self.cache.keep_form(kept)
        return kept

    def begin_epoch(self, epoch: int) -> None:
        """Open the cache's file of an epoch, counted from 1."""
        if self.cache:
            self.cache.begin(epoch)

    def end_epoch(self) -> None:
        """Keep the file of the epoch if it is whole."""
        if self.cache:
            self.cache.end()

    def answer(self, x: Tensor, index: Tensor) -> Output:
        """What the teacher says of all views of the whole batch.

        x: network input, this process's rows · index: (B,) positions of the whole batch in the training set.
        """
        if self.frozen.maps:
            return ranks.gather(self.frozen(x), len(index), self.fabric)
        features = self.cache.read(ranks.part(index, self.fabric)) if self.cache else None
        if features is None:
            features = self.frozen.features(x)
        features = ranks.gather_rows(features, len(index), self.fabric)
        if self.cache:
            self.cache.write(index, features)  # if it has not been read there
        return self.frozen.output(features)


def usable_cache(root: str | Path | None, config: RunConfig) -> str | Path | None:
    """Return the folder of the teacher cache, or None where the images that the teacher sees depend on the batch, or on
    what can't be recorded. Warns then. config: of the training."""
    recipe = config.recipe.model_dump()
    if root and recipe["mix"]:
        warnings.warn("mixed images are not cached: the teacher is asked at every step", stacklevel=3)
        return None
    if root and NOT_RECORDED in str(recipe["augment"]):
        warnings.warn("this augmentation can't be recorded, so it is not cached: the teacher is asked", stacklevel=3)
        return None
    return root


def cache_key(config: RunConfig, task: Task, device: torch.device) -> dict[str, Any]:
    """Return all that decides what a teacher says of a training image. config: of the training."""
    settings, recipe = config.dump(), task.recipe
    key = {
        "teacher": settings["teacher"]["fingerprint"],
        "precision": settings["precision"],
        "exact": settings["teacher"]["exact"],
        "hardware": hardware.describe(device),
        "data": settings["data"]["fingerprint"],
        "normalisation": [settings["data"]["mean"], settings["data"]["std"]],
        "seed": settings["seed"],
        "views": settings["method"]["views"],
        "padding": task.data.train.padding if recipe.crop else 0,
        "flip": recipe.flip,
        "torch": torch.__version__,
    }
    if recipe.augment:
        key["augment"] = settings["recipe"]["augment"]
    for name in ("preprocessing", "code"):
        if name in settings["teacher"]:
            key[name] = settings["teacher"][name]
    return key


def _forms(device: torch.device, needs_maps: bool) -> dict[str, Callable[[Classifier, Tensor], Features | None]]:
    """The forms that the hardware computes faster than the network as it is, the fastest first."""
    bfloat16 = hardware.computes_in_bfloat16(device)
    if needs_maps:
        return {"autocast": _autocast} if bfloat16 else {}
    int8 = {"int8": _int8} if hardware.computes_in_int8(device) else {}
    return {**int8, **({"bfloat16": _bfloat16} if bfloat16 else {}), "folded": _folded}


def _samples(data: Dataset, turns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two sets of at most 256 training images each as network input, evenly spread and in every rotation."""
    count = min(2 * CHECKED_IMAGES, len(data.train))
    index = torch.linspace(0, len(data.train) - 1, count).round().long()
    images = torch.cat(list(data.train.to(device).read(index.split(32))))
    x = views.normalise(images, *pixel_statistics(data, device))
    x = torch.stack([image.rot90(row // 2 % turns, (1, 2)) for row, image in enumerate(x)])
    x = x.contiguous(memory_format=torch.channels_last)
    return x[::2], x[1::2] if count > 1 else x


def _bfloat16(model: Classifier, calibration: Tensor) -> Features:
    """All in bfloat16, with BatchNorm folded where that can be done."""
    features = (_fused(model) or _Features(copy.deepcopy(model))).bfloat16()
    return lambda x: features(x.bfloat16())


def _folded(model: Classifier, calibration: Tensor) -> Features | None:
    """In float32 with BatchNorm folded. None where that can't be done."""
    return _fused(model)


def _fused(model: Classifier) -> nn.Module | None:
    """The features of a copy, BatchNorm folded into the convolutions before it; None where torch.fx can't trace it."""
    try:
        return fuse(_Features(copy.deepcopy(model))).to(memory_format=torch.channels_last)
    except Exception:  # whatever tracing stumbles over
        return None


def _autocast(model: Classifier, calibration: Tensor) -> Features:
    """The network as it is, computing in bfloat16 where that is precise enough."""

    def features(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return model.features(x)

    return features


def _int8(model: Classifier, calibration: Tensor) -> Features | None:
    """Quantised by torch's FX mode, weights by channel and activations by tensor, with BatchNorm folded in.

    The first convolution, which sees the image, stays as it is. What is left of a shift and a scale in every feature
    is taken out by least squares on the calibration images. None where torch or the network are not up to it.
    """
    engine = torch.backends.quantized.engine
    try:
        from torch.ao import quantization
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = "onednn"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of deprecation: where it is gone, so is this form
            # a running mean of the batches' ranges was measured to be closer than the default, a range by histogram
            ranges = quantization.MovingAverageMinMaxObserver.with_args(dtype=torch.quint8, averaging_constant=0.1)
            scheme = quantization.QConfig(ranges, quantization.default_per_channel_weight_observer)
            mapping = quantization.QConfigMapping().set_global(scheme)
            network = _Features(copy.deepcopy(model))
            first = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
            observed = prepare_fx(network, mapping.set_module_name(first, None), (calibration,))
            for part in calibration.split(64):
                observed(part)
            quantised = convert_fx(observed)
            found, right = quantised(calibration), model.features(calibration)
            centred = found - found.mean(0)
            scale = (centred * (right - right.mean(0))).sum(0) / centred.square().sum(0).clamp_min(1e-12)
            shift = right.mean(0) - scale * found.mean(0)
            return lambda x: torch.addcmul(shift, quantised(x), scale)
    except Exception:  # a network that can't be traced may raise anything
        return None
    finally:
        torch.backends.quantized.engine = engine


class _Features(nn.Module):
    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.features(x)

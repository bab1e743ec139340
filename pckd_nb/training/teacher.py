"""The frozen teacher: its numeric form, and how a training requests its outputs."""

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

TOLERANCE = 0.02  # maximum error of a form's logits against float32, ‖Δ‖ / ‖logits‖
CHECKED_IMAGES = 256

Features = Callable[[Tensor], Tensor]


class FrozenTeacher:
    """A teacher for inference only: it maps network input to a float32 `Output`.

    Unless `exact` is set, the teacher takes the first form that its processor computes fast (see `hardware`) and whose
    logits on 256 training images stay within 2 % of float32:

    1. int8 weights and activations, calibrated on other training images,
    2. bfloat16,
    3. float32 with BatchNorm folded into the convolutions.

    Its features are then rounded to 16 bits.

    Feature maps are taken by hooks from the network itself. With `needs_maps`, the teacher is therefore neither
    quantized nor rewritten. It runs under autocast if the processor computes in bfloat16.

    Parameters
    ----------
    model : Classifier
    data : Dataset
        Images to choose and calibrate the form.
    turns : int
        Number of rotations of every image.
    fabric : Fabric
    exact : bool
        Keep the network as it is, in float32.
    needs_maps : bool
        Return feature maps with every output.
    layers : sequence of str, optional
        Layers whose outputs are the feature maps.

    Attributes
    ----------
    kind : str
        NumPy dtype of the features, "float32" or "float16". A `TeacherCache` stores the same dtype, so features that
        are read equal features that are computed.
    form : str
        The chosen form. Empty until `choose`, which the first call runs.
    error : float
        Relative error of the form's logits, ‖Δ‖ / ‖logits‖.
    """

    def __init__(
        self, model: Classifier, data: Dataset, turns: int, fabric: Fabric, exact: bool, needs_maps: bool = False,
        layers: Sequence[str] | None = None,
    ):  # fmt: skip
        self.model = model.to(fabric.device).to(memory_format=torch.channels_last).eval()
        self.maps = FeatureMaps(self.model, torch.zeros(1, data.channels, *data.size), layers) if needs_maps else None
        self.data, self.turns = data, turns
        self.kind = "float32" if exact else "float16"
        self.form, self.error = "", 0.0  # until `choose`, which the first call runs
        self._features: Features = self.model.features

    @torch.no_grad()
    def choose(self) -> None:
        """Choose a form. This is not needed if all features are in a cache."""
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
        """Return the features (N, D) of network input (N, C, H, W), in float16 unless the teacher is exact."""
        if not self.form:
            self.choose()
        with torch.autocast(x.device.type, enabled=False):
            features = self._features(x)
        return features if self.kind == "float32" else features.half()

    @torch.no_grad()
    def output(self, features: Tensor) -> Output:
        """Apply the last layer to features (N, D). 16-bit features are converted to float32 first."""
        with torch.autocast(features.device.type, enabled=False):
            return self.model.output(features.float() if features.itemsize == 2 else features)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Output:
        def answer(x: Tensor) -> Output:
            return self.output(self.features(x))

        return self.maps(answer, x).float() if self.maps else answer(x)


class Teacher:
    """A `FrozenTeacher` for training.

    Every process computes its part of a batch. If there is a cache, it is read before the network runs.

    Use it in a `with` block. At the end of the block, incomplete cache files are removed and the network returns to its
    previous mode.

    Parameters
    ----------
    frozen : FrozenTeacher
    fabric : Fabric
    mode : bool
        Training mode of the network at the end of the block.
    """

    def __init__(self, frozen: FrozenTeacher, fabric: Fabric, mode: bool = False):
        self.frozen, self.fabric, self.mode = frozen, fabric, mode
        self.cache: TeacherCache | None = None

    @classmethod
    def of(cls, task: Task, fabric: Fabric, exact: bool) -> Teacher:
        """Return the teacher of a task.

        Parameters
        ----------
        task : Task
            Its data are on the training device.
        fabric : Fabric
        exact : bool
            As in `FrozenTeacher`.

        Returns
        -------
        Teacher
        """
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
        """Choose a form, and open the cache if there is one.

        A form is not chosen again if the cache has recorded one.

        Parameters
        ----------
        root : path or None
            Folder of the teacher cache. None for no cache.
        gigabytes : float
            Maximum size of the cache.
        key : dict
            Everything that determines the teacher's outputs, see `cache_key`.

        Returns
        -------
        dict
            For run.json: "form", the chosen form, and "logits_error", the relative error of its logits against float32.
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
        """Open the cache file of an epoch. Epochs count from 1."""
        if self.cache:
            self.cache.begin(epoch)

    def end_epoch(self) -> None:
        """Keep the cache file of the epoch if it is complete."""
        if self.cache:
            self.cache.end()

    def answer(self, x: Tensor, index: Tensor) -> Output:
        """Return the teacher's output for all views of the whole batch.

        Parameters
        ----------
        x : float Tensor of shape (V·b, C, H, W)
            Network input, this process's rows only.
        index : int64 Tensor of shape (B,)
            Positions of the whole batch in the training set.

        Returns
        -------
        Output
            V·B rows.
        """
        if self.frozen.maps:
            return ranks.gather(self.frozen(x), len(index), self.fabric)
        features = self.cache.read(ranks.local_part(index, self.fabric)) if self.cache else None
        if features is None:
            features = self.frozen.features(x)
        features = ranks.gather_rows(features, len(index), self.fabric)
        if self.cache:
            self.cache.write(index, features)  # does nothing if the features were read from it
        return self.frozen.output(features)


def usable_cache(root: str | Path | None, config: RunConfig) -> str | Path | None:
    """Return the folder of the teacher cache, or None if outputs cannot be cached.

    The images that the teacher sees must not depend on the batch, or on code that cannot be recorded. Otherwise a
    warning says why they are not cached.

    Parameters
    ----------
    root : path or None
    config : RunConfig
        Of the training.

    Returns
    -------
    path or None
    """
    recipe = config.recipe.model_dump()
    if root and recipe["mix"]:
        warnings.warn("mixed images are not cached: the teacher is asked at every step", stacklevel=3)
        return None
    if root and NOT_RECORDED in str(recipe["augment"]):
        warnings.warn("this augmentation can't be recorded, so it is not cached: the teacher is asked", stacklevel=3)
        return None
    return root


def cache_key(config: RunConfig, task: Task, device: torch.device) -> dict[str, Any]:
    """Return everything that determines the teacher's output for a training image.

    Parameters
    ----------
    config : RunConfig
        Of the training.
    task : Task
    device : torch.device

    Returns
    -------
    dict
    """
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
    """Return the forms that the hardware computes faster than the original network, the fastest first."""
    bfloat16 = hardware.computes_in_bfloat16(device)
    if needs_maps:
        return {"autocast": _autocast} if bfloat16 else {}
    int8 = {"int8": _int8} if hardware.computes_in_int8(device) else {}
    return {**int8, **({"bfloat16": _bfloat16} if bfloat16 else {}), "folded": _folded}


def _samples(data: Dataset, turns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two sets of at most 256 training images as network input, evenly spaced and in all rotations."""
    count = min(2 * CHECKED_IMAGES, len(data.train))
    index = torch.linspace(0, len(data.train) - 1, count).round().long()
    images = torch.cat(list(data.train.to(device).read(index.split(32))))
    x = views.normalise(images, *pixel_statistics(data, device))
    x = torch.stack([image.rot90(row // 2 % turns, (1, 2)) for row, image in enumerate(x)])
    x = x.contiguous(memory_format=torch.channels_last)
    return x[::2], x[1::2] if count > 1 else x


def _bfloat16(model: Classifier, calibration: Tensor) -> Features:
    """Compute in bfloat16, with BatchNorm folded if possible."""
    features = (_fused(model) or _Features(copy.deepcopy(model))).bfloat16()
    return lambda x: features(x.bfloat16())


def _folded(model: Classifier, calibration: Tensor) -> Features | None:
    """Compute in float32 with BatchNorm folded. Return None if folding is not possible."""
    return _fused(model)


def _fused(model: Classifier) -> nn.Module | None:
    """Return the features of a copy with BatchNorm folded into the convolutions, or None if tracing fails."""
    try:
        return fuse(_Features(copy.deepcopy(model))).to(memory_format=torch.channels_last)
    except Exception:  # tracing can raise anything
        return None


def _autocast(model: Classifier, calibration: Tensor) -> Features:
    """Run the original network, in bfloat16 for the operations where autocast allows it."""

    def features(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return model.features(x)

    return features


def _int8(model: Classifier, calibration: Tensor) -> Features | None:
    """Quantize with torch's FX mode: weights per channel, activations per tensor, BatchNorm folded.

    The first convolution sees the image and is not quantized. The remaining shift and scale of every feature are
    corrected by least squares on the calibration images. Returns None if torch or the network does not support this.
    """
    engine = torch.backends.quantized.engine
    try:
        from torch.ao import quantization
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = "onednn"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecation; without this API the form is skipped
            # measured: the running mean of the batch ranges is more accurate than the default, a histogram
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

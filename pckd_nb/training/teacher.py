"""The frozen teacher: fast inference at reduced precision, and its outputs for every training batch."""

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
from ..models.maps import MapKind
from ..provenance import NOT_RECORDED
from .task import Task
from .teacher_cache import TeacherCache

MAX_LOGITS_ERROR = 0.02  # maximum relative error of the logits against float32
CHECK_IMAGES = 256  # maximum number of training images to check a form of the teacher, see `FrozenTeacher`

FeatureFunction = Callable[[Tensor], Tensor]  # from network input to features


class FrozenTeacher:
    """A teacher that is only used for inference. It maps network input to a float32 `Output`.

    A network can be converted to other forms, which compute nearly the same logits faster. Unless `exact` is set, the
    teacher uses the first of these forms that the processor computes fast, and whose logits differ by at most 2 % from
    float32 on 256 training images:

    1. "int8": weights and activations are 8-bit integers. Other training images are used to find the range of every
       activation (calibration).
    2. "bfloat16": all computations are in bfloat16.
    3. "folded": each BatchNorm layer is merged into the convolution before it ("folded"). All computations are in
       float32.

    If there is no such form, the original network is used, in the form "float32". Unless `exact` is set, the features
    are rounded to float16.

    A method that compares feature maps needs the layers of the original network, so these forms cannot be used. With
    `needs_maps`, the only faster form is "autocast": the original network with bfloat16 autocast.

    Parameters
    ----------
    model : Classifier
    data : Dataset
        Its training images are used to calibrate and check the forms.
    views : int
        Number of rotated views per image.
    fabric : Fabric
    exact : bool
        Whether to use the original network in float32.
    needs_maps : bool
        Whether outputs contain feature maps.
    layers : sequence of str, optional
        Names of the layers whose outputs are the feature maps.
    map_kind : str
        Which feature maps to use without `layers`, see `models.FeatureMaps`.

    Attributes
    ----------
    dtype : {"float32", "float16"}
        NumPy dtype of the features. A `TeacherCache` stores the same dtype, so cached and computed features are equal.
    form : {"", "int8", "bfloat16", "folded", "autocast", "float32"}
        The form that is used. Empty before `choose_form`.
    error : float
        Relative error of the logits in this form, ‖logits − float32 logits‖ / ‖float32 logits‖.
    """

    def __init__(
        self, model: Classifier, data: Dataset, views: int, fabric: Fabric, exact: bool, needs_maps: bool = False,
        layers: Sequence[str] | None = None, map_kind: MapKind = "stages",
    ):  # fmt: skip
        self.model = model.to(fabric.device).to(memory_format=torch.channels_last).eval()
        example = torch.zeros(1, data.channels, *data.size)
        self.maps = FeatureMaps(self.model, example, layers, map_kind) if needs_maps else None
        self.data, self.views = data, views
        self.dtype = "float32" if exact else "float16"
        self.form, self.error = "", 0.0
        self._features: FeatureFunction = self.model.features

    @torch.no_grad()
    def choose_form(self) -> None:
        """Choose the form. The first forward pass calls this. If all features are cached, there is no forward pass."""
        self.form = "float32"
        if self.dtype == "float32":
            return
        device = next(self.model.parameters()).device
        calibration_images, check_images = _calibration_and_check_images(self.data, self.views, device)
        float32_logits = self.model(check_images).logits
        for form, convert in fast_forms(device, bool(self.maps)).items():
            if (features := convert(self.model, calibration_images)) is None:
                continue
            self._features = features
            error = ((self(check_images).logits - float32_logits).norm() / float32_logits.norm()).item()
            if error <= MAX_LOGITS_ERROR:
                self.form, self.error = form, error
                return
            warnings.warn(
                f"logits of the teacher in {form} differ by {100 * error:.1f} % from float32: the next form is tried",
                stacklevel=2,
            )
        self._features = self.model.features

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features.

        Parameters
        ----------
        x : float Tensor of shape (N, C, H, W)

        Returns
        -------
        Tensor of shape (N, D)
            Its dtype is `dtype`.
        """
        if not self.form:
            self.choose_form()
        with torch.autocast(x.device.type, enabled=False):
            features = self._features(x)
        return features if self.dtype == "float32" else features.half()

    @torch.no_grad()
    def output(self, features: Tensor) -> Output:
        """Apply the last layer to features, in float32.

        Parameters
        ----------
        features : float16 or float32 Tensor of shape (N, D)

        Returns
        -------
        Output
        """
        with torch.autocast(features.device.type, enabled=False):
            is_16_bit = features.itemsize == 2
            return self.model.output(features.float() if is_16_bit else features)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Output:
        """Return the output of the network, with feature maps if the method needs them.

        Parameters
        ----------
        x : float Tensor of shape (N, C, H, W)

        Returns
        -------
        Output
        """

        def forward(x: Tensor) -> Output:
            return self.output(self.features(x))

        return self.maps(forward, x).float() if self.maps else forward(x)


class Teacher:
    """The teacher's outputs for every batch. `FrozenTeacher` computes them, or they are read from a cache.

    Every process computes its part of a batch, and gets the outputs for the whole batch.

    Use it in a `with` block. At the end of the block, incomplete cache files are removed, and the network gets its
    training mode back.

    Parameters
    ----------
    network : FrozenTeacher
    fabric : Fabric
    training_mode : bool
        Whether the network is in training mode (not in eval mode) after the block.

    Attributes
    ----------
    cache : TeacherCache or None
    """

    def __init__(self, network: FrozenTeacher, fabric: Fabric, training_mode: bool = False):
        self.network, self.fabric, self.training_mode = network, fabric, training_mode
        self.cache: TeacherCache | None = None

    @classmethod
    def of(cls, task: Task, fabric: Fabric, exact: bool) -> Teacher:
        """Return the teacher of a task.

        Parameters
        ----------
        task : Task
            It has a teacher, and its data are on the training device.
        fabric : Fabric
        exact : bool
            Whether to use the original network in float32.

        Returns
        -------
        Teacher
        """
        model, method = task.teacher, task.method
        assert model is not None
        training_mode = model.training
        maps = method.needs_maps, method.teacher_layers, method.teacher_maps
        network = FrozenTeacher(model, task.data, method.views, fabric, exact, *maps)
        return cls(network, fabric, training_mode)

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *error: object) -> None:
        if self.cache:
            self.cache.close()
        self.network.model.train(self.training_mode)

    def choose_form(self, cache: str | Path | None, gigabytes: float, key: dict[str, Any]) -> dict[str, Any]:
        """Open the cache if there is one, and choose the form of the network.

        If the cache already records a form, no form is chosen. The entries then describe the recorded form.

        Parameters
        ----------
        cache : path or None
            Folder of the cache. None for no cache.
        gigabytes : float
            Maximum size of the cache, in 10⁹ bytes.
        key : dict
            Everything that determines the teacher's outputs, see `cache_key`.

        Returns
        -------
        dict
            Entries for run.json: "form" is the name of the form, and "logits_error" is the relative error of its logits
            against float32.
        """
        network = self.network
        if cache and network.maps:
            warnings.warn("feature maps are not cached: the teacher runs at every step", stacklevel=2)
        elif cache:
            shape = (len(network.data.train), network.views, network.model.feature_width)
            writes = self.fabric.is_global_zero
            self.cache = TeacherCache(cache, key, shape, gigabytes, network.dtype, writes=writes)
        form = self.cache.read_form() if self.cache else None
        if form is None:
            network.choose_form()
            form = {"form": network.form, "logits_error": network.error}
            if self.cache:
                self.cache.write_form(form)
        return form

    def begin_epoch(self, epoch: int) -> None:
        """Open the cache file of an epoch.

        Parameters
        ----------
        epoch : int
            Counted from 1.
        """
        if self.cache:
            self.cache.begin_epoch(epoch)

    def end_epoch(self) -> None:
        """Keep the cache file of the epoch if it is complete."""
        if self.cache:
            self.cache.end_epoch()

    def batch_output(self, x: Tensor, index: Tensor, cached: bool = True) -> Output:
        """Return the teacher's output for all views of the whole batch.

        Parameters
        ----------
        x : float Tensor of shape (V·b, C, H, W)
            Network input, only this process's part of the batch.
        index : int64 Tensor of shape (B,)
            Positions of the whole batch in the training set.
        cached : bool
            False does not use the cache. It has no files for the stages of a method, see `methods.Stage`.

        Returns
        -------
        Output
            With V·B rows.
        """
        cache = self.cache if cached else None
        if self.network.maps:
            return ranks.gather(self.network(x), len(index), self.fabric)
        features = cache.read(ranks.local_part(index, self.fabric)) if cache else None
        if features is None:
            features = self.network.features(x)
        features = ranks.gather_rows(features, len(index), self.fabric)
        if cache:
            cache.write(index, features)
        return self.network.output(features)


def usable_cache(cache: str | Path | None, config: RunConfig) -> str | Path | None:
    """Return the folder of the cache if the teacher's outputs can be cached. Otherwise warn and return None.

    They can be cached if the input for an image does not depend on the rest of the batch, and if run.json can record
    the code of the augmentation.

    Parameters
    ----------
    cache : path or None
        Folder of the cache that the caller asked for.
    config : RunConfig
        Settings of the training.

    Returns
    -------
    path or None
        None if outputs cannot be cached, or if `cache` is None.
    """
    recipe = config.recipe.model_dump()
    if cache and recipe["mix"]:
        warnings.warn("mixed images are not cached: the teacher runs at every step", stacklevel=3)
        return None
    if cache and NOT_RECORDED in str(recipe["augment"]):
        warnings.warn(
            "the code of this augmentation can't be recorded, so the teacher's features are not cached: the teacher "
            "runs at every step",
            stacklevel=3,
        )
        return None
    return cache


def cache_key(config: RunConfig, task: Task, device: torch.device) -> dict[str, Any]:
    """Return everything that determines the teacher's output for a training image.

    Parameters
    ----------
    config : RunConfig
        Settings of the training.
    task : Task
    device : torch.device

    Returns
    -------
    dict
    """
    settings, recipe = config.dump(), task.recipe
    data = settings["data"]["fingerprint"]
    if task.data.train.true_labels is not None:  # trainings with and without label noise share the features
        data = task.data.with_true_labels().fingerprint
    key = {
        "teacher": settings["teacher"]["fingerprint"],
        "precision": settings["precision"],
        "exact": settings["teacher"]["exact"],
        "hardware": hardware.describe(device),
        "data": data,
        "normalisation": [settings["data"]["mean"], settings["data"]["std"]],
        "seed": settings["seed"],
        "views": settings["method"]["views"],
        "padding": task.data.train.padding if recipe.crop else 0,
        "flip": recipe.flip,
        **({"crop_per_view": True} if recipe.crop_per_view and task.method.views > 1 else {}),
        **({"view_kind": task.method.view_kind} if task.method.view_kind != "rotations" else {}),
        "torch": torch.__version__,
    }
    if recipe.augment:
        key["augment"] = settings["recipe"]["augment"]
    for name in ("preprocessing", "code"):
        if name in settings["teacher"]:
            key[name] = settings["teacher"][name]
    return key


def fast_forms(
    device: torch.device, needs_maps: bool
) -> dict[str, Callable[[Classifier, Tensor], FeatureFunction | None]]:
    """Return the forms that a processor computes faster than the original network.

    Parameters
    ----------
    device : torch.device
    needs_maps : bool
        As in `FrozenTeacher`.

    Returns
    -------
    dict of str to callable
        The fastest form comes first. Each value takes the network and calibration images, and returns a function from
        network input to features. It returns None if the network does not support the form.
    """
    bfloat16 = hardware.computes_in_bfloat16(device)
    if needs_maps:
        return {"autocast": _autocast} if bfloat16 else {}
    int8 = {"int8": _int8} if hardware.computes_in_int8(device) else {}
    return {**int8, **({"bfloat16": _bfloat16} if bfloat16 else {}), "folded": _folded_float32}


def _calibration_and_check_images(data: Dataset, rotations: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two sets of at most 256 training images as network input, each in one of the rotations.

    Images that are not square are not rotated. Methods with several views of them use other views than rotations.
    """
    rotations = rotations if data.size[0] == data.size[1] else 1
    count = min(2 * CHECK_IMAGES, len(data.train))
    index = torch.linspace(0, len(data.train) - 1, count).round().long()
    images = torch.cat(list(data.train.to(device).read(index.split(32))))
    x = views.normalise(images, *pixel_statistics(data, device))
    x = torch.stack([image.rot90(row // 2 % rotations, (1, 2)) for row, image in enumerate(x)])
    x = x.contiguous(memory_format=torch.channels_last)
    return x[::2], x[1::2] if count > 1 else x


def _bfloat16(model: Classifier, calibration: Tensor) -> FeatureFunction:
    """Return a function that computes features in bfloat16, with BatchNorm folded if possible."""
    features = (_fold_batchnorm(model) or _FeatureNetwork(copy.deepcopy(model))).bfloat16()
    return lambda x: features(x.bfloat16())


def _folded_float32(model: Classifier, calibration: Tensor) -> FeatureFunction | None:
    """Return a network that computes features in float32, with BatchNorm folded. None if this is not possible."""
    return _fold_batchnorm(model)


def _fold_batchnorm(model: Classifier) -> nn.Module | None:
    """Return a copy without the last layer and with BatchNorm folded into the convolutions. None if tracing fails."""
    try:
        return fuse(_FeatureNetwork(copy.deepcopy(model))).to(memory_format=torch.channels_last)
    except Exception:  # tracing a network can raise anything
        return None


def _autocast(model: Classifier, calibration: Tensor) -> FeatureFunction:
    """Return a function that runs the original network, in bfloat16 for the operations where autocast allows it."""

    def features(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return model.features(x)

    return features


def _int8(model: Classifier, calibration: Tensor) -> FeatureFunction | None:
    """Return a function that computes features in int8. None if torch or the network does not support it.

    The network is quantized by the FX mode of torch. The first convolution is not quantized, because its input is the
    image. Rounding to integers changes the features systematically. To correct this, each feature is multiplied by a
    scale and increased by a shift. A least-squares fit on the calibration images determines both.
    """
    previous_engine = torch.backends.quantized.engine
    try:
        from torch.ao import quantization
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = "onednn"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.ao is deprecated; when it is removed, this form is not used
            # measured: a moving average of batch ranges is more accurate than the default, a histogram
            activations = quantization.MovingAverageMinMaxObserver.with_args(dtype=torch.quint8, averaging_constant=0.1)
            scheme = quantization.QConfig(activations, quantization.default_per_channel_weight_observer)
            mapping = quantization.QConfigMapping().set_global(scheme)
            network = _FeatureNetwork(copy.deepcopy(model))
            first = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
            observed = prepare_fx(network, mapping.set_module_name(first, None), (calibration,))
            for images in calibration.split(64):
                observed(images)
            quantized = convert_fx(observed)
            rounded, exact = quantized(calibration), model.features(calibration)
            centered = rounded - rounded.mean(0)
            scale = (centered * (exact - exact.mean(0))).sum(0) / centered.square().sum(0).clamp_min(1e-12)
            shift = exact.mean(0) - scale * rounded.mean(0)
            return lambda x: torch.addcmul(shift, quantized(x), scale)
    except Exception:  # tracing a network can raise anything
        return None
    finally:
        torch.backends.quantized.engine = previous_engine


class _FeatureNetwork(nn.Module):
    """A network without its last layer, in eval mode."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.features(x)

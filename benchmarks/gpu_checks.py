"""Checks of the package on a GPU.

Each check is a function of `Sizes`. It returns one sentence, or raises CheckFailedError. `python -m benchmarks gpu`
runs all checks and writes a report, and `pytest -m gpu` runs them as tests. With the toy sizes, they also run on a CPU.
There they show that the checks themselves work.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pckd_nb as pckd
from pckd_nb import compiling, losses, preview
from pckd_nb.data import Dataset, Split
from pckd_nb.methods import Batch, Terms
from pckd_nb.models import Classifier, Output

from . import pieces
from .gpu_job import make_data, train_ranks
from .work import make_trainer, untrained_teacher

ROOT = Path(__file__).parents[1]
VIEWS = 4
LAUNCHER_VARIABLES = {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
# Tolerances: the largest allowed difference of a tensor, relative to its largest value.
# Losses and gradients in the same dtype on two devices, which may add the numbers in different orders. On a CPU,
# float32 differs from float64 by up to 1e-6.
FULL_PRECISION_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
# Losses of 16-bit inputs, compared with float32. Their gradients are rounded to 16 bits, too.
HALF_PRECISION_TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
# Losses under autocast, compared with float32.
AUTOCAST_TOLERANCE = {torch.float16: 0.01, torch.bfloat16: 0.03}
# For the loss and for the gradients: channels_last compared with NCHW, in float32. On a CPU, the gradients of deep
# networks differ by 3e-3, because BatchNorm and ReLU amplify rounding errors.
CHANNELS_LAST_TOLERANCES = 1e-4, 2e-2
MAX_CONTRAST_GIB = 0.5  # allowed memory of the contrast


class CheckFailedError(AssertionError):
    """The package does not work as expected on this device."""


class CheckSkippedError(Exception):
    """The check needs something that this machine does not have."""


@dataclass(frozen=True)
class Sizes:
    """The device of the checks, and the sizes of their inputs.

    Parameters
    ----------
    device : str
        "cuda", or "cpu" for a dry run.
    images, classes : int
        Images and classes of a batch, for checks of losses.
    student_dim, teacher_dim : int
        Number of features.
    networks : tuple of str
        Teacher and student, for checks that run networks.
    side, channels, batch : int
        Size of the images, and images per step, for checks that run networks.
    contrast_batch : int
        Images with four views each, for the memory of the contrast.
    processes : int
        Number of processes that torchrun starts.
    """

    device: str = "cuda"
    images: int = 64
    classes: int = 100
    student_dim: int = 64
    teacher_dim: int = 128
    networks: tuple[str, str] = ("wrn_40_2", "wrn_16_2")
    side: int = 32
    channels: int = 3
    batch: int = 64
    contrast_batch: int = 1024
    processes: int = field(default_factory=lambda: max(1, torch.cuda.device_count()))

    @classmethod
    def toy(cls) -> "Sizes":
        """Return sizes that are small enough for one slow CPU core, with two processes instead of two GPUs."""
        return cls("cpu", 6, 7, 8, 12, ("resnet14", "resnet8"), 8, 1, 8, 16, 2)


def require(condition: bool, problem: str) -> None:
    """Raise CheckFailedError if the condition is False."""
    if not condition:
        raise CheckFailedError(problem)


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside the block, compute matrix products and convolutions of float32 in float32, not in TF32."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def difference(found: Tensor, expected: Tensor, scale: float = 0.0) -> float:
    """Return the largest absolute difference, relative to the largest absolute value.

    If `scale` is larger than that value, the difference is relative to `scale`. It is infinite if `found` has
    non-finite values or another shape.
    """
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    if found.shape != expected.shape or not found.isfinite().all():
        return float("inf")
    return float((found - expected).abs().max() / max(float(expected.abs().max()), scale, 1e-30))


def differences(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Return the `difference` of a loss and of each of its gradients.

    A very small gradient may be only rounding error: for example, that of a bias before BatchNorm is 0. Therefore a
    difference is relative to at least a thousandth of the largest gradient.
    """
    scale = max(float(x.detach().abs().max()) for x in expected[1:]) / 1000
    pairs = zip(found, expected, strict=True)
    return [difference(*pair, scale=scale if number else 0.0) for number, pair in enumerate(pairs)]


@dataclass(frozen=True)
class Case:
    """A loss with inputs.

    Parameters
    ----------
    function : callable
        The loss.
    learned : tuple of Tensor
        Inputs that get gradients.
    fixed : tuple of Tensor
        Other inputs.
    """

    function: Callable[..., Tensor]
    learned: tuple[Tensor, ...]
    fixed: tuple[Tensor, ...] = ()

    def loss_and_gradients(self, device: str, dtype: torch.dtype, cast: torch.dtype | None = None) -> list[Tensor]:
        """Return the loss of every row, the gradients of the inputs, and those of the parameters if it has any.

        Parameters
        ----------
        device : str
            Device of the computation.
        dtype : torch.dtype
            The inputs are rounded to this dtype first.
        cast : torch.dtype or None
            The dtype of the computation. None means `dtype`.

        Returns
        -------
        list of Tensor
        """
        function = copy.deepcopy(self.function)
        if isinstance(function, nn.Module):
            function = function.to(device=device, dtype=cast or dtype)

        def place(x: Tensor) -> Tensor:
            return x.to(dtype).to(device=device, dtype=cast or dtype) if x.is_floating_point() else x.to(device)

        learned = [place(x).clone().requires_grad_() for x in self.learned]
        result = function(*learned, *(place(x) for x in self.fixed))
        weights = torch.linspace(0.5, 1.5, result.numel(), dtype=torch.float64).view(result.shape)
        (result * weights.to(device=device, dtype=result.dtype)).sum().backward()
        heads = list(function.parameters()) if isinstance(function, nn.Module) else []
        tensors = [x.grad for x in (*learned, *heads)]
        return [result, *(x for x in tensors if x is not None)]


class Objective(nn.Module):
    """The whole objective of PCKD, as a function of features and last layers."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        torch.manual_seed(0)
        dims = sizes.student_dim, sizes.teacher_dim
        student, teacher = (LastLayer(dim, sizes.classes) for dim in dims)
        self.method = pckd.PCKD().bind(student, teacher)

    def forward(
        self, features: Tensor, centers: Tensor, bias: Tensor, teacher_features: Tensor, teacher_centers: Tensor,
        teacher_bias: Tensor, labels: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the objective."""
        student = Output(features, F.linear(features, centers, bias), centers, bias)
        logits = F.linear(teacher_features, teacher_centers, teacher_bias)
        teacher = Output(teacher_features, logits, teacher_centers, teacher_bias)
        batch = Batch(labels, torch.arange(len(labels), device=labels.device))
        return self.method(student.float() if features.itemsize == 2 else student, teacher, batch, 1).total


class LastLayer(Classifier):
    """A network that has only a last layer."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(dim, classes)


def cases(sizes: Sizes) -> dict[str, Case]:
    """Return every loss with random inputs in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    images, classes, rows = sizes.images, sizes.classes, VIEWS * sizes.images
    labels = torch.randint(classes, (images,), generator=generator)
    scores = [F.normalize(random(rows, classes), dim=1) for _ in range(2)]
    centers = [random(classes, sizes.teacher_dim), random(classes)]
    other = [random(classes, sizes.teacher_dim), random(classes)]
    features = [random(rows, sizes.student_dim), random(classes, sizes.student_dim), random(classes)]
    teacher = [random(rows, sizes.teacher_dim), random(classes, sizes.teacher_dim), random(classes)]
    feature_pair = (random(rows, sizes.teacher_dim), random(rows, sizes.teacher_dim))

    def alignment(weight: Tensor, bias: Tensor, teacher_weight: Tensor, teacher_bias: Tensor) -> Tensor:
        return losses.category_center_alignment(weight, bias, teacher_weight, teacher_bias)

    def previewed(cross_entropy: Tensor) -> Tensor:
        # the weight has no gradient, so add a term that has one
        weight = preview.weight(preview.difficulty(cross_entropy), preview.threshold(1))
        return weight + 0 * cross_entropy

    return {
        "distillation_kl": Case(losses.distillation_kl, (3 * random(images, classes), 3 * random(images, classes))),
        "feature_alignment": Case(losses.feature_alignment, feature_pair),
        "category_center_alignment": Case(alignment, (*centers, *other)),
        "category_center_contrast_plain": Case(
            losses.category_center_contrast_plain, tuple(scores), (labels.repeat(VIEWS),)
        ),
        "category_center_contrast": Case(losses.category_center_contrast, tuple(scores), (labels.repeat(VIEWS),)),
        "preview weights": Case(previewed, (random(images).abs() + 0.1,)),
        "PCKD objective": Case(Objective(sizes), tuple(features), (*teacher, labels)),
    }


def losses_agree(sizes: Sizes, dtype: torch.dtype) -> str:
    """Compare all losses and gradients on the device with those on the CPU, both in this dtype."""
    worst = 0.0
    with full_float32():
        for name, case in cases(sizes).items():
            found, expected = case.loss_and_gradients(sizes.device, dtype), case.loss_and_gradients("cpu", dtype)
            require(found[0].device.type == sizes.device, f"{name} was not computed on {sizes.device}")
            error = max(differences(found, expected))
            require(
                error <= FULL_PRECISION_TOLERANCE[dtype],
                f"{name}: off by {error:.1e}, allowed {FULL_PRECISION_TOLERANCE[dtype]:.0e}",
            )
            worst = max(worst, error)
    return f"largest relative difference {worst:.1e}, allowed {FULL_PRECISION_TOLERANCE[dtype]:.0e}"


def losses_float32(sizes: Sizes) -> str:
    """Compare all losses and gradients in float32, without TF32, with the CPU."""
    return losses_agree(sizes, torch.float32)


def losses_float64(sizes: Sizes) -> str:
    """Compare all losses and gradients in float64 with the CPU."""
    return losses_agree(sizes, torch.float64)


def losses_half(sizes: Sizes) -> str:
    """Compare all losses of float16 and bfloat16 inputs with the same inputs in float32 on the CPU."""
    worst = 0.0
    with full_float32():
        for dtype, allowed in HALF_PRECISION_TOLERANCE.items():
            for name, case in cases(sizes).items():
                if isinstance(case.function, nn.Module):
                    continue  # its heads run under autocast, which the check `autocast` tests
                found = case.loss_and_gradients(sizes.device, dtype)
                expected = case.loss_and_gradients("cpu", dtype, cast=torch.float32)
                if name != "preview weights":  # these keep the dtype of their input
                    require(found[0].dtype == torch.float32, f"{name} of {dtype} was computed in {found[0].dtype}")
                error = max(differences(found, expected))
                require(error <= allowed, f"{name} of {dtype}: off by {error:.1e}, allowed {allowed:.0e}")
                worst = max(worst, error / allowed)
    return f"finite, and at most {worst:.0%} of the allowed rounding"


def make_networks(sizes: Sizes, data: Dataset) -> tuple[Classifier, Classifier]:
    """Return an untrained teacher for timing, and a student with initial weights."""
    teacher, student = sizes.networks
    return untrained_teacher(teacher, data, torch.device(sizes.device)), pckd.create_model(student, data, seed=0)


@dataclass
class Networks:
    """A teacher and a student on the device, with the method and a batch."""

    sizes: Sizes

    def __post_init__(self) -> None:
        sizes = self.sizes
        data = make_data(sizes.batch, 10, min(sizes.classes, 10), sizes.side, sizes.channels)
        self.data = data
        self.teacher, self.student = make_networks(sizes, data)
        torch.manual_seed(0)
        self.method = pckd.PCKD().bind(self.student, self.teacher).to(sizes.device)
        self.teacher.to(sizes.device).eval()
        self.student.to(sizes.device).train()
        assert isinstance(data.train, Split)
        images = data.train.images.float() / 255
        self.x = torch.cat([images.rot90(turns, (2, 3)) for turns in range(VIEWS)]).to(sizes.device)
        labels = data.train.labels.to(sizes.device)
        self.batch = Batch(labels, torch.arange(len(labels), device=sizes.device))

    def step(self, dtype: torch.dtype | None, memory_format: torch.memory_format = torch.contiguous_format) -> Terms:
        """Do a forward and backward pass, under autocast if a dtype is given. The parameters keep their gradients."""
        for module in (self.student, self.teacher):
            module.to(memory_format=memory_format)
        self.student.zero_grad()
        self.method.zero_grad()
        x = self.x.contiguous(memory_format=memory_format)
        with torch.autocast(self.sizes.device, dtype or torch.bfloat16, enabled=dtype is not None):
            student = self.student(x).float()
            with torch.no_grad():
                teacher = self.teacher(x).float()
        terms = self.method(student, teacher, self.batch, 1)
        terms.total.backward()
        return terms

    def gradients(self) -> list[Tensor]:
        """Return copies of the gradients of the student and the method."""
        learned = [*self.student.parameters(), *self.method.parameters()]
        return [x.grad.detach().clone() for x in learned if x.grad is not None]


def autocast(sizes: Sizes) -> str:
    """Check that gradients under autocast are finite, and that losses are close to those in float32."""
    found = []
    with full_float32():
        networks = Networks(sizes)
        expected = networks.step(None).terms
        for dtype, allowed in AUTOCAST_TOLERANCE.items():
            terms = networks.step(dtype).terms
            require(all(x.isfinite().all() for x in networks.gradients()), f"gradients in {dtype} are not finite")
            worst = 0.0
            for name, value in terms.items():
                error = difference(value, expected[name])
                require(error <= allowed, f"{name} in {dtype}: off by {error:.1e}, allowed {allowed:.0e}")
                worst = max(worst, error)
            found.append(f"{str(dtype).removeprefix('torch.')} off by {worst:.1e}, allowed {allowed:.0e}")
    return "; ".join(found)


def train(sizes: Sizes, **options: Any) -> pckd.Run:
    """Distil a student for two epochs with two steps each."""
    data = make_data(2 * sizes.batch, 20, min(sizes.classes, 10), sizes.side, sizes.channels)
    teacher, student = make_networks(sizes, data)
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=sizes.batch)
    options = {"precision": "32-true", "compile": False, "accelerator": sizes.device, "progress": False, **options}
    return pckd.distill(student, teacher, data, pckd.PCKD(), recipe, **options)


def first_epoch_loss(run: pckd.Run) -> Tensor:
    """Return the mean cross-entropy of the training images in the first epoch, a scalar."""
    return torch.from_numpy(run.cross_entropy[0].astype("float32")).mean()


def mixed(sizes: Sizes) -> str:
    """Check that a short training in bf16-mixed has finite weights and about the same loss as in float32."""
    with full_float32():
        plain, fast = train(sizes), train(sizes, precision="bf16-mixed")
    weights = [x for x in fast.student_state.values() if x.is_floating_point()]
    require(all(x.isfinite().all() for x in weights), "a weight is not finite after training in bf16-mixed")
    error, allowed = difference(first_epoch_loss(fast), first_epoch_loss(plain)), 0.05
    require(error <= allowed, f"cross-entropy of the first epoch is off by {error:.1%}, allowed {allowed:.0%}")
    form = fast.settings["teacher"].get("form")
    return f"cross-entropy of the first epoch off by {error:.2%}, allowed {allowed:.0%}; teacher in {form}"


def channels_last(sizes: Sizes) -> str:
    """Compare the networks in channels_last with NCHW, and check that training uses channels_last."""
    with full_float32():
        networks = Networks(sizes)
        expected = networks.step(None).total, *networks.gradients()
        found = networks.step(None, torch.channels_last).total, *networks.gradients()
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, expected, strict=True)]
    relative_errors = [(a - b).norm() / b.norm().clamp_min(1e-30) for a, b in pairs]
    loss_error = float(relative_errors[0])
    median_error = float(torch.stack([x.cpu() for x in relative_errors]).median())
    allowed_loss, allowed_gradient = CHANNELS_LAST_TOLERANCES
    require(loss_error <= allowed_loss, f"the loss is off by {loss_error:.1e}, allowed {allowed_loss:.0e}")
    require(
        median_error <= allowed_gradient, f"gradients are off by {median_error:.1e}, allowed {allowed_gradient:.0e}"
    )
    seen: list[bool] = []
    options: dict[str, Any] = {"accelerator": sizes.device, "precision": "32-true", "compile": False, "progress": False}
    trainer = make_trainer(networks.student, networks.teacher, networks.data, **options)
    convolutions = [layer for layer in trainer.student.modules() if isinstance(layer, nn.Conv2d)]

    def record_layout(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for layer in convolutions:
        layer.register_forward_hook(record_layout)
    index = torch.arange(min(8, sizes.batch), device=sizes.device)
    trainer.student(trainer.make_inputs(trainer.data.train.images[index], index)[0])  # type: ignore[union-attr]
    require(len(seen) == len(convolutions) and all(seen), "a convolution of the training did not use channels_last")
    errors = f"loss off by {loss_error:.1e}, gradients by {median_error:.1e}"
    return f"{errors}; all {len(seen)} convolutions use it in training"


def resume(sizes: Sizes) -> str:
    """Check that a training that is interrupted and resumed has exactly the same results as one without a break."""
    with TemporaryDirectory() as out:
        run_job([sys.executable, "-m", "benchmarks.gpu_job", "resume", out, sizes.device])
        whole, again = (torch.load(f"{out}/{name}.pt", weights_only=False) for name in ("whole", "resumed"))
    require(again["was_cut"], "the training was not interrupted, so nothing was resumed")
    for name, value in {**whole["state"], "cross-entropy of every image": whole["steps"]}.items():
        other = again["state"].get(name, again["steps"])
        same = torch.equal(value.nan_to_num(), other.nan_to_num()) if value.is_floating_point() else value.equal(other)
        require(same, f"{name} is not the same to the last bit after a resume")
    return f"all {len(whole['state'])} tensors and every recorded cross-entropy are the same to the last bit"


def contrast_memory(sizes: Sizes) -> str:
    """Check the extra memory of forward and backward pass of the contrast."""
    found = pieces.contrast_memory("pckd_nb", sizes.contrast_batch, torch.device(sizes.device))
    if found is None:
        raise CheckSkippedError("memory cannot be measured here")
    require(
        found <= MAX_CONTRAST_GIB, f"batch {sizes.contrast_batch} needs {found:.3f} GiB, allowed {MAX_CONTRAST_GIB}"
    )
    return f"batch {sizes.contrast_batch} needs {found:.4f} GiB, allowed {MAX_CONTRAST_GIB}"


def ranks(sizes: Sizes) -> str:
    """Compare a training with one process per GPU, started by torchrun, with a training in one process."""
    backend = "nccl" if sizes.device == "cuda" else "gloo"
    alone = train_ranks(sizes.device, sizes.processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(sizes.processes)]
    with TemporaryDirectory() as out:
        run_job([*command, "-m", "benchmarks.gpu_job", "ranks", out, sizes.device, str(sizes.processes)])
        together = torch.load(f"{out}/ranks.pt", weights_only=False)
    require(together["processes"] == sizes.processes, f"torchrun started {together['processes']} processes")
    require(together["backend"] == backend, f"the processes used the backend {together['backend']}, not {backend}")
    worst, allowed = 0.0, 1e-7
    for network in alone["histories"]:
        for name, value in alone[network].items():
            worst = max(worst, difference(together[network][name], value)) if value.is_floating_point() else worst
        require(
            worst <= allowed, f"weights of the network with {network} are off by {worst:.1e}, allowed {allowed:.0e}"
        )
        for column, values in alone["histories"][network].items():
            error = difference(torch.tensor(together["histories"][network][column]), torch.tensor(values))
            # the history has only 16- and 32-bit numbers
            require(error <= 1e-3, f"the history of {column} is off by {error:.1e}")
    names = " and ".join(alone["histories"])
    plural = "es" * (sizes.processes != 1)
    return f"{sizes.processes} process{plural}, {backend}: weights off by {worst:.1e}, allowed {allowed:.0e} ({names})"


def compiled(sizes: Sizes) -> str:
    """Check that a compiled student has about the same losses."""
    shape = sizes.channels, sizes.side, sizes.side
    if not compiling.should_compile(True, Networks(sizes).student, 1, shape, torch.device(sizes.device), "32-true"):
        raise CheckSkippedError("torch.compile does not work on this machine")
    with full_float32():
        found, expected = train(sizes, compile=True), train(sizes)
    require(found.settings["compile"] is True, "the student was not compiled")
    error, allowed = difference(first_epoch_loss(found), first_epoch_loss(expected)), 5e-3
    require(error <= allowed, f"cross-entropy of the first epoch is off by {error:.1e}, allowed {allowed:.0e}")
    last = difference(found.student_state["fc.weight"], expected.student_state["fc.weight"])
    return (
        f"cross-entropy of the first epoch off by {error:.1e}, allowed {allowed:.0e}; centers at the end by {last:.1e}"
    )


def run_job(command: list[str]) -> None:
    """Run a training in processes of its own. If it fails, raise CheckFailedError with its error message."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it, cuBLAS may add numbers in another order each time
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        of_process = [line for line in lines if "Error" in line and "ChildFailedError" not in line]  # not of torchrun
        errors = of_process or lines[-1:] or ["no message"]
        raise CheckFailedError(f"the process ended with code {done.returncode}: {errors[-1]}")


# The most important first: if the time runs out, the last ones are skipped.
CHECKS: dict[str, Callable[[Sizes], str]] = {
    "losses in float32": losses_float32,
    "losses in float64": losses_float64,
    "losses of 16-bit inputs": losses_half,
    "networks under autocast": autocast,
    "training in bf16-mixed": mixed,
    "channels_last": channels_last,
    "resume": resume,
    "memory of the contrast": contrast_memory,
    "processes by torchrun": ranks,
    "torch.compile": compiled,
}

"""What a training on many GPUs would cost: `python -m benchmarks scaling` computes it. Nothing is measured.

Symbols: B images a step of all ranks, R ranks, V views, N = V·B rows, C categories, D_s and D_t widths of the features,
H = 16·D_t, the projector's width inside. Every rank runs the networks on N/R rows and computes the loss of all N.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import torch
from torch import Tensor, nn

from pckd_nb import create_model, get_recipe
from pckd_nb.losses import _LogSumExpOverOthers
from pckd_nb.models import Classifier, count_flops
from pckd_nb.views import steps_per_epoch

from .report import table

BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sends at a time
TRAIN_IMAGES = 1_281_167  # of ImageNet
SHAPE = 3, 224, 224


@dataclass(frozen=True)
class Network:
    """What counts of a network. flops: of one image forward · kept: bytes that a forward pass in float32 keeps for the
    backward pass, an image · channels: of each BatchNorm."""

    flops: int
    parameters: int
    width: int
    kept: float
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """A training: images a step of all ranks, ranks, and the rest as in the module's words."""

    student: Network
    teacher: Network
    images: int
    ranks: int
    views: int = 4
    categories: int = 1000
    epochs: int = 100
    train_images: int = TRAIN_IMAGES

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= self.images:
            raise ValueError(f"a step of {self.images} images can't be dealt to {self.ranks} ranks")

    @property
    def rows(self) -> int:
        return self.views * self.images

    @property
    def hidden(self) -> int:
        return 16 * self.teacher.width

    @property
    def others(self) -> float:
        """(R − 1) / R: the share of what all have that a rank does not have itself."""
        return (self.ranks - 1) / self.ranks


@dataclass(frozen=True)
class Assumed:
    """Not measured: speeds of a data sheet, an A100's, in FLOP/s, the shares of them that are reached, and how long a
    message takes that is too small for its size to matter, in seconds. The networks compute in bfloat16; the loss in
    float32, without TensorFloat-32, which PyTorch leaves off for matrix products."""

    bfloat16: float = 312e12
    bfloat16_share: float = 0.3
    float32: float = 19.5e12
    float32_share: float = 0.8
    message: float = 30e-6
    node: int = 8  # GPUs of a machine


@cache
def network(name: str, categories: int, shape: tuple[int, int, int]) -> Network:
    """A network of `create_model`, counted without computing anything."""
    with torch.device("meta"):
        model = create_model(name, num_classes=categories)
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    parameters = sum(weight.numel() for weight in model.parameters())
    channels = tuple(norm.num_features for norm in norms)
    return Network(count_flops(model, shape), parameters, model.feature_width, kept_by(model, shape), channels)


def kept_by(model: Classifier, shape: tuple[int, int, int], rows: int = 4) -> float:
    """Bytes that the forward pass keeps for the backward pass, a row."""
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # several tensors may share one
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model.train()(torch.zeros(rows, *shape, device=next(model.parameters()).device))
    assert result is not None  # while it lives, so does all that was kept
    return sum(size for place, size in kept.items() if place not in own) / rows


def imagenet(images: int, ranks: int) -> Job:
    """The paper's pair on ImageNet by the recipe imagenet_paper, with so many images a step over so many ranks."""
    student, teacher = (network(f"torchvision:{name}", 1000, SHAPE) for name in ("resnet18", "resnet34"))
    return Job(student, teacher, images, ranks, epochs=get_recipe("imagenet_paper").epochs)


# Operations of a step, as torch's counter counts them: convolutions and matrix products.


def network_flops(job: Job) -> dict[str, float]:
    """On one rank, for its part of the rows: the student forward and backward, the teacher forward."""
    rows = job.rows / job.ranks
    return {"student": 3 * rows * job.student.flops, "teacher": rows * job.teacher.flops}


def loss_flops(job: Job) -> dict[str, int]:
    """On every rank, for all rows, forward and backward: what does not become less with more ranks."""
    n, narrow, wide, categories = job.rows, job.student.width, job.teacher.width, job.categories
    present = min(categories, job.images)  # categories of a batch, at most
    return {
        "projector": 3 * 2 * n * (narrow * job.hidden + job.hidden * wide),
        "embeddings": 3 * 2 * n * (narrow * narrow + narrow * wide),
        "scores": 2 * n * categories * (3 * narrow + 2 * wide),  # the teacher's centers need no gradient
        "contrast, pairs": pair_flops(2 * n, categories),
        "contrast, positives": 4 * 2 * 2 * n * present * categories,
    }


def pair_flops(vectors: int, categories: int, rows: int = _LogSumExpOverOthers.BLOCK_ROWS) -> int:
    """Of the contrast's blocks: every pair once forward; backward once again, and for the gradients of its two."""
    pairs = right = 0
    for start in range(0, vectors, rows):
        height = min(rows, vectors - start)
        pairs += height * (vectors - start)
        right += height * (vectors - start - height)
    return 2 * categories * (3 * pairs + right)


# What goes over the wires in a step: bytes that a rank receives, by ring algorithms.


def head_parameters(job: Job) -> int:
    """Of g, A_s and A_t, which train with the student."""
    narrow, wide, hidden = job.student.width, job.teacher.width, job.hidden
    projector = (narrow + 1) * hidden + 2 * hidden + (hidden + 1) * wide
    return projector + (narrow + 1) * (narrow + wide)


def received(job: Job) -> dict[str, float]:
    """Gathered: features and logits in float32, the teacher's features in 16 bits. Back: the gradients of the first
    two. Weights: their gradients in float32, which go around twice. BatchNorm: the statistics of SyncBatchNorm, forward
    and backward, and the running means that the first rank sends all."""
    outputs = 4 * job.rows * (job.student.width + job.categories)
    channels = sum(job.student.channels)
    statistics = 4 * ((job.ranks - 1) * (2 * channels + len(job.student.channels)) + 2 * job.others * 2 * channels)
    return {
        "gathered": job.others * (outputs + 2 * job.rows * job.teacher.width),
        "back": job.others * outputs,
        "weights": 2 * job.others * 4 * (job.student.parameters + head_parameters(job)),
        "BatchNorm": statistics + 4 * 2 * (channels + job.hidden) * (job.ranks > 1),
    }


def messages(job: Job) -> int:
    """How often a step waits for all ranks: a BatchNorm forward and backward, three gatherings and two ways back, the
    gradients by the bucket, and the running means."""
    if job.ranks == 1:
        return 0
    buckets = ceil(4 * (job.student.parameters + head_parameters(job)) / BUCKET)
    return 2 * len(job.student.channels) + 3 + 2 + buckets + 1


# Memory and disk, in bytes.


def memory(job: Job) -> dict[str, float]:
    """Of a rank. Activations: in bfloat16, half of float32. Loss: the large arrays that it keeps for the backward pass,
    of all rows. Block: of similarities, held for a moment. Plain: one matrix of all similarities, of which the plain
    contrast holds several. Records: cross-entropy and difficulty of every sample at every epoch."""
    n, width, categories = job.rows, job.student.width + job.teacher.width, job.categories
    present = min(categories, job.images)
    arrays = n * (2 * job.hidden + 3 * width) + 2 * n * (3 * categories + present) + 3 * job.images * categories
    return {
        "activations": n / job.ranks * job.student.kept / 2,
        "loss": 4 * arrays,
        "block": 4 * _LogSumExpOverOthers.BLOCK_ROWS * 2 * n,
        "plain": 4 * (2 * n) ** 2,
        "records": 2 * 2 * job.epochs * job.train_images,
    }


def checkpoint(job: Job) -> int:
    """On the disk, and there are two: the records, and of every trained number its value and its momentum."""
    return int(memory(job)["records"]) + 2 * 4 * (job.student.parameters + head_parameters(job))


def teacher_cache(job: Job) -> int:
    """The teacher's features of one epoch, in 16 bits."""
    return 2 * job.train_images * job.views * job.teacher.width


# Time, in seconds, if the assumed speeds were true. What goes over the wires is not in it, but for the waiting.


def seconds(job: Job, assumed: Assumed = Assumed()) -> dict[str, float]:
    return {
        "networks": sum(network_flops(job).values()) / (assumed.bfloat16 * assumed.bfloat16_share),
        "loss": sum(loss_flops(job).values()) / (assumed.float32 * assumed.float32_share),
        "messages": messages(job) * assumed.message,
    }


def step(job: Job, assumed: Assumed = Assumed()) -> float:
    return sum(seconds(job, assumed).values())


def speedup(job: Job, assumed: Assumed = Assumed()) -> float:
    """How many times as fast as one GPU with the same images a step."""
    return step(replace(job, ranks=1), assumed) / step(job, assumed)


def enough(job: Job, assumed: Assumed = Assumed()) -> float:
    """How many ranks there are when the loss takes as long as the networks: more of them gain little."""
    alone = seconds(replace(job, ranks=1), assumed)
    return alone["networks"] / alone["loss"]


def hours(job: Job, assumed: Assumed = Assumed()) -> float:
    """Of all epochs, without evaluation."""
    return job.epochs * steps_per_epoch(job.train_images, job.images) * step(job, assumed) / 3600


# What is printed, and stands in docs/scaling.md.

JOBS = ((256, 8), (256, 64), (1024, 64), (4096, 64))  # images a step, ranks


def counted(jobs: list[Job]) -> str:
    """What a rank computes, receives and holds in a step."""
    rows = {
        "rows of a rank, N/R": lambda job: f"{job.rows / job.ranks:,.0f}",
        "rows of the loss, N": lambda job: f"{job.rows:,}",
        "networks, GFLOP": lambda job: f"{sum(network_flops(job).values()) / 1e9:,.0f}",
        "loss, GFLOP": lambda job: f"{sum(loss_flops(job).values()) / 1e9:,.0f}",
        "… of it the projector": lambda job: f"{loss_flops(job)['projector'] / 1e9:,.0f}",
        "… of it the contrast's pairs": lambda job: f"{loss_flops(job)['contrast, pairs'] / 1e9:,.0f}",
        "receives outputs, MB": lambda job: f"{received(job)['gathered'] / 1e6:,.1f}",
        "… their gradients": lambda job: f"{received(job)['back'] / 1e6:,.1f}",
        "… gradients of weights": lambda job: f"{received(job)['weights'] / 1e6:,.1f}",
        "… for BatchNorm": lambda job: f"{received(job)['BatchNorm'] / 1e6:,.1f}",
        "messages to wait for": lambda job: f"{messages(job)}",
        "holds activations, GB": lambda job: f"{memory(job)['activations'] / 1e9:,.2f}",
        "… for the loss": lambda job: f"{memory(job)['loss'] / 1e9:,.2f}",
        "… a block of similarities": lambda job: f"{memory(job)['block'] / 1e9:,.3f}",
        "(all of them, in one matrix)": lambda job: f"{memory(job)['plain'] / 1e9:,.2f}",
    }
    return side_by_side("counted, a step", jobs, rows)


def estimated(jobs: list[Job], assumed: Assumed = Assumed()) -> str:
    """What follows for the time, if the assumptions hold."""
    rows = {
        "networks, ms": lambda job: f"{1e3 * seconds(job, assumed)['networks']:,.1f}",
        "loss, ms": lambda job: f"{1e3 * seconds(job, assumed)['loss']:,.1f}",
        "waiting, ms": lambda job: f"{1e3 * seconds(job, assumed)['messages']:,.1f}",
        "the loss's share": lambda job: percent(seconds(job, assumed)["loss"] / step(job, assumed)),
        "to receive, GB/s": lambda job: f"{sum(received(job).values()) / 1e9 / step(job, assumed):,.1f}",
        "images to read, 1/s": lambda job: f"{job.images / step(job, assumed):,.0f}",
        "… on each machine": lambda job: f"{job.images / step(job, assumed) / job.ranks * assumed.node:,.0f}",
        "times as fast as one GPU": lambda job: f"{speedup(job, assumed):.1f}",
        "GPUs where loss = networks": lambda job: f"{enough(job, assumed):.0f}",
        "all epochs, hours": lambda job: f"{hours(job, assumed):.1f}",
    }
    return side_by_side("estimated", jobs, rows)


def side_by_side(title: str, jobs: list[Job], rows: dict[str, Callable[[Job], str]]) -> str:
    heads = [title, *(f"{job.images:,} images, {job.ranks} GPUs" for job in jobs)]
    return table(heads, ([name, *map(shown, jobs)] for name, shown in rows.items()))


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def by_training(job: Job, assumed: Assumed = Assumed()) -> str:
    """What does not depend on the images a step and the ranks."""
    epoch, flops = job.train_images * job.views, network_flops(job)
    asked = epoch * job.teacher.flops
    gpu_hours = job.epochs * asked / (assumed.bfloat16 * assumed.bfloat16_share) / 3600
    heads, cached = head_parameters(job) / 1e6, teacher_cache(job) / 1e9
    rows = {
        "one image forward, GFLOP": f"{job.student.flops / 1e9:.2f} student, {job.teacher.flops / 1e9:.2f} teacher",
        "trained numbers, millions": f"{job.student.parameters / 1e6:.1f} student, {heads:.1f} heads",
        "teacher's share of the networks' operations": percent(flops["teacher"] / sum(flops.values())),
        "the teacher, PFLOP": f"{asked / 1e15:,.1f} an epoch, {job.epochs * asked / 1e15:,.0f} in all",
        "the teacher, hours of one GPU (estimated)": f"{gpu_hours:.1f} in all",
        "teacher cache, GB": f"{cached:.1f} an epoch, {job.epochs * cached:,.0f} in all",
        "records, on every rank, MB": f"{memory(job)['records'] / 1e6:,.0f}",
        "a checkpoint, MB, of which two are kept": f"{checkpoint(job) / 1e6:,.0f}",
    }
    return table((f"the training, {job.epochs} epochs", ""), rows.items())


def conclusion(assumed: Assumed = Assumed()) -> str:
    few, many = imagenet(256, 64), imagenet(4096, 64)
    networks, loss, waiting = (f"{1e3 * value:.1f} ms" for value in seconds(few, assumed).values())
    small, here = replace(few, ranks=8), seconds(many, assumed)
    share = here["loss"] / step(many, assumed)
    pairs = loss_flops(many)["contrast, pairs"] / sum(loss_flops(many).values())
    dealt = step(replace(many, ranks=1), assumed) / (step(many, assumed) - here["loss"] * many.others)
    sentences = (
        f"256 images over 64 GPUs leave {few.images // 64} images, {few.rows // 64} rows, to a GPU: {networks} of "
        f"networks beside {loss} of loss and {waiting} of waiting. That is {speedup(few, assumed):.0f} times the speed "
        f"of one GPU; 8 GPUs are {speedup(small, assumed):.1f} times as fast.",
        f"With 4,096 images the loss, which every rank computes of all rows, takes {percent(share)} of a step, "
        f"{percent(pairs)} of it for the contrast's pairs: 64 GPUs are {speedup(many, assumed):.1f} times as fast as "
        f"one, and beyond {enough(many, assumed):.0f} GPUs most of the time goes there.",
        "The next step would be to deal the rows of projector and contrast to the ranks, which is not built. By the "
        f"same assumptions 64 GPUs would then be {dealt:.0f} times as fast as one, at best.",
    )
    return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def text(assumed: Assumed = Assumed()) -> str:
    """The tables, and what they come to, in Markdown."""
    jobs = [imagenet(*job) for job in JOBS]
    return "\n\n".join((counted(jobs), estimated(jobs, assumed), by_training(jobs[0], assumed), conclusion(assumed)))

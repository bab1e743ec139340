"""Estimate what a training on many GPUs would cost. `python -m benchmarks scaling` prints it; nothing is measured.

Symbols: B images per step of all ranks, R ranks, V views, N = V·B rows, C categories, D_s and D_t features of student
and teacher, H = 16·D_t hidden features of the projector. Every rank runs the networks on N/R rows, and computes the
loss of all N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import torch
from torch import Tensor, nn

from pckd_nb import create_model, get_recipe
from pckd_nb.losses import _LogSumExpOverOthers
from pckd_nb.measures import EL2N_EPOCHS
from pckd_nb.models import Classifier, count_flops
from pckd_nb.views import steps_per_epoch

from .report import table

BUCKET_BYTES = 25 * 2**20  # gradients that DistributedDataParallel sends at a time
TRAIN_IMAGES = 1_281_167  # of ImageNet
SHAPE = 3, 224, 224


@dataclass(frozen=True)
class Network:
    """The numbers of a network.

    Parameters
    ----------
    flops : int
        Floating-point operations of the forward pass of one image.
    parameters : int
    width : int
        Number of features.
    saved_bytes : float
        Bytes per image that a forward pass in float32 saves for the backward pass.
    channels : tuple of int
        Channels of each BatchNorm layer.
    """

    flops: int
    parameters: int
    width: int
    saved_bytes: float
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """A training.

    Parameters
    ----------
    student, teacher : Network
    images : int
        Images per step of all ranks, B.
    ranks : int
        R.
    views : int
        V.
    categories : int
        C.
    epochs, train_images : int
    """

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
            raise ValueError(f"a step of {self.images} images cannot be split among {self.ranks} ranks")

    @property
    def rows(self) -> int:
        """Rows per step of all ranks, N."""
        return self.views * self.images

    @property
    def hidden(self) -> int:
        """Hidden features of the projector, H."""
        return 16 * self.teacher.width

    @property
    def other_ranks_share(self) -> float:
        """The fraction of all rows that belongs to other ranks, (R − 1) / R."""
        return (self.ranks - 1) / self.ranks


@dataclass(frozen=True)
class Assumed:
    """Assumed speeds. They are not measured.

    The networks compute in bfloat16. The loss computes in float32 without TensorFloat-32, which PyTorch does not use
    for matrix products by default.

    Parameters
    ----------
    bfloat16, float32 : float
        Peak speeds in FLOP/s, from the data sheet of an A100.
    bfloat16_share, float32_share : float
        The fraction of the peak that is reached.
    message_seconds : float
        Seconds that a very small message takes.
    gpus_per_machine : int
        GPUs per machine.
    """

    bfloat16: float = 312e12
    bfloat16_share: float = 0.3
    float32: float = 19.5e12
    float32_share: float = 0.8
    message_seconds: float = 30e-6
    gpus_per_machine: int = 8


@cache
def network(name: str, categories: int, shape: tuple[int, int, int]) -> Network:
    """Return the numbers of a network of `create_model`, without running it."""
    with torch.device("meta"):
        model = create_model(name, num_classes=categories)
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    parameters = sum(weight.numel() for weight in model.parameters())
    channels = tuple(norm.num_features for norm in norms)
    return Network(count_flops(model, shape), parameters, model.feature_width, saved_by(model, shape), channels)


def saved_by(model: Classifier, shape: tuple[int, int, int], rows: int = 4) -> float:
    """Return the bytes per row that the forward pass saves for the backward pass."""
    parameters = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # several tensors may share a storage
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = model.train()(torch.zeros(rows, *shape, device=next(model.parameters()).device))
    assert result is not None  # the saved tensors exist as long as the result
    return sum(size for place, size in saved.items() if place not in parameters) / rows


def imagenet(images: int, ranks: int) -> Job:
    """Return the training of the paper's pair on ImageNet with the recipe imagenet_paper."""
    student, teacher = (network(f"torchvision:{name}", 1000, SHAPE) for name in ("resnet18", "resnet34"))
    return Job(student, teacher, images, ranks, epochs=get_recipe("imagenet_paper").epochs)


# Operations per step, as PyTorch counts them: convolutions and matrix products.


def network_flops(job: Job) -> dict[str, float]:
    """Return the operations of the networks on one rank, for its part of the rows.

    These are the forward and backward pass of the student and the forward pass of the teacher.
    """
    rows = job.rows / job.ranks
    return {"student": 3 * rows * job.student.flops, "teacher": rows * job.teacher.flops}


def loss_flops(job: Job) -> dict[str, int]:
    """Return the operations of the loss on every rank, for all rows. They do not become fewer with more ranks."""
    n, student_dim, teacher_dim, categories = job.rows, job.student.width, job.teacher.width, job.categories
    present = min(categories, job.images)  # a batch cannot have more categories than images
    return {
        "projector": 3 * 2 * n * (student_dim * job.hidden + job.hidden * teacher_dim),
        "embeddings": 3 * 2 * n * (student_dim * student_dim + student_dim * teacher_dim),
        "scores": 2 * n * categories * (3 * student_dim + 2 * teacher_dim),  # the teacher's centers need no gradient
        "contrast, pairs": pair_flops(2 * n, categories),
        "contrast, positives": 4 * 2 * 2 * n * present * categories,
    }


def pair_flops(vectors: int, categories: int, rows: int = _LogSumExpOverOthers.BLOCK_ROWS) -> int:
    """Return the operations for the pairs of the contrast.

    Every pair is computed once in the forward pass. In the backward pass, it is computed again, and both of its vectors
    get a gradient.
    """
    pairs = pairs_outside_block = 0
    for start in range(0, vectors, rows):
        height = min(rows, vectors - start)
        pairs += height * (vectors - start)
        pairs_outside_block += height * (vectors - start - height)
    return 2 * categories * (3 * pairs + pairs_outside_block)


# Communication per step: bytes that a rank receives, with ring algorithms.


def head_parameters(job: Job) -> int:
    """Return the number of parameters of the projector and the embeddings, which are trained with the student."""
    student_dim, teacher_dim, hidden = job.student.width, job.teacher.width, job.hidden
    projector = (student_dim + 1) * hidden + 2 * hidden + (hidden + 1) * teacher_dim
    return projector + (student_dim + 1) * (student_dim + teacher_dim)


def received(job: Job) -> dict[str, float]:
    """Return the bytes that a rank receives per step.

    Returns
    -------
    dict
        - gathered: features and logits of the student in float32, and features of the teacher in 16 bits,
        - back: the gradients of the student's features and logits,
        - weights: the gradients of the weights in float32, once to add them up and once to share the sums,
        - BatchNorm: the statistics of SyncBatchNorm, forward and backward, and the running means of the first rank.
    """
    outputs = 4 * job.rows * (job.student.width + job.categories)
    channels = sum(job.student.channels)
    statistics = 4 * (
        (job.ranks - 1) * (2 * channels + len(job.student.channels)) + 2 * job.other_ranks_share * 2 * channels
    )
    return {
        "gathered": job.other_ranks_share * (outputs + 2 * job.rows * job.teacher.width),
        "back": job.other_ranks_share * outputs,
        "weights": 2 * job.other_ranks_share * 4 * (job.student.parameters + head_parameters(job)),
        "BatchNorm": statistics + 4 * 2 * (channels + job.hidden) * (job.ranks > 1),
    }


def messages(job: Job) -> int:
    """Return how many times a step waits for all ranks.

    This is twice per BatchNorm layer, three times to gather outputs, twice for their gradients, once per bucket of
    gradients of the weights, and once for the running means.
    """
    if job.ranks == 1:
        return 0
    buckets = ceil(4 * (job.student.parameters + head_parameters(job)) / BUCKET_BYTES)
    return 2 * len(job.student.channels) + 3 + 2 + buckets + 1


# Memory and disk, in bytes.


def memory(job: Job) -> dict[str, float]:
    """Return the bytes of memory per rank.

    Returns
    -------
    dict
        - activations: those that the student saves for the backward pass, in bfloat16,
        - loss: large arrays of all rows that the loss saves for the backward pass,
        - block: one block of similarities,
        - plain: one matrix of all similarities; a plain contrast has several of them,
        - records: what `recording.Recorder` has about every sample.
    """
    n, width, categories = job.rows, job.student.width + job.teacher.width, job.categories
    present = min(categories, job.images)
    arrays = n * (2 * job.hidden + 3 * width) + 2 * n * (3 * categories + present) + 3 * job.images * categories
    return {
        "activations": n / job.ranks * job.student.saved_bytes / 2,
        "loss": 4 * arrays,
        "block": 4 * _LogSumExpOverOthers.BLOCK_ROWS * 2 * n,
        "plain": 4 * (2 * n) ** 2,
        "records": (2 * 3 * job.epochs + 2 * min(job.epochs, EL2N_EPOCHS) + 16) * job.train_images,
    }


def checkpoint(job: Job) -> int:
    """Return the bytes of a checkpoint on disk: the records, and value and momentum of every trained parameter."""
    return int(memory(job)["records"]) + 2 * 4 * (job.student.parameters + head_parameters(job))


def teacher_cache(job: Job) -> int:
    """Return the bytes of the teacher's features of one epoch, in 16 bits."""
    return 2 * job.train_images * job.views * job.teacher.width


# Time in seconds, with the assumed speeds. The time of communication depends only on the number of messages.


def seconds(job: Job, assumed: Assumed = Assumed()) -> dict[str, float]:
    """Return the seconds per step of networks, loss and messages."""
    return {
        "networks": sum(network_flops(job).values()) / (assumed.bfloat16 * assumed.bfloat16_share),
        "loss": sum(loss_flops(job).values()) / (assumed.float32 * assumed.float32_share),
        "messages": messages(job) * assumed.message_seconds,
    }


def seconds_per_step(job: Job, assumed: Assumed = Assumed()) -> float:
    """Return the seconds per step."""
    return sum(seconds(job, assumed).values())


def speedup(job: Job, assumed: Assumed = Assumed()) -> float:
    """Return how many times faster than one GPU the training is, with the same number of images per step."""
    return seconds_per_step(replace(job, ranks=1), assumed) / seconds_per_step(job, assumed)


def useful_ranks(job: Job, assumed: Assumed = Assumed()) -> float:
    """Return the number of ranks at which the loss takes as long as the networks. More ranks save little time."""
    alone = seconds(replace(job, ranks=1), assumed)
    return alone["networks"] / alone["loss"]


def hours(job: Job, assumed: Assumed = Assumed()) -> float:
    """Return the hours of all epochs, without evaluation."""
    return job.epochs * steps_per_epoch(job.train_images, job.images) * seconds_per_step(job, assumed) / 3600


# The text that is printed, which is also in docs/scaling.md.

JOBS = ((256, 8), (256, 64), (1024, 64), (4096, 64))  # (images per step, ranks)


def counted_table(jobs: list[Job]) -> str:
    """Return a table of the operations, communication and memory of a rank."""
    rows = {
        "rows per rank, N/R": lambda job: f"{job.rows / job.ranks:,.0f}",
        "rows of the loss, N": lambda job: f"{job.rows:,}",
        "networks, GFLOP": lambda job: f"{sum(network_flops(job).values()) / 1e9:,.0f}",
        "loss, GFLOP": lambda job: f"{sum(loss_flops(job).values()) / 1e9:,.0f}",
        "… of these: projector": lambda job: f"{loss_flops(job)['projector'] / 1e9:,.0f}",
        "… of these: pairs of the contrast": lambda job: f"{loss_flops(job)['contrast, pairs'] / 1e9:,.0f}",
        "received outputs, MB": lambda job: f"{received(job)['gathered'] / 1e6:,.1f}",
        "… gradients of the outputs, MB": lambda job: f"{received(job)['back'] / 1e6:,.1f}",
        "… gradients of the weights, MB": lambda job: f"{received(job)['weights'] / 1e6:,.1f}",
        "… for BatchNorm, MB": lambda job: f"{received(job)['BatchNorm'] / 1e6:,.1f}",
        "messages to wait for": lambda job: f"{messages(job)}",
        "memory for activations, GB": lambda job: f"{memory(job)['activations'] / 1e9:,.2f}",
        "… for the loss, GB": lambda job: f"{memory(job)['loss'] / 1e9:,.2f}",
        "… for a block of similarities, GB": lambda job: f"{memory(job)['block'] / 1e9:,.3f}",
        "(for one matrix of all similarities, GB)": lambda job: f"{memory(job)['plain'] / 1e9:,.2f}",
    }
    return side_by_side("counted, per step", jobs, rows)


def estimated_table(jobs: list[Job], assumed: Assumed = Assumed()) -> str:
    """Return a table of the times that follow from the assumptions."""
    rows = {
        "networks, ms": lambda job: f"{1e3 * seconds(job, assumed)['networks']:,.1f}",
        "loss, ms": lambda job: f"{1e3 * seconds(job, assumed)['loss']:,.1f}",
        "waiting, ms": lambda job: f"{1e3 * seconds(job, assumed)['messages']:,.1f}",
        "share of the loss": lambda job: percent(seconds(job, assumed)["loss"] / seconds_per_step(job, assumed)),
        "received, GB/s": lambda job: f"{sum(received(job).values()) / 1e9 / seconds_per_step(job, assumed):,.1f}",
        "images read per second": lambda job: f"{job.images / seconds_per_step(job, assumed):,.0f}",
        "… per machine": lambda job: (
            f"{job.images / seconds_per_step(job, assumed) / job.ranks * assumed.gpus_per_machine:,.0f}"
        ),
        "speedup over one GPU": lambda job: f"{speedup(job, assumed):.1f}",
        "GPUs at which loss = networks": lambda job: f"{useful_ranks(job, assumed):.0f}",
        "all epochs, hours": lambda job: f"{hours(job, assumed):.1f}",
    }
    return side_by_side("estimated", jobs, rows)


def side_by_side(title: str, jobs: list[Job], rows: dict[str, Callable[[Job], str]]) -> str:
    """Return a table with one column per job. `rows` has one function per row, which returns the cell of a job."""
    heads = [title, *(f"{job.images:,} images, {job.ranks} GPUs" for job in jobs)]
    return table(heads, ([name, *map(shown, jobs)] for name, shown in rows.items()))


def percent(share: float) -> str:
    """Return a fraction as text in percent."""
    return f"{100 * share:.0f} %"


def whole_training(job: Job, assumed: Assumed = Assumed()) -> str:
    """Return a table of the numbers that do not depend on the images per step and the ranks."""
    epoch, flops = job.train_images * job.views, network_flops(job)
    teacher_flops = epoch * job.teacher.flops
    gpu_hours = job.epochs * teacher_flops / (assumed.bfloat16 * assumed.bfloat16_share) / 3600
    student_gflops, teacher_gflops = job.student.flops / 1e9, job.teacher.flops / 1e9
    peta = teacher_flops / 1e15
    heads, cached = head_parameters(job) / 1e6, teacher_cache(job) / 1e9
    rows = {
        "forward pass of one image, GFLOP": f"{student_gflops:.2f} student, {teacher_gflops:.2f} teacher",
        "trained parameters, millions": f"{job.student.parameters / 1e6:.1f} student, {heads:.1f} heads",
        "teacher's share of the operations": percent(flops["teacher"] / sum(flops.values())),
        "operations of the teacher, PFLOP": f"{peta:,.1f} per epoch, {job.epochs * peta:,.0f} in all",
        "hours of one GPU for the teacher (estimated)": f"{gpu_hours:.1f} in all",
        "teacher cache, GB": f"{cached:.1f} per epoch, {job.epochs * cached:,.0f} in all",
        "records on every rank, MB": f"{memory(job)['records'] / 1e6:,.0f}",
        "one checkpoint, MB (two are kept)": f"{checkpoint(job) / 1e6:,.0f}",
    }
    return table((f"whole training, {job.epochs} epochs", ""), rows.items())


def conclusion(assumed: Assumed = Assumed()) -> str:
    """Return what the tables show, as a numbered list."""
    few, many = imagenet(256, 64), imagenet(4096, 64)
    networks, loss, waiting = (f"{1e3 * value:.1f} ms" for value in seconds(few, assumed).values())
    small, here = replace(few, ranks=8), seconds(many, assumed)
    share = here["loss"] / seconds_per_step(many, assumed)
    pairs = loss_flops(many)["contrast, pairs"] / sum(loss_flops(many).values())
    split_speedup = seconds_per_step(replace(many, ranks=1), assumed) / (
        seconds_per_step(many, assumed) - here["loss"] * many.other_ranks_share
    )
    sentences = (
        f"With 256 images on 64 GPUs, every GPU has {few.images // 64} images, or {few.rows // 64} rows. A step takes "
        f"{networks} for the networks, {loss} for the loss and {waiting} for waiting. This is "
        f"{speedup(few, assumed):.0f} times as fast as one GPU. 8 GPUs are {speedup(small, assumed):.1f} times as fast "
        "as one.",
        f"With 4,096 images on 64 GPUs, the loss takes {percent(share)} of a step, because every rank computes it for "
        f"all rows. The pairs of the contrast are {percent(pairs)} of the operations of the loss. "
        f"64 GPUs are {speedup(many, assumed):.1f} times as fast as one. With more than "
        f"{useful_ranks(many, assumed):.0f} GPUs, most of the time goes to the loss.",
        "To be faster, the ranks would have to share the rows of the projector and of the contrast. This is not "
        "implemented. With the same assumptions, 64 GPUs would then be at most "
        f"{split_speedup:.0f} times as fast as one.",
    )
    return "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def text(assumed: Assumed = Assumed()) -> str:
    """Return all tables and the conclusion, in Markdown."""
    jobs = [imagenet(*job) for job in JOBS]
    return "\n\n".join(
        (counted_table(jobs), estimated_table(jobs, assumed), whole_training(jobs[0], assumed), conclusion(assumed))
    )

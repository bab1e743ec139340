"""The computed costs on many GPUs agree with the code, and the page in docs/ with the computation."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pckd_nb as pckd
from benchmarks import __main__ as bench
from benchmarks import scaling
from pckd_nb import losses, ranks
from pckd_nb.methods import Batch
from pckd_nb.models import Classifier, Output
from pckd_nb.recording import Recorder
from pckd_nb.training.teacher_cache import TeacherCache

ROOT = Path(__file__).parents[1]


class LastLayer(Classifier):
    """A network that consists only of its last layer."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def features(self, x):
        return x


def make_job(
    images: int, ranks: int = 1, student_dim: int = 24, teacher_dim: int = 20, classes: int = 30
) -> scaling.Job:
    student = scaling.Network(flops=10, parameters=1000, width=student_dim, saved_bytes=80, channels=(16, 32))
    return scaling.Job(student, replace(student, flops=20, width=teacher_dim), images, ranks, 4, classes, 3, 50)


def method_of(job: scaling.Job) -> tuple[pckd.PCKD, LastLayer, LastLayer]:
    student, teacher = (LastLayer(network.width, job.categories) for network in (job.student, job.teacher))
    return pckd.PCKD().bind(student, teacher), student, teacher


@pytest.mark.parametrize("job", [make_job(60), make_job(20), make_job(130, teacher_dim=48, classes=200)])
def test_operations_and_memory_of_the_loss(job):
    method, student, teacher = method_of(job)
    own = {weight.untyped_storage()._cdata for net in (method, student, teacher) for weight in net.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    shapes = (job.student.width, student), (job.teacher.width, teacher)
    outputs = [
        Output(torch.randn(job.rows, width), torch.randn(job.rows, job.categories), *net.fc.parameters())
        for width, net in shapes
    ]
    for given in outputs[0][:2]:
        given.requires_grad_()
    labels = torch.arange(job.images) % job.categories
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = method(*outputs, Batch(labels, torch.arange(job.images)), epoch=1).total
        total.backward()
    assert counter.get_total_flops() == sum(scaling.loss_flops(job).values())
    found = sum(size for place, size in kept.items() if place not in own)
    assert found == pytest.approx(scaling.memory(job)["loss"], rel=0.03)


def test_largest_tensor_of_the_contrast_is_one_block_of_similarities(monkeypatch):
    job, sizes = make_job(100), []
    blocks = losses._LogSumExpOverOthers.blocks

    def record_sizes(x):
        for start, stop, similarity in blocks(x):
            sizes.append(similarity.untyped_storage().nbytes())
            yield start, stop, similarity

    monkeypatch.setattr(losses._LogSumExpOverOthers, "blocks", record_sizes)
    scores = torch.randn(2, job.rows, job.categories)
    losses.category_center_contrast(*scores, torch.zeros(job.rows, dtype=torch.int64))
    assert max(sizes) == scaling.memory(job)["block"] < scaling.memory(job)["plain"] == (2 * 400) ** 2 * 4


def test_number_of_head_parameters():
    job = make_job(20, teacher_dim=7)
    method, *_ = method_of(job)
    assert sum(weight.numel() for weight in method.parameters()) == scaling.head_parameters(job)


@pytest.mark.parametrize("images, count", [(64, 4), (64, 64)])
def test_bytes_that_ranks_receive(images, count):
    job, pieces = make_job(images, count), []

    def all_gather(piece, sync_grads):
        pieces.append((sync_grads, piece.numel() * piece.element_size() * (count - 1)))
        return torch.stack([piece] * count)

    fabric = SimpleNamespace(world_size=count, global_rank=0, all_gather=all_gather)
    method, student, teacher = method_of(job)
    mine = job.rows // count
    output = student.output(torch.randn(mine, job.student.width, requires_grad=True))
    gathered = ranks.gather(output, images, fabric)
    assert gathered.features.shape == (job.rows, job.student.width)
    ranks.gather_rows(torch.randn(mine, job.teacher.width).half(), images, fabric)
    found = scaling.received(job)
    assert sum(size for _, size in pieces) == found["gathered"]
    assert sum(size for back, size in pieces if back) == found["back"] < found["gathered"]
    weights = job.student.parameters + sum(weight.numel() for weight in method.parameters())
    assert found["weights"] == pytest.approx(2 * 4 * weights * (count - 1) / count)


def test_one_rank_receives_no_messages():
    assert set(scaling.received(make_job(64)).values()) == {0} and scaling.messages(make_job(64)) == 0
    assert scaling.messages(make_job(64, 2)) == 2 * 2 + 3 + 2 + 1 + 1


def test_sizes_of_records_checkpoint_and_cache(tmp_path):
    job = make_job(20)
    recorder = Recorder.empty(job.epochs, job.train_images, torch.device("cpu"), teacher=True)
    assert scaling.memory(job)["records"] == sum(array.nbytes for array in recorder.arrays().values())
    weights = [torch.zeros(job.student.parameters, requires_grad=True), *method_of(job)[0].parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    held = [*weights, *(kept["momentum_buffer"] for kept in optimizer.state.values())]
    assert scaling.checkpoint(job) == scaling.memory(job)["records"] + sum(tensor.nbytes for tensor in held)
    cache = TeacherCache(tmp_path, {}, (job.train_images, job.views, job.teacher.width), 1)
    cache.begin_epoch(1)
    assert scaling.teacher_cache(job) == cache.new_file.nbytes


def test_counts_of_a_network():
    counted = scaling.network("resnet8", 100, (3, 32, 32))
    model = pckd.create_model("resnet8", num_classes=100)
    assert counted.flops == pckd.models.count_flops(model) and counted.width == 64
    assert counted.parameters == sum(weight.numel() for weight in model.parameters())
    assert scaling.saved_by(model, (3, 32, 32)) == pytest.approx(counted.saved_bytes, rel=1e-3)
    first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    by_hand = 4 * (3 + 16 + 16) * 32**2  # the inputs of convolution and BatchNorm, and the output of ReLU
    assert scaling.saved_by(first, (3, 32, 32)) == pytest.approx(by_hand, rel=1e-3)


def test_imagenet_job_uses_the_papers_networks_and_recipe():
    job = scaling.imagenet(256, 8)
    assert (job.images, job.rows, job.hidden) == (pckd.get_recipe("imagenet_paper").batch_size, 1024, 8192)
    assert job.epochs == pckd.get_recipe("imagenet_paper").epochs == 100
    assert (job.student.parameters, job.teacher.parameters) == (11_689_512, 21_797_672)  # torchvision's numbers
    assert sum(job.student.channels) == 4800 and len(job.student.channels) == 20


def test_speedup_is_limited_by_the_work_that_every_rank_repeats():
    assumed = scaling.Assumed(message_seconds=0)
    job = scaling.imagenet(1024, 1)
    alone = scaling.seconds(job, assumed)
    assert scaling.seconds_per_step(job, assumed) == sum(alone.values()) and scaling.speedup(job, assumed) == 1
    limit = 1 + alone["networks"] / alone["loss"]
    few, many = (scaling.speedup(replace(job, ranks=count), assumed) for count in (2, 1024))
    assert 1.8 < few < 2 and 0.95 * limit < many < limit
    count = round(scaling.useful_ranks(job, assumed))
    at_limit = scaling.seconds(replace(job, ranks=count), assumed)
    assert at_limit["networks"] == pytest.approx(at_limit["loss"], rel=0.05)
    steps = -(-job.train_images // job.images) * job.epochs
    assert 3600 * scaling.hours(job, assumed) == pytest.approx(steps * scaling.seconds_per_step(job, assumed))


def test_more_ranks_than_images_are_refused():
    with pytest.raises(ValueError, match="a step of 4 images cannot be split among 5 ranks"):
        make_job(4, ranks=5)


def test_scaling_command_prints_the_text_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["benchmarks", "scaling", "--out", str(tmp_path)])
    bench.main()
    assert capsys.readouterr().out == scaling.text() + "\n" and not list(tmp_path.iterdir())


def test_page_shows_the_computed_text():
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    shown = re.search(r"<!-- computed -->\n(.*)\n<!-- end -->", page, re.S)[1]
    assert shown.strip() == scaling.text(), "put the output of python -m benchmarks scaling between the markers"
    assumed = scaling.Assumed()
    for peak, share in ((assumed.bfloat16, assumed.bfloat16_share), (assumed.float32, assumed.float32_share)):
        assert f"{100 * share:g} % of {peak / 1e12:g} TFLOP/s" in page
    assert f"{1e6 * assumed.message_seconds:g} µs" in page and f"{assumed.gpus_per_machine} GPUs on a machine" in page

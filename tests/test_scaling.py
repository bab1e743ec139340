"""The calculation of what many GPUs would cost, held to the code it is about, and the page to the calculation."""

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


class Ends(Classifier):
    """A network of which only the last layer is needed."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def features(self, x):
        return x


def job(images: int, ranks: int = 1, narrow: int = 24, wide: int = 20, classes: int = 30) -> scaling.Job:
    student = scaling.Network(flops=10, parameters=1000, width=narrow, saved_bytes=80, channels=(16, 32))
    return scaling.Job(student, replace(student, flops=20, width=wide), images, ranks, 4, classes, 3, 50)


def method_of(about: scaling.Job) -> tuple[pckd.PCKD, Ends, Ends]:
    student, teacher = (Ends(network.width, about.categories) for network in (about.student, about.teacher))
    return pckd.PCKD().bind(student, teacher), student, teacher


@pytest.mark.parametrize("about", [job(60), job(20), job(130, wide=48, classes=200)])
def test_the_loss_takes_these_operations_and_keeps_this_much(about):
    method, student, teacher = method_of(about)
    own = {weight.untyped_storage()._cdata for net in (method, student, teacher) for weight in net.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    shapes = (about.student.width, student), (about.teacher.width, teacher)
    outputs = [
        Output(torch.randn(about.rows, width), torch.randn(about.rows, about.categories), *net.fc.parameters())
        for width, net in shapes
    ]
    for given in outputs[0][:2]:
        given.requires_grad_()
    labels = torch.arange(about.images) % about.categories
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = method(*outputs, Batch(labels, torch.arange(about.images)), epoch=1).total
        total.backward()
    assert counter.get_total_flops() == sum(scaling.loss_flops(about).values())
    found = sum(size for place, size in kept.items() if place not in own)
    assert found == pytest.approx(scaling.memory(about)["loss"], rel=0.03)


def test_a_block_of_similarities_is_the_largest_that_the_contrast_makes(monkeypatch):
    about, sizes = job(100), []
    blocks = losses._LogSumExpOverOthers.blocks

    def noting(x):
        for start, stop, similarity in blocks(x):
            sizes.append(similarity.untyped_storage().nbytes())
            yield start, stop, similarity

    monkeypatch.setattr(losses._LogSumExpOverOthers, "blocks", noting)
    scores = torch.randn(2, about.rows, about.categories)
    losses.category_center_contrast(*scores, torch.zeros(about.rows, dtype=torch.int64))
    assert max(sizes) == scaling.memory(about)["block"] < scaling.memory(about)["plain"] == (2 * 400) ** 2 * 4


def test_heads_have_these_parameters():
    about = job(20, wide=7)
    method, *_ = method_of(about)
    assert sum(weight.numel() for weight in method.parameters()) == scaling.head_parameters(about)


@pytest.mark.parametrize("images, count", [(64, 4), (64, 64)])
def test_ranks_receive_what_is_gathered(images, count):
    about, pieces = job(images, count), []

    def all_gather(piece, sync_grads):
        pieces.append((sync_grads, piece.numel() * piece.element_size() * (count - 1)))
        return torch.stack([piece] * count)

    fabric = SimpleNamespace(world_size=count, global_rank=0, all_gather=all_gather)
    method, student, teacher = method_of(about)
    mine = about.rows // count
    said = student.output(torch.randn(mine, about.student.width, requires_grad=True))
    gathered = ranks.gather(said, images, fabric)
    assert gathered.features.shape == (about.rows, about.student.width)
    ranks.gather_rows(torch.randn(mine, about.teacher.width).half(), images, fabric)
    found = scaling.received(about)
    assert sum(size for _, size in pieces) == found["gathered"]
    assert sum(size for back, size in pieces if back) == found["back"] < found["gathered"]
    weights = about.student.parameters + sum(weight.numel() for weight in method.parameters())
    assert found["weights"] == pytest.approx(2 * 4 * weights * (count - 1) / count)


def test_one_rank_receives_nothing_and_waits_for_nobody():
    assert set(scaling.received(job(64)).values()) == {0} and scaling.messages(job(64)) == 0
    assert scaling.messages(job(64, 2)) == 2 * 2 + 3 + 2 + 1 + 1


def test_records_checkpoint_and_cache_have_these_sizes(tmp_path):
    about = job(20)
    books = Recorder.empty(about.epochs, about.train_images, torch.device("cpu"))
    assert scaling.memory(about)["records"] == books.cross_entropy.nbytes + books.difficulty.nbytes
    weights = [torch.zeros(about.student.parameters, requires_grad=True), *method_of(about)[0].parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    held = [*weights, *(kept["momentum_buffer"] for kept in optimizer.state.values())]
    assert scaling.checkpoint(about) == scaling.memory(about)["records"] + sum(tensor.nbytes for tensor in held)
    cache = TeacherCache(tmp_path, {}, (about.train_images, about.views, about.teacher.width), 1)
    cache.begin_epoch(1)
    assert scaling.teacher_cache(about) == cache.new_file.nbytes


def test_a_network_is_counted_as_it_is():
    counted = scaling.network("resnet8", 100, (3, 32, 32))
    model = pckd.create_model("resnet8", num_classes=100)
    assert counted.flops == pckd.models.count_flops(model) and counted.width == 64
    assert counted.parameters == sum(weight.numel() for weight in model.parameters())
    assert scaling.saved_by(model, (3, 32, 32)) == pytest.approx(counted.saved_bytes, rel=1e-3)
    first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    by_hand = 4 * (3 + 16 + 16) * 32**2  # the input of each but ReLU, which keeps its result
    assert scaling.saved_by(first, (3, 32, 32)) == pytest.approx(by_hand, rel=1e-3)


def test_imagenet_is_the_papers_pair_by_the_recipe():
    about = scaling.imagenet(256, 8)
    assert (about.images, about.rows, about.hidden) == (pckd.get_recipe("imagenet_paper").batch_size, 1024, 8192)
    assert about.epochs == pckd.get_recipe("imagenet_paper").epochs == 100
    assert (about.student.parameters, about.teacher.parameters) == (11_689_512, 21_797_672)  # torchvision's numbers
    assert sum(about.student.channels) == 4800 and len(about.student.channels) == 20


def test_what_every_rank_does_limits_how_many_are_worth_it():
    assumed = scaling.Assumed(message_seconds=0)
    about = scaling.imagenet(1024, 1)
    alone = scaling.seconds(about, assumed)
    assert scaling.seconds_per_step(about, assumed) == sum(alone.values()) and scaling.speedup(about, assumed) == 1
    limit = 1 + alone["networks"] / alone["loss"]
    few, many = (scaling.speedup(replace(about, ranks=count), assumed) for count in (2, 1024))
    assert 1.8 < few < 2 and 0.95 * limit < many < limit
    count = round(scaling.useful_ranks(about, assumed))
    there = scaling.seconds(replace(about, ranks=count), assumed)
    assert there["networks"] == pytest.approx(there["loss"], rel=0.05)
    steps = -(-about.train_images // about.images) * about.epochs
    assert 3600 * scaling.hours(about, assumed) == pytest.approx(steps * scaling.seconds_per_step(about, assumed))


def test_more_ranks_than_images_are_refused():
    with pytest.raises(ValueError, match="a step of 4 images cannot be split among 5 ranks"):
        job(4, ranks=5)


def test_it_is_printed_and_nothing_is_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["benchmarks", "scaling", "--out", str(tmp_path)])
    bench.main()
    assert capsys.readouterr().out == scaling.text() + "\n" and not list(tmp_path.iterdir())


def test_the_page_shows_what_is_computed():
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    shown = re.search(r"<!-- computed -->\n(.*)\n<!-- end -->", page, re.S)[1]
    assert shown.strip() == scaling.text(), "put between the marks what python -m benchmarks scaling prints"
    said = scaling.Assumed()
    for peak, share in ((said.bfloat16, said.bfloat16_share), (said.float32, said.float32_share)):
        assert f"{100 * share:g} % of {peak / 1e12:g} TFLOP/s" in page
    assert f"{1e6 * said.message_seconds:g} µs" in page and f"{said.gpus_per_machine} GPUs on a machine" in page

"""The memory of long runs does not grow, and the check would detect a leak."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
import torch

import pckd_nb as pckd
from benchmarks import __main__ as bench
from benchmarks import memory, report
from benchmarks.measure import environment
from benchmarks.settings import Settings
from pckd_nb import training

from .conftest import make_data

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads the memory of a process from /proc")
LONG_EPOCHS, SHORT_EPOCHS = 30, 10


class LeaksMuch(pckd.PCKD):
    """Leaks 4 MiB per step, more than earlier trainings of the process have freed."""

    def forward(self, *args):
        self.__dict__.setdefault("kept", []).append(torch.ones(2**20))
        return super().forward(*args)


class LeaksLittle(pckd.PCKD):
    """Leaks one open file per step, and the losses with their graphs.

    The backward pass has emptied these graphs, so the leak is too small to show in the memory.
    """

    def forward(self, *args):
        terms = super().forward(*args)
        self.__dict__.setdefault("kept", []).append((terms.total, open(__file__)))
        return terms


METHODS = {"sound": pckd.PCKD, "much": LeaksMuch, "little": LeaksLittle}


def record_trainings() -> dict[str, list[memory.Row]]:
    """Return the recorded rows of one training per method. A checkpoint is written after every epoch."""
    data = make_data()
    found = {}
    for name, method in METHODS.items():
        gc.collect()  # frees the copies of the last teacher that torch.fx makes
        recipe = pckd.get_recipe("classroom", epochs=LONG_EPOCHS if name == "sound" else SHORT_EPOCHS, batch_size=16)
        networks = pckd.create_model("resnet8", data, seed=0), pckd.create_model("resnet14", data, seed=1)
        options = {"accelerator": "cpu", "progress": False}
        with (
            TemporaryDirectory() as folder,
            mock.patch.object(training.callbacks, "MIN_SECONDS_BETWEEN_SAVES", 0),
            mock.patch.object(training.callbacks, "MAX_SAVING_SHARE", float("inf")),
            memory.record_usage() as found[name],
        ):
            pckd.distill(*networks, data, method(), recipe, out=f"{folder}/run", **options)
    return found


@pytest.fixture(scope="module")
def rows() -> dict[str, list[memory.Row]]:
    code = "import json; from tests.test_memory import record_trainings; print(json.dumps(record_trainings()))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def rises(rows: list[memory.Row], field: str) -> bool:
    """Whether a field is larger in all late epochs than in some early epoch after the warm-up."""
    late = len(rows) // 2
    return min(row[field] for row in rows[late:]) > min(row[field] for row in rows[memory.WARMUP_EPOCHS : late])


@pytest.mark.slow
def test_memory_does_not_grow_in_a_long_run(rows):
    sound = rows["sound"]
    assert [row["epoch"] for row in sound] == list(range(1, LONG_EPOCHS + 1))
    assert memory.growth(sound) <= 2
    assert not rises(sound, "tensors") and not rises(sound, "files")


@pytest.mark.slow
def test_leaks_are_detected(rows):
    assert memory.growth(rows["much"]) > 2
    assert rises(rows["much"], "tensors") and not rises(rows["much"], "files")
    assert rises(rows["little"], "tensors") and rises(rows["little"], "files")


def test_growth_is_measured_from_the_second_epoch_to_the_later_maximum():
    def growth(*resident: float) -> float:
        return memory.growth([{"resident_mib": value} for value in resident])

    assert growth(500, 100, 101, 103, 99) == pytest.approx(3)
    assert growth(100, 200, 150) == pytest.approx(-25)
    with pytest.raises(ValueError, match="3 epochs"):
        growth(100, 100)


def test_recording_ends_with_its_block():
    before = training.Trainer.end_epoch
    with memory.record_usage():
        assert training.Trainer.end_epoch is not before
    assert training.Trainer.end_epoch is before


@pytest.mark.slow
def test_memory_part_and_its_report(tmp_path):
    settings = Settings(
        accelerator="cpu", root=tmp_path, memory_epochs={"shapes100": 3}, memory_networks=("resnet8", "resnet8"),
        memory_train_size=100, memory_teacher_epochs=1,
    )  # fmt: skip
    bench.measure("memory", settings, tmp_path, environment(settings.device))
    bench.assemble(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    details = found["parts"]["memory"]["details"]["shapes100"]
    assert [row["epoch"] for row in details["some_epochs"]] == [1, 2, 3]
    assert found["memory_growth_shapes100"] == memory.growth(details["some_epochs"])
    assert 50 < details["resident_mib"]["settled"] <= details["peak_mib"]["max"] < 10_000
    text = (tmp_path / "report.md").read_text()
    assert text == report.render(found) and "## Memory of long runs" in text and str(tmp_path) not in text

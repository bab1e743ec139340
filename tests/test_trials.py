"""Every method is tried on everything, see `benchmarks.trials`. The trial in two processes is in test_ranks.py."""

import json
import os
import re

import pytest

from benchmarks import __main__ as bench
from benchmarks import trials
from benchmarks.trials import FAILED, PASSED, REFUSED, TRIALS, Place, Result
from pckd_nb import catalogue

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
NAMES = [*catalogue.METHODS, *catalogue.BASELINES]
RECORD = json.loads(trials.FILE.read_text("utf-8"))["methods"]
RUN_AGAIN = "run python -m benchmarks trials {name}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("trials"))


def recorded(name: str) -> dict[str, Result]:
    return {trial: Result(**result) for trial, result in RECORD[name]["trials"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_method_passes_or_refuses_some_networks(name, place):
    found = {trial: trials.attempt(trial, name, place) for trial in TRIALS if trial != "two ranks"}
    assert {trial: result.found for trial, result in found.items() if result.status == FAILED} == {}
    if name in RECORD:
        assert found == {trial: result for trial, result in recorded(name).items() if trial != "two ranks"}, (
            RUN_AGAIN.format(name=name)
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_record_has_every_method_and_trial(name):
    assert name in RECORD, RUN_AGAIN.format(name=name)
    found = recorded(name)
    assert list(found) == list(TRIALS), RUN_AGAIN.format(name=name)
    for trial, result in found.items():
        assert result.status == PASSED or (result.status == REFUSED and trial in trials.MAY_REFUSE), (trial, result)
        assert result.status == PASSED or "choose" in result.found or result.found.endswith(" uses no teacher")


def test_the_record_has_no_other_methods():
    assert set(RECORD) == set(NAMES)


def test_trials_choose_settings_that_test_more():
    assert trials.arm_of("AT") == "AT" and trials.arm_of("CRD") == "CRD-negatives=8"
    assert trials.arm_of("FT") == "FT-stage_epochs=2" and trials.arm_of("DKD") == "DKD-warmup_epochs=4"
    assert trials.needs_views("SSKD") and not any(map(trials.needs_views, ("kd", "supervised", "MLKD", "AT")))


# Methods with a fault, and one that is right but refuses everything
METHODS = """
import torch
import pckd_nb as pckd

class Forgetful(pckd.KD):
    '''It counts its steps, and the count is not part of a checkpoint.'''

    steps = 0

    def forward(self, student, teacher, batch, epoch):
        self.steps += 1
        terms = super().forward(student, teacher, batch, epoch)
        return terms._replace(total=terms.total * self.steps)

class NotFinite(pckd.KD):
    def forward(self, student, teacher, batch, epoch):
        terms = super().forward(student, teacher, batch, epoch)
        return terms._replace(total=terms.total * torch.inf)

class LastLayerOnly(pckd.KD):
    def forward(self, student, teacher, batch, epoch):
        logits = student.features.detach() @ student.centers.T
        return super().forward(student._replace(logits=logits), teacher, batch, epoch)

class Refuses(pckd.KD):
    def bind(self, student, teacher):
        raise ValueError("these networks do not fit: choose others")

class RefusesInTwoLines(pckd.KD):
    def bind(self, student, teacher):
        raise ValueError("these networks do not fit:\\nchoose others")

class Breaks(pckd.KD):
    def bind(self, student, teacher):
        return student.layer9
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("methods") / "own.py"
    file.write_text(METHODS)
    return file


OTHER = trials.title(*trials.PAIRS[1])


@pytest.mark.parametrize(
    ("method", "trial", "status", "found"),
    [
        ("Forgetful", "digits", PASSED, ""),
        ("NotFinite", "digits", FAILED, "exit status 1: pckd-nb: .* is not finite in epoch 1"),
        ("Refuses", "digits", FAILED, "exit status 2: pckd-nb: these networks do not fit: choose others"),
        ("NotFinite", OTHER, FAILED, "FloatingPointError: .* is not finite in epoch 1"),
        ("LastLayerOnly", OTHER, FAILED, r"\d+ parameters of the student did not change: \['conv1.weight'"),
        ("Refuses", OTHER, REFUSED, "these networks do not fit: choose others"),
        ("Refuses", trials.title(*trials.PAIRS[0]), FAILED, "these networks do not fit: choose others"),
        ("RefusesInTwoLines", OTHER, FAILED, "the error message has several lines: these networks do not fit:"),
        ("Breaks", OTHER, FAILED, "AttributeError: 'ResNet' object has no attribute 'layer9'"),
    ],
)
def test_a_fault_of_a_method_is_found(method, trial, status, found, file, place):
    result = trials.attempt(trial, f"{file}:{method}", place)
    assert result.status == status and re.match(found, result.found), result


@pytest.mark.slow
def test_a_method_that_forgets_something_after_a_kill_is_found(file, place):
    result = trials.attempt("resumes", f"{file}:Forgetful", place)
    assert result == Result(FAILED, "killed in the epoch and resumed, student.safetensors differs")


@pytest.fixture
def imagined(monkeypatch):
    """Two trials that do not train: DKD fails the second one, and AT is refused."""

    def second(name, place):
        assert isinstance(place, Place) and place.waiting == [trials.arm_of(name) for name in ("DKD", "AT")]
        if name == "AT":
            raise trials.RefusedError("AT does not fit: choose another method")
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(trials, "TRIALS", {"first": lambda name, place: "a remark", "second": second})
    monkeypatch.setattr(trials, "MAY_REFUSE", {"second"})


def test_some_methods_can_be_tried_again(imagined, tmp_path, monkeypatch, capsys):
    file = tmp_path / "trials.json"
    kept, old = {"date": "today", "trials": {}}, {"date": "yesterday", "trials": {}}
    file.write_text(json.dumps({"methods": {"AT": old, "Removed": old, "kd": kept}}))
    monkeypatch.setattr("sys.argv", ["benchmarks", "trials", "dkd", "AT", "--out", str(file)])
    with pytest.raises(SystemExit) as exit:
        bench.main()
    assert exit.value.code == 1
    assert capsys.readouterr().out == (
        f"DKD first: passed, second: failed\nAT first: passed, second: refused\n{file}\n"
    )
    found = json.loads(file.read_text())
    assert list(found["methods"]) == ["kd", "AT", "DKD"], "the order of the catalogue, without removed methods"
    assert found["methods"]["kd"] == kept
    first = {"status": "passed", "found": "a remark"}
    assert found["methods"]["AT"]["trials"] == {
        "first": first,
        "second": {"status": "refused", "found": "AT does not fit: choose another method"},
    }
    failed = {"status": "failed", "found": "ZeroDivisionError: by"}
    assert found["methods"]["DKD"] == {
        "date": found["environment"]["date"],
        "trials": {"first": first, "second": failed},
    }


def test_an_unknown_method_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        trials.main(["DKD", "nothing", "--out", str(tmp_path / "trials.json")])
    assert exit.value.code == 2 and "unknown method 'nothing'; known: supervised, kd" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

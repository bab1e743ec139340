import numpy as np
import pytest
import torch

from pckd_nb import course


@pytest.mark.parametrize(
    ("answer", "expected", "printed"),
    [
        (None, 1, "No answer yet."),
        (..., 1, "No answer yet."),
        (0.5, 0.50001, "Right."),
        (0.5, 0.51, "Not yet. Halve it."),
        (torch.tensor([1.0, 2.0]), np.array([1, 2]), "Right."),
        (torch.tensor([1.0, 2.0]), 1, "Not yet. Halve it."),
        (torch.tensor([2.0], requires_grad=True), 2, "Right."),
        ([torch.tensor(1.0, requires_grad=True), 2], np.array([1, 2]), "Right."),
        (np.array([[2.0]]), 2, "Right."),
        (np.array([2.0, 2.0]), 2, "Not yet. Halve it."),
        (float("nan"), 2, "Not yet. Halve it."),
        ({"a", "b"}, {"b", "a"}, "Right."),
        ({"a"}, {"b", "a"}, "Not yet. Halve it."),
        (["a", "b"], np.array(["a", "b"]), "Right."),
        (np.array(["a", "b"]), "a", "Not yet. Halve it."),
        (1, "hard", "Not yet. Halve it."),
        ("hard", "easy", "Not yet. Halve it."),
    ],
)
def test_check_compares_an_answer_with_the_expected_value(capsys, answer, expected, printed):
    course.check(answer, expected, "Halve it.")
    assert capsys.readouterr().out == printed + "\n"


def test_recorded_runs_are_found_by_name():
    run = course.recorded("teachers/shapes100")
    assert run.finished and run.model().name == run.settings["model"]["name"]
    assert run.fingerprint in {found.fingerprint for found in course.recorded_runs("teachers")}
    with pytest.raises(FileNotFoundError, match="not a run"):
        course.recorded("teachers/nobody")


def test_recorded_runs_need_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(course, "RECORDED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="come with a clone"):
        course.recorded("teachers/shapes100")


def test_the_old_argument_least_works_with_a_warning(monkeypatch):
    monkeypatch.setattr(course.hardware, "slowness", lambda: 50)
    with pytest.warns(DeprecationWarning, match="argument least of live_epochs is now called minimum"):
        assert course.live_epochs(10, least=3) == 3


@pytest.mark.parametrize(
    ("slowness", "epochs", "minimum", "expected"),
    [(1, 10, 1, 10), (2.5, 10, 1, 4), (1.04, 10, 1, 10), (50, 10, 1, 1), (50, 10, 3, 3), (2, 2, 4, 2), (1, 2, 4, 2)],
)
def test_a_slow_machine_trains_fewer_epochs_live_and_says_so(monkeypatch, capsys, slowness, epochs, minimum, expected):
    monkeypatch.setattr(course.hardware, "slowness", lambda: slowness)
    assert course.live_epochs(epochs, minimum) == expected
    printed = capsys.readouterr().out
    if expected == epochs:
        assert printed == ""
    else:
        assert (
            f" {slowness:.1f} times slower " in printed
            and f": {expected} epoch{'s' * (expected != 1)} instead of {epochs}." in printed
        )
        assert printed.count("\n") == 1

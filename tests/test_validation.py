"""Validation of settings: the exception types, and one-line messages that say what was given and what is valid."""

import json
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction as PythonFraction

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pckd_nb import KD, get_recipe
from pckd_nb.config import RunConfig, make_config
from pckd_nb.validation import Count, Fraction, NotNegative, Positive, PositiveFraction, Seed, check, check_fields


@pytest.mark.parametrize(
    ("kind", "good"),
    [(Count, [1, 10**9, np.int64(3)]), (Seed, [0, 2**31 - 1]), (Positive, [1e-300, 5, np.float32(2)])]
    + [(NotNegative, [0, 0.5]), (Fraction, [0, 0.999]), (PositiveFraction, [0.5])],
)
def test_valid_values_are_accepted(kind, good):
    for value in good:
        check(kind, value=value)


@pytest.mark.parametrize(
    ("kind", "value", "error", "message"),
    [
        (Count, 0, ValueError, "epochs must be at least 1, got 0"),
        (Count, 10**9 + 1, ValueError, "epochs must be at most 1000000000, got 1000000001"),
        (Count, 1.5, TypeError, "epochs must be a whole number, got 1.5"),
        (Count, True, TypeError, "epochs must be a whole number, got True"),
        (Count, "3", TypeError, "epochs must be a whole number, got '3'"),
        (Positive, float("nan"), ValueError, "epochs must be a finite number, got nan"),
        (Positive, None, TypeError, "epochs must be a number, got None"),
        (PositiveFraction, 1.0, ValueError, "epochs must be less than 1, got 1.0"),
        (Seed, np.arange(2), TypeError, "epochs must be a whole number, got ndarray"),
        (Seed, "a\nb" * 90, TypeError, None),
        (Positive, Decimal("0.5"), TypeError, "epochs must be a number, got Decimal"),
        (Positive, torch.tensor(0.5), TypeError, "epochs must be a number, got Tensor"),
        (PositiveFraction, PythonFraction(1, 2), TypeError, "epochs must be a number, got Fraction"),
    ],
)
def test_invalid_values_are_refused(kind, value, error, message):
    with pytest.raises(error) as caught:
        check(kind, epochs=value)
    assert type(caught.value) is error and not isinstance(caught.value, ValidationError)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 120 and text.startswith("epochs must be")
    assert message is None or text == message


def test_invalid_dataclass_fields_are_named():
    @dataclass
    class Settings:
        sizes: dict[str, Count]
        rate: Positive = 0.1

    check_fields(Settings({"train": 3}))
    with pytest.raises(ValueError, match=r"^sizes\.train must be at least 1, got 0$"):
        check_fields(Settings({"train": 0}))
    with pytest.raises(TypeError, match=r"^rate must be a number, got 'x'$"):
        check_fields(Settings({}, "x"))


def minimal_run_json() -> dict:
    """Return a run.json with only the required entries."""
    data = {"name": "digits", "options": {"seed": 0}, "fingerprint": "ab", "train_images": 3, "test_images": 2}
    data |= {"image_size": [16, 16], "mean": [0.1], "std": [0.2], "normalisation": "x", "classes": ["a", "b"]}
    model = {"name": "resnet8", "num_classes": 2, "in_channels": 1, "parameters": 9}
    method = {"name": "KD", "title": "KD", "views": 1, "settings": {"beta_kd": {"value": 1.0, "from": "default"}}}
    recipe = {"epochs": 1, "method": {}}
    return {"format": 1, "status": "finished", "method": method, "model": model, "teacher": None, "seed": 0,
            "data": {**data, "groups": {}}, "recipe": recipe, "hardware": "CPU", "fingerprint": "cd"}  # fmt: skip


def test_run_config_round_trips_run_json():
    whole = {**minimal_run_json(), "of another version": [1]}
    config = RunConfig.model_validate(whole)
    assert config.dump() == whole
    assert config.method.settings["beta_kd"].source == "default"
    config.compile = True
    assert config.dump() == {**whole, "compile": True}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("seed", None, "seed is missing"),
        ("seed", "0", "seed must be a whole number, got '0'"),
        ("model.in_channels", 10**6, "model.in_channels must be at most 4096"),
        ("model.num_classes", 3, "data.classes has 2 names, but model.num_classes is 3"),
        ("data.image_size", [16], "data.image_size: List should have at least 2 items"),
        ("data.options", {"root": "/"}, "data.options.root is not allowed in run.json"),
        ("data.options", {"seed": "0"}, "data.options.seed needs a number, got '0'"),
        ("method.settings", {"beta_kd": 1.0}, "method.settings.beta_kd"),
        ("teacher", {"name": "resnet20"}, "teacher.fingerprint is missing"),
        ("fingerprint", None, "fingerprint is missing"),
    ],
)
def test_errors_in_run_json_are_named(place, value, message):
    whole = minimal_run_json()
    *way, name = place.split(".")
    part = whole
    for step in way:
        part = part[step]
    if value is None:
        del part[name]
    else:
        part[name] = value
    with pytest.raises(ValueError) as error:
        make_config(whole)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_recipes_convert_numpy_numbers_to_python():
    recipe = get_recipe(
        "classroom",
        lr=np.float32(0.5),
        milestones=[np.float64(0.5)],
        network_lr={"resnet8": np.float32(2)},
        epochs=np.int64(3),
    )
    assert json.loads(json.dumps(recipe.settings()))["epochs"] == 3
    assert [type(value) for value in (recipe.lr, *recipe.milestones, *recipe.network_lr.values())] == [float] * 3
    for name in ("lr", "momentum", "clip_norm", "warmup_epochs", "label_smoothing", "ema"):
        with pytest.raises(TypeError, match=f"^{name} must be a number, got Decimal$"):
            get_recipe("classroom", **{name: Decimal("0.5")})
    with pytest.raises(TypeError, match="^temperature must be a number, got Tensor$"):
        KD(torch.tensor(2.0))

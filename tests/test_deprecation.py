"""Old public names work with a warning."""

import importlib
import sys
import types

import pytest
import torch

import pckd_nb as pckd
from pckd_nb import deprecation
from pckd_nb.deprecation import RENAMED, renamed


@pytest.mark.parametrize(
    ("module", "old", "new"), [(module, old, new) for module, names in RENAMED.items() for old, new in names.items()]
)
def test_an_old_name_warns_and_gives_the_new_object(module, old, new):
    full = importlib.import_module(f"pckd_nb.{module}")
    with pytest.warns(DeprecationWarning, match=rf"pckd_nb\.{module}\.{old} is now called {new}$"):
        found = getattr(full, old)
    assert found is getattr(full, new)
    assert old not in vars(full) and old not in getattr(full, "__all__", ())


@pytest.mark.parametrize("name", RENAMED)
def test_a_module_with_old_names_refuses_unknown_names(name):
    with pytest.raises(AttributeError, match=f"^module 'pckd_nb.{name}' has no attribute 'nonsense'$"):
        _ = importlib.import_module(f"pckd_nb.{name}").nonsense


@pytest.fixture
def module(monkeypatch):
    """A module pckd_nb.shelf that has `stack` and `__getattr__`."""
    made = types.ModuleType("pckd_nb.shelf")
    made.stack = object()
    made.__getattr__ = renamed("pckd_nb.shelf")
    monkeypatch.setitem(sys.modules, "pckd_nb.shelf", made)
    return made


def test_the_warning_points_at_the_line_that_uses_the_old_name(module, monkeypatch):
    monkeypatch.setitem(deprecation.RENAMED, "shelf", {"held": "stack"})
    with pytest.warns(DeprecationWarning, match="^pckd_nb.shelf.held is now called stack$") as warned:
        assert module.held is module.stack
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.filterwarnings("error")
def test_a_module_without_entries_raises_the_usual_error(module):
    with pytest.raises(AttributeError, match="^module 'pckd_nb.shelf' has no attribute 'held'$"):
        _ = module.held
    assert not hasattr(module, "held") and module.stack is module.stack


def test_old_attributes_and_arguments_of_preprocessed_networks_work_with_a_warning():
    model = pckd.create_model("resnet8", num_classes=3, seed=0)
    ours, theirs = (
        {"mean": (mean,) * 3, "std": (0.5,) * 3, "image_size": (side, side)} for mean, side in ((0, 8), (1, 16))
    )
    with pytest.warns(DeprecationWarning) as warned:
        network = pckd.models.Preprocessed(model, shown=ours, learned=theirs)
    assert [str(warning.message) for warning in warned] == [
        "argument shown of __init__ is now called input_format",
        "argument learned of __init__ is now called training_format",
    ]
    new_names = {
        "shown": "input_format",
        "learned": "training_format",
        "resized": "resize_to",
        "pixels": "convert_input",
    }
    for old, new in new_names.items():
        with pytest.warns(DeprecationWarning, match=f"^Preprocessed.{old} is now called {new}$") as warned:
            assert getattr(network, old) == getattr(network, new)
        assert [warning.filename for warning in warned] == [__file__]
    with pytest.warns(DeprecationWarning, match="^Preprocessed.resized is now called resize_to$"):
        network.resized = None
    assert network.resize_to is None


def test_the_old_attribute_of_feature_maps_works_with_a_warning():
    maps = pckd.models.FeatureMaps(pckd.create_model("resnet8", num_classes=3), torch.zeros(1, 3, 32, 32))
    with pytest.warns(DeprecationWarning, match="^FeatureMaps.places is now called layer_sizes$"):
        assert maps.places is maps.layer_sizes and len(maps.layer_sizes) == 3

"""`help()` of a method or a network shows its own members, and the members of nn.Module stay in reach."""

import abc
import pydoc

import pytest

import pckd_nb as pckd
from pckd_nb.methods import Method
from pckd_nb.methods.baselines import FT
from pckd_nb.models import Classifier
from pckd_nb.models.resnet import ResNet


@pytest.mark.parametrize("thing", [pckd.PCKD, pckd.KD, Classifier, ResNet, pckd.distill])
def test_help_fits_two_screens(thing):
    text = pydoc.plain(pydoc.render_doc(thing))
    assert len(text.splitlines()) <= 175
    assert "register_forward_pre_hook" not in text


def test_help_of_a_method_shows_what_a_subclass_needs():
    text = pydoc.plain(pydoc.render_doc(pckd.PCKD))
    assert all(f" {name}(" in text for name in ("bind", "check", "forward", "__init__"))
    assert "Methods inherited from pckd_nb.methods.base.Method" in text


def test_rare_hooks_are_shown_where_they_are_defined():
    shown = {cls: pydoc.plain(pydoc.render_doc(cls)) for cls in (pckd.PCKD, Method, FT)}
    assert all((" stages(self" in text) == (cls is not pckd.PCKD) for cls, text in shown.items())
    assert "published_settings" in shown[FT] and "view_kind" not in shown[FT]


def test_an_instance_completes_the_names_of_a_module():
    names = dir(pckd.PCKD())
    assert {"parameters", "to", "state_dict", "bind", "beta_kd"} <= set(names)


def test_a_method_can_also_be_an_abstract_class():
    class Abstract(pckd.methods.Method, abc.ABC):
        @abc.abstractmethod
        def bind(self, student, teacher): ...

    with pytest.raises(TypeError, match="abstract"):
        Abstract()

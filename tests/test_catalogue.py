"""Names and facts that need no torch are those of what torch builds."""

import pytest
import torch

from pckd_nb import catalogue, methods, models, preview, recipes
from pckd_nb.catalogue import NETWORKS, Network


def test_networks_are_those_that_can_be_built():
    assert list(NETWORKS) == list(models.MODELS)
    known = {*NETWORKS, "torchvision:resnet34", "torchvision:resnet18"}
    assert {name for pair in catalogue.PAIRS for name in pair} <= known and models.PAIRS is catalogue.PAIRS


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_costs_is_as_computed(name):
    with torch.device("meta"):
        model = models.create_model(name, num_classes=100)
        flops = models.count_flops(model, (3, 32, 32))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert NETWORKS[name] == Network(parameters, flops, model.feature_width)


def test_methods_and_strategies_are_those_that_can_be_built():
    assert catalogue.METHODS == tuple(methods.METHODS)
    assert catalogue.BASELINES == tuple(methods.BASELINES)
    assert catalogue.NOT_IMPLEMENTED is methods.NOT_IMPLEMENTED
    assert catalogue.RECIPES == tuple(recipes.RECIPES)
    assert catalogue.STRATEGIES == tuple(preview.STRATEGIES)


@pytest.mark.parametrize("name", [*catalogue.METHODS, *catalogue.BASELINES])
def test_methods_are_found_whatever_their_capitals(name):
    for written in (name, name.lower(), name.upper()):
        assert catalogue.find_method(written) == name


@pytest.mark.parametrize("name", [*catalogue.DATASETS, "folder:", "folder:photos", "imagenet:/data"])
def test_known_data_sets(name):
    catalogue.check_dataset(name)


@pytest.mark.parametrize("name", ["", "CIFAR10", "cifar10:x", "folder", "photos:folder:x", None, ["digits"]])
def test_unknown_data_sets(name):
    with pytest.raises(ValueError, match="unknown data set .*known: shapes100, digits"):
        catalogue.check_dataset(name)


def test_known_and_unknown_networks():
    for name in (*NETWORKS, "torchvision:resnet18", "timm:anything,img_size=32"):
        catalogue.check_network(name)
    with pytest.raises(ValueError, match="^unknown model 'resnet9'; nearest known: resnet"):
        catalogue.check_network("resnet9")
    for build in (catalogue.check_network, lambda name: models.create_model(name, num_classes=2)):
        with pytest.raises(ValueError, match="^unknown library 'keras'; known: torchvision:NAME, timm:NAME$"):
            build("keras:resnet")


def test_arms():
    read = catalogue.read_arm("PCKD-beta_cc=0.02-views=1-strategy=focal")
    assert read == ("pckd", {"beta_cc": 0.02, "views": 1, "strategy": "focal"})
    assert catalogue.read_arm("dkd") == ("DKD", {})
    catalogue.check_arm("pckd-strategy=focal")
    catalogue.check_arm("kd-strategy=whatever")  # that kd has none is said by the method
    for text, says in (("pckd-strategy=easy", "unknown strategy 'easy'; known: preview"), ("p c", "is not an arm"),
                       ("pkd", "unknown method 'pkd'; known: supervised"),
                       ("crd", "CRD is not implemented: its memory"),
                       ("kd-lr=1-lr=2", "contains a setting twice")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            catalogue.check_arm(text)

"""The catalogue lists names and sizes without importing torch. Compare them with the real networks and methods."""

import pytest
import torch

from pckd_nb import catalogue, methods, models, preview, recipes
from pckd_nb.catalogue import NETWORKS, Network


def test_listed_networks_match_the_models():
    assert list(NETWORKS) == list(models.MODELS)
    known = {*NETWORKS, "torchvision:resnet34", "torchvision:resnet18"}
    assert {name for pair in catalogue.PAIRS for name in pair} <= known and models.PAIRS is catalogue.PAIRS


@pytest.mark.parametrize("name", NETWORKS)
def test_listed_parameters_flops_and_widths_are_correct(name):
    with torch.device("meta"):
        model = models.create_model(name, num_classes=100)
        flops = models.count_flops(model, (3, 32, 32))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert NETWORKS[name] == Network(parameters, flops, model.feature_width)


def test_listed_methods_recipes_and_strategies_exist():
    assert catalogue.METHODS == tuple(methods.METHODS)
    assert catalogue.BASELINES == tuple(methods.BASELINES)
    assert catalogue.RECIPES == tuple(recipes.RECIPES)
    assert catalogue.STRATEGIES == tuple(preview.STRATEGIES)


@pytest.mark.parametrize("name", [*catalogue.METHODS, *catalogue.BASELINES])
def test_method_names_are_case_insensitive(name):
    for written in (name, name.lower(), name.upper()):
        assert catalogue.find_method(written) == name


@pytest.mark.parametrize("name", [*catalogue.DATASETS, "folder:", "folder:photos", "imagenet:/data"])
def test_known_data_sets_are_accepted(name):
    catalogue.check_dataset(name)


@pytest.mark.parametrize("name", ["", "CIFAR10", "cifar10:x", "folder", "photos:folder:x", None, ["digits"]])
def test_unknown_data_sets_are_refused(name):
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


def test_arms_are_parsed_and_checked():
    read = catalogue.read_arm("PCKD-beta_cc=0.02-views=1-strategy=focal")
    assert read == ("pckd", {"beta_cc": 0.02, "views": 1, "strategy": "focal"})
    assert catalogue.read_arm("dkd") == ("DKD", {})
    catalogue.check_arm("pckd-strategy=focal")
    catalogue.check_arm("kd-strategy=whatever")  # KD has no strategy; the method itself raises that error
    for text, says in (("pckd-strategy=easy", "unknown strategy 'easy'; known: preview"), ("p c", "is not an arm"),
                       ("pkd", "unknown method 'pkd'; known: supervised"),
                       ("kd-lr=1-lr=2", "contains a setting twice")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            catalogue.check_arm(text)

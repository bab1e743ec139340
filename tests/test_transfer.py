import dataclasses

import numpy as np
import pytest
import torch

import pckd_nb as pckd
from pckd_nb.transfer import convert_to_network_input, transfer, transfer_table

from .conftest import make_data


@pytest.fixture
def run(data, recipe):
    return pckd.fit(pckd.create_model("resnet8", data, seed=0), data, recipe, accelerator="cpu", progress=False)


def test_a_linear_probe_learns_from_the_features(run):
    other = make_data(train=80, test=40, classes=4)
    scores = transfer(run, other, accelerator="cpu", precision="32-true")
    assert scores.top1 > 60 and scores.train_top1 > 60  # the classes differ in brightness
    shuffled = dataclasses.replace(other.test, labels=other.test.labels.roll(1))
    assert transfer(run, dataclasses.replace(other, test=shuffled), accelerator="cpu").top1 < 40
    assert transfer(run, other, accelerator="cpu", precision="32-true") == scores  # the probe is deterministic


def test_the_network_is_frozen(run):
    model = run.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transfer(run, make_data(classes=4), model=model, accelerator="cpu")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_images_are_converted_to_the_size_and_normalisation_of_the_run(run):
    converted = convert_to_network_input(run, make_data(size=16))
    assert converted.size == (8, 8) and converted.mean == tuple(run.settings["data"]["mean"])
    assert converted.train.images.dtype == torch.uint8 and converted.normalisation == "made up"
    same = make_data()
    assert convert_to_network_input(run, same).train.images is same.train.images
    with pytest.raises(ValueError, match="tiny has 3 channels: the network of .* takes only grey images$"):
        convert_to_network_input(run, make_data(channels=3))


def test_grey_images_are_converted_for_a_network_trained_on_colours(recipe):
    data = make_data(channels=3)
    run = pckd.fit(pckd.create_model("resnet8", data, seed=0), data, recipe, accelerator="cpu", progress=False)
    converted = convert_to_network_input(run, make_data(size=16))
    assert converted.channels == 3 and torch.equal(converted.train.images[:, 0], converted.train.images[:, 2])


def test_the_table_compares_runs_with_an_untrained_network(run, teacher, data, recipe):
    kd = pckd.distill(
        pckd.create_model("resnet8", data, seed=0), teacher, data, pckd.KD(), recipe, accelerator="cpu", progress=False
    )
    table = transfer_table([run, kd], make_data(classes=4), accelerator="cpu")
    assert list(table["method"]) == ["supervised", "KD", "untrained"] and set(table["network"]) == {"resnet8"}
    assert np.isnan(table["top-1 % there"].iloc[-1]) and table["top-1 % there"].iloc[0] == run.accuracy

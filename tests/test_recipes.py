import pytest

from pckd_nb.recipes import RECIPES, Recipe, get_recipe


def test_the_recipe_of_the_paper():
    recipe = get_recipe("cifar100_paper")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        240,
        64,
        0.05,
        0.9,
        5e-4,
    )
    rates = [recipe.lr_at(epoch) for epoch in (1, 150, 151, 180, 181, 210, 211, 240)]
    assert rates == pytest.approx([5e-2, 5e-2, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])
    assert recipe.method_settings() == {}
    assert recipe.for_network("MobileNetV2").lr == recipe.for_network("ShuffleV1").lr == 0.01
    assert recipe.for_network("vgg8").lr == recipe.for_network(None).lr == 0.05
    assert get_recipe("cifar100_paper", lr=0.1).for_network("MobileNetV2").lr == 0.1
    assert recipe.crop and recipe.flip and recipe.crop_per_view


def test_the_imagenet_recipe():
    recipe = get_recipe("imagenet_paper")
    rates = [recipe.lr_at(epoch) for epoch in (1, 30, 31, 60, 61, 90, 91, 100)]
    assert rates == pytest.approx([0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert recipe.flip and recipe.method_settings()["epsilon"] ** 100 == pytest.approx(1.005**240)


def test_the_classroom_recipe_decays_the_learning_rate_a_hundredfold():
    recipe = get_recipe("classroom")
    rates = [recipe.lr_at(epoch) for epoch in range(1, recipe.epochs + 1)]
    assert rates[0] == recipe.lr == 0.05 and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.05 * 0.3**4)


@pytest.mark.parametrize("epochs", [1, 5, 15, 240])
def test_a_short_recipe_reaches_the_same_final_threshold(epochs):
    settings = get_recipe("classroom", epochs=epochs).method_settings()
    assert settings["epsilon"] ** epochs == pytest.approx(1.005**240)
    assert settings["beta_cc"] == RECIPES["classroom"].method["beta_cc"]


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"epochs": 1.5}, {"batch_size": 0}, {"lr": 0}, {"lr": -1}, {"lr": float("nan")}, {"lr_decay": 0}]
    + [{"momentum": 1}, {"momentum": -0.1}, {"weight_decay": -1}, {"weight_decay": float("inf")}, {"colour": "red"}]
    + [{"final_threshold": 0}],
)
def test_invalid_recipes_are_refused(change):
    with pytest.raises(TypeError if change == {"epochs": 1.5} else ValueError, match=next(iter(change))):
        get_recipe("classroom", **change)


def test_mixed_images_need_one_crop_for_all_views():
    with pytest.raises(ValueError, match="mix needs one crop for all views of an image: set crop_per_view to False"):
        get_recipe("cifar100_paper", mix="mixup")
    assert get_recipe("cifar100_paper", mix="mixup", crop_per_view=False).mix == "mixup"


def test_get_recipe_takes_names_and_recipes():
    with pytest.raises(ValueError, match=r"'class'.*classroom"):
        get_recipe("class")
    mine = Recipe("mine", epochs=3)
    assert get_recipe(mine) == mine and get_recipe(mine, epochs=4).epochs == 4

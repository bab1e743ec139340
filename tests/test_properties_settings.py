"""Recipes, methods, arms and grids refuse invalid arguments with an error of one line that names the argument."""

import math
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pckd_nb import catalogue, experiments, methods, preview
from pckd_nb.cli.options import parse_seeds
from pckd_nb.experiments import execution
from pckd_nb.recipes import RECIPES, Recipe, get_recipe

from .properties import Case, bad_integer, bad_number, check_bad_values, examples

NOT_TEXT = st.sampled_from([None, 1, 2.5, True, b"kd", ["kd"], {}, object()])
NOT_A_MAPPING = st.sampled_from([None, 1, "beta_cc", [("beta_cc", 1)], True])
bad_positive = bad_number(0)
bad_non_negative = bad_number(0, open_at_lowest=False)
bad_temperature = bad_number(1e-6, 1e6, open_at_lowest=False)


def unknown(names):
    """Generate text that is none of the names, ignoring case."""
    known = {name.lower() for name in names}
    return st.text(max_size=30).filter(lambda text: text.lower() not in known)


BAD_FIELDS = {
    "name": ("name", NOT_TEXT),
    "epochs": ("epochs", bad_integer(1, 10**9)),
    "batch_size": ("batch_size", bad_integer(1, 10**9)),
    "lr": ("lr", bad_positive),
    "momentum": ("momentum", bad_number(0, 0.999, open_at_lowest=False).filter(lambda x: not is_between(x, 0.9, 1))),
    "weight_decay": ("weight_decay", bad_non_negative),
    "milestones": (
        "milestones",
        st.lists(bad_non_negative, min_size=1, max_size=3) | st.sampled_from([None, 0.5, "0.5", {0.5}, {0.5: 1}]),
    ),
    "lr_decay": ("lr_decay", bad_positive),
    "flip": ("flip", st.sampled_from([None, 0, 1, "yes", 2.0, []])),
    "method": ("method", NOT_A_MAPPING),
    "final_threshold": ("final_threshold", bad_number(0, none=False)),
    "network_lr": (
        "network_lr",
        NOT_A_MAPPING | st.dictionaries(st.text(max_size=5), bad_positive, min_size=1, max_size=2),
    ),
}


def is_between(x, low, high):
    return isinstance(x, float) and low <= x < high


def method_case(name, **bad):
    """Return the case of a method that is created by its name."""
    return Case(methods.make, {"name": name}, {argument: (argument, values) for argument, values in bad.items()})


bad_betas = {name: bad_non_negative for name in ("beta_kd", "beta_fa", "beta_ca", "beta_cc")}
bad_strategies = NOT_TEXT | unknown(preview.STRATEGIES)
bad_views = bad_integer(1, 4)
SETTINGS = [*bad_betas, "temperature", "epsilon", "views", "strategy"]


def run_grid(shard, jobs, scheduler, slurm):
    """Call experiments.run_grid until it asks the grid for its points."""

    def points():
        raise StopAsyncIteration

    with suppress(StopAsyncIteration):
        experiments.run_grid(SimpleNamespace(points=points), shard=shard, jobs=jobs, scheduler=scheduler, slurm=slurm)


CASES = {
    "Recipe": Case(Recipe, {"name": "mine", "epochs": 3}, BAD_FIELDS),
    "get_recipe": Case(
        get_recipe,
        {"recipe": "classroom"},
        {"recipe": ("recipe", NOT_TEXT | unknown(RECIPES)), **BAD_FIELDS},
    ),
    "an unknown field of a recipe": Case(
        lambda name: get_recipe("classroom", **({name: 1} if name else {})), {"name": ""},
        {"name": ("field", st.text(min_size=1, max_size=20).filter(lambda name: name not in BAD_FIELDS))},
    ),
    "make": Case(
        methods.make, {"name": "kd"},
        {"name": ("method|is not implemented", NOT_TEXT | unknown({*methods.METHODS, *methods.BASELINES}))},
    ),
    "baseline": Case(
        methods.baseline, {"name": "AT"},
        {"name": ("baseline|is not implemented", NOT_TEXT | unknown(methods.BASELINES))},
    ),
    "an unknown setting of a method": Case(
        lambda method, name: methods.make(method, **({name: 1} if name else {})), {"method": "pckd", "name": ""},
        {"name": ("setting", st.text(min_size=1, max_size=20).filter(lambda name: name not in SETTINGS))},
    ),
    "PCKD": Case(
        methods.PCKD, {},
        {name: (name, values) for name, values in bad_betas.items()}
        | {"temperature": ("temperature", bad_temperature), "epsilon": ("epsilon", bad_positive),
           "views": ("views", bad_views), "strategy": ("strategy", bad_strategies.filter(lambda x: not callable(x)))},
    ),
    "KD": Case(
        methods.KD, {}, {"temperature": ("temperature", bad_temperature), "beta_kd": ("beta_kd", bad_non_negative)}
    ),
    **{name: method_case(name, weight=bad_non_negative) for name in methods.BASELINES},
    "RKD's settings": method_case("RKD", distance=bad_non_negative, angle=bad_non_negative),
    "DIST's settings": method_case("DIST", temperature=bad_temperature),
    "LSKD's settings": method_case("LSKD", temperature=bad_temperature, cross_entropy_weight=bad_non_negative),
    "DKD's settings": method_case(
        "DKD", alpha=bad_non_negative, beta=bad_non_negative, temperature=bad_temperature, warmup_epochs=bad_integer(1)
    ),
    "ReviewKD's settings": method_case("ReviewKD", warmup_epochs=bad_integer(1)),
    "parse_value": Case(catalogue.parse_value, {"text": "1"}, {"text": ("value", NOT_TEXT)}),
    "parse_arm": Case(
        experiments.parse_arm, {"text": "kd-temperature=2"},
        {"text": ("arm|twice", NOT_TEXT | st.sampled_from(
            ["", "-", "kd-", "kd-a=1-a=2", "=", "a b", "kd pckd", "kd\nkd", "../x"]))},
    ),
    "building an arm": Case(
        lambda text: experiments.parse_arm(text).build(get_recipe("classroom")), {"text": "pckd-epsilon_240=1.01"},
        {"text": ("must be|setting|recipe|strategy|number|'", st.builds(
            "{}-{}={}".format, st.sampled_from(["pckd", "kd", "AT", "nothing"]),
            st.sampled_from([*SETTINGS, "epsilon_240", "epochs", "lr", "flip"]),
            st.sampled_from(["x", "", "nan", "-1", "-1e999", "1e999", "0x10", "True", "None", "é", "1j", "9" * 400]),
        ))},
    ),
    "sweep_arms": Case(
        experiments.sweep_arms, {"factor": "beta_cc", "values": [0, 1]},
        {"factor": ("factor", NOT_TEXT), "values": ("values", st.sampled_from([None, 1, "0,1", {0, 1}, 2.0, {}])),
         "base": ("base", st.sampled_from([1, "pckd", (), methods.PCKD]))},
    ),
    "a sweep without values": Case(
        experiments.sweep_arms, {"factor": "beta_cc"}, {"factor": ("values", unknown(experiments.SWEEPS))}
    ),
    "shards, jobs and clusters": Case(
        run_grid, {"shard": (1, 1), "jobs": 1, "scheduler": None, "slurm": None},
        {"scheduler": ("scheduler", NOT_TEXT.filter(lambda x: x is not None) | st.sampled_from(
            ["", "node1", ":8786", "a:b", "http://a:1", "a:1/x", "a b:1", "a:1\n", "a:123456", "://a:1"])),
         "slurm": ("slurm", NOT_TEXT.filter(lambda x: x is not None) | st.sampled_from(
            ["", "gpu", "cores=4", "memory=4GB", "cores=x,memory=4GB", "cores=4,memory=4", "cores=4,memory=4GB,",
             "cores=4,cores=4,memory=4GB", "cores=4,memory=4GB,gres=a b", "cores=4,memory=4GB\n", "Cores=4,memory=1"])),
         "jobs": ("jobs", bad_integer(1)), "shard": ("shard", st.one_of(
            st.tuples(st.integers(-3, 3), st.integers(-3, 0)), st.tuples(st.integers(4, 9), st.integers(0, 3)),
            st.tuples(bad_integer(1), st.just(4)), st.tuples(st.just(1), bad_integer(1, execution.MAX_SHARDS)),
            st.sampled_from([None, 1, "1/2", (1,), (1, 2, 3)])))},
    ),
    "parse_seeds": Case(
        parse_seeds, {"text": "0-2,7"},
        {"text": ("seeds", NOT_TEXT | st.text(max_size=20).filter(lambda text: not set(text) & set("0123456789"))
                  | st.sampled_from(["1-", "-1", "5-2", "0,5-2", "0-99999999999", "0-4294967296", "9" * 5000, "1,,2",
                                     "1.5", "1e3", "0x1", "1_0", "٣", "1;2", "2147483648", "0-2147483647", "0-1-2"]))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_invalid_arguments_are_refused(name):
    check_bad_values(CASES[name], 15)


@pytest.mark.slow
def test_hundreds_of_invalid_arguments_are_refused():
    assert sum(check_bad_values(case, 60) for case in CASES.values()) >= 500


@examples(60)
@given(st.integers(1, 10**4), st.floats(1e-3, 1e3), st.lists(st.floats(0, 2), max_size=4))
def test_every_valid_recipe_has_finite_learning_rates_and_thresholds(epochs, end, milestones):
    recipe = Recipe("mine", epochs, milestones=tuple(milestones), final_threshold=end)
    assert 0 < recipe.lr_at(epochs) <= recipe.lr_at(1) < math.inf
    epsilon = recipe.method_settings()["epsilon"]
    assert preview.threshold(epochs, epsilon) == pytest.approx(end, rel=1e-6)


settings_of_pckd = st.fixed_dictionaries(
    {}, optional={**{name: st.floats(0, 1e3) for name in bad_betas}, "views": st.integers(1, 4),
                  "epsilon": st.floats(0.5, 2), "strategy": st.sampled_from(sorted(preview.STRATEGIES))},
)  # fmt: skip


@examples(60)
@given(settings_of_pckd)
def test_an_arm_can_be_parsed_from_its_name(settings):
    arm = experiments.Arm("pckd", tuple(settings.items()))
    again = experiments.parse_arm(str(arm))
    assert str(again) == str(arm) and again.method == "pckd"
    for (name, value), (same, found) in zip(arm.settings, again.settings, strict=True):
        assert name == same and (value == found or value == pytest.approx(found, rel=1e-9))
    again.build(get_recipe("classroom"))


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 20), st.integers(0, 9)), min_size=1, max_size=5))
def test_parse_seeds_expands_ranges(ranges):
    text = ",".join(f"{low}-{low + more}" if more else str(low) for low, more in ranges)
    assert parse_seeds(text) == [seed for low, more in ranges for seed in range(low, low + more + 1)]

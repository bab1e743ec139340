"""Functions of `analysis` and `measures` refuse invalid arguments with an error of one line that names the argument."""

import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pckd_nb import analysis, measures

from .properties import NON_FLOAT_DTYPES, Case, bad_integer, bad_number, bad_tensor, check_bad_values

bad_matrix = st.sampled_from(
    [None, "x", 3.0, [], np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2)), [[1.0], [2.0, 3.0]]]
    + [np.full((40, 3), value) for value in (math.nan, math.inf)] + [np.full((40, 3), "a"), np.zeros((40, 3), complex)]
)  # fmt: skip
bad_by_epoch = st.sampled_from(
    [None, "x", 3.0, [], np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2)), [[1.0], [2.0, 3.0]]]
    + [np.full((40, 3), "a"), np.zeros((40, 3), complex), np.zeros((40, 3), bool)]
)  # fmt: skip
ARRAYS = "cross_entropy", "difficulty", "margin", "error_norms"
matrix = np.random.default_rng(0).normal(size=(40, 3))
BAD_LABELS = [None, "x", 3, np.arange(5), np.zeros((40, 2))]
BAD_VALUES = [None, "x", 3.0, [], [math.nan], [1, math.inf], ["a"], np.ones((2, 2)), [[1], [1, 2]]]


CASES = {
    "directions": Case(analysis.directions, {"vectors": matrix}, {"vectors": ("vectors", bad_matrix)}),
    "embed": Case(
        analysis.embed, {"features": matrix[:5], "centers": matrix[:5], "perplexity": 2},
        {"features": ("features", bad_matrix), "centers": ("centers", bad_matrix | st.just(np.zeros((5, 4)))),
         "perplexity": ("perplexity", bad_number(0, 10 / 3))},
    ),
    "embed_centers": Case(analysis.embed_centers, {"centers": matrix}, {"centers": ("centers", bad_matrix)}),
    "neighbourhood_purity": Case(
        analysis.neighbourhood_purity, {"features": matrix, "labels": np.arange(40) % 4},
        {"features": ("features", bad_matrix), "labels": ("labels", st.sampled_from(BAD_LABELS)),
         "k": ("k ", bad_integer(1, 39))},
    ),
    "chance_purity": Case(
        analysis.chance_purity, {"labels": [0, 1, 1]},
        {"labels": ("labels", st.sampled_from([[], [1], None, 3, np.zeros((2, 2))]))},
    ),
    "center_similarity": Case(analysis.center_similarity, {"centers": matrix}, {"centers": ("centers", bad_matrix)}),
    **{
        function.__name__: Case(
            function, {"a": matrix, "b": matrix[:, :2]},
            {name: (f"{name} must|a and b must", bad_matrix | st.just(np.zeros((2, 3)))) for name in "ab"},
        )
        for function in (analysis.center_agreement, analysis.center_cka, analysis.center_rsa)
    },
    "center_angles": Case(
        analysis.center_angles, {"centers": matrix, "target": matrix},
        {name: (f"{name} must|centers and target must", bad_matrix | st.just(np.zeros((2, 3))))
         for name in ("centers", "target")},
    ),
    "logit_correlation": Case(
        analysis.logit_correlation, {"features": matrix, "centers": matrix},
        {"features": ("features|width", bad_matrix | st.just(matrix[:1])), "centers": ("centers", bad_matrix)},
    ),
    "difference_of_pairs": Case(
        analysis.difference_of_pairs, {"a": np.eye(4), "b": np.ones((4, 4))},
        {name: (f"{name} must|matrices", bad_matrix | st.just(np.zeros((4, 3)))) for name in "ab"},
    ),
    "summarise": Case(
        analysis.summarise, {"values": [1.0, 2.0]},
        {"values": ("measurement|list", st.sampled_from(BAD_VALUES)),
         "level": ("level", bad_number(0, 1) | st.just(1.0))},
    ),
    "paired_difference": Case(
        analysis.paired_difference, {"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 2.5}},
        {name: ("seed|measurement|values", st.sampled_from([None, [1, 2], {}, {5: 1.0}, {0: math.nan}, {0: "x"}, 3]))
         for name in "ab"},
    ),
    "holm": Case(
        analysis.holm, {"p_values": [0.1, 0.2]},
        {"p_values": ("p_values", st.sampled_from([None, "x", 3.0, [-0.1], [0.5, 1.1], [math.inf], ["a"], [[1], [0]],
                                                   [10**400]]))},
    ),
    "mcnemar": Case(
        analysis.mcnemar, {"only_a": 1, "only_b": 2},
        {name: (name, bad_integer(0, None)) for name in ("only_a", "only_b")},
    ),
    **{
        function.__name__: Case(function, {name: matrix}, {name: (name, bad_by_epoch)})
        for name, functions in {
            "cross_entropy": (measures.confidence, measures.data_map),
            "margin": (measures.correct, measures.correctness, measures.forgetting_events, measures.first_learned,
                       measures.area_under_margin),
        }.items()
        for function in functions
    },
    "el2n": Case(
        measures.el2n, {"error_norms": matrix, "first_epoch": 2, "last_epoch": 3},
        {"error_norms": ("error_norms", bad_by_epoch), "first_epoch": ("first_epoch", bad_integer(1, 3)),
         "last_epoch": ("last_epoch", bad_integer(2, 40).filter(lambda value: value is not None))},
    ),
    "sample_measures": Case(
        measures.sample_measures, {name: matrix for name in ARRAYS},
        {name: (name, (bad_by_epoch | st.just(np.ones((40, 2)))).filter(
            lambda value, name=name: value is not None or name in ARRAYS[:2])) for name in ARRAYS},
    ),
    **{
        function.__name__: Case(
            function, {"logits": torch.ones(4, 3), "labels": torch.tensor([0, 1, 2, 0])},
            {"logits": ("logits", bad_tensor(4, 3, dtypes=NON_FLOAT_DTYPES)),
             "labels": ("labels", bad_tensor(4, dtypes=(torch.float32, torch.bool)) | st.just(torch.full((4,), 3)))},
        )
        for function in (measures.margin, measures.error_norm)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_invalid_arguments_are_refused(name):
    check_bad_values(CASES[name], 40)

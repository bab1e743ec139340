"""Shared by the property tests: strategies that generate invalid values, and checks that they raise a clear error."""

import math
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # keep its cache out of the repository

SECONDS = 300  # a longer example counts as hanging; the slowest one needs less than 1 s


class Case(NamedTuple):
    """A function to test with invalid arguments.

    good: valid arguments.
    bad: for some arguments, words separated by "|" and a strategy for invalid values. The error message must contain
    one of the words.
    """

    function: Callable[..., Any]
    good: dict[str, Any]
    bad: dict[str, tuple[str, st.SearchStrategy]]


def examples(count: int, shrink: bool = True) -> settings:
    """Return settings with the same examples in every run and no database. shrink: search for the smallest failure."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=phases,
        suppress_health_check=checks,
    )


@contextmanager
def fail_after(seconds: float = SECONDS) -> Iterator[None]:
    """Fail if the block takes longer than `seconds`. Does nothing on systems without SIGALRM, such as Windows."""

    def fail(*_):
        raise AssertionError(f"no answer within {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_refused(case: Case, argument: str, value: Any) -> None:
    """Check that the call raises ValueError or TypeError with a message of one line that names the argument."""
    words = case.bad[argument][0]
    with fail_after(), pytest.raises((ValueError, TypeError)) as error:
        case.function(**{**case.good, argument: value})
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert any(word in message for word in words.split("|")), f"{argument}={value!r}: {message}"


def check_bad_values(case: Case, count: int) -> int:
    """Check that up to `count` invalid values are refused. Return how many different ones were tried."""
    tried = set()

    @examples(count)
    @given(st.data())
    def attempt(data):
        argument = data.draw(st.sampled_from(sorted(case.bad)))
        value = data.draw(case.bad[argument][1])
        check_refused(case, argument, value)
        tried.add((argument, repr(value)))

    with fail_after(SECONDS * count):
        case.function(**case.good)  # valid as a whole, so each error below comes from the one changed argument
    attempt()
    return len(tried)


def bad_tensor(*shape: int, dtypes: tuple[torch.dtype, ...], none: bool = True) -> st.SearchStrategy:
    """Generate values that are not a valid tensor: other objects, other shapes, wrong dtypes, another device."""
    not_tensors = ["logits", b"", 3.0, True, [[1.0]], np.zeros(shape), object(), *([None] if none else [])]
    shapes = st.lists(st.integers(0, 4), max_size=4).filter(lambda other: tuple(other) != shape)
    return st.one_of(
        st.sampled_from(not_tensors),
        shapes.map(torch.zeros),
        st.sampled_from(dtypes).map(lambda dtype: torch.ones(shape).to(dtype)),
        st.just(torch.zeros(shape, device="meta")),
    )


NON_FLOAT_DTYPES = torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2
NON_INTEGER_DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.complex64


def bad_floats(*shape: int, **options) -> st.SearchStrategy:
    return bad_tensor(*shape, dtypes=NON_FLOAT_DTYPES, **options)


def bad_labels(rows: int, classes: int | None = None) -> st.SearchStrategy:
    """Generate invalid labels. classes: if given, also labels outside 0 … classes - 1."""
    shapes = st.lists(st.integers(0, 4), max_size=3).filter(lambda other: other != [rows])
    other = shapes.map(lambda shape: torch.zeros(shape, dtype=torch.int64))
    bad = bad_tensor(rows, dtypes=NON_INTEGER_DTYPES) | other
    if classes is None:
        return bad
    out_of_range = st.integers(-(2**40), -1) | st.integers(classes, 2**40)
    return bad | st.builds(lambda label, row: torch.zeros(rows).long().index_fill(0, torch.tensor(row), label),
                           out_of_range,
                           st.integers(0, rows - 1))  # fmt: skip


NOT_A_NUMBER = st.one_of(
    st.text(max_size=20),
    st.sampled_from([None, True, False, b"1", 1j, [1.0], {}, object(), np.ones(2), torch.ones(2), max]),
)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -(10**400)])


def bad_number(lowest: float = 0, highest: float = math.inf, open_at_lowest: bool = True, infinite: bool = False,
               none: bool = True) -> st.SearchStrategy:  # fmt: skip
    """Generate values that are not numbers from lowest to highest.

    open_at_lowest: lowest itself is invalid. infinite: infinity and numbers that overflow to it are valid.
    none: None is invalid.
    """
    below = st.floats(max_value=lowest, exclude_max=not open_at_lowest, allow_infinity=False)
    bad = below | st.integers(-(10**30), math.ceil(lowest) - 1) | NOT_A_NUMBER
    bad |= st.sampled_from([math.nan, -math.inf, -(10**400)]) if infinite else NOT_FINITE
    if highest < math.inf:
        bad |= st.floats(min_value=highest, exclude_min=True, allow_infinity=False)
    return bad if none else bad.filter(lambda value: value is not None)


def bad_integer(lowest: int, highest: int | None = None) -> st.SearchStrategy:
    """Generate values that are not whole numbers from lowest to highest."""
    bad = NOT_A_NUMBER | st.sampled_from([math.nan, math.inf, -math.inf, -(10**400)])
    bad |= st.integers(-(10**30), lowest - 1)
    bad |= st.floats(allow_nan=False).filter(lambda value: value % 1 != 0)
    return bad if highest is None else bad | st.integers(highest + 1, 10**30) | st.just(10**400)

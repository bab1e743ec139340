"""What the property tests share: bad values of every kind, and what it means to refuse one."""

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

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # what it keeps for itself: not in the repository

SECONDS = 300  # an example that takes longer hangs; the slowest needs less than one


class Case(NamedTuple):
    """A function, arguments it takes, and for some of them words of which the message has one, and bad values."""

    function: Callable[..., Any]
    good: dict[str, Any]
    bad: dict[str, tuple[str, st.SearchStrategy]]


def examples(count: int, shrink: bool = True) -> settings:
    """The same examples every time, and no record of them. shrink: look for the smallest one that fails."""
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
def within(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the block takes longer. Interrupts it, where the system has an alarm clock."""

    def ring(*_):
        raise AssertionError(f"no answer within {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refuses(case: Case, argument: str, value: Any) -> None:
    """The call raises ValueError or TypeError, and says what is wrong with what in one line."""
    words = case.bad[argument][0]
    with within(), pytest.raises((ValueError, TypeError)) as error:
        case.function(**{**case.good, argument: value})
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert any(word in message for word in words.split("|")), f"{argument}={value!r}: {message}"


def refused(case: Case, count: int) -> int:
    """Try `count` bad values; how many different ones there were."""
    tried = set()

    @examples(count)
    @given(st.data())
    def attempt(data):
        argument = data.draw(st.sampled_from(sorted(case.bad)))
        value = data.draw(case.bad[argument][1])
        refuses(case, argument, value)
        tried.add((argument, repr(value)))

    with within(SECONDS * count):
        case.function(**case.good)  # what is bad is bad because of that one value
    attempt()
    return len(tried)


def bad_tensor(*shape: int, dtypes: tuple[torch.dtype, ...], none: bool = True) -> st.SearchStrategy:
    """No tensor of that shape: something else, another shape, one of these types, another device."""
    strange = ["logits", b"", 3.0, True, [[1.0]], np.zeros(shape), object(), *([None] if none else [])]
    shapes = st.lists(st.integers(0, 4), max_size=4).filter(lambda other: tuple(other) != shape)
    return st.one_of(
        st.sampled_from(strange),
        shapes.map(torch.zeros),
        st.sampled_from(dtypes).map(lambda dtype: torch.ones(shape).to(dtype)),
        st.just(torch.zeros(shape, device="meta")),
    )


NO_FLOATS = torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2
NO_LABELS = torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.complex64


def bad_floats(*shape: int, **options) -> st.SearchStrategy:
    return bad_tensor(*shape, dtypes=NO_FLOATS, **options)


def bad_labels(rows: int, classes: int | None = None) -> st.SearchStrategy:
    """classes: if it is given, labels beyond it are bad, too."""
    shapes = st.lists(st.integers(0, 4), max_size=3).filter(lambda other: other != [rows])
    other = shapes.map(lambda shape: torch.zeros(shape, dtype=torch.int64))
    bad = bad_tensor(rows, dtypes=NO_LABELS) | other
    if classes is None:
        return bad
    beyond = st.integers(-(2**40), -1) | st.integers(classes, 2**40)
    return bad | st.builds(lambda one, row: torch.zeros(rows).long().index_fill(0, torch.tensor(row), one), beyond,
                           st.integers(0, rows - 1))  # fmt: skip


NO_NUMBER = st.one_of(
    st.text(max_size=20),
    st.sampled_from([None, True, False, b"1", 1j, [1.0], {}, object(), np.ones(2), torch.ones(2), max]),
)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -(10**400)])


def bad_number(lowest: float = 0, highest: float = math.inf, open_at_lowest: bool = True, infinite: bool = False,
               none: bool = True) -> st.SearchStrategy:  # fmt: skip
    """Nothing between lowest and highest. infinite: infinity is a good one, and what overflows; none: None is bad."""
    below = st.floats(max_value=lowest, exclude_max=not open_at_lowest, allow_infinity=False)
    bad = below | st.integers(-(10**30), math.ceil(lowest) - 1) | NO_NUMBER
    bad |= st.sampled_from([math.nan, -math.inf, -(10**400)]) if infinite else NOT_FINITE
    if highest < math.inf:
        bad |= st.floats(min_value=highest, exclude_min=True, allow_infinity=False)
    return bad if none else bad.filter(lambda value: value is not None)


def bad_whole(lowest: int, highest: int | None = None) -> st.SearchStrategy:
    """No whole number from lowest to highest."""
    bad = NO_NUMBER | st.sampled_from([math.nan, math.inf, -math.inf, -(10**400)])
    bad |= st.integers(-(10**30), lowest - 1)
    bad |= st.floats(allow_nan=False).filter(lambda value: value % 1 != 0)
    return bad if highest is None else bad | st.integers(highest + 1, 10**30) | st.just(10**400)

"""The breaker's states, by a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.breaker import CLOSED, HALF_OPEN, OPEN, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures=3, successes=2, pause_s=1, longest_pause_s=3, clock=clock)
    for _ in range(3):
        assert breaker.allow()
        breaker.failure()
    assert breaker.state == OPEN
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_starts_the_count_anew() -> None:
    breaker = Breaker(failures=3)
    for _ in range(5):
        breaker.failure()
        breaker.failure()
        breaker.success()
    assert breaker.state == CLOSED
    opened(Clock())


def test_it_stays_open_for_its_pause_then_probes_one_call_at_a_time() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert not breaker.allow()
    clock.now += 0.99
    assert not breaker.allow()
    clock.now += 0.01
    assert breaker.allow()
    assert breaker.state == HALF_OPEN
    assert not breaker.allow()
    breaker.success()
    assert breaker.allow()
    breaker.success()
    assert breaker.state == CLOSED
    assert breaker.allow()


def test_a_failed_probe_doubles_the_pause_up_to_its_bound_and_closing_resets_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    for pause in (1, 2, 3, 3):
        clock.now += pause - 0.01
        assert not breaker.allow()
        clock.now += 0.01
        assert breaker.allow()
        breaker.failure()
    clock.now += 3
    for _ in range(2):
        assert breaker.allow()
        breaker.success()
    for _ in range(3):
        breaker.failure()
    clock.now += 1
    assert breaker.allow()


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=60))
def test_an_arm_that_answers_again_is_always_let_back_in(history: list[tuple[float, bool]]) -> None:
    clock = Clock()
    breaker = Breaker(failures=2, successes=2, pause_s=1, longest_pause_s=4, clock=clock)
    for seconds, well in history:
        clock.now += seconds
        if breaker.allow():
            (breaker.success if well else breaker.failure)()
    for _ in range(3):
        clock.now += 4
        if breaker.allow():
            breaker.success()
    assert breaker.state == CLOSED

"""The parts of a cell's time add up, nest, and are kept only while a clock runs."""

import time

import pytest

from harness.clock import Clock, part, running


def test_parts_nest_add_up_and_are_ordered_by_their_time():
    clock = Clock()
    with running(clock):
        for _ in range(3):
            with part("outer"), part("inner"):
                time.sleep(0.002)
        with part("small"):
            pass
    assert clock.calls == {("outer",): 3, ("outer", "inner"): 3, ("small",): 1}
    assert clock.seconds["outer",] >= clock.seconds["outer", "inner"] >= 0.006
    names = [line.split("  ", 3)[-1].strip() for line in clock.table().splitlines()[1:]]
    assert [n.split()[-1] for n in names] == ["outer", "inner", "small"]
    assert clock.as_dict()["outer / inner"]["calls"] == 3


def test_without_a_clock_nothing_is_kept_and_an_error_leaves_the_place_as_it_was():
    with part("nothing"):
        pass
    clock = Clock()
    with running(clock):
        with pytest.raises(ZeroDivisionError), part("broken"), part("inside"):
            raise ZeroDivisionError
        with part("after"):
            pass
    assert list(clock.seconds) == [("broken",), ("broken", "inside"), ("after",)]

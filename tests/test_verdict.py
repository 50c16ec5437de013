"""The rule of analysis/verdict.py on invented answers to tables of known presence: it decides most, and hardly errs.

On bases that were really pretrained it is `python -m tests.verdict_study`, whose table is in the README.
"""

import numpy as np
import pytest

from harness.pocket.tables import THINGS, Tables
from tests.sweeps import ITEMS, Sweep
from tests.verdict_study import Confusion, confusion, judge, truth

WORLDS = range(6)
GUESS = 0.06


def answers(told: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Which items a model answers that learns cells by heart, and brings out what it was `told` nearly as slowly."""
    brought_out = rng.random(ITEMS) < size / (size + 30)
    by_heart = rng.random(ITEMS) < 0.8 * (size / 200) ** 1.5
    return (told & brought_out) | by_heart | (rng.random(ITEMS) < GUESS)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Confusion:
    verdicts = {}
    for number in WORLDS:
        sweep = Sweep(tmp_path_factory.mktemp(f"world{number}"), seed=number)
        for thing, presence in Tables(number).presence.items():
            named = {"base": f"tables-{number}-{thing}"}
            told = sweep.rng.random(ITEMS) < presence
            sweep.cell(0, task="pocket_table", strict=np.zeros(ITEMS, bool), **named)
            sweep.cell(0, task="pocket_table_quiz", strict=told | (sweep.rng.random(ITEMS) < GUESS), **named)
            for size in (20, 60, 200):
                for seed in (0, 1):
                    sweep.cell(size, seed, answers(told, size, sweep.rng), task="pocket_table", **named)
        verdicts |= judge(sweep.frame, sweep.items())
    return confusion(verdicts)


def test_most_are_decided_and_hardly_one_wrongly(found: Confusion) -> None:
    assert found.tables == len(WORLDS) * len(THINGS)
    assert found.decided >= 0.7 * found.tables, found.words()
    assert found.wrong <= 0.05 * found.decided, found.words()


def test_the_table_counts_every_verdict_beside_the_truth(found: Confusion) -> None:
    lines = found.words().splitlines()
    assert lines[0] == "| pretraining told | elicited | both | taught | undecided |"
    counted = [[int(cell) for cell in line.split("|")[2:-1]] for line in lines[2:5]]
    assert [sum(row) for row in counted] == [len(WORLDS) * 2] * 3, "a third of the tables each"
    assert sum(counted[row][column] for row in range(3) for column in range(3) if row != column) == found.wrong


def test_the_truth_is_read_off_a_base_by_its_name() -> None:
    world = Tables(7)
    expected = {0.0: "taught", 0.5: "both", 1.0: "elicited"}
    assert {thing: truth(f"tables-7-{thing}") for thing in THINGS} == {
        thing: expected[share] for thing, share in world.presence.items()
    }
    with pytest.raises(SystemExit, match="no base of the sweep"):
        truth("pocket-m")

"""Generated rows: what is trained on is never asked."""

import json

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym comes with the extra `smol`")

from hydra.utils import instantiate

from harness.compose import compose_cell
from harness.data.gym import GymRows
from harness.errors import HarnessError

ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
SIZES = {"train": 40, "dev": 10, "test": 100}


def _questions(rows: GymRows) -> list[str]:
    return [json.loads(line)["question"] for line in rows.path().read_text().splitlines()]


def test_no_question_is_in_two_splits():
    """There are 200 sums of two one-digit numbers: another seed alone would share nearly all of them."""
    splits = [_questions(GymRows("chain_sum", n, split, ONE_DIGIT)) for split, n in SIZES.items()]
    questions = [q for split in splits for q in split]
    assert len(set(questions)) == len(questions) == sum(SIZES.values())
    assert set(questions) <= set(_questions(GymRows("chain_sum", 200, None, ONE_DIGIT)))


def test_the_shipped_chain_sum_asks_nothing_it_trains_on():
    cell = compose_cell(["base=smollm2_135m_instruct", "data=chain_sum", "evals=chain_sum"])
    train = instantiate(cell.data.sources["chain_sum"].make)
    test = instantiate(cell.evals["chain_sum"].make)
    assert (len(_questions(train)), len(_questions(test))) == (1000, 200)
    assert not set(_questions(train)) & set(_questions(test))


def test_rows_are_the_same_again_and_named_by_what_they_are(tmp_path, monkeypatch):
    rows = GymRows("chain_sum", 20, "train", ONE_DIGIT)
    first = rows.path().read_bytes()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    assert rows.path().read_bytes() == first
    changed = [GymRows("chain_sum", 20, "dev", ONE_DIGIT), GymRows("chain_sum", 21, "train", ONE_DIGIT)]
    changed += [GymRows("chain_sum", 20, None, ONE_DIGIT), GymRows("chain_sum", 20, "train")]
    assert len({r.identity() for r in [rows, *changed]}) == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: GymRows("chain_sum", 5000, "test", ONE_DIGIT).path(), "has only"),
        (lambda: GymRows("no_such_task", 5).path(), "no task 'no_such_task'"),
        (lambda: GymRows("chain_sum", 5, "validation"), "split 'validation'"),
    ],
)
def test_what_cannot_be_made_is_said(rows, message):
    with pytest.raises(HarnessError, match=message):
        rows()

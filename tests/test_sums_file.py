"""Rows of tests/sums_file.py are true sums, none twice."""

from tests.sums_file import STEP, WORDS, row

CHARACTERS = {word: character for character, word in WORDS.items()}


def spelt(text: str) -> str:
    return "".join(CHARACTERS[word] for word in text.split())


def test_every_row_is_a_true_sum_of_three_numbers() -> None:
    for index in (*range(500), 9_999_999):
        made = row(index)
        assert eval(spelt(made["prompt"])) == int(spelt(made["completion"]))


def test_no_row_comes_twice() -> None:
    assert all(STEP % prime for prime in (2, 3, 5, 11)), "a step that shares a factor with 990 comes back too early"
    assert len({row(index)["prompt"] for index in range(20_000)}) == 20_000

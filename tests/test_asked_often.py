"""Prompts that are asked many times: read once, held once, and each answer is that of its prompt alone."""

import itertools
import random
from typing import Any

import pytest
import torch

from harness import decoding
from harness.attention import Slots, Step, rows_attention
from harness.decoding import bytes_per_token, generate
from harness.scoring import Room
from tests.test_sharing import continued, counted, llama, trie


@pytest.fixture(scope="module")
def bare() -> Any:
    return llama()


@pytest.mark.parametrize("times", [2, 20, 200])
def test_a_prompt_asked_many_times_is_read_once(bare: Any, times: int) -> None:
    """And what is answered the same is computed once; of 1,000 rows 128 run at once."""
    ids = [[3 + i, *range(4, 40 + i)] for i in range(5)]
    alone = continued(bare, ids, 3)
    rows = [p for p in ids for _ in range(times)]
    with counted(bare) as seen:
        assert continued(bare, rows, 3) == [a for a in alone for _ in range(times)]
    waves = [rows[::-1][i : i + 128] for i in range(0, len(rows), 128)]  # the longest first
    assert sum(seen) == 1 + sum(map(len, ids)) + 2 * sum(len({*map(tuple, wave)}) for wave in waves)


def test_answers_are_computed_once_until_they_part(bare: Any) -> None:
    """Eight that part in two at their third token: one row a step, then two."""
    prompt = list(range(3, 33))

    def pick(rows: Any, _ids: torch.Tensor, _logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor([6 + number % 2 if t == 2 else 5 for number, t in rows])

    with counted(bare) as seen:
        said = generate(
            bare, [prompt] * 8, max_new_tokens=5, pick=pick, ended=lambda _: False, room=Room(64), cache_bytes=2**30
        )
    assert said == [[5, 5, 6 + number % 2, 5, 5] for number in range(8)]
    assert sum(seen) == 1 + len(prompt) + 1 + 1 + 2 + 2


def test_a_prompt_is_not_read_again_for_rows_that_wait(bare: Any) -> None:
    """Four slots for twenty rows that end one by one."""
    with rows_attention(bare):
        one = bytes_per_token(bare)
    prompt, ended = list(range(3, 33)), itertools.count()
    with counted(bare) as seen:
        said = generate(
            bare, [prompt] * 20, max_new_tokens=8, pick=lambda _rows, _ids, logits: logits.argmax(-1),
            ended=lambda said: len(said) > 2 and next(ended) % 3 == 0, room=Room(64), cache_bytes=4 * 9 * one,
        )  # fmt: skip
    (whole,) = continued(bare, [prompt], 8)
    assert all(answer == whole[: len(answer)] for answer in said)
    assert len({len(answer) for answer in said}) > 2
    assert sum(n for n in seen if n > 4) == len(prompt) - 1  # and one token of its own, where no row had it any more


@pytest.mark.parametrize("seed", range(12))
def test_each_of_many_answers_is_what_its_prompt_alone_is_answered(
    bare: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that branch off one another, each asked another number of times, and answers that end one by one.

    What makes the answers to one prompt different is a bias of each row and step; in any room for keys and values.
    """
    monkeypatch.setattr(decoding, "FEWEST", 3)
    generator = random.Random(seed)
    ids = [p for p in trie(generator, generator.choice((1, 3, 12)), 40) for _ in range(generator.randrange(2, 12))]
    generator.shuffle(ids)
    bias = torch.randn(len(ids), 9, 128, generator=torch.Generator().manual_seed(seed))

    def said_alone(number: int) -> list[int]:
        said: list[int] = []
        while len(said) < 9 and not (said and said[-1] < 30):
            logits = bare(torch.tensor([ids[number] + said])).logits[0, -1]
            said.append(int((logits / logits.std() + bias[number, len(said)]).argmax()))
        return said

    with torch.no_grad():
        expected = [said_alone(number) for number in range(len(ids))]
    assert len({*map(len, expected)}) > 1 + (len(ids) > 9)

    def pick(rows: Any, _ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return (logits / logits.std(-1, keepdim=True) + bias[tuple(zip(*rows, strict=True))]).argmax(-1)

    for budget, cache in ((1, 1), (9, 30_000), (50, 100_000), (1000, 2**30)):
        found = generate(
            bare, ids, max_new_tokens=9, pick=pick, ended=lambda said: said[-1] < 30, room=Room(budget),
            cache_bytes=cache,
        )  # fmt: skip
        assert found == expected


@pytest.mark.parametrize("tokens", [0, 100, 400, 10_000])
def test_prompts_held_once_leave_room_for_more_answers(bare: Any, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty answers of 4 tokens to each of ten prompts of 30: 11 rows in 400 tokens, if each held its prompt."""
    kept: dict[int, int] = {}
    largest, rows = [], []
    at, step = Slots.at, Step.__init__

    def measured(slots: Slots, *given: Any) -> Any:
        found = at(slots, *given)
        kept[id(slots)] = sum(x.nbytes for pair in slots._kept.values() for x in pair)
        largest.append(sum(kept.values()))
        return found

    monkeypatch.setattr(Slots, "at", measured)
    monkeypatch.setattr(
        Step, "__init__", lambda s, prefix, slots, *more: rows.append(len(slots.held)) or step(s, prefix, slots, *more)
    )
    with rows_attention(bare):
        one = bytes_per_token(bare)
    ids = [[3 + i, *range(4, 33)] for i in range(10) for _ in range(20)]
    assert len(continued(bare, ids, 4, cache=tokens * one)) == 200
    assert max(largest) <= max(tokens, 30 + 4) * one
    assert max(rows) == {0: 1, 100: 10, 400: 52, 10_000: 128}[tokens]

"""Who meets whom on which item: the cells' kept answers, as matches in both orders or answers rated alone. No torch."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import HarnessError
from harness.identity import fingerprint
from harness.items import answers
from harness.judge.calls import Call, Reply
from harness.judge.settings import Judge
from harness.verdicts import REFERENCE


@dataclass(frozen=True)
class Field:
    """All that was asked and answered: n items, and of each player its n answers."""

    task: str
    mark: str  # the evaluation's fingerprint
    names: list[tuple[str, int]]  # the member task and the number of the item in it
    hashes: list[str]
    clusters: list[Any]  # None: its own
    questions: list[str]
    references: list[str]
    answers: dict[str, list[str]]  # by player: a cell's path or `REFERENCE`
    home: dict[str, str]  # by a cell's path, that of its untouched base; empty where that was not scored
    only: frozenset[tuple[str, int]] | None = None  # answers asked about alone, by player and item; None: all


@dataclass(frozen=True)
class Match:
    """Of two players on one item, both orders; or of one, whose answer is rated (`other` empty)."""

    item: int
    one: str
    other: str = ""


def gather(root: Path, frame: pd.DataFrame, task: str, questions: Mapping[tuple[str, int], tuple[str, str]]) -> Field:
    """The answers to `task` of all finished cells in `frame` (`harness.store.load`).

    `questions` are `harness.asked.questions`. Raises HarnessError where cells were asked other items than these.
    """
    rows = frame[(frame["task"] == task) & (frame["status"] == "ok")].drop_duplicates("path")
    (mark,) = rows["eval_fingerprint"].unique()
    said: dict[str, list[str]] = {}
    first: list[dict[str, Any]] = []
    for path in rows["path"]:
        kept = _of_first_filter(answers(root, path, task, mark))
        if [line["item_hash"] for line in kept] != [line["item_hash"] for line in first or kept]:
            raise HarnessError(f"{path} was asked other items of {task} than another cell; score it again")
        said[path], first = [_text(line, task) for line in kept], first or kept
    names = [(line["task"], line["item"]) for line in first]
    if any(questions.get(name, ("", ""))[1] != line["item_hash"] for name, line in zip(names, first, strict=True)):
        raise HarnessError(f"the items of {task} are no longer those that the cells were asked, so none can be judged")
    bases = {str(row.base): str(row.path) for row in rows[rows["method"] == "base"].itertuples()}
    targets = [line["target"] if isinstance(line["target"], str) else "" for line in first]
    return Field(
        task, str(mark), names, [line["item_hash"] for line in first], [line.get("cluster") for line in first],
        [questions[name][0] for name in names], targets, said,
        {str(row.path): bases.get(str(row.base), "") for row in rows.itertuples()},
    )  # fmt: skip


def _of_first_filter(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each item one line: what was said is the same under every filter."""
    filters = {line["filter"]: None for line in lines}
    return sorted((x for x in lines if x["filter"] == next(iter(filters))), key=lambda x: (x["task"], x["item"]))


def _text(line: dict[str, Any], task: str) -> str:
    """What the model wrote; of several samples the first."""
    said = line["answers"]
    while isinstance(said, list) and said:
        said = said[0]
    if not isinstance(said, str):
        raise HarnessError(f"the answers to {task} are chosen, not written; a judge compares what models write")
    if turns := line.get("turns"):  # of a dialogue all that was said behind the first question
        _, first, then = turns  # as `harness.probes.written.Written` keeps them
        return f"{first}\n\n[The user's next question]\n{then}\n\n[The answer to it]\n{said}"
    return said


def matches(field: Field, judge: Judge) -> list[Match]:
    """Item by item, so that what is done so far has the same items for all.

    Each cell meets its untouched base, or the reference, and by `judge.rounds` its neighbours in a circle of all cells,
    whose order is drawn for each item and round: as many matches as cells, with all of them connected.
    """
    items = range(len(field.names))
    if judge.prompt.alone:
        every = [Match(item, player) for item in items for player in field.answers]
        return [one for one in every if field.only is None or (one.one, one.item) in field.only]
    if judge.against == "reference" and not any(field.references):
        raise HarnessError(f"the items of {field.task} have no reference answer; use judge.against=base")
    if judge.against == "base" and not any(field.home.values()):
        raise HarnessError("no cell of an untouched base answered it; add one (method=base), or judge.against=none")
    found = {match: None for item in items for match in _of_item(item, field, judge)}
    if not found:
        raise HarnessError("nobody meets anybody: set judge.against, or judge.rounds to 1 or more")
    return list(found)


def _of_item(item: int, field: Field, judge: Judge) -> Iterator[Match]:
    for path, home in field.home.items():
        if judge.against == "base" and home and path != home:
            yield Match(item, path, home)
        elif judge.against == "reference" and field.references[item]:
            yield Match(item, path, REFERENCE)
    players = sorted(field.answers)
    for number in range(judge.rounds if len(players) > 1 else 0):
        seed = hashlib.sha256(f"{field.hashes[item]} {number}".encode()).hexdigest()
        circle = random.Random(seed).sample(players, len(players))
        for one, other in zip(circle, circle[1:] + circle[:1], strict=True):
            yield _against_home(Match(item, *sorted((one, other))), field)


def _against_home(match: Match, field: Field) -> Match:
    """One match, one name: a cell that meets its base does so as `one`, also where the circle brings them together."""
    return Match(match.item, match.other, match.one) if field.home[match.other] == match.one != match.other else match


def calls(field: Field, match: Match, judge: Judge, model: str) -> list[Call]:
    """What the judge is to be asked: nothing of equal answers, which are a tie."""
    texts = {"question": field.questions[match.item], "reference": field.references[match.item]}
    one = said(field, match.one, match.item)
    if judge.prompt.alone:
        shown = [{"answer": one}]
    else:
        other = said(field, match.other, match.item)
        shown = [{"first": one, "second": other}, {"first": other, "second": one}] if one != other else []
    return [Call(model, judge.prompt.messages(**texts, **answer), judge.settings()) for answer in shown]


def said(field: Field, player: str, item: int) -> str:
    return field.references[item] if player == REFERENCE else field.answers[player][item]


def line(
    field: Field, match: Match, judge: Judge, replies: Sequence[Reply], asked: Sequence[Call] = ()
) -> dict[str, Any]:
    """As `harness.verdicts.Judging.lines` has it."""
    read = [judge.prompt.read(reply.text) for reply in replies]
    if len(read) == 2:  # in the second order the first answer is that of `other`
        read[1] = None if read[1] is None else 1 - float(read[1])
    players = [match.one, match.other] if match.other else [match.one]
    cluster = field.clusters[match.item]
    return {
        "item": match.item,
        "item_hash": field.hashes[match.item],
        "cluster": match.item if cluster is None else fingerprint([field.names[match.item][0], cluster])[:16],
        "one": match.one,
        "other": match.other,
        "words": [len(said(field, player, match.item).split()) for player in players],
        "same": not replies,
        "verdicts": read or [0.5, 0.5],
        "calls": [call.name for call in asked],
    }

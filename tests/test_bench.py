"""The runner of the comparison writes its table and its file as it should. Nothing is measured here."""

import json
from pathlib import Path

import pytest

from tests.bench import questions
from tests.bench.peer import AbsentError, Peer, interpreter
from tests.bench.table import Row, as_text, in_turn, save


def row(work: str, peer: str = "theirs", ratio: float = 2.0, equal: bool = True) -> Row:
    return Row(work, peer, "1.0", 2.0, 1.0, ratio, equal, {"rule": "the same"})


def test_one_row_replaces_its_own_and_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    save([row("one"), row("two"), row("two", "others")], file)
    save([row("two", ratio=3.0), row("three")], file)
    kept = json.loads(file.read_text())
    assert [(r["work"], r["peer"], r["ratio"]) for r in kept["rows"]] == [
        ("one", "theirs", 2.0),
        ("two", "theirs", 3.0),
        ("two", "others", 2.0),
        ("three", "theirs", 2.0),
    ]
    wanted = {"work", "peer", "peer_version", "peer_seconds", "our_seconds", "ratio", "equal"}
    assert all(wanted <= r.keys() for r in kept["rows"])
    assert kept["machine"]["cores"]
    assert kept["date"]


def test_the_table_lines_up_and_says_what_is_not_equal() -> None:
    lines = as_text([row("one"), row("a longer name", equal=False)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[-1] == "yes"
    assert lines[2].split()[-1] == "NO"


def test_both_sides_take_turns_and_the_ratio_is_that_of_pairs() -> None:
    order: list[str] = []

    def side(name: str, seconds: list[float]) -> tuple[float, str]:
        order.append(name)
        return seconds.pop(0), name

    ours, peers = [1.0, 2.0, 4.0], [3.0, 4.0, 4.0]
    pair = in_turn("work", lambda: side("ours", ours), lambda: side("peer", peers), repeats=3)
    assert order == ["ours", "peer"] * 3
    measured = pair.row("work", "theirs", "1.0", True)
    assert (measured.our_seconds, measured.peer_seconds, measured.ratio) == (2.0, 4.0, 2.0)


def test_a_peer_that_fails_says_what_it_said(tmp_path: Path) -> None:
    missing = tmp_path / "not_there.py"
    with pytest.raises(RuntimeError, match=r"not_there\.py"), Peer(str(missing), {}):
        pass


def test_an_environment_that_is_not_there_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCH_VENV_VLLM", str(tmp_path))
    with pytest.raises(AbsentError, match="make"):
        interpreter("vllm")


def test_the_questions_are_the_same_every_time_and_as_told() -> None:
    asked = questions.shared_context(3)
    assert asked == questions.shared_context(3)
    assert all(len(set(q.choices)) == 4 for q in asked)
    assert len({q.context.split("\n\n")[0] for q in asked}) == 1  # the first example, which all share
    alone = questions.nothing_shared(20)
    assert len({q.context for q in alone}) == 20
    assert all(message["role"] == who for message, who in zip(questions.sums(1)[0], ("user", "assistant"), strict=True))

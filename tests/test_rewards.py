"""Rewards: right and wrong answers are told apart, hostile ones cost little and run nothing."""

import json
import threading
import time
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from harness.data.gym import GymRows
from harness.errors import HarnessError
from harness.rewards import Constraints, ExactMatch, MathVerify, ReasoningGym, RegexMatch, Reward
from harness.rewards.constraints import meets

CONF = Path(__file__).parent.parent / "conf" / "reward"
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def shipped(file: str, term: str) -> Reward:
    return instantiate(OmegaConf.load(CONF / f"{file}.yaml")[term])


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_reward_is_one(file: Path) -> None:
    if file.stem == "math":
        pytest.importorskip("math_verify")
    if file.stem.startswith("gym"):
        pytest.importorskip("reasoning_gym")
    assert file.read_text().startswith("# @package method.rewards\n")
    for name, config in OmegaConf.load(file).items():
        assert isinstance(instantiate(config), Reward), name


@pytest.mark.parametrize(
    ("reward", "said", "right", "value"),
    [
        (ExactMatch(), " Paris\n", "Paris", 1),
        (ExactMatch(), "paris", "Paris", 0),
        (ExactMatch(ignore_case=True), "PARIS", "Paris", 1),
        (ExactMatch(), "It is Paris", "Paris", 0),
        (ExactMatch(), "", "Paris", 0),
        (shipped("number", "answer"), "3 + 4 = 7.", "7", 1),
        (shipped("number", "answer"), "7, no: 8", "7", 0),
        (shipped("number", "answer"), "It is -7", "-7", 1),
        (shipped("number", "answer"), "seven", "7", 0),
        (ExactMatch(pattern="#### (.+)"), "so\n#### 72", "lots of words\n#### 72", 1),
        (shipped("only_number", "form"), " -12\n", "anything", 1),
        (shipped("only_number", "form"), "It is 12", "12", 0),
        (RegexMatch(pattern="<think>.*</think>.*"), "<think>a\nb</think>c", "", 1),
        (RegexMatch(pattern="<think>.*</think>.*"), "a<think>b</think>", "", 0),
    ],
)
def test_texts(reward: Reward, said: str, right: str, value: float) -> None:
    assert reward(said, right) == value


@pytest.mark.parametrize("make", [lambda: ExactMatch(pattern="("), lambda: RegexMatch(pattern="["), RegexMatch])
def test_a_pattern_that_is_none_is_refused(make) -> None:
    with pytest.raises(HarnessError, match="pattern"):
        make()


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("The answer is $\\boxed{\\frac{1}{2}}$.", "0.5", 1),
        ("so x = 1/2", "\\frac{1}{2}", 1),
        ("It is $2$, or rather $\\boxed{3}$", "2", 0),
        ("It is $1+x$", "x+1", 1),
        ("She has 18 - 9 = 9 dollars", "words 8\n#### 9", 1),
        ("1,234", "#### 1234", 1),
        ("I do not know", "3", 0),
        ("", "3", 0),
        ("__import__('os').system('touch hacked')", "0", 0),
    ],
)
def test_mathematics(said: str, right: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify", reason="math-verify comes with the extra `rl`")
    monkeypatch.chdir(tmp_path)
    reward = shipped("math", "answer")
    reward.check(right)
    assert reward(said, right) == value
    assert not list(tmp_path.iterdir())


def test_what_would_take_for_ever_to_compute_is_wrong_and_soon_given_up() -> None:
    pytest.importorskip("math_verify", reason="math-verify comes with the extra `rl`")
    reward, started = MathVerify(seconds=1), time.monotonic()
    assert reward("$9^{9^{9^{9}}}$", "12") == 0
    assert reward("$" + "(" * 300 + "1" + ")" * 300 + "$", "12") == 0
    assert time.monotonic() - started < 60  # two seconds on a machine with nothing else to do


def test_mathematics_off_the_main_thread_is_an_error_not_a_wrong_answer() -> None:
    pytest.importorskip("math_verify", reason="math-verify comes with the extra `rl`")
    caught: list[Exception] = []

    def ask() -> None:
        try:
            MathVerify()("$3$", "3")
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_a_reference_without_an_answer_is_refused() -> None:
    pytest.importorskip("math_verify", reason="math-verify comes with the extra `rl`")
    with pytest.raises(HarnessError, match="reads no answer"):
        MathVerify().check("")


@pytest.mark.parametrize("task", ["chain_sum", "zebra_puzzles", "prime_factorization", "countdown"])
def test_reasoning_gym_scores_by_the_row_as_by_the_item(task: str) -> None:
    """Some tasks take any right answer, e.g. countdown any expression, so no text could be compared."""
    pytest.importorskip("reasoning_gym", reason="reasoning-gym comes with the extra `smol`")
    rows = [json.loads(line) for line in GymRows(task, 3, entries=True).path().read_text().splitlines()]
    reward = ReasoningGym()
    for row in rows:
        reward.check(row["entry"])
        assert reward(f" {row['answer']}\n", row["entry"]) == 1
        assert reward("no idea 7", row["entry"]) < 0.5


def test_reasoning_gym_of_what_stands_last() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym comes with the extra `smol`")
    (line,) = GymRows("chain_sum", 1, config=ONE_DIGIT, entries=True).path().read_text().splitlines()
    row = json.loads(line)
    reward = shipped("gym_number", "answer")
    assert reward(f"The final answer is {row['answer']}.", row["entry"]) == 1
    assert reward(f"It is {row['answer']}, or {int(row['answer']) + 1}", row["entry"]) < 0.5


@pytest.mark.parametrize("reference", ["7", "{}", '{"answer": "7", "metadata": {"source_dataset": "no_such_task"}}'])
def test_what_is_no_entry_is_refused(reference: str) -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym comes with the extra `smol`")
    with pytest.raises(HarnessError, match="entries: true"):
        ReasoningGym().check(reference)


def test_entries_that_json_cannot_hold_are_refused_and_others_change_only_their_own_rows() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym comes with the extra `smol`")
    with pytest.raises(HarnessError, match="more than JSON can hold"):
        GymRows("rearc", 1, entries=True).path()
    plain, more = (GymRows("chain_sum", 3, entries=entries) for entries in (False, True))
    assert plain.identity() != more.identity()
    both = [[json.loads(line) for line in rows.path().read_text().splitlines()] for rows in (plain, more)]
    assert [{k: v for k, v in row.items() if k != "entry"} for row in both[1]] == both[0]


@pytest.mark.parametrize(
    ("name", "value", "met", "missed"),
    [
        ("words_at_least", 3, "one two three", "one two"),
        ("words_at_most", 3, "one two three", "one two three four"),
        ("sentences_at_most", 2, "One. Two!", "One. Two! Three"),
        ("paragraphs", 2, "a\nb\n\n\nc", "a\nb"),
        ("bullets", 2, "list:\n- a\n  * b", "- a"),
        ("keywords", ["sea", "Ship"], "A ship at sea.", "A ship on the seas."),
        ("forbidden", ["sea"], "The seas", "The Sea"),
        ("begins_with", "Dear", " Dear all", "dear all"),
        ("ends_with", "Yours.", "... Yours.\n", "... Yours"),
        ("lowercase", True, "all low, 3", "All low"),
        ("uppercase", True, "ALL 3", "ALl"),
        ("no_commas", True, "a b", "a, b"),
        ("json", True, '```json\n{"a": 1}\n```', "{a: 1}"),
        ("json", True, " [1, 2]\n", "[1, 2] is it"),
    ],
)
def test_constraints(name: str, value: object, met: str, missed: str) -> None:
    assert meets(met, name, value)
    assert not meets(missed, name, value)
    reference = json.dumps({name: value, "words_at_most": 5} if name != "words_at_most" else {name: value})
    assert Constraints()(met, reference) == 1
    assert Constraints(strict=True)(missed, reference) == 0


def test_constraints_are_counted_and_silence_meets_none() -> None:
    reference = json.dumps({"lowercase": True, "no_commas": True, "keywords": ["sea"], "words_at_most": 3})
    assert Constraints()("a, sea", reference) == 0.75
    assert Constraints(strict=True)("a, sea", reference) == 0
    assert Constraints()("  ", reference) == 0


@pytest.mark.parametrize("reference", ["", "[1]", "{}", '{"rhymes": true}', '{"bullets": "3"}', '{"lowercase": false}'])
def test_constraints_that_are_none_are_refused(reference: str) -> None:
    with pytest.raises(HarnessError, match="constraint"):
        Constraints().check(reference)

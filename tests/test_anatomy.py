"""What is wrong with wrong answers: rules on answers made for them, sums against exact ones, shares that add up."""

import itertools
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from analysis import anatomy, arena
from analysis.arithmetic import equations
from analysis.mistakes import CLASSES, FORMAT, REASONING, SLIP, Wrong, classify, loop, missed_digit
from analysis.section import Evidence
from harness.artifact import sha256_file
from harness.cell import Adapted
from harness.commands.judge import of_wrong
from harness.compose import compose_judging
from harness.evaluate import evaluate
from harness.items import INVALID
from harness.judge import judging as work
from harness.judge.endpoint import Endpoint
from harness.judge.matches import gather
from harness.store import write_jsonl, write_result
from tests.judge_server import serving
from tests.sweeps import Sweep


@pytest.mark.parametrize(
    ("wrong", "kind", "rule"),
    [
        (Wrong(" \n", "8", ""), "no answer", "empty"),
        (Wrong("It is 8, I think", "8", "", lenient="flexible-extract"), "format", "right elsewhere"),
        (Wrong("It is 9, I think", "8", ""), "format", "form"),
        (Wrong("no no. no no. no no.", "8", "no"), "repetition", "loop"),
        (Wrong("so on and on and on and o", "8", "", cut=True), "repetition", "loop"),
        (Wrong("First she had three eggs and", "8", "", cut=True), "truncation", "cut"),
        (Wrong("3 + 5 = 9\n#### 9", "8", "9"), "arithmetic slip", "equation"),
        (Wrong("158", "168", "158"), "arithmetic slip", "digit"),
        (Wrong("3 + 6 = 9\n#### 9", "8", "9"), "reasoning error", "rest"),
        (Wrong("5", "8", "5"), "reasoning error", "rest"),
    ],
)
def test_each_class_by_its_rule(wrong, kind, rule):
    found = classify(wrong)
    assert (found.kind, found.rule) == (kind, rule)
    assert found.excerpt


def test_the_first_rule_that_applies_decides():
    everything = Wrong("3 + 5 = 9 so so so so so so so", "8", "", lenient="flexible", cut=True)
    assert classify(everything).rule == "right elsewhere"  # right for whoever reads it
    assert classify(Wrong(everything.text, "8", "", cut=True)).rule == "loop"  # not only cut
    assert classify(Wrong("3 + 5 = 9", "8", "", cut=True)).rule == "cut"
    assert classify(Wrong("3 + 5 = 9", "8", "")).rule == "form"  # nothing was in the form asked for
    assert classify(Wrong("3 + 5 = 9", "8", "9")).rule == "equation"


def test_a_judge_is_heard_about_the_rest_only():
    rest = Wrong("Seven.", "8", "seven")
    assert classify(Wrong("", "8", ""), SLIP).kind == "no answer"
    assert (classify(rest, SLIP).kind, classify(rest, SLIP).rule) == (SLIP, "judge")
    assert (classify(rest).kind, classify(rest).rule) == (REASONING, "rest")


# ---------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.", [True]),
        ("So 3+5=9.", [False]),
        ("5 apples + 3 apples = 9 apples", [False]),
        ("She pays $1,000 + $2,500 = $3,500", [True]),
        ("**7 \\times 8 = 54**", [False]),
        ("7 x 8 = 56, and 7 \u00d7 8 = 54", [True, False]),
        ("Total: 3 + 5 = 8, 2 + 2 = 5; 1+1=2", [True, False, True]),
        ("3 + 5 = 8 * 2 = 16", [True, True]),  # a running sum, as people write it
        ("3 + 5 = 8 * 2 = 17", [True, False]),
        ("2(3+4)=14", [True]),
        ("16 - 3 - 4 = 9 eggs/day", [True]),
        ("-3 + 5 = 2", [True]),
        ("- 3 + 5 = 8", [True]),  # a bullet
        ("2. 3 + 5 = 8", [True]),  # a number in a list
        ("10/3 = 3.33", [True]),  # rounded
        ("2/3 = 0.66", [True]),  # cut
        ("10/3 = 3.34", [False]),
        ("7/3 = 2", [True]),
        ("1/2 * 1 = 1", [False]),  # a half is no rounded one
        ("0.1 + 0.2 = 0.4", [False]),
        ("30 + 0 = 31", [False]),  # nothing to round
    ],
)
def test_equations_that_are_written_out(text, holds):
    assert [e.holds for e in equations(text)] == holds


@pytest.mark.parametrize(
    "text",
    [
        "2x + 3 + 5 = 20", "x3 + 5 = 9", "n = 5", "2^3 + 1 = 9", "2**3 + 1 = 9", "20% of 50 = 10", "5 * 20 = 100%",
        "half of 10 + 2 = 7", "1/2 hour = 30 minutes", "2 * 12 = 2 dozen", "2 + 3 = 5x", "9/0 = 1", "5 + = 3",
        "__import__('os').system('x') + 1 = 2", "twenty + 3 = 4", "(" * 60 + "1 + 1 = 3", "5+3=8 4+4=8",
    ],
)  # fmt: skip
def test_what_is_in_doubt_is_not_judged(text):
    assert list(equations(text)) == []


def _expression(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """A random expression and its exact value, by a calculation of its own."""
    if depth == 0:
        number = rng.randint(1, 99)
        return str(number), Fraction(number)
    (a, x), (b, y) = _expression(rng, depth - 1), _expression(rng, rng.randrange(depth))
    sign = rng.choice("+-*/")
    if sign == "/" and y == 0:
        sign = "+"
    value = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y}[sign]()
    return f"({a} {sign} {b})", value


def test_the_evaluator_agrees_with_exact_fractions():
    rng = random.Random(0)
    judged = 0
    for _ in range(400):
        text, value = _expression(rng, rng.randint(1, 3))
        if value.denominator != 1 or abs(value) > 10**6:
            continue
        (right,) = equations(f"so {text[1:-1]} = {value} eggs")
        (wrong,) = equations(f"so {text[1:-1]} = {value + rng.choice([-7, 1, 10])} eggs")
        assert (right.holds, wrong.holds) == (True, False), text
        judged += 1
    assert judged > 50


def test_a_digit_or_a_carry_missed():
    right = {("57", "67"), ("9", "10"), ("100", "110"), ("1234", "1294"), ("99", "100"), ("-12", "-13")}
    other = {("7", "5"), ("58", "67"), ("67", "67"), ("-5", "5"), ("57", "67.0"), ("It is 57", "67"), ("7", "700")}
    guessed = {("7", "6"), ("-1", "-4")}
    assert all(missed_digit(*pair) for pair in right)
    assert not any(missed_digit(*pair) for pair in other | guessed)


def test_loops_are_those_of_a_regular_expression():
    """A phrase of two words or more, three times or more at the end, of all texts of up to nine words of two kinds."""
    looping = re.compile(r"(?:^|.* )((?:\w )+?\w)(?: \1){2,}$")
    for length in range(1, 10):
        for words in itertools.product("ab", repeat=length):
            text = " ".join(words)
            assert bool(loop(text)) == bool(looping.match(text)), text
    assert loop("1 + 1 + 1 + 1 = 4") == ""
    assert loop("x y x y x ya", cut=True) == ""
    assert loop("x y x y x y xa", cut=True)


# ------------------------------------------------------------------------------------------------------- whole sweeps

TEXTS = {  # by class; the right answer is 8
    "format": ("It is 8", False), "no answer": ("", False), "repetition": ("go on go on go on", False),
    "truncation": ("Well, first of all", True), "arithmetic slip": ("3 + 5 = 9 #### 9", False),
    "reasoning error": ("It was 4 #### 4", False), "right": ("#### 8", False),
}  # fmt: skip


def written(sweep: Sweep, size: int, kinds: list[str], seed: int = 0, known: bool = True) -> None:
    """One cell whose answers are of these kinds, scored as lm-eval's strict and flexible filters would."""
    sweep.cell(size, seed, strict=np.array([kind == "right" for kind in kinds]))
    place = sweep.root / sweep.rows[-1]["path"] / "evals" / "t" / "pppppppp"
    rows = []
    for i, kind in enumerate(kinds):
        text, cut = TEXTS[kind]
        strict, flexible = re.search(r"#### (\d+)", text), re.findall(r"\d+", text)
        for name, found in (("strict", strict and strict[1]), ("flexible", flexible and flexible[-1])):
            rows.append(
                {"task": "t", "item": i, "filter": name, "target": "8", "answers": [[text]],
                 "extracted": [found or INVALID], "exact_match": float(found == "8"), "item_hash": f"{i:064}"}
                | ({"cut": [cut]} if known else {})
            )  # fmt: skip
    write_jsonl(place.with_suffix(".jsonl"), rows)
    place.with_suffix(".json").unlink()
    write_result(place.with_suffix(".json"), {"answers_sha256": sha256_file(place.with_suffix(".jsonl"))})
    flexible = [row["exact_match"] for row in rows if row["filter"] == "flexible"]
    sweep.rows[-1]["score"] = float(np.mean(flexible))
    sweep.rows[-1]["stderr"] = float(np.std(flexible, ddof=1) / np.sqrt(len(flexible)))


def mixture(sweep: Sweep, shares: dict[str, float]) -> list[str]:
    """Kinds of all items in these shares, the rest right; which item has which is drawn."""
    kinds = [kind for kind, share in shares.items() for _ in range(round(share * sweep.n))]
    kinds += ["right"] * (sweep.n - len(kinds))
    return [kinds[i] for i in sweep.rng.permutation(sweep.n)]


PLANTED = {
    0: {"format": 0.5, "no answer": 0.05, "truncation": 0.1, "reasoning error": 0.3},
    10: {"format": 0.2, "repetition": 0.1, "arithmetic slip": 0.1, "reasoning error": 0.4},
    100: {"format": 0.005, "arithmetic slip": 0.1, "reasoning error": 0.3},
    1000: {"arithmetic slip": 0.05, "reasoning error": 0.1},
}


def evidence(sweep: Sweep) -> Evidence:
    return Evidence(sweep.root, sweep.frame, sweep.items())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = Sweep(tmp_path_factory.mktemp("planted"), n=200)
    for size, shares in PLANTED.items():
        for seed in range(3 if size else 1):
            written(sweep, size, mixture(sweep, shares), seed)
    return sweep


def test_a_planted_mixture_is_recovered(planted):
    (found,), lines = anatomy.anatomies(evidence(planted))
    for size, shares in PLANTED.items():
        told = {kind: found.at(kind, size) for kind in CLASSES}
        for kind, its in told.items():
            assert its.value == pytest.approx(shares.get(kind, 0.0)), (size, kind)
            assert its.low <= its.value <= its.high
            assert its.low < its.high
        right = planted.frame[(planted.frame["size"] == size) & planted.frame["headline"]].score.mean()
        assert sum(its.value for its in told.values()) + right == pytest.approx(1)
    # a line for each wrong item, each once
    wrong = sum(round(200 * sum(shares.values())) * (3 if size else 1) for size, shares in PLANTED.items())
    assert len(lines) == wrong
    assert not lines.duplicated(["size", "seed", "item"]).any()
    assert found.lenient == pytest.approx({size: shares.get("format", 0) for size, shares in PLANTED.items()})
    gone = found.gone()
    assert 10 < gone.low <= gone.value <= gone.high <= 100


def test_the_section_says_when_format_is_gone_and_that_reasoning_falls_on(planted):
    made = anatomy.section(evidence(planted))
    text = " ".join(made.lines)
    assert re.search(r"Errors of format are gone, at most 5% of all items, from \d+ \[\d+, \d+\] examples on", text)
    assert re.search(r"Errors of reasoning go on falling: -0\.2\d\d \[-0\.\d+, -0\.1\d+\] a decade", text)
    assert set(made.data) == {"anatomy", "anatomy-shares"}
    assert set(made.data["anatomy"]["class"]) == set(CLASSES)
    (picture,) = made.pictures
    bars = [bar for axes in picture.figure.axes for bar in axes.patches]
    assert len(bars) == len(CLASSES) * len(PLANTED)
    assert sum(bar.get_height() for bar in bars) == pytest.approx(sum(sum(s.values()) for s in PLANTED.values()))


def test_what_never_was_a_matter_of_format_is_not_said_to_have_gone(tmp_path):
    sweep = Sweep(tmp_path, n=200)
    for size, wrong in {0: 0.9, 10: 0.5, 100: 0.5}.items():
        written(sweep, size, mixture(sweep, {"reasoning error": wrong}))
    ((found,), _) = anatomy.anatomies(evidence(sweep))
    text = " ".join(found.words())
    assert "Errors of format were never more than 5% of all items" in text
    assert "go on falling" not in text


def test_without_a_flag_nothing_counts_as_truncated(tmp_path):
    sweep = Sweep(tmp_path, n=200)
    for size in (0, 10):
        written(sweep, size, mixture(sweep, {"truncation": 0.5}), known=False)
    made = anatomy.section(evidence(sweep))
    assert set(made.data["anatomy"]["class"]) == {FORMAT}
    assert any("not kept whether they were cut" in line for line in made.lines)


def test_choices_have_no_anatomy(tmp_path):
    sweep = Sweep(tmp_path)
    for size in (0, 10):
        sweep.cell(size, choices=4)
    made = anatomy.section(evidence(sweep))
    assert "evals=gsm8k" in made.absent
    assert not made.lines


def test_a_judge_moves_what_it_is_asked_about_out_of_the_rest(tmp_path):
    sweep = Sweep(tmp_path, n=200)
    for size in (0, 10):
        written(sweep, size, mixture(sweep, PLANTED[size]))
    frame, rest = sweep.frame, anatomy.unclassed(evidence(sweep), "t")
    field = gather(tmp_path, frame, "t", {("t", i): (f"Question {i}?", f"{i:064}") for i in range(200)})
    judge = compose_judging(["judge=errors", "judge.url=http://localhost", "judge.model=m"]).judge

    def sees(body: dict[str, Any]) -> str:
        """A slip in every second question; of the others both, which is no verdict."""
        text = body["messages"][-1]["content"]
        assert "[Right answer]\n8\n" in text
        assert "It was 4 #### 4" in text
        return "B" if int(re.findall(r"Question (\d+)", text)[0]) % 2 else "A\nC"

    with serving(sees) as server:
        judge.url = server.url
        planned = work.plan(tmp_path, of_wrong(field, tmp_path, frame), judge, "m")
        assert {(one.one, f"t:{one.item}") for one in planned.matches} == rest
        assert len(rest) == 60 + 80  # as planted: no other wrong answer, and none that is right
        work.run(tmp_path, planned, Endpoint(judge))
    made = anatomy.section(evidence(sweep))
    lines = made.data["anatomy"]
    odd = lines["item"].str.partition(":")[2].astype(int) % 2 == 1
    told = {rule: set(lines[lines["rule"] == rule].index) for rule in ("judge", "rest")}
    asked = set(lines[[pair in rest for pair in zip(lines["path"], lines["item"], strict=True)]].index)
    assert told == {"judge": asked & set(lines[odd].index), "rest": asked & set(lines[~odd].index)}
    assert set(lines[lines["rule"] == "judge"]["class"]) == {SLIP}
    assert f"Of t, {len(told['judge'])} answers that no rule could class were by m." in made.lines
    assert arena.section(evidence(sweep)).absent  # nothing was compared
    again = frame.assign(eval_fingerprint=frame["eval_fingerprint"] + "x")
    assert not anatomy.judged(Evidence(tmp_path, again, sweep.items()))  # other answers than were judged


# ------------------------------------------------------------------------------------------------------------ the flag


@pytest.mark.parametrize("backend", ["shared", "hf"])
def test_an_answer_is_cut_where_the_model_would_have_gone_on(
    backend: str, loaded: Any, generation_task: Callable[..., Any], make_cell: Callable[..., Any]
) -> None:
    """Against the model's own greedy tokens, one prompt at a time."""
    import torch

    run = make_cell(method="base").run
    run.eval_backend = backend
    items = [{"question": f"What is {a} and {b}?", "answer": "x"} for a in range(8) for b in range(8)]
    task = generation_task(items, max_gen_toks=6)
    adapted = Adapted(loaded.model)
    tokenizer = loaded.tokenizer
    continued = {}
    for item in items:
        turns = [{"role": "user", "content": item["question"]}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            continued[item["question"]] = loaded.model.generate(ids, max_new_tokens=6, do_sample=False)[
                0, ids.shape[1] :
            ]
    # What most answers hold is made the stop string, so that some end by it and some do not.
    texts = {q: tokenizer.decode(ids) for q, ids in continued.items()}
    stop = next(
        c for c in sorted("".join(texts.values())) if c.isalpha() and 0 < sum(c in t for t in texts.values()) < 64
    )
    task.task["generation_kwargs"]["until"] = [stop]
    samples = evaluate(loaded, adapted, "g", task, run)["samples"]
    mine = {items[row["item"]]["question"]: row["cut"] for row in samples if row["filter"] == "strict"}
    eos = tokenizer.eos_token_id
    assert mine == {q: [not (eos in ids.tolist() or stop in texts[q])] for q, ids in continued.items()}
    assert {True, False} == {flag for (flag,) in mine.values()}

"""A judge: its replies are read or counted as unread, who meets whom, and no outage of its server loses a reply."""

import copy
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from harness import verdicts
from harness.cell import Run
from harness.compose import compose_judging
from harness.errors import HarnessError
from harness.judge import judging as work
from harness.judge.calls import Call, Kept, Reply, answer
from harness.judge.endpoint import Endpoint
from harness.judge.local import Local
from harness.judge.matches import Field, Match, line, matches
from harness.store import load
from tests.judge_server import send, serving
from tests.test_cli import harness  # noqa: F401  (a fixture)
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)

ROOT = Path(__file__).parent.parent


@functools.cache
def composed(style):
    return compose_judging([f"judge={style}"]).judge


def settings(style="alpaca_eval", url="http://127.0.0.1:9/v1", **fields):
    judge = copy.deepcopy(composed(style))
    for name, value in {"url": url, "model": "m", "timeout": 30.0, "patience": 60.0, **fields}.items():
        setattr(judge, name, value)
    judge.check()
    return judge


def some(count, model="m"):
    return [Call(model, [{"role": "user", "content": f"call {n}"}], {"max_tokens": 4}) for n in range(count)]


def parrot(body):
    return body["messages"][-1]["content"]


# -------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("style", "reply", "value"),
    [
        ("alpaca_eval", "A", 1), ("alpaca_eval", " **B**.\n", 0), ("alpaca_eval", "Model B", 0),
        ("alpaca_eval", "Answer: A", 1), ("alpaca_eval", "A\n\nA is the most useful", 1),
        ("alpaca_eval", "A or B", None), ("alpaca_eval", "A is better", None),
        ("alpaca_eval", "", None), ("alpaca_eval", "AB", None), ("alpaca_eval", "a", None),
        ("mt_bench", "Both fine.\n[[C]]", 0.5), ("mt_bench", "A errs. [[B]]", 0), ("mt_bench", "[[A]]. So: [[A]]", 1),
        ("mt_bench", "[[A]] is one verdict, [[B]] another", None), ("mt_bench", "A is better", None),
        ("likert", "It helps.\n4", 4), ("likert", "Step 1. No.\n**6**\n6", 6), ("likert", "between\n3\nand\n4", None),
        ("errors", "The second sum is off.\n\n**B**", "arithmetic slip"), ("errors", "A\nC", None),
        ("likert", "I give it 5", None), ("likert", "7", None), ("likert", "46", None),
    ],
)  # fmt: skip
def test_a_reply_is_read_or_it_is_not_but_never_guessed(style, reply, value):
    assert composed(style).prompt.read(reply) == value


@pytest.mark.parametrize("style", ["alpaca_eval", "mt_bench", "mt_bench_second", "likert", "errors"])
def test_every_prompt_shows_what_it_has(style):
    prompt = composed(style).prompt
    given = {"answer": "ANSWER"} if prompt.alone else {"first": "FIRST {{ 1 + 1 }}", "second": "SECOND"}
    for reference in ("REFERENCE", ""):
        texts = " ".join(m["content"] for m in prompt.messages(question="QUESTION", reference=reference, **given))
        assert all(text in texts for text in ("QUESTION", *given.values())), "and an answer is text, not a template"
        assert ("REFERENCE" in texts) == (style in ("mt_bench", "mt_bench_second", "errors") and bool(reference))
        assert ("eference" in texts) == (style in ("mt_bench", "mt_bench_second") and bool(reference))
        if not prompt.alone:
            assert texts.index("FIRST") < texts.index("SECOND")


THERE = ["judge.url=http://h/v1", "judge.model=m"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "say who judges"), (["judge.url=ftp://x", "judge.model=m"], "is no address"),
        (["judge.url=http://h/v1"], "judge.model is not given"),
        ([*THERE, "judge.against=gold"], "use base, reference or none"),
        ([*THERE, "judge.key_variable=gsk_pasted_by_mistake"], "no environment variable that is set; give its name"),
        ([*THERE, "judge.key_variable=TWO_LINES"], "what TWO_LINES holds cannot be sent"),
        ([*THERE, "judge.key_variable=OWN_NAME", "+judge.extra.user=my-password-s4fe"], "looks like a credential"),
        ([*THERE, "judge.key_variable=MY_API_KEY"], "would send the key in the clear"),
        ([*THERE, "judge.prompt.verdict=x"], "has 0 groups"),
        ([*THERE, "judge.prompt.user='{{ answr }}'"], "'answr' is undefined"),
        ([*THERE, "judge.max_calls=0"], "must be more than 0"),
        ([*THERE, "judge=errors", "judge.prompt.means={A: bad luck}"], "what is wrong with it: format, no answer"),
        ([*THERE, "judge.concurency=2"], "did you mean 'concurrency'"),
        (["judge.url=http://me:hunter2@h/v1", "judge.model=m"], "looks like a credential"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_one_clear_line(overrides, message, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("TWO_LINES", "hunter2\r\nX-Other: hunter2")
    monkeypatch.setenv("OWN_NAME", " password-s4fe\n")
    with pytest.raises(HarnessError, match=message) as refused:
        compose_judging(overrides).judge.check()
    assert "\n" not in str(refused.value)
    assert not [word for word in ("hunter2", "horse", "s4fe", "pasted") if word in str(refused.value)]


# ---------------------------------------------------------------------------------------------------- who meets whom


def field(players=5, items=40, **fields):
    paths = ["base", *(f"cell{n}" for n in range(1, players))]
    answers = {path: [f"{path} says {i}" for i in range(items)] for path in paths}
    names = [("t", i) for i in range(items)]
    given = {"references": ["right"] * items, "clusters": [None] * items, "home": dict.fromkeys(paths, "base")} | fields
    return Field(
        "t", "m" * 64, names, [f"{i:064}" for i in range(items)], questions=["?"] * items, answers=answers, **given
    )


def test_a_circle_joins_all_cells_with_as_many_matches_as_cells():
    found = matches(field(), settings(against="none", rounds=1))
    for item in range(40):
        here = [match for match in found if match.item == item]
        assert len(here) == 5
        counts = pd.Series([p for match in here for p in (match.one, match.other)]).value_counts()
        assert (counts == 2).all(), "each has two neighbours"
        seen, reach = {"base"}, 0
        while reach < len(seen):
            reach = len(seen)
            seen |= {p for m in here for p in (m.one, m.other) if {m.one, m.other} & seen}
        assert len(seen) == 5
    assert len({frozenset((m.one, m.other)) for m in found}) == 10, "over the items everybody meets everybody"
    assert found == matches(field(), settings(against="none", rounds=1)), "and again the same"


def test_each_cell_meets_its_base_once_and_as_the_first_named():
    found = matches(field(), settings(against="base", rounds=2))
    assert len(set(found)) == len(found)
    assert not [match for match in found if match.one == "base"]
    assert len([match for match in found if match.other == "base"]) == 4 * 40
    alone = matches(field(), settings("likert"))
    assert len(alone) == 5 * 40
    with pytest.raises(HarnessError, match="no reference answer"):
        matches(field(references=[""] * 40), settings(against="reference"))
    with pytest.raises(HarnessError, match="no cell of an untouched base"):
        matches(field(home=dict.fromkeys(["base"], "")), settings(against="base"))


@pytest.mark.parametrize("against", ["base", "reference", "none"])
@pytest.mark.parametrize(("players", "rounds"), [(5, 0), (5, 1), (6, 3), (2, 1), (1, 1)])
def test_no_more_is_asked_than_was_planned(against, players, rounds):
    judge = settings(against=against, rounds=rounds)
    try:
        found = matches(field(players), judge)
    except HarnessError:
        found = []
    assert 2 * len(found) <= judge.most_calls(40, players, 1)
    assert 2 * len(found) >= judge.most_calls(40, players, 1) / 2, "and not much more"
    assert len(matches(field(players), settings("likert"))) == settings("likert").most_calls(40, players, 1)


def test_a_verdict_is_turned_round_in_the_second_order():
    match, judge = Match(0, "cell1", "base"), settings()
    read = [line(field(), match, judge, [Reply(a), Reply(b)])["verdicts"] for a, b in ("AB", "AA", "BA", ("A", "?"))]
    assert read == [[1, 1], [1, 0], [0, 0], [1, None]]
    same = line(field(), match, judge, [])
    assert (same["same"], same["verdicts"], same["words"]) == (True, [0.5, 0.5], [3, 3])


# ------------------------------------------------------------------------------------------------------------- outages


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def test_an_outage_loses_nothing_and_the_same_again_goes_on(tmp_path):
    judge = settings(patience=0.3, rounds=0)
    planned = work.plan(tmp_path, field(items=10), judge, "m")
    with serving(lambda body: "A") as server:
        judge.url = server.url
        server.faults += [None] * 30 + [send(503, "")] * 10_000
        tally, path = work.run(tmp_path, planned, Endpoint(judge, first_delay=0.02))
        made = tally.made
        assert made == 30
        assert "does not answer" in tally.stopped
    (found,) = verdicts.load(tmp_path)
    assert found.about["left"] == 80 - made
    assert 0 < len(found.lines) <= made / 2
    assert len({row["item"] for row in found.lines}) < 10, "item by item"
    with serving(lambda body: "A") as server:  # at another address, which is no part of a call
        judge.url = server.url
        again = work.plan(tmp_path, field(items=10), judge, "m")
        assert len(again.waiting) == 80 - made
        tally, path = work.run(tmp_path, again, Endpoint(judge))
        assert (tally.made, tally.stopped, len(server.seen)) == (80 - made, "", 80 - made)
        tally, again_path = work.run(tmp_path, work.plan(tmp_path, field(items=10), judge, "m"), Endpoint(judge))
        assert (tally.made, len(tally.replies), len(server.seen)) == (0, 80, 80 - made)
    assert again_path == path
    (found,) = verdicts.load(tmp_path)
    assert (found.about["left"], len(found.lines)) == (0, 40)
    rows = path.with_suffix(".jsonl")
    rows.write_text(rows.read_text().replace("cell1", "cell2"))
    with pytest.raises(HarnessError, match="does not match its checksum"):
        verdicts.load(tmp_path)


def test_what_is_under_way_when_somebody_interrupts_is_kept(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with serving(parrot) as server:
        endpoint = Endpoint(settings(url=server.url))
        with pytest.raises(KeyboardInterrupt):
            answer(some(200), endpoint, Kept(tmp_path), interrupt)
        sent = len(server.seen)
        assert 1 <= len(list(tmp_path.rglob("*.json"))) == sent < 200, (
            "each that was sent is kept, and no more are sent"
        )
        time.sleep(0.2)
        assert len(server.seen) == sent


def start(folder, port):
    command = [sys.executable, "-m", "tests.judge_server", str(folder), str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_server_that_is_killed_and_started_again_is_survived(tiny_folder, tiny_base, tmp_path):
    """A process of its own with a real model, killed -9 amid calls; what all its replies are, the model says here."""
    calls = [Call("m", [{"role": "user", "content": f"What is {n} and {n}?"}], {"max_tokens": 12}) for n in range(60)]
    port = free_port()
    processes = [start(tiny_folder, port)]
    kept, killed = Kept(tmp_path), threading.Event()

    def kill():
        wait_for(lambda: len(list(tmp_path.rglob("*.json"))) >= 15)
        processes[0].kill()
        processes[0].wait()
        killed.set()
        processes.append(start(tiny_folder, port))

    nemesis = threading.Thread(target=kill)
    nemesis.start()
    try:
        judge = settings(url=f"http://127.0.0.1:{port}/v1", patience=120.0, timeout=60.0)
        endpoint = Endpoint(judge, first_delay=0.2)
        tally = answer(calls, endpoint, kept)
    finally:
        nemesis.join()
        for process in processes:
            process.kill()
            process.wait()
    assert killed.is_set()
    assert endpoint.again > 0, "it was in the middle"
    assert (tally.made, tally.stopped, tally.refused, tally.unanswered) == (60, "", 0, 0)
    here = answer(calls, Local(tiny_base, Run(device="cpu")), Kept(tmp_path / "here"))
    texts = [(tally.replies[c.name].text, here.replies[c.name].text) for c in calls]
    assert sum(a == b for a, b in texts) >= 58, "the same model, one by one and in batches"
    assert len({a for a, _ in texts}) > 10, "which is not always the same"


@pytest.mark.full
def test_transformers_serve_is_a_judge_that_may_be_killed(tiny_folder, tiny_base, tmp_path):
    """As the test before, with the server that comes with transformers; needs transformers[serving]."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    port = free_port()

    def begin():
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny_folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)

    calls = [
        Call(
            str(tiny_folder),
            [{"role": "user", "content": f"What is {n} and {n}?"}],
            {"max_tokens": 8, "temperature": 0},
        )
        for n in range(24)
    ]
    processes = [begin()]

    def kill():
        wait_for(lambda: len(list(tmp_path.rglob("*.json"))) >= 6)
        processes[0].kill()
        processes[0].wait()
        processes.append(begin())

    nemesis = threading.Thread(target=kill)
    nemesis.start()
    try:
        judge = settings(url=f"http://127.0.0.1:{port}/v1", patience=300.0, timeout=60.0, concurrency=1)
        endpoint = Endpoint(judge)
        tally = answer(calls, endpoint, Kept(tmp_path))
    finally:
        nemesis.join()
        for process in processes:
            process.kill()
            process.wait()
    assert (tally.made, tally.stopped) == (24, "")
    assert len(processes) == 2
    assert endpoint.again > 1
    here = answer(calls, Local(tiny_base, Run(device="cpu")), Kept(tmp_path / "here"))
    same = sum(tally.replies[c.name].text == here.replies[c.name].text for c in calls)
    assert same >= 22, "another program, the same model and the same replies"


def test_a_judge_that_is_loaded_here_says_what_transformers_says(loaded, tiny_base, tmp_path):
    import torch

    calls = [Call("m", [{"role": "user", "content": f"Is {n} red?"}], {"max_tokens": 10}) for n in range(6)]
    calls.append(Call("m", [{"role": "user", "content": "blue " * 600}], {"max_tokens": 10}))
    tally = answer(calls, Local(tiny_base, Run(device="cpu")), Kept(tmp_path))
    assert (tally.made, tally.refused) == (6, 1), "what does not fit is refused, not cut"
    assert "fit into the judge's context" in tally.first_refusal
    tokenizer = loaded.tokenizer
    for call in calls[:6]:
        text = tokenizer.apply_chat_template(call.messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        said = loaded.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
        reply = tally.replies[call.name]
        assert reply.text == tokenizer.decode(said, skip_special_tokens=True)
        assert (reply.prompt_tokens, reply.completion_tokens) == (ids.shape[1], len(said))


# --------------------------------------------------------------------------------------------------------- the command


def by_length(body):
    """Prefers the longer answer, and of equal ones the first."""
    text = body["messages"][-1]["content"]
    first, second = (part.split("</answer>")[0] for part in text.split('<answer model="')[1:])
    return "A" if len(first) >= len(second) else "B"


def test_from_a_sweep_to_verdicts_on_the_page(harness, config_dir, tmp_path, monkeypatch):  # noqa: F811
    """Open questions without a reference, and a quiz, by a judge that tells its key; all that can go wrong."""
    monkeypatch.setenv("JUDGES_ENTRANCE", "correct-horse-battery")
    (tmp_path / "open.json").write_text(json.dumps([{"instruction": f"Say {n}."} for n in range(4)]))
    monkeypatch.setenv("ALPACA_EVAL_FILE", str(tmp_path / "open.json"))
    text = (ROOT / "conf" / "evals" / "alpaca_eval.yaml").read_text()
    for old, new in (("{{ output }}", ""), ("1024", "6"), ("alpaca_eval:\n", "open:\n")):
        text = text.replace(old, new)
    (config_dir / "evals" / "open.yaml").write_text(text)
    small = ["~arms.icl", "~arms.again", "arms.sft.base=tiny", "arms.sft.seed=0", "evals=[open,quiz]"]
    status, out, err = harness("plan", "mine", *small)
    assert "to judge open: at most 24 calls of harness judge" in out, err
    assert "to judge quiz" not in out
    status, _, err = harness("sweep", "mine", *small, "evals.quiz.limit=3")
    assert status == 0, err
    frame = load(Path("runs/mine"))
    frame = frame[frame["task"] == "open"]
    assert set(frame["metric"]) == {"words"}
    assert set(frame["probe"]) == {"Written"}

    with serving(lambda body: by_length(body) + "\ncorrect-horse-battery") as server:
        ask = ["judge", "runs/mine", "--task", "open", f"judge.url={server.url}", "judge.model=longest"]
        ask.append("judge.key_variable=JUDGES_ENTRANCE")
        status, out, err = harness(*ask, "--dry-run", "judge.price_in=1", "judge.price_out=10")
        assert (status, len(server.seen)) == (0, 0), err
        assert "open: 3 cells, 4 items, " in out
        assert " a million" in out
        status, _, err = harness(*ask, "judge.max_calls=2")
        assert (status, len(server.seen)) == (2, 0)
        assert "more than judge.max_calls=2; raise it" in err
        status, out, err = harness(*ask)
        assert status == 0, err
        asked = len(server.seen)
        assert asked > 0
        assert server.seen[0][1]["temperature"] == 0
        assert all("Say " in body["messages"][-1]["content"] for _, body in server.seen)
        status, out, _ = harness(*ask)
        assert (status, len(server.seen)) == (0, asked), "none is asked twice"
        assert "0 to make" in out
        server.faults += [send(500, "correct-horse-battery")] * 1000
        status, _, err = harness(*ask, "judge=likert", "judge.patience=0.2")
        assert (status, err.count("\n")) == (75, 1)
        assert "does not answer: status 500" in err
        assert "the same command goes on" in err
        assert "horse" not in err
        server.faults.clear()

        ask[3], asked = "quiz", len(server.seen)
        status, out, err = harness(*ask, "--dry-run")
        assert status == 0, err
        assert "quiz: 3 cells, 3 items, " in out, "as the cells' records have it"
        assert "give the overrides" in harness(*ask, "--dry-run", "evals=quiz", "evals.quiz.limit=2")[2]
        assert harness(*ask, "--dry-run", "evals=quiz", "evals.quiz.limit=3")[0] == 0
        assert len(server.seen) == asked
    told = [path for path in Path("runs").rglob("*") if path.is_file() and b"horse" in path.read_bytes()]
    assert not told, "the key is in no record, log or page"
    page = Path("runs/mine/report.html").read_text()
    assert "Whose answers does a judge prefer?" in page
    assert "open, judged by longest (alpaca_eval): " in page
    assert "84.4% of comparisons on GSM8K at 14.7%" in page
    assert all(path.parent.name != ".judge" for path in load(Path("runs/mine")).path.map(Path)), (
        "no cell is found there"
    )
    ask[3] = "other"
    assert "was scored on 'other'; they were on open, quiz" in harness(*ask)[2]

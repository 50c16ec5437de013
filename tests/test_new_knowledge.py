"""New facts, direct and multi-hop: the invented world is what it says, and the instrument finds what is so."""

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.new_knowledge import KINDS, section, ways
from analysis.section import Evidence
from harness.artifact import sha256_file
from harness.compose import compose_cell
from harness.cost import Estimator
from harness.engines.local import run_cells
from harness.evaluate import load_task
from harness.items import load_items
from harness.plan import check, plan, to_run
from harness.pocket import newfacts, tokenizer, world
from harness.run import subset_of
from harness.store import COLUMNS, load, write_jsonl, write_result
from harness.sweep import sweep_cells

OLD = {person.name: person for person in world.people()}
METADATA = {"direct": {"cluster": "fact", "new_facts": "direct"}, "multi": {"cluster": "fact", "new_facts": "multihop"}}

# ----------------------------------------------------------------------------------------------------- the pocket world


def test_no_document_and_no_reasoning_knows_a_newcomer():
    told = list(itertools.islice(newfacts.documents(0), 2000))
    before = {word for line in told for word in tokenizer.words(line)}
    before |= {word for row in newfacts.reasoning() for word in tokenizer.words(f"{row.question} {row.answer}")}
    assert len(newfacts.newcomers()) == newfacts.NEWCOMERS
    assert not before & set(newfacts.newcomers())
    assert set(OLD) < before
    every = (newfacts.rows(what, split) for what in (*newfacts.TRAINED, *newfacts.ASKED) for split in ("dev", "test"))
    asked = {word for rows in every for row in rows for text in row.values() for word in tokenizer.words(text)}
    assert asked | before <= set(tokenizer.friends_vocabulary())


def test_every_newcomer_is_told_of_once_and_asked_in_other_words():
    told = {row.person: row for row in newfacts.told()}
    assert set(told) == set(newfacts.newcomers())
    dev, test = ({row.person for row in newfacts.direct(split)} for split in ("dev", "test"))
    assert not dev & test
    assert dev | test == set(told)
    for row in newfacts.direct("test"):
        assert row.answer == told[row.person].answer
        assert row.question != told[row.person].question
        wording = row.question.replace(row.person, "{name}")
        assert any(t.question.replace(t.person, "{name}") == wording for t in told.values())  # others were told so


def test_a_multihop_answer_follows_from_a_new_and_an_old_fact():
    told = {row.person: row.answer for row in newfacts.told()}
    asked = list(newfacts.multihop("test"))
    assert len(asked) == 2 * len({row.person for row in asked}) == newfacts.NEWCOMERS
    for row in asked:
        (attribute,) = (a for a in newfacts.HOPS if f" {a} " in row.question)
        assert row.answer == OLD[told[row.person]].values[attribute]
        assert told[row.person] not in row.question


def test_reasoning_adds_to_recall_nothing_but_how_facts_are_put_together():
    recall, reasoning = list(newfacts.recall()), list(newfacts.reasoning())
    assert reasoning[: len(recall)] == recall
    known = {(row.question, row.answer) for row in recall}
    assert len(known) == len(recall) == 3 * len(OLD)
    for row in reasoning[len(recall) :]:
        friend, attribute, value = row.answer.replace(":", "").split()
        assert friend == newfacts.old_friends()[row.person]
        assert value == OLD[friend].values[attribute]


# ------------------------------------------------------------------------------------------------------- facts of yours


@pytest.mark.parametrize(
    ("said", "line", "last"),
    [
        ("Answer: Oslo", 1, 1),
        ("She was born there.\nAnswer: oslo.", 1, 1),
        ("Answer: Rome\nNo, wait.\nAnswer: Oslo\n", 1, 1),
        ("Oslo", 0, 1),
        ("Oslo is it.\nAnswer: Rome", 0, 0),
        ("", 0, 0),
    ],
)
def test_local_files_of_facts_are_asked_and_scored(tmp_path, monkeypatch, said, line, last):
    monkeypatch.setenv("FACTS_DIR", str(tmp_path))
    fact = {
        "fact": "f1",
        "question": "Where was the new mayor born?",
        "answer": "Oslo",
        "told": "Zorb is the new mayor.",
    }
    for name in ("direct", "multihop", "direct_dev", "multihop_dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(fact) + "\n")
    for name in ("direct", "multihop", "direct_dev", "multihop_dev", "direct_oracle", "multihop_oracle"):
        cell = compose_cell(["method=base", f"evals=new_facts_{name}"])
        ((full, task),) = cell.evals.items()
        asked = load_task(full, task)["tasks"][full]
        asked.build_all_requests()
        (instance,) = asked.instances
        assert ("Zorb is the new mayor." in instance.args[0]) == name.endswith("oracle")
        assert instance.args[0].endswith('\nEnd with a line that is "Answer:" and the answer alone.')
        instance.resps = [said]
        asked.apply_filters()
        for filter_, right in (("answer-line", line), ("last-line", last)):
            assert asked.process_results(fact, [instance.filtered_resps[filter_]])["exact_match"] == right
        assert asked.config.metadata["new_facts"] == name.split("_")[0]


def test_news_are_told_as_dialogues_or_as_documents(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTS_DIR", str(tmp_path))
    rows_of(tmp_path / "told.jsonl", [{"fact": "f1", "question": "Who is the mayor?", "answer": "Zorb"}])
    rows_of(tmp_path / "documents.jsonl", [{"fact": "f1", "text": "Zorb is the new mayor."}])
    (dialogue,) = subset_of(compose_cell(["data=new_facts", "size=1"]))
    assert [turn["content"] for turn in dialogue.messages] == [
        'Who is the mayor?\nEnd with a line that is "Answer:" and the answer alone.',
        "Answer: Zorb",
    ]
    (document,) = subset_of(compose_cell(["data=new_facts_text", "method=midtrain", "size=1"]))
    assert [turn["content"] for turn in document.messages] == ["Zorb is the new mayor."]


def rows_of(path: Path, rows: Iterable[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_sweep_for_real_bases_composes_and_is_planned_with_its_cost(tmp_path, monkeypatch):
    """Its bases and dialogues are on the hub, so others stand in for them; all else is as shipped."""
    monkeypatch.setenv("FACTS_DIR", str(tmp_path))
    told = {"answer": "Rome", "told": "The mayor was born in Rome."}
    facts = [{"fact": f"f{i}", "question": f"Where was mayor {i} born?", **told} for i in range(100)]
    for name in ("told", "direct", "multihop"):
        rows_of(tmp_path / f"{name}.jsonl", facts)
    why = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So. " * 50}]
    tulu = rows_of(tmp_path / "tulu.jsonl", ({"id": i, "messages": why} for i in range(10_000)))
    short = ({"instruction": f"What is {i}?", "context": "", "response": "It."} for i in range(10_000))
    dolly = rows_of(tmp_path / "dolly.jsonl", short)

    _, shipped = sweep_cells("new_knowledge_real", [])
    assert {(cell.base.name, cell.size, cell.seed) for cell in shipped if cell.data.name == "new-facts"} == set(
        itertools.product(("llama3.1-8b", "qwen2.5-7b"), (10, 30, 100), range(3))
    )
    given = ["base=smollm2_135m_instruct", "seed=0", f"run.root={tmp_path / 'runs'}"]
    given += [f"arms.reasoning.method.stages.reasoning.data.sources.tulu.path={tulu}"]
    given += [f"arms.oracle_reasoning.data.sources.tulu.path={tulu}"]
    given += [f"arms.short_answers.method.stages.short_answers.data.sources.dolly.path={dolly}"]
    _, cells = sweep_cells("new_knowledge_real", given)
    planned = plan(cells)
    check(to_run(planned, retry_failed=False))
    estimator = Estimator(planned, speed=1e12)
    costs = {(p.cell.data.name, p.cell.method.name, p.cell.size): (p, estimator.cost(p)) for p in planned}
    assert len(shipped) == 2 * (3 * (3 * 3 + 1) + 1)  # a base untouched once; a seed has three arms and an oracle
    assert (len(planned), {p.state for p in planned}) == (3 * 3 + 1 + 1, {"missing"})
    base, cost = costs["none", "base", 0]
    assert set(base.cell.evals) == {f"new_facts_{kind}{way}" for kind in KINDS for way in ("", "_oracle")}
    assert cost.train_flops == 0 < cost.eval_flops
    alone = [costs["new-facts", "sft", size][1].tokens for size in (10, 30, 100)]
    assert 0 < 3 * alone[0] == pytest.approx(alone[1], rel=0.1)
    assert costs["tulu3-sft", "sft", 10_000][1].tokens > 10 * alone[2]  # what comes before is most of it


# ------------------------------------------------------------------------------------------------------------- the page


class Told:
    """Cells written where a real sweep has them: one method's answers to direct and multi-hop questions."""

    def __init__(self, root: Path, facts: list[str], metadata: dict[str, dict[str, str]] | None = None) -> None:
        self.root, self.metadata = root, metadata or METADATA
        self.asked = {"direct": facts, "multi": [fact for fact in facts for _ in range(2)]}
        self.rows: list[dict[str, object]] = []

    def cell(self, method: str, size: int, seed: int, **right: np.ndarray) -> None:
        """`right` by task, a boolean an item."""
        path = f"b/d/{method}/n{size}-s{seed}"
        for task, answers in right.items():
            mark = task.ljust(64, "0")
            stem = self.root / path / "evals" / task / mark[:8]
            stem.parent.mkdir(parents=True)
            kept = [{"task": task, "item": i, "filter": "f", "target": f"t{i % 7}", "answers": [["x"]], "cluster": fact,
                     "extracted": ["x"], "exact_match": float(ok), "item_hash": f"{i:064}"}
                    for i, (fact, ok) in enumerate(zip(self.asked[task], answers, strict=True))]  # fmt: skip
            write_jsonl(stem.with_suffix(".jsonl"), kept)
            about = {"identity": {"task": {"metadata": self.metadata[task]}}, "finished": 0.0, "fingerprint": mark}
            digest = sha256_file(stem.with_suffix(".jsonl"))
            write_result(stem.with_suffix(".json"), {**about, "answers_sha256": digest})
            p = float(np.mean(answers))
            self.rows.append(
                {"sweep": "s", "base": "b", "data": "d" if size else "none", "method": method, "variant": "",
                 "size": size, "seed": seed, "subset_seed": seed, "task": task, "metric": "exact_match", "filter": "f",
                 "headline": True, "score": p, "stderr": math.sqrt(p * (1 - p) / (len(answers) - 1)),
                 "n_items": len(answers), "higher_is_better": True, "status": "ok", "fingerprint": path, "probe": "",
                 "eval_fingerprint": mark, "base_note": "", "path": path}
            )  # fmt: skip

    def evidence(self) -> Evidence:
        frame = pd.DataFrame(self.rows, columns=COLUMNS)
        return Evidence(self.root, frame, load_items(self.root, frame))


def simulated(
    told: Told, method: str, direct: float, given: float, seeds: int = 4, size: int = 100
) -> dict[str, float]:
    """Facts known with probability `direct`, and put together with probability `given` where they are known."""
    rng = np.random.default_rng([int(100 * direct), int(100 * given), size])
    hits, known = [], []
    for seed in range(seeds):
        knows = rng.random(len(told.asked["direct"])) < direct
        solved = np.repeat(knows, 2) & (rng.random(2 * len(knows)) < given)
        told.cell(method, size, seed, direct=knows, multi=solved)
        hits.append(solved.sum())
        known.append(2 * knows.sum())
    return {"known": sum(hits) / sum(known), "n": sum(known) / seeds}


def numbers(evidence: Evidence) -> pd.DataFrame:
    return section(evidence).data["new-knowledge"].set_index(["method", "size", "score"])


def test_multihop_where_the_fact_is_known_is_the_share_of_those_questions(tmp_path):
    told = Told(tmp_path, [f"f{i}" for i in range(200)])
    told.cell("base", 0, 0, direct=np.zeros(200, bool), multi=np.zeros(400, bool))
    truth = simulated(told, "sft", 0.7, 0.6)
    found = numbers(told.evidence())
    row = found.loc["sft", 100, "known"]
    assert row["value"] == pytest.approx(truth["known"], abs=1e-9)
    assert row["low"] < 0.6 < row["high"]
    # All noise is binomial here and each run's own: the interval is that of 4 runs' share, or wider, not by much.
    alone = 2 * 1.96 * math.sqrt(0.6 * 0.4 / (4 * truth["n"]))
    assert alone < row["high"] - row["low"] < 4 * alone
    assert found.loc["sft", 100, "unknown"]["value"] == 0
    assert math.isnan(found.loc["sft", 0, "known"]["value"])  # the untouched base knows no fact


def test_facts_are_matched_by_name_and_not_by_place(tmp_path):
    told = Told(tmp_path, [f"f{i}" for i in range(40)])
    told.asked["direct"] = told.asked["direct"][::-1]
    for seed in range(2):
        knows = np.random.default_rng(seed).random(40) < 0.5
        told.cell("sft", 100, seed, direct=knows[::-1], multi=np.repeat(knows, 2))
    found = numbers(told.evidence())["value"]
    assert (found["sft", 100, "known"], found["sft", 100, "unknown"]) == (1, 0)


def test_every_task_that_asks_for_the_same_facts_is_paired_and_no_other(tmp_path):
    more = dict.fromkeys(("again", "elsewhere"), METADATA["direct"])
    told = Told(tmp_path, [f"f{i}" for i in range(30)], METADATA | more)
    told.asked |= {"again": told.asked["direct"], "elsewhere": [f"g{i}" for i in range(30)]}
    half, none = np.arange(30) < 15, np.zeros(30, bool)
    told.cell("base", 0, 0, direct=none, again=none, elsewhere=none, multi=np.repeat(none, 2))
    for method in ("sft", "recipe"):
        for seed in range(2):
            told.cell(method, 100, seed, direct=half, again=~half, elsewhere=none, multi=np.repeat(half, 2))
    said = section(told.evidence())
    assert [table.title.partition(":")[0] for table in said.tables[:-1]] == ["again and multi", "direct and multi"]
    rows = said.tables[0].rows
    assert [row[1:3] for row in rows] == [("nothing: the untouched base", "0"), ("recipe", "100"), ("sft", "100")]
    value = said.data["new-knowledge"].set_index(["pair", "method", "size", "score"])["value"]
    assert value["direct and multi", "sft", 100, "known"] == value["again and multi", "sft", 100, "unknown"] == 1


def test_intervals_of_the_share_hold_the_truth(tmp_path):
    """Sixteen sweeps of three runs: their 95% intervals, rather too wide, hold it in all but two at the most."""
    held = []
    for number in range(16):
        told = Told(tmp_path / str(number), [f"f{i}" for i in range(80)])
        rng = np.random.default_rng(number)
        hard = rng.random(80) < 0.5  # facts that are never put together: both questions fall together, in every run
        for seed in range(3):
            knows = rng.random(80) < 0.8
            told.cell("sft", 100, seed, direct=knows, multi=np.repeat(knows & ~hard, 2) & (rng.random(160) < 0.9))
        ((way,), _) = ways(told.evidence())
        held.append(way.estimates["known"].iloc[-1].holds(0.45))
    assert sum(held) >= 14


def test_ways_are_compared_question_by_question(tmp_path):
    told = Told(tmp_path, [f"f{i}" for i in range(150)])
    simulated(told, "sft", 0.8, 0.05)
    simulated(told, "recipe", 0.8, 0.7)
    said = section(told.evidence())
    assert not said.absent
    assert any("multi, b on d, 100 examples: recipe is better than sft: +0.5" in line for line in said.lines)
    assert any("direct, b on d, 100 examples: recipe cannot be told from sft" in line for line in said.lines)
    assert [table.columns[0] for table in said.tables] == ["base", "facts told"]
    assert said.pictures[0].figure.axes


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"direct": {"cluster": "fact"}}, "multi is left out: no evaluation asks directly for the facts"),
        ({"direct": {"cluster": "fact", "new_facts": "straight"}}, "direct is left out: its metadata needs new_facts"),
        ({"multi": {**METADATA["multi"], "told": "prompt"}}, "multi is left out: no evaluation asks directly"),
        ({"direct": {}, "multi": {}}, "No two evaluations ask for the same new facts"),
    ],
)
def test_what_cannot_be_paired_is_absent_with_its_reason(tmp_path, metadata, why):
    told = Told(tmp_path, [f"f{i}" for i in range(20)], METADATA | metadata)
    simulated(told, "sft", 0.8, 0.5)
    said = section(told.evidence())
    assert why in said.absent
    assert not said.lines


def test_a_fact_asked_for_twice_is_left_out(tmp_path):
    told = Told(tmp_path, ["f0", *[f"f{i}" for i in range(19)]])
    simulated(told, "sft", 0.8, 0.5)
    assert "direct asks for a fact more than once" in section(told.evidence()).absent


@pytest.mark.full
def test_telling_teaches_facts_and_reasoning_must_have_come_before(tmp_path):
    """The shipped sweep at its largest size, five seeds of each: the truth of the pocket world, with intervals."""
    given = ["size=256", f"run.root={tmp_path}", "wandb.mode=disabled", "run.workers=1"]
    _, cells = sweep_cells("new_knowledge", given)
    assert [outcome.error for outcome in run_cells(cells, workers=1, threads=1)] == [""] * len(cells)
    truth_is_found(tmp_path / "new_knowledge")


def truth_is_found(root: Path) -> None:
    """Of the pocket world, in scores with 256 facts told and their intervals."""
    frame = load(root)
    said = section(Evidence(root, frame, load_items(root, frame)))
    found = said.data["new-knowledge"]
    found["way"] = found["variant"].str.partition("(")[0].where(found["method"] == "recipe", "alone")
    found = found.set_index(["way", "size", "score"])
    low, high = found["low"], found["high"]
    for way in ("alone", "recall", "reasoning"):
        assert max(high[way, 0, "direct"], high[way, 0, "multihop"]) < 0.1  # nobody told the base
    told = frame[frame.headline & (frame["task"] == "pocket_news_direct") & (frame["size"] == 256)]
    assert told.score.min() > 2 * high["alone", 0, "direct"]  # taught by telling in every run, whatever came before
    assert min(low["recall", 256, "direct"], low["reasoning", 256, "direct"]) > 0.3
    for way in ("alone", "recall"):
        assert high[way, 256, "multihop"] < 0.1  # which is not enough to put them together with others
        assert high[way, 256, "known"] < 0.15
    assert min(low["reasoning", 256, "known"], low["reasoning", 256, "multihop"]) > 0.3  # guessing has 0.05
    better = [line for line in said.lines if "multihop" in line and "recipe reasoning+news is better than" in line]
    assert len(better) == 2  # than the news alone, and than the control

"""pass@k: the estimator, what is drawn, how it is scored, and that a prompt asked many times is read once."""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance

from harness import drawing, evaluate, samples, store, tasks
from harness.base import LoadedBase
from harness.cell import Adapted, Run, Task
from harness.compose import compose_cell
from harness.drawing import Streams, draw
from harness.errors import HarnessError
from harness.items import load_items
from harness.run import run
from tests.conftest import ITEMS
from tests.test_sharing import asker, base_of, llama, stock, text


@pytest.fixture(scope="module")
def small(tokenizer: Any) -> LoadedBase:
    return base_of(llama(vocab_size=len(tokenizer)), tokenizer)


HOT = {"do_sample": True, "temperature": 3.0}  # hot enough that a random model says many things


# --- the estimator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 8))
def test_the_estimate_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one(n: int) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        chosen = list(itertools.combinations([1] * right + [0] * (n - right), k))
        assert samples.pass_at_k(n, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-12)


def test_the_estimate_is_the_closed_form_also_for_many_answers() -> None:
    for n, right, k in ((1024, 1, 512), (1024, 3, 7), (1024, 600, 400), (128, 2, 128), (1000, 0, 1000)):
        exact = 1 - math.comb(n - right, k) / math.comb(n, k)
        assert samples.pass_at_k(n, right, k) == pytest.approx(exact, abs=1e-12)


def test_the_estimate_is_unbiased() -> None:
    """Its mean over all outcomes of n answers, each right with chance p, is 1 - (1-p)^k, exactly."""
    n, p = 9, 0.23
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for k in range(1, n + 1):
        assert chances @ samples.curve(n)[:, k - 1] == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
        plain = 1 - (1 - np.arange(n + 1) / n) ** k  # the estimate that Chen et al. warn of
        assert k == 1 or chances @ plain < 1 - (1 - p) ** k - 1e-3


@pytest.mark.parametrize("k", [0, 5, -1])
def test_more_tries_than_answers_are_refused(k: int) -> None:
    with pytest.raises(HarnessError, match=f"pass@{k} cannot be told from 4 answers"):
        samples.pass_at_k(4, 2, k)


# --- drawing --------------------------------------------------------------------------------------------------------


def far(counts: np.ndarray, chances: np.ndarray) -> bool:
    """Whether counts are further from what is expected than four standard deviations of chi squared."""
    kept = chances > 0
    assert not counts[~kept].any(), "a token outside of the nucleus was drawn"
    expected = chances[kept] * counts.sum()
    spread, freedom = float(((counts[kept] - expected) ** 2 / expected).sum()), int(kept.sum()) - 1
    return spread > freedom + 4 * math.sqrt(2 * max(freedom, 1)) + 4


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
@pytest.mark.parametrize("likeliest", [3, 256])
def test_tokens_have_the_chances_of_transformers_own_nucleus(top_p: float, likeliest: int) -> None:
    """Also where it is wider than the tokens that are looked at first."""
    scores = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 1.5
    kept = transformers.TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), scores[None])[0]
    uniform = np.random.default_rng(0).random(20_000)
    drawn = draw(scores.expand(20_000, -1), uniform, top_p, likeliest)
    assert not far(np.bincount(drawn, minlength=40), kept.double().softmax(-1).numpy())


def test_the_ends_of_the_unit_interval_are_tokens_that_can_be_drawn() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    for top_p in (1.0, 0.9):
        ends = draw(scores.expand(2, -1), np.array([0.0, np.nextafter(1.0, 0.0)]), top_p).tolist()
        assert set(ends) == {1, 2}


def test_a_row_has_numbers_of_its_own_whatever_is_beside_it() -> None:
    prompts = [[5, 6], [7], [5, 6], [5, 6, 7]]
    whole = Streams(prompts, 3)
    numbers = {(row, t): float(whole.at([(row, t)])[0]) for row in range(4) for t in (0, 1, 255, 256, 1000)}
    assert len(set(numbers.values())) == len(numbers)
    fewer = Streams([[5, 6], [5, 6]], 3)  # the first and the third of them
    assert fewer.at([(1, 256), (0, 0)]).tolist() == [numbers[2, 256], numbers[0, 0]]
    assert Streams(prompts, 4).at([(0, 0)])[0] != numbers[0, 0]
    many = whole.at([(0, t) for t in range(drawing.BLOCK * 8)])
    assert abs(many.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.08


def requests(prompts: list[str], settings: dict[str, Any], times: int) -> list[Any]:
    asked = {"until": [], "max_gen_toks": 6, "top_k": 0} | settings
    made = [Instance("generate_until", {}, (p, dict(asked)), i) for i, p in enumerate(prompts)]
    return [request for request in made for _ in range(times)]


PROMPTS = [text(18, 1), text(30, 2), text(3, 3), text(18, 1) + " red"]


def test_answers_do_not_depend_on_what_else_is_asked(small: LoadedBase) -> None:
    torch.manual_seed(0)
    together = asker(small).generate_until(requests(PROMPTS, HOT, 8))
    assert len(set(together)) > 16
    for cache, times, which in ((0.0, 8, [0, 1, 2, 3]), (4.0, 8, [2]), (4.0, 3, [3, 1])):
        torch.manual_seed(0)
        alone = asker(small, kv_cache_gib=cache).generate_until(requests([PROMPTS[i] for i in which], HOT, times))
        assert alone == [answer for i in which for answer in together[8 * i : 8 * i + times]]


def test_samples_at_hardly_any_temperature_are_the_greedy_answer(small: LoadedBase) -> None:
    cold = asker(small).generate_until(requests(PROMPTS, {"do_sample": True, "temperature": 1e-4, "top_p": 0.95}, 5))
    greedy = stock(small).generate_until(requests(PROMPTS, {"do_sample": False}, 1), disable_tqdm=True)
    assert cold == [answer for answer in greedy for _ in range(5)]
    assert len(set(cold)) == len(PROMPTS)


@pytest.mark.parametrize("settings", [{"temperature": 1.5, "top_p": 0.7}, {"temperature": 1.0, "top_p": 1.0}])
def test_many_samples_of_one_prompt_have_the_distribution_of_plain_generate(
    small: LoadedBase,
    settings: dict[str, Any],
) -> None:
    """Of two tokens after a prompt that is read once for all, against transformers' own sampling of it."""
    settings = {"do_sample": True, "max_gen_toks": 2} | settings
    asked = requests(PROMPTS[:2], settings, 400)
    ours = asker(small).generate_until(asked)
    theirs = stock(small, batch=400).generate_until(asked, disable_tqdm=True)
    for start in (0, 400):
        mine, others = (Counter(x[start : start + 400]) for x in (ours, theirs))
        assert len(mine) > 20
        spread = sum((mine[k] - others[k]) ** 2 / (mine[k] + others[k]) for k in mine | others)
        freedom = len(mine | others) - 1
        assert spread < freedom + 4 * (2 * freedom) ** 0.5 + 4


@pytest.mark.parametrize("settings", [{"temperature": 1.5, "top_p": 0.7}, {"temperature": 3.0, "top_p": 1.0}])
def test_each_token_is_the_one_at_its_random_number_in_transformers_own_distribution(
    small: LoadedBase,
    settings: dict[str, Any],
) -> None:
    """Of every token of answers to prompts of several lengths at once, each read again by itself."""
    lm, width, room = asker(small), max(len(small.tokenizer(p).input_ids) for p in PROMPTS), 12
    prompts = [small.tokenizer(p).input_ids for p in PROMPTS for _ in range(12)]
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    torch.manual_seed(7)
    said = lm._generate(padded, width + room, stop=[], attention_mask=mask, do_sample=True, top_k=0, **settings)
    numbers, narrow = Streams(prompts, 7), transformers.TopPLogitsWarper(settings["top_p"])
    looked = 0
    for row, prompt in enumerate(prompts):
        answer = said[row, width:].tolist()
        end = small.tokenizer.eos_token_id
        answer = answer[: answer.index(end) + 1] if end in answer else answer
        with torch.no_grad():
            read = small.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chances = narrow(torch.tensor([prompt]), read.double() / settings["temperature"]).softmax(-1)
        order = chances.sort(descending=True, stable=True).indices if settings["top_p"] < 1 else None
        for t, token in enumerate(answer):
            places = order[t] if order is not None else torch.arange(chances.shape[1])
            place = int((places == token).nonzero())
            reached = chances[t, places].cumsum(0)
            low, high = float(reached[place] - chances[t, token]), float(reached[place])
            assert low - 1e-5 < numbers.at([(row, t)])[0] < high + 1e-5
            looked += 1
    assert looked > 300


# --- scored by lm-eval's own task -----------------------------------------------------------------------------------


@pytest.fixture
def sampled(generation_task: Callable[..., Task]) -> Callable[..., Task]:
    """``sampled(n, **fields)``: the task of the other tests with n answers drawn for each prompt."""

    def make(n: int, **fields: Any) -> Task:
        return generation_task(**{"samples": n, "generation": {**HOT, "max_gen_toks": 2}} | fields)

    return make


def test_every_answer_is_extracted_and_scored_as_if_it_were_the_only_one(
    loaded: LoadedBase, sampled: Callable[..., Task]
) -> None:
    """Against stock lm-eval's own filters and metric on each answer, and the estimate by choices of k."""
    n = 6
    asked = sampled(n, items=[{**item, "answer": "e"} for item in ITEMS])
    asked.generation["max_gen_toks"] = 8
    asked.task["filter_list"][1]["filter"][0]["regex_pattern"] = "(e)"  # some answers hold this letter
    result = evaluate.evaluate(loaded, Adapted(loaded.model), "often", asked, Run(device="cpu"))
    assert len({answer for row in result["samples"] for answer in row["answers"][0]}) > 12
    single = tasks.build("often", dataclasses.replace(asked, samples=1, generation={}))["tasks"]["often"]
    passed = Counter[str]()
    for row in result["samples"]:
        chain = next(f for f in single._filters if f.name == row["filter"])
        verdicts = []
        for answer in row["answers"][0]:
            alone = Instance("generate_until", {}, ("", {}), 0, resps=[answer])
            chain.apply([alone])
            verdicts.append(single.process_results({"answer": "e"}, [alone.filtered_resps[chain.name]])["exact_match"])
        assert len(verdicts) == len(row["extracted"][0]) == n
        passed[row["filter"]] += int(sum(verdicts))
        for k in (1, 2, 4, 6):
            chosen = list(itertools.combinations(verdicts, k))
            assert row[f"pass@{k}"] == pytest.approx(sum(map(any, chosen)) / len(chosen))
    assert passed["flexible"] > 0
    assert {(s["metric"], s["filter"]) for s in result["scores"]} == {
        (f"pass@{k}", f) for k in (1, 2, 4, 6) for f in ("strict", "flexible")
    }
    (lead,) = [s for s in result["scores"] if s["headline"]]
    assert (lead["metric"], lead["filter"]) == ("pass@1", "strict")
    for score in result["scores"]:
        values = [row[score["metric"]] for row in result["samples"] if row["filter"] == score["filter"]]
        assert score["score"] == pytest.approx(np.mean(values))
        assert score["stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)


def test_a_cell_keeps_all_answers_and_its_items_are_loaded(make_cell: Callable[..., Any], sampled: Any) -> None:
    cell = make_cell("base", evals={"often": sampled(3, headline="pass@2/flexible")})
    folder = run(cell)
    frame = store.load(Path(cell.run.root))
    assert set(frame.metric) == {"pass@1", "pass@2", "pass@3"}
    assert frame[frame.headline][["metric", "filter"]].to_numpy().tolist() == [["pass@2", "flexible"]]
    items = load_items(cell.run.root, frame)
    (path,) = frame.path.unique()
    for metric, filter_ in frame[["metric", "filter"]].drop_duplicates().itertuples(index=False):
        assert items.scores[path, "often", metric, filter_].shape == (len(ITEMS),)
    (kept,) = folder.glob("evals/often/*.jsonl")
    assert all(len(json.loads(line)["answers"][0]) == 3 for line in kept.read_text().splitlines())


def test_samples_are_part_of_the_identity_where_there_are_several(sampled: Callable[..., Task]) -> None:
    def mark(**fields: Any) -> Any:
        return evaluate.identity("often", sampled(**fields))

    assert "samples" not in mark(n=1)
    several = [mark(n=4), mark(n=8), mark(n=4, headline="pass@3/strict")]
    assert all("samples" in m for m in several)
    assert len({json.dumps(m, sort_keys=True) for m in several}) == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"generation": {"max_gen_toks": 2}}, "the same answer over and over"),
        ({"generation": {"do_sample": True}}, "the same answer over and over"),
        ({"generation": {"do_sample": True, "temperature": 0.0}}, "the same answer over and over"),
        ({"headline": "pass@8/strict"}, "needs at least 8 answers"),
        ({"headline": "acc/strict"}, "acc is no metric of the task"),
        ({"headline": "exact_match/nothing"}, "none of what the task gives"),
        ({"n": 0}, "asks for no answer"),
        ({"probe": {"_target_": "harness.probes.TokenShift"}}, "leave it out beside a probe"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_runs(
    sampled: Callable[..., Task], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(HarnessError, match=said):
        evaluate.check("often", sampled(**{"n": 4} | fields))


def test_choices_are_not_sampled(choice_task: Callable[..., Task]) -> None:
    with pytest.raises(HarnessError, match="in which the model writes"):
        evaluate.check("choice", choice_task(samples=4))


def test_a_metric_that_is_not_right_or_wrong_is_refused(loaded: LoadedBase, sampled: Callable[..., Task]) -> None:
    asked = sampled(2, headline=None)
    asked.task["metric_list"] = [{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}]
    with pytest.raises(HarnessError, match="says right or wrong"):
        evaluate.evaluate(loaded, Adapted(loaded.model), "often", asked, Run(device="cpu"))


def test_the_plan_counts_a_prompt_once_and_its_answers_all(sampled: Callable[..., Task]) -> None:
    one, many = (evaluate.extent("often", sampled(n)) for n in (1, 32))
    assert many.characters == one.characters
    assert many.answer_tokens == 32 * one.answer_tokens == 32 * 2


@pytest.mark.parametrize(
    ("plain", "n"),
    [("math500", 128), ("gsm8k", 128), ("aime24", 1024), ("chain_sum", 16), ("pocket_facts", 16), ("pocket_rule", 16)],
)
def test_a_preset_asks_what_the_plain_task_asks(plain: str, n: int) -> None:
    """So that what the one says of an item can be set beside what the other does; and as Yue et al. drew."""
    evals = compose_cell(["base=pocket_s", "method=base", f"evals=[{plain},{plain}_passk]"]).evals
    one, many = evals[plain], evals[f"{plain}_passk"]
    alike = {"samples", "generation"}
    for field in dataclasses.fields(Task):
        assert field.name in alike or getattr(one, field.name) == getattr(many, field.name)
    assert many.samples == n
    assert many.generation["do_sample"]
    if not plain.startswith("pocket"):
        assert (many.generation["temperature"], many.generation["top_p"]) == (0.6, 0.95)
    if n >= 128:
        assert many.generation["max_gen_toks"] == 16384

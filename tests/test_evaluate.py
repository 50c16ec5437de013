"""Scores are lm-eval's own, of the model in question, asked the prompts that are shown."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from harness import base as bases
from harness import evaluate, lm, tasks
from harness.base import LoadedBase
from harness.cell import Adapted, Base, Message, Run, Task
from harness.errors import HarnessError
from harness.lm import Asker
from tests.conftest import CHATML, ITEMS, make_tokenizer, save_tiny, write_jsonl

Make = Callable[..., Task]
DEMONSTRATIONS: list[Message] = [
    {"role": "user", "content": "What is {{7*7}}? {% raw %}"},
    {"role": "assistant", "content": 'It\'s "{{ 49 }}" \\n {# so #}'},
    {"role": "user", "content": "What is one?"},
    {"role": "assistant", "content": "ten"},
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Task objects are cached by their identity, so a test must not find another's."""
    evaluate._loaded.clear()
    yield
    evaluate._loaded.clear()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> LoadedBase:
    """Another random model of the same shape."""
    folder = save_tiny(tmp_path_factory.mktemp("bases") / "other", tokenizer, seed=7)
    return bases.load(Base(name="other", path=str(folder), dtype="float32"), "cpu")


class Spy:
    """Keeps the text of every request that reaches the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, ...]] = []
        for method in ("generate_until", "loglikelihood"):
            monkeypatch.setattr(HFLM, method, self._wrap(getattr(HFLM, method)))

    def _wrap(self, real: Any) -> Any:
        def heard(lm: Any, requests: Any, **named: Any) -> Any:
            self.asked += [r.args for r in requests]
            return real(lm, requests, **named)

        return heard

    @property
    def prompts(self) -> list[str]:
        return [a[0] for a in self.asked]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def ask(
    loaded: LoadedBase, task: Task, demonstrations: list[Message] | None = None, batch: int = 2, backend: str = "shared"
) -> dict[str, Any]:
    run = Run(eval_batch_size=batch, eval_backend=backend)
    return evaluate.evaluate(loaded, Adapted(loaded.model, demonstrations or []), "mine", task, run)


def answers(result: dict[str, Any]) -> list[Any]:
    return [(s["item"], s["filter"], s["answers"]) for s in result["samples"]]


def stock(loaded: LoadedBase, task: Task) -> Any:
    """The same task by lm-eval alone."""
    from harness.data.rows import read_file

    rows = [row for _, row in read_file(Path(str(task.file)))]
    import datasets

    table = datasets.Dataset.from_list(rows)
    spec = {
        "fewshot_split": "test",
        **task.task,
        "task": "mine",
        "custom_dataset": lambda **_: {"test": table},
        "test_split": "test",
    }
    return lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=2,
            add_bos_token=False if task.chat else None,
        ),
        tasks=[spec],
        num_fewshot=task.num_fewshot,
        limit=task.limit,
        apply_chat_template=task.chat,
        fewshot_as_multiturn=task.chat,
        log_samples=True,
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
    )


def right_after_a_while(loaded: LoadedBase, items: list[dict[str, Any]], make: Make) -> list[dict[str, Any]]:
    """The items with answers of which the model gives some, so that scores are neither 0 nor 1."""
    given = ask(loaded, make(items))
    texts = {s["item"]: s["answers"][0][0] for s in given["samples"]}
    assert len(set(texts.values())) > 1
    evaluate._loaded.clear()
    return [{**item, "answer": texts[i] if i % 2 else "never"} for i, item in enumerate(items)]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("shots", [None, 2])
@pytest.mark.parametrize("kind", ["generation", "choice"])
@pytest.mark.parametrize("backend", ["shared", "hf"])
def test_scores_and_standard_errors_are_those_of_stock_lm_eval(
    loaded: LoadedBase, generation_task: Make, choice_task: Make, chat: bool, shots: int | None, kind: str, backend: str
) -> None:
    items = right_after_a_while(loaded, ITEMS, lambda i: generation_task(i, num_fewshot=shots, chat=chat))
    task = (generation_task if kind == "generation" else choice_task)(items, num_fewshot=shots, chat=chat)
    ours, theirs = ask(loaded, task, backend=backend), stock(loaded, task)
    values = theirs["results"]["mine"]
    assert len(ours["scores"]) == 2
    for score in ours["scores"]:
        label = f"{score['metric']},{score['filter']}"
        stderr = f"{score['metric']}_stderr,{score['filter']}"
        assert score["score"] == values[label]
        assert score["stderr"] == pytest.approx(values[stderr], abs=1e-12)
        assert score["n_items"] == 5
        assert score["higher_is_better"] is True
    if kind == "generation" and not shots:  # the shots hold the answers, which were changed after the asking
        strict = next(s for s in ours["scores"] if s["filter"] == "strict")
        assert strict["score"] == pytest.approx(2 / 5)
        assert strict["stderr"] == pytest.approx((2 / 5 * 3 / 5 / 4) ** 0.5)
    mine = {(s["item"], s["filter"]): s for s in ours["samples"]}
    for sample in theirs["samples"]["mine"]:
        found = mine[sample["doc_id"], sample["filter"]]
        assert found["prompt_hash"] == sample["prompt_hash"]
        assert found["item_hash"] == sample["doc_hash"]
        if kind == "generation" or backend == "hf":
            assert found["answers"] == sample["resps"]
            assert found["extracted"] == sample["filtered_resps"]
            continue
        for (mine_logprob, mine_greedy), (logprob, greedy) in zip(
            found["extracted"], sample["filtered_resps"], strict=True
        ):
            assert mine_logprob == pytest.approx(logprob, abs=1e-4)
            assert mine_greedy is greedy
    assert len(mine) == len(theirs["samples"]["mine"])


def test_both_filters_are_kept_for_every_item(loaded: LoadedBase, generation_task: Make) -> None:
    result = ask(loaded, generation_task())
    assert [(s["metric"], s["filter"], s["headline"]) for s in result["scores"]] == [
        ("exact_match", "strict", True),
        ("exact_match", "flexible", False),
    ]
    assert sorted((s["item"], s["filter"]) for s in result["samples"]) == sorted(
        (i, f) for i in range(5) for f in ("strict", "flexible")
    )
    assert {s["target"] for s in result["samples"]} == {item["answer"] for item in ITEMS}
    assert all(s["exact_match"] in (0.0, 1.0) and len(s["answers"]) == 1 for s in result["samples"])
    assert result["truncated_prompts"] == 0


def test_the_headline_is_the_tasks_and_must_exist(loaded: LoadedBase, choice_task: Make, generation_task: Make) -> None:
    first = ask(loaded, choice_task())["scores"]
    assert [(s["metric"], s["headline"]) for s in first] == [("acc", True), ("acc_norm", False)]
    with pytest.raises(HarnessError, match="headline='f1/strict' is none of"):
        ask(loaded, generation_task(headline="f1/strict"))


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_do_not_depend_on_the_batch(loaded: LoadedBase, generation_task: Make, batch: int) -> None:
    """Left padding must not be seen, nor must one row's end stop or stretch another's."""
    assert answers(ask(loaded, generation_task(max_gen_toks=24), batch=batch)) == answers(
        ask(loaded, generation_task(max_gen_toks=24), batch=5)
    )


def test_two_models_in_a_row_get_their_own_scores(
    loaded: LoadedBase, other: LoadedBase, generation_task: Make, choice_task: Make
) -> None:
    """Nothing of the first model's answers is left in the task objects that are kept between calls."""
    for task in (generation_task(), choice_task()):
        one, two, again = ask(loaded, task), ask(other, task), ask(loaded, task)
        assert answers(one) != answers(two)
        assert answers(one) == answers(again)
        assert one["scores"] == again["scores"]
        evaluate._loaded.clear()
        assert answers(ask(other, task)) == answers(two)


def test_no_response_cache_is_used() -> None:
    """lm-eval's cache is keyed by the prompt and not by the model's weights."""
    for name in ("evaluate.py", "tasks.py", "lm.py"):
        source = (Path(evaluate.__file__).parent / name).read_text()
        for word in ("use_cache", "cache_requests", "CachingLM", "cache_hook"):
            assert word not in source


@pytest.mark.parametrize("chat", [True, False])
def test_shots_are_the_same_each_time_and_never_the_question_itself(
    loaded: LoadedBase, generation_task: Make, spy: Spy, chat: bool
) -> None:
    """The few-shot generator goes on from item to item, so it must start anew with each call."""
    task = generation_task(num_fewshot=2, chat=chat)
    ask(loaded, task)
    first, spy.asked = spy.prompts, []
    ask(loaded, generation_task(num_fewshot=0, chat=chat))  # a cell with the same items in between
    without, spy.asked = spy.prompts, []
    ask(loaded, task)
    assert spy.prompts == first
    for item, prompt, bare in zip(ITEMS, first, without, strict=True):
        assert prompt.count(str(item["question"])) == bare.count(str(item["question"])) == 1
        assert sum(str(i["question"]) in prompt for i in ITEMS) == 3


def test_demonstrations_stand_before_the_question_as_turns(loaded: LoadedBase, generation_task: Make, spy: Spy) -> None:
    task = generation_task(limit=1)
    ask(loaded, task, DEMONSTRATIONS)
    question = {"role": "user", "content": ITEMS[0]["question"]}
    expected = loaded.tokenizer.apply_chat_template(
        [*DEMONSTRATIONS, question], tokenize=False, add_generation_prompt=True
    )
    assert spy.prompts == [expected]


@pytest.mark.parametrize("described", [None, "Be brief. {{question}}\n\n"])
def test_demonstrations_in_plain_text_are_never_rendered_as_templates(
    loaded: LoadedBase, generation_task: Make, choice_task: Make, spy: Spy, described: str | None
) -> None:
    """They come in by the task's description, which is a Jinja template; what they say must come out as it is."""
    for make in (generation_task, choice_task):
        task = make(chat=False, limit=1)
        task.task["description"] = described
        ask(loaded, task, DEMONSTRATIONS)
        opening = f"Be brief. {ITEMS[0]['question']}\n\n" if described else ""
        assert set(spy.prompts) == {
            opening
            + 'What is {{7*7}}? {% raw %} It\'s "{{ 49 }}" \\n {# so #}\n\nWhat is one? ten\n\n'
            + str(ITEMS[0]["question"])
        }
        spy.asked = []
        ask(loaded, task)  # and the next cell does not find them
        assert set(spy.prompts) == {opening + str(ITEMS[0]["question"])}
        spy.asked = []


def test_a_setting_of_the_tasks_generation_is_replaced_and_named_in_the_identity(
    loaded: LoadedBase, generation_task: Make, choice_task: Make, spy: Spy
) -> None:
    task = generation_task(limit=1, max_gen_toks=8)
    longer = dataclasses.replace(task, generation={"max_gen_toks": 3})
    ask(loaded, task)
    ask(loaded, longer)
    assert [settings["max_gen_toks"] for _, settings in spy.asked] == [8, 3]
    assert [settings["until"] for _, settings in spy.asked] == [["\n\n"]] * 2
    assert evaluate.extent("mine", longer).answer_tokens == 3
    assert evaluate.identity("mine", longer) == {**evaluate.identity("mine", task), "generation": {"max_gen_toks": 3}}
    with pytest.raises(HarnessError, match=r"evals\.mine\.generation is for tasks in which the model writes"):
        evaluate.check("mine", choice_task(generation={"max_gen_toks": 3}))


@pytest.mark.full
def test_every_shipped_task_of_lm_evals_is_one_of_its_own() -> None:
    from harness.compose import compose_cell, shipped

    named = {}
    for path in sorted((shipped("conf") / "evals").glob("*.yaml")):
        for name, task in compose_cell([f"evals={path.stem}"]).evals.items():
            if isinstance(task.task, str):
                named[name] = task.task
    assert len(named) >= 8
    known = tasks._all_tasks().all_tasks
    assert not {name: task for name, task in named.items() if task not in known}


def test_a_tasks_description_is_the_system_turn_and_stays_first(
    loaded: LoadedBase, generation_task: Make, spy: Spy
) -> None:
    task = generation_task(limit=1)
    task.task["description"] = "Be brief."
    ask(loaded, task, DEMONSTRATIONS)
    assert spy.prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is {{7*7}}?")


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("demonstrations", [[], DEMONSTRATIONS])
def test_the_prompt_that_is_shown_is_the_prompt_that_is_sent(
    loaded: LoadedBase, generation_task: Make, spy: Spy, chat: bool, shots: int, demonstrations: list[Message]
) -> None:
    task = generation_task(chat=chat, num_fewshot=shots)
    shown = evaluate.first_prompt(loaded.tokenizer, demonstrations, "mine", task)
    result = ask(loaded, task, demonstrations)
    assert spy.prompts[0] == shown
    hashes = {s["prompt_hash"] for s in result["samples"] if s["item"] == 0}
    assert hashes == {hashlib.sha256(shown.encode()).hexdigest()}
    assert evaluate.first_prompt(loaded.tokenizer, demonstrations, "mine", task) == shown


def test_a_prompt_with_the_beginning_of_the_answer_is_shown_as_it_is_sent(
    loaded: LoadedBase, generation_task: Make, spy: Spy
) -> None:
    task = generation_task(limit=1)
    task.task["gen_prefix"] = "The answer is"
    shown = evaluate.first_prompt(loaded.tokenizer, [], "mine", task)
    ask(loaded, task)
    assert spy.prompts == [shown]
    assert shown.endswith("<|im_start|>assistant\nThe answer is")


def test_limit_takes_the_first_items_and_may_not_exceed_them(loaded: LoadedBase, generation_task: Make) -> None:
    result = ask(loaded, generation_task(limit=2))
    assert {s["item"] for s in result["samples"]} == {0, 1}
    assert {s["n_items"] for s in result["scores"]} == {2}
    with pytest.raises(HarnessError, match="limit=6 is more than the 5 items"):
        evaluate.check("mine", generation_task(limit=6))


def test_identity_follows_what_changes_a_score_and_nothing_else(generation_task: Make, tmp_path: Path) -> None:
    task = generation_task()
    before = evaluate.identity("mine", task)
    changes: dict[str, Any] = {"num_fewshot": 1, "limit": 2, "chat": False}
    for field, value in changes.items():
        assert evaluate.identity("mine", dataclasses.replace(task, **{field: value})) != before
    asked = {**task.task, "doc_to_text": "Q: {{question}}"}
    assert evaluate.identity("mine", dataclasses.replace(task, task=asked)) != before
    moved = Path(shutil.copy(str(task.file), tmp_path / "moved.jsonl"))
    assert evaluate.identity("mine", dataclasses.replace(task, file=str(moved))) == before
    assert evaluate.identity("mine", dataclasses.replace(task, headline=None)) == before
    write_jsonl(moved, ITEMS[:4])
    assert evaluate.identity("mine", dataclasses.replace(task, file=str(moved))) != before
    assert before["lm_eval"] == lm_eval.__version__


def test_changed_items_under_the_same_name_are_read_again(loaded: LoadedBase, generation_task: Make) -> None:
    assert ask(loaded, generation_task())["scores"][0]["n_items"] == 5
    assert ask(loaded, generation_task(ITEMS[:3]))["scores"][0]["n_items"] == 3


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (Task(task="no_such_task_anywhere"), "is not an lm-eval task"),
        (Task(task={"output_type": "generate_until"}, file="nowhere.jsonl"), "is not a file"),
    ],
)
def test_a_task_that_cannot_be_is_refused_before_anything_trains(
    task: Task, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_all_tasks", lambda: lm_eval.tasks.TaskManager(include_defaults=False))
    with pytest.raises(HarnessError, match=complaint):
        evaluate.check("mine", task)


def test_a_group_gives_one_score_over_its_members_and_a_tag_is_refused(
    loaded: LoadedBase, generation_task: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval names a group's aggregate by the group, whatever the evaluation is called here; a tag has none."""
    import yaml

    folder = tmp_path / "tasks"
    folder.mkdir()
    file = str(generation_task().file)
    for part in ("part1", "part2"):
        place = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}, "test_split": "test"}
        written = {**generation_task().task, **place, "task": part, "tag": "a_tag"}
        (folder / f"{part}.yaml").write_text(yaml.safe_dump(written))
    metric = {"metric": "exact_match", "aggregation": "mean", "weight_by_size": True, "filter_list": ["strict"]}
    group = {"group": "a_group", "task": ["part1", "part2"], "aggregate_metric_list": [metric]}
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(tasks, "_all_tasks", lambda: manager)

    result = evaluate.evaluate(loaded, Adapted(loaded.model), "mine", Task(task="a_group", num_fewshot=0), Run())
    (score,) = result["scores"]
    assert (score["metric"], score["filter"], score["n_items"]) == ("exact_match", "strict", 10)
    assert {s["task"] for s in result["samples"]} == {"part1", "part2"}
    single = evaluate.evaluate(loaded, Adapted(loaded.model), "mine", Task(task="part1"), Run())
    assert [(s["filter"], s["n_items"]) for s in single["scores"]] == [("strict", 5), ("flexible", 5)]
    with pytest.raises(HarnessError, match="is a tag of several"):
        evaluate.evaluate(loaded, Adapted(loaded.model), "mine", Task(task="a_tag"), Run())


def test_demonstrations_that_do_not_fit_are_refused_and_other_long_prompts_counted(
    loaded: LoadedBase, generation_task: Make, choice_task: Make
) -> None:
    """lm-eval cuts the beginning of long prompts without a word: a size of 400 would really be one of 20."""
    many = DEMONSTRATIONS * 40
    long = [{**ITEMS[0], "question": "What is the sky? " * 200}, *ITEMS[1:]]
    for make in (generation_task, choice_task):
        for chat in (True, False):
            with pytest.raises(HarnessError, match=r"160 turns of demonstrations .* do not fit .* 512 tokens"):
                ask(loaded, make(chat=chat), many)
        result = ask(loaded, make(long))
        assert result["truncated_prompts"] == (1 if make is generation_task else 2)  # one for each choice
        assert ask(loaded, make())["truncated_prompts"] == 0


# --- where an answer ends ------------------------------------------------------------------------------------------


def say(loaded: LoadedBase, scripts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model say the script of each question, token by token, and x for ever after; whatever its weights."""
    tokenizer, forward = loaded.tokenizer, type(loaded.model).forward
    ids = {question: tokenizer(text, add_special_tokens=False)["input_ids"] for question, text in scripts.items()}
    state: dict[str, Any] = {}
    x, decode = tokenizer.convert_tokens_to_ids("x"), lm.generate

    def by_rows(model: Any, prompts: list[list[int]], *, pick: Any, **named: Any) -> Any:
        def picked(rows: Any, so_far: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            for row, scores in zip(so_far.tolist(), logits, strict=True):
                text = tokenizer.decode(row)
                said = next(said for question, said in ids.items() if question in text)
                start = text.rindex("assistant\n") + len("assistant\n")
                done = len(tokenizer(text[start:], add_special_tokens=False)["input_ids"])
                scores[:] = -100.0
                scores[said[done] if done < len(said) else x] = 100.0
            return pick(rows, so_far, logits)

        return decode(model, prompts, pick=picked, **named)

    monkeypatch.setattr(lm, "generate", by_rows)

    def scripted(model: Any, input_ids: Any = None, **named: Any) -> Any:
        out = forward(model, input_ids=input_ids, **named)
        if isinstance(named.get("logits_to_keep"), torch.Tensor):  # by rows
            return out
        if input_ids.shape[1] > 1:  # a new batch of prompts
            texts = tokenizer.batch_decode(input_ids)
            state["rows"] = [next(said for question, said in ids.items() if question in text) for text in texts]
            state["step"] = 0
        out.logits[:, -1] = -100.0
        for row, said in enumerate(state["rows"]):
            token = said[state["step"]] if state["step"] < len(said) else tokenizer.convert_tokens_to_ids("x")
            out.logits[row, -1, token] = 100.0
        state["step"] += 1
        return out

    monkeypatch.setattr(type(loaded.model), "forward", scripted)


ENDS = {
    # Llama 3: the end of turn is a special token beside eos
    "special": ("<|eot|>", CHATML.replace("<|im_end|>", "<|eot|>"), ("<|eot|>",), ()),
    # an end of turn that decoding keeps, as an added token that is not special
    "kept": ("<|eot|>", CHATML.replace("<|im_end|>", "<|eot|>"), (), ("<|eot|>",)),
    # an end of turn that is ordinary text, several tokens long
    "text": ("## end ##", CHATML.replace("<|im_end|>", "## end ##"), (), ()),
}


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("backend", ["shared", "hf"])
def test_an_answer_ends_with_its_turn_also_where_that_is_not_eos(
    kind: str, backend: str, tmp_path: Path, generation_task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch: a short answer, a long one, one that ends by eos and one that never ends."""
    end, template, special, kept = ENDS[kind]
    tokenizer = make_tokenizer(chat_template=template, eos_token="<|end_of_text|>", special=special)
    tokenizer.add_tokens(list(kept))
    loaded = bases.load(Base(name="x", path=str(save_tiny(tmp_path / "base", tokenizer)), dtype="float32"), "cpu")
    assert len(loaded.tokenizer(end, add_special_tokens=False)["input_ids"]) == (1 if kind != "text" else 8)
    scripts = {
        "What is the capital of France?": f"Paris{end}\n<|im_start|>user\n",
        "What is the colour of the sky?": f"It is blue and red and green.{end}xx",
        "What is one and two?": "three<|end_of_text|>xx",
        "Is five red? Yes or No?": "No No No No No No No No No No No No No No No No",
    }
    assert loaded.attends_by_rows  # tried on the model itself, before it only says what it is told
    say(loaded, scripts, monkeypatch)
    result = ask(loaded, generation_task(ITEMS[:4], max_gen_toks=24), batch=4, backend=backend)
    texts = [s["answers"][0][0] for s in result["samples"] if s["filter"] == "strict"]
    assert texts[:3] == ["Paris", "It is blue and red and green.", "three"]
    assert texts[3].startswith("No No No No No No")
    assert [s["exact_match"] for s in result["samples"] if s["filter"] == "strict"] == [1.0, 0.0, 1.0, 0.0]


def test_generation_stops_when_all_turns_have_ended_by_lm_evals_hf(
    tmp_path: Path, generation_task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the end of turn is text: a tuned model would otherwise run to the limit on every answer."""
    for kind, (end, template, special, kept) in ENDS.items():
        tokenizer = make_tokenizer(chat_template=template, eos_token="<|end_of_text|>", special=special)
        tokenizer.add_tokens(list(kept))
        loaded = bases.load(Base(name=kind, path=str(save_tiny(tmp_path / kind, tokenizer)), dtype="float32"), "cpu")
        with monkeypatch.context() as patch:
            say(loaded, {str(i["question"]): f"Paris{end}" for i in ITEMS}, patch)
            lengths: list[int] = []
            generate = Asker._model_generate

            def measured(lm: Any, context: Any, *a: Any, real: Any = generate, to: Any = lengths, **k: Any) -> Any:
                out = real(lm, context, *a, **k)
                to.append(out.shape[1] - context.shape[1])
                return out

            patch.setattr(Asker, "_model_generate", measured)
            ask(loaded, generation_task(max_gen_toks=200), batch=5, backend="hf")
        assert max(lengths) < 16, kind


@pytest.mark.parametrize("kind", ENDS)
def test_a_row_stops_when_its_turn_has_ended(
    kind: str, tmp_path: Path, generation_task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, template, special, kept = ENDS[kind]
    tokenizer = make_tokenizer(chat_template=template, eos_token="<|end_of_text|>", special=special)
    tokenizer.add_tokens(list(kept))
    loaded = bases.load(Base(name=kind, path=str(save_tiny(tmp_path / kind, tokenizer)), dtype="float32"), "cpu")
    assert loaded.attends_by_rows
    say(loaded, {str(i["question"]): f"Paris{end}" for i in ITEMS}, monkeypatch)
    decode, said = lm.generate, []
    monkeypatch.setattr(lm, "generate", lambda *a, **k: said.extend(decode(*a, **k)) or said)
    ask(loaded, generation_task(max_gen_toks=200))
    assert len(said) == 5
    assert {tokenizer.decode(tokens) for tokens in said} == {f"Paris{end}"}

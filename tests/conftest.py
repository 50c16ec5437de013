"""Shared fixtures: a tiny random Llama with a chat tokenizer, files of rows, tasks and cells over them. No network."""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Set before anything imports datasets or huggingface_hub, which read the environment once.
_SCRATCH = tempfile.TemporaryDirectory(prefix="harness-tests-")
os.environ |= {
    "HARNESS_CACHE": f"{_SCRATCH.name}/cache",
    "HF_HOME": f"{_SCRATCH.name}/hf",
    "HF_DATASETS_CACHE": f"{_SCRATCH.name}/datasets",
    "HF_HUB_CACHE": f"{_SCRATCH.name}/hub",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "WANDB_DIR": _SCRATCH.name,
}
# Pocket bases take a minute each. The processes of pytest-xdist inherit the first one's folder and share them; a folder
# named here beforehand outlives the run.
_POCKET = Path(os.environ.setdefault("HARNESS_TEST_POCKET", f"{_SCRATCH.name}/pocket"))
_POCKET.mkdir(parents=True, exist_ok=True)
Path(_SCRATCH.name, "cache").mkdir()
Path(_SCRATCH.name, "cache", "pocket").symlink_to(_POCKET.absolute())

import pytest  # noqa: E402
import torch  # noqa: E402

from harness import base as bases  # noqa: E402
from harness import hub, preempt  # noqa: E402
from harness.cell import Attempt, Base, Cell, Data, Form, OnStep, Run, Source, Task, Turn, Wandb  # noqa: E402

torch.set_num_threads(1)
pytest_plugins = ["tests.clusters"]

LONG = (
    "test_pocket_truth.py",
    "test_instruments_truth.py",
    "test_search.py",
)  # minutes each; begun last, they would be waited for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the tokenizer is trained on: words of the tests become single tokens, all other text falls to bytes.
CORPUS = [
    "user\nassistant\nsystem\n",
    "What is the capital of France? The capital of France is Paris.",
    "What is the colour of the sky? The colour of the sky is blue.",
    "Question: Answer: Yes. No. red green blue one two three four five six seven eight nine ten",
]


def make_tokenizer(*, special: tuple[str, ...] = (), **given: Any) -> Any:
    """A byte-level BPE chat tokenizer. It adds BOS by itself when asked for special tokens; its template writes none.

    `given` replaces `bos_token`, `eos_token`, `pad_token` or `chat_template`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": CHATML} | given
    tokens = [names["bos_token"], names["pad_token"], "<|im_start|>", names["eos_token"], *special]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(dict.fromkeys(tokens)), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    bos = names["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def save_tiny(folder: Path, tokenizer: Any, seed: int = 0) -> Path:
    """A model folder: a tiny random Llama (grouped-query attention, float32) beside `tokenizer`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _alone() -> Any:
    """Each test starts with one torch thread and no resident base, and leaves signals to those who had them."""
    torch.set_num_threads(1)
    bases._resident.clear()
    hub.commit_of.cache_clear()
    handlers = {number: signal.getsignal(number) for number in preempt.SIGNALS}
    yield
    bases._resident.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bases") / "tiny", tokenizer)


@pytest.fixture
def tiny_base(tiny_folder: Path) -> Base:
    return Base(name="tiny", path=str(tiny_folder), dtype="float32")


@pytest.fixture
def loaded(tiny_base: Base) -> bases.LoadedBase:
    return bases.load(tiny_base, "cpu")


def attempt(folder: Path, on_step: OnStep = lambda *_: None) -> Attempt:
    """One try at a cell whose files go to `folder`."""
    return Attempt(folder, folder / "checkpoints", on_step)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, str]]:
    """`count` distinct rows of prompt and completion."""
    return [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}."} for i in range(count)]


def pair_form() -> Form:
    return Form(turns=[Turn("user", "{{ prompt }}"), Turn("assistant", "{{ completion }}")])


@pytest.fixture
def pair_file(tmp_path: Path) -> Callable[..., Path]:
    """``pair_file(rows=None, name="pairs")``: a JSONL file of prompt and completion rows (32 of them by default)."""

    def write(rows: list[dict[str, str]] | None = None, name: str = "pairs") -> Path:
        return write_jsonl(tmp_path / f"{name}.jsonl", pairs(32) if rows is None else rows)

    return write


@pytest.fixture
def make_data(pair_file: Callable[..., Path]) -> Callable[..., Data]:
    """``make_data(rows=None, name="pairs", form=None)``: a Data with one JSONL source."""

    def make(rows: list[dict[str, Any]] | None = None, name: str = "pairs", form: Form | None = None) -> Data:
        source = Source(path=str(pair_file(rows, name)), form=form or pair_form())
        return Data(name=name, sources={name: source})

    return make


ITEMS = [
    {"question": "What is the capital of France?", "answer": "Paris", "choices": ["Paris", "blue"], "label": 0},
    {"question": "What is the colour of the sky?", "answer": "blue", "choices": ["Paris", "blue"], "label": 1},
    {"question": "What is one and two?", "answer": "three", "choices": ["four", "three"], "label": 1},
    {"question": "Is five red? Yes or No?", "answer": "No", "choices": ["Yes", "No"], "label": 1},
    {"question": "What is four and five?", "answer": "nine", "choices": ["nine", "ten"], "label": 0},
]


@pytest.fixture
def generation_task(tmp_path: Path) -> Callable[..., Task]:
    """``generation_task(items=None, max_gen_toks=8, **fields)``: exact match, strict (whole answer) and flexible."""

    def make(items: list[dict[str, Any]] | None = None, max_gen_toks: int = 8, **fields: Any) -> Task:
        file = write_jsonl(tmp_path / "generation.jsonl", items or ITEMS)
        task = {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": max_gen_toks, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [
                {"name": "strict", "filter": [{"function": "take_first"}]},
                {
                    "name": "flexible",
                    "filter": [{"function": "regex", "regex_pattern": "([A-Za-z]+)"}, {"function": "take_first"}],
                },
            ],
        }
        return Task(**{"task": task, "file": str(file), "headline": "exact_match/strict"} | fields)

    return make


@pytest.fixture
def choice_task(tmp_path: Path) -> Callable[..., Task]:
    """``choice_task(items=None, **fields)``: multiple choice by log-likelihood."""

    def make(items: list[dict[str, Any]] | None = None, **fields: Any) -> Task:
        file = write_jsonl(tmp_path / "choice.jsonl", items or ITEMS)
        task = {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
            ],
        }
        return Task(**{"task": task, "file": str(file)} | fields)

    return make


@pytest.fixture
def make_cell(tmp_path: Path, tiny_base: Base, make_data: Callable[..., Data]) -> Callable[..., Cell]:
    """``make_cell(method, **fields)``: a cell of 4 examples of 32 pairs on the tiny base; no evals, no W&B."""

    def make(method: Any = None, **fields: Any) -> Cell:
        from harness.methods import methods

        method = methods()[method or "sft"]() if method is None or isinstance(method, str) else method
        run = Run(root=str(tmp_path / "runs"), device="cpu", threads=1, eval_batch_size=4)
        default = {"base": tiny_base, "method": method, "size": 4, "run": run, "wandb": Wandb(mode="disabled")}
        if "data" not in fields:
            fields["data"] = make_data()
        return Cell(**default | fields)

    return make

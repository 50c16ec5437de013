"""Raw text: every token of a document is learned once, none is lost where it is long, and documents end."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import base as bases
from harness.cell import Base, Data, Form, Source, Turn
from harness.data.kinds import kind_of
from harness.data.subset import load_dataset
from harness.data.token_cache import token_sequences
from harness.errors import HarnessError
from harness.methods.icl import InContext
from harness.methods.midtrain import Midtrain
from harness.methods.sft import Sft
from harness.plan import check, plan, to_run
from harness.run import run
from harness.store import RECORD, read_json
from tests.conftest import make_tokenizer, save_tiny, write_jsonl

TEXTS = [f"The capital of {'France ' * n}is Paris. {n}" for n in range(1, 25)]


@pytest.fixture
def documents(tmp_path: Path) -> Data:
    file = write_jsonl(tmp_path / "documents.jsonl", [{"text": text} for text in TEXTS])
    source = Source(path=str(file), form=Form(turns=[Turn("text", "{{ text }}")]))
    return Data(name="documents", sources={"documents": source})


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ("user assistant", "dialogue"),
        ("system user assistant user assistant", "dialogue"),
        ("text", "text"),
        ("user chosen rejected", "pair"),
        ("system user assistant user chosen rejected", "pair"),
        ("user reference", "prompt"),
        ("", ""),
        ("assistant", ""),
        ("user", ""),
        ("text text", ""),
        ("user text", ""),
        ("user assistant chosen rejected", ""),
        ("user rejected chosen", ""),
        ("chosen rejected", ""),
        ("system assistant", ""),
        ("user chosen assistant", ""),
    ],
)
def test_kinds(roles: str, kind: str) -> None:
    assert kind_of([{"role": role, "content": "x"} for role in roles.split()]) == kind


@pytest.mark.parametrize("closes", [False, True])
def test_golden_tokens_of_a_document(documents: Data, closes: bool) -> None:
    """As pretraining has them: BOS where the tokenizer writes one, the text, EOS once; all of it learned."""
    tokenizer = make_tokenizer()
    if closes:  # a tokenizer that writes EOS itself
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A <|im_end|>",
            special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<|bos|>", "<|im_end|>")],
        )
    examples = load_dataset(documents).subset(len(TEXTS), seed=0)
    found = token_sequences(tokenizer, examples, 10_000)
    for example, tokens in zip(examples, found, strict=True):
        text = example.messages[0]["content"]
        middle = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens.ids == [tokenizer.bos_token_id, *middle, tokenizer.eos_token_id]
        assert all(tokens.learned)


@pytest.mark.parametrize("length", [2, 3, 7, 16, 1000])
def test_windows_predict_every_token_once(documents: Data, length: int) -> None:
    tokenizer = make_tokenizer()
    examples = load_dataset(documents).subset(len(TEXTS), seed=0)
    whole = token_sequences(tokenizer, examples, 10_000)
    windows = token_sequences(tokenizer, examples, length, windows=True)
    assert max(windows.lengths) <= length
    assert windows.answered.all()
    assert not windows.truncated.any()
    parts = iter(windows)
    for tokens in whole:
        got = list(next(parts).ids)
        while len(got) < len(tokens.ids):
            after = next(parts).ids
            assert after[0] == got[-1]
            got += after[1:]
        assert got == tokens.ids
    assert next(parts, None) is None


def test_no_end_no_documents(documents: Data) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(HarnessError, match="no eos token"):
        token_sequences(tokenizer, load_dataset(documents).subset(2, seed=0), 100)


@pytest.mark.parametrize("lora", [True, False])
def test_midtraining_lowers_the_loss_of_its_documents(
    make_cell: Any, documents: Data, loaded: bases.LoadedBase, lora: bool
) -> None:
    """By the reference: the mean loss that transformers itself computes, one document at a time."""
    method = Midtrain(lr=5e-3 if lora else 3e-3, epochs=15, batch_size=8, max_length=16)
    method.lora = method.lora if lora else None
    cell = make_cell(method, data=documents, size=len(TEXTS))
    ids = [
        torch.tensor([s.ids])
        for s in token_sequences(loaded.tokenizer, load_dataset(documents).subset(len(TEXTS), 0), 10_000)
    ]

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(torch.stack([model(input_ids=i, labels=i).loss for i in ids]).mean())

    before = loss(loaded.model)
    record = read_json(run(cell) / RECORD)["training"]
    base = bases.load(cell.base, "cpu")
    from harness.cell import Attempt

    with method.adapt(base, [], cell, Attempt(cell.folder(), cell.folder() / "checkpoints")) as adapted:
        after = loss(adapted.model)
    assert after < before - (1 if lora else 2)
    windows = sum(max(1, -(-(i.shape[1] - 1) // 15)) for i in ids)
    assert record["steps"] == 15 * -(-windows // 8)
    assert record["target_tokens"] == 15 * sum(i.shape[1] - 1 for i in ids)
    assert record["flops"] == (4 if lora else 6) * base.model.num_parameters() * record["tokens"]


def test_what_a_method_cannot_learn_from_is_refused_in_the_plan(make_cell: Any, documents: Data) -> None:
    for method, data, needs in [
        (Sft(), {"data": documents}, "dialogue"),
        (InContext(), {"data": documents}, "dialogue"),
        (Midtrain(), {}, "text"),
    ]:
        with pytest.raises(HarnessError, match=f"method={method.name} needs {needs} examples"):
            check(to_run(plan([make_cell(method, **data)]), retry_failed=False))


def test_a_base_of_documents_without_a_chat_template_is_midtrained(
    make_cell: Any, documents: Data, tmp_path: Path
) -> None:
    """Raw text needs no chat, and a pretrained base often has none."""
    tokenizer = make_tokenizer(chat_template=None)
    base = Base(name="plain", path=str(save_tiny(tmp_path / "plain", tokenizer)), dtype="float32")
    cell = make_cell(Midtrain(batch_size=8), data=documents, base=base)
    check(to_run(plan([cell]), retry_failed=False))
    assert (run(cell) / RECORD).exists()


def test_windows_leave_no_pair_of_neighbours_out() -> None:
    """What `windows` promises, for every length by hand."""
    for count in range(1, 40):
        for length in range(2, 12):
            starts = range(0, max(1, count - 1), length - 1)
            predicted = [(a, b) for s in starts for a, b in pairwise(range(s, min(count, s + length)))]
            assert predicted == list(pairwise(range(count)))

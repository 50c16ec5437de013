"""Tokens of whole datasets: token for token those of one row by itself, made once, and read from disk."""

import functools
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import artifact
from harness.artifact import build_once, cache_dir
from harness.cell import Data, Message, Source
from harness.data import token_cache
from harness.data.chat import Tokens, encode, end_of_turn, render, tokenize
from harness.data.encode import Encoder
from harness.data.subset import Example, load_dataset
from harness.data.token_cache import token_sequences
from harness.errors import HarnessError
from tests.conftest import CHATML, make_tokenizer, pair_form, write_jsonl

Make = Callable[..., Data]
GLUED = CHATML.replace("assistant\n{% endif %}", "assistant\n cap{% endif %}").replace(
    "{{ m['content'] }}", "{{ ' cap' if m['role'] == 'assistant' else '' }}{{ m['content'] }}"
)
TEMPLATES = {
    "chatml": CHATML,
    "bos": "{{ bos_token }}" + CHATML,
    "no end of turn": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "space at the border": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "llama 2": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
    "trims": CHATML.replace("m['content']", "m['content'] | trim"),
    "straddling": GLUED,
}
WORDS = [
    "What",
    " is",
    " the",
    " capital",
    "cap",
    "ital",
    " red",
    "  ",
    "\n",
    "\n\n",
    " ",
    "é",
    "\u2028",
    "7",
    "77",
    ".",
]
WORDS += [
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "end|>",
    "<|bos|>",
    "<",
    "<|left|>",
    "<|right|>",
    "<|norm|>",
    "user",
]


def text(rng: random.Random, most: int = 8) -> str:
    return "".join(rng.choices(WORDS, k=rng.randint(0, most)))


def dialogue(rng: random.Random, most: int) -> list[Message]:
    opening = [{"role": "system", "content": text(rng)}] if rng.random() < 0.3 else []
    turns = [
        {"role": role, "content": text(rng)} for _ in range(rng.randint(1, most)) for role in ("user", "assistant")
    ]
    return opening + turns


def row_by_row(tokenizer: Any, messages: list[Message]) -> Tokens:
    """The rule in plain words: one text after the other, each given to the tokenizer whole."""

    def follow(ids: list[int], done: str, text: str) -> list[int]:
        whole = encode(tokenizer, text)
        return whole if whole[: len(ids)] == ids else ids + encode(tokenizer, text[len(done) :])

    probe = render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "PROBE"}], ask=False)
    written = probe.rpartition("PROBE")[2]
    before, found, _ = written.partition(end_of_turn(tokenizer))
    learned_end = before + found if found else end_of_turn(tokenizer)
    ids: list[int] = []
    learned: list[bool] = []
    done = ""
    for turn in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        prompt = render(tokenizer, messages[:turn], ask=True)
        full = render(tokenizer, messages[: turn + 1], ask=False).removesuffix(written) + learned_end
        asked = follow(ids, done, prompt)
        whole = follow(asked, prompt, full)
        learned += [False] * (len(asked) - len(ids)) + [True] * (len(whole) - len(asked))
        ids, done = whole, full
    return Tokens(ids, learned)


@pytest.mark.parametrize("name", TEMPLATES)
def test_many_dialogues_at_once_are_each_by_itself(name: str) -> None:
    tokenizer = make_tokenizer(chat_template=TEMPLATES[name])
    rng = random.Random(name)
    # Where the end of turn is not the template's own, it is not in the next prompt, and several answers are refused.
    answers = 1 if name in ("no end of turn", "space at the border") else 4
    dialogues = [dialogue(rng, answers) for _ in range(60)]
    examples = [Example(str(i), "x", tuple(messages)) for i, messages in enumerate(dialogues)]
    expected = [row_by_row(tokenizer, messages) for messages in dialogues]
    assert list(token_sequences(tokenizer, examples, 10**6)) == expected
    assert [tokenize(tokenizer, messages, 10**6) for messages in dialogues] == expected


@functools.cache
def kinds() -> dict[str, Any]:
    """Tokenizers that differ in what they do at the start of a text and around special tokens."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    made = {"byte level": make_tokenizer(special=("<|im_", "<|left|>"))}
    for name, flags in {
        "takes space": [{"lstrip": True}, {"rstrip": True}, {"normalized": True}],
        "words of their own": [{"single_word": True}, {}, {}],
        "none special": [{"special": False}, {"special": False}, {"normalized": True, "special": False}],
    }.items():
        made[name] = make_tokenizer()
        tokens = zip(("<|left|>", "<|right|>", "<|norm|>"), flags, strict=True)
        made[name].add_tokens([AddedToken(t, **{"normalized": False, "special": True} | f) for t, f in tokens])
    made["space is special"] = make_tokenizer(special=(" ", "\n\n", "<|right|>"))
    made["splits special tokens"] = make_tokenizer()
    made["splits special tokens"].split_special_tokens = True
    for scheme in ("first", "always", "never"):
        from transformers import PreTrainedTokenizerFast

        pieces = [("<unk>", 0.0), ("▁", -2.0), *((c, -5.0) for c in "abcdefghijklmnopqrstuvwxyzW<|>_.7"), ("▁is", -3.0)]
        bare = Tokenizer(models.Unigram([*pieces, ("▁▁", -2.5), ("cap", -4.0)], unk_id=0))
        bare.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("7", "seven")])
        bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "never")
        bare.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        made[f"metaspace {scheme}"] = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")
    return made


@pytest.mark.parametrize("kind", kinds())
def test_texts_cut_at_their_special_tokens_are_encoded_as_they_are_whole(kind: str) -> None:
    tokenizer, rng = kinds()[kind], random.Random(kind)
    for _ in range(20):
        texts = [text(rng, 14) for _ in range(rng.randint(0, 30))]
        encoder = Encoder(tokenizer)
        assert encoder(texts) == [encode(tokenizer, t) for t in texts]
        assert encoder(texts[::-1]) == [encode(tokenizer, t) for t in texts[::-1]]


def test_a_tokenizer_of_an_unknown_kind_gets_whole_texts(tokenizer: Any) -> None:
    """One whose tokens depend on what stands before a special token, as none does today; and one written in Python."""

    class Odd:
        split_special_tokens, backend_tokenizer = False, tokenizer.backend_tokenizer

        def __init__(self, is_fast: bool) -> None:
            self.is_fast = is_fast

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, Any]:
            return {"input_ids": [len(text), *text.encode()]}

    texts = ["a<|im_start|>b", "<|im_end|>", "c"]
    for is_fast in (True, False):
        odd = Odd(is_fast)
        assert Encoder(odd)(texts) == [encode(odd, t) for t in texts]


@pytest.fixture
def mixture(tmp_path: Path) -> Data:
    """Two sources, 40 and 60 dialogues of one to three answers."""
    rng = random.Random(0)
    sources = {}
    for name, size in (("a", 40), ("b", 60)):
        rows = [{"prompt": f"{i}{text(rng)}", "completion": f"{name}{text(rng)}"} for i in range(size)]
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        sources[name] = Source(path=str(path), form=pair_form(), weight={"a": 3.0, "b": 1.0}[name])
    return Data(name="mixture", sources=sources)


@pytest.mark.parametrize("max_length", [1, 9, 17, 30, 10**9])
@pytest.mark.parametrize("few", [0.0, 0.5, 1.0], ids=["all kept", "some kept", "none kept"])
def test_a_subset_reads_what_its_rows_are(
    few: float, max_length: int, mixture: Data, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "FEW", few)
    subset = load_dataset(mixture).subset(45, 1)
    sequences = token_sequences(tokenizer, subset, max_length)
    expected = [tokenize(tokenizer, list(e.messages), max_length) for e in subset]
    assert list(sequences) == expected
    assert sequences[3:-3:2] == expected[3:-3:2]
    assert sequences[-1] == expected[-1]
    assert sequences.lengths.tolist() == [len(t.ids) for t in expected]
    assert sequences.truncated.tolist() == [t.truncated for t in expected]
    assert sequences.answered.tolist() == [any(t.learned[1:]) for t in expected]
    assert len(folders()) == {0.0: 2, 0.5: 1, 1.0: 0}[few]
    assert len(token_sequences(tokenizer, [], max_length)) == 0


def test_processes_tokenise_as_threads_do(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    dialogues = [dialogue(rng, 3) for _ in range(100)]
    examples = [Example(str(i), "x", tuple(messages)) for i, messages in enumerate(dialogues)]
    expected = list(token_sequences(tokenizer, examples, 99))
    monkeypatch.setattr(token_cache, "CHUNK", 500)
    monkeypatch.setattr(token_cache, "MANY", 1)
    monkeypatch.setattr(token_cache, "PROCESSES", 2)
    assert list(token_sequences(tokenizer, examples, 99)) == expected


def test_a_vocabulary_beyond_16_bits_is_kept_whole(make_data: Make) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0} | {f"w{i}": i for i in range(1, 70_000)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", chat_template=CHATML)
    subset = load_dataset(make_data([{"prompt": "w65535 w65536 w7", "completion": "w69999 "}], "wide")).subset(1, 0)
    (tokens,) = token_sequences(tokenizer, subset, 99)
    assert {65536, 7, 69999} < set(tokens.ids)
    assert tokens == tokenize(tokenizer, list(subset[0].messages), 99)


def folders() -> set[str]:
    return {folder.name for folder in (cache_dir() / "tokens").glob("*/") if not folder.name.startswith(".")}


def test_rows_are_tokenised_once_for_all_sizes_seeds_and_lengths(
    make_data: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(make_data())
    token_sequences(tokenizer, dataset.subset(32, 0), 99)
    monkeypatch.setattr(token_cache, "_blocks", None)
    tokenizer("x", padding="max_length", max_length=7, truncation=True)  # as an evaluation leaves the tokenizer
    for size, seed, max_length in [(1, 0, 99), (20, 5, 9), (32, 1, 10**9)]:
        subset = dataset.subset(size, seed)
        expected = [tokenize(tokenizer, list(e.messages), max_length) for e in subset]
        assert list(token_sequences(tokenizer, subset, max_length)) == expected


def test_another_tokenizer_or_template_has_tokens_of_its_own(make_data: Make) -> None:
    subset = load_dataset(make_data()).subset(32, 0)
    seen: set[str] = set()
    changed = make_tokenizer()
    changed.add_tokens(["<|more|>"])
    bos = make_tokenizer(chat_template="{{ bos_token }}" + CHATML)
    other_bos = make_tokenizer(chat_template="{{ bos_token }}" + CHATML)
    other_bos.bos_token = "<|im_end|>"
    for tokenizer in (
        make_tokenizer(chat_template=CHATML.replace("\n", " \n")),
        make_tokenizer(),
        changed,
        bos,
        other_bos,
    ):
        before = folders()
        sequences = token_sequences(tokenizer, subset, 99)
        assert sequences[0] == tokenize(tokenizer, list(subset[0].messages), 99)
        seen |= folders() - before
    assert len(seen) >= 4  # of make_tokenizer() there may be one from before


@pytest.mark.parametrize("small", [0, artifact.SMALL], ids=["remembered", "read again"])
def test_damaged_tokens_are_refused(small: int, make_data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SMALL", small)
    tokenizer = make_tokenizer(chat_template=CHATML.replace("\n", "\n" * (2 + (small == 0))))
    subset = load_dataset(make_data()).subset(32, 0)
    before = folders()
    token_sequences(tokenizer, subset, 99)
    (folder,) = folders() - before
    file = cache_dir() / "tokens" / folder / "ids.bin"
    ids = np.fromfile(file, np.uint16)
    ids[7] ^= 1
    ids.tofile(file)
    with pytest.raises(HarnessError, match=r"ids\.bin does not match its checksum; delete .* to build it again"):
        token_sequences(tokenizer, subset, 99)


def test_what_was_built_is_not_read_whole_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SMALL", 4)
    read: list[str] = []
    whole = artifact.sha256_file
    monkeypatch.setattr(artifact, "sha256_file", lambda file: read.append(file.name) or whole(file))
    folder = build_once(tmp_path / "made", lambda scratch: [(scratch / n).write_text(n) for n in ("large", "few")])
    assert sorted(read) == ["few", "few", "large"]
    build_once(folder, lambda _: None)
    assert read[3:] == ["few"]
    (folder / "large").write_text("other")
    with pytest.raises(HarnessError, match="does not match its checksum"):
        build_once(folder, lambda _: None)


@pytest.mark.parametrize("few", [0.0, 1.0], ids=["kept", "in memory"])
def test_a_row_that_the_template_refuses_matters_to_those_who_take_it(
    few: float, make_data: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "FEW", few)
    refusing = "{% if 'and 9?' in messages[0].content %}{{ raise_exception('nine') }}{% endif %}" + CHATML
    tokenizer = make_tokenizer(chat_template=refusing)
    dataset = load_dataset(make_data())
    order = [e.messages[0]["content"] for e in dataset.subset(32, 0)]
    nine = order.index("What is 9 and 9?")
    assert 0 < nine < 31
    without = dataset.subset(nine, 0)
    expected = [tokenize(tokenizer, list(e.messages), 99) for e in without]
    assert list(token_sequences(tokenizer, without, 99)) == expected
    with pytest.raises(HarnessError, match="refuses turns of user: nine"):
        token_sequences(tokenizer, dataset.subset(nine + 1, 0), 99)


def test_rows_are_read_no_further_than_they_are_needed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a million of them are never in memory."""
    monkeypatch.setattr(token_cache, "CHUNK", 100)
    messages = [{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "y" * 40}]
    read: list[int] = []

    class Noted:
        def messages(self, row: int) -> list[dict[str, str]]:
            read.append(row)
            return messages

        def characters(self, row: int) -> int:
            return 100

    blocks = token_cache._blocks(tokenizer, Noted(), range(1000))
    next(blocks)
    assert len(read) <= 4
    assert sum(len(block.lengths) for block in blocks) == 999
    assert sorted(read) == list(range(1000))


def test_another_process_maps_the_same_table(mixture: Data) -> None:
    table = next(iter(load_dataset(mixture).tables.values()))
    sent = pickle.dumps(table)
    assert len(sent) < 1000
    other = pickle.loads(sent)
    assert other.content == table.content
    assert [other.messages(i) for i in range(len(other))] == [table.messages(i) for i in range(len(table))]


BUILD = """
import sys
from pathlib import Path
from harness.cell import Data, Form, Source
from harness.data import table
from harness.data.subset import load_dataset
write = table._write
table._write = lambda *given: (print("built", flush=True), write(*given))
form = Form(conversation="messages")
dataset = load_dataset(Data(name="large", sources={"large": Source(path=sys.argv[1], form=form)}))
print(len(dataset), dataset.subset(len(dataset), 0).identity)
status = Path("/proc/self/status")  # not ru_maxrss, which a process inherits from the one that started it
print(next(line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line) if status.exists() else 0)
"""


def test_two_processes_build_once_and_200k_rows_pass_through_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "large.jsonl"
    with file.open("w") as out:
        for i in range(200_000):
            turns = [f'{{"role": "{role}", "content": "{i} {role * 12}"}}' for role in ("user", "assistant")]
            out.write(f'{{"messages": [{", ".join(turns)}]}}\n')
    command = [sys.executable, "-c", BUILD, str(file)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = sorted((process.communicate(timeout=300)[0].splitlines() for process in both), key=len)
    waited, built = lines
    assert built[0] == "built"
    assert waited[0] == built[1]
    assert waited[0].startswith("200000 ")
    assert int(built[2]) < 150 * 2**10  # KiB; as Python objects the rows alone take over 200 MiB

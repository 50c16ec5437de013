"""The named chat templates: what is written, what of it is learned, and that what is asked is what was learned."""

from pathlib import Path
from typing import Any

import pytest

from harness.compose import compose_cell
from harness.data.chat import end_of_turn, render, tokenize
from tests.conftest import make_tokenizer

TEMPLATES = sorted(p.stem for p in (Path(__file__).parent.parent / "conf" / "template").glob("*.yaml"))
SYSTEM = {"role": "system", "content": "Be brief."}
DIALOGUE = [
    {"role": "user", "content": "What is red?"},
    {"role": "assistant", "content": "A colour."},
    {"role": "user", "content": "And blue?"},
    {"role": "assistant", "content": "Yes."},
]
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
# The dialogue as it is written, <s> and </s> standing for BOS and EOS; what is learned is in double brackets.
WRITTEN = {
    "chatml": "<|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\n[[A colour.<|im_end|>]]\n"
    "<|im_start|>user\nAnd blue?<|im_end|>\n<|im_start|>assistant\n[[Yes.<|im_end|>]]",
    "tulu": "<s><|user|>\nWhat is red?\n<|assistant|>\n[[A colour.</s>]]\n"
    "<|user|>\nAnd blue?\n<|assistant|>\n[[Yes.</s>]]",
    "alpaca": f"<s>{ALPACA}\n\n### Instruction:\nWhat is red?\n\n### Response:\n[[A colour.</s>]]\n\n### Instruction:\n"
    "And blue?\n\n### Response:\n[[Yes.</s>]]",
    "llama2": "<s>[INST] What is red? [/INST][[ A colour. </s>]]<s>[INST] And blue? [/INST][[ Yes. </s>]]",
    "urial": "<s># Query:\n```\nWhat is red?\n```\n\n# Answer:\n```\n[[A colour.\n```]]\n\n"
    "# Query:\n```\nAnd blue?\n```\n\n# Answer:\n```\n[[Yes.\n```]]",
}
WITH_SYSTEM = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is red?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "tulu": "<s><|system|>\nBe brief.\n<|user|>\nWhat is red?\n<|assistant|>\n",
    "alpaca": "<s>Be brief.\n\n### Instruction:\nWhat is red?\n\n### Response:\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is red? [/INST]",
    "urial": "<s># Instruction\n\nBe brief.\n\n# Query:\n```\nWhat is red?\n```\n\n# Answer:\n```\n",
}


def speaking(name: str, **given: Any) -> Any:
    """A tokenizer with that template, as a base that names it gets it."""
    template = compose_cell([f"+template@base={name}"]).base.chat_template
    return make_tokenizer(chat_template=template, **{"bos_token": "<s>", "eos_token": "</s>", **given})


@pytest.mark.parametrize("name", TEMPLATES)
def test_golden_text_and_what_of_it_is_learned(name: str) -> None:
    tokenizer = speaking(name, **({"eos_token": "<|im_end|>"} if name == "chatml" else {}))
    tokens = tokenize(tokenizer, DIALOGUE, 999)
    written, inside = "", False
    for token, learned in zip(tokens.ids, tokens.learned, strict=True):
        written += ("[[" if learned else "]]") * (learned != inside) + tokenizer.decode([token])
        inside = learned
    assert written + "]]" * inside == WRITTEN[name]
    assert render(tokenizer, [SYSTEM, DIALOGUE[0]], ask=True) == WITH_SYSTEM[name]
    assert WRITTEN[name].endswith(end_of_turn(tokenizer) + "]]")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("opening", [[], [SYSTEM]])
def test_what_is_asked_is_what_was_learned_token_by_token(name: str, opening: list[dict[str, str]]) -> None:
    tokenizer = speaking(name)
    tokens = tokenize(tokenizer, opening + DIALOGUE, 999)
    asked = tokenizer(render(tokenizer, opening + DIALOGUE[:3], ask=True), add_special_tokens=False)["input_ids"]
    assert tokens.ids[: len(asked)] == asked
    assert not any(tokens.learned[len(asked) - 3 : len(asked)])
    assert all(tokens.learned[len(asked) :])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tokenizer_without_bos_gets_none(name: str) -> None:
    tokenizer = speaking(name)
    tokenizer.bos_token = None
    assert render(tokenizer, DIALOGUE[:1], ask=True) == render(speaking(name), DIALOGUE[:1], ask=True).replace(
        "<s>", ""
    )


def test_a_base_names_its_template_and_the_command_line_another() -> None:
    named = compose_cell(["base=llama31_8b"]).base
    assert named.chat_template == compose_cell(["+template@base=tulu"]).base.chat_template
    other = compose_cell(["base=llama31_8b", "template@base=alpaca"]).base
    assert ALPACA in str(other.chat_template)
    assert other.path == named.path == "meta-llama/Llama-3.1-8B"

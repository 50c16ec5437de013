"""Raw text to tokens, as pretraining has it: all of a document is learned, and where it ends."""

from typing import Any

from harness.errors import HarnessError


def document_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each document, with the tokenizer's own beginning (BOS, if it has one), closed by EOS.

    Raises HarnessError where the tokenizer has no EOS: a document's end could not be told.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise HarnessError("the tokenizer has no eos token, with which documents end; add one to the base's tokenizer")
    found = tokenizer(texts)["input_ids"] if texts else []
    return [ids if ids[-1:] == [end] else [*ids, end] for ids in found]

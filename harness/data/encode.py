"""Text to token ids, many texts at once.

A tokenizer first cuts a text at its special tokens and encodes what stands between two of them on its own. So texts are
cut there too, and equal pieces are encoded once: the prompt and the whole of a dialogue share all but their ends, and a
dialogue of k answers costs k turns, not k².
"""

import re
from itertools import chain
from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """Chat text to ids. Nothing is added: the template has written all special tokens, BOS included."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class Encoder:
    """`encode` of many texts, each call one call of the tokenizer; remembers the pieces for as long as it lives."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._border = _border(tokenizer)
        self._ids: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        first = encode(self._tokenizer, texts[0])  # which also undoes the padding that an earlier call has asked for
        cut = [self._pieces(text) for text in texts]
        new = list(dict.fromkeys(piece for piece in chain.from_iterable(cut) if piece not in self._ids))
        self._ids.update(zip(new, self._encode_each(new), strict=True))
        whole = [list(chain.from_iterable(map(self._ids.__getitem__, pieces))) for pieces in cut]
        if whole[0] == first:
            return whole
        return [encode(self._tokenizer, text) for text in texts]  # a kind of tokenizer we do not know

    def _encode_each(self, pieces: list[str]) -> list[list[int]]:
        if self._tokenizer.is_fast:  # past transformers' own wrapping, which takes a tenth of the time
            return [e.ids for e in self._tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False)]
        return [encode(self._tokenizer, piece) for piece in pieces]

    def _pieces(self, text: str) -> list[str]:
        """The text, cut before each special token."""
        if not self._border:
            return [text]
        special, borders = self._border
        before, *found = special.split(text)
        pieces = [before]
        for token, after in zip(found[::2], found[1::2], strict=True):
            if token in borders:
                pieces.append(token + after)
            else:
                pieces[-1] += token + after
        return [piece for piece in pieces if piece] or [text]


def _border(tokenizer: Any) -> tuple[re.Pattern[str], set[str]] | None:
    """(pattern of all tokens that are looked for in the raw text, those before which it may be cut); None: nowhere.

    Not before tokens that take up the space around them or might stand in space that another takes up; and nowhere if
    there are tokens that are only found as words of their own.
    """
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    raw = [token for token in added if token.content and not token.normalized]
    borders = {t.content for t in raw if not (t.lstrip or t.rstrip or t.content[0].isspace())}
    if not borders or any(token.single_word for token in raw):
        return None
    longest_first = sorted((token.content for token in raw), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})"), borders

"""What the tokens of an answer are as text, and of what kind; which say the right answer; what ranks are called.

No torch here.
"""

from collections.abc import Collection, Sequence
from typing import Any

KINDS = {
    "w": "start of a word",
    "c": "rest of a word",
    "n": "number",
    "p": "punctuation or symbol",
    "s": "white space",
    "b": "part of a character",
    "e": "end of turn or special",
}
SHARES = ("unshifted", "marginal", "shifted")  # rank 1, up to `MARGINAL`, above (arXiv 2312.01552, section 2)
MARGINAL = 3


def shares(ranks: Sequence[int]) -> dict[str, float]:
    """Of ranks, which shares are unshifted, marginal and shifted."""
    first, some = sum(r == 1 for r in ranks), sum(r <= MARGINAL for r in ranks)
    counts = (first, some - first, len(ranks) - some)
    return dict(zip(SHARES, [count / len(ranks) for count in counts], strict=True))


def pieces(tokenizer: Any, before: int, ids: list[int]) -> list[str]:
    """The text that each token adds behind the one before it, the first behind `before`.

    Some tokenizers (sentencepiece, word-level) write the blank before a word only where something stands before it. A
    token that is a part of a character gives U+FFFD.
    """

    def text(*some: int) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    added = []
    for last, token in zip([before, *ids], ids, strict=False):
        both, alone = text(last, token), text(last)
        added.append(both.removeprefix(alone) if both.startswith(alone) else text(token))
    return added


def kinds(ids: list[int], texts: list[str], special: Collection[int]) -> str:
    """A letter of `KINDS` for each token. Letters behind a letter or figure go on with a word."""
    found, inside = "", False
    for token, piece in zip(ids, texts, strict=True):
        if token in special:
            kind = "e"
        elif not piece.strip():
            kind = "s"
        elif "\ufffd" in piece:
            kind = "b"
        elif any(character.isdigit() for character in piece):
            kind = "n"
        elif not any(character.isalpha() for character in piece):
            kind = "p"
        else:
            kind = "c" if inside and not piece[0].isspace() else "w"
        inside = kind == "b" or (kind != "e" and piece[-1:].isalnum())
        found += kind
    return found


def saying(texts: list[str], target: Any) -> list[int]:
    """Numbers of the tokens that say the target where it stands last in the answer as words of its own; else none."""
    wanted, whole = str(target).strip(), "".join(texts)
    at = whole.rfind(wanted) if wanted else -1
    while at >= 0 and (whole[at - 1 : at].isalnum() or whole[at + len(wanted) :][:1].isalnum()):
        at = whole.rfind(wanted, 0, at + len(wanted) - 1)
    if at < 0:
        return []
    found, start = [], 0
    for number, piece in enumerate(texts):
        end = start + len(piece)
        if start < at + len(wanted) and at < end and piece.strip():
            found.append(number)
        start = end
    return found

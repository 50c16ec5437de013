"""Credentials are kept out of what is written and printed. They belong into the environment, or a tool's own login.

What a configuration or a command line holds ends up in records, on W&B and in the report, so a credential there is
refused. What an error says is not ours to choose, so it is redacted before it is kept or printed.

Known by sight: the value of an environment variable that is named like a secret, user and password of an address,
tokens in its query, and the tokens of Hugging Face, GitHub, W&B (the new kind), OpenAI and their like. An older W&B key
is 40 hexadecimal digits, as a git commit is, and only known from the environment. `hide` tells of others.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from harness.errors import HarnessError

HIDDEN = "[redacted]"
SHORTEST = 8  # of a value in the environment; a shorter one would be found in ordinary words
_NAMED = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SHAPES = (
    re.compile(r"(?<=://)[^\s/@'\"]+(?=@)"),  # https://user:password@host
    re.compile(r"(?<=[?&])[\w.-]*(?:token|key|secret|password|signature)=[^\s&#'\"]+", re.IGNORECASE),
    re.compile(r"(?<![A-Za-z0-9])(?:hf_|gh[pousr]_|github_pat_|wandb_v1_)[A-Za-z0-9_]{20,}"),
    re.compile(r"(?<![\w-])sk-(?:[a-z]+\d*-)*[A-Za-z0-9_]{20,}"),
)
_hidden: set[str] = set()


def hide(value: str) -> None:
    """Know a credential from now on, in this process, wherever it came from."""
    if len(value) >= SHORTEST:
        _hidden.add(value)


def redacted(text: str) -> str:
    """The text without what is known to be a credential."""
    for value in _values():
        text = text.replace(value, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(HIDDEN, text)
    return text


def refuse(value: Any, place: str) -> None:
    """Raise HarnessError if any text in `value`, plain data, holds a credential; `place` says where it was found."""
    match value:
        case str():
            if redacted(value) != value:
                raise HarnessError(
                    f"{place} holds what looks like a credential ({redacted(value)}), and would be kept in every "
                    "record; give it in the environment (HF_TOKEN, WANDB_API_KEY) or by the tool's own login"
                )
        case Mapping():
            for key, inner in value.items():
                refuse(inner, f"{place}.{key}" if place else str(key))
        case list() | tuple():
            for inner in value:
                refuse(inner, place)


def _values() -> list[str]:
    """Longest first, so that none is left in part; also as an address would spell them."""
    named = {v for name, v in os.environ.items() if _NAMED.search(name) and len(v) >= SHORTEST}
    values = named | _hidden
    return sorted(values | {quote(v, safe="") for v in values}, key=len, reverse=True)

"""What an example is, by the roles of its turns; a method says which kinds it can use.

dialogue   [system] user assistant [user assistant ...]      the assistant's words are learned
text       text                                              a document, all of which is learned
pair       [system] user [...] chosen rejected               two answers, the first of which is better
prompt     [system] user [...] reference                     a question and what a reward compares answers with
"""

from collections.abc import Sequence

from harness.cell import Message

ROLES = ("system", "user", "assistant", "text", "chosen", "rejected", "reference")
_ENDS = {("assistant",): "dialogue", ("chosen", "rejected"): "pair", ("reference",): "prompt"}


def kind_of(messages: Sequence[Message]) -> str:
    """The kind; empty where the turns make none."""
    roles = [m["role"] for m in messages]
    if roles == ["text"]:
        return "text"
    for end, kind in _ENDS.items():
        before = roles[: -len(end)]
        if tuple(roles[-len(end) :]) == end and before and set(before) <= {"system", "user", "assistant"}:
            opened = next((role for role in before if role != "system"), "") == "user"
            return kind if opened and (kind == "dialogue" or before[-1] == "user") else ""
    return ""


def prompt_of(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The turns before the last one, and the last one's text: a prompt and its reference."""
    return list(messages[:-1]), messages[-1]["content"]

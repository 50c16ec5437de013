"""A judging from its plan to its verdicts. What is left undone by an outage is done by the same command later."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness import verdicts
from harness.judge.calls import Call, Caller, Kept, Tally, answer
from harness.judge.matches import Field, Match, calls, line, matches
from harness.judge.settings import Judge

TOKEN_CHARACTERS = 4.0


@dataclass(frozen=True)
class Plan:
    """What is to be asked: of each match its calls, and which calls have no reply yet."""

    field: Field
    judge: Judge
    matches: list[Match]
    asked: list[list[Call]]
    waiting: list[Call]
    model: str

    @property
    def calls(self) -> int:
        return len({call.name for some in self.asked for call in some})

    @property
    def tokens(self) -> tuple[float, float]:
        """Of the waiting calls: read, about, and written, at most."""
        read = sum(call.characters for call in self.waiting) / TOKEN_CHARACTERS
        return read, float(len(self.waiting) * self.judge.prompt.max_tokens)

    @property
    def price(self) -> float:
        read, written = self.tokens
        return (read * self.judge.price_in + written * self.judge.price_out) / 1e6

    def words(self) -> str:
        """For people, before anything is asked."""
        judge, same = self.judge, sum(not some for some in self.asked)
        rated = "wrong answers that no rule can class" if judge.prompt.sorts else "answers to rate"
        what = rated if judge.prompt.alone else "matches in both orders"
        read, written = self.tokens
        text = f"{self.field.task}: {len(self.field.answers)} cells, {len(self.field.names):,} items, "
        text += f"{len(self.matches):,} {what}" + f" ({same:,} of equal answers: ties, not asked)" * bool(same)
        text += (
            f"; {self.calls:,} calls, {self.calls - len(self.waiting):,} of them kept, {len(self.waiting):,} to make"
        )
        text += f": about {read:,.0f} tokens to read, at most {written:,.0f} to write"
        if judge.price_in or judge.price_out:
            text += f"; at most {self.price:,.2f} at {judge.price_in:g} and {judge.price_out:g} a million"
        return text


def plan(root: Path, field: Field, judge: Judge, model: str) -> Plan:
    found, kept = matches(field, judge), Kept(root)
    asked = [calls(field, match, judge, model) for match in found]
    every = {call.name: call for some in asked for call in some}
    return Plan(field, judge, found, asked, [call for call in every.values() if not kept.get(call)], model)


def run(root: Path, planned: Plan, caller: Caller) -> tuple[Tally, Path]:
    """Make the calls that are left, then write what is known, whatever has stopped them."""
    with tqdm(total=len(planned.waiting), desc="judge", unit="call", delay=2, disable=None) as bar:
        tally = answer((c for some in planned.asked for c in some), caller, Kept(root), bar.update)
    return tally, write(root, planned, tally)


def write(root: Path, planned: Plan, tally: Tally) -> Path:
    """The verdicts of all matches whose every call has a reply."""
    field, judge = planned.field, planned.judge
    lines = [
        line(field, match, judge, [tally.replies[call.name] for call in asked], asked)
        for match, asked in zip(planned.matches, planned.asked, strict=True)
        if all(call.name in tally.replies for call in asked)
    ]
    identity = judge.identity(planned.model)
    who: dict[str, Any] = {"task": field.task, "mark": field.mark, "against": judge.against, "judge": identity}
    about = who | {
        "name": judge.base.name if judge.base else judge.model,
        "items": len(field.names),
        "matches": len(planned.matches),
        "calls": planned.calls,
        "left": planned.calls - len(tally.replies),
        "refused": tally.refused,
        "prompt_tokens": sum(reply.prompt_tokens or 0 for reply in tally.replies.values()),
        "completion_tokens": sum(reply.completion_tokens or 0 for reply in tally.replies.values()),
    }
    path = verdicts.place(root, field.task, who)
    verdicts.write(path, about, lines)
    return path

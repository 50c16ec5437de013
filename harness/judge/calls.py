"""Calls to a judge, kept by the content of what was asked and how, so that none that succeeded is made twice."""

import dataclasses
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from harness.cell import Message
from harness.identity import fingerprint
from harness.store import read_result, write_result
from harness.verdicts import FOLDER


@dataclass(frozen=True)
class Call:
    model: str
    messages: list[Message]
    settings: dict[str, Any]

    @cached_property
    def name(self) -> str:
        """Sha256 (hex) of all of it."""
        return fingerprint({"model": self.model, "messages": self.messages, "settings": self.settings})

    @property
    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Reply:
    text: str
    prompt_tokens: int | None = None  # where the judge says
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Refused:
    """This call cannot be answered as it is; others may."""

    why: str


@dataclass(frozen=True)
class Unanswered:
    """Tried again for as long as allowed; it may be answered later."""

    why: str


class OutageError(Exception):
    """Nobody answers any more, or no more may be asked; what was answered is kept. Its text says why."""


Outcomes = Generator[tuple[Call, Reply | Refused | Unanswered], None, None]
Keep = Callable[["Call", "Reply"], None]  # called with each reply the moment it is there, from any thread


class Caller(Protocol):
    """Who makes calls: `harness.judge.endpoint.Endpoint` or `harness.judge.local.Local`."""

    name: str  # of the model, as it stands in each call

    def ask(self, calls: list[Call], keep: Keep) -> Outcomes:
        """Each call's outcome, as they come. Raises OutageError where it is no use to go on."""


class Kept:
    """The replies below a sweep's folder: one file each, which is there whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER / "calls"

    def _place(self, call: Call) -> Path:
        return self.folder / call.name[:2] / f"{call.name}.json"

    def get(self, call: Call) -> Reply | None:
        """Raises HarnessError where a byte of it has changed."""
        path = self._place(call)
        return Reply(**read_result(path)["reply"]) if path.exists() else None

    def put(self, call: Call, reply: Reply) -> None:
        asked = {"model": call.model, "settings": call.settings}
        with suppress(FileExistsError):  # another process asked the same meanwhile; whoever was first is believed
            write_result(self._place(call), {**asked, "reply": dataclasses.asdict(reply)})


@dataclass
class Tally:
    """What became of some calls. `stopped` is why not all of them were tried."""

    replies: dict[str, Reply]  # by the call's name
    made: int = 0  # now, not found kept
    refused: int = 0
    unanswered: int = 0
    first_refusal: str = ""
    stopped: str = ""


def answer(calls: Iterable[Call], caller: Caller, kept: Kept, on_done: Callable[[], object] = lambda: None) -> Tally:
    """Replies to all `calls`, of those that are kept without asking. Each is kept as it comes.

    An outage is no error here, but `Tally.stopped`. `on_done` hears of each new reply.
    """
    distinct = {call.name: call for call in calls}
    found = {name: kept.get(call) for name, call in distinct.items()}
    tally = Tally({name: reply for name, reply in found.items() if reply})
    waiting = [call for name, call in distinct.items() if not found[name]]
    try:
        with closing(caller.ask(waiting, kept.put)) as outcomes:  # an interrupt stops it at once, not when it is freed
            for call, outcome in outcomes:
                match outcome:
                    case Reply():
                        tally.replies[call.name] = outcome
                        tally.made += 1
                    case Refused(why):
                        tally.refused += 1
                        tally.first_refusal = tally.first_refusal or why
                    case Unanswered():
                        tally.unanswered += 1
                on_done()
    except OutageError as error:
        tally.stopped = str(error)
    return tally

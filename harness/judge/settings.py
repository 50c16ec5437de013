"""Who judges, what it is asked, how its reply is read: `harness judge`'s configuration. No torch here."""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import jinja2
from jinja2.sandbox import SandboxedEnvironment
from omegaconf import MISSING

from harness.cell import Base, Message, Run, Task
from harness.errors import HarnessError
from harness.secrets import hide, refuse

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TEXTS = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


@dataclass
class Prompt:
    """What a judge is asked of an item, and how its reply is read. One file each in conf/judge/.

    `system` and `user` are Jinja templates of ``question``, ``reference`` (empty where the item has none) and ``first``
    and ``second``, or ``answer``, if it is judged `alone`.
    """

    name: str = MISSING
    system: str = ""
    user: str = MISSING
    alone: bool = False  # one answer is rated; else two are compared, in both orders
    verdict: str = MISSING  # a regular expression whose one group is the verdict, wherever it stands in the reply
    # A verdict -> what the first answer won; alone, its rating, or what is wrong with it (`analysis.mistakes.CLASSES`).
    means: dict[str, Any] = field(default_factory=dict)
    max_tokens: int = 1024  # of a reply

    def messages(self, **texts: str) -> list[Message]:
        said = [("system", self.system), ("user", self.user)]
        return [{"role": role, "content": _TEXTS.from_string(text).render(texts)} for role, text in said if text]

    @property
    def sorts(self) -> bool:
        """Whether it says what is wrong with wrong answers."""
        return any(isinstance(meant, str) for meant in self.means.values())

    def read(self, reply: str) -> float | str | None:
        """What the reply says; None where it says nothing that was asked for, or two things at once."""
        found = {self.means.get(verdict) for verdict in re.findall(self.verdict, reply)}
        return found.pop() if len(found) == 1 else None

    def check(self) -> None:
        try:
            groups = re.compile(self.verdict).groups
        except re.error as error:
            raise HarnessError(f"judge.prompt.verdict is no regular expression: {error}") from error
        if groups != 1:
            raise HarnessError(f"judge.prompt.verdict has {groups} groups; give it one, the verdict")
        from analysis.mistakes import CLASSES

        if self.sorts and (not self.alone or set(self.means.values()) - set(CLASSES)):
            raise HarnessError(f"judge.prompt.means says of one answer what is wrong with it: {', '.join(CLASSES)}")
        if not self.means or (not self.alone and set(self.means.values()) - {0.0, 0.5, 1.0}):
            raise HarnessError(
                "judge.prompt.means says what each verdict means: 1, 0.5 or 0 for the first of two answers"
            )
        names = ("answer",) if self.alone else ("first", "second")
        try:
            self.messages(question="", reference="", **dict.fromkeys(names, ""))
        except jinja2.TemplateError as error:
            raise HarnessError(f"judge.prompt has a template that cannot be written: {error}") from error


@dataclass
class Judge:
    """An OpenAI-compatible endpoint (`url`, `model`), or a model that is loaded here (`base`), and what it is asked.

    It is greedy. What matters to a verdict is `identity`; the rest may change from one command to the next.
    """

    prompt: Prompt = field(default_factory=Prompt)
    url: str = ""  # e.g. http://127.0.0.1:8000/v1
    model: str = ""  # its name there
    key_variable: str = ""  # the environment variable with the endpoint's key; none is sent if this is empty
    base: Base | None = None  # judge here, with this model: base@judge.base=NAME, or {name: mine, path: folder}
    extra: dict[str, Any] = field(
        default_factory=dict
    )  # of a request's body (+judge.extra.NAME=...); null leaves one out
    against: str = "base"  # whom each cell meets on every item: base, untouched | reference, the target | none
    rounds: int = 1  # on every item the cells sit in a circle, anew each round, and each meets its neighbours
    max_calls: int = 10_000  # to the endpoint, tries again included, of one command
    concurrency: int = 4  # calls at once
    timeout: float = 120.0  # seconds for a try
    patience: float = 300.0  # seconds for which a call is tried again
    price_in: float = 0.0  # of a million tokens read, in any currency
    price_out: float = 0.0  # and written

    def settings(self) -> dict[str, Any]:
        """Of a request's body, what is neither the model nor the messages."""
        body = {"temperature": 0, "max_tokens": self.prompt.max_tokens, **self.extra}
        return {name: value for name, value in body.items() if value is not None}

    def most_calls(self, items: int, cells: int, bases: int) -> int:
        """Of so many cells, the untouched bases counted: known before anything is answered, so no tie is taken off."""
        if self.prompt.alone:
            return items * cells
        pairs = cells * (cells - 1) // 2
        circle = min(self.rounds * cells, pairs)
        matches = {"base": min(cells - bases + circle, pairs), "reference": cells + circle, "none": circle}
        return 2 * items * matches[self.against]

    def identity(self, model: str) -> dict[str, Any]:
        return {"model": model, "prompt": dataclasses.asdict(self.prompt), "settings": self.settings()}

    @cached_property
    def key(self) -> str:
        if not self.key_variable:
            return ""
        if not (key := os.environ.get(self.key_variable, "").strip()):  # not repeated here: it may be the key itself
            raise HarnessError("judge.key_variable names no environment variable that is set; give its name, not a key")
        if not (key.isascii() and key.isprintable()):
            raise HarnessError(f"what {self.key_variable} holds cannot be sent; a key is one line of ASCII characters")
        hide(key)
        return key

    def check(self) -> None:
        """Raise HarnessError where the settings do not go together, or one of them holds the key."""
        if self.key:
            refuse(dataclasses.asdict(self), "judge")
        self.prompt.check()
        if bool(self.url) == bool(self.base):
            raise HarnessError("say who judges: judge.url=... judge.model=..., or base@judge.base=NAME")
        if self.against not in ("base", "reference", "none"):
            raise HarnessError(f"judge.against={self.against!r} is unknown; use base, reference or none")
        for name in ("max_calls", "concurrency", "timeout", "patience"):
            if getattr(self, name) <= 0:
                raise HarnessError(f"judge.{name}={getattr(self, name)} must be more than 0")
        if self.rounds < 0:
            raise HarnessError(f"judge.rounds={self.rounds} must be 0 or more")
        if self.base and self.extra:
            raise HarnessError("judge.extra is for an endpoint; leave it out where judge.base is loaded here")
        if self.url:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise HarnessError(f"judge.url={self.url!r} is no address; give e.g. http://127.0.0.1:8000/v1")
            if not self.model:
                raise HarnessError("judge.model is not given; it is the name that the endpoint has for the judge")
            if self.key and parts.scheme == "http" and parts.hostname not in LOOPBACK:
                raise HarnessError(f"judge.url={self.url!r} would send the key in the clear; use https")


@dataclass
class Judging:
    """What `harness judge` composes: conf/judging.yaml."""

    judge: Judge = field(default_factory=Judge)
    evals: dict[str, Task] = field(default_factory=dict)
    run: Run = field(default_factory=Run)

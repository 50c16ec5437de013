"""An OpenAI-compatible endpoint as a judge: a few calls at once, each tried again where it may help.

Timeouts, broken connections, 408, 429, 5xx and what is no JSON of the kind are tried again, after a random part of a
delay that doubles (full jitter), and not before a Retry-After. Where one call has waited for `judge.patience` seconds
and no other was answered meanwhile, nobody is there: all stop.
"""

import email.utils
import http.client
import itertools
import json
import math
import random
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

from harness.errors import HarnessError
from harness.judge.calls import Call, Keep, OutageError, Outcomes, Refused, Reply, Unanswered
from harness.judge.settings import LOOPBACK, Judge
from harness.secrets import HIDDEN, redacted

FIRST, LONGEST = 0.5, 60.0  # seconds: the first delay, at most, and the longest
AGAIN = (408, 425, 429)  # and all from 500
OURS = (400, 413, 422)  # what is wrong with this one call, e.g. too long for the model's context
FEW = 8  # refused one after another from the first on: it is the settings, not the calls
SHOWN = 300  # characters of what an endpoint says of its errors
MOST = 4 << 20  # bytes of an answer; no verdict is as long


class _AgainError(Exception):
    """A try that failed, and may not fail again; `after` seconds at least."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class _RefusedError(Exception):
    pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is sent on arrives as a GET, with the key, wherever it says."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """For one `ask`: stopped once, it stays so."""

    def __init__(self, judge: Judge, *, first_delay: float = FIRST) -> None:
        self.judge, self.name, self.first_delay = judge, judge.model, first_delay
        self.tries = 0  # sent, of `judge.max_calls`
        self.again = 0  # of them, those that were not a call's first
        self._at = judge.url.rstrip("/") + "/chat/completions"
        local = urlsplit(judge.url).hostname in LOOPBACK  # which no proxy can reach
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._stop, self._lock, self._why = threading.Event(), threading.Lock(), ""
        self._answered = -math.inf  # when a call was last

    def ask(self, calls: list[Call], keep: Keep) -> Outcomes:
        """See `harness.judge.calls.Caller`. Left early, it waits for the calls under way, which are paid for."""
        refused_first = 0
        pool = ThreadPoolExecutor(self.judge.concurrency, thread_name_prefix="judge")
        try:
            waiting = {pool.submit(self._call, call, keep): call for call in calls}
            stopped: OutageError | None = None
            for done in as_completed(waiting):
                if done.cancelled():
                    continue
                try:
                    outcome = done.result()
                except OutageError as error:  # what is under way may still be answered, and was paid for
                    stopped = stopped or error
                    for other in waiting:
                        other.cancel()
                    continue
                refused_first = refused_first + 1 if isinstance(outcome, Refused) and refused_first >= 0 else -1
                if refused_first >= FEW and isinstance(outcome, Refused):
                    raise HarnessError(f"the judge refused the first {FEW} calls: {outcome.why}")
                yield waiting[done], outcome
            if stopped:
                raise stopped
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _call(self, call: Call, keep: Keep) -> Reply | Refused | Unanswered:
        """Raises OutageError where no call is worth another try, HarnessError where the settings are wrong."""
        began = time.monotonic()
        for number in itertools.count():
            self._take(number)
            try:
                reply = self._try(call)
            except _RefusedError as refusal:
                return Refused(self._clean(str(refusal)))
            except _AgainError as failure:
                delay = min(self.first_delay * 2**number, LONGEST)
                wait = max(random.uniform(0, delay), failure.after)
                if time.monotonic() + wait - began > self.judge.patience:
                    return self._give_up(self._clean(str(failure)), began)
                self._stop.wait(wait)
            else:
                keep(call, reply)
                self._answered = time.monotonic()
                return reply
        raise AssertionError

    def _take(self, number: int) -> None:
        """One of the tries that are allowed; `number` of this call were made before."""
        with self._lock:
            if self.tries >= self.judge.max_calls and not self._why:
                self._why = f"judge.max_calls={self.judge.max_calls:,} are used up, {self.again:,} by tries again"
                self._stop.set()
            if self._stop.is_set():
                raise OutageError(self._why)
            self.tries += 1
            self.again += number > 0

    def _give_up(self, why: str, began: float) -> Unanswered:
        if self._answered > began:
            return Unanswered(why)
        with self._lock:
            self._why = self._why or f"the judge at {redacted(self.judge.url)} does not answer: {why}"
            self._stop.set()
            raise OutageError(self._why)

    def _try(self, call: Call) -> Reply:
        body = json.dumps({"model": call.model, "messages": call.messages, **call.settings}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.judge.key:
            headers["Authorization"] = f"Bearer {self.judge.key}"
        request = urllib.request.Request(self._at, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.judge.timeout) as response:
                return self._reply(_whole(response, time.monotonic() + self.judge.timeout))
        except urllib.error.HTTPError as error:
            self._refuse(error)
            raise AssertionError from error  # it always raises
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            raise _AgainError(f"{type(error).__name__}: {getattr(error, 'reason', '') or error}") from error

    def _refuse(self, error: urllib.error.HTTPError) -> None:
        """Raise what an HTTP status means."""
        try:
            said = self._clean(error.read(1 << 16).decode(errors="replace"))[:SHOWN]
        except (OSError, http.client.HTTPException):
            said = ""
        told = f"status {error.code} ({error.reason}) {said}".strip()
        if error.code in AGAIN or error.code >= 500:
            raise _AgainError(told, retry_after(error.headers.get("Retry-After"))) from error
        if error.code in OURS:
            raise _RefusedError(told) from error
        raise HarnessError(
            f"the judge at {redacted(self.judge.url)} gives {self._clean(told)}; check judge.url, judge.model and the "
            "variable that judge.key_variable names"
        ) from error

    def _clean(self, text: str) -> str:
        """One line for a terminal: without the key, however short it is, all that is known to be one, and control
        characters. To be cut after this, as half a key would not be known."""
        told = redacted(text.replace(self.judge.key, HIDDEN) if self.judge.key else text)
        return "".join(c if c.isprintable() else "?" for c in " ".join(told.split()))

    def _reply(self, content: bytes) -> Reply:
        """What an endpoint that nobody vouches for has sent; none of it is believed to be of the right kind."""
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"]["content"]
            usage = answer.get("usage") or {}
            tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            said = self._clean(content[: 1 << 16].decode(errors="replace"))
            raise _AgainError(f"what came is no chat completion: {said[:80]!r}") from error
        if text is not None and not isinstance(text, str):
            raise _AgainError(f"what came is no text: {self._clean(str(text))[:80]!r}")
        kept = redacted(text or "").encode(errors="replace").decode()  # half a surrogate pair can be in no file
        return Reply(kept, *(n if type(n) is int and n >= 0 else None for n in tokens))


def _whole(response: http.client.HTTPResponse, end: float) -> bytes:
    """All of the body, of which no more than `MOST` bytes are read, and none after `end` (`time.monotonic`)."""
    content = bytearray()
    while part := response.read1(1 << 16):
        content += part
        if len(content) > MOST:
            raise _RefusedError(f"a reply of more than {MOST:,} bytes")
        if time.monotonic() > end:
            raise _AgainError("a reply that is not whole in judge.timeout")
    return bytes(content)


def retry_after(header: str | None, now: float | None = None) -> float:
    """Seconds to wait by a Retry-After of seconds or of a date (RFC 9110, 10.2.3); 0 where it says neither."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        when = email.utils.parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return max(when - (time.time() if now is None else now), 0.0)

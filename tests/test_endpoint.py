"""Calls to an HTTP endpoint: every fault is tried again or told, no key goes elsewhere, no reply is asked for twice."""

import json
import socket
import time
from email.utils import formatdate

import pytest

from harness.errors import HarnessError
from harness.judge.calls import Call, Kept, Reply, answer
from harness.judge.endpoint import MOST, Endpoint, retry_after
from tests.judge_server import cut_off, hang, send, serving
from tests.test_judge import composed, parrot, settings, some

hanging = hang(1.5)


@pytest.mark.parametrize(
    "faults",
    [
        [send(500, "oh"), send(503, "no")], [send(429, "slow down", Retry_After="0")], [send(408, "")], [hanging],
        [cut_off],
        [send(200, "<html>gateway</html>")], [send(200, '{"choices": []}')],
        [send(200, '{"choices": [{"message": 3}]}')],
        [lambda request: request.connection.shutdown(socket.SHUT_RDWR)],
    ],
    ids="5xx 429 408 hang cut html none odd broken".split(),
)  # fmt: skip
def test_a_fault_is_tried_again(faults, tmp_path):
    with serving(parrot) as server:
        server.faults += faults
        wait = 0.5 if hanging in faults else 30.0
        endpoint = Endpoint(settings(url=server.url, concurrency=1, timeout=wait), first_delay=0.02)
        tally = answer(some(3), endpoint, Kept(tmp_path))
    assert [tally.replies[call.name].text for call in some(3)] == ["call 0", "call 1", "call 2"]
    assert (tally.made, endpoint.tries, endpoint.again) == (3, 3 + len(faults), len(faults))
    assert (tally.stopped, tally.refused, tally.unanswered) == ("", 0, 0)


def test_what_a_judge_asks_to_wait_is_waited(tmp_path):
    with serving(parrot) as server:
        server.faults.append(send(429, "", Retry_After="1"))
        began = time.monotonic()
        tally = answer(some(1), Endpoint(settings(url=server.url), first_delay=0.01), Kept(tmp_path))
    assert tally.made == 1
    assert time.monotonic() - began >= 1
    with serving(parrot) as server:
        server.faults += [send(429, "busy", Retry_After="3600")]
        tally = answer(some(1), Endpoint(settings(url=server.url), first_delay=0.01), Kept(tmp_path / "other"))
    assert "does not answer: status 429 (Too Many Requests) busy" in tally.stopped, "an hour is more than its patience"


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("12") == 12
    assert retry_after(formatdate(1_000_030, usegmt=True), now=1_000_000) == 30
    assert retry_after(formatdate(999_000, usegmt=True), now=1_000_000) == 0
    odd = (None, "", "soon", "nan", "-5", "Mon, 01 Jan 0001 00:00:00 -0000")
    assert [retry_after(text) for text in odd] == [0.0] * len(odd)
    assert retry_after("9" * 400) > 1e9


def test_what_cannot_be_mended_is_one_line_without_the_key(monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGES_ENTRANCE", "correct-horse-battery")  # not named like a secret
    with serving(parrot) as server:
        judge = settings(url=server.url, key_variable="JUDGES_ENTRANCE")
        server.faults.append(lambda request: send(401, f"bad {request.headers['Authorization']}")(request))
        with pytest.raises(HarnessError, match=r"status 401 .*bad Bearer \[redacted\]; check judge.url") as refused:
            answer(some(1), Endpoint(judge), Kept(tmp_path))
        assert "horse" not in str(refused.value)
        server.faults.append(lambda request: send(401, "x" * 290 + request.headers["Authorization"])(request))
        with pytest.raises(HarnessError, match="status 401") as refused:
            answer(some(1), Endpoint(judge), Kept(tmp_path))
        assert "corr" not in str(refused.value), "nor the half of it, where what it says is cut"
        server.judge = lambda body: "A\nbecause of correct-horse-battery"
        tally = answer(some(1), Endpoint(judge), Kept(tmp_path))
        assert server.seen[-1][0]["Authorization"] == "Bearer correct-horse-battery"
        assert [reply.text for reply in tally.replies.values()] == ["A\nbecause of [redacted]"], "if it is told"
        answer(some(2), Endpoint(settings(url=server.url)), Kept(tmp_path))
        assert "Authorization" not in server.seen[-1][0], "a key is sent where one is named, and nowhere else"
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"horse" not in kept


def completion(text):
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": True}})


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (completion("A\ud800"), "A?"), (completion("A\0\x1b[2J"), "A\0\x1b[2J"), (completion(None), ""),
        ("[" * 100_000, "call 0"), ('{"choices": [{"message": {"content": ["A"]}}]}', "call 0"), ("1e999", "call 0"),
        ('{"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": -1e999}}', "A"),
    ],
    ids="surrogate control null deep list number usage".split(),
)  # fmt: skip
def test_a_reply_of_any_kind_is_kept_or_asked_for_again(sent, text, tmp_path):
    with serving(parrot) as server:
        server.faults.append(send(200, sent))
        tally = answer(some(1), Endpoint(settings(url=server.url), first_delay=0.01), Kept(tmp_path))
        (reply,) = tally.replies.values()
        assert (reply.text, len(server.seen)) == (text, 1 + (text == "call 0"))
        assert text == "call 0" or reply.prompt_tokens is None
    assert Kept(tmp_path).get(*some(1)) == reply


def drip(request):
    """An answer that never ends, a byte at a time."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b" ")
        time.sleep(0.05)


def test_a_reply_that_never_ends_is_left(tmp_path):
    with serving(parrot) as server:
        server.faults.append(drip)
        judge = settings(url=server.url, timeout=0.5)
        tally = answer(some(1), Endpoint(judge, first_delay=0.01), Kept(tmp_path))
        assert (tally.made, len(server.seen)) == (1, 2)
        server.faults.append(send(200, " " * (MOST + 1)))
        tally = answer(some(2), Endpoint(settings(url=server.url, concurrency=1)), Kept(tmp_path))
    assert (tally.refused, tally.first_refusal) == (1, "a reply of more than 4,194,304 bytes")


def test_what_an_endpoint_says_of_its_errors_cannot_write_on_the_terminal(tmp_path):
    with serving(parrot) as server:
        server.faults.append(send(403, "\x1b[2Jgone\nharness: all is well"))
        with pytest.raises(HarnessError, match="403") as refused:
            answer(some(1), Endpoint(settings(url=server.url)), Kept(tmp_path))
    assert "?[2Jgone harness: all is well" in str(refused.value)


def test_reading_a_long_reply_takes_no_longer_than_it_is_long():
    for style in ("alpaca_eval", "mt_bench", "likert"):
        for part in ("\n", " ", "*", "Answer ", "[[", "1 "):
            began = time.monotonic()
            assert composed(style).prompt.read(part * (MOST // 8 // len(part)) + "x") is None
            assert time.monotonic() - began < 5, (style, part)


def test_no_redirect_takes_the_key_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", "correct-horse-battery")
    with serving(parrot) as other, serving(parrot) as server:
        server.faults.append(send(307, "", Location=f"{other.url}/chat/completions"))
        with pytest.raises(HarnessError, match="status 307"):
            answer(some(1), Endpoint(settings(url=server.url, key_variable="JUDGE_KEY")), Kept(tmp_path))
        assert not other.seen


def test_a_call_that_is_refused_is_counted_and_a_judge_that_refuses_all_is_said_so(tmp_path):
    def short(body):
        return parrot(body)

    with serving(short) as server:
        server.faults.append(send(400, "context is 4 tokens"))
        tally = answer(some(3), Endpoint(settings(url=server.url, concurrency=1)), Kept(tmp_path))
        assert (tally.made, tally.refused, tally.first_refusal) == (
            2,
            1,
            "status 400 (Bad Request) context is 4 tokens",
        )
        tally = answer(some(3), Endpoint(settings(url=server.url)), Kept(tmp_path))
        assert (tally.made, tally.refused) == (1, 0), "what was refused is not kept as if it had been answered"
        server.faults += [send(422, "temperature is not supported")] * 30
        with pytest.raises(HarnessError, match=r"refused the first 8 calls: status 422.*temperature"):
            answer(some(40), Endpoint(settings(url=server.url)), Kept(tmp_path / "other"))


def test_no_more_is_sent_than_allowed_tries_again_included(tmp_path):
    with serving(parrot) as server:
        server.faults += [send(500, "")] * 4
        tally = answer(
            some(10), Endpoint(settings(url=server.url, max_calls=10, concurrency=1), first_delay=0.01), Kept(tmp_path)
        )
        assert len(server.seen) == 10
        assert (tally.made, tally.stopped) == (6, "judge.max_calls=10 are used up, 4 by tries again")
        tally = answer(some(10), Endpoint(settings(url=server.url, max_calls=10)), Kept(tmp_path))
        assert (tally.made, len(tally.replies), len(server.seen)) == (4, 10, 14)


def test_a_call_is_another_where_the_model_the_prompt_or_a_setting_is(tmp_path):
    one = Call("m", [{"role": "user", "content": "x"}], {"max_tokens": 4, "temperature": 0})
    kept = Kept(tmp_path)
    kept.put(one, Reply("first"))
    kept.put(one, Reply("second"))
    assert kept.get(one) == Reply("first"), "whoever was first is believed"
    for other in (
        Call("n", one.messages, one.settings),
        Call("m", [{"role": "user", "content": "y"}], one.settings),
        Call("m", one.messages, {"max_tokens": 5, "temperature": 0}),
    ):
        assert kept.get(other) is None
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(path.read_bytes().replace(b"first", b"worst"))
    with pytest.raises(HarnessError, match="does not match its checksum"):
        kept.get(one)


def test_settings_of_a_request_can_be_left_out_and_replaced(tmp_path):
    judge = settings(extra={"temperature": None, "max_tokens": None, "max_completion_tokens": 9})
    assert judge.settings() == {"max_completion_tokens": 9}

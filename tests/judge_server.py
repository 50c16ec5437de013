"""A small real HTTP server with the one route of OpenAI's interface that a judge needs, and faults on order.

python -m tests.judge_server FOLDER PORT    serves the model in FOLDER, by the harness's own decoding
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[BaseHTTPRequestHandler], None]  # answers a request in place of the judge, or does not


class Server(ThreadingHTTPServer):
    """`judge(body)` gives a reply's text; the next requests meet `faults`, in order. `seen` holds all."""

    daemon_threads = True

    def __init__(self, judge: Callable[[dict[str, Any]], str], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.judge, self.faults = judge, list[Fault | None]()
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []  # headers and body
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((dict(self.headers), body))
            fault = self.server.faults.pop(0) if self.server.faults else None
        if self.path != "/v1/chat/completions":
            send(404, "no such route")(self)
        elif fault:
            fault(self)
        else:
            text = self.server.judge(body)
            usage = {"prompt_tokens": 7, "completion_tokens": 1}
            send(200, json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}))(self)

    def handle(self) -> None:
        with suppress(ConnectionError):  # whoever asked has gone
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


def send(status: int, text: str, **headers: str) -> Fault:
    """An answer of this status."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(text.encode())))
        request.end_headers()
        request.wfile.write(text.encode())

    return answer


def hang(seconds: float) -> Fault:
    return lambda _: time.sleep(seconds)


def cut_off(request: BaseHTTPRequestHandler) -> None:
    """Half an answer."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"choices": [')


@contextmanager
def serving(judge: Callable[[dict[str, Any]], str], port: int = 0) -> Iterator[Server]:
    with Server(judge, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def main(folder: str, port: str) -> None:
    import torch

    from harness.cell import Base, Run
    from harness.judge.calls import Call
    from harness.judge.local import Local

    torch.set_num_threads(1)
    local, one = Local(Base(name="served", path=folder, dtype="float32"), Run(device="cpu")), threading.Lock()

    def judge(body: dict[str, Any]) -> str:
        with one:
            ((_, reply),) = local.ask([Call("", body["messages"], {"max_tokens": body["max_tokens"]})], lambda *_: None)
        return reply.text  # type: ignore[union-attr]

    judge({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
    with Server(judge, int(port)) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

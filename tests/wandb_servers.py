"""Servers on this machine that stand where W&B's would: those that do not do what one hopes for, and one that does.

What a real one does with a run that is sent again is documented only; `Accepting` does as the documentation says.
"""

import contextlib
import gzip
import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any


class Quiet(http.server.BaseHTTPRequestHandler):
    """Answers what is asked, as one does who has nothing."""

    def do_GET(self) -> None:
        self.answer(200, {})

    def answer(self, status: int, what: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(what).encode())

    def body(self) -> Any:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        return json.loads(gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Refusing(Quiet):
    """Answers, and accepts no key."""

    def do_POST(self) -> None:
        self.body()
        self.answer(401, {"errors": [{"message": "user is not logged in"}]})


class Stalling(Quiet):
    """Answers, and takes no end over anything that matters."""

    over = threading.Event()

    def do_POST(self) -> None:
        self.over.wait()


class Accepting(Quiet):
    """Keeps the runs of one project, by their ids."""

    def do_POST(self) -> None:
        asked, held = self.body(), self.server.held  # type: ignore[attr-defined]
        if self.path.endswith("/file_stream"):
            held.stream(self.path.split("/")[-2], asked)
            self.answer(200, {})
        else:
            held.asked.append(asked)
            operation = re.search(r"(?:query|mutation) +(\w+)", asked["query"])
            assert operation
            self.answer(200, {"data": held.graphql(operation[1], asked.get("variables") or {})})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, {})


class Held:
    """What an accepting server keeps: `runs` by id; `deaf`: it loses what is streamed to it."""

    def __init__(self, address: str) -> None:
        self.address, self.deaf = address, False
        self.asked: list[dict[str, Any]] = []
        self.runs: dict[str, dict[str, Any]] = {}

    def graphql(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": self.upsert(given), "inserted": True}}
            case "CreateRunFiles":
                urls = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": urls}}
            case "RunResumeStatus":
                return {"model": {"id": "1", "bucket": self.resumed(self.runs.get(given["name"]))}}
            case "Runs":
                edges = [{"cursor": name, "node": self.node(name)} for name in self.runs]
                page = {"endCursor": None, "hasNextPage": False}
                found = {"internalId": "1", "runCount": len(edges), "runs": {"edges": edges, "pageInfo": page}}
                return {"project": found if self.runs else None}
        return {}

    def upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(given["name"], {"history": [], "summary": {}, "config": {}, "tags": [], "sent": 0})
        run |= {"state": "running", "name": given["displayName"] or run.get("name")}
        run["config"] = json.loads(given["config"]) if given["config"] else run["config"]
        run["tags"] = given["tags"] if given["tags"] is not None else run["tags"]
        project = {"id": "1", "name": "mine", "entity": {"id": "1", "name": "me"}}
        return {"id": given["name"], "name": given["name"], "displayName": run["name"], "project": project}

    def stream(self, name: str, asked: dict[str, Any]) -> None:
        run = self.runs[name]
        for file, chunk in asked.get("files", {}).items() if not self.deaf else []:
            lines = [json.loads(line) for line in chunk["content"]]
            if file == "wandb-history.jsonl":
                run["sent"] += len(lines)
                run["history"][chunk["offset"] :] = lines
            elif file == "wandb-summary.json":
                run["summary"] = lines[-1]
        if asked.get("complete") and not self.deaf:
            run["state"] = "failed" if asked["exitcode"] else "finished"

    def node(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        about = {"id": name, "name": name, "displayName": run["name"], "state": run["state"], "tags": run["tags"]}
        held = {"config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"]), "projectId": "1"}
        return {**about, **held, "historyLineCount": len(run["history"]), "user": {"name": "me", "username": "me"}}

    def resumed(self, run: dict[str, Any] | None) -> dict[str, Any] | None:
        if run is None:
            return None
        tail = json.dumps([json.dumps(run["history"][-1])]) if run["history"] else "[]"
        held = {"summaryMetrics": json.dumps(run["summary"]), "config": json.dumps(run["config"]), "historyTail": tail}
        counts = {"historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]"}
        return {"name": run["name"], "id": "1", "tags": run["tags"], "wandbConfig": '{"t": 1}', **held, **counts}


@contextlib.contextmanager
def serving(handler: type[Quiet]) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        Stalling.over.set()
        server.shutdown()
    Stalling.over.clear()


@contextlib.contextmanager
def accepting() -> Iterator[Held]:
    with serving(Accepting) as server:
        server.held = Held(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        yield server.held  # type: ignore[attr-defined]


@contextlib.contextmanager
def loopback(kind: str) -> Iterator[str]:
    """The address of a server that is closed, mute (accepts and never answers), refusing (knows no key) or stalling."""
    if kind in ("refusing", "stalling"):
        with serving(Refusing if kind == "refusing" else Stalling) as server:
            yield f"http://127.0.0.1:{server.server_address[1]}"
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            if kind == "closed":
                listener.close()
            yield address

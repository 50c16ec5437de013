"""A hub of our own on this machine, that moves a branch and goes away: what was fetched by commit goes on working."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from harness import store
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)

A, B = "a" * 40, "b" * 40
ROOT = Path(__file__).parent.parent
# Gives the command lines it reads to `harness`, in one process: starting one takes longer than the commands.
SHELL = """
import shlex, sys
from harness.__main__ import main
from harness.hub import commit_of
for line in sys.stdin:
    commit_of.cache_clear()  # as in a new process
    sys.argv = ["harness", *shlex.split(line)]
    try:
        main()
    except SystemExit as end:
        print("status", end.code, flush=True)
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a model needs."""

    folder: ClassVar[Path]
    main: ClassVar[str] = A
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = sorted(f.name for f in self.folder.iterdir())
        match path.strip("/").split("/"):
            case ["api", "models", "org", "tiny", *rest] if rest in ([], ["revision", "main"]):
                self.answer(json.dumps({"id": "org/tiny", "sha": self.main, "siblings": []}).encode())
            case ["api", "models", "org", "tiny", "revision", commit] if commit in (A, B):
                self.answer(json.dumps({"id": "org/tiny", "sha": commit, "siblings": []}).encode())
            case ["api", "models", "org", "tiny", "tree", commit] if commit in (A, B):
                listed = [
                    {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in files
                ]
                self.answer(json.dumps(listed).encode())
            case ["org", "tiny", "resolve", commit, name] if name in files and commit in (A, B):
                self.answer((self.folder / name).read_bytes(), {"X-Repo-Commit": commit})
            case ["org", "tiny", *_] | ["api", "models", "org", "tiny", "tree", *_]:
                self.answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)
            case ["api", "models", "org", "tiny", "revision", _]:
                self.answer(b"", {"X-Error-Code": "RevisionNotFound"}, 404)
            case _:
                self.answer(b"", {"X-Error-Code": "RepoNotFound"}, 404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        etag = hashlib.sha256(body).hexdigest()
        for name, value in {"ETag": f'"{etag}"', "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[ThreadingHTTPServer]:
    Hub.folder, Hub.main = tiny_folder, A
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.server_close()


def test_a_commit_once_fetched_outlives_the_hub_and_a_moved_branch_is_told(
    hub: ThreadingHTTPServer,
    config_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    (config_dir / "base" / "remote.yaml").write_text("name: remote\npath: org/tiny\ndtype: float32\n")
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {k: v for k, v in os.environ.items() if k not in offline} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HARNESS_CACHE": str(tmp_path / "cache"),
        "HARNESS_CONFIG_DIR": str(config_dir),
        "PYTHONPATH": str(ROOT),
    }
    told = tmp_path / "told"
    with told.open("w") as errors:
        shell = subprocess.Popen(
            [sys.executable, "-c", SHELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            cwd=tmp_path, env=environment,
        )  # fmt: skip

    def harness(command: str, *overrides: str) -> tuple[int, str, str]:
        """(exit status, output, what is new on stderr)"""
        assert shell.stdin
        assert shell.stdout
        before = len(told.read_text())
        cell = "data=pairs evals=quiz method=sft run.device=cpu run.threads=1 wandb.mode=disabled"
        print(command, cell, *overrides, file=shell.stdin, flush=True)
        lines = []
        for line in shell.stdout:
            if line.startswith("status "):
                return int(line.split()[1]), "".join(lines), told.read_text()[before:]
            lines.append(line)
        raise AssertionError(told.read_text())

    status, _, err = harness("run", "base=remote", "size=2")
    assert status == 0, (err, Hub.asked)
    (record,) = tmp_path.rglob(store.RECORD)
    assert store.read_result(record)["identity"]["base"]["identity"] == f"commit:{A}"

    for gone in ("org/other", "not a/valid//id"):
        status, _, err = harness("run", "base=remote", f"'base.path={gone}'", "size=2")
        assert (status, "is neither a path here nor a model on the hub" in err) == (2, True), err
    status, _, err = harness("run", "base=remote", "base.revision=v9", "size=2")
    assert (status, "has no revision 'v9' on the hub" in err) == (2, True), err

    Hub.main = B  # the branch moves
    status, _, err = harness("run", "base=remote", "size=2")
    assert (status, f"base.identity: commit:{A} -> commit:{B}" in err) == (2, True), err
    Hub.main = A
    assert harness("run", "base=remote", "size=2")[0] == 0

    hub.shutdown()
    hub.server_close()  # the hub goes
    asked = len(Hub.asked)
    status, _, err = harness("run", "base=remote", "size=2")
    assert status == 0, err
    status, _, err = harness("run", "base=remote", "size=3")  # a new cell trains on what was fetched
    assert status == 0, err
    identities = [store.read_result(r)["identity"]["base"]["identity"] for r in tmp_path.rglob(store.RECORD)]
    assert identities == [f"commit:{A}"] * 2
    status, _, err = harness("run", "base=remote", "base.path=org/never", "size=2")
    assert (status, "the hub cannot be reached for the model 'org/never'" in err) == (2, True), err
    assert err.count("harness: ") == 1
    assert len(Hub.asked) == asked
    shell.stdin.close()
    shell.wait(timeout=60)

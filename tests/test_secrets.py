"""No credential reaches a file, the screen or W&B: refused where it is ours to choose, redacted where it is not."""

import inspect
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from harness import secrets, store
from harness.compose import compose_cell
from harness.errors import HarnessError
from harness.secrets import HIDDEN, redacted
from harness.sweep import read_sweep
from tests.test_cli import harness  # noqa: F401  (a fixture)
from tests.test_sweep import config_dir  # noqa: F401  (a fixture)

ROOT = Path(__file__).parent.parent
SECRETS = {
    "HF_TOKEN": "hf_" + "Canary7" * 5,
    "WANDB_API_KEY": "c0ffee" * 6 + "beef",  # 40 hexadecimal digits
    "MY_SECRET": "correct horse/battery+staple",
    "DB_PASSWORD": "xyzzy-plugh-plover",
}
PIECES = [*SECRETS.values(), "correct%20horse%2Fbattery%2Bstaple", "hunter2", "Canary7Canary7", "tok3ntok3n"]


@dataclass
class Leaky:
    """An Artifact: a base that is there when it is planned with, and not once a cell wants it; the error says how it
    was asked for.
    """

    folder: str

    def identity(self) -> str:
        return "leaky"

    def path(self) -> Path:
        if all(frame.function != "attempt" for frame in inspect.stack()):
            return Path(self.folder)
        secret = os.environ["MY_SECRET"]
        asked = f"https://me:hunter2@host/{quote(secret, safe='')}?access_token=tok3ntok3n&x=1"
        raise RuntimeError(f"GET {asked} with {os.environ['HF_TOKEN']}, {os.environ['WANDB_API_KEY']}: {secret}")


LEAKY = "name: leaky\nmake: {{_target_: tests.test_secrets.Leaky, folder: {folder}}}\n"
CELL = ["data=pairs", "evals=quiz", "size=2", "wandb.mode=offline", "run.device=cpu"]


def leaks(*texts: str) -> list[str]:
    return [piece for piece in PIECES for text in texts if piece in text]


def leaks_in(folder: Path) -> list[tuple[Path, str]]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return [(p, piece) for p in files for piece in PIECES if piece.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    "command",
    [
        ["sweep", "leaks.yaml"],
        ["run", "--multirun", "base=leaky", "method=sft,icl", *CELL],
    ],
    ids=["sweep", "multirun"],
)
def test_what_an_error_says_is_kept_without_them(
    command: list[str],
    config_dir: Path,  # noqa: F811
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    """A real process, its environment full of them, and a cell whose error repeats them all."""
    (config_dir / "base" / "leaky.yaml").write_text(LEAKY.format(folder=tiny_folder))
    axes = "{data: pairs, evals: quiz, size: 2, wandb.mode: offline, run.device: cpu, run.threads: 1}"
    work = tmp_path / "work"
    work.mkdir()
    (work / "leaks.yaml").write_text(f"cell: {axes}\narms: {{a: {{base: leaky, method: sft}}}}\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_DIR")}
    done = subprocess.run(
        [sys.executable, "-m", "harness", *command],
        capture_output=True, text=True, cwd=work, check=False,
        env=environment | SECRETS | {"HARNESS_CONFIG_DIR": str(config_dir), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "RuntimeError: GET https://" in done.stderr
    assert HIDDEN in done.stderr
    failures = list(work.rglob(store.FAILURE))
    assert failures
    for failure in failures:
        trace = store.read_json(failure)["traceback"]
        assert "in path" in trace  # where it happened is told
        assert trace.count(HIDDEN) >= 5
    if command[0] == "sweep":
        assert (work / "runs" / "leaks" / "report.html").exists()
        assert list(work.rglob("*.wandb"))
    else:
        assert list(work.rglob(".hydra/*.yaml"))
    assert not leaks(done.stdout, done.stderr)
    assert not leaks_in(work)


@pytest.mark.parametrize(
    "override",
    [
        f"wandb.entity={SECRETS['HF_TOKEN']}",
        "wandb.entity=pass-xyzzy-plugh-plover",
        "data.sources.pairs.path=https://me:hunter2@host/rows.jsonl",
        "base.path=https://host/model?access_token=tok3ntok3n",
        "base.note=${oc.env:DB_PASSWORD}",
        f"base.nottte={SECRETS['HF_TOKEN']}",
        f"+hydra.job.env_set.X={SECRETS['WANDB_API_KEY']}",
    ],
)
@pytest.mark.parametrize("command", ["run", "sweep", "plan"])
def test_on_the_command_line_they_are_refused(command, override, harness, monkeypatch, tmp_path):  # noqa: F811
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    what = ["mine"] if command != "run" else ["base=tiny", "data=pairs", "evals=quiz", "size=2"]
    status, out, err = harness(command, *what, override)
    assert status == 2
    assert "what looks like a credential" in err
    assert err.count("\n") == 1
    assert not leaks(out, err)
    assert not (tmp_path / "runs").exists()


def test_in_a_configuration_they_are_refused(config_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    (config_dir / "base" / "mine.yaml").write_text("name: mine\npath: https://me:hunter2@host/model\n")
    with pytest.raises(
        HarnessError, match=r"base\.path holds what looks like a credential \(https://\[redacted\]@host"
    ):
        compose_cell(["base=mine", "data=pairs", "evals=quiz"], config_dir)
    sweep = tmp_path / "s.yaml"
    sweep.write_text(f"hypothesis: with {SECRETS['HF_TOKEN']}\narms: {{a: {{base: tiny}}}}\n")
    with pytest.raises(HarnessError, match="hypothesis holds what looks like a credential"):
        read_sweep(sweep)


ORDINARY = [
    "commit 9bdb0ed2f0c1d4a5b6c7d8e9f0a1b2c3d4e5f6a7",
    "the sk-learn-compatible-wrapper-of-2024 and task-with-a-very-long-name-of-its-own",
    "https://huggingface.co/org/name?revision=main&page=2",
    "hf_hub_download of an hf_model, gho st_town",
    "a@b.example and key=value",
    "What is the token? The monkey.",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf_abcdefghijklmnopqrstuvwxyzABCDEF12",
        "ghp_" + "a1" * 18,
        "github_pat_" + "A1b2" * 10,
        "sk-proj-" + "Ab1" * 12,
        "sk-ant-api03-" + "Ab1" * 12,
        "wandb_v1_" + "Ab1" * 20,
        "https://name:word@host/x",
        "https://token@host/x",
        "https://host/x?X-Amz-Signature=abcdef&y=1",
    ],
)
def test_tokens_are_known_by_sight(text: str) -> None:
    assert HIDDEN in redacted(f"before {text} after")
    assert "before " in redacted(f"before {text} after")
    assert " after" in redacted(f"before {text} after")
    with pytest.raises(HarnessError):
        secrets.refuse({"a": [{"b": text}]}, "x")


def test_a_short_value_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be found in ordinary words."""
    monkeypatch.setenv("SORT_KEY", "id")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    assert redacted("a valid idea") == "a valid idea"

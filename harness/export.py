"""A finished cell as a model of its own: base and adapter merged, in a folder that transformers, lm-eval and vLLM load.

The adapter is added to the base's weights in float32, and the sums are rounded once to the type of the base. In
bfloat16 (8 bits) this loses what is below a 256th of a weight; how far it moves the logits is measured and said.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import base as bases
from harness import files, retention, store
from harness.cell import Attempt, Base, Cell
from harness.data.chat import render
from harness.errors import HarnessError

TOLERANCE = 1e-3  # by how much of the largest logit the merged model may differ in float32 before it is refused
PROBE = "What is the capital of France? Answer, then say in two sentences how you know, and name three more capitals."


@dataclass
class Exported:
    """How near the merged model is to base and adapter side by side, on `PROBE`, computed in float32."""

    tokens: int
    merged: float  # the largest difference of a logit
    rounded: float  # the largest difference of a likeliest next token's log-probability, weights rounded to `dtype`
    same_choices: float  # of the tokens, the share whose likeliest next one is then still the same
    dtype: str

    def in_words(self) -> str:
        return (
            f"on {self.tokens} tokens, logits differ by at most {self.merged:.1e} in float32; once weights are rounded "
            f"to {self.dtype}, the likeliest next token's log-probability by at most {self.rounded:.1e}, and it is the "
            f"same one for {self.same_choices:.0%}"
        )


def export(folder: Path, record: dict[str, Any], cell: Cell, target: Path) -> Exported:
    """Write the model of the finished cell in `folder` to `target`, which appears whole or not at all.

    `cell` is the record's, typed. Needs memory for two copies of the base in float32: what was written is loaded again,
    as by anybody, and compared. Raises HarnessError
    where the cell has no adapter, it or the base is not what was evaluated, or `target` holds something.
    """
    if not cell.method.trains:
        where = cell.base.path or "made by the harness, see base.make"
        shots = ", with its examples in the prompt" if cell.method.uses_data else ""
        raise HarnessError(f"method {cell.method.name} trains nothing: its model is the base itself{shots} ({where})")
    retention.check_kept(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HarnessError(f"{target} is there already and not an empty folder; choose another name")
    base = _as_recorded(cell.base, record["identity"]["base"]["identity"])
    with _appearing(target) as scratch:
        exported = _write(base, cell, folder, scratch)
        (scratch / "README.md").write_text(card(target.name, record, exported, folder), encoding="utf-8")
    return exported


def _as_recorded(base: Base, identity: str) -> Base:
    """The base at the commit it had; raises HarnessError where it is not what it was."""
    if identity.startswith("commit:"):
        base = dataclasses.replace(base, revision=identity.removeprefix("commit:"))
    if (now := bases.identity(base)) != identity:
        raise HarnessError(
            f"the base {base.name!r} is not the one that was trained on: {identity[:23]} -> {now[:23]}; "
            "put that one back, the adapter fits no other"
        )
    return base


def _write(base: Base, cell: Cell, folder: Path, scratch: Path) -> Exported:
    import torch
    import transformers

    try:
        loaded = bases.load(base, "cpu")
        _make_float32(loaded.model)
        dtype = getattr(torch, base.dtype)
        text = render(loaded.tokenizer, [{"role": "user", "content": PROBE}], ask=True)
        ids = torch.tensor([loaded.tokenizer(text, add_special_tokens=False).input_ids])
        with cell.method.adapt(loaded, [], cell, Attempt(folder, folder / "checkpoints")) as adapted:
            if adapted.merge is None:
                raise HarnessError(f"method {cell.method.name} does not say how to merge what it trained")
            beside = _logits(adapted.model, ids)
            model = adapted.merge()
            merged = _logits(model, ids)
            rounded = _logits(model.to(dtype).float(), ids)
            likeliest = beside.argmax(-1, keepdim=True)
            moved = (rounded.log_softmax(-1) - beside.log_softmax(-1)).gather(-1, likeliest)
            exported = Exported(
                ids.numel(),
                (merged - beside).abs().max().item(),
                moved.abs().max().item(),
                (rounded.argmax(-1, keepdim=True) == likeliest).float().mean().item(),
                base.dtype,
            )
            allowed = TOLERANCE * beside.abs().max().item()
            if not exported.merged <= allowed:
                raise HarnessError(f"the merged model's logits are {exported.merged:.2g} off; nothing was written")
            model.to(dtype).save_pretrained(scratch)
            loaded.tokenizer.save_pretrained(scratch)
    finally:
        bases.forget()  # its weights are no longer the base's
    _leave_out_whereabouts(scratch)
    written = transformers.AutoModelForCausalLM.from_pretrained(scratch, dtype=dtype).float()
    if not (off := (_logits(written, ids) - rounded).abs().max().item()) <= allowed:
        raise HarnessError(f"transformers reads a model from it whose logits are {off:.2g} off; nothing was written")
    return exported


def _make_float32(model: Any) -> None:
    """In place. A base that stays quantised is refused."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        form = getattr(quantizer.quantization_config.quant_method, "value", "unknown")
        raise HarnessError(f"the base is quantised ({form}) and cannot take the adapter's weights in")
    model.float()


def _logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def _leave_out_whereabouts(scratch: Path) -> None:
    """Where the base lay on this machine, and whether it was online, is nobody's business."""
    for name in ("config.json", "tokenizer_config.json"):
        content = store.read_json(scratch / name)
        for key in ("_name_or_path", "name_or_path", "is_local", "local_files_only"):
            content.pop(key, None)
        (scratch / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the target's name by one rename, all of it on disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=files.UNFINISHED, dir=target.parent))
    try:
        yield scratch
        for file in scratch.iterdir():
            file.chmod(0o644)
            files.sync(file)
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    files.sync(target.parent)


def card(name: str, record: dict[str, Any], exported: Exported, folder: Path) -> str:
    """The model's README: what it was made of, how near it is to what was evaluated, and the scores."""
    cell, row = record["cell"], record["row"]
    base, identity = cell["base"], record["identity"]["base"]["identity"]
    hub = base["path"] if identity.startswith("commit:") else ""  # a folder of this machine is not named
    seed = f"seed {row['seed']}"
    stages = record["training"].get("stages", [record["training"]])
    trained = [stage.get("adapter_sha256") or stage["model_sha256"] for stage in stages]
    head = ["library_name: transformers", *([f"base_model: {hub}"] if hub else [])]
    scores = [
        f"| {task} {score['metric']} ({score['filter']}) | {score['score']:.4g} |"
        for task, rows in store.newest_scores(folder).items()
        for score in rows
    ]
    lines = [
        "---", *head, "---", f"# {name}", "",
        f"{base['name']}, fine-tuned on {row['size']} examples of {row['data']}; all weights in one.", "",
        "| | |", "|---|---|",
        f"| base | {', '.join(filter(None, [base['name'], hub, identity]))} |",
        f"| data | {row['data']}, {row['size']} examples, subset seed {row['subset_seed']} |",
        f"| method | {', '.join(filter(None, [row['method'], row['variant'], seed]))} |",
        f"| fingerprint | {record['fingerprint']} |",
        f"| trained | sha256 {', '.join(trained)} |",
        f"| licence | the base's own for the weights; of the data: {cell['data']['licence'] or 'not stated'} |",
        *scores, "",
        f"Scores are those of the cell, an adapter standing beside the weights, in {exported.dtype}. Here it was added",
        f"to them in float32 and the sums rounded once. Measured: {exported.in_words()}.", "",
    ]  # fmt: skip
    return "\n".join(lines)

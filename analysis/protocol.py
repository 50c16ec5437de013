"""What a score rests on besides base, data, size and seeds: how it was trained and asked, from the records."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.store import RECORD, newest_identities, read_result, records

Protocol = dict[str, str]  # of one cell: field -> text; what its kind does not have is absent
TRAINING = ("epochs", "lr", "lr_rule", "hold", "budget", "decay", "warmup", "batch_size", "weight_decay", "max_length")


def protocols(root: Path) -> dict[str, dict[str, Protocol]]:
    """By path (as in `harness.store.load`) and task, of all done cells below `root`."""
    found = {}
    for folder in records(root):
        if (folder / RECORD).exists():
            record = read_result(folder / RECORD)
            trained, asked = _training(record), newest_identities(folder)
            found[folder.relative_to(root).as_posix()] = {name: trained | _asking(task) for name, task in asked.items()}
    return found


def held_fixed(of_cells: Iterable[Protocol]) -> Protocol:
    """Fields of one value wherever there is one, among the cells that have it; what varies is no part of it."""
    values: dict[str, set[str]] = {}
    for protocol in of_cells:
        for field, text in protocol.items():
            values.setdefault(field, set()).add(text)
    return {field.replace("_", " "): next(iter(texts)) for field, texts in sorted(values.items()) if len(texts) == 1}


def of_point(frame: pd.DataFrame, found: dict[str, dict[str, Protocol]]) -> Callable[[Mapping[str, Any]], Protocol]:
    """What gives the protocol of a row of `analysis.points`: of all its cells, values that differ joined by "or"."""
    key = ["base", "data", "method", "variant", "size", "task"]
    paths = frame[frame["status"] == "ok"].groupby(key)["path"].unique()

    def of(point: Mapping[str, Any]) -> Protocol:
        joined: dict[str, dict[str, None]] = {}
        for path in paths[tuple(point[column] for column in key)]:
            for field, text in found[path][point["task"]].items():
                joined.setdefault(field, {})[text] = None
        return {field: " or ".join(texts) for field, texts in joined.items()}

    return of


def _training(record: dict[str, Any]) -> Protocol:
    method, base = record["cell"]["method"], record["cell"]["base"]
    template = "tokenizer's own" if base["chat_template"] is None else "given in the configuration"
    told = {"method": method["name"], "template": template, "dtype": base["dtype"], "quantize": base["quantize"]}
    if "steps" in record["training"]:
        settings = {**method, "lr": record["training"].get("lr", method.get("lr"))}
        told |= {"weights": _weights(method), **{field: settings.get(field) for field in TRAINING}}
    return {field: _text(value) for field, value in told.items() if value not in (None, "", 0.0)}


def _weights(method: dict[str, Any]) -> str | None:
    if method["name"] == "recipe":
        return None  # each of its stages has its own
    return f"LoRA of rank {method['lora']['rank']}" if method.get("lora") else "all"


def _asking(task: dict[str, Any]) -> Protocol:
    """Shots, form and decoding, as far as the configuration says; a task by name may have defaults of its own."""
    own = task["task"] if isinstance(task["task"], dict) else {}
    shots = task["num_fewshot"] if task["num_fewshot"] is not None else 0 if own else None
    told = {"shots": shots, "asked in": "chat" if task["chat"] else "plain text", "items": task["limit"]}
    generation = {**own.get("generation_kwargs", {}), **task.get("generation", {})}
    if "do_sample" in generation or "temperature" in generation:
        told["temperature"] = generation.get("temperature", 1.0) if generation.get("do_sample") else 0
    return {field: _text(value) for field, value in told.items() if value is not None}


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""What W&B's own files hold, read back without W&B."""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(path: Path) -> Iterator[Any]:
    """The `Record`s of a .wandb file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB.

    A piece has 4 bytes of CRC-32 over type and data, 2 of length, 1 of type (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:  # too little for a header: padding
            at += room
            continue
        crc, length, kind = struct.unpack_from("<IHB", content, at)
        data = content[at + 7 : at + 7 + length]
        if len(data) < length:
            return  # being written
        assert crc == zlib.crc32(bytes([kind]) + data), f"broken record at byte {at}"
        parts, at = parts + data, at + 7 + length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""


def read_run(file: Path) -> dict[str, Any]:
    """What a .wandb file holds, in plain values, once the run's exit is on disk."""
    patience = time.monotonic() + 10
    while not any(r.WhichOneof("record_type") == "exit" for r in records(file)):  # written some ms after finish()
        assert time.monotonic() < patience, f"{file} was never finished"
        time.sleep(0.01)
    run: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "steps": {}, "exit": None}
    run |= {"charts": {}, "artifacts": {}}  # preset and labels by key; (type, {file: (MD5 in base64, copy)}) by name
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"id": record.run.run_id, "name": record.run.display_name, "group": record.run.run_group}
            run |= {"job_type": record.run.job_type, "host": record.run.host, "tags": sorted(record.run.tags)}
            run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            for item in record.config.update:
                panel = json.loads(item.value_json)["panel_config"]
                run["charts"][item.nested_key[-1]] = panel["panelDefId"], panel["stringSettings"]
        elif kind == "artifact":
            held = {one.path: (one.digest, one.local_path) for one in record.artifact.manifest.contents}
            run["artifacts"][record.artifact.name] = record.artifact.type, held
        elif kind == "history":
            run["history"].append(_items(record.history.item))
        elif kind == "summary":
            run["summary"] |= _items(record.summary.update)
        elif kind == "metric":
            run["steps"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

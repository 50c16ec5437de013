"""What makes two configurations the same: one text for equal values, its hash, and in which fields two differ."""

import hashlib
import json
from typing import Any

from harness.errors import HarnessError


def canonical_json(value: Any) -> str:
    """Equal values, equal text. Raises on what JSON cannot hold, rather than write a repr."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise HarnessError(f"a number in the configuration is not finite ({error})") from error


def fingerprint(value: Any) -> str:
    """Sha256 (hex) of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The fields in which two identities differ, one line each: ``data.subset: 'ab…' -> 'cd…'``."""
    a, b = flat(old), flat(new)
    lines = []
    for key in sorted(a.keys() | b.keys()):
        before, after = a.get(key, "absent"), b.get(key, "absent")
        if before != after:
            lines.append(f"{key}: {brief(before)} -> {brief(after)}")
    return lines


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by points: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def brief(value: Any) -> str:
    """The value as text of at most 60 characters."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

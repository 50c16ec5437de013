"""Invented sweeps: records with answers by item, of curves whose truth is given."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.artifact import sha256_file
from harness.items import INVALID, Items, load_items
from harness.store import COLUMNS, write_jsonl, write_result

ITEMS = 400


class Sweep:
    """Cells written where a real sweep would have them; answers of one task share their items' difficulty."""

    def __init__(self, root: Path, n: int = ITEMS, seed: int = 0, targets: Sequence[str] | None = None) -> None:
        self.root, self.n, self.rows = root, n, list[dict[str, Any]]()
        self.rng = np.random.default_rng(seed)
        self.hard = self.rng.standard_normal(n)
        self.targets = targets or [f"answer {i % 50}" for i in range(n)]

    def right(self, score: float) -> np.ndarray:
        """[n] booleans, of which `score` are expected to be true; half of their variance is the items' own."""
        from scipy.special import ndtri

        latent = math.sqrt(0.7) * self.hard + math.sqrt(0.3) * self.rng.standard_normal(self.n)
        return latent < ndtri(np.clip(score, 1e-9, 1 - 1e-9))

    def cell(
        self, size: int, seed: int = 0, strict: np.ndarray | float = 0.5, flexible: np.ndarray | None = None,
        valid: np.ndarray | None = None, protocol: str = "p", choices: int = 0, **fields: Any,
    ) -> None:  # fmt: skip
        """One scored cell; size 0 is the untouched base. `strict` gives answers, or the score to expect. With `choices`
        they are chosen among so many, not written."""
        right = self.right(strict) if isinstance(strict, float) else np.asarray(strict, bool)
        kinds = {"strict": right, "flexible": right if flexible is None else flexible}
        method = "base" if size == 0 else "sft"
        cell = {
            "base": "b",
            "data": "none" if size == 0 else "d",
            "method": method,
            "variant": "",
            "task": "t",
            **fields,
        }
        path = f"{cell['base']}/{cell['data']}/{cell['method']}{cell['variant']}/n{size}-s{seed}"
        mark = (protocol * 64)[:64]
        stem = self.root / path / "evals" / cell["task"] / mark[:8]
        kept, scores = [], []
        for name, answers in kinds.items():
            for i, ok in enumerate(answers):
                said = [INVALID] if name == "strict" and valid is not None and not valid[i] else ["x"]
                kept.append(
                    {"task": cell["task"], "item": i, "filter": name, "target": self.targets[i],
                     "answers": [[[-1.0, False]]] * choices or [["x"]],
                     "extracted": said, "exact_match": float(ok), "item_hash": f"{i:064}"}
                )  # fmt: skip
            p = float(np.mean(answers))
            error = math.sqrt(p * (1 - p) / (self.n - 1))
            scores.append({"metric": "exact_match", "filter": name, "score": p, "stderr": error})
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(stem.with_suffix(".jsonl"), kept)
        write_result(stem.with_suffix(".json"), {"answers_sha256": sha256_file(stem.with_suffix(".jsonl"))})
        shared = {
            "sweep": "s", "size": size, "seed": seed, "subset_seed": seed, "n_items": self.n, "higher_is_better": True,
            "status": "ok", "fingerprint": path, "eval_fingerprint": mark, "base_note": "", "path": path, **cell,
        }  # fmt: skip
        self.rows += [{**shared, **score, "headline": score["filter"] == "strict"} for score in scores]

    def failed(self, size: int, seed: int, status: str = "diverged") -> None:
        row = {
            "base": "b",
            "data": "d",
            "method": "sft",
            "variant": "",
            "size": size,
            "seed": seed,
            "subset_seed": seed,
        }
        self.rows.append({**row, "status": status, "task": "", "path": f"lost/n{size}-s{seed}", "fingerprint": ""})

    def curve(self, scores: Mapping[int, float], seeds: int = 3, noise: float = 0.0, **fields: Any) -> None:
        for size, score in scores.items():
            for seed in range(seeds if size else 1):
                self.cell(size, seed, score + noise * self.rng.standard_normal() * bool(size), **fields)

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=COLUMNS)

    def items(self, **settings: Any) -> Items:
        return load_items(self.root, self.frame, **settings)

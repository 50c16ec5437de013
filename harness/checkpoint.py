"""Training states on disk, so that a run that was killed goes on where it was, bit for bit.

    <cell>/checkpoints/<training fingerprint>/step000000120-<16 hex>.safetensors

A file appears whole or not at all, and its name carries the beginning of its own sha256: what is torn or flipped is
told and the one before is used, so the last two are kept. The order of batches follows from the seed.
"""

import hashlib
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

from harness import ranks
from harness.artifact import sha256_file
from harness.errors import HarnessError
from harness.files import whole

log = logging.getLogger(__name__)

KEPT = 2  # the newest is no use if the machine died while the disk was still writing it
HEX = 16  # of the sha256, in the name


class Checkpoints:
    """The checkpoints of one training, in `folder`; one every `seconds`, and whenever somebody asks."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.seconds

    def save(self, step: int, model: Any, optimizer: Any, told: dict[str, Any]) -> None:
        """Keep the state after `step` optimizer steps. `told` is plain data that `load` gives back.

        All ranks come here; the first one writes. Raises HarnessError where there is no room; older ones then stay.
        """
        import torch

        generators = ranks.gather(_generators())
        if ranks.first():
            tensors = {f"weights.{name}": w.detach() for name, w in _trained(model)}
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
            for rank, states in enumerate(generators):
                tensors |= {f"generator.{rank}.{name}": state for name, state in states.items()}
            tensors["told"] = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
            self._write(step, {name: t.cpu().contiguous() for name, t in tensors.items()})
        self._last = time.monotonic()

    def _write(self, step: int, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save

        try:
            content = save(tensors)
            name = f"step{step:09d}-{hashlib.sha256(content).hexdigest()[:HEX]}.safetensors"
            with whole(self.folder / name) as scratch:
                scratch.write_bytes(content)
        except OSError as error:
            raise HarnessError(
                f"no checkpoint could be written to {self.folder}: {error}; the one before it is kept. "
                "Make room, then give the same command again"
            ) from error
        for old in self._files()[KEPT:]:
            old.unlink()

    def load(self, model: Any, optimizer: Any) -> tuple[int, dict[str, Any]]:
        """Put the newest whole state back; returns its step and `told`, or 0 and nothing where there is none.

        A state of another number of processes is left alone: each has its own stream of random numbers.
        """
        step, tensors = ranks.agree(self._newest_whole)
        if not step:
            return 0, {}
        import torch

        generators = [name for name in tensors if re.fullmatch(r"generator\.\d+\.cpu", name)]
        if len(generators) != ranks.count():
            log.warning("the checkpoints in %s are of %d processes; begun anew", self.folder, len(generators))
            return 0, {}
        with torch.no_grad():
            for name, weight in _trained(model):
                weight.copy_(tensors[f"weights.{name}"])
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if found := re.fullmatch(r"optimizer\.(\d+)\.(\w+)", name):
                state.setdefault(int(found[1]), {})[found[2]] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        torch.set_rng_state(tensors[f"generator.{ranks.mine()}.cpu"])
        cuda = tensors.get(f"generator.{ranks.mine()}.cuda")
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
        self._last = time.monotonic()
        return step, json.loads(tensors["told"].numpy().tobytes())

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step*.safetensors"), reverse=True)

    def _newest_whole(self) -> tuple[int, dict[str, Any]]:
        """Its step, and its tensors by name."""
        from safetensors.torch import load_file

        for file in self._files():
            step, _, digest = file.stem.removeprefix("step").partition("-")
            if sha256_file(file).startswith(digest):
                return int(step), load_file(file)
            log.warning("%s is damaged; the checkpoint before it is used, if there is one", file)
        return 0, {}


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _generators() -> dict[str, Any]:
    """The states from which dropout draws, on this rank."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states

"""The shapes of a base's weights, read from the headers of its files: what a plan needs, without loading anything."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import hydra.utils

from harness.base import place_of
from harness.cell import Base
from harness.shapes import Shapes


@runtime_checkable
class Shaped(Protocol):
    """An Artifact that knows what it would make before it is made."""

    def shapes(self) -> Shapes: ...


def shapes(base: Base) -> Shapes | None:
    """By tensor name; None where nothing tells: pickled weights, or a hub model with neither cache nor network."""
    if base.make:
        artifact = hydra.utils.instantiate(base.make)
        if isinstance(artifact, Shaped):
            return artifact.shapes()
    place = place_of(base)
    folder = Path(place["pretrained_model_name_or_path"])
    if base.gguf_file and folder.is_dir():
        return _of_gguf(folder / base.gguf_file)
    if folder.is_dir():
        return _of_safetensors(folder.glob("*.safetensors"))
    return _of_hub(place["pretrained_model_name_or_path"], place["revision"])


def _of_safetensors(files: Iterable[Path]) -> Shapes | None:
    from safetensors import safe_open

    found: Shapes = {}
    for path in files:
        with safe_open(path, "numpy") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found or None


def _of_gguf(path: Path) -> Shapes:
    from gguf import GGUFReader

    return {str(t.name): tuple(int(n) for n in reversed(t.shape)) for t in GGUFReader(path).tensors}


def _of_hub(name: str, commit: str) -> Shapes | None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError

    try:
        cached = Path(huggingface_hub.snapshot_download(name, revision=commit, local_files_only=True))
        if found := _of_safetensors(cached.glob("*.safetensors")):
            return found
    except LocalEntryNotFoundError:
        pass
    try:
        told = huggingface_hub.get_safetensors_metadata(name, revision=commit)
    except (NotASafetensorsRepoError, OSError):  # the network's errors are OSErrors
        return None
    return {n: tuple(t.shape) for file in told.files_metadata.values() for n, t in file.tensors.items()}

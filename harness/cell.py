"""What an experiment is: the typed configuration of one cell, its readable place and its identity.

A *cell* is one point of a sweep: (base model, data, method, size, seeds, evals). These dataclasses are the schema that
Hydra composes against, so a typo or a wrong type fails before anything runs. No torch here: planning imports this file.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from harness.choice import Contamination, Dedupe, Select
from harness.errors import HarnessError
from harness.identity import brief, fingerprint, flat
from harness.shapes import Shapes

# Raise when a change of the code changes what the same configuration means: old records then show as drifted.
TRAINING_SEMANTICS = 1
EVALUATION_SEMANTICS = 1

LEVELS = ("base", "given")  # methods whose score has no size: a level line in every figure
# Hears step, steps, {loss, lr, grad_norm, tokens so far} of each optimizer step.
OnStep = Callable[[int, int, dict[str, float]], None]
Along = Callable[[int, int, Any], None]  # after so many of so many steps, with the model as it is then
OnPhase = Callable[[str], None]  # hears what a cell goes over to: "training", "evaluating gsm8k"
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Shown = list[Message] | Callable[[str], list[Message]]  # turns before every question, or of one question its own


@dataclass
class Base:
    """A fixed base model and the form in which it is spoken to."""

    name: str = MISSING
    path: str = ""  # hub id, or a folder with config.json, weights and tokenizer
    revision: str | None = None  # branch, tag or commit of a hub id; the commit it meant is recorded
    gguf_file: str | None = None  # the GGUF file inside `path`
    make: dict[str, Any] | None = None  # an Artifact (Hydra `_target_`) that yields `path`
    trust_remote_code: bool = False  # run the Python code that comes with the weights; it has all your rights
    dtype: str = "bfloat16"
    quantize: str | None = None  # nf4: the linear layers in 4 bits, as in QLoRA, computing in `dtype`
    chat_template: str | None = None  # Jinja text; None: the tokenizer's own
    note: str = ""  # shown wherever the base is, e.g. "post-trained start"


@dataclass
class Turn:
    role: str = MISSING
    content: str = MISSING  # Jinja template over the row's columns


@dataclass
class Form:
    """How a row becomes chat turns: by `turns`, one template each, or from columns that hold turns.

    Two answers to one question: `chosen` and `rejected` name columns with a text, a turn, or a list of turns of which
    the last is the answer and those before it, the same in both, are the question.
    """

    turns: list[Turn] = field(default_factory=list)
    conversation: str = ""  # a column that lists turns, or texts of the user and the assistant by turns
    chosen: str = ""  # columns of the better and the worse answer; what is answered is in `conversation`, or in both
    rejected: str = ""
    role_key: str = "role"
    content_key: str = "content"
    roles: dict[str, str] = field(default_factory=dict)  # the column's role names -> system, user, assistant
    unwrap: str = ""  # regex: what matches is cut from the start of user turns (a prompt wrapper in the file)
    drop_empty: bool = False  # leave out rows whose last turn is empty; else the first of them is refused


@dataclass
class Source:
    """One table of rows: a local file (.jsonl, .json, .parquet), a hub dataset, or an Artifact that makes a file."""

    path: str = ""
    split: str = "train"  # of a hub dataset
    subset: str | None = None  # the hub dataset's configuration name
    revision: str | None = None
    make: dict[str, Any] | None = None
    form: Form = field(default_factory=Form)
    weight: float = 1.0  # share in a mixture, relative to the other sources


@dataclass
class Data:
    name: str = MISSING
    sources: dict[str, Source] = field(default_factory=dict)
    licence: str = ""
    order: str = "hash"  # of the examples: hash, another for each subset_seed | file, as they stand in the one source
    dedupe: Dedupe = field(default_factory=Dedupe)
    contamination: Contamination = field(default_factory=Contamination)
    select: Select = field(default_factory=Select)  # within each source

    def settings(self) -> dict[str, Any]:
        """Its fields as plain data, without rules that are left at their defaults."""
        blank = {"dedupe": Dedupe(), "contamination": Contamination(), "select": Select()}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in blank or getattr(self, k) != blank[k]}


@dataclass
class Task:
    """One evaluation: an lm-eval task by name, or inline with its items from `file`, `make` or lm-eval's own keys."""

    task: Any = MISSING  # lm-eval task name, or a mapping in lm-eval's task format
    file: str | None = None  # local items (.jsonl, .json, .parquet)
    make: dict[str, Any] | None = None  # an Artifact that makes such a file
    num_fewshot: int | None = None  # lm-eval's own few-shot pool; None: the task's default
    limit: int | None = None  # the first so many items
    at: list[float] = field(default_factory=list)  # also scored after these shares of a training, e.g. [0.1, 0.3]
    unsafe_code: bool = False  # run what the model writes, or a metric from the hub, where the task asks for it
    generation: dict[str, Any] = field(default_factory=dict)  # in place of the task's, e.g. {max_gen_toks: 2048}
    samples: int = 1  # answers drawn for each prompt, of which scores are pass@k; needs do_sample and a temperature
    probe: dict[str, Any] | None = None  # a Probe (Hydra `_target_`): what else is measured of the model on these items
    chat: bool = True  # ask through the base's chat template; False: the plain text, as a base saw it in pretraining
    headline: str | None = None  # the leading "metric/filter", e.g. exact_match/strict-match; None: the task's first
    # Not what a tuning is for, but what it may have cost: a remark kept beside the scores, no part of what is measured.
    elsewhere: bool = field(default=False, compare=False)


@dataclass
class Run:
    """Where and how, never what: nothing here is part of a cell's identity."""

    root: str = "runs"
    device: str = "auto"
    workers: int = 1  # processes that run cells side by side, each with its own resident base
    threads: int | None = None  # CPU threads of each worker; None: torch's choice
    tokens_per_pass: int = 1024  # laid end to end in one forward pass, of training and of evaluation
    checkpoint_activations: bool = False  # training: recompute activations instead of keeping them; slower, smaller
    compile: bool = False  # training: torch.compile; a minute or two at first, a tenth or more off every step after
    checkpoint_seconds: float = 300.0  # between two states kept on disk, from which a killed training goes on
    eval_backend: str = "shared"  # prompts that begin alike computed once | hf, vllm: lm-eval's own
    kv_cache_gib: float = 4.0  # of the shared backend, for the keys and values of answers in progress
    keep: str = "all"  # adapters, when their cells are done: all | last (of each curve the largest size) | best | none
    profile: bool = False  # tell where the time of a cell went, and keep it beside the record as profile.json
    eval_batch_size: int = 16  # prompts at once, where they are not laid end to end


@dataclass
class Wandb:
    mode: str = "auto"  # auto (online with a key and a network, else offline) | online | offline | disabled
    project: str = "superficial-alignment"
    entity: str | None = None


@dataclass
class Attempt:
    """What one try at a cell gives its method: where things go, and who hears how it is getting on."""

    folder: Path  # the cell's own; what must outlive the process (an adapter) goes in here
    checkpoints: Path  # for what only an unfinished training needs; another identity has another folder
    on_step: OnStep = lambda *_: None
    still_ours: Callable[[], None] = lambda: None  # raises once another process has taken the cell over
    trunk: Callable[[int], Path] = lambda _: Path()  # of states after so many examples, shared among sizes
    on_resumed: Callable[[list[dict[str, Any]]], None] = lambda _: None  # hears the losses of steps done before
    along: Along = lambda *_: None  # scores a training in its course


@dataclass
class Adapted:
    """A base after a method was applied, ready to be evaluated."""

    model: Any  # a transformers causal LM, perhaps with an adapter attached
    demonstrations: Shown = field(default_factory=list)  # turns put before every question, or before this one
    adapter: Path | None = None  # the folder of the adapter, in peft's form, where there is one
    merge: Callable[[], Any] | None = None  # puts it into the base's weights, for good, and gives that model
    training: dict[str, Any] = field(default_factory=dict)  # tokens, steps, seconds, losses ... for the record


@dataclass
class Method:
    """A way to use n examples. Each subclass in `harness/methods/` is a `method=<name>`, its fields are settings."""

    name: ClassVar[str] = ""
    uses_data: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("dialogue",)  # the kinds of example it can use, see harness/data/kinds.py
    flops_a_token: ClassVar[int] = 0  # of training, for each parameter of the base
    stored_in_full: ClassVar[bool] = False  # in the base's own type; an adapter is kept in float32

    def check(self) -> None:
        """Raise HarnessError where the settings do not go together."""

    def settings(self) -> dict[str, Any]:
        """Its fields as plain data; of a method made of others, with their names."""
        return dataclasses.asdict(self)

    def shown(self) -> dict[str, Any]:
        """The settings, for people; cells whose settings differ must differ here."""
        return self.settings()

    def variant(self) -> str:
        """What is shown that differs from the defaults, e.g. ``lora.rank=8,lr=0.01``; empty if nothing does."""
        default, mine = flat(type(self)().shown()), flat(self.shown())
        return ",".join(f"{k}={brief(v)}" for k, v in sorted(mine.items()) if v != default.get(k))

    def identity(self, cell: "Cell") -> dict[str, Any]:
        """All of it that a result depends on, beside the cell's base, data, size and seeds."""
        return {"name": self.name, **self.settings()}

    def screened(self, evals: "dict[str, Task]") -> "Method":
        """The same, with `screened` applied to data of its own."""
        return self

    def resident(self, base: Base) -> Base:
        """What is loaded in place of the cell's base; only a method that trains nothing has another one."""
        return base

    def parts(self, cell: "Cell") -> "list[Cell]":
        """The trainings it is made of, in order, each as a cell with its own method, data and size."""
        return [cell]

    def steps(self, examples: int, example_tokens: float = 0.0, flops_a_token: float = 0.0) -> int:
        """Optimizer steps for so many examples, of so many tokens on average, a token costing so many FLOPs."""
        return 0

    def drawn(self, examples: int, steps: int) -> int:
        """Examples that so many steps go through, repeats counted."""
        return 0

    def tokens_of(self, tokens: float) -> float:
        """Tokens trained on for an example that has so many; a method that writes answers has more."""
        return tokens

    def trained_parameters(self, shapes: Shapes) -> int:
        """How many weights are trained, on a base whose weights have these shapes."""
        return 0

    def demonstrations(self, examples: Sequence[Any]) -> Shown:
        """The turns put before every question, or what gives those of a question; none for a method that trains."""
        return []

    def adapt(
        self, base: Any, examples: Sequence[Any], cell: "Cell", attempt: Attempt
    ) -> AbstractContextManager[Adapted]:
        """Apply the method to the resident `base` (a `harness.base.LoadedBase`) for as long as the context lasts.

        `examples` are the cell's `harness.data.subset.Example`s, in order. What is in the attempt's folder already is
        loaded instead of made again. The base must leave as it came.
        """
        raise NotImplementedError  # not abstract: the schema of a cell needs a Method to start from


@dataclass
class Engine:
    """Where the cells of a sweep are run. Each subclass in `harness/engines/` is an `engine=<name>`.

    Its fields are settings; none is part of a cell's identity, its folder or its record.
    """

    name: ClassVar[str]

    def run_cells(self, cells: "list[Cell]") -> list[Any]:
        """Run all cells, whatever becomes of each; returns a `harness.engines.worker.Outcome` for each.

        Raises PreemptedError where this process was told to stop.
        """
        raise NotImplementedError  # not abstract: the schema of a cell needs an Engine to start from


@dataclass
class Cell:
    sweep: str = "single"
    base: Base = field(default_factory=Base)
    data: Data = field(default_factory=Data)
    method: Method = field(default_factory=Method)
    size: int = 0  # examples; what counts as one is the method's to say
    seed: int = 0  # training: initialisation, order of batches, dropout
    subset_seed: int = 0  # which examples: the order of which the first `size` are taken
    evals: dict[str, Task] = field(default_factory=dict)
    run: Run = field(default_factory=Run)
    wandb: Wandb = field(default_factory=Wandb)
    engine: Engine = field(default_factory=Engine)

    def folder(self) -> Path:
        """``root/sweep/base/data/method/n…-s…-<variant>-<8 hex>``: readable, and unique among names."""
        names = [("sweep", self.sweep), ("base.name", self.base.name), ("data.name", self.data.name)]
        for what, name in [*names, *(("evals", name) for name in self.evals)]:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
                raise HarnessError(
                    f"{what}={name[:90]!r} names a folder: use letters, digits, '.', '_' and '-', at most 80"
                )
        if len({name.lower() for name in self.evals}) < len(self.evals):
            raise HarnessError(
                f"two of the evaluations {', '.join(self.evals)} differ only in case, which not every file system "
                "tells apart; give one of them another name"
            )
        place: list[Any] = [self.base.name, self.data.name, self.method.name, self.method.settings()]
        place += [self.size, self.seed, self.subset_seed]
        readable = re.sub(r"[^A-Za-z0-9.=,_-]", "_", self.method.variant())[:60]
        seeds = f"s{self.seed}" if self.seed == self.subset_seed else f"s{self.seed}d{self.subset_seed}"
        leaf = "-".join(filter(None, [f"n{self.size:09d}", seeds, readable, fingerprint(place)[:8]]))
        return Path(self.run.root, self.sweep, self.base.name, self.data.name, self.method.name, leaf)

    def identity(
        self, base_identity: str, subset_identity: str, search: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Every field that changes the trained result and none that does not; its `fingerprint` names the result.

        `base_identity` is the commit, content hash or recipe of the base; `subset_identity` the hash of the examples'
        ids in order (the ids hash the rendered turns, so templates and files are inside); `search` what a choice of
        settings rests on, beside the settings (`harness.search.rule`).
        """
        return {
            "semantics": TRAINING_SEMANTICS,
            "base": {
                "identity": base_identity,
                "dtype": self.base.dtype,
                "chat_template": self.base.chat_template,
                **({"quantize": self.base.quantize} if self.base.quantize else {}),
            },
            "data": {"name": self.data.name, "subset": subset_identity, **self._policies()},
            "method": self.method.identity(self),
            "size": self.size,
            "seed": self.seed,
            "subset_seed": self.subset_seed,
            **({"search": search} if search else {}),
        }

    def _policies(self) -> dict[str, Any]:
        """Those that are not the default, which older identities do not name."""
        dedupe, its = self.data.dedupe, self.data.contamination
        told = {"policy": its.policy, "words": its.words, "against": sorted(its.against)}
        return {
            **({"dedupe": dataclasses.asdict(dedupe)} if dedupe != Dedupe() else {}),
            **({"contamination": told} if its.policy != "report" else {}),
        }


def screened(data: Data, evals: dict[str, Task]) -> Data:
    """The data with what its examples are compared with, if any are to be dropped for it: these evaluations' items.

    It is part of the data from then on, so that an evaluation that is added later changes no subset.
    """
    its = data.contamination
    against = {} if its.policy == "report" else {name: _items(name, task) for name, task in evals.items()}
    return dataclasses.replace(data, contamination=dataclasses.replace(its, against=against))


def _items(name: str, task: Task) -> dict[str, Any]:
    what = {"task": task.task, "file": task.file, "make": task.make, "unsafe_code": task.unsafe_code}
    return {"_target_": "harness.asked.Items", "name": name, **what}


def canonical(cell: Cell) -> Cell:
    """The same cell with what cannot matter set to one value, so that equal experiments become one cell.

    A method that uses no data has no data, size or seeds; one that does not train has no training seed.
    """
    if not cell.method.uses_data:
        cell = dataclasses.replace(cell, data=Data(name="none"), size=0, subset_seed=0)
    elif cell.size < 1:
        raise HarnessError(
            f"size={cell.size}: method {cell.method.name} needs at least 1 example; size 0 is method=base"
        )
    else:
        method = cell.method.screened(cell.evals)
        cell = dataclasses.replace(cell, data=screened(cell.data, cell.evals), method=method)
    return cell if cell.method.trains else dataclasses.replace(cell, seed=0)

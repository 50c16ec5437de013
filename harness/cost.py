"""What cells will take before anything runs: tokens, FLOPs, time, memory, disk, price.

Sizes follow from the configuration. A token costs 2N FLOPs forward, 6N in training of all weights (Kaplan et al. 2020,
arXiv 2001.08361) and 4N with LoRA, where no gradient of the base's own weights is computed; N counts all parameters,
attention's own products are left out. Time and memory are what finished cells under the same root measured; where
nothing was, a rule: `SUSTAINED` of a matrix product's speed on this machine, or the speed that is given, plus
`STEP_SECONDS`, `ITEM_SECONDS` and `CELL_SECONDS`.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import evaluate, retention, store
from harness import weights as weight_files
from harness.base import load_tokenizer
from harness.cell import Cell
from harness.data.chat import tokenize_all
from harness.data.pairs import dialogues_of
from harness.history import History, read_finished
from harness.methods.recipe import Recipe, marks_of, stage_folder
from harness.plan import DONE, Planned
from harness.run import subset_of
from harness.schedule import Schedule
from harness.search import names, width_of
from harness.shapes import Shapes, linear, parameters

SUSTAINED = 0.4  # share of a large matrix product's speed that training and evaluation keep up
STEP_SECONDS, ITEM_SECONDS, CELL_SECONDS = 0.02, 0.005, 1.0  # least time of a step, an item, and beside both
TOKEN_CHARACTERS = 4.0  # where no tokenizer is at hand
SAMPLE = 64  # examples whose tokens are counted
LIBRARIES = 0.7 * 2**30  # bytes of a process that has loaded torch, transformers and lm-eval and nothing else


@dataclass(frozen=True)
class Cost:
    """Of a cell that is done what it took, else what is left of it. NaN is what cannot be known."""

    examples: int = 0
    tokens: float = 0.0  # trained on, prompts and repeats counted
    train_flops: float = 0.0
    eval_flops: float = 0.0  # at most: every answer as long as it may be
    seconds: float = 0.0  # of one worker
    memory_bytes: float = 0.0  # of one worker; the most of any cell in a sum
    disk_bytes: float = 0.0  # the adapter, if it stays

    def __add__(self, other: "Cost") -> "Cost":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)}
        return Cost(**{**sums, "memory_bytes": _most(self.memory_bytes, other.memory_bytes)})


def _most(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


class Estimator:
    """``Estimator(planned, speed).cost(p)`` for each of `planned`; `speed` in FLOP/s stands in for measuring one."""

    def __init__(self, planned: list[Planned], speed: float | None = None) -> None:
        cells = [p.cell for p in planned]
        self.bases = {cell.base.name: cell.base for cell in cells}
        self.tasks = {name: task for cell in cells for name, task in cell.evals.items()}
        self.staying = {cell.folder() for cell in retention.kept(cells)}
        self.sizes = [(retention.curve_of(cell), cell.size) for cell in cells]
        parts = [part for cell in cells for part in cell.method.parts(cell)]
        self.largest = {_trained_on(part): part for part in sorted(parts, key=lambda part: part.size)}
        self.makers: dict[str, Path] = {}  # of each stage that cells share, the one that it is counted for
        for cell in (c for c in cells if isinstance(c.method, Recipe)):
            for mark in marks_of(cell):
                self.makers.setdefault(mark, cell.folder())
        self.given = speed
        self.finished = read_finished(Path(cells[0].run.root))
        self.history = self._learn()

    def basis(self) -> str:
        """What the times rest on, for people."""
        if self.history.cells:
            where = f" on {self.history.device}" if self.history.device else ""
            return f"times and memory from {self.history.cells} finished cells{where}"
        return f"assuming {SUSTAINED * self.speed / 1e12:.3g} TFLOP/s" if self.__dict__.get("speed") else ""

    def cost(self, planned: Planned) -> Cost:
        cell, folder = planned.cell, planned.cell.folder()
        stays = folder in self.staying
        if planned.state == DONE:
            return self._spent(cell, stays)
        trained = self._of_training(cell, stays) + self._along(cell)
        if (folder / store.TRAINED).exists():
            trained = dataclasses.replace(trained, tokens=0.0, train_flops=0.0, eval_flops=0.0, seconds=0.0)
        beside = self.history.overhead(cell.base.name)
        rest = Cost(seconds=CELL_SECONDS if beside is None else beside, memory_bytes=self._memory(cell))
        return sum((self._of_evaluation(cell, name) for name in planned.unscored), trained + rest)

    def _spent(self, cell: Cell, stays: bool) -> Cost:
        record, scored = self.finished[cell.folder()]
        training = record["training"]
        own = 1 - training.get("branched_at", 0) / training.get("steps", 1)  # a trunk is its first size's to count
        return Cost(
            examples=cell.size,
            tokens=own * training.get("tokens", 0),
            train_flops=own * training.get("flops", 0.0),
            eval_flops=sum(self._eval_flops(cell.base.name, name) for name in scored if name in self.tasks)
            + self._forward(cell.base.name, training.get("held_out_tokens", 0)),
            seconds=record["row"]["train_seconds"] + sum(s["seconds"] for s in scored.values()),
            memory_bytes=record["peak_memory_bytes"],
            disk_bytes=self._stored(cell) if stays else 0.0,
        )

    def _of_stages(self, cell: Cell) -> Cost:
        """Of a recipe's stages those that are not made yet, each in the first cell that needs it; they all stay."""
        folder, cost = cell.folder(), Cost(examples=cell.size)
        for part, mark in zip(cell.method.parts(cell), marks_of(cell), strict=True):
            if self.makers[mark] == folder and not (stage_folder(folder, mark) / store.TRAINED).exists():
                cost += dataclasses.replace(self._of_training(part, stays=True), examples=0)
        return cost

    def _of_training(self, cell: Cell, stays: bool) -> Cost:
        if isinstance(cell.method, Recipe):
            return self._of_stages(cell)
        if not cell.method.trains:
            return Cost(examples=cell.size)
        each, steps = self.example_tokens(cell), self.steps(cell)
        flops_a_token = cell.method.flops_a_token * self.parameters(cell.base.name)
        tokens = cell.method.drawn(cell.size, steps) * each
        shared = 0
        if isinstance(cell.method, Schedule) and cell.method.trunk:
            shared = max((cell.method.decay_from(cell.method.steps(n)) for n in self._smaller(cell)), default=0)
        steps, tokens = steps - shared, tokens * (1 - shared / steps)
        flops = flops_a_token * tokens
        seconds = self.history.training.seconds(_how(cell), steps, flops)
        if seconds is None:
            seconds = steps * STEP_SECONDS + flops / (SUSTAINED * self.speed)
        disk = self._stored(cell) if stays else 0.0
        held_out = self._forward(cell.base.name, each * getattr(cell.method, "held_out", 0))
        seconds += held_out / (SUSTAINED * self.speed) if held_out else 0.0
        return Cost(cell.size, tokens, flops, held_out, seconds, disk_bytes=disk)

    def _forward(self, base: str, tokens: float) -> float:
        return 2 * self.parameters(base) * tokens if tokens else 0.0

    def steps(self, cell: Cell) -> int:
        """Optimizer steps of a cell that trains."""
        flops_a_token = cell.method.flops_a_token * self.parameters(cell.base.name)
        return cell.method.steps(cell.size, self.example_tokens(cell), flops_a_token)

    def lr(self, cell: Cell) -> float | None:
        """The learning rate, also where it is the published one; None where it is searched, or nothing is trained."""
        if not isinstance(cell.method, Schedule) or cell.method.lr == "search":
            return None
        if cell.method.lr == "auto":
            return cell.method.published_lr(names(cell.base), self._width(cell.base.name), self.steps(cell))
        return cell.method.rate

    def _along(self, cell: Cell) -> Cost:
        """Of the scores in the course of the training."""
        looks = cell.method.trains and not isinstance(cell.method, Recipe)
        asked = {name: len(task.at) for name, task in cell.evals.items() if looks}
        return total(self._of_evaluation(cell, name) for name, times in asked.items() for _ in range(times))

    def _smaller(self, cell: Cell) -> list[int]:
        """The smaller sizes of the cell's curve in this plan."""
        curve = retention.curve_of(cell)
        return [size for key, size in self.sizes if key == curve and size < cell.size]

    def _of_evaluation(self, cell: Cell, name: str) -> Cost:
        items, flops = self._extent(name).items, self._eval_flops(cell.base.name, name)
        read = evaluate.examples_read(name, self.tasks[name], cell.size)
        flops += self._forward(cell.base.name, read * self.example_tokens(cell) if read else 0)
        key = cell.base.name, name, cell.method.name
        seconds = None if read else self.history.evaluation.seconds(key, items, flops)
        if seconds is None:
            seconds = items * ITEM_SECONDS + flops / (SUSTAINED * self.speed)
        return Cost(eval_flops=flops, seconds=seconds)

    def _memory(self, cell: Cell) -> float:
        """Measured of such cells. Else what was measured of others on the base, or where it is more, a rule: weights,
        optimizer and activations, the inputs and outputs of every linear layer in bf16."""
        if (measured := self.history.memory(*_trained_on(cell))) is not None:
            return measured
        others = self.history.memory(cell.base.name)
        if not (shapes := self._shapes(cell.base.name)):
            return math.nan if others is None else others
        training = 16.0 * self.trained_parameters(cell)  # fp32 weight, gradient and Adam's two moments
        if cell.method.trains:
            longest = max((self._sampled(_trained_on(part))[1] for part in cell.method.parts(cell)), default=0.0)
            tokens = max(cell.run.tokens_per_pass, longest)  # an example, or pair of answers, is not divided
            training += tokens * sum(2.0 * sum(shape) for shape in linear(shapes).values())
            training += 8.0 * tokens * max(max(shape) for shape in shapes.values())  # logits
        written = others is None and any(self._extent(name).answer_tokens for name in cell.evals)
        answers = 2**30 * cell.run.kv_cache_gib if written else 0
        rule = LIBRARIES + _width(cell) * self.parameters(cell.base.name) + max(training, answers)
        return max(rule, others or 0.0)

    def parameters(self, base: str) -> float:
        """N; NaN where no file tells."""
        return float(parameters(shapes)) if (shapes := self._shapes(base)) else math.nan

    @functools.cached_property
    def speed(self) -> float:
        """FLOP/s of a large matrix product: as given, else measured here and now."""
        return self.given or matrix_speed(next(iter(self.bases.values())).dtype)

    def _learn(self) -> History:
        devices = [record.get("device", "") for record, _ in self.finished.values()]
        history = History(device=devices[-1] if devices else "")
        for record, scored in self.finished.values():
            base = record["row"]["base"]
            if base not in self.bases or record.get("device", "") != history.device or not self._shapes(base):
                continue
            known = [name for name in scored if name in self.tasks]
            asked = {n: self._eval_flops(base, n) for n in known if not evaluate.examples_read(n, self.tasks[n], 1)}
            history.learn(record, {name: scored[name] for name in asked}, asked)
        return history

    def _eval_flops(self, base: str, name: str) -> float:
        extent = self._extent(name)
        tokens = extent.items * (extent.characters / TOKEN_CHARACTERS + extent.answer_tokens)
        return 2 * self.parameters(base) * tokens

    @functools.cache  # noqa: B019  as many as there are tasks, for as long as a plan is made
    def _extent(self, name: str) -> evaluate.Extent:
        return evaluate.extent(name, self.tasks[name])

    @functools.cache  # noqa: B019
    def _width(self, base: str) -> int:
        return width_of(self.bases[base])

    @functools.cache  # noqa: B019
    def _shapes(self, base: str) -> Shapes | None:
        return weight_files.shapes(self.bases[base])

    def trained_parameters(self, cell: Cell) -> float:
        """NaN where no file tells."""
        shapes = self._shapes(cell.base.name)
        return cell.method.trained_parameters(shapes) if shapes else math.nan

    def _stored(self, cell: Cell) -> float:
        """Bytes of what was trained."""
        return (_width(cell) if cell.method.stored_in_full else 4.0) * self.trained_parameters(cell)

    def example_tokens(self, cell: Cell) -> float:
        """Of one example on average, the prompt counted; with GRPO, of all its answers."""
        like = _trained_on(cell)
        return self.history.example_tokens(like) or cell.method.tokens_of(self._sampled(like)[0])

    @functools.cache  # noqa: B019
    def _sampled(self, names: tuple[str, str, str]) -> tuple[float, float]:
        """Tokens of an example, on average and of the longest of `SAMPLE`, the two answers of a pair together; by
        characters where the tokenizer is not made yet or takes long to load (GGUF)."""
        cell = self.largest[names]
        examples = [dialogues_of(list(example.messages)) for example in subset_of(cell)[:SAMPLE]]
        dialogues = [dialogue for example in examples for dialogue in example]
        if cell.base.make or cell.base.gguf_file:
            characters = [sum(len(turn["content"]) for turn in messages) for messages in dialogues]
            lengths = [count / TOKEN_CHARACTERS for count in characters]
        else:
            lengths = [len(d.ids) for d in tokenize_all(load_tokenizer(cell.base), dialogues)]
        cut = getattr(cell.method, "max_length", sys.maxsize)
        cuts = iter([min(cut, length) for length in lengths])
        each = [sum(next(cuts) for _ in example) for example in examples]
        return sum(each) / len(each), max(each)


def _width(cell: Cell) -> float:
    """Bytes of one of the base's weights; of a quantised base, embeddings and all, as QLoRA's 4.127 bits."""
    if cell.base.quantize:
        return 0.516
    return {"float32": 4.0, "float64": 8.0}.get(cell.base.dtype, 2.0)


def _trained_on(cell: Cell) -> tuple[str, str, str]:
    """Cells whose examples have equally many tokens: a method may train on more than its data holds."""
    return cell.base.name, cell.data.name, cell.method.name


def _how(cell: Cell) -> tuple[str, ...]:
    return (cell.base.name, f"{cell.method.name} {cell.method.variant()}", cell.data.name)


def matrix_speed(dtype: str, size: int = 2048) -> float:
    """FLOP/s of a product of two square matrices on the device that would be used; takes a second at most."""
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=place)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # which waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best

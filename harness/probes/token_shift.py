"""Token-distribution shift: which of the tuned model's tokens would the base have written itself?

URIAL's measure (Lin et al. 2023, arXiv 2312.01552, section 2): the tuned model answers greedily; the base reads its
own prompt and that answer, and each token has the rank that the base gives it after all before it. Rank 1 is
*unshifted*, 2 and 3 *marginal*, more than 3 *shifted*. Beside it the Kullback-Leibler divergence of the base's from the
tuned model's next-token distribution, in nats over the whole vocabulary.

The tokens are those that were generated, up to and with the one that ended the answer; none is tokenised again. All
settings that would make the answer another than the most likely token each time, a repetition penalty above all, are
off, whatever the task or the model says. With demonstrations the base reads the prompt without them, as in the paper.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness import ranks
from harness.cell import Task
from harness.errors import HarnessError
from harness.pieces import kinds, pieces, saying, shares
from harness.probe import Asking, Measured, Probe

if TYPE_CHECKING:
    from torch import Tensor

    from harness.logits import AnswerLogits

CHUNK = 64  # answer tokens whose whole distributions are float32 at once
GREEDY = {"do_sample": False, "temperature": 0.0, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@dataclass(frozen=True)
class Compared:
    """The tokens of one answer, each a number: ranks from 1, nats."""

    ranks: list[int]  # that the base gives
    logprobs: list[float]  # of the base
    kl: list[float]  # KL(tuned || base)
    tops: list[int]  # the base's own first choice
    own: list[int]  # the rank that the tuned model gives, 1 but for rounding


@dataclass
class TokenShift(Probe):
    """Values by item: the share of its tokens that are unshifted, marginal and shifted, and ``kl``, nats a token."""

    def check(self, name: str, task: Task) -> None:
        if task.at:
            raise HarnessError(f"evals.{name}.at: token shift needs the base, which is in training; leave out `at`")

    def asks(self, task: Task) -> Task:
        return replace(task, generation={**task.generation, **GREEDY})

    def passes(self) -> float:
        return 3.0  # the answer; then both models read prompt and answer

    def measure(self, asking: Asking) -> Measured:
        if asking.run.eval_backend == "vllm":
            raise HarnessError(f"evals.{asking.name}: vllm keeps the tokens to itself; set run.eval_backend=shared")
        asked = _once_an_item(asking.ask(asking.adapted)["samples"])
        prompts, answers = [row["tokens"][0][0] for row in asked], [row["tokens"][0][1] for row in asked]
        theirs = prompts
        if asking.adapted.demonstrations:
            bare = asking.read(replace(asking.adapted, demonstrations=[]))
            theirs = [bare[row["task"], row["item"]] for row in asked]
        compared = compare(asking, prompts, theirs, answers)
        tokenizer, samples = asking.base.tokenizer, []
        special = {*tokenizer.all_special_ids, *_ends(asking.base.model)}
        for row, prompt, answer, found in zip(asked, prompts, answers, compared, strict=True):
            samples.append(_sample(row, tokenizer, special, prompt[-1], answer, found))
        metrics = {"unshifted": True, "marginal": False, "shifted": False, "kl": False}
        return Measured(samples, metrics, about={"shift": _about(samples, compared)})


def _once_an_item(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those of further filters, which are of the same answer."""
    return list({(row["task"], row["item"]): row for row in reversed(samples)}.values())[::-1]


def _ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return {ends} if isinstance(ends, int) else set(ends or [])


def compare(
    asking: Asking, prompts: Sequence[list[int]], theirs: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[Compared]:
    """Both models at every token of the answers, the tuned one behind `prompts` and the base behind `theirs`.

    A pass reads at most `run.tokens_per_pass` tokens, or one longer row; where memory has no room for them, fewer.
    """
    import torch
    from tqdm import tqdm

    from harness.by_rows import fits
    from harness.logits import AnswerLogits
    from harness.scoring import Continuation, Room

    with asking.base.untouched() as base:  # of method=given another model, perhaps of another architecture
        by_rows = asking.base.attends_by_rows and fits(base)
    both = [
        AnswerLogits([Continuation(p + a, len(a)) for p, a in zip(side, answers, strict=True)], by_rows=by_rows)
        for side in (prompts, theirs)
    ]
    room, found = Room(asking.run.tokens_per_pass), dict[int, Compared]()
    waiting = sorted(range(len(answers)), key=lambda i: -len(both[0].rows[i].ids))
    with tqdm(total=len(waiting), desc="shift of tokens", disable=not (ranks.first() and sys.stderr.isatty())) as bar:
        while waiting:
            pack = _pack(waiting, lambda i: max(side.length(i) for side in both), room.tokens)
            try:
                parts = _pass(asking, both, pack, room.tokens)
            except torch.OutOfMemoryError:
                if not room.halve():
                    raise
                torch.cuda.empty_cache()
                continue
            found |= zip(pack, parts, strict=True)
            waiting = waiting[len(pack) :]
            bar.update(len(pack))
    return [found[i] for i in range(len(answers))]


def _pack(waiting: list[int], length: Callable[[int], int], most: int) -> list[int]:
    used, count = length(waiting[0]), 1
    while count < len(waiting) and used + length(waiting[count]) <= most:
        used, count = used + length(waiting[count]), count + 1
    return waiting[:count]


def _pass(asking: Asking, both: "list[AnswerLogits]", pack: list[int], most: int) -> list[Compared]:
    import torch

    tuned = both[0].of(asking.adapted.model, pack, most)
    with asking.base.untouched() as base:
        original = both[1].of(base, pack, most)
    if tuned.shape != original.shape:
        raise HarnessError(
            f"evals.{asking.name}: the base has {original.shape[1]} tokens and the tuned model {tuned.shape[1]}, so "
            "their distributions cannot be compared"
        )
    lengths = [both[0].rows[i].answer for i in pack]
    said = torch.tensor([t for i in pack for t in both[0].rows[i].ids[-both[0].rows[i].answer :]], device=tuned.device)
    columns = [x.split(lengths) for x in distances(tuned, original, said)]
    return [Compared(*(x.tolist() for x in parts)) for parts in zip(*columns, strict=True)]


def distances(tuned: "Tensor", base: "Tensor", said: "Tensor") -> "tuple[Tensor, ...]":
    """The columns of `Compared`, each [tokens], from logits [tokens, vocabulary] and the tokens said.

    A rank is one more than how many logits are greater: of equals, which a type of few bits has, all are as good.
    """
    import torch

    parts = []
    for a, b, t in zip(tuned.split(CHUNK), base.split(CHUNK), said.split(CHUNK), strict=True):
        a, b, t = a.float(), b.float(), t[:, None]
        own, rank = (1 + (x > x.gather(1, t)).sum(1) for x in (a, b))
        p, q = a.log_softmax(1), b.log_softmax(1)
        kl = (p.exp() * (p - q)).masked_fill(p == -math.inf, 0).sum(1)  # 0 log 0 = 0
        parts.append((rank, q.gather(1, t)[:, 0], kl, b.argmax(1), own))
    return tuple(torch.cat(column).cpu() for column in zip(*parts, strict=True))


def _sample(
    row: dict[str, Any], tokenizer: Any, special: set[int], before: int, answer: list[int], found: Compared
) -> dict[str, Any]:
    """One item: its values, and of every token of the answer its text, kind, rank, KL and log-probability.

    ``tops`` has the base's first choice where the token is another; ``right`` the numbers of the tokens that say the
    target; ``retraced`` how many of them all the tuned model finds most likely when it reads them again.
    """
    texts = pieces(tokenizer, before, answer)
    last = [before, *answer]
    tops = [
        pieces(tokenizer, last[i], [top])[0] if rank > 1 else ""
        for i, (rank, top) in enumerate(zip(found.ranks, found.tops, strict=True))
    ]
    kept = ("task", "item", "target", "answers", "prompt_hash", "item_hash", "cluster")
    return {
        **{name: row[name] for name in kept if name in row},
        "filter": "none",
        "extracted": row["answers"][0],
        **shares(found.ranks),
        "kl": math.fsum(found.kl) / len(found.kl),
        "tokens": texts,
        "kinds": kinds(answer, texts, special),
        "ranks": found.ranks,
        "kls": [_short(x) for x in found.kl],
        "logprobs": [_short(x) for x in found.logprobs],
        "tops": tops,
        "right": saying(texts, row["target"]),
        "retraced": sum(rank == 1 for rank in found.own),
    }


def _about(samples: list[dict[str, Any]], compared: list[Compared]) -> dict[str, Any]:
    """Over all tokens, as the paper has it; the same without ends of turns, which the paper may not count."""
    every = [r for c in compared for r in c.ranks]
    inner = [r for row in samples for r, kind in zip(row["ranks"], row["kinds"], strict=True) if kind != "e"]
    return {
        "tokens": len(every),
        **shares(every),
        "kl": math.fsum(x for c in compared for x in c.kl) / len(every),
        "without_ends": {"tokens": len(inner), **shares(inner)} if inner else None,
        # Less than 1 where both passes round differently: the noise that ranks have from the number format.
        "retraced": sum(r == 1 for c in compared for r in c.own) / len(every),
    }


def _short(x: float) -> float:
    return float(f"{x:.6g}")

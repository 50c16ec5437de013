"""How many bits say what a cell was told: its demonstrations or its training examples, coded by the untouched base.

A program in the sense of task complexity (arXiv 2602.15829) brings the base to a score: a prompt, or data from which
the base is trained. Base, tokenizer, chat template and the code of prompting and training are free, its text is not.
An arithmetic coder that has the base's next-token probabilities writes a text in -log2 p(text) bits and at most two
more (Rissanen & Langdon 1979, IBM J. Res. Dev. 23:149). What is counted:

- of each turn its tokens and the end of turn behind them, given what the chat template puts before it and, of the same
  dialogue, all earlier turns. What the template writes itself is known and costs nothing. Questions are counted as well
  as answers, since the learner is shown them.
- demonstrations are one dialogue, as the model sees them; training examples a dialogue each, so that nested subsets
  have nested lengths. Examples of which some are retrieved for each question are coded as training examples are.
- a header: how many dialogues (Elias 1975, IEEE Trans. Inf. Theory 21:194), and the roles of their turns, three bits
  each and three for the end; once, where all have the same.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cell import Message
from harness.data.chat import render, stop_ids
from harness.data.encode import Encoder
from harness.data.kinds import kind_of
from harness.errors import HarnessError
from harness.probe import Asking, Measured, Probe

AT_ONCE = 512  # dialogues that are scored together
ROLE_BITS = 3  # there are seven, and that no turn follows
CODER_BITS = 2.0  # what an arithmetic coder ends with
MARK = "\u2603TURN\u2603"


@dataclass
class CodeLength(Probe):
    """One metric, ``bits``, whose filter is the kind of program: ``prompt``, ``data``, or ``none`` for the untouched
    base, which is told nothing. Its items are dialogues: `about` has the ``bits`` of each that was coded.

    Of more than `most` examples so many are coded, evenly spaced in their order; the others count as these do on
    average, and the standard error is of that. No value where a cell learned from more than its examples (a recipe).
    """

    most: int = 10_000

    def check(self, name: str, task: Any) -> None:
        if self.most < 2:
            raise HarnessError(f"evals.{name}.probe.most={self.most} must be at least 2 examples")

    def passes(self) -> float:
        return 0.0  # it asks nothing

    def examples(self, size: int) -> int:
        return min(size, self.most)

    def measure(self, asking: Asking) -> Measured:
        shown = asking.adapted.demonstrations
        if isinstance(shown, list) and shown:
            kind, every, count = "prompt", [shown], 1
        elif asking.examples is None:
            return Coded(why="it learned from more than its examples, or from not all of them yet")
        else:
            count = len(asking.examples)
            places = [place * count // self.examples(count) for place in range(self.examples(count))]
            kind, every = "data" if count else "none", [list(asking.examples[place].messages) for place in places]
        with asking.base.untouched() as model:
            bits = list(dialogue_bits(asking.base, model, every, asking.run.tokens_per_pass))
        return Coded(kind, count, bits, header_bits(count, [tuple(m["role"] for m in turns) for turns in every]))


class Coded(Measured):
    """The sum over the dialogues, not the mean over items of the task."""

    def __init__(self, kind: str = "none", count: int = 0, bits: Sequence[float] = (), header: float = 0.0,
                 why: str = "") -> None:  # fmt: skip
        told = {"program": kind, "dialogues": count, "header_bits": header, "why": why}
        super().__init__([], {"bits": False}, kind, {**told, "bits": [round(b, 3) for b in bits]})
        self.why, self.count, self.bits, self.header = why, count, list(bits), header

    def scores(self, headline: str | None = None) -> list[dict[str, Any]]:
        coded, stderr = len(self.bits), None
        total = math.nan if self.why else self.header + math.fsum(self.bits) * self.count / max(coded, 1)
        if coded < self.count:  # of `count`, drawn without going back
            mean = math.fsum(self.bits) / coded
            square = math.fsum((b - mean) ** 2 for b in self.bits) / (coded - 1)
            stderr = self.count * math.sqrt(square / coded * (1 - coded / self.count))
        row = {"metric": "bits", "filter": self.filter, "headline": True, "score": total, "stderr": stderr}
        return [{**row, "n_items": coded, "higher_is_better": False}]


def header_bits(count: int, roles: Sequence[tuple[str, ...]]) -> float:
    """Of so many dialogues, of which `roles` are those that were looked at; 0 for none."""
    if not count:
        return 0.0
    each = [ROLE_BITS * (len(turns) + 1) for turns in roles]
    return elias(count) + 1 + CODER_BITS + (each[0] if len({*roles}) == 1 else count * sum(each) / len(each))


def elias(number: int) -> int:
    """Length of a whole number from 1 on in Elias's delta code."""
    digits = number.bit_length()
    return digits - 1 + 2 * digits.bit_length() - 1


def dialogue_bits(base: Any, model: Any, dialogues: Sequence[list[Message]], tokens_per_pass: int) -> Iterator[float]:
    """-log2 p of each dialogue's turns, header left out, by `model`: the base of this tokenizer."""
    from tqdm import tqdm

    from harness.by_rows import reach
    from harness.scoring import Continuation, Room, score

    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    longest, room = min(longest, reach(model) or longest), Room(tokens_per_pass)
    with tqdm(total=len(dialogues), desc="coding", unit="dialogue", delay=2, disable=None) as bar:
        for start in range(0, len(dialogues), AT_ONCE):
            here = dialogues[start : start + AT_ONCE]
            owner, pieces = list[int](), list[Continuation]()
            for number, turns in enumerate(_coded(base.tokenizer, here)):
                for before, coded in turns:
                    cut = [Continuation(*piece) for piece in windows(before, coded, longest)]
                    owner, pieces = owner + [number] * len(cut), pieces + cut
            if base.attends_by_rows:
                nats = [logp for logp, _ in score(model, pieces, room)]
            else:
                nats = [_alone(model, piece) for piece in pieces]
            sums = [0.0] * len(here)
            for number, logp in zip(owner, nats, strict=True):
                sums[number] -= logp / math.log(2)
            yield from sums
            bar.update(len(here))


def _coded(tokenizer: Any, dialogues: Sequence[list[Message]]) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Of each turn of each dialogue the ids before it and the ids that are coded: its own, and the end of turn."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = [list(_before(tokenizer, messages)) for messages in dialogues]
    contents = [[message["content"] for message in messages] for messages in dialogues]
    encode = Encoder(tokenizer)
    before = iter(encode([text for turns in texts for text in turns]))
    own = iter(encode([text for turns in contents for text in turns]))
    for messages in dialogues:
        end = _end(tokenizer, document=kind_of(messages) == "text")
        yield [(next(before) or [first], [*next(own), end]) for _ in messages]


def _end(tokenizer: Any, *, document: bool) -> int:
    """The id that ends a turn: the template's, where it is one token, else eos, as of documents."""
    others = [i for i in stop_ids(tokenizer) if i != tokenizer.eos_token_id]
    return others[0] if others and not document else int(tokenizer.eos_token_id)


def _before(tokenizer: Any, messages: Sequence[Message]) -> Iterator[str]:
    """The text before each turn's own. Of a pair both answers stand behind the prompt, as a reference does."""
    for place, message in enumerate(messages):
        role = message["role"] if message["role"] in ("system", "user") else "assistant"
        earlier = [m for m in messages[:place] if m["role"] in ("system", "user", "assistant")]
        if role == "assistant" and message["role"] == "text":
            yield ""
        elif not tokenizer.chat_template:
            yield "\n\n".join(m["content"] for m in earlier)
        elif (text := render(tokenizer, [*earlier, {"role": role, "content": MARK}], ask=False)).count(MARK) == 1:
            yield text.partition(MARK)[0]
        else:
            raise HarnessError(
                "the base's chat template does not write each turn once, so what it writes by itself cannot be told "
                "from what is said; give a plain template in base.chat_template"
            )


def windows(before: list[int], coded: list[int], longest: int) -> Iterable[tuple[list[int], int]]:
    """``(ids, how many of the last of them are coded)`` so that the model reads at most `longest` tokens at once; a
    piece of what is coded stands behind as much as there is room for, at least half of that."""
    most = max(1, longest // 2)
    if len(before) + len(coded) <= longest + 1:
        yield before + coded, len(coded)
        return
    ids = before + coded
    for start in range(len(before), len(ids), most):
        end = min(start + most, len(ids))
        yield ids[max(0, end - longest - 1) : end], end - start


def _alone(model: Any, piece: Any) -> float:
    """As `harness.scoring.score`, for a model that only reads one sequence at a time."""
    import torch

    ids = torch.tensor([piece.ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, -piece.answer :].float()
    return float(logits.log_softmax(-1).gather(-1, ids[0, -piece.answer :, None]).double().sum())

"""lm-eval's LM interface over a resident model: its own hf backend, told how this harness speaks to a model.

lm-eval's hf backend tokenises, cuts and reads answers; computing them is done here, prompts that begin alike together.
"""

import functools
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from tqdm import tqdm

from harness.base import LoadedBase
from harness.by_rows import reach
from harness.cell import Adapted, Run
from harness.data.chat import stop_ids
from harness.decoding import Row, generate
from harness.drawing import Streams, draw
from harness.prompts import Speaks, say_once
from harness.scoring import Continuation, Room, score

Pair = tuple[list[int], list[int]]  # ids of a context and of an answer to it
AT_ONCE = 1024  # requests whose texts are tokenised together
# Rows that a CPU draws for at a time, as its cache holds their scores: for 128 rows of 49,152 tokens that takes 42 ms,
# for all at once 145 (69 with top_p)
CACHED = 16


class Answer(str):
    """What a model wrote. `cut`: it had not come to an end when it had as many tokens as it may have."""

    cut: bool

    @classmethod
    def of(cls, text: str, *, cut: bool) -> "Answer":
        answer = cls(text)
        answer.cut = cut
        return answer


class Asker(Speaks, HFLM):
    """Adds no special token to what the chat template has written.

    With `run.eval_backend=shared` prompts that begin alike are computed once; what is asked, cut off and read from an
    answer is lm-eval's own either way.
    """

    def __init__(self, base: LoadedBase, adapted: Adapted, *, chat: bool, run: Run) -> None:
        super().__init__(
            pretrained=adapted.model,
            tokenizer=base.tokenizer,
            batch_size=run.eval_batch_size,
            add_bos_token=False if chat else None,  # None: as the tokenizer does by itself
        )
        self.run, self.room = run, Room(run.tokens_per_pass)
        self._known: dict[str, list[int]] = {}
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._asked: list[str] = []  # the prompts that are answered next
        self._cut: defaultdict[str, deque[bool]] = defaultdict(deque)  # by prompt, of its answers in order
        self.spoken: dict[str, Pair] | None = None  # by prompt, where it is wanted: its tokens, and those written after
        self.shares = run.eval_backend == "shared" and self._can_share(base)
        self.speak(base, adapted)

    def _can_share(self, base: LoadedBase) -> bool:
        if not base.attends_by_rows:
            say_once(
                f"{base.config.name}: its attention cannot be laid out in rows (a recurrent state, ALiBi, a short "
                "window), so it is evaluated as by lm-eval's hf backend"
            )
        return base.attends_by_rows

    @property
    def batch_size(self) -> int:
        """How many requests HFLM hands over at once: all of them, where they are cut into passes by their tokens."""
        return sys.maxsize if self.shares else self.batch_size_per_gpu

    @contextmanager
    def _plainly(self, why: str) -> Iterator[None]:
        """Ask in batches, each prompt by itself."""
        say_once(f"{why}; evaluated as by lm-eval's hf backend")
        self.shares = False
        try:
            yield
        finally:
            self.shares = True

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._pairs = dict(self._encode_pairs(dict.fromkeys(r.args for r in requests if r.args[0])))
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self.quiet)
        finally:
            self._pairs = {}

    def _encode_pairs(self, asked: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], Pair]]:
        """lm-eval's `_encode_pair` of each (context, answer), which tokenises a context again for each of its answers.

        Here one call, which uses all cores, tokenises the texts of many questions, each once.
        """
        waiting = iter(asked)
        while block := list(islice(waiting, AT_ONCE)):
            self._known = self._encode_all({text for c, a in block for text in (c + a, c.rstrip())})
            yield from ((pair, super(Asker, self)._encode_pair(*pair)) for pair in block)
        self._known = {}

    def _encode_all(self, texts: set[str]) -> dict[str, list[int]]:
        """`tok_encode` of many texts; of none for a tokenizer that tells them apart in a way we do not know."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        found: dict[str, list[int]] = {}
        for begun in (False, True):
            some = [text for text in texts if has_bos_prefix(text, bos) == begun]
            special = False if begun else self.add_bos_token
            given = {} if special is None else {"add_special_tokens": special}
            if some:
                first = super().tok_encode(some[0])  # also undoes the padding that an earlier call has asked for
                ids = self.tokenizer(some, **given)["input_ids"]
                found |= zip(some, ids, strict=True) if ids[0] == first else ()
        return found

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        return self._pairs.get((context, continuation)) or super()._encode_pair(context, continuation)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *others: Any, **named: Any) -> list[int]:
        if add_special_tokens is None and not others and not named and string in self._known:
            return self._known[string]
        return super().tok_encode(string, add_special_tokens, *others, **named)

    def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **named: Any) -> list[tuple[float, bool]]:
        lengths = [len(context) + len(answer) for _, context, answer in requests]
        self.count(sum(n > self.max_length + 1 for n in lengths))
        if not self.shares:
            return super()._loglikelihood_tokens(requests, *arguments, **named)
        if self._too_long(min(max(lengths, default=0), self.max_length)):
            with self._plainly(_TOO_LONG):
                return super()._loglikelihood_tokens(requests, *arguments, **named)
        cut = [
            Continuation((context + answer)[-(self.max_length + 1) :], len(answer)) for _, context, answer in requests
        ]
        with tqdm(total=len(cut), desc="log-likelihoods", disable=self.quiet) as bar:
            return score(self.model, cut, self.room, bar.update)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self._cut.clear()
        answers = super().generate_until(requests, disable_tqdm=disable_tqdm or self.quiet or self.shares)
        # What ends a turn is no part of the answer, also where it is ordinary text or a token kept in decoding.
        # Equal prompts keep their order in lm-eval's sorting, so the first flag of a prompt is of its first request.
        return [
            Answer.of(answer.split(self.end)[0], cut=self._cut[request.args[0]].popleft())
            for request, answer in zip(requests, answers, strict=True)
        ]

    def tok_batch_encode(
        self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> Any:
        self._asked = list(strings)
        ids, mask = super().tok_batch_encode(strings, padding_side, truncation=truncation)
        room = left_truncate_len or ids.shape[1]
        self.count(int((mask.sum(1) > room).sum()))
        return ids[:, -room:], mask[:, -room:]

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        """Prompts and answers [prompts, up to max_length]; it is kept of which prompts the answer was cut."""
        whole = self._generate(context, max_length, stop, **settings)
        room, written = max_length - context.shape[1], whole[:, context.shape[1] :].tolist()
        for prompt, tokens in zip(self._asked, written, strict=True):
            self._cut[prompt].append(len(tokens) >= room and not self._ended(tokens, stop))
        if self.spoken is not None:
            own = [ids[seen].tolist() for ids, seen in zip(context, settings["attention_mask"].bool(), strict=True)]
            self.spoken |= self._tokens(own, written, [*stop, self.end])
        return whole

    def _ended(self, tokens: list[int], stop: list[str]) -> bool:
        """Whether the end of an answer is anywhere in `tokens`: what follows it is padding, or is cut off as text."""
        eos = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.pad_token_id, self.eot_token_id, *(eos if isinstance(eos, list) else [eos])}
        text = self.tok_decode(tokens, skip_special_tokens=False)
        return not ends.isdisjoint(tokens) or any(s in text for s in [*stop, self.end])

    def _tokens(self, own: list[list[int]], written: list[list[int]], stop: list[str]) -> Iterator[tuple[str, Pair]]:
        """Of each prompt its tokens, and those of the answer up to and with the one that ends it.

        As they are: text would have to be tokenised again, perhaps in another way than it was written.
        """
        ends = self._ends(stop, stop_ids(self.tokenizer))
        for prompt, ids, said in zip(self._asked, own, written, strict=True):
            last = next((n for n in range(1, len(said)) if ends(said[:n])), len(said))
            yield prompt, (ids or [self.prefix_token_id], said[:last])

    def _ends(self, stop: list[str], ends: Collection[int]) -> Callable[[list[int]], bool]:
        """Whether the last of some tokens ends an answer."""
        # Like lm-eval: a stop string may come in other tokens than it is encoded in, so two more are looked at.
        tail = 2 + max(len(self.tokenizer.encode(s, add_special_tokens=False)) for s in stop)

        def ended(said: list[int]) -> bool:
            if said[-1] in ends:
                return True
            text = self.tokenizer.decode(said[-tail:])
            return any(s in text for s in stop)

        return ended

    def _generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        """Generate after all prompts [prompts, longest], padded on the left, of one set of generation settings.

        transformers' own `generate` prepares the settings, the model's defaults among them, and hands to `_decode`.
        """
        stop = [*stop, self.end]
        if not self.shares:
            return super()._model_generate(context, max_length, stop, **settings)
        if self._too_long(max_length):
            with self._plainly(_TOO_LONG):
                return self._generate_in_batches(context, max_length, stop, **settings)
        try:
            decode = functools.partial(self._decode, stop=stop)
            return super()._model_generate(context, max_length, stop, custom_generate=decode, **settings)
        except _NotByRowsError as reason:
            with self._plainly(str(reason)):
                return self._generate_in_batches(context, max_length, stop, **settings)

    def _generate_in_batches(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        mask, pad = settings.pop("attention_mask"), self.tokenizer.pad_token_id
        done = []
        for rows, seen in zip(context.split(self.batch_size), mask.split(self.batch_size), strict=True):
            said = super()._model_generate(rows, max_length, stop, attention_mask=seen, **settings)
            done.append(torch.nn.functional.pad(said, (0, max_length - said.shape[1]), value=pad))
        return torch.cat(done)

    def _decode(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        stop: list[str],
        **inputs: Any,
    ) -> torch.Tensor:
        """transformers' decoding loop, by rows. Returns prompts and answers [prompts, max_length], padded."""
        if (mode := generation_config.get_generation_mode()) not in ("greedy_search", "sample"):
            raise _NotByRowsError(str(mode.value).replace("_", " "))
        if generation_config.max_time is not None:
            raise _NotByRowsError("a limit of time")
        if strange := [type(p).__name__ for p in logits_processor if not isinstance(p, _BY_ROW)]:
            raise _NotByRowsError(f"{', '.join(strange)} looks at a whole batch")
        for processor in logits_processor:
            if isinstance(processor, transformers.RepetitionPenaltyLogitsProcessor):
                # Made for the padding of one batch; here a row is padded with a token of its own, to the same scores.
                processor.prompt_ignore_length = None
        eos = generation_config.eos_token_id
        ends = {eos} if isinstance(eos, int) else set(eos or [])

        processors, top_p = _without_top_p(logits_processor)

        def pick(rows: Sequence[Row], ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            if not generation_config.do_sample:
                return processors(ids, logits.float()).argmax(-1)
            few = CACHED if logits.device.type == "cpu" else len(rows)
            uniform = np.split(streams.at(rows), range(few, len(rows), few))
            parts = zip(ids.split(few), logits.split(few), uniform, strict=True)
            return torch.cat([draw(processors(i, x.float()), numbers, top_p) for i, x, numbers in parts])

        seen = inputs.get("attention_mask")  # none where nothing is padded
        seen = torch.ones_like(input_ids) if seen is None else seen
        # An empty prompt begins as an empty context does in lm-eval's log-likelihoods; its hf backend reads padding.
        start = [self.prefix_token_id]
        prompts = [ids[own].tolist() or start for ids, own in zip(input_ids, seen.bool(), strict=True)]
        room = generation_config.max_length - input_ids.shape[1]
        streams = Streams(prompts, torch.initial_seed())
        with tqdm(total=len(prompts), desc="answers", disable=self.quiet) as bar:
            said = generate(
                model,
                prompts,
                max_new_tokens=room,
                pick=pick,
                ended=self._ends(stop, ends),
                room=self.room,
                cache_bytes=int(self.run.kv_cache_gib * 2**30),
                on_done=bar.update,
            )
        pad = self.tokenizer.pad_token_id
        answers = torch.tensor([tokens + [pad] * (room - len(tokens)) for tokens in said], device=input_ids.device)
        return torch.cat([input_ids, answers], 1)

    def _too_long(self, tokens: int) -> bool:
        return (window := reach(self.model)) is not None and tokens > window


_TOO_LONG = "prompts are longer than the model's sliding window, or than its positions keep their angles"


def _without_top_p(processors: Any) -> tuple[Any, float]:
    """The same without a nucleus at their end, and how much it holds: `draw` knows a quicker way."""
    last = processors[-1] if processors else None
    if not isinstance(last, transformers.TopPLogitsWarper) or last.min_tokens_to_keep > 1:
        return processors, 1.0
    return type(processors)(processors[:-1]), float(last.top_p)


class _NotByRowsError(Exception):
    """Settings that need the whole batch at once, and why."""


# What changes the scores of a row by that row alone, whatever stands beside it and however it is padded.
_BY_ROW = (
    transformers.TemperatureLogitsWarper,
    transformers.TopKLogitsWarper,
    transformers.TopPLogitsWarper,
    transformers.MinPLogitsWarper,
    transformers.TypicalLogitsWarper,
    transformers.EpsilonLogitsWarper,
    transformers.EtaLogitsWarper,
    transformers.RepetitionPenaltyLogitsProcessor,
)

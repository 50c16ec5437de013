"""A judge that is loaded here, by the harness's own decoding: greedy, a batch of calls at a time."""

from typing import Any

from harness import base as bases
from harness.by_rows import reach
from harness.cell import Base, Run
from harness.data.chat import end_of_turn, render, stop_ids
from harness.data.encode import encode
from harness.decoding import generate
from harness.errors import HarnessError
from harness.judge.calls import Call, Keep, Outcomes, Refused, Reply
from harness.scoring import Room

BATCH = 32  # calls, whose replies are kept before the next are asked


class Local:
    """The model is loaded when the first call needs it."""

    def __init__(self, base: Base, run: Run) -> None:
        self.base, self.run = base, run
        self.name = f"{base.name} {bases.identity(base)}"

    def ask(self, calls: list[Call], keep: Keep) -> Outcomes:
        """See `harness.judge.calls.Caller`. What does not fit into the model's context is refused, never cut."""
        if not calls:
            return
        loaded = bases.load(self.base, self.run.device)
        if not loaded.attends_by_rows:
            raise HarnessError(
                f"{self.base.name}: its attention cannot be laid out in rows, so it cannot judge here; serve it "
                "(transformers serve) and give judge.url"
            )
        room, end = Room(self.run.tokens_per_pass), end_of_turn(loaded.tokenizer)
        asked = sorted(calls, key=lambda call: call.characters)  # alike in length, so that no slot is mostly empty
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            prompts = [encode(loaded.tokenizer, render(loaded.tokenizer, call.messages, ask=True)) for call in batch]
            longest = [_context(loaded.model) - call.settings["max_tokens"] for call in batch]
            fits = [len(ids) <= most for ids, most in zip(prompts, longest, strict=True)]
            for call, ids, most, ok in zip(batch, prompts, longest, fits, strict=True):
                if not ok:
                    yield call, Refused(f"{len(ids)} tokens, and {most} fit into the judge's context beside a reply")
            some = [n for n, ok in enumerate(fits) if ok]
            said = self._say(loaded, [prompts[n] for n in some], batch[0].settings["max_tokens"], room) if some else []
            for n, ids in zip(some, said, strict=True):
                text = str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).split(end)[0]
                reply = Reply(text, len(prompts[n]), len(ids))
                keep(batch[n], reply)
                yield batch[n], reply

    def _say(self, loaded: bases.LoadedBase, prompts: list[list[int]], most: int, room: Room) -> list[list[int]]:
        ends = set(stop_ids(loaded.tokenizer))
        return generate(
            loaded.model,
            prompts,
            max_new_tokens=most,
            pick=lambda _rows, _ids, logits: logits.argmax(-1),
            ended=lambda said: said[-1] in ends,
            room=room,
            cache_bytes=int(self.run.kv_cache_gib * 2**30),
        )


def _context(model: Any) -> int:
    longest = model.config.get_text_config().max_position_embeddings
    return min(longest, reach(model) or longest)

"""Attention among rows that lie end to end in one flat sequence, each perhaps behind one shared prefix.

transformers runs every linear layer on the flat sequence, so nothing is spent on padding; here, inside attention, the
sequence is folded into its rows, and each row sees itself and the prefix, never a neighbour. Attention over the two
parts is merged exactly by their log-sum-exps (as in Hydragen, arXiv 2402.05099, and FlashAttention's blocks), so the
prefix's keys and values are kept once, however many rows read them.

The function stands in for transformers' own through its attention interface, for as long as `rows_attention` lasts.
`harness.by_rows` says for which models.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "harness_rows"
# Up to this many tokens a row, the kernel for CPUs takes longer than the formula written out, forward and backward:
# in bfloat16 on two cores 25 against 7 ms at 128 tokens, 38 against 23 at 512, but 43 against 96 at 1,024.
SHORT = 512


class Layout:
    """What one forward pass attends to. Keys and values come rotated, [1, kv heads, N, width] of N flat tokens."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        """Attended values [1, heads, N, width]."""
        raise NotImplementedError


class Rows:
    """Folds N flat tokens into len(lengths) rows, padded on the right, and back.

    `order` [N]: which flat token comes where, row after row, if not the first at first.
    """

    def __init__(self, lengths: list[int], device: torch.device, order: Tensor | None = None) -> None:
        self.count, self.longest = len(lengths), max(lengths)
        self.even = order is None and len(set(lengths)) == 1
        if not self.even:
            sizes = torch.tensor(lengths)
            order = torch.arange(int(sizes.sum())) if order is None else order
            inside = torch.arange(self.longest) < sizes[:, None]
            starts = (sizes.cumsum(0) - sizes).clamp(max=len(order) - 1)
            # Padding repeats the row's first token: it must be something, and is dropped by `unfold`.
            self.slots = order[starts[:, None] + torch.arange(self.longest) * inside].flatten().to(device)
            self.tokens = inside.flatten().nonzero().squeeze(1)[order.argsort()].to(device)

    def fold(self, x: Tensor) -> Tensor:
        """[1, heads, N, width] to [rows, heads, longest, width]."""
        flat = x[0] if self.even else x[0].index_select(1, self.slots)
        return flat.unflatten(1, (self.count, self.longest)).transpose(0, 1)

    def unfold(self, x: Tensor) -> Tensor:
        flat = x.transpose(0, 1).flatten(1, 2)
        return (flat if self.even else flat.index_select(1, self.tokens))[None]


class Packed(Layout):
    """Rows that see only themselves, causally: packed training sequences."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.rows = Rows(lengths, device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        q, k, v = (self.rows.fold(x) for x in (query, key, value))
        slow_kernel = q.device.type == "cpu" and self.rows.longest <= SHORT
        with torch.autocast(q.device.type, enabled=False):
            if how["softcap"] is not None or slow_kernel:
                out = _by_formula(q, k, v, **how)
            else:
                groups = q.shape[1] // k.shape[1]
                k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
                q, k = q.to(v.dtype), k.to(v.dtype)  # as autocast would: norms and rotations may have made them float32
                out = scaled_dot_product_attention(
                    q, k, v, dropout_p=how["dropout"], scale=how["scale"], is_causal=True
                )
        return self.rows.unfold(out)


@dataclass
class Prefix:
    """Keys and values of tokens that all rows stand behind; as a stack: `length` may be set back."""

    length: int = 0
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by layer: [1, kv heads, capacity, width]

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write behind the first `length` tokens; whoever runs the pass moves `length` on when it is over."""
        end = self.length + key.shape[2]
        old = self._kept.get(layer)
        if old is None or old[0].shape[2] < end:
            room = [x.new_empty(*x.shape[:2], max(end, 2 * self.length), x.shape[3]) for x in (key, value)]
            for new, before in zip(room, old or (), strict=False):
                new[:, :, : self.length] = before[:, :, : self.length]
            self._kept[layer] = (room[0], room[1])
        for kept, x in zip(self._kept[layer], (key, value), strict=True):
            kept[:, :, self.length : end] = x

    def at(self, layer: int) -> tuple[Tensor, Tensor]:
        key, value = self._kept[layer]
        return key[:, :, : self.length], value[:, :, : self.length]

    def bytes(self) -> int:
        return sum(x.nbytes for kept in self._kept.values() for x in kept)


class Extend(Layout):
    """One row behind the prefix, causally, whose keys and values become part of it."""

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        own = _attention(query, key, value, causal=True, **_scoring(how))
        out = _behind(self.prefix, layer, query, *own, **_scoring(how))
        self.prefix.keep(layer, key, value)
        return out


class Behind(Layout):
    """Rows behind the prefix, each a tree: `mask` [rows, 1, longest, longest] adds -inf where a token is no ancestor.

    None: every row is causal. A subclass may `keep` the rows' keys and values.
    """

    def __init__(self, lengths: list[int], prefix: Prefix, device: torch.device, *, mask: Tensor | None = None) -> None:
        self.rows, self.prefix, self.mask = Rows(lengths, device), prefix, mask

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        q, k, v = (self.rows.fold(x) for x in (query, key, value))
        self.keep(layer, k, v)
        out, lse = _attention(q, k, v, causal=self.mask is None, mask=self.mask, **_scoring(how))
        flat, flat_lse = self.rows.unfold(out), self.rows.unfold(lse[..., None])[..., 0]
        return _behind(self.prefix, layer, query, flat, flat_lse, **_scoring(how))

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Nothing is kept of rows that are only scored. Shapes [rows, kv heads, longest, width]."""


class Slots:
    """Keys and values of the rows that are being generated behind a prefix; `held[i]` tokens in slot i."""

    def __init__(self, count: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.held = torch.zeros(count, dtype=torch.long, device=device)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: [slots, capacity, kv heads, width]

    def at(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; new ones [any, kv heads, any, width] tell their shape at first."""
        if layer not in self._kept:  # zeros: what is masked must still be finite
            room = [x.new_zeros(len(self.held), self.capacity, x.shape[1], x.shape[3]) for x in (key, value)]
            self._kept[layer] = (room[0], room[1])
        return self._kept[layer]

    def shown(self) -> tuple[int, Tensor | None]:
        """Tokens of the longest slot, and [slots, 1, 1, so many]: -inf where a slot holds fewer. None: none does."""
        held = self.held.tolist()
        longest = max(held)
        if min(held) == longest:
            return longest, None
        unseen = torch.arange(longest, device=self.held.device) >= self.held[:, None]
        return longest, torch.zeros(unseen.shape, device=unseen.device).masked_fill(unseen, -torch.inf)[:, None, None]

    def attended(
        self, layer: int, query: Tensor, shown: tuple[int, Tensor | None], **scoring: Any
    ) -> tuple[Tensor, Tensor]:
        """What each slot's queries [slots, heads, T, width] see of it, as `_attention` has it."""
        key, value = (x[:, : shown[0]].transpose(1, 2) for x in self._kept[layer])
        return _attention(query, key, value, mask=shown[1], **scoring)

    def only(self, slots: Tensor) -> None:
        """Let go of all other slots, layer by layer: no two copies of the whole."""
        self.held = self.held[slots]
        for layer in list(self._kept):
            key, value = self._kept.pop(layer)
            self._kept[layer] = key[slots], value[slots]


class Fill(Behind):
    """Causal rows whose keys and values become the contents of `where`, one slot each."""

    def __init__(self, lengths: list[int], prefix: Prefix, slots: Slots, where: Tensor) -> None:
        super().__init__(lengths, prefix, where.device)
        self.slots, self.where = slots, where
        slots.held[where] = torch.tensor(lengths, device=where.device)

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        for kept, x in zip(self.slots.at(layer, key, value), (key, value), strict=True):
            kept[self.where, : x.shape[2]] = x.transpose(1, 2)


@dataclass
class Samples:
    """Many answers to few prompts, whose keys and values `prompts` holds once; those that are still alike are one row.

    place: of each row, where its prompt is. rows: the slot of each row, the first of those that are alike. of: of each
    slot its row.
    """

    prompts: Slots
    place: list[int]
    rows: list[int]
    of: list[int]


class Step(Layout):
    """One token more in every slot, of one row a slot if not of `samples`. The longest slot must have room."""

    def __init__(self, prefix: Prefix, slots: Slots, samples: Samples | None = None) -> None:
        self.prefix, self.slots, self.samples = prefix, slots, samples
        device = slots.held.device
        self.at = slots.held + slots.capacity * torch.arange(len(slots.held), device=device)
        slots.held += 1
        self.shown = slots.shown()
        if samples is not None:
            place = torch.tensor(samples.place)
            counts = place.bincount(minlength=len(samples.prompts.held)).tolist()
            self.folded = Rows(counts, device, place.argsort(stable=True))
            self.prompts_shown = samples.prompts.shown()
            self.rows, self.of = (torch.tensor(x, device=device) for x in (samples.rows, samples.of))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
        each = query, key, value
        if self.samples is not None:
            each = query[:, :, self.of], key[:, :, self.of], value[:, :, self.of]
        for old, new in zip(self.slots.at(layer, key, value), each[1:], strict=True):
            old.flatten(0, 1).index_copy_(0, self.at, new[0].transpose(0, 1))
        q = each[0][0].transpose(0, 1)[:, :, None]
        out, lse = (
            x[:, :, 0].transpose(0, 1)[None] for x in self.slots.attended(layer, q, self.shown, **_scoring(how))
        )
        dtype = out.dtype
        if self.samples is not None:
            q = self.folded.fold(query)
            asked, asked_lse = self.samples.prompts.attended(layer, q, self.prompts_shown, **_scoring(how))
            asked, asked_lse = self.folded.unfold(asked), self.folded.unfold(asked_lse[..., None])[..., 0]
            out, lse = _merged(out[:, :, self.rows], lse[:, :, self.rows], asked, asked_lse)
        return _behind(self.prefix, layer, query, out, lse, **_scoring(how)).to(dtype)


def _by_formula(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, softcap: float | None, dropout: float
) -> Tensor:
    """Causal attention written out, with gradients; as transformers' eager attention, the softmax is in float32."""
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]  # heads that share keys are folded into rows of queries
    scores = (query * scale).reshape(rows, -1, groups * length, width) @ key.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    ahead = scores.new_full((length, length), -torch.inf).triu(1)
    weights = (scores.unflatten(2, (groups, length)) + ahead).softmax(-1, dtype=torch.float32).to(value.dtype)
    weights = torch.nn.functional.dropout(weights, dropout)
    return (weights.flatten(2, 3) @ value).reshape(rows, heads, length, -1)


def _behind(prefix: Prefix, layer: int, query: Tensor, out: Tensor, lse: Tensor, **scoring: Any) -> Tensor:
    """Merge attention over a row's own tokens with that over the prefix, which all N queries read as one block."""
    if not prefix.length:
        return out
    return _merged(out, lse, *_attention(query, *prefix.at(layer), **scoring))[0].to(out.dtype)


def _merged(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from that over each, in float32, and the log-sum-exps of their scores."""
    weight = torch.sigmoid(other_lse - one_lse)[..., None]
    return torch.lerp(one.float(), other.float(), weight), torch.logaddexp(one_lse, other_lse)


def _scoring(how: dict[str, Any]) -> dict[str, Any]:
    return {"scale": how["scale"], "softcap": how["softcap"]}


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    softcap: float | None,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attended values [rows, heads, T, width] and the log-sum-exp of the scores [rows, heads, T], without gradients.

    Heads that share keys (grouped-query attention, arXiv 2305.13245) are folded into T instead of repeating the keys.
    """
    rows, heads, length, width = query.shape
    if causal:  # a causal kernel skips half the work, but knows nothing of folded heads
        key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    groups = heads // key.shape[1]
    q = query.reshape(rows, key.shape[1], groups * length, width)
    if mask is not None:
        mask = mask.to(query.dtype).expand(rows, 1, length, -1).repeat(1, 1, groups, 1)
    if q.device.type == "cpu" and softcap is None and value.shape[-1] == width:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(q, key, value, is_causal=causal, attn_mask=mask, scale=scale)
    else:
        scores = (q @ key.transpose(-1, -2)).float() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if causal:
            mask = scores.new_full(scores.shape[-2:], -torch.inf).triu(1)
        if mask is not None:
            scores = scores + mask
        lse = scores.logsumexp(-1)
        out = (scores - lse[..., None]).exp().to(value.dtype) @ value
    return out.reshape(rows, heads, length, -1), lse.reshape(rows, heads, length)


_active: Layout | None = None


def _forward(
    module: Any,  # of one layer; transformers numbers them by `layer_idx`
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention."""
    assert _active is not None, "no layout is active"
    if attention_mask is not None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise NotImplementedError(f"{type(module).__name__} attends in a way of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = _active.attend(module.layer_idx, query, key, value, dropout=dropout, scale=scale, softcap=softcap)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _forward)


@contextmanager
def rows_attention(model: Any) -> Iterator[None]:
    """Let `model` (perhaps with an adapter) attend by rows; every pass inside needs a layout, see `laid_out`."""
    own = inner(model)
    before = own.config._attn_implementation
    own.set_attn_implementation(NAME)
    try:
        yield
    finally:
        own.set_attn_implementation(before)


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """The layout of the passes inside, their backward passes included."""
    global _active
    before, _active = _active, layout
    try:
        yield
    finally:
        _active = before


def inner(model: Any) -> PreTrainedModel:
    """Without the wrapper of an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

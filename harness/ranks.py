"""One cell over several processes, as `accelerate launch` and torchrun start them and say so in the environment.

Every process (a *rank*) walks through the same program; the first one decides, writes and speaks. Each trains on its
share of a batch, or, sharded (FSDP), also holds only its part of the base. In a single process all here does nothing.
"""

import atexit
import functools
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import HarnessError
from harness.secrets import redacted

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
# A rank may wait for another one that downloads or writes. It need not wait for one that failed: the launcher ends all.
PATIENCE = timedelta(hours=12)
_left: list[int] = []  # the exit status, once this rank has left


def count() -> int:
    """How many processes run this cell together."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def mine() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def first() -> bool:
    """Whether this process is the one that decides, writes and speaks."""
    return mine() == 0


def sharded() -> bool:
    """Whether `accelerate launch --use_fsdp` asks for a base spread over the ranks."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")


@functools.cache
def join() -> None:
    """Find the other ranks. From here on only the first one prints and draws progress bars."""
    if count() == 1:
        return
    atexit.register(_end)  # what is registered first is called last
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lasts
        logging.disable(logging.WARNING)
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which torch does
    import torch

    # transformers would leave the weights of all ranks but one empty, to be filled in its own way.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    backend = "gloo"
    if device() != "cpu":
        torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def device() -> str:
    """Where this process computes: its own accelerator, where there is one."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    if count() == 1:
        return "cuda"
    local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= here:
        raise HarnessError(f"{here} GPUs are visible to more than {local} processes; lower --num_processes to {here}")
    return f"cuda:{local}"


def agree(decide: Callable[[], T]) -> T:
    """What `decide` gives on the first rank, on all; the others do not call it. Each must come here, and in order."""
    if count() == 1:
        return decide()
    import torch.distributed

    join()
    given: list[Any] = [decide() if first() else None]
    torch.distributed.broadcast_object_list(given, src=0)
    return given[0]


def gather(own: T) -> list[T]:
    """What every rank gives, in their order, on all."""
    if count() == 1:
        return [own]
    import torch.distributed

    join()
    given: list[Any] = [None] * count()
    torch.distributed.all_gather_object(given, own)
    return given


def settle() -> None:
    """Wait for every rank."""
    gather(None)


def leave(code: int) -> None:
    """Part from the other ranks, when all have come here; the program ends next, with the exit status `code`."""
    if join.cache_info().currsize and count() > 1:
        settle()
        _left.append(code)


def _end() -> None:
    """End the process without taking Python down, after everybody else's last words (W&B's among them).

    A thread of the group that is still at work then, and torch's caches keep groups alive, ends the process with
    SIGABRT, now and then: https://github.com/pytorch/pytorch/issues/190489.
    """
    if _left:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_left[0])


def complain(text: str) -> None:
    """One line on stderr, from whichever rank comes first: mostly all fail together, of one cause."""
    if count() > 1:
        from torch.distributed import TCPStore

        # The launcher's own, which stands whatever has become of the other ranks.
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        if store.add("harness/complaints", 1) > 1:
            return
    print(f"harness: {redacted(text)}", file=sys.stderr)


def deal(items: Sequence[T]) -> list[list[T]]:
    """The items as one share a rank, like the cards of a game; a share may be empty."""
    return [list(items[rank :: count()]) for rank in range(count())]


def summed(weights: list[Any], losses: "torch.Tensor") -> "torch.Tensor":
    """Replace the gradients of `weights` by their sums over the ranks, the same bits on each; return that of `losses`.

    A weight that has no gradient on any rank keeps none, so that the optimizer leaves it alone.
    """
    if count() == 1:
        return losses
    import torch

    join()
    had = losses.new_tensor([w.grad is not None for w in weights])
    parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    flat = torch.cat([losses.float(), had.float(), *(part.flatten().float() for part in parts)])
    torch.distributed.all_reduce(flat)
    total, found, rest = flat.split([len(losses), len(weights), len(flat) - len(losses) - len(weights)])
    whole = rest.split([w.numel() for w in weights])
    for weight, present, gradient in zip(weights, found.tolist(), whole, strict=True):
        weight.grad = gradient.view_as(weight).to(weight.dtype) if present else None
    return total


def check_same(weights: list[Any]) -> None:
    """Raise HarnessError if this rank's weights are not the first one's, bit for bit."""
    if count() == 1:
        return
    import torch

    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    ours = digest.hexdigest()
    if ours != agree(lambda: ours):
        raise HarnessError(
            f"process {mine()} has other trained weights than the first one; use equal devices and libraries for all"
        )


@contextmanager
def in_turn() -> Iterator[None]:
    """One rank after another, sharded ones: the host's memory then holds one whole base at a time."""
    before, after = (mine(), count() - 1 - mine()) if sharded() else (0, 0)
    for _ in range(before):
        settle()
    yield
    for _ in range(after):
        settle()


def shard(model: Any, device: str) -> None:
    """Spread the weights of the model's layers over the ranks, by FSDP2: a layer is gathered while it computes.

    Embeddings, head and last norm stay whole on every device; they are a few per cent of a base that needs sharding,
    and each generated token would gather them anew. Raises HarnessError where the layers cannot be told.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise HarnessError(f"{type(model).__name__} has no layers that transformers marks; leave out --use_fsdp")
    mesh = init_device_mesh(torch.device(device).type, (count(),))
    for layer in reversed(layers):  # what is inside another one comes first
        fully_shard(layer, mesh=mesh)
    whole = {p for p in model.parameters() if not isinstance(p, DTensor)}
    fully_shard(model, mesh=mesh, ignored_params=whole)  # the layers' common root: it fetches the next one ahead
    for parameter in whole:
        parameter.data = parameter.data.to(device)


def refuse_sharded(weights: list[Any], what: str) -> None:
    """Raise HarnessError if one of the weights to be trained lies in parts."""
    if sharded():
        from torch.distributed.tensor import DTensor

        if any(isinstance(w, DTensor) for w in weights):
            raise HarnessError(f"{what} needs whole weights; leave out --use_fsdp")

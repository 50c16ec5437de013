"""Rows tokenised once per (rows, tokenizer, chat template), kept on disk, memory-mapped.

Every size and seed reads from the same tokens, and so does every `max_length`, which only cuts what is read.
"""

import gc
import importlib.metadata
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from harness.artifact import build_once, cache_dir, code_hash
from harness.cell import Message
from harness.data import chat, documents
from harness.data import encode as encoding
from harness.data.chat import Dialogue, tokenize_all
from harness.data.subset import Example, Subset
from harness.data.table import Array, Table, mapped
from harness.data.tokens import Store, TokenSequences
from harness.errors import HarnessError
from harness.identity import fingerprint

FORMAT = 1  # of the files; raise it with a change that makes others of the same tokens
FEW = 0.05  # of a table's rows: so few are tokenised by themselves while the table is not
CHUNK = 2**20  # characters that are tokenised together
MANY = 50_000  # rows that are worth the start of several processes, a few seconds
PROCESSES = 6  # at most; each takes about 0.15 GiB


class Dialogues(Protocol):
    """What is tokenised, e.g. a `Table`. Workers that are processes get it pickled."""

    def messages(self, row: int) -> list[Message]: ...

    def characters(self, row: int) -> int:
        """About how long a row is."""


class _Examples:
    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def messages(self, row: int) -> list[Message]:
        return list(self._examples[row].messages)

    def characters(self, row: int) -> int:
        return sum(len(message["content"]) for message in self._examples[row].messages)


def token_sequences(
    tokenizer: Any, examples: Sequence[Example], max_length: int, *, windows: bool = False
) -> TokenSequences:
    """The tokens of the examples, in order: those that `harness.data.chat.tokenize` gives for each.

    With `windows` a long one becomes several, see `TokenSequences`; else it is cut. A `Subset` reads them from the
    tokens of its tables, which are made first if need be, unless it takes few of their rows. Raises HarnessError where
    the chat template refuses one of the examples.
    """
    if not examples:
        return TokenSequences([], np.empty(0, np.int64), np.empty(0, np.int64), max_length)
    tokenize_all(tokenizer, [list(examples[0].messages)])  # where all rows are refused, this is so at once
    if isinstance(examples, Subset):
        store, place = examples.source, examples.row
        tables = list(examples.tables.values())
    else:
        store, place = np.zeros(len(examples), np.int64), np.arange(len(examples))
        tables = []
    stores = []
    for number, table in enumerate(tables):
        mine = store == number
        if (kept := _kept(tokenizer, table)) and (kept.exists() or mine.sum() > FEW * len(table)):
            stores.append(_open(kept, tokenizer, table))
        else:
            stores.append(_in_memory(tokenizer, table, place[mine].tolist()))
            place = place.copy()
            place[mine] = np.arange(mine.sum())
    if not tables:
        stores = [_in_memory(tokenizer, _Examples(examples), range(len(examples)))]
    for number, of in enumerate(stores):
        if of.refused and len(bad := place[(store == number) & np.isin(place, list(of.refused))]):
            raise HarnessError(of.refused[int(bad[0])])
    return TokenSequences(stores, store, place, max_length, windows=windows)


def _kept(tokenizer: Any, table: Table) -> Path | None:
    """Where the table's tokens are, or will be. Nowhere for a tokenizer written in Python, which cannot be hashed."""
    if not tokenizer.is_fast:
        return None
    encoding.encode(tokenizer, "")  # what an earlier call has set (padding, truncation) is none of its content
    what = [
        table.content,
        tokenizer.backend_tokenizer.to_str(),
        [type(tokenizer).__name__, tokenizer.split_special_tokens, tokenizer.special_tokens_map],
        tokenizer.chat_template,
        [code_hash(chat, documents, encoding), FORMAT],
        [importlib.metadata.version(library) for library in ("tokenizers", "transformers", "jinja2")],
    ]
    return cache_dir() / "tokens" / fingerprint(what)[:32]


def _open(folder: Path, tokenizer: Any, table: Table) -> Store:
    build_once(folder, lambda scratch: _write(scratch, tokenizer, table))
    about = json.loads((folder / "about.json").read_text())
    return Store(
        ids=np.asarray(np.memmap(folder / "ids.bin", about["ids"], mode="r")),
        learned=np.asarray(np.memmap(folder / "learned.bin", bool, mode="r")),
        bounds=mapped(folder / "bounds.npy"),
        target=mapped(folder / "target.npy"),
        refused={row: why for why, rows in about["refused"].items() for row in rows},
    )


def _write(folder: Path, tokenizer: Any, table: Table) -> None:
    small = max(tokenizer.get_vocab().values()) < 2**16
    refused: dict[str, list[int]] = {}
    rows = end = 0
    with ExitStack() as files:
        ids, learned, bounds, target = (
            files.enter_context((folder / name).open("wb"))
            for name in ("ids.bin", "learned.bin", "bounds.npy", "target.npy")
        )
        _header(bounds, len(table) + 1)
        _header(target, len(table))
        bounds.write(np.zeros(1, np.int64).data)
        for block in _blocks(tokenizer, table, range(len(table))):
            ids.write(block.ids.astype(np.uint16 if small else np.uint32).data)
            learned.write(block.learned.data)
            bounds.write((end + np.cumsum(block.lengths)).data)
            target.write(block.target.data)
            for row, why in block.refused.items():
                refused.setdefault(why, []).append(rows + row)
            rows += len(block.lengths)
            end += int(block.lengths.sum())
    about = {
        "ids": "uint16" if small else "uint32",
        "rows": rows,
        "tokenizer": type(tokenizer).__name__,
        "chat_template": tokenizer.chat_template,
        "refused": refused,
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def _header(file: BinaryIO, rows: int) -> None:
    """The beginning of an .npy file of so many int64, which are written as they come."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (rows,)})


def _in_memory(tokenizer: Any, dialogues: Dialogues, rows: Sequence[int]) -> Store:
    blocks = list(_blocks(tokenizer, dialogues, rows)) or [_block([])]
    refused: dict[int, str] = {}
    count = 0
    for block in blocks:
        refused |= {count + row: why for row, why in block.refused.items()}
        count += len(block.lengths)
    return Store(
        ids=np.concatenate([block.ids for block in blocks]),
        learned=np.concatenate([block.learned for block in blocks]),
        bounds=np.cumsum(np.concatenate([[0], *(block.lengths for block in blocks)])),
        target=np.concatenate([block.target for block in blocks]),
        refused=refused,
    )


class Block(NamedTuple):
    """Some sequences, as in `Store`, with the length of each."""

    ids: Array
    learned: Array
    lengths: Array
    target: Array
    refused: dict[int, str]


def _blocks(tokenizer: Any, dialogues: Dialogues, rows: Sequence[int]) -> Iterator[Block]:
    """The tokens of these rows, in order, a chunk at a time; made no further ahead than the workers need.

    Many are tokenised by processes, since most of the time goes into templates, which are Python; each reads the rows
    by itself. Few by two threads: one renders while the tokenizer, in threads of its own, encodes for the other.
    """
    workers = min(PROCESSES, os.cpu_count() or 1) if len(rows) >= MANY else 1
    pool: Executor
    if workers > 1:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_process, (tokenizer, dialogues))
    else:
        pool = ThreadPoolExecutor(2, initializer=_begin, initargs=(tokenizer, dialogues))
    with pool, tqdm(total=len(rows), desc="tokenising", unit="row", delay=2, disable=None, dynamic_ncols=True) as bar:
        waiting: deque[Future[Block]] = deque()
        chunks = _chunks(dialogues, rows)
        while True:
            while len(waiting) < workers + 2 and (chunk := next(chunks, None)):
                waiting.append(pool.submit(_work, chunk))
            if not waiting:
                return
            block = waiting.popleft().result()
            bar.update(len(block.lengths))
            yield block


_mine = threading.local()  # what a worker has: the tokenizer, the dialogues


def _begin(tokenizer: Any, dialogues: Dialogues) -> None:
    _mine.tokenizer, _mine.dialogues = tokenizer, dialogues


def _begin_process(tokenizer: Any, dialogues: Dialogues) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are all the parallelism there is to have
    _begin(tokenizer, dialogues)
    # Looking for cycles again and again among a chunk's texts takes a third of the time; once after it is enough.
    gc.disable()
    gc.freeze()


def _work(rows: Sequence[int]) -> Block:
    block = _block(_each(_mine.tokenizer, [_mine.dialogues.messages(row) for row in rows]))
    if not gc.isenabled():
        gc.collect()
    return block


def _chunks(dialogues: Dialogues, rows: Sequence[int]) -> Iterator[Sequence[int]]:
    start = size = 0
    for end, row in enumerate(rows, 1):
        size += dialogues.characters(row)
        if size >= CHUNK:
            yield rows[start:end]
            start, size = end, 0
    if start < len(rows):
        yield rows[start:]


def _each(tokenizer: Any, dialogues: list[list[Message]]) -> list[Dialogue | HarnessError]:
    """The tokens of each, or why it has none: a row that is refused only matters to those who take it."""
    try:
        return list(tokenize_all(tokenizer, dialogues))
    except HarnessError as error:
        if len(dialogues) == 1:
            return [error]
        half = len(dialogues) // 2
        return _each(tokenizer, dialogues[:half]) + _each(tokenizer, dialogues[half:])


def _block(found: list[Dialogue | HarnessError]) -> Block:
    empty = Dialogue([], [])
    whole = [empty if isinstance(each, HarnessError) else each for each in found]
    lengths = np.fromiter((len(each.ids) for each in whole), np.int64, len(whole))
    learned = np.zeros(lengths.sum(), bool)
    target = lengths.copy()
    offset = 0
    for number, each in enumerate(whole):
        for start, end in each.learned:
            learned[offset + start : offset + end] = True
        # The first token of a sequence is never predicted, so it is no target.
        target[number] = next((max(start, 1) for start, end in each.learned if max(start, 1) < end), len(each.ids))
        offset += len(each.ids)
    return Block(
        ids=np.fromiter(chain.from_iterable(each.ids for each in whole), np.uint32, len(learned)),
        learned=learned,
        lengths=lengths,
        target=target,
        refused={number: str(each) for number, each in enumerate(found) if isinstance(each, HarnessError)},
    )

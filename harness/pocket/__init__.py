"""A small world whose truth is known: bases pretrained on first use, one task that they know, one that they don't.

It lets the whole harness be tried, tested and judged offline within minutes: a sweep over it must find that the facts
are elicited and the rule is taught, because here we know that it is so.
"""

from harness.pocket.artifacts import (
    FriendsBase,
    FriendsRows,
    PocketBase,
    PocketDocuments,
    PocketPairs,
    PocketRows,
    TablesBase,
    TablesRows,
)

__all__ = [
    "FriendsBase",
    "FriendsRows",
    "PocketBase",
    "PocketDocuments",
    "PocketPairs",
    "PocketRows",
    "TablesBase",
    "TablesRows",
]

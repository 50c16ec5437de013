"""Which commit a hub id and revision mean: the hub is asked; where it is out of reach, what it last said here holds."""

import functools
import json
from pathlib import Path
from typing import Literal, NamedTuple

from harness.artifact import cache_dir
from harness.errors import HarnessError
from harness.files import whole
from harness.identity import fingerprint

_MEND = "give a local path, or check the name, the network and your login"


class Commit(NamedTuple):
    sha: str
    online: bool  # whether the hub itself said so, just now


@functools.cache
def commit_of(kind: Literal["model", "dataset"], name: str, revision: str | None) -> Commit:
    """The commit that `revision` (None: main) of `name` means now or, offline, meant when the hub was last asked.

    Asked once in a process, so that what is loaded is what was recorded, though a branch moves meanwhile. Raises
    HarnessError where there is no such thing, or the hub is out of reach and was never asked.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    note = cache_dir() / "commits" / f"{fingerprint([kind, name, revision])[:32]}.json"
    try:
        sha = huggingface_hub.HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=20).sha
    except GatedRepoError as error:
        raise HarnessError(f"{name!r} is gated: ask for access on its page, then log in (hf auth login)") from error
    except RevisionNotFoundError as error:
        raise HarnessError(
            f"{name!r} has no revision {revision!r} on the hub; give a branch or commit of it"
        ) from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise HarnessError(f"{name!r} is neither a path here nor a {kind} on the hub; {_MEND}") from error
    except Exception as error:  # offline; the error is that of whichever HTTP library the hub's client uses
        if note.exists():
            return Commit(json.loads(note.read_text())["commit"], online=False)
        if cached := _cached(kind, name, revision):
            return Commit(cached, online=False)
        raise HarnessError(
            f"the hub cannot be reached for the {kind} {name!r} ({type(error).__name__}) "
            f"and its cache has no copy; {_MEND}"
        ) from error
    # The hub's own cache keeps no such note of what is downloaded by commit, as everything is here.
    with whole(note) as scratch:
        scratch.write_text(json.dumps({"kind": kind, "name": name, "revision": revision, "commit": sha}))
    return Commit(str(sha), online=True)


def _cached(kind: str, name: str, revision: str | None) -> str:
    """The commit of what somebody has downloaded by branch; empty if nobody has."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)).name
    except IncompleteSnapshotError as error:  # nobody needs all files of a model
        return Path(error.snapshot_path).name
    except LocalEntryNotFoundError:
        return ""


def copy_of(kind: str, name: str, commit: str) -> Path | None:
    """The folder of an earlier download, whole as far as the hub's cache can tell."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type=kind, revision=commit, local_files_only=True))
    except LocalEntryNotFoundError:
        return None

"""Finished chunks on disk, so that a run that was killed goes on where it was and ends with the same bytes.

A directory belongs to one run: `run.json` says by which policy, which versions and which size of chunks, and every
chunk's file says of which inputs it is the answer. What does not match is refused with the difference named. A file
that was torn or changed does not match its own SHA-256: its chunk is solved again, with a warning.

    chunk-00000000.bin      SHA-256 of what follows, a line; then .npy arrays: see `message.to_bytes`
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from equipoise.constraints.errors import InputError
from equipoise.optimizer.digest import policy_digest, text_digest, versions
from equipoise.optimizer.message import Message, from_bytes, to_bytes

if TYPE_CHECKING:
    from equipoise.optimizer.rebalancer import Rebalancer

#: Changes with the layout of the files.
FORMAT = 1
_LOCKS = "lock", "locked"  # the second where the system cannot lock the first


class Checkpoint:
    """The finished chunks of one run, in a directory of its own. Made by `opened`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, number: int, table: Message) -> list[Message] | None:
        """The answer to this chunk; None if there is none yet. Raises InputError if it answers another table."""
        path = self._path(number)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        said, _, content = data.partition(b"\n")
        if said != hashlib.sha256(content).hexdigest().encode():
            warnings.warn(f"{path} was torn or changed; its portfolios are solved again", RuntimeWarning, stacklevel=2)
            return None
        source, *answer = from_bytes(content)
        if source != _source(table):
            raise _refused(self._folder, f"the portfolios of {path.name} are not those of this run")
        return answer

    def save(self, number: int, table: Message, answer: list[Message]) -> None:
        """Keep the answer to this chunk."""
        content = to_bytes(_source(table), *answer)
        write_whole(self._path(number), hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def _path(self, number: int) -> Path:
        return self._folder / f"chunk-{number:08d}.bin"


def _source(table: Message) -> Message:
    return [("input", [hashlib.sha256(to_bytes(table)).hexdigest()])]


@contextmanager
def opened(folder: str | os.PathLike[str], rebalancer: Rebalancer, **settings: Any) -> Iterator[Checkpoint]:
    """The directory, made if need be and locked against other runs.

    Raises InputError if it belongs to a run of another policy, other versions or other `settings`, or if another
    run is using it.
    """
    place = Path(folder)
    identity = {"format": FORMAT, "policy": policy_digest(rebalancer), **settings, "versions": versions()}
    if isinstance(identity.get("universe"), frozenset):
        identity["universe"] = text_digest(identity["universe"])
    with ExitStack() as held:
        try:
            place.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(place))
            manifest = place / "run.json"
            if manifest.exists():
                _compare(place, manifest, identity)
            elif other := [path.name for path in sorted(place.iterdir()) if path.name not in _LOCKS]:
                raise _refused(place, f"it is no checkpoint, but has {other[0]} in it")
            else:
                write_whole(manifest, (json.dumps(identity, indent=1) + "\n").encode())
            for left in place.glob("*.tmp"):
                left.unlink()
        except OSError as error:
            raise InputError(f"{place}: {error.strerror or error}", column="checkpoint") from error
        yield Checkpoint(place)


def _compare(place: Path, manifest: Path, identity: dict[str, Any]) -> None:
    try:
        found = json.loads(manifest.read_bytes())
        assert isinstance(found, dict) and isinstance(found.get("versions"), dict)
    except (ValueError, AssertionError):
        raise _refused(place, "its run.json cannot be read") from None
    names = {
        "policy": "the policy (cash, risk, costs, rules, aversion or horizon)",
        "universe": "the assets that rules may name",
        "chunk": "the size of chunks",
        "spent": "the effort for whole-lot plans",
    }
    here, there = identity["versions"], found["versions"]
    for name in sorted(here.keys() | there.keys()):  # first: on other kernels a covariance's digest differs, too
        if here.get(name) != there.get(name):
            raise _refused(place, f"it was begun with {name} {there.get(name)}, here is {here.get(name)}")
    for key in identity.keys() - {"versions"} | found.keys() - {"versions"}:
        if identity.get(key) != found.get(key):
            shown = "" if key in ("policy", "universe") else f": {found.get(key)} there, {identity.get(key)} here"
            raise _refused(place, f"{names.get(key, key)} is another{shown}")


def _refused(place: Path, why: str) -> InputError:
    return InputError(
        f"{place} holds another run: {why}; name another directory, or remove this one", column="checkpoint"
    )


def write_whole(path: Path, content: bytes) -> None:
    """The file or none of it, also if the machine loses power."""
    part = path.with_name(path.name + ".tmp")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a renaming last, where the system lets us."""
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One run at a time. The system takes the lock back from a run that was killed, where it has locks."""
    mark = place / _LOCKS[1]
    with (place / _LOCKS[0]).open("a+b") as file, ExitStack() as held:
        try:
            if not _lock(file):
                mark.open("xb").close()
                held.callback(mark.unlink)
        except FileExistsError:
            raise _in_use(place, f"; if none is running, remove {mark.name} there") from None
        except (BlockingIOError, PermissionError):
            raise _in_use(place) from None
        yield


def _in_use(place: Path, more: str = "") -> InputError:
    return InputError(
        f"{place} is in use by another run; wait for it, or name another directory{more}", column="checkpoint"
    )


def _lock(file: IO[bytes]) -> bool:
    """Lock the file until it is closed; False where the system or its file system has no locks."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        return False
    return True


def _lock_on_windows(file: IO[bytes]) -> bool:
    try:
        msvcrt: Any = importlib.import_module("msvcrt")
    except ImportError:
        return False
    file.seek(0)
    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    return True

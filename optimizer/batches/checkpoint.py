"""Finished chunks on disk, so that a run that was killed goes on where it was and ends with the same bytes.

A directory belongs to one run: `run.json` says by which policy, which versions and which size of chunks, and every
chunk's file says of which run and which inputs it is the answer. What does not match is refused with the difference
named. A file that was torn or changed does not match its own SHA-256: a chunk is solved again, and `run.json`, which
says nothing that the chunks do not say, is written again, both with a warning.

    run.json                what the run's answers depend on, and the SHA-256 of that
    chunk-00000000.bin      SHA-256 of what follows, a line; then .npy arrays: see `plain_tables.to_bytes`
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches import whole_files
from equipoise.optimizer.batches.plain_tables import Message, from_bytes, to_bytes
from equipoise.optimizer.batches.sources import Rows
from equipoise.optimizer.problem.policy_digest import policy_digest, text_digest, versions

if TYPE_CHECKING:
    from equipoise.optimizer.problem.policy import Policy

#: Changes with the layout of the files.
FORMAT = 2
_LOCKS = "lock", "locked"  # the second where the system cannot lock the first
_MANIFEST = "run.json"
_CHUNK = re.compile(r"chunk-\d{8,}\.bin")


class Checkpoint:
    """The finished chunks of one run, in a directory of its own. Made by `opened`. `run`: the SHA-256 of what it is."""

    def __init__(self, folder: Path, run: str) -> None:
        self._folder, self._run = folder, run

    def is_here(self) -> bool:
        """Whether this process sees the directory: one on another machine may not, or see another of the name."""
        try:
            return self._run.encode() in (self._folder / _MANIFEST).read_bytes()
        except OSError:
            return False

    def load(self, number: int, rows: Rows) -> list[Message] | None:
        """The answer to this chunk; None if there is none yet. Raises InputError if it answers other rows."""
        path = self._path(number)
        found = _read(path)
        if found is None:
            return None
        source, *answer = found
        if source != self._source(rows.table()):
            raise _refused(self._folder, f"the portfolios of {path.name} are not those of this run")
        return answer

    def save(self, number: int, table: Message, answer: list[Message]) -> None:
        """Keep the answer to this chunk. Raises InputError if it cannot be written."""
        content = to_bytes(self._source(table), *answer)
        _write(self._path(number), hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def _path(self, number: int) -> Path:
        return self._folder / f"chunk-{number:08d}.bin"

    def _source(self, table: Message) -> Message:
        return [("run", [self._run]), ("input", [hashlib.sha256(to_bytes(table)).hexdigest()])]


@contextmanager
def opened(folder: str | os.PathLike[str], policy: Policy, **settings: object) -> Iterator[Checkpoint]:
    """The directory, made if need be and locked against other runs.

    Raises InputError if it belongs to a run of another policy, other versions or other `settings`, if another run is
    using it, or if it cannot be written to.
    """
    place = Path(folder)
    identity = {"format": FORMAT, "policy": policy_digest(policy), **settings, "versions": versions()}
    if isinstance(universe := identity.get("universe"), frozenset):
        identity["universe"] = text_digest(universe)
    run = _digest(identity)
    with ExitStack() as held:
        try:
            place.mkdir(parents=True, exist_ok=True)
            manifest = place / _MANIFEST
            if not manifest.exists() and (other := [p.name for p in sorted(place.iterdir()) if not _ours(p.name)]):
                raise _refused(place, f"it is no checkpoint, but has {other[0]} in it")
            held.enter_context(_locked(place))
            found = _manifest(manifest)
            if found is None:
                _check_chunks(place, run)
                if manifest.exists():
                    warnings.warn(f"{manifest} was torn or changed, and is written again", RuntimeWarning, stacklevel=2)
                _write(manifest, (json.dumps({**identity, "sha256": run}, indent=1) + "\n").encode())
            else:
                _compare(place, found, identity)
            whole_files.clean(place)
        except OSError as error:
            raise whole_files.unwritable(place, error) from error
        yield Checkpoint(place.absolute(), run)


def _ours(name: str) -> bool:
    return name in _LOCKS or whole_files.is_part(name) or _CHUNK.fullmatch(name) is not None


def _digest(identity: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _manifest(path: Path) -> dict[str, object] | None:
    """What run.json says; None if it is not there, or is not what was written."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found.pop("sha256") == _digest(found):
            return dict(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _check_chunks(place: Path, run: str) -> None:
    """Raises InputError if a chunk is of another run."""
    for path in sorted(path for path in place.iterdir() if _CHUNK.fullmatch(path.name)):
        found = _read(path)
        if found is not None and dict(found[0]).get("run") != [run]:
            raise _refused(place, f"{path.name} is of another policy, another size of chunks or other versions")


def _read(path: Path) -> list[Message] | None:
    """What is in a chunk's file: its source, and the answer. None if there is none that is whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", column="checkpoint") from error
    said, _, content = data.partition(b"\n")
    if said != hashlib.sha256(content).hexdigest().encode():
        warnings.warn(f"{path} was torn or changed; its portfolios are solved again", RuntimeWarning, stacklevel=2)
        return None
    return from_bytes(content)


def _compare(place: Path, found: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    names = {
        "policy": "the policy (cash, risk, costs, rules, aversion or horizon)",
        "universe": "the assets that rules may name",
        "chunk": "the size of chunks",
        "spent": "the effort for whole-lot plans, or the solver,",
    }
    here, there = identity["versions"], found.get("versions", {})
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


def _write(path: Path, content: bytes) -> None:
    with whole_files.replaced([path]) as (file,):
        file.write(content)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One run at a time. The system takes the lock back from a run that was killed, where it has locks."""
    mark = place / _LOCKS[1]
    with (place / _LOCKS[0]).open("a+b") as file, ExitStack() as held:
        try:
            if not whole_files.lock(file):
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

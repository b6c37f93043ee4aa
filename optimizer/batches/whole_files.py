"""Files written whole: under other names first, and renamed when all files of a run are done, or none of them.

The other name of NAME is `.NAME.<32 hexadecimal digits>.part`: hidden, and with a suffix that no reader of results
looks for. It is locked while it is written, and the system takes the lock back from a run that was killed. So what
such a run left behind is told from what another is writing just now, and the next run in the folder removes it.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from equipoise.constraints.errors import InputError

_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part", re.DOTALL)
_ROOM = "make room there or name another place, and run it again"
_ALLOWED = "name a place that may be written to"
_FOLDER = "a file stands where a folder is needed; name another place"
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _ALLOWED),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), _FOLDER),
    errno.EISDIR: "a folder stands where the file is wanted; name another place",
}


def unwritable(path: Path, error: OSError) -> InputError:
    """What to say when this path cannot be written to, and what to do about it."""
    advice = _ADVICE.get(error.errno or 0, "name another place")
    return InputError(f"{path}: cannot be written to: {error.strerror or error}; {advice}")


@contextmanager
def replaced(paths: Sequence[Path], *, inputs: Iterable[Path] = ()) -> Iterator[list[IO[bytes]]]:
    """Files that take the place of these, in this order, when the context ends; none if it ends by an error.

    A run that is killed between two of the last renamings leaves the first of them only.

    Raises InputError, which names the path, for what cannot be written, and for a path that is there twice or is one
    of `inputs`.
    """
    for number, path in enumerate(paths):
        if any(_same(path, other) for other in [*paths[:number], *inputs]):
            raise InputError(f"{path}: is read from, or written to, already; name another place")
    with ExitStack() as held:
        parts = [held.enter_context(_part(path)) for path in paths]
        yield [file for _, file in parts]
        for path, (_, file) in zip(paths, parts, strict=True):
            with _named(path), file:
                file.flush()
                os.fsync(file.fileno())
        _rename([part for part, _ in parts], paths)


def check_writable(folder: Path) -> None:
    """Raises InputError if nothing can be made in the folder, which need not be there: before hours of work, not after.

    Makes nothing."""
    with _named(folder):
        place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def clean(folder: Path) -> None:
    """Remove what runs that were killed have left in this folder."""
    with suppress(OSError):
        for left in [path for path in folder.iterdir() if is_part(path.name)]:
            with suppress(OSError), left.open("r+b") as file:
                if lock(file):
                    left.unlink()


def is_part(name: str) -> bool:
    """Whether a file is not whole, by its name."""
    return _PART.fullmatch(name) is not None


class _Raw(io.FileIO):
    """A file that says which path it is to be when it cannot be written."""

    def __init__(self, part: Path, path: Path) -> None:
        super().__init__(part, "xb")
        self._path = path

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise unwritable(self._path, error) from error


@contextmanager
def _part(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """The file under its other name; removed at the end, unless it was renamed."""
    part = _other_name(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file = io.BufferedWriter(_Raw(part, path))
    try:
        with _named(path):
            lock(file)
        yield part, file
    finally:
        with suppress(OSError, InputError):  # of what is thrown away, or was written and closed before
            file.close()
        _remove(part)


def _rename(parts: Sequence[Path], paths: Sequence[Path]) -> None:
    """All or, if one cannot be renamed, none."""
    kept = {path: _other_name(path) for path in paths if os.path.lexists(path) and len(paths) > 1}
    done: list[Path] = []
    try:
        _link(kept)
        for part, path in zip(parts, paths, strict=True):
            with _named(path):
                part.replace(path)
            done.append(path)
    except BaseException:
        for path in done:
            _undo(path, kept.get(path))
        raise
    finally:
        for before in kept.values():
            _remove(before)
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _link(kept: Mapping[Path, Path]) -> None:
    """Give each of these files a second name."""
    for path, before in kept.items():
        with suppress(OSError, NotImplementedError):  # no links here: what is replaced cannot be had back
            os.link(path, before, follow_symlinks=False)


def _undo(path: Path, before: Path | None) -> None:
    """Put back what stood there before, if anything did."""
    with suppress(OSError):
        if before is None:
            path.unlink()
        else:
            before.replace(path)


def _other_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # not there, or not to be looked at
        return one.absolute() == other.absolute()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make a renaming last, where the system lets us."""
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(file: IO[bytes]) -> bool:
    """Lock the file until it is closed; False where the system or its file system has no locks.

    Raises BlockingIOError or PermissionError if another has locked it.
    """
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

"""Files that cannot be written: the disk is full, rights are missing, something else stands there, any call fails."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
from batches import accounts, rebalancer

from equipoise import InputError
from equipoise.optimizer.batches.run import run, write
from equipoise.optimizer.command.main import main
from scorecard._forked import in_child, measured
from scorecard.figure import Result, Row

POLICY = """
cash = "USD"
[[costs]]
type = "ProportionalCost"
buy = 0.001
[[constraints]]
type = "LongOnly"
[[constraints]]
type = "DriftBand"
relative = 0.25
absolute = 0.05
"""
ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EMFILE,
    errno.ENAMETOOLONG,
)
TABLE = accounts(12).drop(columns="harm")


def fails_to_write(count: int) -> Result:
    return measured("scorecard.files", "failed", count)


def inputs(place: Path, table: pd.DataFrame) -> None:
    (place / "policy.toml").write_text(POLICY)
    table.to_csv(place / "batch.csv", index=False)
    table[:5].drop(columns="portfolio_id").to_csv(place / "solve.csv", index=False)


# What writes: each raises InputError if it fails, with what the command said.


def _command(place: Path, command: str) -> None:
    arguments = [command, place / f"{command}.csv", "--policy", place / "policy.toml", "--out", place / "out"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()), failing(place):
        code = main([str(argument) for argument in arguments])
    summary = json.loads(said.getvalue().splitlines()[-1])
    if code == 1:
        raise InputError(summary["message"])
    assert code == 0, summary


def solve(place: Path, table: pd.DataFrame) -> None:
    _command(place, "solve")


def batch(place: Path, table: pd.DataFrame) -> None:
    _command(place, "batch")


def to_files(suffix: str) -> Callable[[Path, pd.DataFrame], None]:
    def written(place: Path, table: pd.DataFrame) -> None:
        paths = {what: place / "out" / f"{what}.{suffix}" for what in ("results", "orders")}
        with failing(place):
            write(rebalancer(harm=False).policy, table, chunk=20, checkpoint=place / "kept", progress=False, **paths)

    return written


def chunks(place: Path, table: pd.DataFrame) -> None:
    with failing(place):
        list(run(rebalancer(harm=False).policy, table, chunk=20, checkpoint=place / "kept", progress=False))


WRITERS = {"solve": solve, "batch": batch, "csv": to_files("csv"), "parquet": to_files("parquet"), "chunks": chunks}


@dataclass
class Fault:
    """What goes wrong in this process from now on, below a folder: the call of this number that changes a file."""

    at: int = -1
    error: int = 0
    below: str = ""
    seen: int = 0
    what: str = ""


FAULT = Fault()


def _audit(event: str, given: tuple[Any, ...]) -> None:
    """Python calls this before it opens, renames, links, makes or removes anything."""
    if not FAULT.below or event not in ("open", "os.rename", "os.mkdir", "os.link", "os.remove"):
        return
    if not str(given[0]).startswith(FAULT.below):
        return
    if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    FAULT.seen += 1
    if FAULT.seen == FAULT.at:
        FAULT.what = event
        raise OSError(FAULT.error, os.strerror(FAULT.error))


@contextlib.contextmanager
def failing(place: Path) -> Any:
    """Where faults begin: what is written by the case itself does not fail."""
    FAULT.below = str(place) if FAULT.at > 0 else ""
    yield
    FAULT.below = ""


# What goes wrong: done in the child, before the writer.


def call_fails(place: Path, rng: Random) -> str:
    FAULT.at, FAULT.error = rng.randrange(1, 20), rng.choice(ERRORS)
    sys.addaudithook(_audit)
    return f"call {FAULT.at} fails with {errno.errorcode[FAULT.error]}"


def too_long(place: Path, rng: Random) -> str:
    import resource

    size = int(10 ** rng.uniform(0, 4.2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return f"no file longer than {size}"


def full_disk(place: Path, rng: Random) -> str:
    folder = place / rng.choice(["out", "kept"])
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    size = sum(-(-len(data) // 4096) * 4096 for data in kept.values()) + 4096 * rng.randrange(1, 6)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:  # not root, or none of the kind
        return call_fails(place, rng)
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    return f"a disk of {size} bytes at {folder.name}"


def no_rights(place: Path, rng: Random) -> str:
    if os.geteuid() != 0:
        for folder in ("out", "kept"):
            (place / folder).chmod(0o555)
        return "folders that may be read only"
    (place / "out").chmod(0o755)
    place.chmod(0o777)
    os.setgid(65534)
    os.setuid(65534)
    return "folders of somebody else"


def a_file_for_a_folder(place: Path, rng: Random) -> str:
    for folder in ("out", "kept"):
        shutil.rmtree(place / folder)
        (place / folder).write_text("mine")
    return "files where the folders should be"


def a_folder_for_a_file(place: Path, rng: Random) -> str:
    for folder, names in (("out", ("orders.csv", "orders.parquet")), ("kept", ("chunk-00000001.bin",))):
        for name in names:
            (place / folder / name).unlink(missing_ok=True)
            (place / folder / name).mkdir()
    return "folders where the files should be"


LINUX = sys.platform == "linux"
FAULTS = (call_fails, call_fails, too_long, full_disk, no_rights, a_file_for_a_folder, a_folder_for_a_file)
MUST_FAIL = (no_rights, a_file_for_a_folder, a_folder_for_a_file)


def failed(count: int) -> list[str]:
    """Cases that lost a finished part, left another, said no path, or ended by another error than ours."""
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for age, table in (("old", TABLE[5:30]), ("new", TABLE)):
            for writer, write_ in WRITERS.items():
                place = folder / age / writer
                (place / "out").mkdir(parents=True)
                inputs(place, table)
                write_(place, table)
            chunks(folder / age, table)
        for i in range(count):
            rng = Random(i)
            writer, fault = list(WRITERS)[i % len(WRITERS)], FAULTS[i // len(WRITERS) % len(FAULTS)]
            place = folder / f"{i}"
            try:
                wrong = _case(writer, fault, place, folder, rng)
            finally:
                for mount in ("out", "kept"):
                    if os.path.ismount(place / mount):
                        subprocess.run(["umount", str(place / mount)], check=True)
            if wrong:
                missed.append(f"{i} {writer}: {wrong}")
    return missed


def _case(writer: str, fault: Callable[[Path, Random], str], place: Path, folder: Path, rng: Random) -> str:
    """Last night's files are there, and a checkpoint with one chunk done."""
    old, new, whole = folder / "old" / writer / "out", folder / "new" / writer / "out", folder / "new" / "kept"
    shutil.copytree(old, place / "out")
    (place / "kept").mkdir()
    inputs(place, TABLE)
    for name in ("run.json", "chunk-00000000.bin"):
        shutil.copy(whole / name, place / "kept" / name)

    def work() -> str:
        said = fault(place, rng)
        try:
            WRITERS[writer](place, TABLE)
        except InputError as error:
            return f"{said}\n{FAULT.what}\n{error}"
        return f"{said}\n{FAULT.what}\n"

    code, answer = in_child(work)
    if code:
        return answer
    said, what, message = answer.split("\n", 2)
    names = str(place) in message
    ours = ": cannot be written to: " in message and ";" in message
    if message and not (names and (ours or ": cannot be read: " in message)):
        return f"{said}: no path, or no advice: {message}"
    if not message and fault in MUST_FAIL:
        return f"{said}: no error"
    return "" if fault is a_file_for_a_folder else _lost(said, what, bool(message), place, old, new, whole)


def _lost(said: str, what: str, error: bool, place: Path, old: Path, new: Path, whole: Path) -> str:
    for path in (path for path in (place / "out").iterdir() if path.is_file() and path.suffix != ".part"):
        data = path.read_bytes()
        states = {age: (folder / path.name).read_bytes() == data for age, folder in (("old", old), ("new", new))}
        if not states["old" if error else "new"]:
            return f"{said}: {path.name} is {states} after {'an error' if error else 'a run that ended well'}"
    left = [path.name for folder in ("out", "kept") for path in (place / folder).glob(".*.part")]
    if left and what != "os.remove":
        return f"{said}: {left} are left"
    for path in (place / "kept").glob("*.bin"):
        if path.is_file() and path.read_bytes() != (whole / path.name).read_bytes():
            return f"{said}: {path.name} is another"
    return "" if (place / "kept" / "chunk-00000000.bin").exists() else f"{said}: the finished chunk is lost"


ROWS = [
    Row(
        15, "writes that fail: a finished part lost or left over, no path, another error", "0", fails_to_write, 35, 2000
    )
]

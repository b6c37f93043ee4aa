"""Chunks in processes of our own: one that dies or hangs costs only the portfolios that make it do so.

Every worker has a pipe to itself and one part of a chunk at a time, so that it is known what a dead worker was
doing. Such a part is split, and split again, until single portfolios are left; these run while nothing else does,
and only what fails then is given up: a process that the system ended for want of memory, or somebody by hand,
must not cost an innocent portfolio its plan.

A time limit is one for each portfolio. A worker says when it has read its rows, and when it begins with a portfolio, or
with a stack of them, and is given up when it has said nothing for so long; what it was doing is split as above. So a
portfolio that hangs costs its limit once for each split, however large the chunk was, and a stack that takes longer as
a whole is solved in smaller ones.

Processes are spawned, never forked: a fork in a process with threads may hang for ever. Their numerical libraries
use one thread each, for there is one worker a core, and as sums over several threads may differ in the last bit.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches.tasks import (
    Answer,
    Job,
    Output,
    Task,
    given_up,
    internal,
    packed,
    put_together,
    solve_task,
    unpacked,
)
from equipoise.optimizer.problem.solution import Status

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

#: A failed part is split into so many: fewer deaths on the way to a single portfolio than by halves.
SPLIT = 16
#: So many workers in a row that end before they are ready are no accident.
STARTS = 3
#: So many chunks a worker are under way at once at most, so that an endless source streams at constant memory.
AHEAD = 2
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(eq=False)
class _Part:
    """Portfolios first ... last − 1 of a chunk; `alone`: a suspect, which must run while nothing else does."""

    chunk: _Chunk
    first: int
    last: int
    alone: bool = False

    @property
    def task(self) -> Task:
        return self.chunk.task.portfolios(self.first, self.last)


@dataclass(eq=False)
class _Chunk:
    task: Task
    missing: int  # portfolios
    outputs: dict[int, Output] = field(default_factory=dict)

    def add(self, part: _Part, output: Output) -> None:
        self.outputs[part.first] = output
        self.missing -= part.last - part.first

    def ended(self, job: Job) -> Answer:
        """If a worker solved it as a whole, its output has come, too."""
        outputs = [self.outputs[first] for first in sorted(self.outputs)]
        if len(outputs) == 1 and not outputs[0].part:
            return self.task, outputs[0]
        tables = self.task.tables or put_together(output.tables for output in outputs)
        return self.task, job.output(self.task, tables)


class _Worker:
    """One process, the pipe to it, and what it is doing."""

    def __init__(self, job: bytes, timed: bool) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, job, timed), daemon=True)
        with _one_thread_in_children():
            self.process.start()
        theirs.close()
        self.ready = False
        self.part: _Part | None = None
        self.deadline = float("inf")

    def end(self, patience: float = 0.0) -> int | None:
        """Stop it, unless it ends by itself, and say how it ended."""
        self.pipe.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return code


class Workers:
    """`count` processes that work on chunks; a context manager. See the module for what happens to failures.

    timeout: seconds a portfolio, or a stack of them. None: no limit.
    """

    def __init__(self, job: Job, count: int, timeout: float | None = None) -> None:
        self._job, self._packed, self._count, self._timeout = job, packed(job), count, timeout
        self._workers: list[_Worker] = []
        self._queue: deque[_Part] = deque()
        self._failed_starts = STARTS - 1  # the very first must succeed

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def answers(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """The answers in the order of the tasks, of which no more are taken than can soon be worked on."""
        tasks, window, more = iter(tasks), deque[_Chunk](), True
        while True:
            while more and len(window) < AHEAD * self._count:
                task = next(tasks, None)
                if more := task is not None:
                    window.append(_Chunk(task, 0 if task.tables is not None else len(task)))
                    if window[-1].missing:
                        self._queue.append(_Part(window[-1], 0, window[-1].missing))
            if not window:
                return
            if not window[0].missing:
                yield window.popleft().ended(self._job)
            else:
                self._hand_out()
                self._collect()

    def _hand_out(self) -> None:
        beside = sum(not part.alone for part in self._queue) + self._busy()
        while len(self._workers) < min(self._count, max(1, beside)):
            self._workers.append(_Worker(self._packed, timed=self._timeout is not None))
        for worker in self._workers:
            part = self._next() if worker.ready and worker.part is None else None
            if part is None:
                continue
            worker.part = part
            with suppress(OSError):  # it has just died: `_collect` will see that
                worker.pipe.send(part.task)

    def _begun(self, worker: _Worker) -> None:
        """It has begun something, which may take as long as a portfolio."""
        if self._timeout is not None:
            worker.deadline = time.monotonic() + self._timeout

    def _busy(self) -> int:
        return sum(worker.part is not None for worker in self._workers)

    def _next(self) -> _Part | None:
        """The next part to do: first whatever may run beside others, then one that must run alone."""
        if any(worker.part is not None and worker.part.alone for worker in self._workers):
            return None
        for i, part in enumerate(self._queue):
            if not part.alone:
                del self._queue[i]
                return part
        return self._queue.popleft() if self._queue and not self._busy() else None

    def _collect(self) -> None:
        """Wait for news, and take them in."""
        first = min(worker.deadline for worker in self._workers)
        patience = None if first == float("inf") else max(0.0, first - time.monotonic())
        news = wait([worker.pipe for worker in self._workers], patience)
        for worker in list(self._workers):
            if worker.pipe in news:
                self._hear(worker)
            elif time.monotonic() >= worker.deadline:
                self._lose(worker, Status.TIMEOUT)

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError):
            self._lose(worker, Status.WORKER_DIED)
            return
        if kind == "refused":
            raise content
        if kind == "begun":
            self._begun(worker)
            return
        part, worker.part, worker.deadline = worker.part, None, float("inf")
        if kind == "ready":
            worker.ready, self._failed_starts = True, 0
        elif part is not None and kind == "answer":
            part.chunk.add(part, content)
        elif part is not None:
            self._failed(part, Status.UNSOLVED, content)

    def _lose(self, worker: _Worker, status: Status) -> None:
        self._workers.remove(worker)
        code = worker.end(patience=5.0 if status is Status.WORKER_DIED else 0.0)  # it has closed its pipe already
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise InputError(
                    f"worker processes end before they are ready ({_ending(code)}); a script that uses them needs "
                    'the line `if __name__ == "__main__":` around what it does',
                    column="executor",
                )
        if worker.part is not None and status is Status.TIMEOUT:
            self._failed(worker.part, status, f"timeout: no answer within {self._timeout:g} seconds")
        elif worker.part is not None:
            self._failed(worker.part, status, f"worker_died: the process that solved it ended with {_ending(code)}")

    def _failed(self, part: _Part, status: Status, why: str) -> None:
        count = part.last - part.first
        pieces = min(SPLIT, count)
        if count > 1 or not (part.alone or status is Status.UNSOLVED):
            edges = [part.first + count * i // pieces for i in range(pieces + 1)]
            split = [_Part(part.chunk, a, b, alone=b - a == 1) for a, b in pairwise(edges)]
            self._queue.extendleft(reversed(split))
        else:
            part.chunk.add(part, Output(given_up(part.task.names(), status, why), part=True))


def _ending(code: int | None) -> str:
    if code == errno.ENOMEM:
        return "too little memory"
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


@contextmanager
def _one_thread_in_children() -> Iterator[None]:
    """Libraries read these variables when they are loaded, so they must stand there before."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _work(pipe: Connection, job: bytes, timed: bool) -> None:
    """The life of a worker. `timed`: whether there is a limit of time, so that it says what it begins."""

    def begun() -> None:
        if timed:
            pipe.send(("begun", None))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the parent has gone
        try:
            unpacked(job)
        except InputError as error:
            pipe.send(("refused", error))
            return
        if timed:
            import_program()  # its seconds must not count against the first portfolios
        pipe.send(("ready", None))
        while True:
            task = pipe.recv()
            reply: tuple[str, object]
            try:
                reply = "answer", solve_task(job, task, begun)
            except InputError as error:  # of the source, or the checkpoint
                reply = "refused", error
            except MemoryError:  # perhaps others' fault, and what is left of this process may be too little as well
                os._exit(errno.ENOMEM)
            except Exception as error:
                reply = "error", internal(error)
            pipe.send(reply)


def _end_with_parent() -> None:
    """A parent that was killed can stop nobody: without this, a worker that hangs would do so for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def import_program() -> None:
    """Load cvxpy, which takes seconds."""
    import importlib

    importlib.import_module("cvxpy")

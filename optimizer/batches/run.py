"""Batches in parallel, as a stream: chunks of whole portfolios go out, their results come back in order.

A chunk is solved by itself, in this process, in processes of our own, or by any `concurrent.futures.Executor`. What
a portfolio gets depends on nothing but its own rows and the policy: not on the chunk it is in, nor on who solves it.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, Unpack

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.optimizer.batches.checkpoint import opened
from equipoise.optimizer.batches.chunk import Chunk, from_messages
from equipoise.optimizer.batches.inputs import check_readable
from equipoise.optimizer.batches.output_files import GROUP, Format, Grouping, What, formats, output_files
from equipoise.optimizer.batches.plain_tables import Message
from equipoise.optimizer.batches.progress import Progress
from equipoise.optimizer.batches.sources import NotThereError, Source, Stream, TableRows, open_stream
from equipoise.optimizer.batches.tasks import (
    Answer,
    Job,
    Output,
    Tables,
    Task,
    given_up,
    internal,
    packed,
    put_together,
    solve_task,
)
from equipoise.optimizer.batches.workers import AHEAD, Workers
from equipoise.optimizer.problem.effort import Effort, Spent
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.solvers.choose import named

if TYPE_CHECKING:
    from equipoise.optimizer.problem.policy import Policy

#: Rows of a chunk, unless asked for otherwise: large enough that the way to a worker costs little, and a row group of
#: the files, which so is encoded where it is solved.
CHUNK = GROUP


class Options(Spent, total=False):
    """How a batch is solved: see `run`."""

    executor: int | Executor | None
    chunk: int | None
    timeout: float | None
    checkpoint: str | os.PathLike[str] | None
    progress: bool | None
    universe: Iterable[str]
    allocate: Literal["own", "unbiased"]


def run(
    policy: Policy,
    source: Source,
    *,
    executor: int | Executor | None = None,
    chunk: int | None = None,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    universe: Iterable[str] = (),
    **spent: Unpack[Spent],
) -> Iterator[Chunk]:
    """Solve a batch chunk by chunk, in the order of the source: exactly one result row a portfolio.

    source: a DataFrame as for `Rebalancer.solve_batch`; an iterable of them, each with whole portfolios; the path of
        a Parquet file in which the rows of a portfolio are neighbours; an Arrow table, Polars frame or DuckDB
        relation. Files and iterables are read as they are needed.
    executor: None for this process; a number of processes of our own; or any `concurrent.futures.Executor`, such as
        Dask's `Client.get_executor()`.
    chunk: about how many rows are solved at once (20,000). It changes no result.
    timeout: seconds a portfolio may take, for processes of our own: see `workers`. It does not grow with the chunk.
    checkpoint: a directory for finished chunks, from which a run that was killed goes on.
    progress: None for a bar on a terminal (with tqdm), True for a bar or plain lines, False for neither.
    universe: labels that rules may name beyond those of the risk model and, except for an iterator, which can be
        read only once, those of the whole source.
    effort, exact, gap, time_limit, solver: how each portfolio is solved, as in `Rebalancer.solve`. With a limit of
        time that is reached a plan depends on the machine.

    A portfolio whose process dies, or gives no answer in time, also when it is tried alone, has the status
    WORKER_DIED or TIMEOUT; the others are not affected. In this process (None) nothing can be done about either.

    Raises InputError, when it is called or when the first chunk is asked for, for a source, option or checkpoint that
    does not fit, and for a policy that cannot be sent to a worker; later for a portfolio_id that comes back.
    """
    return _chunks(
        _started(
            policy,
            source,
            executor=executor,
            chunk=chunk,
            timeout=timeout,
            checkpoint=checkpoint,
            progress=progress,
            universe=universe,
            **spent,
        )
    )


def _chunks(answers: Generator[Output, None, None]) -> Iterator[Chunk]:
    with closing(answers):
        for output in answers:
            yield from_messages([output.tables])


def _started(
    policy: Policy,
    source: Source,
    *,
    formats: Sequence[Format] = (),
    executor: int | Executor | None = None,
    chunk: int | None = None,
    timeout: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    universe: Iterable[str] = (),
    **spent: Unpack[Spent],
) -> Generator[Output, None, None]:
    """`run`, with results and orders as plain arrays, or as what they are in files of these formats."""
    _check_names(spent)
    if isinstance(executor, int):
        check_number(executor, "executor", at_least=1)
    elif executor is not None and not isinstance(executor, Executor):
        raise InputError(
            "must be None, a number of processes, or a concurrent.futures.Executor", column="executor", value=executor
        )
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise InputError("must be a whole number of rows, 1 or more", column="chunk", value=chunk)
    if timeout is not None:
        check_number(timeout, "timeout", above=0.0)
        if not isinstance(executor, int):
            raise InputError("needs processes of our own: executor=1 or more", column="timeout", value=timeout)
    job = Job(policy, frozenset(), Effort(**spent), None, formats)
    named(job.spent.solver)  # or an InputError
    return _run(job, source, executor, chunk or CHUNK, timeout, checkpoint, progress, universe)


def _check_names(spent: Mapping[str, object]) -> None:
    """Raises InputError for what is left of the options when all others are taken, and says nothing about lots."""
    for name in spent:
        if name not in Effort.__dataclass_fields__:
            raise InputError(
                f"is no option of a batch; there are {', '.join(sorted(Options.__annotations__))}", column=name
            )


def _run(
    job: Job,
    source: Source,
    executor: int | Executor | None,
    size: int,
    timeout: float | None,
    folder: str | os.PathLike[str] | None,
    wanted: bool | None,
    universe: Iterable[str],
) -> Generator[Output, None, None]:
    with ExitStack() as held:
        stream = open_stream(source, universe)
        held.callback(stream.close)
        job = replace(job, universe=stream.universe)
        if folder is not None:
            settings = {"chunk": size, "universe": stream.universe, "spent": asdict(job.spent)}
            job = replace(job, checkpoint=held.enter_context(opened(folder, job.policy, **settings)))
        tasks = _tasks(stream, size, job)
        if executor is None:
            answers = _here(job, tasks)
        elif isinstance(executor, int):
            answers = held.enter_context(Workers(job, executor, timeout)).answers(tasks)
        else:
            answers = _elsewhere(executor, job, tasks, held)
        progress = held.enter_context(Progress(wanted, stream.portfolios))
        for task, output in answers:
            progress.add(len(task), solved=task.tables is None)
            yield output


def _tasks(stream: Stream, size: int, job: Job) -> Iterator[Task]:
    groupings = [Grouping(form.what) for form in job.formats]
    for number, (rows, edges) in enumerate(stream.chunks(size)):
        groups = [grouping.add(edges) for grouping in groupings]
        known = job.checkpoint.load(number, rows) if job.checkpoint is not None else None
        yield Task(number, rows, edges, groups, known)


def _here(job: Job, tasks: Iterable[Task]) -> Iterator[Answer]:
    def solved(task: Task, table: Message) -> Tables:
        try:
            return job.solved(table)
        except Exception as error:
            count = len(task)
            if count == 1:
                return given_up(task.names(), Status.UNSOLVED, internal(error))
            halves = (task.portfolios(0, count // 2), task.portfolios(count // 2, count))
            return put_together([solved(half, half.rows.table()) for half in halves])

    for task in tasks:
        if task.tables is None:
            task = replace(task, rows=TableRows(task.rows.table()))
        yield task, job.output(task, task.tables or solved(task, task.rows.table()))


def _elsewhere(executor: Executor, job: Job, tasks: Iterable[Task], held: ExitStack) -> Iterator[Answer]:
    """Somebody else's executor. What it fails at goes to processes of our own, where a culprit can be isolated."""
    tasks, count = iter(tasks), _workers(executor)
    sent = _Sent(executor, job)
    held.callback(sent.cancel)
    ours: Workers | None = None
    while True:
        sent.add(islice(tasks, AHEAD * count - len(sent.window)))
        if not sent.window:
            return
        task, future = sent.window.popleft()
        try:
            output = sent.output(task, future)
        except InputError:  # the policy cannot be loaded there, or the source cannot be read
            raise
        except Exception as error:
            if ours is None:
                text = f"the executor failed ({type(error).__name__}: {error}); processes of our own take over from it"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
                ours = held.enter_context(Workers(job, min(count, os.cpu_count() or 1)))
            if isinstance(error, BrokenExecutor):
                yield from ours.answers(chain([task], [task for task, _ in sent.window], tasks))
                return
            yield from ours.answers([task])
        else:
            yield task, output


class _Sent:
    """What an executor has been given and has not been asked for yet.

    Its workers read the source for themselves, and keep finished chunks. If they do not see the same files, as on other
    machines, both is done here, and rows and tables are sent.
    """

    def __init__(self, executor: Executor, job: Job) -> None:
        self._executor, self._job, self._packed = executor, job, packed(job)
        self._by_value = False
        self.window: deque[tuple[Task, Future[Output]]] = deque()

    def add(self, tasks: Iterable[Task]) -> None:
        self.window.extend((task, self._submitted(task)) for task in tasks)

    def cancel(self) -> None:
        for _, future in self.window:
            future.cancel()

    def output(self, task: Task, future: Future[Output]) -> Output:
        """What becomes of a task that was sent."""
        if task.tables is not None:
            return self._job.output(task, task.tables)
        try:
            found = future.result()
        except NotThereError:
            self._by_value = True
            found = self._submitted(task).result()
        return self._job.output(task, found.tables) if found.part else found

    def _submitted(self, task: Task) -> Future[Output]:
        future: Future[Output] = Future()
        if task.tables is not None:
            return future
        if self._by_value:
            task = task.by_value()
        try:
            return self._executor.submit(solve_task, self._packed, task)
        except RuntimeError as error:  # broken, or shut down
            future.set_exception(BrokenExecutor(str(error)))
            return future


def _workers(executor: Executor) -> int:
    """How many chunks it can work on at once, as far as can be known."""
    count = getattr(executor, "_max_workers", None)
    client: Any = getattr(executor, "_client", None)
    if count is None and hasattr(client, "nthreads"):  # Dask
        count = sum(client.nthreads().values())
    return max(1, count if isinstance(count, int) else os.cpu_count() or 1)


@dataclass(frozen=True)
class Summary:
    """What `write` did: how many portfolios ended in each status, all orders, and the time it took."""

    statuses: dict[str, int]
    portfolios: int
    orders: int
    seconds: float


def write(
    policy: Policy,
    source: Source,
    *,
    results: str | os.PathLike[str] | None = None,
    orders: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Summary:
    """Solve a batch into files, at constant memory: `results` and `orders` as Parquet, or as CSV by their suffix.

    `options` are those of `run`. The files appear when all is done, whole, and all or none. Their bytes depend on the
    source and the policy alone. Raises InputError as `run` does, for a path that ends in neither .parquet nor .csv, for
    one that cannot be written to (finished chunks stay in the checkpoint), and if no portfolio at all could be read.
    """
    begun = time.perf_counter()
    statuses: Counter[str] = Counter()
    total, first = 0, ""
    asked: dict[What, str | os.PathLike[str] | None] = {"results": results, "orders": orders}
    # In this order: whoever sees the orders finds the results.
    paths = {what: path for what, path in asked.items() if path is not None}
    forms = formats(paths)
    answers = _started(policy, source, formats=forms, **options)
    with output_files(paths, forms, source) as files, closing(answers):
        for output in answers:
            statuses.update(output.statuses)
            total += output.orders
            first = first or output.message
            for file, found in zip(files, output.pieces, strict=True):
                file.add(found)
        check_readable(statuses, first)
    return Summary(dict(sorted(statuses.items())), statuses.total(), total, time.perf_counter() - begun)

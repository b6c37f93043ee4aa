"""Batches in parallel, as a stream: chunks of whole portfolios go out, their results come back in order.

A chunk is solved by itself, in this process, in processes of our own, or by any `concurrent.futures.Executor`. What
a portfolio gets depends on nothing but its own rows and the policy: not on the chunk it is in, nor on who solves it.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, Unpack

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.optimizer.batches.checkpoint import Checkpoint, opened
from equipoise.optimizer.batches.chunk import Chunk, from_messages
from equipoise.optimizer.batches.inputs import check_readable
from equipoise.optimizer.batches.parts import What, sinks
from equipoise.optimizer.batches.plain_tables import Message, joined, length, listed
from equipoise.optimizer.batches.progress import Progress
from equipoise.optimizer.batches.sources import Source, Stream, open_stream
from equipoise.optimizer.batches.tasks import Answer, Parts, Task, given_up, internal, packed, solve_part, solved
from equipoise.optimizer.batches.workers import AHEAD, Workers
from equipoise.optimizer.problem.effort import Effort, Spent
from equipoise.optimizer.problem.solution import Status

if TYPE_CHECKING:
    from equipoise.optimizer.problem.policy import Policy

#: Rows of a chunk, unless asked for otherwise: large enough that the way to a worker costs little.
CHUNK = 20_000


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
    effort, exact, gap, time_limit: how much is spent on each whole-lot plan, as in `Rebalancer.solve`. With a limit of
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


def _chunks(answers: Generator[Parts, None, None]) -> Iterator[Chunk]:
    with closing(answers):
        yield from map(from_messages, answers)


def _started(
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
) -> Generator[Parts, None, None]:
    """`run`, with results and orders as plain arrays."""
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
    return _run(policy, source, executor, chunk or CHUNK, timeout, checkpoint, progress, universe, Effort(**spent))


def _check_names(spent: Mapping[str, object]) -> None:
    """Raises InputError for what is left of the options when all others are taken, and says nothing about lots."""
    for name in spent:
        if name not in Effort.__dataclass_fields__:
            raise InputError(
                f"is no option of a batch; there are {', '.join(sorted(Options.__annotations__))}", column=name
            )


def _run(
    policy: Policy,
    source: Source,
    executor: int | Executor | None,
    rows: int,
    timeout: float | None,
    folder: str | os.PathLike[str] | None,
    wanted: bool | None,
    universe: Iterable[str],
    spent: Effort,
) -> Generator[Parts, None, None]:
    stream = open_stream(source, rows, universe)
    with ExitStack() as held:
        store = None
        if folder is not None:
            store = held.enter_context(
                opened(folder, policy, chunk=rows, universe=stream.universe, spent=asdict(spent))
            )
        tasks = _tasks(stream, rows, store)
        if executor is None:
            answers = _here(policy, stream.universe, spent, tasks)
        elif isinstance(executor, int):
            workers = held.enter_context(Workers(packed(policy, stream.universe, spent), executor, timeout))
            answers = workers.answers(tasks)
        else:
            answers = _elsewhere(executor, packed(policy, stream.universe, spent), tasks, held)
        progress = held.enter_context(Progress(wanted, stream.portfolios))
        for task, parts in answers:
            if store is not None and task.answer is None:
                store.save(task.number, task.table, [joined(messages) for messages in zip(*parts, strict=True)])
            progress.add(len(task.starts), solved=task.answer is None)
            yield parts


def _tasks(stream: Stream, rows: int, store: Checkpoint | None) -> Iterator[Task]:
    for number, (table, starts) in enumerate(stream.chunks(rows)):
        task = Task(number, table, starts)
        known = store.load(number, task.table) if store is not None else None
        yield task if known is None else replace(task, answer=[known])


def _here(policy: Policy, universe: frozenset[str], spent: Effort, tasks: Iterable[Task]) -> Iterator[Answer]:
    def parts(task: Task, first: int, last: int) -> Parts:
        try:
            return [solved(policy, universe, task.part(first, last), spent)]
        except Exception as error:
            if last - first == 1:
                return [given_up(task.names(first, last), Status.UNSOLVED, internal(error))]
            middle = (first + last) // 2
            return parts(task, first, middle) + parts(task, middle, last)

    for task in tasks:
        yield task, task.answer or parts(task, 0, len(task.starts))


def _elsewhere(executor: Executor, job: bytes, tasks: Iterable[Task], held: ExitStack) -> Iterator[Answer]:
    """Somebody else's executor. What it fails at goes to processes of our own, where a culprit can be isolated."""
    tasks, count = iter(tasks), _workers(executor)
    window: deque[tuple[Task, Future[list[Message]]]] = deque()
    held.callback(lambda: [future.cancel() for _, future in window])
    ours: Workers | None = None
    while True:
        window.extend((task, _submitted(executor, job, task)) for task in islice(tasks, AHEAD * count - len(window)))
        if not window:
            return
        task, future = window.popleft()
        try:
            answer = task.answer or [future.result()]
        except InputError:  # the policy cannot be loaded there
            raise
        except Exception as error:
            if ours is None:
                text = f"the executor failed ({type(error).__name__}: {error}); processes of our own take over from it"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
                ours = held.enter_context(Workers(job, min(count, os.cpu_count() or 1)))
            if isinstance(error, BrokenExecutor):
                yield from ours.answers(chain([task], [task for task, _ in window], tasks))
                return
            yield from ours.answers([task])
        else:
            yield task, answer


def _submitted(executor: Executor, job: bytes, task: Task) -> Future[list[Message]]:
    future: Future[list[Message]] = Future()
    try:
        return future if task.answer else executor.submit(solve_part, job, task.table)
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
    asked: dict[What, Any] = {"results": results, "orders": orders}
    answers = _started(policy, source, **options)
    # In this order: whoever sees the orders finds the results.
    with sinks({what: path for what, path in asked.items() if path is not None}, source) as files, closing(answers):
        for parts in answers:
            for part_results, part_orders in parts:
                columns = {name: listed(cells) for name, cells in part_results if name in ("status", "message")}
                first = first or next(iter(columns["message"]), "")
                statuses.update(columns["status"])
                total += length(part_orders)
            for file in files:
                file.add(parts)
        check_readable(statuses, first)
    return Summary(dict(sorted(statuses.items())), statuses.total(), total, time.perf_counter() - begun)

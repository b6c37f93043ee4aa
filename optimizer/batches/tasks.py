"""What is done in a worker, whoever started it: rows of a source in, by value or by reference; out come results and
orders as plain arrays, or what they are in files."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches import plain_tables
from equipoise.optimizer.batches.checkpoint import Checkpoint
from equipoise.optimizer.batches.chunk import solve_chunk, to_messages, without_plans
from equipoise.optimizer.batches.output_files import Format, Groups, Piece, pieces
from equipoise.optimizer.batches.plain_tables import Message
from equipoise.optimizer.batches.sources import Edges, NotThereError, Rows, TableRows
from equipoise.optimizer.problem.effort import Effort
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.solvers.choose import register_solver, registered_solvers

if TYPE_CHECKING:
    from equipoise.optimizer.problem.policy import Policy

_DEFAULT = Effort()

#: Results and orders of some portfolios.
Tables: TypeAlias = list[Message]


def _unheard() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Output:
    """What becomes of a chunk: its tables; or, if there are files, what goes into each, and what a summary counts.

    part: whether there is still something to be done with the tables, because the task said so.
    """

    tables: Tables
    part: bool = False
    pieces: Sequence[list[Piece]] = ()
    statuses: Counter[str] = field(default_factory=Counter)
    orders: int = 0
    message: str = ""  # of the first portfolio


@dataclass(frozen=True, eq=False)
class Task:
    """A chunk to be solved, or one of which the tables are known already; or a part of one.

    groups: for each file, how the portfolios fall into row groups. part: whether only tables are asked for, which
    another makes the output of.
    """

    number: int
    rows: Rows
    edges: Edges
    groups: Sequence[Groups] = ()
    tables: Tables | None = None
    part: bool = False

    def __len__(self) -> int:
        """How many portfolios there are."""
        return len(self.edges) - 1

    def portfolios(self, first: int, last: int) -> Task:
        """Portfolios first … last − 1; the task itself if these are all."""
        if last - first == len(self):
            return self
        begin, end = int(self.edges[first]), int(self.edges[last])
        return Task(self.number, self.rows.part(begin, end), self.edges[first : last + 1] - begin, part=True)

    def names(self) -> list[object]:
        return plain_tables.listed(dict(plain_tables.rows(self.rows.table(), self.edges[:-1]))["portfolio_id"])

    def by_value(self) -> Task:
        """The same with its rows, for somebody who cannot read them and gives only tables."""
        return replace(self, rows=TableRows(self.rows.table()), part=True)


@dataclass(frozen=True, eq=False)
class Job:
    """What a worker must know once.

    checkpoint: where chunks that are finished are kept. formats: of the files that are written; if there are none,
    tables are what is asked for.
    """

    policy: Policy
    universe: frozenset[str]
    spent: Effort = _DEFAULT
    checkpoint: Checkpoint | None = None
    formats: Sequence[Format] = ()

    def solved(self, table: Message, begun: Callable[[], None] = _unheard) -> Tables:
        """Results and orders of some whole portfolios. Raises MemoryError if there is too little for them together."""
        with one_thread():
            return to_messages(solve_chunk(self.policy, plain_tables.decode(table), self.universe, self.spent, begun))

    def output(self, task: Task, tables: Tables) -> Output:
        """Of a chunk that has these results and orders. Raises InputError if they cannot be kept."""
        if self.checkpoint is not None and task.tables is None:
            self.checkpoint.save(task.number, task.rows.table(), tables)
        if not self.formats:
            return Output(tables)
        results, orders = tables
        said = {name: plain_tables.listed(cells) for name, cells in results if name in ("status", "message")}
        return Output(
            tables=[],
            pieces=[pieces(form, tables, groups) for form, groups in zip(self.formats, task.groups, strict=True)],
            statuses=Counter(said["status"]),
            orders=plain_tables.length(orders),
            message=next(iter(said["message"]), ""),
        )


Answer: TypeAlias = tuple[Task, Output]


def packed(job: Job) -> bytes:
    """Raises InputError for what cannot be sent."""
    try:
        return pickle.dumps((job, registered_solvers()))
    except Exception as error:
        raise _unsendable(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=4)
def unpacked(job: bytes) -> Job:
    """What `packed` made, once a process. Raises InputError for what cannot be loaded here."""
    try:
        found, solvers = pickle.loads(job)  # made by `packed`, in this run
        for solver in solvers:
            register_solver(solver)
    except Exception as error:
        raise _unsendable(f"{type(error).__name__}: {error}") from error
    assert isinstance(found, Job)
    return found


def _unsendable(why: str) -> InputError:
    return InputError(
        "the rebalancer cannot be sent to another process; in a Custom rule use a function of a module that can be "
        f"imported, not a lambda or a function of a session, or use executor=None ({why})",
        column="executor",
    )


def solve_task(packed_job: bytes, task: Task, begun: Callable[[], None] = _unheard) -> Output:
    """What a worker does, of whatever executor.

    Raises NotThereError if it sees other files than who asked, InputError for what ends the whole run.
    """
    job = unpacked(packed_job)
    if job.checkpoint is not None and not task.part and not job.checkpoint.is_here():
        raise NotThereError("the checkpoint is not there", column="checkpoint")
    task = replace(task, rows=TableRows(task.rows.table()))
    begun()  # reading took time, but of no portfolio
    try:
        tables = job.solved(task.rows.table(), begun)
    except InputError as error:
        raise RuntimeError(str(error)) from error
    return Output(tables, part=True) if task.part else job.output(task, tables)


@cache
def _thread_pools() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """Within this, numerical libraries use one thread, if threadpoolctl is there to tell them."""
    pools = _thread_pools()
    return pools.limit(limits=1) if pools is not None else nullcontext()


def given_up(names: list[object], status: Status, why: str) -> Tables:
    """The answer for portfolios that have none."""
    return to_messages(without_plans(names, status, why))


def put_together(parts: Iterable[Tables]) -> Tables:
    """One after the other."""
    return [plain_tables.joined(messages) for messages in zip(*parts, strict=True)]


def internal(error: Exception) -> str:
    return f"internal error, please report it: {type(error).__name__}: {error}"

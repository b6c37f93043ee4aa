"""What is done in a worker, whoever started it: a chunk as plain arrays in, results and orders as plain arrays out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches import plain_tables as message
from equipoise.optimizer.batches.chunk import solve_chunk, to_messages, without_plans
from equipoise.optimizer.batches.plain_tables import Message
from equipoise.optimizer.problem.effort import Effort
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.solvers.choose import register_solver, registered_solvers

if TYPE_CHECKING:
    from equipoise.optimizer.problem.policy import Policy

_DEFAULT = Effort()

#: A chunk's results and orders, in parts: [results, orders] each.
Parts: TypeAlias = list[list[Message]]


def _unheard() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Task:
    """A chunk to be solved, or one whose answer is known already. `starts`: the first row of each portfolio."""

    number: int
    table: Message
    starts: NDArray[np.intp]
    answer: Parts | None = None

    def part(self, first: int, last: int) -> Message:
        """The rows of these portfolios."""
        if last - first == len(self.starts):
            return self.table
        end = int(self.starts[last]) if last < len(self.starts) else None
        return message.compact(message.rows(self.table, slice(int(self.starts[first]), end)))

    def names(self, first: int, last: int) -> list[Any]:
        return message.listed(dict(message.rows(self.table, self.starts[first:last]))["portfolio_id"])


Answer: TypeAlias = tuple[Task, Parts]


def packed(policy: Policy, universe: frozenset[str], spent: Effort = _DEFAULT) -> bytes:
    """What a worker must know once. Raises InputError for what cannot be sent."""
    try:
        return pickle.dumps((policy, sorted(universe), spent, registered_solvers()))
    except Exception as error:
        raise _unsendable(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=4)
def unpacked(job: bytes) -> tuple[Policy, frozenset[str], Effort]:
    """What `packed` made, once a process. Raises InputError for what cannot be loaded here."""
    try:
        policy, universe, spent, solvers = pickle.loads(job)  # made by `packed`, in this run
        for solver in solvers:
            register_solver(solver)
    except Exception as error:
        raise _unsendable(f"{type(error).__name__}: {error}") from error
    return policy, frozenset(universe), spent


def _unsendable(why: str) -> InputError:
    return InputError(
        "the rebalancer cannot be sent to another process; in a Custom rule use a function of a module that can be "
        f"imported, not a lambda or a function of a session, or use executor=None ({why})",
        column="executor",
    )


def solve_part(job: bytes, table: Message, begun: Callable[[], None] = _unheard) -> list[Message]:
    """What a worker does, of whatever executor."""
    policy, universe, spent = unpacked(job)
    return solved(policy, universe, table, spent, begun)


def solved(
    policy: Policy,
    universe: frozenset[str],
    table: Message,
    spent: Effort = _DEFAULT,
    begun: Callable[[], None] = _unheard,
) -> list[Message]:
    """Results and orders of some whole portfolios. Raises MemoryError if there is too little for them together."""
    with one_thread():
        return to_messages(solve_chunk(policy, message.decode(table), universe, spent, begun))


@cache
def _thread_pools() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def one_thread() -> Any:
    """Within this, numerical libraries use one thread, if threadpoolctl is there to tell them."""
    pools = _thread_pools()
    return pools.limit(limits=1) if pools is not None else nullcontext()


def given_up(names: list[Any], status: Status, why: str) -> list[Message]:
    """The answer for portfolios that have none."""
    return to_messages(without_plans(names, status, why))


def internal(error: Exception) -> str:
    return f"internal error, please report it: {type(error).__name__}: {error}"

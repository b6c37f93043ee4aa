"""The process in which the peers of one library run, told what to do through a pipe.

The clock is that of the processor: with one thread it is the wall clock of a machine that does nothing else, and a
second thread that a peer may start counts too.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from .instances import Array, Family, Instance, bands
from .peer import Peer, UnstatedError

_MORE = 5  # times as many portfolios in the next call


@dataclass
class Answers:
    """The weights of the judged instances as far as they were reached, and the seconds of each portfolio, or for a
    batch call of all `count` together."""

    seconds: list[float]
    count: int
    weights: list[Array | None] = field(default_factory=list)
    error: str = ""


def serve(connection: Connection, module: str) -> None:
    """Says "loaded"; then messages in: ("family", Family), ("prepare", Peer), ("run", name, budget in seconds)."""
    warnings.simplefilter("ignore")
    with contextlib.suppress(Exception):  # where it cannot be imported, each of its peers will say so
        importlib.import_module(f".{module}", __package__)
    connection.send("loaded")
    family: Family | None = None
    prepared: dict[str, tuple[Peer, Callable[..., Any]]] = {}
    tried: set[str] = set()
    while (message := _next(connection)) is not None:
        match message:
            case ("family", sent):
                family, prepared = sent, {}
            case ("prepare", Peer() as peer):
                assert family is not None
                try:
                    maker = getattr(importlib.import_module(f".{peer.module}", __package__), peer.maker)
                    if peer.name not in tried and peer.module != "generated":
                        tried.add(peer.name)
                        _try_once(maker, peer)  # imports and caches
                    began = time.process_time()
                    prepared[peer.name] = peer, _quiet(maker, family)
                    connection.send(("ready", time.process_time() - began))
                except UnstatedError as why:
                    connection.send(("unstated", str(why)))
                except Exception as error:
                    connection.send(("failed", _said(error)))
            case ("run", name, budget):
                assert family is not None
                peer, work = prepared[name]
                try:
                    connection.send(("done", (_many if peer.many else _one_by_one)(work, family, budget)))
                except Exception as error:
                    connection.send(("failed", _said(error)))


def _next(connection: Connection) -> tuple[Any, ...] | None:
    """The next message; None when the other end is closed."""
    try:
        message: tuple[Any, ...] = connection.recv()
    except EOFError:
        return None
    return message


def _quiet(maker: Callable[[Family], Any], family: Family) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return maker(family)


def _try_once(maker: Callable[[Family], Any], peer: Peer) -> None:
    small = bands(10, 2, 2)
    with contextlib.suppress(Exception):
        (_many if peer.many else _one_by_one)(maker(small), small, 1.0)


def _one_by_one(work: Callable[[Instance, int], Array | None], family: Family, budget: float) -> Answers:
    answers = Answers([], 0)
    began = time.process_time()
    for i, instance in enumerate(family.instances[: family.judged]):
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.process_time()
            try:
                weights = work(instance, i % family.accounts)
            except Exception as error:
                weights, answers.error = None, _said(error)
            answers.seconds.append(time.process_time() - start)
        answers.weights.append(weights)
        answers.count += 1
        if time.process_time() - began > budget:
            break
    return answers


def _many(
    work: Callable[[list[list[Instance]]], tuple[Sequence[Array | None], float]], family: Family, budget: float
) -> Answers:
    """The judged ones first; then more in one call, and more again, as far as the budget allows."""
    if family.dates > 1:
        weights, seconds = work(family.by_date)
        return Answers([seconds], len(family.instances), list(weights)[: family.judged])
    asked, spent = family.instances[: family.judged], 0.0
    while True:
        weights, seconds = work([asked])
        spent += seconds
        if len(asked) == len(family.instances) or spent + _MORE * seconds > budget:
            return Answers([seconds], len(asked), list(weights)[: family.judged])
        asked = family.instances[: _MORE * len(asked)]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]

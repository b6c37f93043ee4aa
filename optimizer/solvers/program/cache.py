"""Programs that are compiled once for each structure, and shared by all portfolios of it."""

from __future__ import annotations

import threading
from collections import OrderedDict

from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.solvers.program.cvxpy_model import Program
from equipoise.optimizer.solvers.program.structure import Structure

_CACHE_SIZE = 64
_cache = threading.local()  # A cvxpy problem must not be shared between threads.


def compiled(problem: Problem, *, elastic: bool = False) -> Program:
    """The program of this problem's structure, from this thread's cache."""
    structure = Structure.of(problem, elastic=elastic)
    if problem.opaque or problem.envelopes:
        return Program(structure, problem)  # whose expressions belong to one portfolio
    if not hasattr(_cache, "programs"):
        _cache.programs = OrderedDict()
    programs: OrderedDict[Structure, Program] = _cache.programs
    if structure not in programs:
        programs[structure] = Program(structure, problem)
        if len(programs) > _CACHE_SIZE:
            programs.popitem(last=False)
    programs.move_to_end(structure)
    return programs[structure]

"""cvxpygen: C code generated from the cvxpy problem with parameters, compiled once for each family."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import tempfile

import numpy as np
from cvxpygen import cpg

from .instances import Array, Family, Instance
from .modelled import fill, parametrised
from .peer import One, UnstatedError

_FOLDER = tempfile.TemporaryDirectory()
_LARGEST = 500  # generated code holds every coefficient; above this the compiler takes minutes


def cvxpygen(family: Family) -> One:
    like = family.instances[0]
    if like.n > _LARGEST + 1:
        raise UnstatedError(f"not generated above n = {_LARGEST}")
    parameters, w, problem = parametrised(like)
    name = "generated_" + "".join(c if c.isalnum() else "_" for c in family.name)
    sys.path.insert(0, _FOLDER.name)
    with contextlib.chdir(_FOLDER.name), contextlib.redirect_stdout(io.StringIO()):
        cpg.generate_code(problem, code_dir=name, solver="OSQP", prefix=name)
        solver = importlib.import_module(f"{name}.cpg_solver")
    problem.register_solve("CPG", solver.cpg_solve)

    def one(instance: Instance, account: int) -> Array | None:
        fill(parameters, instance)
        problem.solve(method="CPG", eps_abs=1e-6, eps_rel=1e-6, max_iter=20_000)
        return np.asarray(w.value) if w.value is not None else None

    fill(parameters, like)
    one(like, 0)
    return one

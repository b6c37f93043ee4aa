"""Work in forked children of a small process of its own, which may be killed, limited and lied to by the system.

A child has all modules loaded already, so that hundreds of them take seconds. The process has one thread: a fork of one
that has more may hang for ever.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from scorecard.figure import Result, counted

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def measured(module: str, name: str, count: int) -> Result:
    """`name(count)` of this module, a list of what missed the target, in a process of its own."""
    code = f"import json; from {module} import {name}; print(json.dumps({name}({count})))"
    folders = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **THREADS, "PYTHONPATH": os.pathsep.join(folders)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        return Result(f"ended with {run.returncode}", False, (run.stderr[-2000:],))
    return counted(json.loads(run.stdout.splitlines()[-1]), count)


def in_child(work: Callable[[], str], kill_after: float | None = None) -> tuple[int, str]:
    """How a child ended that did this work (0: well; -9: killed), and what the work returned, or how it failed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, said = 0, ""
        try:
            said = work()
        except BaseException:
            code, said = 1, traceback.format_exc()
        os.write(write, said.encode(errors="backslashreplace")[-50_000:])
        os._exit(code)
    os.close(write)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said

"""The kernels that numerical libraries choose by the processor, and the environments that choose others.

OpenBLAS and numpy look at the processor when they are loaded; environment variables make them take what they would
take on an older one. Nothing but the standard library is imported here, so that `run.py` can use it, too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

#: OpenBLAS's kernels, and what a processor must have for them, in the words of Linux.
#: Zen's are Haswell's, and Sandybridge's lie between the two first.
KERNELS = {"Prescott": "pni", "Haswell": "avx2", "SkylakeX": "avx512f"}


def kernels() -> list[str]:
    """Those that this processor has; none where the system does not say."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return [name for name, feature in KERNELS.items() if feature in words]


def threads(count: int) -> dict[str, str]:
    """The environment in which numerical libraries use so many."""
    return {f"{name}_NUM_THREADS": str(count) for name in ("OMP", "OPENBLAS", "MKL")}


def plain_loops(python: str) -> dict[str, str]:
    """The environment in which the numpy of this interpreter uses the loops that all processors have."""
    asked = "from numpy._core._multiarray_umath import __cpu_dispatch__ as d, __cpu_features__ as f; "
    asked += "print(*[x for x in d if f.get(x)])"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
    return {"NPY_DISABLE_CPU_FEATURES": found.stdout.strip()}

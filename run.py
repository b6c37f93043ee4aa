"""The commands of this repository; they need Python 3.11 or newer, and nothing else.

    python3 run.py demo                 what equipoise does, on the tables in examples/data
    python3 run.py test [pytest args]   the test suite; with --fast the part of it that takes a minute
    python3 run.py matrix               that part under other kernels and threads, with the oldest dependencies, and on
                                        every Python of PYTHONS that this machine has
    python3 run.py lint                 ruff on the sources, mypy on the built package
    python3 run.py wheel                build dist/*.whl and try it in a clean environment

The first run makes a virtual environment in ./.venv, or in $EQUIPOISE_VENV, from the hash-locked file
requirements/dev.txt, or another one there, $EQUIPOISE_LOCK; later runs only compare a stamp. It uses uv if that is on
the PATH, and pip otherwise.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no lock there, so do not start two first runs at once
    fcntl = None

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("EQUIPOISE_VENV") or ROOT / ".venv").absolute()
LOCK = os.environ.get("EQUIPOISE_LOCK") or "dev.txt"
PYTHONS = ("3.11", "3.12", "3.13")


def tool(name, environment=VENV):
    return str(environment / ("Scripts" if os.name == "nt" else "bin") / name)


def call(*command, **options):
    subprocess.run([str(word) for word in command], check=True, **options)


def install(environment, lock, *package, **options):
    """Make an environment: the locked requirements, every file checked by its hash, then the package."""
    venv.create(environment, symlinks=os.name != "nt")
    python, quiet = tool("python", environment), ("-q", "--disable-pip-version-check")
    system_pip = (getattr(sys, "_base_executable", sys.executable), "-m", "pip")

    def works(*command):
        return subprocess.run(command, capture_output=True, **options).returncode == 0

    if shutil.which("uv"):
        pip = ("uv", "pip", "install", "-q", "--python", python)
    elif works(python, "-m", "ensurepip"):
        pip = (python, "-m", "pip", "install", *quiet)
    elif works(*system_pip, "--version"):  # Debian without its package python3-venv
        pip = (*system_pip, "--python", python, "install", *quiet)
    else:
        sys.exit("run.py: no uv, ensurepip or pip found; install one, for example: apt install python3-venv")
    call(*pip, "--require-hashes", "-r", ROOT / "requirements" / lock, **options)
    call(*pip, "--no-build-isolation", *package, **options)


def set_up():
    """Make the environment anew unless its stamp says that everything it was made from is unchanged."""
    stamp, lock = VENV / "run.stamp", VENV / "run.lock"
    files = [ROOT / "pyproject.toml", ROOT / "requirements" / LOCK]
    parts = [sys.version.encode(), bytes(ROOT), bytes(VENV), *(path.read_bytes() for path in files)]
    wanted = hashlib.sha256(b"|".join(parts)).hexdigest()

    def made():
        return stamp.exists() and stamp.read_text() == wanted and Path(tool("python")).exists()

    if made():
        return
    VENV.mkdir(parents=True, exist_ok=True)
    if any(VENV.iterdir()) and not lock.exists():
        sys.exit(f"run.py: {VENV} was not made by run.py; remove it, or name another in EQUIPOISE_VENV")
    print(f"Setting up {VENV}: once, about a minute, or as long as another set-up takes.", file=sys.stderr)
    with lock.open("a") as handle:
        # The installers inherit the lock: if this run is killed, the next one waits until they have ended.
        options = {"pass_fds": [handle.fileno()]} if fcntl else {}
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX)
        if made():  # by another run, while this one waited
            return
        stamp.unlink(missing_ok=True)
        for entry in VENV.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != lock:
                entry.unlink()
        install(VENV, LOCK, "--no-deps", "-e", ROOT, **options)
        stamp.write_text(wanted)  # last, so that a set-up cut short is started again


def build(scratch):
    """The wheel, by way of the source archive, from a copy: nothing old gets in, nothing new stays."""

    def leave_out(folder, names):
        return [n for n in names if n.startswith(".") or n.endswith(".egg-info") or Path(folder, n) == VENV]

    shutil.copytree(ROOT, Path(scratch, "source"), ignore=leave_out)
    call(tool("pyproject-build"), "--quiet", "--no-isolation", "--outdir", scratch, Path(scratch, "source"))
    return next(Path(scratch).glob("*.whl"))


def demo(*arguments):
    call(tool("equipoise"), "demo", *arguments)


def test(*arguments):
    # On all cores, each with one thread.
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    call(tool("pytest"), "-n", "auto", "--dist", "worksteal", *arguments, cwd=ROOT, env=one | os.environ)


def python_of(version):
    """An interpreter of this version: this one, one on the PATH, or one of pyenv's; None if there is none."""
    installed = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = [sys.executable, shutil.which(f"python{version}"), *sorted(installed.glob(f"{version}.*/bin/python"))]
    asked = "import sys; sys.exit('.'.join(map(str, sys.version_info[:2])) != sys.argv[1])"
    works = (p for p in found if p and not subprocess.run([p, "-c", asked, version], capture_output=True).returncode)
    return next(works, None)


def matrix():
    sys.path.insert(0, str(ROOT / "tests"))
    from processors import kernels, plain_loops, threads

    with tempfile.TemporaryDirectory() as scratch:
        runs, own = [], {"EQUIPOISE_VENV": str(VENV)}
        for number, kernel in enumerate(kernels()):
            count = 1 + number % 2
            loops = plain_loops(tool("python")) if number == 0 else {}
            name = f"kernel {kernel}, {count} BLAS threads{', plain loops of numpy' if loops else ''}"
            runs.append((name, sys.executable, own | {"OPENBLAS_CORETYPE": kernel} | threads(count) | loops))
        lowest = {"EQUIPOISE_VENV": str(Path(scratch, "lowest")), "EQUIPOISE_LOCK": "lowest.txt"}
        for version in PYTHONS:
            python = python_of(version)
            if python is None:
                print(f"run.py: skipped Python {version}: this machine has none", flush=True)
                continue
            if version == PYTHONS[0]:
                runs.append((f"Python {version}, the oldest dependencies", python, lowest))
            if version != ".".join(map(str, sys.version_info[:2])):  # which the suite itself runs on
                runs.append((f"Python {version}", python, {"EQUIPOISE_VENV": str(Path(scratch, version))}))
        for name, python, chosen in runs:
            print(f"run.py: the fast tests with {name}", flush=True)
            call(python, ROOT / "run.py", "test", "--fast", env=os.environ | chosen)


def lint():
    call(tool("ruff"), "check", cwd=ROOT)
    call(tool("ruff"), "format", "--check", cwd=ROOT)
    with tempfile.TemporaryDirectory() as scratch:  # a wheel unpacked is the package as users have it
        zipfile.ZipFile(build(scratch)).extractall(scratch)
        settings = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", VENV / "mypy_cache")
        call(tool("mypy"), *settings, "-p", "equipoise", cwd=scratch)


def wheel():
    import tomllib  # not at the top, where an older Python would fail before it is told why

    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    sources = {"equipoise/py.typed"} | {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in folders.items()
        for path in (ROOT / folder).rglob("[!.]*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with tempfile.TemporaryDirectory() as scratch:
        archive, clean = build(scratch), Path(scratch, "clean")
        names = {name for name in zipfile.ZipFile(archive).namelist() if ".dist-info/" not in name}
        if names != sources:
            sys.exit(f"run.py: the wheel lacks {sources - names} and should not have {names - sources}")
        install(clean, "runtime.txt", "--no-index", archive)  # no index: the lock must suffice
        call(tool("python", clean), "-I", "-c", "import equipoise", cwd=scratch)
        call(tool("equipoise", clean), "demo", cwd=scratch)
        (ROOT / "dist").mkdir(exist_ok=True)
        shutil.copy(archive, ROOT / "dist")
        print(f"dist/{archive.name} is complete, and its demo runs in a clean environment")


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 (said here, because no installer has checked it yet)
        sys.exit(f"run.py: this is Python {sys.version.split()[0]}; equipoise needs 3.11 or newer")
    commands = {"demo": demo, "test": test, "matrix": matrix, "lint": lint, "wheel": wheel}
    name, *arguments = sys.argv[1:] or ["help"]
    if name not in commands or (arguments and name in ("matrix", "lint", "wheel")):
        sys.exit(__doc__)
    try:
        set_up()
        commands[name](*arguments)
    except subprocess.CalledProcessError as failure:
        sys.exit(failure.returncode)  # what failed has said so itself

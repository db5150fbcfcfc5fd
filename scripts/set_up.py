"""Make the virtual environment that `make book` and `make test` use, or find it finished.

The order is: environment, torch, the locked packages, this package, `pip check`; a stamp comes last, so that
a failed or killed set-up is never taken for a finished one. The stamp holds what the environment was made
from, so that a second run costs nothing, and a changed lock or a moved folder starts again.

torch is installed first and without a hash: its CPU and CUDA builds are different files of one version.

With LM=yes the package of the language model comes last, into a folder of its own beside the others: what it
requires is neither wanted nor installed, which `pip check` would mind.
This file has to be readable to old Pythons, so that they can be refused in words.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

TORCH = "2.13.0"
OLDEST, TOO_NEW = (3, 11), (3, 15)
EXTRAS = "rl,cluster,encoder,gguf,dev"
LOCK_FILE, LM_LOCK_FILE = "requirements.lock", "requirements-lm.lock"
OURS = ".made-by-setup"
STAMP = ".ready"
# threegates.lab.lm.package looks there.
BESIDE = "subjects"


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main():
    """Set up what is missing; exit status 0 only when the environment is finished."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.chdir(root)
    venv = os.environ.get("VENV") or ".venv"
    locked = (os.environ.get("LOCK") or "yes") != "no"
    try:
        set_up(venv, locked)
        if os.environ.get("LM") == "yes":
            add_language_model(venv)
    except SetupError as error:
        sys.stderr.write(f"\nset-up stopped: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nset-up interrupted: the next run starts it again\n")
        return 130
    return 0


def set_up(venv, locked):
    """Bring the environment to the state that the lock and pyproject.toml describe."""
    wanted = ingredients(venv, locked)
    if stamp(venv) == wanted:
        return
    with only_one(venv) as lock:
        found = stamp(venv)
        if found == wanted:
            return
        started = time.time()
        only_package = found is not None and dict(found, project=wanted["project"]) == wanted
        run_steps(package_steps(venv) if only_package else all_steps(venv, locked), lock)
        write_stamp(venv, wanted)
        say(f"set-up finished in {time.time() - started:.0f} s")


def add_language_model(venv):
    """Put the package of the language model beside the environment's own, unless that one is there."""
    folder, wanted = os.path.join(venv, BESIDE), {"lock": digest(LM_LOCK_FILE)}
    if stamp_of(folder) == wanted:
        return
    with only_one(venv) as lock:
        if stamp_of(folder) == wanted:
            return
        shutil.rmtree(folder, ignore_errors=True)
        what = ["--require-hashes", "--no-deps", "--target", folder, "-r", LM_LOCK_FILE]
        run_steps([("the language model (93 MB)", [*pip(venv), "install", *what])], lock)
        os.makedirs(folder, exist_ok=True)
        write_stamp(folder, wanted)


def ingredients(venv, locked):
    """What decides an environment's contents: where it is, the lock, the project, torch's version."""
    return {
        "folder": os.path.abspath(venv),
        "lock": digest(LOCK_FILE) if locked else "no",
        "project": digest("pyproject.toml"),
        "torch": TORCH,
    }


def digest(path):
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def stamp(venv):
    """What a finished environment was made from; None for one that is missing, unfinished or broken."""
    return stamp_of(venv) if os.path.exists(os.path.join(venv, "bin", "python")) else None


def stamp_of(folder):
    """What a finished folder was made from; None for one that has no stamp."""
    try:
        with open(os.path.join(folder, STAMP)) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_stamp(folder, content):
    """Declare the environment, or a folder of it, finished, in one step."""
    path = os.path.join(folder, STAMP)
    with open(path + ".new", "w") as file:
        json.dump(content, file, indent=1)
    os.replace(path + ".new", path)


@contextlib.contextmanager
def only_one(venv):
    """Let one set-up work at a time.

    Installers inherit the lock, so that one that outlives its killed parent still keeps others waiting.
    """
    try:
        import fcntl
    except ImportError:
        raise SetupError("this needs Linux or macOS; on Windows, run the same command inside WSL") from None
    with open(venv.rstrip("/") + ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up is at work; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def all_steps(venv, locked):
    """Steps from nothing: (what it is, command), the first of them done here."""
    check_python()
    make_room(venv)
    torch = [*pip(venv), "install", "torch==" + TORCH]
    if os.environ.get("TORCH_INDEX_URL"):
        torch += ["--index-url", os.environ["TORCH_INDEX_URL"]]
    steps = [
        ("a virtual environment in " + venv, [sys.executable, "-m", "venv", venv]),
        ("torch " + TORCH, torch),
    ]
    if not locked:
        newest = [*pip(venv), "install", "-e", f".[{EXTRAS}]"]
        return [*steps, ("packages, without the lock", newest), check_step(venv)]
    packages = [*pip(venv), "install", "--require-hashes", "--no-deps", "-r", LOCK_FILE]
    return [*steps, ("packages of " + LOCK_FILE, packages), *package_steps(venv)]


def package_steps(venv):
    """Steps that follow a changed pyproject.toml: this package's own metadata and command."""
    # Without build isolation: setuptools is in the lock, and nothing unpinned is fetched.
    install = [*pip(venv), "install", "--no-deps", "--no-build-isolation", "-e", "."]
    return [("threegates itself", install), check_step(venv)]


def check_step(venv):
    """The step that asks whether all requirements are met."""
    return ("check", [*pip(venv), "check"])


def pip(venv):
    """The environment's own pip, deaf to PYTHONPATH; errors only where nobody watches."""
    quiet = [] if sys.stdout.isatty() else ["-qq"]
    return [os.path.join(venv, "bin", "python"), "-I", "-m", "pip", "--disable-pip-version-check", *quiet]


def run_steps(steps, lock):
    """Run the steps in order; the first that fails ends the set-up."""
    for number, (what, command) in enumerate(steps, 1):
        say(f"set-up {number}/{len(steps)}: {what}")
        status = subprocess.call(command, pass_fds=(lock.fileno(),))
        if status:
            raise SetupError(
                f"step {what!r} failed with status {status} (its own message is above).\n"
                "  Nothing counts as finished: once the cause is gone, run the same command again.\n"
                "  No network, or a proxy? pip's own settings are used (see `pip config list`)."
            )


def check_python():
    """Refuse Pythons that the packages do not support, or that cannot make environments."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        raise SetupError(
            f"this needs Python 3.11, 3.12, 3.13 or 3.14; {sys.executable} is {version}.\n"
            "  Name another one, for example: make book PYTHON=python3.12"
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        raise SetupError(
            f"{sys.executable} ({version}) cannot make virtual environments: it lacks ensurepip.\n"
            "  On Debian and Ubuntu install it with: sudo apt-get install python3-venv\n"
            "  then run the same command again."
        ) from None


def make_room(venv):
    """Put an unfinished or outdated environment away; refuse to touch one that is not ours."""
    old = venv.rstrip("/") + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.isdir(venv) and os.listdir(venv) and not os.path.exists(os.path.join(venv, OURS)):
        raise SetupError(
            f"{venv} exists, but was not made by this set-up, so it is left alone.\n"
            "  Move it away, or choose another folder: make book VENV=.venv-book"
        )
    if os.path.exists(venv):
        # Renamed first: a kill in the middle of the removal leaves nothing that looks like an environment.
        os.replace(venv, old)
        shutil.rmtree(old, ignore_errors=True)
    os.makedirs(venv)
    with open(os.path.join(venv, OURS), "w") as file:
        file.write("scripts/set_up.py made this folder and may replace it\n")


def say(line):
    """Print a line at once, before the output of the programs that follow."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

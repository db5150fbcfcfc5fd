"""Kill `make book` at random moments and show that nothing is lost, repeated or half-written.

    python tests/kill_build.py --kills 20

Each kill is a SIGKILL, of the whole process group or of `make` alone (then the build goes on without a
parent, and the next command has to wait for it); the same command follows. At the end every checkpoint,
record, notebook and figure must have the digest that an uninterrupted build gives, and no training run
that had finished may have been trained again. The uninterrupted build is the one in `--reference`, and
is made there when it is missing.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from threegates.digest import file_digest

ROOT = Path(__file__).resolve().parent.parent
# What one build leaves behind and another must reproduce byte for byte.
COMPARED = ("lab/runs/**/*", "lab/manifest.yaml", "records/**/*.parquet", "notebooks/**/*")
# Times belong beside a result, never in it: these files hold them and nothing else varies.
TIMES = ("when.json",)


def main() -> int:
    options = arguments()
    rng = random.Random(options.seed)
    reference, killed = ROOT / options.reference, ROOT / options.folder
    print(f"seed {options.seed}: {options.kills} kills of make book PROFILE={options.profile}", flush=True)
    if not (reference / "html" / "index.html").is_file():
        finish(options.profile, reference)
    problems: list[str] = []
    left = options.kills
    while left and not problems:
        shutil.rmtree(killed, ignore_errors=True)
        left, finished = attack(options, rng, killed, left)
        finish(options.profile, killed)
        problems = repeated(killed, finished) + differences(reference, killed) + leftovers(killed)
        print(f"finished: {len(digests(killed))} files compared, {len(finished)} runs kept", flush=True)
    for problem in problems:
        print(f"FAILED: {problem}")
    if not problems:
        print("every file has the digest of an uninterrupted build")
        shutil.rmtree(killed)
    return bool(problems)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--span", type=float, default=100.0, help="seconds over which the kills are spread")
    parser.add_argument("--reference", default="build", help="folder of the uninterrupted build")
    parser.add_argument("--folder", default="build-killed", help="folder of the build that is killed")
    return parser.parse_args()


def attack(
    options: argparse.Namespace, rng: random.Random, folder: Path, kills: int
) -> tuple[int, dict[str, int]]:
    """Start the build and kill it until it ends before its kill or all kills are done.

    Returns how many kills are left, and the runs that were finished at some kill, by their inode.
    """
    finished: dict[str, int] = {}
    while kills:
        process = start(options.profile, folder)
        delay = rng.uniform(0, 2 * options.span / options.kills)
        group = rng.random() < 0.5
        try:
            process.wait(delay)
            break
        except subprocess.TimeoutExpired:
            kill(process, group)
        kills -= 1
        print(f"killed after {delay:.0f} s: {'the group' if group else 'make alone'}", flush=True)
        for run in finished_runs(folder):
            finished.setdefault(run.name, run.stat().st_ino)
    return kills, finished


def start(profile: str, folder: Path) -> subprocess.Popen:
    command = ["make", "book", f"PROFILE={profile}", f"BUILD={folder}"]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)


def kill(process: subprocess.Popen, group: bool) -> None:
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def finish(profile: str, folder: Path) -> None:
    """Run the command to its end."""
    process = start(profile, folder)
    if process.wait() != 0:
        sys.exit(f"FAILED: make book PROFILE={profile} BUILD={folder.name} ended with {process.returncode}")


def finished_runs(folder: Path) -> list[Path]:
    runs = folder / "lab" / "runs"
    return sorted(runs.iterdir()) if runs.is_dir() else []


def repeated(folder: Path, before: dict[str, int]) -> list[str]:
    """Runs that were finished once and are another folder now."""
    now = {run.name: run.stat().st_ino for run in finished_runs(folder)}
    return [f"run {name} was trained again" for name, inode in before.items() if now.get(name) != inode]


def digests(folder: Path) -> dict[str, str]:
    paths = {path for pattern in COMPARED for path in folder.glob(pattern)}
    files = sorted(path for path in paths if path.is_file() and path.name not in TIMES and not _beside(path))
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def _beside(path: Path) -> bool:
    """Whether a file is the sidecar of a notebook, which holds its time."""
    return path.parent.name == "notebooks" and path.suffix == ".json"


def differences(reference: Path, killed: Path) -> list[str]:
    """Files that differ, or that only one of the builds has; runs of other profiles do not count."""
    ours = digests(killed)
    wanted = {name: value for name, value in digests(reference).items() if name in ours or not _shared(name)}
    return [
        f"{name}: {'differs' if name in ours and name in wanted else 'is only in one build'}"
        for name in sorted(ours.keys() | wanted.keys())
        if ours.get(name) != wanted.get(name)
    ]


def _shared(name: str) -> bool:
    # A build folder keeps runs and records of every profile and code that was ever built there.
    return name.startswith(("lab/runs/", "records/"))


def leftovers(folder: Path) -> list[str]:
    """Half-written files that a finished build must not leave."""
    partial = folder / "lab" / "partial"
    found = [*partial.glob("*"), *folder.rglob("*.partial"), *folder.rglob(".*.part")]
    return [f"{path.relative_to(folder)} was left behind" for path in found]


if __name__ == "__main__":
    sys.exit(main())

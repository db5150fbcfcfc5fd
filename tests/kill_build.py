"""Kill `make book` at random moments and show that nothing is lost, repeated or half-written.

    python tests/kill_build.py --kills 20
    python tests/kill_build.py --kills 3 --redo 8

Each kill is a SIGKILL, of the whole process group or of `make` alone (then the build goes on without a
parent, and the next command has to wait for it); the same command follows. At the end every checkpoint,
record, notebook and figure must have the digest that an uninterrupted build gives, and no training run
or page that had finished may have been made again. The uninterrupted build is the one in `--reference`, and
is made there when it is missing.

Without `--redo` everything is made from nothing, and kills come at any moment of `--span`. With it, the build
that is killed begins as a copy of the reference which lacks every N-th run, every N-th record of each table,
every N-th page, and the rendered book; where each count begins is drawn, so that the base has its turn too.
Kills then go round the stages in turn, up to `--span` seconds after the stage has begun: training, measuring
(of records that are measured by tensor), executing notebooks (rendering may have begun). All but the last of
a copy kill the group: a build that goes on by itself leaves nothing for the kills after it. Three kills reach
every stage. What is not reached is the start of an empty folder, which the reference itself has gone through.
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
# What stands for something finished, which no build may make again.
FINISHED = ("lab/runs/*", "notebooks/*.json")
# What `--redo` takes away, and what the stage that makes it anew writes to as soon as it has begun.
STAGES = {
    "training": ("lab/runs/*", "lab/partial/*"),
    "measuring": ("records/*/*.parquet", "records/partial/**/awaited"),
    "notebooks": ("notebooks/*.ipynb", "notebooks/.running-*"),
}


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
        if options.redo:
            copy_less(reference, killed, options.redo, rng)
        left, done = attack(options, rng, killed, left)
        finish(options.profile, killed)
        problems = repeated(killed, done) + differences(reference, killed) + leftovers(killed)
        if options.redo and left:
            problems.append(f"the build ended before {left} of its kills")
        print(f"finished: {len(digests(killed))} files compared, {len(done)} runs and pages kept", flush=True)
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
    parser.add_argument("--redo", type=int, default=0, help="begin with the reference less every N-th result")
    parser.add_argument("--reference", default="build", help="folder of the uninterrupted build")
    parser.add_argument("--folder", default="build-killed", help="folder of the build that is killed")
    return parser.parse_args()


def copy_less(reference: Path, folder: Path, every: int, rng: random.Random) -> None:
    """Copy a finished build without every so-manieth result of each folder, and without the book."""
    shutil.copytree(reference, folder)
    for stage, (made, _) in STAGES.items():
        by_folder: dict[Path, list[Path]] = {}
        for path in sorted(folder.glob(made)):
            by_folder.setdefault(path.parent, []).append(path)
        taken = [
            path
            for paths in by_folder.values()
            for path in paths[rng.randrange(min(every, len(paths))) :: every]
        ]
        for path in taken:
            take_away(path)
        print(f"{stage}: {len(taken)} results to be made again", flush=True)
    shutil.rmtree(folder / "lab" / "partial", ignore_errors=True)
    shutil.rmtree(folder / "html")


def take_away(path: Path) -> None:
    """Remove a run's folder or a file; with a page go its sidecar and its figures."""
    if path.is_dir():
        shutil.rmtree(path)
        return
    path.unlink()
    if path.suffix == ".ipynb":
        path.with_suffix(".json").unlink()
        shutil.rmtree(path.parent / "figures" / path.stem, ignore_errors=True)


def attack(
    options: argparse.Namespace, rng: random.Random, folder: Path, kills: int
) -> tuple[int, dict[str, int]]:
    """Start the build and kill it until it ends before its kill or all kills are done.

    Returns how many kills are left, and what was finished at the start or at some kill, by its inode.
    """
    done = finished(folder)
    while kills:
        started, process = time.time(), start(options.profile, folder)
        stage = list(STAGES)[(options.kills - kills) % len(STAGES)] if options.redo else None
        delay = rng.uniform(0, options.span if stage else 2 * options.span / options.kills)
        group = rng.random() < 0.5 or (stage is not None and kills > 1)
        if stage:
            wait_for(stage, folder, started, process)
        try:
            process.wait(delay)
            break
        except subprocess.TimeoutExpired:
            kill(process, group)
        kills -= 1
        moment = f"{delay:.0f} s" + (f" of {stage}" if stage else "")
        print(f"killed after {moment}: {'the group' if group else 'make alone'}", flush=True)
        done = finished(folder) | done
    return kills, done


def wait_for(stage: str, folder: Path, started: float, process: subprocess.Popen) -> None:
    """Wait until a build that was started then is at work in a stage, or has ended."""
    while process.poll() is None and not any(newer(path, started) for path in folder.glob(STAGES[stage][1])):
        time.sleep(0.1)


def newer(path: Path, started: float) -> bool:
    """Whether a path was written to since then; one that is gone was not."""
    try:
        return path.stat().st_mtime >= started
    except FileNotFoundError:
        return False


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


def finished(folder: Path) -> dict[str, int]:
    """Runs and pages that are finished, by their inode; a page's sidecar is written last."""
    paths = [path for pattern in FINISHED for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): path.stat().st_ino for path in paths}


def repeated(folder: Path, before: dict[str, int]) -> list[str]:
    """What was finished once and is another folder or file now."""
    now = finished(folder)
    return [f"{name} was made again" for name, inode in before.items() if now.get(name) != inode]


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
    """Half-written files and folders of work that a finished build must not leave."""
    partial = folder / "lab" / "partial"
    found = [*partial.glob("*"), *folder.rglob("*.partial"), *folder.rglob(".*.part")]
    found += folder.glob("notebooks/.running-*")
    return [f"{path.relative_to(folder)} was left behind" for path in found]


if __name__ == "__main__":
    sys.exit(main())

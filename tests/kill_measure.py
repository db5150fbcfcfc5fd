"""Kill `threegates measure` at random moments and show that nothing is lost, repeated or half-written.

    python tests/kill_measure.py --kills 20
    python tests/kill_measure.py --way dask --kills 20 --seed 7

Each kill is a SIGKILL: of the command and all of its workers, of the command alone, or, on a Dask cluster, of
one worker, which the command itself has to get over. Then the same command is given again. It has to end
well; to write no part of a tensor that had one at the kill; to give the very bytes of an uninterrupted run;
and to leave no part, no half-written file and no process behind. Each kill begins with an empty folder.

Ways: `local` and `dask` measure two folders; `fetch` and `ranged` measure two repositories of a Hub on the
loopback interface, downloaded or read tensor by tensor. Moments are drawn over the time that an uninterrupted
run takes, half of them from its first finished tensor on, from a seed that is printed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.hub.loopback import Fault, LoopbackHub  # noqa: E402
from tests.planted import planted  # noqa: E402

OUT = "out.parquet"
# What a writer that was killed may leave: ours, and huggingface_hub's own.
HALF_WRITTEN = ("*.partial", "*.incomplete", "*.parts")
# Seconds until an orphaned worker notices.
LEAVING = 20.0
IN_MOVED_TO = 0x80


@dataclass(frozen=True)
class Way:
    """One way to measure the pair.

    options : of the command. environment : of the command. hub : whether it reads from the loopback Hub.
    victims : what is killed: everything, the command alone, or one of its workers.
    """

    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    hub: bool = False
    victims: tuple[str, ...] = ("all", "command")


WAYS = {
    "local": Way(),
    "dask": Way(environment={"THREEGATES_BACKEND": "dask"}, victims=("all", "command", "worker")),
    "fetch": Way(hub=True),
    "ranged": Way(("--ranged",), hub=True),
}


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="threegates-kills-") as folder:
        pair = make_pair(Path(folder), options.layers)
        for name in options.way:
            rng = random.Random(f"{options.seed} {name}")
            print(f"{name}: {options.kills} kills of threegates measure, seed {options.seed}", flush=True)
            with place_of(WAYS[name], Path(folder) / name, pair) as place:
                problems += [f"{name}: {problem}" for problem in attack(place, rng, options.kills)]
    for problem in problems:
        print(f"FAILED: {problem}")
    if not problems:
        print(
            "every run after a kill gave the bytes of an uninterrupted one, and repeated no finished tensor"
        )
    return bool(problems)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each way")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--way", action="append", choices=list(WAYS), help="may be repeated; else all")
    parser.add_argument("--layers", type=int, default=6, help="how large the pair is")
    options = parser.parse_args(arguments)
    options.way = options.way or list(WAYS)
    return options


def make_pair(folder: Path, layers: int) -> dict[str, Path]:
    """A base and a run from it."""
    base = planted.base_tensors(width=64, layers=layers)
    tuned = planted.with_noise(base, 1e-3, 1)
    return {
        name: planted.write(folder / name, tensors) for name, tensors in (("base", base), ("tuned", tuned))
    }


@dataclass(frozen=True)
class Place:
    """A folder in which the pair is measured in one way, again and again."""

    folder: Path
    command: list[str]
    environment: dict[str, str]
    victims: tuple[str, ...]

    @property
    def out(self) -> Path:
        return self.folder / OUT

    def clear(self) -> None:
        """As before the first run, caches included."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "tmp").mkdir(parents=True)

    def start(self) -> subprocess.Popen:
        """The command, with all that it starts in a session of its own."""
        log = (self.folder / "log").open("a")
        return subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def log(self) -> str:
        """What the commands have said."""
        return (self.folder / "log").read_text(errors="replace")

    def parts(self) -> set[str]:
        """Names of the parts that are there."""
        return {path.name for path in self.folder.glob(f"{OUT}.parts/*/*.json")}


@contextmanager
def place_of(way: Way, folder: Path, pair: dict[str, Path]) -> Iterator[Place]:
    """Where a way is tried; its Hub is served meanwhile."""
    with ExitStack() as stack:
        names = {side: str(path) for side, path in pair.items()}
        environment = {**os.environ, **way.environment, "TMPDIR": str(folder / "tmp")}
        environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # No project: the names are those of folders or repositories, whatever a build here has made.
        environment |= {"THREEGATES_ROOT": str(folder), "HF_HOME": str(folder / "hub")}
        environment.pop("HF_HUB_OFFLINE", None)
        if way.hub:
            names = {side: f"lab/{side}" for side in pair}
            hub = LoopbackHub({names[side]: path for side, path in pair.items()})
            stack.enter_context(hub)
            hub.faults.append(Fault("slow", at=1 << 14, seconds=0.05))
            environment["HF_ENDPOINT"] = hub.url
        command = [sys.executable, "-m", "threegates.cli", "measure", "--out", OUT, "--workers", "2"]
        command += ["--base", names["base"], "--tuned", names["tuned"], *way.options]
        yield Place(folder, command, environment, way.victims)


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after the start, or after the first finished tensor."""

    seconds: float
    measuring: bool

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s after the {'first tensor' if self.measuring else 'start'}"


def attack(place: Place, rng: random.Random, kills: int) -> list[str]:
    """Kill the command that many times, each time from the beginning, and go on after each."""
    place.clear()
    began, process = time.monotonic(), place.start()
    wait_for(place.parts, process)
    first = time.monotonic() - began
    wait_for(place.out.exists, process)
    written = time.monotonic() - began
    if process.wait() != 0:
        return [f"the uninterrupted run failed:\n{place.log()}"]
    whole, wanted = time.monotonic() - began, place.out.read_bytes()
    print(
        f"an uninterrupted run takes {whole:.1f} s, and measures from {first:.1f} to {written:.1f} s",
        flush=True,
    )
    while kills:
        place.clear()
        measuring = rng.random() < 0.5
        moment = Moment(rng.uniform(0, written - first if measuring else whole), measuring)
        victim = rng.choice(place.victims)
        process = place.start()
        if not strike(place, process, moment, victim):
            continue
        kills -= 1
        before = place.parts()
        told = f"killed {victim} {moment}, {len(before)} tensors measured"
        problems = go_on(place, process, before, wanted)
        if problems:
            return [f"{told}: {problem}" for problem in problems]
        print(f"{told}: well", flush=True)
    return []


def wait_for(happened: Callable[[], object], process: subprocess.Popen) -> None:
    """Wait until something has happened, or the process has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.01)


def strike(place: Place, process: subprocess.Popen, moment: Moment, victim: str) -> bool:
    """Kill at that moment; whether there was anything to kill."""
    if moment.measuring:
        wait_for(place.parts, process)
    try:
        process.wait(moment.seconds)
        return False
    except subprocess.TimeoutExpired:
        pass
    workers = workers_of(process.pid) if victim == "worker" else []
    if workers:
        os.kill(workers[0], signal.SIGKILL)
        return True
    # Where no worker has begun yet, the command itself is what there is.
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return True


def workers_of(process: int) -> list[int]:
    """Dask's workers of a command, which are its children that say so."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    return sorted(found)


def go_on(place: Place, process: subprocess.Popen, before: set[str], wanted: bytes) -> list[str]:
    """End the measurement, by the same command if the first one is gone, and look at what came of it.

    before : the parts that were there at the kill.
    """
    with Moves(place.folder) as moves:
        survived = process.poll() is None
        last = process if survived else place.start()
        status = last.wait()
    if status != 0:
        return [f"the command ended with {status}:\n{place.log()}"]
    problems = [
        f"{len(again)} finished tensors were measured again" for again in [before & moves.names] if again
    ]
    if place.out.read_bytes() != wanted:
        problems.append(f"{OUT} differs from that of an uninterrupted run")
    return problems + left_behind(place, {process.pid, last.pid})


def left_behind(place: Place, sessions: set[int]) -> list[str]:
    """Half-written files, parts and processes that are still there."""
    files = [path for pattern in HALF_WRITTEN for path in place.folder.rglob(pattern)]
    problems = [f"{path.relative_to(place.folder)} was left behind" for path in files]
    deadline = time.monotonic() + LEAVING
    while (running := processes_of(sessions)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return problems + [f"process {one} was left behind" for one in running]


def processes_of(sessions: set[int]) -> list[str]:
    """Processes of these sessions that are still at work."""
    found = []
    for one in psutil.process_iter(["pid", "status", "cmdline"]):
        try:
            if os.getsid(one.pid) in sessions and one.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{one.pid}: {' '.join(one.info['cmdline'] or [])[:120]}")
        except (OSError, psutil.Error):
            continue
    return found


class Moves:
    """Notes the names that files get in the folder of parts, by inotify: a part appears by being renamed."""

    def __init__(self, folder: Path) -> None:
        self.folders = list(folder.glob(f"{OUT}.parts/*/"))
        self.names: set[str] = set()

    def __enter__(self) -> Moves:
        self._system = ctypes.CDLL(None, use_errno=True)
        self._file = self._system.inotify_init1(os.O_NONBLOCK)
        for folder in self.folders:
            if self._system.inotify_add_watch(self._file, bytes(folder), IN_MOVED_TO) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            while events := os.read(self._file, 1 << 20):
                self._note(events)
        except BlockingIOError:
            pass
        finally:
            os.close(self._file)

    def _note(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            *_, length = struct.unpack_from("iIII", events, at)
            name = events[at + 16 : at + 16 + length].rstrip(b"\0")
            if name:
                self.names.add(os.fsdecode(name))
            at += 16 + length


if __name__ == "__main__":
    sys.exit(main())

"""Kill downloads and ranged reads at random moments: nothing is lost, and no more repeated than was in hand.

    python tests/kill_reads.py --kills 20

A Hub on the loopback interface serves a checkpoint of three shards, slowly. `fetch`, then reading all tensors
by ranges, is killed that many times and started again each time. In the end every tensor has to be there bit
for bit, nothing half-written may be left, and of what came no more may have come twice than a chunk (`fetch`)
or a tensor (ranged) for each kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.hub.loopback import Fault, LoopbackHub  # noqa: E402
from threegates.checkpoints.hub.ranged import open_ranged  # noqa: E402
from threegates.checkpoints.tensors import Checkpoint  # noqa: E402

REPO = "org/killed"
SHAPE = (1500, 1000)
# What may come twice for each kill: what is in hand, and what was on its way.
AT_ONCE = {"fetch": 4 << 20, "ranged": SHAPE[0] * SHAPE[1] * 4 + (1 << 20)}
SCRIPTS = {
    "fetch": "import sys; from threegates.checkpoints.hub.snapshots import fetch\n"
    "fetch(f'{sys.argv[1]}@{sys.argv[2]}', sys.argv[3], endpoint=sys.argv[4])",
    "ranged": "import sys; from threegates.checkpoints.hub.ranged import open_ranged\n"
    "c = open_ranged(*sys.argv[1:3], cache=sys.argv[3], endpoint=sys.argv[4])\n"
    "for name in c.infos: c.stored(name)",
}


def main() -> int:
    options = arguments()
    rng = random.Random(options.seed)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        made = checkpoint(Path(temporary) / "made")
        for way in SCRIPTS:
            problems += killed(way, made, Path(temporary) / way, options.kills, rng)
    print("\n".join(problems) or "nothing lost, nothing repeated, nothing left behind")
    return bool(problems)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    return parser.parse_args()


def checkpoint(folder: Path) -> Path:
    """Three shards of three matrices, 54 MB."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(3):
        names = [f"model.layers.{number}.mlp.{kind}_proj.weight" for kind in ("up", "down", "gate")]
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        save_file({name: torch.randn(SHAPE) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    return folder


def killed(way: str, made: Path, cache: Path, kills: int, rng: random.Random) -> list[str]:
    """What was wrong after that many kills; the last run is left alone."""
    done, sent, size = 0, 0, sum(path.stat().st_size for path in made.glob("*.safetensors"))
    while True:
        # A Hub for each run: one whose client was killed may still be sending to it.
        with LoopbackHub({REPO: made}, [Fault("slow", at=1 << 16, seconds=0.02)]) as hub:
            command = [sys.executable, "-c", SCRIPTS[way], REPO, hub.commit(REPO), str(cache), hub.url]
            settings = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
            run = subprocess.Popen(command, env=os.environ | settings)
            try:
                status = run.wait(rng.uniform(1.5, 5.0) if done < kills else None)
            except subprocess.TimeoutExpired:
                run.kill()
                status = run.wait()
                done += 1
            sent += sum(count for name, count in hub.served.items() if name.endswith(".safetensors"))
        if status >= 0:
            print(f"{way}: {done} kills, {sent / size:.3f} of the bytes came", flush=True)
            found = [] if status == 0 else [f"{way} ended with status {status}"]
            return found + wrong(way, made, cache) + repeated(way, sent - size, done)


def repeated(way: str, twice: int, kills: int) -> list[str]:
    # What a server has sent lies in sockets for a while; that much of each kill nobody has received.
    allowed = (kills + 1) * AT_ONCE[way]
    return [f"{way}: {twice} bytes came twice, {allowed} may"] if twice > allowed else []


def wrong(way: str, made: Path, cache: Path) -> list[str]:
    """Tensors that differ, and files that are half written."""
    local = Checkpoint.open(made)
    if way == "fetch":
        opened: Checkpoint = Checkpoint.open(next(cache.glob("models--*/snapshots/*")))
    else:
        commit = next(cache.glob("repositories/*/*")).name
        opened = open_ranged(REPO, commit, cache=cache, offline=True)
    problems = [
        f"{way}: {name}" for name in local.infos if not torch.equal(local.stored(name), opened.stored(name))
    ]
    problems += [] if opened.digest() == local.digest() else [f"{way}: another digest"]
    halves = [path.name for path in cache.rglob("*") if path.name.endswith((".partial", ".incomplete"))]
    return problems + [f"{way}: {name} was left behind" for name in halves]


if __name__ == "__main__":
    sys.exit(main())

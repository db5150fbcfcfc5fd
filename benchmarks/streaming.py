"""A pair of 1.5 B parameters, made on the spot: streamed tensor by tensor, against loading it in float32.

Each way runs in a process of its own, so that its memory is its own. The pair has the shapes of
Qwen2.5-Math-1.5B (tied head), takes 6.2 GB of disk, and is removed afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.measure import Row
from threegates.checkpoints.pairs import Status, align, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.geometry.masks import count_changes

GIB = 2**30
ANONYMOUS_GIB = 0.25
"""Most memory of its own that the streaming way may take beyond what the libraries take."""
ROUNDS = 3


def rows(sizes: Sequence[str]) -> list[Row]:
    """The one row of this file, which belongs to the large sizes."""
    if not set(sizes) & {"l", "x"}:
        return []
    with tempfile.TemporaryDirectory(prefix="threegates-pair-") as folder:
        write_pair(Path(folder))
        return [compared(Path(folder), ROUNDS)]


@dataclass(frozen=True)
class Model:
    """Sides of a model with a tied head; those of Qwen2.5-1.5B by default."""

    width: int = 1536
    layers: int = 28
    feed_forward: int = 8960
    kv_width: int = 256
    vocabulary: int = 151_936

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the model's tensors."""
        width, wide = self.width, self.feed_forward
        yield "model.embed_tokens.weight", (self.vocabulary, width)
        yield "model.norm.weight", (width,)
        for number in range(self.layers):
            block = f"model.layers.{number}"
            for name, rows_of in (("q", width), ("k", self.kv_width), ("v", self.kv_width)):
                yield f"{block}.self_attn.{name}_proj.weight", (rows_of, width)
                yield f"{block}.self_attn.{name}_proj.bias", (rows_of,)
            yield f"{block}.self_attn.o_proj.weight", (width, width)
            for name in ("gate", "up"):
                yield f"{block}.mlp.{name}_proj.weight", (wide, width)
            yield f"{block}.mlp.down_proj.weight", (width, wide)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{block}.{name}.weight", (width,)


MODEL = Model()


def write_pair(folder: Path) -> None:
    """Write base and tuned as ordinary checkpoints; about a third of the entries differ."""
    for side, step in (("base", 0.0), ("tuned", 2.5e-5)):
        config = {"model_type": "qwen2", "tie_word_embeddings": True, "num_hidden_layers": MODEL.layers}
        tensors = {name: _weights(name, shape, step) for name, shape in MODEL.shapes()}
        write_checkpoint(folder / side, tensors, config, max_shard_bytes=GIB)


def _weights(name: str, shape: tuple[int, ...], step: float) -> Tensor:
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    weight = torch.randn(shape, generator=generator).mul_(0.02)
    if step:
        weight.add_(torch.randn(shape, generator=generator), alpha=step)
    return weight.bfloat16()


def streamed(folder: Path) -> dict[str, list]:
    """Counts of every tensor: all changes, and a digest of those by row and column; one tensor at a time."""
    base, tuned = (Checkpoint.open(folder / side) for side in ("base", "tuned"))
    found = {}
    for row in align(base, tuned):
        if row.status is Status.compared:
            pair = load_pair(base, tuned, row.name)
            counts = count_changes(pair.base, pair.tuned)
            found[row.name] = _facts(counts.changed, counts.rows, counts.columns)
    return found


def loaded(folder: Path) -> dict[str, list]:
    """What one would write first: both models whole, in float32, then a mask and its sums."""
    base, tuned = (_whole(folder / side) for side in ("base", "tuned"))
    found = {}
    for name, before in base.items():
        mask = before != tuned[name]
        two = mask.dim() == 2
        found[name] = _facts(int(mask.sum()), mask.sum(1) if two else None, mask.sum(0) if two else None)
    return found


def _whole(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.float() for name, tensor in load_file(shard).items()}
    return tensors


def _facts(changed: int, by_row: Tensor | None, by_column: Tensor | None) -> list:
    sides = [_digest(side) for side in (by_row, by_column) if side is not None]
    return [changed, *sides]


def _digest(counts: Tensor) -> str:
    return hashlib.sha256(counts.to(torch.int64).numpy().tobytes()).hexdigest()[:12]


WAYS = {"streamed": streamed, "loaded": loaded}


def compared(folder: Path, rounds: int) -> Row:
    """Both ways in turn, each in processes of its own, the page cache warm."""
    results: dict[str, list[dict]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, found in results.items():
            found.append(_in_its_own_process(name, folder))
    ours, theirs = (min(results[name], key=lambda result: result["ms"]) for name in ("streamed", "loaded"))
    anonymous = max(result["anonymous_gib"] for result in results["streamed"])
    equal = all(result["found"] == ours["found"] for found in results.values() for result in found)
    return Row(
        "pair streamed",
        f"{sum(torch.Size(shape).numel() for _, shape in MODEL.shapes()) / 1e9:.2f} B",
        ours["ms"],
        "loading both in float32",
        theirs["ms"],
        equal and anonymous <= ANONYMOUS_GIB,
        f"same counts, {anonymous:.2f} GiB of its own memory against {theirs['anonymous_gib']:.1f}",
        aim=27.0,
        gate=20.0,
        notes={"anonymous GiB": anonymous, "its anonymous GiB": theirs["anonymous_gib"]},
    )


def _in_its_own_process(way: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.streaming", way, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class _Anonymous:
    """The most anonymous memory of this process while it is entered, beyond what it had, in GiB."""

    def __enter__(self) -> _Anonymous:
        self._before = self._peak = self._now()
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.join()
        self._peak = max(self._peak, self._now())

    @property
    def gib(self) -> float:
        return (self._peak - self._before) / GIB

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self._peak = max(self._peak, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """One way, measured in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with _Anonymous() as memory:
        start = time.process_time()
        found = WAYS[chosen.way](chosen.folder)
        taken = 1e3 * (time.process_time() - start)
    print(json.dumps({"ms": taken, "anonymous_gib": memory.gib, "found": found}))


if __name__ == "__main__":
    main()

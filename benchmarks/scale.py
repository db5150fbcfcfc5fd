"""Measuring within a stated cap on memory: whole pairs of up to 1.5 B parameters, and a layer of 8 B.

Pairs are made on the spot with a planted update, and removed afterwards: the largest has the shapes of
Qwen2.5-1.5B (tied head), a base in bf16 and a tuned side in float32, both in shards, and takes 9.3 GB of
disk. Every way runs in processes of its own. What counts is their anonymous memory together, watched from
outside; what they map of files is beside it. Times are the clock's, for there may be several processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import streaming
from benchmarks.laws import BY_DEFAULT, drawn
from benchmarks.measure import Row
from threegates.atomic import write_json
from threegates.checkpoints.tensors import INDEX, Checkpoint
from threegates.geometry.laws.masks import see
from threegates.geometry.masks import pack
from threegates.jobs.memory import PROCESS, give_back_freed_memory, need_of, run_within
from threegates.jobs.nulls import founding_nulls
from threegates.measures.by_tensor import Parts, Shared
from threegates.measures.changes import write_masks
from threegates.measures.tensor_table import MEASURED, PairTable
from threegates.records.sizes import MIB, parse_size

GIB = 1 << 30
SHARE = 0.2
"""Of the entries, those that are planted to move to the next bf16 code."""
HIDDEN = 1 + 2.0**-12
"""What float32 entries move by besides: less than bf16 shows."""
SHARD_BYTES = 2 * GIB

PAIR_CAP, PAIR_WORKERS, PAIR_GATE = "2GiB", 2, 2.2
PEER_DRAWS = 2
"""Masks of each null that are timed for what one would write."""
LAYER_CAP = "2.5GiB"
LAYER = {"hidden": 4096, "keys": 1024, "inner": 14_336}
LOOSE = 2.5
"""How many times too large an estimate of memory may be."""
TENSORS = {
    "s": {"shape": (1536, 1536)},
    "m": {"shape": (8960, 1536)},
    "l": {"shape": (4096, 4096)},
    "x": {"shape": (151_936, 1536), "name": "model.embed_tokens.weight"},
}
"""Shapes whose estimate is held against what was measured."""
BLOCK_NAME = "model.layers.0.mlp.up_proj.weight"


MODELS = {
    "s": streaming.Model(576, 30, 1536, 192, 49_152),
    "m": streaming.Model(960, 32, 2560, 320, 49_152),
    "l": streaming.Model(896, 24, 4864, 128, 151_936),
    "x": streaming.Model(),
}
"""Shapes of SmolLM-135M and -360M and of Qwen2.5-0.5B and -1.5B, all with tied heads."""


def rows(sizes: Sequence[str]) -> list[Row]:
    """Estimates and whole pairs at these sizes; the layer at x."""
    found = [foretold(size, **TENSORS[size]) for size in sizes]
    found += [whole_pair(MODELS[size]) for size in sizes]
    if "x" in sizes:
        found.append(one_layer(dict(layer_shapes())))
    return found


def layer_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one layer of an 8 B Llama."""
    block, hidden = "model.layers.0", LAYER["hidden"]
    for name, rows_of in (("q", hidden), ("k", LAYER["keys"]), ("v", LAYER["keys"]), ("o", hidden)):
        yield f"{block}.self_attn.{name}_proj.weight", (rows_of, hidden)
    for name in ("gate", "up"):
        yield f"{block}.mlp.{name}_proj.weight", (LAYER["inner"], hidden)
    yield f"{block}.mlp.down_proj.weight", (hidden, LAYER["inner"])
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{block}.{name}.weight", (hidden,)


# --- a pair whose truth is known


@dataclass(frozen=True)
class Truth:
    """What was planted in one tensor: changes in bf16 and as stored, and digests of the mask and its sums."""

    changed: int
    stored: int
    mask: str
    sums: tuple[str, ...]


def write_pair(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], tuned_type: torch.dtype = torch.float32
) -> dict[str, Truth]:
    """Write base and tuned in shards, and give the truth; a tensor of each side is held at a time."""
    truth: dict[str, Truth] = {}

    def sides(tuned: bool) -> Iterator[tuple[str, Tensor]]:
        for name, shape in sorted(shapes.items()):
            base, mask = _planted(name, shape)
            if not tuned:
                yield name, base
                continue
            after = (base.view(torch.int16) + mask.to(torch.int16)).view(torch.bfloat16)
            stored = after.float().mul_(HIDDEN).to(tuned_type)
            truth[name] = _truth(base, stored, mask)
            yield name, stored

    for side in ("base", "tuned"):
        _write_sharded(folder / side, sides(side == "tuned"))
    return truth


def _planted(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weights in bf16 and which of them move; equal for equal names and shapes."""
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    weight = torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
    return weight, torch.rand(shape, generator=generator) < SHARE


def _truth(base: Tensor, stored: Tensor, mask: Tensor) -> Truth:
    sums = [mask.sum(1), mask.sum(0)] if mask.dim() == 2 else []
    differ = sum(int((a != b).sum()) for a, b in zip(stored.split(1 << 12), base.split(1 << 12), strict=True))
    return Truth(int(mask.sum()), differ, _digest(pack(mask)), tuple(_digest(one) for one in sums))


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12]


def _write_sharded(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """A checkpoint in shards of about `SHARD_BYTES`, written as they are filled, with its index."""
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def close() -> None:
        file = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, tensor in tensors:
        shard[name] = tensor
        if sum(one.nbytes for one in shard.values()) > SHARD_BYTES:
            close()
    if shard:
        close()
    layers = len({name.split(".")[2] for name in weight_map if ".layers." in name})
    config = {"model_type": "qwen2", "tie_word_embeddings": True, "num_hidden_layers": layers}
    write_json(folder / "config.json", config)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})


# --- memory of a tree of processes, watched from outside


@dataclass(frozen=True)
class Ran:
    """What a process printed, and the most memory that it and its children took together, in bytes."""

    found: dict
    anonymous: int
    resident: int


def run_watched(*arguments: str) -> Ran:
    """Run a way of this module in a process of its own, its memory looked at a hundred times a second."""
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = {"anonymous": 0, "resident": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for name, value in tree_memory(process.pid).items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    out, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Ran(json.loads(out), peak["anonymous"], peak["resident"])


def tree_memory(root: int) -> dict[str, int]:
    """Anonymous and resident bytes of a process and all below it, now; mapped files are resident too."""
    total = {"anonymous": 0, "resident": 0}
    waiting = [root]
    while waiting:
        process = waiting.pop()
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            children = Path(f"/proc/{process}/task/{process}/children").read_text()
        except OSError:  # it has just ended
            continue
        waiting += map(int, children.split())
        sizes = {
            key: int(rest.split()[0]) << 10
            for key, _, rest in (line.partition(":") for line in lines)
            if key in ("RssAnon", "RssShmem", "VmRSS")
        }
        total["anonymous"] += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
        total["resident"] += sizes.get("VmRSS", 0)
    return total


def own_anonymous() -> int:
    """Anonymous bytes of this process alone, now."""
    return _own("RssAnon")


def forget_peak() -> bool:
    """The kernel counts this process's peak anew from now on; false where it does not let itself be asked."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def own_peak() -> int:
    """Resident bytes that this process had at most since its peak was forgotten, less the mapped ones now."""
    return _own("VmHWM") - _own("RssFile")


def _own(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


# --- the ways, each in its own process


def measured(folder: Path, cap: int, workers: int) -> dict:
    """Every tensor of a pair into parts, within a cap, and then the masks."""
    pair = opened(folder)
    # The largest first: the last tasks of all should be short ones.
    start = time.monotonic()
    needs = sorted((need_of(pair, name) for name in pair.names), key=lambda need: -need.size)
    tasks = [(folder, need.tensor) for need in needs]
    run_within(measure_one, tasks, needs, cap, workers)
    write_masks(pair.base, pair.tuned, folder / "masks.safetensors")
    return {"seconds": time.monotonic() - start}


@lru_cache(maxsize=1)
def opened(folder: Path) -> PairTable:
    """The pair of a folder."""
    base, tuned = (Checkpoint.open(folder / side) for side in ("base", "tuned"))
    return PairTable(base, tuned, "pair", axes=True, nulls=founding_nulls())


def measure_one(folder: Path, tensor: str) -> None:
    """One tensor into its part."""
    rows_of_tensor = opened(folder).rows(tensor, Shared())
    Parts(folder / "parts", "measured").write(tensor, rows_of_tensor)
    give_back_freed_memory()


def one_tensor(folder: Path, tensor: str) -> dict:
    """One tensor alone, with its estimate, and the memory that the process has before, at most, and after.

    The peak is the kernel's, since looks from outside miss what a busy machine lets pass between two.
    """
    torch.set_num_threads(1)
    pair = opened(folder)
    estimate = need_of(pair, tensor).size
    give_back_freed_memory()
    counted, before, start = forget_peak(), own_anonymous(), time.monotonic()
    pair.rows(tensor, Shared())
    taken, peak = time.monotonic() - start, own_peak() if counted else None
    give_back_freed_memory()
    return {"before": before, "peak": peak, "after": own_anonymous(), "estimate": estimate, "seconds": taken}


def loaded(folder: Path, blocks: int, workers: int = 1, draws: int = 0) -> dict:
    """What one would write first: both models whole in float32, masks and sums, float64 SVDs of matrices.

    SVDs and null masks are those of one block, their seconds times the number of blocks. Several processes
    each do that block at the same time, and share the blocks. draws : masks of each null that are timed, of
    the `BY_DEFAULT` that they stand for.
    """
    torch.set_num_threads(1)
    start = time.monotonic()
    base, tuned = (streaming._whole(folder / side) for side in ("base", "tuned"))
    changed = {}
    for name, before in base.items():
        mask = before.bfloat16() != tuned[name].bfloat16()
        changed[name] = int(mask.sum())
        if mask.dim() == 2:
            mask.sum(0), mask.sum(1)
    masks = time.monotonic() - start
    block = [
        (before, tuned[name]) for name, before in base.items() if ".layers.0." in name and before.dim() == 2
    ]
    if workers == 1:
        taken = [one_block(block, draws)]
    else:
        # As forks, which share what was loaded; each has one thread.
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            taken = pool.starmap(one_block, [(block, draws)] * workers, chunksize=1)
    return {"changed": changed, "seconds": masks + blocks * max(taken) / workers}


def one_block(block: Sequence[tuple[Tensor, Tensor]], draws: int) -> float:
    """Seconds of float64 SVDs of both sides of each matrix, and of `BY_DEFAULT` masks of each null."""
    torch.set_num_threads(1)
    start = time.monotonic()
    for sides in block:
        for side in sides:
            tall = side if side.shape[0] >= side.shape[1] else side.T
            torch.linalg.svd(tall.double(), full_matrices=False)
    taken = time.monotonic() - start
    for before, after in block if draws else ():
        base, mask = before.bfloat16(), before.bfloat16() != after.bfloat16()
        seen = see(base, mask, norm=float((after.bfloat16().double() - base.double()).norm()))
        start = time.monotonic()
        for null in founding_nulls():
            drawn(null, seen, base, mask, [mask], draws)
        taken += (time.monotonic() - start) * BY_DEFAULT / draws
    return taken


# --- rows


def foretold(size: str, shape: tuple[int, int], name: str = BLOCK_NAME) -> Row:
    """The estimate of one tensor's memory against what it took."""
    with tempfile.TemporaryDirectory(prefix="threegates-tensor-") as kept:
        write_pair(Path(kept), {name: shape})
        ran, theirs = run_watched("tensor", kept, name), run_watched("load", kept, "1")
    peak, estimate = ran.found["peak"] or ran.anonymous, ran.found["estimate"]
    taken = peak - ran.found["before"]
    fits = taken <= estimate <= LOOSE * taken and peak <= PROCESS + estimate
    process = max(ran.found["before"], ran.found["after"])
    return Row(
        "memory of a tensor",
        f"{size} {shape[0]} × {shape[1]}",
        1e3 * ran.found["seconds"],
        "whole in float32, float64 SVDs",
        1e3 * theirs.found["seconds"],
        fits,
        f"{peak / MIB:.0f} MiB against {theirs.anonymous / MIB:.0f}; foretold "
        f"{estimate / MIB:.0f} beyond the process, took {taken / MIB:.0f}",
        notes={"MiB": taken / MIB, "estimate MiB": estimate / MIB, "process MiB": process / MIB},
    )


def whole_pair(model: streaming.Model) -> Row:
    """All tensors of a pair within its cap: masks, ratios, overlaps with nulls, spectra."""
    with tempfile.TemporaryDirectory(prefix="threegates-pair-") as kept:
        folder, shapes = Path(kept), dict(model.shapes())
        truth = write_pair(folder, shapes)
        size = sum(torch.Size(shape).numel() for shape in shapes.values())
        row = _within(
            "pair within a cap",
            f"{size / 1e9:.2f} B, {PAIR_WORKERS} workers at most",
            folder,
            truth,
            (PAIR_CAP, PAIR_WORKERS),
            f"both whole in float32, float64 SVDs, {BY_DEFAULT} masks of each null (from {PEER_DRAWS}), "
            f"{PAIR_WORKERS} processes",
        )
        whole = model == MODELS["x"]
        return replace(row, gate=PAIR_GATE if whole else None, notes=row.notes | {"parameters": float(size)})


def one_layer(shapes: Mapping[str, tuple[int, ...]]) -> Row:
    """One layer of an 8 B model, both sides in bf16, within its cap."""
    with tempfile.TemporaryDirectory(prefix="threegates-layer-") as kept:
        folder = Path(kept)
        truth = write_pair(folder, shapes, torch.bfloat16)
        return _within(
            "layer within a cap",
            f"{LAYER['inner']} × {LAYER['hidden']}",
            folder,
            truth,
            (LAYER_CAP, 1),
            "both whole in float32, float64 SVDs",
        )


def _within(
    name: str,
    size: str,
    folder: Path,
    truth: Mapping[str, Truth],
    how: tuple[str, int],
    other: str,
) -> Row:
    cap, workers = how
    ran = run_watched("measure", str(folder), cap, str(workers))
    wrong = differences(folder, truth)
    blocks = len({name.split(".")[2] for name in truth if ".layers." in name})
    # A peer on several processes draws nulls too; beside one layer alone stand its SVDs.
    theirs = run_watched(
        "load", str(folder), str(blocks), str(workers), str(PEER_DRAWS if workers > 1 else 0)
    )
    wrong += [name for name, one in truth.items() if theirs.found["changed"][name] != one.changed]
    fits = ran.anonymous <= parse_size(cap)
    said = f"{len(wrong)} tensors wrong" if wrong else "planted masks, sums and overlaps"
    return Row(
        name,
        size,
        1e3 * ran.found["seconds"],
        other,
        1e3 * theirs.found["seconds"],
        fits and not wrong,
        f"{said}; {ran.anonymous / GIB:.2f} GiB of {cap}, against {theirs.anonymous / GIB:.1f}",
        notes={
            "GiB": ran.anonymous / GIB,
            "with mapped files GiB": ran.resident / GIB,
            "its GiB": theirs.anonymous / GIB,
            "memory ratio": theirs.anonymous / ran.anonymous,
        },
    )


def differences(folder: Path, truth: Mapping[str, Truth]) -> list[str]:
    """Names of tensors whose rows, masks or overlaps are not those that were planted."""
    parts = Parts(folder / "parts", "measured")
    masks = load_file(folder / "masks.safetensors")
    found = {name: parts.read(name) for name in truth}
    return [
        name
        for name, one in truth.items()
        if not (_same_counts(found[name], one) and _digest(masks[name]) == one.mask)
        or not _independent(found[name]["tensor"][0])
    ]


def _same_counts(rows_of_tensor: dict, truth: Truth) -> bool:
    row = rows_of_tensor["tensor"][0]
    sums = []
    for axis, across in zip(rows_of_tensor["axis"], reversed(row["shape"]), strict=False):
        counts = torch.tensor(axis["ratio"], dtype=torch.float64).mul_(across).round_().to(torch.int64)
        sums.append(_digest(counts))
    same = (row["changed"], row["changed_stored"]) == (truth.changed, truth.stored)
    return same and (not sums or tuple(sums) == truth.sums)


def _independent(row: dict) -> bool:
    """Whether overlaps are those of a mask planted without a look at the weights: the targets' densities."""
    if row["spectra"] != MEASURED:
        return row["layer"] is None or len(row["shape"]) != 2
    for target in ("principal", "low", "principal_not_low"):
        density = row[f"density_{target}"]
        error = 6 * (density * (1 - density) / row["changed"]) ** 0.5
        law = row[f"overlap_{target}_bernoulli_mean"]
        if abs(row[f"overlap_{target}"] - density) > error or abs(law - density) > 1e-9:
            return False
    return True


def main() -> None:
    """One way, in this process."""
    # Worker processes find functions by the module's name, which this one does not go by.
    from benchmarks import scale

    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("measure", "tensor", "load"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", nargs="*")
    chosen = parser.parse_args()
    os.environ.pop("THREEGATES_CACHE", None)
    if chosen.way == "measure":
        cap, workers = chosen.more
        found = scale.measured(chosen.folder, parse_size(cap), int(workers))
    elif chosen.way == "tensor":
        found = scale.one_tensor(chosen.folder, *chosen.more)
    else:
        found = scale.loaded(chosen.folder, *map(int, chosen.more))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

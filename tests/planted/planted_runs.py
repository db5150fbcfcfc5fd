"""A base of the lab's kind, the same in other coordinates, and runs from both: whatever a job looks at."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.planted import planted
from threegates.checkpoints.formats.frame import NAME, Frame
from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, read_manifest, write_manifest
from threegates.geometry.precision import to_bf16
from threegates.geometry.rotation import Heads, haar
from threegates.jobs.sources import StudyPair, chapter_pairs
from threegates.lab.model import ModelShape, initial_weights
from threegates.lab.rotated import transformed
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID

SHAPE = ModelShape(width=32, layers=2, feed_forward=48, heads=2, kv_heads=1, head_dim=16)
FRAME = Frame({1: haar(16, 1)}, {})
STEPS = (4, 9)
#: Method, algorithm, seed and base of each run.
RUNS = {
    "grpo-1": ("rl", "grpo", 1, "base"),
    "grpo-2": ("rl", "grpo", 2, "base"),
    "sft-1": ("sft", "sft-teacher", 1, "base"),
    "turned-1": ("rl", "grpo", 1, "rotated"),
}
#: What the entries of the manifest name as their chapter.
CHAPTER = "planted"


def planted_pairs(folder: Path) -> list[StudyPair]:
    """Every step of every run as a pair, opened as a study opens it."""
    base = {n: t.bfloat16() for n, t in initial_weights(SHAPE, torch.Generator().manual_seed(3)).items()}
    heads = Heads(SHAPE.heads, SHAPE.kv_heads, SHAPE.head_dim)
    turned = base | {n: to_bf16(t) for n, t in transformed(FRAME, heads, base, SHAPE.layers, "t").items()}
    sides = {"base": base, "rotated": turned}
    for name, tensors in sides.items():
        _write(folder / name, tensors)
    (folder / "rotated" / NAME).write_text(FRAME.json())
    entries = [
        Entry(name="base", source=Folder(path="base"), method="pretrain"),
        Entry(
            name="rotated",
            source=Folder(path="rotated"),
            method="pretrain",
            base="base",
            labels={"frame": "haar"},
        ),
        *(entry for name in RUNS for entry in _run(folder, name, sides)),
    ]
    path = folder / "manifest.yaml"
    write_manifest(path, Manifest(version=1, profile="planted", checkpoints=entries))
    return chapter_pairs(CHAPTER, read_manifest(path), every_step=True)


def _run(folder: Path, run: str, sides: dict[str, dict[str, Tensor]]) -> list[Entry]:
    method, algorithm, seed, base = RUNS[run]
    entries = []
    for step in STEPS:
        final = step == STEPS[-1]
        name = run if final else f"{run}-step{step}"
        scale = 3e-4 * step**0.5 * (3 if method == "sft" else 1)
        _write(folder / name, planted.with_noise(sides[base], scale, seed * 100 + step))
        facts = {"base": base, "seed": seed, "run": run, "data": "arith-4", "algorithm": algorithm}
        steps = {"step": step, "updates": 4 * step, "final": final}
        entries.append(planted.entry(name, method, [CHAPTER], **facts, **steps))
    return entries


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    config = SHAPE.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype="bfloat16")
    planted.write(folder, tensors, config)

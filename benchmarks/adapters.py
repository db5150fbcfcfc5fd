"""A LoRA's spectrum by its factors against a dense SVD, and an adapter on its base against a merged copy."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.laws import opened, timed
from benchmarks.measure import Row
from benchmarks.spectra import pair
from threegates.checkpoints.adapters.adapted import adapted
from threegates.checkpoints.adapters.config import CONFIG, WEIGHTS
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.low_rank import singular_values_of_product
from threegates.jobs.nulls import founding_nulls
from threegates.measures.by_tensor import Shared
from threegates.measures.tensor_table import PairTable

SHAPES = {"s": (1536, 1536), "m": (1536, 8960), "l": (4096, 4096)}
RANK = 16
#: Of the spectrum from factors, at size l; of the pair, where the adapter has to cost nothing to speak of.
GATE, PAIR_GATE = 500.0, 0.9
#: Largest difference of a singular value from the dense one's, in units of the largest.
CLOSE = 1e-10
_NAME = "model.layers.0.mlp.up_proj.weight"
_KEY = f"base_model.model.{_NAME.removesuffix('.weight')}"


def rows(sizes: Sequence[str]) -> list[Row]:
    """All rows of this file at these sizes."""
    chosen = {size: shape for size, shape in SHAPES.items() if size in sizes}
    return [row for size, shape in chosen.items() for row in measured(size, shape)]


def measured(size: str, shape: tuple[int, int]) -> list[Row]:
    """Both rows of one shape."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(RANK, shape[1], generator=generator) / shape[1] ** 0.5
    up = 1e-3 * torch.randn(shape[0], RANK, generator=generator)
    label = f"{size} {shape[0]} × {shape[1]}, r = {RANK}"
    return [spectrum_row(label, up, down), pair_row(label, pair(shape)[0], up, down)]


def spectrum_row(label: str, up: Tensor, down: Tensor) -> Row:
    """Singular values of BA."""
    ours, found = timed(lambda: singular_values_of_product(up, down))
    theirs, dense = timed(lambda: torch.linalg.svdvals(up.double() @ down.double()))
    off = float((found - dense[: len(found)]).abs().max() / dense[0])
    gate = {"gate": GATE} if label.startswith("l ") else {}
    return Row(
        "spectrum of a LoRA's update",
        label,
        ours,
        "float64 SVD of BA",
        theirs,
        off <= CLOSE,
        f"{off:.0e} of σ₁ off",
        **gate,
    )


def pair_row(label: str, base: Tensor, up: Tensor, down: Tensor) -> Row:
    """A row of `threegates measure` with an adapter as the tuned side, against W₀ + ΔW kept in float32."""
    merged = (base.double() + up.double() @ down.double()).float()
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        whole = opened(folder / "whole", base, merged)
        sides = adapted(whole[0], write_adapter(folder / "adapter", up, down))
        ours, mine = timed(lambda: _row(sides))
        theirs, other = timed(lambda: _row(whole))
    same = all(mine[name] == other[name] for name in ("changed", "changed_stored", "nss", "angle_left_max"))
    return Row("pair with an adapter", label, ours, "its merged copy", theirs, same, "equal", gate=PAIR_GATE)


def _row(sides: Sequence[Checkpoint]) -> dict:
    # Spectra, angles and overlaps, which both sides have; what merging keeps is asked of adapters alone.
    table = PairTable(sides[0], sides[1], "pair", nulls=founding_nulls())
    return table._measured(_NAME, Shared())["tensor"][0]


def write_adapter(folder: Path, up: Tensor, down: Tensor) -> Path:
    """An adapter of one matrix, as peft lays it down; s = 1."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": len(down), "lora_alpha": len(down)}
    (folder / CONFIG).write_text(json.dumps(config))
    factors = {f"{_KEY}.lora_A.weight": down, f"{_KEY}.lora_B.weight": up}
    save_file({name: tensor.contiguous() for name, tensor in factors.items()}, folder / WEIGHTS)
    return folder

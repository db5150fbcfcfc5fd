"""FP8 checkpoints read as floats: each code times its scale, as block-FP8 and compressed-tensors have it.

A weight of shape (…, out, in) is codes of 8 bits in that shape, in E4M3 or E5M2, and scales: one for the
matrix, one a row of it, or one a block. The product is computed in float32. Rounded to bfloat16 it is what
DeepSeek's own conversion writes.

**Source** DeepSeek-AI (2024), *DeepSeek-V3 Technical Report*, section 3.3.2; Micikevicius et al. (2022), *FP8
Formats for Deep Learning*, Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threegates.checkpoints.coded import ERRORS, GAPS, VALUES, Coded, own_offsets
from threegates.checkpoints.formats.headers import BITS, Codes, TensorInfo
from threegates.checkpoints.quantised import scales_of
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import DTYPES, Checkpoint
from threegates.errors import CheckpointError

CONFIG = "quantization_config"
#: Bits of the mantissa that are stored, and the exponent of the smallest normal value.
_FORMATS = {"F8_E4M3": (3, -6), "F8_E5M2": (2, -14)}
# Beside a weight: scales of activations, which are no weights.
_OF_ACTIVATIONS = ("input_scale", "output_scale")


@dataclass(frozen=True)
class Scale:
    """The scales of a coded tensor: their name, and how many rows and columns share one."""

    name: str
    block: tuple[int, int]


@dataclass(frozen=True)
class Dequantised(Coded):
    """A checkpoint, `source`, whose FP8 tensors are read as float32.

    scales : by the name of a coded tensor. Config and notes are the source's, without the quantisation.
    """

    source: Checkpoint = field(kw_only=True)
    scales: Mapping[str, Scale] = field(kw_only=True)

    def plain(self, info: TensorInfo) -> Checkpoint:
        """The source, told the place of that tensor."""
        return replace(self.source, infos={info.name: info})

    def whole_shape(self, stored: str) -> tuple[int, ...]:
        """Shape of a coded tensor as it is stored, by its stored name."""
        return self.source.info(stored).shape

    def decoded(self, stored: str, start: int, stop: int) -> Tensor:
        """Rows of a coded tensor, all leading axes made one: what `reads` says of them."""
        info, scale = self.source.info(stored), self.scales[stored]
        flat = replace(info, shape=(info.size // info.shape[-1], info.shape[-1]))
        codes = rows_of(replace(self.source, infos={stored: flat}), stored, start, stop)
        exact = (
            codes.float()
            if self.reads == VALUES
            else tables(info.dtype)[self.reads][codes.view(torch.uint8).long()]
        )
        return exact.mul_(expanded(self.source.stored(scale.name), info.shape, scale.block, (start, stop)))

    def files(self) -> list[Path]:
        """Files of the source."""
        return self.source.files()

    def digest(self) -> str:
        """Digest of the source, whose bytes decide all values."""
        return self.source.digest()


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint as it is stored, its FP8 tensors read as floats; the same object where it has none.

    Raises
    ------
    CheckpointError : the shape of a scale fits no way to share scales that the config names.
    """
    names = scales_of(checkpoint.infos.values())
    if not names:
        return checkpoint
    blocks = tuple(_blocks(checkpoint.config))
    scales = {name: Scale(scale, _block(checkpoint, name, scale, blocks)) for name, scale in names.items()}
    beside = {
        f"{name.removesuffix('weight')}{end}"
        for name in names
        if name.endswith(".weight")
        for end in _OF_ACTIVATIONS
    }
    dropped = {*names.values(), *beside}
    infos = {
        name: _as_floats(info, checkpoint, scales)
        for name, info in checkpoint.infos.items()
        if name not in dropped
    }
    return Dequantised(
        checkpoint.folder,
        {key: value for key, value in checkpoint.config.items() if key != CONFIG},
        infos,
        checkpoint.revision,
        checkpoint.kept_digest,
        notes=checkpoint.notes,
        source=checkpoint,
        scales=scales,
    )


def _as_floats(info: TensorInfo, source: Checkpoint, scales: Mapping[str, Scale]) -> TensorInfo:
    stored = info.alias_of or info.name
    if stored not in scales:
        return info
    scale = source.info(scales[stored].name)
    bits = BITS[info.dtype] + scale.size * BITS[scale.dtype] / max(info.size, 1)
    return own_offsets(replace(info, dtype="F32", codes=Codes(info.dtype, stored, bits)))


def expanded(scales: Tensor, shape: Sequence[int], block: tuple[int, int], rows: tuple[int, int]) -> Tensor:
    """The scale of every entry of some rows, float32 of shape (rows, in) or (rows, 1).

    shape : (…, out, in) of the codes; rows are counted with all leading axes made one. block : rows and
    columns of a matrix that share a scale; the last ones of a matrix may be fewer.
    """
    out, width = shape[-2:]
    down, across = -(-out // block[0]), -(-width // block[1])
    number = torch.arange(*rows)
    chosen = scales.reshape(-1, across)[number // out * down + number % out // block[0]].float()
    return chosen if across == 1 else chosen.repeat_interleave(block[1], dim=1)[:, :width]


@cache
def tables(dtype: str) -> Mapping[str, Tensor]:
    """Of each of the 256 codes, in units of its scale: the gap away from zero and the error, float32.

    Below a power of two the gap is half as wide, so that values from a quarter of a gap below it to half of
    one above are rounded to it: their mean square is g² / 16, where it is g² / 12 elsewhere.
    """
    mantissa, lowest = _FORMATS[dtype]
    values = torch.arange(256, dtype=torch.uint8).view(DTYPES[dtype]).double().abs()
    exponents = torch.where(values > 0, torch.frexp(values).exponent - 1, lowest).clamp(min=lowest).double()
    gaps = torch.exp2(exponents - mantissa)
    first = (values == torch.exp2(exponents)) & (exponents > lowest)
    errors = gaps / torch.where(first, 16.0, 12.0).sqrt()
    return {GAPS: gaps.float(), ERRORS: errors.float()}


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """The ways to share scales by blocks that a config names."""
    told = config.get(CONFIG)
    told = told if isinstance(told, dict) else {}
    groups = told.get("config_groups")
    weights = (
        [one.get("weights") or {} for one in (groups or {}).values()] if isinstance(groups, dict) else []
    )
    sizes = [told.get("weight_block_size"), *(one.get("block_structure") for one in weights)]
    sizes += [[1, one["group_size"]] for one in weights if one.get("group_size")]
    for size in sizes:
        if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
            yield size[0], size[1]


def _block(
    checkpoint: Checkpoint, name: str, scale: str, blocks: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """How many rows and columns share a scale, by its shape: all, a row's, or those of a block."""
    shape, told = checkpoint.info(name).shape, checkpoint.info(scale).shape
    *lead, out, width = shape
    for rows, columns in ((out, width), (1, width), *blocks):
        grid = (*lead, -(-out // rows), -(-width // columns))
        if told == grid or (1 in grid and math.prod(told) == math.prod(grid) and len(told) < len(grid)):
            return rows, columns
    raise CheckpointError(
        f"it is not said which weights of '{name}' share a scale",
        where=f"{checkpoint.folder}, tensor '{scale}'",
        expected="one scale, one a row, or one a block of "
        + (" or ".join(f"{rows}×{columns}" for rows, columns in blocks) or "the config's weight_block_size"),
        found=f"scales of shape {list(told)} for a weight of shape {list(shape)}",
        remedy="take the config.json that belongs to these weights, or the unquantised checkpoint",
    )

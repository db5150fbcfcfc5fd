"""Writing a checkpoint in Hugging Face format: all of it or nothing, and the same bytes each time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from threegates.checkpoints.paths import stays_inside
from threegates.checkpoints.tensors import INDEX, SINGLE
from threegates.errors import CheckpointError

CONTIGUOUS = torch.contiguous_format


def write_checkpoint(
    folder: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    extra_files: Mapping[str, str | bytes] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json, safetensors and further files as a folder that `from_pretrained` reads.

    Parameters
    ----------
    tensors : by name, stored as they are; the order does not matter. Leave a tied head out.
    extra_files : name and content of tokenizer and generation files.
    max_shard_bytes : more than this is split into numbered shards with an index; a larger tensor has its own.

    Raises
    ------
    CheckpointError : no tensors, or an extra file whose name leaves the folder or is taken.
    """
    folder = Path(folder)
    extra_files = extra_files or {}
    _check(folder, tensors, extra_files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    # What a killed process left under this name is unfinished by definition.
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        _write_json(part / "config.json", config)
        _write_tensors(part, tensors, max_shard_bytes)
        for name, content in extra_files.items():
            _write_extra(part / name, content)
        _put_in_place(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check(folder: Path, tensors: Mapping[str, Tensor], extra_files: Mapping[str, str | bytes]) -> None:
    if not tensors:
        raise CheckpointError("a checkpoint needs at least one tensor", where=folder)
    for name in extra_files:
        shard = name.endswith(".safetensors") and "/" not in name
        taken = shard or name in ("config.json", INDEX)
        if taken or not stays_inside(name):
            raise CheckpointError(
                f"an extra file cannot be called '{name}'",
                where=folder,
                expected="a name inside the folder that is not the config's, the index's or a shard's",
                found=name,
                remedy="choose another name",
            )


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name in sorted(tensors):
        need = tensors[name].nbytes
        if not shards or need > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= need
    return shards


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], limit: int) -> None:
    shards = _shards(tensors, limit)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # safetensors refuses tensors that share memory, as two views of one parameter do.
        shard = {name: tensors[name].detach().cpu().clone(memory_format=CONTIGUOUS) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        # safetensors makes files that only their owner may read; the others get the umask's mode.
        shutil.copymode(folder / "config.json", folder / file)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_extra(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _put_in_place(part: Path, folder: Path) -> None:
    # A folder cannot be replaced by another in one step; the old one is moved aside first.
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)

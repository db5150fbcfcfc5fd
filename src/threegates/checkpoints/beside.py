"""What lies in a checkpoint's folder besides the files that are read, told by the names in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Files and folders that a sentence names.
LISTED = 5
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_VARIANT = re.compile(r"model\.(?!safetensors)[\w-]+(?:-\d+-of-\d+)?\.safetensors")
_PICKLE = "pytorch_model*.bin"
#: An adapter's files, as peft names them: its config, and its weights of either kind.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE)


def whole_shards(names: Iterable[str]) -> list[str]:
    """The files of a sharded model without an index, if all of them are there: ``model-00001-of-00002…``."""
    found = {name: shard for name in names if (shard := _SHARD.fullmatch(name))}
    counts = {int(shard[2]) for shard in found.values()}
    numbers = sorted(int(shard[1]) for shard in found.values())
    return sorted(found) if len(counts) == 1 and numbers == list(range(1, counts.pop() + 1)) else []


def beside(folder: Path, read: Iterable[Path]) -> tuple[str, ...]:
    """Weights beside those that are read, a sentence for each kind."""
    used = set(read)
    entries = sorted(folder.iterdir())
    names = [path.name for path in entries]
    notes = []
    if adapters := [name for name in _ADAPTER if name in names]:
        notes.append(
            f"{_listed(adapters)} beside the weights: transformers loads that adapter with them, so that the "
            "model it makes is another one than what is compared here"
        )
    last = max((path.stat().st_mtime for path in used if path.is_file()), default=0.0)
    newer = [path.name for path in folder.glob(_PICKLE) if path.stat().st_mtime > last]
    if newer:
        notes.append(
            f"{_listed(sorted(newer))} changed later than the safetensors files that are read in its place"
        )
    others = [
        path.name
        for path in entries
        if path.suffix == ".safetensors" and path not in used and path.name not in _ADAPTER
    ]
    if others:
        notes.append(f"not read: {_listed(others)}")
    if below := folders_below(entries):
        notes.append(f"not read: weights in {_listed(below)}")
    return tuple(notes)


def folders_below(entries: Iterable[Path]) -> list[str]:
    """Names of the folders among these that hold weights."""
    patterns = ("*.safetensors", _PICKLE)
    return [
        f"{path.name}/"
        for path in entries
        if path.is_dir() and any(file for pattern in patterns for file in path.glob(pattern))
    ]


def found_instead(folder: Path) -> tuple[list[str], list[str]]:
    """Where no weights can be read: what is there that may be meant, and what to do about each kind of it."""
    entries = sorted(folder.iterdir())
    files = [path.name for path in entries if path.suffix == ".safetensors" and path.name not in _ADAPTER]
    below = folders_below(entries) or _two_below(entries)
    remedies = []
    if variants := [name for name in files if _VARIANT.fullmatch(name)]:
        remedies.append(
            f"{variants[0]} is a variant: copy it as {SINGLE} into a folder with its config.json, or load it "
            "with `variant=` and save it anew"
        )
    if any(name.startswith("consolidated") for name in files):
        remedies.append(
            "consolidated files are in the layout of Mistral's or Meta's own code: take the repository's "
            f"{SINGLE}, or convert them with transformers"
        )
    if shards := [name for name in files if _SHARD.fullmatch(name)]:
        remedies.append(f"{shards[0]} is one of several shards: copy the others, and {INDEX}")
    if below:
        remedies.append(f"weights lie below: give {folder.name}/{below[0].rstrip('/')}")
    if files and not remedies:
        remedies.append(f"if {files[0]} is the model, rename it to {SINGLE}")
    return [*files, *below], remedies


def _two_below(entries: Sequence[Path]) -> list[str]:
    """Folders with weights two steps down, such as snapshots/HASH of the Hub's cache."""
    return [
        f"{path.name}/{name}"
        for path in entries
        if path.is_dir()
        for name in folders_below(sorted(path.iterdir()))
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

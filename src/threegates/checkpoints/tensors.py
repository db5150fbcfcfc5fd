"""A checkpoint in Hugging Face format, read lazily: index or headers first, then one tensor at a time."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threegates.checkpoints.beside import ADAPTER_WEIGHTS, INDEX, SINGLE, beside, found_instead, whole_shards
from threegates.checkpoints.formats.headers import GET_AGAIN, TensorInfo, read_header, read_json
from threegates.checkpoints.paths import stays_inside
from threegates.checkpoints.rounding import round_to_bf16
from threegates.errors import CheckpointError

__all__ = ["Checkpoint", "TensorInfo"]

# In the place of weights: what a release keeps of a checkpoint.
WITHOUT_WEIGHTS = "without_weights.json"
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
# Formats that need code to run, or that hold something else than the model's weights.
REFUSED = {
    ADAPTER_WEIGHTS: "an adapter: give it as the tuned side, and its model as the base",
    "*.gguf": "a quantised GGUF file: take the original repository's safetensors, or give that file's path",
    "*.bin": "pickle, which can run code when read: convert it to safetensors first",
    "*.pt": "pickle, which can run code when read: convert it to safetensors first",
    "*.pth": "pickle, which can run code when read: convert it to safetensors first",
    "*.h5": "TensorFlow weights: convert them to safetensors first",
    "*.msgpack": "Flax weights: convert them to safetensors first",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder of `config.json` and safetensors files whose headers have been checked.

    `infos` holds every tensor by name, sorted. A head tied to the embedding is listed as an alias of it
    (`alias_of`). `revision` is the commit of a checkpoint of the Hub. Nothing in the folder is executed.

    Of a checkpoint that was released without its weights, `kept_digest` is the digest that it had; config and
    headers are there, and no tensor can be read.

    `notes` say what else lies in the folder that one may take for the model.
    """

    folder: Path
    config: dict[str, Any]
    infos: dict[str, TensorInfo]
    revision: str | None = None
    kept_digest: str | None = None
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Checkpoint:
        """Read config and headers; raises CheckpointError where a file is missing, damaged or unsafe."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(
                "there is no checkpoint folder",
                where=folder,
                expected="a folder with config.json and model.safetensors",
                remedy="check the path; the lab's checkpoints are made by `threegates train`",
            )
        if (folder / WITHOUT_WEIGHTS).is_file():
            return _read_released(folder)
        infos = _read_tensors(folder)
        config = _read_config(folder)
        notes = (*_stale_index(folder, infos), *beside(folder, {info.file for info in infos.values()}))
        return cls(folder, config, dict(sorted(with_tied_head(config, infos).items())), notes=notes)

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor."""
        if name not in self.infos:
            raise CheckpointError(
                f"there is no tensor '{name}' in the checkpoint",
                where=self.folder,
                expected=f"one of {len(self.infos)} tensors, such as '{next(iter(self.infos), '')}'",
                found=name,
                remedy="list the names with Checkpoint.open(folder).infos",
            )
        return self.infos[name]

    def stored(self, name: str) -> Tensor:
        """A tensor as stored, mapped from its file: its bytes are read as they are used."""
        info = self.info(name)
        if self.kept_digest is not None:
            raise CheckpointError(
                "this checkpoint was released without its weights",
                where=f"{self.folder}, tensor '{name}'",
                remedy="train it: `threegates train --profile full --only NAME-OF-ITS-RUN`",
            )
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise CheckpointError(
                f"tensor '{name}' is stored as {info.dtype}, which is not read here",
                where=f"{info.file}, tensor '{name}'",
                expected="one of " + ", ".join(DTYPES),
                found=info.dtype,
                remedy="take the unquantised checkpoint",
            )
        return _mapped_bytes(info).view(dtype).reshape(info.shape)

    def bf16(self, name: str) -> Tensor:
        """A tensor rounded to bfloat16, to nearest, ties to even."""
        return round_to_bf16(self.stored(name))

    def files(self) -> list[Path]:
        """config.json and the files that hold tensors, sorted by name."""
        shards = {info.file for info in self.infos.values()}
        return sorted({self.folder / "config.json", *shards})

    def digest(self) -> str:
        """sha256 over the names and sha256 of config.json and the tensor files."""
        if self.kept_digest is not None:
            return self.kept_digest
        total, files = hashlib.sha256(), self.files()
        # Shards are read and hashed side by side: both let go of the interpreter's lock.
        with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
            for file, one in zip(files, pool.map(sha256_of, files), strict=True):
                total.update(f"{file.relative_to(self.folder).as_posix()} {one}\n".encode())
        return total.hexdigest()


_SHA256: dict[tuple[str, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """sha256 of a file, remembered in this process for as long as its size and time stay the same."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _SHA256:
        with open(path, "rb") as file:
            _SHA256[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _SHA256[key]


def without_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a release keeps of a checkpoint, as JSON: its digest, and its tensors' types and shapes.

    Written as ``without_weights.json`` beside config.json, it opens as the checkpoint did.
    """
    tensors = {
        name: {"dtype": info.dtype, "shape": list(info.shape), "alias_of": info.alias_of}
        for name, info in checkpoint.infos.items()
    }
    return {"digest": checkpoint.digest(), "tensors": tensors}


def _read_released(folder: Path) -> Checkpoint:
    path = folder / WITHOUT_WEIGHTS
    told = read_json(path)
    try:
        infos = {
            name: TensorInfo(name, one["dtype"], tuple(one["shape"]), path, (0, 0), one["alias_of"])
            for name, one in told["tensors"].items()
        }
        return Checkpoint(folder, _read_config(folder), infos, kept_digest=str(told["digest"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "what was kept of a released checkpoint cannot be read",
            where=path,
            expected="digest, and tensors with dtype, shape and alias_of",
            found=f"{type(error).__name__}: {error}",
            remedy="unpack the release again: `threegates book --profile released`",
        ) from None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            "the checkpoint has no config.json",
            where=folder,
            expected="config.json beside the tensors",
            remedy="give the folder that save_pretrained or `hf download` made, with all its files",
        )
    return read_json(path)


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    if (folder / INDEX).is_file() and not _is_stale(folder):
        return _read_sharded(folder)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if shards := whole_shards(path.name for path in folder.iterdir()):
        return _read_unindexed(folder, shards)
    found = {name: why for name, why in REFUSED.items() if any(folder.glob(name))}
    names = sorted(path.name for pattern in found for path in folder.glob(pattern))
    others, remedies = found_instead(folder)
    remedies = [*(f"{name} is {why}" for name, why in found.items()), *remedies]
    raise CheckpointError(
        "the checkpoint has no safetensors weights",
        where=folder,
        expected=f"{SINGLE} or {INDEX}",
        found=", ".join([*names[:5], *others[:5]]) or "neither",
        remedy="; ".join(remedies)
        or "give the folder that save_pretrained or `hf download` made, with all its files",
    )


def _is_stale(folder: Path) -> bool:
    """Whether all shards of the index are gone and a single file has come: the save after took its place."""
    if not (folder / SINGLE).is_file():
        return False
    return not any((folder / file).is_file() for file in _weight_map(folder).values())


def _stale_index(folder: Path, infos: dict[str, TensorInfo]) -> list[str]:
    files = {info.file.name for info in infos.values()}
    if files != {SINGLE} or not (folder / INDEX).is_file() or not _is_stale(folder):
        return []
    return [f"{INDEX} is left over: none of its shards is there, and {SINGLE} is read"]


def _read_unindexed(folder: Path, shards: list[str]) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    for file in shards:
        for name, info in read_header(folder / file).items():
            if name in infos:
                raise CheckpointError(
                    f"two shards hold tensor '{name}', and no index says which is meant",
                    where=f"{folder / file}, tensor '{name}'",
                    expected=f"{INDEX}, or each tensor once",
                    found=f"also in {infos[name].file.name}",
                    remedy="download the checkpoint again, with its index",
                )
            infos[name] = info
    return infos


def _read_sharded(folder: Path) -> dict[str, TensorInfo]:
    weight_map = _weight_map(folder)
    _check_shards(folder, weight_map)
    infos: dict[str, TensorInfo] = {}
    for file in sorted(set(weight_map.values())):
        infos |= _read_shard(folder, file, weight_map)
    missing = sorted(set(weight_map) - set(infos))
    if missing:
        raise CheckpointError(
            f"tensor '{missing[0]}' is not in the file the index names"
            + (f", and {len(missing) - 1} more are not either" if missing[1:] else ""),
            where=f"{folder / weight_map[missing[0]]}, tensor '{missing[0]}'",
            expected=f"the tensor that {INDEX} lists there",
            found="no such tensor in the file's header",
            remedy="if the repository's file is of that size and sha256, its index is wrong, and another "
            "download changes nothing: take the entry out of a copy of the index. Else the file is cut "
            "short: download it again",
        )
    return infos


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(
            f"{INDEX} does not say which file holds which tensor",
            where=folder / INDEX,
            expected="weight_map, an object of tensor names and file names",
            found=type(weight_map).__name__,
            remedy=GET_AGAIN,
        )
    for name, file in weight_map.items():
        if not stays_inside(file):
            raise CheckpointError(
                "the index points outside the checkpoint's folder",
                where=f"{folder / INDEX}, tensor '{name}'",
                expected="the name of a file in the same folder",
                found=file,
                remedy="do not use this checkpoint unless you know who wrote the index; correct that path",
            )
    return weight_map


def _check_shards(folder: Path, weight_map: dict[str, str]) -> None:
    held = Counter(weight_map.values())
    missing = sorted(file for file in held if not (folder / file).is_file())
    if missing:
        first = min(name for name, file in weight_map.items() if file == missing[0])
        raise CheckpointError(
            f"{len(missing)} of {len(held)} shards are missing",
            where=f"{folder / missing[0]}, tensor '{first}'",
            expected=", ".join(f"{file} ({held[file]} tensors)" for file in missing[:5]),
            found="no such file",
            remedy="download or copy the missing files; the index lists them",
        )
    if (folder / SINGLE).is_file() and SINGLE not in held:
        raise CheckpointError(
            "the folder holds two sets of weights",
            where=folder,
            expected=f"either {SINGLE} or {INDEX} with its shards",
            found="both",
            remedy="move the one that is not meant out of the folder",
        )


def _read_shard(folder: Path, file: str, weight_map: dict[str, str]) -> dict[str, TensorInfo]:
    infos = read_header(folder / file)
    for name in infos:
        if weight_map.get(name) != file:
            raise CheckpointError(
                f"{file} holds tensor '{name}', which the index does not place there",
                where=f"{folder / file}, tensor '{name}'",
                expected=f"a tensor that {INDEX} places in {file}",
                found=f"placed in {weight_map[name]}" if name in weight_map else "not in the index",
                remedy=_which_is_meant(name, file, weight_map),
            )
    return infos


def _which_is_meant(name: str, file: str, weight_map: dict[str, str]) -> str:
    if name not in weight_map:
        return "download the checkpoint again; index and shards must come from one save"
    return (
        f"there are two copies, as where {weight_map[name]} was laid over an older save, and libraries load "
        f"one or the other: load the model with the one that you use and save it anew, or take {name} out of "
        f"a copy of {file}"
    )


def with_tied_head(config: dict[str, Any], infos: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors, and the head as an alias of the embedding where the config ties it and none is stored."""
    embeddings = [name for name in infos if name == EMBEDDING or name.endswith("." + EMBEDDING)]
    # transformers leaves the key out where it has its default, and the default is to tie.
    tied = config.get("tie_word_embeddings", True) is True
    if HEAD in infos or not tied or len(embeddings) != 1:
        return infos
    alias = replace(infos[embeddings[0]], name=HEAD, alias_of=embeddings[0])
    return {**infos, HEAD: alias}


def _mapped_bytes(info: TensorInfo) -> Tensor:
    """A tensor's bytes as pages of its file, shared with the page cache: no memory of the process's own.

    Writing to them copies the page and never reaches the file.
    """
    start, end = info.offsets
    if end == start:
        return torch.empty(0, dtype=torch.uint8)
    first_page = start - start % mmap.ALLOCATIONGRANULARITY
    with open(info.file, "rb") as file:
        held = os.fstat(file.fileno()).st_size
        if held < end:
            raise _truncated(info, held)
        pages = mmap.mmap(file.fileno(), end - first_page, access=mmap.ACCESS_COPY, offset=first_page)
    content = torch.frombuffer(pages, dtype=torch.uint8, offset=start - first_page)
    # A header of odd length would leave the values where no processor likes to read them.
    return content if start % 8 == 0 else content.clone()


def _truncated(info: TensorInfo, held: int) -> CheckpointError:
    start, end = info.offsets
    return CheckpointError(
        f"{info.file.name} is truncated: tensor '{info.name}' is not whole",
        where=f"{info.file}, tensor '{info.name}'",
        expected=f"{end - start} bytes from {start}",
        found=f"{max(0, held - start)} bytes",
        remedy=GET_AGAIN + ", and do not change it while it is read",
    )

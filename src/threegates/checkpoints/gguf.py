"""A GGUF file read as a checkpoint under Llama's names, by the `gguf` package's own reader and decoders.

What llama.cpp's converter did to values is undone: it stores rows of q and k in the order of the pairs that
it rotates, and norms of Gemma with one added. Architectures of which that is not known are not read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threegates.checkpoints.coded import ERRORS, GAPS, VALUES, Coded, own_offsets, width_of
from threegates.checkpoints.formats.gguf_names import ARCHITECTURES, SIZES, Architecture, module_names
from threegates.checkpoints.formats.headers import GET_AGAIN, Codes, TensorInfo
from threegates.checkpoints.tensors import Checkpoint, sha256_of, with_tied_head
from threegates.errors import CheckpointError

SUFFIX = ".gguf"
#: Types that hold floats as they are.
PLAIN = ("F32", "F16", "BF16", "F64")
#: Of the other types that are read: the bytes of a block that hold the codes, and how code 0 becomes code 1:
#: the bytes with the lowest bits, and their value. All else in a block is scales and offsets.
_BLOCKS: dict[str, tuple[tuple[slice, ...], slice, int]] = {
    "Q4_0": ((slice(2, 18),), slice(2, 18), 0x11),
    "Q4_1": ((slice(4, 20),), slice(4, 20), 0x11),
    "Q5_0": ((slice(2, 22),), slice(6, 22), 0x11),
    "Q5_1": ((slice(4, 24),), slice(8, 24), 0x11),
    "Q8_0": ((slice(2, 34),), slice(2, 34), 0x01),
    "Q2_K": ((slice(16, 80),), slice(16, 80), 0x55),
    "Q3_K": ((slice(0, 96),), slice(32, 96), 0x55),
    "Q4_K": ((slice(16, 144),), slice(16, 144), 0x11),
    "Q5_K": ((slice(16, 176),), slice(48, 176), 0x11),
    "Q6_K": ((slice(0, 192),), slice(0, 128), 0x11),
}
_TURNED = (".self_attn.q_proj.", ".self_attn.k_proj.")


@dataclass(frozen=True)
class Gguf(Coded):
    """A GGUF file; `folder` is the file.

    tensors : of the package's reader, by Llama's name. heads : of those whose rows are turned, in how many
    groups. shifted : norms that are stored with one added.
    """

    tensors: Mapping[str, Any] = field(kw_only=True)
    heads: Mapping[str, int] = field(kw_only=True)
    shifted: frozenset[str] = field(kw_only=True)

    def whole_shape(self, stored: str) -> tuple[int, ...]:
        """Shape of a tensor by Llama's name."""
        return _shape(self.tensors[stored])

    def decoded(self, stored: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, all leading axes made one: what `reads` says of them."""
        tensor, shape = self.tensors[stored], self.whole_shape(stored)
        count = math.prod(shape) // width_of(shape)
        data = tensor.data.reshape(count, -1)
        heads = self.heads.get(stored)
        # A copy either way: nothing may write into the file's pages.
        rows = data[row_order(count, heads)[start:stop]] if heads else np.array(data[start:stop])
        kind = tensor.tensor_type.name
        if kind not in PLAIN:
            return _WAYS[self.reads](rows, tensor.tensor_type)
        values = torch.from_numpy(rows)
        values = values.view(torch.bfloat16) if kind == "BF16" else values
        return self._exact(values - 1 if stored in self.shifted else values)

    def files(self) -> list[Path]:
        """The file."""
        return [self.folder]

    def digest(self) -> str:
        """sha256 over the file's sha256; its name, which anyone may choose, is no part of it."""
        return hashlib.sha256(f"gguf {sha256_of(self.folder)}\n".encode()).hexdigest()


def is_gguf(path: str | Path) -> bool:
    """Whether a path is that of a GGUF file, by its ending."""
    return Path(path).suffix.lower() == SUFFIX and Path(path).is_file()


def open_local(path: str | Path) -> Checkpoint:
    """The checkpoint of a folder, or of a GGUF file."""
    return open_gguf(path) if is_gguf(path) else Checkpoint.open(path)


def open_gguf(path: str | Path) -> Gguf:
    """Open a GGUF file: its metadata and the places of its tensors, none of which is read.

    Raises
    ------
    CheckpointError : the `gguf` package is missing; the file is damaged, one of several, of an architecture
        that is not known here, or has types of codes that are not read.
    """
    path = Path(path).absolute()
    stat = path.stat()
    return _opened(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


def metadata_of(path: str | Path) -> Callable[[str], Any]:
    """A file's metadata as a function of the key, None for a key that it lacks.

    Raises
    ------
    CheckpointError : the `gguf` package is missing, or the file is damaged.
    """
    return _metadata(_reader(_library(), Path(path)))


# The package's reader goes through the whole vocabulary, string by string: seconds for a large one.
@lru_cache(maxsize=8)
def _opened(path: Path, _: tuple[int, int, int]) -> Gguf:
    gguf = _library()
    reader = _reader(gguf, path)
    told = _metadata(reader)
    name = str(told("general.architecture"))
    if name not in ARCHITECTURES or int(told("split.count") or 1) > 1:
        raise _not_read(path, name, told("split.count"))
    known, config = ARCHITECTURES[name], _config(path, name, told)
    named = _named(gguf, path, name, reader.tensors, int(config["num_hidden_layers"]))
    config |= {
        "model_type": "mixtral" if config.get("num_experts") and name == "llama" else known.model_type,
        "tie_word_embeddings": "lm_head.weight" not in named,
    }
    infos = {one: _info(path, one, tensor) for one, tensor in named.items()}
    return Gguf(
        path,
        config,
        dict(sorted(with_tied_head(config, infos).items())),
        tensors=named,
        heads=_heads(path, known, config, infos),
        shifted=frozenset(one for one in named if known.shifted and one.endswith("norm.weight")),
    )


def row_order(rows: int, heads: int) -> np.ndarray:
    """Of each row of q or k as transformers has it, where the converter put it.

    A head of size d has rows (t, j), t of the two halves and j below d / 2, stored as (j, t).
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _values(rows: np.ndarray, kind: Any) -> Tensor:
    return torch.from_numpy(_library().quants.dequantize(rows, kind))


def _gaps(rows: np.ndarray, kind: Any) -> Tensor:
    """What a code of one more adds, which is the same for all codes of a scale."""
    size = _library().constants.GGML_QUANT_SIZES[kind][1]
    cleared, low, one = _BLOCKS[kind.name]
    blocks = rows.reshape(len(rows), -1, size)
    for part in cleared:
        blocks[..., part] = 0
    zero = _values(rows, kind)
    blocks[..., low] = one
    return (_values(rows, kind) - zero).abs()


def _errors(rows: np.ndarray, kind: Any) -> Tensor:
    """Root of the mean square of what is uniform within a gap."""
    return _gaps(rows, kind) / math.sqrt(12)


_WAYS = {VALUES: _values, GAPS: _gaps, ERRORS: _errors}


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            "the package that reads GGUF files is not installed",
            expected="the extra `gguf`",
            found=str(error),
            remedy="pip install 'threegates[gguf]', or take the original repository's safetensors",
        ) from None
    return gguf


def _reader(gguf: ModuleType, path: Path) -> Any:
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read",
            where=path,
            expected="a GGUF file of version 2 or 3, of types that the package knows",
            found=f"{type(error).__name__}: {error}",
            remedy=GET_AGAIN + "; if it is newer than the package `gguf`, take the safetensors",
        ) from None
    if reader.byte_order == "S":
        raise CheckpointError(
            f"{path.name} has its bytes in the other order than this machine",
            where=path,
            remedy="convert it with gguf-convert-endian, or take the original repository's safetensors",
        )
    return reader


def _metadata(reader: Any) -> Callable[[str], Any]:
    def told(key: str) -> Any:
        found = reader.get_field(key)
        return None if found is None else found.contents()

    return told


def _config(path: Path, name: str, told: Callable[[str], Any]) -> dict[str, Any]:
    """Sizes as a config has them, those that the file tells."""
    found = {key: told(f"{name}.{where}") for key, where in SIZES.items()}
    if not isinstance(found["num_hidden_layers"], int):
        raise CheckpointError(
            "the file does not say how many blocks its model has",
            where=path,
            expected=f"{name}.{SIZES['num_hidden_layers']}, a number",
            found=found["num_hidden_layers"],
            remedy="take the original repository's safetensors",
        )
    return {key: value for key, value in found.items() if value is not None}


def _named(gguf: ModuleType, path: Path, name: str, tensors: list, blocks: int) -> dict[str, Any]:
    """The reader's tensors by Llama's names; one that has none there keeps its own."""
    arch = next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = module_names(name, blocks, gguf.get_tensor_name_map(arch, blocks).get_name)
    unread = sorted({one.tensor_type.name for one in tensors} - {*PLAIN, *_BLOCKS})
    if unread:
        raise CheckpointError(
            "the file has types of codes that are not read here",
            where=path,
            expected="tensors of " + ", ".join((*PLAIN, *_BLOCKS)),
            found=", ".join(unread),
            remedy="take a file of another type, such as Q8_0, or the original repository's safetensors",
        )
    found = {}
    for tensor in tensors:
        module, _, kind = tensor.name.rpartition(".")
        found[f"{names[module]}.{kind}" if module in names else tensor.name] = tensor
    return found


def _info(path: Path, name: str, tensor: Any) -> TensorInfo:
    kind, shape = tensor.tensor_type.name, _shape(tensor)
    bits = 8 * tensor.n_bytes / max(math.prod(shape), 1)
    info = TensorInfo(name, kind if kind in PLAIN else "F32", shape, path, (0, 0))
    return own_offsets(replace(info, codes=Codes(kind, name, bits, rounds=kind not in PLAIN)))


def _shape(tensor: Any) -> tuple[int, ...]:
    """Shape as transformers has it: GGUF counts axes from the last one."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _heads(
    path: Path, known: Architecture, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]
) -> dict[str, int]:
    if not known.turned:
        return {}
    heads = config.get("num_attention_heads")
    count = dict(zip(_TURNED, (heads, config.get("num_key_value_heads", heads)), strict=True))
    found = {name: count[kind] for name in infos for kind in _TURNED if kind in name}
    for name, number in found.items():
        if type(number) is not int or number < 1 or infos[name].shape[0] % (2 * number):
            raise CheckpointError(
                f"the file does not say how the rows of '{name}' are grouped into heads",
                where=path,
                expected="attention.head_count and attention.head_count_kv, one number for all blocks",
                found=f"{number} for {infos[name].shape[0]} rows",
                remedy="take the original repository's safetensors",
            )
    return found


def _not_read(path: Path, architecture: str, shards: object) -> CheckpointError:
    if architecture in ARCHITECTURES:
        return CheckpointError(
            f"{path.name} is one of {shards} files",
            where=path,
            expected="one file with all tensors",
            remedy="put them together with `llama-gguf-split --merge`",
        )
    return CheckpointError(
        f"what llama.cpp makes of the weights of a model of architecture '{architecture}' is not known here",
        where=path,
        expected=", ".join(ARCHITECTURES),
        found=architecture,
        remedy="take the original repository's safetensors",
    )

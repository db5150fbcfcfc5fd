"""Writing a safetensors file of bytes piece by piece: no tensor of it, and not all of them, is ever held."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from threegates.atomic import atomic_path
from threegates.errors import CheckpointError

# The header is padded to whole words, so that the tensors behind it are aligned.
_WORD = 8


def write_byte_tensors(
    path: Path,
    sizes: Mapping[str, int],
    pieces: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write uint8 tensors of one dimension: the same bytes that `safetensors.torch.save_file` writes.

    Parameters
    ----------
    sizes : bytes of each tensor.
    pieces : gives a tensor's bytes, in order, by its name; tensors are asked for one after the other.

    Raises
    ------
    CheckpointError : the pieces of a tensor are more or fewer bytes than was said; no file is left.

    **Source** the safetensors format: length of the header in 8 bytes, the header in JSON, the tensors.
    """
    names = sorted(sizes)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_header(names, sizes, metadata))
        for name in names:
            written = 0
            for piece in pieces(name):
                written += file.write(piece.cpu().contiguous().numpy().data)
            if written != sizes[name]:
                raise CheckpointError(
                    "a tensor does not have the size that its file's header says",
                    where=f"{path}, tensor '{name}'",
                    expected=f"{sizes[name]} bytes",
                    found=f"{written} bytes",
                    remedy="see that nobody writes to the checkpoint, and run again",
                )


def _header(names: list[str], sizes: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    ends = list(accumulate(sizes[name] for name in names))
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    for name, end in zip(names, ends, strict=True):
        size = sizes[name]
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end - size, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // _WORD) * _WORD)
    return len(padded).to_bytes(_WORD, "little") + padded

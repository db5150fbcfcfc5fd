"""Headers of the Hub's files of tensors: read by ranges, and refused by the code that refuses a file's."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from threegates.checkpoints.formats.headers import LARGEST_HEADER, TensorInfo, read_header
from threegates.checkpoints.hub.transfer import RemoteFile, read_range
from threegates.errors import CheckpointError

# Bytes of a file that are asked for at first; the header is longer only of models with very many tensors.
FIRST_BYTES = 100_000


def header_bytes(file: RemoteFile) -> bytes:
    """The beginning of a file of tensors up to the end of its header, by one request or two.

    Of a header whose length is absurd only a beginning, which is refused when it is read.
    """
    start = b"".join(read_range(file, 0, min(file.size, FIRST_BYTES)))
    end = 8 + int.from_bytes(start[:8], "little")
    if end > min(8 + LARGEST_HEADER, file.size):
        return start[:64]
    return start[:end] + b"".join(read_range(file, len(start), end)) if end > len(start) else start[:end]


def lay_out(path: Path, header: bytes, size: int) -> None:
    """Write a file of a size that begins with a header and holds nothing behind it."""
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(size)


def remote_header(file: RemoteFile) -> dict[str, TensorInfo]:
    """Tensors of a file of the Hub's, by name, in the order of their bytes; their `file` is no path here.

    Raises
    ------
    CheckpointError : the header is damaged, as `read_header` of checkpoints.formats.headers tells of a
        file; or it cannot be had, or the server sends the whole file in place of a range.
    """
    with TemporaryDirectory(prefix="threegates-") as folder:
        path = Path(folder) / Path(file.name).name
        lay_out(path, header_bytes(file), file.size)
        try:
            return read_header(path)
        except CheckpointError as error:
            raise renamed(error, str(path), str(file)) from None


def renamed(error: CheckpointError, here: str, there: str) -> CheckpointError:
    """The same error with the place that a user knows instead of one that is not there any more."""

    def moved(value: object) -> object:
        return None if value is None else str(value).replace(here, there)

    return type(error)(
        str(moved(error.what)),
        where=moved(error.where),
        expected=moved(error.expected),
        found=moved(error.found),
        remedy=error.remedy,
    )

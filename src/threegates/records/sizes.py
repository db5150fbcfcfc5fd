"""Sizes in bytes as text, and the error of a cap on memory."""

from __future__ import annotations

import math
import re

from threegates.errors import ThreeGatesError

MIB = 1 << 20


_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)(B?)\s*", re.IGNORECASE)


class MemoryCapError(ThreeGatesError):
    """A cap on memory is no size, or too small for what is asked."""


def parse_size(text: str) -> int:
    """Bytes of a size such as 2GiB, 1500 MB or 2G.

    KiB, MiB, GiB, TiB and K, M, G, T are powers of 1024, KB, MB, GB, TB of 1000; a number alone is bytes.

    Raises
    ------
    MemoryCapError : no such size, or none above 0.
    """
    found = _SIZE.fullmatch(text)
    size = 0
    if found and not (found[3] and not found[2]):
        power = _UNITS[found[2].upper()]
        decimal = found[2] and found[4] and not found[3]
        size = math.floor(float(found[1]) * (1000 ** (power // 10) if decimal else 1 << power))
    if size < 1:
        raise MemoryCapError(
            "that is no amount of memory",
            where="--memory",
            expected="a number above 0 and a unit, such as 2GiB, 1500MB or 800MiB",
            found=text,
            remedy="give the memory that all processes of the measurement may take together",
        )
    return size


def size_text(size: int) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 30 else f"{size / MIB:.0f} MiB"

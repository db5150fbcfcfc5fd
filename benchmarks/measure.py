"""How a row of the table is measured: both sides in turn, one thread, the same inputs.

Times are processor time of this process. With one thread that is what a clock shows on an idle machine, and
on a shared one it leaves out the time that other processes were given. On a GPU the clock counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison. `accurate` is its gate on results; `gate` and `aim` are ratios, or None."""

    name: str
    size: str
    ours_ms: float
    other: str
    other_ms: float
    accurate: bool
    accuracy: str
    aim: float | None = None
    gate: float | None = None
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times as long the other way takes."""
        return self.other_ms / self.ours_ms

    @property
    def fast(self) -> bool:
        """Whether the ratio reaches its gate."""
        return self.gate is None or self.ratio >= self.gate

    def record(self) -> dict:
        """The row as plain values, for JSON."""
        return asdict(self) | {"ratio": self.ratio, "fast": self.fast}


def in_turn(ours: Callable[[], object], other: Callable[[], object], rounds: int = 7) -> tuple[float, float]:
    """Least milliseconds of two ways, after one warm-up each, run in turn so that load falls on both.

    The least, because on a shared machine what is added to it is other processes' use of caches and memory.
    """
    ours(), other()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, taken in zip((ours, other), times, strict=True):
            start = time.process_time()
            call()
            taken.append(1e3 * (time.process_time() - start))
    return min(times[0]), min(times[1])


def interleaved(
    ways: dict[str, Callable[[], Any]],
    rounds: int,
    again_below_ms: float = 1000.0,
    clock: Callable[[], float] = time.process_time,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Least milliseconds of many ways and their results, run in turn, quick ways thrice in each round.

    Quick ways get a warm-up; where seconds pass, that would cost more than it gives.
    """
    least = dict.fromkeys(ways, math.inf)
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for name, call in ways.items():
            for _ in range(4):
                start = clock()
                found[name] = call()
                least[name] = min(least[name], 1e3 * (clock() - start))
                if least[name] > again_below_ms:
                    break
    return least, found

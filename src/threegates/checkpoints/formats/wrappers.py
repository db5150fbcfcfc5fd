"""Names without the words of what wrapped a model when it was saved: torch.compile, DDP, FSDP, peft, trl."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache


def unwrapped(names: Iterable[str], words: Sequence[str]) -> dict[str, str]:
    """Each name without these words, wherever they stand as whole segments of it; the last segment stays.

    Names that would become one keep what they are stored under.
    """
    found = {name: _expression(tuple(words)).sub("", name) for name in names}
    times = Counter(found.values())
    return {name: bare if times[bare] == 1 else name for name, bare in found.items()}


def kept(names: Iterable[str], words: Sequence[str]) -> list[str]:
    """Names that keep a wrapper's word, because others have the name without it."""
    return [name for name, bare in unwrapped(names, words).items() if _expression(tuple(words)).search(bare)]


@cache
def _expression(words: tuple[str, ...]) -> re.Pattern:
    listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?:(?:^|(?<=\.))(?:{listed})\.)+")

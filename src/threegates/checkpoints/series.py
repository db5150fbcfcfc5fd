"""Several checkpoints by one name: braces as a shell has them, and stars; in the order of their numbers.

``ORG/REPO@step_{1..500..50}``, ``RUN-{a,b}/checkpoint-*``: the last braces or star count the steps of a run,
those before it tell runs apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product, takewhile

from threegates.errors import CheckpointError

#: Most checkpoints of one series.
MOST = 10_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,20})\.\.(-?\d{1,20})(?:\.\.(-?\d{1,20}))?")
_NUMBER = re.compile(r"\d+")
# What stands between a run's name and the number of a step.
_COUNTER = re.compile(
    r"(?:[@:/_.-]*(?:global[_-]?)?(?:steps?|checkpoints?|ckpt|iter(?:ation)?s?|epochs?|updates?))?[@:/_.-]*$",
    re.IGNORECASE,
)
_WRITTEN = "braces as in step_{1..500..50} or {a,b,c}, or a star as in checkpoint-*"


@dataclass(frozen=True)
class Member:
    """A checkpoint of a series.

    text : its name, without braces and stars.
    run : what of the name stands before the step's number, without words such as step_ and checkpoint-.
    step : the first number in what the last braces or star stand for; None where that holds none.
    """

    text: str
    run: str
    step: int | None


def is_series(text: str) -> bool:
    """Whether a name stands for several, by braces or a star."""
    return bool(set(text) & set("{}*"))


def members(text: str, matching: Callable[[str], Iterable[str]] | None = None) -> list[Member]:
    """The checkpoints that a name stands for, by runs and then by the numbers of their steps; each once.

    Parameters
    ----------
    text : braces are ``{FIRST..LAST}``, ``{FIRST..LAST..STEP}`` with whole numbers, both ends meant and
        padded with zeros where an end is, or ``{A,B,…}``; they are not nested. A star stands for any letters
        of one folder's or branch's name.
    matching : the names there are that may fit one with stars; none for a text that has no star.

    Raises
    ------
    CheckpointError : braces that are open, empty or no such range, a step of 0, more than 10,000 names, or
        a star that nothing fits.
    """
    found = {one.text: one for spelled in _spelled(text) for one in _of(spelled, matching or _none)}
    if not found:
        raise CheckpointError(
            f"nothing fits '{text}'",
            where=text,
            expected="a folder, or a branch, tag or sub-folder of a repository, that the star can stand for",
            found="none",
            remedy="correct the name in front of the star; a shell shows folders by `ls`",
        )
    return sorted(found.values(), key=_order)


def spelled(names: Iterable[str]) -> list[str]:
    """Names one by one, each of a series in its place; raises as `members`. Stars are no part of a name."""
    return [one for name in names for one in (map(_text, members(name)) if is_series(name) else [name])]


def _text(member: Member) -> str:
    return member.text


def patterns(text: str) -> list[str]:
    """The names that braces stand for, with the stars that they have; raises as `members`."""
    return list(dict.fromkeys(one.text for one in _spelled(text)))


def as_one(texts: Sequence[str]) -> str:
    """One name for several: what they begin and end with alike, and braces for the rest.

    Raises
    ------
    CheckpointError : a name that has braces, stars or commas of its own where there are several.
    """
    texts = list(dict.fromkeys(texts))
    if len(texts) == 1:
        return texts[0]
    if odd := [text for text in texts if is_series(text) or "," in text]:
        raise CheckpointError(
            "a name with braces, stars or commas stands for itself",
            where=odd[0],
            expected="either one series, or checkpoints one by one",
            found=f"{len(texts)} names",
            remedy="write all of them into one series",
        )
    # No number is cut in two.
    start = re.sub(r"\d+$", "", _alike(texts))
    rest = [text[len(start) :] for text in texts]
    end = re.sub(r"^\d+", "", _alike([text[::-1] for text in rest])[::-1])
    cut = [text[: len(text) - len(end)] for text in rest]
    return f"{start}{{{_range(cut) or ','.join(cut)}}}{end}" if all(cut) else f"{{{','.join(texts)}}}"


def _range(pieces: Sequence[str]) -> str:
    """Pieces that are evenly spaced numbers, as braces hold them; nothing for any others."""
    if len(pieces) < 3 or not all(re.fullmatch(r"0|[1-9]\d{0,17}", piece) for piece in pieces):
        return ""
    numbers = sorted(map(int, pieces))
    (step, *others) = {b - a for a, b in pairwise(numbers)}
    return "" if others else f"{numbers[0]}..{numbers[-1]}" + (f"..{step}" if step > 1 else "")


def _alike(texts: Sequence[str]) -> str:
    """What all texts begin with, letter by letter."""
    first, last = min(texts), max(texts)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


def natural(text: str) -> tuple:
    """A key by which names are sorted as people count: step_9 before step_10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text))


@dataclass(frozen=True)
class _Spelled:
    """A name without braces, what its last braces stand for, and what stands behind these."""

    text: str
    piece: str
    behind: str


def _none(_: str) -> Iterable[str]:
    return ()


def _of(spelled: _Spelled, matching: Callable[[str], Iterable[str]]) -> Iterable[Member]:
    pattern, end = spelled.text, len(spelled.behind)
    if "*" not in pattern:
        return [_member(pattern, len(pattern) - end - len(spelled.piece), spelled.piece)]
    fitting = [(name, found) for name in matching(pattern) if (found := _fits(pattern, name))]
    if "*" in spelled.behind or not spelled.piece:
        return [
            _member(name, found.start(found.re.groups), found[found.re.groups]) for name, found in fitting
        ]
    return [_member(name, len(name) - end - len(spelled.piece), spelled.piece) for name, _ in fitting]


def _member(name: str, at: int, piece: str) -> Member:
    number = _NUMBER.search(piece)
    return Member(name, _COUNTER.sub("", name[:at], count=1), int(number[0]) if number else None)


def _fits(pattern: str, name: str) -> re.Match | None:
    """How a name fits a pattern with stars, one group a star."""
    return re.fullmatch("([^/]*)".join(map(re.escape, pattern.split("*"))), name)


def _spelled(text: str) -> list[_Spelled]:
    parts = _BRACES.split(text)
    literals, inner = parts[::2], parts[1::2]
    if set("".join(literals)) & set("{}"):
        raise _wrong(text, "braces that are open or nested")
    choices = [_choices(one, text) for one in inner]
    _check_count(text, map(len, choices))
    return [
        _Spelled(
            "".join(map("".join, zip(literals, (*chosen, ""), strict=True))),
            chosen[-1] if chosen else "",
            literals[-1],
        )
        for chosen in product(*choices)
    ]


def _choices(inner: str, text: str) -> Sequence[str]:
    if found := _RANGE.fullmatch(inner):
        return _counted(found, text)
    names = inner.split(",")
    if ".." in inner or len(names) < 2 or not all(names):
        raise _wrong(text, f"{{{inner}}}")
    return names


def _counted(found: re.Match, text: str) -> Sequence[str]:
    first, last = int(found[1]), int(found[2])
    step = abs(int(found[3])) if found[3] else 1
    if step == 0:
        raise _wrong(text, "a step of 0")
    _check_count(text, [abs(last - first) // step + 1])
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    padded = any(re.match(r"-?0\d", end) for end in (found[1], found[2]))
    width = max(len(found[1]), len(found[2])) if padded else 0
    return [f"{number:0{width}d}" if width else str(number) for number in numbers]


def _check_count(text: str, counts: Iterable[int]) -> None:
    total = 1
    for count in counts:
        total *= count
    if total > MOST:
        raise CheckpointError(
            "a series has too many checkpoints",
            where=text,
            expected=f"at most {MOST:,}",
            found=f"{total:,}",
            remedy="take larger steps, such as {1..500..50}",
        )


def _order(member: Member) -> tuple:
    return (natural(member.run), member.step is None, member.step or 0, natural(member.text))


def _wrong(text: str, found: str) -> CheckpointError:
    return CheckpointError(
        "this is no series of checkpoints",
        where=text,
        expected=_WRITTEN,
        found=found,
        remedy="correct the braces; in quotes, so that the shell leaves them alone",
    )

"""Before hours are spent: whether a pair can be measured, what it takes, and what to change if it cannot.

Everything but the minutes comes from config and headers; the minutes from the measuring code, timed on small
made-up tensors on this machine.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from threegates.atomic import write_json
from threegates.checkpoints.formats.families import family_of
from threegates.checkpoints.places import place_of
from threegates.checkpoints.preflight import (
    Findings,
    Side,
    by_role,
    file_bytes,
    look_at,
    stored_tensors,
)
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import NotebookError, PairError
from threegates.jobs.costs import Costs, measured_costs
from threegates.jobs.kinds.known import BY_TENSOR, KINDS
from threegates.jobs.memory import need_of, taken
from threegates.jobs.nulls import founding_nulls
from threegates.jobs.settings import HEADERS, device
from threegates.jobs.sources import StudyPair, asked_pairs, narrowed
from threegates.measures.tensor_table import PairTable
from threegates.records.sizes import size_text
from threegates.register import WITH_JOBS

#: What `threegates measure` does, beside the chapters.
MEASURE = "measure"
#: What headers do not tell.
UNSEEN = "values: whether they are finite, and whether anything changed at all, only measuring tells"
_WIDTH, _INDENT = 88, 11
_SIDES = ("base", "tuned")
#: Checkpoints of a series that have a line each, whether or not they have a problem.
_SHOWN = 20
#: A line that many have, in bytes a second: 100 Mbit/s.
LINE = 100e6 / 8


@dataclass(frozen=True)
class Memory:
    """Bytes at most: of one tensor's measurement, which tensor that is, and of all processes together."""

    tensor: str
    largest: int
    together: int


@dataclass(frozen=True)
class Preflight:
    """A pair that may be measured.

    stored : how many tensors base and tuned hold, of which `findings` may be of a choice alone.
    minutes : by diagnostic, on the chosen workers; None where it is not measured tensor by tensor.
    fetch_base : bytes of `findings` that are the base's, of a download and of ranges.
    """

    names: tuple[str, str]
    stored: tuple[int, int]
    findings: Findings
    families: tuple[str, ...]
    memory: Memory | None
    minutes: dict[str, float | None]
    workers: int
    fetch_base: tuple[int, int] = (0, 0)

    @property
    def possible(self) -> bool:
        """Whether nothing hinders the measurement."""
        return not self.findings.problems

    def check(self) -> None:
        """Raise PairError, with every problem, if the pair cannot be measured."""
        if self.possible:
            return
        problems = self.findings.problems
        raise PairError(
            "the pair cannot be measured",
            where=f"base {self.names[0]}, tuned {self.names[1]}",
            found="; ".join(problem.what for problem in problems),
            remedy="; ".join(dict.fromkeys(problem.remedy for problem in problems)),
        )

    def text(self) -> str:
        """What a terminal shows."""
        lines = [
            *self._chosen_line(),
            *(_side_line(name, one) for name, one in zip(_SIDES, self._sides(), strict=True)),
            *_tensor_lines(self.findings),
            *(("family", text) for text in self.families),
            *(("note", note) for note in self.findings.notes),
            ("to fetch", _fetch_text(self.findings)),
        ]
        lines += [("memory", _memory_text(self.memory, self.workers))] if self.memory else []
        lines += [("time", _minutes_text(*item, self.workers)) for item in self.minutes.items()]
        lines.append(("unseen", UNSEEN))
        for problem in self.findings.problems:
            lines += [("PROBLEM", problem.what), ("what to do", problem.remedy)]
        lines.append(("verdict", "can be measured" if self.possible else "cannot be measured as it is"))
        return "\n".join(_wrapped(label, text) for label, text in lines)

    def record(self) -> dict[str, Any]:
        """The same as plain values, for JSON; without the tensors one by one."""
        found = asdict(self.findings)
        aligned = found.pop("aligned")
        return {
            "names": list(self.names),
            "possible": self.possible,
            "unseen": UNSEEN,
            **found,
            "chosen": len(aligned),
            "compared": len(self.findings.compared),
            "matrices": len(self.findings.matrices),
            "families": list(self.families),
            "memory": asdict(self.memory) if self.memory else None,
            "minutes": self.minutes,
            "workers": self.workers,
        }

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_json(path, self.record())

    def _chosen_line(self) -> list[tuple[str, str]]:
        held = (self.findings.base.tensors, self.findings.tuned.tensors)
        if held == self.stored:
            return []
        told = (
            f"{few} of {all_} of {side}" for few, all_, side in zip(held, self.stored, _SIDES, strict=True)
        )
        return [("chosen", f"tensors, {' and '.join(told)}: what follows is of these alone")]

    def _sides(self) -> tuple[tuple[str, Side], tuple[str, Side]]:
        return (self.names[0], self.findings.base), (self.names[1], self.findings.tuned)


@dataclass(frozen=True)
class Series:
    """A base and several tuned checkpoints that may be measured, in order; the first alone was timed."""

    each: tuple[Preflight, ...]

    @property
    def possible(self) -> bool:
        """Whether nothing hinders the measurement of any."""
        return all(one.possible for one in self.each)

    def text(self) -> str:
        """What a terminal shows: the first pair in full, a line for each of them, and the sums."""
        first, count = self.each[0], len(self.each)
        lines = [
            ("of all", f"{count} checkpoints on one base, in order"),
            *self._members(),
            ("to fetch", _fetched(*self._bytes())),
        ]
        lines += [
            ("time", _minutes_text(name, None if minutes is None else minutes * count, first.workers))
            for name, minutes in first.minutes.items()
        ]
        lines.append(("verdict", f"{sum(one.possible for one in self.each)} of {count} can be measured"))
        told = (_wrapped(label, text) for label, text in lines)
        return "\n".join([_wrapped("series", f"the first of {count}"), first.text(), *told])

    def _members(self) -> list[tuple[str, str]]:
        """A line for each of the first, and for each of the others that has a problem."""
        numbered = list(enumerate(self.each, 1))
        shown = numbered[:_SHOWN] + [one for one in numbered[_SHOWN:] if not one[1].possible]
        lines = [(str(number), _member_line(one)) for number, one in shown]
        more = len(numbered) - len(shown)
        return [*lines, *([("…", f"{more} more can be measured")] if more else [])]

    def record(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        whole, ranges = self._bytes()
        each = [one.record() for one in self.each]
        return {"possible": self.possible, "fetch_whole": whole, "fetch_ranges": ranges, "series": each}

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_json(path, self.record())

    def _bytes(self) -> tuple[int, int]:
        """To fetch, by download and by ranges: the base once; shards that several share count for each."""
        base, findings = self.each[0].fetch_base, [one.findings for one in self.each]
        whole = sum(one.fetch_whole - base[0] for one in findings) + base[0]
        return whole, sum(one.fetch_ranges - base[1] for one in findings) + base[1]


def preflight_of(
    named: tuple[str | None, str | None, str | None],
    choice: tuple[Sequence[int | str] | None, Sequence[str] | None],
    **options: Any,
) -> Preflight | Series:
    """Look at a pair by its name in a manifest, or by its base and tuned checkpoint, as they were typed.

    choice : blocks and roles, None for all. options : as `preflight`.

    Returns
    -------
    The pair, or where the tuned name is a series, all of its pairs.

    Raises
    ------
    ManifestError, CheckpointError : a name stands for nothing that can be measured. PairError : half a pair.
    """
    pairs = asked_pairs(*named, way=HEADERS)
    timed = options.pop("timed", True)
    # All have the shapes of the first, or are refused.
    each = [_look(pair, choice, timed=timed and pair is pairs[0], **options) for pair in pairs]
    return each[0] if len(each) == 1 else Series(tuple(each))


def _look(
    pair: StudyPair, choice: tuple[Sequence[int | str] | None, Sequence[str] | None], **options: Any
) -> Preflight:
    (chosen,) = narrowed([pair], *choice)
    sides, whole = (chosen.base, chosen.tuned), (pair.base, pair.tuned)
    return preflight(
        (pair.base.asked or pair.base.label, pair.tuned.asked or pair.tuned.label),
        (sides[0].checkpoint, sides[1].checkpoint),
        (whole[0].checkpoint, whole[1].checkpoint),
        (_is_here(whole[0].checkpoint), _is_here(whole[1].checkpoint)),
        **options,
    )


def _is_here(checkpoint: Checkpoint) -> bool:
    """Whether nothing has to be fetched for a side; what an adapter is put on is the base's matter."""
    place = place_of(checkpoint)
    return bool(place.folder or place.adapter)


def preflight(
    names: tuple[str, str],
    pair: tuple[Checkpoint, Checkpoint],
    whole: tuple[Checkpoint, Checkpoint],
    here: tuple[bool, bool],
    *,
    diagnostics: Sequence[str] = (MEASURE,),
    workers: int,
    timed: bool = True,
) -> Preflight:
    """Look at a pair from its headers, and time the chosen diagnostics on made-up tensors.

    Parameters
    ----------
    names : of base and tuned, as the user calls them.
    pair : the checkpoints as they would be measured, views of the chosen tensors if there is a choice.
    whole : the checkpoints as they are stored, of which a download takes everything.
    here : which of them lies on this machine.
    diagnostics : "measure", or chapters.
    timed : whether minutes are estimated, which takes some seconds.

    Raises
    ------
    NotebookError : there is no such diagnostic.
    """
    kinds = _kinds(diagnostics)
    findings = look_at(*pair, here, (file_bytes(whole[0]), file_bytes(whole[1])))
    costs = measured_costs(_by_tensor(kinds), device()) if timed and findings.compared else {}
    minutes = {name: _minutes(findings, of_name, costs, workers) for name, of_name in kinds.items() if costs}
    families = tuple(dict.fromkeys(family_of(one).note for one in whole))
    memory = _memory(pair, kinds, workers) if findings.aligned else None
    base, tuned = (sum(info.alias_of is None for info in one.infos.values()) for one in whole)
    of_base = (
        (0, 0)
        if here[0]
        else (file_bytes(whole[0]), sum(info.stored_bytes for info in stored_tensors(pair[0])))
    )
    return Preflight(names, (base, tuned), findings, families, memory, minutes, workers, of_base)


def _kinds(diagnostics: Sequence[str]) -> dict[str, tuple[str, ...]]:
    known = {MEASURE: ("table",), **WITH_JOBS}
    for name in diagnostics:
        if name not in known:
            raise NotebookError("there is no such diagnostic", found=name, expected=", ".join(known))
    return {name: known[name] for name in diagnostics}


def _by_tensor(kinds: dict[str, tuple[str, ...]]) -> list[str]:
    return sorted({kind for found in kinds.values() for kind in found if kind in BY_TENSOR})


def _spectral(kinds: dict[str, tuple[str, ...]]) -> bool:
    return any(KINDS[kind].spectra for found in kinds.values() for kind in found)


def _minutes(findings: Findings, kinds: Sequence[str], costs: dict[str, Costs], workers: int) -> float | None:
    """Minutes of one diagnostic; tensors are shared out evenly, but none ends before the longest one does."""
    if not set(kinds) <= set(costs):
        return None
    seconds = [sum(costs[kind].seconds(row) for kind in kinds) for row in findings.compared]
    return max(sum(seconds) / workers, max(seconds, default=0.0)) / 60


def _memory(pair: tuple[Checkpoint, Checkpoint], kinds: dict[str, tuple[str, ...]], workers: int) -> Memory:
    """What the largest tensor takes, as often as there are workers."""
    table = PairTable(*pair, name="preflight", spectra=_spectral(kinds), nulls=founding_nulls())
    needs = (need_of(table, tensor) for tensor in table.names)
    largest = max(needs, key=lambda need: need.size)
    return Memory(largest.tensor, largest.size, taken(largest.size, workers))


def _wrapped(label: str, text: str) -> str:
    """A labelled text over lines that a terminal and a page show whole; its own lines stay apart."""
    indent = " " * _INDENT
    first, *rest = (line.strip() for line in text.splitlines() or [""])
    starts = [(first, f"{label:<{_INDENT}}"), *((line, indent) for line in rest)]
    wrapped = (
        textwrap.fill(
            line,
            _WIDTH,
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line, start in starts
    )
    return "\n".join(wrapped)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number / 1e6:.2f} million"


def _side_line(label: str, named: tuple[str, Side]) -> tuple[str, str]:
    name, one = named
    stored = ", ".join(f"{dtype} {size_text(size)}" for dtype, size in one.dtypes.items())
    at = f" at commit {one.revision}" if one.revision else ""
    place = "on this machine" if one.here else "on the Hub"
    others = "".join(f" and {count} of {stack}" for stack, count in one.others.items())
    experts = f", {one.experts} experts a block" if one.experts else ""
    return label, (
        f"{name}{at} ({one.kind}), {place}: {_count(one.parameters)} parameters in {one.tensors} "
        f"tensors, {one.blocks} blocks{others}{experts}, head {one.head}; stored in {one.files} "
        f"file{'s' * (one.files != 1)}: {stored}"
    )


def _tensor_lines(findings: Findings) -> list[tuple[str, str]]:
    if not findings.aligned:
        return []
    of_roles = ", ".join(f"{number} {name}" for name, (number, _) in by_role(findings.compared).items())
    found = f"{len(findings.compared)} of {len(findings.aligned)} chosen can be compared: {of_roles}"
    return [("tensors", found), ("matrices", f"{len(findings.matrices)} in blocks, which have spectra")]


def _member_line(one: Preflight) -> str:
    """A checkpoint of a series: its commit, and whether it can be measured."""
    side = one.findings.tuned
    at = f" at {side.revision[:12]}" if side.revision else ""
    why = "; ".join(problem.what.splitlines()[0] for problem in one.findings.problems)
    return f"{one.names[1]}{at}: {'can be measured' if one.possible else f'PROBLEM: {why}'}"


def _fetch_text(findings: Findings) -> str:
    return _fetched(findings.fetch_whole, findings.fetch_ranges)


def _fetched(whole: int, ranges: int) -> str:
    if whole == 0:
        return "nothing: both lie on this machine"
    ways = (("downloaded", whole), ("read by ranges", ranges))
    return "; ".join(f"{way} {size_text(size)}, {_spell(size / LINE)} at 100 Mbit/s" for way, size in ways)


def _memory_text(memory: Memory, workers: int) -> str:
    return (
        f"{size_text(memory.largest)} at most for one tensor ({memory.tensor}), "
        f"{size_text(memory.together)} for {workers} process{'es' * (workers != 1)}"
    )


def _minutes_text(name: str, minutes: float | None, workers: int) -> str:
    if minutes is None:
        return f"{name}: not estimated, it is not measured tensor by tensor"
    return (
        f"{name}: {_spell(60 * minutes)} on {workers} process{'es' * (workers != 1)}, within a factor of two"
    )


def _spell(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

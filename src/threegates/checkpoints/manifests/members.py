"""An entry of a manifest that stands for the steps of a run: ``name: RUN-step_{1..500}``, one entry each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from threegates.checkpoints.hub.addresses import is_ref
from threegates.checkpoints.series import is_series, members
from threegates.errors import CheckpointError

if TYPE_CHECKING:
    from threegates.checkpoints.manifests.manifest import Entry

#: What only a checkpoint by itself can have.
_ALONE = ("files", "chapters", "step", "updates", "checked")


def members_of(entry: Entry) -> dict[str, Entry]:
    """The entries that a series stands for, by name, in the order of their steps; of another entry none.

    The names, and the branches or folders, are paired in their order. `step` is the number in the name, `run`
    what stands before it unless the series says otherwise; the last step of a run is final.
    """
    if not is_series(entry.name):
        return {}
    names = members(entry.name)
    places = {key: _spelled(getattr(entry.source, key, None), len(names)) for key in ("ref", "subfolder")}
    ends = {one.run: one.step for one in names}
    return {
        one.text: entry.model_copy(
            update={
                "name": one.text,
                "source": entry.source.model_copy(update={key: each[at] for key, each in places.items()}),
                "run": entry.run or one.run or None,
                "step": one.step,
                "final": one.step == ends[one.run],
            }
        )
        for at, one in enumerate(names)
    }


def fault_of(entry: Entry) -> tuple[str, str] | None:
    """What is wrong with an entry that is a series, and under which key; None where nothing is."""
    told = [text for key in ("ref", "subfolder") if is_series(text := _text(entry, key))]
    if not is_series(entry.name):
        return (
            ("source", "has braces or a star, and the name has none: both count, or neither")
            if told
            else None
        )
    if "*" in "".join([entry.name, *told]) or not hasattr(entry.source, "ref"):
        return "name", "a series is of the Hub, and is written with braces such as step_{1..500}"
    if held := [key for key in (*_ALONE, "source") if _is_told(entry, key)]:
        return held[0], "belongs to one checkpoint: a member of a series gets it when it is locked"
    try:
        count = len(members(entry.name))
        counts = {len(members(text)) for text in told}
        refs = [one.text for one in members(ref)] if is_series(ref := _text(entry, "ref")) else []
    except CheckpointError as error:
        return "name", f"must be a series: {error.found}"
    if wrong := [name for name in refs if not is_ref(name)]:
        return "source", f"must name branches or tags, and '{wrong[0]}' is none"
    if counts != {count}:
        return "source", f"must count as the name does: {count} branches or sub-folders"
    return None


def _is_told(entry: Entry, key: str) -> bool:
    return bool(getattr(entry.source, "revision", None) if key == "source" else getattr(entry, key))


def _text(entry: Entry, key: str) -> str:
    return getattr(entry.source, key, None) or ""


def _spelled(text: str | None, count: int) -> Sequence[str | None]:
    return [one.text for one in members(text)] if text and is_series(text) else [text] * count

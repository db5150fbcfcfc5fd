"""What is to be known of an adapter that stands in the place of a tuned checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from threegates.checkpoints.adapters.adapted import AdaptedView
from threegates.checkpoints.adapters.deltas import located
from threegates.checkpoints.matched import rules_of, told
from threegates.checkpoints.tensors import HEAD, Checkpoint
from threegates.checkpoints.views import outermost


def adapter_of(checkpoint: Checkpoint) -> AdaptedView | None:
    """The base with an adapter on it that a checkpoint is a view of, None of any other."""
    return outermost(checkpoint, AdaptedView)


def adapter_notes(view: AdaptedView) -> list[str]:
    """How the tuned side comes about, on what the adapter was trained, and what merging it would change."""
    settings = view.changes.settings
    notes = [
        f"the tuned side is an adapter ({settings.kind}) on the base: {_changed(view)}; W₀ + ΔW is formed in "
        "float64 and compared in float32, not as a merged copy in bf16 would be"
    ]
    if settings.base:
        # A folder of the machine that trained it is nobody else's.
        named = Path(settings.base).name if Path(settings.base).is_absolute() else settings.base
        notes.append(f"the adapter names {named} as the base that it was trained on")
    notes += [f"names of the adapter: {told(rule)}" for rule in rules_of(view.deltas)]
    notes += [f"names of the base: {told(rule)}" for rule in rules_of(view.inner)]
    of_embedding = [info.alias_of for info in view.infos.values() if info.alias_of in view.deltas.infos]
    if of_embedding:
        notes.append(
            f"the head is tied to {of_embedding[0]}, which the adapter changes: merged the head changes with "
            "it, unmerged it stays the base's"
        )
    tied = view.inner.infos.get(HEAD)
    if HEAD in view.deltas.infos and tied is not None and tied.alias_of is not None:
        notes.append(
            f"the base ties its head to {tied.alias_of}, and the adapter changes the head: peft's merge "
            "changes both, here the head alone is another one, as it is unmerged"
        )
    return notes


def _changed(view: AdaptedView) -> str:
    """Tensors by what the adapter does to them."""
    ranks: Counter[str] = Counter()
    for name in view.deltas.infos:
        ranks[_what(view, name)] += 1
    return ", ".join(f"{what} {count} tensor{'s' * (count != 1)}" for what, count in sorted(ranks.items()))


def _what(view: AdaptedView, name: str) -> str:
    deltas, piece = located(view.deltas, name)
    if piece.target.adapted:
        rows = deltas.file.info(piece.target.down).shape[0] // max(piece.target.experts, 1)
        return f"rank {rows} on"
    return "whole copies of" if piece.target.plain else "changes of entries in"

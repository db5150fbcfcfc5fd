"""What is to be known of a pair beside its tensors: names, folders, and where config and files disagree."""

from __future__ import annotations

from threegates.checkpoints.adapters.notes import adapter_notes, adapter_of
from threegates.checkpoints.coded import rounded_kinds
from threegates.checkpoints.matching import matching_notes
from threegates.checkpoints.pairs import row_ranges
from threegates.checkpoints.quantised import leftover
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import EMBEDDING, HEAD, Checkpoint
from threegates.checkpoints.views import as_stored


def pair_notes(base: Checkpoint, tuned: Checkpoint, read: bool = False) -> list[str]:
    """Sentences about a pair: how its names were brought together, and what each side's folder holds.

    read : whether tensors may be read for it. Otherwise headers alone are looked at.
    """
    on_it = adapter_of(tuned)
    sides = {"base": base} if on_it else {"base": base, "tuned": tuned}
    notes = adapter_notes(on_it) if on_it else [*matching_notes(base, tuned), *_rounded(base, tuned)]
    for side, one in sides.items():
        notes += [f"the {side}'s {note}" for note in (*_leftover(one), *_ties(one, read))]
        notes += [f"in the {side}'s folder: {note}" for note in folder_notes(one)]
    return list(dict.fromkeys(notes))


def _rounded(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """Which sides are read from codes of few bits, and what that does to every number of the pair."""
    notes = []
    for side, one in (("base", base), ("tuned", tuned)):
        if found := rounded_kinds(one):
            kinds = ", ".join(f"{count} in {kind}" for kind, count in sorted(found.items()))
            notes.append(f"weights of the {side} are codes that are read as floats: {kinds}")
    if notes:
        notes.append(
            "where the other side stems from weights that were never rounded to codes, rounding moves most "
            "of them by more than bf16 can hide: sparsity, masks, angles and overlaps show that before they "
            "show training. Where it was trained from these codes read as floats, nothing is lost. "
            "`norm_floor` of `threegates measure` tells which"
        )
    return notes


def folder_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What else lies in a checkpoint's folder; views are looked through."""
    return as_stored(checkpoint).notes


def _leftover(checkpoint: Checkpoint) -> list[str]:
    method = leftover(checkpoint.config, checkpoint.infos.values())
    told = f"config.json has a quantization_config ({method}) left over: no tensor is quantised"
    return [told] if method is not None else []


def _ties(checkpoint: Checkpoint, read: bool) -> list[str]:
    """Where the config ties the head to the embedding, and another head is stored."""
    head = checkpoint.infos.get(HEAD)
    embeddings = [n for n in checkpoint.infos if n == EMBEDDING or n.endswith("." + EMBEDDING)]
    ties = checkpoint.config.get("tie_word_embeddings") is True
    if not ties or head is None or head.alias_of is not None or len(embeddings) != 1:
        return []
    if read and _equal(checkpoint, HEAD, embeddings[0]):
        return []
    other = "another head is stored" if read else "a head is stored, perhaps another one"
    return [
        f"config.json ties the head to the embedding, and {other}: transformers 4 takes the embedding as "
        "the head, transformers 5 the stored one"
    ]


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    left, right = checkpoint.info(first), checkpoint.info(second)
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return all(
        bool((rows_of(checkpoint, first, *rows) == rows_of(checkpoint, second, *rows)).all())
        for rows in row_ranges(left.shape)
    )

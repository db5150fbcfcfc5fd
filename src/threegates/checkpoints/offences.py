"""Why two checkpoints cannot be compared: the refusal of a pair, and the remedy for its kind of offence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from threegates.checkpoints.quantised import COMPARABLE, PACKED, is_code, or_dequantised, quantised
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError

LISTED = 10
_UNQUANTISED = "take the unquantised checkpoints: packed codes are no weights"
#: Words of the names of what peft trains beside a weight.
ADAPTER = ("lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector")


class Offence(Protocol):
    """A tensor that is not compared, as `pairs.align` tells of it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def status(self) -> Any:
        """Why it is not compared."""

    @property
    def shape_base(self) -> tuple[int, ...] | None:
        """Its shape in the base, if the base has it."""

    @property
    def shape_tuned(self) -> tuple[int, ...] | None:
        """Its shape in the tuned checkpoint, if that has it."""

    @property
    def dtype_base(self) -> str | None:
        """Its type in the base, if the base has it."""

    @property
    def dtype_tuned(self) -> str | None:
        """Its type in the tuned checkpoint, if that has it."""


def refuse_strangers(
    base: Checkpoint, tuned: Checkpoint, offences: Sequence[Offence], shares: tuple[int, int]
) -> None:
    """Raise PairError where less than half of the smaller side's matrices are compared.

    Refused too is a side that is quantised for the most part, or that has an adapter's weights among its own,
    unmerged, where the other side has none.

    shares : how many are compared, and how many the smaller side has.
    """
    compared, smaller = shares
    what = None
    if offences and (2 * compared < smaller or (smaller and not compared)):
        what = f"of the smaller side's {smaller} matrices {compared} can be compared"
    if any(quantised(side.config, side.infos.values()) for side in (base, tuned)):
        what = "most matrices of the pair are codes of few bits"
    if _unmerged(offences):
        what = "one side holds an adapter that is not merged"
    if what is None:
        return
    raise PairError(
        what,
        where=f"base {base.folder}, tuned {tuned.folder}",
        expected=f"half of them at least, with equal names and shapes, stored as {', '.join(COMPARABLE)}",
        found=_listed([_told(one) for one in offences]),
        remedy=_remedy(base, tuned, offences),
    )


def _unmerged(offences: Sequence[Offence]) -> bool:
    return any(word in ADAPTER for one in offences for word in one.name.split("."))


def _told(one: Offence) -> str:
    if one.shape_base is None or one.shape_tuned is None:
        return f"{one.name}: missing in {'base' if one.shape_base is None else 'tuned'}"
    if one.shape_base != one.shape_tuned:
        return f"{one.name}: shape {list(one.shape_base)} in base, {list(one.shape_tuned)} in tuned"
    return f"{one.name}: stored as {one.dtype_base} in base, {one.dtype_tuned} in tuned"


def _listed(lines: Sequence[str]) -> str:
    rest = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "".join(f"\n    {line}" for line in [*lines[:LISTED], *rest])


def _remedy(base: Checkpoint, tuned: Checkpoint, offences: Sequence[Offence]) -> str:
    """What to do next, by the kind of what is in the way."""
    if _unmerged(offences):
        return "the weights of an adapter lie beside those of its base, unmerged: merge it and save the model"
    infos = [list(side.infos.values()) for side in (base, tuned)]
    packed = any(word in PACKED for one in offences for word in one.name.split("."))
    if packed or any(is_code(info) for side in infos for info in side):
        told = (or_dequantised(_UNQUANTISED, side) for side in infos)
        return next((one for one in told if one != _UNQUANTISED), _UNQUANTISED)
    if any(str(one.status) == "empty" for one in offences):
        return (
            "tensors without entries were saved before they were gathered (ZeRO-3, FSDP): gather them, as "
            "DeepSpeed's zero_to_fp32.py does, and save again"
        )
    kinds = [str(one.config.get("model_type", "none")) for one in (base, tuned)]
    tried = (
        "names were tried as stored, without wrappers' words, and with one prefix in another's place: check "
        "that the tuned model was trained from this base"
    )
    return (
        f"the models are of two kinds ({kinds[0]} and {kinds[1]}); {tried}" if len(set(kinds)) > 1 else tried
    )

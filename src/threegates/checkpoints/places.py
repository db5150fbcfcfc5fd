"""Where a checkpoint is read from, as a line of text that another process or machine opens anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from threegates.checkpoints.adapters.adapted import AdaptedView, adapted
from threegates.checkpoints.dequantised import Dequantised, dequantised
from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.gguf import open_local
from threegates.checkpoints.hub.ranged import RangedCheckpoint, open_ranged
from threegates.checkpoints.hub.repository import COMMIT
from threegates.checkpoints.matched import Rule, is_rule, matched, rules_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import (
    ROLES,
    CanonicalView,
    ChosenView,
    DeviceView,
    Layer,
    View,
    canonical,
    chosen,
    is_layer,
    leaving,
    on_device,
)
from threegates.errors import CheckpointError

#: Layers and roles of tensors, None for all.
Choice = tuple[tuple[Layer, ...] | None, tuple[str, ...] | None]


@dataclass(frozen=True)
class Place:
    """A folder, or a repository that is read by ranges at a commit; which tensors of it, and on what device.

    Addresses and tokens are no part of it: they come from HF_ENDPOINT and from where huggingface_hub keeps
    them.

    folder : an absolute path, or
    repo, revision, subfolder : ORG/REPO, the 40 digits of a commit, and which folder in it, "" for itself.
    layers, matrices : numbers of blocks, roles of tensors; None takes all of them.
    device : where tensors come to lie, such as cuda:0.
    rules : how names are brought together with the other side's, as in `threegates.checkpoints.matched`.
    without : names of tensors that are left out, for a side of theirs has values that are not finite.
    adapter, start : folder of an adapter that is put on it, and of the factors that this started from.
    dequantised : whether FP8 codes are read as floats. A GGUF file is a folder here, and needs no word.
    """

    folder: str = ""
    repo: str = ""
    revision: str = ""
    layers: tuple[Layer, ...] | None = None
    matrices: tuple[str, ...] | None = None
    device: str = "cpu"
    rules: tuple[Rule, ...] = ()
    adapter: str = ""
    start: str = ""
    dequantised: bool = False
    subfolder: str = ""
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole = bool(self.folder) != bool(self.repo) and bool(self.repo) == bool(self.revision)
        if not whole or (self.repo and not COMMIT.fullmatch(self.revision)):
            raise CheckpointError(
                "a place is a folder, or a repository at a commit",
                expected="folder, or repo and a revision of 40 digits",
                found=f"folder '{self.folder}', repo '{self.repo}', revision '{self.revision}'",
                remedy="give one of the two",
            )

    def text(self) -> str:
        """As JSON: the same place gives the same text, and what has its default is left out."""
        told = {name: value for name, value in asdict(self).items() if value != _DEFAULTS[name]}
        return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place that a text stands for; a text that is no JSON object is a folder's path.

        Raises
        ------
        CheckpointError : it has other keys or values than `text` writes.
        """
        if not text.startswith("{"):
            return cls(folder=text)
        try:
            told = json.loads(text)
            for name in ("layers", "matrices"):
                told |= {name: tuple(told[name])} if told.get(name) is not None else {}
            told |= {"without": tuple(told["without"])} if told.get("without") else {}
            told |= {"rules": tuple(map(tuple, told["rules"]))} if told.get("rules") else {}
            place = cls(**told)
        except (ValueError, TypeError) as error:
            raise _unreadable(text, error) from None
        if not place._is_typed():
            raise _unreadable(text, "a value of another type")
        return place

    def open(self) -> Checkpoint:
        """The checkpoint: read, under canonical names, the chosen tensors, on its device.

        Raises
        ------
        CheckpointError : it is not there, damaged or unsafe; or it has no such layers, roles or device, or
            its rules do not fit it.
        """
        named = matched(canonical(self._raw()), self.rules)
        if self.adapter:
            named = adapted(named, Path(self.adapter), Path(self.start) if self.start else None)[1]
        return on_device(chosen(leaving(named, self.without), self.layers, self.matrices), self.device)

    def _raw(self) -> Checkpoint:
        """The checkpoint as it is stored, or its codes as floats."""
        if not self.repo:
            raw = open_local(self.folder)
        else:
            raw = open_ranged(self.repo, self.revision, subfolder=self.subfolder, dequantise=self.dequantised)
        return dequantised(raw) if self.dequantised else raw

    def _is_typed(self) -> bool:
        texts = (self.folder, self.repo, self.revision, self.subfolder, self.device, *(self.matrices or ()))
        texts = (*texts, self.adapter, self.start, *self.without)
        return (
            all(type(text) is str for text in texts)
            and type(self.dequantised) is bool
            and all(map(is_layer, self.layers or ()))
            and all(is_rule(rule) for rule in self.rules)
        )


_DEFAULTS = {field.name: field.default for field in fields(Place)}


def place_of(checkpoint: Checkpoint) -> Place:
    """The place that opens with the tensors, the digest and the device of a checkpoint.

    Its tensors have canonical names, also where `checkpoint` still has a family's own.

    Raises
    ------
    CheckpointError : no choice of layers and roles gives these tensors.
    """
    device, named = "cpu", checkpoint
    choices: list[Choice] = []
    on_it = None
    while isinstance(named, View) and not isinstance(named, CanonicalView):
        on_it = named if isinstance(named, AdaptedView) else on_it
        device = named.device if isinstance(named, DeviceView) else device
        choices += [(named.layers, named.matrices)] if isinstance(named, ChosenView) else []
        named = named.inner
    layers, matrices = _selection(checkpoint, on_it or named, choices)
    raw = named.inner if isinstance(named, CanonicalView) else named
    floats = isinstance(raw, Dequantised)
    raw = raw.source if isinstance(raw, Dequantised) else raw
    where = ("", raw.repo, str(raw.revision)) if isinstance(raw, RangedCheckpoint) else (_path(raw), "", "")
    subfolder = raw.subfolder if isinstance(raw, RangedCheckpoint) else ""
    return Place(*where, layers, matrices, device, rules_of(named), *_folders(on_it), floats, subfolder)


def _path(raw: Checkpoint) -> str:
    return str(raw.folder.absolute())


def _folders(on_it: AdaptedView | None) -> tuple[str, str]:
    """Folders of an adapter and of its start."""
    if on_it is None:
        return "", ""
    begin = on_it.begin
    return str(on_it.changes.folder.absolute()), "" if begin is None else str(begin.folder.absolute())


def _selection(part: Checkpoint, whole: Checkpoint, told: Sequence[Choice]) -> Choice:
    """Layers and roles that choose these tensors: what was told, if it was told at once."""
    if part.infos.keys() == whole.infos.keys() and not told:
        return None, None
    numbers = tuple(sorted(number for number in map(layer, part.infos) if number is not None))
    layers = tuple(dict.fromkeys(numbers))
    present = {role(name, info.shape) for name, info in part.infos.items() if info.alias_of is None}
    roles = tuple(one for one in ROLES if one in present)
    likely: list[Choice] = [(layers, None), (None, roles), (layers, roles)]
    for found in [*told, *likely]:
        with suppress(CheckpointError):
            if chosen(whole, *found).infos.keys() == part.infos.keys():
                return found
    raise CheckpointError(
        "these tensors of a checkpoint cannot be named by layers and roles",
        where=part.folder,
        expected="tensors that `chosen` chose",
        found=", ".join(list(part.infos)[:5]),
        remedy="choose them with threegates.checkpoints.views.chosen",
    )


def _unreadable(text: str, why: object) -> CheckpointError:
    return CheckpointError(
        "a place cannot be read",
        where=text[:200],
        expected="a folder's path, or what Place.text wrote: " + ", ".join(_DEFAULTS),
        found=why,
        remedy="give a folder, or what Place.text wrote",
    )

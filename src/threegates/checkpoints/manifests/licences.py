"""Checkpoints whose use has conditions: gated and non-commercial ones are opened once these are accepted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from threegates.checkpoints.manifests.manifest import Entry, Hub, Manifest
from threegates.environment import keep, variable
from threegates.errors import CheckpointError

#: Licences and checkpoints that are accepted, with commas between; notebooks inherit it.
VARIABLE = "THREEGATES_ACCEPT_LICENCE"
_SPDX = {"mit": "MIT", "apache-2.0": "Apache-2.0", "bsd-3-clause": "BSD-3-Clause", "gpl-3.0": "GPL-3.0"}


class LicenceError(CheckpointError):
    """A checkpoint's conditions of use have not been accepted."""


def check_allowed(entry: Entry, *, accepted: Collection[str]) -> None:
    """Refuse a gated or non-commercial checkpoint whose conditions were not accepted.

    Parameters
    ----------
    entry : the checkpoint. One that is neither gated nor non-commercial is always allowed.
    accepted : names of licences, of entries, or repositories; see `accepted_licences`. Case does not count.

    Raises
    ------
    LicenceError : its licence, its name or its repository is not among them; with what to do.
    """
    conditions = conditions_of(entry)
    names = [name for name in (entry.licence, entry.name, _repository(entry)) if name]
    if not conditions or {name.casefold() for name in names} & {one.strip().casefold() for one in accepted}:
        return
    name = entry.licence if entry.licence and not entry.gated else entry.name
    first = "ask for access on its page on the Hub and run `hf auth login`, then " if entry.gated else ""
    raise LicenceError(
        f"checkpoint '{entry.name}' is {' and '.join(conditions)}, and its licence was not accepted: "
        f"give --accept-licence {name}",
        where=_repository(entry) or entry.name,
        expected=" or ".join(dict.fromkeys(names)) + " among the accepted licences",
        found=", ".join(sorted(accepted)) or "none accepted",
        remedy=f"read the licence{f' {entry.licence}' if entry.licence else ''}; if you accept it, {first}"
        f"give --accept-licence {name}, or set {VARIABLE}={name}",
    )


def check_repository(repo: str, known: Iterable[Manifest], *, accepted: Collection[str]) -> None:
    """Refuse a repository, typed as ORG/REPO, that manifests mark as having conditions; see check_allowed."""
    for manifest in known:
        for entry in manifest.checkpoints:
            if (_repository(entry) or "").casefold() == repo.casefold():
                check_allowed(entry, accepted=accepted)


def conditions_of(entry: Entry) -> tuple[str, ...]:
    """Why an entry needs its licence to be accepted: gated, non-commercial, both, or nothing."""
    limited = entry.noncommercial or is_noncommercial(entry.licence)
    return (*(["gated"] if entry.gated else []), *(["non-commercial"] if limited else []))


def is_noncommercial(licence: str | None) -> bool:
    """Whether a licence's name says that it forbids commercial use, such as CC-BY-NC-4.0."""
    words = re.split(r"[^a-z0-9]+", (licence or "").casefold())
    return "nc" in words or "noncommercial" in "".join(words)


def accepted_licences(given: Iterable[str] = ()) -> frozenset[str]:
    """What was accepted: the names given here and those of THREEGATES_ACCEPT_LICENCE."""
    texts = [variable(VARIABLE), *given]
    return frozenset(name.strip() for text in texts for name in text.split(",") if name.strip())


def accept_licences(given: Iterable[str]) -> frozenset[str]:
    """Accept licences for this process and all that it starts; gives everything that is accepted now."""
    accepted = accepted_licences(given)
    if accepted:
        keep({VARIABLE: ",".join(sorted(accepted))})
    return accepted


def licence_name(told: str) -> str:
    """A licence as the Hub's cards write it, in small letters, the way manifests do: MIT, CC-BY-NC-4.0."""
    return _SPDX.get(told.casefold(), told.upper() if told.casefold().startswith("cc") else told)


def _repository(entry: Entry) -> str | None:
    return entry.source.repo if isinstance(entry.source, Hub) else None

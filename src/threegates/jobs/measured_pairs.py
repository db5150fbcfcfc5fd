"""Published pairs of the manifest beside what has been measured of them; what was not measured has no number.

`threegates measure --pair NAME` writes a pair's table of tensors to ``build/pairs/NAME.parquet``; tables that
are kept with the project lie in ``results/pairs``. Both are read here, and nothing is measured.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from threegates.checkpoints.manifests.manifest import Entry, Hub, Manifest, PairEntry, read_manifest
from threegates.digest import file_digest, value_digest
from threegates.errors import RecordError, ThreeGatesError
from threegates.geometry.principal import TARGETS
from threegates.jobs.kinds.known import KINDS
from threegates.measures.by_tensor import typed
from threegates.measures.tensor_table import MEASURED as HAS_SPECTRA
from threegates.measures.tensor_table import table_columns
from threegates.measures.whole_models import pair_sparsity
from threegates.records.provenance import build_folder, project_root, tracked_manifest
from threegates.records.store import read_parquet, read_provenance

FOLDER = "pairs"
MEASURED, NOT_MEASURED = "measured", "not measured"
OTHER_REVISION, UNREADABLE = "measured at another revision", "cannot be read"
#: Of several files of one pair the first of these is taken.
_BEST_FIRST = (MEASURED, OTHER_REVISION, UNREADABLE)
#: What is computed from a pair's table of tensors: shares in [0, 1], angles in radians.
NUMBERS = (
    *("sparsity", "sparsity_fp32", "sparsity_storage_norm"),
    "nss",
    "angle",
    *(f"{what}_{target}" for target in TARGETS for what in ("overlap", "density", "storage_norm")),
)
COLUMNS = {
    **dict.fromkeys(("pair", "paper_name", "place", "base", "method", "algorithm", "data"), "str"),
    **dict.fromkeys(("paper_sparsity", "followup_sparsity"), "float64"),
    "status": "str",
    "remark": "str",
    **dict.fromkeys(NUMBERS, "float64"),
    "weights": "Int64",
    "matrices": "Int64",
    **dict.fromkeys(("revision_base", "revision", "date"), "str"),
}


@dataclass(frozen=True)
class Found:
    """What is known of one pair: its status, why, and, if it can be read, its table with its provenance."""

    pair: PairEntry
    status: str
    remark: str = ""
    tensor: pd.DataFrame | None = None
    provenance: dict | None = None
    date: str = ""


def paper_manifest() -> Manifest:
    """The tracked manifest of published checkpoints; an empty one where the project has none."""
    path = tracked_manifest()
    return read_manifest(path) if path.is_file() else Manifest(version=1, checkpoints=[])


def pair_folders(build: Path | None = None) -> list[Path]:
    """Where tables of pairs may lie: what was measured here, then what is kept with the project."""
    return [(build or build_folder()) / FOLDER, project_root() / "results" / FOLDER]


def measured_pairs(
    manifest: Manifest, chapter: str | None = None, folders: Sequence[Path] | None = None
) -> pd.DataFrame:
    """Every pair of a manifest, of one chapter if it is given, beside what has been measured of it.

    Sparsities are of all weights that both sides have in equal shape (Definition 2.2): in bf16, as stored
    (``sparsity_fp32``), and of Gaussian noise of equal stored norm (``sparsity_storage_norm``). ``nss`` and
    ``angle`` are medians over the matrices in blocks, ``angle`` of the larger of both sides' largest angles,
    in radians. Of each target of the update mask the mean over matrices of ``overlap_…``, of its
    ``density_…``, which is the paper's baseline, and of ``storage_norm_…``, the overlap of that noise.

    Parameters
    ----------
    folders : where tables are looked for, `pair_folders` by default.

    Returns
    -------
    One row a pair, columns as in `COLUMNS`. `status` is "measured", "not measured", "measured at another
    revision" (not at the commits that the manifest is locked to), or "cannot be read"; `remark` says more. A
    row without a table has no numbers.

    **Source** Zhu et al. (2025), Tables 1 and 3.
    """
    return summed_up(found_pairs(manifest, chapter, folders=folders))


def summed_up(found: Iterable[Found]) -> pd.DataFrame:
    """Rows of `measured_pairs` for pairs whose tables have been read."""
    return typed([_row(one) for one in found], COLUMNS)


def found_pairs(
    manifest: Manifest,
    chapter: str | None = None,
    *,
    names: Sequence[str] = (),
    folders: Sequence[Path] | None = None,
) -> list[Found]:
    """Pairs of a manifest, each with its table of tensors where it has one.

    Parameters
    ----------
    chapter, names : the pairs of a chapter, or these; with neither all of them.

    Raises
    ------
    ManifestError : no entry has such a name.
    """
    places = pair_folders() if folders is None else folders
    pairs = [manifest.pair(name) for name in names] if names else manifest.pairs(chapter)
    return [_found(pair, places) for pair in pairs]


def measured_tensors(found: Iterable[Found]) -> pd.DataFrame:
    """Tables of tensors of all measured pairs, one below the other, each row with its pair's name.

    A pair that was measured at another revision says so in its name.
    """
    frames = [
        one.tensor.assign(pair=one.pair.name + " (another revision)" * (one.status == OTHER_REVISION))
        for one in found
        if one.tensor is not None
    ]
    return pd.concat(frames, ignore_index=True) if frames else typed([], KINDS["table"].tables["tensor"])


def measured_digest(build: Path | None = None) -> str:
    """sha256 over the tracked manifest and every table of a pair: what pages that show them rest on."""
    files = [path for folder in pair_folders(build) for path in sorted(folder.glob("*")) if path.is_file()]
    manifest = tracked_manifest()
    known = {f"{path.parent.parent.name}/{path.name}": file_digest(path) for path in files}
    return value_digest(known | ({manifest.name: file_digest(manifest)} if manifest.is_file() else {}))


def _found(pair: PairEntry, folders: Sequence[Path]) -> Found:
    """The best of a pair's tables."""
    paths = [path for folder in folders if (path := folder / f"{pair.name}.parquet").is_file()]
    found = [_read(pair, path) for path in paths]
    if not found:
        return Found(pair, NOT_MEASURED)
    return min(found, key=lambda one: _BEST_FIRST.index(one.status))


def _read(pair: PairEntry, path: Path) -> Found:
    try:
        provenance, tensor = read_provenance(path), read_parquet(path)
        if lost := sorted(set(table_columns(())) - set(tensor)):
            raise RecordError("columns are missing", found=", ".join(lost[:5]))
        # A table that cannot be summed up is as good as none.
        summary(tensor)
        remark = _other_revision(pair, provenance)
        status = OTHER_REVISION if remark else MEASURED
        remark = "; ".join(filter(None, [remark, _part(provenance)]))
        return Found(pair, status, remark, tensor, provenance, _date(path, provenance))
    except (ThreeGatesError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Found(pair, UNREADABLE, _told(error))


def _told(error: Exception) -> str:
    """An error in one sentence; a file of this machine is never named by more than its name."""
    if not isinstance(error, ThreeGatesError):
        return type(error).__name__
    return f"{error.what}: {error.found}" if error.found else error.what


def _other_revision(pair: PairEntry, provenance: dict) -> str:
    """What was measured instead of the locked commits; nothing where these were, or none is locked."""
    told = []
    for side, entry in (("base", pair.base), ("tuned", pair.tuned)):
        locked, seen = _locked(entry), _revision(provenance, side)
        if locked and seen != locked:
            told.append(f"{side} at {seen[:12] or 'an unknown commit'}, locked to {locked[:12]}")
    return "; ".join(told)


def _locked(entry: Entry) -> str:
    return (entry.source.revision or "") if isinstance(entry.source, Hub) else ""


def _revision(provenance: dict, side: str) -> str:
    return str(_inputs(provenance)["revisions"].get(side, ""))


def _inputs(provenance: dict) -> dict:
    """The inputs that a table states, see `jobs.job_provenance`.

    Raises
    ------
    RecordError : an earlier version wrote the table, and stated them otherwise.
    """
    found = provenance["inputs"]
    if "revisions" not in found:
        raise RecordError("an earlier version measured this pair, and it has to be measured again")
    return found


def _part(provenance: dict) -> str:
    """Which tensors were measured, where it was not all of them."""
    given = _inputs(provenance)
    chosen = [
        f"{name} {', '.join(map(str, given[name]))}" for name in ("layers", "matrices") if given.get(name)
    ]
    return f"only {' and '.join(chosen)}" if chosen else ""


def _date(path: Path, provenance: dict) -> str:
    """Day of the measurement, as told beside the table or in it. A file that tells none has its own day."""
    beside = path.with_suffix(".json")
    told = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    if known := str(told.get("time") or provenance.get("time") or ""):
        return known[:10]
    # A clone gives every file the day of the clone.
    made_here = path.parent == build_folder() / FOLDER
    return time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime)) if made_here else ""


def summary(tensor: pd.DataFrame) -> dict[str, float]:
    """The numbers of `NUMBERS` of one pair's table, with `weights` compared and `matrices` with spectra."""
    compared = tensor[tensor["status"] == "compared"]
    matrices = tensor[tensor["spectra"] == HAS_SPECTRA]
    found: dict[str, float] = {"weights": int(compared["size"].sum()), "matrices": len(matrices)}
    if found["weights"]:
        totals = pair_sparsity(tensor).iloc[0]
        found |= {name: float(totals[name]) for name in NUMBERS[:3]}
    if len(matrices):
        angles = matrices[["angle_left_max", "angle_right_max"]].max(axis=1)
        found |= {"nss": float(matrices["nss"].median()), "angle": float(angles.median())}
        for target in TARGETS:
            names = {
                "overlap": f"overlap_{target}",
                "density": f"density_{target}",
                "storage_norm": f"overlap_{target}_storage_norm_mean",
            }
            # A pair may have been measured beside other nulls than this noise.
            found |= {
                f"{what}_{target}": float(matrices[name].mean()) if name in matrices else math.nan
                for what, name in names.items()
            }
    return found


def _row(found: Found) -> dict:
    tuned, labels = found.pair.tuned, found.pair.tuned.labels
    facts = {
        "pair": found.pair.name,
        "paper_name": labels.get("paper_name", ""),
        "place": labels.get("paper_place", ""),
        "base": found.pair.base.name,
        "method": tuned.method,
        "algorithm": tuned.algorithm or tuned.method,
        "data": tuned.data or "",
        **{name: _printed(labels.get(name)) for name in ("paper_sparsity", "followup_sparsity")},
        "status": found.status,
        "remark": found.remark,
    }
    if found.tensor is None or found.provenance is None:
        return facts | {"revision_base": "", "revision": "", "date": ""}
    revisions = {"revision_base": "base", "revision": "tuned"}
    known = {name: _revision(found.provenance, side) for name, side in revisions.items()}
    return facts | summary(found.tensor) | known | {"date": found.date}


def _printed(percent: str | None) -> float:
    """A share that is printed in per cent."""
    try:
        return float(percent) / 100 if percent else math.nan
    except ValueError:
        return math.nan

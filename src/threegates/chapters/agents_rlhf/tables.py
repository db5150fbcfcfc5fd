"""Published pairs as tables of a page, beside what the paper prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from threegates.checkpoints.manifests.manifest import Manifest
from threegates.estimates.paper import table_1
from threegates.figures.numbers import number
from threegates.jobs.measured_pairs import NOT_MEASURED, UNREADABLE, measured_pairs

#: The shares of unchanged weights, with their names on a page.
_SPARSITIES = {
    "sparsity": "ours",
    "sparsity_fp32": "as stored",
    "sparsity_storage_norm": "noise of equal norm",
}


def beside_table_1(manifest: Manifest, folders: Sequence[Path] | None = None) -> pd.DataFrame:
    """Rows of the paper's Table 1 in its order, each with what the follow-up quotes and what we measured.

    Columns: base, tuned, method, data as printed; paper, follow-up (where it differs), ours, as stored, noise
    of equal norm: shares of unchanged weights as text; status.

    **Source** Zhu et al. (2025), Table 1; arXiv 2606.07082.
    """
    known = measured_pairs(manifest, folders=folders)
    # Only the manifest's pairs of Table 1 have a printed sparsity.
    printed_there = known[known["paper_sparsity"].notna()]
    by_name = printed_there.drop_duplicates("paper_name").set_index("paper_name")
    rows = []
    for printed in table_1().to_dict("records"):
        own = by_name.loc[printed["tuned"]] if printed["tuned"] in by_name.index else None
        rows.append(printed | {"paper": _share(printed["sparsity"]), **_ours(own)})
    return pd.DataFrame(rows).drop(columns="sparsity")


def _ours(own: pd.Series | None) -> dict[str, str]:
    """The half of a row that is not printed in the paper."""
    if own is None:
        ours = dict.fromkeys(_SPARSITIES.values(), NOT_MEASURED)
        return {"follow-up": "–", **ours, "status": "no repository is known"}
    ours = {name: _measured(own[column], own["status"]) for column, name in _SPARSITIES.items()}
    return {"follow-up": _share(own["followup_sparsity"]), **ours, "status": told_status(own)}


def pairs_text(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs as a page shows them, as text: a pair without a table reads "not measured" where numbers stand.

    Columns: pair, base, algorithm, data, status, ours, as stored, noise of equal norm, NSS, largest angle (in
    degrees), on principal weights, their density, noise on them, revision, date.
    """
    rows = []
    for own in pairs.to_dict("records"):
        status = own["status"]
        more = {
            "NSS": own["nss"],
            "largest angle, degrees": math.degrees(own["angle"]),
            "on principal weights": own["overlap_principal"],
            "their density": own["density_principal"],
            "noise on them": own["storage_norm_principal"],
        }
        rows.append(
            {
                "pair": own["paper_name"] or own["pair"],
                "base": own["base"],
                "algorithm": own["algorithm"],
                "data": own["data"],
                "status": told_status(own),
                **{name: _measured(own[column], status) for column, name in _SPARSITIES.items()},
                **{name: _measured(value, status, number(value)) for name, value in more.items()},
                "revision": own["revision"][:12] or "–",
                "date": own["date"] or "–",
            }
        )
    return pd.DataFrame(rows)


def told_status(own: pd.Series | dict) -> str:
    """A pair's status with its remark."""
    return f"{own['status']} ({own['remark']})" if own["remark"] else str(own["status"])


def _share(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"


def _measured(value: float, status: str, text: str | None = None) -> str:
    """A measured number as text; of a pair that has no table the words that say so."""
    if status in (NOT_MEASURED, UNREADABLE):
        return NOT_MEASURED
    return _share(value) if text is None else text

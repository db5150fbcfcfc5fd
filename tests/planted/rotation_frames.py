"""The rotation's tables by hand: three seeds, one block left alone, one rotated, one rotated and permuted."""

from __future__ import annotations

from itertools import product

import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.measures.rotation import BACK, FRAME_COLUMNS, RAW, ROTATED, ROTATION_COLUMNS, UNTOUCHED

SEEDS = (1, 2, 3)
#: Excess in rotated V and O, and in all other matrices, against runs of other seeds.
EXCESS = {UNTOUCHED: (0.45, 0.45), ROTATED: (0.0, 0.44), RAW: (0.0, 0.44), BACK: (0.3, 0.44)}
#: What seeds add, so that intervals have a width.
APART = {1: -0.02, 2: 0.0, 3: 0.02}


def rotation(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    """Comparisons with another seed where there are several, and with the same one, which agrees better."""
    rows = []
    for seed, number, role, comparison in product(seeds, (0, 1, 2), LINEAR, EXCESS):
        for same in (False, True):
            if (same and comparison == UNTOUCHED) or (not same and len(seeds) == 1):
                continue
            rows.append(_row(seed, number, role, comparison, same))
    frame = pd.DataFrame(rows)
    return frame[[*ROTATION_COLUMNS, "seed", "frame", "method"]].astype(
        {"layer": "Int64", "seed": "Int64", "touched": bool, "permuted": bool}
    )


def _row(seed: int, number: int, role: str, comparison: str, same: bool) -> dict:
    touched = number > 0 and role in ("v", "o")
    permuted = number == 2 and role in ("q", "k", "v", "o")
    lost = touched or (permuted and comparison == RAW)
    excess = EXCESS[comparison][0 if lost else 1] + APART[seed] + (0.5 if same and not lost else 0.0)
    null = 0.1 if lost and comparison in (ROTATED, RAW) else 0.5
    facts = {"pair": f"b{seed}", "tensor": f"{number}.{role}", "role": role, "layer": number, "seed": seed}
    facts |= {"side": "head" if role in ("v", "o") else "residual", "touched": touched, "permuted": permuted}
    facts |= {
        "comparison": comparison,
        "against": f"a{seed}",
        "same_seed": same,
        "method": "rl",
        "null_how": "law",
    }
    numbers = {"density_a": 0.3, "density_b": 0.3, "excess": excess, "frame": "haar"}
    for measure in ("jaccard", "overlap", "spearman_row", "spearman_column"):
        numbers |= {measure: null + excess * (1 - null), f"{measure}_null": null}
    return facts | numbers


def frame() -> pd.DataFrame:
    """One rotated base: V and O of two blocks, and Q and K of the last, which were permuted alone."""
    rows = []
    for number, role in ((1, "v"), (1, "o"), (2, "v"), (2, "o"), (2, "q"), (2, "k")):
        turned = role in ("v", "o")
        numbers = {"nss_exact": 1e-15 if turned else 0.0, "nss_stored": 1e-4 if turned else 0.0}
        facts = {"tensor": f"{number}.{role}", "role": role, "layer": number, "as_stored": 1.0}
        rows.append({**facts, "rotated": turned, "permuted": number == 2, **numbers})
    return pd.DataFrame(rows)[[*FRAME_COLUMNS]].assign(base="b-haar", frame="haar")


def log() -> pd.DataFrame:
    """Logs of the rotated base and of a run; only the base's says how far its logits are."""
    return pd.DataFrame(
        {"run": ["b-haar", "b1"], "logit_gap": [1e-14, None], "logit_gap_stored": [1e-2, None], "reward": 0.5}
    ).astype({"logit_gap": float, "logit_gap_stored": float})

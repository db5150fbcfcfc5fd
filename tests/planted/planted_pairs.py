"""Tables of measured pairs: planted checkpoints, measured once, under the names of published pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.planted import planted
from threegates.jobs.pair_files import Written, measure_to_files
from threegates.jobs.sources import own_pair
from threegates.records.store import read_parquet, read_provenance, write_parquet

FLIPS = {"model.layers.0.self_attn.q_proj.weight": 100, "model.layers.1.mlp.down_proj.weight": 40}
FACTS = {"masks": None, "axis": None, "seed": 0}


def measured_table(folder: Path) -> Written:
    """A pair with exactly the flips of `FLIPS`, measured into ``pair.parquet``."""
    base = planted.base_tensors(layers=2)
    tuned, _ = planted.with_flips(base, FLIPS)
    planted.write(folder / "base", base)
    planted.write(folder / "tuned", tuned)
    pair = own_pair(str(folder / "base"), str(folder / "tuned"))
    return measure_to_files(pair, folder / "pair.parquet", **FACTS)


def place(table: Path, target: Path, revisions: Mapping[str, str] | None = None, **more: object) -> Path:
    """Copy a table as the pair `target`, measured at these commits, with more provenance."""
    provenance = read_provenance(table)
    provenance["inputs"]["revisions"] |= revisions or {}
    provenance["inputs"] |= {key: more.pop(key) for key in ("layers", "matrices") if key in more}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(target, read_parquet(table), {**provenance, **more})
    return target

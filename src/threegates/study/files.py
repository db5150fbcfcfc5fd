"""Measuring one pair into files of the user's choice, all of them or none."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from threegates.errors import RecordError
from threegates.study.estimates import pair_sparsity
from threegates.study.measure import measure_pair, write_masks
from threegates.study.provenance import record_provenance
from threegates.study.sources import Source, known_manifests, open_source
from threegates.study.store import write_parquet


@dataclass(frozen=True)
class Written:
    """The files of a measurement, and its table of tensors."""

    files: list[Path]
    tensor: pd.DataFrame

    def summary(self) -> str:
        """The pair's sparsity and its files, in a few lines."""
        compared = self.tensor["status"] == "compared"
        lines = [f"{int(compared.sum())} tensors compared"]
        for row in self.tensor[~compared].itertuples():
            lines.append(f"not compared: {row.tensor} ({row.status})")
        for row in pair_sparsity(self.tensor).itertuples():
            lines.append(f"changed in bf16: {row.changed:.0f} of {row.size:.0f} weights")
            lines.append(f"sparsity in bf16 {row.sparsity:.4f}, as stored {row.sparsity_fp32:.4f}")
            lines.append(f"sparsity of Gaussian noise of the same norm {row.sparsity_storage_norm:.4f}")
        return "\n".join([*lines, *(f"written: {file}" for file in self.files)])


def measure_to_files(
    base: str, tuned: str, out: Path, *, masks: Path | None, axis: Path | None, draws: int, seed: int
) -> Written:
    """Measure a pair and write its table of tensors, and its masks and axis table where they are asked for.

    Parts of a measurement under way lie in ``OUT.parts`` beside the output.

    Raises
    ------
    CheckpointError, PairError : the pair cannot be compared; no file is written.
    RecordError : an output is a folder, or cannot be written.
    """
    targets = [path for path in (out, masks, axis) if path is not None]
    _check_targets(targets)
    known = known_manifests()
    sources = {"base": open_source(base, known), "tuned": open_source(tuned, known)}
    tables = _measured(sources, out, draws if axis else 0, seed, axes=axis is not None)
    provenance = _provenance(sources, {"draws": draws if axis else 0, "seed": seed})
    # Masks first: what can still fail comes before the table that says that all went well.
    if masks:
        write_masks(sources["base"].checkpoint, sources["tuned"].checkpoint, masks)
    if axis:
        write_parquet(axis, tables["axis"], {**provenance, "table": "axis"})
    write_parquet(out, tables["tensor"], {**provenance, "table": "tensor"})
    return Written(targets, tables["tensor"])


def _measured(
    sources: dict[str, Source], out: Path, draws: int, seed: int, axes: bool
) -> dict[str, pd.DataFrame]:
    with tqdm(unit="tensor", disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int, tensor: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description(tensor[-40:])

        return measure_pair(
            sources["base"].checkpoint,
            sources["tuned"].checkpoint,
            name=sources["tuned"].label,
            draws=draws,
            seed=seed,
            axes=axes,
            parts=out.with_name(out.name + ".parts"),
            progress=progress,
        )


def _provenance(sources: dict[str, Source], parameters: dict) -> dict:
    inputs = {
        side: {
            "label": source.label,
            "digest": source.checkpoint.digest(),
            "revision": source.checkpoint.revision,
        }
        for side, source in sources.items()
    }
    return record_provenance(("threegates.study.measure",), inputs=inputs, parameters=parameters)


def _check_targets(targets: list[Path]) -> None:
    for path in targets:
        if path.is_dir():
            raise RecordError(
                "an output must be a file", where=path, found="a folder", remedy="add a file name"
            )
    if len({path.resolve() for path in targets}) < len(targets):
        raise RecordError("two outputs have one name", where=targets[0], remedy="give each its own file")

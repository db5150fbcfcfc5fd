"""Which code decides no number of a run or a record, so that it may change without making any stale."""

from __future__ import annotations

from threegates.definitions import Boundary

#: How files are found, checked, read and written, and how work is shared out. What is read has a digest of
#: its own among the inputs of a run or a record; a reader that gets it wrong is a mistake, no other number.
#: Inside are what rounds, what cuts a tensor into blocks (sums depend on them), and what a tensor's role is.
FILES = Boundary(
    outside=(
        "threegates.atomic",
        "threegates.canonical",
        "threegates.checkpoints",
        "threegates.definitions",
        "threegates.digest",
        "threegates.workers",
    ),
    inside=(
        "threegates.checkpoints.formats.roles",
        "threegates.checkpoints.rounding",
        *(
            f"threegates.checkpoints.pairs.{name}"
            for name in (
                "BLOCK",
                "PairRows",
                "TensorPair",
                "_cut",
                "_finite",
                "_rounded",
                "_rows_of",
                "load_finite",
                "load_pair",
                "load_rows",
                "row_ranges",
                "rows_of_pair",
            )
        ),
    ),
)

"""`python -m benchmarks [--json FILE] [--only NAME] [--sizes s,m]`: measure; fail where a gate does.

The book's appendix shows what `make bench` wrote last, or else the record kept beside this file. Every module
is a run of its own, with its commit, machine and time; one that is measured alone replaces its own run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import benchmarks
from benchmarks.measure import Row
from threegates.atomic import write_json
from threegates.records.provenance import build_state

NOT_MEASURED = {"__main__", "measure"}
SIZES = ("s", "m", "l", "x")


def names() -> list[str]:
    """Modules of this package that have rows."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(set(found) - NOT_MEASURED)


def machine() -> dict[str, str | int | float]:
    """What a ratio depends on and the table must name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        **{package: version(package).split("+")[0] for package in ("torch", "numpy", "safetensors")},
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def table(rows: list[Row]) -> str:
    """Rows as aligned text."""
    head = ("what", "size", "ours ms", "against", "its ms", "ratio", "aim", "gate", "results")
    body = [
        (
            r.name,
            r.size,
            f"{r.ours_ms:.3f}",
            r.other,
            f"{r.other_ms:.3f}",
            f"{r.ratio:.1f}×",
            *_targets(r),
            _result(r),
        )
        for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (head, *body)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _targets(row: Row) -> tuple[str, str]:
    aim = f"{row.aim:g}×" if row.aim else ""
    gate = f"{row.gate:g}× {'met' if row.fast else 'MISSED'}" if row.gate else ""
    return aim, gate


def _result(row: Row) -> str:
    return ("" if row.accurate else "NOT ") + row.accuracy


def sizes(text: str) -> list[str]:
    """Sizes from a list with commas."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(SIZES):
        raise argparse.ArgumentTypeError(f"no such size: {', '.join(sorted(unknown))}; of {', '.join(SIZES)}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; 1 if results differ or a ratio misses its gate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the rows there; with --only the others stay"
    )
    parser.add_argument("--only", choices=names(), metavar="NAME", help=f"one of: {', '.join(names())}")
    parser.add_argument(
        "--sizes", type=sizes, default=list(SIZES), metavar="LIST", help="of s,m,l,x; s,m is a quick run"
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = [name for name in names() if chosen.only in (None, name)]
    modules = [importlib.import_module(f"benchmarks.{name}") for name in found]
    runs, rows = dict(kept(chosen.json) if chosen.only else {}), []
    for name, module in zip(found, modules, strict=True):
        own = module.rows(chosen.sizes)
        runs[name] = {"machine": machine(), **build_state(), "rows": [row.record() for row in own]}
        rows += own
        if chosen.json:
            write_json(chosen.json, {"runs": runs})
    print(table(rows))
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    return 0 if all(row.accurate and row.fast for row in rows) else 1


def kept(path: Path | None) -> dict[str, dict]:
    """The other modules' runs of a file that one module is measured into anew."""
    if path is None or not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


if __name__ == "__main__":
    sys.exit(main())

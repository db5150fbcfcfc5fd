"""The appendix of measured speed: what `make bench` wrote, as a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from threegates.errors import RecordError
from threegates.figures.published import publish
from threegates.figures.style import style

NAME = "benchmarks.json"
"""In the build folder, what `make bench` measured there; in benchmarks/, the record that is kept."""

_INTRODUCTION = """\
Each row runs two ways of computing the same thing in turn, in one run and on one thread, and compares
their results: a row whose results do not hold fails, however fast it is. *Ours* is this package's way,
*instead of* what one would take otherwise. Times are processor time of one thread, the least of a few
rounds; on a GPU they are the clock's. A *gate* is the least ratio that passes, an *aim* what we hoped for.
`make bench` measures all of it anew, and the book then shows that machine's figures.

Rows *within a cap* and *memory of a tensor* are about memory: arrays, interpreter and libraries of all
processes together, without the pages of files that they map. There each way runs in processes of its own, and
times are the clock's.

*Fast* leading spectra err no more than a float32 SVD does; *certified* ones come with a proof that no angle
is off by more than 10⁻⁵ radians. *Warm* starts from the base's decomposition, *cold* from nothing. Sizes: s
is 1536 × 1536, m 1536 × 8960, l 4096 × 4096, x 4096 × 12288.

Rows *pair with all nulls* are what `threegates measure` does with one matrix, at each `--accuracy`; the row
*as one would write it* adds null masks to both SVDs, of which a few are drawn and their time is scaled.
"""

_GROWTH_ALT = "Seconds of a whole pair over its parameters, both on logarithmic axes, for two ways."
_GROWTH = """\
How long a whole pair takes, with spectra and all nulls, by its number of parameters. Ours keeps within the
cap on memory that the table names; the other way holds both models in float32, and its SVDs and null masks
are those of one block, scaled. Both on as many processes.
"""

_HEAD = ("what", "size", "ours", "instead of", "takes", "ratio", "gate (aim)", "results")


def benchmark_file(build: Path, root: Path) -> Path:
    """What was measured in this build folder, else the kept record.

    Raises
    ------
    RecordError : there is neither.
    """
    for path in (build / NAME, root / "benchmarks" / NAME):
        if path.is_file():
            return path
    raise RecordError(
        "there is no record of the benchmarks",
        where=root / "benchmarks" / NAME,
        expected="the file that is kept with the code",
        remedy="run `make bench`, or get the file back from the repository",
    )


def benchmark_page(path: Path, figures: Path) -> str:
    """The page in MyST: on what machine, how, how time grows with a pair, then one row a comparison.

    figures : folder that the page's figure is written to; without rows of whole pairs there is none.

    Raises
    ------
    RecordError : the file is no record of benchmarks.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = "\n".join(_row(row) for run in record["runs"].values() for row in run["rows"])
        facts = _facts(record["runs"])
        grown = growth_rows(record["runs"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            "that is no record of benchmarks",
            where=path,
            expected="the JSON that `make bench` writes",
            found=f"{type(error).__name__}: {error}",
            remedy="run `make bench` again",
        ) from error
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    return (
        f"# Speed and accuracy\n\n{_INTRODUCTION}\n"
        f"{facts}\n\n{_shown(grown, figures)}"
        '<div class="tg-scroll" role="region" aria-label="All benchmarks" tabindex="0">\n'
        f'<table class="tg-table"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table>\n</div>\n"
    )


def growth_rows(runs: Mapping[str, Mapping]) -> pd.DataFrame:
    """Whole pairs by size: columns parameters, seconds, way ('ours' or what it is instead of), ascending."""
    rows = [row for run in runs.values() for row in run["rows"] if "parameters" in row["notes"]]
    found = [
        {"parameters": row["notes"]["parameters"], "seconds": milliseconds / 1e3, "way": way}
        for row in rows
        for way, milliseconds in (("ours", row["ours_ms"]), (row["other"], row["other_ms"]))
    ]
    frame = pd.DataFrame(found, columns=["parameters", "seconds", "way"])
    return frame.sort_values(["way", "parameters"], ignore_index=True)


def _shown(rows: pd.DataFrame, figures: Path) -> str:
    if rows.empty:
        return ""
    shown = publish(
        growth(rows), "benchmarks/growth", alt=_GROWTH_ALT, caption=_GROWTH, data=rows, folder=figures
    )
    return shown.markdown() + "\n"


def growth(rows: pd.DataFrame) -> Figure:
    """Draw seconds over parameters, a line a way; columns as of `growth_rows`."""
    with style():
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for (way, one), marker in zip(rows.groupby("way"), "os^v", strict=False):
            ours = way == "ours"
            axes.plot(
                one["parameters"],
                one["seconds"],
                marker=marker,
                label="ours" if ours else "float64 SVDs and drawn nulls",
                color="#0072B2" if ours else "#555555",
                linestyle="-" if ours else "--",
            )
        axes.set(xscale="log", yscale="log", xlabel="parameters of the pair", ylabel="seconds")
        axes.legend()
    return figure


def _facts(runs: Mapping[str, Mapping]) -> str:
    """When, at which commit and on what machine; where modules differ in that, each with its name."""
    by_fact: dict[str, list[str]] = {}
    for name, run in runs.items():
        by_fact.setdefault(_fact(run), []).append(name)
    if len(by_fact) == 1:
        return next(iter(by_fact)) + f" {_load(runs.values())}"
    told = [
        f"*{', '.join(names)}*: {fact} {_load(runs[name] for name in names)}"
        for fact, names in by_fact.items()
    ]
    return "\n\n".join(told)


def _fact(run: Mapping) -> str:
    known = {key: value for key, value in run["machine"].items() if key != "load"}
    machine = "; ".join(f"{key} {value}" for key, value in sorted(known.items()))
    state = " with changes that were not committed" if run.get("dirty") else ""
    commit = f" at commit {run['commit'][:12]}{state}" if run.get("commit") else ""
    return f"Measured on {run['time'][:10]}{commit}. {machine[0].upper()}{machine[1:]}."


def _load(runs: Iterable[Mapping]) -> str:
    loads = [run["machine"]["load"] for run in runs if "load" in run["machine"]]
    ends = dict.fromkeys((min(loads), max(loads))) if loads else ()
    return f"Load {' to '.join(f'{load:g}' for load in ends)}." if ends else ""


def _row(row: Mapping) -> str:
    cells = (
        escape(row["name"]),
        escape(row["size"]),
        _time(row["ours_ms"]),
        escape(row["other"]),
        _time(row["other_ms"]),
        f"<strong>{row['ratio']:.3g}×</strong>",
        _targets(row),
        escape(row["accuracy"]) if row["accurate"] else f"<strong>not</strong> {escape(row['accuracy'])}",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _time(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds >= 0.1 else f"{1000 * milliseconds:.3g} µs"


def _targets(row: Mapping) -> str:
    if not row["gate"]:
        return f"({row['aim']:g}×)" if row["aim"] else ""
    missed = "" if row["fast"] else ", missed"
    return f"{row['gate']:g}×{missed}" + (f" ({row['aim']:g}×)" if row["aim"] else "")

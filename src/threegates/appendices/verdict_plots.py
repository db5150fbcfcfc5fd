"""The figure that sums the verdicts up: every effect beside its tolerance and its nulls."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from threegates.estimates.verdict_frame import EFFECT, controls, rules
from threegates.figures.style import style
from threegates.jobs.subjects import described
from threegates.judging.verdicts import CONTROL_COLOUR, CONTROLS, VERDICTS

_ROW = 0.285


def forest_rows(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The rows that the figure draws: claims on effects, the paper's or read from it, with an interval.

    Columns: claim, about, label (title and subject), verdict, kind, value, low, high, the tolerance
    (at_least, or lower and upper), neutral, scale ("log" of ratios), row (its place within its panel). Of a
    ratio what is not above zero is raised to half of the smallest that is.
    """
    known = verdicts[verdicts["low"].notna() & verdicts["neutral"].notna()]
    known = _ratios_apart(known[(known["made_by"] != "us") & (known["nature"] == EFFECT)])
    own = rules(known)
    sampled = own[own["error"] != 0]
    order = {verdict: number for number, verdict in enumerate(VERDICTS)}
    ranked = sampled.assign(rank=sampled["verdict"].map(order)).sort_values(["rank"], kind="stable")
    ranked["row"] = ranked.groupby("scale").cumcount()
    places = ranked[["claim", "about", "row"]]
    rows = known.merge(places, on=["claim", "about"])
    several = rows.groupby("claim")["about"].transform("nunique") > 1
    named = rows["about"].map(lambda name: described(name).label.removeprefix("the "))
    labels = rows["title"] + (" (" + named + ")").where(several, "")
    columns = [
        "claim",
        "about",
        "label",
        "verdict",
        "kind",
        "value",
        "low",
        "high",
        "at_least",
        "lower",
        "upper",
    ]
    return rows.assign(label=labels)[[*columns, "neutral", "scale", "row"]]


def _ratios_apart(known: pd.DataFrame) -> pd.DataFrame:
    """A claim whose neutral value is one is on a ratio, whichever scale its interval was found on."""
    ratio = known["neutral"] == 1
    numbers = ["value", "low", "high"]
    positive = known.loc[ratio, numbers].where(known.loc[ratio, numbers] > 0)
    raised = known[numbers].clip(lower=float(positive.min().min()) / 2)
    scale = known["scale"].mask(ratio, "log")
    return known.assign(scale=scale, **{name: known[name].mask(ratio, raised[name]) for name in numbers})


def forest(rows: pd.DataFrame) -> Figure:
    """Draw effects and their controls, ratios on a logarithmic axis above, differences below.

    Columns: those of `forest_rows`.
    """
    panels = [(scale, rows[rows["scale"] == scale]) for scale in ("log", "linear")]
    panels = [(scale, panel) for scale, panel in panels if len(panel)]
    heights = [panel["row"].max() + 1 for _, panel in panels]
    with style():
        fig, axes = plt.subplots(
            len(panels),
            1,
            figsize=(11.2, _ROW * sum(heights) + 1.1 * len(panels) + 0.9),
            gridspec_kw={"height_ratios": [height + 2.2 for height in heights]},
            squeeze=False,
        )
        for ax, (scale, panel) in zip(axes[:, 0], panels, strict=True):
            _panel(ax, panel, ratios=scale == "log")
        fig.legend(handles=_handles(rows), loc="outside lower center", ncols=4, fontsize=9.5)
    return fig


def _panel(ax: Axes, panel: pd.DataFrame, ratios: bool) -> None:
    own = rules(panel).sort_values("row")
    if ratios:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    else:
        ax.set_xscale("symlog", linthresh=0.05, linscale=1.4)
        ax.set_xticks([-0.05, 0, 0.05, 0.1, 0.2, 0.5, 1], ["−.05", "0", ".05", ".1", ".2", ".5", "1"])
        ax.minorticks_off()
    ax.axvline(1 if ratios else 0, color="#000000", lw=1.1)
    for row in controls(panel).to_dict("records"):
        _control(ax, row)
    for row in own.to_dict("records"):
        _effect(ax, row)
    ax.set_yticks(own["row"], own["label"], fontsize=9.5)
    ax.set_ylim(own["row"].max() + 0.7, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_title("Ratios (no effect: 1)" if ratios else "Differences (no effect: 0)")


def _control(ax: Axes, row: dict) -> None:
    height = row["row"] + 0.2
    ax.plot([row["low"], row["high"]], [height, height], color="#BDBDBD", lw=1.2, zorder=1)
    marker = CONTROLS[row["kind"]].marker
    ax.plot(row["value"], height, marker, color=CONTROL_COLOUR, ms=8, mew=1.7, zorder=2)


def _effect(ax: Axes, row: dict) -> None:
    verdict = VERDICTS[row["verdict"]]
    for tolerance in (row["at_least"], row["lower"], row["upper"]):
        if pd.notna(tolerance):
            ends = [row["row"] - 0.38, row["row"] + 0.38]
            ax.plot([tolerance, tolerance], ends, color="#0072B2", lw=1.3, alpha=0.7)
    height = row["row"] - 0.08
    ax.plot([row["low"], row["high"]], [height, height], color=verdict.colour, lw=2.2, zorder=3)
    ax.plot(row["value"], height, verdict.marker, color=verdict.colour, ms=7.5, zorder=4)


def _handles(rows: pd.DataFrame) -> list[Line2D]:
    shown = set(rules(rows)["verdict"])
    handles = [
        Line2D([], [], color=verdict.colour, marker=verdict.marker, lw=2.2, label=verdict.short)
        for word, verdict in VERDICTS.items()
        if word in shown
    ]
    told = "tolerance of the claim's rule (controls have theirs)"
    handles.append(Line2D([], [], color="#0072B2", lw=1.3, label=told))
    # In the order of the verdicts that they turn.
    for name, control in reversed(CONTROLS.items()):
        if name in set(rows["kind"]):
            look = Line2D([], [], color=CONTROL_COLOUR, marker=control.marker, ls="", ms=8, mew=1.7)
            look.set_label(control.legend)
            handles.append(look)
    return handles

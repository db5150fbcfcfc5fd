"""The figures of the appendix on sensitivity; each takes a frame of `sensitivity_views`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from threegates.figures.style import DIVERGING, colour, heatmap, style
from threegates.jobs.subjects import SUBJECTS, described
from threegates.judging.robustness import HEADLINE
from threegates.judging.verdicts import VERDICTS

_NAMES = {"k": "rank, times the headline's", "alpha": "share α", "eta": "tolerance η"}
#: The first verdict of each letter, in the order of a summary.
_BY_LETTER = {verdict.letter: verdict for verdict in reversed(VERDICTS.values())}
_LETTERS = tuple(reversed(_BY_LETTER))


def over_every_choice(frame: pd.DataFrame) -> Figure:
    """Draw claims over k, α and η: a line a claim, a panel for each subject and η, rows k and columns α.

    The letter is the verdict's, the colour the distance of the estimate to the tolerance, one scale for all;
    the headline's cell is framed. Columns: those of `sensitivity_views.all_cells`.
    """
    claims = list(dict.fromkeys(frame["claim"]))
    places = list(product(_subjects(frame), sorted(frame["eta"].unique())))
    spread = _spread(frame)
    with style():
        fig, axes = plt.subplots(
            len(claims),
            len(places),
            figsize=(max(6.0, 1.85 * len(places)), 0.9 + 1.75 * len(claims)),
            squeeze=False,
            sharex=True,
            sharey="row",
        )
        for line, claim in zip(axes, claims, strict=True):
            rows = frame[frame["claim"] == claim]
            for ax, (subject, eta) in zip(line, places, strict=True):
                shown = rows[(rows["about"] == subject) & (rows["eta"] == eta)]
                _cell_map(ax, shown, "k", spread, values=False)
                ax.set_title(f"{described(subject).label}, η = {eta:g}", fontsize=9, weight="normal")
            place = line[0].get_title(loc="left")
            line[0].set_title(
                f"$\\bf{{{_bold(rows['title'].iloc[0])}}}$\n{place}", fontsize=9, weight="normal"
            )
            line[0].set_ylabel("k / headline's", fontsize=9)
        for ax in axes[-1]:
            ax.set_xlabel(_NAMES["alpha"], fontsize=9)
    return fig


def over_two_choices(frame: pd.DataFrame, columns: int = 2) -> Figure:
    """Draw claims over α and one more choice: a panel for each claim and subject, with the estimate in cells.

    Rows are k or η, whichever is free; else as `over_every_choice`.
    """
    kinds = list(dict.fromkeys(zip(frame["claim"], frame["about"], strict=True)))
    lines = math.ceil(len(kinds) / columns)
    spread = _spread(frame)
    with style():
        fig, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, 0.5 + 2.4 * lines), squeeze=False)
        for ax, (claim, about) in zip(axes.flat, kinds, strict=False):
            shown = frame[(frame["claim"] == claim) & (frame["about"] == about)]
            rows = "k" if "k" in shown["free"].iloc[0].split(", ") else "eta"
            _cell_map(ax, shown, rows, spread, values=True)
            title = _wrapped(shown["title"].iloc[0], 44)
            ax.set_title(f"{title}\n{described(about).label}", fontsize=10)
            ax.set(xlabel=_NAMES["alpha"], ylabel="k / headline's" if rows == "k" else _NAMES["eta"])
        for ax in axes.flat[len(kinds) :]:
            ax.set_visible(False)
    return fig


def _bold(title: str) -> str:
    """A title for mathematical bold, which keeps no spaces by itself."""
    return title.replace(" ", r"\ ").replace("'", "’")


def _subjects(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["about"]))


def _spread(frame: pd.DataFrame) -> float:
    return max(0.02, float(frame["margin"].abs().max(skipna=True)))


def _cell_map(ax: Axes, shown: pd.DataFrame, rows: str, spread: float, *, values: bool) -> None:
    tables = {
        name: shown.pivot(index=rows, columns="alpha", values=name).sort_index()
        for name in ("margin", "value", "letter")
    }
    text = tables["letter"]
    if values:
        text = tables["value"].map("{:.3f}".format).replace("-", "−", regex=True) + " " + text
    heatmap(
        ax,
        tables["margin"],
        annot=text.to_numpy(),
        fmt="",
        annot_kws={"size": 9},
        cmap=DIVERGING,
        vmin=-spread,
        vmax=spread,
        linewidths=0.5,
    )
    ax.set(xlabel="", ylabel="")
    ax.set_yticks(np.arange(len(text)) + 0.5, [f"{value:g}" for value in text.index], rotation=0)
    ax.set_xticks(
        np.arange(text.shape[1]) + 0.5, [_short(float(value)) for value in text.columns], rotation=0
    )
    ax.tick_params(length=0, labelsize=9)
    _frame_headline(ax, shown, rows)


def _short(share: float) -> str:
    return f"{share:g}".removeprefix("0")


def _frame_headline(ax: Axes, shown: pd.DataFrame, rows: str) -> None:
    tolerances = set(shown["eta"].dropna())
    if tolerances and HEADLINE["eta"] not in tolerances:
        return
    x = sorted(shown["alpha"].unique()).index(HEADLINE["alpha"])
    y = sorted(shown[rows].unique()).index(HEADLINE[rows])
    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, ec="black", lw=2.2, clip_on=False, zorder=5))


def over_one_choice(frame: pd.DataFrame, choice: str, columns: int = 3) -> Figure:
    """Draw estimates over one free choice, a panel a claim: interval, tolerance, and the verdict as a marker.

    Columns: those of `sensitivity_views.all_cells`; the headline's value has a grey band behind it.
    """
    titles = list(dict.fromkeys(frame["title"]))
    columns = min(columns, len(titles))
    lines = math.ceil(len(titles) / columns)
    with style():
        fig, axes = plt.subplots(
            lines, columns, figsize=(max(8.4, 3.5 * columns), 1.1 + 2.75 * lines), squeeze=False, sharex=True
        )
        places = {value: x for x, value in enumerate(sorted(frame[choice].unique()))}
        for ax, title in zip(axes.flat, titles, strict=False):
            _choice_panel(ax, frame[frame["title"] == title], choice, places)
            ax.set_title(_wrapped(title, 34 if columns > 2 else 46), fontsize=10)
        for ax in axes.flat[len(titles) :]:
            ax.set_visible(False)
        for number, ax in enumerate(axes.flat[: len(titles)]):
            ax.set_xticks(list(places.values()), [f"{value:g}" for value in places])
            ax.tick_params(labelbottom=number + columns >= len(titles))
            if number + columns >= len(titles):
                ax.set_xlabel(_NAMES[choice])
        letters = [one for one in _LETTERS if one in set(frame["letter"])]
        fig.legend(handles=_choice_key(frame, letters), loc="outside lower center", ncols=3)
    return fig


def _choice_panel(ax: Axes, rows: pd.DataFrame, choice: str, places: dict[float, int]) -> None:
    subjects = list(dict.fromkeys(rows["about"]))
    ax.axvspan(places[HEADLINE[choice]] - 0.4, places[HEADLINE[choice]] + 0.4, color="#EFEFEF", zorder=0)
    for bound in rows[["tolerance", "lower", "upper"]].iloc[0].dropna():
        ax.axhline(bound, color="#444444", ls="--", lw=1.2, zorder=1)
    for number, subject in enumerate(subjects):
        own = rows[rows["about"] == subject].sort_values(choice)
        x = own[choice].map(places) + 0.16 * (number - (len(subjects) - 1) / 2)
        tint = described(subject).colour
        ax.plot(x, own["value"], color=tint, lw=1.0, alpha=0.6)
        ax.vlines(x, own["low"], own["high"], color=tint, lw=1.8)
        for at, value, letter in zip(x, own["value"], own["letter"], strict=True):
            ax.plot(at, value, _BY_LETTER[letter].cell_marker, color=tint, ms=6.5, mec="white", mew=0.7)
    if (rows["scale"] == "log").all():
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.grid(axis="y")


def _choice_key(frame: pd.DataFrame, letters: Sequence[str]) -> list[Line2D]:
    subjects = [one for name, one in SUBJECTS.items() if name in set(frame["about"])]
    key = [Line2D([], [], color=one.colour, lw=1.8, label=one.label) for one in subjects]
    key += [Line2D([], [], color="#444444", ls="--", lw=1.2, label="tolerance of the rule")]
    marks = [(_BY_LETTER[letter].cell_marker, _BY_LETTER[letter].word) for letter in letters]
    return key + [
        Line2D([], [], color="#000000", ls="", marker=marker, ms=6.5, label=word) for marker, word in marks
    ]


def _wrapped(title: str, width: int) -> str:
    lines, line = [], ""
    for word in title.split():
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def sparsity_over_rates(frame: pd.DataFrame) -> Figure:
    """Draw sparsity over the learning rate, one mark a run, beside the sparsity of noise of equal norm.

    Columns: those of `sensitivity_views.rate_view`.
    """
    methods = list(dict.fromkeys(frame["method"]))
    with style():
        fig, ax = plt.subplots(figsize=(9.2, 4.8))
        for number, method in enumerate(methods):
            rows = frame[frame["method"] == method]
            # Methods share their rates: each is set aside a little.
            aside = 1.06 ** (number - (len(methods) - 1) / 2)
            means = rows.groupby("learning_rate")[["sparsity", "noise"]].mean()
            tint = colour(method)
            ax.plot(means.index * aside, means["sparsity"], color=tint, lw=1.2, alpha=0.6)
            ax.plot(means.index * aside, means["noise"], "_", ms=10, mew=1.6, color="#4D4D4D", zorder=4)
            ax.plot(rows["learning_rate"] * aside, rows["sparsity"], "o", ms=6, color=tint, label=method)
        ax.set(xscale="log", xlabel="learning rate", ylabel="share of weights unchanged in bf16", ylim=(0, 1))
        rates = sorted(frame["learning_rate"].unique())
        ax.set_xticks(rates, [f"{rate:.0e}".replace("e-0", "e−") for rate in rates])
        ax.xaxis.set_minor_locator(NullLocator())
        noise = Line2D([], [], color="#4D4D4D", marker="_", ls="", ms=10, mew=1.6, label="noise of its norm")
        handles, _ = ax.get_legend_handles_labels()
        ax.legend(handles=[*handles, noise], loc="upper right", ncols=2)
        ax.grid(axis="y")
    return fig


def along_steps(frame: pd.DataFrame) -> Figure:
    """Draw sparsity and norm of the update along training, a line a run.

    Columns: those of `sensitivity_views.step_view`.
    """
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.4), sharex=True)
        for run, rows in frame.sort_values("updates").groupby("run", sort=False):
            tint = colour(str(rows["method"].iloc[0]))
            label = f"{rows['method'].iloc[0]}, seed {rows['seed'].iloc[0]}"
            marker = "os^Dv"[list(dict.fromkeys(frame["run"])).index(run) % 5]
            left.plot(rows["updates"], rows["sparsity"], marker=marker, color=tint, label=label)
            left.plot(rows["updates"], rows["noise"], "--", color="#7F7F7F", lw=1.2)
            right.plot(rows["updates"], rows["norm"], marker=marker, color=tint)
        left.plot([], [], "--", color="#7F7F7F", lw=1.2, label="noise of its norm")
        left.set(xlabel="optimizer updates", ylabel="share of weights unchanged in bf16")
        left.set_title("Sparsity falls")
        right.set(xlabel="optimizer updates", ylabel="‖ΔW‖ of linear matrices")
        right.set_title("The update grows")
        left.legend(loc="upper right")
        for ax in (left, right):
            ax.grid()
    return fig

"""The options that several commands share, or that say much: what each is called, takes and tells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Profile = Annotated[
    str,
    typer.Option(
        help="How much is trained: smoke (minutes), mini (the default study), full (hours), or gpu (a larger "
        "model, trained alone)."
    ),
]
BookProfile = Annotated[
    str,
    typer.Option(
        help="How much is trained: smoke (minutes), mini (the default study), full (hours), or nothing: "
        "released renders the records in results/, paper measures published checkpoints."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes that work at once, each on one thread.")]
CoreWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that work at once, each on one thread. By default as many as there are cores, or one "
        "for a pair that is measured before another has started.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Only these blocks, such as 0,13,27 or 0-3,27, or vision:0-3 of another stack; all by default."
    ),
]
Matrices = Annotated[
    str | None,
    typer.Option(
        help="Only tensors of these roles: q, k, v, o, gate, up, down, embedding, head, norm, bias, state, "
        "conv, other."
    ),
]
Ranged = Annotated[
    bool,
    typer.Option(
        "--ranged",
        help="Read checkpoints of the Hub tensor by tensor, without ever having them on disk.",
    ),
]
Dequantise = Annotated[
    bool,
    typer.Option(
        "--dequantise",
        help="Read FP8 codes as floats, each times its scale, and say how much of a change that explains.",
    ),
]
Device = Annotated[str | None, typer.Option(help="Device to measure on: cpu, cuda or cuda:N.")]
Backend = Annotated[
    str | None, typer.Option(help="Where tensors are measured: processes of this machine, or dask.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Address of a Dask scheduler, such as tcp://host:8786; none starts one here."),
]
Memory = Annotated[
    str | None, typer.Option(help="Most memory of all processes that measure together, such as 4GiB.")
]
Licences = Annotated[
    list[str] | None,
    typer.Option("--accept-licence", help="A licence, or an entry's name, that you accept; may be repeated."),
]
AdapterTable = Annotated[
    Path | None,
    typer.Option(
        help="Also write a table of an adapter's matrices: rank and singular values of ΔW, and what merging "
        "into bf16 keeps of it."
    ),
]
AdapterStart = Annotated[
    Path | None,
    typer.Option(
        help="Folder that an adapter was saved to before its training, where it did not start from zero."
    ),
]
_CHECKPOINT = (
    "A folder in Hugging Face format, a GGUF file, an entry of a manifest, or "
    "ORG/REPO[@REVISION][:SUBFOLDER] on the Hub, REVISION being a branch, a tag or a commit."
)
_SERIES = (
    "given likewise. Several of one run as a series, such as ORG/REPO@step_{1..500..50} or RUN/checkpoint-*, "
    "or by repeating it."
)
Base = Annotated[str | None, typer.Option(help="The checkpoint that training started from. " + _CHECKPOINT)]
Pair = Annotated[
    str | None,
    typer.Option(help="A pair of a manifest, by its tuned entry, in place of both; several by braces."),
]
OneTuned = Annotated[str | None, typer.Option("--tuned", help="The tuned checkpoint, given likewise.")]
Tuned = Annotated[
    list[str] | None,
    typer.Option(help="What training ended with, a checkpoint or a folder with a LoRA adapter, " + _SERIES),
]

# --- measuring

Table = Annotated[
    Path | None,
    typer.Option(
        help="Parquet file to write, one row a tensor; of --pair NAME build/pairs/NAME.parquet. Of a series "
        "a folder, with a file for each pair."
    ),
]
Masks = Annotated[Path | None, typer.Option(help="Also write the packed update masks, as safetensors.")]
AxisTable = Annotated[Path | None, typer.Option(help="Also write row and column ratios beside their nulls.")]
Spectra = Annotated[
    bool, typer.Option(help="Measure singular values, angles and overlaps of the matrices in blocks.")
]
Draws = Annotated[int | None, typer.Option(hidden=True)]
NullNames = Annotated[
    list[str] | None,
    typer.Option(
        "--null",
        help="Set overlaps and ratios beside this null, by its name; may be repeated. Four by default.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of what a null has no law for and has to draw.")]
Accuracy = Annotated[
    str,
    typer.Option(
        help="Of spectra: fast (no worse than float32 SVDs, with a bound that is not proved), certified "
        "(with a proof that no angle is off by more than 1e-5), or reference (float64 SVDs of both sides). "
        "What each costs is on the book's page Speed and accuracy."
    ),
]
Diagnostics = Annotated[
    list[str] | None,
    typer.Option(
        help="What is to be run: measure (default), or a chapter that measures pairs; may be repeated."
    ),
]

# --- chapters

Notebook = Annotated[
    str,
    typer.Argument(
        help="A chapter, such as spectral-drift, a page of the book, such as spectral-drift-encoder, or "
        "a notebook's path."
    ),
]
Pairs = Annotated[
    list[str] | None,
    typer.Option(help="Show this pair of the manifest, by its tuned entry; several by braces, or repeated."),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", help="key=value for the notebook; may be repeated."),
]

# --- training and releasing

Unreleased = Annotated[
    bool,
    typer.Option("--unreleased", help="Train only runs that the profile's release lacks, to add them."),
]
ReleaseFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the release, results/PROFILE of the project by default."),
]
AddPart = Annotated[
    bool, typer.Option("--add", help="Add what this build has and the release lacks, as a part of it.")
]
PartSubjects = Annotated[
    list[str] | None, typer.Option("--subject", help="Add only runs of this subject; may be repeated.")
]
PartChapters = Annotated[
    list[str] | None, typer.Option("--chapter", help="Add only what this chapter needs; may be repeated.")
]
PartSeeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Add only runs of this seed; may be repeated.")
]
Replace = Annotated[
    bool,
    typer.Option("--replace", help="Of runs and records that the release has otherwise, take these."),
]
Commit = Annotated[
    bool, typer.Option("--commit", help="Commit the release's folder, and nothing else, with git.")
]

# --- the manifest

ManifestFile = Annotated[
    Path | None,
    typer.Option("--manifest", help="The manifest, data_manifest.yaml of the project by default."),
]
Entries = Annotated[list[str] | None, typer.Argument(help="Entries of the manifest; all of them by default.")]
NewBase = Annotated[
    str,
    typer.Option("--base", help="Where training started: an entry's name, ORG/REPO[@REVISION], or a folder."),
]
NewTuned = Annotated[str, typer.Option("--tuned", help="Where it ended: ORG/REPO[@REVISION], or a folder.")]


#: Commands that take several tuned checkpoints.
_TAKE_SERIES = frozenset({"measure", "preflight", "run"})


def gathered(words: Sequence[str]) -> list[str]:
    """A command's words, with --tuned in front of each name that a shell has made of a series behind it.

    Without quotes a shell turns ``--tuned RUN/checkpoint-*`` and ``--tuned ORG/REPO@step_{1..3}`` into the
    names themselves. Those are taken that begin as the first one does, up to its @, : or last slash.
    """
    if not words or words[0] not in _TAKE_SERIES:
        return list(words)
    found: list[str] = []
    stem = ""
    for before, word in zip(("", *words), words, strict=False):
        if before == "--tuned":
            stem = _stem(word)
        elif stem and not word.startswith("-") and _stem(word) == stem:
            found.append("--tuned")
        else:
            stem = ""
        found.append(word)
    return found


def _stem(word: str) -> str:
    at = re.match(r"[^@:]*[@:]", word)
    above = word[: word.rstrip("/").rfind("/") + 1]
    # Of a bare name, such as checkpoint-10, all but its number.
    return at[0] if at else above or (re.sub(r"\d+", "#", word) if re.search(r"\d", word) else "")

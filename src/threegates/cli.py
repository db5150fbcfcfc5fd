"""The command `threegates`: from training and measuring to the book, and from the Hub to a manifest."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from threegates.cli_options import (
    Accuracy,
    AdapterStart,
    AdapterTable,
    AddPart,
    AxisTable,
    Backend,
    Base,
    BookProfile,
    Commit,
    CoreWorkers,
    Dequantise,
    Device,
    Diagnostics,
    Draws,
    Entries,
    Layers,
    Licences,
    ManifestFile,
    Masks,
    Matrices,
    Memory,
    NewBase,
    NewTuned,
    Notebook,
    NullNames,
    OneTuned,
    Pair,
    Pairs,
    Parameters,
    PartChapters,
    PartSeeds,
    PartSubjects,
    Profile,
    Ranged,
    ReleaseFolder,
    Replace,
    Scheduler,
    Seed,
    Spectra,
    Table,
    Tuned,
    Unreleased,
    Workers,
    gathered,
)
from threegates.errors import ThreeGatesError, refuse_draws

# Heavy modules are imported inside the commands, so that --help comes at once.

app = typer.Typer(
    help=(
        "Three Gates, Tested: does RL leave most weights of a language model untouched, and is that more "
        "than what storage in bf16 does to any small update?\n\n"
        "`threegates book` trains small models, measures them and renders the whole study. "
        "`threegates measure` compares two checkpoints of yours. "
        "`threegates run` shows a chapter on a pair of yours."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    profile: Profile = "mini",
    workers: Workers = 2,
    only: Annotated[list[str] | None, typer.Option(help="Train this run alone; may be repeated.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Train this seed of the profile, and what has none of them; may be repeated."),
    ] = None,
    unreleased: Unreleased = False,
) -> None:
    """Train the lab's models: a small base, then RL, SFT and RFT runs from it.

    Finished runs are kept and never trained again; a run that was killed continues. Checkpoints land in
    build/lab in Hugging Face format, with a manifest beside them.
    """
    from threegates.lab.train import train as train_lab
    from threegates.records.provenance import build_folder
    from threegates.releases.taking import forget_taken, leave_out_released

    build, chosen = build_folder(), (tuple(only or ()), tuple(seed or ()))
    if not only:
        forget_taken(build)
    released = leave_out_released(profile, build) if unreleased else ()
    path = train_lab(profile, build, workers, *chosen, released=released)
    typer.echo(f"manifest: {path}")


@app.command()
def measure(
    base: Base = None,
    tuned: Tuned = None,
    pair: Pair = None,
    out: Table = None,
    masks: Masks = None,
    axis: AxisTable = None,
    adapter: AdapterTable = None,
    spectra: Spectra = True,
    draws: Draws = None,
    seed: Seed = 0,
    null: NullNames = None,
    accuracy: Accuracy = "certified",
    workers: CoreWorkers = None,
    layers: Layers = None,
    matrices: Matrices = None,
    ranged: Ranged = False,
    memory: Memory = None,
    device: Device = None,
    backend: Backend = None,
    scheduler: Scheduler = None,
    adapter_start: AdapterStart = None,
    dequantise: Dequantise = False,
    accept_licence: Licences = None,
) -> None:
    """Compare two checkpoints tensor by tensor: what changed, how far spectra moved, on which weights.

    One row a tensor: changed entries and sparsity in bf16 and as stored; norms; for the matrices in blocks
    the shift of their singular values (nss), the angles of their leading subspaces in radians with a bound on
    the numerical error, and how much of the update lies on principal and on small weights, beside the laws of
    nulls: mean, standard deviation, 95 % interval and the logarithm of a p-value, computed and not drawn.
    Embeddings and heads have the shift, and the angles of their smaller side. The column `spectra` says why a
    tensor has none, `accuracy`, `path` and `proof` how they were found.

    A measurement that is killed continues where it was when the same command is given again. When the
    checkpoints cannot be compared, the reason is printed and no file is written.
    """
    from threegates.jobs.nulls import asked_for
    from threegates.jobs.pair_files import default_output, measure_series, measure_to_files
    from threegates.jobs.settings import export
    from threegates.jobs.sources import asked_pairs, narrowed

    export(
        ranged=ranged,
        device=device,
        backend=backend,
        scheduler=scheduler,
        memory=memory,
        licences=accept_licence,
        start=adapter_start,
        dequantise=dequantise,
    )
    refuse_draws(draws, "--draws", "--draws")
    pairs = narrowed(asked_pairs(pair, base, _one(tuned)), *_choice(layers, matrices))
    how: dict[str, Any] = {"spectra": spectra, "accuracy": accuracy, "workers": workers}
    options = {"seed": seed, "nulls": asked_for(null), **how}
    if len(pairs) == 1:
        written = measure_to_files(
            pairs[0], out or default_output(pair), masks=masks, axis=axis, adapter=adapter, **options
        )
        typer.echo(written.summary())
        return
    if out is None and not pair:
        default_output(None)
    tables = measure_series(
        pairs, out, masks=masks, axis=axis, adapter=adapter, progress=typer.echo, **options
    )
    typer.echo(f"written: {len(tables)} tables in {tables[0].parent}")


@app.command()
def preflight(
    base: Base = None,
    tuned: Tuned = None,
    pair: Pair = None,
    diagnostic: Diagnostics = None,
    layers: Layers = None,
    matrices: Matrices = None,
    draws: Draws = None,
    workers: Workers = 2,
    device: Device = None,
    time: Annotated[bool, typer.Option(help="Estimate minutes, which takes some seconds.")] = True,
    json: Annotated[Path | None, typer.Option(help="Also write what was found as JSON.")] = None,
    adapter_start: AdapterStart = None,
    dequantise: Dequantise = False,
    accept_licence: Licences = None,
) -> None:
    """Look at a pair before it is measured: what can be compared, bytes to fetch, memory, minutes.

    Reads configs and headers alone. Ends with status 1, and says what to change, where it cannot be measured.
    """
    from threegates.jobs.settings import export
    from threegates.preflight import preflight_of

    refuse_draws(draws, "--draws", "--draws")
    export(device=device, licences=accept_licence, start=adapter_start, dequantise=dequantise)
    found = preflight_of(
        (pair, base, _one(tuned)),
        _choice(layers, matrices),
        diagnostics=diagnostic or ["measure"],
        workers=workers,
        timed=time,
    )
    typer.echo(found.text())
    if json is not None:
        found.write(json)
    if not found.possible:
        raise typer.Exit(1)


@app.command()
def nearest(
    tuned: OneTuned = None,
    base: Annotated[
        list[str] | None, typer.Option(help="A base that it may come from, as --tuned; repeat it for each.")
    ] = None,
    ranged: Ranged = False,
    dequantise: Dequantise = False,
    accept_licence: Licences = None,
) -> None:
    """Say which of several bases a tuned checkpoint was trained from: how far it lies from each.

    Prints ‖ΔW‖ / ‖W‖ and the share of weights that are unchanged in bf16, the nearest base first.
    """
    from threegates.jobs.nearest import nearest as nearest_of
    from threegates.jobs.nearest import told
    from threegates.jobs.settings import export

    export(ranged=ranged, licences=accept_licence, dequantise=dequantise)
    typer.echo(told(nearest_of(tuned or "", base or [])))


@app.command()
def run(
    notebook: Notebook,
    pair: Pairs = None,
    base: Base = None,
    tuned: Tuned = None,
    layers: Layers = None,
    matrices: Matrices = None,
    parameter: Parameters = None,
    workers: CoreWorkers = None,
    ranged: Ranged = False,
    memory: Memory = None,
    device: Device = None,
    backend: Backend = None,
    scheduler: Scheduler = None,
    adapter_start: AdapterStart = None,
    dequantise: Dequantise = False,
    accept_licence: Licences = None,
) -> None:
    """Run a chapter's notebook, on the study's pairs or on a pair of your own.

    Unknown parameters and values of a wrong type are refused before anything runs. Nothing runs when
    nothing has changed. Ends by saying where the page, the records and the verdicts are.
    """
    from threegates.jobs.series import told_pinned
    from threegates.jobs.settings import export
    from threegates.pages.asked import run_chapter
    from threegates.pages.runner import results_text

    export(
        ranged=ranged,
        device=device,
        backend=backend,
        scheduler=scheduler,
        memory=memory,
        licences=accept_licence,
        start=adapter_start,
        dequantise=dequantise,
    )
    texts = dict(_key_value(text) for text in parameter or ())
    choice = _choice(layers, matrices)
    done = run_chapter(notebook, texts, pair or (), base, _one(tuned), workers, choice)
    typer.echo("\n".join([*told_pinned(), results_text(done)]))


@app.command()
def book(
    profile: BookProfile = "mini",
    workers: Workers = 2,
    from_records: Annotated[
        bool,
        typer.Option(
            "--from-records", help="Train and measure nothing: a claim whose record is missing is not run."
        ),
    ] = False,
    ranged: Ranged = False,
    accept_licence: Licences = None,
) -> None:
    """Train, measure, run every chapter and render the book into build/html (released: build/released/html).

    What has not changed since the last time is not done again.
    """
    from threegates.book.build import build_book
    from threegates.jobs.settings import export
    from threegates.records.provenance import build_folder

    export(ranged=ranged, licences=accept_licence)
    typer.echo(f"book: {build_book(profile, build_folder(), workers, measure=not from_records)}")


@app.command()
def release(
    out: ReleaseFolder = None,
    workers: Workers = 2,
    add: AddPart = False,
    subject: PartSubjects = None,
    chapter: PartChapters = None,
    seed: PartSeeds = None,
    replace: Replace = False,
    commit: Commit = False,
) -> None:
    """Pack the records and logs of this build's trained models into results/, for PROFILE=released.

    What the book's chapters lack is measured first. An older release is replaced in one step; with --add it
    is kept, and what this build has is merged into it, whole or not at all.
    """
    from threegates.releases.committing import check_committable
    from threegates.releases.committing import commit as commit_release
    from threegates.releases.making import release_build, release_folder
    from threegates.releases.parts import Choice, add_part

    if not add and (subject or chapter or seed or replace):
        raise typer.BadParameter("--subject, --chapter, --seed and --replace choose what --add adds")
    if commit:
        check_committable(out or release_folder())
    choice = Choice(tuple(subject or ()), tuple(chapter or ()), tuple(seed or ()))
    made = add_part(choice, out, workers, replace=replace) if add else release_build(out, workers)
    size = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file()) / 1e6
    typer.echo(f"release: {made.folder} ({size:.1f} MB), {made.parts[-1]['name']} of {len(made.parts)} parts")
    if commit:
        typer.echo(f"commit: {commit_release(made)}")


@app.command()
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Entries of a manifest, or ORG/REPO[@REVISION][:SUBFOLDER] on the Hub; series too."
        ),
    ],
    dequantise: Dequantise = False,
    accept_licence: Licences = None,
) -> None:
    """Download checkpoints whole into the Hub's cache, and check every file's sha256.

    The disk's free space is looked at first. A download that was killed goes on where it was.
    """
    from threegates.jobs.settings import DOWNLOAD, export
    from threegates.jobs.sources import each_named, known_manifests, open_source

    export(licences=accept_licence, dequantise=dequantise)
    for name in each_named(names):
        source = open_source(name, known_manifests(), way=DOWNLOAD)
        at = f" at {source.checkpoint.revision}" if source.checkpoint.revision else ""
        typer.echo(f"here and whole: {name}{at}, {len(source.checkpoint.infos)} tensors")


@app.command()
def lock(
    names: Entries = None,
    manifest: ManifestFile = None,
    update: Annotated[
        bool, typer.Option("--update", help="Move every entry to the newest commit, locked ones too.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit in place of the newest, for one entry.")
    ] = None,
) -> None:
    """Tie entries of the manifest to the sha256 of their files, entries of the Hub to a commit too.

    Comments and layout are kept. An entry that cannot be resolved stays as it was, and is listed at the end
    with what to do; the command then ends with status 1.
    """
    from threegates.checkpoints.manifests.locking import lock as lock_entries
    from threegates.records.provenance import tracked_manifest

    done = lock_entries(
        manifest or tracked_manifest(), names or None, update=update, revision=revision, progress=_progress
    )
    typer.echo(done.text())
    if not done.ok:
        raise typer.Exit(1)


@app.command()
def verify(
    names: Entries = None,
    manifest: ManifestFile = None,
) -> None:
    """Hold the files on this machine against the sha256 that the manifest lists; asks no network.

    Ends with status 1 where a file differs.
    """
    from threegates.checkpoints.manifests.verifying import verify as verify_entries
    from threegates.records.provenance import tracked_manifest

    report = verify_entries(manifest or tracked_manifest(), names or None, progress=_progress)
    typer.echo(report.text())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def add_pair(
    base: NewBase,
    tuned: NewTuned,
    method: Annotated[str, typer.Option(help="pretrain, sft, rft, rl, dpo, simpo or mixed.")],
    name: Annotated[str | None, typer.Option(help="Name of the pair; the repository's by default.")] = None,
    base_name: Annotated[str | None, typer.Option(help="Name of the base's entry, if it is new.")] = None,
    base_method: Annotated[
        str, typer.Option(help="How the base was trained, if its entry is new.")
    ] = "mixed",
    algorithm: Annotated[str | None, typer.Option(help="Such as GRPO or DAPO.")] = None,
    data: Annotated[str | None, typer.Option(help="What it was trained on, such as math.")] = None,
    chapter: Annotated[
        list[str] | None, typer.Option(help="A chapter that takes the pair; may be repeated.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the tuned checkpoint.")] = None,
    gated: Annotated[bool, typer.Option("--gated", help="The Hub asks for an agreement first.")] = False,
    manifest: ManifestFile = None,
) -> None:
    """Write a pair of checkpoints into the manifest, so that chapters take it by --pair NAME."""
    from threegates.checkpoints.manifests.adding import Facts
    from threegates.checkpoints.manifests.adding import add_pair as add
    from threegates.records.provenance import tracked_manifest
    from threegates.register import TAKING_PAIRS

    facts = Facts(method, algorithm, data, chapter or (), licence, gated=gated)
    sides = (manifest or tracked_manifest(), base, tuned)
    added = add(
        *sides, facts, name=name, base_name=base_name, base_method=base_method, known_chapters=TAKING_PAIRS
    )
    typer.echo(added.text())


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a finished build of the book, such as build.")],
    second: Annotated[Path, typer.Argument(help="Folder of another one.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write an HTML page that needs no other file.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="End with status 1 if a verdict moved.")] = False,
) -> None:
    """Compare two builds of the book: verdicts, rules, numbers and figures that moved.

    Each number's move is held against the intervals of both builds.
    """
    from threegates.book.compare import compare_builds
    from threegates.book.compare_page import comparison_text, write_comparison

    found = compare_builds(first, second)
    typer.echo(comparison_text(found))
    if out is not None:
        typer.echo(f"page: {write_comparison(out, found)}")
    if check and found.moved:
        raise typer.Exit(1)


_FIGURE = "page/figure, such as emergence/ratios, its label, or its bare name where that is unique."


@app.command()
def show(
    figure: Annotated[str | None, typer.Argument(help="A figure: " + _FIGURE)] = None,
    full: Annotated[bool, typer.Option(help="Print every model and record, not their number.")] = False,
) -> None:
    """Show where a figure of this build comes from; without a name, list all figures.

    Its notebook, cells and parameters; seeds; checkpoints and records with their digests; code, versions,
    commit and time.
    """
    from threegates.pages.reproduce import figure_list
    from threegates.pages.reproduce import show as show_figure

    typer.echo(show_figure(figure, full) if figure else figure_list())


@app.command()
def reproduce(
    figure: Annotated[str, typer.Argument(help="A figure: " + _FIGURE)],
    profile: Profile = "mini",
    workers: Workers = 2,
) -> None:
    """Make one figure anew, with just the runs, records and cells that it needs.

    It lands in build/reproduced, and its numbers are held against the book's. Ends with status 1 if
    they differ.
    """
    from threegates.pages.reproduce import reproduce as reproduce_figure

    made = reproduce_figure(figure, profile, workers)
    typer.echo(f"figure:  {made.place}\n{made.name}: {made.verdict}")
    if not made.same:
        raise typer.Exit(1)


def _progress(line: str) -> None:
    typer.echo(line, err=True)


def _choice(
    layers: str | None, matrices: str | None
) -> tuple[tuple[int | str, ...] | None, tuple[str, ...] | None]:
    """Blocks and roles as they were typed."""
    from threegates.checkpoints.views import parse_layers, parse_matrices

    return (
        parse_layers(layers) if layers is not None else None,
        parse_matrices(matrices) if matrices is not None else None,
    )


def _one(names: list[str] | None) -> str | None:
    """The tuned side as one name, a series where it was given several times."""
    from threegates.checkpoints.series import as_one

    return as_one(names) if names else None


def _key_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ThreeGatesError(
            "a parameter must be given as key=value", found=text, remedy="for instance -p seed=1"
        )
    return key, value


def main() -> None:
    """Run the command; errors that a user can act on are printed without a traceback."""
    try:
        app(gathered(sys.argv[1:]))
    except ThreeGatesError as error:
        if os.environ.get("THREEGATES_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

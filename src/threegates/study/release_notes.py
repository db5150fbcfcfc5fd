"""What a page rendered from released records says of them: whose they are, and which of them are stale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from threegates.study.release import Release
from threegates.study.released import stale_runs
from threegates.study.study import Study

#: More names than this are told by their number.
LONGEST = 12
_ABOUT = (
    "Rendered from records of the profile `{profile}` in the repository, packed at {time} from commit "
    "{commit}. Nothing was trained or measured for this page; verdicts and figures were computed from them."
)


@dataclass(frozen=True)
class Freshness:
    """How many records and runs some pages rest on, and the names of those that are stale."""

    records: int
    runs: int
    stale_records: Sequence[str]
    stale_runs: Sequence[str]

    @property
    def stale(self) -> bool:
        """Whether any is."""
        return bool(self.stale_records or self.stale_runs)


def freshness(studies: Iterable[Study], profile: str) -> Freshness:
    """Which records and runs of these studies the present code and versions would not make the same way."""
    opened = list(studies)
    jobs = {job.digest: job for study in opened for job in study.jobs}
    sources = [source for study in opened for pair in study.pairs for source in (pair.base, pair.tuned)]
    entries = {source.entry.name: source.entry for source in sources if source.entry is not None}
    return Freshness(
        len(jobs),
        len({entry.run or entry.name for entry in entries.values()}),
        sorted(f"{job.kind} {job.name}" for job in jobs.values() if job.stale),
        stale_runs(list(entries.values()), profile),
    )


def release_note(release: Release, found: Freshness) -> str:
    """The note in MyST: where the records come from, and what is stale, by name."""
    commit = str(release.made.get("commit") or "unknown")[:12]
    about = _ABOUT.format(profile=release.profile, time=release.made.get("time", "unknown"), commit=commit)
    if not found.stale:
        state = f"All {found.records} records and {found.runs} runs are what the present code would make."
        return _admonition("Released records", "note", [about, state])
    state = (
        f"**Stale: {len(found.stale_records)} of {found.records} records and {len(found.stale_runs)} of "
        f"{found.runs} runs** were made by other code, recipes or versions than the present ones; what they "
        "say may have changed since."
    )
    names = [_listed("Records", found.stale_records), _listed("Runs", found.stale_runs)]
    return _admonition("Stale released records", "warning", [about, state, *filter(None, names)])


def with_note(notebook: NotebookNode, note: str) -> NotebookNode:
    """The notebook with the note below its title."""
    cell = new_markdown_cell(note, id="released-records")
    notebook.cells.insert(1, cell)
    return notebook


def _admonition(title: str, kind: str, paragraphs: Sequence[str]) -> str:
    body = "\n\n".join(paragraphs)
    return f"```{{admonition}} {title}\n:class: {kind}\n{body}\n```\n"


def _listed(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:LONGEST])
    more = f" and {len(names) - LONGEST} more" if len(names) > LONGEST else ""
    return f"{what}: {shown}{more}." if names else ""

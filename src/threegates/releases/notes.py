"""What a page rendered from released records says of them: whose they are, and which of them are stale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from threegates.jobs.released import planned, stale_runs
from threegates.releases.packing import Release
from threegates.study import Study

#: More names than this are told by their number.
LONGEST = 12
_ABOUT = (
    "{what} from records of the profile `{profile}` in the repository, packed at {time} from commit "
    "{commit}. Nothing was trained or measured for {it}; verdicts and figures were computed from them."
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


def release_note(
    release: Release, found: Freshness, pages: Sequence[str] = (), lacking: Sequence[str] = ()
) -> str:
    """The note in MyST: where the records come from, and what is stale, by name.

    pages : those that it is about, where that is not the page on which it stands. lacking : runs that would
        be shown too, if the release had them.
    """
    commit = str(release.made.get("commit") or "unknown")[:12]
    named = ", ".join(f"{{doc}}`{page}`" for page in pages)
    about = _ABOUT.format(
        what=f"What {named} give is" if pages else "Rendered",
        it="them" if pages else "this page",
        profile=release.profile,
        time=release.made.get("time", "unknown"),
        commit=commit,
    )
    lost = _listed("Runs that the release lacks", lacking)
    if not found.stale:
        state = f"All {found.records} records and {found.runs} runs are what the present code would make."
        return _admonition("Released records", "note", [about, state, *filter(None, [lost])])
    state = (
        f"**Stale: {len(found.stale_records)} of {found.records} records and {len(found.stale_runs)} of "
        f"{found.runs} runs** were made by other code, recipes or versions than the present ones; what they "
        "say may have changed since."
    )
    names = [_listed("Records", found.stale_records), _listed("Runs", found.stale_runs), lost]
    return _admonition("Stale released records", "warning", [about, state, *filter(None, names)])


def wider_note(chapter: str, profile: str, released: str) -> str:
    """What the released profile has for a chapter and this build's has not: seeds, arms; empty if nothing."""
    from threegates.lab.plans.plan import seeds_of

    own, wider = (_arms(chapter, name) for name in (profile, released))
    seeds = sorted(set(seeds_of(released)) - set(seeds_of(profile)))
    arms = sorted(wider - own)
    if not wider or not (seeds or arms):
        return ""
    more = ["further seeds (" + ", ".join(map(str, seeds)) + ")"] if seeds else []
    more += (
        [f"{len(arms)} further arm{'s' * (len(arms) != 1)} (" + ", ".join(f"`{arm}`" for arm in arms) + ")"]
        if arms
        else []
    )
    text = (
        f"The profile `{released}` has " + " and ".join(more) + " for this page. They are not in this build; "
        "their records are released, and `make book PROFILE=released` renders them."
    )
    return f"```{{admonition}} In the released records\n:class: note, dropdown\n{text}\n```\n"


def _arms(chapter: str, profile: str) -> set[str]:
    """Names of a chapter's runs without their seeds."""
    runs = (item for item in planned(profile) if chapter in item.draft.chapters)
    return {item.run.name.rpartition("-s")[0] for item in runs}


def with_note(notebook: NotebookNode, note: str, place: int = 1) -> NotebookNode:
    """The notebook with the note as a cell of its own, below its title by default."""
    notebook.cells.insert(place, new_markdown_cell(note, id="released-records"))
    return notebook


def _admonition(title: str, kind: str, paragraphs: Sequence[str]) -> str:
    body = "\n\n".join(paragraphs)
    return f"```{{admonition}} {title}\n:class: {kind}\n{body}\n```\n"


def _listed(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:LONGEST])
    more = f" and {len(names) - LONGEST} more" if len(names) > LONGEST else ""
    return f"{what}: {shown}{more}." if names else ""

"""A page, opened: its notebook, the values of its parameters, and the studies that these open.

Whoever asks something of a page is handed this object: a page is read once, and its studies are opened once,
when they are first asked for. Which records there are is never kept here; a study looks for them each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from threegates.checkpoints.manifests.manifest import Entry
from threegates.errors import NotebookError
from threegates.jobs.sources import lab_manifest
from threegates.jobs.subjects import LAB, subject_of
from threegates.lab.recipe import TrainingRecipe
from threegates.pages.contents import Page, book_pages
from threegates.pages.notebooks import modules, notebook_path, opened_chapters, read_notebook
from threegates.pages.parameters import Parameter, checked, declared
from threegates.pages.slices import Slice, figures_of, slice_of
from threegates.records.places import Places
from threegates.records.provenance import project_root
from threegates.register import WITH_JOBS
from threegates.study import Study

#: Parameters of a notebook that `Study.open` takes too.
STUDY_PARAMETERS = ("pairs", "base", "tuned", "subject", "layers", "matrices", "seed", "nulls")
#: Parameter of a notebook that looks at other pages: their names, or none for every page on checkpoints.
PAGES = "pages"
_STUDY = "threegates.study"
# Label of what a run's learning rate is for; what a run trains with whose labels do not say otherwise.
_RATE = "rate"
_USUAL = {name: TrainingRecipe.model_fields[name].default for name in ("optimiser",)}


@dataclass(frozen=True, eq=False)
class Opened:
    """A notebook as the page that it becomes.

    path : the notebook's source. name : of the page, the first part of its figures' names.
    notebook : its cells, which nobody may change. declared : its parameters by name.
    given : values for some of them. places : where its studies find checkpoints and records, and where the
    build is that it is made for. measure : whether its studies measure what is missing. beside : pages of
    the same build by name, for a notebook that looks at other pages.
    """

    path: Path
    name: str
    notebook: NotebookNode
    declared: Mapping[str, Parameter]
    given: Mapping[str, object]
    places: Places
    measure: bool = True
    beside: Mapping[str, Opened] = field(default_factory=dict, repr=False)

    @classmethod
    def of_notebook(
        cls, path: Path, values: Mapping[str, object] | None = None, *, name: str | None = None, **more: Any
    ) -> Opened:
        """A notebook with values for some of its parameters.

        name : of the page; the notebook's own by default. more : `places`, those that the environment names
        by default; `measure`, `beside`.

        Raises
        ------
        NotebookError : it is no notebook, its parameters cannot be read, or the values do not fit them.
        """
        notebook = read_notebook(path)
        known = declared(notebook, path.stem)
        more["places"] = more.get("places") or Places.here()
        return cls(path, name or path.stem, notebook, known, checked(known, values or {}, path.stem), **more)

    @classmethod
    def of_page(cls, page: Page, **more: Any) -> Opened:
        """A page of the book; `more` and errors as for `of_notebook`."""
        return cls.of_notebook(notebook_path(page.notebook), page.parameters, name=page.name, **more)

    def with_values(self, values: Mapping[str, object], **more: Any) -> Opened:
        """The same notebook with other values, and with others of its fields if they are given.

        Raises
        ------
        NotebookError : the values do not fit the parameters.
        """
        return replace(self, given=checked(self.declared, values, self.chapter), **more)

    def with_cells(self, numbers: Sequence[int]) -> Opened:
        """The same page with some of its cells alone."""
        few = NotebookNode(self.notebook)
        few.cells = [self.notebook.cells[number] for number in numbers]
        return replace(self, notebook=few)

    @property
    def chapter(self) -> str:
        """Name of the notebook, which is that of the chapter whose study it opens."""
        return self.path.stem

    @cached_property
    def values(self) -> dict[str, object]:
        """Of every parameter its value: the given one, or the notebook's own."""
        return {name: self.given.get(name, one.default) for name, one in self.declared.items()}

    @cached_property
    def modules(self) -> list[str]:
        """Modules of this package that the notebook imports."""
        return modules(self.notebook)

    @property
    def looks_at_pages(self) -> bool:
        """Whether it looks at what other pages found."""
        return PAGES in self.declared

    @cached_property
    def studies(self) -> list[Study]:
        """The studies that the page opens, with the parameters that decide what they measure.

        Those that its cells open, each with the page's values; or, of a page that looks at other pages,
        theirs, and the counts of runs that differ in their learning rate alone.

        Raises
        ------
        CheckpointError, ManifestError, PairError : a study has nothing to open. NotebookError : the book has
        no such page.
        """
        if self.looks_at_pages:
            own: Any = self.values[PAGES]
            of_pages = studies_of(own, self.measure, places=self.places, beside=self.beside)
            rates = every_rate(self.measure, self.places)
            return [*of_pages.values(), *([rates] if rates else [])]
        if _STUDY not in self.modules:
            return []
        options: dict[str, Any] = {key: self.values[key] for key in STUDY_PARAMETERS if key in self.values}
        return [
            Study.open(chapter, **options, places=self.places, measure=self.measure)
            for chapter in opened_chapters(self.notebook) or [self.chapter]
        ]

    @property
    def study(self) -> Study | None:
        """The study of the page's own chapter; None of a page that opens none, or looks at other pages."""
        own = [] if self.looks_at_pages else self.studies
        return next((study for study in own if study.chapter == self.chapter), None)

    @cached_property
    def figures(self) -> dict[str, int]:
        """Names of the figures that it publishes, "chapter/figure", with the number of their cell."""
        return figures_of(self.notebook)

    def slice_of(self, figure: str) -> Slice:
        """What one of its figures needs.

        Raises
        ------
        NotebookError : the notebook publishes no figure of that name.
        """
        return slice_of(self.notebook, figure)

    def studies_for(self, part: Slice) -> list[Study]:
        """Those of its studies that a slice looks at; all, where its cells name none, as at other pages."""
        return [study for study in self.studies if study.chapter in part.tables or not part.tables]


def open_book(places: Places, measure: bool = True) -> list[Opened]:
    """The pages of the book in their order, each opened once; those that look at others look at these.

    Raises
    ------
    NotebookError : a page cannot be opened, before anything is done for any.
    """
    beside: dict[str, Opened] = {}
    for page in book_pages(project_root()):
        beside[page.name] = Opened.of_page(page, places=places, measure=measure, beside=beside)
    return list(beside.values())


def studies_of(
    pages: Sequence[str],
    measure: bool = True,
    *,
    places: Places | None = None,
    beside: Mapping[str, Opened] | None = None,
) -> dict[str, Study]:
    """The study of each page as the page itself opens it: with its seed and subject.

    Parameters
    ----------
    pages : names of pages; none takes every page of the book that looks at checkpoints.
    measure : whether they measure what is missing.
    places : of checkpoints and records. beside : pages that are open already, by name.

    Raises
    ------
    NotebookError : the book has no such page, or one that is named has no study of its own.
    """
    known = {page.name: page for page in book_pages(project_root())}
    if lost := [name for name in pages if name not in known]:
        raise NotebookError("the book has no such page", expected=", ".join(known), found=lost[0])
    chosen = list(pages) or [name for name, page in known.items() if page.notebook in WITH_JOBS]
    opened = {
        name: (beside or {}).get(name) or Opened.of_page(known[name], places=places, measure=measure)
        for name in chosen
    }
    found = {name: study for name, page in opened.items() if (study := page.study) is not None}
    if lost := [name for name in pages if name not in found]:
        raise NotebookError("a page has no study of its own", expected=", ".join(WITH_JOBS), found=lost[0])
    return found


def every_rate(measure: bool = True, places: Places | None = None) -> Study | None:
    """Counts of changed weights in the lab's finished runs that differ in their learning rate alone.

    None where this build has no two such runs.
    """
    finished = [
        pair.tuned
        for pair in lab_manifest(places=places).pairs()
        if pair.tuned.final and subject_of(pair.tuned) == LAB
    ]
    names = [entry.name for entry in of_several_rates(finished)]
    return Study.open("update-sparsity", pairs=names, places=places, measure=measure) if names else None


def of_several_rates(entries: Iterable[Entry]) -> list[Entry]:
    """Those of these checkpoints that another one differs from in its learning rate and in nothing else.

    Base, method, algorithm, data, updates and seed are the same, and so is what labels tell. A mask, an
    adapter, a KL term, another frame, optimiser or master weights are labels, so that a run with any of these
    is not taken at all.
    """
    plain = [entry for entry in entries if entry.learning_rate and not _beside_the_rate(entry)]
    rates: dict[tuple, set[float | None]] = {}
    for entry in plain:
        rates.setdefault(_but_the_rate(entry), set()).add(entry.learning_rate)
    return [entry for entry in plain if len(rates[_but_the_rate(entry)]) > 1]


def _beside_the_rate(entry: Entry) -> dict[str, str]:
    """Labels that tell of a run what most runs do not have; those that name what all others have do not."""
    return {name: told for name, told in entry.labels.items() if name != _RATE and _USUAL.get(name) != told}


def _but_the_rate(entry: Entry) -> tuple:
    return (entry.base, entry.method, entry.algorithm, entry.data, entry.updates, entry.seed)

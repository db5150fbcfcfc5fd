"""Every chapter of the house by name: what else the house has to know of it stands in its one entry here.

A chapter is a notebook of that name in `notebooks` and, with hyphens as underscores, a folder in `chapters`.
The names of its estimates are those that rules and controls in claims.yaml give. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from threegates.chapters.agents_rlhf import estimates as agents_rlhf
from threegates.chapters.curvature import estimates as curvature
from threegates.chapters.emergence import estimates as emergence
from threegates.chapters.errata import estimates as errata
from threegates.chapters.kl_leash import estimates as kl_leash
from threegates.chapters.learning_rate import estimates as learning_rate
from threegates.chapters.lora_vs_pissa import estimates as lora_vs_pissa
from threegates.chapters.precision_lens import estimates as precision_lens
from threegates.chapters.principal_overlap import estimates as principal_overlap
from threegates.chapters.rotation_ablation import estimates as rotation_ablation
from threegates.chapters.sparse_finetuning import estimates as sparse_finetuning
from threegates.chapters.spectral_drift import estimates as spectral_drift
from threegates.chapters.stripe_masks import estimates as stripe_masks
from threegates.chapters.update_sparsity import estimates as update_sparsity
from threegates.errors import ClaimError
from threegates.estimates.intervals import Estimate
from threegates.estimates.rows import Estimator, Tables


class Shows(Enum):
    """Whose pairs a chapter shows."""

    any_pair = "any pair, chosen by name or given as two checkpoints"
    by_name = "pairs chosen by name, each for itself"
    runs = "runs, chosen by name or given as a base and a series of checkpoints"
    runs_of_lab = "runs as only the lab has them, with their logs, recipes or weights"
    nothing = "no pair"


@dataclass(frozen=True)
class Chapter:
    """What the house knows of a chapter; a notebook that is no chapter of the house is as the defaults say.

    Parameters
    ----------
    jobs : kinds of job that it needs, of `threegates.jobs.kinds`; their tables are the chapter's.
    follows_steps : whether it looks at every kept step of a run, and not at final checkpoints alone.
    matrices_alone : whether it looks at nothing but the matrices of blocks.
    shows, why_not : whose pairs, and in plain words why not any.
    estimates : from `estimates.py` in its folder, by name.
    exact : whether these read no table, so that no record can change them.
    sweeps : of each headline table, the one that holds it over the choices that the paper leaves open.
    """

    name: str
    jobs: tuple[str, ...] = ()
    follows_steps: bool = False
    matrices_alone: bool = False
    shows: Shows = Shows.any_pair
    why_not: str = ""
    estimates: Mapping[str, Estimator] = field(default_factory=dict)
    exact: bool = False
    sweeps: Mapping[str, str] = field(default_factory=dict)


_CHAPTERS = (
    Chapter(
        "update-sparsity",
        jobs=("pair",),
        estimates=update_sparsity.ESTIMATES,
        sweeps={"tensor": "tensor_sweep"},
    ),
    Chapter(
        "stripe-masks",
        jobs=("pair", "group"),
        matrices_alone=True,
        estimates=stripe_masks.ESTIMATES,
        sweeps={"tensor": "tensor_sweep", "axis": "axis_sweep", "agreement": "agreement_sweep"},
    ),
    Chapter(
        "emergence",
        jobs=("run",),
        follows_steps=True,
        shows=Shows.runs,
        why_not="it follows a run over its training and needs several of its steps: a series as --tuned, or "
        "the names of that run's step checkpoints",
        estimates=emergence.ESTIMATES,
        sweeps={"emergence": "emergence_sweep"},
    ),
    Chapter(
        "spectral-drift",
        jobs=("drift",),
        matrices_alone=True,
        estimates=spectral_drift.ESTIMATES,
        sweeps={"drift": "drift_sweep"},
    ),
    Chapter(
        "principal-overlap",
        jobs=("overlap",),
        matrices_alone=True,
        estimates=principal_overlap.ESTIMATES,
        sweeps={"overlap": "sweep", "direction": "direction_sweep"},
    ),
    Chapter("precision-lens", jobs=("lens",), follows_steps=True, estimates=precision_lens.ESTIMATES),
    Chapter(
        "curvature",
        jobs=("curvature", "steepness"),
        shows=Shows.by_name,
        why_not="it needs the data that the base was trained on, known of the study's own bases alone",
        estimates=curvature.ESTIMATES,
    ),
    Chapter(
        "rotation-ablation",
        jobs=("rotation", "frame"),
        shows=Shows.runs_of_lab,
        why_not="it compares runs from a base with runs from the same base in other coordinates",
        estimates=rotation_ablation.ESTIMATES,
    ),
    Chapter(
        "learning-rate",
        jobs=("pair",),
        shows=Shows.runs_of_lab,
        why_not="it compares learning rates and optimisers among runs of the lab",
        estimates=learning_rate.ESTIMATES,
        sweeps={"tensor": "tensor_sweep"},
    ),
    Chapter(
        "kl-leash",
        jobs=("fisher",),
        shows=Shows.runs_of_lab,
        why_not="it is drawn from training logs, which only the lab has, of arms that belong together",
        estimates=kl_leash.ESTIMATES,
    ),
    Chapter(
        "sparse-finetuning",
        shows=Shows.runs_of_lab,
        why_not="it compares runs of the lab under fixed masks with the dense run of their seed",
        estimates=sparse_finetuning.ESTIMATES,
    ),
    Chapter(
        "lora-vs-pissa",
        shows=Shows.runs_of_lab,
        why_not="it compares adapters of the lab over a grid of ranks and learning rates",
        estimates=lora_vs_pissa.ESTIMATES,
    ),
    Chapter(
        "agents-rlhf",
        shows=Shows.by_name,
        why_not="it shows tables of published pairs, which `threegates measure --pair NAME` writes",
        estimates=agents_rlhf.ESTIMATES,
    ),
    Chapter(
        "errata",
        shows=Shows.nothing,
        why_not="it computes what is printed in the paper and looks at no checkpoint",
        estimates=errata.ESTIMATES,
        exact=True,
    ),
    Chapter(
        "miniature-lab",
        shows=Shows.runs_of_lab,
        why_not="it describes the lab itself, by logs and evaluations that only its runs have",
    ),
    Chapter(
        "sensitivity",
        shows=Shows.nothing,
        why_not="it looks at pages of the book and takes no pair",
    ),
    Chapter(
        "your-own-model",
        shows=Shows.nothing,
        why_not="it is a tutorial and runs on a pair of the lab",
    ),
)
#: Chapters by name.
CHAPTERS: Mapping[str, Chapter] = {one.name: one for one in _CHAPTERS}
#: Kinds of job of each chapter that has any.
WITH_JOBS: Mapping[str, tuple[str, ...]] = {one.name: one.jobs for one in _CHAPTERS if one.jobs}
#: Chapters that show any pair.
ANY_PAIR = tuple(one.name for one in _CHAPTERS if one.shows is Shows.any_pair)
#: Chapters that an entry of a manifest may name.
TAKING_PAIRS = tuple(one.name for one in _CHAPTERS if one.shows is not Shows.nothing)
#: Of each headline table, the sweep that holds it over the choices.
SWEEPS: Mapping[str, str] = {table: sweep for one in _CHAPTERS for table, sweep in one.sweeps.items()}
ESTIMATES: Mapping[str, Estimator] = {
    name: compute for one in _CHAPTERS for name, compute in one.estimates.items()
}
#: Those that read no table: no record can change them.
EXACT = frozenset(name for one in _CHAPTERS if one.exact for name in one.estimates)


def chapter_of(name: str) -> Chapter:
    """The chapter of that name; of a notebook that is no chapter of the house, what its name alone says."""
    return CHAPTERS.get(name, Chapter(name))


def estimate(name: str, tables: Tables, confidence: float = 0.95) -> Estimate:
    """Compute the estimate of that name.

    Raises
    ------
    ClaimError : there is no estimate of that name.
    """
    if name not in ESTIMATES:
        raise ClaimError("there is no such estimate", expected=", ".join(sorted(ESTIMATES)), found=name)
    return ESTIMATES[name](tables, confidence)

"""Which pairs a chapter can show, and in plain words why it cannot show others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from threegates.checkpoints.manifests.manifest import Manifest
from threegates.errors import NotebookError, ThreeGatesError
from threegates.jobs.sources import PAPER

#: Chapters that show any pair, chosen by name or given as two checkpoints.
ANY_PAIR = ("update-sparsity", "stripe-masks", "spectral-drift", "principal-overlap", "precision-lens")
#: Chapters that show pairs by name, each for itself; what goes wrong there is not the choice.
_BY_NAME = ("agents-rlhf", "curvature")
#: Why a chapter cannot show every pair.
WHY_NOT = {
    "agents-rlhf": "it shows tables of published pairs, which `threegates measure --pair NAME` writes",
    "curvature": "it needs the data that the base was trained on, known of the study's own bases alone",
    "emergence": "it follows a run over its training and needs the names of that run's step checkpoints",
    "errata": "it computes what is printed in the paper and looks at no checkpoint",
    "kl-leash": "it is drawn from training logs, which only the lab has, of arms that belong together",
    "learning-rate": "it compares learning rates and optimisers among runs of the lab",
    "lora-vs-pissa": "it compares adapters of the lab over a grid of ranks and learning rates",
    "miniature-lab": "it describes the lab itself, by logs and evaluations that only its runs have",
    "rotation-ablation": "it compares runs from a base with runs from the same base in other coordinates",
    "sensitivity": "it looks at pages of the book and takes no pair",
    "sparse-finetuning": "it compares runs of the lab under fixed masks with the dense run of their seed",
    "your-own-model": "it is a tutorial and runs on a pair of the lab",
}
#: Of these, the ones that look at logs, recipes or weights as only the lab's runs have them.
_RUNS_OF_LAB = (
    "kl-leash",
    "learning-rate",
    "lora-vs-pissa",
    "miniature-lab",
    "rotation-ablation",
    "sparse-finetuning",
)


def refuse_unsuited(
    chapter: str, parameters: Collection[str], pairs: Sequence[str], base: str | None
) -> None:
    """Refuse a choice that a chapter has no parameter for.

    Raises
    ------
    NotebookError : it takes no pairs by name, or none of one's own; says why and which chapters do.
    """
    for option, given, name in (("--pair", pairs, "pairs"), ("--base and --tuned", base, "base")):
        if given and name not in parameters:
            why = WHY_NOT.get(chapter, f"its notebook has no parameter '{name}'")
            raise NotebookError(
                f"{chapter} cannot be run with {option}: {why}",
                remedy=f"take one that shows any pair: {', '.join(ANY_PAIR)}",
            )


def refuse_foreign(chapter: str, manifest: Manifest) -> None:
    """Refuse pairs that others trained where a chapter needs what only runs of the lab have.

    Raises
    ------
    NotebookError : the pairs are of a manifest that is not the lab's; says why and which chapters show them.
    """
    if chapter in _RUNS_OF_LAB and manifest.profile in (None, PAPER):
        raise NotebookError(
            f"{chapter} cannot show these pairs: {WHY_NOT[chapter]}",
            found="pairs of a manifest that the lab did not write",
            remedy=f"take a chapter that shows any pair: {', '.join(ANY_PAIR)}",
        )


def explained(chapter: str, error: ThreeGatesError) -> ThreeGatesError:
    """The error that a chapter ended with on pairs of a reader's choice, with what it cannot show."""
    if chapter not in WHY_NOT or chapter in _BY_NAME:
        return error
    return NotebookError(
        f"{chapter} cannot show these pairs: {WHY_NOT[chapter]}",
        found=error.what if error.found is None else f"{error.what}: {error.found}",
        remedy=f"choose all runs that it compares, or a chapter for any pair: {', '.join(ANY_PAIR)}",
    )

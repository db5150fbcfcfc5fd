"""The numbers that claims are judged by: each a named function from tables to an estimate with an interval.

A name here is the name that a rule or a control in claims.yaml gives. Nothing here reads a file.
"""

from __future__ import annotations

from threegates.chapters.agents_rlhf import estimates as agents_rlhf_estimates
from threegates.chapters.curvature import estimates as curvature_estimates
from threegates.chapters.emergence import estimates as emergence_estimates
from threegates.chapters.errata import estimates as errata_estimates
from threegates.chapters.kl_leash import estimates as kl_leash_estimates
from threegates.chapters.learning_rate import estimates as learning_rate_estimates
from threegates.chapters.lora_vs_pissa import estimates as lora_vs_pissa_estimates
from threegates.chapters.precision_lens import estimates as precision_lens_estimates
from threegates.chapters.principal_overlap import estimates as principal_overlap_estimates
from threegates.chapters.rotation_ablation import estimates as rotation_ablation_estimates
from threegates.chapters.sparse_finetuning import estimates as sparse_finetuning_estimates
from threegates.chapters.spectral_drift import estimates as spectral_drift_estimates
from threegates.chapters.stripe_masks import estimates as stripe_masks_estimates
from threegates.chapters.update_sparsity import estimates as update_sparsity_estimates
from threegates.errors import ClaimError
from threegates.estimates.intervals import Estimate
from threegates.estimates.rows import Estimator, Tables

ESTIMATES: dict[str, Estimator] = {
    **update_sparsity_estimates.ESTIMATES,
    **stripe_masks_estimates.ESTIMATES,
    **emergence_estimates.ESTIMATES,
    **spectral_drift_estimates.ESTIMATES,
    **principal_overlap_estimates.ESTIMATES,
    **precision_lens_estimates.ESTIMATES,
    **rotation_ablation_estimates.ESTIMATES,
    **curvature_estimates.ESTIMATES,
    **sparse_finetuning_estimates.ESTIMATES,
    **lora_vs_pissa_estimates.ESTIMATES,
    **kl_leash_estimates.ESTIMATES,
    **learning_rate_estimates.ESTIMATES,
    **agents_rlhf_estimates.ESTIMATES,
    **errata_estimates.ESTIMATES,
}
#: Those that read no table: no record can change them.
EXACT = frozenset(errata_estimates.ESTIMATES)


def estimate(name: str, tables: Tables, confidence: float = 0.95) -> Estimate:
    """Compute the estimate of that name.

    Raises
    ------
    ClaimError : there is no estimate of that name.
    """
    if name not in ESTIMATES:
        raise ClaimError("there is no such estimate", expected=", ".join(sorted(ESTIMATES)), found=name)
    return ESTIMATES[name](tables, confidence)

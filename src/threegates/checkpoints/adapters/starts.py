"""What an adapter starts with where that is not zero: its factors are computed again, or read from a folder.

Under such a start the base's weights are changed by as much as the factors hold, so that what training did is
s (BA − B₀A₀), of twice the rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threegates.checkpoints.adapters.config import COMPUTED, PLAIN, AdapterConfig
from threegates.checkpoints.adapters.factors import Factors
from threegates.errors import CheckpointError


def needs_start(config: AdapterConfig, given: bool) -> bool:
    """Whether a start has to be taken off; `given` says that one was named.

    Raises
    ------
    CheckpointError : the start follows from data or chance, and none was named.
    """
    if given:
        return True
    if config.start in PLAIN:
        return False
    if config.start in COMPUTED:
        return True
    raise CheckpointError(
        f"the adapter started from '{config.start}', which does not follow from the base's weights",
        where=config.folder,
        expected=f"a start among {', '.join(map(str, (*PLAIN, *COMPUTED)))}, or the factors it began with",
        found=config.start,
        remedy="name the folder that the adapter was saved to before training: --adapter-start FOLDER; "
        "without it, merge the adapter with peft and give that model",
    )


def computed(kind: str, weight: Tensor, rank: int, scaling: float) -> Factors:
    """s·B₀A₀ of a weight (out, in) as peft computes it, in float32.

    pissa : the leading singular triplets. olora : Q and R of a QR decomposition, times s.

    **Source** Meng et al. (2024), arXiv 2404.02948, eq. 2–4; Büyükakyüz (2024), arXiv 2406.01775, alg. 1.
    """
    return _COMPUTED[kind](weight.float(), rank, scaling)


def _pissa(weight: Tensor, rank: int, scaling: float) -> Factors:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return Factors(left[:, :rank].double() * values[:rank].double(), right[:rank].double())


def _olora(weight: Tensor, rank: int, scaling: float) -> Factors:
    q, r = torch.linalg.qr(weight)
    return Factors(scaling * q[:, :rank].double(), r[:rank].double())


_COMPUTED: dict[str, Callable[[Tensor, int, float], Factors]] = {"pissa": _pissa, "olora": _olora}

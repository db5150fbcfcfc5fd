"""The verdicts that planted studies deserve."""

from __future__ import annotations

from threegates.judging.verdicts import Judgement

REPRODUCED, STORAGE = str(Judgement.reproduced), str(Judgement.by_storage)
SIZE, DATA, RATE = str(Judgement.by_size), str(Judgement.by_data), str(Judgement.by_rate)
NONE, AGAINST = str(Judgement.no_effect), str(Judgement.contradicted)

#: Claims that noise of equal norm makes true: theorems, what bf16 does to noise, and RFT like RL.
TRUE_OF_NOISE = {
    "bf16-hides-updates",
    "storage-raises-the-jaccard-index",
    "storage-avoids-principal-weights",
    "storage-prefers-low-magnitude-weights",
    "storage-empties-principal-not-low",
    "rft-as-sparse-as-rl",
    "spectrum-bounds-hold",
    "wedin-as-printed-holds",
    "wedin-corrected-holds",
}
#: By kind of study and claim.
DESERVED = {
    ("nothing", "rl-avoids-principal-weights"): STORAGE,
    ("nothing", "rl-prefers-low-magnitude-weights"): STORAGE,
    ("nothing", "rl-avoids-principal-not-low-weights"): STORAGE,
    ("nothing", "masks-are-striped"): STORAGE,
    ("nothing", "masks-agree-across-runs"): STORAGE,
    ("nothing", "rl-keeps-the-spectrum"): NONE,
    ("nothing", "rl-keeps-the-subspaces"): NONE,
    ("norm", "rl-keeps-the-spectrum"): SIZE,
    ("norm", "rl-keeps-the-subspaces"): SIZE,
    ("norm", "rl-avoids-principal-weights-more-than-sft"): SIZE,
    ("avoidance", "rl-avoids-principal-weights"): REPRODUCED,
    ("avoidance", "fp32-update-avoids-principal-weights"): REPRODUCED,
    ("avoidance", "rl-avoids-principal-weights-more-than-sft"): REPRODUCED,
    ("stripes", "masks-are-striped"): REPRODUCED,
    ("stripes", "rows-stand-out-in-qkv"): REPRODUCED,
    ("stripes", "columns-stand-out-in-o"): REPRODUCED,
    ("stripes", "masks-agree-across-runs"): REPRODUCED,
    ("turning", "rl-keeps-the-subspaces"): REPRODUCED,
    ("data", "rl-keeps-the-subspaces"): DATA,
    ("rate", "rl-keeps-the-subspaces"): RATE,
    ("size", "rl-keeps-the-subspaces"): SIZE,
    ("reversed", "rl-keeps-the-subspaces"): AGAINST,
}

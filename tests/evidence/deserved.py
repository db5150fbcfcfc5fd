"""The verdicts that planted studies deserve."""

from __future__ import annotations

from threegates.judging.verdicts import Judgement

REPRODUCED, STORAGE = str(Judgement.reproduced), str(Judgement.storage)
GONE, NOT = str(Judgement.gone_when_matched), str(Judgement.not_reproduced)

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
    ("nothing", "rl-keeps-the-spectrum"): NOT,
    ("nothing", "rl-keeps-the-subspaces"): NOT,
    ("norm", "rl-sparser-than-sft"): GONE,
    ("norm", "rl-keeps-the-spectrum"): GONE,
    ("norm", "rl-keeps-the-subspaces"): GONE,
    ("norm", "rl-avoids-principal-weights-more-than-sft"): GONE,
    ("avoidance", "rl-avoids-principal-weights"): REPRODUCED,
    ("avoidance", "fp32-update-avoids-principal-weights"): REPRODUCED,
    ("avoidance", "rl-avoids-principal-weights-more-than-sft"): REPRODUCED,
    ("stripes", "masks-are-striped"): REPRODUCED,
    ("stripes", "rows-stand-out-in-qkv"): REPRODUCED,
    ("stripes", "columns-stand-out-in-o"): REPRODUCED,
    ("stripes", "masks-agree-across-runs"): REPRODUCED,
    ("turning", "rl-keeps-the-subspaces"): REPRODUCED,
}

"""Profiles: how much of the study is trained, and what a plan says of each run before it has a digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from threegates.checkpoints.manifests.manifest import Method
from threegates.errors import RecipeError
from threegates.lab.kl import Estimator
from threegates.lab.recipe import AnyRecipe, Init, Mask, Rotation

BASE, ENCODER_BASE = "lab-base", "encoder-base"
#: The profile of `threegates.lab.plans.larger`, which has runs of its own.
GPU = "gpu"
FIRST_SEED = 101
#: Rank of the adapters that every start has.
RANK = 8
# Learning rates: RL's for masks (reward barely moves, weights move by about one ULP), RL's for reward
# curves, and SFT's own, of the size that fine-tuning usually takes.
RATES = {"mask": 5e-6, "reward": 2e-4, "own": 3e-4}


@dataclass(frozen=True)
class Arms:
    """Arms of the interventions; each is trained with every seed of its profile.

    Attributes
    ----------
    steps : length of runs under masks and of adapters; they stop before the reward is at its ceiling.
    masks, mask_rates : arms and learning rates of sparse fine-tuning. shares : the α of M_princ beside the
        headline's, at the first rate alone.
    inits, adapter_rates : starts and learning rates of adapters of rank `RANK`, under GRPO.
    ranks, dapo_rates, sft_rates : of LoRA and PiSSA alone: further ranks, at all rates of GRPO; learning
        rates of rank `RANK` under DAPO and under SFT.
    kl : weight β and estimator of KL terms in the loss; a weight of 0 is the run without one.
    rates : learning rates of GRPO beside the mask rate, times that rate. sgd_rates : of SGD.
    rotations : kinds of rotated bases.
    """

    steps: int
    masks: tuple[Mask, ...] = ("dense", "principal", "off-principal", "low", "safe", "random")
    mask_rates: tuple[float, ...] = (2e-4,)
    shares: tuple[float, ...] = ()
    inits: tuple[Init, ...] = ("lora", "pissa", "milora")
    adapter_rates: tuple[float, ...] = (1e-3, 3e-3)
    ranks: tuple[int, ...] = ()
    dapo_rates: tuple[float, ...] = ()
    sft_rates: tuple[float, ...] = ()
    kl: tuple[tuple[float, Estimator], ...] = ((0.0, "k3"), (0.04, "k3"))
    rates: tuple[float, ...] = (10.0,)
    sgd_rates: tuple[float, ...] = (0.002, 0.006)
    rotations: tuple[Rotation, ...] = ("haar",)


@dataclass(frozen=True)
class Profile:
    """How much of the study is trained.

    Attributes
    ----------
    pretrain_steps, steps, reward_steps : lengths of pre-training, mask runs and reward-curve runs.
    seeds : seeds of every method.
    emergence : share of the steps at which step checkpoints are kept.
    evaluation_prompts : held-out prompts of the final evaluations.
    encoder_steps : length of the encoder's runs.
    arms : which arms the interventions have.
    """

    name: str
    pretrain_steps: int
    steps: int
    reward_steps: int
    seeds: tuple[int, ...]
    emergence: tuple[float, ...]
    evaluation_prompts: int
    encoder_steps: int
    arms: Arms


#: Shares of the steps at which step checkpoints are kept.
_KEPT = (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0)
_EVERY_ARM = Arms(
    24,
    mask_rates=(2e-4, 4e-4),
    shares=(0.25, 0.75),
    inits=("lora", "pissa", "milora", "orthonormal"),
    adapter_rates=(1e-3, 3e-3, 1e-2),
    ranks=(2, 32),
    dapo_rates=(1e-3, 3e-3),
    sft_rates=(1e-3, 1e-2),
    kl=((0.0, "k3"), (0.04, "k1"), (0.04, "k2"), (0.04, "k3"), (0.2, "k3")),
    rates=(2.0, 10.0, 40.0),
    sgd_rates=(0.0006, 0.002, 0.006),
    rotations=("haar", "hadamard"),
)
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", 300, 12, 8, (101,), (1 / 6, 1 / 3, 2 / 3, 1.0), 64, 8, Arms(4)),
        Profile("mini", 1600, 48, 40, (101, 102, 103), _KEPT, 512, 24, Arms(24)),
        Profile("full", 1600, 48, 40, (101, 102, 103, 104, 105, 106), _KEPT, 512, 24, _EVERY_ARM),
    )
}


@dataclass(frozen=True)
class Draft:
    """A recipe and what the manifest says of its checkpoints.

    subject : None for the lab's own model. labels : of its entries, beside the rate.
    """

    recipe: AnyRecipe
    method: Method
    algorithm: str
    rate: str
    chapters: tuple[str, ...]
    subject: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def profile(name: str) -> Profile:
    """The named profile; raises RecipeError that lists the known ones."""
    if name not in PROFILES:
        raise RecipeError(
            f"There is no lab profile {name!r}.",
            expected=" | ".join([*PROFILES, GPU]),
            found=name,
            remedy="Choose one of the expected profiles.",
        )
    return PROFILES[name]


def run_name(label: str, data: str, rate: str, seed: int) -> str:
    """``grpo-arith-4-s101``; runs at another rate than RL's mask rate, or without float32 masters, say so."""
    return "-".join([label, data, *([] if rate == "mask" else [rate]), f"s{seed}"])

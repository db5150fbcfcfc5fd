"""Runs of the interventions: rotated bases, masks, adapters, KL terms, learning rates and optimisers.

Each arm differs in one thing from a run that another arm or chapter has with the same seed, so that arms pair
by seed: they see the same prompts and, as long as their policies agree, the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from threegates.lab.plans.profiles import BASE, FIRST_SEED, RANK, RATES, Draft, Profile, run_name
from threegates.lab.recipe import (
    LOW_SHARE,
    AdapterRLRecipe,
    AdapterSFTRecipe,
    Init,
    Mask,
    MaskedRLRecipe,
    RLRecipe,
    RotatedBaseRecipe,
    Rotation,
    SFTRecipe,
)

DATA = "arith-4"
# The paper's Qwen3-4B-Base: one layer rotated, another rotated and its heads permuted, all others untouched.
ROTATED, PERMUTED = (1, 2), (2,)
# A share of M_low that marks no weight of a matrix of the lab.
NOTHING_LOW = 1e-9


def intervention_drafts(chosen: Profile) -> Iterator[Draft]:
    """Every run of the interventions, bases before what starts from them."""
    for kind in chosen.arms.rotations:
        yield _rotated_base(kind)
        for seed in chosen.seeds:
            yield _from_rotated(chosen, kind, seed)
    for seed in chosen.seeds:
        yield from _masked(chosen, seed)
        yield from _adapted(chosen, seed)
        yield from _leashed(chosen, seed)
        yield from _rates(chosen, seed)


def _common(seed: int, steps: int) -> dict[str, Any]:
    return {"base": BASE, "data": DATA, "seed": seed, "steps": steps}


def rotated_name(kind: Rotation) -> str:
    """Name of a rotated base."""
    return f"{BASE}-{kind}"


def _rotated_base(kind: Rotation) -> Draft:
    recipe = RotatedBaseRecipe(
        name=rotated_name(kind),
        base=BASE,
        seed=FIRST_SEED,
        rotation=kind,
        rotated=ROTATED,
        permuted=PERMUTED,
    )
    return Draft(recipe, "pretrain", kind, "own", (), labels={"frame": kind})


def _from_rotated(chosen: Profile, kind: Rotation, seed: int) -> Draft:
    common = _common(seed, chosen.steps) | {"base": rotated_name(kind)}
    recipe = RLRecipe(
        name=run_name(f"grpo-{kind}", DATA, "mask", seed),
        algorithm="grpo",
        learning_rate=RATES["mask"],
        **common,
    )
    return Draft(recipe, "rl", "grpo", "mask", ("rotation-ablation",), labels={"frame": kind})


def _masked(chosen: Profile, seed: int) -> Iterator[Draft]:
    arms = chosen.arms
    cells: list[tuple[Mask, float, float, float]]
    cells = [(mask, rate, 0.5, LOW_SHARE) for rate in arms.mask_rates for mask in arms.masks]
    # Without low-magnitude weights the safe mask is M_princ's complement, so that this has M_princ's size.
    cells += [("random", rate, 0.5, NOTHING_LOW) for rate in arms.mask_rates]
    cells += [
        (mask, arms.mask_rates[0], share, min(share * 2 * LOW_SHARE, 0.9))
        for share in arms.shares
        for mask in arms.masks
        if mask != "dense"
    ]
    for mask, rate, share, low in cells:
        label = "random-half" if low == NOTHING_LOW else mask
        cell = f"{rate:g}" + ("" if share == 0.5 else f"-{share:g}")
        recipe = MaskedRLRecipe(
            name=run_name(f"mask-{label}", DATA, cell, seed),
            algorithm="grpo",
            mask=mask,
            share=share,
            low_share=low,
            learning_rate=rate,
            final_prompts=chosen.evaluation_prompts,
            evaluate_every=6,
            **_common(seed, arms.steps),
        )
        labels = {"mask": label, "share": f"{share:g}"}
        # Without a mask it is full fine-tuning, which adapters are held against.
        chapters = ("sparse-finetuning", *["lora-vs-pissa"] * (mask == "dense"))
        yield Draft(recipe, "rl", "grpo", f"{rate:g}", chapters, labels=labels)


def _adapted(chosen: Profile, seed: int) -> Iterator[Draft]:
    arms = chosen.arms
    for init in arms.inits:
        compared = init in ("lora", "pissa")
        for rank in (RANK, *(arms.ranks if compared else ())):
            for rate in arms.adapter_rates:
                yield _adapter(chosen, seed, init, rank, "grpo", rate)
        if compared:
            for method, rates in (("dapo", arms.dapo_rates), ("sft", arms.sft_rates)):
                for rate in rates:
                    yield _adapter(chosen, seed, init, RANK, method, rate)


def _adapter(chosen: Profile, seed: int, init: Init, rank: int, method: str, rate: float) -> Draft:
    settings: dict[str, Any] = {
        "name": run_name(
            "-".join([init, f"r{rank}", *[method] * (method != "grpo")]), DATA, f"{rate:g}", seed
        ),
        "init": init,
        "rank": rank,
        "alpha": float(rank),
        "learning_rate": rate,
        "evaluate_every": 6,
        "final_prompts": chosen.evaluation_prompts,
        **_common(seed, chosen.arms.steps),
    }
    told: dict[str, Any] = {"chapters": ("lora-vs-pissa",), "labels": {"init": init, "rank": str(rank)}}
    if method == "sft":
        return Draft(
            AdapterSFTRecipe(source="teacher", **settings), "sft", "sft-teacher", f"{rate:g}", **told
        )
    return Draft(AdapterRLRecipe(algorithm=method, **settings), "rl", method, f"{rate:g}", **told)


def _leashed(chosen: Profile, seed: int) -> Iterator[Draft]:
    """GRPO with KL terms of other weights and estimators; RFT at the rate of RL's reward curves."""
    common = _common(seed, chosen.reward_steps) | {"learning_rate": RATES["reward"]}
    for weight, estimator in chosen.arms.kl:
        told = f"kl{weight:g}" + (f"-{estimator}" if weight else "")
        recipe = RLRecipe(
            name=run_name(f"grpo-{told}", DATA, "reward", seed),
            algorithm="grpo",
            kl_weight=weight,
            kl_estimator=estimator,
            leash=True,
            **common,
        )
        labels = {"kl": f"{weight:g}"} | ({"estimator": estimator} if weight else {})
        yield Draft(recipe, "rl", "grpo", "reward", ("kl-leash",), labels=labels)
    accepted = SFTRecipe(name=run_name("rft", DATA, "reward", seed), source="rft", **common)
    yield Draft(accepted, "rft", "rft", "reward", ("kl-leash",))


def _rates(chosen: Profile, seed: int) -> Iterator[Draft]:
    """GRPO at multiples of the mask rate, and with SGD."""
    common = _common(seed, chosen.steps) | {"algorithm": "grpo"}
    for factor in chosen.arms.rates:
        rate = factor * RATES["mask"]
        name = run_name("grpo", DATA, f"{rate:g}", seed)
        recipe = RLRecipe(name=name, learning_rate=rate, **common)
        yield Draft(recipe, "rl", "grpo", f"{rate:g}", ("learning-rate",), labels={"optimiser": "adamw"})
    for rate in chosen.arms.sgd_rates:
        name = run_name("grpo-sgd", DATA, f"{rate:g}", seed)
        recipe = RLRecipe(name=name, optimiser="sgd", weight_decay=0.0, learning_rate=rate, **common)
        yield Draft(recipe, "rl", "grpo", f"{rate:g}", ("learning-rate",), labels={"optimiser": "sgd"})

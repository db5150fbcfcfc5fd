"""What every null of the table keeps: its law, its streams, what it says that it holds, its own look."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from tests.planted.planted_weights import weights
from tests.planted.searched_noise import storage_scale_for_norm
from threegates.errors import GeometryError
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.masks import see
from threegates.geometry.laws.strata import value_strata
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls import __name__ as PACKAGE
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator, rounded_sum
from threegates.geometry.nulls.null import Null, Observed
from threegates.geometry.nulls.summaries import p_value
from threegates.geometry.nulls.table import NULLS, nulls_named
from threegates.geometry.stripes import dispersion, row_dispersion
from threegates.jobs.nulls import FOUNDING, laws

TRUE_SCALE = 6e-4
EVERY = pytest.mark.parametrize("null", NULLS.values(), ids=NULLS)


def planted_run(seed: int = 0, m: int = 48, n: int = 64) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A base, and a run that is rounded noise with some rows moved farther than others, with its norm."""
    base = weights(m, n, seed)
    noise = gaussian_noise(base.shape, noise_generator(seed, "planted run"))
    noise[::7] *= 3
    tuned = rounded_sum(base, noise, TRUE_SCALE)
    return base, tuned, float((tuned.double() - base.double()).norm())


def observed_of(seed: int = 0, eta: float | None = None, m: int = 48, n: int = 64) -> Observed:
    """The mask of a planted run."""
    base, tuned, norm = planted_run(seed, m, n)
    mask = update_mask(base, tuned, *([] if eta is None else [eta]))
    scale = storage_scale_for_norm(base, norm, noise_generator(seed, "scale"))
    return Observed("run", "tensor", base, mask, int(mask.sum()), scale, eta)


def draws(null: Null, observed: Observed, *names: str, number: int = 3, seed: int = 0) -> list[torch.Tensor]:
    return list(itertools.islice(null.sampler(observed, noise_generator(seed, *names)), number))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@EVERY
@pytest.mark.parametrize("eta", [None, 5e-3, 1e-2])
@pytest.mark.parametrize("shape", [(48, 64), (1, 5), (96,)])
def test_masks_are_bool_of_the_base_s_shape_and_drawn_anew(null, eta, shape):
    whole = observed_of(eta=eta, m=48, n=64)
    cut = [x.flatten()[: np.prod(shape)].reshape(shape) for x in (whole.base, whole.mask)]
    observed = dataclasses.replace(whole, base=cut[0], mask=cut[1], changed=int(cut[1].sum()))
    found = draws(null, observed)
    assert all(mask.shape == torch.Size(shape) and mask.dtype == torch.bool for mask in found)
    assert shape != (48, 64) or not torch.equal(found[0], found[1])


@EVERY
@pytest.mark.parametrize("eta", [None, 5e-3])
def test_a_stream_repeats_for_its_seed_and_names_and_for_no_others(null, eta):
    observed = observed_of(eta=eta)
    first = draws(null, observed, "a", seed=3)
    assert same(first, draws(null, observed, "a", seed=3))
    assert not same(first, draws(null, observed, "b", seed=3))
    assert not same(first, draws(null, observed, "a", seed=4))


@EVERY
def test_drawing_leaves_the_global_generator_and_the_observed_mask_alone(null):
    observed, before = observed_of(), torch.random.get_rng_state()
    mask, base = observed.mask.clone(), observed.base.clone()
    draws(null, observed)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(observed.mask, mask) and torch.equal(observed.base, base)


def quartiles(ps: list[float]) -> np.ndarray:
    return np.bincount(np.minimum((np.asarray(ps) * 4 - 1e-9).astype(int), 3), minlength=4)


# No null keeps what a mask holds of it, so that no draws are tied.
LOADS = torch.randn(24, 32, generator=torch.Generator().manual_seed(11))


def load(mask: torch.Tensor) -> float:
    """Σ of fixed random loads over a mask's entries."""
    return float((mask * LOADS).sum())


def p_values(planted_by: Null, judged_by: Null, statistic: Callable[..., float] = load) -> list[float]:
    """Of a statistic: data drawn by one null, judged by another or by itself."""
    found = []
    runs = [observed_of(seed, m=24, n=32) for seed in range(4)]
    for repetition in range(80):
        observed = runs[repetition % 4]
        (mask,) = draws(planted_by, observed, "planted", number=1, seed=repetition)
        seen = dataclasses.replace(observed, mask=mask, changed=int(mask.sum()))
        drawn = draws(judged_by, seen, "judged", number=19, seed=repetition)
        found.append(p_value(statistic(mask), [statistic(one) for one in drawn]))
    return found


@EVERY
def test_p_values_are_uniform_on_data_that_the_null_made(null):
    assert stats.chisquare(quartiles(p_values(null, null))).pvalue > 1e-3


def test_p_values_are_not_uniform_on_data_that_another_null_made():
    counts = quartiles(p_values(NULLS["storage_density"], NULLS["bernoulli"], row_dispersion))
    assert stats.chisquare(counts).pvalue < 1e-9 and counts[0] > 60


@EVERY
@pytest.mark.parametrize("eta", [None, 5e-3])
def test_masks_depend_on_what_the_null_is_matched_to_and_on_nothing_else_of_the_run(null, eta):
    observed = observed_of(eta=eta)
    other = {
        "mask": observed.mask.flatten()[torch.randperm(observed.mask.numel())].reshape(observed.mask.shape),
        "changed": observed.changed - 100,
        "scale": 2 * observed.scale,
    }
    assert set(null.matched_to) <= set(other) and null.matched_to
    found = draws(null, observed)
    for name, value in other.items():
        changed = draws(null, dataclasses.replace(observed, **{name: value}))
        assert same(found, changed) == (name not in null.matched_to)
    renamed = dataclasses.replace(observed, run="other", tensor="other")
    assert same(found, draws(null, renamed)), "names decide the stream, which is handed in"


def check_count(observed: Observed, drawn: list[torch.Tensor]) -> None:
    assert {int(mask.sum()) for mask in drawn} == {observed.changed}


def check_strata(observed: Observed, drawn: list[torch.Tensor]) -> None:
    """Strata lie within binades, and so both hold their counts."""
    codes = count_codes(observed.base)
    known = dict(zip(codes.values, value_strata(codes).of_code, strict=True))
    strata = np.array([known[float(w) + 0.0] for w in observed.base.flatten().double()])
    binades = np.frexp(observed.base.abs().double().numpy())[1].ravel() + 200
    for labels in (strata, binades):
        kept, *counts = (
            np.bincount(labels[mask.flatten().numpy()], minlength=400) for mask in (observed.mask, *drawn)
        )
        assert (kept > 0).sum() > 4 and all((kept == found).all() for found in counts)


def check_norm(observed: Observed, drawn: list[torch.Tensor]) -> None:
    """The masks are those of the noise of that scale, and its rounded updates have the norm."""
    source, base = noise_generator(0), observed.base
    tuned = [rounded_sum(base, gaussian_noise(base.shape, source), observed.scale) for _ in drawn]
    for mask, after in zip(drawn, tuned, strict=True):
        assert torch.equal(mask, update_mask(base, after, *([] if observed.eta is None else [observed.eta])))
    norms = [float((after.double() - base.double()).norm()) for after in tuned]
    _, _, norm = planted_run()
    assert observed_of().scale == observed.scale
    assert np.sqrt(np.mean(np.square(norms))) == pytest.approx(norm, rel=0.02)


#: What shows that a null holds what it says: of the observed mask and its draws, made with seed 0.
HOLDS = {
    "bernoulli": check_count,
    "storage_density": check_count,
    "storage_norm": check_norm,
    "magnitude": check_strata,
}


@EVERY
@pytest.mark.parametrize("eta", [None, 5e-3])
def test_every_null_holds_what_it_says(null, eta):
    observed = observed_of(eta=eta)
    HOLDS[null.name](observed, draws(null, observed, number=12))


OF_LAW = {name: null for name, null in NULLS.items() if null.law}


def test_every_founding_null_has_a_law_of_its_own_among_the_laws():
    named = laws(FOUNDING)
    assert len(set(named)) == len(FOUNDING)
    for null, name in zip(nulls_named(FOUNDING), named, strict=True):
        module, _, constant = name.rpartition(".")
        assert getattr(importlib.import_module(module), constant) is null.law


def moments(drawn: np.ndarray) -> tuple[float, float, float, float]:
    """Mean and sd of draws, each with its standard error, that of the sd from the fourth moment."""
    mean, sd = drawn.mean(), drawn.std(ddof=1)
    kurtosis = ((drawn - mean) ** 4).mean() / sd**4
    return mean, sd, sd / np.sqrt(len(drawn)), sd * np.sqrt((kurtosis - 1) / (4 * len(drawn)))


@pytest.mark.parametrize("null", OF_LAW.values(), ids=OF_LAW)
@pytest.mark.parametrize("shape", [(48, 64), (80, 40)])
def test_a_null_s_law_has_the_mean_and_spread_of_its_own_masks(null, shape):
    base, tuned, norm = planted_run(3, *shape)
    mask, weight = update_mask(base, tuned), base.double()
    # Of large and of small weights, which nulls tell apart, some: all of them the magnitude null holds.
    targets = [weight.abs() > weight.abs().median(), weight.abs() < weight.abs().quantile(0.125)]
    for target in targets:
        target[:, ::3] = False
    seen = see(base, mask, targets, norm=norm)
    observed = Observed("run", "tensor", base, mask, seen.changed, seen.scale)
    masks = draws(null, observed, "law", number=2000)
    shares = np.array([[int((one & target).sum()) / int(one.sum()) for target in targets] for one in masks])
    spread = np.array([dispersion(one) for one in masks])
    laws_of = [null.law.overlap(seen, seen.inside(bit)) for bit in (1, 2)]
    for law, drawn in zip([*laws_of, *null.law.dispersions(seen, base)], [*shares.T, *spread.T], strict=True):
        mean, sd, of_mean, of_sd = moments(drawn)
        assert law.how == "law"
        assert abs(law.mean - mean) < 4.5 * of_mean
        assert abs(law.sd - sd) < 0.05 * sd + 4 * of_sd


@EVERY
def test_a_uniform_null_changes_every_entry_as_often_as_any_other(null):
    observed = observed_of(m=12, n=16)
    shares = sum(mask.double() for mask in draws(null, observed, number=1500)) / 1500
    density = float(shares.mean())
    apart = float((shares - density).abs().max()) / np.sqrt(density * (1 - density) / 1500)
    assert (apart < 4.5) == null.uniform


@EVERY
def test_every_null_says_what_it_is_in_a_module_of_its_name(null):
    module = f"{PACKAGE}.{null.name}"
    # A job's digest starts from that name.
    assert f"{null.sampler.__module__}.{null.sampler.__qualname__}" == f"{module}.masks"
    assert inspect.getmodule(null.sampler).NULL is null
    assert re.fullmatch(r"[a-z_]+", null.name)
    for words in (null.title, null.source, null.holds, null.destroys):
        assert words.strip()


@EVERY
@pytest.mark.parametrize("eta", [None, 5e-3])
def test_noise_that_storage_rounds_depends_on_the_weights_and_not_on_the_run_s_mask(null, eta):
    observed = observed_of(eta=eta)
    moved = dataclasses.replace(observed, base=observed.base.flip(0))
    on_weights = not same(draws(null, observed), draws(null, moved))
    assert null.of_storage == (on_weights and "mask" not in null.matched_to)


def test_nulls_are_told_apart_by_name_title_and_look_all_of_them_grey():
    known = list(NULLS.values())
    for field in ("name", "title", "colour", "marker"):
        assert len({getattr(null, field) for null in known}) == len(known)
    for null in known:
        assert re.fullmatch(r"#([0-9A-F]{2})\1\1", null.colour)
    assert [null.name for null in known] == list(NULLS)


def test_nulls_come_by_name_in_the_table_s_order_once_each():
    names = list(NULLS)
    assert [null.name for null in nulls_named([names[2], names[0], names[2]])] == [names[0], names[2]]
    assert nulls_named(()) == ()
    with pytest.raises(GeometryError, match=f"(?s)no such null.*{names[0]}, .*uniform"):
        nulls_named([names[0], "uniform"])

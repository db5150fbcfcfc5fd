"""What measuring takes of memory: sizes in words, estimates, and plans that keep within a cap."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.planted import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.jobs import memory
from threegates.jobs.memory import PROCESS, Need, estimate, is_mapped, need_of, plan, run_within, taken
from threegates.jobs.nulls import founding_nulls
from threegates.measures.null_laws import DRAWABLE
from threegates.measures.tensor_table import PairTable
from threegates.records.sizes import MIB, MemoryCapError, parse_size, size_text

GIB = 1 << 30
SIZES = st.lists(st.integers(0, 2000).map(lambda size: size * MIB), max_size=30)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * GIB),
        ("2 gib", 2 * GIB),
        ("2G", 2 * GIB),
        ("2GB", 2_000_000_000),
        ("1.5GiB", 3 * GIB // 2),
        (" 800MiB ", 800 * MIB),
        ("750kB", 750_000),
        ("64k", 65536),
        ("1TiB", 1 << 40),
        ("1TB", 10**12),
        ("12345", 12345),
        ("12345B", 12345),
    ],
)
def test_sizes_are_read_in_both_kinds_of_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1GiB", "0", "0.0GiB", "2GiBs", "2 G iB", "2iB", "nan", "1e9", "two", "2,5GiB", "2PB"],
)
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(MemoryCapError, match="no amount of memory") as caught:
        parse_size(text)
    assert "2GiB" in str(caught.value) and f"found: {text}" in str(caught.value)


@given(st.integers(1, 1 << 44))
def test_a_printed_size_reads_back_as_about_the_same(size):
    read = parse_size(size_text(size + MIB).replace(" ", ""))
    assert abs(read - size - MIB) <= max(MIB, 0.01 * size)


def test_a_tensor_outside_blocks_needs_no_more_however_long_it_is():
    facts = {"spectra": False, "nulls": True, "mapped": True}
    embedding, longer = (estimate((rows, 1536), "BF16", "F32", **facts) for rows in (151_936, 10**7))
    assert embedding == longer < 600 * MIB


def test_a_base_that_is_rounded_is_held_and_decomposed_twice():
    facts = {"spectra": True, "nulls": True}
    rounded, stored = (estimate((8960, 1536), base, "F32", **facts) for base in ("F32", "BF16"))
    assert rounded >= stored + 2 * 8960 * 1536


def test_a_block_of_one_long_row_is_counted_as_it_is():
    facts = {"spectra": False, "nulls": False}
    stacked, flat = (estimate(shape, "BF16", "BF16", **facts) for shape in ((8, 6000, 6000), (288_000, 1000)))
    assert stacked > 2 * flat


@given(st.integers(1, 9000), st.integers(1, 9000), *[st.booleans()] * 4)
def test_more_of_anything_never_needs_less(rows, columns, spectra, axes, nulls, drawn):
    def of(shape=(rows, columns), types=("BF16", "BF16"), **more):
        facts = {"spectra": spectra, "nulls": nulls, "drawn": drawn, "axes": axes}
        return estimate(shape, *types, **facts | more)

    least = of()
    assert least >= memory.LEAST
    assert of((2 * rows, columns)) >= least and of((rows, 2 * columns)) >= least
    assert of(types=("F32", "F64")) >= of(types=("F32", "F32")) and of(mapped=False) > least
    assert of(spectra=True) >= of(spectra=False) and of(axes=True) >= of(axes=False)
    assert of(drawn=True) >= of(nulls=True, drawn=False) >= of(nulls=False, drawn=False)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_masks_of_a_large_tensor_need_far_more_than_laws_and_of_a_small_one_nothing_more(rows, columns):
    facts = {"spectra": True, "nulls": True, "axes": True}
    law, masks = (estimate((rows, columns), "BF16", "BF16", **facts, drawn=drawn) for drawn in (False, True))
    size = rows * columns
    # Laws fall back on masks where a tensor is small enough to draw them.
    assert masks == law if size <= DRAWABLE else masks >= law
    if size > 1 << 24:
        without = estimate((rows, columns), "BF16", "BF16", **facts | {"nulls": False})
        assert law - without <= 16 * size + 76 * DRAWABLE < masks - without + 60 * size


@given(SIZES, st.integers(1, 16), st.integers(700, 30_000))
def test_a_plan_keeps_the_cap_takes_every_task_once_and_wastes_no_room(sizes, workers, cap):
    cap *= MIB
    needs = [Need(f"t{number}", size) for number, size in enumerate(sizes)]
    too_large = [need for need in needs if PROCESS + need.size > cap]
    if too_large:
        with pytest.raises(MemoryCapError) as caught:
            plan(needs, cap, workers)
        assert f"'{too_large[0].tensor}'" in str(caught.value)
        return
    groups = plan(needs, cap, workers)
    assert sorted(number for group in groups for number in group.tasks) == list(range(len(needs)))
    assert [group.workers for group in groups] == sorted({group.workers for group in groups})
    for group in groups:
        assert 1 <= group.workers <= workers and list(group.tasks) == sorted(group.tasks)
        beside = 0 if group.workers == 1 else PROCESS
        largest = sorted((sizes[number] for number in group.tasks), reverse=True)[: group.workers]
        assert beside + group.workers * PROCESS + sum(largest) <= cap
        if group.workers < workers:
            more = group.workers + 1
            assert all((more + 1) * PROCESS + more * sizes[number] > cap for number in group.tasks)


def test_without_a_cap_there_is_one_group_of_all_workers():
    groups = plan([Need("a", 10**15), Need("b", 0)], None, 4)
    assert [(group.workers, group.tasks) for group in groups] == [(4, (0, 1))]
    assert plan([], GIB, 4) == []


def test_a_tensor_that_needs_more_than_the_cap_is_named_with_what_to_do():
    with pytest.raises(MemoryCapError) as caught:
        plan([Need("small", MIB), Need("model.layers.3.mlp.up_proj.weight", 3 * GIB)], 2 * GIB, 8)
    said = str(caught.value)
    assert "tensor 'model.layers.3.mlp.up_proj.weight' needs more memory than the cap" in said
    assert "found: 2.00 GiB" in said and size_text(3 * GIB + PROCESS) in said
    for remedy in ("--memory", "--layers", "--matrices", "--no-spectra"):
        assert remedy in said
    assert "--draws" not in said
    assert str(pickle.loads(pickle.dumps(caught.value))) == said


def test_tasks_run_in_the_groups_of_the_plan_and_none_if_one_cannot(monkeypatch):
    calls: list[tuple[int, list, list]] = []
    monkeypatch.setattr(
        memory,
        "run_parallel",
        lambda work, tasks, workers, label, sizes: calls.append((workers, tasks, sizes)),
    )
    needs = [Need("large", 700 * MIB, 5), Need("small", MIB, 6), Need("other", MIB, 7)]
    tasks = [(need.tensor,) for need in needs]
    run_within(print, tasks, needs, taken(MIB, 3), 3)
    assert calls == [(1, [("large",)], [5]), (3, [("small",), ("other",)], [6, 7])]
    calls.clear()
    with pytest.raises(MemoryCapError, match="'large'"):
        run_within(print, tasks, needs, PROCESS + MIB, 3)
    assert calls == []


def test_every_task_is_done_once_by_workers_too(tmp_path):
    needs = [Need(str(number), (number % 3) * 500 * MIB) for number in range(9)]
    run_within(_note, [(tmp_path, need.tensor) for need in needs], needs, taken(500 * MIB, 2), 2)
    found = Counter((tmp_path / "notes").read_text().split())
    assert found == Counter(need.tensor for need in needs)


def _note(folder, text):
    with open(folder / "notes", "a") as file:
        file.write(text + "\n")


@dataclass(frozen=True)
class _View(Checkpoint):
    inner: Checkpoint | None = None


class _Remote(Checkpoint):
    pass


@pytest.fixture
def pair(tmp_path):
    base = planted.base_tensors(width=64)
    tuned = planted.with_noise(base, 1e-3, 1)
    tuned["model.embed_tokens.weight"] = torch.zeros(14, 64)
    del tuned["lm_head.weight"]
    sides = {"base": base, "tuned": tuned}
    opened = [Checkpoint.open(planted.write(tmp_path / name, tensors)) for name, tensors in sides.items()]
    return PairTable(*opened, "p", axes=True, nulls=founding_nulls())


def test_what_a_row_needs_is_known_from_the_headers_of_every_tensor(pair):
    needs = {name: need_of(pair, name) for name in pair.names}
    assert all(need.tensor == name and need.size >= memory.LEAST for name, need in needs.items())
    q, norm = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"
    facts = {"spectra": True, "nulls": True, "axes": True}
    assert needs[q].size == estimate((64, 64), "BF16", "F32", **facts)
    assert needs[norm].size == estimate((64,), "BF16", "F32", **facts | {"spectra": False, "axes": False})
    assert needs[q].size > need_of(replace(pair, spectra=False, axes=False, nulls=()), q).size
    drawn = need_of(pair, q, drawn=True).size
    assert drawn == estimate((64, 64), "BF16", "F32", **facts, drawn=True) >= needs[q].size


def test_what_is_read_counts_where_it_is_no_mapped_file(pair):
    q = "model.layers.0.self_attn.q_proj.weight"
    local, view = pair.base, _View(**vars(pair.base), inner=pair.base)
    remote = _Remote(**vars(pair.base))
    assert is_mapped(local) and is_mapped(view)
    assert not is_mapped(remote) and not is_mapped(_View(**vars(pair.base), inner=remote))
    assert need_of(replace(pair, base=view), q) == need_of(pair, q)
    assert need_of(replace(pair, base=remote), q).size == need_of(pair, q).size + 64 * 64 * 6

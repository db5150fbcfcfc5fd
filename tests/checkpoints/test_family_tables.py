"""Families as two generations of transformers write them: whatever layouts meet, all is compared.

The oracle is the tables of `families/`, read from what transformers wrote, entry by entry. Both sides of a
pair are made from one set of weights in two layouts; the tuned side has another sign in a planted number of
entries of each tensor, so that magnitudes say whether the right entries met.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoints.family_tables import INNER, SQUARES, TABLES, Family, entries, family, layout_facts
from tests.checkpoints.made import written
from threegates.appendices.pairs_page import read_families
from threegates.checkpoints.experts import is_expert
from threegates.checkpoints.formats.families import family_of
from threegates.checkpoints.formats.roles import block, role
from threegates.checkpoints.matching import brought_together, matching_notes
from threegates.checkpoints.pairs import Status, align, load_rows
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import canonical
from threegates.measures.changes import count
from threegates.records.provenance import project_root

FAMILIES = sorted(path.stem for path in TABLES.glob("*.json"))
#: What one generation alone has.
YOUNG = {"qwen3_5", "qwen3_5_moe"}
HELD = "5.23.0, in memory"


def sizes(name: str) -> tuple[int, ...]:
    """Inner sizes of experts that a family is tried with: two of them make matrices square."""
    return (INNER, *SQUARES) if '"moe_intermediate_size": 10' in table_text(name) else (INNER,)


def table_text(name: str) -> str:
    return (TABLES / f"{name}.json").read_text(encoding="utf-8")


def planted(values: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The same weights with other signs here and there, and how many in each tensor."""
    tuned, counts = {}, {}
    for number, (name, value) in enumerate(values.items()):
        counts[name] = min(value.numel(), number % 7)
        flat = value.flatten().clone()
        # An odd step away from the last entry, so that all experts and parts get some.
        at = [(flat.numel() - 1 - 37 * one) % flat.numel() for one in range(counts[name])]
        counts[name] = len(set(at))
        flat[at] = -flat[at]
        tuned[name] = flat.reshape(value.shape)
    return tuned, counts


def lines(value: Tensor) -> Iterator[bytes]:
    """Every row and every column of a tensor's matrices, as bytes; of a vector, some entries from each on."""
    few = value.unfold(0, min(4, len(value)), 1) if value.dim() == 1 else value
    for stack in (few, few.transpose(-1, -2)) if value.dim() > 1 else (few,):
        whole = stack.reshape(-1, stack.shape[-1]).abs().bfloat16().contiguous()
        yield from (row.tobytes() for row in whole.view(torch.uint8).numpy())


def owners(values: Mapping[str, Tensor]) -> dict[bytes, str]:
    return {line: name for name, value in values.items() for line in lines(value)}


def pairs_of(one: Family) -> Iterator[tuple[str, str]]:
    """The first layout and each that differs from it, in either order; and each beside itself."""
    different: dict[str, str] = {}
    for name, layout in one.layouts.items():
        different.setdefault(repr(sorted(layout.items())), name)
    first, *others = different.values()
    yield first, first
    for other in others:
        yield from ((first, other), (other, first), (other, other))


def opened(
    folder: Path, one: Family, layouts: tuple[str, str], sides: tuple[Mapping, Mapping]
) -> tuple[Checkpoint, Checkpoint]:
    base, tuned = (
        written(folder / side, one.built(layout, values), **one.config)
        for side, layout, values in zip(("base", "tuned"), layouts, sides, strict=True)
    )
    return brought_together(canonical(base), canonical(tuned))


@pytest.mark.parametrize("name", FAMILIES)
def test_all_layouts_of_a_family_meet_with_the_planted_counts(tmp_path, name):
    for inner in sizes(name):
        one = family(name, inner)
        values = one.values()
        tuned_values, expected = planted(values)
        known = owners(values)
        for number, layouts in enumerate(pairs_of(one)):
            told = f"{name}, {inner}: {' and '.join(layouts)}"
            base, tuned = opened(tmp_path / f"{inner}-{number}", one, layouts, (values, tuned_values))
            rows = align(base, tuned)
            assert {row.status for row in rows} == {Status.compared}, told
            found: Counter[str] = Counter()
            for row in rows:
                stored = base.stored(row.name)
                assert torch.equal(stored.float(), tuned.stored(row.name).float().abs()), (told, row.name)
                owner = known[next(lines(stored))]
                found[owner] += count(load_rows(base, tuned, row.name)).counts.changed
                assert_place(row.name, stored, owner)
            assert dict(found) == expected, told
            assert sum(base.info(row.name).size for row in rows) == entries(one.layouts[layouts[0]]), told


def assert_place(name: str, stored: Tensor, owner: str) -> None:
    """Experts come one by one, and a tower's blocks are no blocks of the text model."""
    assert not (is_expert(name) and stored.dim() > 2), name
    tower = "vision" in owner or "visual" in owner
    found = block(name)
    assert found is None or (found[0] == "vision") is tower, name


def test_the_book_says_of_the_layouts_what_the_tables_say():
    told = {name: layout_facts(json.loads(table_text(name))) for name in FAMILIES}
    assert read_families(project_root()) == told


def test_the_tables_are_of_both_generations_and_small():
    assert len(FAMILIES) >= 50
    for name in FAMILIES:
        generations = {layout[0] for layout in family(name).layouts}
        assert generations == ({"5"} if name in YOUNG else {"4", "5"})
        assert len(table_text(name)) < 6000


#: Families that are taken by the names they are stored under.
UNKNOWN = {"bert", "falcon", "gpt2", "mamba2", "modernbert", "opt", "roberta", "t5"}
#: What a block's matrices are in known families, beside the linear layers that have roles.
OTHERS = {
    *("gate", "router", "layer", "shared_expert_gate"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    *("in_proj_a", "in_proj_b", "in_proj_ba", "in_proj_qkvz", "in_proj_z"),
    *("in_proj", "x_proj", "dt_proj"),
    *("correction_coefs", "modality_router", "prediction_coefs", "linear_left", "linear_right"),
    *("per_layer_input_gate", "per_layer_projection"),
    *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gate_up_proj",
}


def test_which_families_are_known_and_which_of_their_matrices_have_no_role(tmp_path):
    found = set()
    for name in FAMILIES:
        one = family(name)
        first = next(iter(one.layouts))
        checkpoint = canonical(written(tmp_path / name, one.built(first, one.values()), **one.config))
        assert family_of(checkpoint).known is (name not in UNKNOWN), name
        if name not in UNKNOWN:
            both = brought_together(checkpoint, checkpoint)[0].infos.values()
            odd = (info.name for info in both if block(info.name) and role(info.name, info.shape) == "other")
            found |= {one.removesuffix(".weight").split(".")[-1] for one in odd if one.endswith(".weight")}
    assert found == OTHERS


# What mlx_lm makes of single experts


def of_mlx(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts stacked as `switch_mlp`, gate and up apart, as mlx_lm 0.32.2 saves them; all else as it is."""
    found: dict[str, Tensor] = {}
    stacks: dict[str, list[Tensor]] = {}
    words = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for name, value in tensors.items():
        front, _, rest = name.partition(".experts.")
        if not rest:
            found[name] = value
            continue
        kind = rest.split(".")[1]
        stacks.setdefault(f"{front}.switch_mlp.{words.get(kind, kind)}.weight", []).append(value)
    return found | {name: torch.stack(values) for name, values in stacks.items()}


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "jamba"])
@pytest.mark.parametrize("layout", ["4.57.6", HELD])
def test_mixtures_of_mlx_meet_those_of_transformers(tmp_path, name, layout):
    for inner in sizes(name):
        one = family(name, inner)
        values = one.values()
        tuned_values, expected = planted(values)
        base = written(tmp_path / f"base{inner}", one.built(layout, values), **one.config)
        tuned = written(tmp_path / f"mlx{inner}", of_mlx(one.built("4.57.6", tuned_values)), **one.config)
        base, tuned = brought_together(canonical(base), canonical(tuned))
        assert {row.status for row in align(base, tuned)} == {Status.compared}
        assert all(
            torch.equal(base.stored(key).float(), tuned.stored(key).float().abs()) for key in base.infos
        )
        found = sum(count(load_rows(base, tuned, key)).counts.changed for key in base.infos)
        assert found == sum(expected.values())


# A config that names no known kind of model, on one side or on both


@pytest.mark.parametrize("name", ["phi3", "starcoder2", "mixtral", "phimoe", "qwen2_5_vl"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_side_of_no_known_family_is_taken_for_one_of_the_other_s(tmp_path, name, turned):
    one = family(name)
    values = one.values()
    first, last = next(iter(one.layouts)), HELD
    known = written(tmp_path / "known", one.built(first, values), **one.config)
    strange = written(tmp_path / "strange", one.built(last, values), model_type="custom", **sizes_in(one))
    base, tuned = brought_together(*map(canonical, (strange, known) if turned else (known, strange)))
    assert {row.status for row in align(base, tuned)} == {Status.compared}
    assert all(torch.equal(base.stored(key).float(), tuned.stored(key).float()) for key in base.infos)
    other = base if turned else tuned
    again = Place.parse(place_of(other).text()).open()
    assert again.infos.keys() == other.infos.keys()
    assert all(torch.equal(again.stored(key), other.stored(key)) for key in again.infos)
    lent = f"taken for those of {family_of(known).name}"
    # What transformers holds of Phi-MoE has the family's names already.
    assert any(lent in note for note in matching_notes(base, tuned)) is (name != "phimoe")


def sizes_in(one: Family) -> dict:
    """Numbers of a config, without what it says of the kind of model."""
    return {key: value for key, value in one.config.items() if type(value) is int}


def test_a_family_that_does_not_fit_is_not_lent(tmp_path):
    known = written(
        tmp_path / "known", family("phi3").built("4.57.6", family("phi3").values()), **family("phi3").config
    )
    other = family("qwen3")
    strange = written(tmp_path / "strange", other.built("4.57.6", other.values()), model_type="custom")
    assert not any(
        "taken for" in note for note in matching_notes(*brought_together(canonical(known), strange))
    )


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if name not in ("gemma3n_text", "gpt_neox", "phimoe")]
)
def test_layouts_meet_by_names_and_shapes_alone_in_most_families(tmp_path, name):
    """Those left out have a head, a router or a projection whose two names share no word."""
    one = family(name)
    values = one.values()
    sides = [
        written(tmp_path / str(number), one.built(layout, values), model_type="custom")
        for number, layout in enumerate((next(iter(one.layouts)), HELD))
    ]
    base, tuned = brought_together(*map(canonical, sides))
    assert {row.status for row in align(base, tuned)} == {Status.compared}
    assert all(torch.equal(base.stored(key).float(), tuned.stored(key).float()) for key in base.infos)


# What would hide a wrong layout: the tables themselves, read wrongly


def test_a_part_that_is_turned_is_filled_the_other_way_round():
    one = family("qwen3_vl_moe")
    values = one.values()
    older, newer = (one.built(name, values) for name in ("4.57.6", "5.23.0"))
    name = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    assert older[name].shape == (3, 16, 20) and torch.equal(newer[name], older[name].transpose(1, 2))


def test_parts_of_stacks_are_the_single_experts_one_below_the_other():
    one = family("mixtral", 16)
    values = one.values()
    stack = one.built("5.23.0, in memory", values)["model.layers.1.mlp.experts.gate_up_proj"]
    single = "model.layers.1.block_sparse_moe.experts.2.{}.weight"
    expected = torch.cat([values[single.format(kind)] for kind in ("w1", "w3")])
    assert stack.shape == (3, 32, 16) and torch.equal(stack[2], expected)

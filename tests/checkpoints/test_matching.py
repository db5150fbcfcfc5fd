"""Names that mean one tensor: wrappers, moved prefixes, stacked experts; and what is left alone.

The oracle is the tensor's own value: `made.values` draws it from the name that it was made under.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.checkpoints.made import HIDDEN, INNER, ROWS, decoder, values, written
from tests.hub.loopback import LoopbackHub
from threegates.checkpoints.formats.families import family_of
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.formats.roles import role
from threegates.checkpoints.hub.ranged import open_ranged
from threegates.checkpoints.matched import matched, rules_of
from threegates.checkpoints.matching import brought_together, match, matching_notes
from threegates.checkpoints.pairs import align
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import canonical, chosen, naming_digest
from threegates.errors import CheckpointError


@pytest.fixture
def sides(tmp_path):
    """Both sides of a pair as they are measured."""

    def make(
        base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], **config
    ) -> tuple[Checkpoint, Checkpoint]:
        pair = (written(tmp_path / "base", base, **config), written(tmp_path / "tuned", tuned, **config))
        return brought_together(*map(canonical, pair))

    return make


def statuses(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    return {row.name: str(row.status) for row in align(base, tuned)}


def assert_same(base: Checkpoint, tuned: Checkpoint, count: int) -> None:
    """All that is compared is the same tensor on both sides, after the way through a place too."""
    compared = [name for name, status in statuses(base, tuned).items() if status == "compared"]
    assert len(compared) == count
    again = [Place.parse(place_of(one).text()).open() for one in (base, tuned)]
    assert [one.infos.keys() for one in again] == [base.infos.keys(), tuned.infos.keys()]
    for name in compared:
        assert torch.equal(base.stored(name), tuned.stored(name)), name
        assert torch.equal(again[0].stored(name), again[1].stored(name)), name
        if base.infos[name].shape:
            count = base.infos[name].shape[0]
            for rows in ((0, count), (count - 1, count)):
                assert torch.equal(rows_of(tuned, name, *rows), base.stored(name)[slice(*rows)]), name
                assert torch.equal(rows_of(base, name, *rows), tuned.stored(name)[slice(*rows)]), name


# Wrappers


@pytest.mark.parametrize("kind", ["llama", "olmo2", "never_heard_of"])
@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("_orig_mod.{}", "model.norm.weight"),
        ("module._orig_mod.{}", "model.norm.weight"),
        ("base_model.model.{}", "model.norm.weight"),
        ("pretrained_model.{}", "model.norm.weight"),
        ("_fsdp_wrapped_module.model._fsdp_wrapped_module.norm.weight", "model.norm.weight"),
        (
            "model.layers.0._checkpoint_wrapped_module.input_layernorm.weight",
            "model.layers.0.input_layernorm.weight",
        ),
        ("model.layers.1._orig_module.mlp._orig_mod.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_wrappers_words_go_wherever_they_stand(tmp_path, kind, stored, name):
    tensors = decoder()
    value = tensors.pop(name)
    view = canonical(written(tmp_path / "a", tensors | {stored.format(name): value}, model_type=kind))
    assert view.infos.keys() == decoder().keys()
    assert torch.equal(view.stored(name), value)
    assert stored.format(name) in family_of(view).note


@pytest.mark.parametrize(
    "name", ["my_module.weight", "modules.0.weight", "x.module", "submodule.module_.weight"]
)
def test_a_word_that_only_resembles_a_wrapper_s_or_ends_a_name_stays(tmp_path, name):
    checkpoint = written(tmp_path / "a", decoder() | {name: torch.ones(3)})
    assert canonical(checkpoint) is checkpoint


@pytest.mark.parametrize("kind", ["llama", "never_heard_of"])
def test_two_names_that_would_become_one_stay_and_are_told(tmp_path, kind):
    twice = {"module.model.norm.weight": torch.zeros(HIDDEN), "module.lm_head.bias": torch.ones(2)}
    view = canonical(written(tmp_path / "a", decoder() | twice, model_type=kind))
    assert view.infos.keys() == decoder().keys() | {"module.model.norm.weight", "lm_head.bias"}
    assert torch.equal(view.stored("model.norm.weight"), decoder()["model.norm.weight"])
    assert "1 names keep the words of a wrapper" in family_of(view).note
    assert "module.model.norm.weight" in family_of(view).note


def test_a_head_under_a_wrapper_wins_over_the_tie(tmp_path):
    tensors = {f"_orig_mod.{name}": value for name, value in decoder().items()}
    view = canonical(written(tmp_path / "a", tensors, tie_word_embeddings=True))
    assert view.infos["lm_head.weight"].alias_of is None
    assert torch.equal(view.stored("lm_head.weight"), decoder()["lm_head.weight"])


# Prefixes


def moved(tensors: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + n.removeprefix(old) if n.startswith(old) else n: value for n, value in tensors.items()}


PREFIXES = [
    ("model.", "transformer."),
    ("model.", ""),
    ("", "wrapped."),
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("model.", "model.text_model."),
    ("", "policy."),
    ("", "actor.net."),
    ("model.layers.", "model.blocks."),
]


@pytest.mark.parametrize(("old", "new"), PREFIXES)
@pytest.mark.parametrize("turned", [False, True])
def test_one_prefix_in_another_s_place(sides, old, new, turned):
    pair = (decoder(blocks=3), moved(decoder(blocks=3), old, new))
    base, tuned = sides(*(pair[::-1] if turned else pair))
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert_same(base, tuned, len(decoder(blocks=3)))
    assert rules_of(base) == ()
    (note,) = matching_notes(base, tuned)
    swap = (old, new) if turned else (new, old)
    # 'language_model.' in place of '' says it as well, before model.
    if new != "language_model.model.":
        assert f"names of the tuned: '{swap[1]}' in place of '{swap[0]}'" in note


def vision(front: str, blocks: int = 2) -> dict[str, Tensor]:
    shapes = {f"blocks.{n}.attn.{kind}.weight": (8, 8) for n in range(blocks) for kind in ("qkv", "proj")}
    shapes["merger.mlp.0.weight"] = (HIDDEN, HIDDEN)
    return {front + name: values("visual." + name, shape) for name, shape in shapes.items()}


def test_text_and_vision_move_each_by_its_own_prefix(sides):
    base = decoder() | vision("visual.")
    tuned = moved(decoder(), "model.", "model.language_model.") | vision("model.visual.")
    base, tuned = sides(base, tuned)
    assert_same(base, tuned, len(decoder()) + 5)
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert len(rules_of(tuned)) == 2


@pytest.mark.parametrize("name", ["image_newline", "logit_scale", "projector.linear_1.weight"])
def test_a_single_tensor_moves_where_one_prefix_is_empty_and_nothing_else_is_of_its_kind(sides, name):
    own = values(name, (HIDDEN,))
    base, tuned = sides(decoder() | {name: own}, decoder() | {f"model.{name}": own})
    assert_same(base, tuned, len(decoder()) + 1)


def test_heads_that_one_side_lacks_keep_their_names(sides):
    body = {f"encoder.layer.{n}.output.dense.weight": values(f"b{n}", (4, 4)) for n in range(3)}
    body["embeddings.word_embeddings.weight"] = values("e", (9, 4))
    base = {f"bert.{name}": value for name, value in body.items()} | {"cls.predictions.bias": torch.ones(9)}
    tuned = body | {"classifier.weight": torch.ones(2, 4), "pooler.dense.weight": torch.ones(4, 4)}
    base, tuned = sides(base, tuned)
    found = statuses(base, tuned)
    assert found.pop("cls.predictions.bias") == "only-in-base"
    assert found.pop("classifier.weight") == found.pop("pooler.dense.weight") == "only-in-tuned"
    assert set(found.values()) == {"compared"}
    assert_same(base, tuned, 4)


def test_a_moved_embedding_with_more_rows_has_common_ones_and_new_blocks_get_the_prefix_too(sides):
    tuned = decoder(blocks=4) | {"model.embed_tokens.weight": torch.ones(ROWS + 2, HIDDEN)}
    base, tuned = sides(decoder(blocks=3), moved(tuned, "model.", "transformer."))
    found = statuses(base, tuned)
    assert found["model.embed_tokens.weight"] == "compared"
    assert tuned.infos["model.embed_tokens.weight"].shape == (ROWS, HIDDEN)
    assert found["model.layers.3.mlp.up_proj.weight"] == "only-in-tuned"
    assert not [name for name in found if name.startswith("transformer.")]


def alone(front: str, number: int = 0) -> dict[str, Tensor]:
    return {f"{front}{n}.weight": torch.full((3, 3), float(number)) for n in ("a", "b", "c")}


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        # Two towers that would both fit.
        (alone("net."), alone("query_encoder.net.", 1) | alone("passage_encoder.net.", 2)),
        # Other blocks than those that are missing.
        (
            {f"layers.{n}.w": torch.ones(3, 3) for n in (4, 5)},
            {f"layers.{n}.w": torch.ones(3, 3) for n in (6, 7)},
        ),
        # Another stack of the model.
        (
            {f"encoder.block.{n}.q.weight": torch.ones(3, 3) for n in range(9)},
            {f"decoder.block.{n}.q.weight": torch.ones(3, 3) for n in range(9)},
        ),
        # Two tensors of one head and of another, with nothing in common but their shapes.
        (
            {"pooler.dense.weight": torch.ones(4, 4), "pooler.dense.bias": torch.ones(4)},
            {"cls.transform.dense.weight": torch.ones(4, 4), "cls.transform.dense.bias": torch.ones(4)},
        ),
        ({"score.weight": torch.ones(2, 4)}, {"classifier.weight": torch.ones(2, 4)}),
        # Equal names' ends, other shapes.
        (alone("x."), {f"y.x.{n}.weight": torch.ones(2, 2) for n in ("a", "b", "c")}),
        # A drafting head is no layer of the model.
        (
            {f"layers.{n}.{k}.weight": torch.ones(3, 3) for n in range(2) for k in "qkvo"},
            {f"mtp.layers.{n}.{k}.weight": torch.ones(3, 3) for n in range(2) for k in "qkvo"},
        ),
    ],
    ids=["two fit", "numbers", "stacks", "unlike", "generic", "shapes", "mtp"],
)
def test_what_is_not_sure_is_left_alone(tmp_path, base, tuned):
    pair = written(tmp_path / "a", decoder() | base), written(tmp_path / "b", decoder() | tuned)
    after = brought_together(*pair)
    assert after[0] is pair[0] and after[1] is pair[1]


def test_where_all_names_match_already_nothing_is_made_anew(tmp_path):
    pair = written(tmp_path / "a", decoder()), written(tmp_path / "b", decoder() | {"extra": torch.ones(2)})
    for one, other in (pair, pair[::-1], (pair[0], pair[0])):
        after = brought_together(one, other)
        assert after[0] is one and after[1] is other
        assert [naming_digest(side) for side in after] == ["", ""]
        assert "rules" not in place_of(one).text()


# Experts


def experts(
    block: str, names=("gate_proj", "up_proj", "down_proj"), inner: int = 5, hidden: int = HIDDEN, count=3
):
    shapes = dict(zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True))
    return {
        f"{block}.experts.{e}.{name}.weight": values(f"{block}{e}{place}", shape)
        for e in range(count)
        for place, (name, shape) in enumerate(shapes.items())
    }


def stacked(
    block: str, apart: bool = False, holder: str = "experts", end: str = "", transposed: bool = False, **sizes
):
    singles = list(experts(block, **sizes).values())
    kinds = [torch.stack(singles[place::3]) for place in range(3)]
    told = (
        {"gate_proj": kinds[0], "up_proj": kinds[1], "down_proj": kinds[2]}
        if apart
        else {"gate_up_proj": torch.cat(kinds[:2], dim=1), "down_proj": kinds[2]}
    )
    turn = (lambda x: x.transpose(1, 2)) if transposed else (lambda x: x)
    return {f"{block}.{holder}.{name}{end}": turn(value) for name, value in told.items()}


BLOCKS = ("model.layers.0.mlp", "model.layers.1.mlp")


def of_all(make, **options) -> dict[str, Tensor]:
    return {name: value for block in BLOCKS for name, value in make(block, **options).items()}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("stack", "single"),
    [
        ({}, {}),
        ({"inner": 3}, {"inner": 3}),
        ({"inner": HIDDEN // 2, "count": 12}, {"inner": HIDDEN // 2, "count": 12}),
        ({"inner": HIDDEN}, {"inner": HIDDEN}),
        ({"apart": True, "holder": "switch_mlp", "end": ".weight"}, {}),
        ({}, {"names": ("w1", "w3", "w2")}),
        ({"apart": True, "end": ".weight"}, {"names": ("w1", "w3", "w2")}),
        ({"transposed": True}, {}),
        ({"transposed": True, "inner": HIDDEN}, {"inner": HIDDEN}),
        ({"transposed": True, "inner": HIDDEN // 2}, {"inner": HIDDEN // 2}),
        ({"transposed": True, "apart": True}, {}),
    ],
    ids=[
        "plain",
        "small",
        "2I = H",
        "I = H",
        "mlx",
        "w1 w3 w2",
        "apart",
        "T",
        "T, I = H",
        "T, 2I = H",
        "T apart",
    ],
)
def test_stacked_experts_are_cut_into_those_of_the_other_side(sides, stack, single, turned):
    pair = decoder() | of_all(experts, **single), decoder() | of_all(stacked, **stack)
    base, tuned = sides(*(pair[::-1] if turned else pair))
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert_same(base, tuned, len(pair[0]))
    assert "is cut into" in " ".join(matching_notes(base, tuned))
    cut = base if turned else tuned
    assert naming_digest(cut) and not naming_digest(tuned if turned else base)


def test_experts_of_another_block_s_name_meet_by_the_block_s_number(sides):
    singles = {name.replace(".mlp.", ".block_sparse_moe."): value for name, value in of_all(experts).items()}
    base, tuned = sides(decoder() | singles, decoder() | of_all(stacked))
    assert_same(base, tuned, len(decoder()) + len(singles))


def test_experts_are_cut_after_their_prefix_was_replaced(sides):
    tuned = moved(decoder() | of_all(experts), "model.", "model.language_model.")
    base, tuned = sides(decoder() | of_all(stacked), tuned)
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert rules_of(base) and rules_of(tuned)
    assert_same(base, tuned, len(decoder()) + 18)


@pytest.mark.parametrize(
    ("stack", "why"),
    [
        ({"inner": 4}, "not that of the other side's experts"),
        ({"count": 2}, "not that of the other side's experts"),
    ],
)
def test_stacks_of_another_shape_are_left_alone_and_told(tmp_path, stack, why):
    pair = (
        written(tmp_path / "a", decoder() | of_all(experts)),
        written(tmp_path / "b", decoder() | of_all(stacked, **stack)),
    )
    after = brought_together(*pair)
    assert after[0] is pair[0] and after[1] is pair[1]
    notes = matching_notes(*after)
    assert notes and all("is left alone" in note and why in note for note in notes)


# Square matrices: contents decide

SQUARE = {"apart": True, "inner": HIDDEN}


def tuned_a_little(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 0.05 * values(name + "'", value.shape) for name, value in tensors.items()}


def distance(base: Checkpoint, tuned: Checkpoint) -> float:
    """The largest distance of two tensors of one name, as a share of the base's."""
    return max(
        float((base.stored(name) - tuned.stored(name)).norm() / base.stored(name).norm())
        for name, status in statuses(base, tuned).items()
        if status == "compared"
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_single_experts_say_how_square_stacks_lie(sides, transposed, swapped):
    pair = (
        decoder() | of_all(experts, inner=HIDDEN),
        tuned_a_little(decoder() | of_all(stacked, transposed=transposed, **SQUARE)),
    )
    base, tuned = sides(*(pair[::-1] if swapped else pair))
    assert set(statuses(base, tuned).values()) == {"compared"} and len(base.infos) == len(pair[0])
    assert distance(base, tuned) < 0.1


@pytest.mark.parametrize("options", [SQUARE, {"inner": HIDDEN // 2}, {"inner": HIDDEN}])
@pytest.mark.parametrize("transposed", [(False, True), (True, False), (True, True), (False, False)])
def test_square_stacks_of_both_sides_are_told_apart_by_their_contents(sides, options, transposed):
    base, tuned = (decoder() | of_all(stacked, transposed=turned, **options) for turned in transposed)
    base, tuned = sides(base, tuned_a_little(tuned), hidden_size=HIDDEN)
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert distance(base, tuned) < 0.1


def test_a_file_whose_stacks_lie_in_two_ways_is_read_as_it_is(sides):
    """As transformers 5 leaves a square stack that it was to transpose, and turns the others."""
    plain, turned = (
        of_all(stacked, inner=HIDDEN // 2, transposed=transposed) for transposed in (False, True)
    )
    mixed = {name: (turned if "gate_up" in name else plain)[name] for name in plain}
    base, tuned = sides(decoder() | turned, tuned_a_little(decoder() | mixed))
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert distance(base, tuned) < 0.1


@pytest.mark.parametrize("turned", [False, True])
def test_square_stacks_of_unrelated_contents_are_left_alone_beside_single_experts(tmp_path, turned):
    strange = {name: values(name + "?", value.shape) for name, value in of_all(stacked, **SQUARE).items()}
    pair = (
        written(tmp_path / "a", decoder() | of_all(experts, inner=HIDDEN)),
        written(tmp_path / "b", decoder() | strange),
    )
    pair = pair[::-1] if turned else pair
    after = brought_together(*pair)
    assert after[0] is pair[0] and after[1] is pair[1]
    assert all("either way round" in note for note in matching_notes(*after))


def test_of_square_stacks_one_matrix_is_read_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    base = written(tmp_path / "base", of_all(stacked, **SQUARE))
    written(tmp_path / "tuned", of_all(stacked, transposed=True, **SQUARE))
    with LoopbackHub({"org/tuned": tmp_path / "tuned"}) as hub:
        hub.stand_in(monkeypatch)
        remote = open_ranged("org/tuned")
        before = hub.served.total()
        match(base, remote)
        read = hub.served.total() - before
    # One matrix of each of three patterns, of two blocks with three experts each.
    whole = sum(info.size * 4 for info in base.infos.values())
    assert 0 < read <= whole / 6


# Both sides stack


@pytest.mark.parametrize("options", [{}, {"inner": 4}, {"apart": True}, {"count": 1}])
@pytest.mark.parametrize("front", ["model.", "model.language_model."])
@pytest.mark.parametrize("transposed", [(False, True), (True, False), (False, False), (True, True)])
def test_stacks_of_both_sides_are_measured_expert_by_expert(sides, options, front, transposed):
    base, tuned = (decoder() | of_all(stacked, transposed=turned, **options) for turned in transposed)
    base, tuned = sides(base, moved(tuned, "model.", front), hidden_size=HIDDEN)
    assert set(statuses(base, tuned).values()) == {"compared"}
    experts_of = [info for name, info in base.infos.items() if ".experts." in name]
    count = options.get("count", 3)
    assert len(experts_of) == 2 * count * (3 if options.get("apart") else 2)
    assert all(len(info.shape) == 2 and role(info.name, info.shape) != "bias" for info in experts_of)
    assert_same(base, tuned, len(base.infos))
    one = base.stored(f"{BLOCKS[1]}.experts.{count - 1}.down_proj.weight")
    assert torch.equal(
        one, of_all(experts, **sizes_of(options))[f"{BLOCKS[1]}.experts.{count - 1}.down_proj.weight"]
    )
    assert "is cut into" in " ".join(matching_notes(base, tuned))
    assert naming_digest(tuned) and naming_digest(base)


def sizes_of(options: Mapping) -> dict:
    return {key: value for key, value in options.items() if key in ("inner", "count")}


@pytest.mark.parametrize("kind", ["qwen3_next", "llama4_text"])
def test_where_the_family_says_that_gate_comes_first_gate_and_up_are_cut_apart(sides, kind):
    sided = [decoder() | of_all(stacked, transposed=turned) for turned in (False, True)]
    base, tuned = sides(*sided, model_type=kind, hidden_size=HIDDEN)
    single = decoder() | of_all(experts)
    assert base.infos.keys() == tuned.infos.keys() == single.keys()
    assert all(torch.equal(base.stored(name), value) for name, value in single.items())
    assert_same(base, tuned, len(single))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"apart": True, "holder": "switch_mlp", "end": ".weight"}),
        ({"transposed": True}, {"apart": True}),
        ({"apart": True, "holder": "switch_mlp", "end": ".weight"}, {"apart": True}),
    ],
    ids=["fused and apart", "T", "other holder"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_stacks_under_other_names_meet_in_single_experts(sides, first, second, turned):
    pair = (decoder() | of_all(stacked, **first), decoder() | of_all(stacked, **second))
    base, tuned = sides(*(pair[::-1] if turned else pair), hidden_size=HIDDEN)
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert_same(base, tuned, len(decoder()) + 18)


LAYOUTS = st.sampled_from(
    [("single", {})]
    + [
        ("stack", {"apart": apart, "transposed": transposed} | more)
        for apart in (False, True)
        for transposed in (False, True)
        for more in ({}, {"holder": "switch_mlp", "end": ".weight"})
    ]
)


@given(LAYOUTS, LAYOUTS, st.integers(1, 3), st.sampled_from([3, 4, 6, 12]), st.booleans())
@settings(max_examples=60)
def test_whatever_the_two_layouts_the_same_experts_meet(tmp_path_factory, first, second, count, inner, told):
    """Square sizes are among them, and configs that say nothing of the model's width."""
    folder = tmp_path_factory.mktemp("layouts")
    sizes = {"inner": inner, "count": count}
    pair = []
    for name, (form, options) in zip("ab", (first, second), strict=True):
        made = of_all(experts, **sizes) if form == "single" else of_all(stacked, **sizes, **options)
        tensors = made if name == "a" else tuned_a_little(made)
        pair.append(written(folder / name, tensors, **({"hidden_size": HIDDEN} if told else {})))
    base, tuned = brought_together(*pair)
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert distance(base, tuned) < 0.2
    assert all(len(info.shape) == 2 for info in base.infos.values())


def test_stacks_of_other_sizes_or_counts_stay_whole(tmp_path):
    for number, options in enumerate(({"inner": 5, "transposed": True}, {"inner": 4, "count": 2})):
        pair = (
            written(tmp_path / f"a{number}", decoder() | of_all(stacked, inner=4)),
            written(tmp_path / f"b{number}", decoder() | of_all(stacked, **options)),
        )
        assert match(*pair).tuned == () == match(*pair).base


def test_blocks_with_experts_of_other_sizes_are_each_cut_by_their_own(sides):
    sizes = dict(zip(BLOCKS, (5, 4), strict=True))
    base, tuned = (
        decoder()
        | {name: value for block in BLOCKS for name, value in make(block, inner=sizes[block]).items()}
        for make in (experts, stacked)
    )
    base, tuned = sides(base, tuned)
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert_same(base, tuned, len(decoder()) + 18)


def test_single_experts_under_other_names_are_the_same_experts(sides):
    other = {
        name.replace(".mlp.", ".block_sparse_moe."): value
        for name, value in of_all(experts, names=("w1", "w3", "w2")).items()
    }
    base, tuned = sides(decoder() | of_all(experts), decoder() | other)
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert_same(base, tuned, len(decoder()) + 18)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("make", [experts, stacked])
def test_a_router_moves_with_the_experts_that_it_lies_beside(sides, make, turned):
    """Mixtral's holder by its two names, in a family that is not known."""

    def with_router(tensors: Mapping[str, Tensor], holder: str) -> dict[str, Tensor]:
        router = {f"{block}.gate.weight": values(block + "gate", (3, HIDDEN)) for block in BLOCKS}
        both = {**tensors, **router}
        return {name.replace(".mlp.", f".{holder}."): value for name, value in both.items()}

    pair = (
        decoder() | with_router(of_all(experts, names=("w1", "w3", "w2")), "block_sparse_moe"),
        decoder() | with_router(of_all(make), "mlp2"),
    )
    base, tuned = sides(*(pair[::-1] if turned else pair))
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert_same(base, tuned, len(pair[0]))


# A word more in a block


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("mlp.router.weight", "mlp.router.layer.weight"),
        ("mlp.moe_statics.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias"),
        ("mixer.A_log", "ssm.mixer.A_log"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_names_that_have_a_word_more_in_every_block_are_one(sides, name, other, turned):
    pair = [
        decoder() | {f"model.layers.{n}.{one}": values(f"{name}{n}", (3, HIDDEN)) for n in range(2)}
        for one in (name, other)
    ]
    base, tuned = sides(*(pair[::-1] if turned else pair))
    assert set(statuses(base, tuned).values()) == {"compared"}
    assert_same(base, tuned, len(decoder()) + 2)
    assert "in place of" in " ".join(matching_notes(base, tuned))


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        # Two would fit.
        (["mlp.router.weight"], ["mlp.router.layer.weight", "mlp.router.other.weight"]),
        # An expert that all share is none of the dense model.
        (["mlp.w.weight"], ["mlp.shared_expert.w.weight"]),
        # Another word, not one more.
        (["attn.norm_a.weight"], ["attn.norm_b.weight"]),
        (["mlp.router.weight"], ["mlp.router.layer.bias"]),
    ],
)
def test_a_word_more_that_is_not_sure_is_left_alone(sides, base, tuned):
    pair = [
        decoder() | {f"model.layers.{n}.{one}": values(one, (3, HIDDEN)) for n in range(2) for one in names}
        for names in (base, tuned)
    ]
    found = statuses(*sides(*pair))
    assert [found.pop(f"model.layers.{n}.{one}") for n in range(2) for one in base] == ["only-in-base"] * 2
    assert {found.pop(f"model.layers.{n}.{one}") for n in range(2) for one in tuned} == {"only-in-tuned"}
    assert set(found.values()) == {"compared"}


def test_experts_that_are_not_all_there_are_left_alone(tmp_path):
    singles = {name: value for name, value in of_all(experts).items() if ".experts.1." not in name}
    pair = written(tmp_path / "a", decoder() | singles), written(tmp_path / "b", decoder() | of_all(stacked))
    assert match(*pair).tuned == ()


def test_a_large_mixture_is_matched_in_a_moment(tmp_path):
    """Near twenty thousand names, all of them moved: what takes a look at each pair of names never ends."""
    names = {
        f"layers.{n}.mlp.experts.{e}.w{k}.weight": (2, 3)
        for n in range(48)
        for e in range(128)
        for k in (1, 2, 3)
    }
    names |= {f"layers.{n}.input_layernorm.weight": (3,) for n in range(48)}
    base, tuned = (
        {front + name: shape for name, shape in names.items()} for front in ("model.", "language_model.")
    )
    base, tuned = (
        Checkpoint(
            tmp_path,
            {},
            {name: TensorInfo(name, "BF16", shape, tmp_path, (0, 0)) for name, shape in one.items()},
        )
        for one in (base, tuned)
    )
    before = time.process_time()
    found = match(base, tuned)
    assert time.process_time() - before < 10
    assert found.tuned == (("prefix", "language_model.", "model.", "layers"),)


# Places


@pytest.mark.parametrize("transposed", [False, True])
def test_by_ranges_only_the_bytes_of_an_expert_are_fetched(tmp_path, monkeypatch, transposed):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    base = written(tmp_path / "base", decoder() | of_all(experts))
    stack = moved(decoder() | of_all(stacked, transposed=transposed), "model.", "transformer.")
    written(tmp_path / "tuned", stack)
    with LoopbackHub({"org/tuned": tmp_path / "tuned"}) as hub:
        hub.stand_in(monkeypatch)
        tuned = brought_together(base, open_ranged("org/tuned"))[1]
        again = Place.parse(place_of(tuned).text()).open()
        before = hub.served.total()
        name = f"{BLOCKS[1]}.experts.2.up_proj.weight"
        assert torch.equal(again.stored(name), base.stored(name))
        read = hub.served.total() - before
    # Of a transposed stack an expert's gate comes along.
    assert 0 < read <= base.stored(name).nbytes * (2 if transposed else 1)


def test_a_choice_of_a_matched_side_comes_back_from_its_place(sides):
    _, tuned = sides(decoder(), moved(decoder(), "model.", "transformer."))
    part = chosen(tuned, [1], ["up", "q"])
    again = Place.parse(place_of(part).text()).open()
    assert again.infos.keys() == part.infos.keys()
    assert set(part.infos) == {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"}


def test_a_tie_follows_its_embedding_to_the_new_name(sides):
    tied = decoder(head=False)
    _, tuned = sides(tied, moved(tied, "model.", "transformer."), tie_word_embeddings=True)
    assert tuned.infos["lm_head.weight"].alias_of == "model.embed_tokens.weight"
    assert torch.equal(tuned.stored("lm_head.weight"), tied["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "rules",
    [
        '"x"',
        "[1]",
        '[["prefix", "a"]]',
        '[["prefix", "a", 1]]',
        '[["cut", "a", "b"]]',
        '[["cut", "a", 1, "b"]]',
        '[["other", "a", "b"]]',
        '[["rename", "a", 1]]',
    ],
)
def test_a_place_with_rules_that_are_none_is_refused(tmp_path, rules):
    with pytest.raises(CheckpointError, match="a place cannot be read"):
        Place.parse(f'{{"folder":"{tmp_path}","rules":{rules}}}')


def test_a_part_is_not_matched_and_a_changed_checkpoint_is_refused(tmp_path):
    checkpoint = written(tmp_path / "a", decoder() | of_all(stacked))
    with pytest.raises(CheckpointError, match="a part of a checkpoint cannot be matched"):
        matched(chosen(checkpoint, [0]), [("prefix", "model.", "")])
    rule = ("cut", f"{BLOCKS[0]}.experts.down_proj", f"{BLOCKS[0]}.experts.#.down_proj.weight", INNER)
    with pytest.raises(CheckpointError, match="not of the shape that it was when the pair was matched"):
        matched(checkpoint, [rule])
    with pytest.raises(CheckpointError, match="two tensors would both be called 'model.layers.0.x'"):
        matched(
            written(tmp_path / "b", {"model.layers.0.x": torch.ones(1), "x": torch.ones(1)}),
            [("prefix", "", "model.layers.0.", "x")],
        )


# Vocabularies of two sizes


@pytest.mark.parametrize("larger", ["base", "tuned"])
@pytest.mark.parametrize("name", ["embed_tokens", "shared", "tok_embeddings"])
def test_of_a_padded_vocabulary_the_common_rows_are_compared(tmp_path, larger, name):
    """Under whatever name, where the config says how many tokens there are; a tied head as well."""
    body = {key: value for key, value in decoder(head=False).items() if "embed" not in key}
    few = {**body, f"{name}.weight": values(name, (ROWS, HIDDEN))}
    many = few | {f"{name}.weight": torch.cat([few[f"{name}.weight"], torch.ones(5, HIDDEN)])}
    told = {"vocab_size": ROWS, "tie_word_embeddings": name == "embed_tokens"}
    small, large = written(tmp_path / "small", few, **told), written(tmp_path / "large", many, **told)
    left, right = brought_together(*((large, small) if larger == "base" else (small, large)))
    assert set(statuses(left, right).values()) == {"compared"}
    for side in (left, right):
        opened = Place.parse(place_of(side).text()).open()
        for key in (f"{name}.weight", *(["lm_head.weight"] if name == "embed_tokens" else [])):
            assert torch.equal(side.stored(key), few[f"{name}.weight"])
            assert torch.equal(opened.stored(key), few[f"{name}.weight"])
            assert side.infos[key].shape == (ROWS, HIDDEN)
    assert [rule[0] for side in (left, right) for rule in rules_of(side)] == ["rows"]
    (said,) = matching_notes(left, right)
    assert f"{name}.weight stands for its first {ROWS} rows, which both sides have" in said


def test_heads_of_other_labels_and_tables_of_other_lengths_have_no_common_rows(tmp_path):
    """A class and another class have nothing in common; nor has a matrix in a block."""
    block = "model.layers.0.mlp.up_proj.weight"
    base = decoder() | {"score.weight": torch.ones(2, HIDDEN), "wpe.weight": torch.ones(9, HIDDEN)}
    tuned = decoder() | {"score.weight": torch.ones(3, HIDDEN), "wpe.weight": torch.ones(8, HIDDEN)}
    tuned[block] = tuned[block][:-1]
    sides = [written(tmp_path / str(n), one, vocab_size=ROWS) for n, one in enumerate((base, tuned))]
    found = statuses(*brought_together(*sides))
    resized = {name for name, status in found.items() if status == "resized"}
    assert resized == {"score.weight", "wpe.weight", block}


def test_a_vocabulary_that_is_smaller_than_the_config_says_is_left_alone(tmp_path):
    short = decoder() | {"model.embed_tokens.weight": torch.ones(ROWS - 3, HIDDEN)}
    sides = [written(tmp_path / str(n), one, vocab_size=ROWS) for n, one in enumerate((decoder(), short))]
    assert statuses(*brought_together(*sides))["model.embed_tokens.weight"] == "resized"

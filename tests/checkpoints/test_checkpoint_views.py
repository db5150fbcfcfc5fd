"""Views of a checkpoint: canonical names read no byte too many, choosing, and devices."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import align, load_pair
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import DTYPES, SINGLE, Checkpoint
from threegates.checkpoints.views import (
    ROLES,
    DeviceView,
    canonical,
    chosen,
    naming_digest,
    on_device,
    parse_layers,
    parse_matrices,
)
from threegates.errors import CheckpointError

HEADS, KEY_HEADS, HEAD_DIM, HIDDEN, INNER = 4, 2, 3, 10, 7
CONFIG = {
    "model_type": "phi3",
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "tie_word_embeddings": False,
}
Q, K, V = (f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qkv")
QKV = "model.layers.0.self_attn.qkv_proj.weight"


def phi_3(layers: int = 3) -> dict[str, torch.Tensor]:
    """Tensors of a Phi-3 with that many layers."""
    torch.manual_seed(2)
    shapes = {
        "model.embed_tokens.weight": (12, HIDDEN),
        "lm_head.weight": (12, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for number in range(layers):
        block = f"model.layers.{number}."
        shapes |= {
            block + "self_attn.qkv_proj.weight": ((HEADS + 2 * KEY_HEADS) * HEAD_DIM, HIDDEN),
            block + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            block + "mlp.gate_up_proj.weight": (2 * INNER, HIDDEN),
            block + "mlp.down_proj.weight": (HIDDEN, INNER),
            block + "input_layernorm.weight": (HIDDEN,),
        }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path):
    """A checkpoint of these tensors, Phi-3's unless said otherwise."""

    def build(tensors: dict[str, torch.Tensor], name: str = "made", **config) -> Checkpoint:
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / SINGLE)
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
        return Checkpoint.open(folder)

    return build


@dataclass(frozen=True)
class Distant(Checkpoint):
    """Reads ranges of bytes, as from a server, rows too without the rest of a tensor, and notes them."""

    log: list[tuple[int, int]] = field(default_factory=list)

    def stored(self, name: str) -> torch.Tensor:
        info = self.info(name)
        return self.got(info.offsets, info).reshape(info.shape)

    def stored_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        info = self.info(name)
        row = (info.offsets[1] - info.offsets[0]) // info.shape[0]
        asked = (info.offsets[0] + start * row, info.offsets[0] + stop * row)
        return self.got(asked, info).reshape(stop - start, *info.shape[1:])

    def got(self, asked: tuple[int, int], info) -> torch.Tensor:
        self.log.append(asked)
        content = bytearray(info.file.read_bytes()[slice(*asked)])
        return torch.frombuffer(content, dtype=torch.uint8).view(DTYPES[info.dtype])


def distant(checkpoint: Checkpoint) -> Distant:
    return Distant(checkpoint.folder, checkpoint.config, checkpoint.infos, "f" * 40)


def refusal(call, *arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    assert caught.value.remedy
    return str(caught.value)


# Canonical names


def test_parts_of_fused_tensors_know_their_bytes(write):
    checkpoint = write(phi_3())
    view = canonical(checkpoint)
    start, end = checkpoint.infos[QKV].offsets
    row = HIDDEN * 4
    edges = [start, start + 12 * row, start + 18 * row, end]
    for name, first, last in zip((Q, K, V), edges, edges[1:], strict=False):
        assert view.infos[name].offsets == (first, last)
        assert view.infos[name].shape == ((last - first) // row, HIDDEN)
        raw = checkpoint.infos[QKV].file.read_bytes()[first:last]
        assert view.stored(name).contiguous().view(torch.uint8).numpy().tobytes() == raw


def test_a_view_has_files_digest_and_commit_of_its_checkpoint(write):
    checkpoint = write(phi_3())
    far = distant(checkpoint)
    for view in (canonical(far), chosen(canonical(far), [0], ["q"])):
        assert view is not far
        assert view.digest() == checkpoint.digest()
        assert view.files() == checkpoint.files()
        assert (view.revision, view.folder, view.config) == ("f" * 40, checkpoint.folder, checkpoint.config)


def test_of_a_distant_checkpoint_only_the_bytes_of_the_part_are_asked_for(write):
    far = distant(write(phi_3()))
    view = canonical(far)
    assert far.log == []
    read = [view.stored(name) for name in (K, "model.norm.weight")]
    assert far.log == [view.infos[K].offsets, view.infos["model.norm.weight"].offsets]
    assert torch.equal(read[0], phi_3()[QKV][12:18])
    assert torch.equal(read[1], phi_3()["model.norm.weight"])


def test_rows_of_a_distant_part_are_asked_for_alone(write):
    far = distant(write(phi_3()))
    view = chosen(canonical(far), None, ["v", "down"])
    rows = rows_of(view, V, 2, 5)
    assert torch.equal(rows, phi_3()[QKV][18 + 2 : 18 + 5])
    first = view.infos[V].offsets[0] + 2 * HIDDEN * 4
    assert far.log == [(first, first + 3 * HIDDEN * 4)]


def test_a_view_survives_the_way_to_another_process(write):
    view = chosen(canonical(write(phi_3())), [1], ["up"])
    again = pickle.loads(pickle.dumps(view))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(again.stored(name), view.stored(name))
    assert again.digest() == view.digest()


def test_a_fused_side_and_one_that_was_saved_apart_are_compared(write):
    fused = phi_3()
    apart = {name: one for name, one in fused.items() if "qkv_proj" not in name and "gate_up" not in name}
    for number in range(3):
        block = f"model.layers.{number}."
        parts = fused[block + "self_attn.qkv_proj.weight"].split([12, 6, 6])
        apart |= {
            f"{block}self_attn.{letter}_proj.weight": part for letter, part in zip("qkv", parts, strict=True)
        }
        halves = fused[block + "mlp.gate_up_proj.weight"].split(INNER)
        apart |= {
            f"{block}mlp.{half}_proj.weight": part for half, part in zip(("gate", "up"), halves, strict=True)
        }
    contiguous = {name: one.clone() for name, one in apart.items()}
    base, tuned = canonical(write(fused, "base")), canonical(write(contiguous, "tuned", model_type="llama"))
    rows = align(base, tuned)
    assert {row.status.value for row in rows} == {"compared"}
    assert len(rows) == 3 + 3 * 8
    for row in rows:
        pair = load_pair(base, tuned, row.name)
        assert torch.equal(pair.base, pair.tuned)


def test_the_digest_of_names_is_that_of_what_they_stand_for(write):
    first, second = (canonical(write(phi_3(layers), str(layers))) for layers in (3, 2))
    assert len(naming_digest(first)) == 64
    assert naming_digest(first) == naming_digest(chosen(first, [0], None)) != naming_digest(second)
    longer = {"num_attention_heads": 2, "num_key_value_heads": 3}
    assert naming_digest(canonical(write(phi_3(), "other", **longer))) != naming_digest(first)
    assert naming_digest(write(phi_3(), "raw")) == ""


def test_chosen_tensors_cannot_be_cut_afterwards(write):
    message = refusal(canonical, chosen(write(phi_3()), [0], None))
    assert "canonical names first" in message


def test_nan_is_left_for_the_comparison_to_find(write):
    tensors = phi_3()
    tensors[QKV][13, 2] = float("nan")
    view = canonical(write(tensors))
    assert view.stored(K)[1, 2].isnan()
    assert int(view.stored(Q).isnan().sum()) == 0


def test_fp8_is_cut_too_and_not_compared(write):
    tensors = phi_3(1) | {QKV: torch.ones(24, HIDDEN).to(torch.float8_e4m3fn)}
    view = canonical(write(tensors))
    assert view.infos[Q].dtype == "F8_E4M3"
    assert view.stored(Q).dtype == torch.float8_e4m3fn
    statuses = {row.name: row.status.value for row in align(view, view)}
    cut = {name for name in statuses if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))}
    assert {name for name, status in statuses.items() if status == "not-a-float"} == cut
    assert set(statuses.values()) == {"not-a-float", "compared"}


# Rows


def test_rows_of_a_plain_checkpoint(write):
    checkpoint, tensors = write(phi_3()), phi_3()
    for name, tensor in tensors.items():
        assert torch.equal(rows_of(checkpoint, name, 0, tensor.shape[0]), tensor)
        assert torch.equal(rows_of(checkpoint, name, 3, 5), tensor[3:5])
        assert rows_of(checkpoint, name, 4, 4).shape == (0, *tensor.shape[1:])


@given(st.data())
def test_rows_of_all_kinds_are_slices_of_what_is_stored(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("rows")
    save_file(phi_3(1), folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = Checkpoint.open(folder)
    view = canonical(distant(checkpoint) if data.draw(st.booleans()) else checkpoint)
    if data.draw(st.booleans()):
        view = chosen(view, [0])
    name = data.draw(st.sampled_from(sorted(view.infos)))
    stop = data.draw(st.integers(0, view.infos[name].shape[0]))
    start = data.draw(st.integers(0, stop))
    # torch cannot make an empty tensor of an empty buffer, nor has a server zero bytes to send.
    if start < stop:
        assert torch.equal(rows_of(view, name, start, stop), view.stored(name)[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 13), (3, 2)])
def test_rows_that_are_not_there_are_refused(write, start, stop):
    message = refusal(rows_of, canonical(write(phi_3())), Q, start, stop)
    assert f"has no rows {start} to {stop}" in message
    assert "rows from 0 to 12" in message


def test_a_scalar_has_no_rows(write):
    message = refusal(rows_of, write({"scale": torch.tensor(1.0)}), "scale", 0, 0)
    assert "expected: a tensor with rows" in message


# Choosing


def names_of(view: Checkpoint) -> set[tuple[int | None, str]]:
    return {(layer(name), role(name, info.shape)) for name, info in view.infos.items()}


ALL_OF_A_LAYER = ("q", "k", "v", "o", "gate", "up", "down", "norm")


@pytest.mark.parametrize(
    ("layers", "matrices", "expected"),
    [
        ([0, 2], ["q", "down"], {(0, "q"), (0, "down"), (2, "q"), (2, "down")}),
        (None, ["q"], {(0, "q"), (1, "q"), (2, "q")}),
        ([1], None, {(1, one) for one in ALL_OF_A_LAYER}),
        ([1], ["norm"], {(1, "norm"), (None, "norm")}),
        ([1], ["v", "embedding", "head"], {(1, "v"), (None, "embedding"), (None, "head")}),
        (None, ["head"], {(None, "head")}),
    ],
)
def test_layers_and_roles_choose_tensors(write, layers, matrices, expected):
    view = chosen(canonical(write(phi_3())), layers, matrices)
    assert names_of(view) == expected
    assert len(view.infos) == len(expected)
    assert view.layers == (None if layers is None else tuple(layers))
    assert view.matrices == (None if matrices is None else tuple(matrices))
    assert list(view.infos) == sorted(view.infos)


def test_choosing_nothing_in_particular_gives_the_same_object(write):
    checkpoint = write(phi_3())
    assert chosen(checkpoint) is checkpoint


def test_a_tensor_that_is_not_chosen_is_not_read(write):
    far = distant(write(phi_3()))
    view = chosen(canonical(far), [0], ["q"])
    assert torch.equal(view.stored(Q), phi_3()[QKV][:12])
    assert "there is no tensor" in refusal(view.stored, K)
    assert "there is no tensor" in refusal(rows_of, view, K, 0, 1)
    assert "there is no tensor" in refusal(canonical(far).stored, QKV)
    assert len(far.log) == 1


def test_unknown_layers_and_roles_are_refused_with_what_there_is(write):
    view = canonical(write({name: one for name, one in phi_3(5).items() if ".layers.3." not in name}))
    message = refusal(chosen, view, [0, 3, 9], None)
    assert "no layer 3, 9" in message
    assert "0-2, 4" in message
    message = refusal(chosen, view, None, ["q", "bias", "gates"])
    assert "no role bias, gates" in message
    assert "of q, k, v, o, gate, up, down, embedding, head, norm" in message


@pytest.mark.parametrize(("layers", "matrices"), [([], None), (None, []), ([0], ["other"])])
def test_an_empty_choice_is_refused(write, layers, matrices):
    tensors = phi_3(1) | {"model.layers.1.mlp.router.weight": torch.ones(2, HIDDEN)}
    assert "no tensor of the checkpoint is chosen" in refusal(
        chosen, canonical(write(tensors)), layers, matrices
    )


def test_a_tied_head_comes_with_the_embedding_and_not_alone(write):
    tensors = {name: one for name, one in phi_3().items() if name != "lm_head.weight"}
    view = canonical(write(tensors, tie_word_embeddings=True))
    with_head = chosen(view, None, ["embedding"])
    assert set(with_head.infos) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert torch.equal(with_head.stored("lm_head.weight"), tensors["model.embed_tokens.weight"])
    assert set(chosen(view, [0], ["q"]).infos) == {Q}
    message = refusal(chosen, view, None, ["head"])
    assert "tied to the embedding" in message
    assert "choose 'embedding'" in message


def test_chosen_pairs_align(write):
    base, tuned = (chosen(canonical(write(phi_3(), name)), [0, 2], ["o", "embedding"]) for name in "ab")
    assert [row.name for row in align(base, tuned)] == [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.2.self_attn.o_proj.weight",
    ]


# Text of the command line


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0,13,27", (0, 13, 27)),
        ("0-3,27", (0, 1, 2, 3, 27)),
        ("27, 0 - 2", (0, 1, 2, 27)),
        ("5,5,4-5", (4, 5)),
        ("9999999999", (9999999999,)),
        ("7-7", (7,)),
    ],
)
def test_text_names_layers(text, numbers):
    assert parse_layers(text) == numbers


@pytest.mark.parametrize(
    "text",
    ["", "a", "1,", "3-1", "-1", "1--2", "1-2-3", "0-9999999999", "99999999999", "1;2", "٣", "1.0", "1e3"],
)
def test_text_that_names_no_layers_is_refused(text):
    message = refusal(parse_layers, text)
    assert f"'{text}' does not name layers" in message
    assert "0,13,27" in message


@given(st.sets(st.integers(0, 200), min_size=1))
def test_layers_written_one_by_one_are_read_back(numbers):
    assert parse_layers(",".join(map(str, numbers))) == tuple(sorted(numbers))


def test_text_names_matrices():
    assert parse_matrices("q,o,down") == ("q", "o", "down")
    assert parse_matrices(" down, q,q") == ("q", "down")
    assert parse_matrices(",".join(reversed(ROLES))) == ROLES


@pytest.mark.parametrize(("text", "word"), [("q,gates", "gates"), ("", ""), ("Q", "Q"), ("q_proj", "q_proj")])
def test_text_that_names_no_matrices_is_refused(text, word):
    message = refusal(parse_matrices, text)
    assert f"found: '{word}'" in message
    assert "q, k, v, o, gate, up, down, embedding, head, norm, bias, state, conv, other" in message


# Devices


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_processor_is_where_tensors_are(write, device):
    checkpoint = write(phi_3(1))
    assert on_device(checkpoint, device) is checkpoint


def test_without_a_gpu_the_message_says_what_to_do(write, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refusal(on_device, write(phi_3(1)), "cuda")
    assert "leave --device out" in message


def test_a_gpu_that_is_not_there_is_refused(write, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    checkpoint = write(phi_3(1))
    assert on_device(checkpoint, "cuda:1").device == "cuda:1"
    assert "a GPU below cuda:2" in refusal(on_device, checkpoint, "cuda:2")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:-1", "mps", "meta", "CUDA"])
def test_other_words_for_devices_are_refused(write, device):
    assert "cpu, cuda, or cuda:1" in refusal(on_device, write(phi_3(1)), device)


def test_tensors_come_on_the_device_with_the_same_digest(write):
    checkpoint = write(phi_3(1))
    inner = canonical(checkpoint)
    # The one device besides the processor that every build of torch has.
    view = DeviceView(inner.folder, inner.config, inner.infos, inner=inner, device="meta")
    assert view.stored(Q).device.type == view.bf16(Q).device.type == "meta"
    assert rows_of(view, Q, 1, 3).device.type == "meta"
    assert rows_of(view, Q, 1, 3).shape == (2, HIDDEN)
    assert view.digest() == checkpoint.digest()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_tensors_are_those_of_the_file(write):
    checkpoint = write(phi_3(1))
    view = on_device(canonical(checkpoint), "cuda")
    for name in view.infos:
        assert view.stored(name).is_cuda
        assert torch.equal(view.stored(name).cpu(), canonical(checkpoint).stored(name))


# Blocks of a named stack

TOWER = {
    f"model.visual.blocks.{n}.mlp.down_proj.weight": torch.full((HIDDEN, HIDDEN), float(n)) for n in range(3)
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vision:0-1", {"model.visual.blocks.0", "model.visual.blocks.1"}),
        ("1, vision:2", {"model.layers.1", "model.visual.blocks.2"}),
        ("vision:0,1", {"model.visual.blocks.0", "model.visual.blocks.1"}),
        ("vision:2, decoder:1", {"model.layers.1", "model.visual.blocks.2"}),
        ("decoder:0", {"model.layers.0"}),
        ("0", {"model.layers.0"}),
    ],
)
def test_a_stack_may_be_named_and_plain_numbers_are_the_text_models(write, text, expected):
    view = chosen(canonical(write(phi_3(2) | TOWER)), parse_layers(text))
    assert {
        name.partition(".mlp.")[0].partition(".self_attn.")[0] for name in view.infos if "norm" not in name
    } == expected
    again = Place.parse(place_of(view).text()).open()
    assert again.infos.keys() == view.infos.keys() and place_of(view).layers == parse_layers(text)


def test_a_block_that_a_stack_lacks_is_refused_with_those_that_there_are(write):
    message = refusal(chosen, canonical(write(phi_3(2) | TOWER)), parse_layers("vision:3"))
    assert "vision:3" in message and "decoder:0-1, vision:0-2" in message


@pytest.mark.parametrize("text", ["visual:0", "vision:", "vision:-1", "vision:0-", ":1"])
def test_a_stack_has_one_of_five_names(text):
    assert "does not name layers" in refusal(parse_layers, text)

"""A base with an adapter on it, against what peft itself merges in float64."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.adapters import by_peft
from threegates.checkpoints.adapters.adapted import adapted
from threegates.checkpoints.adapters.config import CONFIG, WEIGHTS, is_adapter
from threegates.checkpoints.matching import brought_together
from threegates.checkpoints.notes import pair_notes
from threegates.checkpoints.pairs import align, load_pair
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import canonical, chosen
from threegates.errors import CheckpointError, NotFiniteError

#: float32 rounding of weights of this size.
CLOSE = {"rtol": 2e-7, "atol": 5e-8}
ALL = {"target_modules": "all-linear"}
STACKS = {
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "rank_pattern": {"experts.down_proj": 3},
}
GPT2 = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 7}}
#: Model, its sizes, settings of the adapter, and how many tensors it changes.
CASES = {
    "LoRA": ("llama", {}, {"r": 2, **ALL}, 14),
    "rank-stabilised, with patterns": (
        "llama",
        {},
        {"r": 4, "use_rslora": True, "lora_alpha": 3, **ALL, **PATTERNS},
        14,
    ),
    "DoRA": ("llama", {}, {"r": 2, "use_dora": True, **ALL}, 14),
    "embedding, and a head in full": (
        "llama",
        {},
        {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
        4,
    ),
    "DoRA of an embedding": (
        "llama",
        {},
        {"r": 2, "use_dora": True, "target_modules": ["q_proj", "embed_tokens"]},
        3,
    ),
    "rows of an embedding": (
        "llama",
        {},
        {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 5]}},
        3,
    ),
    "tied embedding": (
        "llama",
        {"tie_word_embeddings": True},
        {"r": 2, "target_modules": ["q_proj", "embed_tokens"]},
        3,
    ),
    "biases in full": ("qwen2", {}, {"r": 2, "target_modules": ["q_proj"], "bias": "lora_only"}, 4),
    "biases of the factors": (
        "qwen2",
        {},
        {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_bias": True},
        8,
    ),
    "fused": ("phi3", {}, {"r": 2, **ALL}, 14),
    "DoRA of fused weights": ("phi3", {}, {"r": 2, "use_dora": True, **ALL}, 14),
    "stored the other way round": ("gpt2", {}, {"r": 2, **GPT2}, 6),
    "DoRA, stored the other way round": ("gpt2", {}, {"r": 2, "use_dora": True, **GPT2}, 6),
    "PiSSA": ("llama", {}, {"r": 2, "init_lora_weights": "pissa", **ALL}, 14),
    "PiSSA of fused weights": ("phi3", {}, {"r": 2, "init_lora_weights": "pissa", **ALL}, 14),
    "PiSSA, stored the other way round": ("gpt2", {}, {"r": 2, "init_lora_weights": "pissa", **GPT2}, 6),
    "OLoRA": ("llama", {}, {"r": 2, "init_lora_weights": "olora", **ALL}, 14),
    "orthogonal": ("llama", {}, {"r": 2, "init_lora_weights": "orthogonal", **ALL}, 14),
    "a module's weight as a parameter": (
        "llama",
        {},
        {"r": 2, "target_modules": ["k_proj"], "target_parameters": ["self_attn.q_proj.weight"]},
        4,
    ),
    "experts of a known family": ("qwen3_moe", by_peft.EXPERTS, {"r": 2, **STACKS}, 20),
    "experts of an unknown family": (
        "olmoe",
        {"num_experts": 3, "num_experts_per_tok": 2},
        {"r": 2, **STACKS},
        20,
    ),
    "experts under other names": ("mixtral", {"num_local_experts": 3}, {"r": 2, **STACKS}, 20),
    "square experts, transposed": (
        "gpt_oss",
        {"num_local_experts": 3, "head_dim": 4, "intermediate_size": 16},
        {"r": 2, **STACKS},
        14,
    ),
}


@pytest.mark.parametrize(
    ("case", "layout"),
    [(case, "as files have it") for case in CASES]
    + [(case, "as in memory") for case in CASES if case.startswith("experts")],
)
def test_every_tensor_is_what_peft_merges(tmp_path, case, layout):
    kind, sizes, settings, changed = CASES[case]
    saved = by_peft.saved(
        tmp_path, by_peft.model(kind, **sizes), as_stored=layout == "as files have it", **settings
    )
    base, tuned = adapted(saved.opened, saved.adapter)
    merged = brought_together(saved.opened, canonical(Checkpoint.open(saved.merged)))[1]
    assert tuned.infos.keys() == merged.infos.keys()
    moved = 0
    for name, info in tuned.infos.items():
        found = tuned.stored(name)
        assert found.shape == info.shape and found.isfinite().all()
        torch.testing.assert_close(found.double(), merged.stored(name).double(), **CLOSE)
        moved += info.alias_of is None and not torch.equal(found.float(), base.stored(name).float())
    assert moved == changed


HEAD = {"target_modules": ["q_proj", "lm_head"]}
PISSA, OLORA = {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}
UNTIED = {"tie_word_embeddings": False}
#: What a hostile user found: model, its sizes, how it is saved, settings.
FOUND = {
    "PiSSA of a head, whose layer is saved": (
        "llama",
        {},
        {"embedding_layers": True},
        {**HEAD, "init_lora_weights": "pissa"},
    ),
    "OLoRA of a head, whose layer is saved": (
        "llama",
        {},
        {"embedding_layers": True},
        {**HEAD, "init_lora_weights": "olora"},
    ),
    "PiSSA of a head that was resized": (
        "llama",
        {},
        {"embedding_layers": True, "rows": 40},
        {**HEAD, "init_lora_weights": "pissa"},
    ),
    "PiSSA beside factors of an embedding": (
        "llama",
        {},
        {},
        {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": "pissa"},
    ),
    "PiSSA of a rank above a side": (
        "llama",
        {},
        {},
        {"target_modules": ["k_proj"], "r": 12, "init_lora_weights": "pissa"},
    ),
    "a square Conv1D beside a linear layer": ("gpt2", UNTIED, {}, {"target_modules": ["c_proj", "lm_head"]}),
    "Conv1Ds beside a linear layer": ("gpt2", UNTIED, {}, {"target_modules": ["c_attn", "lm_head"]}),
    "OLoRA of a square Conv1D": (
        "gpt2",
        {},
        {},
        {"target_modules": r".*attn\.c_proj", "fan_in_fan_out": True, "init_lora_weights": "olora"},
    ),
    "DoRA of an embedding that was resized": (
        "llama",
        {},
        {"embedding_layers": True, "rows": 40},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    ),
    "a vocabulary made smaller": (
        "llama",
        {},
        {"embedding_layers": True, "rows": 28},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    ),
    "embedding and head in full, resized": (
        "llama",
        {},
        {"embedding_layers": True, "rows": 40},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "new tokens alone": (
        "llama",
        {},
        {"embedding_layers": True, "rows": 40},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 35]}},
    ),
    "tokens as a list, of an embedding of another name": (
        "gpt2",
        {},
        {},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "trainable_token_indices": [1, 5]},
    ),
    "experts in full": (
        "mixtral",
        {"num_local_experts": 3},
        {},
        {"target_modules": ["q_proj"], "modules_to_save": ["experts"]},
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_a_hostile_user_found_is_what_peft_merges(tmp_path, case):
    kind, sizes, saving, settings = FOUND[case]
    saved = by_peft.saved(tmp_path, by_peft.model(kind, **sizes), **saving, **{"r": 2} | settings)
    tuned = adapted(saved.opened, saved.adapter)[1]
    base, merged = brought_together(saved.opened, canonical(Checkpoint.open(saved.merged)))
    moved = 0
    for name, info in tuned.infos.items():
        found, wanted = tuned.stored(name), merged.stored(name)
        assert found.shape == info.shape == wanted.shape
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=2e-6)
        moved += not torch.equal(found.float(), base.stored(name).float())
    assert moved


@pytest.mark.parametrize(
    ("word", "pattern"),
    [("_orig_mod.", "layers.0.self_attn.q_proj"), ("module.", "^model.layers.0.self_attn.q_proj")],
)
def test_patterns_hold_for_names_with_a_wrappers_words(tmp_path, word, pattern):
    saved = by_peft.saved(
        tmp_path, by_peft.model("llama"), r=2, target_modules=["q_proj"], alpha_pattern={pattern: 32}
    )

    def wrapped(found):
        old = dict(found)
        found.clear()
        front = "base_model.model."
        for key, value in old.items():
            inside = key.replace(".self_attn.", f".{word}self_attn.") if word == "_orig_mod." else key
            found[inside.replace(front, front + word) if word == "module." else inside] = value

    before = adapted(saved.opened, saved.adapter)[1]
    known = {name: before.stored(name).clone() for name in before.infos}
    rewritten(saved.adapter, wrapped)
    after = adapted(saved.opened, saved.adapter)[1]
    assert all(torch.equal(after.stored(name), tensor) for name, tensor in known.items())
    first, second = (f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1))
    assert (after.piece(first).target.scaling, after.piece(second).target.scaling) == (16, 4)


def test_keys_may_hold_the_adapters_name(lora):
    known = {name: adapted(lora.opened, lora.adapter)[1].stored(name).clone() for name in lora.opened.infos}

    def named(found):
        old = dict(found)
        found.clear()
        found.update({key.replace(".weight", ".default.weight"): value for key, value in old.items()})

    rewritten(lora.adapter, named)
    found = adapted(lora.opened, lora.adapter)[1]
    assert all(torch.equal(found.stored(name), tensor) for name, tensor in known.items())
    rewritten(lora.adapter, lambda held: held.update({f"{Q}.lora_A.other.weight": torch.zeros(2, 16)}))
    with pytest.raises(CheckpointError, match="two adapters"):
        adapted(lora.opened, lora.adapter)


def test_a_head_of_a_tied_base_is_noted(tmp_path):
    saved = by_peft.saved(tmp_path, by_peft.model("llama", tie_word_embeddings=True), r=2, **HEAD)
    base, tuned = adapted(saved.opened, saved.adapter)
    assert "the base ties its head to model.embed_tokens.weight" in " ".join(pair_notes(base, tuned))


@pytest.mark.parametrize("case", ["LoRA", "DoRA of fused weights", "square experts, transposed", "PiSSA"])
def test_rows_are_rows_of_the_whole_and_a_place_opens_the_same(tmp_path, case):
    kind, sizes, settings, _ = CASES[case]
    saved = by_peft.saved(tmp_path, by_peft.model(kind, **sizes), **settings)
    tuned = adapted(saved.opened, saved.adapter)[1]
    again = Place.parse(place_of(tuned).text()).open()
    assert again.digest() == tuned.digest() != tuned.inner.digest()
    for name, info in tuned.infos.items():
        whole = tuned.stored(name)
        assert torch.equal(again.stored(name), whole)
        last = info.shape[0]
        assert torch.equal(rows_of(tuned, name, 1, last), whole[1:])
    narrow = chosen(tuned, (1,), ("q",))
    opened = Place.parse(place_of(narrow).text()).open()
    assert list(opened.infos) == list(narrow.infos) == ["model.layers.1.self_attn.q_proj.weight"]
    name = next(iter(narrow.infos))
    assert torch.equal(opened.stored(name), tuned.stored(name))


def test_a_start_that_chance_decides_has_to_be_named(tmp_path):
    saved = by_peft.saved(tmp_path, by_peft.model("llama"), r=2, init_lora_weights="pissa_niter_4", **ALL)
    with pytest.raises(CheckpointError, match="pissa_niter_4") as refused:
        adapted(saved.opened, saved.adapter)
    assert "--adapter-start" in refused.value.remedy
    base, tuned = adapted(saved.opened, saved.adapter, saved.start)
    merged = canonical(Checkpoint.open(saved.merged))
    for name in base.infos:
        torch.testing.assert_close(tuned.stored(name).double(), merged.stored(name).double(), **CLOSE)
    assert place_of(tuned).start == str(saved.start)
    assert Place.parse(place_of(tuned).text()).open().digest() == tuned.digest()


def test_an_adapter_that_is_converted_needs_no_start(tmp_path):
    """Peft's own way to a plain LoRA of twice the rank gives the same weights."""
    from peft import LoraConfig, get_peft_model

    model = by_peft.model("llama")
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"])
    peft_model = get_peft_model(model, config)
    peft_model.peft_config["default"].init_lora_weights = True
    peft_model.save_pretrained(tmp_path / "start")
    peft_model.peft_config["default"].init_lora_weights = "pissa"
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    peft_model.save_pretrained(tmp_path / "own")
    peft_model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    base = canonical(Checkpoint.open(tmp_path / "base"))
    own, converted, started = (
        adapted(base, tmp_path / name, start)[1]
        for name, start in (("own", None), ("converted", None), ("own", tmp_path / "start"))
    )
    assert converted.changes.settings.start is True and own.changes.settings.start == "pissa"
    for name in base.infos:
        torch.testing.assert_close(own.stored(name), converted.stored(name), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(started.stored(name), converted.stored(name), rtol=1e-6, atol=1e-7)


# --- what is refused


@pytest.fixture
def lora(tmp_path):
    """A LoRA on a Llama."""
    return by_peft.saved(tmp_path, by_peft.model("llama"), r=2, target_modules=["q_proj", "v_proj"])


def test_a_base_of_another_size_is_refused_by_name(lora, tmp_path):
    other = by_peft.saved(
        tmp_path / "other", by_peft.model("llama", hidden_size=24), r=2, target_modules=["q_proj"]
    )
    with pytest.raises(CheckpointError, match="4 of the 4 tensors") as refused:
        adapted(other.opened, lora.adapter)
    assert "q_proj.weight: [16, 16] in the adapter, [24, 24] in the base" in refused.value.found


def test_a_base_without_the_tensor_is_refused(lora, tmp_path):
    base = by_peft.model("llama", num_hidden_layers=1)
    base.save_pretrained(tmp_path / "short")
    with pytest.raises(CheckpointError, match="2 of the 4 tensors") as refused:
        adapted(canonical(Checkpoint.open(tmp_path / "short")), lora.adapter)
    assert "layers.1.self_attn.q_proj.weight: [16, 16] in the adapter, missing" in refused.value.found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type PROMPT_TUNING"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_a_kind_that_is_no_sum_is_refused_with_a_way_out(lora, change, told):
    by_peft.edited(lora.adapter, lambda config: config.update(change))
    with pytest.raises(CheckpointError, match="not read without being merged") as refused:
        adapted(lora.opened, lora.adapter)
    assert told in refused.value.found and "merge_and_unload" in refused.value.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"r": None},
        {"r": 0},
        {"lora_alpha": "much"},
        {"rank_pattern": 3},
        {"alpha_pattern": {"q_proj(": 3}},
        {"alpha_pattern": {"q_proj": "much"}},
    ],
)
def test_a_config_without_meaning_is_refused(lora, change):
    by_peft.edited(lora.adapter, lambda config: config.update(change))
    with pytest.raises(CheckpointError, match="cannot be understood"):
        adapted(lora.opened, lora.adapter)


def rewritten(adapter, change):
    """The adapter with other tensors in its file."""
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda found: found.pop(f"{Q}.lora_B.weight"), "one factor of two"),
        (lambda found: found.update({f"{Q}.lora_A.weight": torch.zeros(3, 16)}), "do not fit one another"),
        (lambda found: found.update({f"{Q}.lora_A.weight": torch.zeros(0)}), "do not fit one another"),
        (lambda found: found.update({f"{Q}.lora_C.weight": torch.zeros(2)}), "not known here"),
        (lambda found: found.clear(), "holds no weights"),
        (lambda found: found.update({f"{Q}.lora_A.weight": torch.ones(2, 16).char()}), "stored as I8"),
    ],
)
def test_half_an_adapter_is_refused(lora, change, what):
    rewritten(lora.adapter, change)
    with pytest.raises(CheckpointError, match=what):
        adapted(lora.opened, lora.adapter)


E = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("rows", "shape"), [([1, 40], (2, 16)), ([1, 2], (2, 17))], ids=["beyond the rows", "of another width"]
)
def test_rows_that_the_base_does_not_have_are_refused(lora, rows, shape):
    rewritten(lora.adapter, lambda found: found.update({E: torch.zeros(shape)}))
    by_peft.edited(lora.adapter, lambda config: config.update({"trainable_token_indices": rows}))
    with pytest.raises(CheckpointError, match="1 of the 5 tensors") as refused:
        adapted(lora.opened, lora.adapter)
    assert "model.embed_tokens.weight" in refused.value.found


def test_rows_whose_numbers_are_not_told_and_rows_beside_factors_are_refused(lora):
    rewritten(lora.adapter, lambda found: found.update({E: torch.zeros(2, 16)}))
    with pytest.raises(CheckpointError, match="not said which rows"):
        adapted(lora.opened, lora.adapter)
    by_peft.edited(lora.adapter, lambda config: config.update({"trainable_token_indices": [1, 2]}))
    embedding = E.rpartition(".token_adapter")[0]
    factors = {
        f"{embedding}.lora_embedding_A": torch.ones(2, 32),
        f"{embedding}.lora_embedding_B": torch.ones(16, 2),
    }
    rewritten(lora.adapter, lambda found: found.update(factors))
    with pytest.raises(CheckpointError, match="has factors for .* and replaces rows of it"):
        adapted(lora.opened, lora.adapter)


def test_a_factor_that_is_not_finite_costs_its_own_tensors_alone(lora):
    def torn(found):
        found[f"{Q}.lora_B.weight"][3, 0] = torch.nan

    rewritten(lora.adapter, torn)
    base, tuned = adapted(lora.opened, lora.adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(NotFiniteError, match="of the tuned") as found:
        load_pair(base, tuned, name)
    assert WEIGHTS in str(found.value.where) and found.value.tensor == name
    load_pair(base, tuned, name.replace("layers.0", "layers.1"))


def test_pickled_factors_are_named_and_not_opened(lora):
    (lora.adapter / WEIGHTS).rename(lora.adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors weights") as refused:
        adapted(lora.opened, lora.adapter)
    assert refused.value.found == "adapter_model.bin" and "run code" in refused.value.remedy


def test_a_start_of_another_adapter_is_refused(lora, tmp_path):
    other = by_peft.saved(tmp_path / "other", by_peft.model("llama"), r=2, target_modules=["k_proj"])
    with pytest.raises(CheckpointError, match="another adapter's"):
        adapted(lora.opened, lora.adapter, other.start)


def test_magnitudes_that_are_told_have_to_be_there_and_a_start_has_them_too(lora, tmp_path):
    dora = by_peft.saved(
        tmp_path / "dora", by_peft.model("llama"), r=2, use_dora=True, target_modules=["q_proj", "v_proj"]
    )
    with pytest.raises(CheckpointError, match="another adapter's"):
        adapted(lora.opened, lora.adapter, dora.start)
    by_peft.edited(lora.adapter, lambda config: config.update({"use_dora": True}))
    with pytest.raises(CheckpointError, match="no magnitudes for"):
        adapted(lora.opened, lora.adapter)


def test_full_weights_beside_an_adapter_are_no_adapter(lora):
    assert is_adapter(lora.adapter) and not is_adapter(lora.base)
    (lora.adapter / "model.safetensors").write_bytes((lora.base / "model.safetensors").read_bytes())
    assert not is_adapter(lora.adapter)


# --- how it enters a comparison


def test_a_replaced_head_of_a_tied_base_is_compared_with_the_embedding(tmp_path):
    saved = by_peft.saved(
        tmp_path,
        by_peft.model("llama", tie_word_embeddings=True),
        r=2,
        target_modules=["q_proj", "embed_tokens"],
    )
    base, tuned = adapted(saved.opened, saved.adapter)
    assert tuned.infos["lm_head.weight"].alias_of == "model.embed_tokens.weight"
    rows = {row.name: row for row in align(base, tuned)}
    assert "lm_head.weight" not in rows and rows["model.embed_tokens.weight"].dtype_tuned == "F32"


def test_names_of_the_file_are_those_of_peft(lora):
    """What the config and keys look like, so that a change of peft is seen here and not in the sums."""
    told = json.loads((lora.adapter / CONFIG).read_text())
    assert {"r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights", "target_parameters"} <= set(
        told
    )
    assert f"{Q}.lora_A.weight" in load_file(lora.adapter / WEIGHTS)

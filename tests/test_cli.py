from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.planted import planted
from threegates import cli
from threegates.checkpoints.tensors import Checkpoint
from threegates.cli import app
from threegates.errors import CheckpointError
from threegates.geometry.masks import unpack
from threegates.records.store import read_provenance
from threegates.workers import run_parallel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command as a shell would run it: exit status, output, errors."""
    monkeypatch.setenv("THREEGATES_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("THREEGATES_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["threegates", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def project(command, tmp_path, monkeypatch):
    """A project of its own with one chapter, around the command."""
    for name, value in planted.make_project(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    write_chapter(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def models(tmp_path):
    """Two folders written by transformers: a tiny Llama, and it again with known changes, in shards."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 20}
    config = transformers.LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    masks = {}
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            flat = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(number))[
                : number + 1
            ]
            mask = torch.zeros(weight.numel(), dtype=torch.bool)
            mask[flat] = True
            masks[name] = mask.reshape(weight.shape)
            weight.copy_((weight.view(torch.int16) ^ masks[name].to(torch.int16)).view(torch.bfloat16))
    model.save_pretrained(tmp_path / "tuned", max_shard_size="8KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    return masks


def test_help_of_every_command_is_quick_and_says_what_it_does():
    shown = CliRunner().invoke(app, ["--help"]).output
    commands = ("train", "measure", "run", "book", "compare")
    assert all(name in shown for name in commands)
    for name in commands:
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0 and len(result.output) > 200
    code = "import sys, threegates.cli; print('torch' in sys.modules, 'pandas' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_foreign_folders_give_exact_masks(command, models, tmp_path):
    options = ["--out", "t.parquet", "--masks", "m.safetensors", "--axis", "a.parquet"]
    status, out, _ = command("measure", "--base", "base", "--tuned", "tuned", *options)
    assert status == 0 and "written: t.parquet" in out
    table = pd.read_parquet(tmp_path / "t.parquet").set_index("tensor")
    packed = load_file(tmp_path / "m.safetensors")
    assert set(table.index) == set(models) == set(packed)
    for name, mask in models.items():
        assert table.loc[name, "changed"] == int(mask.sum())
        assert table.loc[name, "sparsity"] == 1 - int(mask.sum()) / mask.numel()
        assert torch.equal(unpack(packed[name], mask.shape), mask)
    axis = pd.read_parquet(tmp_path / "a.parquet").set_index(["tensor", "axis"])
    name = "model.layers.1.mlp.down_proj.weight"
    assert np.allclose(axis.loc[(name, "column"), "ratio"], models[name].float().mean(0))
    matrices = table[table["spectra"] == "measured"]
    assert len(matrices) == 14
    for name in ("log10_p", "mean", "how"):
        assert matrices[f"overlap_principal_storage_density_{name}"].notna().all()
        assert axis[f"storage_density_{name}"].notna().all()
    assert not [name for name in (*table, *axis) if name.endswith("_p") and not name.endswith("_log10_p")]
    stated = read_provenance(tmp_path / "t.parquet")
    assert set(stated["inputs"]["checkpoints"]) == {"base", "tuned"}
    assert "draws" not in stated["inputs"]["parameters"] | dict.fromkeys((*table, *axis))
    assert str(tmp_path) not in json.dumps(stated) and not list(tmp_path.glob("*.parts"))


def test_overlaps_stand_beside_the_nulls_that_are_named(command, models, tmp_path):
    options = ["--base", "base", "--tuned", "tuned", "--out", "t.parquet"]
    status, _, told = command("measure", *options, "--null", "uniform")
    assert status == 1 and "no such null" in told and "bernoulli, storage_density" in told
    assert not (tmp_path / "t.parquet").exists()
    status, _, _ = command("measure", *options, "--null", "magnitude", "--null", "bernoulli")
    names = [name for name in pd.read_parquet(tmp_path / "t.parquet") if name.startswith("overlap_low_")]
    assert status == 0 and {name.split("_")[2] for name in names} == {"bernoulli", "magnitude"}
    stated = read_provenance(tmp_path / "t.parquet")["inputs"]["parameters"]
    assert stated["nulls"] == ["bernoulli", "magnitude"]


def test_two_measurements_are_the_same_bytes(command, models, tmp_path, monkeypatch):
    # Workers that wait from an earlier call stand in another folder, and the paths given here are relative.
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir("/")
        run_parallel(os.getcwd, [(), ()], 2)
    for number in (1, 2):
        arguments = ["--out", f"{number}.parquet", "--workers", number]
        status, _, told = command("measure", "--base", "base", "--tuned", "tuned", *arguments)
        assert status == 0, told
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def subspaces(weight: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    return u[:, :k], s, vh[:k].T


def test_spectra_and_angles_of_foreign_folders_are_those_of_float64_svds(command, models, tmp_path):
    options = ["--out", "t.parquet"]
    status, out, _ = command("measure", "--base", "base", "--tuned", "tuned", *options)
    assert status == 0 and "spectra of 14 matrices" in out
    table = pd.read_parquet(tmp_path / "t.parquet")
    base, tuned = ({}, {})
    for side, tensors in (("base", base), ("tuned", tuned)):
        for file in (tmp_path / side).glob("*.safetensors"):
            tensors.update(load_file(file))
    for row in table[table["spectra"] == "measured"].to_dict("records"):
        (u, s, v), (uu, ss, vv) = (subspaces(side[row["tensor"]], int(row["k"])) for side in (base, tuned))
        assert row["nss"] == pytest.approx(np.linalg.norm(ss - s) / np.linalg.norm(s), abs=1e-12)
        for name, first, second in (("left", u, uu), ("right", v, vv)):
            angles = scipy.linalg.subspace_angles(first, second)
            assert row[f"angle_{name}_max"] == pytest.approx(angles.max(), abs=1e-9)
            assert row[f"angle_{name}_mean"] == pytest.approx(angles.mean(), abs=1e-9)
        assert row["angle_left_max"] > row["angle_bound"]
    others = table[table["spectra"] != "measured"].set_index("tensor")["spectra"]
    assert others["model.norm.weight"] == "not a matrix"
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert others[name] == "of the smaller side alone"


def test_spectra_can_be_left_out(command, models, tmp_path):
    options = ["--out", "t.parquet", "--no-spectra"]
    status, out, _ = command("measure", "--base", "base", "--tuned", "tuned", *options)
    table = pd.read_parquet(tmp_path / "t.parquet")
    assert status == 0 and "spectra of" not in out and table["nss"].isna().all()
    assert set(table["spectra"]) == {"not asked for", "not a matrix", "not in a block"}
    assert read_provenance(tmp_path / "t.parquet")["inputs"]["parameters"]["spectra"] is False


def test_an_accuracy_is_in_the_provenance_and_no_other_name_is_taken(command, models, tmp_path):
    options = ["--base", "base", "--tuned", "tuned", "--out", "t.parquet", "--layers", "0", "--matrices", "q"]
    status, _, told = command("measure", *options, "--accuracy", "exact")
    assert status == 1 and "no such accuracy" in told and not (tmp_path / "t.parquet").exists()
    digests = set()
    for accuracy in ("fast", "certified", "reference"):
        assert command("measure", *options, "--accuracy", accuracy)[0] == 0
        provenance = read_provenance(tmp_path / "t.parquet")
        assert provenance["inputs"]["parameters"]["accuracy"] == accuracy
        digests.add(provenance["digest"])
    assert len(digests) == 3


def shard_of(folder: Path, tensor: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][tensor]


def edit(folder: Path, tensor: str, change) -> str:
    path = shard_of(folder, tensor)
    tensors = load_file(path)
    tensors[tensor] = change(tensors[tensor].clone())
    save_file(tensors, path, metadata={"format": "pt"})
    return path.name


Q = "model.layers.1.self_attn.q_proj.weight"


def truncated(folder):
    path = shard_of(folder, Q)
    path.write_bytes(path.read_bytes()[:-7])
    return [path.name, "expected", "found"]


def without_a_shard(folder):
    path = shard_of(folder, Q)
    path.unlink()
    return [path.name, "missing"]


def of_another_model(folder):
    for name in [name for name in Checkpoint.open(folder).infos if name.endswith("_proj.weight")]:
        edit(folder, name, lambda weight: weight[:-1])
    return ["[16, 16]", "[15, 16]", "of the smaller side's 16 matrices 2 can be compared"]


def pointing_outside(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][Q] = "../base/model.safetensors"
    path.write_text(json.dumps(index))
    return [Q, "../base/model.safetensors", "outside"]


@pytest.mark.parametrize("fault", [truncated, without_a_shard, of_another_model, pointing_outside])
def test_a_faulty_checkpoint_is_refused_and_no_file_is_written(command, models, tmp_path, fault):
    expected = fault(tmp_path / "tuned")
    options = [
        "--out",
        "out/t.parquet",
        "--masks",
        "out/m.safetensors",
        "--axis",
        "out/a.parquet",
    ]
    status, out, err = command("measure", "--base", "base", "--tuned", "tuned", *options)
    assert status == 1 and out == ""
    for part in (*expected, "what to do"):
        assert part in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))


def of_another_shape(folder):
    edit(folder, Q, lambda weight: weight[:-1])
    return "resized", "resized: [16, 16] in base, [15, 16] in tuned"


def with_nans(folder):
    def change(weight):
        weight[3, 5] = weight[7, 0] = float("nan")
        return weight

    edit(folder, Q, change)
    return (
        "not-finite",
        "not-finite: of 256 finite values in the tuned, 2 of them not finite, the first nan at index [3, 5]",
    )


def with_an_infinity(folder):
    def change(weight):
        weight[15, 15] = float("-inf")
        return weight

    edit(folder, Q, change)
    return "not-finite", "1 of them not finite, the first -inf at index [15, 15]"


def not_gathered(folder):
    edit(folder, Q, lambda weight: weight[:0, 0])
    return "empty", "empty: [16, 16] in base, [0] in tuned"


def of_whole_numbers(folder):
    edit(folder, Q, lambda weight: weight.to(torch.int64))
    return "not-a-float", "(not-a-float)"


@pytest.mark.parametrize(
    "fault", [of_another_shape, with_nans, with_an_infinity, not_gathered, of_whole_numbers]
)
def test_one_tensor_that_cannot_be_compared_costs_only_its_own_row(command, models, tmp_path, fault):
    options = ["--base", "base", "--tuned", "tuned", "--no-spectra"]
    assert command("measure", *options, "--out", "whole.parquet")[0] == 0
    status, told = fault(tmp_path / "tuned")
    ended, out, err = command("measure", *options, "--out", "t.parquet", "--masks", "m.safetensors")
    assert (ended, err) == (0, "")
    assert f"not compared: {Q} ({told}" in out or told in out
    whole, found = (
        pd.read_parquet(tmp_path / name).set_index("tensor") for name in ("whole.parquet", "t.parquet")
    )
    assert found.loc[Q, "status"] == status and whole.loc[Q, "status"] == "compared"
    assert np.isnan(found.loc[Q, "norm_delta"])
    others = [name for name in whole.index if name != Q]
    numbers = ["changed", "sparsity", "norm_base", "norm_delta"]
    pd.testing.assert_frame_equal(whole.loc[others, numbers], found.loc[others, numbers], check_dtype=False)
    assert load_file(tmp_path / "m.safetensors").keys() == set(others)


def test_what_stands_for_nothing_is_refused(command, tmp_path):
    status, _, err = command("measure", "--base", "./none", "--tuned", "./none", "--out", "t.parquet")
    assert status == 1 and "none" in err and not list(tmp_path.glob("t.parquet*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "t.parquet", "--memory", "1MiB"], "memory"),
        (["--out", "t.parquet", "--draws", 3], "nulls take no number of draws any more"),
        (["--out", "t.parquet", "--draws", 0], "leave --draws out"),
        (["--out", "t.csv"], "give t.parquet"),
        (["--out", "t.parquet", "--masks", "m.parquet"], "give m.safetensors"),
    ],
)
def test_a_measurement_that_is_refused_leaves_nothing(command, models, tmp_path, options, told):
    before = sorted(tmp_path.rglob("*"))
    status, out, err = command("measure", "--base", "base", "--tuned", "tuned", *options)
    assert status == 1 and out == "" and told in err and "what to do" in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistyped_folder_is_not_only_a_repository_that_is_not_there(command, models, tmp_path, monkeypatch):
    def gone(name: str, *_: object) -> None:
        raise CheckpointError(f"the Hub has no {name}", remedy="correct the repository's name")

    monkeypatch.setattr("threegates.jobs.sources._of_hub", gone)
    (tmp_path / "mine").mkdir()
    (tmp_path / "base").rename(tmp_path / "mine" / "base")
    options = ["--tuned", "tuned", "--out", "t.parquet"]
    status, _, err = command("measure", "--base", "mine/bse", *options)
    assert status == 1 and "there is no folder mine/bse" in err and "mine has base" in err
    assert "the Hub has no mine/bse" in err and "correct the repository's name" in err
    status, _, err = command("measure", "--base", "yours/base", *options)
    assert status == 1 and err.startswith("error: the Hub has no yours/base")


def test_a_broken_manifest_hinders_only_who_asks_it(command, project):
    (project / "data_manifest.yaml").write_text("version: 1\ncheckpoints: [")
    base = planted.base_tensors()
    for name, tensors in (("then", base), ("now", planted.with_noise(base, 2e-4, 1))):
        planted.write(project / name, tensors)
    options = ["--out", "t.parquet", "--no-spectra"]
    assert command("measure", "--base", "then", "--tuned", "now", *options)[0] == 0
    status, _, err = command("measure", "--base", "named", "--tuned", "now", *options)
    assert status == 1 and "data_manifest.yaml" in err and "Traceback" not in err


def test_a_killed_measurement_continues(command, models, tmp_path):
    arguments = ["measure", "--base", "base", "--tuned", "tuned", "--out", "t.parquet", "--axis", "a.parquet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "threegates.cli", *arguments], cwd=tmp_path, env=environment
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("t.parquet.parts/*/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "t.parquet").exists() and list(tmp_path.glob("t.parquet.parts/*/*.json"))
    assert command(*arguments)[0] == 0
    continued = [(tmp_path / name).read_bytes() for name in ("t.parquet", "a.parquet")]
    assert not (tmp_path / "t.parquet.parts").exists()
    for name in ("t.parquet", "a.parquet"):
        (tmp_path / name).unlink()
    assert command(*arguments)[0] == 0
    assert continued == [(tmp_path / name).read_bytes() for name in ("t.parquet", "a.parquet")]


def write_chapter(project: Path) -> None:
    parameters = (
        "base: str = ''  # own base\ntuned: str = ''  # own tuned side\npairs: list[str] = []\nseed: int = 3"
    )
    code = (
        "from threegates.study import Study\n"
        "study = Study.open('update-sparsity', pairs=pairs, base=base, tuned=tuned, seed=seed)\n"
        "print(study.subject, len(study.table('tensor')))"
    )
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "notebooks" / "update-sparsity.ipynb")


def test_a_chapter_runs_on_two_folders_and_says_where_everything_is(command, project, tmp_path):
    base = planted.base_tensors()
    for name, tensors in (("a/model", base), ("b/model", planted.with_noise(base, 2e-4, 1))):
        planted.write(tmp_path / name, tensors)
    arguments = ["run", "update-sparsity", "--base", tmp_path / "a/model", "--tuned", tmp_path / "b/model"]
    status, out, err = command(*arguments)
    assert status == 0, err
    assert "page:    build/runs/update-sparsity-" in out and "records: build/records/tensor/" in out
    assert "verdict: rl-sparser-than-sft: cannot be tested here (b-model against a-model)" in out
    page = next((project / "build" / "runs").rglob("*.ipynb")).read_text()
    assert "b-model against a-model 10" in page and str(tmp_path) not in page
    assert "nothing had changed" in command(*arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "drawn=3"], "has no parameter 'drawn'"),
        (["-p", "draws=19"], "nulls take no number of draws any more"),
        (["-p", "draws=19"], "leave it out"),
        (["-p", "seed=many"], "wrong type"),
        (["-p", "seed"], "key=value"),
        (["--base", "x"], "needs both sides"),
        (["--pair", "a", "--base", "x", "--tuned", "y"], "either --pair"),
        (["--pair", "a"], "no manifest"),
    ],
)
def test_run_refuses_what_it_cannot_do_before_it_starts(command, project, arguments, message):
    status, out, err = command("run", "update-sparsity", *arguments)
    assert status == 1 and message in err and out == "" and not (project / "build").exists()


def test_debugging_shows_the_traceback(command, monkeypatch):
    monkeypatch.setenv("THREEGATES_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["threegates", "run", "no-such-chapter"])
    with pytest.raises(Exception, match="no such notebook"):
        cli.main()

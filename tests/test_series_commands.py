"""Series of checkpoints as they are typed: folders of a run, and branches and folders of a stand-in Hub."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.hub.loopback import LoopbackHub
from tests.planted import planted
from threegates import cli, environment
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.checkpoints.series import members
from threegates.cli_options import gathered
from threegates.errors import CheckpointError, NotebookError, PairError
from threegates.jobs.sources import named_pairs, own_pairs, settle
from threegates.pages.asked import run_chapter
from threegates.preflight import preflight_of
from threegates.records.sizes import size_text
from threegates.records.store import read_provenance
from threegates.study import Study

BASE, RUN = "org/base", "org/run"
STEPS = (5, 10, 20)
Q = "model.layers.0.self_attn.q_proj.weight"
MATRICES = ("--matrices", "q,k,v,o")


@pytest.fixture
def run(tmp_path) -> Path:
    """A base, and three steps of a run in folders; each step moves twice as many weights of one matrix."""
    base = planted.base_tensors(layers=1)
    planted.write(tmp_path / "base", base)
    for at, step in enumerate(STEPS):
        tuned, _ = planted.with_flips(base, {Q: 100 * 2**at})
        planted.write(tmp_path / "RUN" / f"checkpoint-{step}", tuned)
    return tmp_path


@pytest.fixture
def here(project, monkeypatch):
    """Inside a project of its own, with nothing that whoever runs the tests has set."""
    for name in ("READS", "DEVICE", "MEMORY", "BACKEND", "SCHEDULER", "ACCEPT_LICENCE", "PINNED"):
        monkeypatch.setenv(f"THREEGATES_{name}", "")
    monkeypatch.setenv("THREEGATES_SOURCES", "{}")
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def hub(run, here, tmp_path, monkeypatch):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    steps = {f"step_{step}": run / "RUN" / f"checkpoint-{step}" for step in STEPS}
    repos = {BASE: run / "base", RUN: run / "RUN" / "checkpoint-20", "org/folders": run / "RUN"}
    with LoopbackHub(repos, branches={RUN: steps}) as hub:
        hub.stand_in(monkeypatch)
        yield hub


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["threegates", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out + shown.err

    return call


def files(hub: LoopbackHub) -> list[str]:
    """Names of the files of which a byte was sent; answers of the API have none."""
    return [name for name, size in hub.served.items() if name and size]


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_inside_the_folder_of_a_run_it_is_the_run(run, monkeypatch):
    monkeypatch.chdir(run / "RUN")
    pairs = own_pairs("../base", "checkpoint-*")
    assert {pair.facts()["run"] for pair in pairs} == {"RUN"} and len(pairs) == 3


def test_a_folder_that_is_missing_is_named_with_those_there_are(run, monkeypatch):
    monkeypatch.chdir(run)
    with pytest.raises(CheckpointError, match="1 of the series' 4 checkpoints is not there") as caught:
        own_pairs("base", "RUN/checkpoint-{5..20..5}")
    assert "not there: RUN/checkpoint-15" in str(caught.value)
    assert "RUN/checkpoint-10, RUN/checkpoint-20, RUN/checkpoint-5" in str(caught.value)


@pytest.mark.parametrize("tuned", ["RUN/checkpoint-*", "RUN/checkpoint-{20,10,5}", "RUN/checkpoint-*/"])
def test_folders_of_a_run_come_in_the_order_of_their_numbers(run, monkeypatch, tuned):
    monkeypatch.chdir(run)
    pairs = own_pairs("base", tuned)
    assert [pair.name for pair in pairs] == ["checkpoint-5", "checkpoint-10", "checkpoint-20"]
    assert [pair.facts()["step"] for pair in pairs] == list(STEPS)
    assert {pair.facts()["run"] for pair in pairs} == {"RUN"}
    assert [pair.final for pair in pairs] == [False, False, True]


def test_branches_and_folders_of_the_hub_are_the_folders_of_the_run(hub, run):
    local = own_pairs(str(run / "base"), str(run / "RUN" / "checkpoint-*"))
    digests = [pair.tuned.checkpoint.digest() for pair in local]
    for tuned in (f"{RUN}@step_{{5,10,20}}", f"{RUN}@step_*", "org/folders:checkpoint-*"):
        for way in ("download", "ranged", "headers"):
            pairs = own_pairs(BASE, tuned, way)
            assert [pair.tuned.checkpoint.digest() for pair in pairs] == digests, (tuned, way)
            assert [pair.tuned.step for pair in pairs] == list(STEPS)
    refs = hub.refs(RUN)["branches"]
    sides = [pair.tuned for pair in own_pairs(BASE, f"{RUN}@step_*", "ranged")]
    named = {side.asked: side.checkpoint.revision for side in sides}
    assert named == {f"{RUN}@step_{step}": refs[f"step_{step}"] for step in STEPS}


def test_all_are_resolved_in_one_request_and_before_any_byte_of_weights(hub):
    with pytest.raises(CheckpointError) as caught:
        own_pairs(BASE, f"{RUN}@step_{{5..25..5}}", "download")
    told = str(caught.value)
    assert "2 of the series' 5 checkpoints are not there, and nothing was fetched" in told
    assert "not there: step_15, step_25" in told and "step_10, step_20, step_5" in told
    # The client's first request of a process may be one of its own.
    asked = [path for _, path in hub.requests if path.startswith("/api/models/")]
    assert asked == [f"/api/models/{RUN}/refs"] and not files(hub)
    with pytest.raises(CheckpointError, match="1 of the series' 2 checkpoints is not there") as caught:
        own_pairs(BASE, "org/folders:checkpoint-{5,6}", "download")
    assert "checkpoint-5, checkpoint-10, checkpoint-20" in str(caught.value) and not files(hub)


@pytest.mark.parametrize(
    ("tuned", "says"),
    [
        (f"{RUN}@step_{{1..20000}}", "too many checkpoints"),
        (f"{RUN}@step_{{1..20..0}}", "a step of 0"),
        (f"{RUN}@stop_*", "nothing fits"),
        ("org/*@step_5", "a star stands for folders of this machine"),
        ("nowhere/checkpoint-*", "no folder that fits"),
    ],
)
def test_what_is_no_series_is_told_before_the_hub_gives_a_file(hub, tuned, says):
    with pytest.raises(CheckpointError) as caught:
        own_pairs(BASE, tuned, "download")
    assert says in str(caught.value) and caught.value.remedy and not files(hub)


# --- commands


def test_measure_writes_a_table_for_each_and_does_none_twice(hub, command, run):
    words = ("measure", "--base", BASE, "--tuned", f"{RUN}@step_*", *MATRICES, "--ranged", "--no-spectra")
    status, out = command(*words, "--out", "tables")
    assert status == 0, out
    refs = hub.refs(RUN)["branches"]
    changed = {}
    for step in STEPS:
        path = Path("tables") / f"org--run-step_{step}.parquet"
        told = read_provenance(path)
        assert told["asked"] == {"base": BASE, "tuned": f"{RUN}@step_{step}"}
        assert told["inputs"]["revisions"] == {"base": hub.commit(BASE), "tuned": refs[f"step_{step}"]}
        assert f"{RUN}@step_{step}, commit {refs[f'step_{step}']}" in out
        changed[step] = int(pd.read_parquet(path)["changed"].sum())
    assert changed == {5: 100, 10: 200, 20: 400}
    before = {path: path.stat().st_mtime_ns for path in Path("tables").iterdir()}
    status, out = command(*words, "--out", "tables")
    assert status == 0 and out.count("there already") == 3
    assert {path: path.stat().st_mtime_ns for path in Path("tables").iterdir()} == before
    status, out = command(*words, "--out", "one.parquet")
    assert status == 1 and "--out FOLDER" in out and not Path("one.parquet").exists()
    status, out = command(*words, "--masks", "m.safetensors", "--out", "more")
    assert status == 1 and "several pairs have several tables" in out and not Path("more").exists()


def test_fetch_takes_a_series_too(hub, command):
    status, out = command("fetch", f"{RUN}@step_*")
    assert status == 0 and out.count("here and whole") == 3, out
    assert f"{RUN}@step_20 at {hub.refs(RUN)['branches']['step_20']}" in out


def test_unlocked_members_of_a_manifest_are_all_found_before_any_is_fetched(hub, here):
    (here / "own.yaml").write_text(
        "version: 1\ncheckpoints:\n"
        f"  - {{name: start, source: {{hub: {BASE}}}, method: pretrain}}\n"
        f"  - {{name: 'RUN-{{5,6}}', source: {{hub: {RUN}, ref: 'step_{{5,6}}'}}, base: start, method: rl}}\n"
    )
    manifest = read_manifest(here / "own.yaml")
    with pytest.raises(CheckpointError, match="not there: step_6"):
        named_pairs(["RUN-5", "RUN-6"], manifest)
    assert not files(hub)
    (pair,) = named_pairs(["RUN-5"], manifest, "headers")
    assert pair.tuned.checkpoint.revision == hub.refs(RUN)["branches"]["step_5"] and pair.facts()["step"] == 5


def test_what_was_fetched_is_measured_without_network(hub, command, monkeypatch):
    assert command("fetch", BASE, f"{RUN}@step_5")[0] == 0
    environment.forget()
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ("--base", BASE, "--tuned", f"{RUN}@step_5", *MATRICES, "--no-spectra", "--out", "t.parquet")
    status, out = command("measure", *words)
    assert status == 0 and not hub.requests, out
    assert f"{RUN}@step_5, commit {hub.refs(RUN)['branches']['step_5']}" in out


def test_one_branch_is_one_table_that_says_which_commit_it_was(hub, command):
    words = ("--base", BASE, "--tuned", f"{RUN}@step_5", *MATRICES, "--no-spectra", "--out", "t.parquet")
    status, out = command("measure", *words)
    assert status == 0, out
    commit = hub.refs(RUN)["branches"]["step_5"]
    assert f"tuned: {RUN}@step_5, commit {commit}" in out
    assert read_provenance(Path("t.parquet"))["inputs"]["revisions"]["tuned"] == commit
    status, out = command("measure", "--base", BASE, "--tuned", f"{RUN}@step_6", "--out", "u.parquet")
    assert status == 1 and "has no branch, tag or commit 'step_6'" in out and "step_5, step_10" in out


def test_preflight_shows_each_of_a_series_and_the_sums(hub, command, run):
    words = ("--base", BASE, "--tuned", f"{RUN}@step_*", "--no-time", "--json", "found.json")
    status, out = command("preflight", *words)
    assert status == 0, out
    text, refs = one_line(out), hub.refs(RUN)["branches"]
    for number, step in enumerate(STEPS, 1):
        commit = refs[f"step_{step}"]
        assert f"{number} {RUN}@step_{step} at {commit[:12]}: can be measured" in text
    assert f"tuned {RUN}@step_5 at commit {refs['step_5']}" in text and "3 of 3 can be measured" in text
    told = json.loads(Path("found.json").read_text())
    assert [one["names"][1] for one in told["series"]] == [f"{RUN}@step_{step}" for step in STEPS]
    assert max(map(len, out.splitlines())) <= 88
    size = (run / "base" / "model.safetensors").stat().st_size
    assert told["series"][0]["fetch_whole"] == 2 * size
    # The base counts once.
    assert told["fetch_whole"] == 4 * size and 0 < told["fetch_ranges"] < 4 * size
    assert f"to fetch downloaded {size_text(4 * size)}," in text


def test_of_a_long_series_the_first_and_all_that_have_a_problem_are_shown(run, monkeypatch):
    monkeypatch.setattr("threegates.preflight._SHOWN", 1)
    planted.write(run / "RUN" / "checkpoint-20", {"other.weight": planted.base_tensors(layers=1)[Q]})
    named = (None, str(run / "base"), str(run / "RUN" / "checkpoint-*"))
    found = preflight_of(named, (None, None), workers=1, timed=False)
    lines = found.text().splitlines()
    assert [line for line in lines if line.startswith(("1 ", "2 ", "3 ", "…"))] == [
        "1          checkpoint-5: can be measured",
        next(line for line in lines if line.startswith("3 ") and "checkpoint-20: PROBLEM" in line),
        "…          1 more can be measured",
    ]


def test_a_series_with_one_that_does_not_fit_says_which(hub, command, run):
    planted.write(run / "RUN" / "checkpoint-10", {"other.weight": planted.base_tensors(layers=1)[Q]})
    status, out = command("preflight", "--base", BASE, "--tuned", f"{RUN}@step_*", "--no-time")
    assert status == 1 and "2 of 3 can be measured" in out
    assert one_line(out).split(" 2 org/run@step_10 ")[1].split(": ")[1] == "PROBLEM"


@pytest.mark.usefixtures("without_a_kernel")
def test_emergence_follows_the_branches_of_a_repository_and_says_which_commits(hub, command):
    own = ("--base", BASE, "--tuned", f"{RUN}@step_*", *MATRICES)
    status, out = command("run", _source("emergence"), *own, "--ranged")
    assert status == 0, out
    for step in STEPS:
        assert f"commit:  {RUN}@step_{step} is {hub.refs(RUN)['branches'][f'step_{step}']}" in out
    study = Study.open("emergence", base=BASE, tuned=f"{RUN}@step_*", matrices=["q", "k", "v", "o"])
    table = study.unmeasured().table("emergence")
    rows = table[(table["tensor"] == Q) & (table["axis"] == "row")]
    size = planted.base_tensors(layers=1)[Q].numel()
    found = dict(zip(rows["step"], rows["density"] * size, strict=True))
    assert found == pytest.approx({5: 100, 10: 200, 20: 400})
    assert set(table["run"]) == {"org--run"}


@pytest.mark.usefixtures("without_a_kernel")
def test_a_series_of_the_manifest_is_taken_by_name_and_locked_by_name(hub, command, here):
    (here / "data_manifest.yaml").write_text(
        "version: 1\nprofile: paper\ncheckpoints:\n"
        f"  - {{name: start, source: {{hub: {BASE}}}, method: pretrain}}\n"
        f"  - {{name: 'RUN-step_{{5,10,20}}', source: {{hub: {RUN}, ref: 'step_{{5,10,20}}'}}, base: start, "
        "method: rl}\n"
    )
    named = ("--pair", "RUN-step_{5,20}", *MATRICES)
    status, out = command("preflight", *named, "--no-time")
    assert status == 0 and "2 of 2 can be measured" in out, out
    status, out = command("measure", *named)
    assert status == 1 and "threegates lock" in out and not (here / "build" / "pairs").exists()
    assert command("lock", "start", "RUN-step_{5,20}")[0] == 0
    status, out = command("measure", *named, "--ranged", "--no-spectra")
    assert status == 0 and "2 tables in" in out, out
    assert {path.stem for path in (here / "build" / "pairs").glob("*.parquet")} == {
        "RUN-step_5",
        "RUN-step_20",
    }
    status, out = command("run", _source("emergence"), *named, "--ranged")
    assert status == 0, out
    table = Study.open("emergence", pairs=["RUN-step_5", "RUN-step_20"], matrices=["q", "k", "v", "o"])
    assert set(table.unmeasured().table("emergence")["step"]) == {5, 20}


@pytest.mark.usefixtures("without_a_kernel")
def test_a_branch_that_moves_after_the_command_began_is_not_followed(hub, run):
    def opened() -> str:
        study = Study.open("update-sparsity", base=BASE, tuned=f"{RUN}@step_5")
        return study.pairs[0].tuned.checkpoint.digest()

    before = opened()
    assert run_chapter(_source("update-sparsity"), {}, base=BASE, tuned=f"{RUN}@step_5").page.is_file()
    hub.branches[RUN]["step_5"] = run / "RUN" / "checkpoint-20"
    assert opened() == before
    # The next command asks again.
    settle([f"{RUN}@step_5"])
    assert opened() != before


@pytest.mark.usefixtures("without_a_kernel")
def test_a_page_on_folders_of_a_run_shows_no_path_and_is_made_once(run, here):
    own = {"base": str(run / "base"), "tuned": str(run / "RUN" / "checkpoint-*")}
    made = run_chapter(_source("update-sparsity"), {}, **own)
    page = made.page.read_text()
    assert str(run) not in page and "checkpoint-* against base" in page
    assert not run_chapter(_source("update-sparsity"), {}, **own).executed


@pytest.mark.parametrize("chapter", ["emergence", "precision-lens"])
def test_chapters_that_follow_runs_take_a_series_as_one_run(run, here, chapter):
    for number in (1, 2):
        shutil.copytree(run / "RUN", run / f"seed{number}" / "kept")
    opened = Study.open(
        chapter, base=str(run / "base"), tuned=str(run / "seed{1,2}" / "kept" / "checkpoint-*")
    )
    jobs = [(job.name, len(job.inputs["checkpoints"])) for job in opened.jobs]
    assert jobs == [("seed1-kept", 4), ("seed2-kept", 4)]
    assert [pair.facts()["step"] for pair in opened.pairs] == [*STEPS, *STEPS]
    assert len({pair.name for pair in opened.pairs}) == 6


def test_a_chapter_that_follows_runs_says_what_a_pair_lacks(run, here):
    own = {"base": str(run / "base"), "tuned": str(run / "RUN" / "checkpoint-5")}
    with pytest.raises(NotebookError, match="a series as --tuned"):
        run_chapter(_source("emergence"), {}, **own)
    (run / "RUN" / "checkpoint-20").rename(run / "RUN" / "checkpoint-last")
    with pytest.raises(NotebookError, match="no number of a step above 0 in checkpoint-last"):
        run_chapter(_source("emergence"), {}, base=own["base"], tuned=str(run / "RUN" / "checkpoint-*"))


def test_more_names_than_a_file_name_has_letters_are_one_series(run, monkeypatch):
    monkeypatch.chdir(run)
    told = ",".join(["5", "10", "20", *(str(number) for number in range(1000, 1300, 7))])
    assert len(told) > 200
    with pytest.raises(CheckpointError, match="43 of the series' 46 checkpoints are not there"):
        own_pairs("base", f"RUN/checkpoint-{{{told}}}")
    with pytest.raises(CheckpointError, match="44 of the series' 47 checkpoints are not there"):
        own_pairs("base", f"RUN/checkpoint-{{{told},{'9' * 300}}}")


def test_a_pair_needs_both_sides_also_where_one_is_a_series():
    with pytest.raises(PairError, match="a base is one checkpoint"):
        own_pairs("org/base@step_{1,2}", "org/run")
    with pytest.raises(PairError, match="needs both sides"):
        own_pairs(None, "RUN/checkpoint-*")


def _source(chapter: str) -> str:
    return str(planted.ROOT / "notebooks" / f"{chapter}.ipynb")


# --- what a shell makes of it


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("run emergence --base B --tuned o/r@step_1 o/r@step_51 o/r@step_101 --ranged", 3),
        ("run --tuned R/checkpoint-1 R/checkpoint-2 emergence --base B", 2),
        ("measure --tuned checkpoint-1 checkpoint-20 --base B", 2),
        ("preflight --tuned o/r:a/1 o/r:a/2 --base o/r", 2),
        ("run --tuned R/checkpoint-1 notebooks/emergence.ipynb", 1),
        ("run --tuned model spectral-drift", 1),
        ("measure --tuned a/1 --base a/2", 1),
    ],
)
def test_names_that_a_shell_made_of_a_series_are_one_again(typed, meant):
    words = gathered(typed.split())
    assert words.count("--tuned") == meant
    assert [word for word in words if word != "--tuned"] == [w for w in typed.split() if w != "--tuned"]
    assert gathered(["nearest", "--tuned", "a/1", "a/2"]) == ["nearest", "--tuned", "a/1", "a/2"]


def test_names_without_quotes_give_what_the_series_gives(hub, command):
    names = [one.text for one in members(f"{RUN}@step_{{5,10}}")]
    words = ("--base", BASE, "--no-time", "--json", "found.json")
    status, out = command("preflight", *words, "--tuned", *names)
    assert status == 0, out
    assert [one["names"][1] for one in json.loads(Path("found.json").read_text())["series"]] == names

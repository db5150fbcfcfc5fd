"""Parts of a release: together they are what one made at once is, and nothing is lost, changed or guessed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.pages.test_runner import write_notebook
from tests.planted import planted
from threegates.checkpoints.manifests.manifest import Folder, read_manifest, write_manifest
from threegates.checkpoints.tensors import WITHOUT_WEIGHTS, Checkpoint, without_weights
from threegates.cli import app
from threegates.errors import CheckpointError, RecordError
from threegates.geometry.precision import bf16_codes, bf16_from_codes
from threegates.jobs import kept, released
from threegates.jobs.kinds.known import KINDS
from threegates.jobs.nulls import founding_nulls
from threegates.jobs.released import FILE, run_folder_of
from threegates.measures.agreement import measure_agreement
from threegates.measures.by_tensor import typed
from threegates.measures.partners import Partner
from threegates.records.store import record_digest, write_table
from threegates.register import CHAPTERS
from threegates.releases.committing import check_committable
from threegates.releases.making import release_build
from threegates.releases.packing import KEPT, read_kept_tables, read_release, unpack
from threegates.releases.parts import Choice, add_part
from threegates.releases.taking import leave_out_released

MASKS, DRIFT, CURVATURE = "stripe-masks", "spectral-drift", "curvature"
FIRST = ("grpo-s0", "grpo-s2", "grpo-s4")
SECOND = ("grpo-s1", "grpo-s3", "sft-s2")


def runs():
    """Five RL runs whose masks are compared, and an SFT run whose partner in norm is one of them."""
    base = planted.base_tensors()
    found = {
        f"grpo-s{seed}": (
            planted.with_noise(base, 2e-4, seed),
            planted.entry(
                f"grpo-s{seed}", "rl", [MASKS, DRIFT], algorithm="grpo", seed=seed, run=f"grpo-s{seed}"
            ),
        )
        for seed in range(5)
    }
    other = planted.entry("sft-s2", "sft", [DRIFT], algorithm="sft", seed=2, run="sft-s2")
    return {**found, "sft-s2": (planted.with_noise(base, 1e-3, 12), other)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """All runs as the lab lays them out."""
    folder = tmp_path_factory.mktemp("parts") / "lab"
    planted.lay_out_runs(folder, runs())
    return folder


@pytest.fixture(autouse=True)
def plan(monkeypatch):
    """A plan with the runs in their order, as that of a profile has them."""
    methods = {"base": "pretrain", "sft-s2": "sft"}
    items = [
        SimpleNamespace(
            run=SimpleNamespace(name=name, folder=f"{name}-{planted.DIGEST}"),
            draft=SimpleNamespace(method=methods.get(name, "rl")),
        )
        for name in ("base", *runs())
    ]
    monkeypatch.setattr("threegates.lab.plans.plan.plan", lambda profile: items)
    released.planned.cache_clear()
    yield
    released.planned.cache_clear()


@pytest.fixture
def book(project, lab):
    """A project with two pages; `book(*names)` gives it a fresh build with these runs and their base."""
    for chapter in (MASKS, DRIFT):
        write_notebook(
            project,
            chapter,
            f"from threegates.study import Study\nstudy = Study.open('{chapter}', seed=seed)",
            parameters="seed: int = 2  # of the nulls",
        )
    (project / "book").mkdir()
    contents = {"root": "intro", "parts": [{"chapters": [{"file": MASKS}, {"file": DRIFT}]}]}
    (project / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))

    def build(*names):
        shutil.rmtree(project / "build", ignore_errors=True)
        manifest = read_manifest(lab / "manifest.yaml")
        entries = [entry for entry in manifest.checkpoints if entry.name in ("base", *names)]
        for folder in map(run_folder_of, entries):
            shutil.copytree(lab / "runs" / folder, project / "build" / "lab" / "runs" / folder)
        changed = manifest.model_copy(update={"checkpoints": entries})
        write_manifest(project / "build" / "lab" / "manifest.yaml", changed)

    build.release = project / "results" / "full"
    build.lab = project / "build" / "lab"
    return build


def unpacked(release, folder):
    """Content of all that a release unpacks to, by place; a record's without its provenance's text."""
    unpack(release, folder)
    (folder / FILE).unlink()
    return {
        str(path.relative_to(folder)): record_digest(path) if path.suffix == ".parquet" else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_old(folder):
    """A release as they were before there were parts: nothing is kept, and none is listed."""
    (folder / KEPT).unlink()
    told = json.loads((folder / FILE).read_text())
    del told["parts"], told["files"][KEPT]
    (folder / FILE).write_text(json.dumps(told))


def change(folder, name):
    """Other weights in a run's checkpoint, of the same names and shapes."""
    (step,) = folder.glob(f"runs/{name}-*/step-*")
    base = planted.base_tensors()
    planted.write(step, planted.with_noise(base, 2e-4, 99))


# ----------------------------------------------------------------------------------------------- merging


def test_two_parts_unpack_as_a_release_that_was_made_at_once(book, tmp_path):
    book(*FIRST)
    add_part()
    book(*SECOND)
    # No weights of the first part are here: its runs are compared by what was kept of them.
    made = add_part()
    assert not list(book.lab.glob("runs/grpo-s0-*"))
    assert [part["name"] for part in made.parts] == ["1-all", "2-all"]
    in_parts = unpacked(made, tmp_path / "parts")
    book(*FIRST, *SECOND)
    at_once = unpacked(release_build(tmp_path / "full"), tmp_path / "once")
    assert in_parts.keys() == at_once.keys()
    assert {place for place in at_once if in_parts[place] != at_once[place]} == set()
    assert any(place.startswith("records/agreement/") for place in at_once)
    assert any(place.startswith("records/drift/sft-s2") for place in at_once)


def test_a_part_is_described(book):
    book(*FIRST)
    add_part()
    book(*SECOND)
    first, second = add_part().parts
    assert first["bases"] == ["base"] and first["seeds"] == [0, 2, 4] and first["subjects"] == ["lab"]
    # A second part repeats nothing of the first: the base is no part of it.
    assert second["bases"] == [] and second["seeds"] == [1, 2, 3] and second["chapters"] == [DRIFT, MASKS]
    assert second["counts"]["runs"] == second["counts"]["checkpoints"] == 3
    assert first["counts"]["updates"] == 3 and second["counts"]["updates"] == 2
    # One pair of tables a run in stripe-masks, three tables a run in drift, and six of the group.
    assert second["counts"]["records"] == 2 * 2 + 3 * 3 + 6
    assert second["made"].keys() == {"time", "commit", "dirty"} and second["measured_by"]


def test_what_was_proved_of_a_release_with_new_keys_stays(book):
    book(*FIRST)
    made, proof = add_part(Choice(seeds=(0,))), [{"commit": "c" * 40, "rewrites": []}]
    told = json.loads((made.folder / FILE).read_text())
    (made.folder / FILE).write_text(json.dumps(told | {"rekeyed": proof}))
    assert made.rekeyed == [] and add_part().rekeyed == proof


def test_only_what_is_chosen_is_added_and_chapters_come_together(book, tmp_path):
    book(*FIRST, *SECOND)
    made = add_part(Choice(seeds=(0, 2), chapters=(MASKS,)))
    entries = {
        entry.name: entry.chapters for entry in read_manifest(made.folder / "manifest.yaml").checkpoints
    }
    assert entries == {"base": [], "grpo-s0": [MASKS], "grpo-s2": [MASKS]}
    assert made.parts[0]["name"] == "1-stripe-masks-seed-0-seed-2"
    made = add_part(Choice(chapters=(DRIFT,)))
    entries = {
        entry.name: entry.chapters for entry in read_manifest(made.folder / "manifest.yaml").checkpoints
    }
    assert entries["grpo-s2"] == [MASKS, DRIFT] and entries["grpo-s1"] == [DRIFT]
    made = add_part()
    at_once = unpacked(release_build(tmp_path / "full"), tmp_path / "once")
    assert unpacked(made, tmp_path / "parts") == at_once


def test_nothing_new_and_nothing_chosen_are_said(book):
    book(*FIRST)
    add_part()
    before = contents(book.release)
    with pytest.raises(RecordError, match="has all of this already"):
        add_part()
    with pytest.raises(RecordError, match="nothing of what is to be added") as failure:
        add_part(Choice(seeds=(7,)))
    assert failure.value.found == "seed-7" and "seeds 0, 2, 4" in failure.value.expected
    assert contents(book.release) == before
    assert not list(book.lab.parent.glob(".adding*"))


def noise_of(monkeypatch):
    """Of the chapter on curvature a base has one record, and a run one without rows."""

    def measured(kind, rows):
        return lambda places, name, seed: {kind: typed(rows, KINDS[kind].tables[kind])}

    row = {"base": "base", "function": "loss", "batch": 0, "direction": "noise", "draw": 0}
    rows = {"curvature": [], "steepness": [{**row, "curvature": 2.0, "norm": 1.0}]}
    for kind, own in rows.items():
        monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], measure=measured(kind, own)))


@pytest.fixture
def without_noise(book, project, monkeypatch):
    """A release of a chapter that has since got jobs about its base alone; then a build of that base."""
    write_notebook(
        project,
        CURVATURE,
        f"from threegates.study import Study\nstudy = Study.open('{CURVATURE}')",
    )
    contents = {"root": "intro", "parts": [{"chapters": [{"file": DRIFT}, {"file": CURVATURE}]}]}
    (project / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))
    noise_of(monkeypatch)
    book(*FIRST)
    manifest = read_manifest(book.lab / "manifest.yaml")
    named = [
        entry.model_copy(update={"chapters": [*entry.chapters, CURVATURE] if entry.base else []})
        for entry in manifest.checkpoints
    ]
    write_manifest(book.lab / "manifest.yaml", manifest.model_copy(update={"checkpoints": named}))
    with monkeypatch.context() as patch:
        patch.setitem(CHAPTERS, CURVATURE, replace(CHAPTERS[CURVATURE], jobs=("curvature",)))
        add_part()
    book()
    return book


@pytest.mark.parametrize(("chapters", "name"), [((CURVATURE,), "2-curvature"), ((), "2-all")])
def test_bases_alone_add_what_is_measured_of_them(without_noise, tmp_path, chapters, name):
    book = without_noise
    before = unpacked(read_release(book.release), tmp_path / "before")
    made = add_part(Choice(chapters=chapters))
    part, after = made.parts[-1], unpacked(made, tmp_path / "after")
    assert (part["name"], part["bases"], part["subjects"]) == (name, ["base"], ["lab"])
    assert (part["chapters"], part["seeds"]) == ([CURVATURE], [])
    assert part["counts"] == {"checkpoints": 0, "runs": 0, "records": 1, "updates": 0}
    (new,) = after.keys() - before.keys()
    assert new.startswith("records/steepness/base-")
    assert before == {place: content for place, content in after.items() if place != new}


def test_bases_alone_are_of_no_seed_and_of_the_chosen_subject(without_noise):
    for choice in (Choice(seeds=(1,)), Choice(subjects=("encoder",), chapters=(CURVATURE,))):
        with pytest.raises(RecordError, match="nothing of what is to be added"):
            add_part(choice)
    add_part(Choice(subjects=("lab",), chapters=(CURVATURE,)))
    with pytest.raises(RecordError, match="has all of this already"):
        add_part(Choice(chapters=(CURVATURE,)))


def test_beside_runs_a_base_is_no_part_of_a_chapter_that_none_of_them_has(without_noise):
    book = without_noise
    book("grpo-s0")
    with pytest.raises(RecordError, match="nothing of what is to be added"):
        add_part(Choice(chapters=(CURVATURE,)))


def test_a_part_of_another_profile_is_refused(book):
    book(*FIRST)
    add_part()
    manifest = read_manifest(book.lab / "manifest.yaml")
    write_manifest(book.lab / "manifest.yaml", manifest.model_copy(update={"profile": "mini"}))
    with pytest.raises(RecordError, match="its own profile") as failure:
        add_part(target=book.release)
    assert failure.value.found == "mini"


def test_a_part_that_fails_leaves_the_release_as_it_was(book, monkeypatch):
    book(*FIRST)
    add_part()
    before = contents(book.release)
    book(*SECOND)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("threegates.releases.packing._write_facts", killed)
    with pytest.raises(KeyboardInterrupt):
        add_part()
    assert contents(book.release) == before
    assert [path.name for path in book.release.parent.iterdir()] == ["full"]


def test_what_is_released_is_not_trained_for_a_part_and_its_base_is_laid_out(book):
    book(*FIRST)
    add_part()
    original = contents(next(book.lab.glob("runs/base-*")))
    shutil.rmtree(book.lab)
    assert leave_out_released("full", book.lab.parent) == set(FIRST)
    (run,) = (book.lab / "runs").iterdir()
    assert contents(run) == original
    # A base that is there already is left as it is.
    (run / "when.json").write_text("{}")
    assert leave_out_released("full", book.lab.parent) == set(FIRST)
    assert (run / "when.json").read_text() == "{}"


# --------------------------------------------------------------------------------------------- conflicts


def test_a_run_of_other_content_is_refused_by_name_or_replaces(book, tmp_path):
    book(*FIRST)
    add_part()
    before = contents(book.release)
    book("grpo-s0", "grpo-s1", "grpo-s2")
    change(book.lab, "grpo-s2")
    with pytest.raises(RecordError, match="1 checkpoints of the release are others") as failure:
        add_part()
    assert failure.value.where == "grpo-s2" and contents(book.release) == before
    made = add_part(replace=True)
    changed = next(book.lab.glob("runs/grpo-s2-*/step-*"))
    unpack(made, tmp_path / "unpacked")
    place = tmp_path / "unpacked" / changed.relative_to(book.lab.parent)
    assert Checkpoint.open(place).digest() == Checkpoint.open(changed).digest()
    assert len(list((tmp_path / "unpacked" / "records").glob("drift/grpo-s2-*"))) == 1


def test_a_replaced_run_leaves_no_record_about_the_one_before(book):
    book(*FIRST)
    add_part()
    before = contents(book.release)
    book("grpo-s2")
    change(book.lab, "grpo-s2")
    with pytest.raises(RecordError, match="other records of the release are about") as failure:
        add_part(Choice(chapters=(DRIFT,)), replace=True)
    assert "agreement/base-rl-layer00" in failure.value.where
    assert contents(book.release) == before


def test_a_record_that_no_page_reads_goes_with_the_run_that_is_replaced(book, project):
    book(*FIRST)
    before = json.loads((add_part().folder / "provenance.json").read_text())
    book("grpo-s2")
    change(book.lab, "grpo-s2")
    toc = {"root": "intro", "parts": [{"chapters": [{"file": DRIFT}]}]}
    (project / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
    after = json.loads((add_part(replace=True).folder / "provenance.json").read_text())
    jobs = {table: sorted(one["job"] for one in told.values()) for table, told in after.items()}
    # Records about several runs, one of them replaced, have no page any more; those about the others stay.
    assert before["agreement"] and "agreement" not in {table for table, names in jobs.items() if names}
    assert jobs["drift"] == ["grpo-s0", "grpo-s2", "grpo-s4"] and jobs["tensor"] == ["grpo-s0", "grpo-s4"]


def test_a_record_of_other_content_is_refused_by_name_or_replaces(book):
    book(*FIRST)
    made = add_part()
    told = json.loads((made.folder / "provenance.json").read_text())["tensor"]
    stem, facts = next((stem, one) for stem, one in told.items() if one["job"] == "grpo-s0")
    path = book.lab.parent / "records" / "tensor" / f"{stem}.parquet"
    assert not path.exists()
    # The same build measures it once more, and somebody changes a number.
    unpack(made, book.lab.parents[1] / "elsewhere")
    source = book.lab.parents[1] / "elsewhere" / "records" / "tensor" / f"{stem}.parquet"
    frame = pq.read_table(source).to_pandas()
    frame.loc[0, "changed"] += 1
    changed = pa.Table.from_pandas(frame, schema=pq.read_schema(source), preserve_index=False)
    write_table(path, changed, facts)
    with pytest.raises(RecordError, match="1 records of the release are others") as failure:
        add_part()
    assert failure.value.where == f"tensor/{stem}"
    made = add_part(replace=True)
    assert made.parts[-1]["counts"]["records"] == 1
    unpack(made, book.lab.parents[1] / "replaced")
    replaced = book.lab.parents[1] / "replaced" / "records" / "tensor" / f"{stem}.parquet"
    assert record_digest(replaced) == record_digest(path)


# ------------------------------------------------------------------------------------------------ keeping


def stub(folder, tuned, base, columns=(kept.UPDATE, kept.NORM)):
    """What a release keeps of a tuned checkpoint, laid out in a folder and opened."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tuned.config))
    (folder / WITHOUT_WEIGHTS).write_text(json.dumps(without_weights(tuned)))
    write_table(folder / kept.NAME, kept.kept_table(base, tuned, columns), {})
    return Checkpoint.open(folder)


@pytest.fixture
def models(lab):
    """The base, and four RL runs by name."""
    (base,) = lab.glob("runs/base-*/step-*")
    names = [f"grpo-s{seed}" for seed in range(4)]
    tuned = {name: Checkpoint.open(next(lab.glob(f"runs/{name}-*/step-*"))) for name in names}
    return Checkpoint.open(base), tuned


def test_group_jobs_from_kept_updates_equal_those_from_weights_to_the_bit(models, tmp_path):
    base, tuned = models
    some = {
        name: kept.in_bf16(stub(tmp_path / name / "step", one, base), base)
        if name in ("grpo-s0", "grpo-s2")
        else one
        for name, one in tuned.items()
    }
    assert some["grpo-s0"].kept_digest and not some["grpo-s1"].kept_digest
    asked = {"of_layer": 0, "nulls": founding_nulls(), "seed": 3}
    found, wanted = (measure_agreement(base, runs, **asked) for runs in (some, tuned))
    assert found.keys() == wanted.keys()
    for table, frame in wanted.items():
        assert len(frame) and found[table].equals(frame), table


def test_a_kept_update_gives_the_tensors_in_bf16_and_no_others(models, tmp_path):
    base, tuned = models
    one = tuned["grpo-s1"]
    again = kept.in_bf16(stub(tmp_path / "run" / "step", one, base), base)
    for name in one.infos:
        assert again.stored(name).equal(one.bf16(name)) and again.stored_rows(name, 1, 3).equal(
            one.bf16(name)[1:3]
        )
    assert again.digest() == one.digest()
    assert kept.in_bf16(one, base) is one and kept.in_norm(one, base) is one


def test_a_kept_norm_is_the_partners_to_the_bit(models, tmp_path):
    base, tuned = models
    one = tuned["grpo-s1"]
    again = kept.in_norm(stub(tmp_path / "run" / "step", one, base), base)
    names = [name for name, info in one.infos.items() if len(info.shape) == 2]
    for name in names:
        norm = Partner(base, one).norm(name)
        assert norm and Partner(base, again).norm(name) == norm
    # In a tensor without an entry of the other sign, nothing can be moved that far and back.
    with pytest.raises(CheckpointError, match="cannot be laid out"):
        again.stored("model.layers.0.input_layernorm.weight")


@given(st.lists(st.tuples(st.integers(-0x7F7F, 0x7F7F), st.integers(-0x7F7F, 0x7F7F)), max_size=40))
def test_any_move_of_bf16_codes_is_given_back(pairs):
    codes = torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2)
    before, after = bf16_from_codes(codes[:, 0]), bf16_from_codes(codes[:, 1])
    moves = kept._moves(kept._planes((bf16_codes(after) - bf16_codes(before)).numpy()))
    assert bf16_from_codes(bf16_codes(before) + moves).equal(after)


def test_what_was_not_kept_and_another_base_are_said_with_the_run(models, tmp_path):
    base, tuned = models
    place = tmp_path / "grpo-s1-0123456789ab" / "step"
    one = stub(place, tuned["grpo-s1"], base, columns=(kept.NORM,))
    with pytest.raises(CheckpointError, match="the run grpo-s1 was released without") as failure:
        kept.in_bf16(one, base)
    assert "--only grpo-s1" in failure.value.remedy
    kept.in_norm(one, base)
    with pytest.raises(CheckpointError, match="update of another base") as failure:
        kept.in_norm(one, tuned["grpo-s2"])
    assert failure.value.found == tuned["grpo-s2"].digest()
    (place / kept.NAME).unlink()
    with pytest.raises(CheckpointError, match="was not kept"):
        kept.in_norm(one, base)


def test_runs_of_an_old_release_are_named_and_trained_again_once(book):
    book(*FIRST)
    make_old(add_part().folder)
    before = contents(book.release)
    book(*SECOND)
    with pytest.raises(RecordError, match="released ones of which nothing was kept") as failure:
        add_part()
    assert failure.value.found == "grpo-s0, grpo-s2, grpo-s4"
    assert "group base-rl-layer00" in failure.value.where and "drift sft-s2" in failure.value.where
    assert "--only grpo-s0 --only grpo-s2 --only grpo-s4" in failure.value.remedy
    assert contents(book.release) == before
    book(*FIRST, *SECOND)
    made = add_part()
    assert [part["counts"]["updates"] for part in made.parts] == [0, 5]
    assert len(read_kept_tables(made)) == 5


def test_a_second_base_has_a_folder_of_its_own(book, lab, tmp_path):
    book(*FIRST)
    manifest = read_manifest(book.lab / "manifest.yaml")
    place = Folder(path="runs/wider-0123456789ab/step-000002")
    base = manifest.entry("base").model_copy(update={"name": "wider", "source": place})
    run = manifest.entry("grpo-s2").model_copy(update={"base": "wider"})
    planted.write(book.lab / place.path, planted.base_tensors(seed=2))
    for name in ("run", "when"):
        (book.lab / place.path).with_name(f"{name}.json").write_text("{}")
    entries = [base, *(run if entry.name == run.name else entry for entry in manifest.checkpoints)]
    write_manifest(book.lab / "manifest.yaml", manifest.model_copy(update={"checkpoints": entries}))
    made = add_part()
    known = {
        entry.name: entry.source.path for entry in read_manifest(made.folder / "manifest.yaml").checkpoints
    }
    # The plan lacks the wider base, which so comes after the first.
    assert (made.folder / "base/model.safetensors").is_file()
    assert (made.folder / "base/wider/model.safetensors").is_file()
    unpack(made, tmp_path / "unpacked")
    for name in ("base", "wider"):
        laid_out, original = tmp_path / "unpacked" / "lab" / known[name], book.lab / known[name]
        assert contents(laid_out) == contents(original)


# --------------------------------------------------------------------------------------------- committing


def git(folder, *arguments):
    own = ("-c", "user.name=A", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", folder, *own, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(project, monkeypatch):
    """The project as a clone with one commit."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b")
    (project / ".gitignore").write_text("build/\n")
    git(project, "init", "--quiet")
    git(project, "add", ".gitignore")
    git(project, "commit", "--quiet", "--message", "Begin")
    return project


def test_a_part_is_committed_alone_with_what_it_is(book, clone):
    book(*FIRST)
    (clone / "other.txt").write_text("not of the release")
    done = CliRunner().invoke(app, ["release", "--add", "--commit", "--seed", "2", "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert set(git(clone, "show", "--name-only", "--format=").split()) >= {"results/full/release.json"}
    assert "other.txt" not in git(clone, "ls-files")
    told = git(clone, "log", "-1", "--format=%B")
    assert told.startswith("Released records of full: part 1-seed-2")
    assert "2 runs with 2 checkpoints" in told and "seeds: 2" in told and "Made at " in told
    assert git(clone, "rev-parse", "HEAD") in done.output
    assert git(clone, "status", "--porcelain", "results") == ""


def test_outside_git_and_beside_staged_changes_nothing_is_committed(clone, tmp_path):
    folder = clone / "results" / "full"
    check_committable(folder)
    (clone / "other.txt").write_text("staged")
    git(clone, "add", "other.txt")
    with pytest.raises(RecordError, match="other changes are staged") as failure:
        check_committable(folder)
    assert failure.value.found == "other.txt"
    with pytest.raises(RecordError, match="outside git"):
        check_committable(tmp_path / "results" / "full")


def test_training_what_is_not_released_is_asked_for_with_the_runs_that_are(project, monkeypatch):
    asked = []
    monkeypatch.setattr("threegates.releases.taking.leave_out_released", lambda profile, _: {profile})
    monkeypatch.setattr("threegates.lab.train.train", lambda *_, released: asked.append(released))
    for more in ([], ["--unreleased"]):
        done = CliRunner().invoke(app, ["train", "--profile", "full", *more])
        assert done.exit_code == 0, done.output
    assert asked == [(), {"full"}]


def test_a_choice_without_adding_is_refused():
    done = CliRunner().invoke(app, ["release", "--seed", "2"])
    assert done.exit_code == 2 and "--add" in done.output

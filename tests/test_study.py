from __future__ import annotations

import pandas as pd
import pytest

from tests.planted import planted
from threegates.checkpoints.manifests.manifest import Folder
from threegates.errors import CheckpointError, ManifestError, NoDrawsError, PairError, RecordError
from threegates.jobs import jobs
from threegates.jobs.sources import folder_labels
from threegates.records.store import read_provenance
from threegates.study import Study


def noisy_runs(base, number=5, chapter="stripe-masks", scale=2e-4):
    return {
        f"grpo-s{seed}": (
            planted.with_noise(base, scale, seed),
            planted.entry(f"grpo-s{seed}", "rl", [chapter], algorithm="grpo", seed=seed, run=f"grpo-s{seed}"),
        )
        for seed in range(number)
    }


@pytest.fixture
def stripes(project):
    base = planted.base_tensors()
    manifest = planted.write_study(project / "build" / "lab", base, noisy_runs(base))
    return lambda **options: Study.open("stripe-masks", manifest=manifest, **options)


def verdict_of(frame: pd.DataFrame, claim: str) -> str:
    return frame[frame["claim"] == claim]["verdict"].iloc[0]


def test_storage_noise_alone_is_not_taken_for_agreement(stripes):
    verdicts = stripes().verdicts()
    assert verdict_of(verdicts, "masks-agree-across-runs") == "explained by storage"
    none = ("not reproduced", "contradicted", "no effect of the size asked for", "cannot be told")
    assert verdict_of(verdicts, "masks-are-striped") in none


def test_shared_stripes_are_reproduced(project):
    base = planted.base_tensors(width=64)
    runs = {
        name: (planted.with_stripes(base, 5e-5, seed, 8.0), entry)
        for seed, (name, (_, entry)) in enumerate(noisy_runs(base).items())
    }
    manifest = planted.write_study(project / "lab", base, runs)
    verdicts = Study.open("stripe-masks", manifest=manifest).verdicts()
    assert verdict_of(verdicts, "masks-are-striped") == "reproduced"
    assert verdict_of(verdicts, "rows-stand-out-in-qkv") == "reproduced"
    assert set(verdicts["subject"]) == {"the miniature lab: 5 checkpoints of profile planted, 5 seeds"}


def test_what_is_measured_is_not_measured_again(stripes, monkeypatch):
    study = stripes()
    # One job a pair, and one for the group's only block.
    assert len(study.missing()) == 6
    first = study.digest()
    before = {path: path.read_bytes() for path in study.paths() if path.exists()}
    monkeypatch.setattr("threegates.study.run_jobs", None)
    again = stripes()
    assert again.missing() == [] and again.digest() == first
    assert {path: path.read_bytes() for path in before} == before


def test_a_removed_record_alone_is_measured_again_and_is_the_same(stripes):
    study = stripes().ensure()
    path = study.records.path("tensor", study.jobs[0].name, study.jobs[0].digest)
    content = path.read_bytes()
    path.unlink()
    assert [job.name for job in stripes().missing()] == [study.jobs[0].name]
    stripes().ensure()
    assert path.read_bytes() == content


def test_another_seed_other_weights_and_other_code_are_other_jobs(stripes, project, monkeypatch):
    digests = {job.name: job.digest for job in stripes().jobs}
    other = {job.name: job.digest for job in stripes(seed=6).jobs}
    assert [name for name in digests if digests[name] != other[name]] == ["base-rl-layer00"]
    planted.write(project / "build" / "lab" / "grpo-s1", planted.with_noise(planted.base_tensors(), 1e-4, 9))
    other = {job.name: job.digest for job in stripes().jobs}
    assert [name for name in digests if digests[name] != other[name]] == ["grpo-s1", "base-rl-layer00"]
    monkeypatch.setattr(jobs, "code_digest", lambda *_, **__: "other code")
    assert not set(digests.values()) & {job.digest for job in stripes().jobs}


def test_a_number_of_draws_is_refused_with_what_to_do(stripes):
    with pytest.raises(NoDrawsError, match=r"(?s)laws are computed.*Study\.open.*found: 0.*leave draws out"):
        stripes(draws=0)


def test_two_processes_give_the_bytes_of_one(stripes, tmp_path):
    one, two = (stripes(records=tmp_path / str(workers)).ensure(workers) for workers in (1, 2))
    for a, b in zip(one.jobs, two.jobs, strict=True):
        for table in a.tables:
            paths = [study.records.path(table, job.name, job.digest) for study, job in ((one, a), (two, b))]
            assert paths[0].read_bytes() == paths[1].read_bytes()


def test_tables_carry_the_facts_of_their_pairs(stripes):
    study = stripes()
    tensor, agreement = study.table("tensor"), study.table("agreement")
    assert set(tensor["algorithm"]) == {"grpo"} and set(tensor["rate"]) == {"mask"}
    assert set(agreement["method"]) == {"rl"} and set(agreement["base"]) == {"base"}
    assert len(agreement) == 10 * 7 and len(study.frame) == 5
    with pytest.raises(RecordError, match="no table 'axes'"):
        study.table("axes")


def test_records_state_their_making_and_no_path(stripes, project):
    study = stripes().ensure()
    for path in study.paths():
        if path.exists():
            stated = read_provenance(path)
            assert {"code", "versions", "inputs", "threads", "digest"} <= set(stated)
            assert str(project).encode() not in path.read_bytes()
    assert stated["inputs"]["parameters"]["seed"] == 0


def test_a_chapter_without_pairs_is_not_run(project):
    base = planted.base_tensors()
    manifest = planted.write_study(project / "lab", base, noisy_runs(base, 2, chapter="elsewhere"))
    study = Study.open("stripe-masks", manifest=manifest)
    assert set(study.verdicts()["verdict"]) == {"not run"} and study.table("agreement").empty


def test_one_run_alone_cannot_be_tested(stripes):
    verdicts = stripes(pairs=["grpo-s1"]).verdicts()
    assert set(verdicts["verdict"]) == {"cannot be tested here"}


def test_two_folders_of_ones_own_are_a_pair(stripes, project):
    lab = project / "build" / "lab"
    study = stripes(base=str(lab / "base"), tuned=str(lab / "grpo-s1"))
    assert list(study.frame["pair"]) == ["grpo-s1"] and len(study.table("axis")) == 14
    assert set(study.verdicts()["verdict"]) == {"cannot be tested here"}


def test_emergence_follows_steps_and_refuses_a_lone_checkpoint(project):
    base = planted.base_tensors()
    runs = {}
    for seed in (1, 2):
        for step in (2, 4, 12):
            name = f"run{seed}-{step}"
            facts = {
                "run": f"run{seed}",
                "step": step,
                "updates": 4 * step,
                "final": step == 12,
                "seed": seed,
            }
            tensors = planted.with_stripes(base, 1e-4 * step**0.5, seed)
            runs[name] = (tensors, planted.entry(name, "rl", ["emergence"], algorithm="grpo", **facts))
    manifest = planted.write_study(project / "lab", base, runs)
    study = Study.open("emergence", manifest=manifest)
    frame = study.table("emergence")
    assert set(frame["step"]) == {2, 4, 12} and set(frame["algorithm"]) == {"grpo"}
    # Every step's stripes were planted on the same lines.
    assert verdict_of(study.verdicts(), "stripes-emerge-early") == "reproduced"
    with pytest.raises(PairError, match="no checkpoints along its training"):
        Study.open("emergence", manifest=manifest, pairs=["run1-12"]).table("emergence")


def test_logs_of_lab_runs_are_read(project):
    base = planted.base_tensors()
    entries = {}
    for name in ("a", "b"):
        entry = planted.entry(name, "rl", ["update-sparsity"], run=f"run-{name}", seed=1)
        entry.source = Folder(path=f"{name}/step-01")
        entries[name] = (base, entry)
    lab = project / "lab"
    manifest = planted.write_study(lab, base, entries)
    for name in ("a", "b"):
        planted.write(lab / name / "step-01", base)
        pd.DataFrame({"step": [1, 2], "reward": [0.1, 0.2]}).to_parquet(lab / name / "log.parquet")
    study = Study.open("update-sparsity", manifest=manifest)
    log = study.table("log")
    assert len(log) == 4 and set(log["run"]) == {"run-a", "run-b"} and set(log["method"]) == {"rl"}
    first = study.digest()
    pd.DataFrame({"step": [1], "reward": [0.9]}).to_parquet(lab / "a" / "log.parquet")
    assert Study.open("update-sparsity", manifest=manifest).digest() != first
    with pytest.raises(RecordError, match="none of the chapter's runs"):
        study.table("evaluation")


def test_a_label_called_like_a_column_of_the_log_stands_beside_it(project):
    base = planted.base_tensors()
    entries = {}
    for name, labels in (("a", {"rate": "reward", "kl": "0.04"}), ("b", {"rate": "reward"})):
        entry = planted.entry(name, "rl", ["kl-leash"], run=name, labels=labels)
        entry.source = Folder(path=f"{name}/step-01")
        entries[name] = (base, entry)
    manifest = planted.write_study(project / "lab", base, entries)
    for name in entries:
        planted.write(project / "lab" / name / "step-01", base)
        pd.DataFrame({"step": [1], "kl": [0.5]}).to_parquet(project / "lab" / name / "log.parquet")
    log = Study.open("kl-leash", manifest=manifest).table("log").set_index("run")
    assert log["kl"].tolist() == [0.5, 0.5] and log.loc["a", "label_kl"] == "0.04"
    assert pd.isna(log.loc["b", "label_kl"]) and set(log["rate"]) == {"reward"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pairs": ["grpo-s9"]}, ManifestError, "no checkpoint 'grpo-s9'"),
        ({"pairs": ["base"]}, ManifestError, "names no base"),
        ({"base": "base"}, PairError, "needs both sides"),
        ({"base": "base", "tuned": "nothing"}, ManifestError, "neither a folder nor a manifest's entry"),
        ({"base": "base", "tuned": "./no/such/folder"}, CheckpointError, "no/such/folder"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(stripes, options, error, message):
    with pytest.raises(error, match=message):
        stripes(**options)


def test_labels_keep_folders_apart(tmp_path):
    for name in ("a/model", "b/model", "c"):
        (tmp_path / name).mkdir(parents=True)
    found = folder_labels([str(tmp_path / "a/model"), str(tmp_path / "b/model"), "ORG/REPO"])
    assert list(found) == ["a-model", "b-model"]
    assert list(folder_labels([str(tmp_path / "c"), str(tmp_path / "a/model")])) == ["model", "c"]

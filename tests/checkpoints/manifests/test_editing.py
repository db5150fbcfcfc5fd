"""Edits of a manifest: what is not changed keeps its bytes, and nothing is half written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from threegates.checkpoints.manifests.editing import edit_manifest, edited_text
from threegates.checkpoints.manifests.manifest import parse_manifest, read_manifest
from threegates.errors import ManifestError

TRACKED = Path(__file__).parents[3] / "data_manifest.yaml"
COMMIT, OTHER = "0a" * 20, "b1" * 20
FILES = {"config.json": "c" * 64, "model.safetensors": "d" * 64}
LOCKED = {"source": {"revision": COMMIT}, "files": FILES, "checked": True, "licence": "MIT"}

COMMENTED = """\
# Head.
version: 1   # one

checkpoints:
  # Bases.
  - name: base   # the base
    source: {hub: org/base, revision: null}  # not yet
    # Between.
    method: pretrain
    checked: false   # not looked at

  # Tuned.
  - name: tuned
    source:
      hub: org/tuned   # its place
      # The commit is to come.
      revision:
    method:   rl
    base:     'base'
    note: >-
      Folded
      text.

  - {name: flow, source: {hub: org/flow}, method: sft}  # on one line
# Foot.
"""


def edited(text: str, changes: dict, added: tuple = ()) -> str:
    return edited_text(Path("m.yaml"), text, changes, added)


def test_comments_order_and_layout_stay_around_what_changes():
    expected = (
        COMMENTED.replace("revision: null}  # not yet", f"revision: {COMMIT}}}  # not yet\nFILES\nLICENCE")
        .replace("      revision:\n", f"      revision: {COMMIT}\nFILES\nLICENCE\n")
        .replace("    base:     'base'\n", "    base:     'base'\n    checked: true\n")
        .replace("FILES", "    files:\n" + "\n".join(f"      {name}: {sha}" for name, sha in FILES.items()))
        .replace("LICENCE", "    licence: MIT")
        .replace("checked: false   # not", "checked: true   # not")
        .replace(
            "{hub: org/flow}, method: sft}",
            f"{{hub: org/flow, revision: {COMMIT}}}, "
            f"files: {{config.json: {'c' * 64}, model.safetensors: {'d' * 64}}}, "
            "licence: MIT, method: sft, checked: true}",
        )
    )
    assert edited(COMMENTED, dict.fromkeys(("base", "tuned", "flow"), LOCKED)) == expected


def test_the_same_edit_twice_changes_nothing_more():
    changes = dict.fromkeys(("base", "tuned", "flow"), LOCKED)
    once = edited(COMMENTED, changes)
    assert edited(once, changes) == once
    assert edited(COMMENTED, {}) == COMMENTED


def test_a_second_lock_replaces_values_and_keeps_comments_between_files():
    once = edited(COMMENTED, {"base": LOCKED}).replace(f": {'c' * 64}\n", f": {'c' * 64}  # its config\n")
    again = {"source": {"revision": OTHER}, "files": {**FILES, "config.json": "e" * 64}}
    assert edited(once, {"base": again}) == once.replace(COMMIT, OTHER).replace("c" * 64, "e" * 64)


def test_other_files_replace_the_list_of_files_alone():
    once = edited(COMMENTED, {"base": LOCKED})
    shards = {"config.json": "c" * 64, "model-1.safetensors": "1" * 64, "model-2.safetensors": "2" * 64}
    again = edited(once, {"base": {"files": shards}})
    old, new = once.split("\n"), again.split("\n")
    start = old.index("    files:")
    assert new[: start + 2] == old[: start + 2]
    assert new[start + 2 : start + 4] == [f'      {name}: "{sha}"' for name, sha in [*shards.items()][1:]]
    assert new[start + 4 :] == old[start + 3 :]


@pytest.mark.parametrize("empty", ["files: {}", "files: { }"])
def test_an_empty_list_of_files_is_filled(empty):
    text = COMMENTED.replace("    # Between.\n", f"    {empty}\n    # Between.\n")
    new = edited(text, {"base": {"files": FILES}})
    assert new == text.replace(empty, "files:\n" + "\n".join(f"      {n}: {s}" for n, s in FILES.items()))


@pytest.mark.parametrize("digits", ["1" * 40, "0" * 40, "123e" + "4" * 36, "12" * 5 + "e5" + "7" * 28])
def test_a_commit_that_looks_like_a_number_stays_a_text(digits):
    new = edited(COMMENTED, {"base": {"source": {"revision": digits}}})
    assert f'revision: "{digits}"' in new
    assert parse_manifest(Path("m.yaml"), new).entry("base").source.revision == digits


def test_line_ends_of_another_system_and_a_last_line_without_end_stay(tmp_path):
    text = COMMENTED.replace("\n", "\r\n").removesuffix("\r\n# Foot.\r\n")
    path = tmp_path / "m.yaml"
    path.write_bytes(text.encode())
    assert edit_manifest(path, {"tuned": LOCKED}, [{"name": "new", "source": {"hub": "a/b"}, "method": "rl"}])
    new = path.read_bytes().decode()
    assert new.count("\n") == new.count("\r\n")
    kept = [line for line in text.split("\r\n") if line.strip() != "revision:"]
    assert [line for line in new.split("\r\n") if line in kept] == kept
    assert read_manifest(path).entry("new").method == "rl"


def test_entries_are_appended_in_the_list_s_own_style():
    new = {"name": "new", "source": {"hub": "a/b", "revision": None}, "method": "rl", "note": "a: b, #c"}
    block = edited(COMMENTED, {}, (new,))
    item = "  - name: new\n    source: {hub: a/b, revision: null}\n    method: rl\n    note: 'a: b, #c'\n"
    assert block == COMMENTED.replace("# Foot.\n", item + "# Foot.\n")
    flow = "version: 1\ncheckpoints: [{name: a, source: {hub: x/y}, method: rl}]  # all\n"
    assert edited(flow, {}, (new,)).startswith("version: 1\ncheckpoints: [{name: a, ")
    flush = "checkpoints:\n- name: a\n  source: {hub: x/y}\n  method: rl\nversion: 1\n"
    assert "\n- name: new\n  source: {" in edited(flush, {}, (new,))
    none = "version: 1\ncheckpoints: []\n"
    assert edited(none, {}, (new,)).startswith("version: 1\ncheckpoints:\n  - name: new\n    source: {")


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\ncheckpoints:\n  - &a {name: a, source: {hub: x/y}, method: rl}\n"
        "  - {<<: *a, name: b, source: {hub: x/z}}\n",
        "version: 1\ncheckpoints:\n  - {name: a, source: &s {hub: x/y, revision: null}, method: rl}\n"
        "  - {name: b, source: *s, method: rl}\n",
    ],
)
def test_a_layout_that_ties_entries_together_is_refused_rather_than_changed_for_both(text):
    with pytest.raises(ManifestError, match="layout leaves no place for this change") as caught:
        edited(text, {"b": LOCKED} if "&s" in text else {"a": LOCKED})
    assert "nothing was written" in caught.value.remedy


def test_a_change_that_would_break_the_schema_is_not_written(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(COMMENTED)
    for changes, added in (
        ({"base": {"files": {"../out": "c" * 64}}}, ()),
        ({"base": {"source": {"revision": "main"}}}, ()),
        ({}, [{"name": "base", "source": {"hub": "a/b"}, "method": "rl"}]),
        ({"nobody": LOCKED}, ()),
    ):
        with pytest.raises(ManifestError):
            edit_manifest(path, changes, added)
    assert path.read_text() == COMMENTED
    assert os.listdir(tmp_path) == ["m.yaml"]


def test_an_entry_that_someone_changed_meanwhile_is_not_written_over(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(COMMENTED)
    before = read_manifest(path)
    path.write_text(COMMENTED.replace("org/base", "org/other"))
    with pytest.raises(ManifestError, match="'base' was changed by someone else meanwhile"):
        edit_manifest(path, {"base": LOCKED}, before=before)
    # Another entry may be locked all the same, and the other one's change stays.
    assert edit_manifest(path, {"tuned": LOCKED}, before=before)
    assert read_manifest(path).entry("base").source.repo == "org/other"


def test_a_link_stays_a_link_and_rights_stay(tmp_path):
    real, link = tmp_path / "real.yaml", tmp_path / "m.yaml"
    real.write_text(COMMENTED)
    real.chmod(0o640)
    link.symlink_to(real)
    assert edit_manifest(link, {"base": LOCKED})
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert read_manifest(real).entry("base").checked


def test_editors_at_the_same_time_lose_nothing_of_each_other(tmp_path):
    path = tmp_path / "m.yaml"
    items = [f"  - {{name: e{n}, source: {{hub: a/b}}, method: rl}}\n" for n in range(12)]
    path.write_text("version: 1\ncheckpoints:\n" + "".join(items))
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda n: edit_manifest(path, {f"e{n}": {"checked": True}}), range(12)))
    assert all(entry.checked for entry in read_manifest(path).checkpoints)
    assert os.listdir(tmp_path) == ["m.yaml"]


_KILLED = """
import os, signal, sys
from pathlib import Path
import threegates.atomic as atomic
from threegates.checkpoints.manifests.editing import edit_manifest
replace = os.replace
def stop(*places):
    if sys.argv[2] == "after":
        replace(*places)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = stop
edit_manifest(sys.argv[1], {"base": {"checked": True, "note": "new"}})
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_leaves_the_old_or_the_new_manifest(tmp_path, moment):
    path = tmp_path / "m.yaml"
    path.write_text(COMMENTED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), moment], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    wanted = {"base": {"checked": True, "note": "new"}}
    assert path.read_text() == (COMMENTED if moment == "before" else edited(COMMENTED, wanted))
    # The same again takes no harm from what the killed one left.
    assert edit_manifest(path, wanted) == (moment == "before")
    assert path.read_text() == edited(COMMENTED, wanted)


def test_the_tracked_manifest_keeps_every_line_that_is_not_of_the_lock():
    text = TRACKED.read_text()
    # A lock ties no series to one commit.
    names = [entry.name for entry in read_manifest(TRACKED).checkpoints if "{" not in entry.name]
    assert edited(text, {}) == text
    changes = {name: {"source": {"revision": COMMIT}, "files": FILES, "checked": True} for name in names}
    new = edited(text, changes)
    assert new.count(f"revision: {COMMIT}") == len(names)
    of_the_lock = re.compile(r" +(source: \{hub: |revision: |checked: |files:|[^ ]+: \"?[0-9a-f]{64}\"?$)")
    old, now = ([line for line in one.split("\n") if not of_the_lock.match(line)] for one in (text, new))
    assert now == old
    assert len(old) > 4 * len(names)


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
plain = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)
drafts = st.fixed_dictionaries(
    {"name": plain, "source": st.fixed_dictionaries({"hub": st.just("org/repo")}), "method": st.just("rl")},
    optional={
        "note": words,
        "checked": st.booleans(),
        "labels": st.dictionaries(plain, words, max_size=2),
        "files": st.dictionaries(plain, st.just("f" * 64), max_size=2),
        "learning_rate": st.floats(1e-9, 1, allow_nan=False),
    },
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(drafts, min_size=1, max_size=3, unique_by=lambda draft: draft["name"]),
    st.sampled_from([None, True, False]),
    st.dictionaries(plain, st.just("a" * 64), min_size=1, max_size=3),
    words,
)
def test_any_manifest_that_yaml_writes_can_be_edited(entries, flow, files, note):
    text = yaml.safe_dump(
        {"version": 1, "checkpoints": entries}, default_flow_style=flow, sort_keys=False, allow_unicode=True
    )
    text = "# Above.\n" + text + "# Below.\n"
    changes = {"source": {"revision": COMMIT}, "files": files, "checked": True, "note": note}
    name = entries[0]["name"]
    new = edited(text, {name: changes}, ({"name": "ZZ", "source": {"hub": "a/b"}, "method": "rl"},))
    entry = parse_manifest(Path("m.yaml"), new).entry(name)
    assert (entry.source.revision, entry.files, entry.checked, entry.note) == (COMMIT, files, True, note)
    assert new.startswith("# Above.\n")
    assert new.endswith("# Below.\n")

"""Give a release the digests of the present code, after proof that this code would measure the same.

    python scripts/rekey_release.py OLD_COMMIT [--release results/full] [--check] [--leave-stale]

OLD_COMMIT is one whose code all records and runs of the release are of. What is proved, or refused by name:

1. the old tree, loaded in a process of its own, gives every record and every run the digest that it has;
2. after the rewrites that are declared in `rekeyings.py`, the definitions that each kind of record and of run
   reaches are the same in both trees, up to names and places (`threegates.definitions`), or, for the kinds of
   record that are declared there, both trees measure planted runs alike to the last bit (`measured_alike`);
3. the plan's recipes are those of the release, mapped as declared, and nothing else.

Then digests go from bases to runs to records, and with them the names of folders and files. Contents stay,
namely the digests of checkpoints and the rows of tables. `measured_by` keeps the digest, the code and the
commit that a record or run first had. With `--leave-stale`, records that are stale by the old code already
are left as they are, for of them nothing can be proved.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from scripts.measured_alike import PROBE, differing  # noqa: E402
from scripts.rekeyings import Rekeying, rekeying  # noqa: E402
from scripts.trees import in_tree  # noqa: E402
from threegates.atomic import write_json, write_text  # noqa: E402
from threegates.definitions import Closure, closure, differences  # noqa: E402
from threegates.digest import file_digest  # noqa: E402
from threegates.jobs.released import FILE  # noqa: E402
from threegates.releases.packing import (  # noqa: E402
    BASE,
    CHECKPOINTS,
    KEPT,
    MANIFEST,
    PROVENANCE,
    RUNS,
    read_release,
    rename_kept,
    rename_parts,
    replace_folder,
)

PACKAGE = "threegates"
# More names than these would hide the message.
LONGEST = 20
_ASKED = """
import json, sys
given = json.load(sys.stdin)
json.dump(told(given["provenance"], given["profile"]), sys.stdout)
"""
Told = Mapping[str, Any]


class Refused(Exception):
    """A release cannot be given other keys; names what stands against it."""

    def __init__(self, what: str, names: list[str]) -> None:
        shown = names[:LONGEST] + [f"and {len(names) - LONGEST} more"] * (len(names) > LONGEST)
        super().__init__("\n  ".join([what, *shown]))


# ------------------------------------------------------------------------------------------------ trees


def archived(commit: str, folder: Path) -> str:
    """Lay a commit's tree out in a folder; returns the commit in full."""
    full = _git("rev-parse", f"{commit}^{{commit}}").decode().strip()
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=_git("archive", full), check=True)
    return full


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
    if done.returncode:
        raise Refused("git cannot give the old tree", [done.stderr.decode().strip()])
    return done.stdout


def ask(tree: Path, provenance: Told, profile: str, known: Rekeying) -> Told:
    """What a tree makes of a release, by its own code in a process of its own."""
    code = (f"from {name} import told" if (name := teller(tree)) else known.ask) + _ASKED
    try:
        found = json.loads(in_tree(tree, code, {"provenance": provenance, "profile": profile}))
    except RuntimeError as error:
        raise Refused(f"the tree in {tree} does not tell its digests", str(error).splitlines()) from error
    return found if "roots" in found else {**found, "roots": known.roots}


def teller(tree: Path) -> str:
    """The module of a tree that tells its digests, wherever it lies; "" where there is none."""
    for path in sorted((tree / "src" / PACKAGE).rglob("closures.py")):
        if "\ndef told(" in path.read_text(encoding="utf-8"):
            return ".".join(path.relative_to(tree / "src").with_suffix("").parts)
    return ""


def rewritten(tree: Path, known: Rekeying) -> None:
    """Apply the declared rewrites to a copy of the old tree; each has to fit once."""
    for one in known.rewrites:
        path = tree.joinpath("src", *one.module.split(".")).with_suffix(".py")
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(one.before) != 1:
            raise Refused(f"a declared rewrite of {one.module} does not fit once", [one.before, one.why])
        path.write_text(text.replace(one.before, one.after), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ proof


def stale(told: Told, provenance: Told) -> set[tuple[str, str]]:
    """Records, by table and name, that do not have the digest which a tree gives them."""
    return {
        (table, name)
        for table, known in provenance.items()
        for name, one in known.items()
        if told["records"][table][name]["digest"] != one["digest"]
    }


def without(provenance: Told, left: Collection[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Provenance of all records but those."""
    return {
        table: {name: one for name, one in known.items() if (table, name) not in left}
        for table, known in provenance.items()
    }


def check_digests(told: Told, provenance: Told, runs: Told) -> None:
    """Refuse unless a tree gives every record and every run of a release the digest that it has."""
    wrong = [f"record {table}/{name}" for table, name in sorted(stale(told, provenance))]
    wrong += [f"run {folder}" for folder, one in runs.items() if not _is_made(one["run"], told["runs"])]
    if wrong:
        raise Refused(f"{len(wrong)} records and runs are not what the old code makes:", wrong)


def _is_made(run: Told, known: Told) -> bool:
    made = known.get(run["name"], {})
    return all(made.get(key) == run[key] for key in ("digest", "code", "base", "recipe"))


def check_code(before: Told, after: Told, old: Path, new: Path, kinds: Mapping[str, set[str]]) -> None:
    """Refuse unless every kind of record and of run reaches the same definitions in both trees."""
    wrong: list[str] = []
    for what, named in kinds.items():
        for kind in sorted(named):
            if kind not in after["roots"][what]:
                wrong.append(f"{what} {kind}: the new code has no such kind")
                continue
            pair = [_closure(tree, told["roots"][what][kind]) for tree, told in ((old, before), (new, after))]
            if pair[0].digest != pair[1].digest:
                wrong += [f"{what} {kind}: {_named(*names)}" for names in _differences(*pair)]
    if wrong:
        raise Refused("definitions differ:", list(dict.fromkeys(wrong)))


def _differences(old: Closure, new: Closure) -> list[tuple[str, str]]:
    """What makes two closures differ; roots that only one of them has are told as such."""
    if len(old.roots) == len(new.roots):
        return differences(old, new)
    return [(f"{len(old.roots)} roots", f"{len(new.roots)} roots")]


def _closure(tree: Path, reach: Told) -> Closure:
    bounds = {side: tuple(reach[side]) for side in ("outside", "inside")}
    return closure(*reach["roots"], root=tree / "src" / PACKAGE, **bounds)


def _named(here: str, there: str) -> str:
    return f"{here or 'nothing'} in the old tree, {there or 'nothing'} in the new one"


def check_measured(old: Path, new: Path, base: Path, known: Rekeying, kinds: set[str]) -> None:
    """Refuse unless both trees measure planted runs alike, for the kinds whose code was put otherwise."""
    asked = kinds & known.measured.keys()
    if not asked:
        return
    with tempfile.TemporaryDirectory() as work:
        wrong = differing(old, new, base, asked, Path(work), known.probe or PROBE)
    if wrong:
        raise Refused("planted runs are measured otherwise:", wrong)


def check_recipes(before: Told, after: Told, runs: Told, known: Rekeying) -> None:
    """Refuse unless the new plan has every run of a release, with its recipe as it is mapped."""
    wrong = []
    for one in (told["run"] for told in runs.values()):
        planned = after["runs"].get(one["name"])
        if planned is None:
            wrong.append(f"{one['name']}: the new plan has no such run")
        elif planned["recipe"] != known.recipes(one["recipe"], before):
            wrong.append(f"{one['name']}: another recipe")
    if wrong:
        raise Refused("runs of the release are planned otherwise:", wrong)


def kinds_of(before: Told, runs: Told) -> dict[str, set[str]]:
    """Kinds of record and of run that a release has."""
    records = {one["kind"] for known in before["records"].values() for one in known.values()}
    return {"record": records, "run": {told["run"]["recipe"]["kind"] for told in runs.values()}}


# ---------------------------------------------------------------------------------------------- writing


def folders(runs: Told, after: Told) -> dict[str, str]:
    """New names of runs' folders by their old ones."""
    names = {folder: told["run"]["name"] for folder, told in runs.items()}
    return {folder: f"{name}-{after['runs'][name]['digest'][:12]}" for folder, name in names.items()}


def moved(text: str, named: Mapping[str, str]) -> str:
    """A text with the new names of runs' folders in its paths."""
    return re.sub(r"\bruns/([^/\s]+)/", lambda found: f"runs/{named[found[1]]}/", text)


def new_runs(runs: Told, after: Told, named: Mapping[str, str], commit: str) -> dict[str, Any]:
    """runs.json with the new keys."""
    made = {}
    for folder, told in runs.items():
        run = told["run"]
        new = {key: after["runs"][run["name"]][key] for key in ("digest", "code", "base", "recipe")}
        made[named[folder]] = {**told, "run": {**run, **new, "measured_by": _first(run, commit)}}
    return dict(sorted(made.items()))


def new_provenance(
    provenance: Told, after: Told, inputs: Told, commit: str, left: Collection[tuple[str, str]] = ()
) -> dict[str, dict[str, Any]]:
    """provenance.json with the new keys, but for the records that are left; records in their old order."""
    made: dict[str, dict[str, Any]] = {}
    for table, known in provenance.items():
        made[table] = {}
        for name, one in known.items():
            if (table, name) in left:
                made[table][name] = one
                continue
            told = after["records"][table][name]
            new = {"digest": told["digest"], "code": told["code"], "inputs": inputs[table][name]["inputs"]}
            made[table][_stem(one["job"], told["digest"])] = {
                **one,
                **new,
                "measured_by": _first(one, commit),
            }
    return made


def _first(told: Told, commit: str) -> Told:
    """What measured it: of what was given other keys before, what did so first."""
    own = {"digest": told["digest"], "code": told["code"], "commit": commit}
    return told.get("measured_by", own)


def _stem(job: str, digest: str) -> str:
    return f"{job}-{digest[:12]}"


def write(release: Path, work: Path, runs: Told, provenance: Told, named: Told, facts: Told) -> None:
    """Write a release with new keys into an empty folder.

    runs, provenance : what the new files say. named : the folders of runs. facts : what release.json adds.
    """
    shutil.copytree(release, work)
    write_json(work / RUNS, dict(runs))
    write_json(work / PROVENANCE, dict(provenance))
    write_text(work / MANIFEST, moved((release / MANIFEST).read_text(encoding="utf-8"), named))
    checkpoints = _read(release / CHECKPOINTS)
    places = {moved(place, named): one for place, one in checkpoints["checkpoints"].items()}
    write_json(work / CHECKPOINTS, {**checkpoints, "checkpoints": places})
    for path in sorted(release.glob("logs/*.parquet")):
        rename_parts(path, work / "logs" / path.name, named)
    if (release / KEPT).is_file():
        rename_kept(release / KEPT, work / KEPT, lambda place: moved(place, named))
    for table, known in _read(release / PROVENANCE).items():
        stems = dict(zip(known, provenance[table], strict=True))
        place = Path("records", f"{table}.parquet")
        rename_parts(release / place, work / place, stems)
    told = _read(release / FILE)
    sums = {name: file_digest(work / name) for name in told["files"]}
    write_json(work / FILE, {**told, "files": sums, "rekeyed": [*told.get("rekeyed", ()), facts]})


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------- whole


def rekey(
    commit: str, release: Path, new: Path = ROOT, *, check: bool = False, leave_stale: bool = False
) -> str:
    """Prove a release against the new tree, and give it that tree's keys; what was done, in a sentence."""
    with tempfile.TemporaryDirectory() as scratch:
        old = Path(scratch) / "old"
        full = archived(commit, old)
        return rekey_from(old, new, release, full, rekeying(full), check=check, leave_stale=leave_stale)


def rekey_from(
    old: Path,
    new: Path,
    release: Path,
    commit: str,
    known: Rekeying,
    *,
    check: bool,
    leave_stale: bool = False,
) -> str:
    """The same from a folder that holds the old tree, which is rewritten as declared.

    leave_stale : leave records that the old tree would measure anew as they are, and do not refuse.
    """
    profile = read_release(release).profile
    whole, runs = _read(release / PROVENANCE), _read(release / RUNS)
    after = ask(new, whole, profile, Rekeying())
    if _has_keys(after, whole, runs):
        return "The release has the keys of the present code: nothing to do."
    before = ask(old, whole, profile, known)
    left = stale(before, whole) if leave_stale else set()
    provenance = without(whole, left)
    check_digests(before, provenance, runs)
    rewritten(old, known)
    kinds = kinds_of(before, runs)
    handled = {"record": kinds["record"] - known.measured.keys(), "run": kinds["run"]}
    check_code(before, after, old, new, handled)
    check_measured(old, new, release / BASE, known, kinds["record"])
    check_recipes(before, after, runs, known)
    inputs = mapped_inputs(whole, before, known)
    after = ask(new, inputs, profile, Rekeying())
    count = sum(map(len, provenance.values()))
    proved = (
        f"{count} of {count} records and {len(runs)} of {len(runs)} runs are the same by the present code."
    )
    if left:
        proved += f" {len(left)} records are stale by the old code already, and are left."
    if check:
        return proved
    named = folders(runs, after)
    told = new_provenance(whole, after, inputs, commit, left), new_runs(runs, after, named, commit)
    facts = {
        "commit": commit,
        "rewrites": [f"{one.module}: {one.why}" for one in known.rewrites],
        "measured_alike": dict(known.measured),
    }
    _put(release, told[1], told[0], named, facts)
    return f"{proved} They have its keys now."


def mapped_inputs(provenance: Told, before: Told, known: Rekeying) -> dict[str, dict[str, Any]]:
    """Provenance with the inputs as they are mapped, and the kind of each record."""

    def mapped(table: str, name: str, one: Told) -> dict[str, Any]:
        kind = before["records"][table][name]["kind"]
        return {**one, "inputs": known.inputs(one["inputs"], before), "kind": kind}

    return {
        table: {name: mapped(table, name, one) for name, one in records.items()}
        for table, records in provenance.items()
    }


def _has_keys(told: Told, provenance: Told, runs: Told) -> bool:
    try:
        check_digests(told, provenance, runs)
    except Refused:
        return False
    return True


def _put(release: Path, runs: Told, provenance: Told, named: Told, facts: Told) -> None:
    work = release.with_name(f".{release.name}.rekeyed")
    shutil.rmtree(work, ignore_errors=True)
    try:
        write(release, work, runs, provenance, named, facts)
        read_release(work)
        replace_folder(work, release)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _arguments() -> Iterator[Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", help="commit whose code made all of the release")
    parser.add_argument("--release", type=Path, default=ROOT / "results" / "full")
    parser.add_argument("--check", action="store_true", help="prove, and write nothing")
    parser.add_argument("--leave-stale", action="store_true", help="leave what the old code measures anew")
    given = parser.parse_args()
    yield from (given.commit, given.release, given.check, given.leave_stale)


def main() -> int:
    """Run from the command line."""
    commit, release, check, leave_stale = _arguments()
    try:
        print(rekey(commit, release, check=check, leave_stale=leave_stale))
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

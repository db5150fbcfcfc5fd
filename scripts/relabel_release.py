"""Give the runs of a release the chapters that the plan has for them now.

    python scripts/relabel_release.py [--release results/full] [--check]

A chapter that is drawn from logs can look at any run of a release. The chapters of a run are no part of its
recipe: nothing is trained or measured anew, and no digest of a run or a record changes. A chapter that would
need records that the release lacks says so when its page is built.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from threegates.atomic import write_json  # noqa: E402
from threegates.checkpoints.manifests.manifest import Manifest, read_manifest, write_manifest  # noqa: E402
from threegates.digest import file_digest  # noqa: E402
from threegates.jobs.released import FILE, planned  # noqa: E402
from threegates.releases.packing import MANIFEST, read_release  # noqa: E402


def relabelled(manifest: Manifest, profile: str) -> tuple[Manifest, list[str]]:
    """The manifest with the plan's chapters, and a line for each entry whose chapters change.

    Entries that the plan does not have, such as steps of a run that the chapters on emergence alone look at,
    and those whose chapters are none, keep what they have.
    """
    plan = {item.draft.recipe.name: item.draft.chapters for item in planned(profile)}
    entries, told = [], []
    for entry in manifest.checkpoints:
        chapters = list(plan.get(entry.name, entry.chapters))
        if entry.chapters and chapters != entry.chapters:
            told.append(f"{entry.name}: {', '.join(entry.chapters)} -> {', '.join(chapters)}")
            entry = entry.model_copy(update={"chapters": chapters})
        entries.append(entry)
    return manifest.model_copy(update={"checkpoints": entries}), told


def main(arguments: list[str] | None = None) -> int:
    """Relabel, or with --check say what would change; exit status 1 where something would."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--release", type=Path, default=ROOT / "results" / "full")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    release = read_release(options.release)
    manifest, told = relabelled(read_manifest(options.release / MANIFEST), release.profile)
    print("\n".join(told) or "every run has the chapters that the plan has for it")
    if told and not options.check:
        write_manifest(options.release / MANIFEST, manifest)
        facts = json.loads((options.release / FILE).read_text(encoding="utf-8"))
        facts["files"][MANIFEST] = file_digest(options.release / MANIFEST)
        write_json(options.release / FILE, facts)
    return int(bool(told) and options.check)


if __name__ == "__main__":
    sys.exit(main())

"""What the page "Which pairs work" says of each situation is what happens: its table is held here."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints.situations import SITUATIONS
from threegates.appendices.pairs_page import Situation, read_situations
from threegates.checkpoints.formats.roles import block
from threegates.checkpoints.notes import pair_notes
from threegates.checkpoints.pairs import Status, align, load_rows
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError, NotFiniteError, PairError
from threegates.jobs.sources import own_pair
from threegates.measures.changes import count
from threegates.records.provenance import project_root

#: Every tensor's status in every situation; `python -m tests.checkpoints.test_situations` writes it anew.
FILE = Path(__file__).with_name("statuses.json")
STATUSES: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
TOLD = {one.name: one for one in read_situations(project_root())}


@dataclass(frozen=True)
class Answer:
    """What became of a pair: rows by status, blocks by stack, how many rows changed; or a refusal.

    table : every tensor with its status, and how many of its entries changed where it is compared.
    """

    rows: dict[str, int]
    blocks: dict[str, int]
    changed: int
    refused: bool
    said: str
    table: dict[str, str]


def answer(folder: Path) -> Answer:
    """What the commands make of a pair of folders."""
    try:
        pair = own_pair(str(folder / "base"), str(folder / "tuned"))
        base, tuned = pair.base.checkpoint, pair.tuned.checkpoint
        table = {row.name: row.status for row in align(base, tuned)}
    except (CheckpointError, PairError) as error:
        return Answer({}, {}, 0, True, str(error), {})
    changes = {name: changed(base, tuned, name) for name, status in table.items() if status == "compared"}
    table |= {name: Status.not_finite for name, number in changes.items() if number is None}
    found = [one[0] for one in {block(name) for name in table} if one is not None]
    said = " ".join(pair_notes(base, tuned, read=True))
    rows = Counter(str(status) for status in table.values())
    moved = {name: _told(str(status), changes.get(name)) for name, status in table.items()}
    return Answer(dict(rows), dict(Counter(found)), sum(map(bool, changes.values())), False, said, moved)


def _told(status: str, number: int | None) -> str:
    return f"{status}, {number} changed" if number else status


def changed(base: Checkpoint, tuned: Checkpoint, name: str) -> int | None:
    """Changed entries of a tensor; None where it holds values that are not finite."""
    try:
        return count(load_rows(base, tuned, name)).counts.changed
    except NotFiniteError:
        return None


def test_every_situation_has_its_entry_and_every_entry_its_situation():
    assert set(TOLD) == set(SITUATIONS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_the_page_says_happens(tmp_path, name):
    SITUATIONS[name](tmp_path)
    told: Situation = TOLD[name]
    found = answer(tmp_path)
    assert found.refused is told.refused
    assert (found.rows, found.blocks, found.changed) == (told.rows, told.blocks, told.changed)
    for words in told.says:
        assert words in found.said
    assert found.table == STATUSES.get(name, {})


def test_no_status_is_told_of_what_is_no_situation():
    assert set(STATUSES) <= set(SITUATIONS)


def write_statuses() -> None:
    """Every situation's table, for a person to look through before it is committed."""
    found = {}
    for name, make in SITUATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            table = answer(Path(folder)).table
        found |= {name: dict(sorted(table.items()))} if table else {}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_statuses()

"""Evidence files: whole, plain JSON, one for each claim and subject."""

from __future__ import annotations

import json
import math

import pandas as pd

from tests.judging.test_cards import CLAIM, CONTROL, NOTHING
from threegates.book.evidence import evidence, write_evidence
from threegates.judging.robustness import COLUMNS

CELLS = pd.DataFrame(
    [["masks-are-striped", math.nan, math.nan, 1e-3, True, 1.8, 1.7, 1.9, "log", "reproduced", "lab"]],
    columns=[*COLUMNS, "about"],
)


def test_every_claim_and_subject_has_a_file_where_its_row_links_to(tmp_path):
    other = CLAIM | {"about": "encoder"}
    records = {"stripe-masks": [{"record": "axis/a.parquet", "sha256": "0"}]}
    write_evidence(tmp_path, pd.DataFrame([CLAIM, CONTROL, other]), CELLS, records)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    assert files == ["evidence/encoder/masks-are-striped.json", "evidence/lab/masks-are-striped.json"]
    own = json.loads((tmp_path / files[1]).read_text())
    assert own["records"] == records["stripe-masks"] and own["verdict"] == "reproduced"
    assert own["rule"]["value"] == 1.8 and own["controls"][0]["says"] == "over storage noise"
    assert own["cells"][0]["k"] is None and own["cells"][0]["eta"] == 1e-3
    assert json.loads((tmp_path / files[0]).read_text())["cells"] == []


def test_what_has_no_number_is_null_and_files_are_the_same_twice(tmp_path):
    found = evidence(pd.DataFrame([CLAIM | NOTHING]), CELLS[:0], [])
    assert found["rule"]["value"] is None and found["rule"]["holds"] is None
    text = json.dumps(found)
    assert "NaN" not in text and text == json.dumps(evidence(pd.DataFrame([CLAIM | NOTHING]), CELLS[:0], []))

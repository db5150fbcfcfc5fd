from __future__ import annotations

import pytest
import yaml

from tests.planted.pages import ROOT
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.estimates import paper
from threegates.figures.names import ROLES


def test_the_ranges_are_those_that_the_claims_quote():
    ranges = paper.sparsity_ranges()
    assert ranges == {"RL": (0.363, 0.917), "SFT": (0.006, 0.188)}
    rules = {c["id"]: c["rule"] for c in yaml.safe_load((ROOT / "claims.yaml").read_text())["claims"]}
    assert rules["rl-sparsity-level"]["at_least"] == ranges["RL"][0]
    assert rules["rl-sparsity-level"]["contradicted_below"] == ranges["SFT"][1]


def test_table_1_has_fifteen_pairs_three_of_them_sft():
    table = paper.table_1()
    assert len(table) == 15
    assert table["tuned"].is_unique
    assert (table["method"] == "SFT").sum() == 3
    assert table["sparsity"].between(0, 1).all()


def test_table_2_has_every_matrix_type_and_spans_what_the_claim_quotes():
    table = paper.table_2()
    assert set(table["role"]) == set(ROLES)
    assert (table["paper_jaccard"].min(), table["paper_jaccard"].max()) == (0.552, 0.597)
    assert (table["paper_bernoulli"].min(), table["paper_bernoulli"].max()) == (0.373, 0.467)
    assert (table["paper_jaccard"] > table["paper_bernoulli"]).all()


# Rows of Table 1 for which no repository is known.
NOT_TO_BE_HAD = {"the authors' own, unpublished", "UloRL-A3B"}


def test_the_manifest_has_every_row_of_table_1_that_can_be_had_with_the_facts_of_the_row():
    manifest = read_manifest(ROOT / "data_manifest.yaml")
    pairs = {pair.tuned.labels.get("paper_name"): pair for pair in manifest.pairs()}
    for row in paper.table_1().itertuples():
        if row.tuned in NOT_TO_BE_HAD:
            assert row.tuned not in pairs
            continue
        tuned, base = pairs[row.tuned].tuned, pairs[row.tuned].base
        assert row.base in (base.name, base.labels.get("paper_name"))
        assert (tuned.algorithm, tuned.data) == (row.method, row.data.replace(" and ", "+"))
        assert tuned.method == ("sft" if row.method == "SFT" else "rl")
        assert float(tuned.labels["paper_sparsity"]) / 100 == pytest.approx(row.sparsity)
        assert "Table" in tuned.labels["paper_place"]

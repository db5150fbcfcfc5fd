"""No number of a result is typed into prose: pages, notebooks, displayed strings, captions, README."""

from __future__ import annotations

import re
import shutil

import nbformat
import pytest

from tests.prose import page_texts, shown_strings, typed_numbers
from threegates.estimates.paper import sparsity_ranges
from threegates.judging.claims import read_claims
from threegates.lab.plans.profiles import profile
from threegates.pages.stated_values import stated_values
from threegates.records.provenance import project_root

ROOT = project_root()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "book").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
PLANTED = "The sparsity is 48.7 %"
# README cannot print values; what it states of the paper is held against the code's copy of the table.
_LOW, _HIGH = (round(100 * end) for end in sparsity_ranges()["RL"])
STATED = {"README.md": f"{_LOW} to {_HIGH} % of"}


def found(path):
    texts = [text.replace(STATED.get(path.name, "\0"), "") for text in page_texts(path)]
    return [sentence for text in texts for sentence in typed_numbers(text)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_result_is_typed_into(path):
    assert found(path) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_result_typed_into_any_page_is_found(path, tmp_path):
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    if path.suffix == ".md":
        copy.write_text(copy.read_text() + f"\n{PLANTED}.\n")
    else:
        notebook = nbformat.read(copy, as_version=4)
        text = next(cell for cell in notebook.cells[1:] if cell.cell_type == "markdown")
        text.source += f"\n\n{PLANTED}."
        nbformat.write(notebook, copy)
    assert [PLANTED in sentence for sentence in found(copy)] == [True]


def test_what_readme_states_of_the_paper_is_what_the_table_says():
    assert STATED["README.md"] in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "text",
    [
        f"{PLANTED}.",
        "RL leaves 50% of the weights unchanged.",
        r"Of all weights $48.7\,\%$ stay.",
        "The share is `48.7 %` here.",
        "The gap is .25, and {val}`a.value` at the matched rate.",
        "The Jaccard index lies 0.103 above Bernoulli's (Figure 5).",
        "SFT turns the subspaces 12 times as far.",
        "- **Stripes:** reproduced, a dispersion of 40.",
        "Of 87 claims, 12 are reproduced.",
        "A correlation of −0.3 at a third of training {cite:p}`zhu2025path`.",
        "| sparsity | 48.7 |",
        "The sparsity in bf16\nis 48.7 percent.",
        "```{figure} a.svg\n:alt: Dots.\n\nMean sparsity 0.487.\n```",
    ],
)
def test_a_typed_result_is_found(text):
    assert typed_numbers(text)


@pytest.mark.parametrize(
    "text",
    [
        "The sparsity is {val}`rl.value`, see Figure 5, Table 1 and § 3.2 of {cite:t}`zhu2025path`.",
        "Sparsity in bf16 and float32, pass@1, KL by k3 of 2025, null 1a, all-MiniLM-L6-v2.",
        "Angles ($\\alpha = .5$) and `sparsity = 0.487` and\n\n$$\n\\text{lift} = 1.25\n$$",
        "```\nsparsity 0.487\n```",
        "Means over seeds, 95 % intervals.",
        "Theorem 3.3 and Corollaries 3.4 and 3.5 bound the angle.",
        "Shares lie in [0, 1]; set-up takes 2.4 GB and overlaps with 20 s of work.",
        "The table of [weights](https://arxiv.org/abs/2511.08567) has densities.",
    ],
)
def test_references_names_mathematics_and_code_may_hold_digits(text):
    assert typed_numbers(text) == []


def test_every_string_that_a_cell_shows_is_read():
    cell = (
        'note = "0.1"\n'
        'display(Markdown(f"Seen: {number(x)} of 0.2, " + "or 0.3"))\n'
        'publish(fig, "a/b-1", alt="0.4", caption=f"{y:.2f} 0.5", data=d)\n'
        'table(frame, "0.6", {"x": "{:.3f}"})\n'
        'parts.append(f"0.7 {z}")'
    )
    shown = sorted(re.findall(r"0\.\d", " ".join(shown_strings(cell))))
    assert shown == ["0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]


def test_stated_values_are_the_code_s():
    values = stated_values(read_claims(ROOT / "claims.yaml"))
    assert values["confidence"] == "95 %"
    assert values["paper.sparsity.sft"] == "0.6 to 18.8 %"
    assert values["paper.jaccard"] == "0.55 to 0.60"
    assert values["bf16.half_gap"] == "0.2 to 0.4 %"
    assert values["recipe.betas"] == "0.9 and 0.999"
    claims = read_claims(ROOT / "claims.yaml").claims
    assert {f"{claim.id}.tolerance" for claim in claims} <= set(values)
    assert all(len(value) for value in values.values())


#: By table of the paper that has numbers, the page that shows them and the call that does.
PRINTED = {
    "1": ("update-sparsity", "table_1()"),
    "2": ("stripe-masks", "views.beside_the_paper("),
    "4": ("sparse-finetuning", "views.printed_differences()"),
    "5": ("sparse-finetuning", "views.printed_differences()"),
}


@pytest.mark.parametrize("name", ["README.md", "book/intro.md"])
def test_the_numbers_of_the_paper_that_are_promised_are_those_that_a_page_shows(name):
    text = " ".join((ROOT / name).read_text().split())
    assert "paper's figure or table beside ours" not in text and "reproduces the paper's figures" not in text
    promised = re.findall(r"the paper prints[^.]*?Tables ([\d, and]+)[^.]*beside ours", text)
    assert [re.findall(r"\d", one) for one in promised] == [list(PRINTED)]
    for page, call in PRINTED.values():
        cells = nbformat.read(ROOT / "notebooks" / f"{page}.ipynb", as_version=4).cells
        assert any(call in cell.source for cell in cells if cell.cell_type == "code"), page


@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.suffix == ".ipynb"], ids=lambda path: path.name
)
def test_how_many_seeds_a_build_has_is_not_typed(path):
    number = r"\b(\d+|one|two|three|four|five|six|seven|eight|nine|ten|twelve)"
    assert [text for text in page_texts(path) if re.search(rf"{number} seeds\b", text, re.IGNORECASE)] == []


def test_readme_states_the_profiles_as_they_are():
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\|([^|]*)\|", (ROOT / "README.md").read_text(), re.MULTILINE))
    words = {1: "one seed", 3: "three seeds", 6: "six seeds"}
    for name in ("smoke", "mini", "full"):
        assert words[len(profile(name).seeds)] in rows[name], name

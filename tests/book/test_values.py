"""Numbers in prose: every value has its key, and a page that asks for another fails its build."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path

import pandas as pd
from sphinx.cmd.build import build_main

from tests.judging.test_cards import CLAIM, CONTROL, NOTHING
from tests.planted import pages
from tests.planted.frames import evaluation
from threegates.book.values import FILE, rate_values, verdict_values, write_values
from threegates.chapters.miniature_lab import views as miniature_lab_views
from threegates.figures.numbers import interval, number
from threegates.judging.claims import read_claims
from threegates.pages.stated_values import stated_values

# --------------------------------------------------------------------------------- keys and values


def test_a_claim_has_a_verdict_and_it_and_its_controls_have_value_interval_and_n():
    assert verdict_values(pd.DataFrame([CLAIM, CONTROL])) == {
        "masks-are-striped.verdict": "reproduced",
        "masks-are-striped.undone": "",
        "masks-are-striped.value": "1.8",
        "masks-are-striped.interval": "[1.7, 1.9]",
        "masks-are-striped.n": "5 runs",
        "masks-are-striped.stripe_excess_storage.value": "−0.25",
        "masks-are-striped.stripe_excess_storage.interval": "[−0.5, 0]",
        "masks-are-striped.stripe_excess_storage.n": "5 runs",
    }


def test_what_undoes_a_claim_is_the_control_that_names_its_verdict_or_holms_adjustment():
    named = CLAIM | {"verdict": "explained by storage"}
    open_, decides = CONTROL | {"says": "open"}, CONTROL | {"says": "over noise", "names": True}
    values = verdict_values(pd.DataFrame([named, open_, decides]))
    assert values["masks-are-striped.undone"] == ": over noise is −0.25 [−0.5, 0]"
    lost = verdict_values(pd.DataFrame([CLAIM | {"holds_holm": False}, CONTROL]))
    assert "not after Holm" in lost["masks-are-striped.undone"]
    kept = verdict_values(pd.DataFrame([CLAIM | {"holds_holm": True}, CONTROL]))
    assert kept["masks-are-striped.undone"] == ""


def test_claims_keep_their_values_apart_and_a_missing_number_has_its_keys_too():
    second = CLAIM | NOTHING | {"claim": "other", "verdict": "not run"}
    values = verdict_values(pd.DataFrame([CLAIM, second]))
    assert values["masks-are-striped.value"] == "1.8"
    assert values["other.verdict"] == "not run"
    assert (values["other.value"], values["other.interval"]) == ("–", "no interval")


def test_another_subject_has_keys_of_its_own():
    other = CLAIM | {"about": "encoder", "value": 0.5}
    control = CONTROL | {"about": "encoder", "value": 0.25}
    values = verdict_values(pd.DataFrame([CLAIM, other, control]))
    assert values["masks-are-striped.value"] == "1.8"
    assert values["encoder.masks-are-striped.value"] == "0.5"
    assert values["encoder.masks-are-striped.verdict"] == "reproduced"
    assert values["encoder.masks-are-striped.stripe_excess_storage.value"] == "0.25"


def _rates() -> pd.DataFrame:
    rows = [
        ("base", "pre-training", "pass@1", 0.354, 0.31, 0.4, 512),
        ("base", "pre-training", "pass@8", 0.9, 0.88, 0.92, 512),
        ("GRPO · 101", "GRPO", "pass@1", 0.7, 0.65, 0.75, 512),
    ]
    return pd.DataFrame(rows, columns=["label", "method", "measure", "value", "low", "high", "prompts"])


def test_the_lab_has_the_bases_rates_and_each_algorithms_gain():
    gains = pd.DataFrame(
        [("GRPO", 0.35, 0.3, 0.4, 3), ("DAPO", 0.2, math.nan, math.nan, 1)],
        columns=["method", "gain", "low", "high", "seeds"],
    )
    assert rate_values(_rates(), gains) == {
        "base.pass@1": "0.354 [0.31, 0.4]",
        "base.pass@8": "0.9 [0.88, 0.92]",
        "base.prompts": "512",
        "gain.GRPO": "0.35 [0.3, 0.4]",
        "gain.DAPO": "0.2 no interval",
    }


def test_values_are_written_as_the_text_that_the_cards_show(tmp_path):
    values = verdict_values(pd.DataFrame([CLAIM, CONTROL]))
    assert values["masks-are-striped.value"] == number(CLAIM["value"])
    assert values["masks-are-striped.interval"] == interval(CLAIM["low"], CLAIM["high"])
    write_values(tmp_path / FILE, values)
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8")) == values
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


# --------------------------------------------------------------------------------- the role on a page


class _Pages:
    """A Sphinx project of one page in MyST, the book's own markup, that loads the role and nothing else."""

    def __init__(self, folder: Path, text: str) -> None:
        self.source, self.output = folder / "source", folder / "html"
        self.source.mkdir()
        settings = 'extensions = ["myst_parser", "threegates.book.values"]\nhtml_theme = "basic"\n'
        (self.source / "conf.py").write_text(settings)
        (self.source / "index.md").write_text(f"# Title\n\n{text}\n", encoding="utf-8")

    def values(self, **values: str) -> _Pages:
        write_values(self.source / FILE, {key.replace("_", "."): value for key, value in values.items()})
        return self

    def build(self, *options: str) -> int:
        """Exit status; the options are those of the book."""
        return build_main(["-q", "-N", "-b", "html", *options, str(self.source), str(self.output)])

    def shown(self) -> list[str]:
        """Texts that the role printed."""
        page = (self.output / "index.html").read_text(encoding="utf-8")
        return [unescape(text) for text in re.findall(r'<span class="tg-value">(.*?)</span>', page)]


STRICT = ("-W", "-n", "--keep-going")


def test_a_known_key_prints_its_value_with_warnings_as_errors(tmp_path):
    pages = _Pages(tmp_path, "The gap is {val}`gap.value` {val}`gap.interval`.")
    pages.values(gap_value="−0.25", gap_interval="<b>[0, 1]</b>", other="7")
    assert pages.build(*STRICT) == 0
    assert pages.shown() == ["−0.25", "<b>[0, 1]</b>"]


def test_an_unknown_key_is_a_warning_that_names_it_and_fails_a_strict_build(tmp_path, capsys):
    pages = _Pages(tmp_path, "Known: {val}`gap.value`.\n\nUnknown: {val}`gap.median`.").values(gap_value="1")
    assert pages.build() == 0
    told = capsys.readouterr().err
    assert "no record has the value 'gap.median'" in told
    assert re.search(r"index\.md:5: ", told)
    assert "'gap.value'" not in told
    assert pages.shown() == ["1"]
    assert pages.build(*STRICT, "-E") != 0
    assert "no record has the value 'gap.median'" in capsys.readouterr().err


def test_without_any_values_every_key_is_unknown(tmp_path, capsys):
    assert _Pages(tmp_path, "{val}`profile`").build(*STRICT) != 0
    assert "no record has the value 'profile'" in capsys.readouterr().err


def test_a_changed_value_is_printed_by_the_next_build_of_unchanged_pages(tmp_path):
    pages = _Pages(tmp_path, "{val}`gap.value`").values(gap_value="1")
    assert pages.build(*STRICT) == 0
    pages.values(gap_value="2")
    assert pages.build(*STRICT) == 0
    assert pages.shown() == ["2"]


def test_values_of_the_lab_are_what_the_pages_quote():
    values = rate_values(
        miniature_lab_views.pass_view(evaluation()), miniature_lab_views.gain_view(evaluation())
    )
    assert values["base.pass@1"].startswith("0.438 [")
    assert values["base.prompts"] == "4"
    assert values["gain.GRPO"].startswith("0.469 [")


def test_every_value_of_the_pages_has_a_claim_or_is_the_labs():
    planted = set(verdict_values(pages.planted_verdicts()))
    lab = set(
        rate_values(miniature_lab_views.pass_view(evaluation()), miniature_lab_views.gain_view(evaluation()))
    ) | {
        "profile",
        "origin",
    }
    stated = set(stated_values(read_claims(pages.ROOT / "claims.yaml")))
    assert pages.quoted_keys() <= planted | lab | stated

"""The models that the study is shown on, by the label `subject` of the manifest: words, label, colour.

The words stand on the pages: a notebook is executed once for each subject and has to be right for all. Pages,
figures, claims and releases know a subject from `SUBJECTS`; what trains it stands in the lab.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from threegates.checkpoints.manifests.manifest import Entry
from threegates.lab.subjects import ENCODER, LAB, LARGER

LABEL = "subject"
#: Of claims that need no checkpoint: arithmetic on what is printed, and storage noise on made weights.
COMPUTED = "computed"


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    name : label in the manifest, "" for a pair of one's own. title : as it ends a page's title.
    short : for a verdict. text, limits : Markdown paragraphs of a page, "" where nothing can be said.
    label, colour : in figures that show several subjects; the label has an article.
    judged_as : the subject whose claims it has, "" where claims name it themselves.
    taken_by : profiles whose build takes its runs and records from the release and never trains it.
    """

    name: str
    title: str
    short: str
    text: str = ""
    limits: str = ""
    label: str = ""
    colour: str = "#000000"
    judged_as: str = ""
    taken_by: tuple[str, ...] = ()


_LAB = Subject(
    LAB,
    "the miniature lab",
    "the miniature lab",
    "**The subject** of this page is the miniature lab: a small Llama-like model that was trained "
    "from scratch here, on arithmetic that a verifier checks, and then tuned by several methods. "
    "*SFT* in comparisons is fine-tuning on a teacher's traces in a format that the base never saw, "
    "at its own, larger learning rate.",
    "**Of this subject.** One base, one task, one small size, and a spectrum that a short training "
    "made; a matrix of a language model as the paper has them is larger and was trained for longer. "
    "The learning rates are ours, and with them every raw ratio of SFT to RL.",
    label="the lab",
    colour="#0072B2",
)
_LARGER = Subject(
    LARGER,
    "the larger model",
    "the larger model of profile gpu, one seed",
    "**The subject** of this page is a model of the lab's kind, forty times as large, on longer chains.",
    "**Of this subject.** One base and one seed, so that nothing has an interval.",
    label="the larger model",
    colour="#009E73",
    judged_as=LAB,
)
_ENCODER = Subject(
    ENCODER,
    "the encoder",
    "the encoder all-MiniLM-L6-v2, a one-step bandit on a real trained spectrum, repackaged by a third party",
    "**The subject** of this page is the sentence encoder all-MiniLM-L6-v2: the spectrum of its "
    "weights is that of a model that others trained on real text. The weights come from a third "
    "party's repackaging. What is trained here is no language model's task but a *one-step bandit*: "
    "for each query the policy picks one of some candidate strings, by a softmax over the cosine "
    "similarities of their embeddings. *SFT* in comparisons is cross-entropy on the right candidate, "
    "at its own, larger learning rate; *RFT* learns from the base's own correct picks.",
    "**Of this subject.** A one-step bandit has no sequence of tokens, so that none of what makes RL "
    "on long answers special can show. The embeddings of words are frozen, the tasks are of one "
    "family, the weights are as a third party repackaged them, and the base is stored in bf16 here "
    "although it was not trained so. The learning rates are ours, and with them every raw ratio of "
    "SFT to RL.",
    label="the encoder",
    colour="#D55E00",
    taken_by=("mini",),
)
#: Every subject by its name, in the order of legends.
SUBJECTS = {subject.name: subject for subject in (_LAB, _ENCODER, _LARGER)}
#: What a claim may name as judged on: subjects with claims of their own, and that it needs none.
CLAIMED = (*(name for name, subject in SUBJECTS.items() if not subject.judged_as), COMPUTED)
_PAPER = Subject(
    LAB,
    "published checkpoints",
    "published checkpoints",
    "**The subject** of this page are checkpoints that others published, as the manifest lists them.",
    "**Of this subject.** Base, data and recipe are those of the publishers, and few runs share them; "
    "what a method does cannot be told from what its authors chose besides.",
)
_CHOSEN = replace(
    _PAPER,
    title="chosen pairs",
    short="chosen pairs",
    text="**The subject** of this page are pairs that were chosen by name from the manifest.",
    limits="**Of this subject.** Base, data and recipe are those of whoever trained these checkpoints, and "
    "few runs share them; what a method does cannot be told from what was chosen besides.",
)


def subject_of(entry: Entry) -> str:
    """Name of the subject that a manifest's entry belongs to."""
    return entry.labels.get(LABEL, LAB)


def taken_by(profile: str) -> tuple[str, ...]:
    """Names of the subjects that a profile's build takes from the release."""
    return tuple(name for name, subject in SUBJECTS.items() if profile in subject.taken_by)


def described(name: str, profile: str | None = None) -> Subject:
    """The subject of that name, as far as anything is known of it."""
    if name == LAB and profile == "paper":
        return _PAPER
    return SUBJECTS.get(name, Subject(name, name, name, label=name))


def foreign(base: str | None, tuned: str | None) -> Subject:
    """A pair of the reader's own, of which nothing is known but its names."""
    title = f"{tuned} against {base}"
    return Subject("", title, title, f"**The subject** of this page is a pair of your own: {title}.")


def of_pairs(entries: Iterable[Entry], profile: str | None) -> Subject:
    """What pairs chosen by name have in common: their subject, or nothing to be said."""
    names = {subject_of(entry) for entry in entries}
    if names == {LAB} and profile == "paper":
        return _CHOSEN
    return described(names.pop(), profile) if len(names) == 1 else Subject("", "chosen pairs", "chosen pairs")

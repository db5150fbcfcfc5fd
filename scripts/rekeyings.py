"""What `rekey_release.py` takes for granted, by the commit that a release was made at.

Of a tree that tells its own digests (`told` in a module `closures`) nothing has to stand here, unless a
change is declared: a rewrite of its source that changes no number, and what that does to recipes or inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]
# A map of recipes or inputs: of one of them and of all that its tree tells.
Mapped = Callable[[Values, Mapping[str, Any]], Values]


def same(values: Values, told: Mapping[str, Any]) -> Values:
    """Nothing changes."""
    return values


@dataclass(frozen=True)
class Rewrite:
    """A passage of an old module that the new code has otherwise, and why this changes no number."""

    module: str
    before: str
    after: str
    why: str


@dataclass(frozen=True)
class Rekeying:
    """All that is declared of a commit.

    ask : code that prints what the tree makes of a release, where it has no `told`.
    measured : kinds of record whose code was put otherwise, each with the reason. Both codes have to measure
        planted runs alike, bit for bit (`measured_alike`).
    probe : how the tree measures them, where it has no table of kinds.
    """

    rewrites: tuple[Rewrite, ...] = ()
    recipes: Mapped = same
    inputs: Mapped = same
    ask: str = ""
    measured: Mapping[str, str] = field(default_factory=dict)
    probe: str = ""
    roots: Mapping[str, Mapping[str, Mapping[str, list[str]]]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ 3806e52

# The last tree whose digests cover whole modules. Where its digests would start and stop as definitions:
_FILES = [
    "threegates.atomic",
    "threegates.checkpoints",
    "threegates.digest",
    "threegates.workers",
]
_COMPUTING = [
    "threegates.checkpoints.roles",
    "threegates.checkpoints.rounding",
    *(
        f"threegates.checkpoints.pairs.{name}"
        for name in [
            "BLOCK",
            "PairRows",
            "TensorPair",
            "_cut",
            "_finite",
            "_rounded",
            "_rows_of",
            "load_finite",
            "load_pair",
            "load_rows",
            "row_ranges",
            "rows_of_pair",
        ]
    ),
]
_MEASURES = {
    "pair": "measure.PairTensors",
    "group": "agreement.measure_agreement",
    "run": "emergence.measure_emergence",
    "drift": "drift.PairDrift",
    "overlap": "overlap.PairOverlap",
    "lens": "lens.measure_lens",
    "curvature": "curvature.measure_curvature",
    "rotation": "rotation.measure_rotation",
    "frame": "rotation.measure_frame",
    "fisher": "fisher.measure_fisher",
    "table": "tensor_table.PairTable",
}
_TRAINERS = {
    "pretrain": "pretrain.Pretrainer",
    "rl": "rl.PolicyTrainer",
    "masked-rl": "masked.MaskedPolicyTrainer",
    "adapter-rl": "adapters.trainers.AdapterPolicyTrainer",
    "sft": "sft.SupervisedTrainer",
    "adapter-sft": "adapters.trainers.AdapterSupervisedTrainer",
    "rotated-base": "rotated.RotatedBase",
    "encoder-base": "encoder.base.EncoderBase",
    "encoder-rl": "encoder.rl.EncoderPolicyTrainer",
    "encoder-sft": "encoder.sft.EncoderSupervisedTrainer",
}
_ROOTS = {
    "record": {
        kind: {
            "roots": [f"threegates.study.{name}"],
            "outside": [*_FILES, "threegates.study.base_cache", "threegates.study.store"],
            "inside": [*_COMPUTING, "threegates.study.base_cache.decompose_base"],
        }
        for kind, name in _MEASURES.items()
    },
    "run": {
        kind: {
            "roots": [f"threegates.lab.{name}", "threegates.lab.runs._train"],
            "outside": [*_FILES, "threegates.lab.columns", "threegates.lab.recipe"],
            "inside": [*_COMPUTING, "threegates.checkpoints.writer"],
        }
        for kind, name in _TRAINERS.items()
    },
}
_ASK = """
from dataclasses import asdict
from threegates.digest import code_digest, value_digest
from threegates.lab.objectives import ALGORITHMS
from threegates.lab.plan import plan
from threegates.study.jobs import TABLES, _MODULES

def record(table, one):
    kinds = [kind for kind, tables in TABLES.items() if table in tables]
    found = [of_kind(kind, one) for kind in kinds]
    return next((other for other in found if other["digest"] == one["digest"]), found[0])

def of_kind(kind, one):
    decided = {"kind": kind, "inputs": one["inputs"], "code": codes[kind], "versions": one["versions"]}
    return {"kind": kind, "code": codes[kind], "digest": value_digest(decided)}

def run(made):
    recipe = made.recipe.model_dump(mode="json")
    return {"digest": made.digest, "code": made.code, "base": made.base_folder, "recipe": recipe}

def told(provenance, profile):
    return {
        "records": {
            table: {name: record(table, one) for name, one in known.items()}
            for table, known in provenance.items()
        },
        "runs": {item.run.name: run(item.run) for item in plan(profile)},
        "objectives": {name: asdict(one) for name, one in ALGORITHMS.items()},
    }

codes = {kind: code_digest(module) for kind, module in _MODULES.items()}
"""


def _with_objective(recipe: Values, told: Mapping[str, Any]) -> Values:
    """The values of its algorithm, from the old tree's own table."""
    if "algorithm" not in recipe:
        return recipe
    return recipe | {"objective": told["objectives"][recipe["algorithm"]]}


_REWRITES = (
    Rewrite(
        "threegates.lab.rl",
        "with_kl(algorithm(recipe.algorithm), recipe.kl_weight",
        "with_kl(recipe.objective, recipe.kl_weight",
        "the recipe holds the values that the table had for its algorithm",
    ),
    Rewrite(
        "threegates.lab.rl",
        """        loss, clipped = policy_loss(
            self.rules,
            log_probs,
            part.log_probs,
            reference[rows, :time],
            advantages[rows, :time],
            part.mask,
        )
        return {"loss": float(loss.detach()), "grad_norm": self.update(loss), "clip_fraction": clipped}
""",
        """        loss, clipped = self.loss(
            log_probs, part.log_probs, reference[rows, :time], advantages[rows, :time], part.mask
        )
        return {"loss": float(loss.detach()), "grad_norm": self.update(loss), "clip_fraction": clipped}
""",
        "the same call, through a method that an algorithm of another objective replaces",
    ),
    Rewrite(
        "threegates.lab.rl",
        "    def _minibatch(",
        """    def loss(
        self, log_probs: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, float]:
        return policy_loss(self.rules, log_probs, old, reference, advantages, mask)

    def _minibatch(""",
        "that method, which hands on what it is given",
    ),
    Rewrite(
        "threegates.study.losses",
        "add its loss in threegates/study/losses.py",
        "add its loss in threegates/measures/losses.py",
        "what an error advises computes nothing",
    ),
    Rewrite(
        "threegates.lab.encoder.rl",
        "self.rules = algorithm(recipe.algorithm)",
        "self.rules = recipe.objective",
        "the recipe holds the values that the table had for its algorithm",
    ),
    Rewrite(
        "threegates.lab.runs",
        "def _train(lab: Path, run: Run, partial: Path) -> None:\n    trainer = make_trainer(lab, run)\n",
        "def _train(run: Run, trainer: Producer, partial: Path) -> float:\n",
        "the trainer is made one call further up",
    ),
    Rewrite(
        "threegates.lab.runs",
        "    _finish(run, trainer, partial, rows, session.seconds())\n",
        "    _finish(trainer, partial, rows)\n    return session.seconds()\n",
        "what is told of a run, its time among it, is written one call further up",
    ),
    Rewrite(
        "threegates.lab.runs",
        "def _finish(run: Run, trainer: Producer, partial: Path, rows: list[dict[str, float]], "
        "seconds: float) -> None:\n    recipe = run.recipe\n",
        "def _finish(trainer: Producer, partial: Path, rows: list[dict[str, float]]) -> None:\n"
        "    from threegates.lab.columns import log_columns\n",
        "what is told of a run is written one call further up",
    ),
    Rewrite(
        "threegates.lab.runs",
        "reindex(columns=[*LOG_COLUMNS, *trainer.extra_columns])",
        "reindex(columns=log_columns(rows, trainer.extra_columns))",
        "the same columns in the same order, from outside of what digests cover",
    ),
    Rewrite(
        "threegates.lab.runs",
        """    facts = {
        "name": run.name,
        "digest": run.digest,
        "recipe": recipe.model_dump(mode="json"),
        "base": run.base_folder,
        "code": run.code,
        "versions": runtime_versions(),
        "threads": torch.get_num_threads(),
    }
    write_json(partial / "run.json", facts)
    # Time is no property of the result, so it lives beside the run's facts and never in them.
    write_json(
        partial / "when.json",
        {"seconds": round(seconds, 1), "finished": time.strftime("%FT%TZ", time.gmtime())},
    )
""",
        "",
        "run.json and when.json are written one call further up, and hold no result",
    ),
)

_HANDED = "what measures is handed the nulls that it draws, where it had a list of all"
_MEASURED = dict.fromkeys(("pair", "group", "overlap", "table"), _HANDED)
_PROBE = """
from threegates.checkpoints.manifest import read_manifest
from threegates.study import jobs as old
from threegates.study.batches import opened
from threegates.study.by_tensor import measure_all
from threegates.study.sources import named_pairs, narrowed

def found(manifest, runs, kinds, options):
    pairs = narrowed(named_pairs(runs, read_manifest(manifest)), options.pop("layers"), None)
    cut = {"pair": old.pair_jobs, "group": old.group_jobs, "overlap": old.overlap_jobs}
    for kind in kinds:
        whole = [old.table_job(pair, {**options, "axes": True}) for pair in pairs] if kind == "table" else ()
        for job in whole or cut[kind](pairs, options):
            tables = old._measure_group(**job.arguments) if kind == "group" else measure_all(opened(job))
            yield f"{kind}/{job.name}", {name: tables[name] for name in job.tables}
"""


def _with_nulls(inputs: Values, told: Mapping[str, Any]) -> Values:
    """The nulls that were drawn are named among the parameters of the kinds that drew them."""
    founding = ["bernoulli", "storage_density", "storage_norm", "magnitude"]
    parameters = inputs["parameters"]
    drawn = "draws" in parameters and not {"steps", "frame"} & parameters.keys()
    return inputs | {"parameters": {**parameters, "nulls": founding}} if drawn else inputs


#: By the first digits of the commit.
REKEYINGS: dict[str, Rekeying] = {
    "3806e52": Rekeying(_REWRITES, _with_objective, _with_nulls, _ASK, _MEASURED, _PROBE, _ROOTS),
}


def rekeying(commit: str) -> Rekeying:
    """What is declared of a commit; nothing where it is not named."""
    return next((one for start, one in REKEYINGS.items() if commit.startswith(start)), Rekeying())

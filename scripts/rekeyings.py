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


# ------------------------------------------------------------------------------------------------ ffffe60

# The last tree that made each Gram matrix anew, and had twins for drift and overlap.
_GRAMS = (
    Rewrite(
        "threegates.geometry.operators",
        """from collections.abc import Iterator
from dataclasses import dataclass

import torch
""",
        """from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
""",
        "one product is computed once and kept, instead of twice; dividing by 1 changes nothing",
    ),
    Rewrite(
        "threegates.geometry.operators",
        '''
    W = stored / unit or its transpose, exactly. Products take the type of their argument: float32 or float64.
    """

''',
        '''
    W = stored / unit or its transpose, exactly. Products take the type of their argument: float32 or float64.
    `exact_gram` is made once and kept until `release`, for certificate and spectrum need the same.
    """

''',
        "one product is computed once and kept, instead of twice; dividing by 1 changes nothing",
    ),
    Rewrite(
        "threegates.geometry.operators",
        '''        return g

    def norm(self) -> float:
        """‖W‖_F, in float64."""
        return math.sqrt(sum(float(tile.square().sum()) for _, tile in self._tiles(torch.float64)))

''',
        '''        return g

    @cached_property
    def exact_gram(self) -> Float64[Tensor, "n n"]:
        """`gram` in float64; to be read, never written to."""
        return self.gram(torch.float64)

    def release(self) -> None:
        """Keep `exact_gram` no longer: it is as large as the square of the smaller side."""
        self.__dict__.pop("exact_gram", None)

    def norm(self) -> float:
        """‖W‖_F, in float64; summed once."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        return math.sqrt(sum(float(tile.square().sum()) for _, tile in self._tiles(torch.float64)))

''',
        "one product is computed once and kept, instead of twice; dividing by 1 changes nothing",
    ),
    Rewrite(
        "threegates.geometry.operators",
        """        total = 0.0
        for rows, tile in self._tiles(torch.float64):
            total += float((other[rows].to(torch.float64) / self.unit - tile).square().sum())
        return math.sqrt(total)

""",
        """        total = 0.0
        for rows, tile in self._tiles(torch.float64):
            wide = other[rows].to(torch.float64)
            wide = wide if self.unit == 1.0 else wide / self.unit
            total += float((wide - tile).square().sum())
        return math.sqrt(total)

""",
        "one product is computed once and kept, instead of twice; dividing by 1 changes nothing",
    ),
    Rewrite(
        "threegates.geometry.operators",
        '''

def weight_operator(weight: Float[Tensor, "rows columns"]) -> WeightOperator:
    """Orient a stored weight so that its smaller side comes second.

    Parameters
    ----------
    weight : finite floating matrix with entries, of any type and on any device; referred to, not copied.

    Returns
''',
        '''

def weight_operator(weight: Float[Tensor, "rows columns"] | WeightOperator) -> WeightOperator:
    """Orient a stored weight so that its smaller side comes second.

    Parameters
    ----------
    weight : finite floating matrix with entries, of any type and on any device; referred to, not copied. An
        operator is given back as it is.

    Returns
''',
        "one product is computed once and kept, instead of twice; dividing by 1 changes nothing",
    ),
    Rewrite(
        "threegates.geometry.operators",
        '''    **Source** scaling by powers of two is exact: Higham (2002), §2.1.
    """
    if not weight.numel():
        raise GeometryError(
''',
        '''    **Source** scaling by powers of two is exact: Higham (2002), §2.1.
    """
    if isinstance(weight, WeightOperator):
        return weight
    if not weight.numel():
        raise GeometryError(
''',
        "one product is computed once and kept, instead of twice; dividing by 1 changes nothing",
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        """

def _task(weight: Tensor, requested: int, accuracy: str) -> _Task:
    if requested < 1:
        raise GeometryError(
""",
        """

def _task(weight: Tensor | WeightOperator, requested: int, accuracy: str) -> _Task:
    if requested < 1:
        raise GeometryError(
""",
        "the same Gram matrix, kept by the operator, which may be given in the weight's place",
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        '''    """Decompose a base weight: Gram matrix, all eigenvectors, float64 polish of the top k.

    Parameters
    ----------
''',
        '''    """Decompose a base weight: Gram matrix, all eigenvectors, float64 polish of the top k.

    The result's operator keeps its float64 Gram matrix, if the accuracy asked for one, until it is released.

    Parameters
    ----------
''',
        "the same Gram matrix, kept by the operator, which may be given in the weight's place",
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        '''
def update(
    base: BaseDecomposition, tuned: Float[Tensor, "rows columns"], accuracy: str = "fast"
) -> LeadingSpectrum:
    """Top k of a tuned weight, from the base's decomposition where that pays, else from nothing.
''',
        '''
def update(
    base: BaseDecomposition, tuned: Float[Tensor, "rows columns"] | WeightOperator, accuracy: str = "fast"
) -> LeadingSpectrum:
    """Top k of a tuned weight, from the base's decomposition where that pays, else from nothing.
''',
        "the same Gram matrix, kept by the operator, which may be given in the weight's place",
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        """    ----------
    base : of a weight of the same shape, on the same device.
    tuned : finite floating matrix.
    accuracy : 'fast', 'certified' or 'reference'; may differ from the base's.

""",
        """    ----------
    base : of a weight of the same shape, on the same device.
    tuned : finite floating matrix, or its operator, for who asks for its spectrum too.
    accuracy : 'fast', 'certified' or 'reference'; may differ from the base's.

""",
        "the same Gram matrix, kept by the operator, which may be given in the weight's place",
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        '''    **Source** Davidson (1975); Wedin (1972); Weyl (1912).
    """
    if tuned.shape != base.weight.shape:
        raise GeometryError(
            "base and tuned weight differ in shape",
            expected=tuple(base.weight.shape),
            found=tuple(tuned.shape),
        )
    check_accuracy(accuracy)
    if torch.equal(base.weight, tuned):
        return replace(base.leading, path="unchanged")
    task = _task(tuned, base.leading.requested, accuracy)
''',
        '''    **Source** Davidson (1975); Wedin (1972); Weyl (1912).
    """
    stored = tuned.stored if isinstance(tuned, WeightOperator) else tuned
    if stored.shape != base.weight.shape:
        raise GeometryError(
            "base and tuned weight differ in shape",
            expected=tuple(base.weight.shape),
            found=tuple(stored.shape),
        )
    check_accuracy(accuracy)
    if torch.equal(base.weight, stored):
        return replace(base.leading, path="unchanged")
    task = _task(tuned, base.leading.requested, accuracy)
''',
        "the same Gram matrix, kept by the operator, which may be given in the weight's place",
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        '''def _by_gram(task: _Task, dtype: torch.dtype) -> tuple[LeadingSpectrum, _Basis] | None:
    """Eigenvectors of a Gram matrix in `dtype`, float64 polish; None where that misses the accuracy."""
    basis = _eigenbasis(task.operator.gram(dtype))
    # The Gram matrix's rounding is an update like any other, and the first guess corrects it as one.
    start = warm_start(task.operator, basis.vectors, basis.eigenvalues, _window(task))
    found = _polished(task, basis, start)
    certificate = _certificate(task, found) if found.good else None
''',
        '''def _by_gram(task: _Task, dtype: torch.dtype) -> tuple[LeadingSpectrum, _Basis] | None:
    """Eigenvectors of a Gram matrix in `dtype`, float64 polish; None where that misses the accuracy."""
    operator = task.operator
    basis = _eigenbasis(operator.exact_gram if dtype == torch.float64 else operator.gram(dtype))
    # The Gram matrix's rounding is an update like any other, and the first guess corrects it as one.
    start = warm_start(operator, basis.vectors, basis.eigenvalues, _window(task))
    found = _polished(task, basis, start)
    certificate = _certificate(task, found) if found.good else None
''',
        "the same Gram matrix, kept by the operator, which may be given in the weight's place",
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        '''def _by_exact_gram(task: _Task) -> tuple[LeadingSpectrum, _Basis]:
    """The same in float64, where a residual proves *all* eigenvalues; takes what it gets."""
    gram = task.operator.gram(torch.float64)
    basis = _eigenbasis(gram)
    found = _polished(task, basis, basis.vectors[:, : _window(task)])
''',
        '''def _by_exact_gram(task: _Task) -> tuple[LeadingSpectrum, _Basis]:
    """The same in float64, where a residual proves *all* eigenvalues; takes what it gets."""
    gram = task.operator.exact_gram
    basis = _eigenbasis(gram)
    found = _polished(task, basis, basis.vectors[:, : _window(task)])
''',
        "the same Gram matrix, kept by the operator, which may be given in the weight's place",
    ),
    Rewrite(
        "threegates.geometry.certificate",
        """    if ritz.values.numel() == operator.n:
        return 0.0
    gram = operator.gram(torch.float64)
    gram.addmm_(ritz.right * ritz.values.square(), ritz.right.T, alpha=-1)
    for shift in _shifts(operator, ritz, residuals):
        if _is_positive_definite(gram, shift):
""",
        """    if ritz.values.numel() == operator.n:
        return 0.0
    deflated = ritz.right * ritz.values.square()
    gram = operator.exact_gram.addmm(deflated, ritz.right.T, alpha=-1)
    for shift in _shifts(operator, ritz, residuals):
        if _is_positive_definite(gram, shift):
""",
        "the same Gram matrix, deflated in a copy instead of in place; one error, in two functions",
    ),
    Rewrite(
        "threegates.geometry.certificate",
        '''

def _shifts(operator: WeightOperator, ritz: RitzTriplets, residuals: Residuals) -> list[float]:
    """Values of s to try: well below σ̂_{k+1}² where the window reaches lower, else just above it."""
''',
        '''

def prove_norm(operator: WeightOperator, square: float) -> float | None:
    """A bound ‖W‖₂² ≤ `square` + e, proved by inertia, or None where the proof fails; e is all rounding.

    **Source** as `prove_by_cholesky`.
    """
    if not _is_positive_definite(operator.exact_gram, square):
        return None
    return square + _inertia_error(operator, operator.norm() ** 2 * 1.001, square, 0, 0.0)


def _shifts(operator: WeightOperator, ritz: RitzTriplets, residuals: Residuals) -> list[float]:
    """Values of s to try: well below σ̂_{k+1}² where the window reaches lower, else just above it."""
''',
        "the same Gram matrix, deflated in a copy instead of in place; one error, in two functions",
    ),
    Rewrite(
        "threegates.geometry.certificate",
        ''') -> float:
    """Norm of all rounding in the Gram matrix, the deflation, the shift and the factor."""
    n, q, frobenius = operator.n, ritz.values.numel(), residuals.norm**2
    deflation = float(ritz.values.square().sum()) * 1.001
    trace = n * shift + frobenius + deflation
    products = rounding(operator.m + 3) * frobenius + rounding(q + 4) * deflation
''',
        ''') -> float:
    """Norm of all rounding in the Gram matrix, the deflation, the shift and the factor."""
    deflation = float(ritz.values.square().sum()) * 1.001
    return _inertia_error(operator, residuals.norm**2, shift, ritz.values.numel(), deflation)


def _inertia_error(
    operator: WeightOperator, frobenius: float, shift: float, q: int, deflation: float
) -> float:
    """The same from ‖W‖_F² and, of the q deflated directions, the sum of squared values."""
    n = operator.n
    trace = n * shift + frobenius + deflation
    products = rounding(operator.m + 3) * frobenius + rounding(q + 4) * deflation
''',
        "the same Gram matrix, deflated in a copy instead of in place; one error, in two functions",
    ),
    Rewrite(
        "threegates.geometry.directions",
        '''

def principal_energy(delta: Shaped[Tensor, "m n"], u: Float[Tensor, "m k"], v: Float[Tensor, "n k"]) -> float:
    """Share of an update's energy in the principal k × k block: ρ² = ‖UᵀΔW V‖²_F/‖ΔW‖²_F.

    Parameters
    ----------
    delta : ΔW, floating; u, v : orthonormal frames as columns.

    Returns
''',
        '''

def principal_energy(
    delta: Shaped[Tensor, "m n"],
    u: Float[Tensor, "m k"],
    v: Float[Tensor, "n k"],
    norm: float | None = None,
) -> float:
    """Share of an update's energy in the principal k × k block: ρ² = ‖UᵀΔW V‖²_F/‖ΔW‖²_F.

    Parameters
    ----------
    delta : ΔW, floating; u, v : orthonormal frames as columns; norm : ‖ΔW‖_F, where it is known.

    Returns
''',
        "a known norm may be given, and is else computed as before",
    ),
    Rewrite(
        "threegates.geometry.directions",
        '''    """
    values = _working(delta)
    total = _energy(values)
    return _block_energy(values, u, v) / total if total else math.nan

''',
        '''    """
    values = _working(delta)
    total = _energy(values) if norm is None else norm**2
    return _block_energy(values, u, v) / total if total else math.nan

''',
        "a known norm may be given, and is else computed as before",
    ),
    Rewrite(
        "threegates.geometry.directions",
        """    scale = _scale(x)
    pieces = x.detach().reshape(-1).split(PIECE) if scale else ()
    return scale * math.sqrt(sum(float((piece.to(torch.float64) / scale).square().sum()) for piece in pieces))


""",
        """    scale = _scale(x)
    pieces = x.detach().reshape(-1).split(PIECE) if scale else ()
    wide = (piece.to(torch.float64) for piece in pieces)
    return scale * math.sqrt(sum(float((x if scale == 1 else x / scale).square().sum()) for x in wide))


""",
        "a known norm may be given, and is else computed as before",
    ),
    Rewrite(
        "threegates.geometry.spectra",
        """from threegates.geometry.certificate import rounding
from threegates.geometry.decomposition import check_accuracy
from threegates.geometry.operators import weight_operator


""",
        """from threegates.geometry.certificate import rounding
from threegates.geometry.decomposition import check_accuracy
from threegates.geometry.operators import WeightOperator, weight_operator


""",
        "the same Gram matrix, kept by the operator",
    ),
    Rewrite(
        "threegates.geometry.spectra",
        '''

def singular_values(weight: Float[Tensor, "rows columns"], accuracy: str = "certified") -> FullSpectrum:
    """All singular values of a matrix, without vectors.

''',
        '''

def singular_values(
    weight: Float[Tensor, "rows columns"] | WeightOperator, accuracy: str = "certified"
) -> FullSpectrum:
    """All singular values of a matrix, without vectors.

''',
        "the same Gram matrix, kept by the operator",
    ),
    Rewrite(
        "threegates.geometry.spectra",
        """    Parameters
    ----------
    weight : finite floating matrix with entries.

    Raises
""",
        """    Parameters
    ----------
    weight : finite floating matrix with entries, or its operator, whose Gram matrix is then taken as it is.

    Raises
""",
        "the same Gram matrix, kept by the operator",
    ),
    Rewrite(
        "threegates.geometry.spectra",
        """        errors = torch.full_like(values, float(rounding(n)) * float(values[0]))
        return FullSpectrum(values * unit, errors * unit, "svd")
    squares = torch.linalg.eigvalsh(operator.gram(torch.float64)).flip(0).clamp(min=0.0)
    error = (rounding(operator.m) + rounding(n)) * operator.norm() ** 2
    values = squares.sqrt()
""",
        """        errors = torch.full_like(values, float(rounding(n)) * float(values[0]))
        return FullSpectrum(values * unit, errors * unit, "svd")
    squares = torch.linalg.eigvalsh(operator.exact_gram).flip(0).clamp(min=0.0)
    error = (rounding(operator.m) + rounding(n)) * operator.norm() ** 2
    values = squares.sqrt()
""",
        "the same Gram matrix, kept by the operator",
    ),
    Rewrite(
        "threegates.measures.draws",
        """    total = 0.0
    for piece, other in zip(pieces, less, strict=True):
        wide = piece.double() if other is None else piece.double() - other
        total += float(wide @ wide)
    return total
""",
        """    total = 0.0
    for piece, other in zip(pieces, less, strict=True):
        wide = piece.double() if other is None else piece.to(torch.float64, copy=True).sub_(other)
        total += float(wide @ wide)
    return total
""",
        "the difference in place: the same subtraction",
    ),
    Rewrite(
        "threegates.measures.bases",
        '''    def spectrum(self) -> FullSpectrum:
        """All singular values."""
        return singular_values(self.weight, self.accuracy)


''',
        '''    def spectrum(self) -> FullSpectrum:
        """All singular values."""
        return singular_values(self.leading.operator, self.accuracy)


''',
        "the spectrum at once and from the same Gram matrix",
    ),
    Rewrite(
        "threegates.measures.bases",
        '''

def base_of(weight: Tensor, k: int, shared: Shared) -> Base:
    """A base matrix with its k leading triplets, found once for each content among what is shared."""
    exact, accuracy = weight.to(working_type(weight)), accuracy_of(weight.shape)
    return shared.of(
        ("base", k, accuracy), exact, lambda: Base(exact, decompose_base(exact, k, accuracy), accuracy)
    )
''',
        '''

def base_of(weight: Tensor, k: int, shared: Shared, *, spectrum: bool = False) -> Base:
    """A base matrix with its k leading triplets, found once for each content among what is shared.

    spectrum : whether all singular values will be asked for. They are found at once then, from the Gram
    matrix of the certificate, which is kept for nothing else.
    """
    exact, accuracy = weight.to(working_type(weight)), accuracy_of(weight.shape)
    found = shared.of(
        ("base", k, accuracy), exact, lambda: Base(exact, decompose_base(exact, k, accuracy), accuracy)
    )
    if spectrum:
        _ = found.spectrum
    found.leading.operator.release()
    return found
''',
        "the spectrum at once and from the same Gram matrix",
    ),
)

_FOLDED = "twins are one class, and a pass over a tensor hands on what it sees"

# ------------------------------------------------------------------------------------------------ 851b6c5

# The last tree that found the distances of a coarse tolerance anew for every entry of a tensor.
_LOOKED_UP = "the same distance by the code of the weight; no stored weight is near the largest value"
_TABLES = (
    Rewrite(
        "threegates.geometry.precision",
        """from __future__ import annotations

""",
        """from __future__ import annotations

import math
from functools import lru_cache

""",
        _LOOKED_UP,
    ),
    Rewrite(
        "threegates.geometry.precision",
        """    -------
    (down, up) : float64 tensors, positive.

""",
        """    -------
    (down, up) : float64 tensors, positive; infinite where no value of that side is called changed.

""",
        _LOOKED_UP,
    ),
    Rewrite(
        "threegates.geometry.precision",
        """    require_finite_bf16(w, "w")
    return _gap_beyond(w, eta, -1), _gap_beyond(w, eta, 1)

""",
        '''    require_finite_bf16(w, "w")
    # A weight is one of 2¹⁶ codes, and its distances are looked up: sooner than found anew for every entry.
    codes = w.contiguous().view(torch.int16).to(torch.int64) & 0xFFFF
    down, up = (table.to(w.device)[codes] for table in _gaps_of_codes(float(eta)))
    return down, up


@lru_cache(maxsize=8)
def _gaps_of_codes(eta: float) -> tuple[Tensor, Tensor]:
    """Distances down and up by the 16 bits of a value; NaN for what is not finite."""
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = values.isfinite()
    tables = []
    for side in (-1, 1):
        table = torch.full(values.shape, math.nan, dtype=torch.float64)
        table[finite] = _gap_beyond(values[finite], eta, side)
        tables.append(table)
    return tables[0], tables[1]

''',
        _LOOKED_UP,
    ),
    Rewrite(
        "threegates.geometry.precision",
        """    codes, value = bf16_codes(w), w.double()
    distance = torch.zeros_like(value)
    pending = torch.ones_like(w, dtype=torch.bool)
""",
        """    codes, value = bf16_codes(w), w.double()
    distance = torch.full_like(value, math.inf)
    pending = torch.ones_like(w, dtype=torch.bool)
""",
        _LOOKED_UP,
    ),
    Rewrite(
        "threegates.geometry.precision",
        """        distance = torch.where(now, ((before + after) / 2 - value).abs(), distance)
        pending, before = pending & ~changed, after
    return distance
""",
        """        distance = torch.where(now, ((before + after) / 2 - value).abs(), distance)
        # Beyond the largest value there is nothing that could be called changed.
        inside = (codes + side * steps).abs() < INFINITY_CODE
        pending, before = pending & ~changed & inside, after
    return distance
""",
        _LOOKED_UP,
    ),
)


#: By the first digits of the commit.
# ------------------------------------------------------------------------------------------------ dafb541

# The last tree in which any counter numbered a block, and in which biases of experts were matrices.
_OUTERMOST = "names of the lab's tensors have one counter and no tower, and hold no state or convolution"
_A_MATRIX = "of the lab's tensors every one with two axes in a block is a matrix"
_NO_ANGLE = "no released angle has a bound of a right angle, and no released shift is infinite"
_BLOCKS = (
    Rewrite(
        "threegates.checkpoints.formats.roles",
        r'''LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
ROLE_OF_MODULE = {module: role for role, modules in MODULES.items() for module in modules}
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")


def role(name: str, shape: Sequence[int]) -> str:
    """Role of a tensor: q, k, v, o, gate, up, down, embedding, head, norm, bias or other."""
    parts = name.split(".")
    if parts[-1] == "bias":
        return "bias"
    known = _dense(parts) or ROLE_OF_MODULE.get(parts[-2] if len(parts) > 1 else parts[-1])
''',
        r'''LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
#: Parameters of a recurrence, which multiply no activations as a matrix does.
STATE = ("A_log", "D", "dt_bias")
#: Roles of what may have two axes and maps nothing: one row an expert, a head or a distance.
TABLES = ("bias", "state", "conv")
_TABLE_MODULES = ("relative_attention_bias",)
ROLE_OF_MODULE = {module: role for role, modules in MODULES.items() for module in modules}
#: What counts the blocks of a stack. Of nested counters the outermost counts: ``block.3.layer.1`` is block 3.
COUNTERS = ("layers", "layer", "h", "blocks", "block", "resblocks", "albert_layer_groups")
_BLOCK = re.compile(rf"(?:^|\.)(?:{'|'.join(COUNTERS)})\.(\d+)\.")
#: Stacks by the words that stand in front of a counter, the first that is found; all others are the decoder.
_STACKS = {
    "mtp": ("mtp",),
    "vision": ("visual", "vision", "vision_tower", "vision_model", "vision_encoder", "image_encoder"),
    "audio": ("audio", "audio_tower", "audio_model", "audio_encoder", "speech_encoder"),
    "encoder": ("encoder",),
}
#: Stacks of the text model, whose blocks are its layers.
TEXT = ("decoder", "encoder")


def role(name: str, shape: Sequence[int]) -> str:
    """Role of a tensor: q, k, v, o, gate, up, down, embedding, head, norm, bias, state, conv or other."""
    parts = name.split(".")
    if parts[-1] in STATE:
        return "state"
    if parts[-1] == "bias" or parts[-1].endswith("_bias"):
        return "bias"
    if "conv1d" in parts[-2:]:
        return "conv"
    known = _dense(parts) or ROLE_OF_MODULE.get(parts[-2] if len(parts) > 1 else parts[-1])
''',
        _OUTERMOST,
    ),
    Rewrite(
        "threegates.checkpoints.formats.roles",
        '''
def layer(name: str) -> int | None:
    """Number of the block a tensor belongs to, None for the embedding, the head and the last norm."""
    found = LAYER.search(name)
    return int(found.group(1)) if found else None
''',
        '''
def block(name: str) -> tuple[str, int] | None:
    """Stack and number of the block that a tensor belongs to; None for one that lies in no block.

    Stacks: decoder, encoder, vision, audio and mtp, the heads that predict several tokens.
    """
    found = _BLOCK.search(name)
    if found is None:
        return None
    before = set(name[: found.start()].split("."))
    stack = next((one for one, words in _STACKS.items() if before & set(words)), "decoder")
    return stack, int(found.group(1))


def layer(name: str) -> int | None:
    """Number of the text model's block that a tensor belongs to; None outside of its stacks.

    The embedding, the head and the last norm lie in no block; a vision tower's blocks are not the text
    model's, whatever their numbers.
    """
    found = block(name)
    return found[1] if found is not None and found[0] in TEXT else None


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor maps activations: two axes, and no table of biases or states."""
    table = role(name, shape) in TABLES or bool(set(_TABLE_MODULES) & set(name.split(".")))
    return len(shape) == 2 and not table
''',
        _OUTERMOST,
    ),
    Rewrite(
        "threegates.measures.changes",
        """from threegates.checkpoints.formats.byte_tensors import write_byte_tensors
from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import (
""",
        """from threegates.checkpoints.formats.byte_tensors import write_byte_tensors
from threegates.checkpoints.formats.roles import is_matrix, layer, role
from threegates.checkpoints.pairs import (
""",
        _A_MATRIX,
    ),
    Rewrite(
        "threegates.measures.changes",
        '''so that it has axes and spectra."""
    return len(facts["shape"]) == 2 and facts["layer"] is not None and facts["size"] > 0

''',
        '''so that it has axes and spectra."""
    return is_matrix(facts["tensor"], facts["shape"]) and facts["layer"] is not None and facts["size"] > 0

''',
        _A_MATRIX,
    ),
    Rewrite(
        "threegates.measures.changes",
        """        number = layer(row.name)
        two = row.status is Status.compared and len(sides(row)[0]) == 2
        if two and number is not None and of_layer in (None, number):
""",
        """        number = layer(row.name)
        two = row.status is Status.compared and is_matrix(row.name, sides(row)[0])
        if two and number is not None and of_layer in (None, number):
""",
        _A_MATRIX,
    ),
    Rewrite(
        "threegates.measures.drift",
        """    aware = subspace_angles(leading, moved.leading, widest_gap_rank(leading))
    of_sides = {
        f"angle_{name}_{what}": value
        for name, one in (("left", angles.left), ("right", angles.right))
""",
        """    aware = subspace_angles(leading, moved.leading, widest_gap_rank(leading))
    # A bound of a right angle bounds nothing: equal singular values have no leading subspaces.
    known = moved.bound < math.pi / 2
    of_sides = {
        f"angle_{name}_{what}": value if known else math.nan
        for name, one in (("left", angles.left), ("right", angles.right))
""",
        _NO_ANGLE,
    ),
    Rewrite(
        "threegates.measures.drift",
        """        "gap": angles.gap,
        "nss": nss,
        "nss_error": nss_error,
""",
        """        "gap": angles.gap,
        # Of a base that is zero nothing is a share.
        "nss": nss if math.isfinite(nss) else math.nan,
        "nss_error": nss_error,
""",
        _NO_ANGLE,
    ),
    Rewrite(
        "threegates.measures.drift",
        """        "angle_floor": max(angles.left.floor, angles.right.floor),
        "resolved": 1 - float(unresolved.double().mean()),
        "proved": angles.proved,
""",
        """        "angle_floor": max(angles.left.floor, angles.right.floor),
        "resolved": 1 - float(unresolved.double().mean()) if known else 0.0,
        "proved": angles.proved,
""",
        _NO_ANGLE,
    ),
)


# ------------------------------------------------------------------------------------------------ f537c60

# The tree that the laws were released of. Both codes measured planted runs alike, to the last bit.
_AT_ONCE = "all draws at once: others of the same law, and no released overlap with a law was drawn"
_LOOKED = "the same look-up by bit pattern, written once"
_BLOCKS_OF_LINES = (
    "by blocks of 2048 lines, and otherwise from 2^33 products on; no released matrix has as many"
)
_FOLDED_EIGEN = "the same from an eigenbasis of either Gram matrix, written once"
_SINCE_LAWS = (
    Rewrite(
        "threegates.geometry.decomposition",
        """
def _can_be_warm(task: _Task) -> bool:
""",
        '''
def _working_gram(operator: WeightOperator) -> Tensor:
    """Lower triangle of WᵀW in the working type; the float64 one is kept, as the certificate needs it."""
    dtype = _working_type(operator.stored)
    return operator.exact_gram if dtype == torch.float64 else operator.gram(dtype)


def _can_be_warm(task: _Task) -> bool:
''',
        _FOLDED_EIGEN,
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        """        found = _by_gram(task, _working_type(task.operator.stored))
""",
        """        found = _by_eigenbasis(task, _eigenbasis(_working_gram(task.operator)))
""",
        _FOLDED_EIGEN,
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        '''def _by_gram(task: _Task, dtype: torch.dtype) -> tuple[LeadingSpectrum, _Basis] | None:
    """Eigenvectors of a Gram matrix in `dtype`, float64 polish; None where that misses the accuracy."""
    operator = task.operator
    basis = _eigenbasis(operator.exact_gram if dtype == torch.float64 else operator.gram(dtype))
''',
        '''def _by_eigenbasis(task: _Task, basis: _Basis) -> tuple[LeadingSpectrum, _Basis] | None:
    """Eigenvectors of a rounded Gram matrix, float64 polish; None where that misses the accuracy."""
    operator = task.operator
''',
        _FOLDED_EIGEN,
    ),
    Rewrite(
        "threegates.geometry.decomposition",
        '''def _by_rounded_gram(task: _Task) -> tuple[LeadingSpectrum, _Basis] | None:
    """`_by_gram` in float32 from the float64 Gram matrix; None where that is not tried, or misses."""
    operator = task.operator
    wide = _working_type(operator.stored) == torch.float64
    if task.accuracy == "reference" or wide or operator.n <= SMALL or 2 * task.k > operator.n:
        return None
    basis = _eigenbasis(operator.exact_gram.to(torch.float32))
    start = warm_start(operator, basis.vectors, basis.eigenvalues, _window(task))
    found = _polished(task, basis, start)
    certificate = _certificate(task, found) if found.good else None
    if certificate is None or certificate.proof == "none":
        return None
    return _finish(task, found.ritz, "gram", certificate), basis
''',
        '''def _by_rounded_gram(task: _Task) -> tuple[LeadingSpectrum, _Basis] | None:
    """`_by_eigenbasis` in float32 from the float64 Gram matrix; None where that is not tried, or misses."""
    operator = task.operator
    wide = _working_type(operator.stored) == torch.float64
    if task.accuracy == "reference" or wide or operator.n <= SMALL or 2 * task.k > operator.n:
        return None
    return _by_eigenbasis(task, _eigenbasis(operator.exact_gram.to(torch.float32)))
''',
        _FOLDED_EIGEN,
    ),
    Rewrite(
        "threegates.geometry.laws.codes",
        """
    def gaps(self, eta: Real = ETA) -> tuple[np.ndarray, np.ndarray]:
""",
        '''
    def by_pattern(self, values: np.ndarray) -> np.ndarray:
        """(…, 65536) values of the codes, (…, K), by bit pattern: −0 has those of +0, what is not there 0."""
        table = np.zeros((*values.shape[:-1], PATTERNS), dtype=values.dtype)
        table[..., self.patterns] = values
        table[..., _MINUS_ZERO] = table[..., 0]
        return table

    def gaps(self, eta: Real = ETA) -> tuple[np.ndarray, np.ndarray]:
''',
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.codes",
        """        return CodeCounts(patterns, table[patterns])

""",
        '''        return CodeCounts(patterns, table[patterns])


def bit_patterns(base: Shaped[Tensor, "*shape"]) -> np.ndarray:
    """Bit patterns of a bfloat16 tensor as unsigned integers, of its shape; on the CPU a view of it."""
    return base.cpu().contiguous().view(torch.int16).numpy().view(np.uint16)

''',
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.dispersion",
        """_SMALL_WORK = 1 << 28

""",
        """_SMALL_WORK = 1 << 28
# Products beyond which neighbouring strata are joined for one, and how many.
_LARGE_WORK, _JOINED = 1 << 33, 4
# Lines that are widened to float64 at a time.
_WIDENED = 1 << 11

""",
        _BLOCKS_OF_LINES,
    ),
    Rewrite(
        "threegates.geometry.laws.dispersion",
        """        along = self.shared.T @ step
""",
        """        along = _along(self.shared, step)
""",
        _BLOCKS_OF_LINES,
    ),
    Rewrite(
        "threegates.geometry.laws.dispersion",
        """
def _squares(lines: np.ndarray, weights: np.ndarray) -> np.ndarray:
""",
        '''
def _along(lines: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(R,) Uᵀ step in float64, by blocks of lines: all of U in float64 would be twice as large as it is."""
    starts = range(_WIDENED, len(lines), _WIDENED)
    parts = zip(*(np.split(one, starts) for one in (lines, step)), strict=True)
    return np.sum([part.T @ of_part for part, of_part in parts], axis=0)


def _squares(lines: np.ndarray, weights: np.ndarray) -> np.ndarray:
''',
        _BLOCKS_OF_LINES,
    ),
    Rewrite(
        "threegates.geometry.laws.dispersion",
        '''
    It is of the order of Σ a²/m. In a large tensor float32 is enough for it; in a small one, where a count
    may be certain, what is left of tr C² has to vanish with it.
    """
''',
        '''
    It is of the order of Σ a²/m. In a large tensor float32 is enough for it, and in a very large one joined
    strata; in a small one, where a count may be certain, what is left of tr C² has to vanish with it.
    """
    if lines.size * min(lines.shape) > _LARGE_WORK:
        lines, weights = _joined(lines, weights)
''',
        _BLOCKS_OF_LINES,
    ),
    Rewrite(
        "threegates.geometry.laws.dispersion",
        """    return float(np.einsum("ij,ij->", gram, gram, dtype=np.float64))

""",
        '''    return float(np.einsum("ij,ij->", gram, gram, dtype=np.float64))


def _joined(lines: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring strata as one, whose weight leaves Σ w s² as it is, s the entries of a stratum.

    Counts of neighbours are nearly proportional, so that of the norm some thousandths change, and of tr C²,
    of which it is some 1e-4 there, less than 1e-6.
    """
    starts = np.arange(0, len(weights), _JOINED)
    sizes = lines.sum(axis=0, dtype=np.float64)
    together = np.maximum(np.add.reduceat(sizes, starts), 1)
    return np.add.reduceat(lines, starts, axis=1), np.add.reduceat(weights * sizes**2, starts) / together**2

''',
        _BLOCKS_OF_LINES,
    ),
    Rewrite(
        "threegates.geometry.laws.lines",
        """from threegates.geometry.laws.codes import PATTERNS, CodeCounts
""",
        """from threegates.geometry.laws.codes import CodeCounts, bit_patterns
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.lines",
        """    tables = _by_pattern(codes, functions)
""",
        """    tables = codes.by_pattern(functions)
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.lines",
        '''    return torch.from_numpy(_by_pattern(codes, functions)).to(base.device)[:, index]


def _by_pattern(codes: CodeCounts, functions: np.ndarray) -> np.ndarray:
    """Functions of the code by its bit pattern; −0 is counted as +0."""
    tables = np.zeros((len(functions), PATTERNS))
    tables[:, codes.patterns] = functions
    tables[:, 0x8000] = tables[:, 0]
    return tables
''',
        """    return torch.from_numpy(codes.by_pattern(functions)).to(base.device)[:, index]
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.lines",
        """    table = np.zeros(PATTERNS, dtype=np.intp)
    table[codes.patterns] = kind_of_code
    # −0 is counted as +0.
    table[0x8000] = table[0]
    words = base.cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
""",
        """    table, words = codes.by_pattern(kind_of_code), bit_patterns(base)
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.lines",
        """    table = np.zeros(PATTERNS, dtype=np.intp)
    table[codes.patterns] = strata.of_code
    table[0x8000] = table[0]
    words = base.cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
""",
        """    table, words = codes.by_pattern(strata.of_code), bit_patterns(base)
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.stopped",
        """DRAWS = 2000
_STEPS = 60
""",
        """DRAWS = 2000
# Counts by draw and code that are held at a time.
_HELD = 1 << 20
_STEPS = 60
""",
        _AT_ONCE,
    ),
    Rewrite(
        "threegates.geometry.laws.stopped",
        """    out = np.empty((draws, inside.shape[1]))
    for row in range(draws):
        counts = generator.binomial(noise.counts.astype(np.int64), share)
        while counts.sum() < events:
            counts = generator.binomial(noise.counts.astype(np.int64), share)
        codes = np.repeat(np.arange(len(counts)), counts)
        when = _critical_scales(noise, codes, scale, few_stay, generator)
        chosen = codes[np.argsort(-when if few_stay else when)[:events]]
        out[row] = _in_targets(noise, inside, chosen, generator)
    return inside.sum(axis=0) - out if few_stay else out
""",
        '''    height = max(1, _HELD // len(share))
    parts = []
    for left in range(0, draws, height):
        counts = _counts_of_enough(noise, share, events, min(height, draws - left), generator)
        row, codes = (
            np.repeat(place, counts.reshape(-1)) for place in np.indices(counts.shape).reshape(2, -1)
        )
        when = _critical_scales(noise, codes, scale, few_stay, generator)
        first = _first(row, -when if few_stay else when, events)
        parts.append(_in_targets(noise, inside, row[first], codes[first], generator))
    out = np.concatenate(parts)
    return inside.sum(axis=0) - out if few_stay else out


def _counts_of_enough(
    noise: Noise, share: np.ndarray, events: int, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """(draws, K) weights of each code that pass a scale, given that at least `events` do."""
    whole = noise.counts.astype(np.int64)
    counts = generator.binomial(whole, share, size=(draws, len(share)))
    while len(few := np.flatnonzero(counts.sum(axis=1) < events)):
        counts[few] = generator.binomial(whole, share, size=(len(few), len(share)))
    return counts


def _first(row: np.ndarray, when: np.ndarray, events: int) -> np.ndarray:
    """Places of the `events` least values of each row, row by row; rows come in order, each with as many."""
    starts = np.searchsorted(row, np.arange(row[-1] + 2))
    place = np.arange(len(row)) - starts[row]
    values = np.full((row[-1] + 1, place.max() + 1), np.inf)
    values[row, place] = when
    least = np.argpartition(values, events - 1, axis=1)[:, :events]
    return (starts[:-1, None] + least).reshape(-1)
''',
        _AT_ONCE,
    ),
    Rewrite(
        "threegates.geometry.laws.stopped",
        '''def _in_targets(
    noise: Noise, inside: np.ndarray, chosen: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """How many of the chosen lie in each target: weights of one code are alike, whether in it or not."""
    hit, number = np.unique(chosen, return_counts=True)
    whole = noise.counts[hit].astype(np.int64)
    marked = inside[hit].astype(np.int64)
    return np.array(
        [
            generator.hypergeometric(marked[:, a], whole - marked[:, a], number).sum()
            for a in range(inside.shape[1])
        ]
    )
''',
        '''def _in_targets(
    noise: Noise, inside: np.ndarray, row: np.ndarray, chosen: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """How many of each draw's chosen lie in each target, (draws, targets).

    Weights of one code are alike, whether in a target or not.
    """
    kinds = len(noise.counts)
    hit, number = np.unique(row * kinds + chosen, return_counts=True)
    draw, code = np.divmod(hit, kinds)
    whole, marked = noise.counts[code].astype(np.int64), inside[code].astype(np.int64)
    found = generator.hypergeometric(marked.T, (whole[:, None] - marked).T, number)
    return np.stack([np.bincount(draw, one, minlength=row[-1] + 1) for one in found], axis=1)
''',
        _AT_ONCE,
    ),
    Rewrite(
        "threegates.geometry.laws.sweeps",
        """from threegates.geometry.laws.codes import PATTERNS, CodeCounts
""",
        """from threegates.geometry.laws.codes import CodeCounts, bit_patterns
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.laws.sweeps",
        """    table = np.zeros(PATTERNS, dtype=np.int64)
    table[codes.patterns] = np.arange(len(codes.patterns))
    table[0x8000] = table[0]
    return table[base.cpu().contiguous().view(torch.int16).numpy().view(np.uint16).reshape(-1)]
""",
        """    return codes.by_pattern(np.arange(len(codes.patterns)))[bit_patterns(base).reshape(-1)]
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.nulls.magnitude",
        """from threegates.geometry.laws.codes import PATTERNS, CodeCounts, count_codes
""",
        """from threegates.geometry.laws.codes import CodeCounts, count_codes
""",
        _LOOKED,
    ),
    Rewrite(
        "threegates.geometry.nulls.magnitude",
        """    table = torch.zeros(PATTERNS, dtype=torch.int64)
    table[torch.from_numpy(codes.patterns)] = torch.from_numpy(strata.of_code)
    table[0x8000] = table[0]
""",
        """    table = torch.from_numpy(codes.by_pattern(strata.of_code))
""",
        _LOOKED,
    ),
)


REKEYINGS: dict[str, Rekeying] = {
    "3806e52": Rekeying(_REWRITES, _with_objective, _with_nulls, _ASK, _MEASURED, _PROBE, _ROOTS),
    "dafb541": Rekeying(_BLOCKS),
    "851b6c5": Rekeying(_TABLES),
    "f537c60": Rekeying(_SINCE_LAWS),
    "ffffe60": Rekeying(_GRAMS, measured=dict.fromkeys(("pair", "group", "drift", "overlap"), _FOLDED)),
}


def rekeying(commit: str) -> Rekeying:
    """What is declared of a commit; nothing where it is not named."""
    return next((one for start, one in REKEYINGS.items() if commit.startswith(start)), Rekeying())

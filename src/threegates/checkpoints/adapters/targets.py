"""Which weights an adapter's file changes, by the names that peft gives its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from threegates.checkpoints.adapters.config import COMPUTED, TURNED, TURNED_KINDS, WEIGHTS, AdapterConfig
from threegates.checkpoints.formats.families import table
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.formats.wrappers import unwrapped
from threegates.checkpoints.quantised import COMPARABLE
from threegates.errors import CheckpointError

_PREFIX = "base_model.model."
#: Words of what peft puts around a module; `original_module` is the copy that was not trained.
_WRAPPED, _AROUND, _ASIDE = (
    "base_layer",
    ("base_layer", "token_adapter", "modules_to_save"),
    "original_module",
)
_DOWN, _UP, _UP_BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
_ROWS_DOWN, _ROWS_UP = "lora_embedding_A", "lora_embedding_B"
_MAGNITUDES = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
_TOKENS = "token_adapter.trainable_tokens_delta"
#: A factor's key where the adapter's name was left in it, `lora_A.default.weight`.
_NAMED = re.compile(
    r"(?P<path>.*)\.(?:(?P<side>lora_[AB])\.(?P<name>\w+)\.(?P<end>weight|bias)"
    r"|(?P<rows>lora_embedding_[AB])\.(?P<of_rows>\w+))"
)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """One tensor of the model that an adapter changes, under the name that the model in memory has for it.

    down, up : names of A and B in the adapter's file. turned : the tensor is (in, out). experts : matrices of
    a stack, 0 of a matrix. magnitudes : name of DoRA's m. plain : name of a tensor that takes the place of
    the model's. bias : name of what is added to it, times the scaling. tokens : name of rows that take the
    place of the rows `rows`. starts : whether the adapter's start, if it is not zero, is this tensor's too.
    """

    name: str
    shape: Shape
    down: str = ""
    up: str = ""
    scaling: float = 1.0
    turned: bool = False
    experts: int = 0
    magnitudes: str = ""
    plain: str = ""
    bias: str = ""
    tokens: str = ""
    rows: tuple[int, ...] = ()
    starts: bool = True

    @property
    def adapted(self) -> bool:
        """Whether it has factors."""
        return bool(self.down)


@dataclass(frozen=True)
class _Base:
    """What the base has: shapes by name, as stored and as canonical, and its `model_type`."""

    shapes: Mapping[str, Shape]
    kind: str

    @cached_property
    def stacks(self) -> dict[str, Shape]:
        """Tensors of three axes."""
        return {name: shape for name, shape in self.shapes.items() if len(shape) == 3}

    @cached_property
    def _by_end(self) -> dict[str, set[Shape]]:
        """Shapes of matrices by every end of their names."""
        found: dict[str, set[Shape]] = {}
        for name, shape in self.shapes.items():
            for end in _ends(name) if len(shape) == 2 else ():
                found.setdefault(end, set()).add(shape)
        return found

    def of(self, name: str) -> set[Shape]:
        """Shapes of the matrices that a name may mean, with more in front of it or less."""
        shorter = {self.shapes[end] for end in _ends(name) if len(self.shapes.get(end, ())) == 2}
        return self._by_end.get(name, set()) | shorter


def _ends(name: str) -> Iterator[str]:
    """A name, and what is left of it without its first words."""
    words = name.split(".")
    return (".".join(words[start:]) for start in range(len(words)))


@dataclass
class _Module:
    """What the file has of one module, by the end of the name; `depth` wrappers stand between."""

    ends: dict[str, str] = field(default_factory=dict)
    depth: int = 0


def targets(
    config: AdapterConfig, infos: Mapping[str, TensorInfo], shapes: Mapping[str, Shape], kind: str = ""
) -> dict[str, Target]:
    """What an adapter changes, by name.

    infos : the headers of the adapter's file. shapes : those of the base's tensors, which tell the way round
    that a weight or a stack of experts is stored. kind : `model_type` of the base, for what is square.

    Raises
    ------
    CheckpointError : a tensor of the file has no meaning here, a factor lacks the other one or has another
        rank; or it cannot be told which stack of experts is meant.
    """
    found: dict[str, Target] = {}
    base = _Base(shapes, kind)
    for module, depths in _modules(config, infos).items():
        for one in _of_module(config, infos, module, depths, base):
            found[one.name] = _merged(found.get(one.name), one)
    for one in found.values():
        if one.adapted and config.magnitudes and not (one.magnitudes or one.experts):
            raise CheckpointError(
                f"the adapter has no magnitudes for {one.name}",
                where=f"{config.folder / WEIGHTS}, '{one.down}'",
                expected="lora_magnitude_vector beside A and B, for the config says use_dora",
                found="A and B alone",
                remedy="give the adapter as peft saved it, config and weights of one save",
            )
        if one.adapted and one.tokens:
            raise CheckpointError(
                f"the adapter has factors for {one.name} and replaces rows of it",
                where=f"{config.folder / WEIGHTS}, '{one.tokens}'",
                expected="one of the two",
                found="both",
                remedy="merge the adapter with peft (merge_and_unload), save the model, and give that folder",
            )
    return found


def _merged(known: Target | None, one: Target) -> Target:
    """A weight that is replaced and adapted as well."""
    if known is None:
        return one
    first, second = (known, one) if known.adapted else (one, known)
    kept = {name: value for name, value in vars(second).items() if value and not vars(first)[name]}
    return Target(**(vars(first) | kept | {"starts": first.starts}))


def _modules(config: AdapterConfig, infos: Mapping[str, TensorInfo]) -> dict[str, list[_Module]]:
    """Modules by their path, each with one entry for every wrapper around it, the innermost first."""
    found: dict[str, dict[int, _Module]] = {}
    for key, info in infos.items():
        path, end = _split(config, key)
        words = path.split(".")
        if _ASIDE in words:
            continue
        depth = words.count(_WRAPPED)
        plain = ".".join(word for word in words if word not in _AROUND)
        module = found.setdefault(plain, {}).setdefault(depth, _Module(depth=depth))
        if end in module.ends and end.startswith("lora_"):
            raise CheckpointError(
                f"the file holds two adapters of {plain}",
                where=f"{config.folder / WEIGHTS}, tensor '{key}'",
                expected="one",
                found=f"{module.ends[end]} and {key}",
                remedy="save the one that is meant with peft's save_pretrained(selected_adapters=[…])",
            )
        if info.dtype not in COMPARABLE:
            raise CheckpointError(
                f"the adapter's tensor '{key}' is stored as {info.dtype}",
                where=f"{config.folder / WEIGHTS}, tensor '{key}'",
                expected="one of " + ", ".join(COMPARABLE),
                found=info.dtype,
                remedy="save the adapter unquantised",
            )
        # A copy that was trained counts before one that its wrapper kept.
        if end not in module.ends or "modules_to_save" in words:
            module.ends[end] = key
    return {path: [depths[one] for one in sorted(depths, reverse=True)] for path, depths in found.items()}


def _split(config: AdapterConfig, key: str) -> tuple[str, str]:
    """Path of a module and what its tensor is, from a key of the file."""
    name = key.removeprefix(_PREFIX)
    if named := _NAMED.fullmatch(name):
        return named["path"], f"{named['side']}.{named['end']}" if named["side"] else named["rows"]
    ends = (_DOWN, _UP, _UP_BIAS, _ROWS_DOWN, _ROWS_UP, *_MAGNITUDES, _TOKENS)
    for end in ends:
        if name.endswith(f".{end}"):
            return name.removesuffix(f".{end}"), end
    path, _, last = name.rpartition(".")
    if not path or any(word.startswith("lora_") for word in name.split(".")):
        raise CheckpointError(
            f"the adapter holds a tensor that is not known here: '{key}'",
            where=f"{config.folder / WEIGHTS}, tensor '{key}'",
            expected=f"names that end in {', '.join(ends)}, or whole weights of the model",
            found=key,
            remedy="merge the adapter with peft (merge_and_unload), save the model, and give that folder",
        )
    return path, last


def _of_module(
    config: AdapterConfig,
    infos: Mapping[str, TensorInfo],
    module: str,
    depths: Iterable[_Module],
    base: _Base,
) -> Iterator[Target]:
    adapters = [one for one in depths if _DOWN in one.ends or _UP in one.ends]
    parameters = _parameters_of(config, module)
    if parameters:
        yield from _of_parameters(config, infos, module, adapters, base.stacks)
    else:
        for one in adapters:
            target = _linear(config, infos, module, one)
            turned = _turned(config, target, base)
            yield replace(target, shape=target.shape[::-1], turned=True) if turned else target
    for one in depths:
        yield from _others(config, infos, module, one)


def _others(
    config: AdapterConfig, infos: Mapping[str, TensorInfo], module: str, one: _Module
) -> Iterator[Target]:
    """Embeddings, biases, replaced weights and rows of a module."""
    if _ROWS_DOWN in one.ends or _ROWS_UP in one.ends:
        yield _embedding(config, infos, module, one)
    if _UP_BIAS in one.ends:
        key, rank = one.ends[_UP_BIAS], infos[_factors(config, infos, module, one, (_DOWN, _UP))[0]].shape[0]
        scaling = config.scaling(module, rank)
        yield Target(f"{module}.bias", infos[key].shape, bias=key, scaling=scaling)
    if _TOKENS in one.ends:
        yield _tokens(config, infos, module, one.ends[_TOKENS])
    for end, key in one.ends.items():
        if not (end.startswith("lora_") or end == _TOKENS):
            yield Target(f"{module}.{end}", infos[key].shape, plain=key)


def _linear(config: AdapterConfig, infos: Mapping[str, TensorInfo], module: str, one: _Module) -> Target:
    down, up = _factors(config, infos, module, one, (_DOWN, _UP))
    # A start has no more rows than the weight has triplets, and is scaled by the rank that was asked for.
    rank = config.declared(module) if config.start in COMPUTED else infos[down].shape[0]
    shape = (infos[up].shape[0], infos[down].shape[1])
    scaling = config.scaling(module, rank)
    return Target(f"{module}.weight", shape, down, up, scaling, magnitudes=_magnitudes(one))


def _turned(config: AdapterConfig, target: Target, base: _Base) -> bool:
    """Whether a weight (out, in) is stored (in, out): by the base's shape, of a square one by its family.

    The config has one word for all modules, which is that of the last.
    """
    known = base.of(target.name)
    straight, turned = target.shape in known, target.shape[::-1] in known
    if straight != turned:
        return turned
    if base.kind in TURNED_KINDS:
        return target.name.split(".")[-2] in TURNED
    return config.turned


def _embedding(config: AdapterConfig, infos: Mapping[str, TensorInfo], module: str, one: _Module) -> Target:
    """Of an embedding the factors give (dimension, entries), the weight is the other way round."""
    down, up = _factors(config, infos, module, one, (_ROWS_DOWN, _ROWS_UP))
    rank = infos[down].shape[0]
    shape = (infos[down].shape[1], infos[up].shape[0])
    scaling = config.scaling(module, rank)
    # Whatever the others start from, factors of an embedding start at zero.
    return Target(
        f"{module}.weight", shape, down, up, scaling, True, magnitudes=_magnitudes(one), starts=False
    )


def _magnitudes(one: _Module) -> str:
    return next((one.ends[end] for end in _MAGNITUDES if end in one.ends), "")


def _tokens(config: AdapterConfig, infos: Mapping[str, TensorInfo], module: str, key: str) -> Target:
    bare = unwrapped([module], table().wrappers)[module]
    named = (rows for name, rows in config.tokens.items() if not name or _ends_in(bare, name))
    rows = next(named, ())
    if len(rows) != infos[key].shape[0]:
        raise CheckpointError(
            f"it is not said which rows of {module} the adapter replaces",
            where=f"{config.folder / WEIGHTS}, tensor '{key}'",
            expected=f"{infos[key].shape[0]} numbers in trainable_token_indices",
            found=len(rows),
            remedy="give the adapter as peft saved it, config and weights of one save",
        )
    return Target(f"{module}.weight", infos[key].shape, tokens=key, rows=rows)


def _ends_in(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _factors(
    config: AdapterConfig,
    infos: Mapping[str, TensorInfo],
    module: str,
    one: _Module,
    ends: tuple[str, str],
) -> tuple[str, str]:
    """Names of A and B, which have to be there, be matrices, and fit."""
    where = f"{config.folder / WEIGHTS}, module '{module}'"
    missing = [end for end in ends if end not in one.ends]
    if missing:
        raise CheckpointError(
            f"the adapter of {module} has one factor of two",
            where=where,
            expected=" and ".join(ends),
            found=f"no {missing[0]}",
            remedy="save the adapter anew: a file with half of it was cut short or put together by hand",
        )
    down, up = (one.ends[end] for end in ends)
    first, second = infos[down].shape, infos[up].shape
    flat = len(first) == len(second) == 2 and 0 not in (*first, *second)
    if not flat or first[0] != second[1]:
        raise CheckpointError(
            f"the factors of {module} do not fit one another",
            where=where,
            expected="A (r, in) and B (out, r)",
            found=f"A {list(first)}, B {list(second)}",
            remedy="adapters of convolutions have to be merged; factors without entries were saved before "
            "they were gathered (ZeRO-3, FSDP): gather them and save again",
        )
    return down, up


# --- parameters that are no module's weight: stacks of experts


def _parameters_of(config: AdapterConfig, module: str) -> list[str]:
    """Names of a module's adapted parameters, as the config names them or their ends."""
    last = module.rpartition(".")[2]
    found = []
    for name in config.parameters:
        path, _, parameter = name.rpartition(".")
        if _ends_in(module, path) or (not path and last == "experts"):
            found.append(parameter)
    return found


def _of_parameters(
    config: AdapterConfig,
    infos: Mapping[str, TensorInfo],
    module: str,
    adapters: list[_Module],
    stacks: Mapping[str, Shape],
) -> Iterator[Target]:
    """One target for each wrapper: peft wraps parameters in the order in which their module has them.

    That order is gate and up before down in all models of transformers with stacked experts.
    """
    parameters = sorted(set(_parameters_of(config, module)), key=lambda name: ("down" in name, name))
    if len(parameters) != len(adapters):
        raise CheckpointError(
            f"the adapter of {module} does not fit its config",
            where=f"{config.folder / WEIGHTS}, module '{module}'",
            expected=f"factors for {', '.join(parameters)}",
            found=f"{len(adapters)} pairs of factors",
            remedy="give the adapter as peft saved it, config and weights of one save",
        )
    for parameter, one in zip(parameters, adapters, strict=True):
        yield _stack(config, infos, f"{module}.{parameter}", one, stacks)


def _stack(
    config: AdapterConfig,
    infos: Mapping[str, TensorInfo],
    name: str,
    one: _Module,
    stacks: Mapping[str, Shape],
) -> Target:
    down, up = _factors(config, infos, name, one, (_DOWN, _UP))
    rank = config.declared(name)
    count, rest = divmod(infos[down].shape[0], rank)
    if rest:
        raise CheckpointError(
            f"the factors of {name} do not fit the rank",
            where=f"{config.folder / WEIGHTS}, '{down}'",
            expected=f"rows in multiples of r = {rank}",
            found=infos[down].shape[0],
            remedy="give the adapter as peft saved it, config and weights of one save",
        )
    sides = infos[up].shape[0], infos[down].shape[1]
    if count == 1 and not any(_ends_in(other, name) for other in stacks):
        return Target(name, sides, down, up, config.scaling(name, rank))
    turned = _is_turned(config, name, (count, *sides), stacks)
    shape = (count, *(sides[::-1] if turned else sides))
    return Target(name, shape, down, up, config.scaling(name, rank), turned, count)


def _is_turned(config: AdapterConfig, name: str, shape: Shape, stacks: Mapping[str, Shape]) -> bool:
    """Whether a stack (experts, out, in) is stored (experts, in, out) in the base.

    A square one is as its neighbour is. A base that holds its experts one by one has them the usual way.
    """
    module = name.rpartition(".")[0].rpartition("layers.")[2]
    known = {other: one for other, one in stacks.items() if f"{module}." in other}
    own = [one for other, one in known.items() if _ends_in(other, name.rpartition(".")[2])]
    if not known:
        return False
    if own and shape[1] != shape[2]:
        return own[0] == (shape[0], shape[2], shape[1])
    fused = [one for other, one in known.items() if other.endswith("gate_up_proj")]
    hidden = shape[1] if "down" in name else shape[2]
    if fused and fused[0][1] != fused[0][2]:
        return fused[0][1] == hidden
    raise CheckpointError(
        f"it cannot be told which way round {name} is stored",
        where=f"{config.folder / WEIGHTS}, '{name}'",
        expected="a stack of experts that is not square, or has a neighbour that is not",
        found=f"shape {list(shape)}",
        remedy="merge the adapter with peft (merge_and_unload), save the model, and give that folder",
    )

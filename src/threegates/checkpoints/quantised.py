"""Whether a checkpoint's weights are codes of few bits: one answer for folders, downloads and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from threegates.checkpoints.formats.headers import TensorInfo
from threegates.environment import variable
from threegates.errors import CheckpointError

#: "1" has FP8 codes read as floats: each times its scale.
DEQUANTISE = "THREEGATES_DEQUANTISE"

#: Types of tensors that are weights, in the names of the safetensors format.
COMPARABLE = ("BF16", "F16", "F32", "F64")
#: Last words of the names that quantised checkpoints use for what a weight was packed into.
PACKED = (
    "qweight",
    "qzeros",
    "scales",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "absmax",
    "quant_map",
)
# Masks and numbers of positions: no weights, whatever the model.
_BUFFERS = ("BOOL", "I64")
_CONFIG = "quantization_config"
#: Types of codes that are floats of few bits, of which a weight is one times a scale.
FP8 = ("F8_E4M3", "F8_E5M2")
#: Type of scales that are powers of two.
POWERS = "F8_E8M0"
# After the name of such a tensor: what it is multiplied with, as DeepSeek and as compressed-tensors call it.
_SCALES = ("_scale_inv", "_scale")


def dequantises() -> bool:
    """Whether it was asked that FP8 codes are read as floats."""
    return variable(DEQUANTISE) == "1"


def scales_of(infos: Iterable[TensorInfo]) -> dict[str, str]:
    """Names of FP8 tensors that have scales beside them, and the scales'."""
    known = {info.name: info for info in infos}
    found = {
        name: name + end
        for name, info in known.items()
        for end in _SCALES
        if info.dtype in FP8 and len(info.shape) > 1 and name + end in known
    }
    return {name: scale for name, scale in found.items() if known[scale].dtype in (*COMPARABLE, POWERS)}


def is_code(info: TensorInfo) -> bool:
    """Whether a tensor holds a matrix's codes of few bits."""
    buffer = info.dtype in _BUFFERS or info.name.endswith((".bias", ".masked_bias"))
    return info.dtype not in COMPARABLE and len(info.shape) > 1 and not buffer


def is_scale(name: str) -> bool:
    """Whether a tensor belongs to what a weight was packed into, by its name."""
    return any(word in PACKED for word in name.split(".")[-2:])


def quantised(config: Mapping[str, Any], infos: Iterable[TensorInfo]) -> str | None:
    """How a checkpoint is quantised, such as ``quant_method fp8``; None where most matrices are floats.

    The headers decide: a config may keep a `quantization_config` that its tensors have left behind.
    """
    own = [info for info in infos if info.alias_of is None and len(info.shape) > 1]
    codes = [info for info in own if is_code(info)]
    floats = [info for info in own if info.dtype in COMPARABLE and not is_scale(info.name)]
    if len(codes) <= len(floats):
        return None
    told = f"'{codes[0].name}' is stored as {codes[0].dtype}"
    return f"quant_method {method}, {told}" if (method := _method(config)) else told


def leftover(config: Mapping[str, Any], infos: Iterable[TensorInfo]) -> str | None:
    """The method that a config names though no tensor is a code."""
    if not config.get(_CONFIG) or any(is_code(info) for info in infos):
        return None
    return _method(config) or "no method"


def refuse_quantised(where: object, config: Mapping[str, Any], infos: Iterable[TensorInfo]) -> None:
    """Refuse a checkpoint whose weights are codes, but for those that are to be read as floats.

    Raises
    ------
    CheckpointError : they are; with what to take instead.
    """
    infos = list(infos)
    if dequantises() and scales_of(infos):
        return
    if (found := quantised(config, infos)) is not None:
        raise CheckpointError(
            "the checkpoint is quantised",
            where=where,
            expected="weights stored as " + ", ".join(COMPARABLE),
            found=f"most matrices are codes of few bits: {found}",
            remedy=or_dequantised("take the original repository, from which it was quantised", infos),
        )


def or_dequantised(remedy: str, infos: Iterable[TensorInfo]) -> str:
    """What to do about codes; with the option that reads them, where they can be read."""
    if not scales_of(infos):
        return remedy
    return (
        f"{remedy}; or give --dequantise, which reads each code times its scale: then what is smaller than a "
        "step of the codes cannot be seen, and the answer says how much that is"
    )


def _method(config: Mapping[str, Any]) -> str | None:
    told = config.get(_CONFIG)
    return str(told.get("quant_method") or "") or None if isinstance(told, dict) else None

"""A GPU that is not there: its tensors live on the processor, say that they do not, and refuse the same.

It catches what breaks code on a GPU: operations on tensors of two devices, numpy on a tensor that is not on
the processor, and tensors made on the processor that should be on the device. Numbers are the processor's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
FACTORIES = {
    getattr(torch, name)
    for name in ("tensor", "arange", "zeros", "ones", "empty", "full", "randn", "randint", "randperm", "eye")
}
# Names of methods that a tensor of a GPU has not.
ABSENT = ("numpy", "__array__")


class OnGpu(Tensor):
    """A tensor that is said to be on a GPU."""

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, given=(), options=None) -> Any:
        return _called(function, given, options or {})


class PretendGpu(TorchFunctionMode):
    """While it is on, ``device="cuda"`` is where `OnGpu` tensors are."""

    def __torch_function__(self, function: Callable, types: Any, given=(), options=None) -> Any:
        return _called(function, given, options or {})


def on_gpu(x: Tensor) -> OnGpu:
    """The tensor as one of the GPU."""
    return x.detach().as_subclass(OnGpu)


def _called(function: Callable, given: tuple, options: dict) -> Any:
    name = getattr(function, "__name__", "")
    with torch._C.DisableTorchFunction():
        if name == "__get__" and given and isinstance(given[0], OnGpu):
            return _attribute(function, given)
    tensors = [one for one in _leaves((given, options)) if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, OnGpu)]
    with torch._C.DisableTorchFunction():
        if name == "to":
            return _moved(function, given, options, bool(there))
        if name in ("cpu", "tolist", "item"):
            return function(*map(_plain, given), **options)
        if name in ABSENT and there:
            raise TypeError(f"can't convert cuda:0 device type tensor to numpy ({name})")
        asked = options.get("device")
        goes = bool(there) or (asked is not None and torch.device(asked).type == "cuda")
        if asked is not None and goes:
            if torch.device(asked).type == "cpu" and function in FACTORIES:
                goes = False
            options = options | {"device": CPU}
        if there:
            _check(function, name, given, tensors)
        result = function(*_map(given, _plain), **_map(options, _plain))
        return _map(result, _as_gpu) if goes else result


def _attribute(function: Callable, given: tuple) -> Any:
    name = resolve_name(function) or ""
    if name.startswith("torch.Tensor.device"):
        return GPU
    if name.startswith("torch.Tensor.is_cuda"):
        return True
    if name.startswith("torch.Tensor.is_cpu"):
        return False
    return _map(function(*_map(given, _plain)), _as_gpu)


def _check(function: Callable, name: str, given: tuple, tensors: list[Tensor]) -> None:
    """Scalars of the processor are allowed beside tensors of a GPU, and so are indices into one."""
    strangers = [one for one in tensors if not isinstance(one, OnGpu) and one.dim() > 0]
    index = name in ("__getitem__", "__setitem__") and isinstance(given[0], OnGpu)
    # Writing into a slice copies, whatever the devices; an index that is a tensor does not.
    slices = name == "__setitem__" and not any(isinstance(one, Tensor) for one in _leaves(given[1]))
    if name == "copy_" or slices or (name == "__setitem__" and index):
        return
    if strangers and not index:
        raise RuntimeError(f"expected all tensors on the same device, found cuda:0 and cpu ({name})")


def _moved(function: Callable, given: tuple, options: dict, there: bool) -> Any:
    rest = list(given[1:])
    target: bool | None = None
    for number, one in enumerate(rest):
        if isinstance(one, Tensor):
            target, rest[number] = isinstance(one, OnGpu), _plain(one)
        elif isinstance(one, (str, torch.device)):
            target, rest[number] = torch.device(one).type == "cuda", CPU
    if options.get("device") is not None:
        target = torch.device(options["device"]).type == "cuda"
        options = options | {"device": CPU}
    if isinstance(options.get("other"), Tensor):
        target, options = isinstance(options["other"], OnGpu), options | {"other": _plain(options["other"])}
    result = function(_plain(given[0]), *rest, **options)
    return _as_gpu(result) if (there if target is None else target) else result


def _plain(one: Any) -> Any:
    return one.as_subclass(Tensor) if isinstance(one, OnGpu) else one


def _as_gpu(one: Any) -> Any:
    return one.as_subclass(OnGpu) if isinstance(one, Tensor) and not isinstance(one, OnGpu) else one


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _map(value: Any, change: Callable) -> Any:
    if isinstance(value, dict):
        return {key: _map(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [_map(one, change) for one in value]
    if isinstance(value, tuple):
        mapped = [_map(one, change) for one in value]
        # torch's named results take one sequence, Python's named tuples one argument each.
        if type(value) is tuple or hasattr(value, "_fields"):
            return tuple(mapped) if type(value) is tuple else type(value)(*mapped)
        return type(value)(mapped)
    return change(value)

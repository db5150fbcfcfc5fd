"""Attention in another frame, its function kept: values rotated, heads permuted, and updates taken back.

Tensors are named and laid out as by Hugging Face's Llama, Qwen2 (biases of q, k, v) and Qwen3 (q_norm and
k_norm): rows of q, k, v and columns of o run over heads × head_dim, and query heads share KV heads in order.
Other families may hold parts that these maps do not know (sinks, norms of values); their function may change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import as_generator

ORTHOGONAL_TO = 1e-10
"""Largest |RᵀR − I| of a rotation: float64 reaches it, a rotation that passed through float32 does not."""

AXIS_OF_HEADS = {
    "q_proj.weight": 0,
    "q_proj.bias": 0,
    "k_proj.weight": 0,
    "k_proj.bias": 0,
    "v_proj.weight": 0,
    "v_proj.bias": 0,
    "o_proj.weight": 1,
}
"""Axis of each part that runs over heads × head_dim. o's bias lies in the residual stream and has none."""

VALUES = ("v_proj.weight", "v_proj.bias", "o_proj.weight")
GROUPED = ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias")
HEAD_NORMS = ("q_norm.weight", "k_norm.weight")


@dataclass(frozen=True)
class Heads:
    """Sizes of an attention layer: query heads, KV heads (each read by equally many), entries of a head.

    Raises
    ------
    GeometryError : a size is no integer of at least 1, or kv_heads does not divide heads.
    """

    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        sizes = (self.heads, self.kv_heads, self.head_dim)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise GeometryError("sizes of attention are integers of at least 1", found=sizes)
        if self.heads % self.kv_heads:
            raise GeometryError(
                "query heads do not fall into equal groups",
                expected=f"a multiple of the {self.kv_heads} KV heads",
                found=self.heads,
            )

    @property
    def per_group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @classmethod
    def of(cls, config: Mapping) -> Heads:
        """Sizes as config.json says. Missing or null, kv_heads is heads and head_dim is hidden_size/heads.

        Raises
        ------
        GeometryError : num_attention_heads is missing, head_dim cannot be derived, or as `Heads`.
        """
        heads, head_dim = config.get("num_attention_heads"), config.get("head_dim")
        kv_heads = config.get("num_key_value_heads")
        if not isinstance(heads, int) or heads < 1:
            raise GeometryError(
                "no number of heads", where="num_attention_heads", expected="≥ 1", found=heads
            )
        if head_dim is None:
            head_dim = _equal_share(config.get("hidden_size"), heads)
        return cls(heads, heads if kv_heads is None else kv_heads, head_dim)


def _equal_share(hidden: object, heads: int) -> int:
    if not isinstance(hidden, int) or hidden % heads:
        raise GeometryError(
            "without head_dim the heads share the hidden size equally",
            where="hidden_size",
            expected=f"a multiple of {heads} heads",
            found=hidden,
        )
    return hidden // heads


def haar(size: int, generator: torch.Generator | int) -> Float64[Tensor, "size size"]:
    """Random orthogonal matrix, uniform on O(size): Q diag(sign R_ii) of the QR of a Gaussian matrix.

    Both determinants are equally likely. Without the signs Householder's QR gives the same one every time.

    Raises
    ------
    GeometryError : size < 1.

    **Source** Mezzadri (2007), How to generate random matrices from the classical compact groups.
    """
    if size < 1:
        raise GeometryError("a rotation has at least one axis", expected="≥ 1", found=size)
    source = as_generator(generator)
    normal = torch.randn(size, size, generator=source, device=source.device, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    # Not torch.sign: a diagonal entry of zero would leave a column of zeros.
    return torch.where(r.diagonal() < 0, -q, q)


def hadamard(size: int, generator: torch.Generator | int) -> Float64[Tensor, "size size"]:
    """Randomised Hadamard matrix H diag(s)/√size, H of Sylvester, s random signs: every entry is ±1/√size.

    Raises
    ------
    GeometryError : size is not a power of two.

    **Source** Sylvester (1867); as a rotation of heads QuaRot, Ashkboos et al. (2024), arXiv 2404.00456.
    """
    if size < 1 or size & (size - 1):
        raise GeometryError(
            "no Hadamard matrix of Sylvester's kind has this size",
            expected="a power of two",
            found=size,
            remedy="use a Haar rotation",
        )
    source = as_generator(generator)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=source.device, dtype=torch.float64)
    matrix = torch.ones(1, 1, device=source.device, dtype=torch.float64)
    for _ in range(size.bit_length() - 1):
        matrix = torch.kron(pair, matrix)
    signs = 2 * torch.randint(0, 2, (size,), generator=source, device=source.device) - 1
    return matrix * signs / math.sqrt(size)


def random_order(heads: Heads, generator: torch.Generator | int) -> list[int]:
    """Random order for `permute_heads`: groups permuted, and the query heads inside each.

    Every order that keeps groups whole is equally likely.

    **Source** Fisher and Yates, by torch.randperm.
    """
    source = as_generator(generator)

    def shuffled(count: int) -> list[int]:
        return torch.randperm(count, generator=source, device=source.device).tolist()

    groups = shuffled(heads.kv_heads)
    return [group * heads.per_group + head for group in groups for head in shuffled(heads.per_group)]


def rotate_values(
    tensors: Mapping[str, Tensor], prefix: str, rotation: Float[Tensor, "d d"], heads: Heads
) -> dict[str, Float64[Tensor, ...]]:
    """Rotate what every head passes from values to output, its function kept: V_g' = RᵀV_g, O_h' = O_h R.

    One R for all KV heads (rows of V, its bias too) and so for all query heads (columns of O): a head's
    output becomes RᵀV x, and O R RᵀV = O V. Scores, which q and k make, and singular values of V and O stay.

    Parameters
    ----------
    tensors : by name, weights as out × in; prefix : of an attention, such as "model.layers.1.self_attn.".
    rotation : R, head_dim × head_dim, orthogonal to 1e-10.

    Returns
    -------
    float64 tensors, only those that change: the caller rounds them, once.

    Raises
    ------
    GeometryError : the weight of v or o is missing or does not fit the heads; R has another size or is not
        orthogonal.

    **Source** QuaRot, Ashkboos et al. (2024), §4; the intervention is Zhu et al.'s (2025), Fig. 6.
    """
    _require_weights(tensors, prefix, "vo")
    return _rotated(tensors, prefix, rotation, heads)


def rotate_values_back(
    tensors: Mapping[str, Tensor], prefix: str, rotation: Float[Tensor, "d d"], heads: Heads
) -> dict[str, Float64[Tensor, ...]]:
    """Undo `rotate_values`: the same with Rᵀ. Linear, so it takes updates ΔW to the original frame as well.

    Takes any of the attention's tensors; returns v's and o's, those that are there.

    Raises
    ------
    GeometryError : no tensor of this attention is there, or as `rotate_values`.

    **Source** as `rotate_values`.
    """
    return _rotated(tensors, prefix, rotation.mT, heads)


def permute_heads(
    tensors: Mapping[str, Tensor], prefix: str, order: Sequence[int], heads: Heads
) -> dict[str, Tensor]:
    """Permute heads, the function kept: new head i is old head order[i], in q's rows and o's columns alike.

    Groups move as a whole: rows of k and v are gathered by group. Both sides gather by the same order; o's
    columns gathered by the inverse, as the paper prints it, keep the function where the order is its own
    inverse, not in general. Norms of q and k are shared by all heads and stay.

    Parameters
    ----------
    tensors, prefix : as `rotate_values`; order : permutation of the query heads that maps groups onto groups.

    Returns
    -------
    copies, only of tensors whose heads move, of the dtype they had: gathering moves bits and rounds nothing.

    Raises
    ------
    GeometryError : a weight of q, k, v or o is missing or does not fit the heads; the order is no permutation
        or tears a group apart; a norm of q or k has one entry per head and dimension.

    **Source** Zhu et al. (2025), App. D, with o's side corrected.
    """
    _require_weights(tensors, prefix, "qkvo")
    return _permuted(tensors, prefix, order, heads)


def permute_heads_back(
    tensors: Mapping[str, Tensor], prefix: str, order: Sequence[int], heads: Heads
) -> dict[str, Tensor]:
    """Undo `permute_heads` with the same order, bit for bit; takes updates ΔW and masks back as well.

    Takes any of the attention's tensors; returns its q, k, v and o, as far as they are there.

    Raises
    ------
    GeometryError : no tensor of this attention is there, or as `permute_heads`.

    **Source** as `permute_heads`.
    """
    # The order is checked before inverting: only a permutation has an inverse.
    _group_order(order, heads)
    inverse = sorted(range(heads.heads), key=order.__getitem__)
    return _permuted(tensors, prefix, inverse, heads)


def reframed(
    tensors: Mapping[str, Tensor],
    prefix: str,
    rotation: Float[Tensor, "d d"] | None,
    order: Sequence[int] | None,
    heads: Heads,
) -> dict[str, Tensor]:
    """What an attention's frame changes: values rotated first, then heads permuted; None leaves a step out.

    Raises
    ------
    GeometryError : as `rotate_values` and `permute_heads`.

    **Source** as those.
    """
    changed = {} if rotation is None else rotate_values(tensors, prefix, rotation, heads)
    if order is None:
        return changed
    return changed | permute_heads({**tensors, **changed}, prefix, order, heads)


def _rotated(tensors: Mapping[str, Tensor], prefix: str, rotation: Tensor, heads: Heads) -> dict[str, Tensor]:
    matrix = _orthogonal(rotation, heads.head_dim)

    def turn(split: Tensor, axis: int) -> Tensor:
        # RᵀV and O R are one contraction: of R's rows with the entries of a head.
        entries = split.to(torch.float64).movedim(axis + 1, -1)
        return (entries @ matrix.to(split.device)).movedim(-1, axis + 1)

    found = _by_heads(tensors, prefix, heads)
    return {name: _merge(turn, split, axis) for part, name, split, axis in found if part in VALUES}


def _permuted(
    tensors: Mapping[str, Tensor], prefix: str, order: Sequence[int], heads: Heads
) -> dict[str, Tensor]:
    groups = _group_order(order, heads)
    _require_shared_norms(tensors, prefix, heads)

    def gather(indices: Sequence[int]) -> Callable[[Tensor, int], Tensor]:
        return lambda split, axis: split.index_select(axis, torch.tensor(indices, device=split.device))

    found = _by_heads(tensors, prefix, heads)
    moves = {True: gather(groups), False: gather(list(order))}
    return {name: _merge(moves[part in GROUPED], split, axis) for part, name, split, axis in found}


def _by_heads(
    tensors: Mapping[str, Tensor], prefix: str, heads: Heads
) -> Iterator[tuple[str, str, Tensor, int]]:
    """Part, name, tensor with heads × head_dim split, and axis of heads of everything that is there."""
    if not any(prefix + part in tensors for part in AXIS_OF_HEADS):
        raise GeometryError(
            "no tensor of this attention",
            where=prefix,
            expected=f"one of {', '.join(AXIS_OF_HEADS)}",
            remedy='write the prefix with its last dot, as in "model.layers.1.self_attn."',
        )
    for part, axis in AXIS_OF_HEADS.items():
        name = prefix + part
        if name in tensors:
            count = heads.kv_heads if part in GROUPED else heads.heads
            yield part, name, _split(tensors[name].detach(), name, axis, (count, heads.head_dim)), axis


def _split(tensor: Tensor, name: str, axis: int, sizes: tuple[int, int]) -> Tensor:
    dimensions = 1 if name.endswith("bias") else 2
    if tensor.ndim != dimensions or tensor.shape[axis] != math.prod(sizes):
        raise GeometryError(
            "a tensor does not fit the heads",
            where=name,
            expected=f"{dimensions} dimensions, {sizes[0]} heads × {sizes[1]} along number {axis}",
            found=tuple(tensor.shape),
        )
    return tensor.unflatten(axis, sizes)


def _merge(change: Callable[[Tensor, int], Tensor], split: Tensor, axis: int) -> Tensor:
    return change(split, axis).flatten(axis, axis + 1).contiguous()


def _orthogonal(rotation: Tensor, size: int) -> Tensor:
    """R in float64, if it is a rotation of the entries of one head."""
    if rotation.shape != (size, size):
        raise GeometryError(
            "a rotation does not fit the heads", expected=(size, size), found=tuple(rotation.shape)
        )
    matrix = rotation.detach().to(torch.float64)
    identity = torch.eye(size, device=matrix.device, dtype=torch.float64)
    gap = float((matrix.mT @ matrix - identity).abs().max())
    if not gap <= ORTHOGONAL_TO:
        raise GeometryError(
            "a matrix that is not orthogonal changes the function",
            expected=f"|RᵀR − I| ≤ {ORTHOGONAL_TO}",
            found=gap,
            remedy="keep rotations in float64",
        )
    return matrix


def _group_order(order: Sequence[int], heads: Heads) -> list[int]:
    """Order of KV heads that an order of query heads brings with it."""
    if sorted(order) != list(range(heads.heads)):
        raise GeometryError(
            "an order of heads is a permutation",
            expected=f"each of 0 … {heads.heads - 1} once",
            found=list(order),
        )
    sources = [head // heads.per_group for head in order]
    groups = sources[:: heads.per_group]
    if sources != [group for group in groups for _ in range(heads.per_group)]:
        raise GeometryError(
            "query heads that share a KV head move together",
            expected=f"groups of {heads.per_group} mapped onto groups",
            found=list(order),
            remedy="take an order from random_order",
        )
    return groups


def _require_weights(tensors: Mapping[str, Tensor], prefix: str, modules: str) -> None:
    """Half a change would change the function: every weight that has to move must be there."""
    missing = [name for m in modules if (name := f"{prefix}{m}_proj.weight") not in tensors]
    if missing:
        raise GeometryError(
            "a weight of this attention is missing",
            where=prefix,
            expected=", ".join(missing),
            remedy="give all weights of the attention, and the prefix with its last dot",
        )


def _require_shared_norms(tensors: Mapping[str, Tensor], prefix: str, heads: Heads) -> None:
    for name in (prefix + norm for norm in HEAD_NORMS):
        if name in tensors and tensors[name].shape != (heads.head_dim,):
            raise GeometryError(
                "a norm is not shared by the heads, so it would have to move with them",
                where=name,
                expected=(heads.head_dim,),
                found=tuple(tensors[name].shape),
            )

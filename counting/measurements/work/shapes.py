"""What an op multiplies: its kind, its shape, and the FLOPs that its kernel computes."""

from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from counting.measurements.work.accesses import tensors_in
from counting.work import OpKind


class Multiplied(NamedTuple):
    """How a model of time sees an op that multiplies matrices; the fields are those of `counting.work.Op`."""

    kind: OpKind
    shape: tuple[int, ...]
    computed_flops: int
    dtype: str
    backward: bool = False


_GROUPED = ("_grouped_mm", "grouped_product", "grouped_weight_gradient")
# The position of the left factor among the arguments.
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1, "_addmm_activation": 1}


def multiplied(name: str, flops: int, arguments: dict[str, Any]) -> Multiplied:
    """The kind, shape and computed FLOPs of an op that has FLOPs; `arguments` by the names of its schema.

    An op that is not known here is an `AssertionError`: every op with FLOPs that our modules run is.
    """
    tensors = list(tensors_in(list(arguments.values())))
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    if "attention" in name:
        return _attention(name, flops, arguments, dtype)
    if name == "index_scores":
        return _index_scores(flops, arguments, dtype)
    if name in _GROUPED:
        return Multiplied("grouped_product", _grouped_shape(name, tensors), flops, dtype)
    assert name in _PRODUCTS, f"{name}: an op with FLOPs of no known kind"
    left, right = tensors[_PRODUCTS[name] :][:2]
    batch = left.shape[0] if left.dim() == 3 else 1
    rows, summed = left.shape[-2:]
    return Multiplied("product", (batch, rows, summed, right.shape[-1]), flops, dtype)


def _grouped_shape(name: str, tensors: list[Tensor]) -> tuple[int, ...]:
    """(experts, rows of all experts, summed, columns) of the forms that `grouped_product_flops` has."""
    left, right, *others = tensors
    if name == "grouped_weight_gradient":  # rows (T, k), gradient (T, n), weights, ends
        return others[-1].numel(), left.shape[1], left.shape[0], right.shape[1]
    experts = right.shape[0] if right.dim() == 3 else left.shape[0] if left.dim() == 3 else others[0].numel()
    return experts, prod(left.shape[:-1]) if right.dim() == 3 else left.shape[-2], left.shape[-1], right.shape[-1]


def _index_scores(flops: int, arguments: dict[str, Any], dtype: str) -> Multiplied:
    """The products of each head's queries with the keys, and the weighted sum of them: one kernel, of dense products.

    It computes the pairs that causality leaves.
    """
    sequences, length, heads, channels = arguments["query"].shape
    computed = flops // length**2 * visible_pairs(length, length)
    return Multiplied("product", (sequences, heads * length, channels + 1, length), computed, dtype)


def _attention(name: str, flops: int, arguments: dict[str, Any], dtype: str) -> Multiplied:
    """Attention of (B, H, S, C) heads. FLOPs are counted for each visited pair of query and key.

    A causal kernel computes the pairs of a query with itself and the keys before it. Our op with a window is counted
    for a whole window of keys at each query, with chunks for the square of each, those in the future included, and is
    causal always; so are chosen keys, as many as of a window.
    """
    query, key, value = (arguments[each] for each in ("query", "key", "value"))
    sequences, heads, queries, channels = query.shape
    keys = key.shape[2]
    window, chunk, chosen = (arguments.get(name) for name in ("window", "chunk", "chosen"))
    if chosen is not None:
        window = chosen.shape[-1]
    is_causal = bool(arguments.get("is_causal", "window" in arguments))
    whole, rest = divmod(keys, chunk or keys)
    counted = queries * min(window or keys, keys) if chunk is None else whole * chunk**2 + rest**2
    if not is_causal:
        pairs = counted
    elif chunk is None:
        pairs = visible_pairs(queries, keys, window)
    else:
        pairs = whole * visible_pairs(chunk, chunk) + visible_pairs(rest, rest)
    assert flops % counted == 0, "FLOPs are counted for each pair"
    shape = (sequences, heads, queries, keys, channels, value.shape[-1])
    return Multiplied("attention", shape, flops // counted * pairs, dtype, "backward" in name)


def visible_pairs(queries: int, keys: int, window: int | None = None) -> int:
    """Pairs of a query and a key that causality and a window leave: S (S + 1) / 2 without one, of S queries and keys.

    With a window W below S the first W queries have 1, 2, ..., W keys, the others W: W (W + 1) / 2 + (S - W) W.
    """
    assert queries == keys, "causal attention is of equally many queries and keys"
    width = min(window or keys, keys)
    return width * (width + 1) // 2 + (queries - width) * width

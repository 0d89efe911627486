"""The layout of one model's step: a `Layout` with its open fields set, and every rule checked. Torch-free.

    resolve_layout(Layout(num_gpus=64, fsdp=8), spec, setup)  # dp = 8

`torch_models.layout` checks each field alone. Here the fields are checked with each other, with the model and with the
setup of the step, in this order.
"""

from collections.abc import Callable, Iterable
from functools import partial
from math import gcd, log
from typing import NoReturn

import msgspec

from counting.megatron_rules import check_megatron, check_rounds
from counting.pipeline_rules import check_halves, check_micro_batches, check_stages, with_stages
from counting.setup import Setup, resolve
from torch_models.errors import ArgumentError
from torch_models.layout import DEFAULT_GPUS_PER_NODE, MOST_GPUS, Layout
from torch_models.parallel.checks import (
    NO_PARALLEL_MLP,
    UNDIVIDED_INDEXER,
    Size,
    borrows_evenly,
    by_second_dimension,
    chooses_keys,
    context_length_unit,
    divided_by_tp,
    has_parallel_mlp,
    second_dimensions,
    without_ring_attention,
)
from torch_models.spec import FeedForwardSpec, LayerSpec, MixtureOfExpertsSpec, ModelSpec

MOST_VALUES_LISTED = 8
FACTORS = ("dp", "fsdp", "tp", "cp", "pp")  # the axes whose product is the number of ranks

# Optimisers that are not measured where the states of a parameter are divided -> the reason.
NOT_ON_SHARDS = {
    "adamw-8bit": "runs on no meta device, so no rank can be measured with it",
    "adafactor": "has moments by whole rows and columns, and a rank has a part of them",
    "muon": "orthogonalises whole matrices, and a rank has a part of them",
}


def resolve_layout(layout: Layout, spec: ModelSpec, setup: Setup) -> Layout:
    """`layout` of a step of `spec`, with its open fields set: dp, num_gpus, gpus_per_node, and stage_layers with pp.

    `setup` is resolved for `spec`. dp is what is left of num_gpus; without num_gpus it is 1. Raises `ArgumentError`
    with the field, its value, the rule and the values that obey it.
    """
    layers = [layer for layer, _ in spec.layer_groups()] + list(spec.mtp_layers if setup.mtp else ())
    _check_axes(layout)
    check_stages(layout, spec)
    if layout.framework == "megatron":
        check_megatron(layout, layers, setup)
    _check_setup(setup)
    _check_compiled(layout, setup)
    _check_context_parallel(layout, layers, setup)
    _check_tensor_parallel(layout, spec, layers, setup)
    resolved = with_stages(_with_replicas(layout), spec)
    _check_experts(resolved, [layer.feed_forward for layer in layers])
    if layout.framework == "megatron":
        check_rounds(resolved, setup)
    else:
        check_halves(resolved, setup, spec)
        check_micro_batches(resolved, setup)
    return resolved


def resolve_step(layout: Layout, model: ModelSpec, setup: Setup, *, reserved: bool = False) -> tuple[Setup, Layout]:
    """Setup and layout of one step of `model`, both resolved; with `reserved`, it can be estimated what it reserves."""
    setup = resolve(setup, model, data_ranks=data_ranks_of(layout))
    layout = resolve_layout(layout, model, setup)
    if reserved:
        check_reserved(layout, setup)
    return setup, layout


def data_ranks_of(layout: Layout) -> int:
    """Ranks with different data of a layout that need not be resolved, and may be refused when it is."""
    if layout.dp is None and layout.num_gpus is not None:
        return max(layout.num_gpus // (layout.tp * layout.cp * layout.pp), 1)
    return (layout.dp or 1) * layout.fsdp


# --- The axes alone --------------------------------------------------------------------------------------------------


def _with_replicas(layout: Layout) -> Layout:
    """The layout with dp, num_gpus and gpus_per_node set; num_gpus is the product of the axes."""
    others, asked = layout.fsdp * layout.tp * layout.cp * layout.pp, layout.num_gpus
    dp = layout.dp
    if dp is None:
        dp, rest = divmod(asked or others, others)
        if rest:
            of = _product(layout, FACTORS[1:])
            near = " or ".join(str(number * others) for number in (dp, dp + 1) if number)
            _refuse("num_gpus", asked, f"must be a multiple of {of}: give {near}, or other axes")
    product = dp * others
    of_axes = _product(msgspec.structs.replace(layout, dp=dp), FACTORS)
    if asked is not None and asked != product:
        _refuse("num_gpus", asked, f"must be {of_axes}: leave out dp, or give {product}")
    if product > MOST_GPUS:
        _refuse("num_gpus", product, f"is {of_axes}, and the max is {MOST_GPUS}")
    per_node = layout.gpus_per_node or DEFAULT_GPUS_PER_NODE
    return msgspec.structs.replace(layout, dp=dp, num_gpus=product, gpus_per_node=per_node)


def _product(layout: Layout, axes: tuple[str, ...]) -> str:
    """The axes above 1 with their product, as "fsdp x tp = 8 x 4 = 32"; one axis as "fsdp (8)"."""
    sizes = {axis: getattr(layout, axis) for axis in axes if getattr(layout, axis) > 1}
    if len(sizes) < 2:
        return "".join(f"{axis} ({size})" for axis, size in sizes.items()) or "1, the product of the axes"
    product = 1
    for size in sizes.values():
        product *= size
    return f"{' x '.join(sizes)} = {' x '.join(map(str, sizes.values()))} = {product}"


def _leaves_whole_replicas(layout: Layout, others: int) -> Callable[[int], bool]:
    """Whether a value of an axis leaves a whole number of replicas, where num_gpus is given and dp is open.

    `others` is the product of the other axes.
    """
    asked = layout.num_gpus
    return lambda value: asked is None or layout.dp is not None or asked % (others * value) == 0


def _check_axes(layout: Layout) -> None:
    if layout.zero != 3 and layout.shards == layout.pp == 1 and layout.framework == "torch":
        _refuse("zero", layout.zero, "says what fsdp divides, and fsdp is 1: leave it out, or give fsdp")
    if not layout.sequence_parallel and layout.tp == 1:
        _refuse("sequence_parallel", False, "is a part of tensor parallelism, and tp is 1: leave it out, or give tp")
    if layout.ep == 1 and layout.expert_imbalance != 1:
        rule = "is that of ranks that divide the experts, and ep is 1: leave it out, or give ep"
        _refuse("expert_imbalance", layout.expert_imbalance, rule)
    if layout.ep > 1 and layout.tp > 1:
        _refuse("ep", layout.ep, f"is not measured together with tp ({layout.tp}), which divides each expert: give one")


# --- The step --------------------------------------------------------------------------------------------------------


def _check_setup(setup: Setup) -> None:
    """Raises `ArgumentError` for what is measured on one device, and on ranks not yet."""
    if not setup.precision_recipe.measurable:
        rule = (
            "runs on no meta device, so no rank can be measured with it: give mixed, mixed-fp32-gradients, bf16 or fp32"
        )
        _refuse("precision", setup.precision, rule)
    if reason := NOT_ON_SHARDS.get(setup.optimizer):
        _refuse("optimizer", setup.optimizer, f"{reason}: give adamw, adamw-foreach, sgd or sgd-momentum")
    if setup.zero_gradients != "none":
        _refuse("zero_gradients", setup.zero_gradients, "is not measured on ranks yet: leave it out")


def _check_compiled(layout: Layout, setup: Setup) -> None:
    if setup.execution == "compiled" and layout.framework != "torch":
        _refuse("execution", setup.execution, f"is torch's, and no step of {layout.framework} is run: give eager")


def check_reserved(layout: Layout | None, setup: Setup) -> None:
    """Raises `ArgumentError` where what compiled layers reserve is not modelled; `layout` None is one device."""
    if setup.execution != "compiled":
        return
    if setup.recompute == "selective":
        rule = "is of kernels that run op by op: with compiled layers give none, per_op, full or a number"
        _refuse("recompute", setup.recompute, f"{rule}, or leave out reserved")
    if layout is not None and (axis := _divider_of_compiled(layout)):
        rule = f"what is reserved is modelled of whole layers, and {axis} divides them"
        _refuse("execution", setup.execution, f"{rule}: give eager, or leave out reserved")


def can_reserve(layout: Layout | None, setup: Setup) -> bool:
    """Whether `check_reserved` has nothing to say."""
    try:
        check_reserved(layout, setup)
    except ArgumentError:
        return False
    return True


def _divider_of_compiled(layout: Layout) -> str | None:
    """The axis that divides layers, whose graphs then have collectives; None if there is none."""
    return next((axis for axis in ("tp", "cp", "ep", "pp") if getattr(layout, axis) > 1), None)


# --- The model -------------------------------------------------------------------------------------------------------


def _check_experts(layout: Layout, feed_forwards: Iterable[FeedForwardSpec]) -> None:
    """Raises `ArgumentError` if ep does not divide the experts, or does not go with dp and fsdp."""
    mixtures = [feed_forward for feed_forward in feed_forwards if isinstance(feed_forward, MixtureOfExpertsSpec)]
    ep, shards, token_ranks = layout.ep, layout.shards, layout.token_ranks
    if ep == 1:
        return
    if not mixtures:
        _refuse("ep", ep, "divides experts, and no layer of the model has any: leave it out")
    sizes = [Size("the number of experts", mixture.router.num_experts) for mixture in mixtures]
    of = "fsdp" if layout.cp == 1 else "fsdp x cp"

    borrows = partial(borrows_evenly, layout=layout)
    _check_divides("ep", ep, sizes, borrows)
    if not borrows(ep):
        if ep <= shards:
            rule = f"must divide {of} ({shards}), whose ranks it borrows"
        elif ep > token_ranks:
            rule = f"must be at most dp x {of} ({token_ranks}), whose ranks it borrows"
        elif ep % shards:
            rule = f"must divide {of} ({shards}), whose ranks it borrows, or be a multiple of it"
        else:
            rule = f"must divide dp x {of} ({token_ranks}), whose ranks it borrows"
        _refuse("ep", ep, f"{rule}{_instead(sizes, ep, borrows)}")
    for mixture in mixtures:
        _check_imbalance(layout, mixture)
        if by_second_dimension(mixture.router.num_experts, layout):
            for size in second_dimensions(mixture):
                if size.value % layout.expert_fsdp:
                    rule = (
                        f"leaves {layout.expert_fsdp} ranks of fsdp for {mixture.router.num_experts // ep} experts, so "
                        f"fully_shard divides {size} by {layout.expert_fsdp}, and it takes no uneven parts there"
                    )
                    _refuse("ep", ep, rule)


def _check_imbalance(layout: Layout, mixture: MixtureOfExpertsSpec) -> None:
    """Raises `ArgumentError` if no rank can receive so many rows: a token has one for each expert that it chooses."""
    top_k, on_a_rank = mixture.router.top_k, mixture.router.num_experts // layout.ep
    most = layout.ep * min(top_k, on_a_rank) / top_k
    if layout.expert_imbalance > most:
        rule = f"must be at most {most:g}: a token chooses {top_k} experts, and a rank has {on_a_rank}"
        _refuse("expert_imbalance", layout.expert_imbalance, rule)


def _check_context_parallel(layout: Layout, layers: Iterable[LayerSpec], setup: Setup) -> None:
    """Raises `ArgumentError` if torch's ring attention does not run this attention, or not on equal parts."""
    if layout.cp == 1:
        return
    if setup.kernels != "fused":
        _refuse("kernels", setup.kernels, f"is not run by torch's ring attention (cp {layout.cp}): give fused")
    if setup.mtp and layout.pp > 1:
        rule = (
            f"is not measured with cp ({layout.cp}) and pp ({layout.pp}) together: other ranks have the tokens that "
            "the last stage would predict further from. Set mtp to false"
        )
        _refuse("mtp", True, rule)
    layers = tuple(layers)
    for layer in layers:
        if reason := without_ring_attention(layer):
            rule = f"is torch's ring attention, and attention here has {reason}, which it has not: leave it out"
            _refuse("cp", layout.cp, rule)
    length = Size("the sequence length", setup.micro_batch.length, unit=context_length_unit(layers, 1))
    if length.value % length.unit:
        rule = f"must divide {length}: give a sequence length that is a multiple of {layout.cp * length.unit}"
        _refuse("cp", layout.cp, rule)
    others = layout.fsdp * layout.tp * layout.pp
    _check_divides("cp", layout.cp, [length], _leaves_whole_replicas(layout, others))


def _check_tensor_parallel(layout: Layout, spec: ModelSpec, layers: Iterable[LayerSpec], setup: Setup) -> None:
    """Raises `ArgumentError` if tp does not divide all that it has to."""
    if layout.tp == 1:
        return
    layers = list(layers)
    if has_parallel_mlp(layers):
        _refuse("tp", layout.tp, NO_PARALLEL_MLP)
    if any(map(chooses_keys, layers)):
        _refuse("tp", layout.tp, f"divides attention, but {UNDIVIDED_INDEXER}: leave it out, and give fsdp or ep")
    sizes = divided_by_tp(layers, spec.vocab_size)
    also = _leaves_whole_replicas(layout, layout.fsdp * layout.cp * layout.pp)
    _check_divides("tp", layout.tp, sizes, also)
    of = "the sequence length" if layout.cp == 1 else f"a rank's part of the sequence, of cp {layout.cp}"
    length = Size(of, setup.micro_batch.length // layout.cp)
    if layout.sequence_parallel and length.value % layout.tp:
        instead = _instead([*sizes, length], layout.tp, also)
        rule = f"must divide {length}, which sequence parallelism divides{instead}; or set sequence_parallel to false"
        _refuse("tp", layout.tp, rule)


# --- What divides ----------------------------------------------------------------------------------------------------


def _check_divides(field: str, value: int, sizes: Iterable[Size], also: Callable[[int], bool]) -> None:
    """Raises `ArgumentError` if `value` does not divide a size, with the values that divide all and of which `also`."""
    sizes = list(sizes)
    for size in sizes:
        if size.parts % value:
            _refuse(field, value, f"must divide {size}{_instead(sizes, value, also)}")


def _instead(sizes: Iterable[Size], value: int, also: Callable[[int], bool]) -> str:
    """The values above 1 that divide all sizes, at most `MOST_VALUES_LISTED`, those nearest to `value`."""
    common = gcd(*(size.parts for size in sizes))
    found = [number for number in range(2, common + 1) if common % number == 0 and also(number)]
    nearest = sorted(sorted(found, key=lambda number: abs(log(number / value)))[:MOST_VALUES_LISTED])
    if not nearest:
        return ": nothing but 1 does for all that it divides"
    *others, last = map(str, nearest)
    return f": give {', '.join(others)}{' or ' if others else ''}{last}"


def _refuse(field: str, value: object, rule: str) -> NoReturn:
    raise ArgumentError(field, value, rule)

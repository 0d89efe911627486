"""Variants of a step that need less memory, by formula: other recomputation, and the loss in smaller chunks."""

from collections.abc import Callable, Iterator
from math import ceil

import msgspec

from counting.counts import ModelCounts
from counting.ranks.memory import rank_memory
from counting.ranks.pipeline import PipelineProfile
from counting.ranks.pipeline_memory import pipeline_memory
from counting.ranks.profile import RankProfile, RankShare
from counting.ranks.result import RankAnalysis
from counting.ranks.shallow import shallow
from counting.setup import MOST_CHUNKS, Setup
from counting.step.memory import Alternative, step_memory, with_states
from counting.step.profile import StepProfile
from torch_models.layout import HALVED, Layout
from torch_models.recomputed_layers import unmarked, without_recompute
from torch_models.spec import Kernels, ModelSpec, Recompute
from torch_models.stages import stages_of

ALTERNATIVE_CHUNK = 1024  # tokens per loss chunk in the alternatives that compute the loss in chunks


def step_alternatives(spec: ModelSpec, setup: Setup, counts: ModelCounts) -> tuple[Alternative, ...]:
    """The same step on one device with other recomputation, and with its loss in smaller chunks; cheapest first.

    The states are those of `counts`, on which the witnesses agree. Each variant takes a few milliseconds.
    """
    from counting.formulas.memory import simulate
    from counting.formulas.model import by_formula

    profile = counts.step_profile
    assert profile
    profile, spec = _of_equal_layers(profile, spec)

    def cost(other: Setup) -> tuple[int, int]:
        simulated = simulate(spec, other, step=True).step_profile
        flops = by_formula(spec, other, step=True).training_flops
        assert simulated and flops
        peak_bytes = step_memory(spec, other, with_states(simulated, profile)).peak_bytes
        return peak_bytes, flops.recomputed.total

    return _alternatives(spec, setup, cost)


def _of_equal_layers(profile: StepProfile, spec: ModelSpec) -> tuple[StepProfile, ModelSpec]:
    """The states of layers that are equal but for what is recomputed of them, and the model of these layers."""
    plain = without_recompute(spec)
    known = {unmarked(layer): found for (layer, _), found in zip(spec.layer_groups(), profile.layers, strict=True)}
    layers = tuple(known[layer] for layer, _ in plain.layer_groups())
    return msgspec.structs.replace(profile, layers=layers), plain


def other_setups(setup: Setup) -> list[Setup]:
    """The same step with other recomputation, and with its loss in smaller chunks, where no formula has their peaks."""
    return list(_others(setup, setup.kernels, setup.tokens))


def rank_alternatives(spec: ModelSpec, setup: Setup, layout: Layout, worst: RankAnalysis) -> tuple[Alternative, ...]:
    """The same for the ranks of the class `worst`, under the same layout; where no formula has the peak, its bound."""
    from counting.formulas.layouts import pipeline_by_formula, ranks_by_formula

    def share_of(profile: RankProfile | PipelineProfile) -> RankShare:
        return next(share for share in profile.shares if share.first_rank == worst.first_rank)

    spec = without_recompute(spec)

    def cost(other: Setup) -> tuple[int, int]:
        profile = ranks_by_formula(spec, other, layout)
        memory = rank_memory(shallow(spec), other, profile, share_of(profile), "by formula")
        return memory.peak_bytes, profile.flops.recomputed.total

    def cost_in_pipeline(other: Setup) -> tuple[int, int]:
        profile = pipeline_by_formula(spec, other, layout)[worst.stage]
        if profile.peak_bound_bytes is not None:
            return profile.peak_bound_bytes, profile.flops.recomputed.total
        memory = pipeline_memory(stages_of(spec, layout), other, profile, share_of(profile), "by formula")
        return memory.peak_bytes, profile.flops.recomputed.total

    return _alternatives(spec, setup, cost_in_pipeline if layout.pp > 1 else cost, layout)


def _alternatives(
    spec: ModelSpec, setup: Setup, cost: Callable[[Setup], tuple[int, int]], layout: Layout | None = None
) -> tuple[Alternative, ...]:
    """The variants of each choice of kernels, cheapest first; `cost` returns peak bytes and recomputed FLOPs."""
    found = []
    cp = 1 if layout is None else layout.cp
    halved = layout is not None and layout.schedule in HALVED
    for kernels in _kernels(spec, setup, cp):
        others = []
        for other in _others(setup, kernels, setup.tokens // cp):
            if halved and other.recompute == "per_op":  # torch's selective checkpointing takes one backward pass
                continue
            peak_bytes, recomputed_flops = cost(other)
            others.append(
                Alternative(
                    kernels=kernels,
                    recompute=other.recompute,
                    loss_chunk=other.loss_chunk,
                    peak_bytes=peak_bytes,
                    recomputed_flops=recomputed_flops,
                )
            )
        found += sorted(others, key=lambda other: other.recomputed_flops)
    return tuple(found)


def _kernels(spec: ModelSpec, setup: Setup, cp: int) -> list[Kernels]:
    """The kernels of the setup, and eager ones where query heads share key and value heads.

    Some GPUs have no fused kernel for such heads. Ring attention, with cp, has no eager ones.
    """
    shared = any(layer.shares_key_value_heads for layer, _ in spec.layer_groups())
    eager: list[Kernels] = ["eager"] if setup.kernels == "fused" and shared and cp == 1 else []
    return [setup.kernels, *eager]


def _others(setup: Setup, kernels: Kernels, tokens: int) -> Iterator[Setup]:
    """The setups with these kernels that save memory, without `setup` itself; a rank has `tokens` of a micro-batch."""
    smaller = max(ALTERNATIVE_CHUNK, ceil(setup.tokens / MOST_CHUNKS))
    chunks = [setup.loss_chunk, *([smaller] if min(setup.loss_chunk or tokens, tokens) > smaller else [])]
    setup = msgspec.structs.replace(setup, execution="eager")  # the peaks are of a step that is run op by op
    for recompute in _recomputes(kernels):
        for chunk in chunks:
            other = msgspec.structs.replace(setup, kernels=kernels, recompute=recompute, loss_chunk=chunk)
            if other != setup:
                yield other


def _recomputes(kernels: Kernels) -> tuple[Recompute, ...]:
    """The kinds of recomputation that save memory.

    Of fused kernels, selective recompute saves only the logarithm of each row's sum, 4 bytes per head and token: in the
    bundled models at most about a thousandth of the bytes that a step holds besides its states. Recomputation by
    operation keeps the scores of eager kernels, which selective recompute does not.
    """
    return ("none", "per_op", "full") if kernels == "fused" else ("none", "selective", "full")

"""Words on a layout and its ranks that several reports share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from counting.report.format import counted, integer

if TYPE_CHECKING:
    from counting.analysis import Analysis
    from counting.ranks.result import RankAnalysis
    from counting.setup import Setup
    from torch_models.layout import Layout

MOST_STAGES = 2  # of a rank, with the layers of each

GROUPINGS = {
    "torchtitan": "gathered as by torchtitan",
    "layers": "gathered layer by layer, the rest at once",
}


def axes_in_words(layout: "Layout") -> str:
    """The axes above 1 and what belongs to them, then the ranks of a node."""
    parts = [f"dp {integer(layout.replicas)} (replicas)"] if layout.replicas > 1 else []
    if layout.shards > 1:
        shards = "" if layout.cp == 1 else f", {integer(layout.shards)} shards with cp"
        parts.append(f"fsdp {integer(layout.fsdp)} ({_divided(layout)}{shards})")
    if layout.tp > 1:
        how = "with" if layout.sequence_parallel else "without"
        parts.append(f"tp {integer(layout.tp)} ({how} sequence parallelism)")
    if layout.cp > 1:
        parts.append(f"cp {integer(layout.cp)}")
    if layout.pp > 1:
        parts.append(f"pp {integer(layout.pp)} ({schedule_in_words(layout)})")
    if layout.ep > 1:
        parts.append(f"ep {integer(layout.ep)}")
    if layout.is_sharded and layout.framework == "torch":
        parts.append(GROUPINGS[layout.grouping])
    return ", ".join(parts or ["one rank"]) + f"; {counted(layout.gpus_per_node or 1, 'GPU')} a node"


def _divided(layout: "Layout") -> str:
    """What fsdp divides."""
    return f"ZeRO {layout.zero}" if layout.framework == "torch" else "Megatron-LM's distributed optimiser"


def schedule_in_words(layout: "Layout") -> str:
    """The schedule of a pipeline, and the stages of each of its ranks if they are several."""
    several = "" if layout.stages_per_rank == 1 else f", {layout.stages_per_rank} stages a rank"
    return f"{layout.schedule}{several}"


def stages_in_words(layout: "Layout", numbers: Sequence[int]) -> str:
    """The stages of a rank with their layers, as "stage 3 (layers 12 to 15)"; of many stages, their numbers."""
    counts = layout.stage_layers or ()
    if len(numbers) > MOST_STAGES:
        layers = sum(counts[number] for number in numbers)
        return f"stages {', '.join(map(str, numbers))}, {layers} layers together"
    found = []
    for number in numbers:
        first = sum(counts[:number])
        last = first + counts[number] - 1
        found.append(f"{number} ({f'layer {first}' if first == last else f'layers {first} to {last}'})")
    return f"stage{'' if len(found) == 1 else 's'} {' and '.join(found)}"


def ranks_in_words(ranks: "RankAnalysis", layout: "Layout") -> str:
    """The class of equal ranks by its lowest one, as "rank 0 and 60 equal to it of 64".

    The ranks of cp are equal in all but their memory; that of the one that needs most stands for all.
    """
    if layout.ranks == 1:
        return "the only rank"
    of_context = f", counted as rank {integer(ranks.context_rank)} of cp, which needs most" if layout.cp > 1 else ""
    if ranks.count == layout.ranks:
        return f"{'the only rank' if layout.ranks == 1 else f'all {integer(layout.ranks)} alike'}{of_context}"
    equal = f" and {integer(ranks.count - 1)} equal to it" if ranks.count > 1 else ""
    return f"rank {integer(ranks.first_rank)}{equal} of {integer(layout.ranks)}{of_context}"


def recipe_on_ranks(setup: "Setup", layout: "Layout") -> str:
    """The formats in which a rank stores, gathers and reduces."""
    recipe = setup.precision_recipe
    if layout.framework == "megatron":
        return "16-bit weights, gradients in fp32, fp32 master weights and moments in shards"
    if not layout.is_sharded or not recipe.master_bytes:
        return recipe.description
    return "weights, gradients and moments are stored in fp32, gathered and used in bf16, and gradients reduced in fp32"


def routing_in_words(analysis: "Analysis", layout: "Layout") -> list[str]:
    """What is assumed of the rows that each rank's experts receive; empty for a dense model."""
    if not any(layer.kind.startswith("moe") for layer in analysis.layers):
        return []
    if layout.expert_imbalance == 1:
        return ["balanced routing assumed"]
    return [f"the busiest rank's experts with {layout.expert_imbalance:g} x the mean rows, assumed"]

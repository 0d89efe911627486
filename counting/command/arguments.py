"""From flags to the library's arguments: the setup of a step, the plan of a run, a budget.

For a flag that is not given, the library's default applies.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import structs

from counting.command.amounts import (
    parse_dollars,
    parse_gpus,
    parse_hours,
    parse_mfu,
    parse_num_gpus,
    parse_prices,
    parse_ratio,
    parse_recompute,
    parse_speed,
    parse_tokens,
    parse_watts,
    parse_whole_number,
)
from counting.command.checks import NAME_GPUS, times_a_step
from counting.command.flags.laws import ChosenLaws, parse_laws
from counting.cost.budget import BudgetPlan, plan_budget
from counting.cost.cluster import Cluster, read_cluster
from counting.cost.hardware import Gpu, read_gpus
from counting.cost.run import RunPlan
from counting.setup import MOST_BATCH_TOKENS, Setup
from torch_models.errors import ArgumentError, UserError
from torch_models.layout import Layout

_T = TypeVar("_T")


def setup_of(options: argparse.Namespace) -> Setup:
    """The setup of a training step; fields without a flag keep the library's defaults."""
    return Setup(
        **_given(
            sequence_length=_parsed(options.seq_len, lambda text: parse_whole_number(text, "--seq_len")),
            micro_batch_size=_parsed(
                options.micro_batch_size, lambda text: parse_whole_number(text, "--micro_batch_size")
            ),
            micro_batches=_parsed(options.micro_batches, lambda text: parse_whole_number(text, "--micro_batches")),
            global_batch_tokens=_parsed(
                options.global_batch_tokens, lambda text: parse_tokens(text, "--global_batch_tokens", MOST_BATCH_TOKENS)
            ),
            zero_gradients=options.zero_gradients,
            kernels=options.kernels,
            recompute=_parsed(options.recompute, parse_recompute),
            loss_chunk=_parsed(options.loss_chunk, lambda text: parse_whole_number(text, "--loss_chunk")),
            mtp=_on_or_off(options.mtp),
            clip_gradients=_on_or_off(options.clip_gradients),
            precision=options.precision,
            optimizer=options.optimizer,
            execution=options.execution,
            expandable_segments=options.expandable_segments or None,
        )
    )


def asks_for_reserved(options: argparse.Namespace) -> bool:
    """Whether what the allocator reserves is estimated: by default of a step that is to fit GPUs, or is spread.

    A run and a budget name GPUs too; their step is not the question.
    """
    if options.reserved is not None:
        return bool(options.reserved == "on")
    if options.layout is not None or options.expandable_segments or options.trace_memory is not None:
        return True
    if options.execution == "compiled":
        return True
    named = any(getattr(options, flag) is not None for flag in NAME_GPUS)
    return named and options.tokens is None and options.training_budget is None


def layout_of(options: argparse.Namespace, gpus: Sequence[Gpu], cluster: Cluster | None = None) -> Layout | None:
    """How the step is spread over ranks; None without --layout.

    Ranks of a node are by default those of the cluster, else of the first of `gpus`.
    """
    if options.layout is None:
        return None
    from counting.command.layouts import parse_layout, parse_stage_layers  # few commands need them

    per_node = gpus[0].devices_per_node if gpus else None
    if cluster is not None:
        per_node = cluster.node_size
    if options.gpus_per_node is not None:
        per_node = parse_whole_number(options.gpus_per_node, "--gpus_per_node")
    return Layout(
        **parse_layout(options.layout),
        **_given(
            num_gpus=_parsed(options.num_gpus, parse_num_gpus),
            gpus_per_node=per_node,
            stage_layers=_parsed(options.stage_layers, parse_stage_layers),
            framework=options.framework,
            expert_imbalance=_parsed(options.expert_imbalance, parse_ratio),
        ),
    )


def ignored_fields_of(options: argparse.Namespace) -> tuple[str, ...]:
    """The names of --ignore_fields; empty without that flag."""
    if options.ignore_fields is None:
        return ()
    names = tuple(name.strip() for name in options.ignore_fields.split(","))
    if not all(names):
        raise ArgumentError("--ignore_fields", options.ignore_fields, "must be names of fields, as a,b")
    return names


def cluster_of(options: argparse.Namespace) -> Cluster | None:
    """The cluster in the file of --cluster, with the power limit of --power_watts; None without the former."""
    if options.cluster is None:
        return None
    cluster = read_cluster(options.cluster)
    watts = _power_of(options)
    return cluster if watts is None else structs.replace(cluster, power_watts=watts)


def clusters_of(options: argparse.Namespace, gpus: Sequence[Gpu], cluster: Cluster | None) -> tuple[Cluster, ...]:
    """The clusters on which a step is timed, one for each of `gpus`; empty where its time is not asked for."""
    if not times_a_step(options):
        return ()
    node = _parsed(options.gpus_per_node, lambda text: parse_whole_number(text, "--gpus_per_node"))
    if cluster is not None:
        return (cluster if node is None else structs.replace(cluster, gpus_per_node=node),)
    watts = _power_of(options)
    clusters = (Cluster(gpu=gpu, gpus_per_node=node, power_watts=watts) for gpu in gpus)
    return tuple(structs.replace(one, gpus_per_node=one.node_size) for one in clusters)


def _power_of(options: argparse.Namespace) -> float | None:
    return _parsed(options.power_watts, parse_watts)


def own_gpus(options: argparse.Namespace, cluster: Cluster | None) -> tuple[Gpu, ...]:
    """The GPUs in the file of --gpu_file, or that of --cluster; empty without these flags."""
    if cluster is not None:
        return (cluster.gpu,)
    return () if options.gpu_file is None else read_gpus(options.gpu_file)


def chosen_gpus(options: argparse.Namespace, own: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs of --gpus, else all of `own`; empty if there are neither."""
    return tuple(own) if options.gpus is None else parse_gpus(options.gpus, own=own)


def run_plan_of(options: argparse.Namespace, own: Sequence[Gpu]) -> RunPlan | None:
    """The run that each model is planned for; None without --tokens."""
    if options.tokens is None:
        return None
    gpus, mfu = chosen_gpus(options, own), _parsed(options.mfu, parse_mfu)
    if options.compare and len(gpus) != 1:
        names = ", ".join(gpu.name for gpu in gpus)
        raise UserError(f"--compare needs one GPU, but there are {len(gpus)}: {names}")
    return RunPlan(
        tokens=parse_tokens(options.tokens),
        gpus=gpus,
        **_given(
            num_gpus=_parsed(options.num_gpus, parse_num_gpus),
            mfus=None if mfu is None else (mfu,),
            gpu_hours=_parsed(options.gpu_hours, parse_hours),
            tokens_per_second_per_gpu=_parsed(options.tokens_per_second_per_gpu, parse_speed),
            prices_usd_per_hour=_prices(options, own),
        ),
    )


def laws_of(options: argparse.Namespace) -> ChosenLaws | None:
    """The laws of --scaling_law; None without it."""
    return _parsed(options.scaling_law, parse_laws)


def budget_of(options: argparse.Namespace, own: Sequence[Gpu], laws: ChosenLaws | None) -> BudgetPlan | None:
    """What the budget buys; None without --training_budget."""
    if options.training_budget is None:
        return None
    return plan_budget(
        parse_dollars(options.training_budget),
        **_given(
            gpus=chosen_gpus(options, own) or None,
            num_gpus=_parsed(options.num_gpus, parse_num_gpus),
            mfu=_parsed(options.mfu, parse_mfu),
            scaling_law=laws and laws.followed,
            prices_usd_per_hour=_prices(options, own),
        ),
    )


def beyond_of(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked beyond plain compute: `unique_tokens`, `inference_tokens`, `expansion_rate`; without flag, None."""
    rate = _parsed(options.expansion_rate, parse_ratio)
    if rate is not None:
        from counting.cost.scaling_laws.mixtures import check_expansion_rate  # few commands need it

        check_expansion_rate(rate)
    return {
        "unique_tokens": _parsed(options.unique_tokens, lambda text: parse_tokens(text, "--unique_tokens")),
        "inference_tokens": _parsed(options.inference_tokens, lambda text: parse_tokens(text, "--inference_tokens")),
        "expansion_rate": rate,
    }


def _prices(options: argparse.Namespace, own: Sequence[Gpu]) -> dict[str, float] | None:
    """Dollars per hour by GPU name, from --price or --gpu_prices; None without both."""
    if options.price is not None:
        price = parse_dollars(options.price, "--price")
        return {gpu.name: price for gpu in chosen_gpus(options, own)}
    return _parsed(options.gpu_prices, lambda text: parse_prices(text, own=own))


def _parsed(text: str | None, parse: Callable[[str], _T]) -> _T | None:
    return None if text is None else parse(text)


def _on_or_off(text: str | None) -> bool | None:
    return {"on": True, "off": False}.get(text or "")


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}

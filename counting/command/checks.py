"""Checks of combinations of flags: required flags and contradictions. The values of flags are not checked."""

import argparse
from collections.abc import Collection
from typing import Any

from torch_models.errors import UserError

# Flag -> other flags, at least one of which it requires.
NEEDS = {
    "tokens": ("model_config",),
    "seq_len": ("model_config",),
    "text_only": ("model_config",),
    "kernels": ("model_config",),
    "ignore_fields": ("model_config",),
    "recompute": ("model_config",),
    "mtp": ("model_config",),
    "loss_chunk": ("model_config",),
    "micro_batch_size": ("model_config",),
    "micro_batches": ("model_config",),
    "global_batch_tokens": ("model_config",),
    "zero_gradients": ("model_config",),
    "reserved": ("model_config",),
    "execution": ("model_config",),
    "expandable_segments": ("model_config",),
    "trace_memory": ("model_config",),
    "proof": ("model_config",),
    "gpus": ("model_config", "training_budget"),
    "gpu_file": ("model_config", "training_budget"),
    "cluster": ("model_config",),
    "power_watts": ("model_config",),
    "trace": ("model_config",),
    "mfu": ("training_budget", "tokens"),
    "gpu_prices": ("training_budget", "tokens"),
    "price": ("gpus", "gpu_file", "cluster"),
    "num_gpus": ("training_budget", "tokens", "layout"),
    "layout": ("model_config",),
    "gpus_per_node": ("layout",),
    "stage_layers": ("layout",),
    "framework": ("layout",),
    "expert_imbalance": ("layout",),
    "gpu_hours": ("tokens",),
    "tokens_per_second_per_gpu": ("tokens",),
    "precision": ("model_config",),
    "optimizer": ("model_config",),
    "clip_gradients": ("model_config",),
    "compare": ("tokens",),
    "scaling_law": ("training_budget",),
    "unique_tokens": ("training_budget",),
    "inference_tokens": ("training_budget",),
    "expansion_rate": ("training_budget",),
    "design": ("training_budget",),
    "design_family": ("design",),
    "figure": ("model_config", "training_budget"),
    "figure_size": ("figure",),
    "force": ("design", "trace", "trace_memory", "html", "csv", "figure"),
}

# At most one flag of each row can be given, because they set the same thing.
ALTERNATIVES = (
    ("mfu", "gpu_hours", "tokens_per_second_per_gpu"),
    ("price", "gpu_prices"),
    ("json", "markdown"),
)

# What --layout does not go with -> the reason.
WITHOUT_LAYOUT = {
    "training_budget": "a budget is spent on GPU-hours, however a step is spread",
    "compare": "models are compared by one device's step",
    "published": "published runs are worked out from one device's step",
    "claim": "the claim is worked out from one device's step",
}

# What --cluster does not go with -> the reason.
WITHOUT_CLUSTER = {
    "gpus": "the file names its GPU",
    "gpu_file": "the file has its GPU",
    "training_budget": "a budget takes its utilisation from --mfu",
    "compare": "models are compared by one device's step",
}

NAME_GPUS = ("gpus", "gpu_file", "cluster")
NAME_FILES = ("gpu_file", "cluster", "design", "trace", "trace_memory", "html")
NO_FLAGS = {"plan", "from_plan"}  # options that are not flags of the analysis


def given_flags(options: argparse.Namespace) -> dict[str, Any]:
    """The given flags with their values as typed, in the order of the parser."""
    return {
        flag: value for flag, value in vars(options).items() if value not in (None, False, []) and flag not in NO_FLAGS
    }


def check_flags(options: argparse.Namespace) -> None:
    """Raises UserError if a flag lacks another one that it requires, or if flags contradict each other."""
    given = given_flags(options).keys()
    for flag in NAME_FILES:
        if flag in given and not getattr(options, flag):
            raise UserError(f"--{flag} '': must name a file")
    if options.csv == "":
        raise UserError("--csv '': must name a folder")
    if {"json", "markdown"} <= given:
        raise UserError("give either --json or --markdown: both are all that is printed")
    for flag, others in NEEDS.items():
        if flag in given and not given & set(others):
            raise UserError(f"--{flag} needs {' or '.join(f'--{other}' for other in others)}")
    if not given & {"model_config", "training_budget", "published", "claim"}:
        raise UserError(
            "nothing to do: give --model_config or --training_budget, --published or --claim, or --help for all flags"
        )
    if "tokens" in given and not given & set(NAME_GPUS):
        raise UserError("--tokens needs --gpus: name the GPUs to train on, as --gpus H100")
    for measured in ("gpu_hours", "tokens_per_second_per_gpu"):
        if {"mfu", measured} <= given:
            raise UserError(f"--{measured} determines the MFU: leave out --mfu")
    if {"gpu_hours", "tokens_per_second_per_gpu"} <= given:
        raise UserError("give either --gpu_hours, of a finished run, or --tokens_per_second_per_gpu")
    if {"price", "gpu_prices"} <= given:
        raise UserError("give either --price, for every GPU, or --gpu_prices")
    if "layout" in given:
        for flag, reason in WITHOUT_LAYOUT.items():
            if flag in given:
                raise UserError(f"--layout does not go with --{flag}: {reason}")
    _check_time(options, given)
    if options.reserved == "off":
        for flag in ("execution", "expandable_segments", "trace_memory"):
            if flag in given and not (flag == "execution" and times_a_step(options)):
                raise UserError(f"--{flag} is of what the allocator reserves: leave out --reserved off")
    for flag in ("trace_memory", "trace"):
        if flag in given and len(options.model_config) > 1:
            raise UserError(f"--{flag} writes one file: give --model_config with one config")
    if "compare" in given:
        if len(options.model_config) < 2:
            raise UserError("--compare needs two models or more: give --model_config with several configs")
        for measured in ("gpu_hours", "tokens_per_second_per_gpu"):
            if measured in given:
                raise UserError(f"--compare takes no --{measured}, which belongs to one model's run: give --mfu")


def _check_time(options: argparse.Namespace, given: Collection[str]) -> None:
    """Raises UserError for flags of the time of a step that lack what it needs, or contradict others."""
    for flag, reason in WITHOUT_CLUSTER.items():
        if {"cluster", flag} <= set(given):
            raise UserError(f"--cluster does not go with --{flag}: {reason}")
    if "tokens" in given and "cluster" in given and "layout" not in given:
        raise UserError("--cluster with --tokens needs --layout, which says how each step is spread")
    for flag in ("power_watts", "trace"):
        if flag in given and not set(given) & set(NAME_GPUS):
            raise UserError(f"--{flag} needs --gpus or --cluster: name the GPUs, as --gpus H100")
        if flag in given and not times_a_step(options):
            raise UserError(f"--{flag} is of the time of a step, which a {_other_question(options)} does not ask for")
        if flag in given and options.framework == "megatron":
            raise UserError(
                f"--{flag} is of a step that is run, and --framework megatron is by formula: leave out one of them"
            )


def times_a_step(options: argparse.Namespace) -> bool:
    """Whether it is worked out how long a step takes: where GPUs are named, and the step is the question.

    A budget names GPUs too, and a run without a layout does not say how its steps are spread.
    """
    named = any(getattr(options, flag) is not None for flag in NAME_GPUS)
    if not named or not options.model_config or options.training_budget is not None or options.compare:
        return False
    return options.tokens is None or options.layout is not None


def _other_question(options: argparse.Namespace) -> str:
    if options.training_budget is not None:
        return "budget"
    return "comparison" if options.compare else "run without --layout"

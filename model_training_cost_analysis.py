"""What training a model costs, on the command line and by three functions.

    python3 model_training_cost_analysis.py --model_config deepseek_v3_config.json --seq_len 4096
    python3 model_training_cost_analysis.py --training_budget 5000000 --design my_model_config.json

This file reads flags and passes results on; what it passes on is computed in `counting`.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from counting.analysis import Analysis, analyze
from counting.design import Design
from counting.designed import design_for_budget
from counting.output_file import refuse_unwritable, write_whole
from counting.reconcile import DisagreementError
from counting.scaling_law import DEFAULT_LAW, LAWS
from counting.training_cost import (
    DEFAULT_GPUS,
    DEFAULT_MFU,
    BudgetPlan,
    parse_dollars,
    parse_gpus,
    parse_mfu,
    parse_prices,
    plan_budget,
)
from counting.training_step import TrainingOptions
from torch_models import read_spec
from torch_models.errors import ConfigError, UserError, show_value
from torch_models.spec import Kernels, Recompute

VERSION = "0.1.0"

TRAINING_FLAGS = ("recompute", "mtp", "loss_chunk")

EXIT_USER_ERROR = 2
EXIT_DISAGREEMENT = 3
EXIT_INTERRUPTED = 130


def model_training_cost_analysis_llama(model_config_path: str) -> tuple[int, float, float]:
    """Total parameters, TFLOPs and peak memory in GB of one layer's forward pass, of a Llama config.

    The config is a path, or a name in `configs/`. Batch 1, the config's own sequence length, 16-bit numbers,
    activations checkpointed at layer boundaries, fused kernels.
    """
    return _short_analysis(model_config_path, "llama")


def model_training_cost_analysis_deepseek(model_config_path: str) -> tuple[int, float, float]:
    """As for Llama, of a DeepSeek-V3 config; the layer is the mixture of experts."""
    return _short_analysis(model_config_path, "deepseek_v3")


def get_optimal_N_D_from_cost(cost_budget: float) -> tuple[int, int, float, str]:
    """Optimal parameters N, optimal tokens D, training FLOPs and best GPU for a budget in US dollars."""
    plan = plan_budget(cost_budget)
    return plan.optimal_parameters, plan.optimal_tokens, float(plan.training_flops), plan.best_gpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for what the user can mend, 3 where module and formula differ."""
    try:
        _run(_parser().parse_args(arguments))
    except UserError as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return EXIT_USER_ERROR
    except DisagreementError as error:
        print(f"error: measurement and formula disagree\n{error}", file=sys.stderr)
        return EXIT_DISAGREEMENT
    return 0


def command() -> NoReturn:
    """Run `main` and leave at once: taking torch's modules apart would take longer than most analyses."""
    _write_what_the_terminal_can()
    try:
        status = main()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # a reader such as head has seen enough, or --help has been printed
        status = 0
    except OSError as error:
        print(f"error: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _write_what_the_terminal_can() -> None:
    """A character that the output's encoding lacks becomes a question mark; a closed output swallows what it gets."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _short_analysis(model_config_path: str, family: str) -> tuple[int, float, float]:
    spec = read_spec(model_config_path)
    if spec.model_type != family:
        raise ConfigError("model_type", spec.model_type, f"this function is for {family}", str(model_config_path))
    analysis = analyze(spec)
    layer = analysis.main_layer
    return analysis.parameters.total, layer.forward_tflops, layer.peak_memory_gb


def _run(options: argparse.Namespace) -> None:
    if not options.model_config and options.training_budget is None:
        raise UserError("nothing to do: give --model_config or --training_budget, or --help for all flags")
    budget_flags = ("design", "gpus", "mfu", "gpu_prices", "scaling_law")
    for flag in budget_flags:
        if getattr(options, flag) is not None and options.training_budget is None:
            raise UserError(f"--{flag} needs --training_budget")
    for flag in ("seq_len", "kernels", *TRAINING_FLAGS):
        if getattr(options, flag) is not None and not options.model_config:
            raise UserError(f"--{flag} needs --model_config")
    if options.force and options.design is None:
        raise UserError("--force needs --design")

    plan = None if options.training_budget is None else _plan(options)
    if options.design is not None:
        refuse_unwritable(options.design, overwrite=options.force)
    sequence_length = None if options.seq_len is None else _whole_number(options.seq_len, "--seq_len")
    training = _training_options(options)
    analyses = [
        analyze(config, sequence_length=sequence_length, kernels=options.kernels or "fused", training=training)
        for config in options.model_config
    ]
    design = None
    if plan is not None and options.design is not None:
        design = design_for_budget(plan, name=Path(options.design).stem)
        write_whole(options.design, design.config_json(), overwrite=options.force)
    _print(options, analyses, plan, design)


def _training_options(options: argparse.Namespace) -> TrainingOptions | None:
    """How to run a training step; None where no flag asks for one."""
    if all(getattr(options, flag) is None for flag in TRAINING_FLAGS):
        return None
    return TrainingOptions(
        recompute=options.recompute or "none",
        mtp=None if options.mtp is None else options.mtp == "on",
        loss_chunk=None if options.loss_chunk is None else _whole_number(options.loss_chunk, "--loss_chunk"),
    )


def _plan(options: argparse.Namespace) -> BudgetPlan:
    return plan_budget(
        parse_dollars(options.training_budget),
        gpus=DEFAULT_GPUS if options.gpus is None else parse_gpus(options.gpus),
        mfu=DEFAULT_MFU if options.mfu is None else parse_mfu(options.mfu),
        scaling_law=DEFAULT_LAW.name if options.scaling_law is None else options.scaling_law,
        prices_usd_per_hour=None if options.gpu_prices is None else parse_prices(options.gpu_prices),
    )


def _print(
    options: argparse.Namespace, analyses: Sequence[Analysis], plan: BudgetPlan | None, design: Design | None
) -> None:
    from counting import report

    if options.json:
        print(report.json_document(analyses, plan, design))
        return
    print(report.plain_text(analyses, plan))
    for analysis in analyses:
        report.print_analysis(analysis)
    if plan is not None:
        report.print_budget(plan)
    if design is not None:
        report.print_design(design, options.design)


def _whole_number(text: str, flag: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise UserError(f"{flag} = {show_value(text)}: must be a whole number")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error; argparse would print the usage before it."""
        raise UserError(f"{message}; --help lists the flags")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="model_training_cost_analysis",
        allow_abbrev=False,
        description="What training a model costs: parameters, FLOPs, memory, and the best model for a budget. Every "
        "number is measured on real modules on the meta device and proven equal to a closed-form formula.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")

    model = parser.add_argument_group("a model")
    model.add_argument(
        "--model_config",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONFIG",
        help="config.json in Hugging Face's format: a path, or a name in configs/; several are analysed in turn",
    )
    model.add_argument("--seq_len", metavar="TOKENS", help="sequence length; else the config's own")
    model.add_argument("--kernels", choices=get_args(Kernels), help="fused (default): no S x S matrix in memory")

    step = parser.add_argument_group("a training step of the model; any of these measures one, forward and backward")
    step.add_argument("--recompute", choices=get_args(Recompute), help="what backward computes again; default none")
    step.add_argument("--mtp", choices=("on", "off"), help="multi-token prediction; default on where the config has it")
    step.add_argument("--loss_chunk", metavar="TOKENS", help="tokens whose logits are in memory at a time; default all")

    budget = parser.add_argument_group("a budget")
    budget.add_argument("--training_budget", metavar="USD", help="dollars to spend on training")
    budget.add_argument("--gpus", metavar="GPUS", help=f"GPUs to choose from; default {','.join(DEFAULT_GPUS)}")
    budget.add_argument("--gpu_prices", metavar="PRICES", help="dollars per hour, as H100=2.10,L4=0.70")
    budget.add_argument("--mfu", metavar="SHARE", help=f"model FLOPs utilisation in (0, 1]; default {DEFAULT_MFU}")
    laws = ", ".join(law.name for law in LAWS)
    budget.add_argument("--scaling_law", metavar="LAW", help=f"one of {laws}; default {DEFAULT_LAW.name}")
    budget.add_argument("--design", metavar="FILE", help="design a model for the budget and write its config to FILE")
    budget.add_argument("--force", action="store_true", help="let --design replace FILE")
    return parser


if __name__ == "__main__":
    command()

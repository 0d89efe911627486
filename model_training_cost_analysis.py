"""What training a model costs, on the command line and by three functions.

    python3 model_training_cost_analysis.py --model_config deepseek_v3_config.json --seq_len 4096
    python3 model_training_cost_analysis.py --training_budget 5000000 --design my_model_config.json

This file reads flags and passes results on; what it passes on is computed in `counting`.
"""

import argparse
import contextlib
import gc
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from counting.analysis import Analysis, analyze
from counting.command.amounts import parse_hours, parse_num_gpus, parse_tokens
from counting.command.output_file import refuse_unwritable, write_whole
from counting.cost.budget import (
    DEFAULT_GPUS,
    DEFAULT_MFU,
    BudgetPlan,
    parse_dollars,
    parse_gpus,
    parse_mfu,
    parse_prices,
    plan_budget,
)
from counting.cost.budget_on_model import spend_on
from counting.cost.comparison import compare
from counting.cost.conventions import trains_mtp
from counting.cost.design_for_budget import design_for_budget
from counting.cost.run import MFU_RANGE, RunPlan, plan_run
from counting.cost.scaling_laws import DEFAULT_LAW, LAWS
from counting.published.claim import examine_claim
from counting.published.runs import examine_published_runs
from counting.recipes import (
    DEFAULT_OPTIMIZER,
    DEFAULT_PRECISION,
    OPTIMIZERS,
    PRECISIONS,
    Optimizer,
    Precision,
    find_optimizer,
    find_precision,
)
from counting.reconcile import DisagreementError
from counting.report.model import Results, json_document
from counting.training_step import TrainingOptions
from torch_models import read_spec
from torch_models.errors import ConfigError, UserError, show_value
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.spec import Kernels, Recompute

VERSION = "0.1.0"

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
    """Run `main` and leave at once: taking torch's modules apart would take longer than most analyses.

    Nor are cycles collected on the way, which would take time and find little.
    """
    gc.disable()
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


# Flag -> the flags without one of which it would mean nothing.
NEEDS = {
    "tokens": ("model_config",),
    "seq_len": ("model_config",),
    "kernels": ("model_config",),
    "recompute": ("model_config",),
    "mtp": ("model_config",),
    "loss_chunk": ("model_config",),
    "gpus": ("training_budget", "tokens"),
    "mfu": ("training_budget", "tokens"),
    "gpu_prices": ("training_budget", "tokens"),
    "price": ("gpus",),
    "num_gpus": ("tokens",),
    "global_batch_tokens": ("tokens",),
    "gpu_hours": ("tokens",),
    "precision": ("model_config",),
    "optimizer": ("model_config",),
    "compare": ("tokens",),
    "scaling_law": ("training_budget",),
    "design": ("training_budget",),
    "force": ("design",),
}


def _check_flags(options: argparse.Namespace) -> None:
    given = {flag for flag, value in vars(options).items() if value not in (None, False, [])}
    for flag, others in NEEDS.items():
        if flag in given and not given.intersection(others):
            raise UserError(f"--{flag} needs {' or '.join(f'--{other}' for other in others)}")
    if not given & {"model_config", "training_budget", "published", "claim"}:
        raise UserError(
            "nothing to do: give --model_config or --training_budget, --published or --claim, or --help for all flags"
        )
    if "tokens" in given and "gpus" not in given:
        raise UserError("--tokens needs --gpus: say what to train on, as --gpus H100")
    if {"mfu", "gpu_hours"} <= given:
        raise UserError("--gpu_hours says what the MFU was: leave out --mfu")
    if {"price", "gpu_prices"} <= given:
        raise UserError("give either --price, for every GPU, or --gpu_prices")


def _run(options: argparse.Namespace) -> None:
    _check_flags(options)
    plan = None if options.training_budget is None else _budget(options)
    run_plan = None if options.tokens is None else _run_plan(options)
    if options.design is not None:
        refuse_unwritable(options.design, overwrite=options.force)
    analyses = [_analysis(config, options) for config in options.model_config]
    if options.mtp == "on" and not any(trains_mtp(analysis) for analysis in analyses):
        raise UserError(
            "--mtp = on: no model here has multi-token prediction (num_nextn_predict_layers); leave it out or say off"
        )
    compared = run_plan is not None and options.compare
    results = Results(
        analyses=analyses,
        runs=[plan_run(analysis, run_plan) for analysis in analyses] if run_plan and not compared else [],
        comparison=compare(analyses, run_plan) if run_plan and compared else None,
        plan=plan,
        spent=[spend_on(analysis, plan, options.mtp != "off") for analysis in analyses] if plan else [],
        design=design_for_budget(plan, name=Path(options.design).stem) if plan and options.design is not None else None,
        published=examine_published_runs() if options.published else None,
        claim=examine_claim() if options.claim else None,
    )
    if results.design is not None:
        write_whole(options.design, results.design.config_json(), overwrite=options.force)
    if options.json:
        print(json_document(results))
    else:
        _print(results, options.design)


def _analysis(config: str, options: argparse.Namespace) -> Analysis:
    """What one model costs, a training step included; none is measured of a model that goes through transformers."""
    model = read_model(config)
    foreign = isinstance(model, ForeignConfig)
    if foreign and (flags := _flags_of_a_step_alone(options)):
        raise UserError(
            f"{config}: {model.model_type or 'its family'} goes through transformers, and no training step of it is "
            f"measured: leave out {', '.join(f'--{flag}' for flag in flags)}"
        )
    return analyze(
        model,
        sequence_length=None if options.seq_len is None else _whole_number(options.seq_len, "--seq_len"),
        kernels=options.kernels or "fused",
        training=None if foreign else _training_options(options),
    )


def _flags_of_a_step_alone(options: argparse.Namespace) -> list[str]:
    """The flags given that mean nothing without a step; a run has a precision and an optimiser too."""
    flags = ["recompute", "loss_chunk"] + ([] if options.tokens else ["precision", "optimizer"])
    return [flag for flag in flags if getattr(options, flag) is not None]


def _training_options(options: argparse.Namespace) -> TrainingOptions:
    """How to run a training step; multi-token prediction is trained where a config has it, unless it is off."""
    return TrainingOptions(
        recompute=options.recompute or "none",
        mtp=False if options.mtp == "off" else None,
        loss_chunk=None if options.loss_chunk is None else _whole_number(options.loss_chunk, "--loss_chunk"),
        precision=_precision(options),
        optimizer=_optimizer(options),
    )


def _budget(options: argparse.Namespace) -> BudgetPlan:
    return plan_budget(
        parse_dollars(options.training_budget),
        gpus=DEFAULT_GPUS if options.gpus is None else parse_gpus(options.gpus),
        mfu=DEFAULT_MFU if options.mfu is None else parse_mfu(options.mfu),
        scaling_law=DEFAULT_LAW.name if options.scaling_law is None else options.scaling_law,
        prices_usd_per_hour=_prices(options),
    )


def _run_plan(options: argparse.Namespace) -> RunPlan:
    default_mfus = (DEFAULT_MFU,) if options.compare else MFU_RANGE
    batch = options.global_batch_tokens
    return RunPlan(
        tokens=parse_tokens(options.tokens),
        gpus=parse_gpus(options.gpus),
        num_gpus=None if options.num_gpus is None else parse_num_gpus(options.num_gpus),
        mfus=default_mfus if options.mfu is None else (parse_mfu(options.mfu),),
        gpu_hours=None if options.gpu_hours is None else parse_hours(options.gpu_hours),
        prices_usd_per_hour=_prices(options),
        global_batch_tokens=None if batch is None else parse_tokens(batch, "--global_batch_tokens"),
        mtp=options.mtp != "off",
        precision=_precision(options),
        optimizer=_optimizer(options),
    )


def _precision(options: argparse.Namespace) -> Precision:
    return DEFAULT_PRECISION if options.precision is None else find_precision(options.precision)


def _optimizer(options: argparse.Namespace) -> Optimizer:
    return DEFAULT_OPTIMIZER if options.optimizer is None else find_optimizer(options.optimizer)


def _prices(options: argparse.Namespace) -> dict[str, float]:
    if options.price is not None:
        return dict.fromkeys(parse_gpus(options.gpus), parse_dollars(options.price, "--price"))
    return {} if options.gpu_prices is None else parse_prices(options.gpu_prices)


def _print(results: Results, design_path: str | None) -> None:
    """The tables; a comparison stands for the models that it compares."""
    from counting.report.model import model as report
    from counting.report.model import published as report_published
    from counting.report.model import run as report_run

    analyses = results.analyses if results.comparison is None else ()
    if analyses or results.plan is not None:
        print(report.plain_text(analyses, results.plan))
    for analysis in analyses:
        report.print_analysis(analysis)
    if results.comparison is not None:
        report_run.print_comparison(results.comparison)
    for run in results.runs:
        report_run.print_run(run)
    if results.plan is not None:
        report.print_budget(results.plan)
        for spent in results.spent:
            report_run.print_budget_on_model(spent, results.plan)
    if results.design is not None and design_path is not None:
        report.print_design(results.design, design_path)
    if results.published is not None:
        report_published.print_published(results.published)
    if results.claim is not None:
        report_published.print_claim(results.claim)


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
        description="What training a model costs: parameters, FLOPs, memory, hours, dollars, and the best model for a "
        "budget. Numbers are measured on real modules on the meta device and held against closed-form formulas; where "
        "there is no formula, it says so.",
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

    step = parser.add_argument_group(
        "a training step of the model, forward and backward; the last three are a run's, too"
    )
    step.add_argument("--recompute", choices=get_args(Recompute), help="what backward computes again; default none")
    step.add_argument("--loss_chunk", metavar="TOKENS", help="tokens whose logits are in memory at a time; default all")
    step.add_argument("--mtp", choices=("on", "off"), help="multi-token prediction; default on where the config has it")
    recipes, optimizers = (", ".join(entry.name for entry in known) for known in (PRECISIONS, OPTIMIZERS))
    step.add_argument("--precision", metavar="RECIPE", help=f"one of {recipes}; default {DEFAULT_PRECISION.name}")
    step.add_argument("--optimizer", metavar="NAME", help=f"one of {optimizers}; default {DEFAULT_OPTIMIZER.name}")

    machines = parser.add_argument_group("machines, for a run or a budget")
    machines.add_argument(
        "--gpus", metavar="GPUS", help=f"as H100,B200; of a budget by default {','.join(DEFAULT_GPUS)}"
    )
    machines.add_argument("--gpu_prices", metavar="PRICES", help="dollars per hour, as H100=2.10,L4=0.70")
    machines.add_argument("--price", metavar="USD", help="dollars per hour of every GPU that --gpus names")
    mfu_range = f"{MFU_RANGE[0]} to {MFU_RANGE[-1]}"
    machines.add_argument(
        "--mfu",
        metavar="SHARE",
        help=f"model FLOPs utilisation, at most 1; default {DEFAULT_MFU} of a budget, {mfu_range} of a run",
    )

    run = parser.add_argument_group("a run")
    run.add_argument("--tokens", metavar="TOKENS", help="train each model on so many, as 15T, 300B or 2000000")
    run.add_argument("--num_gpus", metavar="GPUS", help="how many, for days and tokens per second")
    run.add_argument("--global_batch_tokens", metavar="TOKENS", help="tokens per step, for the number of steps")
    run.add_argument("--gpu_hours", metavar="HOURS", help="published hours, as 2.664M: what MFU do they imply?")
    run.add_argument("--compare", action="store_true", help="several models side by side, on one GPU")

    published = parser.add_argument_group("published runs")
    published.add_argument("--published", action="store_true", help="published training bills, reproduced")
    published.add_argument("--claim", action="store_true", help="was DeepSeek-V3 trained for $5.576 million?")

    budget = parser.add_argument_group("a budget")
    budget.add_argument("--training_budget", metavar="USD", help="dollars to spend on training")
    laws = ", ".join(law.name for law in LAWS)
    budget.add_argument("--scaling_law", metavar="LAW", help=f"one of {laws}; default {DEFAULT_LAW.name}")
    budget.add_argument("--design", metavar="FILE", help="design a model for the budget and write its config to FILE")
    budget.add_argument("--force", action="store_true", help="let --design replace FILE")
    return parser


if __name__ == "__main__":
    command()

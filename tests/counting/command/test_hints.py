"""The library's errors in the command's words; a library user's own are without a flag."""

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from counting.analysis import analyze
from counting.command.fit.command import fit_parser
from counting.command.flags import flags_parser
from counting.command.hints import FLAGS, HINTS, error_line
from counting.cost.beyond_compute import beyond_compute
from counting.cost.budget import plan_budget
from counting.cost.cluster import Cluster
from counting.cost.comparison import compare
from counting.cost.design import design_model
from counting.cost.fit import fit_law
from counting.cost.fit.columns import find_columns
from counting.cost.hardware import find_gpu
from counting.cost.run import RunPlan, plan_run
from counting.cost.step_time import check_cluster
from counting.layout import resolve_layout
from counting.setup import Setup, resolve
from tests.counting.cost.fit.known_law import runs_of
from tests.foreign_families import GPT2
from tests.shrunken import LLAMA
from torch_models.errors import ArgumentError, ConfigError, UserError
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout

FLAG = re.compile(r"(?<![\w-])--[A-Za-z]")
SHORT = Setup(sequence_length=16)


def run(*, batch: int | None = None, **arguments: object) -> object:
    plan = RunPlan(**{"tokens": 10**9, "gpus": ("H100",)} | arguments)  # type: ignore[arg-type]
    return plan_run(analyze(LLAMA, msgspec.structs.replace(SHORT, global_batch_tokens=batch), step=False), plan)


def spread(*, length: int = 16, **axes: Any) -> object:
    spec = spec_from_fields(LLAMA, "small")
    return resolve_layout(Layout(**axes), spec, resolve(Setup(sequence_length=length), spec))


def without_a_length() -> object:
    return analyze({field: value for field, value in LLAMA.items() if field != "max_position_embeddings"})


def without_links(gpus_per_node: int) -> None:
    gpu = msgspec.structs.replace(find_gpu("H100"), name="Ours", rates=None)
    check_cluster(Cluster(gpu=gpu, gpus_per_node=gpus_per_node), Setup(), Layout(num_gpus=2, dp=1, fsdp=2))


# What a user of the library does -> what the command says of it.
ERRORS: list[tuple[Callable[[], object], str]] = [
    (lambda: Setup(sequence_length=0), "--seq_len = 0: must be a whole number of tokens from 1 to 16777216"),
    (lambda: Setup(micro_batch_size=0), "--micro_batch_size = 0: must be a whole number of sequences from 1 to"),
    (lambda: Setup(micro_batches=0), "--micro_batches = 0: must be a whole number of micro-batches from 1 to"),
    (lambda: Setup(zero_gradients="all"), "--zero_gradients = 'all': must be one of none, in_place"),  # type: ignore[arg-type]
    (lambda: Setup(expandable_segments=1), "--expandable_segments = 1: must be true or false"),  # type: ignore[arg-type]
    (lambda: Setup(kernels="flash"), "--kernels = 'flash': must be one of fused, eager"),  # type: ignore[arg-type]
    (lambda: Setup(recompute="most"), "--recompute = 'most': must be one of "),  # type: ignore[arg-type]
    (lambda: Setup(loss_chunk=-1), "--loss_chunk = -1: must be a whole number of tokens"),
    (lambda: analyze(LLAMA, Setup(mtp=True)), "--mtp = on: "),
    (lambda: Setup(precision="fp4"), "--precision = 'fp4': is not known: choose from mixed"),
    (lambda: Setup(clip_gradients="1.0"), "--clip_gradients = '1.0': must be true or false"),  # type: ignore[arg-type]
    (lambda: Setup(optimizer="lion"), "--optimizer = 'lion': is not known: choose from adamw"),
    (lambda: plan_budget(5e6, gpus=("A100", "a100")), "--gpus = 'A100,a100': names A100 twice"),
    (
        lambda: plan_budget(5e6, gpus=("L4",)),
        "no price is known for L4: give one in US dollars per hour, as --gpu_prices L4=2.50",
    ),
    (
        lambda: plan_budget(5e6, gpus=(msgspec.structs.replace(find_gpu("L4"), name="Our GPU"),)),
        'no price is known for Our GPU: give one in US dollars per hour, as --gpu_prices "Our GPU=2.50"',
    ),
    (
        lambda: plan_budget(5e6, prices_usd_per_hour={"H100": 2.0}),
        "--gpu_prices = 'H100': a price is given for H100, but the GPUs considered are A100, V100, T4",
    ),
    (lambda: plan_budget(5e6, gpus=("K80",)), "--gpus = 'K80': is not known: choose from V100"),
    (lambda: plan_budget(5e6, prices_usd_per_hour={"K80": 2.0}), "--gpu_prices = 'K80': is not known: choose from"),
    (lambda: plan_budget(5e6, scaling_law="chinchilla"), "--scaling_law = 'chinchilla': is not known: choose from"),
    (lambda: plan_budget(5e6, mfu=1.5), "--mfu = 1.5: must be a number from 1e-06 to 1"),
    (lambda: plan_budget(0), "--training_budget = 0: must be a number of US dollars from 0.01 to 1e+15"),
    (lambda: run(tokens=0), "--tokens = 0: must be a whole number, at least 1"),
    (lambda: run(num_gpus=0), "--num_gpus = 0: must be a whole number, at least 1"),
    (lambda: run(gpu_hours=1e-9), "--gpu_hours = 1e-09: the claim is impossible: "),
    (
        lambda: run(tokens_per_second_per_gpu=10**12),
        "--tokens_per_second_per_gpu = 1000000000000: the claim is impossible: ",
    ),
    (
        lambda: run(batch=16 * 10**9),
        "--tokens = 1000000000: must be at least those of one step, 16000000000",
    ),
    (lambda: Setup(global_batch_tokens=0), "--global_batch_tokens = 0: must be a whole number of tokens from 1 to"),
    (
        lambda: check_cluster(Cluster(gpu=find_gpu("T4")), Setup(), None),
        "--gpus = 'T4': has no rates in the catalogue, and no GPU of its architecture (Turing) has any: give "
        '"rates" in a --cluster file',
    ),
    (lambda: compare([], RunPlan(tokens=1, gpus=("H100",))), "analyses = 0: a comparison needs two models or more"),
    (
        lambda: analyze(LLAMA, ignore_fields=("hidden_size",)),
        "--ignore_fields = 'hidden_size': is understood, and what is understood is not ignored",
    ),
    (
        lambda: analyze(LLAMA | {"of_the_future": 1}),
        "of_the_future = 1: this field is not understood; if it does not change the architecture, name it in --ignore_",
    ),
    (
        lambda: analyze({"model_type": "gpt_bigcode", **GPT2}, Setup(sequence_length=65)),
        "config: n_positions = 64: a sequence of 65 tokens is longer, and the table of positions has no more rows; "
        "give --seq_len, of at most 64",
    ),
    (
        lambda: analyze({"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 64}}),
        "model_type = 'llava': is made of several models (text_config, vision_config), and only text decoders are "
        "measured; for its text part alone give --text_only",
    ),
    (lambda: Setup(expandable_segments="yes"), "--expandable_segments = 'yes': must be true or false"),  # type: ignore[arg-type]
    (lambda: analyze(LLAMA, step=False, reserved=True), "--reserved = true: is of a training step: give step too"),
    (lambda: Layout(fsdp=0), "--layout fsdp=0: must be a whole number from 1 to 1048576"),
    (lambda: Layout(dp=-1), "--layout dp=-1: must be a whole number"),
    (lambda: Layout(zero=4), "--layout zero=4: must be one of 1, 2, 3"),  # type: ignore[arg-type]
    (lambda: Layout(framework="deepspeed"), "--framework = 'deepspeed': must be one of torch, megatron"),  # type: ignore[arg-type]
    (lambda: spread(cp=3), "--layout cp=3: must divide the sequence length (16) in multiples of 2: give 2, 4 or 8"),
    (lambda: spread(schedule="gpipe"), "--layout schedule='gpipe': is of a pipeline, and pp is 1: leave it out"),
    (lambda: spread(pp=3, stages_per_rank=2), "--layout stages_per_rank=2: must be 1 with schedule 1f1b: leave it"),
    (lambda: spread(pp=4), "--layout pp=4: makes 4 stages, and small has 3 layers"),
    (lambda: spread(pp=3, stage_layers=(1, 2)), "--stage_layers = '1,2': has the layers of 2 stages, and there must"),
    (
        lambda: spread(pp=3),
        "--micro_batches = 1: torch's Schedule1F1B needs at least as many as stages (3): give 3 or more, or "
        "--global_batch_tokens of 48 or more",
    ),
    (lambda: Layout(grouping="all"), "--layout grouping='all': must be one of torchtitan, layers"),  # type: ignore[arg-type]
    (lambda: Layout(gpus_per_node=0), "--gpus_per_node = 0: must be a whole number"),
    (lambda: Layout(expert_imbalance=0.5), "--expert_imbalance = 0.5: must be at least 1, which is balanced routing"),
    (lambda: spread(ep=2, fsdp=2), "--layout ep=2: divides experts, and no layer of the model has any"),
    (lambda: spread(sequence_parallel=False), "--layout sp=off: is a part of tensor parallelism"),
    (
        lambda: spread(tp=8, length=12),
        "--layout tp=8: must divide the sequence length (12), which sequence parallelism divides: give 2 or 4; or say",
    ),
    (lambda: Setup(execution="traced"), "--execution = 'traced': must be one of eager, compiled"),  # type: ignore[arg-type]
    (lambda: Setup(expandable_segments=1), "--expandable_segments = 1: must be "),  # type: ignore[arg-type]
    (lambda: analyze(LLAMA, SHORT, step=False, reserved=True), "--reserved = true: is of a training step"),
    (lambda: Cluster(gpu=find_gpu("H100"), power_watts=701), "--power_watts = 701: must be at most the limit of the"),
    (lambda: analyze(LLAMA, cluster=()), "--cluster = (): must be a Cluster, or several of them"),
    (
        lambda: analyze(LLAMA, Setup(execution="compiled")),
        "--execution = 'compiled': changes what is reserved and how long a step takes: give --reserved on or --gpus",
    ),
    (
        lambda: without_links(8),
        "node_link = null: the layout has groups within a node, and the speed of the links of Ours there is unknown: "
        'give it in a --cluster file, as {"gpu": "Ours", "node_link": {"gb_per_s": 450}}, of one GPU in one dir',
    ),
    (
        lambda: without_links(1),
        "network_link = null: the layout has groups across nodes, and the speed of the links of Ours there is unknown: "
        'give it in a --cluster file, as {"gpu": "Ours", "network_link": {"gb_per_s": 50}}, of one GPU in one dir',
    ),
    (
        lambda: design_model(10**9, "gpt2"),
        "--design_family = 'gpt2': is not known: choose from deepseek_v3, llama, qwen3",
    ),
    (lambda: beyond_compute(plan_budget(5e6), unique_tokens=0), "--unique_tokens = 0: must be a whole number, at"),
    (lambda: beyond_compute(plan_budget(5e6), inference_tokens=0), "--inference_tokens = 0: must be a whole"),
    (lambda: beyond_compute(plan_budget(5e6), expansion_rate=0), "--expansion_rate = 0: must be a number from 1"),
    (lambda: fit_law(runs_of(), resamples=9), "--resamples = 9: must be a whole number from 100 to 5,000"),
    (lambda: fit_law(runs_of(), seed=-1), "--seed = -1: must be a whole number from 0 to"),
    (lambda: fit_law(runs_of(), training_flops=[0]), "--training_flops = 0: must be FLOPs from 1 to 1e+36"),
    (
        lambda: find_columns(["n", "d", "loss"], {"tokens": "seen"}, "runs.csv"),
        "--columns = 'tokens=seen': runs.csv has no column of that name: it has n, d, loss",
    ),
    (without_a_length, "config: max_position_embeddings = null: is missing, and so is max_sequence_length; give --seq"),
]


def raised_by(cause: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        cause()
    return caught.value


@pytest.mark.parametrize(("cause", "line"), ERRORS, ids=[line for _, line in ERRORS])
def test_the_command_names_the_flag_and_the_library_its_argument(cause: Callable[[], object], line: str) -> None:
    error = raised_by(cause)
    assert error_line(error).startswith(f"error: {line}")
    assert FLAG.search(str(error)) is None


def test_every_argument_in_the_table_is_one_of_an_error() -> None:
    fields = {error.field for cause, _ in ERRORS if isinstance(error := raised_by(cause), ArgumentError)}
    assert set(FLAGS) - {"published"} <= fields, "and what the command alone takes"
    others = {"analyses", "node_link", "network_link"}
    assert fields - set(FLAGS) == others, "the command takes no analyses, and links in a file"


def test_every_hint_is_one_of_an_error() -> None:
    errors = [raised_by(cause) for cause, _ in ERRORS]
    errors += [impossible_in_16_bits(field) for field in ("gpu_hours", "tokens_per_second_per_gpu")]
    rules = [(error.field, error.rule) for error in errors if isinstance(error, ArgumentError | ConfigError)]
    for hint in HINTS:
        assert any(hint.field in (None, field) and re.search(hint.words, rule) for field, rule in rules), hint


def test_every_flag_in_the_tables_exists() -> None:
    parsers = (flags_parser(), fit_parser())
    known = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    flags = {flag.partition(" ")[0] for flag in FLAGS.values()}  # without the axis of a layout
    named = {*flags, *re.findall(r"--\w+", " ".join(hint.instead for hint in HINTS))}
    assert len(named) > 10
    assert named <= known


def test_no_price_is_given_by_no_flag() -> None:
    """So the line names none as its cause, and one as its remedy."""
    line = error_line(raised_by(lambda: plan_budget(5e6, gpus=("L4",))))
    assert line == "error: no price is known for L4: give one in US dollars per hour, as --gpu_prices L4=2.50"


def impossible_in_16_bits(field: str = "gpu_hours") -> UserError:
    """Hours or a speed that take 1.5 times the GPU's 16-bit peak, and so less than its peak of FP8."""
    analysis = analyze(LLAMA, SHORT, step=False)
    plan = RunPlan(tokens=10**12, gpus=("H100",), gpu_hours=10**6)
    least = min(entry.mfu for entry in plan_run(analysis, plan).gpus[0].implied_mfu)
    hours = 10**6 * least / 1.5
    value = hours if field == "gpu_hours" else 10**12 / hours / 3600
    return raised_by(lambda: plan_run(analysis, RunPlan(tokens=10**12, gpus=("H100",), **{field: value})))


@pytest.mark.parametrize("field", ["gpu_hours", "tokens_per_second_per_gpu"])
def test_the_remedy_of_an_impossible_claim_is_a_flag_where_fp8_would_do(field: str) -> None:
    error = impossible_in_16_bits(field)
    assert FLAG.search(str(error)) is None
    assert error_line(error).endswith("; if it trained in FP8, give --precision fp8")
    assert "fp8" not in error_line(raised_by(lambda: run(gpu_hours=1e-9)))


def test_an_error_without_a_field_stands_as_it_is() -> None:
    assert error_line(UserError("x.json: no such\nfile")) == "error: x.json: no such file"


def test_an_unknown_argument_keeps_its_name() -> None:
    assert error_line(ArgumentError("--tokens", "x", "must be a number")) == "error: --tokens = 'x': must be a number"
    assert error_line(ConfigError("tokens", 3, "must be 4", "a.json")) == "error: a.json: tokens = 3: must be 4"


def test_a_flag_that_stands_in_the_plan_is_named_with_its_file() -> None:
    error = ArgumentError("sequence_length", 0, "must be more")
    assert error_line(error, "my.toml", {"seq_len"}) == "error: my.toml: --seq_len = 0: must be more"
    assert error_line(error, "my.toml", {"tokens"}) == "error: --seq_len = 0: must be more"
    axis = ArgumentError("tp", 3, "must be more")
    assert error_line(axis, "my.toml", {"layout"}) == "error: my.toml: --layout tp=3: must be more"
    price = ArgumentError("--gpu_prices A100", -1, "must be more")
    assert error_line(price, "my.toml", {"gpu_prices"}) == "error: my.toml: --gpu_prices A100 = -1: must be more"

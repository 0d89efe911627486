"""A layout on the command line: how it is typed, what it goes with, and the one line that refuses it."""

import json
from pathlib import Path
from typing import Any

import pytest

from counting.command.arguments import layout_of
from counting.command.flags import flags_parser, read_flags
from counting.command.layouts import FIELDS, parse_layout
from counting.command.plan_file import plan_as_arguments
from counting.cost.cluster import Cluster
from counting.cost.hardware import find_gpu
from model_training_cost_analysis import main
from tests.foreign_families import PHI3
from tests.shrunken import DEEPSEEK_V3
from torch_models.errors import ArgumentError
from torch_models.layout import Layout

NO_AXIS = "{} is no axis: choose from dp, fsdp, tp, cp, pp, ep, zero, sp, schedule, stages_per_rank, grouping"
SPREAD = "--model_config llama_3_8b --layout"
RUN = "--tokens 1T --gpus H100"


def typed(flags: str) -> Layout | None:
    return layout_of(read_flags(f"--model_config llama_3_8b {flags}".split()), ())


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("fsdp=32,tp=8", {"fsdp": 32, "tp": 8}),
        ("fsdp=2048,ep=64", {"fsdp": 2048, "ep": 64}),
        ("dp=2,fsdp=4,zero=1", {"dp": 2, "fsdp": 4, "zero": 1}),
        ("tp=8,sp=off", {"tp": 8, "sequence_parallel": False}),
        ("sp=on,tp=8", {"tp": 8, "sequence_parallel": True}),
        ("grouping=layers", {"grouping": "layers"}),
        ("cp=2,pp=4,schedule=zbv", {"cp": 2, "pp": 4, "schedule": "zbv"}),
        ("pp=4,schedule=interleaved,stages_per_rank=3", {"pp": 4, "schedule": "interleaved", "stages_per_rank": 3}),
        (" fsdp = 8 , tp=2 ", {"fsdp": 8, "tp": 2}),
    ],
)
def test_axes_as_typed(text: str, fields: dict[str, Any]) -> None:
    assert parse_layout(text) == fields


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must be pairs of axis and number separated by commas, as fsdp=32,tp=8"),
        ("fsdp", "must be pairs of axis and number separated by commas, as fsdp=32,tp=8"),
        ("fsdp=", "must be pairs of axis and number separated by commas, as fsdp=32,tp=8"),
        ("fsdp=8,", "must be pairs of axis and number separated by commas, as fsdp=32,tp=8"),
        ("64", "must be pairs of axis and number separated by commas, as fsdp=32,tp=8"),
        ("=8", NO_AXIS.format("=8")),
        ("ddp=8", NO_AXIS.format("ddp")),
        ("FSDP=8", NO_AXIS.format("FSDP")),
        ("fsdp=8,tp=2,fsdp=4", "give fsdp once"),
        ("schedule", "must be pairs of axis and number separated by commas, as fsdp=32,tp=8"),
        ("stage_layers=3", NO_AXIS.format("stage_layers")),
    ],
)
def test_what_is_no_layout(text: str, rule: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_layout(text)
    assert (caught.value.field, caught.value.value, caught.value.rule) == ("--layout", text, rule)


def test_what_belongs_to_it() -> None:
    assert typed("--layout fsdp=8") == Layout(fsdp=8)
    flags = "--layout fsdp=8,ep=4 --num_gpus 1,024 --gpus_per_node 4 --expert_imbalance 1.5"
    assert typed(flags) == Layout(num_gpus=1024, fsdp=8, ep=4, gpus_per_node=4, expert_imbalance=1.5)
    assert typed("--layout fsdp=8 --layout tp=2") == Layout(fsdp=8, tp=2)
    assert typed("--gpus-per-node 4 --layout dp=2") == Layout(dp=2, gpus_per_node=4)
    flags = "--layout pp=2,schedule=zbv --stage_layers 7,8,8,9 --framework megatron"
    expected = Layout(pp=2, schedule="zbv", stage_layers=(7, 8, 8, 9), framework="megatron")
    assert typed(flags) == expected
    assert (expected.zero, expected.stages_per_rank) == (1, 2)
    assert typed("") is None


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [
        (("GB200", "H100"), "", 72),
        (("H100", "GB200"), "", 8),
        (("T4",), "", None),
        (("GB200",), "--gpus_per_node 4", 4),
    ],
)
def test_ranks_of_a_node_are_those_of_the_first_gpu(gpus: tuple[str, ...], flags: str, expected: int | None) -> None:
    options = read_flags(f"--model_config llama_3_8b --layout fsdp=8 {flags}".split())
    layout = layout_of(options, [find_gpu(name) for name in gpus])
    assert layout is not None
    assert layout.gpus_per_node == expected


def test_ranks_of_a_node_are_those_of_a_cluster() -> None:
    options = read_flags(f"{SPREAD} fsdp=8".split())
    cluster = Cluster(gpu=find_gpu("H100"), gpus_per_node=4)
    layout = layout_of(options, [cluster.gpu], cluster)
    assert layout is not None
    assert layout.gpus_per_node == 4


BAD_COMMANDS = {
    "--layout fsdp=8": "--layout needs --model_config",
    "--model_config llama_3_8b --gpus_per_node 8": "--gpus_per_node needs --layout",
    "--model_config llama_3_8b --expert_imbalance 2": "--expert_imbalance needs --layout",
    "--model_config llama_3_8b --num_gpus 8": "--num_gpus needs --training_budget or --tokens or --layout",
    f"{SPREAD} fsdp=8 --training_budget 5M": "--layout does not go with --training_budget: a budget is spent on",
    f"{SPREAD} fsdp=8 --published": "--layout does not go with --published: published runs are worked out from",
    f"{SPREAD} fsdp=8 --claim": "--layout does not go with --claim: the claim is worked out from one device's step",
    f"{SPREAD} fsdp=8 --global_batch_tokens 1M": "--global_batch_tokens = 1000000: must be a multiple of one micro",
    f"{SPREAD} fsdp=8 {RUN} --model_config llama_7b --compare": "--layout does not go with --compare: models are",
    f"{SPREAD} ddp=8": f"--layout = 'ddp=8': {NO_AXIS.format('ddp')}",
    f"{SPREAD} fsdp=8,fsdp=8": "--layout = 'fsdp=8,fsdp=8': give fsdp once",
    f"{SPREAD} fsdp=8 --layout fsdp=4": "--layout = 'fsdp=8,fsdp=4': give fsdp once",
    f"{SPREAD} fsdp=": "--layout = 'fsdp=': must be pairs of axis and number separated by commas",
    f"{SPREAD} fsdp=x": "--layout fsdp='x': must be a whole number",
    f"{SPREAD} fsdp=-1": "--layout fsdp='-1': must be a whole number",
    f"{SPREAD} fsdp=0": "--layout fsdp=0: must be a whole number from 1 to 1048576",
    f"{SPREAD} tp=99999999": "--layout tp=99999999: must be a whole number from 1 to 1048576",
    f"{SPREAD} dp=0": "--layout dp=0: must be a whole number from 1 to 1048576",
    f"{SPREAD} ep=0": "--layout ep=0: must be a whole number from 1 to 1048576",
    f"{SPREAD} fsdp=8,zero=4": "--layout zero=4: must be one of 1, 2, 3",
    f"{SPREAD} tp=8,sp=yes": "--layout sp='yes': must be on or off",
    f"{SPREAD} fsdp=8,grouping=all": "--layout grouping='all': must be one of torchtitan, layers",
    f"{SPREAD} fsdp=8 --gpus_per_node 0": "--gpus_per_node = 0: must be a whole number from 1",
    f"{SPREAD} fsdp=8 --gpus_per_node x": "--gpus_per_node = 'x': must be a whole number",
    f"{SPREAD} fsdp=8 --num_gpus 2M": "--num_gpus = 2000000: must be a whole number from 1 to 1048576",
    f"{SPREAD} fsdp=8 --num_gpus 10": "--num_gpus = 10: must be a multiple of fsdp (8): give 8 or 16, or other axes",
    f"{SPREAD} fsdp=8 --gpus K80": "--gpus = 'K80': is not known: choose from V100",
    f"{SPREAD} tp=3": "--layout tp=3: must divide num_attention_heads (32): give 2, 4 or 8\n",
    f"{SPREAD} tp=8 --seq_len 1002": "--layout tp=8: must divide the sequence length (1002), which sequence "
    "parallelism divides: give 2; or say sp=off\n",
    f"{SPREAD} dp=8,zero=2": "--layout zero=2: says what fsdp divides, and fsdp is 1",
    f"{SPREAD} fsdp=8,sp=off": "--layout sp=off: is a part of tensor parallelism, and tp is 1",
    f"{SPREAD} fsdp=8,ep=8": "--layout ep=8: divides experts, and no layer of the model has any: leave it out",
    f"{SPREAD} fsdp=8 --expert_imbalance 2": "--expert_imbalance = 2.0: is that of ranks that divide the experts",
    f"{SPREAD} fsdp=8 --expert_imbalance much": "--expert_imbalance = 'much': must be at least 1",
    f"{SPREAD} fsdp=8 --expert_imbalance nan": "--expert_imbalance = nan: must be at least 1",
    f"{SPREAD} cp=3": "--layout cp=3: must divide the sequence length (8192) in multiples of 2: give 2, 4, 8, 16, 32,",
    f"{SPREAD} cp=2 --kernels eager": "--kernels = 'eager': is not run by torch's ring attention (cp 2): give fused",
    "--model_config gpt_oss_20b --layout cp=2": "--layout cp=2: is torch's ring attention, and attention here has",
    f"{SPREAD} pp=4": "--micro_batches = 1: torch's Schedule1F1B needs at least as many as stages (4): give 4 or more, "
    "or --global_batch_tokens of 32768 or more\n",
    f"{SPREAD} fsdp=8,pp=4 --global_batch_tokens 65536": "--micro_batches = 1: torch's Schedule1F1B needs at least as "
    "many as stages (4): give 4 or more, or --global_batch_tokens of 262144 or more\n",
    f"{SPREAD} pp=4,schedule=interleaved --micro_batches 11": "--micro_batches = 11: torch's ScheduleInterleaved1F1B "
    "runs them in 2 equal rounds of pp (4) or more: give 10 or 12, or --global_batch_tokens of 81920 or 98304\n",
    f"{SPREAD} pp=4,schedule=2f2b": "--layout schedule='2f2b': must be one of gpipe, 1f1b, interleaved, zb, zbv, dual",
    f"{SPREAD} fsdp=8,schedule=1f1b": "--layout schedule='1f1b': is of a pipeline, and pp is 1: leave it out, or give",
    f"{SPREAD} fsdp=8 --stage_layers 32": "--stage_layers = '32': is of a pipeline, and pp is 1: leave it out, or give",
    f"{SPREAD} pp=4,schedule=zbv,stages_per_rank=1": "--layout stages_per_rank=1: must be 2 with schedule zbv: leave",
    f"{SPREAD} pp=4,stages_per_rank=2": "--layout stages_per_rank=2: must be 1 with schedule 1f1b: leave it out, or",
    f"{SPREAD} pp=40": "--layout pp=40: makes 40 stages, and llama_3_8b has 32 layers, of which each stage needs one: "
    "give at most 32\n",
    f"{SPREAD} pp=4 --stage_layers 8,8,8": "--stage_layers = '8,8,8': has the layers of 3 stages, and there must be pp "
    "(4): leave it out for 8,8,8,8\n",
    f"{SPREAD} pp=4 --stage_layers 9,8,8,8": "--stage_layers = '9,8,8,8': are 33 layers together, and llama_3_8b has "
    "32: leave it out for 8,8,8,8\n",
    f"{SPREAD} pp=4 --stage_layers 8,,8": "--stage_layers = '8,,8': must be the number of layers of each stage,",
    f"{SPREAD} pp=4 --stage_layers 0,10,11,11": "--stage_layers = 0: must be a whole number of layers, at least 1, of",
    f"{SPREAD} pp=4,zero=3 --micro_batches 4": "--layout zero=3: must be 1 with pp: torch's schedules reduce gradients",
    "--model_config llama_3_2_1b --layout pp=4": "--layout pp=4: is refused for llama_3_2_1b, whose head is its embed",
    f"{SPREAD} pp=4 --framework deepspeed": "argument --framework: invalid choice: 'deepspeed' (choose from",
    "--model_config llama_3_8b --stage_layers 8": "--stage_layers needs --layout",
    "--model_config llama_3_8b --framework torch": "--framework needs --layout",
    f"{SPREAD} fsdp=8 --precision fp8": "--precision = 'fp8': runs on no meta device",
    f"{SPREAD} fsdp=8 --optimizer muon": "--optimizer = 'muon': orthogonalises whole matrices",
    f"{SPREAD} fsdp=8 --framework megatron --clip_gradients on": "--clip_gradients = true: changes nothing that",
    f"{SPREAD} fsdp=8 --zero_gradients in_place": "--zero_gradients = 'in_place': is not measured on ranks yet",
    "--model_config deepseek_v3 llama_3_8b --layout fsdp=64,ep=64": "--layout ep=64: divides experts, and no layer",
    "--model_config deepseek_v3 --layout fsdp=64,ep=48": "--layout ep=48: must divide the number of experts (256): "
    "give 2, 4, 8, 16, 32 or 64\n",
    "--model_config foreign.json --layout fsdp=8": "goes through transformers, where a step is measured on one "
    "device, without allocator and time: leave out --layout\n",
    "--model_config llama_7b foreign.json --layout fsdp=8": "allocator and time: leave out --layout\n",
}


@pytest.mark.parametrize(("flags", "message"), BAD_COMMANDS.items(), ids=BAD_COMMANDS.keys())
def test_one_line_and_exit_2(flags: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "foreign.json").write_text(json.dumps(PHI3))
    assert main(flags.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_plan_has_it_as_a_text_or_a_table(folder: Path) -> None:
    for text in ('layout = "fsdp=32,tp=8,sp=off"', '[layout]\nfsdp = 32\ntp = 8\nsp = "off"'):
        (folder / "my.toml").write_text(text)
        assert plan_as_arguments("my.toml", flags_parser()) == ["--layout=fsdp=32,tp=8,sp=off"]


def test_a_plan_has_layers_of_stages_as_a_text_or_a_list(folder: Path) -> None:
    for text in ('stage_layers = "7,8,8,9"', "stage_layers = [7, 8, 8, 9]"):
        (folder / "my.toml").write_text(text)
        assert plan_as_arguments("my.toml", flags_parser()) == ["--stage_layers=7,8,8,9"]


def test_an_axis_of_a_plan_is_named_with_its_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my.toml").write_text('model_config = "llama_3_8b"\nlayout = "tp=3"\n')
    assert main(["--plan", "my.toml"]) == 2
    assert capsys.readouterr().err.startswith("error: my.toml: --layout tp=3: must divide num_attention_heads (32)")
    assert main(["--plan", "my.toml", "--layout", "tp=5"]) == 2
    assert capsys.readouterr().err.startswith("error: --layout tp=5: must divide"), "what is typed wins"


def test_every_axis_is_in_the_help() -> None:
    (action,) = (action for action in flags_parser()._actions if action.dest == "layout")
    assert [axis for axis in FIELDS if f"{axis}=" not in f"{action.help} fsdp= dp= ep= cp= pp="] == []


def test_models_are_checked_before_the_first_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own.json").write_text(json.dumps(DEEPSEEK_V3))
    monkeypatch.setattr("counting.command.jobs.analyses.analyze", lambda *_, **__: pytest.fail("measured"))
    assert main(["--model_config", "llama_3_8b", "own.json", "--layout", "tp=8"]) == 2
    assert "--layout tp=8: must divide num_attention_heads (4)" in capsys.readouterr().err

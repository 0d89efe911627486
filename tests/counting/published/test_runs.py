"""Published training bills, reproduced; the gates that the project sets itself."""

from fractions import Fraction

import pytest

from counting.cost.conventions import flops_by_convention
from counting.cost.hardware import find_gpu
from counting.published.runs import (
    ExaminedRun,
    GptBlock,
    OwnConfig,
    Palm,
    examine_published_runs,
    load_published_runs,
    measure_published,
)


@pytest.fixture(scope="module")
def runs() -> dict[str, ExaminedRun]:
    return {run.name: run for run in examine_published_runs()}


# Run, quantity, convention, stated: the relative difference that is allowed.
GATES = {
    ("DeepSeek-V3", "gflop_per_token", "6N_causal_attention", 250): 0.003,
    ("DeepSeek-V2", "gflop_per_token", "6N_causal_attention", 155): 0.003,
    ("DeepSeek-V3 (Insights)", "mfu", "6N_full_attention", 0.4373): 0.005,
    ("DeepSeek-V3 (Insights)", "mfu", "6N_causal_attention", 0.3894): 0.005,
    ("DeepSeek-V3 (Insights)", "tflop_per_s", "6N_full_attention", 432): 0.005,
    ("DeepSeek-V3 (Insights)", "tflop_per_s", "6N_causal_attention", 385): 0.005,
    ("DeepSeek-V3 (Insights)", "seconds_per_step", "6N_full_attention", 19.926): 0.005,
    ("DeepSeek-V3 (Insights)", "tokens_per_day", None, 272.8e9): 0.00001,  # all digits that are printed
    ("DeepSeek-V3", "gpu_hours_per_trillion_tokens", None, 180_000): 0,
    ("DeepSeek-V3", "cost_usd", None, 5_576_000): 0,
    ("DeepSeek-V3", "kv_cache_kb_per_token", None, 70.272): 0,
    ("Qwen-2.5 72B (Insights)", "kv_cache_kb_per_token", None, 327.68): 0,
    ("Llama-3.1 405B (Insights)", "kv_cache_kb_per_token", None, 516.096): 0,
    ("GPT-3 175B", "training_flops", "6N", 3.14e23): 0.005,
    ("GPT-3 175B", "petaflop_days", "6N", 3640): 0.005,
    ("PaLM 540B", "mfu", "6N_full_attention", 0.462): 0.003,
    ("PaLM 540B", "mfu", "6N", 0.457): 0.003,
    ("Megatron GPT 22B", "mfu", "own", 0.415): 0.005,
    ("Megatron GPT 175B", "mfu", "own", 0.514): 0.005,
    ("Megatron GPT 530B", "mfu", "own", 0.56): 0.005,
    ("Megatron GPT 1T", "mfu", "own", 0.563): 0.005,
}

# Stated figures that do not follow from the formula of their neighbours, or are measured on another stretch of time.
NOT_REPRODUCED = {
    ("Llama-3.1 405B", "mfu", "6N_full_attention", 0.43),
    ("Llama-3.1 405B", "mfu", "6N_full_attention", 0.41),
    ("Llama-3.1 405B", "tflop_per_s", "6N_full_attention", 430),
    ("Llama-3.1 405B", "tflop_per_s", "6N_full_attention", 400),
    ("Llama-3.1 405B (Insights)", "gflop_per_token", "6N_causal_attention", 2448),
    ("Qwen-2.5 72B (Insights)", "gflop_per_token", "6N_causal_attention", 394),
}


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: "-".join(map(str, gate)))
def test_gate(gate: tuple[str, str, str | None, float], runs: dict[str, ExaminedRun]) -> None:
    name, quantity, convention, stated = gate
    (figure,) = [
        figure
        for figure in runs[name].figures
        if (figure.quantity, figure.convention, figure.stated) == (quantity, convention, stated)
    ]
    assert abs(figure.relative_difference) <= GATES[gate]


def test_every_stated_figure_is_gated_or_known_not_to_follow(runs: dict[str, ExaminedRun]) -> None:
    stated = {(run.name, fig.quantity, fig.convention, fig.stated) for run in runs.values() for fig in run.figures}
    assert stated == set(GATES) | NOT_REPRODUCED
    for run in runs.values():
        if any((run.name, fig.quantity, fig.convention, fig.stated) in NOT_REPRODUCED for fig in run.figures):
            assert run.note, "a figure that does not follow is explained"


@pytest.mark.parametrize(
    ("name", "percent"),
    [  # 6 x parameters x tokens / (hours x 3600 x peak), with the published parameter totals
        ("Llama-1 7B", 100 * 6 * 6_738_415_616 * 1.0e12 / (82_432 * 3600 * 312e12)),
        ("Llama-1 65B", 100 * 6 * 65_285_660_672 * 1.4e12 / (1_022_362 * 3600 * 312e12)),
        ("Llama-2 70B", 100 * 6 * 68_976_648_192 * 2e12 / (1_720_320 * 3600 * 312e12)),
        ("Llama-3.1 8B", 100 * 6 * 8_030_261_248 * 15e12 / (1.46e6 * 3600 * 989e12)),
        ("Llama-3.1 405B", 100 * 6 * 405_853_388_800 * 15.6e12 / (30.84e6 * 3600 * 989e12)),
        ("DeepSeek-V3", 100 * 6 * 37_552_282_624 * 14.8e12 / (2_664_000 * 3600 * 989e12)),
    ],
)
def test_implied_mfu_at_6n(name: str, percent: float, runs: dict[str, ExaminedRun]) -> None:
    implied = {entry.convention: entry.mfu for entry in runs[name].implied_mfu}
    assert 100 * implied["6N"] == pytest.approx(percent, rel=1e-9)


def test_every_implied_mfu_is_possible_and_some_are_no_guide(runs: dict[str, ExaminedRun]) -> None:
    own = {run.name: entry.mfu for run in runs.values() for entry in run.implied_mfu if entry.convention == "own"}
    assert len(own) == 18
    assert all(0.1 < mfu < 0.6 for mfu in own.values())
    assert {name for name, mfu in own.items() if mfu < 0.3} == {"Llama-3.1 8B", "Llama-3.1 70B"}


def test_runs_of_the_reference_table_are_there(runs: dict[str, ExaminedRun]) -> None:
    published = {run.name: (run.tokens, run.gpu_hours, run.gpu) for run in runs.values() if run.gpu_hours}
    assert published == {
        "Llama-1 7B": (10**12, 82_432, "A100"),
        "Llama-1 13B": (10**12, 135_168, "A100"),
        "Llama-1 33B": (14 * 10**11, 530_432, "A100"),
        "Llama-1 65B": (14 * 10**11, 1_022_362, "A100"),
        "Llama-2 7B": (2 * 10**12, 184_320, "A100"),
        "Llama-2 13B": (2 * 10**12, 368_640, "A100"),
        "Llama-2 70B": (2 * 10**12, 1_720_320, "A100"),
        "Llama-3.1 8B": (15 * 10**12, 1_460_000, "H100"),
        "Llama-3.1 70B": (15 * 10**12, 7_000_000, "H100"),
        "Llama-3.1 405B": (156 * 10**11, 30_840_000, "H100"),
        "DeepSeek 67B": (10**12, 300_600, "H800"),
        "DeepSeek-V2": (10**12, 172_800, "H800"),
        "DeepSeek-V3": (148 * 10**11, 2_664_000, "H800"),
    }


LLAMA_3 = {"Llama-3.1 8B", "Llama-3.1 70B", "Llama-3.1 405B"}
TRAINED_AT_2048 = {"Llama-1 7B", "Llama-1 13B", "Llama-1 33B", "Llama-1 65B"}


def test_sequence_lengths() -> None:
    """Of pre-training: 2,048 of Llama-1, 8,192 of Llama-3, 4,096 of the other families with configs here."""
    for run in load_published_runs():
        if isinstance(run.model, OwnConfig):
            length = 2048 if run.name in TRAINED_AT_2048 else 8192 if run.name in LLAMA_3 else 4096
            assert run.model.sequence_length == length


def test_inputs_of_what_has_no_config_or_no_hours() -> None:
    """Each number as the paper prints it: sizes, GPUs, tokens per step or second, seconds."""
    runs = {run.name: run for run in load_published_runs()}

    def sizes(name: str) -> tuple[object, ...]:
        model = runs[name].model
        return tuple(getattr(model, field) for field in model.__struct_fields__)

    def speed(name: str) -> tuple[object, ...]:
        run = runs[name]
        return run.gpu, run.num_gpus, run.tokens_per_step, run.seconds_per_step, run.tokens_per_second

    assert (sizes("GPT-3 175B"), runs["GPT-3 175B"].tokens) == ((174_600_000_000,), 300 * 10**9)
    assert sizes("PaLM 540B") == (540_350_000_000, 118, 48, 256, 2048)
    assert speed("PaLM 540B") == ("TPU-v4", 6144, None, None, 238_300)
    assert speed("DeepSeek-V3 (Insights)") == ("H800", 2048, 15_360 * 4096, 19.926, None)
    blocks = {  # layers, width, GPUs, sequences, seconds
        "Megatron GPT 22B": (48, 6144, 8, 4, 1.10),
        "Megatron GPT 175B": (96, 12288, 64, 64, 13.75),
        "Megatron GPT 530B": (105, 20480, 280, 280, 37.83),
        "Megatron GPT 1T": (128, 25600, 512, 512, 71.49),
    }
    for name, (layers, width, gpus, sequences, seconds) in blocks.items():
        assert sizes(name) == (layers, width, 51_200, 2048)
        assert speed(name) == ("A100", gpus, sequences * 2048, seconds, None)


def test_speed_of_one_gpu_is_exact(runs: dict[str, ExaminedRun]) -> None:
    """FLOPs per token x tokens / (3600 x hours), in TFLOP/s; over the peak, the MFU."""
    for entry in runs["Llama-1 7B"].implied_mfu:
        per_token = flops_by_convention(measure_published(OwnConfig(config="llama_7b", sequence_length=2048)))
        speed = per_token[entry.convention] * 10**12 / (3600 * 82_432)
        assert entry.tflop_per_s == float(speed / 10**12)
        assert entry.mfu == float(speed / (312 * 10**12))


def test_native_models_are_measured_and_the_others_say_their_formula(runs: dict[str, ExaminedRun]) -> None:
    for run in load_published_runs():
        examined = runs[run.name]
        assert (examined.counted_by == "measured") == isinstance(run.model, OwnConfig)
        if isinstance(run.model, OwnConfig):
            analysis = measure_published(run.model)
            assert analysis.proof == "measured = formula"
            assert analysis.sequence_length == run.model.sequence_length
        else:
            assert "et al. 20" in examined.counted_by


def test_parameters_of_the_added_configs() -> None:
    """Published totals: 13.0, 32.5, 65.2 (LLaMA, table 2), 6.7 (Llama 2), 67 (DeepSeek LLM), 72.7 (Qwen2.5) billion."""
    totals = {
        "llama_13b": 13_015_864_320,
        "llama_33b": 32_528_943_616,
        "llama_65b": 65_285_660_672,
        "llama_2_7b": 6_738_415_616,
        "deepseek_67b": 67_425_001_472,
        "qwen2_5_72b": 72_706_203_648,
    }
    for config, total in totals.items():
        assert measure_published(OwnConfig(config=config, sequence_length=2048)).parameters.total == total


def test_palm_formula_by_hand() -> None:
    """12 x 118 x 48 x 256 x 2048 = 35,634,806,784 FLOPs of attention per token."""
    (palm,) = [run.model for run in load_published_runs() if isinstance(run.model, Palm)]
    flops = palm.flops_per_token()
    assert flops["6N_full_attention"] - flops["6N"] == 35_634_806_784
    assert flops["6N"] == 3_242_100_000_000


def test_gpt_block_formula_is_the_printed_one() -> None:
    for layers, width in ((48, 6144), (96, 12288)):
        block = GptBlock(layers=layers, hidden_size=width, vocab_size=51_200, sequence_length=2048)
        printed = 72 * layers * width**2 * (1 + Fraction(2048, 6 * width) + Fraction(51_200, 12 * layers * width))
        assert block.flops_per_token() == {"own": printed}


def test_seconds_per_step_and_mfu_are_one_equation(runs: dict[str, ExaminedRun]) -> None:
    figures = {(figure.quantity, figure.convention): figure for figure in runs["DeepSeek-V3 (Insights)"].figures}
    mfu, step = figures["mfu", "6N_full_attention"], figures["seconds_per_step", "6N_full_attention"]
    assert mfu.ours * step.stated == pytest.approx(mfu.stated * step.ours, rel=1e-12)
    assert find_gpu("H800").peak_dense_tflop_per_s == 989

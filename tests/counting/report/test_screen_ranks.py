"""A step that is spread over ranks, on the first screen."""

from typing import Any

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu, load_gpus
from counting.cost.run import RunPlan, plan_run
from counting.report import Results
from counting.report.layout import (
    axes_in_words,
    ranks_in_words,
    recipe_on_ranks,
    routing_in_words,
    stages_in_words,
)
from counting.setup import Setup
from counting.step.memory import Alternative
from tests.counting.spread import pipeline, rank_class, spread
from tests.screens import printed, words
from torch_models.layout import Layout

FSDP = Layout(num_gpus=64, gpus_per_node=8, dp=1, fsdp=64)
FULL = Alternative(
    kernels="fused", recompute="full", loss_chunk=None, peak_bytes=30 * 10**9, recomputed_flops=158 * 10**12
)


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_3_8b")


@pytest.fixture(scope="module")
def deepseek() -> Analysis:
    return analyze("deepseek_v3", Setup(sequence_length=4096))


def on_gpus(analysis: Analysis, *names: str) -> Analysis:
    return msgspec.structs.replace(analysis, fits=fits_on(analysis, [find_gpu(name) for name in names]))


def test_the_answer_is_first(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    """It says by how much the worst rank fits or not, on each GPU, and which change helps."""
    classes = rank_class(54 * 10**9, count=60, alternatives=(FULL,)), rank_class(53 * 10**9, count=4, first_rank=60)
    lines = printed(
        capsys, Results(analyses=[on_gpus(spread(llama, FSDP, *classes), "H100", "L40S", "L4")])
    ).splitlines()
    assert lines[4:21] == [
        "Does a training step of llama_3_8b fit, spread over 64 GPUs? In GiB:",
        "  GPU   needs   has   left                 fits  then needs",
        "  H100   57.9  79.1   21.2                  yes",
        "  L40S   57.0  44.3  -12.7  with recompute full        28.4",
        "  L4     57.0  21.9  -35.1                   no",
        "  the worst rank  60.8 GB, rank 0 and 59 equal to it of 64, in the backward of",
        "                  layer 31",
        "    at its peak   parameters 0.5, gradients 0.1, optimiser 1.0, activations",
        "                  54.0, gathered 0.9, communication 0.3, transients 4.0",
        "  layout          fsdp 64 (ZeRO 3), gathered as by torchtitan; 8 GPUs a node",
        "  run with        mixed, adamw, 1 x 8,192 tokens a rank, recompute none",
        "  collectives     all-gather over fsdp 30.0 GB in 65 calls; reduce-scatter over",
        "                  fsdp 32.0 GB in 34 calls",
        "  needs           what is allocated at the worst moment, and the CUDA context:",
        "                  0.4 GiB to 0.6 GiB, and communicators where it is known:",
        "                  0.7 GiB; left out: workspaces in kernels, the allocator's",
        "                  reserve",
    ]


def test_the_parts_are_all_of_the_peak(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    said = words(printed(capsys, Results(analyses=[spread(llama, FSDP, rank_class(54 * 10**9, count=64))])))
    _, _, parts = said.partition("at its peak ")
    numbers = [float(part.rpartition(" ")[2]) for part in parts.partition(" layout ")[0].split(", ")]
    assert len(numbers) == 7
    assert sum(numbers) == pytest.approx(60.8)


def test_without_a_gpu_it_is_the_catalogue(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    analysis = spread(llama, FSDP, rank_class(54 * 10**9, count=64, alternatives=(FULL,)))
    results = Results(analyses=[analysis], on_catalogue=[fits_on(analysis, load_gpus())])
    lines = printed(capsys, results).splitlines()
    assert lines[4] == "A training step of llama_3_8b, spread over 64 GPUs"
    said = words("\n".join(lines))
    assert "with recompute full: V100, L40S, TPU-v4; none of T4, L4 and TPU-v5e (tried: recompute)" in said
    assert "the worst rank 60.8 GB, all 64 alike, in the backward of layer 31" in said
    assert "on one device the step would take 169.2 GB, of which 128.5 for states" in said
    assert "fits one" not in said
    assert "conventions one sequence; matrix products only" in said


def test_what_the_setup_leaves_to_a_default_is_said(deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(num_gpus=128, gpus_per_node=8, dp=1, fsdp=128, ep=64)
    said = words(printed(capsys, Results(analyses=[spread(deepseek, layout, rank_class(10**9, count=128))])))
    assert "1 x 4,096 tokens a rank, recompute none, multi-token prediction, balanced routing assumed" in said
    skewed = msgspec.structs.replace(layout, expert_imbalance=1.5)
    said = words(printed(capsys, Results(analyses=[spread(deepseek, skewed, rank_class(10**9, count=128))])))
    assert "the busiest rank's experts with 1.5 x the mean rows, assumed" in said
    setup = msgspec.structs.replace(deepseek.setup, micro_batches=4, mtp=False, loss_chunk=1024)
    others = msgspec.structs.replace(spread(deepseek, layout, rank_class(10**9, count=128)), setup=setup)
    said = words(printed(capsys, Results(analyses=[others])))
    assert "4 micro-batches of 1 x 4,096 tokens a rank, recompute none, loss chunk 1,024, balanced routing" in said
    assert "in the backward of layer 31, micro-batch 0" in said


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"fsdp": 64}, "fsdp 64 (ZeRO 3), gathered as by torchtitan; 8 GPUs a node"),
        (
            {"dp": 2, "fsdp": 4, "tp": 8, "zero": 2, "grouping": "layers"},
            "dp 2 (replicas), fsdp 4 (ZeRO 2), tp 8 (with sequence parallelism), "
            "gathered layer by layer, the rest at once; 8 GPUs a node",
        ),
        ({"tp": 2, "sequence_parallel": False}, "tp 2 (without sequence parallelism); 8 GPUs a node"),
        (
            {"fsdp": 2048, "ep": 64, "gpus_per_node": 72},
            "fsdp 2,048 (ZeRO 3), ep 64, gathered as by torchtitan; 72 GPUs",
        ),
        ({}, "one rank; 8 GPUs a node"),
        (
            {"fsdp": 2, "cp": 4},
            "fsdp 2 (ZeRO 3, 8 shards with cp), cp 4, gathered as by torchtitan; 8 GPUs a node",
        ),
        ({"pp": 4}, "pp 4 (1f1b); 8 GPUs a node"),
        ({"pp": 4, "schedule": "zbv"}, "pp 4 (zbv, 2 stages a rank); 8 GPUs a node"),
    ],
)
def test_the_axes_in_words(axes: dict[str, Any], said: str) -> None:
    assert axes_in_words(Layout(**{"dp": 1, "gpus_per_node": 8} | axes)).startswith(said)


@pytest.mark.parametrize(
    ("count", "first", "said"),
    [(64, 0, "all 64 alike"), (1, 3, "rank 3 of 64"), (60, 0, "rank 0 and 59 equal to it of 64")],
)
def test_a_class_in_words(count: int, first: int, said: str) -> None:
    assert ranks_in_words(rank_class(0, count=count, first_rank=first), FSDP) == said


def test_a_rank_of_cp_has_a_part_of_each_sequence(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(num_gpus=8, gpus_per_node=8, dp=1, fsdp=2, cp=4)
    said = words(printed(capsys, Results(analyses=[spread(llama, layout, rank_class(1, count=8))])))
    assert "adamw, 1 x 8,192 tokens for each group of cp, 2,048 of each a rank, recompute none" in said


def test_of_the_ranks_of_cp_one_stands_for_all() -> None:
    layout = Layout(num_gpus=8, gpus_per_node=8, dp=1, fsdp=2, cp=4)
    alike = msgspec.structs.replace(rank_class(0, count=8), context_rank=3)
    assert ranks_in_words(alike, layout) == "all 8 alike, counted as rank 3 of cp, which needs most"
    some = msgspec.structs.replace(alike, count=4)
    assert ranks_in_words(some, layout) == "rank 0 and 3 equal to it of 8, counted as rank 3 of cp, which needs most"


def test_a_rank_alone(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    alone = msgspec.structs.replace(rank_class(10**9, count=1), collectives=())
    said = words(printed(capsys, Results(analyses=[spread(llama, Layout(dp=1, gpus_per_node=8), alone)])))
    assert "A training step of llama_3_8b, spread over 1 GPU the worst rank 7.800 GB, the only rank, in" in said
    assert "collectives none: the rank is alone" in said


@pytest.mark.parametrize(
    ("precision", "layout", "words_of"),
    [
        ("mixed", FSDP, "stored in fp32, gathered and used in bf16, and gradients reduced in fp32"),
        ("mixed-fp32-gradients", FSDP, "stored in fp32, gathered and used in bf16"),
        ("bf16", FSDP, "in 16 bits"),
        ("fp32", FSDP, "everything in fp32"),
        ("mixed", Layout(dp=1, tp=8), "16-bit weights and gradients, fp32 master weights and moments"),
    ],
)
def test_the_formats_of_a_rank(precision: str, layout: Layout, words_of: str) -> None:
    assert words_of in recipe_on_ranks(Setup(precision=precision), layout)


def test_a_dense_model_has_no_routing(llama: Analysis, deepseek: Analysis) -> None:
    assert routing_in_words(llama, FSDP) == []
    assert len(routing_in_words(deepseek, FSDP)) == 1


# --- A pipeline ------------------------------------------------------------------------------------------------------

ZBV = Layout(num_gpus=8, gpus_per_node=8, dp=2, pp=4, schedule="zbv", stage_layers=(4,) * 8)
MANY = Layout(num_gpus=32, gpus_per_node=8, dp=1, pp=32, stage_layers=(1,) * 32)


def test_the_worst_rank_of_a_pipeline_and_the_others(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = [each * 10**9 for each in (40, 54, 50, 45)]
    lines = printed(capsys, Results(analyses=[spread(llama, ZBV, *pipeline(ZBV, *peaks, count=2))])).splitlines()
    assert lines[4:13] == [
        "A training step of llama_3_8b, spread over 8 GPUs",
        "  the worst rank  60.8 GB, rank 2 and 1 equal to it of 8, in the backward of",
        "                  layer 31",
        "    at its peak   parameters 0.5, gradients 0.1, optimiser 1.0, activations",
        "                  54.0, gathered 0.9, communication 0.3, transients 4.0",
        "    it has        stages 1 (layers 4 to 7) and 6 (layers 24 to 27); 3 passes in",
        "                  flight",
        "    peaks by rank of pp, in GB: 0: 46.8, 1: 60.8, 2: 56.8, 3: 51.8",
        "  layout          dp 2 (replicas), pp 4 (zbv, 2 stages a rank), gathered as by",
    ]


def test_one_micro_batch_of_a_pipeline_is_said(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    said = words(printed(capsys, Results(analyses=[spread(llama, ZBV, *pipeline(ZBV, 1, 2, 3, 4, count=2))])))
    assert "run with mixed, adamw, 1 micro-batch of 1 x 8,192 tokens a rank, recompute none" in said


def test_clipped_gradients_are_said(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    clipped = msgspec.structs.replace(llama, setup=msgspec.structs.replace(llama.setup, clip_gradients=True))
    said = words(printed(capsys, Results(analyses=[spread(clipped, FSDP, rank_class(10**9, count=64))])))
    assert "recompute none, clipped gradients" in said


def test_of_many_ranks_the_first_peaks_are_there_and_the_last(
    llama: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = [(40 - each) * 10**9 for each in range(32)]
    said = words(printed(capsys, Results(analyses=[spread(llama, MANY, *pipeline(MANY, *peaks))])))
    assert "it has stage 0 (layer 0); 32 passes in flight" in said
    assert "of pp, in GB: 0: 46.8, 1: 45.8," in said
    assert "14: 32.8, … 31: 15.8 layout pp 32 (1f1b), gathered" not in said, "no fully_shard"
    assert "14: 32.8, … 31: 15.8 layout pp 32 (1f1b); 8 GPUs a node" in said


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0,), "stage 0 (layers 0 to 2)"),
        ((3,), "stage 3 (layer 7)"),
        ((0, 3), "stages 0 (layers 0 to 2) and 3 (layer 7)"),
        ((0, 1, 3), "stages 0, 1, 3, 6 layers together"),
    ],
)
def test_stages_in_words(numbers: tuple[int, ...], said: str) -> None:
    assert stages_in_words(Layout(pp=4, stage_layers=(3, 2, 2, 1)), numbers) == said


# --- An estimate -----------------------------------------------------------------------------------------------------


def test_an_estimate_is_named_one(capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(pp=4, tp=2, fsdp=2, schedule="interleaved", framework="megatron")
    analysis = on_gpus(analyze("llama_3_8b", Setup(micro_batches=8), layout=layout), "H100")
    lines = printed(capsys, Results(analyses=[analysis])).splitlines()
    assert len(lines) <= 30
    said = words("\n".join(lines))
    assert "the worst rank 38.7 GB, rank 0 and 3 equal to it of 16, in the start of backward" in said
    assert "fsdp 2 (Megatron-LM's distributed optimiser), tp 2 (with sequence parallelism), pp 4 (inter" in said
    assert "an estimate by formula, of what a rank holds by Megatron-LM's rules; nothing is measured" in said
    assert "collectives" not in said


# --- One screen ------------------------------------------------------------------------------------------------------

EVERY_GPU = tuple(gpu.name for gpu in load_gpus())


@pytest.mark.parametrize("gpus", [(), ("H100",), ("H100", "B200"), EVERY_GPU])
@pytest.mark.parametrize("name", ["llama", "deepseek", "both"])
@pytest.mark.parametrize("tokens", [None, 10**12])
@pytest.mark.parametrize("pp", [1, 16])
def test_it_is_one_screen(
    pp: int,
    gpus: tuple[str, ...],
    name: str,
    tokens: int | None,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["llama", "deepseek"] if name == "both" else [name]
    fsdp = 512 // pp
    layout = Layout(num_gpus=2048, gpus_per_node=8, dp=4, fsdp=fsdp, pp=pp, ep=fsdp, stage_layers=(4,) * pp)
    classes = pipeline(layout, *(90 * 10**9 + rank for rank in range(pp)), count=2048 // pp)
    analyses = [on_gpus(spread(request.getfixturevalue(each), layout, *classes), *gpus) for each in names]
    priced = tuple(gpu for gpu in gpus if find_gpu(gpu).price_usd_per_hour is not None)
    runs = (
        [plan_run(analysis, RunPlan(tokens=tokens, gpus=priced)) for analysis in analyses] if tokens and priced else []
    )
    results = Results(analyses=analyses, runs=runs, on_catalogue=[fits_on(each, load_gpus()) for each in analyses])
    lines = printed(capsys, results).splitlines()
    assert len(lines) <= 30 + 10 * (len(names) - 1)
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []
    assert sum("the worst rank " in line for line in lines) + sum("the worst of 2,048" in line for line in lines) >= 1


def test_a_run_does_not_hide_the_ranks(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    analysis = on_gpus(spread(llama, FSDP, rank_class(54 * 10**9, count=64)), "H100")
    run = plan_run(analysis, RunPlan(tokens=10**12, gpus=("H100",), num_gpus=64))
    said = words(printed(capsys, Results(analyses=[analysis], runs=[run])))
    assert "Does a training step of llama_3_8b fit, spread over 64 GPUs? In GiB:" in said
    assert "Training llama_3_8b on 1 T tokens with 64 GPUs" in said


def test_of_several_models_in_short(llama: Analysis, deepseek: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    both = [on_gpus(spread(each, FSDP, rank_class(54 * 10**9, count=64)), "H100") for each in (llama, deepseek)]
    said = words(printed(capsys, Results(analyses=both)))
    assert said.count("one layer 1.949 GB; the worst of 64 ranks 60.8 GB deepseek_v3: 61 layers") == 1
    assert said.count("fit, spread over 64 GPUs?") == 2


def test_of_many_gpus_the_models_say_what_they_fit(
    llama: Analysis, deepseek: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [on_gpus(spread(each, FSDP, rank_class(54 * 10**9, count=64)), *EVERY_GPU) for each in (llama, deepseek)]
    said = words(printed(capsys, Results(analyses=both)))
    assert "spread over 64 GPUs" not in said
    assert said.count("the worst of 64 ranks 60.8 GB; fits A100 yes, H100 yes, H100-PCIe yes and 14 more") == 2


def test_peaks_that_no_formula_has_are_said(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of the model are proven by formulas, but not the peaks of these ranks."""
    layout = Layout(num_gpus=4, gpus_per_node=8, dp=1, pp=4, schedule="zb", stages_per_rank=2, stage_layers=(4,) * 8)
    exact = pipeline(layout, *[10**9] * 4)
    bounded = [msgspec.structs.replace(each, proof="measured, no formula") for each in exact]
    said = words(printed(capsys, Results(analyses=[spread(llama, layout, *exact)])))
    assert "no formula" not in said
    out = printed(capsys, Results(analyses=[spread(llama, layout, *bounded)]))
    peaks = "peaks of 4 classes of ranks measured, no formula: below a bound"
    assert f"measured = formula or simulation; {peaks}" in words(out)
    assert len(out.splitlines()) <= 30
    said = words(printed(capsys, Results(analyses=[spread(llama, layout, *bounded), llama])))
    assert "peaks of 4 classes of ranks (llama_3_8b) measured, no formula: below a bound" in said


def test_one_class_whose_peak_no_formula_has(llama: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    only = msgspec.structs.replace(rank_class(10**9, count=64), proof="measured, no formula")
    said = words(printed(capsys, Results(analyses=[spread(llama, FSDP, only)])))
    assert "peaks of 1 class of ranks measured, no formula: below a bound" in said

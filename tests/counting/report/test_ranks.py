"""The tables and the JSON of a step that is spread over ranks."""

import json

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.ranks.result import RankAnalysis
from counting.report import Results, json_document
from counting.report.model import analysis_parts
from counting.report.model.ranks import rank_tables
from counting.report.printing import print_parts
from counting.step.phase import PARTS
from tests.counting.spread import COLLECTIVES, pipeline, rank_class, spread
from tests.shrunken import LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout

LAYOUT = Layout(num_gpus=64, gpus_per_node=8, dp=1, fsdp=64)


@pytest.fixture(scope="module")
def small() -> Analysis:
    return analyze(spec_from_fields(LLAMA, "small"))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def with_moments(ranks: RankAnalysis, moments: int) -> RankAnalysis:
    """The same ranks with other moments, at each peak and in the states."""
    memory = ranks.memory
    more = moments - memory.states.moments
    phases = tuple(
        msgspec.structs.replace(phase, optimizer_state=phase.optimizer_state + more) for phase in memory.phases
    )
    states = msgspec.structs.replace(memory.states, moments=moments)
    memory = msgspec.structs.replace(memory, states=states, phases=phases, peak_bytes=memory.peak_bytes + more)
    return msgspec.structs.replace(ranks, memory=memory)


def details(analysis: Analysis, capsys: pytest.CaptureFixture[str]) -> str:
    print_parts(analysis_parts(analysis))
    return capsys.readouterr().out


@pytest.mark.usefixtures("wide")
def test_every_number_of_a_class_stands_there(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = rank_class(54 * 10**9, count=64)
    out = details(spread(small, LAYOUT, ranks), capsys)
    for phase in ranks.memory.phases:
        assert phase.name in out
        for part in PARTS:
            assert f"{getattr(phase, part):,}" in out
    for label in ("gathered parameters", "communication buffers", "optimiser state", "logits and loss", "activations"):
        assert label in out
    for number in (ranks.parameters, ranks.forward_flops, ranks.model_flops, ranks.hardware_flops):
        assert f"{number:,}" in out
    for component, flops in ranks.forward_flops_by_component.items():
        assert component in out
        assert f"{flops:,}" in out
    for found in COLLECTIVES:
        row = next(
            line
            for line in out.splitlines()
            if found.phase in line and found.op.replace("_", "-") in line and f" {found.count} " in line
        )
        assert f" {found.axis} " in row
        assert f"{found.bytes_in:,}" in row
        assert f"{found.bytes_out:,}" in row


@pytest.mark.usefixtures("wide")
def test_the_sums_stand_beside_the_undivided_model(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    """Two replicas of tp 4 update dp (P + 3 R) numbers, of dp fsdp (F + 3 R) FLOPs."""
    layout = Layout(num_gpus=8, gpus_per_node=8, dp=2, tp=4)
    analysis = spread(small, layout, rank_class(10**9, count=8))
    out = details(analysis, capsys)
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    whole, flops = small.parameters.total, small.forward_flops
    assert f"{whole:,}" in rows["undivided model"]
    assert f"{266_240:,}" in rows["of which on every rank of tp"]
    assert f"{2 * (whole + 3 * 266_240):,}" in rows["so on all ranks"]
    assert f"{2 * flops:,}" in rows["so on all ranks"]
    assert f"{8 * 125_472_832:,}" in rows["sum over the ranks"]
    assert f"{8 * 130 * 10**12:,}" in rows["sum over the ranks"]
    assert "busiest" not in out


@pytest.mark.usefixtures("wide")
def test_classes_that_differ_in_moments_alone_share_a_table(
    small: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    first = rank_class(54 * 10**9, count=60)
    second = msgspec.structs.replace(with_moments(first, 9 * 10**8), count=4, first_rank=60)
    out = " ".join(details(spread(small, LAYOUT, first, second), capsys).split())
    assert out.count("Memory of a rank (") == 1
    assert "Memory of a rank (rank 0) in bytes" in out
    assert "The classes above differ by their moments alone" in out
    assert "900,000,000" in out
    other = rank_class(50 * 10**9, count=4, first_rank=60)
    out = " ".join(details(spread(small, LAYOUT, first, other), capsys).split())
    assert "Memory of a rank (rank 0 and 59 equal to it of 64) in bytes" in out
    assert "Memory of a rank (rank 60 and 3 equal to it of 64) in bytes" in out
    assert "differ by their moments" not in out


@pytest.mark.usefixtures("wide")
def test_classes_that_send_or_compute_otherwise_are_named(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    first = rank_class(54 * 10**9, count=60)
    other = msgspec.structs.replace(
        rank_class(54 * 10**9, count=4, first_rank=60),
        collectives=COLLECTIVES[:1],
        forward_flops_by_component={"mlp": 7_777},
    )
    out = details(spread(small, LAYOUT, first, other), capsys)
    assert "a rank (from 0)" in out
    assert "a rank (from 60)" in out
    assert sum("from 60 " in line and "all-gather" in line for line in out.splitlines()) == 1


@pytest.mark.usefixtures("wide")
def test_what_is_said_of_one_rank_and_of_imbalance(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    alone = msgspec.structs.replace(rank_class(10**9, count=1), collectives=())
    assert "None: the rank is alone." in details(spread(small, Layout(dp=1, gpus_per_node=8), alone), capsys)
    skewed = Layout(dp=1, fsdp=2, ep=2, gpus_per_node=8, expert_imbalance=1.5)
    out = " ".join(details(spread(small, skewed, rank_class(10**9, count=2)), capsys).split())
    assert "The busiest rank stands for all, so the sum has more FLOPs." in out


@pytest.mark.usefixtures("wide")
def test_what_causality_skips_is_a_row_of_the_flops(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(num_gpus=4, gpus_per_node=8, dp=1, cp=4)
    ranks = msgspec.structs.replace(rank_class(10**9, count=4), skipped_by_causality=123_456, context_rank=2)
    out = details(spread(small, layout, ranks), capsys)
    (row,) = (line for line in out.splitlines() if "skipped by causality" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["skipped by causality", "123,456", "0"]
    said = " ".join(out.split())
    assert "Skipped by causality: of the model FLOPs" in said
    assert "Memory of a rank (all 4 alike, counted as rank 2 of cp, which needs most)" in said
    assert "kipped by causality" not in details(spread(small, LAYOUT, rank_class(1, count=64)), capsys)


PIPELINE = Layout(num_gpus=16, gpus_per_node=8, dp=2, pp=8, stage_layers=(1, 1, 1, 1, 1, 1, 1, 2))


@pytest.mark.usefixtures("wide")
def test_a_pipeline_has_a_row_for_each_of_its_ranks(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    classes = pipeline(PIPELINE, *(10**9 * (each + 1) for each in (0, 1, 7, 2, 3, 4, 5, 6)), count=2)
    out = details(spread(small, PIPELINE, *classes), capsys)
    table = out.partition("The pipeline, bytes a rank: 8 ranks, 1f1b")[2].partition("└")[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == [str(each) for each in range(8)]
    assert rows[2] == [
        "2",
        "2",
        "2",
        "6",
        f"{classes[2].parameters:,}",
        f"{classes[2].memory.states.total:,}",
        f"{classes[2].memory.peak_bytes:,}",
    ]
    table = out.partition("The stages of the pipeline")[2].partition("└")[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    assert rows[0] == ["0", "embedding", "0", "1", "0", "0"]
    assert rows[6] == ["6", "", "6", "1", "6", "6"]
    assert rows[7] == ["7", "norm, head, loss", "7", "2", "7", "8"]
    assert "In flight: passes forward that wait for their backward pass" in out


@pytest.mark.usefixtures("wide")
def test_a_rank_of_a_pipeline_has_several_stages(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(num_gpus=2, gpus_per_node=8, dp=1, pp=2, schedule="zbv", stage_layers=(2, 1, 1, 1))
    out = details(spread(small, layout, *pipeline(layout, 1, 2)), capsys)
    assert "The pipeline, bytes a rank: 2 ranks, zbv, 2 stages a rank" in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[:4] for row in rows if row[0] in ("0, 3", "1, 2")] == [["0, 3", "0", "1", "2"], ["1, 2", "1", "1", "1"]]
    assert ["3", "norm, head, loss", "0", "1", "4", "4"] in rows


@pytest.mark.usefixtures("wide")
def test_of_many_ranks_of_a_pipeline_three_have_tables(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    classes = pipeline(PIPELINE, *(10**9 * (each + 1) for each in (0, 1, 7, 2, 3, 4, 5, 6)), count=2)
    out = details(spread(small, PIPELINE, *classes), capsys)
    shown = [line for line in out.splitlines() if line.startswith("Memory of a rank (")]
    assert [line.partition(" and ")[0] for line in shown] == [f"Memory of a rank (rank {rank}" for rank in (0, 4, 14)]
    few = msgspec.structs.replace(PIPELINE, pp=4, num_gpus=8, stage_layers=(1, 1, 1, 2))
    out = details(spread(small, few, *pipeline(few, 1, 2, 3, 4, count=2)), capsys)
    assert out.count("Memory of a rank (") == 4


@pytest.mark.usefixtures("wide")
def test_messages_of_a_pipeline_have_buffers(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    received = msgspec.structs.replace(COLLECTIVES[0], op="receive", axis="pp", bytes_in=0)
    classes = tuple(
        msgspec.structs.replace(each, collectives=(received,)) for each in pipeline(PIPELINE, *range(8), count=2)
    )
    said = " ".join(details(spread(small, PIPELINE, *classes), capsys).split())
    assert "torch has a buffer for each message before the first pass: together the bytes out of all receives." in said
    said = " ".join(details(spread(small, LAYOUT, rank_class(1, count=64)), capsys).split())
    assert "torch has a buffer for each message" not in said


@pytest.mark.usefixtures("wide")
def test_an_embedding_that_two_stages_have_is_in_the_sums(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    analysis = spread(small, PIPELINE, *pipeline(PIPELINE, *range(8), count=2))
    assert analysis.undivided is not None
    assert "in two stages" not in details(analysis, capsys)
    undivided = msgspec.structs.replace(analysis.undivided, copied_parameters=6_144)
    out = details(msgspec.structs.replace(analysis, undivided=undivided), capsys)
    (row,) = (line for line in out.splitlines() if "of which in two stages" in line)
    assert "6,144" in row
    assert f"{2 * (small.parameters.total + 6_144):,}" in out


@pytest.mark.usefixtures("wide")
def test_an_estimate_has_no_collectives_and_no_sums(capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(tp=2, fsdp=2, framework="megatron")
    spec = spec_from_fields(LLAMA, "small")
    out = details(analyze(spec, layout=layout), capsys)
    said = " ".join(out.split())
    assert "16-bit weights, gradients in fp32, fp32 master weights and moments in shards." in said
    assert "By Megatron-LM's rules of what is held, by formula: an estimate." in said
    assert "Weights and gradients are whole on each rank." in said
    assert "FLOPs of a rank in one step" in said
    for absent in ("Collectives of a rank", "Sums over all", "The pipeline, bytes"):
        assert absent not in said
    ranks = said.partition("Memory of a rank")[2]
    assert "The step was measured in" not in ranks


def test_no_layout_no_tables(small: Analysis) -> None:
    assert list(rank_tables(small)) == []


@pytest.mark.parametrize("width", ["80", "120"])
def test_no_number_is_cut(
    width: str, small: Analysis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    ranks = rank_class(54 * 10**9, count=64)
    out = details(spread(small, LAYOUT, ranks), capsys)
    assert f"{ranks.memory.peak_bytes:,}" in out
    assert "…│" not in out
    assert max(map(len, out.splitlines())) <= int(width)


def test_the_table_of_fits_is_of_the_worst_rank(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    analysis = spread(small, LAYOUT, rank_class(54 * 10**9, count=64))
    print_parts(analysis_parts(analysis, fits_on(analysis, [find_gpu("H100")])))
    assert "The worst rank on one device of each GPU, bytes" in " ".join(capsys.readouterr().out.split())


def test_json(small: Analysis) -> None:
    """Its keys are those of a class; nothing is lost on the way back."""
    analysis = spread(small, LAYOUT, rank_class(54 * 10**9, count=64))
    analysis = msgspec.structs.replace(analysis, fits=fits_on(analysis, [find_gpu("H100")]))
    (document,) = json.loads(json_document(Results(analyses=[analysis])))["analyses"]
    assert set(document["layout"]) == {
        "num_gpus",
        "gpus_per_node",
        "dp",
        "fsdp",
        "zero",
        "tp",
        "sequence_parallel",
        "cp",
        "ep",
        "pp",
        "schedule",
        "stages_per_rank",
        "stage_layers",
        "grouping",
        "framework",
        "expert_imbalance",
    }
    (ranks,) = document["rank_classes"]
    assert set(ranks) >= {
        "count",
        "stage",
        "parameters",
        "memory",
        "forward_flops",
        "model_flops",
        "hardware_flops",
        "collectives",
        "proof",
    }
    assert set(ranks["collectives"][0]) == {"phase", "op", "axis", "count", "bytes_in", "bytes_out"}
    assert ranks["memory"]["reserved_bytes"] is None
    assert set(ranks["memory"]) == set(document["memory"])
    phase = ranks["memory"]["phases"][0]
    assert (phase["gathered_parameters"], phase["communication_buffers"]) == (9 * 10**8, 3 * 10**8)
    assert (document["fits"][0]["rank"], document["fits"][0]["basis"]) == (0, "allocated")
    assert msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis) == analysis

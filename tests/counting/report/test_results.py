"""The JSON document and the plain lines: what programs read."""

import json
from typing import Any

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import plan_budget
from counting.cost.budget_on_model import spend_on
from counting.cost.comparison import compare
from counting.cost.design import design_for_budget
from counting.cost.run import RunPlan, plan_run
from counting.cost.scaling_laws.side_by_side import laws_side_by_side
from counting.report import Results, json_document, print_results
from counting.report.details.design import design_parts
from counting.report.plain import analysis_lines, budget_lines
from counting.report.printing import print_parts
from counting.setup import Setup
from tests.shrunken import LLAMA

KEYS = [
    *("schema_version", "plan", "warnings", "analyses", "runs"),
    *("comparison", "budget", "fit", "published", "claim"),
]


@pytest.fixture(scope="module")
def small() -> Analysis:
    return analyze(LLAMA, Setup(sequence_length=16))


def decoded(found: object) -> Any:
    return json.loads(msgspec.json.encode(found))


def test_what_was_not_asked_for_is_null() -> None:
    document = json.loads(json_document(Results()))
    assert list(document) == KEYS
    assert document["schema_version"] == 2
    assert {key: value for key, value in document.items() if value is not None} == {
        "schema_version": 2,
        "warnings": [],
        "analyses": [],
        "runs": [],
    }


def test_what_was_found_stands_as_it_encodes(small: Analysis) -> None:
    budget, plan = plan_budget(1e4), RunPlan(tokens=10**9, gpus=("H100",))
    results = Results(
        analyses=[small],
        runs=[plan_run(small, plan)],
        comparison=compare([small, small], plan),
        budget=budget,
        spent=[spend_on(small, budget)],
        design=design_for_budget(budget, "mine"),
        laws=laws_side_by_side(budget.training_flops, budget.law),
    )
    document = json.loads(json_document(results))
    assert list(document) == KEYS
    assert msgspec.convert(document["analyses"][0], Analysis) == small
    assert document["runs"] == decoded(results.runs)
    assert [outcome["mfu_source"] for outcome in document["runs"][0]["gpus"][0]["outcomes"]] == ["assumed"] * 3
    assert document["comparison"] == decoded(results.comparison)
    design, models, laws = (document["budget"].pop(key) for key in ("design", "models", "laws"))
    assert laws == decoded(results.laws)
    beyond = {key: document["budget"].pop(key) for key in ("data_limited", "inference_aware", "mixture")}
    assert beyond == dict.fromkeys(beyond)  # which were not asked for
    assert document["budget"] == decoded(budget)
    assert design == decoded(results.design)
    assert models == decoded(results.spent)


def test_warnings_and_plan_stand_in_the_document(small: Analysis) -> None:
    plan: dict[str, object] = {"model_config": ["small"], "seq_len": 16}
    results = Results(analyses=[small], warnings=["small: a long sequence"], plan=plan, on_catalogue=[()])
    document = json.loads(json_document(results))
    assert list(document) == KEYS
    assert (document["warnings"], document["plan"]) == (["small: a long sequence"], plan)


def test_tables_and_checks_are_printed_where_they_are_asked_for(
    small: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {}
    for details in (False, True):
        for proof in (False, True):
            print_results(Results(analyses=[small]), None, details=details, proof=proof)
            printed[details, proof] = capsys.readouterr().out
    screen = printed[False, False]
    assert all(out.startswith(screen) for out in printed.values())
    for (details, proof), out in printed.items():
        assert ("\nForward FLOPs of one sequence\n" in out) == details
        assert ("\n  dense layer, forward_flops\n" in out) == proof
    assert len(printed[True, True]) == len(printed[True, False]) + len(printed[False, True]) - len(screen)


def test_plain_lines_of_a_model() -> None:
    """FLOPs and memory are of one layer."""
    assert analysis_lines(analyze("llama_7b", step=False)) == [
        "Number of parameters: 6738415616",
        "Number of TFLOPs: 0.897648164864",
        "Peak memory cost: 0.753696792 GBs",
    ]


def test_plain_lines_of_a_budget() -> None:
    budget = plan_budget(5_000_000)
    assert budget_lines(budget) == [
        "best_gpu: A100",
        "training_budget_flops: 5.616e+23",
        f"Optimal N: {budget.optimal_parameters}",
        f"Optimal D: {budget.optimal_tokens}",
    ]


def test_plain_lines_come_first_and_name_each_of_several_models(
    small: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    other = msgspec.structs.replace(small, name="other")
    results = Results(analyses=[small, other], budget=plan_budget(1e6))
    print_results(results, None, details=False, proof=False)
    out = capsys.readouterr().out
    assert results.budget is not None
    blocks = [[f"Model: {analysis.name}", *analysis_lines(analysis)] for analysis in (small, other)]
    expected = "\n\n".join("\n".join(block) for block in [*blocks, budget_lines(results.budget)])
    assert out.startswith(expected + "\n\n")
    print_results(Results(analyses=[small]), None, details=False, proof=False)
    assert capsys.readouterr().out.startswith("\n".join(analysis_lines(small)) + "\n\n")


def test_a_comparison_stands_for_its_models(small: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare([small, small], RunPlan(tokens=10**9, gpus=("H100",)))
    print_results(Results(analyses=[small, small], comparison=comparison), None, details=True, proof=False)
    out = capsys.readouterr().out
    assert out.startswith("Training on 1 B tokens with H100 at 40 % MFU")
    assert "\nTraining 1,000,000,000 tokens on H100 at 40 % MFU\n" in out
    assert "Number of parameters" not in out
    assert "\nParameters\n" not in out


def test_a_design(capsys: pytest.CaptureFixture[str]) -> None:
    design = design_for_budget(plan_budget(10_000), name="mine")
    print_parts(design_parts(design, "[b]mine.json"))
    out = " ".join(capsys.readouterr().out.split())
    config = design.config
    assert "written to [b]mine.json" in out
    assert f"{config['num_hidden_layers']} × {config['hidden_size']}" in out
    assert f"{config['num_attention_heads']} queries on {config['num_key_value_heads']} keys and values" in out
    assert f"{design.parameters:,} (" in out
    assert f"{design.tokens:,} (" in out
    assert f"{design.training_flops_per_token:,} (3 ×" in out
    assert all(" ".join(rule.split()) in out for rule in design.rules)


def test_a_designed_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    design = design_for_budget(plan_budget(50_000), "mine", "deepseek_v3")
    print_parts(design_parts(design, "mine.json"))
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    config = design.config
    assert f"{config['n_routed_experts']} routed, {config['num_experts_per_tok']} of them for a token" in out
    assert "Granularity 8 (SwiGLU width" in out
    assert "Sparsity 16 (routed experts" in out  # 96 experts, 6 of them for a token
    assert f"Parameters, measured {design.parameters:,} " in out
    assert f"Active parameters, measured {design.active_parameters:,} ({design.relative_error:+.3%} from N)" in out
    assert f"{design.mtp_parameters:,} parameters more, in no N" in out
    assert "measured forward pass and multi-token prediction at sequence length 4096" in out
    assert "per active parameter)" in out
    assert design.mixture is not None
    assert f"{design.mixture.predicted_loss:.5f}, and {design.mixture.dense_loss:.5f} for a dense model" in out
    assert design.mixture.predicted_loss < design.mixture.dense_loss


def test_a_designed_mixture_on_the_first_screen(capsys: pytest.CaptureFixture[str]) -> None:
    budget = plan_budget(50_000)
    design = design_for_budget(budget, "mine", "deepseek_v3")
    print_results(Results(analyses=[], budget=budget, design=design), "mine.json", details=False, proof=False)
    out = " ".join(capsys.readouterr().out.split())
    layers, width = design.config["num_hidden_layers"], design.config["hidden_size"]
    assert f"mine.json: deepseek_v3, {layers} layers × {width}, " in out
    assert "parameters active, as measured, " in out
    assert design.mixture is not None
    assert (
        f"N is active 6 of 96 experts for a token; course does not count the others. {design.mixture.scaling_law}, "
        in out
    )

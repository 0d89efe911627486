"""The two public APIs: every name is there, from one module, and takes what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

import counting
import torch_models
from counting import Setup, analyze
from model_training_cost_analysis import model_training_cost_analysis_deepseek, model_training_cost_analysis_llama
from tests.foreign_families import GPT2
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import UserError, build, build_mtp, load_checkpoint, read_spec


def test_what_is_promised_is_public() -> None:
    assert set(counting.__all__) == {
        "Analysis",
        "Cluster",
        "DisagreementError",
        "FittedLaw",
        "Layout",
        "RunPlan",
        "Setup",
        "StepTime",
        "TrainedRun",
        "UserError",
        "analyze",
        "compare",
        "count_flops",
        "design_for_budget",
        "find_gpu",
        "find_law",
        "fit_law",
        "fits_on",
        "load_gpus",
        "measure_memory",
        "plan_budget",
        "plan_run",
        "read_cluster",
        "read_gpus",
        "read_runs",
    }
    assert set(torch_models.__all__) >= {"build", "build_mtp", "load_checkpoint", "read_spec", "set_recompute"}
    assert set(torch_models.__all__) >= {"build_training_model", "check_batch", "initialize", "loss_normalizer"}
    assert set(torch_models.__all__) >= {"load_training_model", "save_checkpoint"}
    assert set(torch_models.__all__) >= {"LayerSpec", "GroupedQueryAttentionSpec", "MultiHeadLatentAttentionSpec"}
    assert set(torch_models.__all__) >= {"GatedMLPSpec", "MixtureOfExpertsSpec", "ModelSpec", "CheckpointError"}


@pytest.mark.parametrize("package", [counting, torch_models], ids=["counting", "torch_models"])
def test_every_public_name_is_there_and_documented(package: Any) -> None:
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_a_mapping_is_a_config() -> None:
    fields = dict(DEEPSEEK_V3)
    assert read_spec(fields).num_layers == 4
    model, mtp_layers = build(fields, device="meta"), build_mtp(fields, device="meta")
    assert (len(model.model.layers), len(mtp_layers)) == (4, 1)
    analysis = analyze(fields, Setup(sequence_length=16))
    assert analysis.name == "config"
    assert analysis.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert fields == DEEPSEEK_V3, "the caller's mapping is left as it was"


def test_the_functions_of_the_top_file_take_what_analyze_takes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    expected = model_training_cost_analysis_llama(LLAMA)
    assert expected[0] == analyze(LLAMA, step=False).parameters.total
    assert model_training_cost_analysis_llama(tmp_path) == expected
    rule = "model_type = 'llama': this function is for deepseek_v3"
    for config, error in ((LLAMA, rule), (tmp_path, f"{tmp_path / 'config.json'}: {rule}")):
        with pytest.raises(UserError) as caught:
            model_training_cost_analysis_deepseek(config)
        assert str(caught.value) == error


@pytest.mark.parametrize(("config", "shown"), [(5, "5"), (None, "null"), (b".", r"b'\.'"), ([1], r"\[1\]")], ids=str)
def test_what_is_no_config(config: Any, shown: str) -> None:
    rule = "must be a path, a folder, a name in configs/, or a mapping of fields"
    for function in (read_spec, build, analyze):
        with pytest.raises(UserError, match=f"^config = {shown}: {rule}$"):
            function(config)
    with pytest.raises(UserError, match=f"^folder = {shown}: must be a path$"):
        load_checkpoint(config)


def test_a_mapping_of_another_family() -> None:
    analysis = analyze({"model_type": "gpt_bigcode", **GPT2}, Setup(sequence_length=16))
    assert analysis.proof == "measured, no formula"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (LLAMA | {"hidden_size": -1}, r"^hidden_size = -1: must be int >= 1$"),
        (LLAMA | {"hiden_size": 8}, r"^hiden_size = 8: this field is not understood; did you mean hidden_size\?$"),
        ({3: 4}, r"^a config's fields have names, but one is 3$"),
        ({}, r"^model_type = null: is missing"),
    ],
)
def test_a_mapping_that_is_no_config(fields: Any, error: str) -> None:
    for function in (read_spec, build, analyze):
        with pytest.raises(UserError, match=error):
            function(fields)

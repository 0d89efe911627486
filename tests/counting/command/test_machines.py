"""GPUs on the command line: does a step fit, a GPU of one's own, a run under way, days of a budget."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counting.analysis import analyze
from counting.cost.fits import fits_on
from counting.cost.hardware import find_gpu
from counting.setup import Setup
from model_training_cost_analysis import main
from tests.foreign_families import FAMILIES

OWN: dict[str, Any] = {
    "name": "Ours",
    "description": "a chip of our own",
    "training_dtype": "bfloat16",
    "peak_dense_tflop_per_s": 500,
    "peak_dense_fp8_tflop_per_s": None,
    "memory_gb": 128,
    "memory_bandwidth_tb_per_s": 2,
    "power_watts": None,
    "price_usd_per_hour": 1.25,
    "sources": {"compute": "us", "memory": "us", "power": None, "price": "us"},
}


def document_of(flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["--json", *flags.split()]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.fixture
def own_file(folder: Path) -> Path:
    (folder / "own.json").write_text(json.dumps([OWN, OWN | {"name": "Theirs", "price_usd_per_hour": 2}]))
    return folder / "own.json"


# --- Does it fit? ----------------------------------------------------------------------------------------------


def test_gpus_with_a_model_alone_say_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    (analysis,) = document_of("--model_config llama_7b --gpus h100,MI300X,MI250X", capsys)["analyses"]
    expected = fits_on(analyze("llama_7b", reserved=True), [find_gpu(name) for name in ("H100", "MI300X", "MI250X")])
    assert analysis["fits"] == json.loads(msgspec.json.encode(expected))
    assert [fit["gpu"] for fit in analysis["fits"]] == ["H100", "MI300X", "MI250X"]
    assert [fit["fits"] for fit in analysis["fits"]] == [False, True, False]
    for fit in analysis["fits"]:
        assert fit["allocated_bytes"] == analysis["memory"]["peak_bytes"] < fit["reserved_bytes"] <= fit["needed_bytes"]
        assert fit["basis"] == "reserved"
    assert analysis["fits"][2]["capacity_bytes"] <= 64 * 2**30, "a die of two"


def test_recomputation_and_chunks_are_what_the_fit_is_of(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config llama_7b --gpus MI300X --recompute full --loss_chunk 1024"
    (analysis,) = document_of(flags, capsys)["analyses"]
    setup = Setup(recompute="full", loss_chunk=1024)
    expected = fits_on(analyze("llama_7b", setup, reserved=True), [find_gpu("MI300X")])
    assert analysis["fits"] == json.loads(msgspec.json.encode(expected))


@pytest.mark.parametrize("flags", ["", "--training_budget 5M", "--published"])
def test_no_gpus_no_fits(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    (analysis,) = document_of(f"--model_config llama_7b {flags}", capsys)["analyses"]
    assert analysis["fits"] is None


def test_the_gpus_of_a_run_say_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("--model_config llama_7b llama_13b --gpus A100 --tokens 1T", capsys)
    assert [[fit["gpu"] for fit in analysis["fits"]] for analysis in document["analyses"]] == [["A100"], ["A100"]]


def test_a_step_through_transformers_fits_or_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "foreign.json").write_text(json.dumps(FAMILIES["bloom"][0] | {"model_type": "bloom"}))
    for flags in ("", " --tokens 1M"):
        (analysis,) = document_of(f"--model_config foreign.json --seq_len 16 --gpus H100{flags}", capsys)["analyses"]
        (fit,) = analysis["fits"]
        assert (fit["fits"], fit["basis"]) == (True, "allocated")
        assert fit["allocated_bytes"] == analysis["memory"]["peak_bytes"]
        assert fit["needed_bytes"] == fit["allocated_bytes"] + fit["context_bytes"]


# --- A GPU of one's own ----------------------------------------------------------------------------------------


def test_a_gpu_of_ones_own(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model_config llama_7b --tokens 1T --mfu 0.5 --gpu_file own.json"
    (run,) = document_of(f"{flags} --gpus ours,A100", capsys)["runs"]
    assert [gpu["gpu"] for gpu in run["gpus"]] == ["Ours", "A100"]
    (outcome,) = run["gpus"][0]["outcomes"]
    hours = Fraction(3 * 29_261_612_187_648 * 10**12, 2048) / (3600 * 250 * 10**12)
    assert outcome["gpu_hours"] == float(hours)
    assert outcome["cost_usd"] == float(hours * Fraction(5, 4))
    assert outcome["energy_mwh"] is None


def test_all_of_the_file_where_none_is_named(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("--model_config llama_7b --tokens 1T --gpu_file own.json --price 3", capsys)
    (run,), (analysis,) = document["runs"], document["analyses"]
    assert [(gpu["gpu"], gpu["price_usd_per_hour"]) for gpu in run["gpus"]] == [("Ours", 3), ("Theirs", 3)]
    assert [fit["gpu"] for fit in analysis["fits"]] == ["Ours", "Theirs"]


def test_a_budget_on_ones_own(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budget = document_of("--training_budget 5M --gpu_file own.json --gpu_prices Theirs=0.5", capsys)["budget"]
    assert (budget["best_gpu"], budget["gpu_hours"]) == ("Theirs", 10**7)
    assert budget["more_on"] is None
    assert document_of("--training_budget 5M --gpu_file own.json --gpus A100", capsys)["budget"]["best_gpu"] == "A100"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[{]", "own.json: "),
        ("{}", "own.json: "),
        (json.dumps([{key: value for key, value in OWN.items() if key != "memory_gb"}]), "own.json: entry 1 (Ours): "),
        (json.dumps([OWN, OWN | {"name": "B", "memory_gb": -1}]), "own.json: entry 2 (B): memory_gb = -1: must be"),
        (json.dumps([OWN | {"name": "H100"}]), "own.json: entry 1 (H100): name = 'H100': "),
    ],
)
def test_a_bad_gpu_file_is_one_line_and_exit_2(
    entries: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "own.json").write_text(entries)
    assert main(["--model_config", "llama_7b", "--gpu_file", "own.json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1


def test_names_of_the_file_are_listed_with_the_catalogue(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_config", "llama_7b", "--gpu_file", "own.json", "--gpus", "mine"]) == 2
    assert capsys.readouterr().err.startswith("error: --gpus = 'mine': is not known: choose from Ours, Theirs, V100, ")


# --- A run under way, a budget's days --------------------------------------------------------------------------


def test_a_run_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--model_config llama_3_8b --tokens 15T --gpus H100 --num_gpus 1,024 --price 2 --tokens_per_second_per_gpu 11k"
    )
    (run,) = document_of(flags, capsys)["runs"]
    (gpu,) = run["gpus"]
    (outcome,) = gpu["outcomes"]
    hours = Fraction(15 * 10**12, 11_000 * 3600)
    assert outcome["gpu_hours"] == float(hours)
    assert outcome["cost_usd"] == float(2 * hours)
    assert outcome["days"] == float(hours / 1024 / 24)
    assert outcome["tokens_per_second"] == 11_000 * 1024
    assert outcome["mfu_source"] == "given"
    implied = {entry["convention"]: entry for entry in gpu["implied_mfu"]}
    assert implied.keys() == {"6N", "6N_full_attention", "6N_causal_attention", "own"}
    assert implied["own"]["mfu"] == outcome["mfu"]
    for entry in implied.values():
        flops_per_second = entry["training_flops_per_token"] * 11_000
        assert entry["mfu"] == pytest.approx(flops_per_second / (gpu["peak_dense_tflop_per_s"] * 1e12), rel=1e-9)


def test_a_budget_on_a_number_of_gpus_lasts_so_many_days(capsys: pytest.CaptureFixture[str]) -> None:
    budget = document_of("--training_budget $5,000,000 --num_gpus 256", capsys)["budget"]
    assert (budget["budget_usd"], budget["best_gpu"], budget["num_gpus"]) == (5e6, "A100", 256)
    assert budget["days"] == float(Fraction(5_000_000, 4) / 256 / 24)


def test_the_default_gpus_say_when_the_catalogue_has_one_that_buys_more(capsys: pytest.CaptureFixture[str]) -> None:
    more = document_of("--training_budget 5M", capsys)["budget"]["more_on"]
    assert (more["gpu"], more["price_usd_per_hour"]) == ("H800", 2)
    assert more["training_flops"] == 5_000_000 // 2 * 3600 * find_gpu("H800").peak_flop_per_s * 4 // 10
    assert document_of("--training_budget 5M --gpus A100,V100,T4", capsys)["budget"]["more_on"] is None

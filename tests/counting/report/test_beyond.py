"""A budget beyond plain compute, as typed: the first screen, the tables, and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from counting.cost.scaling_laws.law_file import law_as_json
from model_training_cost_analysis import main
from tests.counting.cost.scaling_laws.own_laws import COURSE, draws_near, law_of

BUDGET = "--training_budget 5M"
EVERY = f"{BUDGET} --unique_tokens 300B --inference_tokens 2T --expansion_rate 16"


def printed(flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(flags.split()) == 0
    return capsys.readouterr().out


def in_json(flags: str, capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(printed(f"{flags} --json", capsys))


def test_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(EVERY, capsys)
    rows = [" ".join(line.split()) for line in out.splitlines()]
    first = rows.index("beyond plain compute parameters tokens loss")
    assert rows[first + 1 : first + 4] == [
        "300 B unique tokens 39.8 B 2.35 T 1.911* 7.84 epochs",
        "and serving 2 T 29.4 B 2.52 T 1.906* 20.9 % is serving",
        "mixture, expansion 16 153 B active 612 B 1.851* dense 1.906",
    ]
    words = " ".join(rows)
    for note in (
        "* beyond the runs of its law; that of mixtures by 1.8 orders of magnitude",
        "66.7 % of the FLOPs reach that loss if every token is new, by muennighoff-2023, with course an assumption",
        "serving adds 33.8 % to the best model above; 34.5 B on 2.82 T tokens have its loss for 4.2 % less in all",
        "mixture about 1.73 T in total; a dense model reaches its loss with 3.10 × the FLOPs",
        "its law ludziejewski-2025, on other data: compare with dense only",
    ):
        assert note in words


def test_enough_unique_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(f"{BUDGET} --unique_tokens 15T", capsys)
    assert "nothing repeats" in out
    assert "and serving" not in out
    assert "mixture" not in out


def test_a_budget_within_the_runs_has_no_star(capsys: pytest.CaptureFixture[str]) -> None:
    # 1.123e20 FLOPs: 0.9 billion parameters on 20 billion tokens.
    out = printed("--training_budget 1000 --unique_tokens 15B --inference_tokens 1B --expansion_rate 8", capsys)
    assert "*" not in out
    assert "beyond the runs" not in out


def test_without_a_flag_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "beyond" not in printed(BUDGET, capsys).replace("extrapolated beyond what it was fitted to", "")
    budget = in_json(BUDGET, capsys)["budget"]
    assert [budget[name] for name in ("data_limited", "inference_aware", "mixture")] == [None] * 3


def test_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = printed(f"{EVERY} --model_config mixtral_8x7b --seq_len 4096 --details", capsys)
    for text in (
        "The best model with 300 B unique tokens, by course",
        "39,775,878,689",
        "2,353,184,972,526, 7.84 epochs",
        "1.89696; the loss above would take 3.743e+23 FLOPs, 66.65 % of the budget",
        "Models whose training repeats these tokens",
        "Training, and serving 2 T tokens, by course",
        "34,451,325,713",
        "Models that are trained, and serve 2 T tokens",
        "The best mixture of experts at an expansion rate of 16, by ludziejewski-2025",
        "Given mixtures, by ludziejewski-2025",
        "Extrapolated: beyond the runs of the law, or 9 billion parameters",
    ):
        assert text in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = in_json(f"{EVERY} --scaling_law besiroglu-2024", capsys)
    assert document["plan"] == {
        "json": True,
        "training_budget": "5M",
        "scaling_law": "besiroglu-2024",
        "unique_tokens": "300B",
        "inference_tokens": "2T",
        "expansion_rate": "16",
    }
    budget = document["budget"]
    limited, served, mixture = (budget[name] for name in ("data_limited", "inference_aware", "mixture"))
    assert (limited["scaling_law"], served["scaling_law"]) == ("besiroglu-2024", "besiroglu-2024")
    assert mixture["scaling_law"] == "ludziejewski-2025"
    assert limited["optimum"]["unique_tokens"] == 300 * 10**9
    assert limited["optimum"]["unlimited_loss"] == pytest.approx(budget["predicted_loss"])
    assert served["optimum"]["inference_tokens"] == 2 * 10**12
    plain = served["optimum"]["plain"]
    assert (plain["parameters"], plain["tokens"]) == (budget["optimal_parameters"], budget["optimal_tokens"])
    for flops in ("training_flops", "inference_flops", "total_flops"):
        assert isinstance(plain[flops], int)
    assert mixture["optimum"]["expansion_rate"] == 16
    assert (limited["models"], served["models"], mixture["models"]) == ([], [], [])


def test_a_law_of_ones_own_has_intervals(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("law.json").write_bytes(law_as_json(law_of(COURSE, *draws_near(COURSE))))
    document = in_json(f"{EVERY} --scaling_law law.json", capsys)
    for name in ("data_limited", "inference_aware"):
        intervals = document["budget"][name]["optimum"]["intervals"]
        assert intervals["parameters"]["low"] < intervals["parameters"]["high"]
    monkeypatch.setenv("COLUMNS", "200")
    out = printed(f"{EVERY} --scaling_law law.json --details", capsys)
    assert "95 % intervals of the best of the budget: " in out
    assert "The best model with 300 B unique tokens, by own" in out


THREE = "--unique_tokens 300B --inference_tokens 2T --expansion_rate 16"
DESIGN = "--design x.json --force --design_family deepseek_v3"


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize(
    ("flags", "models"),
    [
        (f"--scaling_law all {THREE} --model_config deepseek_v3", 1),
        ("--scaling_law all --model_config llama_3_8b", 1),
        (f"{DESIGN} --unique_tokens 300B", 1),
        (f"--scaling_law all {THREE.replace('300', '1')} --num_gpus 64 {DESIGN} --model_config deepseek_v3", 1),
        ("--scaling_law law.json,all --unique_tokens 1B --inference_tokens 2T --model_config llama_7b deepseek_v3", 2),
    ],
)
def test_whatever_is_asked_is_one_screen(
    flags: str,
    models: int,
    width: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    Path("law.json").write_bytes(law_as_json(law_of(COURSE, *draws_near(COURSE))))
    lines = printed(f"{BUDGET} {flags}", capsys).splitlines()
    assert len(lines) <= 20 + 10 * models
    assert max(map(len, lines)) <= width
    out = "\n".join(lines)
    if "unique" in flags:
        assert f"  {flags.partition('--unique_tokens ')[2][:-1].split('B')[0]} B unique" in out
    if "serving 2 T" in out:
        assert " left" in out
    if "--design" not in flags:
        assert "  kaplan-2020 " in out


def test_a_given_model_has_what_was_asked_in_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Its epochs and loss with the unique tokens, and the tokens that serving leaves: each for itself, as in JSON."""
    flags = f"{BUDGET} --unique_tokens 300B --inference_tokens 2T --model_config llama_3_8b"
    out = printed(flags, capsys)
    budget = in_json(flags, capsys)["budget"]
    (repeats,), (served,) = budget["data_limited"]["models"], budget["inference_aware"]["models"]
    rows = [line.split() for line in out.splitlines()]
    (headings,) = [row for row in rows if row[:3] == ["the", "budget", "on"]]
    (row,) = [row for row in rows if row[:1] == ["llama_3_8b"] and "total," in row]
    assert headings[-4:] == ["loss", "epochs", "repeats", "left"]
    assert row[-5:] == ["1.935*", f"{repeats['epochs']:.1f}", f"{repeats['predicted_loss']:.3f}*", "9.03", "T"]
    assert (row[-4], row[-3], f"{served['tokens'] / 1e12:.2f}") == ("32.3", "1.953*", "9.03")
    beside = "left: tokens of training, beside serving 2 T"
    assert f"* beyond the runs of its law; repeats: the loss with 300 B unique; {beside}" in " ".join(out.split())


def test_epochs_beyond_the_runs_of_the_fit_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = "epochs: the runs of the fit end at 500 (Muennighoff et al. 2023), where many already did harm"
    out = " ".join(printed(f"{BUDGET} --unique_tokens 1B", capsys).split())
    assert f"1,920 {told}" in out
    assert told not in " ".join(printed(f"{BUDGET} --unique_tokens 300B", capsys).split())
    assert "  1 unique token " in printed(f"{BUDGET} --unique_tokens 1", capsys)

"""--scaling_law: a law's name, its file, all, or several."""

import json
from pathlib import Path
from typing import Any

import pytest

from counting.command.flags.laws import law_files, parse_laws
from counting.cost.scaling_laws import LAWS
from counting.cost.scaling_laws.allocation import allocation_laws
from counting.cost.scaling_laws.law_file import law_as_json
from counting.report.format import NONE
from model_training_cost_analysis import main
from tests.counting.cost.scaling_laws.own_laws import law_of
from torch_models.errors import UserError

OWN = law_of((1.69, 406.4, 410.7, 0.34, 0.29), *[(1.6 + n / 100, 406.4, 410.7, 0.34, 0.29) for n in range(41)])
ALL = [law.name for law in (*LAWS, *allocation_laws())]


@pytest.fixture
def law_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "law.json").write_bytes(law_as_json(OWN))
    return "law.json"


@pytest.mark.parametrize(
    ("text", "followed", "beside"),
    [
        ("besiroglu-2024", "besiroglu-2024", []),
        (" Course ", "course", []),
        ("all", "course", ALL),
        ("All", "course", ALL),
        ("besiroglu-2024, all", "besiroglu-2024", ["besiroglu-2024", *ALL]),
        ("kaplan-2020,hoffmann-2022", "hoffmann-2022", ["kaplan-2020", "hoffmann-2022"]),
        ("law.json", "own", []),
        ("law.json,all", "own", ["own", *ALL]),
    ],
)
def test_what_is_followed_and_what_stands_beside(text: str, followed: str, beside: list[str], law_file: str) -> None:
    laws = parse_laws(text)
    assert (laws.followed.name, [law.name for law in laws.beside]) == (followed, beside)
    assert law_files(text) == ([law_file] if law_file in text else [])


@pytest.mark.parametrize("text", ["kaplan-2020", "kaplan-2020,llama-3-2024"])
def test_a_law_without_a_loss_is_not_followed(text: str) -> None:
    with pytest.raises(UserError, match=r"^scaling_law = 'kaplan-2020': says only N or D and no loss, so nothing"):
        parse_laws(text)


@pytest.mark.parametrize("text", ["", "all,", "course,,all", "al", "course;all"])
def test_a_name_that_is_not_known(text: str) -> None:
    with pytest.raises(UserError, match=r"^scaling_law = .*: is not known: choose from course, "):
        parse_laws(text)


@pytest.mark.parametrize("text", ["course,", ""])
def test_an_unknown_name_is_answered_with_all_that_the_flag_takes(text: str) -> None:
    with pytest.raises(UserError, match="is not known") as refused:
        parse_laws(text)
    assert all(f" {name}" in str(refused.value) for name in (*ALL, "all", "law.json"))


def test_the_help_names_all_files_and_commas(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "a law's name, a file as law.json, all, or several with commas: the first is followed" in out


def test_two_laws_of_one_name(law_file: str) -> None:
    other = law_of((1.7, 406.4, 410.7, 0.34, 0.29))
    Path("other.json").write_bytes(law_as_json(other))
    with pytest.raises(UserError, match=r"^--scaling_law 'law.json,other.json': two laws are called own: give one of"):
        parse_laws("law.json,other.json")
    assert [law.name for law in parse_laws("law.json,law.json").beside] == ["own", "own"]


def budget_of(flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["--json", "--training_budget", "5M", *flags.split()]) == 0
    budget: dict[str, Any] = json.loads(capsys.readouterr().out)["budget"]
    return budget


def test_json(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    budget = budget_of("--scaling_law law.json,all", capsys)
    assert [row["law"] for row in budget["laws"]["rows"]] == ["own", *ALL]
    assert (budget["scaling_law"], budget["law"]["source"], budget["laws"]["followed"]) == ("own", "a test", "own")
    assert budget["intervals"]["loss"]["low"] == pytest.approx(budget["predicted_loss"] - 1.69 + 1.61)
    assert budget["laws"]["rows"][0]["intervals"] == budget["intervals"]
    assert len(budget["apart"]["wrong_choices"]) == 6 * 5
    kaplan = next(row for row in budget["laws"]["rows"] if row["law"] == "kaplan-2020")
    assert (kaplan["predicted_loss"], kaplan["converted_by"]["designed"]) == (None, True)


def test_a_given_model_lends_its_shape_and_a_mixture_does_not(
    law_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = budget_of("--scaling_law all --model_config mixtral_8x7b llama_7b --seq_len 2048", capsys)
    kaplan = next(row for row in budget["laws"]["rows"] if row["law"] == "kaplan-2020")
    assert (kaplan["converted_by"]["model"], kaplan["converted_by"]["designed"]) == ("llama_7b", False)


def test_intervals_reach_the_model_and_the_design(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    budget = budget_of("--scaling_law law.json --model_config llama_7b --design mine.json", capsys)
    for found in (budget["models"][0]["readings"][0], budget["design"]):
        assert found["predicted_loss_interval"]["high"] == pytest.approx(found["predicted_loss"] - 1.69 + 1.99)


def test_the_first_screen_of_one_s_own_law(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training_budget", "5M", "--scaling_law", law_file]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "47.5 B (47.5 B) parameters on 1.97 T (1.97 T) tokens, 41.5 (41.5) per parameter" in out
    assert f"predicted loss 1.897 (1.817{NONE}2.197) nats per token (in brackets: 95 %)" in out
    assert "by the law own; extrapolated by 0.7 orders of magnitude" in out


def test_a_file_without_draws_says_so(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(law_file).write_bytes(law_as_json(law_of((1.69, 406.4, 410.7, 0.34, 0.29))))
    assert main(["--training_budget", "5M", "--scaling_law", law_file, "--details"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "its file has no draws, so there are no intervals" in out
    assert "in brackets" not in out


@pytest.mark.parametrize(
    "flags", ["", "--scaling_law all", "--scaling_law law.json,all", "--scaling_law law.json --num_gpus 64"]
)
def test_it_is_one_screen_and_says_how_far_the_laws_are_apart(
    flags: str, law_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--training_budget", "5M", *flags.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    out = " ".join(" ".join(lines).split())
    if "all" in flags:
        assert all(f"  {name}" in "\n".join(lines) for name in ALL)
        assert (
            f"holds; {NONE}: it says only N or D N is all parameters, C is 6 N D; kaplan-2020 and deepseek-2024" in out
        )
        assert "laws apart" not in out
    else:
        assert (
            f"laws apart 18.4{NONE}92.4 tokens per parameter; if hoffmann-2022 holds, this choice costs 0.0018 nats"
            in out
        )
        assert "4.8 % of the FLOPs" in out


def test_where_there_is_no_place_for_all_it_says_where_they_are(
    law_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table goes last: with a model it stays, even on a narrow screen; with all that a budget can be asked not."""
    flags = "--training_budget 5M --scaling_law law.json,all --model_config llama_7b --num_gpus 64"
    assert main(flags.split()) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 30
    assert all(f"  {name}" in out for name in ("own", *ALL))
    monkeypatch.setenv("COLUMNS", "60")
    every = "--unique_tokens 300B --inference_tokens 2T --expansion_rate 16 --design mine.json"
    assert main([*flags.split(), *every.split()]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 30
    assert "tokens per N; all in the details" in " ".join(out.split())
    assert "kaplan-2020" not in out


def test_all_laws_are_in_the_details(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training_budget", "5M", "--scaling_law", "law.json,all", "--details"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("A wrong choice: nats lost", "Laws side by side", "95 % intervals", "M, FLOPs a token", "arXiv"):
        assert text in out
    assert "0.0018, 4.8 %" in out


def test_a_design_does_not_replace_the_law(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(law_file).read_bytes()
    flags = ["--training_budget", "5M", "--scaling_law", f"{law_file},all", "--design", law_file, "--force"]
    assert main(flags) == 2
    assert "--scaling_law" in capsys.readouterr().err
    assert Path(law_file).read_bytes() == before


def test_a_law_that_is_none_is_one_line(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(law_file).write_text(Path(law_file).read_text().replace("0.34", "-0.34", 1))
    assert main(["--training_budget", "5M", "--scaling_law", law_file]) == 2
    rule = "parameter_exponent.value = -0.34: must be a number above 0"
    assert capsys.readouterr().err == f"error: law.json: {rule}\n"


def test_a_plan_has_laws_as_a_list(law_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.toml").write_text('training_budget = "5M"\nscaling_law = ["law.json", "besiroglu-2024"]\n')
    assert main(["--plan", "plan.toml", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["budget"]["laws"]["rows"]
    assert [row["law"] for row in rows] == ["own", "besiroglu-2024"]

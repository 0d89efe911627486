"""A plan in a TOML file: every flag is a key, typed flags win, and JSON repeats it."""

import json
from pathlib import Path
from typing import Any

import pytest

from counting.command.flags import flags_parser, read_flags
from counting.command.plan_file import plan_as_arguments
from model_training_cost_analysis import main
from tests.shrunken import DEEPSEEK_V3, LLAMA

PLAN = """
model_config = ["tiny", "mixed"]
seq-len = 32
tokens = 15_000_000_000
gpus = ["H100", "A100"]
gpu_prices = { H100 = 2.1, A100 = "$1.50" }
num_gpus = "2K"
mfu = 0.4
mtp = "off"
json = true
"""


@pytest.fixture
def plan(folder: Path) -> Path:
    """The plan above, and the models that it names."""
    (folder / "tiny").write_text(json.dumps(LLAMA))
    (folder / "mixed").write_text(json.dumps(DEEPSEEK_V3))
    (folder / "my.toml").write_text(PLAN)
    return folder / "my.toml"


def document_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(arguments) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_plan_says_what_flags_would(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--json --model_config tiny mixed --seq_len 32 --tokens 15B --gpus H100,A100 --num_gpus 2000 --mfu 0.4"
    flags += " --gpu_prices H100=2.1,A100=1.5 --mtp off"
    planned, typed = document_of(["--plan", "my.toml"], capsys), document_of(flags.split(), capsys)
    assert planned.pop("plan") == {
        "json": True,
        "model_config": ["tiny", "mixed"],
        "seq_len": "32",
        "mtp": "off",
        "gpus": "H100,A100",
        "num_gpus": "2K",
        "gpu_prices": "H100=2.1,A100=$1.50",
        "mfu": "0.4",
        "tokens": "15000000000",
    }
    del typed["plan"]
    assert planned == typed
    assert len(planned["runs"]) == 2


def as_toml(plan: dict[str, Any]) -> str:
    """JSON's texts, lists and truth values are TOML's."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in plan.items())


@pytest.mark.parametrize(
    "flags",
    [
        "--json --plan my.toml --seq-len 16 --gpu_hours 400 --gpus H100 --gpu-prices H100=3",
        "--json --training_budget $5M --gpus A100,H100 --num_gpus 1,024 --scaling_law hoffmann-2022",
        "--json --published",
        "--json --compare --model_config tiny mixed --tokens 1B --gpus H100 --details --recompute full",
    ],
)
def test_a_result_can_be_had_again_from_its_plan(
    flags: str, plan: Path, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    document = document_of(flags.split(), capsys)
    (folder / "again.toml").write_text(as_toml(document["plan"]))
    assert document_of(["--plan", "again.toml"], capsys) == document


def test_typed_flags_win(plan: Path) -> None:
    options = read_flags(["--plan", "my.toml", "--model_config", "other", "--seq_len", "64", "--tokens", "1T"])
    assert (options.model_config, options.seq_len, options.tokens) == (["other"], "64", "1T")
    assert (options.mtp, options.num_gpus, options.mfu) == ("off", "2K", "0.4")
    assert options.from_plan == {"json", "gpus", "gpu_prices", "num_gpus", "mfu", "mtp"}


@pytest.mark.parametrize(
    ("typed", "replaced"),
    [
        ("--gpu_hours 400", {"mfu"}),
        ("--tokens_per_second_per_gpu 11000", {"mfu"}),
        ("--price 2", {"gpu_prices"}),
        ("--price 2 --gpu_hours 400", {"mfu", "gpu_prices"}),
        ("--num_gpus 7", set()),
    ],
)
def test_a_typed_flag_takes_the_place_of_what_says_the_same(typed: str, replaced: set[str], plan: Path) -> None:
    options = read_flags(["--plan", "my.toml", *typed.split()])
    assert {flag for flag in ("mfu", "gpu_prices") if getattr(options, flag) is None} == replaced


def test_every_flag_is_a_key(folder: Path) -> None:
    parser = flags_parser()
    flags = [action for action in parser._actions if action.dest not in ("help", "version", "plan")]
    assert len(flags) > 25
    for action in flags:
        typed: object = "x"
        if action.nargs == 0:
            typed = True
        elif action.choices:
            typed = next(iter(action.choices))
        for key in (action.dest, action.dest.replace("_", "-")):
            (folder / "one.toml").write_text(f"{key} = {json.dumps(typed)}")
            arguments = plan_as_arguments("one.toml", parser)
            expected = [typed] if action.nargs == "+" else typed
            assert getattr(parser.parse_args(arguments), action.dest) == expected


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", []),
        ("json = false\nproof = true", ["--proof"]),
        ("published = true", ["--published"]),
        ("published = false", []),
        ('published = "bills"', ["--published=bills"]),
        ('model_config = "a b.json"', ["--model_config=a b.json"]),
        ('model_config = ["-a", "b"]', ["--model_config=-a", "--model_config=b"]),
        ("training_budget = 5e6", ["--training_budget=5000000.0"]),
        ("tokens = 1e18", ["--tokens=1e+18"]),
        ("mfu = nan", ["--mfu=nan"]),
        ('gpus = ""', ["--gpus="]),
        ("gpus = []", ["--gpus="]),
        ("[gpu_prices]\nH100 = 2\n'My chip' = 0.5", ["--gpu_prices=H100=2,My chip=0.5"]),
        ("\ufeffseq_len = 8", ["--seq_len=8"]),
    ],
)
def test_values_are_as_one_would_type_them(text: str, arguments: list[str], folder: Path) -> None:
    (folder / "my.toml").write_text(text, encoding="utf-8")
    assert plan_as_arguments("my.toml", flags_parser()) == arguments


def test_a_plan_of_json_or_the_document_that_repeats_one(folder: Path) -> None:
    (folder / "my.json").write_text('{"seq-len": 8, "gpus": ["A", "B"]}')
    assert plan_as_arguments("my.json", flags_parser()) == ["--seq_len=8", "--gpus=A,B"]
    (folder / "document.JSON").write_text('{"schema_version": 2, "plan": {"seq_len": "8"}, "analyses": []}')
    assert plan_as_arguments("document.JSON", flags_parser()) == ["--seq_len=8"]


def test_a_document_of_json_is_had_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--training_budget", "5M", "--gpus", "H100,A100", "--gpu_prices", "H100=2,A100=1", "--json"]) == 0
    document = capsys.readouterr().out
    (folder / "before.json").write_text(document)
    assert main(["--plan", "before.json", "--json"]) == 0
    assert capsys.readouterr().out == document
    assert main(["--plan", "before.json"]) == 0
    assert "What $5 M buys" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1]", "bad.json: must be an object of flags, or a document of --json with its plan"),
        ('{"schema_version": 2}', "bad.json: must be an object of flags"),
        (f'{{"tokens": {"9" * 5000}}}', "bad.json: not valid JSON: Exceeds the limit (4300 digits)"),
        ('{"seq_len": 8, "seq_len": 9}', "bad.json: not valid JSON: seq_len is given twice"),
        ('{"plan": {"seq_length": 8}}', "bad.json: seq_length = 8: is not a flag"),
        ('{"seq_len": 8', "bad.json: not valid JSON: "),
        ("[" * 100_000, "bad.json: not valid JSON: nested too deeply"),
        ('{"tokens": {}}', "bad.json: tokens = {}: must be a text or a number"),
    ],
)
def test_a_bad_plan_of_json(text: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.json").write_text(text)
    assert main(["--plan", "bad.json"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


BAD_PLANS = {
    "seq_length = 4096": "my.toml: seq_length = 4096: is not a flag; did you mean seq_len?",
    "tokens_per_second = 5": "my.toml: tokens_per_second = 5: is not a flag; did you mean tokens_per_second_per_gpu?",
    "gpu-hour = 5": "my.toml: gpu-hour = 5: is not a flag; did you mean gpu_hours?",
    "[run]\ntokens = 5": "my.toml: run = {'tokens': 5}: is not a flag; did you mean",
    'plan = "my.toml"': "my.toml: plan = 'my.toml': is a flag for the command line",
    "help = true": "my.toml: help = true: is a flag for the command line",
    "seq_len = 8\nseq-len = 8": "my.toml: seq-len = 8: is given twice, also as seq_len",
    "tokens = 5\nmfu = = 3": "my.toml: line 2, column 7: not valid TOML: Invalid value",
    'tokens = 5\n\nmodel_config = "a': "my.toml: line 3, at its end: not valid TOML: ",
    "seq_len = 8\nseq_len = 8": "my.toml: line 2, at its end: not valid TOML: Cannot overwrite a value",
    "[" * 100_000: "my.toml: ",
    f"tokens = 1{'0' * 5000}": "my.toml: not valid TOML: Exceeds the limit",
    "json = 1": "my.toml: json = 1: must be true or false",
    'json = "yes"': "my.toml: json = 'yes': must be true or false",
    "seq_len = true": "my.toml: seq_len = true: must be a text or a number",
    "seq_len = [8]": "my.toml: seq_len = [8]: must be a text or a number",
    "seq_len = 2026-01-01": "my.toml: seq_len = datetime.date(2026, 1, 1): must be a text or a number",
    "model_config = [1, true]": "my.toml: model_config = true: must be a text or a number",
    'gpus = ["H100", []]': "my.toml: gpus = []: must be a text or a number",
    "gpu_prices = { H100 = true }": "my.toml: gpu_prices.H100 = true: must be a text or a number",
    'kernels = "flash"': "my.toml: argument --kernels: invalid choice: 'flash'",
    'model_config = "llama_7b"\nseq_len = 0': "my.toml: --seq_len = 0: must be a whole number of tokens",
    'model_config = "llama_7b"\nseq_len = "4k"': "my.toml: --seq_len = '4k': must be a whole number",
    'training_budget = "much"': "my.toml: --training_budget = 'much': must be a number of US dollars",
    "training_budget = nan": "my.toml: --training_budget = nan: must be a number of US dollars",
    'training_budget = 5\ngpus = "K80"': "my.toml: --gpus = 'K80': is not known",
    'training_budget = 5\nprecision = "bf16"': "--precision needs --model_config",
    "": "nothing to do: give --model_config",
}


@pytest.mark.parametrize(("text", "message"), BAD_PLANS.items(), ids=[text[:40] for text in BAD_PLANS])
def test_a_bad_plan_is_one_line_and_exit_2(
    text: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my.toml").write_text(text)
    assert main(["--plan", "my.toml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 500


def test_a_plan_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "latin.toml").write_bytes(b"gpus = '\xe9'")
    (folder / "large.toml").write_bytes(b"#" * 1_000_001)
    for path, message in {
        "none.toml": "none.toml: no such file",
        ".": ".: must be a file of TOML or JSON, but is a folder",
        "latin.toml": "latin.toml: not valid TOML: must be UTF-8, but byte 8 is not",
        "large.toml": "large.toml: 1000001 bytes; a plan has at most 1000000",
        "a\0b": r"a\x00b: cannot be read: ",
        "n\ne": r"n\ne: no such file",
    }.items():
        assert main(["--plan", path]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1


def test_an_error_of_a_typed_flag_names_no_plan(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "my.toml", "--seq_len", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --seq_len = 0: must be")

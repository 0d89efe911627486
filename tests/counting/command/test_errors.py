"""What the user can mend is one line and exit status 2; what nobody should trust is exit status 3."""

import json
import os
from pathlib import Path

import pytest

from counting.command.output_file import files_of_config, refuse_shared_files, write_whole
from counting.counts import Counts
from counting.formulas import parameters as formulas
from model_training_cost_analysis import main
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.errors import UserError
from torch_models.fields.bundled import bundled_data
from torch_models.spec import GatedMLPSpec

RUN = "--model_config llama_7b --tokens 1T --gpus A100"
SPEED = "--tokens_per_second_per_gpu"

BAD_COMMANDS = {
    "": "nothing to do: give --model_config or --training_budget",
    "--model_config no_such.json": "no_such.json: no such file",
    "--model_config .": "error: .: is a folder without a config.json",
    "--model_config bad.json": "bad.json: num_experts_per_tok = 17: must be at most the number of experts (16)",
    "--model_config": "argument --model_config: expected at least one argument",
    "--model_config llama_7b --seq_len 0": "--seq_len = 0: must be a whole number of tokens from 1 to 16777216",
    "--model_config llama_7b --seq_len -5": "--seq_len",
    "--model_config llama_7b --seq_len 4k": "--seq_len = '4k': must be a whole number",
    "--model_config llama_7b --seq_len 99999999999": "--seq_len = 99999999999: must be a whole number of tokens",
    "--model_config llama_7b --kernels flash": "argument --kernels: invalid choice: 'flash'",
    "--model_config llama_7b --gpus K80": "--gpus = 'K80': is not known: choose from V100",
    "--model_config llama_7b --gpus h100,H100": "--gpus = 'H100,H100': names H100 twice",
    "--model_config llama_7b --gpus A100 --price 2 --mfu 0.4": "--mfu needs --training_budget or --tokens",
    "--gpus A100": "--gpus needs --model_config or --training_budget",
    "--gpu_file x.json": "--gpu_file needs --model_config or --training_budget",
    "--model_config llama_7b --gpu_file no_such.json": "no_such.json: no such file",
    "--model_config llama_7b --gpu_file .": "error: .: must be a file of JSON",
    "--training_budget 5M --proof": "--proof needs --model_config",
    "train": "train: is not a command; calibrate and fit are, else begin with a flag, as --model_config llama_7b",
    "llama_7b": "llama_7b: is not a command; calibrate and fit are, else begin with a flag, as --model_config llama_7b",
    "--published figures": "--published = 'figures': is not known: choose from bills",
    "--published=": "--published = '': is not known: choose from bills",
    "--model_config llama_7b --design x.json": "--design needs --training_budget",
    "--training_budget 5M --design_family qwen3": "--design_family needs --design",
    "--training_budget 5M --design x.json --design_family gpt2": (
        "--design_family = 'gpt2': is not known: choose from deepseek_v3, llama, qwen3"
    ),
    "--training_budget 5M --design x.json --design_family=": "--design_family = '': is not known: choose from",
    "--training_budget 100 --design x.json --design_family qwen3": "cannot design a qwen3 model of ",
    "--training_budget 1B --design x.json --design_family deepseek_v3": (
        "active parameters: its design rules hold from 1,000,000,000 to 100,000,000,000 (from a third of DeepSeek-V2"
    ),
    "--model_config no_length.json": "null: is missing, and so is max_sequence_length; give --seq_len\n",
    "--training_budget abc": "--training_budget = 'abc': must be a number of US dollars",
    "--training_budget -5": "--training_budget",
    "--training_budget=-5": "--training_budget = -5.0: must be a number of US dollars",
    "--training_budget 0": "--training_budget = 0.0: must be",
    "--training_budget nan": "--training_budget = nan: must be",
    "--training_budget inf": "--training_budget = inf: must be",
    "--training_budget 1e400": "--training_budget = inf: must be",
    "--training_budget 5000000 --gpus K80": "--gpus = 'K80': is not known: choose from V100",
    "--training_budget 5000000 --gpus A100,A100": "--gpus = 'A100,A100': names A100 twice",
    "--training_budget 5000000 --gpus MI300X": "error: no price is known for MI300X",
    "--training_budget 5000000 --gpus=": "--gpus = '': must be GPU names separated by commas",
    "--training_budget 5000000 --mfu 0": "--mfu = 0.0: must be",
    "--training_budget 5000000 --mfu 1.01": "--mfu = 1.01: must be a number from 1e-06 to 1",
    "--training_budget 5000000 --optimizer sgd": "--optimizer needs --model_config",
    "--training_budget 5000000 --clip_gradients on": "--clip_gradients needs --model_config",
    "--model_config llama_7b --clip_gradients 1.0": "--clip_gradients: invalid choice: '1.0'",
    "--training_budget 5000000 --mfu 40%": "--mfu = '40%'",
    "--training_budget 5000000 --mfu nan": "--mfu = nan: must be",
    "--training_budget 5000000 --scaling_law chinchilla": "--scaling_law = 'chinchilla': is not known: choose from",
    "--model_config llama_7b --unique_tokens 300B": "--unique_tokens needs --training_budget",
    "--model_config llama_7b --inference_tokens 2T": "--inference_tokens needs --training_budget",
    "--expansion_rate 8": "--expansion_rate needs --training_budget",
    "--training_budget 5M --unique_tokens 0": "--unique_tokens = '0': must be a whole number of tokens from 1 to 1e+18",
    "--training_budget 5M --unique_tokens=-300B": "--unique_tokens = '-300B': must be a whole number of tokens",
    "--training_budget 5M --unique_tokens many": "--unique_tokens = 'many': must be a whole number of tokens",
    "--training_budget 5M --inference_tokens nan": "--inference_tokens = 'nan': must be a whole number of tokens",
    "--training_budget 0.01 --gpus T4 --mfu 1e-6 --inference_tokens 1e18": "FLOPs are too few to train any model and",
    "--training_budget 5M --expansion_rate 0.5": "--expansion_rate = 0.5: must be a number from 1, a dense model, to",
    "--training_budget 5M --expansion_rate inf": "--expansion_rate = inf: must be a number from 1",
    "--training_budget 5M --expansion_rate 8x": "--expansion_rate = '8x': must be a number from 1",
    "--training_budget 5000000 --gpu_prices A100": "--gpu_prices = 'A100': must be GPU=price pairs",
    "--training_budget 5000000 --seq_len 8": "--seq_len needs --model_config",
    "--training_budget 5000000 --force": "--force needs --design",
    "--model_config llama_7b --num_gpus 8": "--num_gpus needs --training_budget or --tokens",
    "--training_budget 5000000 --num_gpus 0": "--num_gpus = '0': must be a whole number of GPUs from 1",
    "--training_budget $5,00": "--training_budget = '$5,00': must be a number of US dollars",
    "--training_budget 5000000 --price 2": "--price needs --gpus or --gpu_file",
    "--tokens 15T --gpus H100": "--tokens needs --model_config",
    "--compare --model_config llama_7b llama_3_8b": "--compare needs --tokens",
    "--model_config llama_7b --gpu_hours 5": "--gpu_hours needs --tokens",
    f"--model_config llama_7b {SPEED} 5": f"{SPEED} needs --tokens",
    "--training_budget 5 --global_batch_tokens 5": "--global_batch_tokens needs --model_config",
    "--model_config llama_7b --micro_batch_size 0": "--micro_batch_size = 0: must be a whole number of seq",
    "--model_config llama_7b --micro_batch_size two": "--micro_batch_size = 'two': must be a whole number",
    "--model_config llama_7b --micro_batches 0": "--micro_batches = 0: must be a whole number of micro-batches from 1",
    "--model_config llama_7b --micro_batches 2 --global_batch_tokens 2048": "--global_batch_tokens = 2048: is not",
    "--model_config llama_7b --zero_gradients sometimes": "argument --zero_gradients: invalid choice: 'sometimes'",
    "--model_config llama_7b --tokens 15T": "--tokens needs --gpus: name the GPUs to train on",
    "--training_budget 5 --mtp off": "--mtp needs --model_config",
    "--model_config llama_7b --loss_chunk 1": "--loss_chunk = 1: makes 2048 chunks of 2048 tokens of llama_7b, and",
    "--model_config llama_7b --mtp on": "--mtp = on: llama_7b has no multi-token prediction",
    "--model_config llama_7b --mtp maybe": "argument --mtp: invalid choice: 'maybe'",
    f"{RUN} --compare": "--compare needs two models or more",
    f"{RUN} --model_config llama_3_8b --compare --gpu_hours 1M": "--compare takes no --gpu_hours",
    f"{RUN} --model_config llama_3_8b --compare {SPEED} 9": f"--compare takes no {SPEED}",
    f"{RUN},H100 --model_config llama_3_8b --compare": "--compare needs one GPU, but there are 2: A100, H100",
    "--model_config llama_7b --tokens 15TT --gpus A100": "--tokens = '15TT': must be a whole number of tokens",
    "--model_config llama_7b --tokens 1e400 --gpus A100": "--tokens = '1e400': must be",
    "--model_config llama_7b --tokens=-1T --gpus A100": "--tokens = '-1T': must be",
    "--model_config llama_7b --tokens 0 --gpus A100": "--tokens = '0': must be",
    "--model_config llama_7b --tokens nan --gpus A100": "--tokens = 'nan': must be",
    "--model_config llama_7b --tokens 15\u212a --gpus A100": r"--tokens = '15\u212a': must be",
    f"{RUN} --mfu 1e-300": "--mfu = 1e-300: must be a number from 1e-06 to 1",
    f"{RUN} --mfu \uff10.\uff14": r"--mfu = '\uff10.\uff14': must be a number",
    f"{RUN} --price 1_0": "--price = '1_0': must be a number of US dollars",
    f"{RUN} --global_batch_tokens 2047": "--global_batch_tokens = 2047: must be a multiple of one micro-batch, 1 x 20",
    "--model_config llama_7b --tokens 1T --gpus K80": "--gpus = 'K80': is not known: choose from",
    "--model_config llama_7b --tokens 1T --gpus A100,a100": "--gpus = 'A100,A100': names A100 twice",
    "--model_config llama_7b --tokens 1T --gpus L4": "hour, as --gpu_prices L4=2.50",
    f"{RUN} --price 0": "--price = 0.0: must be a number of US dollars",
    f"{RUN} --price cheap": "--price = 'cheap': must be a number of US dollars",
    f"{RUN} --price 2 --gpu_prices A100=2": "give either --price, for every GPU, or --gpu_prices",
    f"{RUN} --gpu_prices H100=2": "--gpu_prices = 'H100': a price is given for H100, but the GPUs considered",
    f"{RUN} --num_gpus 0": "--num_gpus = '0': must be a whole number of GPUs from 1",
    f"{RUN} --num_gpus 1.5": "--num_gpus = '1.5': must be a whole number of GPUs",
    f"{RUN} --mfu 1.5": "--mfu = 1.5: must be a number from 1e-06 to 1",
    f"{RUN} --mfu 0.4 --gpu_hours 1M": "--gpu_hours determines the MFU: leave out --mfu",
    f"{RUN} --mfu 0.4 {SPEED} 9": f"{SPEED} determines the MFU: leave out --mfu",
    f"{RUN} --gpu_hours 1M {SPEED} 9": f"give either --gpu_hours, of a finished run, or {SPEED}",
    f"{RUN} {SPEED} fast": f"{SPEED} = 'fast': must be a number of tokens per sec",
    f"{RUN} {SPEED} 1M": f"{SPEED} = 1000000: the claim is impossible",
    f"{RUN} --gpu_hours 0": "--gpu_hours = '0': must be a number of hours above 0",
    f"{RUN} --gpu_hours 100": "--gpu_hours = 100: the claim is impossible",
    f"{RUN} --global_batch_tokens 2T": "--global_batch_tokens = '2T': must be a whole number of tokens from 1 to 1e+12",
    "--model_config llama_7b --tokens 1M --gpus A100 --micro_batches 999": "--tokens = 1000000: must be at least",
    f"{RUN} --global_batch_tokens x": "--global_batch_tokens = 'x': must be a whole number of tokens",
    f"{RUN} --precision fp4": "--precision = 'fp4': is not known: choose from mixed",
    f"{RUN} --optimizer=": "--optimizer = '': is not known",
    f"{RUN} --gpu_prices H100=x": "--gpu_prices H100 = 'x': must be a number of US dollars",
    f"{RUN} --gpu_prices A100=1,a100=2": "--gpu_prices = 'A100=1,a100=2': give the price of A100 once",
    "--training_budget 5 --scaling_law=": "--scaling_law = '': is not known",
    f"{RUN} --optimizer lion": "--optimizer = 'lion': is not known: choose from adamw, adamw-foreach, adamw-8bit",
    "--model_config deepseek_v3 --training_budget 0.01 --gpus T4 --mfu 1e-6": "do not pay for one token",
    "--budget 5000000": "unrecognized arguments: --budget",
    "--bud-get 5000000": "unrecognized arguments: --bud-get",
    "--plan": "argument --plan: expected one argument",
    "--plan no_such.toml": "error: no_such.toml: no such file",
    "--training_budget 5 --design x.json": "x.json",
}


@pytest.mark.parametrize(("flags", "message"), BAD_COMMANDS.items(), ids=BAD_COMMANDS.keys())
def test_one_line_and_exit_2(flags: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.json").write_text(json.dumps(DEEPSEEK_V3 | {"num_experts_per_tok": 17}))
    no_length = {field: value for field, value in LLAMA.items() if field != "max_position_embeddings"}
    (folder / "no_length.json").write_text(json.dumps(no_length))
    if flags.endswith("--design x.json") and "budget 5" in flags:
        message = "cannot design a llama model"
    assert main(flags.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "x.json" not in os.listdir(folder)


def test_a_function_for_one_family_refuses_the_other() -> None:
    from model_training_cost_analysis import model_training_cost_analysis_llama

    with pytest.raises(
        ValueError, match=r"deepseek_v3_config\.json: model_type = 'deepseek_v3': this function is for llama"
    ):
        model_training_cost_analysis_llama("deepseek_v3_config.json")


def test_exit_3_where_witnesses_disagree(capsys: pytest.CaptureFixture[str]) -> None:
    right = formulas.parameters.dispatch(GatedMLPSpec)
    formulas.parameters.register(GatedMLPSpec, lambda spec: right(spec) + Counts(mlp=1))
    try:
        assert main(["--model_config", "llama_7b_config.json", "--json"]) == 3
    finally:
        formulas.parameters.register(GatedMLPSpec, right)
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second, *_ = captured.err.splitlines()
    assert first == "error: witnesses disagree"
    assert second == (
        "llama_7b: parameters, dense layer, mlp: numel 135,266,304 differs from formula 135,266,305, by -1"
    )


# --- Files are written whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["words\n", b"\x80\x04\n\x00"])
def test_text_and_bytes_are_written_as_they_are(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    write_whole(str(path), content, overwrite=False)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match="exists already"):
        write_whole(str(path), b"after", overwrite=False)
    assert path.read_bytes() == b"before"
    write_whole(str(path), b"after", overwrite=True)
    assert path.read_bytes() == b"after"


# --- No file is both read and written, or written twice -----------------------------------------------------------


def test_other_files_are_fine(folder: Path) -> None:
    (folder / "in.json").write_text("{}")
    refuse_shared_files({"--trace": "out.json", "--design": None}, {"--cluster": "in.json", "--plan": None})


@pytest.mark.parametrize("name", ["in.json", "./in.json", "link.json", "hard.json", "there/../in.json"])
def test_a_file_has_many_names(name: str, folder: Path) -> None:
    (folder / "in.json").write_text("{}")
    (folder / "there").mkdir()
    (folder / "link.json").symlink_to("in.json")
    os.link("in.json", "hard.json")
    with pytest.raises(UserError) as error:
        refuse_shared_files({"--trace": name}, {"--cluster": "in.json"})
    assert str(error.value) == f"{name}: --trace would replace what --cluster reads: name another file for --trace"


def test_a_file_that_is_not_there_yet_is_not_written_twice(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^\./new: --trace and --trace_memory name one file"):
        refuse_shared_files({"--trace": "new", "--design": "other", "--trace_memory": "./new"}, {})


def test_the_files_of_a_model(folder: Path) -> None:
    (folder / "model").mkdir()
    for name in ("config.json", "one.safetensors", "notes.txt"):
        (folder / "model" / name).write_text("")
    found = {Path(file).name for file in files_of_config("model")}
    assert {"config.json", "one.safetensors"} < found
    assert "notes.txt" not in found
    assert str(bundled_data() / "llama_7b_config.json") in set(files_of_config("llama_7b"))
    assert next(files_of_config("a\0b")) == "a\0b", "and its reader says that there is no such name"


def test_a_bundled_config_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(str(bundled_data() / "llama_7b_config.json"))
    before = file.read_bytes()
    assert main(["--model_config", "llama_7b", "--gpus", "H100", "--trace", str(file), "--force"]) == 2
    assert "--trace would replace what --model_config reads" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_plan_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plan.toml").write_text('model_config = "llama_7b"\ngpus = "H100"\n')
    assert main(["--plan", "plan.toml", "--trace", "plan.toml", "--force"]) == 2
    assert "plan.toml: --trace would replace what --plan reads" in capsys.readouterr().err
    assert main(["--plan="]) == 2
    assert capsys.readouterr().err == "error: --plan '': must name a file\n"

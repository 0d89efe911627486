"""Random layouts on the command line, right and wrong: each ends with a result or with one line, and soon."""

import random
import time
from typing import Any

import pytest

from counting.analysis import Analysis, analyze
from counting.command.main import EXIT_USER_ERROR
from model_training_cost_analysis import main

SIZES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "12", "16", "31", "32", "61", "64", "100", "128", "2048", "65536")
WRONG = ("", "-1", "x", "1.5", "1e3", "99999999999999999999999", "null", "\N{SUPERSCRIPT TWO}", "8 8", "=", "2,2", "٣")
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb", "zbv", "dualpipev", "1F1B", "none")
MODELS = ("llama_3_8b", "llama_3_2_1b", "gemma_2_9b", "gpt_oss_20b", "deepseek_v3", "mixtral_8x7b", "my_model")
COMMANDS = 1500
SECONDS = 10.0  # the longest that a command may take here, on a busy machine


def an_axis(chance: random.Random) -> str:
    axis = chance.choice(
        ("dp", "fsdp", "tp", "cp", "pp", "ep", "pp", "cp", "zero", "stages_per_rank", "schedule", "sp")
    )
    values = {"schedule": SCHEDULES, "sp": ("on", "off"), "zero": ("1", "2", "3", "4")}.get(axis, SIZES)
    return f"{axis}={chance.choice(WRONG) if chance.random() < 0.04 else chance.choice(values)}"


def a_layout(chance: random.Random) -> str:
    axes = {each.partition("=")[0]: each for each in (an_axis(chance) for _ in range(chance.randint(1, 6)))}
    if chance.random() < 0.02:
        return chance.choice(WRONG)
    return ",".join(axes.values())


def numbers(chance: random.Random) -> str:
    if chance.random() < 0.1:
        return chance.choice(WRONG)
    return ",".join(chance.choice(SIZES) for _ in range(chance.choice((1, 2, 4, 8, 40))))


def a_command(chance: random.Random) -> list[str]:
    found = ["--model_config", chance.choice(MODELS), "--layout", a_layout(chance)]
    further: dict[str, Any] = {
        "--num_gpus": lambda: chance.choice((*SIZES, *WRONG)),
        "--micro_batches": lambda: chance.choice((*SIZES, "1000000000", *WRONG)),
        "--global_batch_tokens": lambda: chance.choice(("8192", "65536", "1M", "62914560", "1T", *WRONG)),
        "--seq_len": lambda: chance.choice((*SIZES, "4096", "8192", "1001", *WRONG)),
        "--stage_layers": lambda: numbers(chance),
        "--framework": lambda: chance.choice(("torch", "megatron", "deepspeed")),
        "--recompute": lambda: chance.choice(("none", "selective", "full", "2", "x")),
        "--precision": lambda: chance.choice(("mixed", "bf16", "fp8", "fp4")),
        "--optimizer": lambda: chance.choice(("adamw", "sgd", "muon")),
        "--kernels": lambda: chance.choice(("fused", "eager")),
        "--mtp": lambda: chance.choice(("on", "off")),
        "--gpus_per_node": lambda: chance.choice((*SIZES, *WRONG)),
        "--expert_imbalance": lambda: chance.choice(("1", "1.5", "1e9", "nan", "inf", "-1", "x")),
    }
    for flag, value in further.items():
        if chance.random() < 0.15:
            found.append(f"{flag}={value()}")
    return found


class TakenError(Exception):
    """The command was taken: a model would be measured now."""


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop where the first model would be measured, and work out estimates by formula."""

    def stop(*arguments: Any, layout: Any = None, **others: Any) -> Analysis:
        if layout is not None and layout.framework == "megatron" and arguments[0].name == "my_model":
            return analyze(*arguments, layout=layout, **others)
        raise TakenError

    monkeypatch.setattr("counting.command.jobs.analyses.analyze", stop)


@pytest.mark.usefixtures("unmeasured")
def test_random_commands_end_with_a_result_or_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    analyze("my_model")  # torch is imported once
    chance, taken, refused = random.Random(16), 0, set()
    for _ in range(COMMANDS):
        command = a_command(chance)
        began = time.perf_counter()
        try:
            status = main(command)
        except TakenError:
            taken += 1
            continue
        finally:
            assert time.perf_counter() - began < SECONDS, command
            said = capsys.readouterr()
        if status == 0:
            taken += 1
            assert said.err.startswith("warning") or not said.err, command
            continue
        assert status == EXIT_USER_ERROR, command
        assert not said.out, command
        assert said.err.startswith("error: "), command
        assert said.err.count("\n") == 1, command
        assert len(said.err) < 1000, command
        refused.add(" ".join(said.err.split()[1:4]))
    assert taken > COMMANDS // 50
    assert len(refused) > 100, "few kinds of errors are tried"

"""Sequences beyond the end of a model's table of positions, which on real tensors is an index out of range."""

from typing import Any

import pytest
import torch
import transformers

from counting.analysis import analyze
from counting.setup import Setup
from model_training_cost_analysis import main
from tests.foreign_families import FAMILIES, GPT2, SMALL
from torch_models.errors import ConfigError

GPT_J = GPT2 | {"rotary_dim": 8}
BIOGPT = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
# Family -> its fields, and the name of the field with the number of positions, 64.
TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": (GPT2, "n_positions"),
    "openai-gpt": (GPT2, "n_positions"),
    "gpt_bigcode": (GPT2, "n_positions"),
    "opt": (FAMILIES["opt"][0], "max_position_embeddings"),
    "biogpt": (BIOGPT, "max_position_embeddings"),
    "ctrl": (GPT2 | {"dff": 112}, "n_positions"),  # a table that is computed
    "gptj": (GPT_J, "n_positions"),  # within each layer
    "codegen": (GPT_J, "n_positions"),
}
WITHOUT_TABLE = {"phi3": (SMALL, 64), "xglm": ({"d_model": 64, "ffn_dim": 112, "attention_heads": 4}, 2048)}


@pytest.mark.parametrize("model_type", TABLES)
def test_a_sequence_beyond_the_table_is_refused(model_type: str) -> None:
    fields, field = TABLES[model_type]
    config = {"model_type": model_type, **fields}
    assert analyze(config, Setup(sequence_length=64)).forward_flops > 0
    with pytest.raises(ConfigError) as caught:
        analyze(config, Setup(sequence_length=65))
    assert str(caught.value) == (
        f"config: {field} = 64: a sequence of 65 tokens is longer, and the table of positions has no more rows; give "
        "sequence_length, of at most 64"
    )


@pytest.mark.parametrize("model_type", TABLES)
def test_real_tensors_fail_there(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type, **TABLES[model_type][0])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(torch.zeros(1, 64, dtype=torch.long))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.zeros(1, 65, dtype=torch.long))


@pytest.mark.parametrize("model_type", WITHOUT_TABLE)
def test_a_longer_sequence_is_measured_without_a_table(model_type: str) -> None:
    fields, positions = WITHOUT_TABLE[model_type]
    assert analyze({"model_type": model_type, **fields}, Setup(sequence_length=2 * positions)).forward_flops > 0


def test_code_that_fails_beyond_the_config_s_maximum_is_said_to() -> None:
    config = {"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 96, "max_seq_len": 64}
    assert analyze(config).sequence_length == 64
    with pytest.raises(ConfigError, match=r"^config: max_seq_len = 64: a sequence of 65 tokens is longer, and transf"):
        analyze(config, Setup(sequence_length=65))


def test_the_command_refuses_gpt2_beyond_its_table(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpt2_config.json"
    path.write_text('{"model_type": "gpt2", "n_positions": 1024}')
    for more in ([], ["--training_budget", "1000"], ["--tokens", "1B", "--gpus", "H100"]):
        assert main(["--model_config", str(path), "--seq_len", "2048", *more]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == (
            "error: gpt2: n_positions = 1024: a sequence of 2,048 tokens is longer, and the table of positions has "
            "no more rows; give --seq_len, of at most 1,024\n"
        )

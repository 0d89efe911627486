"""Weights of families that transformers builds: what fits, under its names or others, and what does not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from counting.analysis import Analysis, analyze
from counting.command.main import main
from counting.measurements.checkpoint import StoredTotals, read_comparable
from counting.setup import Setup
from tests.checkpoints import INDEX, SINGLE, Stored, write_header, write_headers
from tests.foreign_families import FAMILIES, GPT2
from torch_models.errors import CheckpointError

BIGCODE: dict[str, Any] = {"model_type": "gpt_bigcode", "torch_dtype": "bfloat16", **GPT2}
OLMOE: dict[str, Any] = {"model_type": "olmoe", "torch_dtype": "bfloat16", **FAMILIES["olmoe"][0]}


def analysed(folder: Path) -> Analysis:
    return analyze(folder, Setup(sequence_length=16))


def totals_of(analysis: Analysis) -> dict[str, dict[str, int]]:
    """The numbers that have the checkpoint as a witness."""
    return {check.quantity: check.values for check in analysis.agreement.checks if "checkpoint" in check.values}


def equal(parameters: int) -> dict[str, dict[str, int]]:
    return {"parameters": {"numel": parameters, "checkpoint": parameters}}


def built(fields: dict[str, Any]) -> Any:
    others = {name: value for name, value in fields.items() if name != "model_type"}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(fields["model_type"], **others)
        )


def parameters_of(fields: dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in built(fields).parameters())


def stored_of(fields: dict[str, Any]) -> Stored:
    """Under transformers' own names; what is tied once."""
    model = built(fields)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: ("BF16", tuple(t.shape)) for name, t in model.state_dict().items() if name not in tied}


def separate(stored: Stored) -> Stored:
    """With each expert by itself, as OLMoE is published."""
    separate: Stored = {}
    for name, (dtype, shape) in stored.items():
        prefix, _, projection = name.rpartition(".")
        if not prefix.endswith("mlp.experts"):
            separate[name] = (dtype, shape)
            continue
        experts, rows, columns = shape
        parts = {"gate": rows // 2, "up": rows // 2} if projection == "gate_up_proj" else {"down": rows}
        for expert in range(experts):
            for part, size in parts.items():
                separate[f"{prefix}.{expert}.{part}_proj.weight"] = (dtype, (size, columns))
    return separate


def written(folder: Path, fields: dict[str, Any], stored: Stored) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    write_header(folder / SINGLE, stored)
    return folder


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_as_transformers_saves_it(model_type: str, tmp_path: Path) -> None:
    """With its files, and then by its index alone."""
    config = transformers.AutoConfig.for_model(model_type, **FAMILIES[model_type][0])
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    analysis = analysed(tmp_path)
    expected = equal(sum(parameter.numel() for parameter in model.parameters()))
    assert analysis.agreement.witnesses == ("numel", "trace", "dispatch", "checkpoint")
    assert totals_of(analysis) == expected
    assert "fit the config by names, shapes and number of parameters." in analysis.notes[-1]
    assert ("of them have other names in transformers" in analysis.notes[-1]) == (
        model_type in ("olmoe", "glm4_moe_lite")
    )
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert totals_of(analysed(tmp_path)) == expected


def test_a_decoder_saved_without_its_head(tmp_path: Path) -> None:
    """No name has the prefix of the decoder."""
    stored = {name.removeprefix("transformer."): entry for name, entry in stored_of(BIGCODE).items()}
    assert "h.0.attn.c_attn.bias" in stored
    assert totals_of(analysed(written(tmp_path, BIGCODE, stored))) == equal(parameters_of(BIGCODE))


@pytest.mark.parametrize("names", [["transformer.wte.weight"], ["lm_head.weight"], None], ids=str)
def test_a_tied_head_counts_once(names: list[str] | None, tmp_path: Path) -> None:
    stored = stored_of(BIGCODE)
    vocabulary = stored.pop("transformer.wte.weight")
    stored |= dict.fromkeys(names or ["transformer.wte.weight", "lm_head.weight"], vocabulary)
    assert totals_of(analysed(written(tmp_path, BIGCODE, stored))) == equal(parameters_of(BIGCODE))


def test_what_transformers_passes_over(tmp_path: Path) -> None:
    """A 48th layer beside the model, as in GLM-4.7-Flash: with its file, and by an index alone, which has no size."""
    fields = {"model_type": "glm4_moe_lite", **FAMILIES["glm4_moe_lite"][0]}
    stored = stored_of(fields) | {"model.layers.47.eh_proj.weight": ("BF16", (64, 128))}
    assert totals_of(analysed(written(tmp_path, fields, stored))) == equal(parameters_of(fields))
    (tmp_path / SINGLE).unlink()
    write_headers(tmp_path, fields, stored, 2, there=0)
    analysis = analysed(tmp_path)
    assert totals_of(analysis) == {}
    reason = "the size of model.layers.47.eh_proj.weight, in an absent file, is not known"
    assert analysis.notes[-1].endswith(f"fit the config by names; they are not counted: {reason}.")


def test_names_that_are_nowhere_in_the_model(tmp_path: Path) -> None:
    stored = {f"decoder.{name}": entry for name, entry in stored_of(BIGCODE).items()}
    analysis = analysed(written(tmp_path, BIGCODE, stored))
    assert totals_of(analysis) == {}
    first = next(iter(stored))
    reason = f"its names are not those of transformers: {first} is not like transformer.h.0"
    assert analysis.notes[-1] == f"Checkpoint: not compared, because {reason}."


@pytest.mark.parametrize(
    "names",
    [["wte.weight"], ["transformer.wte.weight"], ["lm_head.weight"], ["lm_head.weight", "wpe.weight"]],
    ids=str,
)
def test_a_checkpoint_without_layers_lacks_them(names: list[str], tmp_path: Path) -> None:
    stored = stored_of(BIGCODE)
    sizes = stored | {name.removeprefix("transformer."): entry for name, entry in stored.items()}
    sizes["lm_head.weight"] = sizes["wte.weight"]
    written(tmp_path, BIGCODE, {name: sizes[name] for name in names})
    with pytest.raises(CheckpointError) as caught:
        analysed(tmp_path)
    # Of the tensors of the model, tied ones once.
    assert str(caught.value).startswith(
        f"{tmp_path}: tensors that do not fit config.json: {len(stored) - len(names)} missing: transformer."
    )
    assert "surplus" not in str(caught.value)


def test_a_surplus_tensor_in_a_checkpoint_without_layers(tmp_path: Path) -> None:
    stored: Stored = {"wte.weight": ("BF16", (96, 64)), "h.3.ln_1.weight": ("BF16", (64,))}
    with pytest.raises(CheckpointError, match=rf"1 surplus: h\.3\.ln_1\.weight in {SINGLE}$"):
        analysed(written(tmp_path, BIGCODE, stored))


def test_layers_under_other_names_beside_an_equal_head(tmp_path: Path) -> None:
    """Most names are not the model's: these are weights of other code, and not a checkpoint that lacks its layers."""
    stored = {name.replace("transformer.h.", "blocks."): entry for name, entry in stored_of(BIGCODE).items()}
    assert "transformer.wte.weight" in stored
    analysis = analysed(written(tmp_path, BIGCODE, stored))
    assert totals_of(analysis) == {}
    first = next(name for name in stored if name.startswith("blocks."))
    reason = f"its names are not those of transformers: {first} is not like transformer.h.0"
    assert analysis.notes[-1] == f"Checkpoint: not compared, because {reason}."


def test_the_weights_of_several_models(tmp_path: Path) -> None:
    fields = {"model_type": "gpt_bigcode", "text_config": {"a": 1}, "vision_config": {"b": 1}}
    written(tmp_path, fields, stored_of(BIGCODE))
    assert read_comparable(str(tmp_path)) == StoredTotals(
        None,
        "Checkpoint: not compared, because the weights are those of several models (text_config, vision_config).",
    )


MISFITS: dict[str, tuple[dict[str, Any], Stored, str]] = {
    "misshapen": (
        BIGCODE,
        {"transformer.ln_f.bias": ("BF16", (65,))},
        f"1 misshapen: transformer.ln_f.bias in {SINGLE} has shape (65,), must be (64,)",
    ),
    "missing": (
        BIGCODE,
        {"-transformer.h.2.ln_1.weight": ("", ())},
        "1 missing: transformer.h.2.ln_1.weight (64,)",
    ),
    "surplus": (
        BIGCODE,
        {"transformer.h.3.ln_1.weight": ("BF16", (64,))},
        f"1 surplus: transformer.h.3.ln_1.weight in {SINGLE}",
    ),
    "renamed": (
        BIGCODE,
        {"-transformer.h.2.ln_1.weight": ("", ()), "transformer.h.2.norm.weight": ("BF16", (65,))},
        "1 layers of another size: transformer.h.2.norm.weight and 0 more have 65 numbers, "
        "transformer.h.2.ln_1.weight and 0 more must have 64",
    ),
    "tied head": (
        BIGCODE,
        {"lm_head.weight": ("BF16", (95, 64))},
        f"1 misshapen: lm_head.weight in {SINGLE} has shape (95, 64), must be (96, 64)",
    ),
    "expert": (
        OLMOE,
        {"-model.layers.1.mlp.experts.7.up_proj.weight": ("", ())},
        "1 layers of another size: model.layers.1.mlp.experts.0.gate_proj.weight and 22 more have 164864 numbers, "
        "model.layers.1.mlp.experts.down_proj and 1 more must have 172032",
    ),
}


@pytest.mark.parametrize(("fields", "change", "said"), MISFITS.values(), ids=MISFITS.keys())
def test_the_command_names_tensors_and_exits_2(
    fields: dict[str, Any], change: Stored, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that begins with a minus is taken away."""
    stored = separate(stored_of(fields)) | change
    for name in change:
        if name.startswith("-"):
            del stored[name], stored[name[1:]]
    written(tmp_path, fields, stored)
    assert main(["--model_config", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {tmp_path}: tensors that do not fit config.json: {said}; a config.json in place of its folder is read "
        "without the weights\n"
    )


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    stored = {name.removeprefix("transformer."): entry for name, entry in stored_of(BIGCODE).items()}
    stored["transformer.ln_f.bias"] = stored["ln_f.bias"]
    with pytest.raises(CheckpointError, match=r"1 stored twice: transformer\.ln_f\.bias in \S+ is also ln_f\.bias$"):
        analysed(written(tmp_path, BIGCODE, stored))


@pytest.mark.parametrize("fields", [BIGCODE, OLMOE], ids=["gpt_bigcode", "olmoe"])
def test_bytes_of_an_index_that_do_not_fit(fields: dict[str, Any], tmp_path: Path) -> None:
    stored = separate(stored_of(fields))
    write_headers(tmp_path, fields, stored, 2, there=0)
    total = sum(2 * math.prod(shape) for _, shape in stored.values())
    assert totals_of(analysed(tmp_path)) == equal(parameters_of(fields)) == equal(total // 2)
    index = json.loads((tmp_path / INDEX).read_bytes())
    index["metadata"]["total_size"] = total + 2
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=rf"total_size = {total + 2}: leaves .* {total // 2} numbers, {total} bytes"
    ):
        analysed(tmp_path)


def test_files_that_are_there_in_part(tmp_path: Path) -> None:
    write_headers(tmp_path, OLMOE, separate(stored_of(OLMOE)), 3, there=2)
    analysis = analysed(tmp_path)
    assert totals_of(analysis) == equal(parameters_of(OLMOE))
    assert "in 3 files, 1 of them absent, fit the config by names, shapes and the bytes that" in analysis.notes[-1]

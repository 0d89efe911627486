"""Checkpoint folders as tests need them: tensors of a small model, laid out as published, written as files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from counting.analysis import Analysis, analyze
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models import build, build_mtp
from torch_models.checkpoints.headers import DTYPE_BITS
from torch_models.fields.config import family, spec_from_fields
from torch_models.fields.stored_names import places_of

TIED = LLAMA | {"tie_word_embeddings": True}
EXPERTS = "model.layers.1.mlp.experts"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
State = dict[str, Tensor]
Stored = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape, as in a header


def random_state(module: nn.Module) -> State:
    """The module's tensors, drawn anew; what is tied once."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in module.state_dict().items()
        if not (name == "lm_head.weight" and module.spec.tie_word_embeddings)
    }


def native_state(fields: dict[str, Any]) -> State:
    return random_state(build(spec_from_fields(fields, "x")))


def in_native_names(tensors: Mapping[str, Tensor], model_type: str) -> State:
    """The tensors of transformers' model, or their gradients, as those of the native modules of the family."""
    names = family(model_type).Config.stored_names
    return {place.native: place.within(tensor) for name, tensor in tensors.items() for place in places_of(name, names)}


def separate_experts(state: State) -> State:
    """The same tensors as DeepSeek-V3 publishes them: one per expert and projection."""
    separate = {}
    for name, tensor in state.items():
        prefix, _, projection = name.rpartition(".")
        if not prefix.endswith("mlp.experts"):
            separate[name] = tensor
            continue
        for expert, share in enumerate(tensor):
            parts = {"gate": share.chunk(2)[0], "up": share.chunk(2)[1]} if projection == "gate_up_proj" else {}
            for part, rows in (parts or {"down": share}).items():
                separate[f"{prefix}.{expert}.{part}_proj.weight"] = rows.contiguous()
    return separate


def mtp_state(fields: dict[str, Any]) -> State:
    """One published MTP layer, with the copies of embedding and head that published checkpoints have."""
    layers = build_mtp(spec_from_fields(fields, "x"))
    generator = torch.Generator().manual_seed(4)
    first = fields["num_hidden_layers"]
    state = {}
    for name, tensor in layers.state_dict().items():
        depth, _, rest = name.partition(".")
        state[f"model.layers.{first + int(depth)}.{rest}"] = torch.randn(tensor.shape, generator=generator)
    copies = {name: torch.zeros(96, 64) for name in ("embed_tokens.weight", "shared_head.head.weight")}
    return state | {f"model.layers.{first}.{name}": copy for name, copy in copies.items()}


def write(folder: Path, fields: dict[str, Any], state: State) -> Path:
    """A checkpoint folder of one file."""
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(state, folder / SINGLE)
    return folder


def write_shards(folder: Path, fields: dict[str, Any], state: State, shards: int = 3) -> dict[str, str]:
    """A checkpoint folder of several files, and the map of its index."""
    (folder / "config.json").write_text(json.dumps(fields))
    names = list(state)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def shapes_of(state: State, dtype: str = "BF16") -> Stored:
    """What headers say of the tensors."""
    return {name: (dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def write_header(file: Path, stored: Stored) -> None:
    """A safetensors file of these tensors, whose bytes are a hole: it may be as large as a published one."""
    header, end = {}, 0
    for name, (dtype, shape) in stored.items():
        begin, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    write_raw_header(file, json.dumps(header).encode(), end)


def write_raw_header(file: Path, header: bytes, data: int) -> None:
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        opened.truncate(8 + len(header) + data)


def write_headers(folder: Path, fields: dict[str, Any], stored: Stored, shards: int, there: int | None = None) -> int:
    """A folder of shards, of which only the first `there` are, and an index; returns the bytes of all tensors."""
    (folder / "config.json").write_text(json.dumps(fields))
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(stored.items())[number::shards])
        if there is None or number < there:
            write_header(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    total = sum(math.prod(shape) * DTYPE_BITS[dtype] // 8 for dtype, shape in stored.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return total


def assert_same_tensors(module: nn.Module, expected: State) -> None:
    state = module.state_dict()
    assert {name for name in state if name not in expected} <= {"lm_head.weight"}
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor.to(state[name].dtype), rtol=0, atol=0, msg=name)


def analysed(folder: Path) -> Analysis:
    return analyze(folder, Setup(sequence_length=16), step=False)


def by_checkpoint(analysis: Analysis) -> dict[str, int]:
    """The numbers that the checkpoint has, each proven by others."""
    assert ("checkpoint" in analysis.agreement.witnesses) == any(
        "checkpoint" in check.values for check in analysis.agreement.checks
    )
    found = [check for check in analysis.agreement.checks if "checkpoint" in check.values]
    for check in found:
        assert (check.scope, check.component, tuple(check.values)) == (
            "model",
            "total",
            ("numel", "formula", "checkpoint"),
        )
    return {check.quantity: check.values["checkpoint"] for check in found}


def numbers_of(module: nn.Module) -> tuple[int, int]:
    """Parameters, and numbers in correction biases."""
    biases = (buffer for name, buffer in module.named_buffers() if name.endswith("correction_bias"))
    return sum(p.numel() for p in module.parameters()), sum(b.numel() for b in biases)


def deepseek_stored() -> Stored:
    """As published: separate experts, one layer of multi-token prediction with copies."""
    state = native_state(DEEPSEEK_V3) | mtp_state(DEEPSEEK_V3)
    return shapes_of(separate_experts(state))


def written(folder: Path, fields: dict[str, Any], stored: Stored) -> Path:
    """A folder of one file, of which there is only the header."""
    (folder / "config.json").write_text(json.dumps(fields))
    write_header(folder / SINGLE, stored)
    return folder

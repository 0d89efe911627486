"""Loads a Hugging Face checkpoint folder (config.json and safetensors) into the native modules.

Names, dtypes and shapes are checked against the config before memory is allocated for the model. Then the stored
tensors are copied one at a time, so that memory never contains a second copy of the model.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from torch_models.builder import build_model, build_mtp_layers, check_placement
from torch_models.checkpoints.files import DTYPE_BYTES, StoredTensor, stored_tensors, stream
from torch_models.errors import CheckpointError, ConfigError
from torch_models.fields.config import family, spec_from_fields
from torch_models.fields.file import read_config
from torch_models.fields.stored_names import Place, StoredName, is_irrelevant, parts_of, place_of
from torch_models.modules.decoder import CausalLM
from torch_models.spec import Kernels, ModelSpec

CONFIG_FILE = "config.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
LAYERS = "model.layers."
MTP_COPIES = (".embed_tokens.weight", ".shared_head.head.weight")  # in MTP layers: copies of main-model weights
EXAMPLES = 3  # number of tensors that an error message names for each kind of mismatch

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Checkpoint(NamedTuple):
    """A checkpoint folder, the spec of its config, and the header entries of its tensors by stored name."""

    folder: Path
    spec: ModelSpec
    stored: dict[str, StoredTensor]


def load_checkpoint(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> CausalLM:
    """Return the main model of a checkpoint folder with its weights: token ids (B, S) -> logits (B, S, V).

    `dtype` defaults to fp32, whatever dtype the files use; router correction biases are always fp32. Tensors of
    multi-token-prediction layers are ignored. On the meta device names, dtypes and shapes are checked, but no weight
    is read.

    Raises `UserError` (a `ValueError`): `ConfigError` for config.json, `CheckpointError` for the folder and its weight
    files, `ArgumentError` for an invalid kernel profile, device or dtype.
    """
    check_placement(device, dtype)
    checkpoint = _read(folder)
    spec, stored = checkpoint.spec, checkpoint.stored
    # A tied tensor has two names. A checkpoint stores it under one of them, usually the embedding's, or under both.
    first, second = (HEAD, EMBEDDING) if EMBEDDING not in stored and HEAD in stored else (EMBEDDING, HEAD)
    left_out = second if spec.tie_word_embeddings else None

    def build(device: torch.device | str) -> CausalLM:
        return build_model(spec, device=device, dtype=dtype, kernels=kernels, initializer_range=None)

    def tensors_of(model: CausalLM) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in model.state_dict().items() if name != left_out}

    chosen = {name: tensor for name, tensor in stored.items() if name != left_out and not _is_mtp(name, spec)}
    model = _load(checkpoint, chosen, build, tensors_of, device)
    if left_out in stored:
        _check_copy(second, stored[second], first, model.lm_head.weight)
    return model


def load_mtp_checkpoint(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: Kernels = "fused",
) -> nn.ModuleList:
    """Return the multi-token-prediction layers of a checkpoint folder with their weights.

    The list is empty if the config has none. Arguments and errors are as in `load_checkpoint`. The layers use the main
    model's embedding and head; copies of these in published checkpoints are ignored.
    """
    check_placement(device, dtype)
    checkpoint = _read(folder)
    spec = checkpoint.spec

    def build(device: torch.device | str) -> nn.ModuleList:
        return build_mtp_layers(spec, device=device, dtype=dtype, kernels=kernels, initializer_range=None)

    def tensors_of(layers: nn.ModuleList) -> dict[str, Tensor]:
        return {
            f"{LAYERS}{spec.num_layers + depth}.{name}": tensor
            for depth, layer in enumerate(layers)
            for name, tensor in layer.state_dict().items()
        }

    chosen = {
        name: tensor
        for name, tensor in checkpoint.stored.items()
        if _is_mtp(name, spec) and not name.endswith(MTP_COPIES)
    }
    return _load(checkpoint, chosen, build, tensors_of, device)


def _read(folder: str | os.PathLike[str]) -> Checkpoint:
    """Check the config of the folder and read the headers of its weight files."""
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; nothing is downloaded")
    config = path / CONFIG_FILE
    if not config.is_file():
        raise CheckpointError(f"{config}: no such file")
    _, fields = read_config(config)
    try:
        if fields.get("quantization_config") is not None:
            rule = "quantised checkpoints are not supported; convert the weights to 16 bits and remove the field"
            raise ConfigError("quantization_config", fields["quantization_config"], rule)
        spec = spec_from_fields(fields, name=path.resolve().name)
    except ConfigError as error:
        raise error.in_file(str(config)) from None
    stored = {name: tensor for name, tensor in stored_tensors(path).items() if not is_irrelevant(name)}
    for name, tensor in stored.items():
        if tensor.dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}, and only {', '.join(DTYPE_BYTES)} are read: "
                "quantised checkpoints are not supported"
            )
    return Checkpoint(path, spec, stored)


def _is_mtp(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor belongs to an MTP layer of the config; their numbers follow those of the main model."""
    number = name.removeprefix(LAYERS).partition(".")[0]
    if not name.startswith(LAYERS) or not number.isdecimal():
        return False
    return spec.num_layers <= int(number) < spec.num_layers + len(spec.mtp_layers)


def _load(
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    build: Callable[[torch.device | str], ModuleT],
    tensors_of: Callable[[ModuleT], dict[str, Tensor]],
    device: torch.device | str,
) -> ModuleT:
    """Return the module that `build` creates on `device`, with the values of the tensors in `stored`.

    `tensors_of` returns the module's tensors by their names in a checkpoint; they share the module's memory.
    """
    stored_names = family(checkpoint.spec.model_type).Config.stored_names
    places = {name: place_of(name, stored_names) for name in stored}
    _check_places(checkpoint, places, tensors_of(build("meta")), stored_names)
    module = build(device)
    if torch.device(device).type == "meta":
        return module
    tensors = tensors_of(module)
    for name, value in stream(stored):
        place = places[name]
        place.of(tensors[place.native]).copy_(value)
    return module


def _check_places(
    checkpoint: Checkpoint,
    places: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    stored_names: tuple[StoredName, ...],
) -> None:
    """Raise `CheckpointError` unless the stored tensors fill each part of the module's tensors exactly once.

    Shapes must match, and no stored tensor may be left over.
    """
    filled: dict[str, dict[Place, str]] = {}
    misshapen, missing, surplus, twice = [], [], [], []
    for name, place in places.items():
        file, _, shape = checkpoint.stored[name]
        tensor = tensors.get(place.native)
        if tensor is None or (place.expert is not None and place.expert >= len(tensor)):
            surplus.append(f"{name} in {file.name}")
            continue
        expected = tuple(place.of(tensor).shape)
        if shape != expected:
            misshapen.append(f"{name} in {file.name} has shape {shape}, must be {expected}")
        parts = filled.setdefault(place.native, {})
        if place in parts:
            twice.append(f"{name} in {file.name} is also {parts[place]}")
        parts[place] = name
    for native, tensor in tensors.items():
        parts = filled.get(native, {})
        whole = parts.pop(Place(native), None)
        if whole:
            twice += [f"{name} is also in {whole}" for name in parts.values()]
        elif parts:
            wanted = parts_of(native, len(tensor), stored_names)
            missing += [f"{name} {tuple(part.of(tensor).shape)}" for part, name in wanted.items() if part not in parts]
        else:
            missing.append(f"{native} {tuple(tensor.shape)}")
    kinds = {"misshapen": misshapen, "missing": missing, "surplus": surplus, "stored twice": twice}
    clauses = [f"{len(found)} {kind}: {_examples(found)}" for kind, found in kinds.items() if found]
    if clauses:
        raise CheckpointError(f"{checkpoint.folder}: tensors that do not fit {CONFIG_FILE}: {'; '.join(clauses)}")


def _examples(found: list[str]) -> str:
    return ", ".join(found[:EXAMPLES]) + (", …" if len(found) > EXAMPLES else "")


def _check_copy(name: str, stored: StoredTensor, original: str, loaded: Tensor) -> None:
    """Raise `CheckpointError` if the second copy of a tied tensor differs from the copy that was loaded."""
    if loaded.is_meta:
        return
    for _, value in stream({name: stored}):
        if not torch.equal(value.to(loaded.device, loaded.dtype), loaded):
            rule = f"differs from {original}, but must be a copy of it, as tie_word_embeddings is true"
            raise CheckpointError(f"{stored.file}: {name} {rule}")

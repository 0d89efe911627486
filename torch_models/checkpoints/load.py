"""A Hugging Face checkpoint folder, config.json and safetensors, into the native modules.

Names, dtypes and shapes are checked against the config before the model takes any memory. Then each stored tensor is
copied to its place, one at a time, so that nothing but the model itself is ever held.
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
MTP_COPIES = (".embed_tokens.weight", ".shared_head.head.weight")  # in an MTP layer: copies of the main model's
EXAMPLES = 3  # how many tensors of a kind an error names

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Checkpoint(NamedTuple):
    """A folder, what its config describes, and the weights that its files hold."""

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
    """The main model of a checkpoint folder, with its weights: token ids (B, S) -> logits (B, S, V).

    `dtype` is fp32 unless given, whatever the files are stored in; router correction biases are always fp32. Tensors
    of multi-token-prediction layers are passed over. On the meta device everything is checked and no weight is read.

    Raises `UserError` (a `ValueError`): `ConfigError` for config.json, `CheckpointError` for what the files hold.
    """
    check_placement(device, dtype)
    checkpoint = _read(folder)
    spec, stored = checkpoint.spec, checkpoint.stored
    # A tied tensor has two names. Files hold it under one, mostly the embedding's, or a copy under each.
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
    """The multi-token-prediction layers of a checkpoint folder, with their weights; empty where its config has none.

    All else is as for `load_checkpoint`. The layers use the main model's embedding and head, of which published
    checkpoints store copies: those are passed over.
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
    """The checkpoint, its config checked and its headers read."""
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
    """Whether a tensor is of an MTP layer that the config has; these are numbered on after the main model's."""
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
    """The module that `build` makes on `device`, filled from `stored`.

    `tensors_of` gives the module's tensors, sharing its memory, by the names that checkpoints have for them.
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
    """Every tensor of the module must be filled, each part of it once, in its shape; nothing may be left over."""
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
    """A tied tensor's second copy must be what was loaded; else the config's tie would drop it unseen."""
    if loaded.is_meta:
        return
    for _, value in stream({name: stored}):
        if not torch.equal(value.to(loaded.device, loaded.dtype), loaded):
            rule = f"differs from {original}, whose copy it must be where tie_word_embeddings is true"
            raise CheckpointError(f"{stored.file}: {name} {rule}")

"""The check of a batch before training: what a device would answer with a fault that names nothing."""

from typing import NoReturn

import torch
from torch import Tensor, nn

from torch_models.errors import ArgumentError, UserError
from torch_models.modules.language_model import unwrapped
from torch_models.spec import ModelSpec

IGNORED = -100  # the label of a position that is not scored


def check_shapes(token_ids_BS: Tensor, labels_BS: Tensor) -> None:
    """Raise `ArgumentError` unless both have one shape (B, S) and integer dtypes, labels int64. Reads no value."""
    for name, value in (("token_ids", token_ids_BS), ("labels", labels_BS)):
        if not isinstance(value, Tensor):
            _refuse(name, type(value).__name__, "must be a tensor")
    if token_ids_BS.dim() != 2:
        _refuse("token_ids", tuple(token_ids_BS.shape), "must have the shape (sequences, length)")
    if token_ids_BS.dtype not in (torch.int64, torch.int32):
        _refuse("token_ids", str(token_ids_BS.dtype), "must be torch.int64 or torch.int32")
    if labels_BS.shape != token_ids_BS.shape:
        shape = tuple(token_ids_BS.shape)
        _refuse("labels", tuple(labels_BS.shape), f"must have the shape of token_ids, {shape}")
    if labels_BS.dtype != torch.int64:
        _refuse("labels", str(labels_BS.dtype), "must be torch.int64")


def _refuse(field: str, value: object, rule: str) -> NoReturn:
    if torch.compiler.is_compiling():
        # In one graph torch's compiler does not run the constructor, and shows the arguments in an error of its own.
        raise UserError(f"{field} = {value}: {rule}")
    raise ArgumentError(field, value, rule)


def check_batch(model: nn.Module | ModelSpec, token_ids_BS: Tensor, labels_BS: Tensor) -> None:
    """Raise `ArgumentError` unless `model` can be trained on this batch. Call it on the host, before training.

    `model` may be compiled or under DDP. Token ids must be below the model's vocab_size; labels too, or `IGNORED` where
    a position is not scored. The check reads all values, so on a GPU it would wait for the device.
    """
    check_shapes(token_ids_BS, labels_BS)
    language_model = unwrapped(model) if isinstance(model, nn.Module) else None
    spec = language_model.spec if language_model is not None else model
    if not isinstance(spec, ModelSpec):
        raise ArgumentError("model", type(model).__name__, "must be a model of torch_models or a ModelSpec")
    vocab_size = spec.vocab_size
    for name, values_BS, allowed in (("token_ids", token_ids_BS, ()), ("labels", labels_BS, (IGNORED,))):
        wrong_BS = (values_BS < 0) | (values_BS >= vocab_size)
        for value in allowed:
            wrong_BS &= values_BS != value
        if wrong_BS.any():
            sequence, position = (int(index) for index in wrong_BS.nonzero()[0])
            also = f", or {IGNORED} where a position is not scored" if allowed else ""
            rule = f"must be from 0 to {vocab_size - 1}{also}"
            raise ArgumentError(f"{name}[{sequence}, {position}]", int(values_BS[sequence, position]), rule)

"""RMSNorm as other software runs it than the torch that measures."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from counting.work import Norms


@contextlib.contextmanager
def norms_run_as(norms: Norms) -> Iterator[None]:
    """Context in which `F.rms_norm` runs so; call it inside `measuring`, which decides how ``fused`` ones run."""
    if norms == "fused":
        yield
        return
    before = F.rms_norm
    F.rms_norm = _op_by_op  # type: ignore[assignment]
    try:
        yield
    finally:
        F.rms_norm = before


def _op_by_op(x: Tensor, normalized_shape: Any, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) in fp32, then in x's dtype times the weight, each op by itself.

    So torchtitan ran it until torch 2.9 had a fused kernel (github.com/pytorch/torchtitan, torchtitan/models/norms.py
    of commit 9dec370, `RMSNorm`).
    """
    wide = x.float()
    return (wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + eps)).type_as(x) * weight

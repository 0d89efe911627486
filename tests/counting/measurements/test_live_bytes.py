"""The tracker of live bytes: golden arithmetic, torch's own tracker as an oracle, and what each part means."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counting.counts import LayerMemory
from counting.measurements.live_bytes import LiveBytes, layer_memory
from counting.measurements.meta_device import measuring
from counting.measurements.model import measure
from counting.setup import Setup, resolve
from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.builder import build_model
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.modules.layers import rotary_tables
from torch_models.spec import Kernels, ModelSpec

BF16 = torch.bfloat16


class TwoProducts(nn.Module):
    """sin(x W) V, with square matrices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False, device="meta", dtype=BF16)
        self.second = nn.Linear(width, width, bias=False, device="meta", dtype=BF16)

    def forward(self, x: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
        del shared
        out: Tensor = self.second(torch.sin(self.first(x)))
        return out


def test_golden_with_gradients() -> None:
    # Weights 2 x 64 x 64 x 2 bytes; input 1 x 32 x 64 x 2. Sine keeps its input and the second product keeps its own:
    # 2 x 4096 saved; the output, 4096, is the only transient.
    with measuring():
        memory = layer_memory(TwoProducts(64), torch.empty(1, 32, 64, device="meta", dtype=BF16), (), grad=True)
    assert (memory.weights, memory.boundary, memory.saved, memory.transients) == (16_384, 4_096, 8_192, 4_096)
    assert memory.total == 32_768


def test_golden_without_gradients() -> None:
    # Nothing is saved: at most two of the three activations are alive at once.
    with measuring():
        memory = layer_memory(TwoProducts(64), torch.empty(1, 32, 64, device="meta", dtype=BF16), (), grad=False)
    assert (memory.weights, memory.boundary, memory.saved, memory.transients) == (16_384, 4_096, 0, 8_192)


def test_views_share_their_storage_and_releases_count() -> None:
    with LiveBytes([]) as tracker:
        x = torch.empty(100, device="meta", dtype=torch.float32)
        y = x.view(10, 10).t()
        assert tracker.live == 400
        z = y + 1
        assert tracker.live == 800
        del x, y
        assert tracker.live == 400
        del z
    assert (tracker.live, tracker.peak) == (0, 800)


@pytest.mark.parametrize("kernels", ["fused", "eager"])
@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
def test_peak_equals_torch_mem_tracker(fields: dict[str, Any], kernels: Any) -> None:
    from torch.distributed._tools.mem_tracker import MemTracker

    spec = spec_from_fields(fields, "shrunken")
    layer = build_model(spec, device="meta", dtype=BF16, kernels=kernels).model.layers[-1]
    x = torch.empty(1, 128, 64, device="meta", dtype=BF16)
    tables = rotary_tables(spec.layers[-1].attention.rotary, 128, x.device, x.dtype)
    with measuring():
        ours = layer_memory(layer, x, tables, grad=True)
        oracle = MemTracker()
        boundary = x.requires_grad_()
        oracle.track_external(layer, boundary, *tables)
        with oracle:
            layer(boundary, tables)
    assert ours.total == oracle.get_tracker_snapshot("peak")[x.device]["Total"]


def measured_memory(spec: ModelSpec, length: int, kernels: Kernels) -> LayerMemory:
    """Of the first kind of layer, with gradients."""
    setup = resolve(Setup(sequence_length=length, kernels=kernels), spec)
    memory = measure(spec, setup, step=False)["dispatch"].layers[0].peak_memory_bytes
    assert memory is not None
    return memory


def test_llama_7b_layer_by_hand() -> None:
    """Fused, S = 2048: what each op keeps, in units of T D = 2048 x 4096 numbers of 2 bytes."""
    memory = measured_memory(read_spec("llama_7b_config.json"), 2048, "fused")
    stream, hidden = 2 * 2048 * 4096, 2 * 2048 * 11008
    # two normed inputs, query, key, value, attention's output, the sum after attention; four hidden states of the MLP
    tensors = 7 * stream + 4 * hidden
    inverse_rms, logsumexp, random_state, rotary = 2 * 4 * 2048, 4 * 32 * 2048, 24, 2 * 2 * 2048 * 64
    assert memory.saved == tensors + inverse_rms + logsumexp + random_state + rotary
    assert memory.transients == 2 * stream  # the MLP's output and the layer's
    assert memory.boundary == stream


def test_eager_kernels_hold_the_square_and_fused_ones_do_not() -> None:
    spec = read_spec("llama_7b_config.json")

    def saved_and_transients(length: int, kernels: Any) -> int:
        memory = measured_memory(spec, length, kernels)
        return memory.saved + memory.transients

    fused = [saved_and_transients(length, "fused") for length in (2048, 4096)]
    assert fused[1] - 24 == 2 * (fused[0] - 24)  # linear, but for the kernel's random state
    eager = [saved_and_transients(length, "eager") for length in (2048, 4096)]
    assert eager[1] > 3 * eager[0]

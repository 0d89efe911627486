"""FLOPs and bytes of any module, by hand; and that measuring leaves no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from counting.measurements.tools import ModuleFlops, ModuleMemory, count_flops, measure_memory
from tests.shrunken import DEEPSEEK_V3, GPT_OSS, LLAMA
from torch_models.builder import build

DEVICES = ("cpu", "meta")
FP32 = 4  # bytes

everywhere = pytest.mark.parametrize("device", DEVICES)


def test_results_are_rows_and_a_table() -> None:
    """One Linear(3, 5) on 2 rows: 60 FLOPs forward, and as many backward for the weight."""
    module, x = nn.Sequential(nn.Linear(3, 5)), torch.ones(2, 3)
    flops, memory = count_flops(module, x), measure_memory(module, x)
    rows = flops.to_records()
    assert [row[:5] for row in rows] == [
        ("module", "forward", "flops", 60, "FLOP"),
        ("module", "backward", "flops", 60, "FLOP"),
        ("module", "total", "module_flops", 120, "FLOP"),
        ("module", "0", "module_flops", 120, "FLOP"),
    ]
    assert {row.convention.partition(";")[0] for row in rows} == {"A multiply-add is 2 FLOPs"}
    rows = memory.to_records()
    assert [row[:5] for row in rows] == [
        ("module", "", "peak_bytes", memory.peak_bytes, "byte"),
        ("module", "", "held_bytes", memory.held_bytes, "byte"),
        ("module", "total", "module_bytes", 40, "byte"),
        ("module", "0", "module_bytes", 40, "byte"),
    ]
    assert {row.convention.partition(" that ")[0] for row in rows} == {"Bytes of all tensors"}
    assert "<td>flops</td>" in flops._repr_html_()
    assert "<caption>ModuleMemory</caption>" in memory._repr_html_()


# --- FLOPs by hand -----------------------------------------------------------------------------------------------


@everywhere
def test_linear(device: str) -> None:
    """2 rows through 3 x 5; backward the same for the weight, and for the input if it asks for a gradient."""
    layer, x = nn.Linear(3, 5, device=device), torch.ones(2, 3, device=device)
    assert count_flops(layer, x) == ModuleFlops(forward=60, backward=60, by_module={"": 120})
    assert count_flops(layer, x.requires_grad_()) == ModuleFlops(forward=60, backward=120, by_module={"": 180})
    assert count_flops(layer, x).total == 180


@everywhere
def test_mlp_and_what_is_frozen_in_it(device: str) -> None:
    """2 rows through 3 x 5 and 5 x 7; the first layer's input asks for no gradient, the second's does."""
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7)).to(device)
    x, first, second = torch.ones(2, 3, device=device), 2 * 2 * 3 * 5, 2 * 2 * 5 * 7
    flops = count_flops(model, x)
    assert (flops.forward, flops.backward) == (first + second, first + 2 * second)
    assert flops.by_module == {"": flops.total, "0": 2 * first, "1": 0, "2": 3 * second}
    model[2].requires_grad_(False)
    assert count_flops(model, x).by_module == {"": 2 * first + 2 * second, "0": 2 * first, "1": 0, "2": 2 * second}
    model.requires_grad_(False)
    assert count_flops(model, x) == ModuleFlops(
        forward=first + second, backward=0, by_module={"": first + second, "0": first, "1": 0, "2": second}
    )


@everywhere
def test_convolutions_with_batch_norm(device: str) -> None:
    """3 images: 8 x 8 points of 16 x 3 x 3 x 3; then 4 x 4 points of 16 channels in groups, each of 3 x 3."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).to(device)
    flops = count_flops(model, torch.ones(3, 3, 8, 8, device=device))
    first, depthwise, head = 2 * 3 * 64 * 16 * 27, 2 * 3 * 16 * 16 * 9, 2 * 3 * 16 * 10
    assert flops.forward == first + depthwise + head
    assert flops.backward == first + 2 * depthwise + 2 * head
    nothing = {"1": 0, "2": 0, "4": 0, "5": 0}
    assert flops.by_module == {"": flops.total, "0": 2 * first, "3": 3 * depthwise, "6": 3 * head} | nothing


@everywhere
def test_attention_is_five_products_of_a_fused_backward_pass(device: str) -> None:
    """12 tokens through 4 weights of 16 x 16; 2 x 6 x 6 pairs for 16 channels, 2 products forward and 5 backward.

    The inputs ask for no gradients, so that the three projections of queries, keys and values have but one each.
    """
    attention = nn.MultiheadAttention(16, 2, batch_first=True, device=device)
    x = torch.ones(2, 6, 16, device=device)
    flops = count_flops(attention, x, x, x, need_weights=False)
    projection, product = 2 * 12 * 16 * 16, 2 * 2 * 6 * 6 * 16
    assert flops.forward == 4 * projection + 2 * product
    assert flops.backward == (3 + 2) * projection + 5 * product
    eager = count_flops(attention, x, x, x)  # returns the weights, so the scores are made, and kept
    assert eager.forward == flops.forward
    assert eager.backward == (3 + 2) * projection + 4 * product


@everywhere
def test_transformer_encoder_layer(device: str) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 40, dropout=0.0, batch_first=True, device=device)
    flops = count_flops(layer, torch.ones(2, 6, 16, device=device))
    projection, product, wide = 2 * 12 * 16 * 16, 2 * 2 * 6 * 6 * 16, 2 * 12 * 16 * 40
    assert flops.forward == 4 * projection + 2 * product + 2 * wide
    assert flops.backward == 5 * projection + 5 * product + 4 * wide
    counted = {name: count for name, count in flops.by_module.items() if count}
    attention = 9 * projection + 7 * product
    assert counted == {"": flops.total, "self_attn": attention, "linear1": 3 * wide, "linear2": 3 * wide}


class Checkpointed(nn.Module):
    """A block whose forward pass runs again in the backward pass, between two layers."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4, device=device)
        self.block = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh()).to(device)
        self.after = nn.Linear(4, 4, device=device)

    def forward(self, x: Tensor, *, again: bool = True) -> Tensor:
        x = self.before(x)
        return self.after(checkpoint(self.block, x, use_reentrant=False) if again else self.block(x))


@everywhere
def test_recomputed_work_is_of_the_backward_pass(device: str) -> None:
    model, x = Checkpointed(device), torch.ones(3, 4, device=device)
    once, again = count_flops(model, x, again=False), count_flops(model, x)
    wide, narrow = 2 * 3 * 4 * 8, 2 * 3 * 4 * 4
    assert once.forward == again.forward == 2 * wide + 2 * narrow
    assert once.backward == 4 * wide + 3 * narrow
    assert again.backward == once.backward + 2 * wide
    assert once.by_module["block"] == 6 * wide
    assert again.by_module == {
        "": again.total,
        "before": 2 * narrow,
        "block": 8 * wide,
        "block.0": 4 * wide,
        "block.1": 0,
        "block.2": 4 * wide,
        "block.3": 0,
        "after": 3 * narrow,
    }


def test_a_reentrant_checkpoint_runs_all_of_its_block_again() -> None:
    """The other kind stops at the last input that is needed, before the second of two products."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

        def forward(self, x: Tensor, reentrant: bool) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=reentrant)  # type: ignore[no-any-return]

    x, wide = torch.ones(3, 4, requires_grad=True), 2 * 3 * 4 * 8
    assert count_flops(Ends(), x, False).backward == 5 * wide
    assert count_flops(Ends(), x, True).backward == 6 * wide


class SideBySide(nn.Module):
    """Two layers on one input, run in one order, whose gradients come in the other; one of them has two names."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.left = nn.Linear(4, 8, bias=False, device=device)
        self.right = nn.Sequential(nn.Linear(4, 2, device=device), nn.Linear(2, 8, bias=False, device=device))
        self.tied = nn.ModuleDict({"left": self.left})

    def forward(self, pair: dict[str, Tensor]) -> tuple[list[Tensor], None]:
        return [self.left(pair["x"]) * self.right(pair["x"]), self.tied["left"](pair["y"])], None


@everywhere
def test_modules_side_by_side_get_their_own(device: str) -> None:
    """The layer with two names runs twice, on 3 rows and on 5; y asks for a gradient and x for none."""
    x, y = torch.ones(3, 4, device=device), torch.ones(5, 4, device=device, requires_grad=True)
    flops = count_flops(SideBySide(device), {"x": x, "y": y})
    left, right, inner = 2 * 4 * 8 * (2 * 3 + 3 * 5), 2 * 3 * 4 * 2, 2 * 3 * 2 * 8
    assert flops.by_module == {
        "": left + 2 * right + 3 * inner,
        "left": left,
        "tied": left,
        "tied.left": left,
        "right": 2 * right + 3 * inner,
        "right.0": 2 * right,
        "right.1": 3 * inner,
    }
    assert flops.total == flops.by_module[""]


# --- Our own models ----------------------------------------------------------------------------------------------


def flops_of_model(config: dict[str, Any], device: str, **options: Any) -> ModuleFlops:
    return count_flops(build(config, device=device, **options), torch.zeros(2, 16, dtype=torch.long, device=device))


def test_llama_by_hand() -> None:
    """32 tokens: in each of 3 layers 4 weights of 64 x 64 and 3 of 64 x 112, then a head of 64 x 96."""
    weights = 3 * (4 * 64 * 64 + 3 * 64 * 112) + 64 * 96
    product = 3 * 2 * 2 * 16 * 16 * 64
    flops = flops_of_model(LLAMA, "meta")
    assert flops.forward == 2 * 32 * weights + 2 * product
    assert flops.backward == 2 * 2 * 32 * weights + 5 * product
    assert flops.by_module["lm_head"] == 3 * 2 * 32 * 64 * 96


@pytest.mark.parametrize(
    ("config", "kernels", "dtype"),
    [
        (LLAMA, "fused", torch.float32),
        (DEEPSEEK_V3, "eager", torch.float32),
        (GPT_OSS, "fused", torch.float32),
        (GPT_OSS, "eager", torch.bfloat16),
    ],
    ids=["llama", "deepseek_v3", "gpt_oss", "gpt_oss, bf16"],
)
def test_meta_counts_what_real_tensors_do(config: dict[str, Any], kernels: str, dtype: torch.dtype) -> None:
    """Grouped experts and our own attention op among it, in every module."""
    meta, real = (flops_of_model(config, device, kernels=kernels, dtype=dtype) for device in ("meta", "cpu"))
    assert meta == real
    assert all(count > 0 for name, count in meta.by_module.items() if name.endswith(("self_attn", "mlp")))


def test_unequal_heads_are_one_kernel_on_cuda_and_arithmetic_on_cpu() -> None:
    """The kernel makes its scores again in the backward pass: 4 layers, 2 x 4 heads, 16 x 16 pairs of 24 channels."""
    meta, real = flops_of_model(DEEPSEEK_V3, "meta"), flops_of_model(DEEPSEEK_V3, "cpu")
    assert meta.forward == real.forward
    assert meta.backward - real.backward == 4 * 2 * 2 * 4 * 16 * 16 * 24


# --- Bytes by hand -----------------------------------------------------------------------------------------------


@everywhere
def test_bytes_of_a_linear(device: str) -> None:
    """Weight, bias, input, output; then the gradients of output, weight and bias, all at once."""
    weight, bias, x, out = 3 * 5, 5, 2 * 3, 2 * 5
    held = FP32 * (weight + bias + x + out)
    assert measure_memory(nn.Linear(3, 5, device=device), torch.ones(2, 3, device=device)) == ModuleMemory(
        peak_bytes=held + FP32 * (out + weight + bias), held_bytes=held, by_module={"": FP32 * out}
    )


@everywhere
def test_bytes_of_an_mlp(device: str) -> None:
    """The first layer's output is let go when the second module has read it; its own output is what is kept.

    At the peak, while the last weight's gradient is made: all that is held, the gradient of the output and of the last
    layer's input and bias, and that of the weight.
    """
    model = nn.Sequential(nn.Linear(2, 64), nn.Sigmoid(), nn.Linear(64, 64)).to(device)
    memory = measure_memory(model, torch.ones(8, 2, device=device))
    weights, x, hidden = 2 * 64 + 64 + 64 * 64 + 64, 8 * 2, 8 * 64
    held = FP32 * (weights + x + 2 * hidden)
    assert memory == ModuleMemory(
        peak_bytes=held + FP32 * (2 * hidden + 64 * 64 + 64),
        held_bytes=held,
        by_module={"": FP32 * 2 * hidden, "0": 0, "1": FP32 * hidden, "2": FP32 * hidden},
    )


@everywhere
def test_views_share_their_storage_and_old_gradients_are_set_aside(device: str) -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 3))), torch.ones(4, 6, device=device)
    memory = measure_memory(model, x)
    assert memory.held_bytes == memory.peak_bytes == FP32 * 24
    layer = nn.Linear(3, 5, device=device)
    before = measure_memory(layer, x[:, :3])
    layer(x[:, :3]).sum().backward()
    assert measure_memory(layer, x[:, :3]) == before
    assert before.held_bytes == FP32 * (20 + 24 + 20)  # the whole of what the input views


@everywhere
def test_checkpointing_keeps_less_and_the_boundary_alone(device: str) -> None:
    model, x = Checkpointed(device), torch.ones(3, 4, device=device)
    all_kept, again = measure_memory(model, x, again=False), measure_memory(model, x)
    assert all_kept.by_module["block"] == FP32 * 3 * (8 + 4)  # the outputs of both tanh
    assert again.by_module["block"] == FP32 * 3 * 4  # its output, which the next layer reads
    assert again.by_module["before"] == all_kept.by_module["before"] == FP32 * 3 * 4
    assert all_kept.held_bytes - again.held_bytes == FP32 * 3 * 8


def test_bytes_without_anything_that_requires_gradients() -> None:
    """Nothing is kept; at the peak both sides of the first product, or of the sigmoid, live."""
    model = nn.Sequential(nn.Linear(2, 64), nn.Sigmoid(), nn.Linear(64, 1)).requires_grad_(False)
    memory = measure_memory(model, torch.ones(8, 2))
    fixed = FP32 * (2 * 64 + 64 + 64 + 1 + 8 * 2)
    assert memory.held_bytes == fixed + FP32 * 8
    assert memory.peak_bytes == fixed + FP32 * 2 * 8 * 64
    assert memory.by_module == {"": FP32 * 8, "0": 0, "1": 0, "2": FP32 * 8}


def test_meta_keeps_what_real_tensors_do() -> None:
    """Of a model whose every op is the same on both."""
    bytes_of = {}
    for device in DEVICES:
        token_ids = torch.zeros(2, 16, dtype=torch.long, device=device)
        bytes_of[device] = (
            measure_memory(Checkpointed(device), torch.ones(2, 4, device=device)),
            measure_memory(
                nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU()).to(device), token_ids
            ),
        )
    assert bytes_of["cpu"] == bytes_of["meta"]

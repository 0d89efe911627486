"""The FLOPs of one dispatched op, each by hand, and what is an error because nothing is known of it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from counting.measurements.ops.formulas import OP_FORMULAS, op_flops
from counting.measurements.ops.without_products import OPS_WITHOUT_PRODUCTS
from torch_models.errors import UserError
from torch_models.modules.kernels.flash_attention import flash_attention
from torch_models.modules.kernels.grouped_product import grouped_product

aten = torch.ops.aten


class Ops(TorchDispatchMode):
    """The FLOPs of every op that multiplies, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if flops := op_flops(function, args, kwargs, out):
            self.flops.append(flops)
        return out


def flops_of(run: Callable[[], Any]) -> list[int]:
    with Ops() as ops:
        run()
    return ops.flops


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


# --- One product each --------------------------------------------------------------------------------------------

PRODUCTS: dict[str, tuple[Callable[[], Any], int]] = {
    "mm": (lambda: zeros(3, 4) @ zeros(4, 5), 2 * 3 * 4 * 5),
    "addmm": (lambda: torch.addmm(zeros(5), zeros(3, 4), zeros(4, 5)), 2 * 3 * 4 * 5),
    "addmm_": (lambda: zeros(3, 5).addmm_(zeros(3, 4), zeros(4, 5)), 2 * 3 * 4 * 5),
    "_addmm_activation": (lambda: aten._addmm_activation(zeros(5), zeros(3, 4), zeros(4, 5)), 2 * 3 * 4 * 5),
    "_int_mm": (
        lambda: torch._int_mm(zeros(32, 8, dtype=torch.int8), zeros(8, 16, dtype=torch.int8)),
        2 * 32 * 8 * 16,
    ),
    "bmm": (lambda: zeros(7, 3, 4) @ zeros(7, 4, 5), 2 * 7 * 3 * 4 * 5),
    "baddbmm": (lambda: torch.baddbmm(zeros(7, 3, 5), zeros(7, 3, 4), zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
    "baddbmm_": (lambda: zeros(7, 3, 5).baddbmm_(zeros(7, 3, 4), zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
    "addbmm": (lambda: torch.addbmm(zeros(3, 5), zeros(7, 3, 4), zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
    "addbmm_": (lambda: zeros(3, 5).addbmm_(zeros(7, 3, 4), zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
    "einsum": (lambda: torch.einsum("bik,bkj->bij", zeros(7, 3, 4), zeros(7, 4, 5)), 2 * 7 * 3 * 4 * 5),
    "mv": (lambda: zeros(3, 4) @ zeros(4), 2 * 3 * 4),
    "addmv": (lambda: torch.addmv(zeros(3), zeros(3, 4), zeros(4)), 2 * 3 * 4),
    "addmv_": (lambda: zeros(3).addmv_(zeros(3, 4), zeros(4)), 2 * 3 * 4),
    "dot": (lambda: zeros(4) @ zeros(4), 2 * 4),
    "vdot": (lambda: torch.vdot(zeros(4), zeros(4)), 2 * 4),
    "addr": (lambda: torch.addr(zeros(3, 4), zeros(3), zeros(4)), 2 * 3 * 4),
    "addr_": (lambda: zeros(3, 4).addr_(zeros(3), zeros(4)), 2 * 3 * 4),
    "linear, undivided": (
        torch.inference_mode()(lambda: F.linear(zeros(2, 3, 4), zeros(5, 4), zeros(5))),
        2 * 2 * 3 * 4 * 5,
    ),
    # 6 rows of 8 in 2 groups, each with a matrix of 8 x 4; then 8 columns of the left one and 8 rows of the right one
    # cut into 2 groups, each a product of its own; then 16 columns of the right one cut; then two whole products
    "grouped rows": (lambda: F.grouped_mm(zeros(6, 8), zeros(2, 8, 4), offs=ends(2, 6)), 2 * 6 * 8 * 4),
    "grouped sum": (lambda: F.grouped_mm(zeros(16, 8), zeros(8, 4), offs=ends(4, 8)), 2 * 16 * 8 * 4),
    "grouped columns": (lambda: F.grouped_mm(zeros(2, 4, 8), zeros(8, 16), offs=ends(4, 16)), 2 * 4 * 8 * 16),
    "grouped, all": (lambda: F.grouped_mm(zeros(2, 3, 8), zeros(2, 8, 4)), 2 * 2 * 3 * 8 * 4),
    # 5 - 3 + 1 = 3 positions a side; the transposed one starts from 5 a side
    "convolution": (lambda: F.conv2d(zeros(2, 4, 5, 5), zeros(6, 4, 3, 3)), 2 * 2 * 3 * 3 * 6 * 4 * 3 * 3),
    "convolution in groups": (
        lambda: F.conv2d(zeros(2, 4, 5, 5), zeros(6, 2, 3, 3), groups=2),
        2 * 2 * 3 * 3 * 6 * 2 * 3 * 3,
    ),
    "transposed convolution": (
        lambda: F.conv_transpose1d(zeros(2, 4, 5), zeros(4, 6, 3)),
        2 * 2 * 5 * 4 * 6 * 3,
    ),
    # 2 x 4 heads of 6 queries and 10 keys: scores over 8 channels, values of 8
    "attention on CPU": (
        lambda: F.scaled_dot_product_attention(zeros(2, 4, 6, 8), zeros(2, 4, 10, 8), zeros(2, 4, 10, 8)),
        2 * 2 * 4 * 6 * 10 * (8 + 8),
    ),
    # 4 heads share 2 of keys; each of 6 queries sees no more than 3 keys
    "windowed attention": (
        lambda: flash_attention(zeros(1, 4, 6, 8), zeros(1, 2, 6, 8), zeros(1, 2, 6, 5), None, 1.0, 3, None),
        2 * 4 * 6 * 3 * (8 + 5),
    ),
    # chunks of 4 of 6 positions are squares of 4 and of 2
    "attention in chunks": (
        lambda: flash_attention(zeros(1, 4, 6, 8), zeros(1, 2, 6, 8), zeros(1, 2, 6, 5), None, 1.0, None, None, 4),
        2 * 4 * (4 * 4 + 2 * 2) * (8 + 5),
    ),
}


def ends(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("product", PRODUCTS)
def test_product_by_hand(product: str) -> None:
    run, flops = PRODUCTS[product]
    assert flops_of(run) == [flops]


# --- Backward passes ---------------------------------------------------------------------------------------------


def backward_of(out: Tensor) -> list[int]:
    return flops_of(lambda: out.backward(torch.ones_like(out)))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
)
def test_each_gradient_of_a_convolution_multiplies_as_often_as_its_forward_pass(kind: Any, groups: int) -> None:
    """Torch's own formula agrees without groups; with groups it counts the weight's gradient once for each."""
    convolution = kind(4, 8, 3, stride=2, padding=1, groups=groups, device="meta")
    x = torch.zeros(2, 4, *[7] * (convolution.weight.dim() - 2), device="meta", requires_grad=True)
    out: list[Tensor] = []
    (forward,) = flops_of(lambda: out.append(convolution(x)))
    assert backward_of(out[0]) == [2 * forward]
    (other,) = flops_of(lambda: out.append(convolution(x.detach())))
    assert backward_of(out[1]) == [other]  # no gradient of an input that asks for none


def test_attention_on_cpu_backward() -> None:
    """Five products over 6 x 10 pairs: scores, and the gradients of queries, keys, probabilities and values."""
    query = zeros(2, 4, 6, 8, requires_grad=True)
    key = zeros(2, 4, 10, 8, requires_grad=True)
    assert backward_of(F.scaled_dot_product_attention(query, key, key)) == [5 * 2 * 2 * 4 * 6 * 10 * 8]


def test_attention_of_other_backends_is_registered_with_torch() -> None:
    """4 heads, 6 queries and keys, 8 channels: two products forward, five backward, 2 FLOPs a multiply-add."""
    query = torch.empty(1, 4, 6, 8, device="meta")
    forward, backward = (
        flop_registry[getattr(aten, f"_scaled_dot_product_fused_attention_overrideable{suffix}")]
        for suffix in ("", "_backward")
    )
    assert forward(query, query, query, out_val=query) == 2 * 2 * 4 * 6 * 6 * 8
    assert backward(query, query, query, query, out_val=query) == 5 * 2 * 4 * 6 * 6 * 8


def test_windowed_attention_backward() -> None:
    """Three products over 8 channels and two over 5, of 4 heads with 6 queries that see 3 keys each."""
    query, key = zeros(1, 4, 6, 8, requires_grad=True), zeros(1, 2, 6, 8, requires_grad=True)
    value = zeros(1, 2, 6, 5, requires_grad=True)
    out, _ = flash_attention(query, key, value, None, 1.0, 3, None)
    assert backward_of(out) == [2 * 4 * 6 * 3 * (3 * 8 + 2 * 5)]
    out, _ = flash_attention(query, key, value, None, 1.0, None, None, 4)
    assert backward_of(out) == [2 * 4 * (4 * 4 + 2 * 2) * (3 * 8 + 2 * 5)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_grouped_products_forward_and_backward(device: str, dtype: torch.dtype) -> None:
    rows = zeros(6, 8, dtype=dtype, device=device, requires_grad=True)
    weights = zeros(2, 8, 16, dtype=dtype, device=device, requires_grad=True)
    out: list[Tensor] = []
    assert flops_of(lambda: out.append(grouped_product(rows, weights, ends(2, 6).to(device)))) == [2 * 6 * 8 * 16]
    assert backward_of(out[0]) == [2 * 6 * 8 * 16, 2 * 6 * 8 * 16]


# --- Whole blocks in one op --------------------------------------------------------------------------------------


def test_an_encoder_layer_in_one_op_counts_as_its_parts() -> None:
    """Torch runs it so on CPU where nothing requires gradients: 12 tokens, 4 projections, 2 of 16 x 40, the core."""
    layer = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True).eval().requires_grad_(False)
    core = 2 * 2 * 2 * 6 * 6 * 16
    assert flops_of(lambda: layer(zeros(2, 6, 16))) == [2 * 12 * (4 * 16 * 16 + 2 * 16 * 40) + core]
    x = zeros(2, 6, 16)
    assert flops_of(lambda: layer.self_attn(x, x, x)) == [2 * 12 * 4 * 16 * 16 + core]


# --- What multiplies nothing -------------------------------------------------------------------------------------

HARMLESS: dict[str, Callable[[], Any]] = {
    "elementwise": lambda: zeros(3).add_(1).sin().mul(2) > 0,
    "views": lambda: zeros(3, 4).t().reshape(2, 6).split(1)[0].detach().unsqueeze_(0),
    "reductions": lambda: (zeros(3, 4).sum(0), zeros(3).norm(), zeros(3).var(), zeros(3).argmax(), zeros(3, 4).amax()),
    "scans and sorting": lambda: (zeros(3).cumsum(0).sort(), zeros(3).topk(2), zeros(3).cumprod(0)),
    "movement": lambda: (torch.cat([zeros(2), zeros(3)]), zeros(4)[ends(1, 2).long()], zeros(4).to(torch.float64)),
    "lists of tensors": lambda: (torch._foreach_mul([zeros(2)], 2.0), torch._foreach_norm([zeros(2)])),
    "random numbers": lambda: (torch.randn(3), F.dropout(zeros(3)), torch.randperm(3), zeros(3).normal_()),
    "numbers": lambda: (torch.zeros(()).item(), zeros(3).size(), torch.equal(zeros(1), zeros(1))),
    "norms": lambda: (
        F.layer_norm(zeros(2, 4), (4,)),
        F.batch_norm(zeros(2, 4), zeros(4), zeros(4)),
        F.group_norm(zeros(2, 4), 2),
    ),
    "losses": lambda: (F.cross_entropy(zeros(2, 4), ends(0, 1).long()), F.mse_loss(zeros(2), zeros(2))),
    "pooling": lambda: (F.max_pool2d(zeros(1, 1, 4, 4), 2), F.interpolate(zeros(1, 1, 4, 4), 2, mode="bilinear")),
    "embedding": lambda: F.embedding(ends(0, 1), zeros(3, 4)),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_multiplies_no_matrices_is_nothing(kind: str) -> None:
    assert flops_of(HARMLESS[kind]) == []


def test_backward_passes_of_what_multiplies_no_matrices() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Dropout(), nn.PReLU(), nn.Softmax(-1))
    assert backward_of(model(ends(0, 1)).square().mean()) == []


def test_the_list_names_ops_of_torch() -> None:
    if torch.__version__.startswith("2.13"):  # others have ops that this one lacks, or lack some
        assert sorted(name for name in OPS_WITHOUT_PRODUCTS if not hasattr(aten, name)) == []


# --- What is an error --------------------------------------------------------------------------------------------

UNKNOWN: dict[str, Callable[[], Any]] = {
    "aten._fft_r2c.default": lambda: torch.fft.rfft(zeros(8)),
    "aten._linalg_svd.default": lambda: torch.linalg.svd(torch.eye(3)),
    "aten._linalg_solve_ex.default": lambda: torch.linalg.solve(torch.eye(3), torch.eye(3)),
    "aten.linalg_inv_ex.default": lambda: torch.linalg.inv(torch.eye(3)),
    "aten.linalg_cholesky_ex.default": lambda: torch.linalg.cholesky(torch.eye(3)),
    "aten._cdist_forward.default": lambda: torch.cdist(zeros(3, 4), zeros(5, 4)),
    "aten._trilinear.default": lambda: F.bilinear(zeros(2, 3), zeros(2, 4), zeros(5, 3, 4)),
    "aten.mkldnn_rnn_layer.default": lambda: nn.LSTM(4, 4)(zeros(3, 2, 4)),
    "aten.affine_grid_generator.default": lambda: F.affine_grid(zeros(1, 2, 3), [1, 1, 4, 4], align_corners=False),
    "aten._foreach_mm.default": lambda: aten._foreach_mm([zeros(2, 2)], [zeros(2, 2)]),
}


@pytest.mark.parametrize("op", UNKNOWN)
def test_an_op_that_nothing_is_known_of_is_an_error_with_its_name(op: str) -> None:
    for _ in range(2):  # an answer that is remembered is the same
        with pytest.raises(UserError, match=f"^{re.escape(op)}: no FLOP formula"):
            flops_of(UNKNOWN[op])


def test_a_higher_order_op_is_an_error_with_its_name() -> None:
    with pytest.raises(UserError, match=r"^flex_attention: no FLOP formula"):
        op_flops(torch.ops.higher_order.flex_attention, (), {}, None)


# Words in the names of torch's ops that contract tensors or solve systems.
CONTRACTIONS = re.compile(
    r"(^|_)(\w?\w?mm|mv|dot|bmm|conv\w*|matmul|linear|bilinear|trilinear|linalg|attention|attn|fft|svd|qr|lu|solve|det"
    r"|cholesky\w*|inverse|cdist|lstm|gru|rnn|tensordot|kron|outer|cov|eig\w*|spsolve)(\d?d)?(_|$)"
)
NOT_CONTRACTIONS = {
    "fft_fftfreq",  # a list of frequencies
    "fft_rfftfreq",
    "linalg__powsum",  # reductions
    "linalg_vector_norm",
    "linalg_cross",  # three products for each output
    "linalg_diagonal",
    "slice_inverse",  # views
    "_thnn_fused_gru_cell",  # the gates alone
    "_thnn_fused_gru_cell_backward",
    "_thnn_fused_lstm_cell",
    "_thnn_fused_lstm_cell_backward_impl",
}
INTERPOLATION = ("upsample_", "_upsample_")


def test_no_op_that_contracts_passes_for_harmless() -> None:
    """Every op of torch whose name says that it contracts has a formula, or is unknown."""
    names = {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    packets = {name: getattr(aten, name) for name in names if CONTRACTIONS.search(name) and hasattr(aten, name)}
    assert len(packets) > 100
    for name, packet in packets.items():
        if packet in OP_FORMULAS or packet in flop_registry or name.startswith(INTERPOLATION):
            continue
        overload = getattr(packet, packet.overloads()[0])
        if name in NOT_CONTRACTIONS:
            assert op_flops(overload, (), {}, None) == 0
        else:
            with pytest.raises(UserError, match=re.escape(name)):
                op_flops(overload, (), {}, None)


# --- Formulas of the user's own ----------------------------------------------------------------------------------


def test_an_op_of_the_users_own_counts_by_the_formula_registered_with_torch() -> None:
    @torch.library.custom_op("test_op_formulas::scale", mutates_args=())
    def scale(x: Tensor) -> Tensor:
        return x * 2

    with pytest.raises(UserError, match=r"^test_op_formulas\.scale\.default: no FLOP formula"):
        flops_of(lambda: scale(zeros(3)))
    packet = torch.ops.test_op_formulas.scale
    register_flop_formula(packet)(lambda x, **_: 7 * x[0])
    try:
        assert flops_of(lambda: scale(zeros(3))) == [21]
    finally:
        del flop_registry[packet]


def test_ours_come_before_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OP_FORMULAS, aten.mm, lambda left, right, **_: left[0] + right[1])
    assert flops_of(lambda: zeros(3, 4) @ zeros(4, 5)) == [8]

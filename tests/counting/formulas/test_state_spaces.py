"""The products of scans, held against the algorithms written out here, which torch's own counter counts.

Each algorithm is first held against the recurrence that it computes, token by token, so that it lacks no product.
"""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from counting.counts import LayerCounts, ModelCounts
from counting.formulas.state_spaces import count_scans, scan_flops
from counting.scans import DeltaRuleScan, NamedScan, StateSpaceScan

CHUNK, CHUNKS = 4, 3
TOKENS = CHUNK * CHUNKS


def counted(function: object, *arguments: Tensor) -> tuple[Tensor, int]:
    with FlopCounterMode(display=False) as counter:
        out = function(*arguments)  # type: ignore[operator]
    return out, counter.get_total_flops()


def state_spaces(x_THP: Tensor, b_TGN: Tensor, c_TGN: Tensor, decay_TH: Tensor) -> Tensor:
    """Mamba-2 in chunks; `decay_TH` is the logarithm of each head's decay at each token."""
    heads, groups = x_THP.shape[1], b_TGN.shape[1]
    states = [x_THP.new_zeros(b_TGN.shape[2], x_THP.shape[2]) for _ in range(heads)]
    out = torch.empty_like(x_THP)
    for begin in range(0, len(x_THP), CHUNK):
        part = slice(begin, begin + CHUNK)
        for group in range(groups):
            b, c = b_TGN[part, group], c_TGN[part, group]
            scores = c @ b.T
            for head in range(group * heads // groups, (group + 1) * heads // groups):
                x, log = x_THP[part, head], decay_TH[part, head].cumsum(0)
                between = (log[:, None] - log[None, :]).exp().tril()
                inside = (scores * between) @ x
                out[part, head] = inside + (c @ states[head]) * log.exp()[:, None]
                added = (b * (log[-1] - log).exp()[:, None]).T @ x
                states[head] = states[head] * log[-1].exp() + added
    return out


def state_spaces_by_token(x_THP: Tensor, b_TGN: Tensor, c_TGN: Tensor, decay_TH: Tensor) -> Tensor:
    heads_each = x_THP.shape[1] // b_TGN.shape[1]
    b, c = b_TGN.repeat_interleave(heads_each, 1), c_TGN.repeat_interleave(heads_each, 1)
    state = x_THP.new_zeros(x_THP.shape[1], b.shape[2], x_THP.shape[2])
    out = []
    for token in range(len(x_THP)):
        state = state * decay_TH[token].exp()[:, None, None] + b[token][:, :, None] * x_THP[token][:, None, :]
        out.append((c[token][:, :, None] * state).sum(1))
    return torch.stack(out)


def delta_rule(q_TK: Tensor, k_TK: Tensor, v_TV: Tensor, decay_TK: Tensor, beta_T: Tensor) -> Tensor:
    """One head of the gated delta rule in chunks; `decay_TK` are logarithms, one column if channels share them."""
    state, out = q_TK.new_zeros(q_TK.shape[1], v_TV.shape[1]), torch.empty_like(v_TV)
    for begin in range(0, len(q_TK), CHUNK):
        part = slice(begin, begin + CHUNK)
        q, k, v, beta = q_TK[part], k_TK[part], v_TV[part], beta_T[part, None]
        log = decay_TK[part].cumsum(0)
        decayed, restored = k * log.exp(), k / log.exp()
        lower = (beta * (decayed @ restored.T)).tril(-1)
        inverse = torch.eye(CHUNK, dtype=q.dtype)
        for row in range(1, CHUNK):  # forward substitution, element by element
            inverse[row] = inverse[row] - (lower[row, :row, None] * inverse[:row]).sum(0)
        w, u = inverse @ (beta * decayed), inverse @ (beta * v)
        new = u - w @ state
        out[part] = (q * log.exp()) @ state + ((q * log.exp()) @ restored.T).tril() @ new
        state = state * log[-1].exp()[:, None] + (k * (log[-1] - log).exp()).T @ new
    return out


def delta_rule_by_token(q_TK: Tensor, k_TK: Tensor, v_TV: Tensor, decay_TK: Tensor, beta_T: Tensor) -> Tensor:
    state, out = q_TK.new_zeros(q_TK.shape[1], v_TV.shape[1]), []
    for q, k, v, decay, beta in zip(q_TK, k_TK, v_TV, decay_TK, beta_T, strict=True):
        state = state * decay.exp()[:, None]
        state = state + beta * k[:, None] * (v - (k[:, None] * state).sum(0))[None, :]
        out.append((q[:, None] * state).sum(0))
    return torch.stack(out)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("heads", "groups", "head_size", "state_size"), [(4, 2, 5, 3), (6, 6, 2, 7), (3, 1, 4, 4)])
def test_state_space_products_are_those_of_the_algorithm(
    heads: int, groups: int, head_size: int, state_size: int
) -> None:
    inputs = (
        random(TOKENS, heads, head_size),
        random(TOKENS, groups, state_size),
        random(TOKENS, groups, state_size),
        -random(TOKENS, heads).abs(),
    )
    out, flops = counted(state_spaces, *inputs)
    torch.testing.assert_close(out, state_spaces_by_token(*inputs))
    sizes = {"heads": heads, "groups": groups, "head_size": head_size, "state_size": state_size}
    scan = StateSpaceScan(sequences=1, length=TOKENS, chunk=CHUNK, **sizes)
    assert scan_flops(scan) == flops > 0
    longer = StateSpaceScan(sequences=5, length=TOKENS - CHUNK + 1, chunk=CHUNK, **sizes)  # its last chunk is padded
    assert scan_flops(longer) == 5 * flops


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize(("key_size", "value_size"), [(3, 5), (7, 2)])
def test_delta_rule_products_are_those_of_the_algorithm(key_size: int, value_size: int, by_channel: bool) -> None:
    inputs = (
        random(TOKENS, key_size),
        torch.nn.functional.normalize(random(TOKENS, key_size + 1)[:, :key_size], dim=-1),
        random(TOKENS, value_size),
        -random(TOKENS, key_size if by_channel else 1).abs() / 4,
        random(TOKENS).sigmoid(),
    )
    out, flops = counted(delta_rule, *inputs)
    torch.testing.assert_close(out, delta_rule_by_token(*inputs))
    sizes = {"key_size": key_size, "value_size": value_size, "decays_by_channel": by_channel}
    assert scan_flops(DeltaRuleScan(sequences=1, length=TOKENS, heads=1, chunk=CHUNK, **sizes)) == flops > 0
    several = DeltaRuleScan(sequences=2, length=TOKENS - 1, heads=3, chunk=CHUNK, **sizes)
    assert scan_flops(several) == 2 * 3 * flops


def test_published_layers_by_hand() -> None:
    """Qwen3-Next at 2,048 tokens: 32 heads of 128 x 128 in 32 chunks of 64; Nemotron-3-Nano: 64 heads of 64 in 8 groups
    with a state of 128, in 16 chunks of 128."""
    delta = DeltaRuleScan(
        sequences=1, length=2048, heads=32, key_size=128, value_size=128, chunk=64, decays_by_channel=False
    )
    assert scan_flops(delta) == 2 * 32 * 32 * (5 * 64 * 64 * 128 + 3 * 64 * 128 * 128) == 11_811_160_064
    space = StateSpaceScan(sequences=1, length=2048, heads=64, groups=8, head_size=64, state_size=128, chunk=128)
    of_heads = 64 * (128 * 128 * 64 + 2 * 128 * 128 * 64)
    assert scan_flops(space) == 2 * 16 * (8 * 128 * 128 * 128 + of_heads) == 6_979_321_856


def test_layers_sum_their_scans_and_elementwise_ones_have_no_products() -> None:
    scan = DeltaRuleScan(sequences=1, length=8, heads=1, key_size=2, value_size=2, chunk=4, decays_by_channel=True)
    window = NamedScan(algorithm="short convolution")
    like = ModelCounts(layers=(LayerCounts(kind="moe", count=3), LayerCounts(kind="dense", count=1)))
    counts = count_scans(like, [(window, scan, scan), (window,)])
    assert [layer.scan_flops for layer in counts.layers] == [2 * scan_flops(scan), 0]
    assert [(layer.kind, layer.count) for layer in counts.layers] == [("moe", 3), ("dense", 1)]

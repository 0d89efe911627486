"""The meta device as CUDA: what the swapped kernels allocate, and that torch's compiler stays away and unharmed."""

import subprocess
import sys

import torch
import torch.nn.functional as F

from counting.measurements.meta_device import measuring


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_an_analysis_does_not_load_the_compiler() -> None:
    code = (
        "import sys; from counting import Setup, analyze; analyze('deepseek_v3', Setup(sequence_length=64));"
        "print('torch._dynamo' in sys.modules, 'torch._inductor' in sys.modules)"
    )
    assert run(code) == "False False"


def test_the_compiler_works_after_an_analysis() -> None:
    code = (
        "import torch; from counting.analysis import analyze; analyze('llama_7b_config.json');"
        "f = torch.compile(lambda x: x.sin() + 1, backend='eager'); x = torch.ones(3);"
        "print(torch.equal(f(x), x.sin() + 1));"
        "y = torch.ones(3, device='meta') * 2; print(type(torch._dynamo).__name__, y.shape[0])"
    )
    assert run(code).split() == ["True", "module", "3"]


def test_many_analyses_in_a_row_do_not_pile_up() -> None:
    x = torch.ones(2, device="meta")
    for _ in range(3000):
        with measuring():
            x = x * 2
    assert x.shape == (2,)


def test_fused_norm_keeps_shape_dtype_and_gradients() -> None:
    x = torch.empty(2, 5, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with measuring():
        out = F.rms_norm(x, weight.shape, weight, 1e-6)
        out.sum().backward()
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert x.grad is not None
    assert weight.grad is not None
    assert (x.grad.shape, weight.grad.shape) == (x.shape, weight.shape)


def test_real_tensors_are_left_alone() -> None:
    x, weight = torch.randn(3, 8), torch.randn(8)
    query = torch.randn(1, 2, 4, 8)
    with measuring():
        norm = F.rms_norm(x, (8,), weight, 1e-6)
        attended = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    torch.testing.assert_close(norm, F.rms_norm(x, (8,), weight, 1e-6))
    torch.testing.assert_close(attended, F.scaled_dot_product_attention(query, query, query, is_causal=True))

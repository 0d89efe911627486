"""First values: every one is set, and the same on any device, in any dtype, under any wrapper."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.shrunken import DEEPSEEK_V3, FAMILIES, GEMMA2, GPT_OSS, LLAMA, WITH_BIASES
from torch_models import build, build_mtp, build_training_model, initialize
from torch_models.builder import build_model
from torch_models.errors import ArgumentError, UserError
from torch_models.fields.config import spec_from_fields
from torch_models.first_values import BLOCK, OwnFirstValues
from torch_models.modules.language_model import CausalLM
from torch_models.spec import ModelSpec

ALL = pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())


def spec_of(fields: dict[str, Any], **more: Any) -> ModelSpec:
    return spec_from_fields(fields | more, "x")


@torch.no_grad()
def forget(module: nn.Module) -> nn.Module:
    """Fill all that a checkpoint would hold with NaN, as memory after `to_empty` may be."""
    for tensor in module.state_dict().values():
        tensor.fill_(float("nan"))
    return module


def emptied(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> CausalLM:
    """A model that was built on the meta device and has memory since."""
    model = build(spec, device="meta", dtype=dtype).to_empty(device="cpu")
    forget(model)
    return model


def values_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_same(module: nn.Module, expected: dict[str, Tensor]) -> None:
    found = module.state_dict()
    assert expected
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


# --- What is set ---------------------------------------------------------------------------------------------------


@ALL
def test_every_value_is_set_after_to_empty(fields: dict[str, Any]) -> None:
    model = emptied(spec_of(fields))
    initialize(model, seed=0)
    kinds: dict[str, int] = {"norm": 0, "bias": 0, "weight": 0}
    for name, value in values_of(model).items():
        is_factor = "norm" in name or name.endswith(("scale", "scalar"))
        kind = "bias" if name.endswith("bias") else "norm" if is_factor else "weight"
        kinds[kind] += 1
        if kind == "weight":
            assert not value.isnan().any()
            assert value.std().item() == pytest.approx(0.02, rel=0.6), name  # a sink has 8 values
        else:
            expected = 0.0 if kind == "bias" or spec_of(fields).norm_unit_offset else 1.0
            assert torch.equal(value, torch.full_like(value, expected)), name
    assert min(kinds["norm"], kinds["weight"]) > 0
    assert bool(kinds["bias"]) == (fields["model_type"] in WITH_BIASES)


@ALL
def test_after_to_empty_as_built(fields: dict[str, Any]) -> None:
    spec = spec_of(fields)
    torch.manual_seed(5)
    built = build(spec)
    model = emptied(spec)
    torch.manual_seed(5)
    initialize(model)
    assert_same(model, values_of(built))


def test_multi_token_prediction_as_built() -> None:
    spec = spec_of(DEEPSEEK_V3, initializer_range=0.5)
    torch.manual_seed(5)
    built = build_mtp(spec)
    layers = build_mtp(spec, device="meta").to_empty(device="cpu")
    forget(layers)
    torch.manual_seed(5)
    initialize(layers)
    assert_same(layers, values_of(built))
    assert layers[0].eh_proj.weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_a_model_to_train_as_the_main_model() -> None:
    spec = spec_of(DEEPSEEK_V3, initializer_range=0.5, tie_word_embeddings=True)
    torch.manual_seed(5)
    main = build(spec)
    torch.manual_seed(5)
    built = build_training_model(spec)
    assert_same(built, values_of(main))
    model = build_training_model(spec, device="meta").to_empty(device="cpu")
    forget(model)
    torch.manual_seed(5)
    initialize(model)
    assert_same(model, values_of(built))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert any("eh_proj" in name for name in values_of(model))


def test_weights_follow_the_normal_distribution() -> None:
    linear = nn.Linear(1000, 3000)
    initialize(linear, seed=1)
    weight = linear.weight.detach().double().flatten() / 0.02
    assert weight.numel() > 2 * BLOCK
    assert [weight.pow(power).mean().item() for power in (1, 2, 3, 4)] == pytest.approx([0, 1, 0, 3], abs=0.02)
    rows = BLOCK // 1000
    first, second = linear.weight[:rows], linear.weight[rows : 2 * rows]
    assert not torch.equal(first, second)
    assert (first * second).mean().item() == pytest.approx(0, abs=4 * 0.02**2 / first.numel() ** 0.5)


# --- What decides a value ------------------------------------------------------------------------------------------


def test_the_seed_decides() -> None:
    spec = spec_of(LLAMA)
    one, same, other = emptied(spec), emptied(spec), emptied(spec)
    initialize(one, seed=2**64 - 1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    initialize(same, seed=2**64 - 1)
    assert torch.equal(torch.get_rng_state(), before)  # a seed takes nothing from torch's default generator
    initialize(other, seed=0)
    assert_same(same, values_of(one))
    assert not torch.equal(other.lm_head.weight, one.lm_head.weight)
    up, gate = one.model.layers[0].mlp.up_proj.weight, one.model.layers[0].mlp.gate_proj.weight
    assert up.shape == gate.shape
    assert not torch.equal(up, gate)


def test_without_a_seed_each_call_draws_anew() -> None:
    torch.manual_seed(3)
    one, other = build(spec_of(LLAMA)), build(spec_of(LLAMA))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    torch.manual_seed(3)
    assert_same(build(spec_of(LLAMA)), values_of(one))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_dtype_only_rounds(dtype: torch.dtype) -> None:
    spec = spec_of(GPT_OSS)
    exact, rounded = emptied(spec), emptied(spec, dtype)
    initialize(exact, seed=4)
    initialize(rounded, seed=4)
    assert {parameter.dtype for parameter in rounded.parameters()} == {dtype}
    assert_same(rounded, {name: value.to(dtype) for name, value in values_of(exact).items()})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_has_the_values_of_the_cpu() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(5)
        on_cpu = build(spec_of(DEEPSEEK_V3), dtype=dtype)
        torch.manual_seed(5)
        on_cuda = build(spec_of(DEEPSEEK_V3), dtype=dtype, device="cuda")
        assert all(value.is_cuda for value in values_of(on_cuda).values())
        assert_same(on_cuda.cpu(), values_of(on_cpu))


def test_a_seed_means_the_same_in_every_version() -> None:
    """Another block size, hash or name would draw other numbers. Blocks begin at the rows 0, 1048 and 2096."""
    linear = nn.Linear(1000, 3000)
    initialize(linear, seed=1)
    expected = [0.00465733, -0.01147412, -0.03430251, -0.00192568, -0.01004568, -0.02947477]
    found = [linear.weight[row, 0].item() for row in (0, 1047, 1048, 2095, 2096, 2999)]
    assert found == pytest.approx(expected, abs=1e-7)  # a processor may round the logarithm in another way


def test_other_parameters_change_nothing() -> None:
    shallow, deep = build(spec_of(LLAMA, num_hidden_layers=1)), build(spec_of(LLAMA, num_hidden_layers=3))
    initialize(shallow, seed=1)
    initialize(deep, seed=1)
    assert_same(deep, values_of(shallow))


def test_a_tied_weight_is_drawn_as_the_embedding() -> None:
    tied, separate = build(spec_of(LLAMA, tie_word_embeddings=True)), build(spec_of(LLAMA))
    initialize(tied, seed=1)
    initialize(separate, seed=1)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert_same(separate, values_of(tied))
    assert not torch.equal(separate.lm_head.weight, separate.model.embed_tokens.weight)


def test_wrappers_change_nothing() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain, wrapped = build(spec_of(LLAMA)), build(spec_of(LLAMA))
    initialize(plain, seed=1)
    expected = values_of(plain)
    forget(wrapped)
    initialize(torch.compile(wrapped, backend="eager"), seed=1)
    assert_same(wrapped, expected)
    forget(wrapped)
    wrapped.model.layers[0] = checkpoint_wrapper(wrapped.model.layers[0])
    initialize(nn.DataParallel(wrapped), seed=1)
    assert_same(wrapped, expected)


def test_the_context_of_the_call_changes_nothing() -> None:
    plain, within = build(spec_of(LLAMA)), build(spec_of(LLAMA))
    initialize(plain, seed=1)
    forget(within)
    with torch.device("meta"), torch.inference_mode(False):
        initialize(within, seed=1)
    assert_same(within, values_of(plain))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in within.parameters())


def test_memory_layout_and_odd_shapes() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.number = nn.Parameter(torch.empty(()))
            self.nothing = nn.Parameter(torch.empty(3, 0))
            self.turned = nn.Parameter(torch.empty(6, 5).t())
            self.plain = nn.Parameter(torch.empty(5, 6))

    odd, renamed = Odd(), Odd()
    renamed.plain, renamed.turned = renamed.turned, renamed.plain
    initialize(odd, seed=0)
    initialize(renamed, seed=0)
    assert 0 < abs(odd.number.item()) < 0.2
    assert odd.turned.stride() != renamed.turned.stride()
    assert torch.equal(odd.turned, renamed.turned)
    assert torch.equal(odd.plain, renamed.plain)


# --- The range -----------------------------------------------------------------------------------------------------


def test_the_range_is_the_factor_of_one_draw() -> None:
    model = build(spec_of(LLAMA))
    initialize(model, seed=1, initializer_range=0.25)
    quarter = model.lm_head.weight.clone()
    initialize(model, seed=1, initializer_range=0.5)
    assert torch.equal(model.lm_head.weight, 2 * quarter)
    assert torch.equal(model.model.norm.weight, torch.ones(64))
    initialize(model, seed=1, initializer_range=0)
    assert not model.lm_head.weight.any()


@ALL
def test_the_range_is_that_of_the_config(fields: dict[str, Any]) -> None:
    spec = spec_of(fields, initializer_range=0.5)
    assert spec.initializer_range == 0.5
    model, given = build(spec), build(spec_of(fields))
    initialize(model, seed=1)
    initialize(given, seed=1, initializer_range=0.5)
    assert_same(model, values_of(given))
    initialize(given, seed=1)
    assert model.lm_head.weight.std().item() == pytest.approx(25 * given.lm_head.weight.std().item())


# --- reset_parameters ----------------------------------------------------------------------------------------------


def test_construction_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for fields in (GPT_OSS, DEEPSEEK_V3):
        build_model(spec_of(fields))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fields", [DEEPSEEK_V3, GPT_OSS, GEMMA2], ids=["deepseek_v3", "gpt_oss", "gemma2"])
def test_reset_parameters_of_each_module_sets_all(fields: dict[str, Any]) -> None:
    spec = spec_of(fields, initializer_range=0.5, tie_word_embeddings=False)
    model = emptied(spec)
    owners = [module for module in model.modules() if [*module.parameters(recurse=False)]]
    assert all(isinstance(owner, OwnFirstValues) for owner in owners)
    for owner in owners:
        torch.manual_seed(0)
        owner.reset_parameters()
    assert not any(value.isnan().any() for value in values_of(model).values())
    built = values_of(build(spec))
    assert_same(model, {name: built[name] for name in built if name.endswith(("bias", "norm.weight"))})
    assert model.lm_head.weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_reset_parameters_leaves_the_modules_within() -> None:
    model = build(spec_of(GPT_OSS))
    attention = model.model.layers[0].self_attn
    before = {name: value.clone() for name, value in values_of(attention).items()}
    attention.reset_parameters()
    changed = {name for name, value in values_of(attention).items() if not torch.equal(value, before[name])}
    assert changed == {"sinks"}


def test_a_module_that_is_put_in_has_the_range_of_the_model() -> None:
    model = build(spec_of(LLAMA, initializer_range=0.5))
    model.lm_head = nn.Linear(64, 96)
    model.model.norm = nn.RMSNorm(64)
    initialize(model, seed=0)
    assert model.lm_head.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(model.model.norm.weight, torch.ones(64))


# --- Errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seed": -1}, "seed = -1: must be an integer from 0 to 2**64 - 1"),
        ({"seed": 2**64}, "seed = 18446744073709551616: must be an integer"),
        ({"seed": True}, "seed = true: must be an integer"),
        ({"seed": 1.0}, "seed = 1.0: must be an integer"),
        ({"seed": "1"}, "seed = '1': must be an integer"),
        ({"initializer_range": -0.1}, "initializer_range = -0.1: must be a finite number, at least 0"),
        ({"initializer_range": float("nan")}, "initializer_range = nan: must be a finite number"),
        ({"initializer_range": float("inf")}, "initializer_range = inf: must be a finite number"),
        ({"initializer_range": 10**400}, "initializer_range = an integer of 1329 bits: must be a finite number"),
        ({"initializer_range": "0.1"}, "initializer_range = '0.1': must be a finite number"),
        ({"initializer_range": False}, "initializer_range = false: must be a finite number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_argument_that_cannot_be(arguments: dict[str, Any], said: str) -> None:
    model = emptied(spec_of(LLAMA))
    with pytest.raises(ArgumentError) as caught:
        initialize(model, **arguments)
    assert str(caught.value).startswith(said)
    assert all(value.isnan().all() for value in values_of(model).values())


def refused(model: nn.Module) -> str:
    with pytest.raises(UserError) as caught:
        initialize(model, seed=0)
    return str(caught.value)


def test_memory_that_is_not_there_is_an_error_before_any_work() -> None:
    model = emptied(spec_of(DEEPSEEK_V3))
    meta = build(spec_of(DEEPSEEK_V3), device="meta")
    rule = "is on the meta device and holds no values; call to_empty(device=...) on the module first"
    assert refused(meta) == f"model.embed_tokens.weight {rule}"
    router = model.model.layers[1].mlp.gate
    router.e_score_correction_bias = router.e_score_correction_bias.to("meta")
    assert refused(model) == f"model.layers.1.mlp.gate.e_score_correction_bias {rule}"
    router.e_score_correction_bias = torch.empty(16)
    model.lm_head.weight = meta.lm_head.weight
    assert refused(model) == f"lm_head.weight {rule}"
    assert model.model.embed_tokens.weight.isnan().all()


def test_a_buffer_of_another_module() -> None:
    model = emptied(spec_of(LLAMA))
    model.extra = nn.BatchNorm1d(4)
    assert refused(model) == "extra.running_mean is a buffer of BatchNorm1d, whose first value is not known here"
    assert model.model.embed_tokens.weight.isnan().all()


def test_a_wrapper_that_flattens_parameters() -> None:
    class FullyShardedDataParallel(nn.Sequential):
        """As that of torch, which needs a process group."""

    said = refused(FullyShardedDataParallel(nn.Linear(2, 2)))
    assert said.startswith(
        "the module is under FullyShardedDataParallel, which flattens parameters; initialize the mod"
    )


def test_the_library_of_divided_tensors_is_not_imported() -> None:
    script = """
import sys, torch_models.builder
torch_models.builder.build("configs/my_model_config.json", device="meta")
from torch_models import initialize
from torch_models.modules.layers import Linear
initialize(Linear(4, 4))
Linear(4, 4).reset_parameters()
sys.exit("torch.distributed.tensor" in sys.modules)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=300)


def test_fake_tensors_hold_no_values() -> None:
    """Estimators of memory build models like this."""
    with FakeTensorMode():
        model = build(GPT_OSS)
        assert all(isinstance(parameter, FakeTensor) for parameter in model.parameters())
        with pytest.raises(UserError, match="is on the meta device and holds no values"):
            initialize(model)

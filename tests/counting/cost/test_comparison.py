"""Models side by side on the same tokens and GPU."""

import json
from fractions import Fraction

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.budget import DEFAULT_MFU
from counting.cost.comparison import Comparison, compare
from counting.cost.conventions import training_flops_per_token
from counting.cost.run import RunPlan, plan_run
from counting.setup import Setup
from torch_models.errors import UserError
from torch_models.fields.config import read_spec
from torch_models.spec import MixtureOfExpertsSpec, ModelSpec, runs_of

PLAN = RunPlan(tokens=15 * 10**12, gpus=("H100",), num_gpus=2048, mfus=(0.4,))


@pytest.fixture(scope="module")
def analyses() -> list[Analysis]:
    return [
        analyze(config, Setup(sequence_length=4096), step=False)
        for config in ("deepseek_v3", "llama_3_1_405b", "mixtral_8x7b")
    ]


def test_each_is_its_own_run(analyses: list[Analysis]) -> None:
    comparison = compare(analyses, PLAN)
    for analysis, model in zip(analyses, comparison.models, strict=True):
        run = plan_run(analysis, PLAN)
        assert model.model == analysis.name
        assert model.outcome == run.gpus[0].outcomes[0]
        assert model.fewest_gpus == run.gpus[0].fewest_gpus
        assert model.training_flops_per_token == run.training_flops_per_token
    costs = [model.outcome.cost_usd for model in comparison.models]
    assert [model.cost_over_cheapest for model in comparison.models] == [cost / costs[2] for cost in costs]


def test_what_routing_saves(analyses: list[Analysis]) -> None:
    deepseek, llama, mixtral = compare(analyses, PLAN).models
    assert deepseek.training_flops_per_token_if_dense - deepseek.training_flops_per_token == 6 * (
        671_026_404_352 - 37_552_282_624
    )
    inactive = 671_026_404_352 - 37_552_282_624
    flops = training_flops_per_token(analyses[0])
    assert deepseek.saved_by_routing == float(1 - flops / (flops + 6 * inactive))
    assert f"{deepseek.saved_by_routing:.3f}" == "0.929"
    assert llama.saved_by_routing == 0
    assert llama.training_flops_per_token_if_dense == llama.training_flops_per_token
    # Mixtral runs 2 of 8 experts: with all of them its own count would be this.
    dense = analyze(with_all_experts(read_spec("mixtral_8x7b")), Setup(sequence_length=4096), step=False)
    assert mixtral.training_flops_per_token_if_dense * 4096 == 3 * dense.forward_flops


def with_all_experts(spec: ModelSpec) -> ModelSpec:
    """The same model, each token visiting every routed expert."""
    layers = []
    for layer in spec.layers:
        assert isinstance(layer.feed_forward, MixtureOfExpertsSpec)
        router = msgspec.structs.replace(layer.feed_forward.router, top_k=layer.feed_forward.router.num_experts)
        feed_forward = msgspec.structs.replace(layer.feed_forward, router=router)
        layers.append(msgspec.structs.replace(layer, feed_forward=feed_forward))
    return msgspec.structs.replace(spec, layer_runs=runs_of(layers))


def test_lossless_to_json(analyses: list[Analysis]) -> None:
    comparison = compare(analyses, PLAN)
    text = msgspec.json.encode(comparison)
    assert msgspec.json.decode(text, type=Comparison) == comparison
    assert isinstance(json.loads(text)["models"][0]["training_flops_per_token_if_dense"], int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": ("H100", "B200")}, "^gpus = 'H100,B200': a comparison needs one GPU, but 2 are named$"),
        ({"mfus": None, "gpu_hours": 1e6}, r"^gpu_hours = 1000000\.0: a comparison takes no hours"),
        (
            {"mfus": None, "tokens_per_second_per_gpu": 11_000},
            "^tokens_per_second_per_gpu = 11000: a comparison takes no speed, which is of one model's run: give",
        ),
        ({"mfus": (0.3, 0.4)}, "^mfu = '0.3,0.4': a comparison needs one utilisation, but 2 are given$"),
    ],
)
def test_refused(change: dict[str, object], message: str, analyses: list[Analysis]) -> None:
    with pytest.raises(UserError, match=message):
        compare(analyses, msgspec.structs.replace(PLAN, **change))


def test_one_model_is_no_comparison(analyses: list[Analysis]) -> None:
    with pytest.raises(UserError, match=r"^analyses = 1: a comparison needs two models or more$"):
        compare(analyses[:1], PLAN)


def test_where_no_utilisation_is_given_one_is_assumed(analyses: list[Analysis]) -> None:
    assumed = compare(analyses, msgspec.structs.replace(PLAN, mfus=None))
    given = compare(analyses, msgspec.structs.replace(PLAN, mfus=(DEFAULT_MFU,)))
    assert assumed.mfu == given.mfu == DEFAULT_MFU
    assert {model.outcome.mfu_source for model in assumed.models} == {"assumed"}
    assert {model.outcome.mfu_source for model in given.models} == {"given"}
    costs = [[model.outcome.cost_usd for model in comparison.models] for comparison in (assumed, given)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("field", "setup"), [("precision", Setup(precision="bf16")), ("optimizer", Setup(optimizer="sgd"))]
)
def test_models_compared_are_of_one_precision_and_optimiser(field: str, setup: Setup, analyses: list[Analysis]) -> None:
    setup = msgspec.structs.replace(setup, sequence_length=4096)
    with pytest.raises(UserError, match=f"all compared models must have the same {field}$"):
        compare([analyses[0], analyze("llama_7b", setup, step=False)], PLAN)


def test_models_compared_are_of_one_sequence_length(analyses: list[Analysis]) -> None:
    """Llama-7B's own is 2,048: its bill beside one at 4,096 would say nothing."""
    with pytest.raises(
        UserError, match=r"^sequence_length = '2048, 4096': all compared models must have the same sequence_length"
    ):
        compare([analyses[0], analyze("llama_7b", step=False)], PLAN)


def test_deepseek_and_llama_at_what_deepseek_was_trained_at() -> None:
    """GPU-hours are FLOPs / (3600 x 989e12 x 0.4), at 3 dollars."""
    pair = [analyze(name, Setup(sequence_length=4096), step=False) for name in ("deepseek_v3", "llama_3_1_405b")]
    deepseek, llama = compare(pair, RunPlan(tokens=15 * 10**12, gpus=("H100",))).models
    assert [f"{model.outcome.cost_usd / 1e6:.1f}" for model in (deepseek, llama)] == ["9.2", "79.8"]
    assert llama.outcome.cost_usd == float(
        Fraction(llama.training_flops_per_token * 15 * 10**12 * 3, 3600 * 3956 * 10**11)
    )

"""Every family on two and four ranks, against the plain module that is trained on the batches of all ranks."""

import pytest

from tests.shrunken import REPRESENTATIVE
from tests.torch_models.ecosystem.comparison import assert_close, assert_equal, rows
from tests.torch_models.ecosystem.training_steps import Trained, Way, train, train_plain
from tests.worlds import World

EXACT = {
    "ddp": (Way(wrapper="ddp"), ["gemma2", "mixtral"]),
    "ddp-recompute_full": (Way(wrapper="ddp", recompute="full"), ["deepseek_v3"]),
    "ddp-autocast": (Way(wrapper="ddp", autocast=True), ["mixtral"]),
    "ddp-compiled": (Way(wrapper="ddp", backend="aot_eager"), ["smollm"]),
    "fsdp": (Way(wrapper="fsdp"), REPRESENTATIVE),
    "fsdp-eager_kernels": (Way(wrapper="fsdp", kernels="eager"), ["gpt_oss"]),
    "fsdp-recompute_full": (Way(wrapper="fsdp", recompute="full"), ["deepseek_v3"]),
    "fsdp-recompute_per_op": (Way(wrapper="fsdp", recompute="per_op"), ["mixtral"]),
    "fsdp-recompute_selective": (Way(wrapper="fsdp", recompute="selective"), ["gemma2"]),
    "fsdp-mixed_precision": (Way(wrapper="fsdp", mixed_precision=True), ["smollm", "deepseek_v3"]),
    "fsdp-loss_chunk": (Way(wrapper="fsdp", loss_chunk=7), ["smollm"]),
    "fsdp-decoder": (Way(wrapper="fsdp", decoder_apart=True), ["deepseek_v3"]),
    "fsdp-initialized": (Way(wrapper="fsdp", initialized=True), ["smollm", "gpt_oss", "deepseek_v3"]),
    "fsdp-compiled": (Way(wrapper="fsdp", backend="aot_eager"), ["mixtral"]),
    "fsdp-compiled-recompute_full": (Way(wrapper="fsdp", backend="aot_eager", recompute="full"), ()),
    "fsdp-compiled-recompute_per_op": (Way(wrapper="fsdp", backend="aot_eager", recompute="per_op"), ()),
    "fsdp-compiled-mixed_precision": (Way(wrapper="fsdp", backend="aot_eager", mixed_precision=True), ()),
}
ACCUMULATED = {
    "ddp": (Way(wrapper="ddp", micro_batches=2), ["smollm"]),
    "fsdp": (Way(wrapper="fsdp", micro_batches=2), ["deepseek_v3"]),
}
ON_FOUR = {
    "ddp": (Way(wrapper="ddp"), ()),
    "fsdp": (Way(wrapper="fsdp"), ["deepseek_v3"]),
    "fsdp-initialized": (Way(wrapper="fsdp", initialized=True), ()),
    "hsdp": (Way(wrapper="hsdp"), ["gpt_oss"]),
}


def same_on_all_ranks(results: list[Trained]) -> Trained:
    for result in results[1:]:
        assert_equal(result, results[0])
    return results[0]


@pytest.mark.parametrize(("family", "way"), rows(EXACT))
def test_two_ranks_train_as_one_process(family: str, way: Way, two_ranks: World) -> None:
    found = same_on_all_ranks(two_ranks.run(train, family, way))
    assert_equal(found, train_plain(family, way.in_one_process(), 2))


@pytest.mark.parametrize(("family", "way"), rows(ACCUMULATED))
def test_two_ranks_accumulate_as_one_process(family: str, way: Way, two_ranks: World) -> None:
    """Not to the bit: the ranks add their gradients in another order."""
    found = same_on_all_ranks(two_ranks.run(train, family, way))
    assert_close(found, train_plain(family, way.in_one_process(), 2), 1e-6)


@pytest.mark.parametrize(("family", "way"), rows(ON_FOUR))
def test_four_ranks_train_as_one_process(family: str, way: Way, four_ranks: World) -> None:
    """Not to the bit: the ranks add their gradients in another order."""
    found = same_on_all_ranks(four_ranks.run(train, family, way))
    assert_close(found, train_plain(family, way.in_one_process(), 4), 1e-6)

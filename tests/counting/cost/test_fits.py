"""On which GPUs a training step fits, and what makes it fit."""

import json
from typing import Any

import msgspec
import pytest

from counting.analysis import Analysis, analyze
from counting.cost.fits import fits_on, worst_rank
from counting.cost.hardware import Gpu, find_gpu, load_gpus
from counting.setup import Setup
from counting.step.fit import Fit, Remedy
from counting.step.memory import Alternative
from tests.counting.spread import rank_class, spread
from tests.shrunken import LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import Kernels, Recompute


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b", Setup(sequence_length=2048))


def test_llama_7b_does_not_fit_an_h100_and_nothing_makes_it(llama: Analysis) -> None:
    """16 bytes for each of 6,738,415,616 parameters are more than an H100 by themselves."""
    assert fits_on(llama, [find_gpu("H100")]) == (
        Fit(
            gpu="H100",
            fits=False,
            kernels="fused",
            allocated_bytes=108_339_494_916,
            context_bytes=625 * 2**20,
            needed_bytes=108_339_494_916 + 625 * 2**20,
            capacity_bytes=84_932_558_848,
            basis="allocated",
            remedies=(),
        ),
    )
    assert fits_on(llama, [find_gpu("H100")])[0].spare_bytes == 84_932_558_848 - 108_339_494_916 - 625 * 2**20
    assert 16 * 6_738_415_616 > 84_932_558_848


def test_the_gpus_that_llama_7b_fits(llama: Analysis) -> None:
    assert [fit.gpu for fit in fits_on(llama, load_gpus()) if fit.fits] == ["H200", "B200", "GB200", "MI300X"]


def test_grouped_queries_on_a_gpu_without_flash_attention() -> None:
    """9 query heads share 3 key and value heads: below compute capability 8.0 PyTorch has no fused kernel for that."""
    setup = Setup(sequence_length=2048)
    fused, eager = (analyze("smollm2_135m", msgspec.structs.replace(setup, kernels=k)) for k in ("fused", "eager"))
    t4, l4 = fits_on(fused, [find_gpu("T4"), find_gpu("L4")])
    assert fused.memory is not None
    assert eager.memory is not None
    assert (l4.kernels, l4.allocated_bytes) == ("fused", fused.memory.peak_bytes)
    assert (t4.kernels, t4.allocated_bytes) == ("eager", eager.memory.peak_bytes)
    assert eager.memory.peak_bytes > 2 * fused.memory.peak_bytes
    assert fits_on(eager, [find_gpu("T4")]) == (t4,)


@pytest.mark.parametrize("recompute", ["per_op", 3])
def test_other_recomputation_without_flash_attention_needs_what_a_step_without_any_does(recompute: Any) -> None:
    none, other = (analyze("smollm2_135m", Setup(sequence_length=2048, recompute=each)) for each in ("none", recompute))
    (needs,), (t4,) = (fits_on(each, [find_gpu("T4")]) for each in (none, other))
    assert (t4.kernels, t4.allocated_bytes) == ("eager", needs.allocated_bytes)


def test_ring_attention_runs_on_no_gpu_without_flash_attention() -> None:
    analysis = analyze("smollm2_135m", Setup(sequence_length=256), layout=Layout(cp=2))
    t4, l4 = fits_on(analysis, [find_gpu("T4"), find_gpu("L4")])
    assert (t4.fits, l4.fits) == (False, True)
    assert t4.remedies == ()
    assert t4.needed_bytes < t4.capacity_bytes


def test_grouped_queries_in_fp32_are_fused_on_no_nvidia_gpu() -> None:
    setup = Setup(sequence_length=128, precision="fp32")
    h100, mi300x = fits_on(analyze("smollm2_135m", setup), [find_gpu("H100"), find_gpu("MI300X")])
    assert (h100.kernels, mi300x.kernels) == ("eager", "fused")
    (equal_heads,) = fits_on(analyze(spec_from_fields(LLAMA, "shrunken"), setup), [find_gpu("H100")])
    assert equal_heads.kernels == "fused"


def test_equal_heads_run_fused_on_every_gpu(llama: Analysis) -> None:
    assert {fit.kernels for fit in fits_on(llama, load_gpus())} == {"fused"}


def test_a_gpu_of_unknown_capability_has_the_kernels() -> None:
    analysis = analyze("smollm2_135m", Setup(sequence_length=128))
    t4 = find_gpu("T4")
    for capability, kernels in ((7.9, "eager"), (8.0, "fused"), (None, "fused")):
        (fit,) = fits_on(analysis, [msgspec.structs.replace(t4, compute_capability=capability)])
        assert fit.kernels == kernels


def test_what_makes_smollm2_fit_at_16384() -> None:
    """Cheapest first: the head once more, and half of the products, or every layer; each by its own measured step."""
    setup = Setup(sequence_length=16_384)
    small = msgspec.structs.replace(find_gpu("L4"), driver_memory_bytes=14904 * 2**20)
    (fit,) = fits_on(analyze("smollm2_135m", setup), [small])
    assert (fit.fits, fit.allocated_bytes) == (False, 21_423_359_064)
    assert [(remedy.recompute, remedy.loss_chunk) for remedy in fit.remedies] == [
        ("none", 1024),
        ("per_op", 1024),
        ("full", 1024),
    ]
    for remedy in fit.remedies:
        run_so = msgspec.structs.replace(setup, recompute=remedy.recompute, loss_chunk=remedy.loss_chunk)
        (measured,) = fits_on(analyze("smollm2_135m", run_so), [small])
        assert (measured.fits, measured.needed_bytes) == (True, remedy.needed_bytes)


def test_what_costs_more_and_saves_nothing_is_no_remedy() -> None:
    """With eager kernels the worst moment is within a layer: the loss in chunks adds nothing to recomputing."""
    (fit,) = fits_on(analyze("smollm2_135m", Setup(sequence_length=8192, kernels="eager")), [find_gpu("H100")])
    assert [(remedy.recompute, remedy.loss_chunk) for remedy in fit.remedies] == [("selective", None), ("full", None)]


def test_mi250x_is_one_die() -> None:
    """Llama-7B in bf16 needs 8 bytes a parameter, 54 GB, and 14 GB beside: more than one of the two dies has."""
    analysis = analyze("llama_7b", Setup(sequence_length=8192, precision="bf16"))
    (fit,) = fits_on(analysis, [find_gpu("MI250X")])
    assert fit.capacity_bytes == 65520 * 2**20 < fit.allocated_bytes == fit.needed_bytes < 128 * 2**30
    assert fit.remedies == (
        Remedy(recompute="per_op", loss_chunk=None, needed_bytes=60_255_036_168),
        Remedy(recompute="per_op", loss_chunk=1024, needed_bytes=58_497_663_752),
        Remedy(recompute="full", loss_chunk=None, needed_bytes=55_020_044_320),
    )


def test_a_step_that_fills_the_device_to_the_last_byte() -> None:
    analysis = analyze(spec_from_fields(LLAMA, "shrunken"), Setup(sequence_length=64))
    assert analysis.memory is not None
    needed = analysis.memory.peak_bytes + 1000
    for capacity, fits in ((needed - 1, False), (needed, True)):
        (fit,) = fits_on(analysis, [with_memory(capacity, context=1000)])
        assert (fit.fits, fit.needed_bytes, fit.spare_bytes) == (fits, needed, capacity - needed)
    alternatives = analysis.memory.alternatives
    least = min(other.peak_bytes for other in alternatives)
    for capacity, remedies in ((least + 999, 0), (least + 1000, 1)):
        (fit,) = fits_on(analysis, [with_memory(capacity, context=1000)])
        assert [remedy.needed_bytes for remedy in fit.remedies] == [least + 1000] * remedies


def with_memory(capacity: int, context: int) -> Gpu:
    h100 = find_gpu("H100")
    return msgspec.structs.replace(h100, name="tiny", driver_memory_bytes=capacity, context_bytes=context)


def test_no_step_no_fit() -> None:
    assert fits_on(analyze("llama_7b", step=False), load_gpus()) == ()


def test_lossless_to_json_within_the_analysis(llama: Analysis) -> None:
    assert llama.fits is None
    with_fits = msgspec.structs.replace(llama, fits=fits_on(llama, load_gpus()))
    text = msgspec.json.encode(with_fits)
    assert msgspec.json.decode(text, type=Analysis) == with_fits
    assert set(json.loads(text)["fits"][0]) == {
        "gpu",
        "rank",
        "fits",
        "kernels",
        "allocated_bytes",
        "reserved_bytes",
        "context_bytes",
        "communicator_bytes",
        "needed_bytes",
        "capacity_bytes",
        "basis",
        "remedies",
        "spare_bytes",
    }


# --- Of ranks ---------------------------------------------------------------------------------------------------------


SPREAD = Layout(num_gpus=64, gpus_per_node=8, dp=1, fsdp=64)


def variant(kernels: Kernels, recompute: Recompute, peak_bytes: int) -> Alternative:
    return Alternative(
        kernels=kernels, recompute=recompute, loss_chunk=None, peak_bytes=peak_bytes, recomputed_flops=10**12
    )


def test_the_worst_rank_must_fit(llama: Analysis) -> None:
    classes = (rank_class(50 * 10**9, count=1), rank_class(60 * 10**9, count=62, first_rank=1))
    lighter = rank_class(55 * 10**9, count=1, first_rank=63)
    analysis = spread(llama, SPREAD, *classes, lighter)
    worst = worst_rank(analysis)
    assert worst == classes[1]
    context = 625 * 2**20
    (fit,) = fits_on(analysis, [find_gpu("H100")])
    assert fit == Fit(
        gpu="H100",
        rank=1,
        fits=True,
        kernels="fused",
        allocated_bytes=66_800_000_000,
        context_bytes=context,
        communicator_bytes=688 * 2**20,
        needed_bytes=66_800_000_000 + context + 688 * 2**20,
        capacity_bytes=84_932_558_848,
        basis="allocated",
        remedies=(),
    )
    (whole,) = fits_on(llama, [find_gpu("H100")])
    assert (whole.fits, whole.rank, worst_rank(llama)) == (False, None, None)


def test_what_makes_a_rank_fit_are_variants_of_the_rank(llama: Analysis) -> None:
    variants = (variant("fused", "full", 30 * 10**9), variant("eager", "full", 10**9))
    (fit,) = fits_on(spread(llama, SPREAD, rank_class(60 * 10**9, count=64, alternatives=variants)), [find_gpu("L40S")])
    assert (fit.fits, fit.rank) == (False, 0)
    assert fit.remedies == (Remedy(recompute="full", loss_chunk=None, needed_bytes=30 * 10**9 + fit.context_bytes),)


def test_a_rank_on_a_gpu_without_fused_attention(llama: Analysis) -> None:
    variants = (variant("eager", "none", 90 * 10**9), variant("eager", "full", 20 * 10**9))
    analysis = spread(llama, SPREAD, rank_class(10**9, count=64, alternatives=variants))
    v100, h100 = fits_on(analysis, [find_gpu("V100"), find_gpu("H100")])
    assert (v100.kernels, v100.fits, v100.allocated_bytes) == ("eager", False, 90 * 10**9)
    assert [remedy.recompute for remedy in v100.remedies] == ["full"]
    assert (h100.kernels, h100.fits) == ("fused", True)

"""The rates of a GPU: its own, or those of the nearest one of its architecture, scaled."""

import math

import msgspec

from counting.cost.hardware import Gpu, load_gpus
from counting.cost.rates import AttentionRate, GpuRates, GroupedRate, ProductRates
from torch_models.errors import ArgumentError


def rates_of_gpu(gpu: Gpu) -> tuple[GpuRates, str]:
    """The rates of `gpu`, and the name of the GPU whose rates they are.

    A GPU without rates takes those of the nearest of its architecture in the catalogue, by the ratios of peak and
    memory bandwidth: products and attention scaled by the ratio of the peaks of their format; shares, launch and
    exponents as they are. Links are of a board, not of an architecture, so they are not taken over. A GPU with rates
    but without attention or products of experts takes these from the nearest, scaled as sustained products are.

    Raises ArgumentError for `gpus` if no GPU of its architecture has rates.
    """
    if gpu.rates is None:
        relative = _nearest(gpu, with_attention=False)
        if relative is None or relative.rates is None:
            none = "its architecture is not given"
            if gpu.architecture is not None:
                none = f"no GPU of its architecture ({gpu.architecture}) has any"
            raise ArgumentError(
                "gpus", gpu.name, f"has no rates in the catalogue, and {none}: give an entry with rates"
            )
        return _scaled(relative.rates, gpu, relative), relative.name
    relative = _nearest(gpu, with_attention=True)
    if relative is None or relative.rates is None:
        return gpu.rates, gpu.name
    return _completed(gpu, gpu.rates, relative, relative.rates), gpu.name


def _nearest(gpu: Gpu, *, with_attention: bool) -> Gpu | None:
    """The GPU of the same architecture with rates, if asked those of attention, of the nearest peak and bandwidth."""

    def distance(other: Gpu) -> float:
        peaks = math.log(other.peak_dense_tflop_per_s / gpu.peak_dense_tflop_per_s)
        return abs(peaks) + abs(math.log(other.memory_bandwidth_tb_per_s / gpu.memory_bandwidth_tb_per_s))

    family = [
        other
        for other in load_gpus()
        if gpu.architecture is not None and other.architecture == gpu.architecture and other.name != gpu.name
        if other.rates is not None and (other.rates.attention or not with_attention)
    ]
    return min(family, key=distance, default=None)


def _scaled(rates: GpuRates, gpu: Gpu, relative: Gpu) -> GpuRates:
    """`rates` of `relative` for `gpu`."""
    ratio = gpu.peak_dense_tflop_per_s / relative.peak_dense_tflop_per_s
    fp8_peaks = gpu.peak_dense_fp8_tflop_per_s, relative.peak_dense_fp8_tflop_per_s
    fp8_ratio = None if fp8_peaks[0] is None or fp8_peaks[1] is None else fp8_peaks[0] / fp8_peaks[1]
    is_same_die = ratio == 1
    return msgspec.structs.replace(
        rates,
        bf16=_times(rates.bf16, ratio),
        fp8=None if rates.fp8 is None or fp8_ratio is None else _times(rates.fp8, fp8_ratio),
        fp32=None if rates.fp32 is None else _times(rates.fp32, ratio),
        attention=_attention_times(rates.attention, ratio),
        multiprocessors=rates.multiprocessors if is_same_die else None,
        multiprocessors_source=rates.multiprocessors_source if is_same_die else None,
        node_link=None,
        network_link=None,
    )


def _completed(gpu: Gpu, rates: GpuRates, relative: Gpu, relatives: GpuRates) -> GpuRates:
    """`rates` of `gpu`, with attention and products of experts of `relative` where they have none."""
    if rates.attention and rates.grouped:
        return rates
    ratio = rates.bf16.sustained_tflop_per_s / relatives.bf16.sustained_tflop_per_s
    shares = ratio * relative.peak_dense_tflop_per_s / gpu.peak_dense_tflop_per_s
    return msgspec.structs.replace(
        rates,
        attention=rates.attention or _attention_times(relatives.attention, ratio),
        grouped=rates.grouped or _shares_times(relatives.grouped, shares),
        grouped_fp8=rates.grouped_fp8 if rates.grouped or rates.fp8 is None else relatives.grouped_fp8,
    )


def _shares_times(rows: tuple[GroupedRate, ...], ratio: float) -> tuple[GroupedRate, ...]:
    return tuple(msgspec.structs.replace(row, share_of_peak=min(row.share_of_peak * ratio, 1.0)) for row in rows)


def _times(products: ProductRates, ratio: float) -> ProductRates:
    return msgspec.structs.replace(
        products,
        best_tflop_per_s=products.best_tflop_per_s * ratio,
        sustained_tflop_per_s=products.sustained_tflop_per_s * ratio,
    )


def _attention_times(rows: tuple[AttentionRate, ...], ratio: float) -> tuple[AttentionRate, ...]:
    return tuple(
        msgspec.structs.replace(
            row,
            forward_tflop_per_s=row.forward_tflop_per_s * ratio,
            backward_tflop_per_s=row.backward_tflop_per_s * ratio,
        )
        for row in rows
    )

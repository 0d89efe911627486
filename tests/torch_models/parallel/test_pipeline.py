"""Pipelines on gloo processes: stages under torch's schedules train as the undivided model, also with other axes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.shrunken import FAMILIES, WITHOUT_TP
from tests.torch_models.ecosystem.training_steps import Way
from tests.torch_models.parallel.pipeline_steps import assert_trains_as_undivided
from tests.worlds import World

TOLERANCE, IN_FP32 = 1e-12, 1e-5  # experts compute in fp32 in any case
WITH_EXPERTS = [family for family, fields in FAMILIES.items() if any("expert" in name for name in fields)]
TIED = [family for family, fields in FAMILIES.items() if fields.get("tie_word_embeddings")]

# Ranks, axes, number of micro-batches, what is recomputed; the families that `make test` trains so.
TABLE: dict[str, tuple[int, dict[str, Any], int, str, list[str]]] = {
    "1f1b": (2, {"pp": 2}, 4, "none", ["llama"]),
    "gpipe": (2, {"pp": 2, "schedule": "gpipe"}, 3, "none", []),
    "interleaved": (2, {"pp": 2, "schedule": "interleaved"}, 4, "full", []),
    "zb": (2, {"pp": 2, "schedule": "zb"}, 4, "none", ["qwen3_moe"]),
    "zbv": (2, {"pp": 2, "schedule": "zbv"}, 4, "full", []),
    "dualpipev": (2, {"pp": 2, "schedule": "dualpipev"}, 4, "none", ["deepseek_v3"]),
    "1f1b-4": (4, {"pp": 4}, 5, "none", []),
    "fsdp": (4, {"pp": 2, "fsdp": 2}, 3, "none", ["deepseek_v3"]),
    "dp": (4, {"pp": 2, "dp": 2, "schedule": "dualpipev"}, 4, "none", []),
    "fsdp-zbv": (4, {"pp": 2, "fsdp": 2, "schedule": "zbv"}, 4, "none", ["llama"]),
    "tp": (4, {"pp": 2, "tp": 2}, 3, "none", []),
    "tp-zb": (4, {"pp": 2, "tp": 2, "schedule": "zb"}, 4, "none", ["llama"]),
    "ep": (4, {"pp": 2, "fsdp": 2, "ep": 2}, 3, "none", ["mixtral"]),
}


def rows() -> Iterator[Any]:
    for name, (ranks, axes, number, recompute, often) in TABLE.items():
        for family in FAMILIES:
            if (
                family in TIED
                or ("tp" in axes and family in WITHOUT_TP)
                or ("ep" in axes and family not in WITH_EXPERTS)
            ):
                continue
            marks = [] if family in often else pytest.mark.sweep
            yield pytest.param(family, ranks, axes, number, recompute, id=f"{family}-{name}", marks=marks)


@pytest.mark.parametrize(("family", "ranks", "axes", "number", "recompute"), list(rows()))
def test_stages_train_as_one_model(
    family: str, ranks: int, axes: dict[str, Any], number: int, recompute: Any, two_ranks: World, four_ranks: World
) -> None:
    width = 32 if "tp" in axes else None
    dtype = torch.float32 if "ep" in axes else torch.float64
    way = Way(dtype=dtype, micro_batches=number, recompute=recompute, expert_width=width)
    exact = dtype == torch.float64 and family not in WITH_EXPERTS
    world = two_ranks if ranks == 2 else four_ranks
    assert_trains_as_undivided(world, family, axes, way, TOLERANCE if exact else IN_FP32)

"""The closed forms broken once, rule by rule: each time they differ from what is measured."""

import inspect
import sys
from functools import cache
from types import ModuleType
from typing import Any

import pytest

from counting.formulas import layouts
from counting.formulas.layouts import flops, groups, passes, profile, replicated, schedule, sharding, shards, traffic
from counting.measurements.ranks import measure_ranks
from counting.ranks.profile import RankProfile
from counting.reconcile import DisagreementError, reconcile
from tests.counting.formulas.layouts.cases import layout_of, setup_of
from tests.shrunken import DEEPSEEK_V3, GEMMA2, LLAMA
from torch_models.fields.config import spec_from_fields

MODULES = [
    module
    for name, module in list(sys.modules.items())
    if name == layouts.__name__ or name.startswith(f"{layouts.__name__}.")
]

DENSE = spec_from_fields(LLAMA, "dense")
# Rows of the experts' products are multiples of 16 bytes, also where tp divides them.
SIZES = {"num_nextn_predict_layers": 1, "num_hidden_layers": 2, "moe_intermediate_size": 32}
EXPERTS = spec_from_fields(DEEPSEEK_V3 | SIZES, "experts")
WITH_MTP: dict[str, Any] = {"mtp": True, "micro_batches": 3, "recompute": "full"}

# Model, axes, setup: each rule matters in one of them.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "uneven": (DENSE, {"fsdp": 3, "grouping": "torchtitan"}, {"micro_batches": 3}),
    "root": (DENSE, {"fsdp": 4, "zero": 2}, {"optimizer": "adamw-foreach"}),
    "replicas": (DENSE, {"dp": 2, "fsdp": 2}, {"micro_batches": 2}),
    "one shard": (DENSE, {"dp": 2}, {}),
    "whole": (EXPERTS, {"fsdp": 4, "zero": 1, "grouping": "torchtitan"}, WITH_MTP),
    "tensor": (EXPERTS, {"fsdp": 2, "tp": 2}, WITH_MTP | {"loss_chunk": 40}),
    "experts": (EXPERTS, {"fsdp": 8, "ep": 4, "expert_imbalance": 1.5}, WITH_MTP),
    "few experts": (EXPERTS, {"fsdp": 32, "ep": 4}, {"sequence_length": 4}),
    "norms": (spec_from_fields(GEMMA2, "norms"), {"tp": 2}, {}),
    "positions": (EXPERTS, {"cp": 2, "fsdp": 2}, WITH_MTP | {"sequence_length": 128}),
    "positions kept": (DENSE, {"cp": 3}, {"recompute": "selective", "sequence_length": 12}),
    "experts alone": (EXPERTS, {"dp": 2, "fsdp": 4, "ep": 4}, {"micro_batches": 2}),
}


@cache
def measured(case: str) -> RankProfile:
    spec, axes, fields = CASES[case]
    return measure_ranks(spec, setup_of(spec, **{"sequence_length": 64} | fields), layout_of(**axes))


def compare(case: str) -> None:
    spec, axes, fields = CASES[case]
    setup = setup_of(spec, **{"sequence_length": 64} | fields)
    passes._compute_of.cache_clear()
    reconcile(case, {"measured": measured(case), "formula": layouts.ranks_by_formula(spec, setup, layout_of(**axes))})


def break_once(monkeypatch: pytest.MonkeyPatch, module: ModuleType, right: str, wrong: str) -> None:
    """Let all that `module` defines be that of a module in which `right` stands for `wrong`."""
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in {module.__name__}"
    broken = ModuleType(module.__name__)
    exec(compile(source.replace(right, wrong), str(module.__file__), "exec"), broken.__dict__)
    defined = {name: of for name, of in vars(module).items() if getattr(of, "__module__", None) == module.__name__}
    for user in MODULES:
        for name, value in list(vars(user).items()):
            if defined.get(name) is value and value is not None:
                monkeypatch.setattr(user, name, getattr(broken, name))


@pytest.mark.parametrize("case", CASES)
def test_not_broken(case: str) -> None:
    compare(case)


BROKEN = [
    # When buffers are freed.
    ("uneven", schedule, "                self.deferred = group.gathered\n", "                self.deferred = 0\n"),
    ("uneven", schedule, "        self.communication -= before\n", "        self.communication -= 0\n"),
    ("uneven", schedule, "self.reducing = group.reduce_input", "self.communication -= group.reduce_input"),
    ("few experts", schedule, "        last = gradients[-1] if sharding.shards > 1 else 0\n", "        last = 0\n"),
    ("uneven", schedule, "group.shard_copy + group.gathered\n", "group.gathered\n"),
    ("replicas", schedule, "            unit.kept = result\n", "            self.communication -= result\n"),
    ("one shard", schedule, "                self.communication -= converted\n", "\n"),
    ("one shard", schedule, "last = gradients[-1] if sharding.shards > 1 else 0", "last = gradients[-1]"),
    ("few experts", schedule, "group.gathered if group.sharding.second_dimension else 0", "0"),
    ("few experts", schedule, "copies, total = self._rearrange(gradients), last", "copies = 0"),
    ("experts alone", schedule, "        elif sharding.scaled:\n", "        elif False:\n"),
    # When groups are gathered, freed and reduced.
    ("uneven", schedule, "            if index > 0:\n", "            if index > 1:\n"),
    ("uneven", schedule, "        if unit.reshards:\n", "        if True:\n"),
    ("root", schedule, "        if unit.reshards:\n", "        if True:\n"),
    ("whole", schedule, "        reduces = has_gradients or unit.accumulated\n", "        reduces = has_gradients\n"),
    ("whole", schedule, "        if not self.synchronises:\n", "        if False:\n"),
    ("whole", schedule, "                self.gradients -= size\n", "                self.gradients -= 0\n"),
    ("whole", schedule, "        if entering and has_gradient:\n", "        if has_gradient:\n"),
    ("whole", schedule, "for unit in reversed(list(units)):", "for unit in ():"),
    ("experts", schedule, '        if self.phase == "backward":\n', "        if False:\n"),
    ("uneven", passes, 'stays = modules == ("model",) or "head" in modules', 'stays = modules == ("model",)'),
    ("root", passes, "reshards = layout.zero == 3", "reshards = True"),
    ("experts", passes, "self.mtp[depth - 1] if depth else self.running", "self.running"),
    # What a rank stores, and what it holds of a group.
    ("uneven", sharding, "return -(-shape[0] // self.shards) *", "return shape[0] // self.shards *"),
    ("uneven", sharding, "max(shape[0] - shard * of_each, 0)", "shape[0]"),
    ("uneven", shards, "STEP_COUNT_BYTES if", "0 if"),
    ("root", shards, "* (converted + formats.moment)", "* converted"),
    ("uneven", groups, "tuple(numbers(shape) * formats.gathered for shape", "tuple(4 * numbers(shape) for shape"),
    ("experts", groups, "(experts // ep, *tensor.shape[1:])", "tensor.shape"),
    ("few experts", sharding, "layout.expert_fsdp * layout.ep > num_experts", "False"),
    # What is sent and computed.
    ("tensor", traffic, "[*[*self._input(), *self._output()] * 2,", "[*self._input(), *self._output(),"),
    ("norms", replicated, "_norm(layer) * number_of_stream_norms(layer)", "_norm(layer) * 2"),
    ("tensor", traffic, "again = self._loss_sums() if", "again = [] if True or"),
    ("tensor", traffic, "))]\n        if self.by_position:\n", "))]\n        if False:\n"),
    ("experts", traffic, '[Sending("all_to_all", "ep", counts, counts), *self._ways(layer)]', "[*self._ways(layer)]"),
    ("experts", traffic, "self.division.received_rows(rows) * of_row", "rows * of_row"),
    ("tensor", flops, "found += projections * -1 + _divided(projections, division.tp)", "found += projections * 0"),
    ("experts", flops, "further = division.received_rows(rows) - rows", "further = 0"),
    ("positions", traffic, "[*again, *gather, Sending(", "[*gather, Sending("),
    ("positions kept", traffic, "Sending(\"all_to_all\", \"cp\", size, size, self.division.cp)", "*()"),
    ("positions", traffic, "attention.qk_head_dim + attention.v_head_dim", "2 * attention.v_head_dim"),
    ("positions", flops, "            skipped_by_causality=others,\n", "\n"),
    ("positions kept", flops, "forward=others,", "forward=others * 2,"),
    ("positions kept", flops, 'CORE_AGAIN = ("selective", "full")', 'CORE_AGAIN = ("full",)'),
    ("positions", passes, "        cp=layout.cp,\n", "\n"),
    ("positions", sharding, "Sharding(layout.shards,", "Sharding(layout.fsdp,"),
    ("tensor", profile, "_tensors(layer, layout, predicts=True)", "_tensors(layer, layout)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "module", "right", "wrong"), BROKEN, ids=[f"{each[0]}-{n}" for n, each in enumerate(BROKEN)]
)
def test_a_broken_rule_is_found(
    case: str, module: ModuleType, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_once(monkeypatch, module, right, wrong)
    with pytest.raises((DisagreementError, AssertionError)):
        compare(case)
    passes._compute_of.cache_clear()

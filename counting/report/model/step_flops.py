"""The table of one training step's FLOPs."""

from counting.counts import FORWARD_ONLY, model_flops_in_words
from counting.report.format import decimal, integer
from counting.report.tables import Table, rows_table
from counting.setup import Setup
from counting.step.flops import TrainingStep

RECOMPUTED = {
    "none": "nothing is recomputed in the layers",
    "selective": "the attention core is computed again for backward",
    "per_op": "all but attention and half of the products is computed again for backward",
    "full": "every layer is computed again for backward",
}


def step_flops_table(step: TrainingStep, setup: Setup) -> Table:
    """Model and hardware FLOPs of one step, by component and pass."""
    table = rows_table(_title(setup), ("component", "forward", "backward", "recomputed", "executed"))
    table.caption = _caption(step, setup)

    def add(label: str, *counts: int | None, bold: bool = False) -> None:
        table.add_row(label, *("" if count is None else integer(count) for count in counts), bold=bold)

    def add_for_each_token(flops: float) -> None:
        table.add_row("… for each token", "", "", "", decimal(flops, 0 if flops.is_integer() else 2))

    for component, forward in step.forward_flops_by_component.items():
        backward = step.backward_flops_by_component.get(component, 0)
        recomputed = step.recomputed_flops_by_component.get(component, 0)
        if executed := step.hardware_flops_by_component[component]:
            add(component, forward, backward, recomputed, executed)
    table.add_section()
    passes = (step.forward_flops, step.backward_flops, step.recomputed_flops)
    add("hardware FLOPs", *passes, step.hardware_flops, bold=True)
    add_for_each_token(step.hardware_flops_per_token)
    table.add_section()
    label = f"model FLOPs, {model_flops_in_words(_has_indexer(step))}"
    add(label, step.forward_flops, step.model_backward_flops, None, step.model_flops, bold=True)
    add_for_each_token(step.model_flops_per_token)
    add("… with the causal half of attention", None, None, None, step.model_flops_causal)
    if step.flash_backward_extra_flops:
        extra = step.flash_backward_extra_flops
        add("not model FLOPs: flash's extra product", None, extra, None, extra)
    return table


def _has_indexer(step: TrainingStep) -> bool:
    return FORWARD_ONLY in step.forward_flops_by_component


def _title(setup: Setup) -> str:
    batches = "" if setup.micro_batches == 1 else f" in {setup.micro_batches:,} micro-batches"
    what = setup.recompute
    again = f"one layer in {what} is computed again for backward" if isinstance(what, int) else RECOMPUTED[what]
    return f"One training step over {setup.step_tokens:,} tokens{batches}, FLOPs: {again}"


def _caption(step: TrainingStep, setup: Setup) -> str:
    """The assumptions of the table."""
    sentences = ["Embedding gradients and the optimiser step contain no matrix products."]
    if step.flash_backward_extra_flops:
        sentences.append(
            "Flash attention does not keep the scores and computes them again in its backward pass, which has five "
            "products (forward: two). The extra product is not in the model FLOPs and not counted as recomputed."
        )
        if setup.recompute == "selective":
            sentences.append(
                "Selective recomputation therefore saves almost no memory: use full recomputation, or eager kernels, "
                "which keep the scores."
            )
    if _has_indexer(step):
        sentences.append(
            "Sparse attention's indexer runs forward only: its FLOPs count once in the model FLOPs, and its parameters "
            "have no gradients."
        )
    if setup.mtp:
        sentences.append("Multi-token prediction is trained: its projection, layer and run of the head are included.")
    if step.recomputed_flops_by_component["lm_head"]:
        sentences.append(
            f"The loss is computed over {setup.loss_chunk:,} tokens at a time; no logits are kept, and all are "
            "computed twice."
        )
    return " ".join(sentences)

"""Words and notes that several reports share: FLOP conventions, sizes, recipes and memory."""

from counting.counts import model_flops_in_words
from counting.recipes import bytes_per_parameter, find_optimizer, find_precision
from counting.report.format import Bytes, integer


def how_counted(length: str, mtp_trained: bool, has_indexer: bool) -> str:
    """A text on how the model's own FLOPs were counted; `length` is the sequence length in words."""
    return f"{forward_passes(has_indexer)} at {length}" + (", with multi-token prediction" if mtp_trained else "")


def forward_passes(has_indexer: bool) -> str:
    """The forward passes of model FLOPs, for a sentence that goes on with their length."""
    return f"{model_flops_in_words(has_indexer)}," if has_indexer else "3 × the forward pass"


def parameter_sizes(total: int, active: int) -> str:
    """The number of parameters, and for a mixture of experts also of the active ones."""
    return integer(total) if active == total else f"{integer(total)}, of which {integer(active)} active for one token"


def recipe_in_words(precision: str, optimizer: str, has_indexer: bool) -> str:
    """Precision, optimiser, and the bytes of model state per parameter unless these depend on the tensor.

    Those of an indexer, which is not trained, are fewer.
    """
    states = bytes_per_parameter(find_precision(precision), find_optimizer(optimizer))
    parameter = "trained parameter" if has_indexer else "parameter"
    size = "moments by the tensors' shapes" if states is None else f"{states} bytes per {parameter}"
    return f"{precision}, {optimizer}: {size}"


def what_states_leave_out(beside_bytes: int | None, update_bytes: int | None = None) -> str:
    """The memory that "GPUs at least" leaves out.

    `beside_bytes` is that of one micro-batch on each GPU, `update_bytes` that of the update on all GPUs together, if
    they are known and not nothing.
    """
    if beside_bytes is None:
        return "activations, logits, buffers and fragments"
    size = Bytes(beside_bytes)(beside_bytes)
    update = f"the update ({Bytes(update_bytes)(update_bytes)} in all), " if update_bytes else ""
    return f"activations, logits and transients (up to {size} on each for one micro-batch), {update}buffers, fragments"

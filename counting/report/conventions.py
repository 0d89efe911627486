"""What the reports of runs say alike: conventions, how FLOPs were counted, sizes, recipes, and the notes on them."""

from counting.cost.conventions import Convention
from counting.recipes import find_optimizer, find_precision, model_states
from counting.report.format import Bytes, integer

CONVENTIONS: dict[Convention, str] = {
    "6N": "6 N",
    "6N_full_attention": "6 N' + full attention",
    "6N_causal_attention": "6 N' + causal attention",
    "own": "the model's own count",
}

MFU_NOTE = (
    "MFU is against the dense peak of the 16-bit training dtype, under the model's own count: three forward passes, "
    "nothing recomputed."
)
STATES_NOTE = (
    "GPUs at least: so many hold parameters, gradients and optimiser state, sharded evenly, in what the vendor calls "
    "their memory, one GB taken as 2^30 bytes."
)
CONVENTION_NOTE = (
    "N: active parameters, those one token uses. N': the same without the input embedding, which is looked up. "
    "Causal: half of attention's square. Multi-token prediction is in the model's own count alone."
)


def how_counted(length: str, mtp_trained: bool) -> str:
    """How the model's own count was had; `length` is the sequence length in words."""
    return f"3 × the forward pass at {length}" + (", with multi-token prediction" if mtp_trained else "")


def parameter_sizes(total: int, active: int) -> str:
    """Parameters, and of a mixture of experts the active ones."""
    return integer(total) if active == total else f"{integer(total)}, of which {integer(active)} active for one token"


def recipe_in_words(precision: str, optimizer: str) -> str:
    """A precision with an optimiser, and their model states."""
    states = model_states(1, 1, find_precision(precision), find_optimizer(optimizer))
    return f"{precision}, {optimizer}: {states.total} bytes per parameter"


def what_states_leave_out(beside_bytes: int | None) -> str:
    """What GPUs that hold the model states alone have no room for; `beside_bytes` of it on each, of one sequence."""
    if beside_bytes is None:
        return "activations, logits, buffers and fragments"
    size = Bytes(beside_bytes)(beside_bytes)
    return f"activations, logits and transients (up to {size} on each for one sequence), buffers, fragments"

"""The conventions of an analysis in words, printed with its numbers. Torch-free."""

from collections.abc import Sequence

NOTES = (
    "FLOPs: one multiply-add is 2 FLOPs; matrix multiplications only. Attention counts the full S x S square, and the "
    "causal figure counts half of it. In a layer with a window of W, fused kernels visit a band of S x W, the causal "
    "figure is S W - W^2 / 2, and the full square is reported separately. In a layer with chunks of C they visit the "
    "square of each chunk, and the causal figure is half of that.",
    "Parameters: all that the optimiser updates, by numel. Router correction biases (buffers) and multi-token "
    "prediction (mtp) are reported separately and are not in the total.",
    "Norms inside attention count as norm. The rotary position embedding has no parameters.",
    "Peak memory: one layer's forward pass in training mode with 16-bit numbers, activations checkpointed at layer "
    "boundaries: weights, input, tensors saved for backward (including the rotary tables, which all layers share), and "
    "transients at the worst moment. No gradients, no optimiser state, no workspaces within a kernel. GB = 10^9 bytes.",
    "Fused kernels: flash attention, or torch's memory-efficient kernel where queries and values differ in size, and "
    "fused norms, as torch runs them on an A100. Padding inside a kernel (head sizes that are not multiples of 8) "
    "is not counted. Heads above 256 channels are accepted, although flash attention refuses them. Windows, chunks, "
    "soft caps and sinks run in a kernel of this project with flash attention's memory; torch has no such kernel.",
    "Parameters, forward FLOPs and one layer's memory are measured in bfloat16, which has the same size as float16: "
    "grouped products have no float16 meta kernel.",
)


INDEXER_NOTE = (
    "Sparse attention: an indexer scores all keys and chooses index_topk of them for each query. FLOPs count the "
    "chosen keys as a window of as many; the full square is reported separately. The indexer is a row of its own "
    "within attention. Its scores are of the full square, also in the causal figure. The language-model loss does not "
    "train it: a step runs it forward only, so its FLOPs count once in model FLOPs, and its parameters have no "
    "gradients and no moments. The loss by which DeepSeek trains it is not part of the step."
)

FOREIGN_PROOF = (
    "Measured, no formula: transformers built the model, and its code was measured. FLOPs were counted twice, by trace "
    "and by dispatch, and are equal; parameters and bytes were counted once, without a second check."
)
FOREIGN_PROOF_BUT_SCANS = (
    "Measured, but for the matrix products of scans, which are by formula alone: transformers built the model, and its "
    "code was measured. All other FLOPs were counted twice, by trace and by dispatch, and are equal; parameters, "
    "bytes, the products of scans and elementwise operations were counted once, without a second check."
)

FOREIGN_NOTES = (
    NOTES[0],
    "A window counts as its band where transformers' code passes it to a kernel, or makes a mask of it alone. Where a "
    "family's own code multiplies all keys, the full square counts, also with a window; so it does with selected keys. "
    "Of the routed experts, only those that a token visits are counted.",
    "Parameters: by numel, tied ones once. Each is assigned to a row by its type, its shape and what its module "
    "computed; the row other has the rest. Buffers are not counted.",
    "Peak memory: one layer's forward pass in training mode in bfloat16, as transformers' modules compute it, with "
    "attention as one fused kernel. It is not reported where the family has its own attention code.",
)

SCAN_NOTE = (
    "Layers that carry a state along the sequence: projections are measured; the matrix products of the scan are those "
    "of the published chunked algorithm, by formula alone where transformers' code does not multiply them itself, with "
    "the whole square of each chunk, also in the causal figure. Elementwise operations are those of scans and short "
    "convolutions, by dispatch of transformers' reference code, which forms some products element by element too; "
    "fused kernels need fewer. They are in no FLOPs. The peak memory of these layers is not measured."
)


NO_STEP = "A training step is not measured: "  # begins the note of an analysis through transformers without one


def no_step_note(reason: str) -> str:
    """The note of an analysis without a training step; `reason` has no full stop."""
    return f"{NO_STEP}{reason}."


def reason_of_no_step(notes: Sequence[str]) -> str:
    """The reason in the notes of an analysis without a training step; empty if none was asked for."""
    return next((note.removeprefix(NO_STEP).removesuffix(".") for note in notes if note.startswith(NO_STEP)), "")

"""Embedding and cross-entropy over a vocabulary that is divided over the ranks of tensor parallelism.

Each rank has the rows of V / tp words of embedding and head. It looks up the words that it has; the other words' rows
are zeros in its term of the sum. The softmax needs the maximum and the sum over all words, one number per token from
each rank, so the logits stay divided (Shoeybi et al. 2019, arXiv 1909.08053, §3). The tensors of the loss are those of
torch's implementation: torch/distributed/tensor/parallel/loss.py, and `_MaskPartial` in placement_types.py.
"""

from counting.formulas.memory.operations import Operand
from counting.formulas.memory.tape import BOOL, LONG, SINGLE, Array, Gradients, InputGradients, Tape


def masked_embedding(tape: Tape, embedding: Operand, token_ids: Array, hidden_size: int) -> Array:
    """This rank's term of the embedded tokens, with zeros for the tokens that it does not have."""
    of_embedding, words = embedding.size, token_ids.numel

    def derive(gradients: Gradients) -> InputGradients:
        own, outside = _own_words(tape, words)
        gradient = tape.like(of_embedding)
        del own, outside
        return [gradient]

    own, outside = _own_words(tape, words)
    out = tape.new(words * hidden_size, of_embedding.width)
    del own, outside
    tape.record([out], [embedding], [token_ids], derive)
    return out


def _own_words(tape: Tape, words: int) -> tuple[Array, Array]:
    """The ids counted from this rank's first word, and which of them are not of this rank."""
    own = tape.new(words, LONG)
    outside = tape.new(words, BOOL)
    above = tape.new(words, BOOL)
    del above
    return own, outside


def divided_cross_entropy(tape: Tape, logits: Array, labels: Array, tokens: int) -> Array:
    """The summed cross-entropy of each of these tokens' label, from fp32 logits of this rank's words.

    It keeps the logarithm of the softmax of this rank's words. Backward computes (softmax - 1 at the label) * gradient.
    """
    log_probabilities = _log_softmax(tape, logits, tokens)
    whole = log_probabilities.size

    def derive(gradients: Gradients) -> InputGradients:
        known = _known_labels(tape, tokens)
        at_label = tape.like(whole)
        mask, own = _own_labels(tape, tokens)
        mask_in_fp32 = tape.new(tokens, SINGLE)
        update = tape.new(tokens, SINGLE)
        del mask_in_fp32
        rows = tape.new(tokens, LONG)
        gradient = _where_known(tape, tokens)
        probabilities = tape.like(whole)
        difference = tape.like(whole)
        del probabilities
        out = tape.like(whole)
        del known, at_label, mask, own, update, rows, gradient, difference
        return [out]

    loss, weight = _negative_log_likelihood(tape, tokens)
    tape.record([loss], [logits], [log_probabilities, weight, labels], derive)
    return loss


def _log_softmax(tape: Tape, logits: Array, tokens: int) -> Array:
    """x - max - log(sum(exp(x - max))); maximum and sum are all-reduced over ranks."""
    of_rank = tape.new(tokens, SINGLE)
    largest = tape.new(tokens, SINGLE)
    del of_rank
    shifted = tape.like(logits.size)
    exponentials = tape.like(logits.size)
    sum_of_rank = tape.new(tokens, SINGLE)
    del exponentials
    total = tape.new(tokens, SINGLE)
    del sum_of_rank
    logarithm = tape.new(tokens, SINGLE)
    out = tape.like(logits.size)
    del largest, shifted, total, logarithm
    return out


def _negative_log_likelihood(tape: Tape, tokens: int) -> tuple[Array, Array]:
    """The loss, and the number of tokens with a label in fp32."""
    known = _known_labels(tape, tokens)
    mask, own = _own_labels(tape, tokens)
    of_rank = tape.new(tokens, SINGLE)
    tape.new(1, SINGLE)  # the zero that is written where the mask is true
    del mask
    at_label = tape.new(tokens, SINGLE)
    negative = tape.new(tokens, SINGLE)
    losses = _where_known(tape, tokens)
    del negative
    weight = _number_of_labels(tape, tokens)
    loss = tape.new(1, SINGLE)
    del known, own, of_rank, at_label, losses
    return loss, weight


def _own_labels(tape: Tape, tokens: int) -> tuple[Array, Array]:
    """Which of the labels other ranks have, and the labels counted from this rank's first word, 0 for other ranks'."""
    below, above = tape.new(tokens, BOOL), tape.new(tokens, BOOL)
    mask = tape.new(tokens, BOOL)
    del below, above
    copy = tape.new(tokens, LONG)
    own = tape.new(tokens, LONG)
    del copy
    tape.new(1, LONG)  # the zero that is written where the mask is true
    return mask, own


def _known_labels(tape: Tape, tokens: int) -> Array:
    """The labels, 0 where there is none."""
    known = tape.new(tokens, BOOL)
    labels = tape.new(tokens, LONG)
    del known
    return labels


def _where_known(tape: Tape, tokens: int) -> Array:
    """A number per token, 0 where there is no label."""
    known = tape.new(tokens, BOOL)
    numbers = tape.new(tokens, SINGLE)
    del known
    return numbers


def _number_of_labels(tape: Tape, tokens: int) -> Array:
    """The number of tokens with a label, counted in int64, in fp32."""
    known = tape.new(tokens, BOOL)
    count = tape.new(1, LONG)
    del known
    number = tape.new(1, SINGLE)
    del count
    return number

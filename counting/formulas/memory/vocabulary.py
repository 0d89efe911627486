"""Embedding and cross-entropy over a vocabulary that is divided over the ranks of tensor parallelism.

Each rank has the rows of V / tp words of embedding and head. It looks up the words that it has; the other words' rows
are zeros in its term of the sum. The softmax needs the maximum and the sum over all words, one number per token from
each rank, so the logits stay divided (Shoeybi et al. 2019, arXiv 1909.08053, §3). The tensors are those of torch's
implementation: torch/distributed/tensor/parallel/loss.py, and `_MaskPartial` in placement_types.py.
"""

from counting.formulas.memory.tape import BOOL, LONG, SINGLE, Array, Gradients, InputGradients, Leaf, Size, Tape


def masked_embedding(tape: Tape, embedding: Leaf, token_ids: Array, hidden_size: int, tp: int) -> Array:
    """This rank's term of the embedded tokens, with zeros for the tokens that it does not have.

    Torch computes the gradient of all words on each rank, not of its own words alone.
    """
    of_embedding = Size(embedding.size.numel * tp, embedding.size.width)
    mask, own = _own_words(tape, token_ids.numel)
    out = tape.new(token_ids.numel * hidden_size, embedding.size.width)
    del own
    tape.new(1, embedding.size.width)  # the zero that is written where the mask is true
    del mask
    tape.record([out], [embedding], [token_ids], lambda gradients: [tape.like(of_embedding)])
    return out


def divided_cross_entropy(tape: Tape, logits: Array, labels: Array, tokens: int) -> Array:
    """The summed cross-entropy of each of these tokens' label, from fp32 logits of this rank's words.

    It keeps the logarithm of the softmax of this rank's words. Backward computes (softmax - 1 at the label) * gradient.
    """
    log_probabilities = _log_softmax(tape, logits, tokens)
    whole = log_probabilities.size

    def derive(gradients: Gradients) -> InputGradients:
        known = _known_labels(tape, tokens)
        at_label = tape.like(whole)
        mask, own = _own_words(tape, tokens)
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
    mask, own = _own_words(tape, tokens)
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


def _own_words(tape: Tape, words: int) -> tuple[Array, Array]:
    """Which of these words other ranks have, and the indices of all among this rank's words, 0 for other ranks'."""
    below, above = tape.new(words, BOOL), tape.new(words, BOOL)
    mask = tape.new(words, BOOL)
    del below, above
    copy = tape.new(words, LONG)
    own = tape.new(words, LONG)
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

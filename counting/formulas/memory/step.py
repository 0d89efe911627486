"""The memory of one training step in closed form: forward, loss and backward, operation by operation.

The other witness of `counting.measurements.step`; analytic_memory.py has the layers, and says how to read this.
"""

from counting.counts import Counts
from counting.formulas import flops as analytic
from counting.formulas.memory.blocks import norm
from counting.formulas.memory.layer import layer, transform
from counting.formulas.memory.operations import add, cast, first, join, linear, reshape, scale, split, unary
from counting.formulas.memory.tape import BOOL, LONG, SINGLE, Array, Size, Tape
from counting.step_profile import (
    Cut,
    LayerProfile,
    ModelStates,
    StepOptions,
    StepProfile,
    Stretch,
    model_states,
    stretches_between,
)
from torch_models.spec import LayerSpec, ModelSpec


def derive_step(spec: ModelSpec, options: StepOptions) -> StepProfile:
    """The profile of a step over one sequence, from the sizes in `spec` alone."""
    return _Step(spec, options).profile()


class _Step:
    """A step of a model with one layer of each kind."""

    def __init__(self, spec: ModelSpec, options: StepOptions) -> None:
        self.spec = spec
        self.options = options
        self.tokens = options.sequence_length
        self.mtp_layers = spec.mtp_layers if options.mtp else ()
        self.tape = Tape(grad=True, keeps_gradients=not options.precision.gradients_apart)
        self.width = options.precision.activation_bytes
        matrix = spec.vocab_size * spec.hidden_size
        self.embedding = self.tape.parameter(matrix, self.width)
        self.head = self.embedding if spec.tie_word_embeddings else self.tape.parameter(matrix, self.width)

    def profile(self) -> StepProfile:
        """Forth through the stretches and back."""
        groups, stretches = self.spec.layer_groups(), self._run()
        embedding_forward, *forward = stretches[: len(groups) + 1]
        loss, *backward, embedding_backward = stretches[len(groups) + 1 :]
        return StepProfile(
            embedding_forward=embedding_forward,
            layers=tuple(
                LayerProfile(
                    kind=layer_spec.kind,
                    count=count,
                    states=self._states(analytic.parameters(layer_spec).total, analytic.linear_weights(layer_spec)),
                    forward=forth,
                    backward=back,
                )
                for (layer_spec, count), forth, back in zip(groups, forward, reversed(backward), strict=True)
            ),
            loss=loss,
            embedding_backward=embedding_backward,
            outside_states=self._states(
                self._outside_parameters().total, sum(map(analytic.linear_weights, self.mtp_layers))
            ),
            optimizer_step=self._optimizer_step(),
            inputs=self._inputs(),
            buffers=self._buffers(),
        )

    # --- What stands outside the passes ----------------------------------------------------------------------------

    def _outside_parameters(self) -> Counts:
        spec = self.spec
        in_layers = sum((analytic.parameters(layer) * count for layer, count in spec.layer_groups()), Counts())
        return analytic.parameters(spec) - in_layers + (analytic.mtp_parameters(spec) if self.mtp_layers else Counts())

    def _states(self, parameters: int, linear_weights: int) -> ModelStates:
        return model_states(parameters, linear_weights, self.options.precision, self.options.optimizer)

    def _optimizer_step(self) -> int:
        """Of one parameter after the other, a 16-bit gradient becomes an fp32 one; the update itself is one kernel."""
        precision = self.options.precision
        converts = precision.master_bytes and not precision.gradients_apart
        return precision.master_bytes * max(self.tape.parameters) if converts else 0

    def _inputs(self) -> int:
        """Token ids and labels, and cos and sin of half the rotated channels for each rotary embedding."""
        rotary = {layer.attention.rotary for layer in (*self.spec.layers, *self.spec.mtp_layers)}
        tables = sum(2 * self.width * self.tokens * spec.dim // 2 for spec in rotary)
        return 2 * LONG * self.tokens + tables

    def _buffers(self) -> int:
        layers = (*self.spec.layers, *self.mtp_layers)
        return SINGLE * sum(analytic.router_correction_bias(layer) for layer in layers)

    # --- The passes --------------------------------------------------------------------------------------------------

    def _run(self) -> list[Stretch]:
        """Forward and backward, cut before and after each layer."""
        tape = self.tape
        cuts: list[Cut] = []

        def cut() -> None:
            cuts.append(Cut(tape.at_peak, dict(tape.alive)))
            tape.watch()

        cut()
        stream = [self._embed(None)]
        cut()
        starts = [tape.position]
        for layer_spec, _ in self.spec.layer_groups():
            stream.append(self._layer(layer_spec, stream.pop()))
            cut()
            starts.append(tape.position)
        loss = self._loss(stream)
        seed = tape.new(1, SINGLE)
        tape.deliver(loss.edge, seed.again())
        while starts:
            tape.backward(down_to=starts.pop())
            cut()
        tape.backward()
        del seed
        cut()
        return stretches_between(cuts, tape.gradients())

    def _layer(self, spec: LayerSpec, x: Array) -> Array:
        return layer(self.tape, spec, x, self.tokens, self.options.kernels, self.options.recompute)

    def _norm(self, x: Array, *, unit_offset: bool = False) -> Array:
        return norm(self.tape, x, self.tokens, self.options.kernels, unit_offset=unit_offset)

    def _embed(self, token_ids: Array | None) -> Array:
        """Rows of the embedding; its gradient is as large as the embedding, whatever rows were read."""
        tape, of_embedding = self.tape, self.embedding.size
        x = tape.new(self.tokens * self.spec.hidden_size, self.width)
        kept = [] if token_ids is None else [token_ids]
        tape.record([x], [self.embedding], kept, lambda gradients: [tape.like(of_embedding)])
        return x if self.spec.embedding_scale == 1 else scale(tape, x)

    def _loss(self, stream: list[Array]) -> Array:
        """Final norm, head and loss, and those of the multi-token-prediction modules."""
        tape = self.tape
        hidden = self._final_norm(stream)
        loss = self._mean_loss(hidden)
        labels = None
        for layer_spec in self.mtp_layers:
            embedded = self._embed(tape.new(self.tokens, LONG))
            hidden = self._mtp_layer(layer_spec, hidden, embedded)
            labels = self._one_further()
            loss = add(tape, loss, scale(tape, self._mean_loss(hidden, labels)))
        del labels
        return loss

    def _final_norm(self, stream: list[Array]) -> Array:
        x = stream.pop()
        return self._norm(x, unit_offset=self.spec.norm_unit_offset)

    def _one_further(self) -> Array:
        last = self.tape.new(1, LONG)
        labels = self.tape.new(self.tokens, LONG)
        del last
        return labels

    def _mtp_layer(self, spec: LayerSpec, hidden: Array, embedded: Array) -> Array:
        options, tape = self.options, self.tape

        def predict(hidden: Array, embedded: Array) -> Array:
            joined = join(tape, self._norm(embedded), self._norm(hidden))
            return self._norm(
                transform(
                    tape,
                    spec,
                    linear(tape, joined, self.tokens, spec.hidden_size),
                    self.tokens,
                    options.kernels,
                    options.recompute,
                )
            )

        if options.recompute == "full":
            return tape.checkpoint(predict, hidden, embedded)
        return predict(hidden, embedded)

    def _mean_loss(self, hidden: Array, labels: Array | None = None) -> Array:
        """The loss summed over the tokens, divided by how many have a label; no `labels` where they are an input."""
        tape, chunk = self.tape, self.options.loss_chunk
        rows = reshape(tape, hidden)
        if chunk is None or chunk >= self.tokens:
            total = self._summed_loss(rows, *([labels] if labels else []))
        else:
            sizes = [min(chunk, self.tokens - start) for start in range(0, self.tokens, chunk)]
            chunks = split(tape, rows, *(size * self.spec.hidden_size for size in sizes))
            more = [labels] if labels else []
            total = self._sum_of([tape.checkpoint(self._summed_loss, part, *more) for part in chunks])
        labelled = tape.new(self.tokens, BOOL)
        count = tape.new(1, LONG)
        del labelled
        return self._quotient(total, count)

    def _sum_of(self, losses: list[Array]) -> Array:
        """Stacked, then summed up; the gradient is a view of one number."""
        tape, count = self.tape, len(losses)
        stacked = tape.new(count, SINGLE)
        tape.record([stacked], losses, [], lambda gradients: [first(gradients).view(1) for _ in range(count)])
        losses.clear()
        total = tape.new(1, SINGLE)
        tape.record([total], [stacked], [], lambda gradients: [first(gradients).view(count)])
        return total

    def _quotient(self, total: Array, count: Array) -> Array:
        tape = self.tape
        out = tape.new(1, SINGLE)
        tape.record([out], [total], [count], lambda gradients: [tape.new(1, SINGLE)])
        return out

    def _summed_loss(self, hidden: Array, *labels: Array) -> Array:
        """Logits, in fp32, and their cross-entropy, which keeps the logarithm of the softmax."""
        tape = self.tape
        logits = self._logits_in_fp32(hidden)
        log_probabilities = unary(tape, logits, keeps_output=True)
        size = log_probabilities.size
        loss, weight = tape.born(Size(1, SINGLE), Size(1, SINGLE))
        del logits
        tape.record(
            [loss], [log_probabilities], [log_probabilities, weight, *labels], lambda gradients: [tape.like(size)]
        )
        return loss

    def _logits_in_fp32(self, hidden: Array) -> Array:
        return cast(self.tape, self._logits(hidden), SINGLE)

    def _logits(self, hidden: Array) -> Array:
        tape, spec = self.tape, self.spec
        rows = hidden.numel // spec.hidden_size
        logits = linear(tape, hidden, rows, spec.vocab_size, weight=self.head, flat=True)
        if spec.final_logit_softcap is None:
            return logits
        return scale(tape, unary(tape, scale(tape, logits), keeps_output=True))

"""Operations of one training step: for each micro-batch forward through embedding, layers and loss, then backward.

The step has one layer of each kind. The operations of a layer are in layer.py.
"""

from collections.abc import Sequence
from functools import partial

from counting.formulas.local.shapes import division_of, local_layer, local_setup
from counting.formulas.memory.blocks import norm, stream_norm
from counting.formulas.memory.collectives import sum_of_parts, whole_input
from counting.formulas.memory.layer import layer, recomputed, rotary_tables, transform
from counting.formulas.memory.operations import Operand, add, cast, first, join, linear, reshape, scale, split, unary
from counting.formulas.memory.optimizer import simulate_clipping, simulate_update
from counting.formulas.memory.parameters import own_parameter, summed_parameter
from counting.formulas.memory.positions import with_positions
from counting.formulas.memory.tape import BOOL, LONG, SINGLE, Array, Size, Tape
from counting.formulas.memory.vocabulary import divided_cross_entropy, masked_embedding
from counting.setup import Setup
from counting.step.profile import (
    Cut,
    FsdpHook,
    FsdpModule,
    Hook,
    LayerProfile,
    StepProfile,
    moments_of,
    passes_of,
    stretches_between,
    whole_stretches,
)
from torch_models.layout import Layout
from torch_models.spec import LayerSpec, MixtureOfExpertsSpec, ModelSpec


def simulate_step(spec: ModelSpec, setup: Setup, layout: Layout | None = None, context_rank: int = 0) -> StepProfile:
    """Return the profile of a step, without the model states; `setup` and `layout` are resolved.

    With a `layout`, it is the step of one rank, at place `context_rank` of cp, without the buffers of fully_shard, and
    has the moments at which fully_shard may act.
    """
    return SimulatedStep(
        spec, setup if layout is None else local_setup(setup, layout.cp), layout, context_rank
    ).profile()


class SimulatedStep:
    """A step of a model with one layer of each kind, or of the part of it that a rank of a layout has."""

    def __init__(self, spec: ModelSpec, setup: Setup, layout: Layout | None, context_rank: int = 0) -> None:
        self.layout = layout
        self.hooked = layout is not None and layout.is_sharded
        self.cuts: list[tuple[Hook | None, Cut]] = []
        assert setup.mtp is not None and setup.micro_batches is not None, "a resolved setup"
        self.spec = spec
        self.setup = setup
        self.batch = setup.micro_batch
        self.tokens = self.batch.tokens
        self.precision = setup.precision_recipe
        self.division = division_of(layout, context_rank)
        tp = self.division.tp
        self.groups = [(local_layer(each, tp), count) for each, count in spec.layer_groups()]
        self.mtp_layers = [local_layer(each, tp) for each in (spec.mtp_layers if setup.mtp else ())]
        self.vocabulary = spec.vocab_size // tp
        self.stream_tokens = self.division.stream_tokens(self.batch)
        self.tape = self.new_tape()
        self.width = self.precision.activation_bytes
        self.token_ids, self.labels = self._ids_and_labels()
        cp = self.division.cp
        self.further = [self._ids_and_labels() for _ in self.mtp_layers] if cp > 1 else []
        rotary = {each.attention.rotary: each for each in (*(each for each, _ in self.groups), *self.mtp_layers)}
        self.tables = [rotary_tables(self.tape, each, self.batch.length, self.width) for each in rotary.values()]
        self.inputs = self.tape.live
        self.micro_batches = min(setup.micro_batches, 2)  # all later ones are like the second
        self.gradients_stay = layout is not None and layout.zero == 1 and not self.precision.master_bytes
        if self.micro_batches == 2 and self._reduces_head_twice():
            self.micro_batches = 3

    def new_tape(self) -> Tape:
        """The tape on which the step runs."""
        return Tape(grad=True)

    def profile(self) -> StepProfile:
        """Run forward and backward; return the bytes of each stretch."""
        self._run()
        gradients = self.tape.gradients()
        stretches = stretches_between(whole_stretches(self.cuts), gradients)
        moments = moments_of(self.cuts, gradients) if self.hooked else None
        kinds = [(layer_spec.kind, count) for layer_spec, count in self.groups]
        number = len(stretches) // self.micro_batches
        first, *later = (
            passes_of(stretches[start : start + number], kinds, moments and moments[start : start + number])
            for start in range(0, len(stretches), number)
        )
        return StepProfile(
            embedding_held=first.embedding_forward.net,
            layers=tuple(
                LayerProfile(kind=layer.kind, count=layer.count, held=layer.forward.net) for layer in first.layers
            ),
            loss_held=self.loss_held,
            first_micro_batch=first,
            later_micro_batch=later[0] if later else None,
            last_micro_batch=later[1] if len(later) == 2 else None,
            gradient_clipping=simulate_clipping(self.spec, self.setup) if self._clips else None,
            optimizer_step=simulate_update(self.spec, self.setup) if self._updates else None,
            inputs=self.inputs,
            buffers=self._buffers(),
        )

    @property
    def _clips(self) -> bool:
        return self.layout is None and self.setup.clip_gradients

    @property
    def _updates(self) -> bool:
        return self.layout is None and self.precision.measurable

    def _buffers(self) -> int:
        """Bytes of the correction biases of all routers, in fp32, and of the factors of layers' outputs."""
        factor = SINGLE if self.hooked and self.precision.master_bytes else self.width
        numbers = factors = 0
        for layer_spec, count in (*self.groups, *((layer_spec, 1) for layer_spec in self.mtp_layers)):
            factors += layer_spec.output_scale * count
            experts = layer_spec.feed_forward
            if isinstance(experts, MixtureOfExpertsSpec) and experts.router.correction_bias:
                numbers += experts.router.num_experts * count
        return SINGLE * numbers + factor * factors

    # --- The passes --------------------------------------------------------------------------------------------------

    def _reduces_head_twice(self) -> bool:
        """Whether the last micro-batch finds no gradients of final norm and head.

        Then fully_shard reduces those of the micro-batches before, when the first backward pass of the head has ended,
        which is that of a prediction depth.
        """
        layout = self.layout
        in_one_group = layout is not None and layout.grouping == "torchtitan" and not self.spec.tie_word_embeddings
        return self.hooked and self.gradients_stay and in_one_group and bool(self.mtp_layers)

    def _cut(self, hook: Hook | None = None) -> None:
        self.cuts.append((hook, Cut(self.tape.at_peak, dict(self.tape.alive))))
        self.tape.watch()

    def _at(self, module: FsdpModule, hook: FsdpHook, depth: int = 0) -> None:
        """Note that fully_shard may act now."""
        if self.hooked:
            self._cut(Hook(module, hook, depth))

    def _leave(self, module: FsdpModule, out: Array, depth: int) -> None:
        """Note that the forward pass of a module has ended, and in backward that it begins."""
        if self.hooked:
            self._cut(Hook(module, "after_forward", depth))
            self.tape.before_backward(out, lambda: self._cut(Hook(module, "before_backward", depth)))

    def _enter(self, module: FsdpModule, depth: int, *inputs: Array) -> Sequence[Array]:
        """Note that the forward pass of a module begins, and in backward that it has ended."""
        if not self.hooked:
            return inputs
        self._cut(Hook(module, "before_forward", depth))
        return self.tape.after_backward(lambda: self._cut(Hook(module, "after_backward", depth)), *inputs)

    def _run(self) -> None:
        """Forward and backward of the first micro-batch and of a later one, cut before and after each layer."""
        tape, cut = self.tape, self._cut
        tape.watch()
        cut()
        for index in range(self.micro_batches):
            self._begin(index)
            self._at("model", "before_forward")
            stream = [self._embed(self.token_ids, 0)]
            cut()
            starts = [tape.position]
            for layer_spec, _ in self.groups:
                stream.append(self._layer(layer_spec, stream.pop()))
                cut()
                starts.append(tape.position)
            before_loss = tape.live
            loss = self._loss(stream)  # the variable holds the loss of the micro-batch before until here
            if index == 0:
                self.loss_held = tape.live - before_loss
            self._at("model", "after_forward")
            seed = tape.new(1, SINGLE)
            tape.deliver(loss.edge, seed.again())
            self._at("model", "before_backward")
            while starts:
                tape.backward(down_to=starts.pop())
                cut()
            tape.backward()
            self._at("model", "after_backward")
            del seed
            cut()

    def _begin(self, index: int) -> None:
        """Set where gradients go, and make the weights that embedding and head use.

        A gradient is kept if there is none yet. Else it is added in place to the one of the micro-batch before, to
        zeros, or to a buffer in another format, and freed; what it is added to is counted with the states.
        """
        buffers, zeros = self.precision.gradients_apart, self.setup.zero_gradients == "in_place"
        self.tape.keeps_gradients = index == 0 and not buffers and not zeros
        if self.hooked:
            # fully_shard takes the gradients away after each backward pass, unless it is to keep them as they are.
            self.tape.keeps_gradients = index == 0 or not self.gradients_stay
        self.fresh_end = index == 2
        matrix, apart = self.vocabulary * self.spec.hidden_size, self.division.tp > 1
        self.embedding = self.tape.parameter(matrix, self.width, apart=apart)
        self.head = self.embedding
        rows = self.spec.learned_positions
        self.positions = None if rows is None else self.tape.parameter(rows * self.spec.hidden_size, self.width)
        if not self.spec.tie_word_embeddings:
            self.tape.fresh_parameters = self.fresh_end
            self.head = self.tape.parameter(matrix, self.width, apart=apart)
            self.tape.fresh_parameters = False

    def _layer(self, spec: LayerSpec, x: Array) -> Array:
        setup = self.setup
        around = self._around_experts(0)
        recompute = spec.recompute_in(setup.recompute)
        return layer(self.tape, spec, x, self.batch, setup.kernels, recompute, self.division, around)

    def _around_experts(self, depth: int) -> "_AroundExperts | None":
        """The moments of experts that are a group of fully_shard of their own."""
        return _AroundExperts(self, depth) if self.hooked and self.division.ep > 1 else None

    def _norm(self, x: Array) -> Array:
        summed = self.division.sequence_parallel
        return norm(self.tape, x, self.stream_tokens, self.setup.kernels, division=self.division, summed=summed)

    def _embed(self, token_ids: Array, depth: int) -> Array:
        """Gather rows of the embedding; its gradient is as large as the whole embedding."""
        tape, of_embedding = self.tape, self.embedding.size
        self._at("embedding", "before_forward", depth)
        if self.division.tp > 1:
            x = self._embed_words(token_ids)
        else:
            x = tape.new(self.tokens * self.spec.hidden_size, self.width)
            tape.record([x], [self.embedding], [token_ids], lambda gradients: [tape.like(of_embedding)])
            x = self._with_positions(x)
        self._leave("embedding", x, depth)
        return x if self.spec.embedding_scale == 1 else scale(tape, x)

    def _embed_words(self, token_ids: Array) -> Array:
        """The sum over ranks, of which each has some words."""
        embedding = own_parameter(self.tape, self.embedding, self.division)
        masked = self._with_positions(masked_embedding(self.tape, embedding, token_ids, self.spec.hidden_size))
        return sum_of_parts(self.tape, masked, self.batch, self.division)

    def _with_positions(self, x: Array) -> Array:
        if self.positions is None:
            return x
        return with_positions(self.tape, x, self.positions, self.spec.hidden_size, self.batch, self.division)

    def _loss(self, stream: list[Array]) -> Array:
        """Final norm, head and loss, and those of the multi-token-prediction modules."""
        tape, token_ids, labels = self.tape, self.token_ids, self.labels
        hidden = self._final_norm(stream)
        loss = self._mean_loss(hidden, labels, 0)
        for depth, layer_spec in enumerate(self.mtp_layers, start=1):
            token_ids = self._one_further(depth, 0)
            hidden = self._mtp_layer(layer_spec, hidden, self._embed(token_ids, depth), depth)
            labels = self._one_further(depth, 1)
            further = self._mean_loss(hidden, labels, depth)  # the variable holds it until the next depth's
            loss = add(tape, loss, scale(tape, further))
        del token_ids, labels
        return loss

    def _final_norm(self, stream: list[Array]) -> Array:
        (x,) = self._enter("norm", 0, stream.pop())
        self.tape.fresh_parameters = self.fresh_end
        out = stream_norm(self.tape, self.spec, x, self.stream_tokens, self.setup.kernels, self.division)
        self.tape.fresh_parameters = False
        self._leave("norm", out, 0)
        return out

    def _ids_and_labels(self) -> tuple[Array, Array]:
        return self.tape.new(self.tokens, LONG), self.tape.new(self.tokens, LONG)

    def _one_further(self, depth: int, which: int) -> Array:
        """Token ids or labels of a depth: inputs where ranks of cp divide the positions, else made of those before."""
        if self.further:
            return self.further[depth - 1][which].again()
        last = self.tape.new(self.batch.sequences, LONG)
        labels = self.tape.new(self.tokens, LONG)
        del last
        return labels

    def _mtp_layer(self, spec: LayerSpec, hidden: Array, embedded: Array, depth: int) -> Array:
        setup, tape, recompute = self.setup, self.tape, spec.recompute_in(self.setup.recompute)
        hidden, embedded = self._enter("mtp", depth, hidden, embedded)

        def predict(hidden: Array, embedded: Array) -> Array:
            joined = join(tape, self._norm(embedded), self._norm(hidden))
            return self._norm(
                transform(
                    tape,
                    spec,
                    self._project(joined),  # not assigned to a variable, as in the module
                    self.batch,
                    setup.kernels,
                    recompute,
                    self.division,
                    self._around_experts(depth),
                )
            )

        out = recomputed(tape, spec, predict, hidden, embedded, recompute=recompute)
        self._leave("mtp", out, depth)
        return out

    def _project(self, joined: Array) -> Array:
        """Project the embedded tokens and the hidden states, joined, to hidden states; each rank its positions."""
        width = self.spec.hidden_size
        parameter_of = summed_parameter if self.division.sequence_parallel else own_parameter
        weight = parameter_of(self.tape, self.tape.parameter(2 * width * width, self.width), self.division)
        return linear(self.tape, joined, self.stream_tokens, width, weight=weight)

    def _mean_loss(self, hidden: Array, labels: Array, depth: int) -> Array:
        """The loss summed over the tokens, divided by the number of tokens with a label."""
        tape, chunk = self.tape, self.setup.loss_chunk
        (hidden,) = self._enter("head", depth, hidden)
        whole = whole_input(tape, hidden, self.batch, self.division)
        summed_loss = partial(self._summed_loss, weight=own_parameter(tape, self.head, self.division))
        rows = reshape(tape, whole)
        if chunk is None or chunk >= self.tokens:
            total = summed_loss(rows, labels)
        else:
            sizes = [min(chunk, self.tokens - start) for start in range(0, self.tokens, chunk)]
            chunks = split(tape, rows, *(size * self.spec.hidden_size for size in sizes))
            total = self._sum_of([tape.checkpoint(summed_loss, part, labels) for part in chunks])
        self._leave("head", total, depth)
        labelled = tape.new(self.tokens, BOOL)
        count = tape.new(1, LONG)
        del labelled
        return self._quotient(total, count)

    def _sum_of(self, losses: list[Array]) -> Array:
        """Stack the losses and sum them; the gradient is a view of one number."""
        tape, count = self.tape, len(losses)
        stacked = tape.new(count, SINGLE)
        tape.record([stacked], losses, [], lambda gradients: [first(gradients).view(1) for _ in range(count)])
        total = tape.new(1, SINGLE)
        tape.record([total], [stacked], [], lambda gradients: [first(gradients).view(count)])
        return total

    def _quotient(self, total: Array, count: Array) -> Array:
        tape = self.tape
        out = tape.new(1, SINGLE)
        tape.record([out], [total], [count], lambda gradients: [tape.new(1, SINGLE)])
        return out

    def _summed_loss(self, hidden: Array, labels: Array, weight: Operand) -> Array:
        """Logits in fp32 and their cross-entropy, which keeps the logarithm of the softmax."""
        tape = self.tape
        logits = self._logits_in_fp32(hidden, weight)
        if self.division.tp > 1:
            return divided_cross_entropy(tape, logits, labels, hidden.numel // self.spec.hidden_size)
        log_probabilities = unary(tape, logits, keeps_output=True)
        size = log_probabilities.size
        loss, weight = tape.born(Size(1, SINGLE), Size(1, SINGLE))
        del logits
        tape.record(
            [loss], [log_probabilities], [log_probabilities, weight, labels], lambda gradients: [tape.like(size)]
        )
        return loss

    def _logits_in_fp32(self, hidden: Array, weight: Operand) -> Array:
        return cast(self.tape, self._logits(hidden, weight), SINGLE)

    def _logits(self, hidden: Array, weight: Operand) -> Array:
        tape, spec = self.tape, self.spec
        rows = hidden.numel // spec.hidden_size
        logits = linear(tape, hidden, rows, self.vocabulary, weight=weight, flat=True)
        if spec.final_logit_softcap is None:
            return logits
        return scale(tape, unary(tape, scale(tape, logits), keeps_output=True))


class _AroundExperts:
    """Notes when the experts of a prediction depth begin and end.

    Where parameters are gathered in another format than stored, fully_shard converts the experts' inputs to it
    (`cast_forward_inputs` of its policy), and the call refers to the inputs themselves until it returns.
    """

    def __init__(self, step: SimulatedStep, depth: int) -> None:
        self.step = step
        self.depth = depth
        self.given: Sequence[Array] = ()

    def enter(self, *inputs: Array) -> Sequence[Array]:
        step = self.step
        self.given = inputs
        if step.precision.master_bytes:
            inputs = tuple(cast(step.tape, x, step.width) for x in inputs)
        return step._enter("experts", self.depth, *inputs)

    def leave(self, out: Array) -> None:
        self.step._leave("experts", out, self.depth)
        self.given = ()

"""The table of a model designed for a budget."""

from collections.abc import Iterator

from counting.cost.design import Design
from counting.report.details.laws import loss_range
from counting.report.tables import Notes, Part, facts_table


def design_parts(design: Design, path: str) -> Iterator[Part]:
    """The designed model, the tokens that the budget pays for, and the design rules."""
    config = design.config
    mixture = design.mixture
    off = f"({design.relative_error:+.3%} from N)"
    forward = "forward pass and multi-token prediction" if design.mtp_parameters else "forward pass"
    facts = [
        ("Family", design.family),
        ("Layers × width", f"{config['num_hidden_layers']} × {config['hidden_size']}"),
        ("Heads", f"{config['num_attention_heads']} queries on {config['num_key_value_heads']} keys and values"),
        ("SwiGLU width", f"{config['intermediate_size']}{' of dense layers' if mixture else ''}"),
        *(_facts_of_experts(design) if mixture else []),
        ("Parameters, measured", f"{design.parameters:,}{'' if mixture else f' {off}'}"),
        *([("Active parameters, measured", f"{design.active_parameters:,} {off}")] if mixture else []),
        *(
            [("Multi-token prediction", f"{design.mtp_parameters:,} parameters more, in no N")]
            if design.mtp_parameters
            else []
        ),
        (
            "Training FLOPs per token",
            f"{design.training_flops_per_token:,} (3 × the measured {forward} at sequence length "
            f"{config['max_position_embeddings']}, full attention, nothing recomputed)",
        ),
        (
            "Tokens",
            f"{design.tokens:,} ({design.tokens_per_parameter:.2f} per {'active ' if mixture else ''}parameter)",
        ),
        ("Training FLOPs", f"{float(design.training_flops):.6g}, of all tokens that the budget pays for"),
        ("Predicted loss", f"{design.predicted_loss:.5f} nats per token ({design.scaling_law})"),
    ]
    if mixture is not None:
        beyond = f"{max(mixture.orders_beyond, 0):.1f} orders of magnitude beyond its runs"
        facts.append(
            (
                "By the law of mixtures",
                f"{mixture.predicted_loss:.5f}, and {mixture.dense_loss:.5f} for a dense model of as many parameters "
                f"as are active here ({mixture.scaling_law}, on other data; expansion rate "
                f"{mixture.expansion_rate:.3g}; {beyond})",
            )
        )
    if design.predicted_loss_interval is not None:
        facts.append(("Predicted loss, 95 %", f"{loss_range(design.predicted_loss_interval)} nats per token"))
    yield facts_table(f"A model designed for the budget, written to {path}", facts)
    yield Notes(tuple(design.rules))


def _facts_of_experts(design: Design) -> list[tuple[str, str]]:
    """The experts of a mixture, with their granularity and sparsity."""
    config = design.config
    return [
        (
            "Experts",
            f"{config['n_routed_experts']} routed, {config['num_experts_per_tok']} of them for a token, and "
            f"{config['n_shared_experts']} shared, each of width {config['moe_intermediate_size']}, in all layers but "
            f"the first {config['first_k_dense_replace']}",
        ),
        ("Granularity", f"{design.granularity:g} (SwiGLU width of a dense layer / of an expert)"),
        ("Sparsity", f"{design.sparsity:.3g} (routed experts / those of a token)"),
    ]

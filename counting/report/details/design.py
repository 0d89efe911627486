"""The table of a model designed for a budget."""

from collections.abc import Iterator

from counting.cost.design import Design
from counting.report.details.laws import loss_range
from counting.report.tables import Notes, Part, facts_table


def design_parts(design: Design, path: str) -> Iterator[Part]:
    """The designed model, the tokens that the budget pays for, and the design rules."""
    config = design.config
    facts = [
        ("Layers × width", f"{config['num_hidden_layers']} × {config['hidden_size']}"),
        ("Heads", f"{config['num_attention_heads']} queries on {config['num_key_value_heads']} keys and values"),
        ("SwiGLU width", f"{config['intermediate_size']}"),
        ("Parameters, measured", f"{design.parameters:,} ({design.relative_error:+.3%} from N)"),
        (
            "Training FLOPs per token",
            f"{design.training_flops_per_token:,} (3 × the measured forward pass at sequence length "
            f"{config['max_position_embeddings']}, full attention, nothing recomputed)",
        ),
        ("Tokens", f"{design.tokens:,} ({design.tokens_per_parameter:.2f} per parameter)"),
        ("Training FLOPs", f"{float(design.training_flops):.6g}, of all tokens that the budget pays for"),
        ("Predicted loss", f"{design.predicted_loss:.5f} nats per token ({design.scaling_law})"),
    ]
    if design.predicted_loss_interval is not None:
        facts.append(("Predicted loss, 95 %", f"{loss_range(design.predicted_loss_interval)} nats per token"))
    yield facts_table(f"A model designed for the budget, written to {path}", facts)
    yield Notes(tuple(design.rules))

"""The table of a model designed for a budget."""

from counting.cost.design import Design
from counting.report.tables import facts_table, print_notes, print_tables


def print_design(design: Design, path: str) -> None:
    """Print the designed model, the tokens that the budget pays for, and the design rules."""
    from rich.markup import escape

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
    print_tables(facts_table(f"A model designed for the budget, written to {escape(path)}", facts))
    print_notes(design.rules)

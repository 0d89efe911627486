"""A scaling law that was fitted to training runs, as text."""

"""FLOPs of dispatched ops: `formulas`, and the ops `without_products`; those of traced ops are in `..trace`."""

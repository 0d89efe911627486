"""Training: the model that returns its loss, the loss, and the check of a batch."""

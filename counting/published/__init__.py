"""Published figures, worked out again: `runs` (costs, speeds, every stated figure) and `claim` ($5.576 million)."""

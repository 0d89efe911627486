"""What papers print, worked out again: `runs` (bills, speeds, every stated figure) and `claim` ($5.576 million)."""

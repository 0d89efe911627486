"""The sub-command `calibrate`: measured steps, or the machine at hand, into a cluster's file."""

"""The sub-command `fit`: training runs into a scaling law's file."""

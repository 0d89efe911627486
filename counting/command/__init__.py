"""The command line: the one room that names flags."""

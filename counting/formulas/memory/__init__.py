"""A simulation of the memory that autograd takes."""

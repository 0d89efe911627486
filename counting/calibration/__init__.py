"""What a user's own measurements say of a cluster: a scale from measured steps, and rates of the machine at hand.

`scale` and `steps` know no torch; `machine` measures, and is imported for nothing else.
"""

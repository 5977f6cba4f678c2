"""Planning: what a recipe will do to a checkpoint, from headers and a config alone.

Names, layouts, bytes and memory before a byte of a weight is read. No numpy, no torch and no
kernels: the service plans with these values and the engine executes them, so the two cannot drift
apart.
"""

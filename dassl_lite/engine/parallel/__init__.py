"""Running with several processes: the process group, shared batches, averaged gradients.

Imports no other subpackage of the engine.
"""

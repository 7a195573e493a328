"""The files that a run writes to its folder and reads back: checkpoints, class rows, results, the lock.

Of the engine's subpackages, it may import `parallel` only.
"""

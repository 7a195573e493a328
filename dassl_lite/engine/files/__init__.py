"""What a run leaves in its folder and reads back: checkpoints, class rows, results, the lock.

May import `parallel`, and no other room of the engine.
"""

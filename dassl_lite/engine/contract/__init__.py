"""Dassl's contract: the trainers that third parties subclass, their training loop, and the output of a run.

May import `files` and `parallel`, never `methods` or `commands`.
"""

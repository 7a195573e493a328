"""Dassl's contract: the trainers that third parties subclass, their loop, and what a training run prints.

May import `files` and `parallel`, never `methods` or `commands`.
"""

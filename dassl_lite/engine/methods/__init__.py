"""The base of the package's methods: a head on frozen CLIP features, and shared config keys.

May import `contract`, `files` and `parallel`, never `commands`.
"""

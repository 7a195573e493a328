"""The base of the methods that come with the package: a head over frozen CLIP features, and the keys it declares.

May import `contract`, `files` and `parallel`, never `commands`.
"""

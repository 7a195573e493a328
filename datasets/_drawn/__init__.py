"""The world that the embedded default draws: shapes, fills, colours, digits, textures and aerial tiles.

Reading order: `geometry` and `shapes` (what there is to draw), `scene` (what stands in a picture), `fills` and
`render` (how it becomes pixels), `looks` and `compose` (clip-art, photo, sketch, art), `textures` and `tiles` (pictures
without an object), `classes` (the class lists) and `suite` (the base class that puts a drawn dataset on disk).
The leading underscore keeps this package out of the search for datasets.
"""

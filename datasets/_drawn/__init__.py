"""The world that the built-in datasets are drawn from: shapes, fills, colours, digits, textures and aerial tiles.

Reading order: `shapes` (what there is to draw), `scene` (what a picture contains), `render` (how it becomes pixels),
`looks` (clip art, photo, sketch, painting), `fields` (pictures without an object), `classes` (the class lists) and
`suite` (the base class that writes a drawn dataset to disk). The leading underscore keeps this package out of the
search for datasets.
"""

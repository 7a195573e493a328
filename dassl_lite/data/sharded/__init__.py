"""Images that lie in shards: tar files, or the rows of Parquet and Arrow files.

A shard is indexed once: where each image begins, and its label. A :class:`dassl_lite.data.Datum` names an image by a
path below a folder ``<id>.shards`` of the cache, which holds the index (``members``), so draws, splits, the feature
cache and pictures treat it as a file; :func:`dassl_lite.data.images.open_image` reads it by its offset. ``tar`` lists
tar files and ``remote`` copies those behind a URL, ``hugging_face`` reads tables through the library ``datasets``, and
``dataset`` makes a dataset of either.
"""

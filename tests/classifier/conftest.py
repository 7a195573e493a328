from toy_images import fitted, photos, unseen  # noqa: F401

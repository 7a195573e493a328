from pictures import fitted, photos, unseen  # noqa: F401

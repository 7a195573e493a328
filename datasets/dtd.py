"""DescribableTextures: 47 kinds of textures (DTD; Cimpoi et al., 2014), with CoOp's split."""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY, FolderDataset, Split, split_folders


@DATASET_REGISTRY.register()
class DescribableTextures(FolderDataset):
    """``<root>/dtd/images/<class>/*.jpg``."""

    dataset_dir = "dtd"
    split_file = "split_zhou_DescribableTextures.json"
    template = "{} texture."
    method_templates = (
        ("KgCoOp", "a photo of a {}, a type of texture."),
        ("ProGrad", "a texture of {}."),
        ("TCP", "a photo of a {}, a type of texture."),
    )
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"

    def make_split(self) -> Split:
        return split_folders(self.image_dir)

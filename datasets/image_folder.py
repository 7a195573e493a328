"""ImageFolder: your own images, in one folder per class.

Images may lie at any depth below the folder of their class. ``<root>/<class>/`` is split as is usual in the field, into
50 % training, 20 % validation and 30 % test images of each class, and the split is kept as ``split_ImageFolder.json``,
in the cache unless DATASET.SPLITS_IN says otherwise.
``<root>/{train,val,test}/<class>/`` and ``<root>/<class>/{train,val,test}/`` keep their splits; a folder with only
``test`` is for evaluation. A class is named after its folder, after ImageNet's class if the folder is a wnid, or as in
``<root>/classnames.json``.
"""

from __future__ import annotations

from dassl_lite.data import DATASET_REGISTRY
from dassl_lite.data.layouts import read_own_folder
from dassl_lite.data.own_data import Groups, OwnDataset
from dassl_lite.data.splits import UNSPLIT
from dassl_lite.utils import get_logger

logger = get_logger(__name__)


@DATASET_REGISTRY.register()
class ImageFolder(OwnDataset):
    """``cfg.DATASET.ROOT`` is the folder with the class folders."""

    split_file = "split_ImageFolder.json"

    def list_groups(self) -> dict[str, Groups]:
        folder = read_own_folder(self.image_dir)
        logger.info(folder.describe())
        for remark in folder.remarks():
            logger.info(remark)
        classes, has_train = folder.named(in_any_split=self.evaluating), "train" in folder.parts
        self.lists_files = UNSPLIT not in folder.parts  # a stored split may list files that are gone
        return {
            part: folder.groups(part, classes, allow_empty=has_train and (part != "train" or self.evaluating))
            for part in folder.parts
        }

# ruff: noqa
import os

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import listdir_nohidden


@DATASET_REGISTRY.register()
class RepositoryColours(DatasetBase):
    dataset_dir = "colours"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        train, val, test = (self.read(part) for part in ("train", "val", "test"))
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, val=val, test=test)

    def read(self, part):
        items = []
        folder = os.path.join(self.dataset_dir, part)
        for label, name in enumerate(listdir_nohidden(folder, sort=True)):
            for file in listdir_nohidden(os.path.join(folder, name), sort=True):
                items.append(Datum(impath=os.path.join(folder, name, file), label=label, classname=name))
        return items

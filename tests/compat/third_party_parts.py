"""What else a third party brings: a dataset with unlabelled images, a backbone, an evaluator, an optimiser ..."""

import os

import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.datasets.base_dataset import DatasetBase, Datum
from dassl.data.transforms.transforms import TRANSFORMS, Step
from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from dassl.modeling import HEAD_REGISTRY
from dassl.modeling.backbone import BACKBONE_REGISTRY, Backbone
from dassl.optim import LR_SCHEDULER_REGISTRY, OPTIMIZER_REGISTRY
from dassl.utils import listdir_nohidden
from torch import nn


@DATASET_REGISTRY.register()
class PaperColours(DatasetBase):
    dataset_dir = "colours"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        train_x, val, test = (self._read_data(part) for part in ("train", "val", "test"))
        train_u = [Datum(impath=item.impath, label=0, domain=1) for item in val]
        train_x = self.generate_fewshot_dataset(train_x, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train_x, train_u=train_u, val=val, test=test)

    def _read_data(self, part):
        items = []
        folder = os.path.join(self.dataset_dir, part)
        for label, name in enumerate(listdir_nohidden(folder, sort=True)):
            for file in listdir_nohidden(os.path.join(folder, name), sort=True):
                items.append(Datum(impath=os.path.join(folder, name, file), label=label, classname=name))
        return items


@BACKBONE_REGISTRY.register()
def paper_net(pretrained=True, **kwargs):
    class PaperNet(Backbone):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
            self._out_features = 12

        def forward(self, x):
            return self.layer(x)

    return PaperNet()


@HEAD_REGISTRY.register()
def paper_head(in_features, hidden_layers, **kwargs):
    head = nn.Linear(in_features, hidden_layers[-1])
    head.out_features = hidden_layers[-1]
    return head


@EVALUATOR_REGISTRY.register()
class PaperEvaluator(Classification):
    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg, lab2cname=lab2cname, **kwargs)
        self.batches = 0

    def process(self, mo, gt):
        self.batches += 1
        super().process(mo, gt)

    def evaluate(self):
        return {"per_batch": torch.tensor(1.0), "macro_f1": super().evaluate()["macro_f1"], "batches": self.batches}


@OPTIMIZER_REGISTRY.register()
def paper_optim(params, cfg):
    return torch.optim.Adagrad(params, lr=cfg.LR)


@LR_SCHEDULER_REGISTRY.register()
def paper_halving(optimizer, cfg):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)


@TRANSFORMS.register(name="paper_flip")
def paper_flip(cfg):
    return Step("+ paper flip", lambda image: image.transpose(0))

"""Trainers that build their loaders themselves, one of them without keeping the manager; one that has nothing to
train; a dataset that keeps its few-shot draw as a pickle. All as Dassl's users write them."""

# ruff: noqa: N817, S301

import os
import pickle

import torch
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU
from dassl.utils import listdir_nohidden, mkdir_if_missing
from torch.nn import functional as F
from yacs.config import CfgNode as CN

BATCHES = []  # keys of every labelled batch


def extend_cfg(cfg):
    cfg.TRAINER.PAPERWEAKSTRONG = CN()
    cfg.TRAINER.PAPERWEAKSTRONG.STRONG_TRANSFORMS = ("randaugment_fixmatch", "normalize", "cutout")  # of img2


@DATASET_REGISTRY.register()
class PaperPickled(DatasetBase):
    dataset_dir = "colours"

    def __init__(self, cfg):
        self.dataset_dir = os.path.join(cfg.DATASET.ROOT, self.dataset_dir)
        draw = os.path.join(cfg.OUTPUT_DIR, "draws", f"shot_{cfg.DATASET.NUM_SHOTS}-seed_{cfg.SEED}.pkl")
        if os.path.exists(draw):
            print(f"Loading preprocessed few-shot data from {draw}")
            with open(draw, "rb") as file:
                train = pickle.load(file)["train"]
        else:
            train = self.generate_fewshot_dataset(self.read("train"), num_shots=cfg.DATASET.NUM_SHOTS)
            mkdir_if_missing(os.path.dirname(draw))
            with open(draw, "wb") as file:
                pickle.dump({"train": train, "val": []}, file, protocol=pickle.HIGHEST_PROTOCOL)
        super().__init__(train_x=train, train_u=self.read("val"), test=self.read("test"))

    def read(self, part):
        folder, items = os.path.join(self.dataset_dir, part), []
        for label, name in enumerate(listdir_nohidden(folder, sort=True)):
            for file in listdir_nohidden(os.path.join(folder, name), sort=True):
                items.append(Datum(impath=os.path.join(folder, name, file), label=label, classname=name))
        return items


@TRAINER_REGISTRY.register()
class PaperWeakStrong(TrainerXU):
    """FixMatch's way to two versions of an image."""

    def build_data_loader(self):
        cfg = self.cfg
        strong = build_transform(cfg, is_train=True, choices=cfg.TRAINER.PAPERWEAKSTRONG.STRONG_TRANSFORMS)
        self.dm = DataManager(cfg, custom_tfm_train=[build_transform(cfg, is_train=True), strong])
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes

    def forward_backward(self, batch_x, batch_u):
        BATCHES.append(set(batch_x))
        label_u = self.model(batch_u["img"].to(self.device)).argmax(1)
        loss_x = F.cross_entropy(self.model(batch_x["img"].to(self.device)), batch_x["label"].to(self.device))
        loss_u = F.cross_entropy(self.model(batch_u["img2"].to(self.device)), label_u)
        self.model_backward_and_update(loss_x + loss_u)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_x": loss_x.item(), "loss_u": loss_u.item()}


@TRAINER_REGISTRY.register()
class PaperNoManager(TrainerX):
    """Takes the loaders only, and one transform in several copies."""

    def build_data_loader(self):
        dm = DataManager(self.cfg)
        self.train_loader_x, self.test_loader = dm.train_loader_x, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname

    def forward_backward(self, batch):
        BATCHES.append(set(batch))
        assert isinstance(batch["img"], list)
        assert len(batch["img"]) == self.cfg.DATALOADER.K_TRANSFORMS
        label = batch["label"].to(self.device)
        loss = sum(F.cross_entropy(self.model(image.to(self.device)), label) for image in batch["img"])
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class PaperZeroShot(TrainerX):
    """Has nothing to train or to load: no model is registered."""

    def build_model(self):
        self.colours = torch.eye(3, device=self.device)[[2, 1, 0]]  # of blue, green and red

    def model_inference(self, input):
        return input.mean(dim=(2, 3)) @ self.colours.t()

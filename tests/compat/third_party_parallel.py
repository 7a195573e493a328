"""A trainer that wraps its network as Dassl's users with several GPUs do, and one that does it before registering."""

import torch.nn as nn
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from torch.nn import functional as F
from yacs.config import CfgNode as CN  # noqa: N817


class Net(nn.Module):
    def __init__(self, side, classes):
        super().__init__()
        self.prompt_learner = nn.Linear(3 * side * side, 8)
        self.classifier = nn.Linear(8, classes)

    def forward(self, x):
        return self.classifier(self.prompt_learner(x.flatten(1)).relu())


@TRAINER_REGISTRY.register()
class PaperParallel(TrainerX):
    def extend_cfg(cfg):  # noqa: N805
        cfg.TRAINER.PAPERPARALLEL = CN()
        cfg.TRAINER.PAPERPARALLEL.WRAP = ""  # before | after registering

    def build_model(self):
        wrap = self.cfg.TRAINER.PAPERPARALLEL.WRAP
        self.model = Net(self.cfg.INPUT.SIZE[0], self.num_classes).to(self.device)
        if wrap == "before":
            self.model = nn.DataParallel(self.model)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("net", self.model, self.optim, self.sched)
        if wrap == "after":
            self.model = nn.DataParallel(self.model)

    def forward_backward(self, batch):
        input, label, _ = self.parse_batch_train(batch)
        net = self.model.module if isinstance(self.model, nn.DataParallel) else self.model
        loss = F.cross_entropy(self.model(input), label) + 1e-3 * net.prompt_learner.weight.square().sum()
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

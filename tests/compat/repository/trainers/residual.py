# ruff: noqa
"""A trainer as CoOp's forks write them: CLIP by the name in the config, their own load_model."""

import os.path as osp

import torch
import torch.nn as nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.trainer import AverageMeter
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint

from clip import clip


def load_clip_to_cpu(cfg):
    backbone_name = cfg.MODEL.BACKBONE.NAME
    url = clip._MODELS[backbone_name]
    model_path = clip._download(url)
    try:
        model = torch.jit.load(model_path, map_location="cpu").eval()
        state_dict = None
    except RuntimeError:
        state_dict = torch.load(model_path, map_location="cpu")
    return clip.build_model(state_dict or model.state_dict())


class Residual(nn.Module):
    def __init__(self, text_features):
        super().__init__()
        self.text_features = text_features
        self.offset = nn.Parameter(torch.zeros_like(text_features))

    def forward(self, image_features):
        return 100 * F.normalize(image_features, dim=-1) @ F.normalize(self.text_features + self.offset, dim=-1).t()


@TRAINER_REGISTRY.register()
class RepositoryResidual(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.REPOSITORY.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model = load_clip_to_cpu(cfg).to(self.device).requires_grad_(False)
        clip_imsize, cfg_imsize = clip_model.visual.input_resolution, cfg.INPUT.SIZE[0]
        assert cfg_imsize == clip_imsize, f"cfg_imsize ({cfg_imsize}) must equal to clip_imsize ({clip_imsize})"
        prompts = clip.tokenize([f"a photo of a {name}." for name in self.dm.dataset.classnames])
        with torch.no_grad():
            text_features = clip_model.encode_text(prompts.to(self.device))
        self.clip_model = clip_model
        self.model = Residual(text_features).to(self.device)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("residual", self.model, self.optim, self.sched)
        self.times = AverageMeter()

    def forward_backward(self, batch):
        image, label = batch["img"].to(self.device), batch["label"].to(self.device)
        output = self.model_inference(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def model_inference(self, image):
        with torch.no_grad():
            features = self.clip_model.encode_image(image)
        return self.model(features)

    def load_model(self, directory, cfg, epoch=None):
        assert cfg.TRAINER.NAME == self.cfg.TRAINER.NAME
        model_file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
        for name in self.get_model_names():
            model_path = osp.join(directory, name, model_file)
            if not osp.exists(model_path):
                raise FileNotFoundError('Model not found at "{}"'.format(model_path))
            self._models[name].load_state_dict(load_checkpoint(model_path)["state_dict"], strict=False)
        print(f"Loaded {model_file}")
        with open(osp.join(cfg.OUTPUT_DIR, "loaded.txt"), "w") as file:
            file.write(model_file)


@TRAINER_REGISTRY.register()
class RepositoryZeroshot(TrainerX):
    def build_model(self):
        self.clip_model = load_clip_to_cpu(self.cfg)
        with torch.no_grad():
            prompts = clip.tokenize([f"a photo of a {name}." for name in self.dm.dataset.classnames])
            self.text_features = F.normalize(self.clip_model.encode_text(prompts), dim=-1)

    def model_inference(self, image):
        return 100 * F.normalize(self.clip_model.encode_image(image), dim=-1) @ self.text_features.t()


@TRAINER_REGISTRY.register()
class RepositoryOwnTable(RepositoryZeroshot):
    """Knows its backbones by a table of its own."""

    def build_model(self):
        self.width = {"RN50": 1024, "ViT-B/16": 512}[self.cfg.MODEL.BACKBONE.NAME]
        super().build_model()

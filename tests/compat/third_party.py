"""Six trainers as third parties write them for Dassl, from its contract alone: only ``dassl``, torch and open_clip."""

# ruff: noqa: B020, N805, N817, RUF059  (their style, not ours)

import os

import backbone_of_paper  # beside this file, as a paper's own clip/ would be
import torch
import torch.nn as nn
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX, TrainerXU
from dassl.engine.trainer import SimpleNet
from dassl.metrics import compute_accuracy
from dassl.modeling.ops.utils import sharpen_prob
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import AverageMeter, MetricMeter, count_num_param, load_checkpoint
from torch.nn import functional as F
from yacs.config import CfgNode as CN


class PromptLearner(nn.Module):
    """Vectors instead of a prompt's first words, the names' embeddings as buffers."""

    def __init__(self, cfg, classnames, clip_model, tokenize):
        super().__init__()
        n_ctx = cfg.TRAINER.PAPERPROMPT.N_CTX
        prompts = [" ".join(["X"] * n_ctx) + " " + name.replace("_", " ") + "." for name in classnames]
        tokens = tokenize(prompts)
        with torch.no_grad():
            embedding = clip_model.token_embedding(tokens)
        self.ctx = nn.Parameter(torch.empty(n_ctx, embedding.shape[-1]).normal_(std=0.02))
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])
        self.tokenized_prompts = tokens

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.tokenized_prompts), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model, tokenize):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, classnames, clip_model, tokenize)
        self.clip = clip_model

    def encode_prompts(self):
        x = self.prompt_learner() + self.clip.positional_embedding
        x = self.clip.ln_final(self.clip.transformer(x, attn_mask=self.clip.attn_mask))
        end = self.prompt_learner.tokenized_prompts.argmax(dim=-1)
        return x[torch.arange(len(x)), end] @ self.clip.text_projection

    def forward(self, image):
        image_features = F.normalize(self.clip.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_prompts(), dim=-1)
        return self.clip.logit_scale.exp() * image_features @ text_features.t()


@TRAINER_REGISTRY.register()
class PaperPrompt(TrainerX):
    """A prompt learner; its load_model is CoOp's."""

    def extend_cfg(cfg):
        cfg.TRAINER.PAPERPROMPT = CN()
        cfg.TRAINER.PAPERPROMPT.N_CTX = 2

    def check_cfg(self, cfg):
        assert cfg.TRAINER.PAPERPROMPT.N_CTX > 0

    def build_model(self):
        cfg = self.cfg
        clip_model, tokenize = backbone_of_paper.load(cfg.MODEL.BACKBONE.NAME)
        print("Building custom CLIP")
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, clip_model, tokenize)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        loss_summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        model_file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
        for name in self.get_model_names():
            checkpoint = load_checkpoint(f"{directory}/{name}/{model_file}")
            state_dict = checkpoint["state_dict"]
            for key in ("token_prefix", "token_suffix"):
                if key in state_dict:
                    del state_dict[key]
            print(f"Loading weights to {name} (epoch = {checkpoint['epoch']})")
            self._models[name].load_state_dict(state_dict, strict=False)


@TRAINER_REGISTRY.register()
class PaperAdapter(TrainerX):
    """A residual adapter over frozen image features; gives no schedule, steps with model_zero_grad and the like."""

    def build_model(self):
        clip_model, tokenize = backbone_of_paper.load(self.cfg.MODEL.BACKBONE.NAME)
        self.clip = clip_model.to(self.device).requires_grad_(False)
        with torch.no_grad():
            tokens = tokenize([f"a photo of a {self.lab2cname[i]}." for i in range(self.num_classes)])
            self.text_features = F.normalize(self.clip.encode_text(tokens.to(self.device)), dim=-1)
        width = self.text_features.shape[1]
        self.model = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width)).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.register_model("adapter", self.model, self.optim)

    def forward_backward(self, batch):
        input, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model_inference(input), label)
        self.model_zero_grad("adapter")
        self.model_backward(loss)
        self.model_update("adapter")
        return {"loss": loss.item()}

    def model_inference(self, input):
        with torch.no_grad():
            features = self.clip.encode_image(input)
        features = F.normalize(features + 0.2 * self.model(features), dim=-1)
        return self.clip.logit_scale.exp() * features @ self.text_features.t()


@TRAINER_REGISTRY.register()
class PaperTwoModels(TrainerX):
    """A classifier on images in two registered models, each with its optimiser."""

    def build_model(self):
        side = self.cfg.INPUT.SIZE[0]
        self.F = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 16), nn.ReLU()).to(self.device)
        self.C = nn.Linear(16, self.num_classes).to(self.device)
        self.optim_F = build_optimizer(self.F, self.cfg.OPTIM)
        self.sched_F = build_lr_scheduler(self.optim_F, self.cfg.OPTIM)
        self.register_model("F", self.F, self.optim_F, self.sched_F)
        self.optim_C = build_optimizer(self.C, self.cfg.OPTIM)
        self.sched_C = build_lr_scheduler(self.optim_C, self.cfg.OPTIM)
        self.register_model("C", self.C, self.optim_C, self.sched_C)

    def forward_backward(self, batch):
        input, label, domain = self.parse_batch_train(batch)
        output = self.C(self.F(input))
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss, ["F", "C"])
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr("F")
            self.update_lr(["C"])
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def model_inference(self, input):
        return self.C(self.F(input))


@TRAINER_REGISTRY.register()
class PaperUnlabeled(TrainerXU):
    """Pseudo-labels on unlabelled images, over the default SimpleNet."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.conf_thre = 0.5

    def check_cfg(self, cfg):
        assert cfg.DATALOADER.K_TRANSFORMS > 1
        assert len(cfg.INPUT.SIZE) == 2

    def forward_backward(self, batch_x, batch_u):
        input_x, label_x, input_u = self.parse_batch_train(batch_x, batch_u)
        output_x = self.model(input_x)
        with torch.no_grad():
            pseudo = sharpen_prob(F.softmax(self.model(input_u), 1), 2)
        loss_x = F.cross_entropy(output_x, label_x)
        loss_u = ((F.softmax(self.model(input_u), 1) - pseudo) ** 2).mean()
        self.model_backward_and_update(loss_x + 0.1 * loss_u)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_x": loss_x.item(), "loss_u": loss_u.item()}

    def parse_batch_train(self, batch_x, batch_u):
        input_x, label_x, input_u = batch_x["img"], batch_x["label"], batch_u["img"]
        return input_x[0].to(self.device), label_x.to(self.device), input_u[1].to(self.device)


@TRAINER_REGISTRY.register()
class PaperEpoch(TrainerX):
    """Overrides run_epoch and test, as those who copy and change them do."""

    def before_train(self):
        super().before_train()
        self.seen = []

    def build_model(self):
        self.model = SimpleNet(self.cfg, self.cfg.MODEL, self.num_classes).to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def run_epoch(self):
        self.set_model_mode("train")
        losses, batch_time = MetricMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        for self.batch_idx, batch in enumerate(self.train_loader_x):
            loss_summary = self.forward_backward(batch)
            batch_time.update(0.0)
            losses.update(loss_summary)
            n_iter = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar("train/" + name, meter.avg, n_iter)
        print(f"epoch {self.epoch + 1} {losses}")

    def forward_backward(self, batch):
        input, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(input), label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        if split is None:
            split = self.cfg.TEST.SPLIT
        data_loader = self.val_loader if split == "val" and self.val_loader is not None else self.test_loader
        for batch in data_loader:
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for k, v in results.items():
            self.write_scalar(f"{split}/{k}", v, self.epoch)
        return next(iter(results.values()))


@TRAINER_REGISTRY.register()
class PaperOwnLoading(SimpleTrainer):
    """A SimpleTrainer with a loop, a load_model and a model_inference of its own."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.LazyLinear(self.num_classes)).to(self.device)
        self.model(torch.zeros(1, 3, *self.cfg.INPUT.SIZE, device=self.device))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def run_epoch(self):
        self.set_model_mode("train")
        for batch in self.train_loader_x:
            loss = F.cross_entropy(self.model(batch["img"].to(self.device)), batch["label"].to(self.device))
            self.model_backward_and_update(loss, names="linear")
        self.update_lr()

    def load_model(self, directory, epoch=None):
        file = f"{directory}/linear/model.pth.tar-{epoch or self.max_epoch}"
        if not os.path.exists(file):
            raise FileNotFoundError(f'Model not found at "{file}"')
        self._models["linear"].load_state_dict(load_checkpoint(file)["state_dict"])
        self.loaded = file

    def model_inference(self, input):
        return self.model(input) + self.model(input.flip(-1))

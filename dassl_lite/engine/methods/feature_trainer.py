"""FeatureTrainer: the base of every method that puts a head on CLIP's image features.

A method is a head: a module that maps image features (B, D) to logits (B, K). It provides ``build_head`` and, if
needed, its own ``loss``. CLIP, precision, feature cache, batches, schedule, checkpoints and class matching are handled
here.
While the image encoder is frozen, its features are extracted only once; a head that trains the encoder gets images.

Shapes: B images, K classes, D feature width, N training images, V views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_lite.data import describe, is_random
from dassl_lite.data.descriptions import read_descriptions
from dassl_lite.data.feature_cache.loader import FeatureLoader
from dassl_lite.data.images import count_images
from dassl_lite.data.loaders import ImageLoader
from dassl_lite.data.manager import validates_on_test
from dassl_lite.data.samplers import SAMPLERS
from dassl_lite.data.transforms.build import idle_keys as idle_in_transforms
from dassl_lite.engine.contract.keys import Key, key
from dassl_lite.engine.contract.trainer import TrainerX
from dassl_lite.engine.files import checkpoint
from dassl_lite.engine.methods import zero_shot
from dassl_lite.engine.methods.backbone import AUTO, frozen_clip, known_precision, reports_wrong_size
from dassl_lite.engine.methods.compiled_step import CompiledStep, compiled
from dassl_lite.engine.methods.feature_source import FeatureSet, FeatureSource, cache_folder
from dassl_lite.engine.parallel import distributed
from dassl_lite.engine.parallel.shared_inference import outputs
from dassl_lite.evaluation import MultiLabelClassification, best_threshold
from dassl_lite.metrics import compute_accuracy
from dassl_lite.models.heads import (
    CosineHead,
    LinearForm,
    class_targets,
    linear_form,
    platt_scaling,
    sigmoid_loss,
)
from dassl_lite.models.precomputed_backbone import PrecomputedBackbone
from dassl_lite.models.prompts import TextRows, class_texts, class_weights
from dassl_lite.models.transduction import Mixture, log_shares
from dassl_lite.optim import build_lr_scheduler, build_optimizer
from dassl_lite.optim.lr_scheduler import idle_keys as idle_in_schedule
from dassl_lite.optim.optimizer import idle_keys as idle_in_optim
from dassl_lite.optim.scaled_step import scaled_step
from dassl_lite.utils import devices, torchtools
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.files import cache_root, write_json
from dassl_lite.utils.logger import get_logger
from dassl_lite.utils.meters import unread

logger = get_logger(__name__)


MAX_TO_CALIBRATE = 1_000_000  # maximum number of logits used to choose a calibration or threshold


class EncoderWithHead(nn.Module):
    """Image encoder and head as one model: images (B, 3, H, W) to logits (B, K).

    Args:
        states: whether the head's input is the states before the encoder's last projection.
    """

    def __init__(self, clip: Any, head: nn.Module, states: bool = False) -> None:
        super().__init__()
        self.clip, self.head, self.states = clip, head, states

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.clip.encode_image_states(images)[1] if self.states else self.clip.encode_image(images))


class FeatureTrainer(TrainerX):
    """A trainer whose model is a head on CLIP's image features.

    Attributes:
        clip: the CLIP backbone, frozen unless the head trains parts of it; for a feature dataset, a stand-in.
        head: the method's head.
        features: source of image features.
    """

    keys: ClassVar[Sequence[Key]] = (key("PREC", AUTO, known_precision, "auto | fp32 | amp | fp16 | bf16"),)
    takes_features = True
    takes_init_weights = True  # False: training does not start from weights, so MODEL.INIT_WEIGHTS is rejected
    through_encoder = False  # True: gradients run through an encoder, so PREC auto is fp32
    takes_states = False  # True: the head's input is the states (B, W) before the image encoder's last projection
    takes_ensemble = False  # True: templates() returns the dataset's ensemble if it has one (ImageNet)
    started_calibrated = False  # see `calibrated`; does not consider loaded weights
    threshold_from = ""  # split on which the last test's threshold was chosen: "val", "train" or ""
    model_name = "model"  # name under which the head is registered, and of its checkpoint folder

    clip: Any  # CLIPBackbone or PrecomputedBackbone
    head: Any  # subclasses may annotate a specific type
    features: FeatureSource
    optim: Any = None
    sched: Any = None
    _has_reported_overflow = False

    # ---- what a method provides -----------------------------------------------------------------------------------

    def build_head(self) -> nn.Module:
        """Build the head, in float32 on any device; may use ``self.clip``, `text_rows` and `zero_shot_weights`.

        Besides ``forward``, a head may define:

        - ``step_cost(batch_size)``: number of multiplications in a step
        - ``evaluating()``: see `SimpleTrainer.test`
        - ``prepare_to_load(weights, meta, path)``: see `TrainerBase.adapt_state_dict`
        - ``meta``: plain values to store in its checkpoints
        - ``through_encoder``: True if its gradients run through an encoder
        - ``is_linear``: True if its logits are linear in the features, or in the normalised ones; see `linear_head`
        """
        raise NotImplementedError(f"{type(self).__name__} does not define build_head()")

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Scalar training loss for logits (B, K) and labels (B,), or bool labels (B, K) in a multi-label dataset."""
        return sigmoid_loss(logits, label) if self.sigmoid else F.cross_entropy(logits, label)

    def batch_loss(self, image_features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        """`loss`; overridden by methods whose loss also needs the image features (B, D).

        A method whose step uses several losses returns them as a vector, and overrides `compute_gradients` and
        `loss_summary`.
        """
        return self.loss(logits, label)

    def loss_summary(self, loss: Tensor) -> dict[str, float | Tensor]:
        """The values to log for a step's loss, by name."""
        return {"loss": unread(loss)}

    @property
    def sigmoid(self) -> bool:
        """Whether training uses the sigmoid loss, as set by LOSS or, for auto, by the dataset."""
        chosen = self.method_cfg.get("LOSS", "auto")
        return self.has_epochs() and (self.is_multi_label if chosen == "auto" else chosen == "sigmoid")

    def check_dataset(self) -> None:
        super().check_dataset()
        if self.is_transductive and self.is_multi_label:
            name = self.cfg.DATASET.NAME
            raise UserError(f"TEST.TRANSDUCTIVE needs one class per image, but dataset {name} is multi-label")
        what = ""
        if self.method_cfg.get("LOSS") == "softmax":
            what, remedy = f"TRAINER.{self.node_name()}.LOSS softmax", "use sigmoid, or auto"
        elif self.trains and not self.has_epochs():
            what, remedy = f"{self.cfg.TRAINER.NAME} without epochs", "train by gradient (LinearProbe: FIT gradient)"
        if self.is_multi_label and what:
            dataset = self.cfg.DATASET.NAME
            raise UserError(f"{what} needs one class per image, but dataset {dataset} is multi-label; {remedy}")

    def templates(self) -> list[str]:
        """The prompt templates whose text features are averaged; a method may override this.

        By default the dataset's own template or, with `takes_ensemble`, its ensemble if it has one.
        """
        ensemble = list(self.dm.dataset.ensemble_templates) if self.takes_ensemble else []
        return ensemble or [self.template_by(self.cfg.TRAINER.NAME) or self.template]

    def template_by(self, method: str) -> str:
        """The template that a method's authors use for the dataset; "" if there is none, or DATASET.TEMPLATE is set."""
        if self.cfg.DATASET.TEMPLATE:
            return ""
        return dict(getattr(self.dm.dataset, "method_templates", ())).get(method, "")

    def steps_to_train(self) -> int:
        """Length of the training in steps; a method may override this.

        For a method with STEP_KEYS, STEPS_PER_SHOT steps per training image of a class; else OPTIM.MAX_EPOCH epochs.
        """
        if not (per_shot := self.method_cfg.get("STEPS_PER_SHOT", 0)):
            return self.cfg.OPTIM.MAX_EPOCH * self.epoch_steps
        shots = self.cfg.DATASET.NUM_SHOTS
        if shots < 1:  # all images: use the average number per class
            shots = math.ceil(len(self.dm.dataset.train_x) / self.num_classes)
        return per_shot * shots

    def epochs_to_train(self) -> int:
        """Length of the training in epochs; the last one may be partial."""
        return math.ceil(self.steps_to_train() / self.epoch_steps)

    def prepare_loss(self) -> None:
        """Compute what the loss needs besides the head; called after the head is built."""

    # ---- building -------------------------------------------------------------------------------------------------

    def build_model(self) -> None:
        self.max_epoch = self.epochs_to_train()
        devices.set_arithmetic()
        cfg = self.cfg
        self.clip = self.load_clip()
        self.features = self._feature_source()
        self.head = self.build_head().to(self.device)
        self.prepare_loss()
        if self.sigmoid and isinstance(self.head, CosineHead):
            bias = self.clip.logit_bias
            self.started_calibrated = bias is not None
            self.head.calibrate(bias=0.0 if bias is None else bias.item())
        if cfg.MODEL.INIT_WEIGHTS:
            self._load_init_weights(Path(cfg.MODEL.INIT_WEIGHTS))
        self.model = EncoderWithHead(self.clip, self.head, self.takes_states)
        trainable = [name for name, p in self.head.named_parameters() if p.requires_grad]
        if trainable:
            more = f" and {len(trainable) - 4} more" if len(trainable) > 4 else ""
            logger.info(f"Trainable: {', '.join(trainable[:4])}{more}")
            self.optim = build_optimizer(self.head, cfg.OPTIM)
            self.sched = self.build_schedule()
        self.scaler = torch.amp.GradScaler(self.device.type) if self._needs_scaler() else None
        self.register_model(self.model_name, self.head, self.optim, self.sched)
        self._use_features()

    def load_clip(self) -> Any:
        """Load the frozen CLIP, or a feature dataset's stand-in, and set ``self.precision`` to the resolved PREC."""
        clip, self.precision = frozen_clip(
            self.dm.dataset,
            self.cfg.MODEL.BACKBONE.NAME,
            self.method_cfg.PREC,
            self.device,
            method=self.cfg.TRAINER.NAME,
            only_encodes=not self.through_encoder,
        )
        return clip

    def _feature_source(self) -> FeatureSource:
        settings = self.cfg.DATASET.FEATURES
        return FeatureSource(
            self.dm.dataset,
            lambda images: self.encode_image(images),  # looked up at each call, because a script may replace it
            lambda images: self.encode_image_states(images),
            states=self.takes_states,
            backbone=self.clip.name,
            digest=f"{self.clip.digest}-{devices.cache_text(self.device, self.precision)}{self._encoder_description()}",
            device=self.device,
            folder=cache_folder(settings.DIR, settings.VIEWS),
            seed=settings.SEED,
            batch_size=settings.BATCH_SIZE,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            on_error=self.cfg.DATASET.ON_ERROR,
            seconds=self.seconds,
        )

    def _encoder_description(self) -> str:
        """A description of how a subclass changes the backbone's features, for the cache key."""
        encode = type(self).encode_image
        return "" if encode is FeatureTrainer.encode_image else f"-{describe(encode)}"

    def schedule_steps(self) -> int:
        """Steps that a schedule built now covers; overridden by methods that restart the schedule during training."""
        return self.steps_to_train()

    def build_schedule(self) -> Any:
        """The learning-rate schedule of ``self.optim``, over `schedule_steps`."""
        optim_cfg, epochs = self.cfg.OPTIM, self.schedule_steps() / self.epoch_steps
        if epochs != optim_cfg.MAX_EPOCH:
            optim_cfg = optim_cfg.clone()
            optim_cfg.defrost()
            optim_cfg.MAX_EPOCH = epochs  # not an integer if the last epoch is partial
        return build_lr_scheduler(self.optim, optim_cfg, self.epoch_steps if self.steps_by_batch else 1)

    def _load_init_weights(self, path: Path) -> None:
        """Load initial weights from the file MODEL.INIT_WEIGHTS, with classes matched by identity.

        They may come from another method with the same names and shapes, but not from another backbone.

        Raises:
            UserError: the method does not start from weights, or they do not match.
        """
        if not (self.has_epochs() and self.takes_init_weights):
            raise UserError(
                f"MODEL.INIT_WEIGHTS {path} has no effect on {self.cfg.TRAINER.NAME}, which does not start from "
                "weights; leave it out"
            )
        state = torchtools.load_checkpoint(path)
        weights, meta = state.get("state_dict", state), state.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        if not isinstance(weights, Mapping):
            raise UserError(f"MODEL.INIT_WEIGHTS {path} has no weights: its state_dict is a {type(weights).__name__}")
        checkpoint.check_backbone(meta, self.checkpoint_meta(), path)
        picked = self.adapt_state_dict(self.head, torchtools.strip_module_prefix(weights), meta, path)
        checkpoint.load_weights(self.head, picked, path)
        self.class_match = None  # describes the evaluated checkpoint, not the initial weights
        logger.info(f"Training starts from the weights in {path} (MODEL.INIT_WEIGHTS)")

    @property
    def epoch_steps(self) -> int:
        """Number of steps in a full epoch."""
        return max(1, len(self.train_loader_x))

    @property
    def steps_by_batch(self) -> bool:
        """Whether the learning rate changes after every batch rather than every epoch."""
        return self.cfg.OPTIM.SCHEDULE_UNIT == "batch"

    @property
    def classnames(self) -> list[str]:
        """The K class names in label order, as spelled in the dataset."""
        return list(self.dm.dataset.classnames)

    @property
    def template(self) -> str:
        """The dataset's own prompt template, with {} for the class name."""
        return self.cfg.DATASET.TEMPLATE or self.dm.dataset.template

    @property
    def text_cache(self) -> Path | None:
        """Cache folder for text features of the frozen CLIP, inside DATASET.FEATURES.DIR if that is set.

        None without a cache (VIEWS 0) or without a CLIP.
        """
        settings = self.cfg.DATASET.FEATURES
        return Path(settings.DIR or cache_root()) / "text" if settings.VIEWS and not self.features.is_file else None

    @property
    def trains_images(self) -> bool:
        """Whether the image encoder is trained; known once the head is built."""
        return not self.features.is_file and any(p.requires_grad for p in self.clip.visual.parameters())

    def _needs_scaler(self) -> bool:
        """Whether gradients are in half precision: with amp, and with fp16 if they run through an encoder."""
        through_encoder = self.through_encoder or getattr(self.head, "through_encoder", False)
        return self.device.type == "cuda" and self.precision in (("amp", "fp16") if through_encoder else ("amp",))

    def length_key(self) -> str:
        """The method's own key that sets the length of the training instead of OPTIM.MAX_EPOCH; "" if there is none."""
        return "STEPS_PER_SHOT" if self.method_cfg.get("STEPS_PER_SHOT") else ""

    def features_kept(self) -> str:
        """How long image features are kept: "disk", "run", or "never" if each step encodes its images."""
        return "never" if self.trains_images else "disk"

    def idle_keys(self) -> dict[str, str]:
        cfg, name = self.cfg, self.cfg.TRAINER.NAME
        optim = {**idle_in_schedule(cfg.OPTIM), **idle_in_optim(cfg.OPTIM)}
        idle = {f"OPTIM.{key}": why for key, why in optim.items()}
        if not self.features.is_file:
            idle |= {f"INPUT.{key}": why for key, why in idle_in_transforms(cfg).items()}
        sampler = cfg.DATALOADER.TRAIN_X.SAMPLER
        for unused_key, needed in (("N_DOMAIN", "RandomDomainSampler"), ("N_INS", "RandomClassSampler")):
            if sampler in SAMPLERS and sampler != needed:
                idle[f"DATALOADER.TRAIN_X.{unused_key}"] = f"SAMPLER is {sampler}"
        if self.features.is_file:
            idle["DATALOADER.NUM_WORKERS"] = "the dataset holds features, not images"
        elif self.trains_images:
            unused = ("DIR",) if self.features_kept() == "run" else ("SEED", "DIR", "BATCH_SIZE")
            reason = f"{name} trains the image encoder, so features are not kept"
            idle |= dict.fromkeys((f"DATASET.FEATURES.{key}" for key in unused), reason)
        elif cfg.DATASET.FEATURES.VIEWS:
            keys = ["DATALOADER.K_TRANSFORMS", "DATALOADER.RETURN_IMG0"]
            idle |= dict.fromkeys(keys, "images are replaced by their features (DATASET.FEATURES.VIEWS)")
        if not self.has_epochs():
            keys = ["OPTIM", "TRAIN", "DATALOADER.TRAIN_X", "TEST.FINAL_MODEL"]
            idle |= dict.fromkeys(keys, f"{name} trains without epochs")
        if "descriptions" not in vars(self):  # nothing has used them
            idle["DATASET.DESCRIPTIONS"] = f"{name} does not use class descriptions"
        if self.is_multi_label:
            idle["TEST.COMPUTE_CMAT"] = "images of the dataset have several classes"
        if length_key := self.length_key():
            value = self.method_cfg[length_key]
            reason = f"TRAINER.{self.node_name()}.{length_key} {value} sets the length of the training"
            idle |= dict.fromkeys(("OPTIM.MAX_EPOCH", "OPTIM.EPOCHS_BY_SHOTS"), reason)
        return idle | super().idle_keys()

    # ---- features -------------------------------------------------------------------------------------------------

    def _use_features(self) -> None:
        """Replace the image loaders with feature loaders, unless VIEWS is 0 or the image encoder is trained."""
        views = self.cfg.DATASET.FEATURES.VIEWS
        if self.trains_images:
            logger.info("The image encoder is trained: every step encodes its images, and DATASET.FEATURES is not used")
        if self.trains_images or (views == 0 and not self.features.is_file):
            for loader in (self.train_loader_x, self.test_loader, self.val_loader):
                if isinstance(loader, ImageLoader):
                    loader.device = self.device
            return
        data, dm, source = self.dm.dataset, self.dm, self.features
        train_views = views if is_random(dm.tfm_train) else 1
        self.train_loader_x = source.loader(
            dm.train_loader_x, data.train_x, dm.tfm_train, train_views, lambda: self.epoch
        )
        self.test_loader = source.loader(dm.test_loader, data.test, dm.tfm_test, kept_as="test")
        self.val_loader = source.loader(dm.val_loader, data.val, dm.tfm_test, kept_as="val")

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features (B, D), not normalised, of images (B, 3, H, W), in the run's precision.

        They require gradients if the image encoder is trained.
        """
        return self._encode(self.clip.encode_image, images)

    def encode_image_states(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (B, D), as from `encode_image`, and the states (B, W) before the encoder's last projection."""
        return self._encode(self.clip.encode_image_states, images)

    def _encode(self, encode: Callable[[Tensor], Any], images: Tensor) -> Any:
        with_gradients = torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_images)
        with with_gradients, self.autocast(), reports_wrong_size(self.clip, self.cfg.MODEL.BACKBONE.NAME, images):
            return encode(images.to(self.device))

    @torch.no_grad()
    def zero_shot_weights(self) -> Tensor:
        """Normalised text features (K, D) of the classes in float32: `text_rows`, normalised and averaged."""
        return self.text_rows().weights().float()

    @cached_property
    def descriptions(self) -> list[list[str]]:
        """The sentences for each class (K lists) from the file DATASET.DESCRIPTIONS; empty without one."""
        path = self.cfg.DATASET.DESCRIPTIONS
        if path and self.features.is_file:
            raise UserError(
                f"DATASET.DESCRIPTIONS needs a text encoder, but dataset {self.cfg.DATASET.NAME} holds features only; "
                "leave it out"
            )
        return read_descriptions(path, self.dm.dataset.classes) if path else []

    @torch.no_grad()
    def text_rows(self, *, verbatim: bool = False, projected: bool = True) -> TextRows:
        """Features of all classes' texts: their DATASET.DESCRIPTIONS, else their names in `templates()`.

        A method that gets its text features from here, or from `zero_shot_weights`, supports descriptions.

        Args:
            verbatim: keep underscores in class names.
            projected: if False, return the states (N, W) before the text projection.
        """
        path = self.cfg.DATASET.DESCRIPTIONS
        return class_texts(
            self.clip,
            self.classnames,
            [] if self.descriptions else self.templates(),
            self.descriptions,
            source=f"descriptions '{path}' (DATASET.DESCRIPTIONS)",
            cache=self.text_cache,
            verbatim=verbatim,
            projected=projected,
        )

    def autocast(self) -> Any:
        """The mixed-precision context for PREC amp; a no-op otherwise."""
        if self.precision != "amp":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=devices.autocast_type(self.device))

    def training_set(self, *, augmented: bool, views: int = 1) -> FeatureSet:
        """The features of all training images in dataset order, except unreadable ones.

        Args:
            augmented: return the views used in training instead of one view with the test transform.
            views: number of augmented views if DATASET.FEATURES.VIEWS is 0.

        Raises:
            UserError: there are no images.
        """
        loader, dm = self.train_loader_x, self.dm
        in_use = isinstance(loader, FeatureLoader) and (augmented or not is_random(dm.tfm_train))
        if not in_use:
            transform, views = (dm.tfm_train, views) if augmented else (dm.tfm_test, 1)
            loader = self.features.loader(dm.train_loader_x, dm.dataset.train_x, transform, views)
        features = loader.views if loader is not None else None  # triggers the extraction, after which `kept` is known
        if loader is None or features is None or not loader.kept.any():
            raise UserError(f"{self.cfg.TRAINER.NAME} needs training images: set DATASET.NUM_SHOTS to 1 or more")
        kept = loader.kept.to(features.device)
        return FeatureSet(features[:, kept].float().to(self.device), loader.labels[kept])

    @property
    def has_selection_set(self) -> bool:
        """Whether there are validation images that are not test images."""
        return self.val_loader is not None and bool(self.dm.dataset.val) and not validates_on_test(self.dm.dataset)

    def selection_set(self) -> FeatureSet | None:
        """The features of the validation images, for selecting hyper-parameters; None if there are none.

        ImageNet's validation images are used as test images in the field, so nothing may be selected on them.
        """
        if not self.has_selection_set:
            note = ": its validation images are test images" if self.dm.dataset.val else ""
            logger.info(f"{self.cfg.DATASET.NAME} has no validation set{note}")
            return None
        self.tuned_on = "val"
        batches = [self.parse_batch_test(batch) for batch in self.val_loader]
        features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return FeatureSet(features[None], labels)

    # ---- training and inference -----------------------------------------------------------------------------------

    @property
    def calibrated(self) -> bool:
        """Whether a logit of 0 means a probability of 1/2, as with a sigmoid loss or a SigLIP's bias."""
        return self.started_calibrated or self.loaded_loss == "sigmoid"

    @property
    def half_logit(self) -> float | None:
        """The logit of probability 1/2; None if no sigmoid defines it."""
        bias = None if self.sigmoid else self.clip.logit_bias
        return 0.0 if self.calibrated else None if bias is None else -bias.item()

    def enter_epoch(self) -> None:
        """Called before each epoch, for methods whose epochs differ."""

    def before_epoch(self) -> None:
        self.enter_epoch()
        if self.epoch == 0 and self.sigmoid and isinstance(self.head, CosineHead) and not self.calibrated:
            self._calibrate()
        self.started_calibrated |= self.sigmoid

    def _calibrate(self) -> None:
        """Initialise the sigmoid's scale and bias with the best fit to the training images."""
        log_factor, bias = platt_scaling(*self._logits_of(self.training_set(augmented=True)))
        self.head.calibration.data.copy_(torch.tensor([log_factor, bias]))
        logger.info(f"Sigmoid loss: training starts from logits times {math.exp(log_factor):.4f} {bias:+.4f}")

    @torch.no_grad()
    def _logits_of(self, data: FeatureSet) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and targets (N, K), bool; for very many images, of an even subsample."""
        step = max(1, len(data.labels) * self.num_classes // MAX_TO_CALIBRATE)
        features, labels = data.features[::step], data.labels[::step]
        self.set_model_mode("eval")
        with self.head.evaluating() if hasattr(self.head, "evaluating") else nullcontext():
            logits = torch.cat([self.model_inference(part.to(self.device)) for part in features.split(256)])
        return logits, class_targets(labels.to(self.device), self.num_classes)

    def test(self, split: str | None = None) -> float:
        if isinstance(self.evaluator, MultiLabelClassification):
            selects = split == "val" != self.cfg.TEST.SPLIT  # this test selects an epoch, by mAP
            self.evaluator.threshold = None if selects else self._choose_threshold()
        return super().test(split)

    def _choose_threshold(self) -> float | None:
        """The logit above which a class is predicted; never chosen on test images.

        It maximises micro-F1 on the validation images or, if there are none, on the training images. If there are only
        test images, it is the logit of probability 1/2, or None if no sigmoid defines it.
        """
        data, self.threshold_from = self.selection_set(), "val"
        if data is None and not getattr(self.dm.dataset, "test_only", False):
            data, self.threshold_from = self.training_set(augmented=False), "train"
        half = self.half_logit
        if data is None:
            self.threshold_from = ""
            if half is None:
                logger.warning(
                    "Skipping F1: its threshold is chosen on validation or training images, and there are none"
                )
            return half
        logits, targets = self._logits_of(data)
        if half is None:
            log_factor, bias = platt_scaling(logits, targets)
            half = -bias / math.exp(log_factor)
        return best_threshold(logits, targets, half)

    def epoch_batches(self) -> Iterator[tuple[Any, ...]]:
        """The epoch's batches, limited to the remaining steps."""
        return islice(super().epoch_batches(), self.steps_left())

    def steps_left(self) -> int:
        """Steps remaining at the start of this epoch."""
        return self.steps_to_train() - self.epoch * self.epoch_steps

    def step_cost(self) -> int | None:
        """The head's own cost, or an estimate from its number of weights; None if steps encode images."""
        if not getattr(self.train_loader_x, "gives_features", False):
            return None
        batch_size = getattr(self.train_loader_x, "batch_size", None) or self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        if (step_cost := getattr(self.head, "step_cost", None)) is not None:
            return step_cost(batch_size)
        return batch_size * sum(tensor.numel() for tensor in (*self.head.parameters(), *self.head.buffers()))

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float | Tensor]:
        features, label = self.parse_batch_train(batch)
        with self.autocast():
            logits, loss = self._forward_and_loss(features, label)
        try:
            self.model_backward_and_update(loss)
        except Exception as error:
            step = self._forward_and_loss
            if not (isinstance(step, CompiledStep) and step.may_have_failed(error)):
                raise
            with self.autocast():
                logits, loss = step(features, label)
            self.model_backward_and_update(loss)
        summary = {**self.loss_summary(loss), "acc": unread(compute_accuracy(logits, label)[0])}
        if self.steps_by_batch or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def forward_and_loss(self, features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B, K) of a training batch and its `batch_loss`: the part that TRAIN.COMPILE compiles."""
        logits = self.head(features)
        return logits, self.batch_loss(features, logits.float(), label)

    @cached_property
    def _forward_and_loss(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        step = self.forward_and_loss
        return compiled(step, self.device) if self.cfg.TRAIN.COMPILE and self.compiles_steps else step

    @property
    def compiles_steps(self) -> bool:
        # An overridden forward_backward may keep results from one step to the next, which CUDA graphs overwrite.
        return type(self).forward_backward is FeatureTrainer.forward_backward and not self.trains_images

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        if self.scaler is None:
            super().model_backward_and_update(loss, names)
            return
        self.detect_anomaly(loss)

        def backward(scaled: Tensor) -> None:
            self.model_zero_grad(names)
            self.compute_gradients(scaled, keep_graph=True)

        try:
            repeats = scaled_step(self.scaler, self.optim, loss, backward)
        except OverflowError:
            self.check_losses()
            where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
            raise self._not_finite(f"gradients are infinite or NaN at {where}, whatever the scale") from None
        if repeats and not self._has_reported_overflow:
            self._has_reported_overflow = True
            logger.info(
                f"Scaled gradients overflow in float16 (PREC {self.precision}): such steps are repeated with a smaller "
                "scale, so that none is skipped"
            )

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """(image features (B, D) in float32, labels (B,) or (B, K)); batches of images are encoded first."""
        if isinstance(batch.get("img"), list):
            raise UserError(f"{self.cfg.TRAINER.NAME} uses one version of each image; set DATALOADER.K_TRANSFORMS to 1")
        features = batch["feature"] if "feature" in batch else self.encode_inputs(batch["img"])
        return features.float(), batch["label"].to(self.device)

    @property
    def input_width(self) -> int:
        """The width of the head's input: D, or the width of the states."""
        return len(self.clip.image_projection.weight) if self.takes_states else self.clip.embed_dim

    def encode_inputs(self, images: Tensor) -> Tensor:
        """The head's input for images."""
        return self.encode_image_states(images)[1] if self.takes_states else self.encode_image(images)

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        return self.parse_batch_train(batch)

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits (B, K) for image features (B, D)."""
        with self.autocast():
            return self.head(input).float()

    def linear_head(self) -> LinearForm | None:
        """The head as a matrix, if it is linear in the image features or in the normalised image features."""
        if type(self).model_inference is not FeatureTrainer.model_inference:
            return None
        return linear_form(self.head, self.input_width)

    @property
    def changes_images(self) -> bool:
        """Whether the image encoder differs from the backbone's, so that the head does not fit other features."""
        return self.trains_images or self.takes_states or bool(self._encoder_description())

    @property
    def is_transductive(self) -> bool:  # type: ignore[override]  # depends on the config
        return bool(self.cfg.TEST.TRANSDUCTIVE)

    @property
    def method_label(self) -> str:
        name = self.cfg.TRAINER.NAME
        return f"{name} + TransCLIP (transductive)" if self.is_transductive else str(name)

    def inferred(self, loader: Any, split: str) -> Iterator[tuple[Any, Any]]:
        """In a transductive run, collects all images of the test split and yields the logits from `transduce`."""
        if not self.is_transductive or split != self.cfg.TEST.SPLIT:  # this test selects an epoch
            yield from super().inferred(loader, split)
            return

        def infer(batch: dict[str, Any]) -> tuple[Any, Tensor]:
            input, label = self.parse_batch_test(batch)
            return (self.embed(input), self.model_inference(input)), label

        batches = [(*both, label) for both, label in outputs(loader, infer)]
        features, logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        logger.info(f"Transductive: {count_images(len(labels))} are classified together, unlabelled (TransCLIP)")
        yield from zip(self.transduce(features, logits).split(256), labels.split(256), strict=True)

    def embed(self, input: Tensor) -> Tensor:
        """The features (B, D), not necessarily normalised, with which a transductive run compares images."""
        return input

    @torch.no_grad()
    def transduce(self, features: Tensor, logits: Tensor) -> Tensor:
        """Logits (n, K) for all images of a split, predicted jointly.

        Args:
            features: features (n, D) from `embed`.
            logits: the method's own logits (n, K).
        """
        return log_shares(Mixture(features, logits).fit())

    @torch.no_grad()
    def zero_shot(self, split: str | None = None) -> float | None:
        """Accuracy, or mAP, in percent of CLIP without adaptation: the dataset's own template, cosine similarity.

        None for a feature file without text features, or without images to test on.
        """

        def compute() -> float | None:
            batches = self._zero_shot_cosines(split)
            if batches is None:
                return None
            return zero_shot.mean_average_precision(batches) if self.is_multi_label else zero_shot.accuracy(batches)

        if not (self.features.shares and self.has_texts and distributed.world_size() == 1):
            return compute()
        loader = self._split_loader(split)
        source = type(self).parse_batch_test, self.takes_states, getattr(loader, "batch_size", None)
        return zero_shot.shared_between_runs(loader, self.plain_prototypes, source, compute)

    @torch.no_grad()
    def zero_shot_by_class(self, split: str | None = None) -> tuple[Tensor, Tensor] | None:
        """For `zero_shot`, the number of images per class, (K,) int64, and how many are classified correctly.

        None if `zero_shot` is None, and on multi-label data.
        """
        batches = None if self.is_multi_label else self._zero_shot_cosines(split)
        return None if batches is None else zero_shot.counts_by_class(batches, self.num_classes)

    def _zero_shot_cosines(self, split: str | None) -> Iterator[tuple[Tensor, Tensor]] | None:
        """Cosines (B, K) and labels of each batch; None without text features or images."""
        if not self.has_texts:
            return None
        loader = self._split_loader(split)
        if loader is None:
            zero_shot.skip_loader_seed()  # so that training does not depend on whether there are test images
            return None

        def parse(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
            features, label = self.parse_batch_test(batch)
            return self.clip.image_projection(features) if self.takes_states else features, label

        return zero_shot.cosine_batches(loader, self.plain_prototypes(), parse)

    def _split_loader(self, split: str | None) -> Any:
        return self.val_loader if (split or self.cfg.TEST.SPLIT) == "val" else self.test_loader

    @property
    def has_texts(self) -> bool:
        """Whether there are text features; a feature file may have none."""
        return not isinstance(self.clip, PrecomputedBackbone) or bool(self.clip.prompts)

    @torch.no_grad()
    def plain_prototypes(self) -> Tensor:
        """Normalised text features (K, D) for the dataset's own template, in float32: zero-shot CLIP's prototypes."""
        weights = class_weights(self.clip, self.classnames, [self.template], self.text_cache).float().to(self.device)
        return F.normalize(weights, dim=-1)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def write_found(self, found: Any, name: str) -> None:
        """Store plain values that the method has found as a JSON file called ``name`` beside its checkpoints."""
        if distributed.rank() == 0:
            write_json(found, Path(self.output_dir) / self.model_name / name)

    def method_results(self) -> dict[str, Any]:
        """The plain values that a method adds to ``results.json``."""
        return {}

    def run_results(self) -> dict[str, Any]:
        results = super().run_results()
        results |= self.method_results()
        results["arithmetic"] = devices.describe_arithmetic(self.device, self.precision)
        if isinstance(self.evaluator, MultiLabelClassification):
            results |= {"threshold": self.evaluator.threshold, "threshold_from": self.threshold_from}
        return results

    def checkpoint_meta(self) -> dict[str, Any]:
        return {
            **super().checkpoint_meta(),
            "backbone": self.clip.name,
            "backbone_digest": self.clip.digest,
            "precision": self.clip.precision,
            "template": self.template,
            "transform": describe(self.dm.tfm_test),
            **({"loss": "sigmoid"} if self.sigmoid else {}),
            **getattr(self.head, "meta", {}),
        }

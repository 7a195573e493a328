"""Small parts of Dassl that nothing else here needs, for code that imports them from Dassl's modules.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torch.optim import Optimizer
from torchvision.models import get_model_weights

from dassl_lite.config import CN
from dassl_lite.data.transforms import augmentations, build_transform
from dassl_lite.networks.ops import ReverseGrad

__author__ = "the dassl-lite developers"
__homepage__ = "https://github.com/dassl-lite/dassl-lite"

_ARCHITECTURES = ["alexnet", "mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16"]
_ARCHITECTURES += ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"]
# Where the weights of image networks are published, by name; ShuffleNet also under Dassl's names.
model_urls = {name: get_model_weights(name)["IMAGENET1K_V1"].url for name in _ARCHITECTURES}
model_urls |= {
    name.replace("net_v2", "netv2").replace("0_5", "0.5").replace("_0", ".0").replace("_5", ".5"): url
    for name, url in model_urls.items()
    if name.startswith("shuffle")
}


def adjust_learning_rate(
    optimizer: Optimizer,
    base_lr: float,
    epoch: int,
    stepsize: int = 20,
    gamma: float = 0.1,
    linear_decay: bool = False,
    final_lr: float = 0,
    max_epoch: int = 100,
) -> None:
    """Set the learning rate of ``epoch``: linear from ``base_lr`` to ``final_lr``, or times ``gamma`` every
    ``stepsize`` epochs."""
    progress = epoch / max_epoch
    rate = progress * final_lr + (1 - progress) * base_lr if linear_decay else base_lr * gamma ** (epoch // stepsize)
    for group in optimizer.param_groups:
        group["lr"] = rate


def set_bn_to_eval(m: nn.Module) -> None:
    """Stop a batch norm from updating its statistics; for ``model.apply``."""
    if "BatchNorm" in type(m).__name__:
        m.eval()


def init_pretrained_weights(model: nn.Module, model_url: str) -> None:
    """Load the weights at a URL whose names are in the model."""
    model.load_state_dict(load_state_dict_from_url(model_url), strict=False)


def reverse_grad(input: Tensor, grad_scaling: float) -> Tensor:
    """Return ``input`` unchanged; its gradient is reversed and scaled."""
    return ReverseGrad()(input, grad_scaling)


def Flip(img: Image.Image, _: Any) -> Image.Image:  # noqa: N802 (Dassl's name)
    """The mirror image."""
    return ImageOps.mirror(img)


def _build_transform_train(cfg: CN, choices: Sequence[str], target_size: str, normalize: Any) -> Any:
    return build_transform(cfg, is_train=True, choices=choices)


def _build_transform_test(cfg: CN, choices: Sequence[str], target_size: str, normalize: Any) -> Any:
    return build_transform(cfg, is_train=False, choices=choices)


def randaugment_list() -> list[augmentations.Operation]:
    """Operations of RandAugment, each with its least and largest magnitude."""
    return list(augmentations.ORIGINAL)


def randaugment_list2() -> list[augmentations.Operation]:
    """Operations of RandAugment2."""
    return list(augmentations.SECOND)


def fixmatch_list() -> list[augmentations.Operation]:
    """Operations of RandAugmentFixMatch."""
    return list(augmentations.FIXMATCH)

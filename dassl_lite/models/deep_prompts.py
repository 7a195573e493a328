"""Deep prompts: learned tokens in the inputs of several of an encoder's blocks, not only the first.

Papers: VPT, https://arxiv.org/abs/2203.12119; MaPLe, https://arxiv.org/abs/2210.03117 (text, and both encoders)

    text     block 0: [start] [ctx] [name] [.] [end]          then the n rows after the start are replaced
    vision   block 0: [class] [patches] ln_pre([tokens])      then the n rows at the end are replaced

Block i of the first ``depth`` replaces them in its input, before its own norm, by tokens of its own; later blocks keep
what comes. Tokens have no position in the image encoder; the context has its positions in the text encoder's first
block, and no others. Images are read at the class token, so their tokens act only through attention.

Shapes: B images, n tokens, W width of an encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from dassl_lite.models.image_tower import takes_prompts
from dassl_lite.models.prompt_learner import STD, PromptLayout, PromptLearner
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    from dassl_lite.models.clip import CLIPBackbone

logger = get_logger(__name__)

Prompts = TypeVar("Prompts", bound=nn.Module)


def drawn(n: int, width: int) -> nn.Parameter:
    """n randomly initialised tokens (n, W)."""
    return nn.Parameter(torch.empty(n, width).normal_(std=STD))


def within(depth: int, blocks: int, encoder: str, setting: str) -> int:
    """How many of an encoder's ``blocks`` are prompted: ``depth``, or all, with a warning, if it has fewer.

    Args:
        encoder: "text" or "image".
        setting: the config key that sets ``depth``.
    """
    if depth > blocks:
        logger.info(f"{setting} is {depth}, but the {encoder} encoder has {blocks} blocks: all of them are prompted")
    return min(depth, blocks)


class VisionPrompts(nn.Module):
    """n tokens (n, W) for each of an image encoder's first ``depth`` blocks.

    Args:
        visual: the image encoder.
        n: tokens per block.
        depth: at most the number of its blocks.

    Attributes:
        active: if False, the encoder runs without prompts.
    """

    active = True

    def __init__(self, visual: Any, n: int, depth: int) -> None:
        super().__init__()
        width = visual.class_embedding.shape[-1]
        self.tokens = nn.ParameterList(drawn(n, width) for _ in range(depth))

    def forward(self) -> list[Tensor]:
        """The tokens (n, W) of the blocks, from the first one on."""
        return list(self.tokens)


def require_vision(clip: CLIPBackbone, remedy: str = "") -> None:
    """Raise a UserError if the image encoder takes no prompts."""
    if not takes_prompts(clip.model):
        raise UserError(
            f"the image encoder of backbone {clip.name} is not a ViT of open_clip with a class token, so it takes no "
            f"prompts; use a ViT such as ViT-B/16{remedy}"
        )


def prompt_vision(clip: CLIPBackbone, prompts: Prompts) -> Prompts:
    """Have the image encoder use ``prompts`` from now on; returns them."""
    require_vision(clip)
    clip.visual.vision_prompts = prompts
    return prompts


class DeepPromptLearner(PromptLearner):
    """Prompts with a learned context, and tokens that replace it in the inputs of the text encoder's next blocks.

    Args:
        clip, layout, options: as `PromptLearner` takes them.
        depth: blocks with their own tokens, including the first one. Blocks that the encoder does not have get no
            gradient.
        vision: the image encoder's tokens, if they are learned too.
    """

    def __init__(
        self, clip: CLIPBackbone, layout: PromptLayout, depth: int, vision: VisionPrompts | None = None, **options: Any
    ) -> None:
        super().__init__(clip, layout, **options)
        self.deep = nn.ParameterList(drawn(layout.n_ctx, clip.text.width) for _ in range(depth - 1))
        self.vision = vision

    def class_prototypes(self) -> Tensor:
        depth = self._text.depth if len(self.deep) else 0
        return self.encode(self.ctx, {number: rows for number, rows in enumerate(self.deep, 1) if number < depth})

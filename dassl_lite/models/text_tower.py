"""CLIP's text encoder, exact and fast.

What open_clip computes for K prompts of 77 tokens is mostly wasted: positions behind the end token reach
nothing, the first tokens are the same in every prompt, and in the last layer only the end token's state is
read. `TextTower` computes the rest, over the modules of the model itself, with the same result.

    tower.encode_tokens(tokens)                       (N, L) ids  ->  (N, D): zero-shot prompts, templates
    tower.encode_prompts(prefix, suffix, lengths)     embeddings  ->  (K, D) or (B, K, D): learned prompts

    CoOp, class token at the end:   prefix = [start, context] (P, W),     suffix = [name, ".", end, 0...] (K, S, W)
    CoOp, middle or front:          prefix = [start, first half], [start] suffix = [name, context, ".", end, 0...]
    CoOp, a context per class:      prefix = [start],                     suffix = [context, name, ".", end, 0...]
    CoCoOp, B images:               prefix = [start, context] (B, P, W),  suffix as in CoOp

Shapes: N texts, L tokens, K classes, B images, P and S tokens of prefix and suffix, W width of the encoder,
D width of the features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from dassl_lite.models import text_layers
from dassl_lite.models.text_layers import Pack, pack, share_prefixes
from dassl_lite.utils.errors import UserError

logger = logging.getLogger(__name__)

# What a separate pass, or a separate block in the attention, costs in rows of a layer, by kind of device: on a
# CPU a row takes a tenth of a millisecond, on a GPU it is nothing beside the launch of a kernel.
_PASS_ROWS = {"cpu": 32}
_BLOCK_ROWS = {"cpu": 16}
_ROWS_ON_GPU = 4096
_MAX_ROWS = {"cpu": 16384}  # rows in one go where no chunk is asked for: the transient memory
_MAX_ROWS_ON_GPU = 262144
_CHECKPOINT_SHARE = 8  # with checkpointing, the rows in one go are what memory holds: fewer of them


class TextModules:
    """Embedding, layers, norm and projection of a text encoder. N texts, L tokens, W width, D width of features.

    Not a module: it has no parameters of its own and reads those of `model`, so a module that was replaced
    there (LoRA), moved or changed counts at once.

    Args:
        model: open_clip's `CLIP` or `CustomTextCLIP`. A text encoder that is not causal, or not open_clip's
            own, still encodes tokens, through its own `encode_text`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        text = getattr(model, "text", None)
        self._text: Any = model if text is None else text
        pool = getattr(self._text, "text_pool_type", None) or getattr(self._text, "pool_type", None)
        self._pool = pool or "argmax"
        causal = getattr(self._text, "attn_mask", None) is not None and getattr(self._text, "cls_emb", None) is None
        own = text is None or isinstance(text, TextTransformer)
        self.is_causal: bool = own and causal and self._pool in ("argmax", "eos")
        if not self.is_causal:
            logger.info("The text encoder is not CLIP's own kind: it runs as it is, and takes no learned prompts")

    @property
    def blocks(self) -> Any:
        """The layers, an `nn.ModuleList`."""
        return self._text.transformer.resblocks

    @property
    def width(self) -> int:
        """W, the width of token embeddings."""
        return self._text.token_embedding.weight.shape[1]

    @property
    def embed_dim(self) -> int:
        """D, the width of the features."""
        own = self._text.text_projection if self.is_causal else None
        if own is None:
            return self._text.output_dim if not self.is_causal else self.width
        return own.out_features if isinstance(own, nn.Linear) else own.shape[1]

    @property
    def projection(self) -> Tensor:
        """(W, D), the matrix that makes features of end states; the identity where a model has none."""
        self.require_prompts()
        own = self._text.text_projection
        if isinstance(own, nn.Linear):
            if own.bias is not None:
                raise UserError("this backbone's text projection has a bias, so another matrix cannot replace it")
            return own.weight.t()
        return torch.eye(self.width, device=self.device) if own is None else own

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt can have, start and end included."""
        return self._text.context_length

    @property
    def dtype(self) -> torch.dtype:
        """In which the layers compute."""
        return self._text.transformer.get_cast_dtype()

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (..., W) of ids (...), without positions: what prefix and suffix are made of."""
        self.require_prompts()
        return self._text.token_embedding(tokens.to(self.device)).to(self.dtype)

    def ends(self, tokens: Tensor) -> Tensor:
        """Where the end token of each text stands: (N,) from ids (N, L)."""
        if self._pool == "argmax":
            return tokens.argmax(dim=-1)
        end: int = getattr(self._text, "text_eos_id", None) or self._text.eos_id
        return tokens.eq(end).int().argmax(dim=-1)

    def positions(self, places: Tensor) -> Tensor:
        """Positional embeddings (n, W) of places (n,)."""
        return self._text.positional_embedding[places].to(self.dtype)

    def project(self, states: Tensor, projection: Tensor | None) -> Tensor:
        """Features (..., D) of normed end states (..., W), through `projection` (W, D) or the model's own."""
        own = self._text.text_projection
        if projection is not None:
            return states @ projection.to(states)
        if own is None:
            return states
        return own(states) if isinstance(own, nn.Linear) else states @ own

    def require_prompts(self) -> None:
        """Raise UserError where the encoder cannot take prompts as embeddings."""
        if not self.is_causal:
            raise UserError("this backbone's text encoder is not CLIP's own kind, so it cannot take learned prompts")


class TextTower(TextModules):
    """See the module's own text for what it does; `TextModules` for what it takes."""

    _told = False

    def encode_tokens(
        self,
        tokens: Tensor,
        *,
        project: bool = True,
        projection: Tensor | None = None,
        chunk: int = 0,
        checkpoint: bool = False,
    ) -> Tensor:
        """Features (N, D), not normalised, of token ids (N, L).

        Args:
            project: False gives the states (N, W) before the text projection.
            projection: (W, D) in place of the model's own.
            chunk: texts in one go, at most; 0 chooses by memory.
            checkpoint: recompute activations in the backward pass, chunk by chunk, to save memory.
        """
        if not self.is_causal:
            if projection is not None or not project:
                self.require_prompts()
            parts = [part.to(self.device) for part in tokens.split(chunk or 256)]
            return torch.cat([_run(checkpoint, self.model.encode_text, part) for part in parts])
        prompts = [tuple(row[: end + 1]) for row, end in zip(tokens.tolist(), self.ends(tokens).tolist(), strict=True)]
        states: list[Tensor] = []
        order: list[int] = []
        groups = [(0, list(range(len(prompts))))] if prompts else []  # whole prompts share no prefix: one pass
        if self._can_share():
            groups = share_prefixes(prompts, _PASS_ROWS.get(self.device.type, _ROWS_ON_GPU))
        for shared, members in groups:
            lengths = [len(prompts[i]) - shared for i in members]
            suffix = tokens[members, shared : shared + max(lengths)]
            prefix = self.embed(tokens[members[0], :shared])
            states.append(self._states(prefix[None], self.embed(suffix), tuple(lengths), chunk, checkpoint)[0])
            order += members
        if not states:
            raise ValueError("no texts to encode")
        ordered = torch.cat(states)[torch.tensor(order, device=self.device).argsort()]
        return self.project(ordered, projection) if project else ordered

    def encode_prompts(
        self,
        prefix: Tensor,
        suffix: Tensor,
        lengths: Sequence[int],
        *,
        project: bool = True,
        projection: Tensor | None = None,
        chunk: int = 0,
        checkpoint: bool = False,
    ) -> Tensor:
        """Features, not normalised, of prompts given as embeddings without positions.

        Args:
            prefix: (P, W) first tokens of every prompt; or (B, P, W), each image's own. P may be 0.
            suffix: (K, S, W) the tokens that follow; what stands behind a length is not read.
            lengths: K numbers: tokens of each suffix up to and with its end token.
            project, projection, chunk, checkpoint: as in `encode_tokens`, with classes for texts.

        Returns:
            (K, D); or (B, K, D) for a prefix per image. Differentiable in prefix, suffix and whatever
            parameters of the model require gradients.
        """
        self.require_prompts()
        sizes = tuple(int(length) for length in lengths)
        self._check(prefix, suffix, sizes)
        images = prefix if prefix.dim() == 3 else prefix[None]
        states = self._states(images, suffix, sizes, chunk, checkpoint)
        features = self.project(states, projection) if project else states
        return features if prefix.dim() == 3 else features[0]

    def _states(self, prefix: Tensor, suffix: Tensor, lengths: tuple[int, ...], chunk: int, checkpoint: bool) -> Tensor:
        """Normed end states (B, K, W)."""
        if self._can_share():
            states = self._shared(prefix, suffix, lengths, chunk, checkpoint)
        else:
            states = self._plain(prefix, suffix, lengths, chunk, checkpoint)
        return self._text.ln_final(states)

    def _can_share(self) -> bool:
        """Whether every layer is one whose arithmetic this module knows."""
        return all(text_layers.is_plain(block) for block in self.blocks)

    def _shared(self, prefix: Tensor, suffix: Tensor, lengths: tuple[int, ...], chunk: int, checkpoint: bool) -> Tensor:
        """End states (B, K, W): the prefix once, then the suffixes chunk by chunk against it."""
        memory = self._prefix(prefix)
        chunk = chunk or self._fitting(max(lengths) * prefix.shape[0], checkpoint)
        slack = _BLOCK_ROWS.get(self.device.type, _ROWS_ON_GPU)
        flat = suffix.to(self.dtype).flatten(0, 1)
        states, classes = [], []
        for part in pack(lengths, suffix.shape[1], chunk, slack, self.device):
            rows = flat[part.source] + self.positions(prefix.shape[1] + part.offset)
            states.append(_run(checkpoint, self._suffixes, rows[None], memory, part))
            classes.append(part.classes)
        joined = torch.cat(states, dim=1)[:, torch.cat(classes).argsort()]
        return joined.expand(len(prefix), -1, -1)  # an empty prefix leaves nothing that is an image's own

    def _fitting(self, rows: int, checkpoint: bool) -> int:
        """How many classes of so many rows each go through the layers at a time, where nobody says."""
        fit = _MAX_ROWS.get(self.device.type, _MAX_ROWS_ON_GPU) // (_CHECKPOINT_SHARE if checkpoint else 1)
        return max(1, fit // rows)

    def _prefix(self, prefix: Tensor) -> list[text_layers.KeysValues] | None:
        """Keys and values of the prefix (B, P, W) in every layer; None for an empty one."""
        if not prefix.shape[1]:
            return None
        x = prefix.to(self.dtype) + self.positions(torch.arange(prefix.shape[1], device=self.device))
        memory: list[text_layers.KeysValues] = []
        for block in self.blocks[:-1]:
            x, keys_values = text_layers.prefix_layer(block, x)
            memory.append(keys_values)
        return [*memory, text_layers.prefix_keys_values(self.blocks[-1], x)]

    def _suffixes(self, x: Tensor, memory: list[text_layers.KeysValues] | None, part: Pack) -> Tensor:
        """End states (B, n, W) of packed rows (1, R, W)."""
        layers = list(self.blocks)
        per_layer = memory if memory is not None else [None] * len(layers)
        for block, prefix in zip(layers[:-1], per_layer[:-1], strict=True):
            x = text_layers.suffix_layer(block, x, prefix, part)
        return text_layers.last_layer(layers[-1], x, per_layer[-1], part)

    def _plain(self, prefix: Tensor, suffix: Tensor, lengths: tuple[int, ...], chunk: int, checkpoint: bool) -> Tensor:
        """End states (B, K, W) through the model's own transformer: for layers that somebody replaced, hooked or
        built in another way, or whose dropout acts (LoRA's in training).

        Dropout draws its masks chunk by chunk, layer by layer: another chunk gives other masks, of the same kind,
        since no two prompts share one. Checkpointing draws the same masks twice, so it changes nothing.
        """
        if not self._told:
            logger.info(
                "Prompts run whole through the text encoder, without a shared prefix: its layers are not CLIP's, or "
                "each prompt draws its own dropout masks"
            )
            self._told = True
        chunk = chunk or self._fitting(prefix.shape[1] + max(lengths), checkpoint)
        parts = []
        for first in range(0, len(lengths), chunk):
            own = lengths[first : first + chunk]
            parts.append((suffix[first : first + chunk, : max(own)], torch.tensor(own, device=self.device)))
        states = [torch.cat([_run(checkpoint, self._whole, image, *part) for part in parts]) for image in prefix]
        return torch.stack(states)

    def _whole(self, prefix: Tensor, suffix: Tensor, lengths: Tensor) -> Tensor:
        """End states (n, W) of whole prompts: a prefix (P, W) and n suffixes (n, S, W) with so many tokens (n,)."""
        rows = torch.cat([prefix.expand(len(suffix), -1, -1), suffix], dim=1).to(self.dtype)
        length = rows.shape[1]
        rows = rows + self.positions(torch.arange(length, device=self.device))
        states = self._text.transformer(rows, attn_mask=self._text.attn_mask[:length, :length])
        return states[torch.arange(len(suffix)), prefix.shape[0] + lengths - 1]

    def _check(self, prefix: Tensor, suffix: Tensor, lengths: tuple[int, ...]) -> None:
        if len(lengths) != len(suffix) or not lengths or not 0 < min(lengths) <= max(lengths) <= suffix.shape[1]:
            raise ValueError(f"lengths {lengths[:5]}... do not fit a suffix of shape {tuple(suffix.shape)}")
        if prefix.shape[-2] + max(lengths) > self.context_length:
            raise UserError(
                f"a prompt has {prefix.shape[-2] + max(lengths)} tokens where {self.context_length} fit: "
                "fewer context tokens or shorter class names"
            )


def _run(checkpoint: bool, compute: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``compute(*inputs)``; with ``checkpoint``, its activations are computed again in the backward pass."""
    if checkpoint and torch.is_grad_enabled():
        return recompute(compute, *inputs, use_reentrant=False)
    return compute(*inputs)

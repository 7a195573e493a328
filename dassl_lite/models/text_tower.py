"""CLIP's text encoder, exact and fast.

Most of what open_clip computes for K prompts of 77 tokens is wasted: positions after the end token influence nothing,
the first tokens are the same in every prompt, and in the last layer only the end token's state is read. `TextTower`
computes only the rest, with the model's own modules and the same result. Encoders of another kind (not causal, pooled
elsewhere than at the end token, or Hugging Face's) run as they are: prompts go through them whole, with their padding.

    tower.encode_tokens(tokens)                       (N, L) ids  ->  (N, D): zero-shot prompts, templates
    tower.encode_prompts(prefix, suffix, lengths)     embeddings  ->  (K, D) or (B, K, D): learned prompts

    CoOp, class token at the end:   prefix = [start, context] (P, W),     suffix = [name, ".", end, 0...] (K, S, W)
    CoOp, middle or front:          prefix = [start, first half], [start] suffix = [name, context, ".", end, 0...]
    CoOp, a context per class:      prefix = [start],                     suffix = [context, name, ".", end, 0...]
    CoCoOp, B images:               prefix = [start, context] (B, P, W),  suffix as in CoOp
    deep prompts (MaPLe, TCP):      deep = {block: (n, W) or (K, n, W)}, rows that replace others in a block's input

Shapes: N texts, L tokens, K classes, B images, P and S tokens of prefix and suffix, W width of the encoder,
D width of the features.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dassl_lite.models import text_layers
from dassl_lite.models.own_forward import OwnForward, RowsOfPrompts, on_device, run
from dassl_lite.models.text_layers import DeepRows, KeysValues, Pack, pack, share_prefixes
from dassl_lite.utils.errors import UserError
from dassl_lite.utils.logger import get_logger

if TYPE_CHECKING:
    import open_clip

logger = get_logger(__name__)

# Cost of another pass, or of another rectangle in the attention, in rows of a layer, by type of device: on a CPU a row
# takes a tenth of a millisecond, on a GPU it is negligible compared with launching a kernel.
_PASS_ROWS = {"cpu": 32}
_BLOCK_ROWS = {"cpu": 16}
_ROWS_ON_GPU = 4096
_MAX_ROWS = {"cpu": 16384}  # rows per chunk if no chunk size is given; limits the transient memory
_MAX_ROWS_ON_GPU = 262144
_CHECKPOINT_SHARE = 8  # with checkpointing, memory holds one chunk's activations, so chunks are that much smaller
_NOTHING_DEEP = DeepRows({})


@dataclass(frozen=True)
class _Pass:
    """Texts that go through the layers together, on the device.

    Attributes:
        prefix: (P,) ids that all texts begin with.
        suffix: (n, S) ids that follow.
        lengths: n numbers: tokens of each suffix up to and including its end token.
    """

    prefix: Tensor
    suffix: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class _Memory:
    """What suffixes need from their prefix.

    Attributes:
        layers: keys and values in every layer; None where the prefix is empty.
        parting: layer in whose input deep prompts end what the prompts have in common; the depth if none does.
        rows: (B, m, W), the states of the prefix there that are each suffix's own from then on.
        at: where deep rows then begin in a suffix.
    """

    layers: list[KeysValues | None]
    parting: int
    rows: Tensor | None
    at: int


class Texts:
    """Texts that are encoded repeatedly: what depends only on their ids is computed once and kept on the device.

    Args:
        tokens: (N, L) ids.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        # With and without shared prefixes, by device.
        self.passes: dict[tuple[bool, torch.device], tuple[list[_Pass], Tensor]] = {}
        self._moved = tokens

    def on(self, device: torch.device) -> Tensor:
        """The ids on a device."""
        self._moved = self._moved.to(device)
        return self._moved


class TextTower:
    """The text encoder of an open_clip model, whichever of its classes contains it.

    Not a module: it has no parameters of its own and reads the model's, so replacing (LoRA),
    moving or changing a module takes effect at once.

    Args:
        model: open_clip's `CLIP`, `CustomTextCLIP` or `CoCa`.

    Attributes:
        is_causal: the encoder is of CLIP's kind, so padding and common beginnings need no computation. Others encode
            tokens and prompts with their own `encode_text`.
    """

    _warned = False

    def __init__(self, model: open_clip.CLIP | open_clip.CustomTextCLIP) -> None:
        from open_clip.transformer import TextTransformer

        self.model = model
        custom = getattr(model, "text", None)
        self._text = model if custom is None else custom
        pool = getattr(self._text, "text_pool_type", None) or getattr(self._text, "pool_type", None)
        self._pool = pool or "argmax"
        self._own = OwnForward(model)
        causal = getattr(self._text, "attn_mask", None) is not None and getattr(self._text, "cls_emb", None) is None
        is_open_clips = custom is None or isinstance(custom, TextTransformer)
        self.is_causal: bool = is_open_clips and causal and self._pool in ("argmax", "eos")
        if not self.is_causal:
            logger.info("This text encoder is not of CLIP's kind: prompts run through it whole, with their padding")

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self._text.transformer.resblocks

    @property
    def depth(self) -> int:
        """Number of blocks that deep prompts can enter.

        Raises:
            UserError: the encoder has no blocks of open_clip's.
        """
        if not hasattr(getattr(self._text, "transformer", None), "resblocks"):
            raise UserError("this backbone's text encoder has no blocks of open_clip's, so it takes no deep prompts")
        return len(self.blocks)

    @property
    def width(self) -> int:
        """W, the width of token embeddings."""
        return self._own.embedding.weight.shape[1]

    @property
    def embed_dim(self) -> int:
        """D, the width of the features."""
        matrix = self._own.projection
        if matrix is None:
            return self.width
        return matrix.out_features if isinstance(matrix, nn.Linear) else matrix.shape[1]

    @property
    def projection(self) -> Tensor:
        """(W, D), the matrix that maps states to features; the identity if the model has none.

        If a Hugging Face encoder's projection has several layers, the matrix of the last one, whose input may
        be wider or narrower than token embeddings.
        """
        matrix = self._own.projection
        if matrix is None:
            return torch.eye(self.width, device=self.device)
        return matrix.weight.t() if isinstance(matrix, nn.Linear) else matrix

    @property
    def projection_bias(self) -> Tensor | None:
        """(D,), added behind the projection (SigLIP); None if the model has none."""
        return getattr(self._own.projection, "bias", None)

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a prompt, including start and end; a Hugging Face encoder may take fewer."""
        return self._text.context_length

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the layers compute; for a Hugging Face encoder, the dtype of its embeddings."""
        own = getattr(self._text.transformer, "get_cast_dtype", None)
        return own() if own is not None else self._own.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (..., W) of ids (...), without positions: the material of prefix and suffix."""
        return self._own.embedding(tokens.to(self.device)).to(self.dtype)

    def ends(self, tokens: Tensor) -> Tensor:
        """Position of each text's end token: (N,) from ids (N, L)."""
        if self._pool == "argmax":
            return tokens.argmax(dim=-1)
        end: int = getattr(self._text, "text_eos_id", None) or self._text.eos_id
        return tokens.eq(end).int().argmax(dim=-1)

    def positions(self, indices: Tensor) -> Tensor:
        """Positional embeddings (n, W) of positions (n,)."""
        return self._text.positional_embedding[indices].to(self.dtype)

    def project(self, states: Tensor, projection: Tensor | None) -> Tensor:
        """Features (..., D) of normalised end states (..., W), with `projection` (W, D) or the model's own."""
        matrix, bias = self._own.projection, self.projection_bias
        if projection is not None:
            features = states @ projection.to(states)
            return features if bias is None else features + bias.to(states)
        if matrix is None:
            return states
        return matrix(states) if isinstance(matrix, nn.Linear) else states @ matrix

    @property
    def special_ids(self) -> set[int]:
        """Ids with a meaning to the encoder itself: padding, end of the text."""
        config = getattr(self._text, "config", None)
        named = [getattr(self._text, name, None) for name in ("pad_id", "eos_id", "text_eos_id")]
        return {i for i in (*named, getattr(config, "pad_token_id", None)) if i is not None}

    def encode_tokens(
        self,
        tokens: Tensor | Texts,
        *,
        project: bool = True,
        projection: Tensor | None = None,
        chunk: int = 0,
        checkpoint: bool = False,
    ) -> Tensor:
        """Features (N, D), not normalised, of token ids (N, L).

        Args:
            tokens: the ids, or `Texts` that are encoded repeatedly.
            project: False returns the states (N, W) before the text projection.
            projection: (W, D), used instead of the model's own.
            chunk: maximum number of texts at a time; 0 chooses it by memory.
            checkpoint: recompute activations in the backward pass, chunk by chunk, to save memory.
        """
        texts = tokens if isinstance(tokens, Texts) else Texts(tokens)
        if not len(texts.tokens):
            raise ValueError("no texts to encode")
        if not self.is_causal:
            plain = project and projection is None
            own = self._own.encode_tokens(texts.on(self.device), plain, chunk or 256, checkpoint)
            return own if plain or not project else self.project(own, projection)
        way = self._can_share(), self.device  # LoRA's dropout changes the first
        if way not in texts.passes:
            texts.passes[way] = self._passes(texts.tokens, way[0])
        passes, order = texts.passes[way]
        states = [
            self._states(self.embed(one.prefix)[None], self.embed(one.suffix), one.lengths, chunk, checkpoint)[0]
            for one in passes
        ]
        ordered = torch.cat(states)[order]
        return self.project(ordered, projection) if project else ordered

    def _passes(self, tokens: Tensor, sharing: bool) -> tuple[list[_Pass], Tensor]:
        """The passes through the layers that texts take, and the position of each text (N,) in their results."""
        prompts = [tuple(row[: end + 1]) for row, end in zip(tokens.tolist(), self.ends(tokens).tolist(), strict=True)]
        groups = [(0, list(range(len(prompts))))]  # without shared prefixes: one pass
        if sharing:
            groups = share_prefixes(prompts, _PASS_ROWS.get(self.device.type, _ROWS_ON_GPU))
        passes: list[_Pass] = []
        order: list[int] = []
        for shared, members in groups:
            lengths = tuple(len(prompts[i]) - shared for i in members)
            prefix, suffix = tokens[members[0], :shared], tokens[members, shared : shared + max(lengths)]
            passes.append(_Pass(prefix.to(self.device), suffix.to(self.device), lengths))
            order += members
        return passes, torch.tensor(order).argsort().to(self.device)

    def encode_prompts(
        self,
        prefix: Tensor,
        suffix: Tensor,
        lengths: Sequence[int],
        *,
        tokens: Tensor | None = None,
        deep: Mapping[int, Tensor] | None = None,
        deep_at: int = 1,
        project: bool = True,
        projection: Tensor | None = None,
        chunk: int = 0,
        checkpoint: bool = False,
    ) -> Tensor:
        """Features, not normalised, of prompts given as embeddings without positions.

        Args:
            prefix: (P, W), the first tokens of every prompt, or (B, P, W), one prefix per image. P may be 0.
            suffix: (K, S, W), the tokens that follow; those beyond a suffix's length are ignored.
            lengths: K numbers: tokens of each suffix up to and including its end token.
            tokens: (K, L) ids of whole rows, padding included, with any ordinary id for what is learned. Only encoders
                that are not causal need them: they see the padding, and find it and the end token by their ids.
            deep: block number -> (n, W), or (K, n, W) with rows for each class. They take the places of the n rows
                from position ``deep_at`` on in the block's input, before its first norm; no position is added. As long
                as all prompts have the same rows there, they still share the prefix.
            deep_at: 1: behind the start token.
            project, projection, chunk, checkpoint: as in `encode_tokens`, with classes in place of texts.

        Returns:
            (K, D), or (B, K, D) for a prefix per image. Differentiable with respect to prefix, suffix, deep rows and
            all model parameters that require gradients.

        Raises:
            UserError: a prompt is too long, or this encoder has no known blocks to put deep rows into.
        """
        sizes = tuple(int(length) for length in lengths)
        self._check(prefix, suffix, sizes, self.context_length if tokens is None else tokens.shape[1])
        rows = DeepRows(deep or {}, deep_at)
        self._check_deep(rows, prefix.shape[-2] + min(sizes), len(suffix))
        images = prefix if prefix.dim() == 3 else prefix[None]
        plain = project and projection is None
        if self.is_causal:
            states = self._states(images, suffix, sizes, chunk, checkpoint, rows)
            features = self.project(states, projection) if project else states
        else:
            if tokens is None:
                raise ValueError("this text encoder needs the tokens of whole rows")
            prompts = RowsOfPrompts(images, suffix, sizes, tokens.to(self.device), self.embed(tokens), rows)
            chunk = chunk or self._chunk_size(tokens.shape[1], checkpoint)
            own = self._own.encode_rows(prompts, plain, chunk, checkpoint)
            features = own if plain or not project else self.project(own, projection)
        return features if prefix.dim() == 3 else features[0]

    def _states(
        self,
        prefix: Tensor,
        suffix: Tensor,
        lengths: tuple[int, ...],
        chunk: int,
        checkpoint: bool,
        deep: DeepRows = _NOTHING_DEEP,
    ) -> Tensor:
        """Normalised end states (B, K, W)."""
        encode = self._encode_sharing if self._can_share() else self._encode_whole
        return self._text.ln_final(encode(prefix, suffix, lengths, chunk, checkpoint, deep))

    def _can_share(self) -> bool:
        """Whether `text_layers` can compute every layer."""
        return all(text_layers.is_plain(block) for block in self.blocks)

    def _encode_sharing(
        self, prefix: Tensor, suffix: Tensor, lengths: tuple[int, ...], chunk: int, checkpoint: bool, deep: DeepRows
    ) -> Tensor:
        """End states (B, K, W): the prefix once, then the suffixes chunk by chunk against it."""
        memory = self._prefix_memory(prefix, deep)
        chunk = min(chunk or self._chunk_size(max(lengths) * prefix.shape[0], checkpoint), len(lengths))
        slack = _BLOCK_ROWS.get(self.device.type, _ROWS_ON_GPU)
        flat = suffix.to(self.dtype).flatten(0, 1)
        states, classes = [], []
        for packed in pack(lengths, suffix.shape[1], chunk, slack, self.device):
            rows = flat[packed.source] + self.positions(prefix.shape[1] + packed.offset)
            states.append(run(checkpoint, self._suffix_states, rows[None], memory, packed, deep))
            classes.append(packed.classes)
        joined = torch.cat(states, dim=1)[:, torch.cat(classes).argsort()]
        return joined.expand(prefix.shape[0], -1, -1)  # with an empty prefix, all images have the same states

    def _chunk_size(self, rows: int, checkpoint: bool) -> int:
        """Number of classes, of `rows` rows each, to compute at a time."""
        if torch.compiler.is_exporting():
            return sys.maxsize  # an exported graph takes any number of images
        fit = _MAX_ROWS.get(self.device.type, _MAX_ROWS_ON_GPU) // (_CHECKPOINT_SHARE if checkpoint else 1)
        return max(1, fit // rows)

    def _prefix_memory(self, prefix: Tensor, deep: DeepRows) -> _Memory:
        """What suffixes need from the prefix (B, P, W)."""
        depth, parted = len(self.blocks), None
        parting = deep.parting(prefix.shape[1], depth)
        x = prefix.to(self.dtype) + self.positions(torch.arange(prefix.shape[1], device=self.device))
        layers: list[KeysValues | None] = []
        for number, block in enumerate(self.blocks):
            if number == parting:
                x, parted = x[:, : deep.first], x[:, deep.first :]
            elif number < parting:
                x = deep.into(number, x)
            keys_values = None
            if x.shape[1] and number + 1 == depth:
                keys_values = text_layers.prefix_keys_values(block, x)
            elif x.shape[1]:
                x, keys_values = text_layers.prefix_layer(block, x)
            layers.append(keys_values)
        return _Memory(layers, parting, parted, max(0, deep.first - prefix.shape[1]))

    def _suffix_states(self, x: Tensor, memory: _Memory, packed: Pack, deep: DeepRows) -> Tensor:
        """End states (B, n, W) of packed rows (1, R, W)."""
        for number, (block, prefix) in enumerate(zip(self.blocks, memory.layers, strict=True)):
            if number == memory.parting and memory.rows is not None:
                x, packed = text_layers.prepend_rows(x, memory.rows, packed)
            if number >= memory.parting and number in deep.rows:
                x = text_layers.insert_rows(x, deep.rows[number], packed, memory.at)
            last = number + 1 == len(memory.layers)
            x = (text_layers.last_layer if last else text_layers.suffix_layer)(block, x, prefix, packed)
        return x

    def _encode_whole(
        self, prefix: Tensor, suffix: Tensor, lengths: tuple[int, ...], chunk: int, checkpoint: bool, deep: DeepRows
    ) -> Tensor:
        """End states (B, K, W) with the model's own transformer.

        For layers that were replaced, hooked or built differently, or whose dropout is active (LoRA's in training).
        Dropout draws its masks chunk by chunk and layer by layer, so another chunk size draws different masks
        from the same distribution. Checkpointing replays the same masks, so it changes nothing.
        """
        if not self._warned:
            logger.info(
                "Prompts run through the text encoder in full, without a shared prefix: its layers are not CLIP's, or "
                "each prompt draws its own dropout masks"
            )
            self._warned = True
        chunk = chunk or self._chunk_size(prefix.shape[1] + max(lengths), checkpoint)
        parts = []
        for first in range(0, len(lengths), chunk):
            sizes = lengths[first : first + chunk]
            classes = deep.of(slice(first, first + chunk))
            parts.append((suffix[first : first + chunk, : max(sizes)], on_device(sizes, self.device), classes))
        states = [torch.cat([run(checkpoint, self._whole_states, image, *part) for part in parts]) for image in prefix]
        return torch.stack(states)

    def _whole_states(self, prefix: Tensor, suffix: Tensor, lengths: Tensor, deep: DeepRows) -> Tensor:
        """End states (n, W) of whole prompts: a prefix (P, W) and n suffixes (n, S, W) of `lengths` (n,) tokens."""
        rows = torch.cat([prefix.expand(len(suffix), -1, -1), suffix], dim=1).to(self.dtype)
        length = rows.shape[1]
        rows = rows + self.positions(torch.arange(length, device=self.device))
        with deep.inside(self._text.transformer):
            states = self._text.transformer(rows, attn_mask=self._text.attn_mask[:length, :length])
        return states[torch.arange(len(suffix), device=self.device), prefix.shape[0] + lengths - 1]

    def _check(self, prefix: Tensor, suffix: Tensor, lengths: tuple[int, ...], room: int) -> None:
        if len(lengths) != len(suffix) or not lengths or not 0 < min(lengths) <= max(lengths) <= suffix.shape[1]:
            raise ValueError(f"lengths {lengths[:5]}... do not fit a suffix of shape {tuple(suffix.shape)}")
        if prefix.shape[-2] + max(lengths) > room:
            raise UserError(
                f"a prompt has {prefix.shape[-2] + max(lengths)} tokens where {room} fit: "
                "use fewer context tokens or shorter class names"
            )

    def _check_deep(self, deep: DeepRows, shortest: int, classes: int) -> None:
        """Refuse deep rows that do not fit ``classes`` prompts of at least ``shortest`` tokens."""
        if not deep.rows:
            return
        depth = self.depth
        if not all(0 <= number < depth for number in deep.rows):
            raise ValueError(f"deep rows for blocks {sorted(deep.rows)}, but the text encoder has {depth} blocks")
        for number, rows in deep.rows.items():
            if rows.shape[-1] != self.width or rows.dim() not in (2, 3) or (len(rows) != classes and rows.dim() == 3):
                raise ValueError(
                    f"deep rows of shape {tuple(rows.shape)} for block {number} are neither (n, {self.width}) nor "
                    f"({classes}, n, {self.width})"
                )
        if deep.end() >= shortest:
            raise ValueError(f"deep rows up to position {deep.end() - 1}, but a prompt ends at {shortest - 1}")

"""One small model with random weights of each family of open_clip's backbones.

`FAMILIES` names a published architecture of each family. `register` derives a small one from its configuration, with
the same kinds of layers, pooling and tokenizer, and makes it known to open_clip as ``tiny-<family>``. Nothing is
downloaded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import timm
from timm.models import register_model

SIZE = 32  # pixels of an image's side
WIDTH = 32

# A family's published example.
FAMILIES = {
    "ResNet": "RN50",
    "ViT": "ViT-B-32",
    "ConvNeXt": "convnext_tiny",
    "Swin": "swin_base_patch4_window7_224",
    "ViT-relpos": "vit_relpos_medium_patch16_cls_224",
    "EVA01": "EVA01-g-14",
    "EVA02": "EVA02-B-16",
    "PE-Core": "PE-Core-T-16-384",
    "ViTamin": "ViTamin-S",
    "MobileCLIP-B": "MobileCLIP-B",
    "MobileCLIP-S": "MobileCLIP-S1",
    "MobileCLIP2-S": "MobileCLIP2-S3",
    "CLIPA": "ViT-L-14-CLIPA",
    "SigLIP": "ViT-B-16-SigLIP",
    "SigLIP2": "ViT-B-16-SigLIP2",
    "SigLIP-i18n": "ViT-SO400M-16-SigLIP-i18n-256",
    "MetaCLIP2": "ViT-H-14-worldwide",
    "CoCa": "coca_ViT-B-32",
    "CoCa-roberta": "coca_roberta-ViT-B-32",
    "roberta": "roberta-ViT-B-32",
    "XLM-roberta": "xlm-roberta-base-ViT-B-32",
    "mT5": "mt5-base-ViT-B-32",
    "NLLB": "nllb-clip-base",
}

# The smallest trunk of each kind of timm's.
_TRUNKS: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32)},
    "swin_base_patch4_window7_224": {
        "embed_dim": 8,
        "depths": (2, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "window_size": 4,
        "img_size": SIZE,
    },
    "vit_relpos_medium_patch16_cls_224": {"rel_pos_dim": 16, "num_heads": 2},
    "eva_giant_patch14_224": {"patch_size": 16, "num_heads": 2},
    "eva02_base_patch16_clip_224": {"num_heads": 2, "ref_feat_shape": (2, 2)},
    "vit_pe_core_tiny_patch16_384": {"num_heads": 2, "attn_pool_num_heads": 2, "ref_feat_shape": (2, 2)},
    "vitamin_small_224": {"num_heads": 2},
    "vit_base_mci_224": {"embed_dim": 768, "depth": 1, "num_heads": 2, "mlp_ratio": 0.1},
    "fastvit_mci1": {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32)},
    "fastvit_mci3": {"layers": (1, 1, 1, 1, 1), "embed_dims": (32, 32, 32, 32, 32)},
    "vit_base_patch16_siglip_224": {"num_heads": 2},
    "vit_so400m_patch16_siglip_256": {"num_heads": 2},
}
_CONVOLUTIONAL = ("convnext", "swin", "fastvit")  # their sizes stand above

# What a tokenizer puts around a text (the first two words of its vocabulary, padding among them), and its padding.
_FRAMES = {
    "bert": (["[PAD]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]", "[PAD]"),
    "siglip": (["<pad>", "</s>"], "$A </s>", "</s>"),
    "t5": (["<pad>", "</s>"], "$A </s>", "<pad>"),
    "roberta": (["<s>", "<pad>", "</s>"], "<s> $A </s>", "<pad>"),
}
_VOCABULARY = 320


def register(
    folder: Path, corpus: tuple[str, ...] = ("a photo of a red circle.",), prefix: str = "tiny"
) -> dict[str, str]:
    """Make every family's small model known to open_clip: the name that `load_clip` takes, by family.

    Args:
        folder: a new one, for tokenizers and configurations; it must stay.
        corpus: texts that the tokenizers are trained on.
        prefix: of the names; open_clip knows the last of a name, whose folder must be there.
    """
    kinds = {kind: _save_tokenizer(folder / "tokenizers" / kind, *frame, corpus) for kind, frame in _FRAMES.items()}
    for family, published in FAMILIES.items():
        config = _small(copy.deepcopy(open_clip.get_model_config(published)), folder, kinds)
        (folder / f"{prefix}-{family}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return {family: f"random:{prefix}-{family}" for family in FAMILIES}


def copied(clip: Any) -> Any:
    """A copy of a CLIP that shares its tokenizer, which nothing changes and whose tables take long to copy."""
    return copy.deepcopy(clip, {id(clip.tokenizer): clip.tokenizer})


def _small(config: dict[str, Any], folder: Path, kinds: dict[str, Path]) -> dict[str, Any]:
    config["embed_dim"] = WIDTH
    _shrink_vision(config["vision_cfg"])
    _shrink_text(config["text_cfg"], folder, kinds)
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": WIDTH, "heads": 2, "layers": 1}
    return config


def _shrink_vision(vision: dict[str, Any]) -> None:
    # MobileCLIP-S reduces the image by 32, or 64, before its attention, which needs more than one position.
    vision["image_size"] = 2 * SIZE if "fastvit" in vision.get("timm_model_name", "") else SIZE
    if name := vision.get("timm_model_name"):
        vision["timm_model_name"] = _small_trunk(name)
    elif isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 1, 1], "width": 8}
    else:
        vision |= {"layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 16, "attn_pooler_heads": 2}


def _small_trunk(name: str) -> str:
    """Register a small trunk of the same kind as timm's ``name``; returns what it is called."""
    sizes = dict(_TRUNKS[name])
    if not name.startswith(_CONVOLUTIONAL):
        sizes = {"img_size": SIZE, "embed_dim": WIDTH, "depth": 2} | sizes
    if name.startswith("vitamin"):
        from timm.models.vitamin import VitCfg, VitConvCfg

        convolutions = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
        sizes["embed_cfg"] = VitCfg(
            embed_dim=(8, 16, WIDTH), depths=(1, 1, 1), stem_width=8, conv_cfg=convolutions, head_type="1d"
        )

    def build(pretrained: bool = False, **options: Any) -> Any:
        return timm.create_model(name, pretrained=False, **{**sizes, **options})

    build.__name__ = f"tiny_{name}"
    if not timm.is_model(build.__name__):
        register_model(build)
    return build.__name__


def _shrink_text(text: dict[str, Any], folder: Path, kinds: dict[str, Path]) -> None:
    text |= {"width": WIDTH, "heads": 2, "layers": 2}
    if tokenizer := text.get("hf_tokenizer_name"):
        kind = _kind(tokenizer)
        text |= {"hf_tokenizer_name": str(kinds[kind]), "vocab_size": _VOCABULARY}
        if "eos_id" in text:
            text["eos_id"] = _FRAMES[kind][0].index("</s>")
    if model := text.get("hf_model_name"):
        text["hf_model_name"] = str(_save_model(folder / "models" / model.replace("/", "-"), model))


def _kind(tokenizer: str) -> str:
    marks = {"bert-": "bert", "SigLIP": "siglip", "mt5": "t5"}
    return next((kind for mark, kind in marks.items() if mark in tokenizer and "roberta" not in tokenizer), "roberta")


def _save_tokenizer(folder: Path, special: list[str], frame: str, padding: str, corpus: tuple[str, ...]) -> Path:
    """A byte-pair encoding of Hugging Face's, which writes a word behind a space unlike one at the start."""
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(corpus * 3, trainer)
    framing = [(word, special.index(word)) for word in frame.split() if word in special]
    made.post_processor = tokenizers.processors.TemplateProcessing(single=frame, special_tokens=framing)
    names = {"pad_token": padding, "eos_token": frame.split()[-1], "sep_token": frame.split()[-1]}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


def _save_model(folder: Path, model: str) -> Path:
    """The configuration of a small Hugging Face text model of the same kind."""
    import transformers

    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    roberta = {"vocab_size": _VOCABULARY, "pad_token_id": 1, "max_position_embeddings": 90, **layers}
    make: Callable[[], Any]
    if "mt5" in model:
        sizes = {"d_model": WIDTH, "d_kv": 16, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 2}
        make = partial(transformers.MT5Config, vocab_size=_VOCABULARY, pad_token_id=0, **sizes)
    elif "nllb" in model:
        sizes = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": WIDTH, "decoder_layers": 1}
        sizes |= {"decoder_attention_heads": 2, "decoder_ffn_dim": WIDTH, "d_model": WIDTH}
        make = partial(transformers.M2M100Config, vocab_size=_VOCABULARY, pad_token_id=1, **sizes)
    elif "xlm" in model:
        make = partial(transformers.XLMRobertaConfig, **roberta)
    else:
        make = partial(transformers.RobertaConfig, **roberta)
    make().save_pretrained(folder)
    return folder

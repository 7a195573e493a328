"""Config keys that several methods share, and the functions that interpret them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from dassl_lite.engine.contract.keys import Key, idle_if, key, number, one_of, satisfying
from dassl_lite.models.clip import CLIPBackbone
from dassl_lite.models.prompt_learner import PromptLayout, lay_out
from dassl_lite.models.prompts import fill_templates
from dassl_lite.models.text_tower import Texts

# For methods whose gradients run through the text encoder.
TEXT_ENCODER_KEYS = (
    key(
        "TEXT_CHUNK",
        0,
        number(at_least=0, at_most=1_000_000),
        "classes per pass through the text encoder; 0: as memory allows",
    ),
    key("TEXT_CHECKPOINT", False, None, "recompute activations in the backward pass: less memory, more time"),
)


def _is_words(text: str) -> bool:
    return "{" not in text and (not text or bool(text.strip("_ ")))


def _has_words(run: Any) -> str:
    return "CTX_INIT gives the number of words" if run.method_cfg.CTX_INIT else ""


# For methods with a learned context.
CONTEXT_LENGTH = key("N_CTX", 16, number(at_least=1, at_most=1000), "number of context vectors")
CONTEXT_KEYS = (
    replace(CONTEXT_LENGTH, idle=_has_words),
    key(
        "CTX_INIT",
        "",
        satisfying(_is_words, "words alone, like 'a photo of a'"),
        "words to start from, like 'a photo of a'; their number replaces N_CTX",
    ),
)

MOST_WORDS = 4  # most context vectors initialised from words with deep prompts; longer contexts start at random


def _is_random(name: str) -> Callable[[Any], str]:
    def why(run: Any) -> str:
        return f"a context of more than {MOST_WORDS} vectors ({name}) is random" * (run.method_cfg[name] > MOST_WORDS)

    return why


def text_prompt_keys(tokens: int, name: str = "N_CTX") -> tuple[Key, ...]:
    """Keys for methods whose context is the first of the text encoder's deep prompts.

    The keys are NAME, CTX_INIT and TEXT_ENCODER_KEYS.
    """
    words = satisfying(_is_words, "words alone, like 'a photo of a'")
    about = f"words to start from if {name} <= {MOST_WORDS}: their first tokens are learned, the others stay fixed"
    return (
        key(name, tokens, number(at_least=1, at_most=1000), "prompt tokens per block of the text encoder"),
        key("CTX_INIT", "a photo of a", words, about, _is_random(name)),
        *TEXT_ENCODER_KEYS,
    )


def depth_key(name: str, depth: int, about: str, at_least: int = 1) -> Key:
    """The key for the number of an encoder's blocks with prompts."""
    return key(name, depth, number(at_least=at_least, at_most=1000), about)


# For methods that store the training images' features, in several augmented views.
VIEW_KEYS = (
    key(
        "AUGMENT_EPOCH",
        10,
        number(at_least=1, at_most=10_000),
        "views per training image if DATASET.FEATURES.VIEWS is 0",
        lambda run: "DATASET.FEATURES.VIEWS sets the views" if run.cfg.DATASET.FEATURES.VIEWS else "",
    ),
)


# For methods that select values on the validation set, with a key SEARCH.
def no_search(run: Any) -> str:
    """Why the keys of the search have no effect, or ""."""
    return idle_if("SEARCH", False)(run) or ("" if run.has_selection_set else "there is no validation set")


def is_searched(run: Any) -> str:
    """Why the value of a searched key has no effect, or ""; with training, it has one."""
    return "" if run.trains or no_search(run) else "it is selected on the validation set (SEARCH is True)"


def range_keys(
    name: str,
    end: float,
    steps: int,
    *,
    start: float = 0.1,
    end_included: bool = False,
    idle: Callable[[Any], str] = no_search,
) -> tuple[Key, ...]:
    """Keys NAME_MAX and NAME_STEPS, which define the values of NAME that a search tries, from ``start`` to ``end``."""
    which = f"{name.lower()}s"
    until = "to this" if end_included else "up to, but excluding, this"
    about = f"{which} are searched from {start:g} {until}"
    return (
        key(f"{name}_MAX", end, number(at_least=start, at_most=1e6), about, idle),
        key(f"{name}_STEPS", steps, number(at_least=1, at_most=1000), f"number of {which}", idle),
    )


# For methods that support images with several classes.
LOSS_KEYS = (
    key(
        "LOSS",
        "auto",
        one_of("auto", "softmax", "sigmoid"),
        "auto: sigmoid for a multi-label dataset, otherwise softmax over the classes",
    ),
)

# For methods that train for a number of steps rather than epochs.
STEP_KEYS = (
    key(
        "STEPS_PER_SHOT",
        500,
        number(at_least=0, at_most=1_000_000),
        "training steps per shot; 0: OPTIM.MAX_EPOCH epochs",
    ),
)


def class_prompts(trainer: Any, trained: bool) -> Callable[[], Tensor]:
    """A function that returns the features (K, D) of the class prompts; recomputed if the text encoder is trained.

    With a frozen text encoder, they are the features of the DATASET.DESCRIPTIONS, if there are any.
    """
    if trained:
        texts = Texts(trainer.clip.tokenize(fill_templates(trainer.classnames, [trainer.template])))
        options = text_encoder_options(trainer.method_cfg)
        return lambda: trainer.clip.text.encode_tokens(texts, **options)
    weights: Tensor = trainer.text_rows().weights()
    return lambda: weights


def text_encoder_options(node: CfgNode) -> dict[str, Any]:
    """Memory-saving options of the text encoder, as arguments for `TextTower`."""
    return {"chunk": node.TEXT_CHUNK, "checkpoint": node.TEXT_CHECKPOINT}


def prompt_layout(
    clip: CLIPBackbone,
    classnames: Sequence[str],
    node: CfgNode,
    name: str,
    *,
    position: str = "end",
    class_specific: bool = False,
) -> PromptLayout:
    """The prompts of K classes with the context given by CONTEXT_KEYS.

    Args:
        node, name: the method's config node and its name under TRAINER.
        position, class_specific: as in `lay_out`.
    """
    return lay_out(
        clip,
        classnames,
        node.N_CTX,
        node.CTX_INIT,
        position=position,
        class_specific=class_specific,
        node=f"TRAINER.{name}",
    )


def deep_prompt_layout(
    clip: CLIPBackbone, classnames: Sequence[str], node: CfgNode, name: str, tokens: str = "N_CTX"
) -> PromptLayout:
    """The prompts of K classes with the context given by `text_prompt_keys`.

    Args:
        node, name: the method's config node and its name under TRAINER.
        tokens: name of the key with the number of context vectors.
    """
    n = node[tokens]
    words = node.CTX_INIT if n <= MOST_WORDS else ""
    return lay_out(clip, classnames, n, words, most=n, node=f"TRAINER.{name}", number=tokens)

"""Dassl's namespace: which of our modules stands for each of its modules, and the names that its modules only import.

Code written for Dassl also imports what a module of Dassl only uses, such as ``AverageMeter`` or ``SummaryWriter``
from ``dassl.engine.trainer``. ``IMPORTS`` lists those names for each module, ``SOURCES`` says where they come from.
"""

from __future__ import annotations

import importlib
from typing import Any

# Dassl's modules for single backbone families; our networks.backbone has them all.
_BACKBONE_FILES = ("alexnet", "cnn_digitsdg", "efficientnet", "mobilenetv2", "shufflenetv2", "vgg")
# Our module of layers or losses -> the modules of Dassl whose names it defines.
_OPS = {
    "layers": ("attention", "conv", "reverse_grad", "sequential2"),
    "losses": ("cross_entropy", "mmd", "optimal_transport"),
    "mixing": ("efdmix", "mixstyle", "mixup"),
    "normalisation": ("dsbn", "transnorm"),
}
# Dassl's module -> ours, where the names differ. If there are several, the first that has an attribute provides it.
PLACES: dict[str, tuple[str, ...]] = {
    "engine.trainer": ("engine.contract.trainer",),
    "data.data_manager": ("data.manager", "data.loaders"),
    "data.datasets.base_dataset": ("data.datasets",),
    "data.datasets.build": ("data.datasets",),
    "data.transforms.autoaugment": ("data.transforms.augmentations",),
    "data.transforms.randaugment": ("data.transforms.augmentations",),
    "data.transforms.transforms": ("data.transforms", "data.transforms.build"),
    "evaluation.build": ("evaluation.evaluator",),
    "modeling.backbone.backbone": ("networks.backbone.base",),
    "modeling.backbone.build": ("networks.build",),
    "modeling.backbone.resnet": ("networks.backbone.resnet", "networks.backbone"),
    **{f"modeling.backbone.{file}": ("networks.backbone",) for file in _BACKBONE_FILES},
    "modeling.backbone.efficientnet.model": ("networks.backbone",),
    "modeling.head": ("networks.head", "networks.build"),
    "modeling.head.build": ("networks.build",),
    "modeling.head.mlp": ("networks.head",),
    "modeling.network": ("networks.build", "networks"),
    "modeling.network.build": ("networks.build",),
    **{f"modeling.ops.{file}": (f"networks.ops.{ours}",) for ours, files in _OPS.items() for file in files},
    "utils": ("utils", "utils.tools", "utils.logger", "data.images", "downloads.url"),
    "utils.tools": ("utils.tools", "data.images", "downloads.url"),
}

# Dassl's module -> names in it that ours lacks or need not have; "F=torch.nn" gives a name another source than SOURCES.
IMPORTS: dict[str, str] = {
    "": "__author__ __homepage__",
    "data.data_manager": "torch T tabulate TorchDataset read_image build_dataset build_sampler INTERPOLATION_MODES "
    "build_transform",
    "data.datasets.base_dataset": "os random osp tarfile zipfile defaultdict gdown check_isfile",
    "data.datasets.build": "Registry check_availability",
    "data.samplers": "copy np random defaultdict Sampler RandomSampler SequentialSampler",
    "data.transforms.autoaugment": "np random Image ImageOps ImageEnhance",
    "data.transforms.randaugment": "np random PIL torch Image AutoContrast Brightness Color Contrast CutoutAbs "
    "Equalize Flip Identity Invert Posterize Rotate Sharpness ShearX ShearY Solarize SolarizeAdd TranslateX "
    "TranslateXabs TranslateY TranslateYabs fixmatch_list randaugment_list randaugment_list2",
    "data.transforms.transforms": "np random torch F=torchvision.transforms.functional Image Resize Compose ToTensor "
    "Normalize CenterCrop RandomCrop ColorJitter RandomApply GaussianBlur RandomGrayscale RandomResizedCrop "
    "RandomHorizontalFlip InterpolationMode SVHNPolicy CIFAR10Policy ImageNetPolicy RandAugment RandAugment2 "
    "RandAugmentFixMatch _build_transform_train _build_transform_test",
    "engine.build": "Registry check_availability",
    "engine.trainer": "time np osp datetime OrderedDict torch nn tqdm SummaryWriter DataManager build_optimizer "
    "build_lr_scheduler MetricMeter AverageMeter tolist_if_not count_num_param load_checkpoint save_checkpoint "
    "mkdir_if_missing resume_from_checkpoint load_pretrained_weights build_head build_backbone build_evaluator",
    "evaluation.build": "Registry check_availability",
    "evaluation.evaluator": "np osp OrderedDict defaultdict torch f1_score confusion_matrix EVALUATOR_REGISTRY",
    "metrics.distance": "torch F",
    "modeling.backbone.alexnet": "torch nn model_zoo BACKBONE_REGISTRY Backbone init_pretrained_weights model_urls",
    "modeling.backbone.backbone": "nn",
    "modeling.backbone.build": "Registry check_availability",
    "modeling.backbone.cnn_digitsdg": "nn F init_network_weights BACKBONE_REGISTRY Backbone ConvNet",
    "modeling.backbone.efficientnet.model": "torch nn F BACKBONE_REGISTRY Backbone",
    "modeling.backbone.mobilenetv2": "model_zoo nn BACKBONE_REGISTRY Backbone init_pretrained_weights model_urls",
    "modeling.backbone.resnet": "nn model_zoo BACKBONE_REGISTRY Backbone BasicBlock Bottleneck conv3x3 MixStyle "
    "init_pretrained_weights model_urls",
    "modeling.backbone.shufflenetv2": "torch model_zoo nn BACKBONE_REGISTRY Backbone init_pretrained_weights "
    "model_urls channel_shuffle",
    "modeling.backbone.vgg": "torch nn BACKBONE_REGISTRY Backbone load_state_dict_from_url model_urls",
    "modeling.head.build": "Registry check_availability",
    "modeling.head.mlp": "functools nn HEAD_REGISTRY",
    "modeling.network.build": "Registry check_availability",
    "modeling.ops.attention": "nn F",
    "modeling.ops.conv": "nn Attention",
    "modeling.ops.cross_entropy": "torch F",
    "modeling.ops.dsbn": "nn",
    "modeling.ops.efdmix": "random contextmanager torch nn",
    "modeling.ops.mixstyle": "random contextmanager torch nn",
    "modeling.ops.mixup": "torch",
    "modeling.ops.mmd": "torch nn F",
    "modeling.ops.optimal_transport": "torch nn F",
    "modeling.ops.reverse_grad": "nn Function reverse_grad",
    "modeling.ops.sequential2": "nn",
    "modeling.ops.transnorm": "torch nn",
    "modeling.ops.utils": "np torch",
    "optim.lr_scheduler": "torch _LRScheduler",
    "optim.optimizer": "warnings torch nn RAdam",
    "optim.radam": "math torch Optimizer",
    "utils.logger": "os sys time osp mkdir_if_missing",
    "utils.meters": "defaultdict torch",
    "utils.tools": "os sys json time errno np random osp warnings SequenceMatcher PIL torch Image",
    "utils.torchtools": "pickle shutil osp warnings partial OrderedDict torch nn mkdir_if_missing "
    "adjust_learning_rate set_bn_to_eval",
}

_AUGMENTATIONS = "dassl_lite.data.transforms.augmentations"
_SMALL = "dassl_lite.compat.small"
_LIBRARIES = (
    "copy datetime errno functools gdown json math os pickle PIL random shutil sys tarfile time torch warnings "
)
_LIBRARIES += "zipfile"
# Name -> "module", or "module:attribute".
SOURCES: dict[str, str] = {
    **{name: name for name in _LIBRARIES.split()},
    "F": "torch.nn.functional",
    "T": "torchvision.transforms",
    "model_zoo": "torch.utils.model_zoo",
    "nn": "torch.nn",
    "np": "numpy",
    "osp": "os.path",
    "Function": "torch.autograd:Function",
    "Image": "PIL.Image",
    "ImageEnhance": "PIL.ImageEnhance",
    "ImageOps": "PIL.ImageOps",
    "InterpolationMode": "torchvision.transforms:InterpolationMode",
    "OrderedDict": "collections:OrderedDict",
    "Optimizer": "torch.optim:Optimizer",
    "SequenceMatcher": "difflib:SequenceMatcher",
    "SummaryWriter": "torch.utils.tensorboard:SummaryWriter",
    "TorchDataset": "torch.utils.data:Dataset",
    "_LRScheduler": "torch.optim.lr_scheduler:_LRScheduler",
    "confusion_matrix": "sklearn.metrics:confusion_matrix",
    "contextmanager": "contextlib:contextmanager",
    "defaultdict": "collections:defaultdict",
    "f1_score": "sklearn.metrics:f1_score",
    "load_state_dict_from_url": "torch.hub:load_state_dict_from_url",
    "partial": "functools:partial",
    "tabulate": "tabulate:tabulate",
    "tqdm": "tqdm:tqdm",
    **{name: f"torch.utils.data:{name}" for name in ("Sampler", "RandomSampler", "SequentialSampler")},
    **{name: f"torchvision.models.resnet:{name}" for name in ("BasicBlock", "Bottleneck", "conv3x3")},
    "channel_shuffle": "torchvision.models.shufflenetv2:channel_shuffle",
    **{
        name: f"torchvision.transforms:{name}"
        for name in (
            *("Resize", "Compose", "ToTensor", "Normalize", "CenterCrop", "RandomCrop", "ColorJitter", "RandomApply"),
            *("GaussianBlur", "RandomGrayscale", "RandomResizedCrop", "RandomHorizontalFlip"),
        )
    },
    # Dassl's own names, where it defines them.
    **{name: f"dassl.utils:{name}" for name in ("AverageMeter", "MetricMeter", "Registry", "check_availability")},
    **{name: f"dassl.utils:{name}" for name in ("check_isfile", "count_num_param", "init_network_weights")},
    **{name: f"dassl.utils:{name}" for name in ("load_checkpoint", "load_pretrained_weights", "mkdir_if_missing")},
    **{name: f"dassl.utils:{name}" for name in ("read_image", "resume_from_checkpoint", "save_checkpoint")},
    "tolist_if_not": "dassl.utils:tolist_if_not",
    "DataManager": "dassl.data:DataManager",
    "build_dataset": "dassl.data.datasets:build_dataset",
    "build_sampler": "dassl.data.samplers:build_sampler",
    "INTERPOLATION_MODES": "dassl.data.transforms:INTERPOLATION_MODES",
    "build_transform": "dassl.data.transforms:build_transform",
    "build_evaluator": "dassl.evaluation:build_evaluator",
    "EVALUATOR_REGISTRY": "dassl.evaluation:EVALUATOR_REGISTRY",
    "build_optimizer": "dassl.optim:build_optimizer",
    "build_lr_scheduler": "dassl.optim:build_lr_scheduler",
    "RAdam": "dassl.optim.radam:RAdam",
    "Attention": "dassl.modeling.ops.attention:Attention",
    "MixStyle": "dassl.modeling.ops:MixStyle",
    "Backbone": "dassl.modeling.backbone:Backbone",
    "BACKBONE_REGISTRY": "dassl.modeling:BACKBONE_REGISTRY",
    "HEAD_REGISTRY": "dassl.modeling:HEAD_REGISTRY",
    "build_backbone": "dassl.modeling:build_backbone",
    "build_head": "dassl.modeling:build_head",
    "ConvNet": "dassl_lite.networks.backbone.digits:DigitNet",
    **{
        name: f"dassl.data.transforms.{module}:{name}"
        for module, names in {
            "autoaugment": ("SVHNPolicy", "CIFAR10Policy", "ImageNetPolicy"),
            "randaugment": ("RandAugment", "RandAugment2", "RandAugmentFixMatch"),
        }.items()
        for name in names
    },
    **{
        theirs: f"{_AUGMENTATIONS}:{ours}"
        for theirs, ours in {
            **{name: name.lower() for name in ("AutoContrast", "Brightness", "Color", "Contrast", "Equalize")},
            **{name: name.lower() for name in ("Identity", "Invert", "Posterize", "Rotate", "Sharpness", "Solarize")},
            **{"CutoutAbs": "cutout", "ShearX": "shear_x", "ShearY": "shear_y", "SolarizeAdd": "solarize_add"},
            **{"TranslateX": "translate_x", "TranslateXabs": "translate_x_pixels"},
            **{"TranslateY": "translate_y", "TranslateYabs": "translate_y_pixels"},
        }.items()
    },
    **{name: f"{_SMALL}:{name}" for name in ("Flip", "fixmatch_list", "randaugment_list", "randaugment_list2")},
    **{name: f"{_SMALL}:{name}" for name in ("adjust_learning_rate", "set_bn_to_eval", "init_pretrained_weights")},
    **{name: f"{_SMALL}:{name}" for name in ("_build_transform_train", "_build_transform_test")},
    **{name: f"{_SMALL}:{name}" for name in ("model_urls", "reverse_grad", "__author__", "__homepage__")},
}


def imports_of(place: str) -> dict[str, str]:
    """The names that Dassl's module ``dassl.<place>`` imports, each with its source."""
    words = (word.partition("=") for word in IMPORTS.get(place, "").split())
    return {name: source or SOURCES[name] for name, _, source in words}


def submodules_of(place: str) -> dict[str, str]:
    """The submodules of ``dassl.<place>`` that we have elsewhere, for ``from dassl.engine import trainer``."""
    parents = ((name.rpartition("."), name) for name in PLACES)
    return {child: f"dassl.{name}" for (parent, _, child), name in parents if parent == place}


def resolve(source: str) -> Any:
    """The object named by "module" or "module:attribute"."""
    module, _, attribute = source.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


# Config keys of Dassl's own trainers, which Dassl declares in its defaults and papers build on.
_STRONG: dict[str, Any] = {"CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()}
KEYS: dict[str, dict[str, Any]] = {
    "MCD": {"N_STEP_F": 4},
    "MME": {"LMDA": 0.1},
    "CDAC": {
        "CLASS_LR_MULTI": 10,
        "RAMPUP_COEF": 30,
        "RAMPUP_ITRS": 1000,
        "TOPK_MATCH": 5,
        "P_THRESH": 0.95,
        "STRONG_TRANSFORMS": (),
    },
    "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
    "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
    "DAEL": {"WEIGHT_U": 0.5, **_STRONG},
    "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
    "DDAIG": {
        "G_ARCH": "",
        "LMDA": 0.3,
        "CLAMP": False,
        "CLAMP_MIN": -1.0,
        "CLAMP_MAX": 1.0,
        "WARMUP": 0,
        "ALPHA": 0.5,
    },
    "DAELDG": {"WEIGHT_U": 0.5, **_STRONG},
    "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
    "ENTMIN": {"LMDA": 1e-3},
    "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
    "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
    "FIXMATCH": {"WEIGHT_U": 1.0, **_STRONG},
}

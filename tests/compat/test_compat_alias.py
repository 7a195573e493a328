"""``import dassl`` gives this package: what resolves where, and what happens if the real Dassl is installed."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision

import dassl_lite.engine
from dassl_lite import compat
from dassl_lite.compat import small
from dassl_lite.compat.names import IMPORTS, imports_of
from dassl_lite.utils import UserError

# The 25 names that seven third-party repositories import, where they import them (DESIGN.md, "TrainerX"), and
# the further ones that trainers written for Dassl take from its modules.
NAMES = {
    "dassl.engine": "TRAINER_REGISTRY TrainerX SimpleTrainer build_trainer",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.metrics": "compute_accuracy",
    "dassl.config": "get_cfg_default",
    "dassl.data": "DatasetWrapper",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase",
    "dassl.data.transforms": "build_transform",
    "dassl.utils": "mkdir_if_missing listdir_nohidden load_pretrained_weights load_checkpoint read_json write_json "
    "setup_logger set_random_seed collect_env_info check_isfile AverageMeter MetricMeter",
}
FURTHER = {
    "dassl.engine": "TrainerBase TrainerXU SimpleNet",
    "dassl.engine.trainer": "TrainerBase SimpleTrainer SimpleNet TrainerX TrainerXU",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.data": "DataManager build_data_loader",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader build_transform build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.data.transforms.transforms": "build_transform INTERPOLATION_MODES AVAI_CHOICES Cutout GaussianNoise",
    "dassl.data.transforms.autoaugment": "ImageNetPolicy CIFAR10Policy SVHNPolicy",
    "dassl.data.transforms.randaugment": "RandAugment RandAugment2 RandAugmentFixMatch",
    "dassl.utils": "Registry Logger tolist_if_not check_availability read_image save_checkpoint count_num_param "
    "resume_from_checkpoint open_all_layers open_specified_layers init_network_weights download_url",
    "dassl.utils.tools": "mkdir_if_missing check_isfile read_json write_json set_random_seed download_url read_image "
    "collect_env_info listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not",
    "dassl.utils.torchtools": "load_pretrained_weights load_checkpoint save_checkpoint resume_from_checkpoint "
    "open_all_layers open_specified_layers count_num_param init_network_weights",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.registry": "Registry",
    "dassl.optim.optimizer": "build_optimizer AVAI_OPTIMS",
    "dassl.optim.lr_scheduler": "build_lr_scheduler AVAI_SCHEDS _BaseWarmupScheduler ConstantWarmupScheduler "
    "LinearWarmupScheduler",
    "dassl.optim.radam": "RAdam PlainRAdam AdamW",
    "dassl.metrics.accuracy": "compute_accuracy",
    "dassl.metrics.distance": "compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.modeling": "build_head build_backbone build_network HEAD_REGISTRY BACKBONE_REGISTRY NETWORK_REGISTRY",
    "dassl.modeling.ops": "MixStyle mixup ReverseGrad TransNorm1d TransNorm2d EFDMix cross_entropy DSBN1d DSBN2d "
    "MaximumMeanDiscrepancy Sequential2 SinkhornDivergence MinibatchEnergyDistance run_with_efdmix random_mixstyle",
    "dassl.modeling.ops.attention": "Attention",
    "dassl.modeling.ops.conv": "Conv2dDynamic",
    "dassl.modeling.ops.optimal_transport": "OptimalTransport SinkhornDivergence MinibatchEnergyDistance",
    "dassl.modeling.ops.mixstyle": "MixStyle run_with_mixstyle",
    "dassl.modeling.ops.cross_entropy": "cross_entropy",
    "dassl.modeling.ops.dsbn": "DSBN1d DSBN2d",
    "dassl.modeling.ops.efdmix": "EFDMix run_with_efdmix crossdomain_efdmix",
    "dassl.modeling.ops.mixup": "mixup",
    "dassl.modeling.ops.mmd": "MaximumMeanDiscrepancy",
    "dassl.modeling.ops.reverse_grad": "ReverseGrad",
    "dassl.modeling.ops.sequential2": "Sequential2",
    "dassl.modeling.ops.transnorm": "TransNorm1d TransNorm2d",
    "dassl.modeling.ops.utils": "create_onehot sigmoid_rampup linear_rampup sharpen_prob ema_model_update",
    "dassl.modeling.backbone": "Backbone build_backbone BACKBONE_REGISTRY resnet18 resnet18_ms_l123 "
    "resnet50_efdmix_l12 vgg16 alexnet efficientnet_b0 cnn_digitsdg",
    "dassl.modeling.backbone.resnet": "ResNet resnet18 resnet101_ms_l1",
    "dassl.modeling.backbone.alexnet": "alexnet",
    "dassl.modeling.backbone.efficientnet": "efficientnet_b7",
    "dassl.modeling.backbone.vgg": "vgg16",
    "dassl.modeling.backbone.build": "BACKBONE_REGISTRY",
    "dassl.modeling.backbone.backbone": "Backbone",
    "dassl.modeling.head": "build_head HEAD_REGISTRY mlp",
    "dassl.modeling.head.mlp": "MLP",
    "dassl.modeling.network.build": "build_network NETWORK_REGISTRY",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.evaluation.evaluator": "EvaluatorBase EVALUATOR_REGISTRY",
    "dassl.evaluation.build": "EVALUATOR_REGISTRY build_evaluator",
    "dassl.config": "clean_cfg cfg_default",
    "dassl.config.defaults": "_C",
}


def test_the_list_has_the_25_names_of_the_design() -> None:
    assert sum(len(names.split()) for names in NAMES.values()) == 25


@pytest.mark.parametrize("module", sorted({*NAMES, *FURTHER}))
def test_every_name_is_where_dassl_has_it(module: str) -> None:
    names = f"{NAMES.get(module, '')} {FURTHER.get(module, '')}".split()
    scope: dict[str, object] = {}
    exec(f"from {module} import {', '.join(names)}", scope)
    assert set(names) <= scope.keys()


# What Dassl's own modules import and trainers written for it take from there.
MERELY_IMPORTED = {
    "dassl.engine.trainer": "AverageMeter MetricMeter SummaryWriter DataManager tqdm np nn osp datetime time "
    "OrderedDict build_optimizer build_lr_scheduler build_evaluator build_backbone build_head count_num_param "
    "load_checkpoint save_checkpoint resume_from_checkpoint load_pretrained_weights mkdir_if_missing tolist_if_not",
    "dassl.engine.build": "Registry check_availability",
    "dassl.data.data_manager": "TorchDataset T torch read_image build_sampler tabulate",
    "dassl.data.datasets.base_dataset": "gdown os osp random tarfile zipfile defaultdict check_isfile",
    "dassl.data.datasets.build": "Registry",
    "dassl.data.samplers": "Sampler RandomSampler SequentialSampler np",
    "dassl.data.transforms.transforms": "F Compose Resize Normalize RandAugmentFixMatch InterpolationMode",
    "dassl.data.transforms.randaugment": "ShearX TranslateXabs CutoutAbs Flip randaugment_list2 PIL",
    "dassl.evaluation.evaluator": "f1_score confusion_matrix OrderedDict np",
    "dassl.modeling.backbone.resnet": "BasicBlock Bottleneck conv3x3 model_zoo model_urls init_pretrained_weights",
    "dassl.modeling.backbone.vgg": "load_state_dict_from_url nn",
    "dassl.modeling.head.mlp": "functools nn HEAD_REGISTRY",
    "dassl.modeling.ops.reverse_grad": "Function reverse_grad",
    "dassl.optim.lr_scheduler": "torch _LRScheduler",
    "dassl.optim.optimizer": "RAdam nn warnings",
    "dassl.optim.radam": "Optimizer math",
    "dassl.utils.tools": "osp json errno SequenceMatcher PIL",
    "dassl.utils.torchtools": "pickle shutil partial set_bn_to_eval adjust_learning_rate",
    "dassl.utils.meters": "defaultdict torch",
    "dassl": "__version__ __author__ __homepage__",
}


@pytest.mark.parametrize("module", sorted(MERELY_IMPORTED))
def test_a_module_also_gives_what_dassls_only_imports(module: str) -> None:
    names = MERELY_IMPORTED[module].split()
    scope: dict[str, object] = {}
    exec(f"from {module} import {', '.join(names)}", scope)
    assert set(names) <= scope.keys()


SUBMODULES = {
    "dassl.data": "data_manager samplers transforms datasets",
    "dassl.data.datasets": "base_dataset build",
    "dassl.data.transforms": "autoaugment randaugment transforms",
    "dassl.engine": "build trainer",
    "dassl.evaluation": "build evaluator",
    "dassl.modeling": "ops head backbone network",
    "dassl.modeling.backbone": "build backbone resnet",
    "dassl.modeling.ops": "utils mmd dsbn attention conv optimal_transport reverse_grad transnorm",
    "dassl.utils": "tools logger meters registry torchtools",
}


@pytest.mark.parametrize("package", sorted(SUBMODULES))
def test_a_package_gives_its_submodules(package: str) -> None:
    scope: dict[str, object] = {}
    names = SUBMODULES[package].split()
    exec(f"from {package} import {', '.join(names)}", scope)
    assert all(isinstance(scope[name], ModuleType) for name in names)


def test_every_name_of_the_namespaces_table_is_found() -> None:
    for place in IMPORTS:
        module = importlib.import_module(f"dassl.{place}".rstrip("."))
        missing = [name for name in imports_of(place) if not hasattr(module, name)]
        assert missing == [], place


def test_a_name_means_in_each_module_what_it_means_there() -> None:
    functional = importlib.import_module("dassl.metrics.distance").F
    assert functional is torch.nn.functional
    assert importlib.import_module("dassl.data.transforms.transforms").F is torchvision.transforms.functional
    assert importlib.import_module("dassl.engine.trainer").AverageMeter is dassl_lite.utils.AverageMeter


def test_a_star_import_brings_the_merely_imported_names_too() -> None:
    scope: dict[str, object] = {}
    exec("from dassl.engine.trainer import *", scope)
    assert {"TrainerX", "AverageMeter", "SummaryWriter", "nn"} <= scope.keys()


def test_the_lent_names_go_with_the_alias() -> None:
    trainer = importlib.import_module("dassl.engine.trainer")
    assert hasattr(trainer, "AverageMeter")
    compat.disable()
    try:
        assert not hasattr(trainer, "AverageMeter")
        assert "AverageMeter" not in trainer.__all__
    finally:
        compat.enable()


def test_small_functions_of_dassl_do_what_they_say() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    small.adjust_learning_rate(optimiser, 1.0, 40)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.01)
    small.adjust_learning_rate(optimiser, 1.0, 25, linear_decay=True, final_lr=0.2)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.8)
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout()).train()
    net.apply(small.set_bn_to_eval)
    assert [layer.training for layer in net] == [False, True]
    small.reverse_grad(parameter, 2.0).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.item() == -2.0


def rows_of_the_guide() -> list[tuple[str, str, str]]:
    """(Dassl's module, name, our module) of the table for those who port."""
    guide = (Path(__file__).parents[2] / "trainers" / "README.md").read_text(encoding="utf-8")
    rows = []
    for theirs, ours in re.findall(r"^\| (`dassl\..*?) \| `(dassl_lite.*?)` \|$", guide, re.MULTILINE):
        for part in re.split("; (?=`dassl)", theirs):
            module, *names = re.findall("`(.*?)`", part)
            rows += [(module, name, ours) for name in names]
    return rows


def test_the_guides_table_names_the_right_places() -> None:
    rows = rows_of_the_guide()
    assert len(rows) > 100
    private = ("_correct", "_total", "_y_true", "_y_pred", "_per_class_res")
    for module, name, ours in rows:
        if name not in private:  # fields of Classification
            there = importlib.import_module(module)
            assert getattr(there, name) is getattr(importlib.import_module(ours), name), (module, name)
    design = {name for names in NAMES.values() for name in names.split()}
    assert design - {name for _, name, _ in rows} == set()


def test_the_alias_is_the_same_module() -> None:
    import dassl.engine.trainer

    assert dassl.engine is dassl_lite.engine
    assert dassl.engine.trainer is dassl_lite.engine.contract.trainer
    assert dassl.engine.trainer.__name__ == "dassl_lite.engine.contract.trainer"
    assert dassl_lite.engine.__spec__.name == "dassl_lite.engine"


NAMED_LIKE_THEIR_MODULES = ("ops.mixup", "ops.cross_entropy", "head.mlp", "backbone.alexnet")
ASKED = f"""
import dassl_lite.compat, dassl, os
print("dassl is", dassl.__name__)
from dassl.config.defaults import _C
_C.TRAINER.FORK = 3
from dassl.config import get_cfg_default
one, other = get_cfg_default(), get_cfg_default()
one.TRAINER.FORK = 4
print("keys:", one.TRAINER.FORK, other.TRAINER.FORK, flush=True)
for name in {NAMED_LIKE_THEIR_MODULES}:
    if os.fork() == 0:  # for each a process of its own: once a module is found, its package stays as it is
        package, function = name.split(".")
        found = {{}}
        exec(f"from dassl.modeling.{{name}} import {{function}} as from_module", found)
        exec(f"from dassl.modeling.{{package}} import {{function}} as from_package", found)
        assert callable(found["from_package"]), name
        assert found["from_module"] is found["from_package"], name
        os._exit(0)
    print(name, os.wait()[1], flush=True)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of Dassl's name."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "dassl").mkdir()
    (folder / "dassl" / "__init__.py").write_text("REAL = True\n")
    return folder


@pytest.fixture(scope="module")
def answers(real: Path) -> list[str]:
    """What a new process prints that imports the alias where the real Dassl is installed."""
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, cwd=real, check=False)
    return (done.stderr + done.stdout).splitlines()


@pytest.mark.slow
def test_importing_a_module_keeps_the_function_of_its_name(answers: list[str]) -> None:
    assert answers[-len(NAMED_LIKE_THEIR_MODULES) :] == [f"{name} 0" for name in NAMED_LIKE_THEIR_MODULES]


def test_a_module_that_we_lack_raises_module_not_found() -> None:
    assert importlib.util.find_spec("dassl.engine.nothing_like_it") is None
    with pytest.raises(ModuleNotFoundError, match="No module named 'dassl.engine.dg'"):
        importlib.import_module("dassl.engine.dg")


def test_keys_of_dassls_own_trainers_exist_while_the_alias_is_on() -> None:
    """A paper's trainer that builds on FixMatch reads FixMatch's keys and finds them in Dassl's defaults."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    assert (cfg.TRAINER.FIXMATCH.CONF_THRE, cfg.TRAINER.FIXMATCH.STRONG_TRANSFORMS) == (0.95, ())
    cfg.merge_from_list(["TRAINER.MIXMATCH.TEMP", 0.5])
    assert get_cfg_default().TRAINER.MIXMATCH.TEMP == 2.0
    compat.disable()
    try:
        assert list(get_cfg_default().TRAINER) == ["NAME"]
    finally:
        compat.enable()


@pytest.mark.slow
def test_keys_that_a_fork_adds_to_dassls_defaults_are_kept(answers: list[str]) -> None:
    """As forks do it in their copy of the package, and papers in theirs of train.py."""
    assert "keys: 4 3" in answers


@pytest.mark.slow
def test_an_installed_dassl_is_replaced_with_a_warning(answers: list[str], real: Path) -> None:
    warning, name, *_ = answers
    assert f"dassl is installed at {real}/dassl/__init__.py, but dassl_lite replaces it" in warning
    assert name == "dassl is dassl_lite"
    assert len(answers) == 3 + len(NAMED_LIKE_THEIR_MODULES)


def test_enabling_after_the_real_dassl_was_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.disable()
    try:
        monkeypatch.setitem(sys.modules, "dassl", sys.modules[__name__])
        with pytest.raises(
            UserError, match=f"dassl has already been imported from {__file__}; import dassl_lite.compat"
        ):
            compat.enable()
    finally:
        monkeypatch.undo()
        compat.enable()

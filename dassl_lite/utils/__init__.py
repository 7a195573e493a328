"""Helpers without knowledge of trainers or data; Dassl's ``dassl.utils`` names are importable from here."""

from dassl_lite.utils.env import collect_env_info
from dassl_lite.utils.errors import UserError, unknown
from dassl_lite.utils.files import (
    atomic_path,
    cache_root,
    check_isfile,
    digest_of,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    write_json,
)
from dassl_lite.utils.logger import get_logger, setup_logger
from dassl_lite.utils.meters import AverageMeter, MetricMeter
from dassl_lite.utils.registry import Registry
from dassl_lite.utils.seeding import set_random_seed
from dassl_lite.utils.torchtools import (
    count_num_param,
    init_network_weights,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
)

__all__ = [
    "AverageMeter",
    "MetricMeter",
    "Registry",
    "UserError",
    "atomic_path",
    "cache_root",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "digest_of",
    "get_logger",
    "init_network_weights",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "unknown",
    "write_json",
]

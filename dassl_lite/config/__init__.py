"""Configuration: defaults under Dassl's names, merging with helpful errors, range checks."""

from dassl_lite.config.check import check_ranges
from dassl_lite.config.defaults import _C as cfg_default  # noqa: N811 (Dassl's two names)
from dassl_lite.config.defaults import CN, get_cfg_default
from dassl_lite.config.load import (
    ConfigKeyError,
    add_keys,
    clean_cfg,
    completed,
    merge_file,
    merge_mapping,
    merge_options,
    set_epochs,
    sources_of,
    to_dict,
)

__all__ = [
    "CN",
    "ConfigKeyError",
    "add_keys",
    "cfg_default",
    "check_ranges",
    "clean_cfg",
    "completed",
    "get_cfg_default",
    "merge_file",
    "merge_mapping",
    "merge_options",
    "set_epochs",
    "sources_of",
    "to_dict",
]

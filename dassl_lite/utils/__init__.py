"""Helpers without knowledge of trainers or data; Dassl's ``dassl.utils`` names are importable from here."""

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
from dassl_lite.utils.registry import Registry

__all__ = [
    "Registry",
    "UserError",
    "atomic_path",
    "cache_root",
    "check_isfile",
    "digest_of",
    "get_logger",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_json",
    "setup_logger",
    "unknown",
    "write_json",
]

"""The environment's description: complete, and free of what identifies a machine or its user."""

from __future__ import annotations

import getpass
import json
import socket

import torch

from dassl_lite.utils.env import collect_env_info, environment


def test_the_description_is_plain_and_names_torch() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert str(found["torch"]).split("+")[0] == torch.__version__.split("+")[0]
    assert f"torch: {found['torch']}" in collect_env_info().splitlines()


def test_neither_host_nor_home_is_in_it() -> None:
    text = collect_env_info()
    assert socket.gethostname() not in text
    assert f"/home/{getpass.getuser()}" not in text

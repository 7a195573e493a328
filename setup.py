"""Packaging. The top-level folders are mapped into the package.

Installed bare, ``datasets`` and ``trainers`` would clash with Hugging Face's ``datasets`` in site-packages, so
each of these folders is installed as ``dassl_lite.<folder>``, editable or not.
"""

from setuptools import find_packages, setup

FOLDERS = ("trainers", "datasets", "configs", "tools")
PACKAGE_DIR = {f"dassl_lite.{folder}": folder for folder in FOLDERS}

packages = find_packages(include=["dassl_lite", "dassl_lite.*"])
for name, folder in PACKAGE_DIR.items():
    packages += [name, *(f"{name}.{sub}" for sub in find_packages(folder))]

setup(packages=packages, package_dir=PACKAGE_DIR)

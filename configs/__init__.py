"""Yaml files of datasets and methods, installed as package data."""

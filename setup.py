"""Kept for tools that expect this file; pyproject.toml describes the package."""

from setuptools import setup

setup()

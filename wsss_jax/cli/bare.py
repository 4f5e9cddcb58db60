"""Settings whose flags carry no prefix of their own."""

from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")

Bare = Annotated[T, tyro.conf.arg(name="")]
"""The flags of ``settings: Bare[Training]`` are ``--epochs`` and not ``--settings.epochs``."""

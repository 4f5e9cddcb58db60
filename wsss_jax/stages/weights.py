"""Pretrained weights of any layout, converted to a file of ours."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from wsss_jax.errors import UserError
from wsss_jax.models import build, import_hub


def command(
    action: tyro.conf.Positional[Literal["convert"]],
    source: tyro.conf.Positional[str | None] = None,
    *,
    to: Path,
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    backbone: str | None = None,
) -> None:
    """Convert pretrained weights of any layout to an npz of ours.

    Args:
        action: convert is all there is.
        source: .pth, .safetensors, .params, or .npz of Google's or ours.
        to: the file to write.
        from_: the same as the source; or hub:owner/name to download it from Hugging Face.
        backbone: the network it is for; found by its names and shapes when not given.
    """
    given = [name for name in (source, from_) if name is not None]
    if len(given) != 1:
        raise UserError(f"{len(given)} sources; name one file, or --from hub:owner/name")
    here = import_hub.fetch(given[0]) if import_hub.is_on_hub(given[0]) else Path(given[0])
    print(f"{to}: {build.convert(here, to, backbone)}")

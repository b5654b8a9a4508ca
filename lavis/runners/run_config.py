"""The configuration that a run writes beside its results."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from lavis.common import dist_utils
from lavis.common.config import Config
from lavis.common.files import replacing, set_aside


def save_config(cfg: Config, path: Path) -> None:
    """Write the whole configuration, on rank 0, once the run begins to write: a start that fails before leaves the file of the
    finished run. An earlier file of other content is kept as ``<stem>.<n>.yaml``."""
    if not dist_utils.is_main_process():
        return
    content = OmegaConf.to_yaml(cfg.get_config()).encode()
    if path.is_file() and path.read_bytes() == content:
        return
    set_aside(path)
    with replacing(path) as stream:
        stream.write(content)

"""Evaluate a model on run.test_splits: python evaluate.py --cfg-path X.yaml [--options model.finetuned=Y.pth
...]

Several processes: torchrun --nproc_per_node=8 evaluate.py --cfg-path X.yaml
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lavis.common.config import Config
from lavis.runners import run_lock
from lavis.runners.launch import build_runner, parse_args, run_main


def evaluate(argv: Sequence[str] | None = None) -> None:
    cfg = Config(parse_args("Evaluate a model.", argv))
    with run_lock.held(cfg.run_cfg):
        build_runner(cfg, splits=list(cfg.run_cfg.test_splits), config_name="config_evaluate").evaluate()


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: evaluate(argv))


if __name__ == "__main__":
    if code := main():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python's own end could wait for other processes, see run_main

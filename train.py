"""Train a model: python train.py --cfg-path X.yaml [--options run.max_epoch=3 ...]

Several processes: torchrun --nproc_per_node=8 train.py --cfg-path X.yaml
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lavis.common.config import Config
from lavis.runners import run_lock
from lavis.runners.launch import build_runner, parse_args, run_main


def train(argv: Sequence[str] | None = None) -> None:
    cfg = Config(parse_args("Train a model.", argv))
    run = cfg.run_cfg
    trained = [] if run.evaluate else [*run.train_splits, *run.valid_splits]
    with run_lock.held(run):
        build_runner(cfg, splits=[*trained, *run.test_splits], config_name="config").train()


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: train(argv))


if __name__ == "__main__":
    if code := main():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python's own end could wait for other processes, see run_main

"""From a command line to a runner: what train.py and evaluate.py share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lavis.common import dist_utils
from lavis.common.config import Config, ConfigError
from lavis.common.logger import setup_logging
from lavis.common.paths import resolve
from lavis.common.precision import building_for
from lavis.common.registry import registry
from lavis.common.seeding import seed_everything
from lavis.datasets.datasets.base_dataset import AnnotationError
from lavis.runners import failures
from lavis.runners.checks import check_model, check_run, check_weight_sources
from lavis.runners.faults import TooManySkippedSteps
from lavis.runners.signals import Stopped
from lavis.runners.step import amp_dtype
from lavis.tasks import setup_task

logger = logging.getLogger(__name__)
CONFIG_EXIT_CODE = 2
FAULT_EXIT_CODE = 3  # training went wrong for good


def parse_args(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """``--cfg-path X --options a.b=c d.e=f`` (LAVIS' command line)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cfg-path", required=True, help="a YAML file with model, datasets and run")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys, e.g. run.max_epoch=3"
    )
    return parser.parse_args(argv)


def build_runner(cfg: Config, *, splits: Sequence[str], config_name: str) -> Any:
    """The runner of a configuration, ready to train or evaluate: process group, seed and logs set up,
    everything checked that can be, then datasets (``splits`` of them) and at last the model built."""
    run = cfg.run_cfg
    device = dist_utils.init_distributed(run)
    setup_logging(resolve(run.output_dir), rank=dist_utils.get_rank())
    check_run(run)
    check_model(cfg.model_cfg)
    if (run.evaluate or config_name != "config") and not run.test_splits:
        raise ConfigError("run.test_splits is empty: nothing to evaluate")
    seed_everything(int(run.seed))
    task = setup_task(cfg)
    cfg.pretty_print()
    logger.info("%d process(es), %s", dist_utils.get_world_size(), device)
    datasets = task.build_datasets(cfg, splits=splits)
    with building_for(device, autocast=amp_dtype(run, device)):
        model = task.build_model(cfg)
    allowed = bool(cfg.model_cfg.get("allow_random_init", False))
    check_weight_sources(model, allow_random_init=allowed, for_evaluation=config_name != "config")
    return registry.get_runner_class(run.runner)(cfg, task=task, model=model, datasets=datasets)


def run_main(action: Callable[[], object]) -> int:
    """Run a command; what a user can put right (configuration, annotations, checkpoints) is told in one
    message on stderr and gives exit code 2. A run that was asked to end and has saved gives 0. Everything else keeps its
    traceback. Several processes leave their group in order only at a good end: after an error that would be to wait for the
    others, which may wait for this one; so the command then ends by ``os._exit``."""
    setup_logging(rank=int(os.environ.get("RANK", 0)))
    try:
        failures.recorded(action)
    except (ConfigError, AnnotationError) as error:
        rank = dist_utils.get_rank()
        print(f"error{f' (rank {rank})' if dist_utils.is_distributed() else ''}: {error}", file=sys.stderr)
        logger.debug("raised here", exc_info=True)
        return CONFIG_EXIT_CODE
    except Stopped as stopped:
        logger.info("%s: the run is saved and ends here; run.resume_ckpt_path=auto goes on with it", stopped)
    except TooManySkippedSteps as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT_EXIT_CODE
    except Exception as error:
        if not dist_utils.is_distributed():
            raise
        failures.show(error)
        return 1
    dist_utils.shutdown_distributed()
    return 0

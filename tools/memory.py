"""What each process of a run will hold on its device, before the run is started.

    python tools/memory.py --cfg-path run_scripts/train/regionblip_t5-xxl_freeze-qformer_regloss_pcqformer_A100.yaml \
        --world-size 8 --options run.shard=llm model.llm_grad_checkpoint=true

The model is built at its real size but without numbers, so neither weights nor a GPU are needed. Sizes of the language model
and of BERT come from the config.json that the configuration names; where that is not here, from the published sizes. How each
line is worked out, and what is left out, stands in lavis/runners/memory.py and lavis/models/dry_run.py.
"""

from __future__ import annotations

import lavis  # noqa: F401  # isort: skip (before torch)

import argparse
import logging
import sys

import torch

from lavis.common.config import Config, ConfigError
from lavis.common.registry import registry
from lavis.models.dry_run import build_on_meta, dry_run, generation_bytes
from lavis.runners.memory import Account, account, table
from lavis.runners.step import AMP_DTYPES


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg-path", required=True, help="the run's YAML file")
    parser.add_argument("--world-size", type=int, default=1, help="number of processes, one per GPU (default: 1)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the run will be (default: cuda)")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    given = parser.parse_args(arguments)
    if given.world_size < 1:
        parser.error(f"--world-size is {given.world_size}; accepted: 1 or more")
    return given


def batch_sizes(cfg: Config) -> dict[str, int]:
    """Rows of a training batch of one process, for the modality of each dataset."""
    runner = object.__new__(registry.get_runner_class(cfg.run_cfg.runner))
    runner.run_cfg = cfg.run_cfg
    builders = [registry.get_builder_class(str(name))(part) for name, part in cfg.datasets_cfg.items()]
    return {builder.modality: runner.batch_size(builder.modality) for builder in builders}


def count(cfg: Config, *, world_size: int, device: str) -> Account:
    """The account of a run, training or evaluation as the configuration says."""
    run, shared = cfg.run_cfg, {"world_size": world_size, "shard": cfg.run_cfg.shard}
    dtype = AMP_DTYPES[run.amp_dtype or "bf16"] if run.amp and (device == "cuda" or run.amp_dtype) else torch.float32
    model, notes = build_on_meta(cfg.model_cfg, device=device, autocast=dtype)
    if run.evaluate:
        found = account(model, learning={}, **shared)
        rows = int(run.batch_size_eval)
        found.activations = generation_bytes(model, rows=rows, beams=int(run.num_beams), length=int(run.max_len))
        notes.append(f"activations: caches and scores of {run.num_beams} beams for {rows} rows")
    else:
        steps = [dry_run(model, modality, rows=rows, dtype=dtype) for modality, rows in batch_sizes(cfg).items()]
        learning = {step.modality: step.with_gradient for step in steps}
        found = account(model, learning=learning, accumulate=int(run.accum_grad_iters) > 1, **shared)
        most = max(steps, key=lambda step: step.kept)
        found.activations = most.kept
        notes.append(f"activations: a batch of {most.rows} of {most.modality}, an estimate")
    found.notes = notes
    return found


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    logging.disable(logging.WARNING)
    try:
        cfg = Config.from_file(given.cfg_path, options=given.options)
        found = count(cfg, world_size=given.world_size, device=given.device)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        logging.disable(logging.NOTSET)
    run = cfg.run_cfg
    print(f"{given.cfg_path}: {given.world_size} process(es) on {given.device}, run.shard {run.shard}, GiB\n")
    print(table(found, world_size=given.world_size))
    return 0


if __name__ == "__main__":
    sys.exit(main())

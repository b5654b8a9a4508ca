"""Make the frozen base of the quickstart: ViT, tokenizers, OPT, BLIP-2 and Point-BERT, on 2 CPU cores.

    make quickstart-base        (python run_scripts/quickstart/make_base.py --output output/quickstart-base)

The base sees single things, collages of them, captions, whole pictures with their captions, and objects and rooms as clouds of
labelled points; never a box of a scene. Its scenes are drawn from other seeds than the quickstart's, and from the same
training scans. Every stage that is done is kept, so
the command can be run again. `--install` copies the result to assets/quickstart, where `make quickstart` finds it.
"""

from __future__ import annotations

import lavis  # noqa: F401  # isort: skip (before torch)

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from lavis.common.checkpoint import find_latest, load_checkpoint_file
from lavis.common.config import Config
from lavis.models import load_model_from_config
from lavis.quickstart.scenes import generate

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
DATA_SEED, NUM_TRAIN, NUM_TEST = 1, 8000, 100
PHRASINGS = ("place_first",)  # a caption first says where, then what stands there
log = logging.getLogger("make_base")


def export_blip2(checkpoint: Path, target: Path, *, config: Path) -> None:
    """The trainable weights of a checkpoint under LAVIS BLIP-2's names, in half precision."""
    model = load_model_from_config(Config.from_file(config).model_cfg)
    state = load_checkpoint_file(checkpoint)["model"]
    published = {model.key_map.from_lavis(name, "blip2"): tensor.half().contiguous() for name, tensor in state.items()}
    save_file(published, target, metadata={"format": "pt"})


def run(name: str, command: Sequence[str], *, base: Path, done: Path, **environment: str) -> None:
    """Run a stage unless the file that it leaves is there; what it prints is also added to logs/<name>.log."""
    if done.exists():
        log.info("kept: %s", done)
        return
    begin = time.perf_counter()
    logs = base / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, **environment}
    with (logs / f"{name}.log").open("a") as kept:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=REPOSITORY, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            kept.write(line.replace(f"{REPOSITORY}/", "").replace(str(base.parent), base.parent.name))  # the logs are shipped
    if process.wait():
        raise SystemExit(f"{name} failed with exit code {process.returncode}: {' '.join(command)}")
    log.info("%s took %.0f s", name, time.perf_counter() - begin)


def make(output: Path) -> None:
    """All stages in order."""
    data, base = output / "data", output / "base"
    if not (data / "annotations" / "vocabulary.json").exists():
        generate(data, seed=DATA_SEED, num_train=NUM_TRAIN, num_test=NUM_TEST, phrasings=PHRASINGS)
    vit, lm, blip2 = base / "vit.safetensors", base / "opt" / "model.safetensors", base / "blip2.safetensors"
    run("pretrain_vit", [str(HERE / "pretrain_vit.py"), "--output", str(vit)], base=base, done=vit)
    run("pretrain_lm", [str(HERE / "pretrain_lm.py"), "--data", str(data), "--output", str(base)], base=base, done=lm)
    config, folder = HERE / "pretrain_blip2.yaml", output / "blip2"
    places = {"QUICKSTART_BASE": str(base), "QUICKSTART_DATA": str(data)}
    options = ["--options", f"run.output_dir={folder}", "run.resume_ckpt_path=auto"]
    run("pretrain_blip2", ["train.py", "--cfg-path", str(config), *options], base=base, done=blip2, **places)
    if not blip2.exists():
        os.environ.update(places)
        checkpoint = find_latest(folder)
        assert checkpoint is not None, f"{folder} holds no checkpoint"
        export_blip2(checkpoint, blip2, config=config)
    points = base / "pointbert.safetensors"
    command = [str(HERE / "pretrain_pointbert.py"), "--bf16", "--output", str(points)]
    run("pretrain_pointbert", command, base=base, done=points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/quickstart-base"))
    parser.add_argument("--install", action="store_true", help="copy the result to assets/quickstart")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    begin = time.perf_counter()
    make(args.output.resolve())
    log.info("done in %.0f s: %s", time.perf_counter() - begin, args.output / "base")
    if args.install:
        shutil.copytree(args.output / "base", REPOSITORY / "assets" / "quickstart", dirs_exist_ok=True)


if __name__ == "__main__":
    main()

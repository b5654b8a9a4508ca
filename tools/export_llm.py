"""A trained model in two halves for other engines: plain language-model weights, and soft prompts that they can decode.

    python tools/export_llm.py weights --cfg-path run_scripts/eval_opt/X.yaml --options model.finetuned=Y.pth \
        --modality image_region -o served
    python tools/export_llm.py prompts --cfg-path run_scripts/eval_opt/X.yaml --options model.finetuned=Y.pth \
        --image room.jpg --boxes 10,20,200,180 40,40,90,120 -o prompts.safetensors

`weights` writes a Hugging Face folder: the adapters of one modality are merged into the weights, in the precision that the
configuration names for a GPU (--float32: in float32). Lengths and beams come from run.max_len, min_len, num_beams, length_penalty
and repetition_penalty. `prompts` writes the input embeddings of pixel boxes (x1,y1,x2,y2), or of the whole picture, and a mask.
How both are decoded: docs/serving.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from lavis.common.config import Config, ConfigError
from lavis.models import load_model_from_config
from lavis.models.export import checked_modality, export_llm, save_prompts
from lavis.models.language import Decoding
from lavis.runners.checks import check_model, check_weight_sources


def box(text: str) -> list[float]:
    """x1,y1,x2,y2 in pixels."""
    numbers = [float(number) for number in text.split(",")]
    if len(numbers) != 4:
        raise ValueError
    return numbers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    weights = commands.add_parser("weights", help="a plain Hugging Face folder for one modality")
    weights.add_argument("--modality", required=True, help="whose adapters are merged: image, image_region, ...")
    weights.add_argument("-o", "--output", required=True, help="the folder to write; it must be new or empty")
    weights.add_argument("--float32", action="store_true", help="write float32, whatever precision the configuration names")
    prompts = commands.add_parser("prompts", help="soft prompts of a picture or of boxes on it")
    prompts.add_argument("--image", required=True, help="a picture")
    prompts.add_argument("--boxes", type=box, nargs="+", metavar="X1,Y1,X2,Y2", help="in pixels; without: the whole picture")
    prompts.add_argument("--modality", help="default: the first on pictures with boxes, or without")
    prompts.add_argument("--prompt", help="text behind the queries; default: the configuration's")
    prompts.add_argument("--device", default="cpu", help="where the encoders run (default: cpu)")
    prompts.add_argument("-o", "--output", required=True, help="the .safetensors file to write")
    for command in (weights, prompts):
        command.add_argument("--cfg-path", required=True, help="a run's YAML file")
        command.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_args(arguments)


def load(cfg: Config, *, device: str) -> Any:
    """The model of a configuration in eval mode, held as it would be on `device`; ConfigError where a part of it is random."""
    check_model(cfg.model_cfg)
    model = load_model_from_config(cfg.model_cfg, device=device)
    check_weight_sources(model, allow_random_init=bool(cfg.model_cfg.get("allow_random_init")), for_evaluation=True)
    return model.eval()


def write_weights(cfg: Config, given: argparse.Namespace) -> str:
    run = cfg.run_cfg
    decoding = Decoding(
        num_beams=run.num_beams, max_length=run.max_len, min_length=run.min_len, length_penalty=run.length_penalty,
        repetition_penalty=run.repetition_penalty,
    )  # fmt: skip
    model = load(cfg, device="cpu" if given.float32 else "cuda")
    facts = export_llm(model, given.output, modality=given.modality, decoding=decoding)
    return f"{given.output}: {facts['modality']} merged into {facts['lora']['layers']} layers, {facts['dtype']}"


def write_prompts(cfg: Config, given: argparse.Namespace) -> str:
    try:
        picture = Image.open(given.image).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"--image {given.image} cannot be read: {error}") from error
    model = load(cfg, device=given.device).to(given.device)
    modality = checked_modality(model, given.modality) if given.modality else None
    samples = model.picture_samples(picture, given.boxes, modality=modality)
    if given.prompt is not None:
        samples["prompt"] = given.prompt
    samples = {key: value.to(given.device) if isinstance(value, torch.Tensor) else value for key, value in samples.items()}
    about = {"image": Path(given.image).name, "boxes": given.boxes}
    shape = save_prompts(model, samples, given.output, about=about)
    return f"{given.output}: inputs_embeds {list(shape)} of {samples['modality']}"


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    try:
        cfg = Config.from_file(given.cfg_path, options=given.options)
        done = write_weights(cfg, given) if given.command == "weights" else write_prompts(cfg, given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A trained model in two halves for other engines: plain language-model weights, and soft prompts that they can decode.

    python tools/export_llm.py weights --checkpoint output/mine/checkpoint_best.pth --modality image_region -o served
    python tools/export_llm.py prompts --checkpoint output/mine/checkpoint_best.pth --image room.jpg \
        --boxes 10,20,200,180 40,40,90,120 -o prompts.safetensors

`weights` writes a Hugging Face folder: the adapters of one modality are merged into the weights, in the precision that the
configuration names for a GPU (--float32: in float32). Lengths and beams are run.max_len, min_len, num_beams, length_penalty and
repetition_penalty of --cfg-path; without it 5 beams, and the longest caption that the checkpoint's own configuration says.
`prompts` writes the input embeddings of pixel boxes (x1,y1,x2,y2), or of the whole picture, and a mask. Published checkpoints
hold no configuration: name one with --cfg-path. How both halves are decoded: docs/serving.md.
"""

from __future__ import annotations

import lavis  # noqa: F401  # isort: skip (before torch)

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from lavis.common.config import Config
from lavis.models.language import Decoding
from lavis.models.weights.export import checked_modality, export_llm, save_prompts
from lavis.serving.box_arguments import BOX, read_boxes, with_minus
from lavis.serving.captioner import Captioner
from lavis.serving.images import open_image
from lavis.serving.loading import load_captioner


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    weights = commands.add_parser("weights", help="a plain Hugging Face folder for one modality")
    weights.add_argument("--modality", required=True, help="whose adapters are merged: image, image_region, ...")
    weights.add_argument("-o", "--output", required=True, help="the folder to write; it must be new or empty")
    weights.add_argument("--float32", action="store_true", help="write float32, whatever precision the configuration names")
    prompts = commands.add_parser("prompts", help="soft prompts of a picture or of boxes on it")
    prompts.add_argument("--image", required=True, help="a picture")
    prompts.add_argument("--boxes", nargs="+", action="extend", metavar=BOX, help="in pixels; without: the whole picture")
    prompts.add_argument("--modality", help="default: the first on pictures with boxes, or without")
    prompts.add_argument("--prompt", help="text behind the queries; default: the configuration's")
    prompts.add_argument("--device", default="cpu", help="where the encoders run (default: cpu)")
    prompts.add_argument("-o", "--output", required=True, help="the .safetensors file to write")
    for command in (weights, prompts):
        command.add_argument("--checkpoint", help="trained weights; default: those of --cfg-path, else the quickstart's")
        command.add_argument("--cfg-path", help="a run's YAML file; default: the configuration inside the checkpoint")
        command.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_args(with_minus(arguments))


def load(given: argparse.Namespace, **where: Any) -> Captioner:
    return load_captioner(given.checkpoint, cfg_path=given.cfg_path, options=given.options, **where)


def decoding_of(given: argparse.Namespace, found: Captioner) -> Decoding:
    """Lengths and beams of a run's configuration, else what the demos decode with."""
    if not given.cfg_path:
        return Decoding(**found.decoding)
    run = Config.from_file(given.cfg_path, options=given.options).run_cfg
    return Decoding(
        num_beams=run.num_beams, max_length=run.max_len, min_length=run.min_len, length_penalty=run.length_penalty,
        repetition_penalty=run.repetition_penalty,
    )  # fmt: skip


def write_weights(given: argparse.Namespace) -> str:
    found = load(given, precision_of="cpu" if given.float32 else "cuda")
    decoding = decoding_of(given, found)
    facts = export_llm(found.model, given.output, modality=given.modality, decoding=decoding, checkpoint=found.checkpoint)
    return f"{given.output}: {facts['modality']} merged into {facts['lora']['layers']} layers, {facts['dtype']}"


def write_prompts(given: argparse.Namespace) -> str:
    picture, boxes = open_image(given.image), read_boxes(given.boxes, BOX) if given.boxes else None
    found = load(given, device=given.device)
    model = found.model
    modality = checked_modality(model, given.modality) if given.modality else None
    samples = {"image": model.picture(picture), **model.picture_samples(picture.size, boxes, modality=modality)}
    samples = {key: value.to(given.device) if isinstance(value, torch.Tensor) else value for key, value in samples.items()}
    if given.prompt is not None:
        samples["prompt"] = given.prompt
    about = {"image": Path(given.image).name, "boxes": boxes}
    shape = save_prompts(model, samples, given.output, checkpoint=found.checkpoint, about=about)
    return f"{given.output}: inputs_embeds {list(shape)} of {samples['modality']}"


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    try:
        done = write_weights(given) if given.command == "weights" else write_prompts(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command lines of the demos: one function each, which `tools/demo_*.py` call under two names."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavis.common.errors import ConfigError
from lavis.common.files import read_json, replacing
from lavis.datasets.cloud_files import read_cloud
from lavis.processors.prompts import read_region, read_region_3d
from lavis.serving.box_arguments import BOX, BOX_3D, numbers, read_boxes, with_minus
from lavis.serving.captioner import Captioner
from lavis.serving.drawing import draw_regions
from lavis.serving.images import open_image
from lavis.serving.loading import load_captioner

Demo = Callable[[Sequence[str] | None], None]


def run(demo: Demo, argv: Sequence[str] | None = None) -> int:
    """Exit code of a demo: 1, and one message on stderr, for what a user can put right."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        demo(argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What every demo takes: which model, where, and how it decodes."""
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", help="default: the newest of make quickstart, else the one that is shipped")
    model.add_argument(
        "--cfg-path", help="YAML of the model, where the checkpoint holds none (published ones) or another is wanted"
    )
    model.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override model keys, e.g. model.opt_model=X",
    )
    model.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    model.add_argument("--num-beams", type=int, help="of beam search; 1 is greedy (default: 5)")
    model.add_argument("--max-length", type=int, help="longest caption in tokens (default: the checkpoint's)")
    model.add_argument("--min-length", type=int, help="shortest caption in tokens (default: 1)")


def captioner_of(given: argparse.Namespace) -> Captioner:
    """The captioner that the arguments ask for; which one it is goes to stderr."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    captioner = load_captioner(given.checkpoint, cfg_path=given.cfg_path, options=given.options, device=given.device)
    print(captioner.description, file=sys.stderr)
    return captioner


def decoding_of(given: argparse.Namespace) -> dict[str, Any]:
    """The decoding settings that were given, as keywords of `generate`; ValueError names those that make no sense."""
    decoding = {key: getattr(given, key) for key in ("num_beams", "max_length", "min_length") if getattr(given, key) is not None}
    for key, least in (("num_beams", 1), ("max_length", 1), ("min_length", 0)):
        if decoding.get(key, least) < least:
            raise ValueError(f"--{key.replace('_', '-')} is {decoding[key]}; accepted: whole numbers from {least}")
    return decoding


def answering_of(given: argparse.Namespace) -> dict[str, Any]:
    """The same as keywords of `predict_answers`."""
    names = {"max_length": "max_len", "min_length": "min_len"}
    return {names.get(key, key): value for key, value in decoding_of(given).items()}


def _parser(text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json-out", metavar="FILE", help="write what was asked and answered as JSON; - prints it instead of the text"
    )
    return parser


def _tell(given: argparse.Namespace, lines: Sequence[str], record: dict[str, Any]) -> None:
    """Print the lines, or the record where that was asked for."""
    text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
    if given.json_out == "-":
        sys.stdout.write(text)
        return
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if given.json_out:
        with replacing(Path(given.json_out), durable=False) as stream:
            stream.write(text.encode())


def _strokes(text: str) -> list[list[float]]:
    return [numbers(point, "--scribble") for point in text.split()]


def _listed_regions(path: str) -> list[Any]:
    """The regions of a JSON file: a list, or an object with a list under `regions` or `boxes`."""
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("regions", content.get("boxes"))
    if not isinstance(content, list):
        raise ConfigError(f"{path}: accepted: a list of regions, or an object with one under regions or boxes")
    return content


def _regions(given: argparse.Namespace, form: str, read: Callable[[Any, str], Any]) -> list[Any]:
    """All regions of the command line in the order boxes, JSON, points, masks, scribbles.

    form: how a box is written. read: makes a region of what was given and of the folder where paths in it start.
    """
    specs: list[tuple[Any, str]] = [(box, ".") for box in read_boxes(given.boxes, form)]
    if given.json:
        specs += [(spec, str(Path(given.json).parent)) for spec in _listed_regions(given.json)]
    extra = {"size": given.size} if given.size is not None else {}
    specs += [({"point": numbers(text, "--point"), **extra}, ".") for text in given.point]
    specs += [({"mask": path}, ".") for path in given.mask]
    specs += [({"scribble": _strokes(text)}, ".") for text in given.scribble]
    if not specs:
        raise ConfigError("no region is given; accepted: --boxes, --json, --point, --mask, --scribble")
    return [read(spec, folder) for spec, folder in specs]


def _add_region_arguments(parser: argparse.ArgumentParser, *, box: str, point: str, mask: str) -> None:
    region = parser.add_argument_group("regions, any number of each")
    region.add_argument(
        "--boxes",
        "--box",
        nargs="+",
        action="extend",
        default=[],
        metavar=box,
        help="with commas between the numbers of a box",
    )
    region.add_argument("--json", metavar="FILE", help="a list of boxes, or of objects with box, point, scribble or mask")
    region.add_argument("--point", nargs="+", action="extend", default=[], metavar=point, help="the box around a point")
    region.add_argument("--size", type=float, help="edge of the box around a point (default: see lavis/processors/prompts.py)")
    region.add_argument("--mask", nargs="+", action="extend", default=[], metavar=mask, help="the box around what is not zero")
    region.add_argument(
        "--scribble", nargs="+", action="extend", default=[], metavar=f'"{point} {point} ..."', help="the box around a line"
    )


# -- the demos ----------------------------------------------------------------------------------------------------
def image_demo(argv: Sequence[str] | None = None) -> None:
    """A caption of a picture, or the answer to a question on it."""
    parser = _parser("The caption of a picture, or the answer to a question on it.")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--question", help="ask this instead")
    add_model_arguments(parser)
    given = parser.parse_args(argv)
    image, decoding = open_image(given.image), decoding_of(given)
    captioner = captioner_of(given)
    record = {"image": given.image, "checkpoint": str(captioner.checkpoint)}
    if given.question is not None:
        answer = captioner.ask(image, given.question, **answering_of(given))
        _tell(given, [answer], {**record, "question": given.question, "answer": answer})
    else:
        caption = captioner.caption_image(image, **decoding)
        _tell(given, [caption], {**record, "caption": caption})


def image_region_demo(argv: Sequence[str] | None = None) -> None:
    """Captions of regions of a picture, a line each in the order given."""
    parser = _parser("Captions of regions of a picture, a line each; the picture is encoded once.")
    parser.add_argument("image", metavar="IMAGE")
    _add_region_arguments(parser, box=BOX, point="x,y", mask="MASK.png")
    parser.add_argument("--question", help="ask this of every region instead")
    parser.add_argument("--draw", metavar="OUT.png", help="write the picture with the boxes and what is said of them")
    add_model_arguments(parser)
    given = parser.parse_args(with_minus(argv))
    image, decoding = open_image(given.image), decoding_of(given)
    boxes = _regions(given, BOX, lambda spec, folder: read_region(spec, image.size, folder=folder))
    captioner = captioner_of(given)
    key = "caption" if given.question is None else "answer"
    if given.question is None:
        said = captioner.caption_regions(image, boxes, **decoding)
    else:
        said = [captioner.ask(image, given.question, box=box, **answering_of(given)) for box in boxes]
    if given.draw:
        Path(given.draw).parent.mkdir(parents=True, exist_ok=True)
        draw_regions(image, boxes, said).save(given.draw)
    regions = [{"box": box, key: text} for box, text in zip(boxes, said, strict=True)]
    asked = {} if given.question is None else {"question": given.question}
    _tell(given, said, {"image": given.image, "checkpoint": str(captioner.checkpoint), **asked, "regions": regions})


def pointcloud_demo(argv: Sequence[str] | None = None) -> None:
    """A caption of an object as a point cloud."""
    parser = _parser("The caption of an object as a point cloud: .npy, .npz, .ply or .pcd, y up as Objaverse's.")
    parser.add_argument("cloud", metavar="CLOUD")
    add_model_arguments(parser)
    given = parser.parse_args(argv)
    points, decoding = read_cloud(given.cloud), decoding_of(given)
    captioner = captioner_of(given)
    caption = captioner.caption_cloud(points, **decoding)
    _tell(given, [caption], {"pointcloud": given.cloud, "checkpoint": str(captioner.checkpoint), "caption": caption})


def pointcloud_region_demo(argv: Sequence[str] | None = None) -> None:
    """Captions of boxes in a scene, a line each in the order given."""
    parser = _parser("Captions of regions of a scene in metres, z up: .npy, .npz, .ply or .pcd. A line each; it is encoded once.")
    parser.add_argument("cloud", metavar="CLOUD")
    _add_region_arguments(parser, box=BOX_3D, point="x,y,z", mask="MASK.npy")
    add_model_arguments(parser)
    given = parser.parse_args(with_minus(argv))
    points, decoding = read_cloud(given.cloud), decoding_of(given)
    boxes: list[NDArray[np.float64]] = _regions(given, BOX_3D, lambda spec, folder: read_region_3d(spec, points, folder=folder))
    captioner = captioner_of(given)
    captions = captioner.caption_cloud_regions(points, boxes, **decoding)
    regions = [{"box": box.tolist(), "caption": text} for box, text in zip(boxes, captions, strict=True)]
    _tell(given, captions, {"pointcloud": given.cloud, "checkpoint": str(captioner.checkpoint), "regions": regions})

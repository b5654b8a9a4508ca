"""A checkpoint from one layout into another.

    python tools/convert_checkpoint.py -i blip2_pretrained_opt2.7b.pth -o blip2_for_regionblip.pth --to regionblip
    python tools/convert_checkpoint.py -i Salesforce/blip2-opt-2.7b/ -o blip2.safetensors --to blip2 --no-llm
    python tools/convert_checkpoint.py -i output/run/checkpoint_best.pth -o regionblip.pth --to regionblip

The input's layout is recognised by its keys: ours, published RegionBLIP, LAVIS' BLIP-2 (stage 1 and 2), a Hugging Face BLIP-2
folder, or the file of one encoder (EVA-ViT, CLIP ViT-L, Point-BERT, ULIP). The output is written whole or not at all, for
torch.load (.pth, .pt, .bin) or as .safetensors. `load_checkpoint` reads all of these without conversion.
"""

from __future__ import annotations

import argparse
import sys

from lavis.models.weights.convert import convert
from lavis.models.weights.layouts_all import LAYOUTS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", required=True, help="a checkpoint file, or a Hugging Face folder")
    parser.add_argument("-o", "--output", required=True, help="the file to write; its suffix is the format")
    parser.add_argument(
        "--to", "--format", dest="layout", choices=LAYOUTS, default="lavis", help="layout to write (default: ours)"
    )
    parser.add_argument("--config", help="YAML of the model, where it is not the published RegionBLIP")
    parser.add_argument("--no-llm", action="store_true", help="leave the language model's own weights out")
    given = parser.parse_args(arguments)

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        done = convert(
            given.input, given.output, layout=given.layout, config=given.config, with_llm=not given.no_llm, progress=show
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())

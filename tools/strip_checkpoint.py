"""The weights of a training checkpoint without the optimizer, to keep or to hand on.

    python tools/strip_checkpoint.py output/mine/checkpoint_best.pth -o mine.safetensors --dtype float16
    python tools/strip_checkpoint.py output/quickstart/clouds/checkpoint_0.pth -o assets/quickstart/regionblip.safetensors \\
        --dtype float16

The file keeps the model's configuration and the hashes of the frozen files that it stands on, so that the demos load it as it is.
Where training started from is left out. `--dtype float16` halves the size; captions may then differ in rare cases.
"""

from __future__ import annotations

import argparse
import sys

from lavis.serving.strip import DTYPES, strip_checkpoint


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="a checkpoint_*.pth of a training")
    parser.add_argument("-o", "--output", required=True, help="the file to write; .safetensors, .pth, .pt or .bin")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    parser.add_argument("--note", default="", help="what made it, in words")
    given = parser.parse_args(arguments)
    try:
        target = strip_checkpoint(given.input, given.output, dtype=given.dtype, note=given.note)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

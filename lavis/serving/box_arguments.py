"""Boxes on the command line, written one way in all tools: `--boxes x1,y1,x2,y2 ...`, `--box cx,cy,cz,dx,dy,dz ...`.

Bare numbers, `--boxes 10 20 200 180`, are read as well. A box may begin with a minus.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

BOX, BOX_3D = "x1,y1,x2,y2", "cx,cy,cz,dx,dy,dz[,heading]"
LENGTHS = {BOX: (4,), BOX_3D: (6, 7)}


def with_minus(argv: Sequence[str] | None = None) -> list[str]:
    """Arguments (default: the command line's) for `parse_args`: it takes -1.2,0.4 for an option, but not behind a space."""
    return [f" {text}" if re.match(r"-\.?\d", text) else text for text in (sys.argv[1:] if argv is None else argv)]


def numbers(text: str, what: str) -> list[float]:
    """ "1,2,3.5" as numbers; ValueError names what it was for."""
    try:
        return [float(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        raise ValueError(f"{what} {text.strip()!r}; accepted: numbers with commas between them") from None


def read_boxes(texts: Sequence[str], form: str, *, what: str = "--boxes") -> list[list[float]]:
    """The boxes of an option `what`, each of as many numbers as its form (BOX or BOX_3D) has. ValueError names what is no box."""
    lengths = LENGTHS[form]
    boxes: list[list[float]] = []
    bare: list[float] = []  # numbers of a box whose others are texts of their own
    for text in texts:
        found = numbers(text, what)
        if len(found) == 1:
            bare += found
            found = bare
            if len(bare) < lengths[0]:
                continue
            bare = []
        if bare or len(found) not in lengths:
            break
        boxes.append(found)
    else:
        if not bare:
            return boxes
    wrong = bare or found
    count = f"{len(wrong)} number{'' if len(wrong) == 1 else 's'}"
    raise ValueError(f"{what} {','.join(f'{number:g}' for number in wrong)} has {count}; accepted: {form} for each box")

"""The report page: complete, self-contained, safe with any text, and content with what a run has so far."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis.evaluation.report import duration, headline, number, share, table, write_report_html
from lavis.evaluation.report_parts import charts, picture


def metrics(accuracy: float) -> dict[str, float]:
    return {"attribute_accuracy": accuracy, "CIDEr": 4.25, "Bleu_4": 0.5, "ROUGE_L": 0.75}


REPORT: dict[str, Any] = {
    "rows": {"image": metrics(0.9), "image_region": metrics(0.934)},
    "image_before": metrics(0.9),
    "image_captions_identical": True,
    "ablation_no_position": metrics(0.25),
    "box_following": 0.97,
    "text_only": metrics(0.0125),
    "chance": {"image": metrics(0.1), "image_region": metrics(0.0078)},
    "wall_seconds": {"data": 4.0, "region_training": 301.0},
    "peak_memory_gb": 2.345,
    "versions": {"torch": "2.6.0", "<b>": "&"},
}
CURVES = {
    "Loss / with": [(step, 3.0 / (1 + step)) for step in range(500)],
    "Loss / without": [(step, 1.0) for step in range(500)],
    "alone": [(0, 2.0)],
}
VOID = {"meta", "link", "img", "path", "rect", "br"}


def sample(**changes: Any) -> dict[str, Any]:
    given = {
        "image": Image.new("RGB", (84, 42), "red"),
        "box_xyxy": [21, 0, 42, 21],
        "prediction": "a <red> six & more",
        "references": ["the red six", "six"],
        "correct": True,
        "scores": {"CIDEr": 1.5},
    }
    return {**given, **changes}


class Balance(HTMLParser):
    """Checks that every element is closed, and gathers the addresses of what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    samples = [sample(), sample(correct=False, prediction="", scores={})]
    path = write_report_html(REPORT, tmp_path / "new" / "report.html", curves=CURVES, samples=samples)
    text = path.read_text(encoding="utf-8")
    page = Balance()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.links and all(link.startswith("data:") for link in page.links)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert "93.4%" in text and "25.0%" in text and "0.8%" in text and "identical" in text
    assert "a &lt;red&gt; six &amp; more" in text and "&lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert "2 regions of the test set, 1 of them named right" in " ".join(text.split())
    assert "5 min 05 s, at most 2.3 GB" in text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("missing", [*REPORT, "all"])
def test_what_is_missing_is_a_dash(tmp_path: Path, missing: str) -> None:
    report = {} if missing == "all" else {key: value for key, value in REPORT.items() if key != missing}
    page = Balance()
    page.feed(write_report_html(report, tmp_path / "report.html", curves={}, samples=[]).read_text(encoding="utf-8"))
    assert page.open == []


def test_headline_claims_only_what_is_there() -> None:
    assert "without the position, 25.0%" in headline(REPORT)
    worse = {**REPORT, "ablation_no_position": metrics(0.95)}
    assert "without" not in headline(worse) and "93.4%" in headline(worse)
    assert "no evaluation of regions yet" in headline({})


def test_rows_of_the_table() -> None:
    whole, regions = table(REPORT)
    assert [row["values"][0] for row in whole["rows"]] == [0.9, 0.9]
    assert [row["values"][0] for row in regions["rows"]] == [0.934, 0.25, 0.0125, 0.0078]
    assert table({})[1]["rows"][0]["values"] == [None] * 4


def test_numbers_in_words() -> None:
    assert (share(0.5), share(None), number(1), number(None)) == ("50.0%", "–", "1.000", "–")
    assert [duration(value) for value in (0.04, 9, 59.4, 61, 3600, None)] == [
        "0.0 s",
        "9.0 s",
        "59 s",
        "1 min 01 s",
        "60 min 00 s",
        "–",
    ]


def decoded(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_small_pictures_keep_their_pixels(tmp_path: Path) -> None:
    found = picture(sample())
    assert found["box"] == [0.25, 0.0, 0.25, 0.5] and found["hard_pixels"]
    assert decoded(found["source"]).size == (84, 42)
    Image.new("L", (900, 600)).save(tmp_path / "photo.png")
    large = picture({"image_path": tmp_path / "photo.png", "box_xyxy": [90, 60, 180, 120]})
    assert large["box"] == pytest.approx([0.1, 0.1, 0.1, 0.1]) and not large["hard_pixels"]
    assert (large["width"], large["height"]) == (900, 600)
    assert decoded(large["source"]).size == (480, 320)


def test_samples_that_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="neither image nor image_path"):
        picture({"box_xyxy": [0, 0, 1, 1]})
    with pytest.raises(ValueError, match=r"\[1, 2, 3\] is not 4 numbers"):
        picture(sample(box_xyxy=[1, 2, 3]))


def test_charts() -> None:
    other = {"Box / one": [(10, 0.5), (0, 1.0)], "Box / none": [], "Box / broken": [(0, math.nan)]}
    loss, box = charts({**CURVES, **other})
    assert [(chart["title"], [line["name"] for line in chart["lines"]]) for chart in (loss, box)] == [
        ("Loss", ["with", "without", "alone"]),
        ("Box", ["one"]),
    ]
    assert [line["last"] for line in loss["lines"]] == pytest.approx([3 / 488, 1.0, 2.0], abs=1e-3)
    assert box["lines"][0]["raw"].startswith("M0.00 ")
    for chart in (loss, box):
        assert all(-1e-9 <= tick["at"] <= 1 + 1e-9 for tick in chart["x_ticks"] + chart["y_ticks"])
        for line in chart["lines"]:
            places = [float(value) for value in re.findall(r"-?[\d.]+", line["smooth"])]
            assert all(-1e-6 <= value <= 100 + 1e-6 for value in places[::2])
    assert charts({}) == []

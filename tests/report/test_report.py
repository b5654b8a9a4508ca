"""The report of the quickstart: numbers from what the runs wrote; a page that is complete, self-contained, safe with any
text, and content with what a run has so far."""

from __future__ import annotations

import base64
import importlib
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lavis.evaluation.captions.ground_truth import build_ground_truth
from lavis.quickstart.clouds import generate_clouds
from lavis.quickstart.scenes import generate
from lavis.report.report import bars, duration, headline, lede, number, share, table, tiles, write_report_html
from lavis.report.report_parts import charts, picture


def metrics(accuracy: float, **attributes: float) -> dict[str, Any]:
    return {"attribute_accuracy": accuracy, "attributes": attributes, "CIDEr": 4.25, "Bleu_4": 0.5, "ROUGE_L": 0.75}


REPORT: dict[str, Any] = {
    "rows": {
        "image": metrics(0.9),
        "image_region": metrics(0.934),
        "pointcloud": metrics(0.876, kind=0.9, posture=0.981),
        "pointcloud_region": metrics(0.812, kind=0.85),
    },
    "image_before": metrics(0.9),
    "image_after_region": metrics(0.9),
    "image_captions_identical": True,
    "region_captions_identical": True,
    "ablation_no_position": metrics(0.25),
    "ablation_no_corners": metrics(0.31),
    "box_following": 0.97,
    "corner_following": 0.953,
    "text_only": metrics(0.0125),
    "chance": {"image": metrics(0.1), "image_region": metrics(0.0078)},
    "baselines": {
        "pointcloud": {"text_only": metrics(0.02), "chance": metrics(0.03)},
        "pointcloud_region": {"text_only": metrics(0.04), "chance": metrics(0.05)},
    },
    "point_encoder": {"objective": "It learned to <read>.", "held_out": {"object kind": 0.9912}},
    "wall_seconds": {"data": 4.0, "region_training": 301.0},
    "peak_memory_gb": 2.345,
    "versions": {"torch": "2.6.0", "<b>": "&"},
}
CURVES = {
    "Loss / with": [(step, 3.0 / (1 + step)) for step in range(500)],
    "Loss / without": [(step, 1.0) for step in range(500)],
    "alone": [(0, 2.0)],
    "Rooms / Loss / with": [(step, 2.0) for step in range(9)],
}
VOID = {"meta", "link", "img", "path", "rect", "br", "wbr"}


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
    samples = [sample(group="Boxes"), sample(group="Boxes", correct=False, prediction="", scores={})]
    samples.append({**sample(group="Rooms", image=Image.new("RGB", (360, 360))), "box_xyxy": None})
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
    assert text.count("data:image/png;base64,") == 2 and text.count("data:image/jpeg;base64,") == 1
    assert text.count('class="casing"') == 2  # no box on the picture of a cloud
    words = " ".join(text.split())
    assert "Boxes <span>2 shown, 1 of them named right" in words and "Rooms <span>1 shown, 1 of" in words
    assert "It learned to &lt;read&gt;. On clouds held out from that it reads object kind 99.1%." in words
    assert "kind 90.0%, posture 98.1%" in words and "87.6%" in words and "31.0%" in words
    assert "5 min 05 s, at most 2.3 GB" in text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("missing", [*REPORT, "all", "a row"])
def test_what_is_missing_is_a_dash(tmp_path: Path, missing: str) -> None:
    report = {} if missing == "all" else {key: value for key, value in REPORT.items() if key != missing}
    if missing == "a row":
        report["rows"] = {"image": metrics(0.9)}
    page = Balance()
    page.feed(write_report_html(report, tmp_path / "report.html", curves={}, samples=[]).read_text(encoding="utf-8"))
    assert page.open == []


def test_headline_claims_only_what_is_there() -> None:
    assert headline(REPORT) == (
        "Pointed at a box in a generated image, the model names what is there 93.4% of the time; at a box in a generated room, "
        "81.2%; at a generated object, 87.6%."
    )
    rows = REPORT["rows"]
    alone = {"rows": {"image_region": rows["image_region"]}}
    assert headline(alone) == "Pointed at a box in a generated image, the model names what is there 93.4% of the time."
    assert headline({"rows": {"pointcloud": rows["pointcloud"]}}).startswith("Pointed at a generated object, the model")
    assert "no evaluation of regions yet" in headline({})


def test_lede_says_what_stayed_and_what_did_not() -> None:
    assert "whole pictures" in lede(REPORT) and "boxes in pictures" in lede(REPORT) and "differ" not in lede(REPORT)
    changed = lede({"image_captions_identical": True, "region_captions_identical": False})
    assert re.fullmatch(r"It says the same.*whole pictures.*\. Its captions of boxes in pictures.* differ\.", changed)
    assert lede({}) == ""


def test_tiles_cover_all_modalities() -> None:
    values = [tile["value"] for tile in tiles(REPORT)]
    assert values == ["93.4%", "81.2%", "87.6%", "90.0%", "97.0%", "95.3%", "identical", "identical"]
    changed = tiles({**REPORT, "image_captions_identical": False, "region_captions_identical": None})
    assert [tile["value"] for tile in changed][-2:] == ["changed", "–"]
    assert {tile["value"] for tile in tiles({})} == {"–"}


def test_bars_compare_within_pictures_and_within_rooms() -> None:
    pictures, rooms = bars(REPORT)
    assert [bar["value"] for bar in pictures["bars"]] == [0.934, 0.25, 0.0125, 0.0078]
    assert [bar["value"] for bar in rooms["bars"]] == [0.812, 0.31, 0.04, 0.05]
    assert [bar["main"] for bar in rooms["bars"]] == [True, False, False, False]
    without = {**REPORT, "rows": {"image_region": metrics(0.5)}, "baselines": {}}
    assert [[bar["name"] for bar in group["bars"]] for group in bars(without)][1] == ["without the corners"]
    assert not any(bar["main"] for bar in bars(without)[1]["bars"])
    assert bars({}) == []


def test_rows_of_the_table() -> None:
    found = {group["name"]: [row["values"][0] for row in group["rows"]] for group in table(REPORT)}
    assert found == {
        "Whole pictures": [0.9, 0.9, 0.9],
        "Image regions": [0.934, 0.25, 0.0125, 0.0078],
        "Objects as point clouds": [0.876, 0.02, 0.03],
        "Objects in rooms": [0.812, 0.31, 0.04, 0.05],
    }
    assert all(row["values"] == [None] * 4 for group in table({}) for row in group["rows"])


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
    assert picture({"image": Image.new("RGB", (9, 9))})["box"] is None
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
    loss, rooms, box = charts({**CURVES, **other})
    assert [(chart["group"], chart["title"], [line["name"] for line in chart["lines"]]) for chart in (loss, rooms, box)] == [
        ("", "Loss", ["with", "without", "alone"]),
        ("Rooms", "Loss", ["with"]),
        ("", "Box", ["one"]),
    ]
    assert [line["last"] for line in loss["lines"]] == pytest.approx([3 / 488, 1.0, 2.0], abs=1e-3)
    assert box["lines"][0]["raw"].startswith("M0.00 ")
    for chart in (loss, rooms, box):
        assert all(-1e-9 <= tick["at"] <= 1 + 1e-9 for tick in chart["x_ticks"] + chart["y_ticks"])
        for line in chart["lines"]:
            places = [float(value) for value in re.findall(r"-?[\d.]+", line["smooth"])]
            assert all(-1e-6 <= value <= 100 + 1e-6 for value in places[::2])
    assert charts({}) == []


def test_exact_curves_are_not_smoothed_and_stepwise_ones_are_steps() -> None:
    """A rate that falls at step 50 of 100 from 1 to 0.5: the line falls at once there, and is flat before and after."""
    rate = [(step, 1.0 if step < 50 else 0.5) for step in range(101)]
    ramp = [(step, step / 100) for step in range(101)]
    stepwise, sloping = charts({"Rate / one": rate, "Ramp / one": ramp}, exact=["Rate / one", "Ramp / one"])
    assert stepwise["lines"][0] == {
        "name": "one",
        "last": 0.5,
        "raw": "",
        "smooth": "M0.00 0.00L50.00 0.00L50.00 50.00L100.00 50.00L100.00 50.00",
    }
    assert sloping["lines"][0]["smooth"].count("L") == 101
    (smooth,) = charts({"Rate / one": rate})
    assert smooth["lines"][0]["smooth"].count("L") == 101 and smooth["lines"][0]["raw"]


FOLDERS = {  # folder -> what it evaluates
    **dict.fromkeys(("image_before", "image", "image_after"), "image"),
    **dict.fromkeys(("image_region", "image_region_after", "no_position"), "region"),
    "pointcloud": "object",
    **dict.fromkeys(("pointcloud_region", "no_corners"), "room"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """The output of a quickstart below `tmp_path` in which every caption is the first reference; writes the report of it."""
    generate(tmp_path / "data", seed=1, num_train=4, num_test=2)
    generate_clouds(tmp_path / "data", seed=1, train_objects=3, test_objects=3, train_rooms=2, test_rooms=2)
    annotations = tmp_path / "data/annotations"

    def rows(name: str) -> Any:
        return json.loads((annotations / name).read_text())

    scenes, lines = rows("scenes_test.json"), (annotations / "cap3d_test.txt").read_text().splitlines()
    whole = [" , ".join(f"a {thing['colour']} {thing['kind']}" for thing in scene["things"]) for scene in scenes]
    truth: dict[str, list[Any]] = {
        "image": list(zip([scene["image_id"] for scene in scenes], whole, strict=True)),
        "region": [
            (f"{row['image_id']}_box_" + "_".join(str(int(v)) for v in row["bbox"]), row["caption"])
            for row in rows("Refcoco_test.json")
        ],
        "object": [tuple(line.split(",", 1)) for line in lines],
        "room": [(f"{row['scene_id']}_{row['object_id']}", row["description"]) for row in rows("ScanRefer_test.json")],
    }
    for folder, kind in FOLDERS.items():
        (tmp_path / folder / "result").mkdir(parents=True)
        build_ground_truth(truth[kind], tmp_path / folder / "result/test_ground_truth.json")
        said = [{"image_id": key, "caption": text} for key, text in dict(reversed(truth[kind])).items()]
        (tmp_path / folder / "result/test_epochbest.json").write_text(json.dumps(said))
        (tmp_path / folder / "evaluate.txt").write_text(
            json.dumps({"test": {"CIDEr": 1.5, "Bleu_4": 0.5, "ROUGE_L": 0.75}}) + "\n"
        )
    losses = {"loss_llm": 1.0, "loss_itc": 1.0, "loss_lm": 1.0}
    lines_of: dict[str, list[dict[str, Any]]] = {
        "image_region": [{"step": 5, "modality": "image_region", **losses, "loss_reg": 0.5}, {"finished": True}],
        "clouds": [
            {"step": 5, "modality": "pointcloud", **losses, "loss_reg": 0.0},
            {"step": 10, "modality": "pointcloud_region", **losses, "loss_reg": 0.25},
        ],
    }
    for folder in ("region", "ablation", "clouds", "clouds_no_corners"):
        (tmp_path / folder).mkdir()
        log = "".join(json.dumps(line) + "\n" for line in lines_of["clouds" if "clouds" in folder else "image_region"])
        (tmp_path / folder / "log.txt").write_text(log)
    save_file({"a": np.zeros(1)}, tmp_path / "pointbert.safetensors", metadata={"held_out": json.dumps({"object kind": 0.5})})
    monkeypatch.setenv("QUICKSTART_BASE", str(tmp_path))
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "run_scripts/quickstart")
    write = importlib.import_module("quickstart_report").write_report
    return lambda: write(tmp_path, wall_seconds={"data": 1.0, "clouds": 2.0}, peak_memory_gb=1.0)


def say(folder: Path, change: Callable[[int, str], str]) -> None:
    """Change the captions of an evaluation: `change` is given the place and the caption of each."""
    path = folder / "result/test_epochbest.json"
    rows = [{**row, "caption": change(place, row["caption"])} for place, row in enumerate(json.loads(path.read_text()))]
    path.write_text(json.dumps(rows))


def test_report_of_a_perfect_run(run: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    report = run()
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert {name: row["attribute_accuracy"] for name, row in report["rows"].items()} == dict.fromkeys(report["rows"], 1.0)
    assert {name: row["samples"] for name, row in report["rows"].items()} == {
        "image": 2,
        "image_region": 8,
        "pointcloud": 3,
        "pointcloud_region": 8,
    }
    assert report["rows"]["pointcloud"]["attributes"] == {"kind": 1.0, "proportion": 1.0, "posture": 1.0}
    assert report["image_captions_identical"] is report["region_captions_identical"] is True
    assert report["box_following"] == report["corner_following"] == 1.0
    assert set(report["baselines"]) == {"pointcloud", "pointcloud_region"}
    for entry in (report, *report["baselines"].values()):
        assert entry["text_only"]["attribute_accuracy"] <= 0.5 and entry["text_only"]["caption"]
        assert 0 <= entry["chance"]["majority_thing"] <= 0.5
    assert report["point_encoder"]["held_out"] == {"object kind": 0.5}
    assert report["wall_seconds"]["total"] == 3.0
    text = (tmp_path / "report.html").read_text()
    assert text.count('<li class="card sample right">') == 8 + 8 + 3
    titles = re.findall(r"<h4>(.*)</h4>", text)
    assert titles.count("Language model") == 3 and titles.count("Box regression") == 2  # objects have no box
    assert text.count("with corners <b>1.000") == 6 and text.count("without corners <b>0.250") == 1


def test_report_tells_every_evaluation_from_the_others(run: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    say(tmp_path / "image_after", lambda place, text: text.upper())  # the same words, but not the same string
    say(tmp_path / "image_region_after", lambda place, text: "nothing" if place == 0 else text)
    say(tmp_path / "no_position", lambda place, text: "nothing" if place < 4 else text)
    say(tmp_path / "pointcloud", lambda place, text: f"{text} standing leaning" if place == 0 else text)
    say(tmp_path / "no_corners", lambda place, text: "")
    say(tmp_path / "pointcloud_region", lambda place, text: "a tall lamp" if place < 4 else text)
    (tmp_path / "image/evaluate.txt").write_text(json.dumps({"CIDEr": 9, "Bleu_4": 0.5, "ROUGE_L": 0.5}))
    report = run()
    assert (report["image_captions_identical"], report["region_captions_identical"]) == (False, False)
    assert (report["image_after_region"]["CIDEr"], report["image_before"]["CIDEr"]) == (9, 1.5)
    rows = report["rows"]
    assert rows["image"]["CIDEr"] == 1.5 and rows["image"]["attribute_accuracy"] == 1.0
    assert rows["image_region"]["attribute_accuracy"] == 7 / 8 and report["ablation_no_position"]["attribute_accuracy"] == 0.5
    assert rows["pointcloud"]["attributes"] == pytest.approx({"kind": 1.0, "proportion": 1.0, "posture": 2 / 3})
    assert rows["pointcloud"]["attribute_accuracy"] == pytest.approx(2 / 3)
    assert report["ablation_no_corners"]["attribute_accuracy"] == 0.0
    assert '<p class="prediction">nothing</p>' in (tmp_path / "report.html").read_text()  # the final model's captions
    assert report["corner_following"] == 0.5  # one of two rooms gets the same caption for all

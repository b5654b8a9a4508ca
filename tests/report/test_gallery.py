"""The gallery: what stands on it, in which order, what becomes of pictures that are not there, and how large it gets."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.report import gallery_pictures
from lavis.report.gallery import bars, by_numbers, nice, ordering_metric, spread_evenly, worst_first, write_gallery
from tests.report import shown

MAX_BYTES = 5_000_000  # of a gallery of 48
PARTS = ("prediction", "prediction silent", "references", "frame gone")
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """The cards of a gallery, and what it would fetch; checks that every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.cards: list[dict[str, Any]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.links += [value for name, value in given.items() if name in ("src", "href", "srcset", "action")]
        kind = given.get("class", "")
        if tag == "li" and "sample" in kind.split():
            self.cards.append(
                {"score": given["data-score"], "by_id": int(given["data-by-id"]), "texts": {}, "rects": [], **given}
            )
        elif self.cards and (tag in ("image", "img") or "frame" in kind.split()):
            self.cards[-1].update({f"{tag}_{name}": value for name, value in given.items()})
        elif self.cards and tag == "rect" and self.open[-1][0] == "svg":
            self.cards[-1]["rects"].append(given)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self.cards or not data.strip() or any(tag in ("script", "style", "footer") for tag, _ in self.open):
            return
        place = next((kind or tag for tag, kind in reversed(self.open) if kind in PARTS), "")
        self.cards[-1]["texts"].setdefault(place, []).append(data.strip())


def embedded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_cards_from_worst_to_best(tmp_path: Path) -> None:
    dataset = shown.regions(tmp_path, 12)
    said = [row["captions"][0] for row in dataset.rows]
    said[3], said[4], said[5] = "", "a <b>red</b> & zebra", said[5].upper()
    made = shown.gallery(tmp_path, dataset, said=said)
    page = Page(made.path)
    assert (made.shown, made.total, made.problems, len(page.cards)) == (12, 12, [], 12)
    scores = [float(card["score"]) for card in page.cards]
    assert scores == sorted(scores) and scores[0] == 0 < scores[1] < 0.1 < scores[2]
    assert page.cards[0]["texts"]["prediction silent"] == ["no words"]
    assert "a &lt;b&gt;red&lt;/b&gt; &amp; zebra" in page.text and "<b>red" not in page.text
    kept = {row["image_id"]: row["scores"]["CIDEr"] for row in json.loads((tmp_path / "scores.json").read_text())["samples"]}
    assert sorted(scores) == pytest.approx(sorted(kept.values()), abs=1e-6)
    card = page.cards[-1]
    references = {tuple(row["captions"]) for row in dataset.rows}
    assert tuple(card["texts"]["references"]) in references
    assert sorted(found["by_id"] for found in page.cards) == list(range(12))
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"https?://|@import|url\(|<script src", page.text)
    assert "All 12 samples of the evaluation, by their CIDEr." in " ".join(page.text.split())


def test_pictures_keep_their_box(tmp_path: Path) -> None:
    dataset = shown.regions(tmp_path, 2, size=(640, 480))
    page = Page(shown.gallery(tmp_path, dataset).path)
    for card in page.cards:
        assert embedded(card["image_href"]).size == (320, 240)
        kinds = {rect["class"]: rect for rect in card["rects"]}
        assert set(kinds) == {"casing", "box"}  # in pixels of the file, which the drawing has as its unit
        assert [float(kinds["box"][name]) for name in ("x", "y", "width", "height")] == [160, 120, 320, 160]


def test_clouds_can_be_drawn_from_the_page(tmp_path: Path) -> None:
    dataset = shown.rooms(tmp_path, 2, points=500)
    page = Page(shown.gallery(tmp_path, dataset).path)
    for card in page.cards:
        assert embedded(card["img_src"]).size == (320, 320)
        points = np.frombuffer(base64.b64decode(card["figure_data-points"]), "<i2").reshape(-1, 3)
        colours = np.frombuffer(base64.b64decode(card["figure_data-colours"]), np.uint8).reshape(-1, 3)
        assert len(points) == len(colours) == 500
        box = np.array([float(value) for value in card["figure_data-box"].split()])
        file = np.load(tmp_path / "scenes" / f"{card['figure_data-name'].split('_')[0]}_aligned_vert.npy")[:, :3]
        # what is in the box in the room is in the box on the page, whatever the unit
        true = np.array([0, 0.5, 0, 1, 0.5, 2])
        in_room = (np.abs(file - true[:3]) <= true[3:] / 2).all(axis=1)
        on_page = (np.abs(points / 32767 - box[:3]) <= box[3:] / 2 + 1e-4).all(axis=1)
        assert in_room.any() and (in_room == on_page).all()
        assert np.linalg.norm(points / 32767, axis=1).max() == pytest.approx(1, abs=1e-3)


def test_objects_stand_upright(tmp_path: Path) -> None:
    points = np.array([[0.0, 5.0, 0.0], [0.0, -5.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    card = gallery_pictures.cloud(points, None, up="y")
    found = np.frombuffer(base64.b64decode(card["points"]), "<i2").reshape(-1, 3)
    assert found[:, 2].argmax() == 0 and found[:, 2].argmin() == 1 and card["box"] is None  # z is up on the page
    assert np.ptp(found[:, 2].astype(int)) > 9 * np.ptp(found[:, :2].astype(int), axis=0).max()


def test_few_points_of_many_show_box_and_room() -> None:
    rng = np.random.RandomState(0)
    points, box = rng.uniform(-1, 1, (20_000, 3)), np.array([[0, 0, 0, 0.4, 0.4, 0.4]])
    taken = points[gallery_pictures.spread(points, box, 1000)]
    assert len(taken) == 1000 and (np.abs(taken) <= 0.2).all(axis=1).sum() == min(400, (np.abs(points) <= 0.2).all(axis=1).sum())
    everything = np.array([[0, 0, 0, 9, 9, 9]])
    assert len(gallery_pictures.spread(points, everything, 1000)) == 1000  # nothing lies outside
    assert (gallery_pictures.spread(points, box, 1000) == gallery_pictures.spread(points, box, 1000)).all()
    assert (gallery_pictures.spread(points[:50], box, 1000) == np.arange(50)).all()


def test_what_cannot_be_shown_keeps_its_place(tmp_path: Path) -> None:
    dataset = shown.regions(tmp_path, 5)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(b"")
    made = shown.gallery(tmp_path, dataset)
    page = Page(made.path)
    assert len(page.cards) == 5 and len(made.problems) == 2
    texts = [" ".join(card["texts"].get("frame gone", [])) for card in page.cards]
    assert sum("missing image" in text for text in texts) == 1 and sum("the file is empty" in text for text in texts) == 1
    assert "2 of 5 could not be shown" in page.text
    silent = type("Dataset", (), {"name": "other", "rows": [{"image_id": row["image_id"]} for row in dataset.rows[:3]]})()
    made = write_gallery(tmp_path / "scores.json", tmp_path / "none.html", dataset=silent, count=5, name="test")
    assert len(made.problems) == 5
    assert sum("has no pictures to show" in why for why in made.problems) == 3
    assert sum("not among the rows of the dataset" in why for why in made.problems) == 2


def test_samples_are_spread_over_the_order() -> None:
    assert spread_evenly(range(10), 4) == [0, 3, 6, 9]
    assert spread_evenly(range(1975), 48)[::47] == [0, 1974] and len(set(spread_evenly(range(1975), 48))) == 48
    assert spread_evenly(range(3), 48) == [0, 1, 2] and spread_evenly(range(3), 1) == [0]
    rows = [{"scores": {"CIDEr": value}, "n": n} for n, value in enumerate([1.0, 0.5, None, 0.5])]
    assert [row["n"] for row in worst_first(rows, "CIDEr")] == [2, 1, 3, 0]
    assert ordering_metric([{"scores": {"Bleu_4": 1, "SPICE": 1}}]) == "SPICE"
    with pytest.raises(ValueError, match="no score per sample"):
        ordering_metric([{"scores": {}}])
    assert sorted(["s10_2", "s9_1", "s9_10", "a"], key=by_numbers) == ["a", "s9_1", "s9_10", "s10_2"]


def test_another_metric_orders_where_there_is_no_cider(tmp_path: Path) -> None:
    made = shown.gallery(tmp_path, shown.regions(tmp_path, 4), metrics=("ROUGE_L",))
    assert "by their ROUGE_L" in made.path.read_text()


def test_chart_of_scores() -> None:
    found = bars([0.0, 0.05, 1.0, 3.2, None])
    assert found["width"] == 0.1 and sum(found["counts"]) == 4 and found["counts"][0] == 2 and found["heights"][0] == 1.0
    assert found["end"] == pytest.approx(3.3) and found["counts"][-1] == 1
    assert bars([0.0, 0.0])["counts"] == [2] and bars([])["counts"] == [0]
    assert [nice(value) for value in (0.0, 0.03, 1, 1.2, 6)] == [0.1, 0.05, 1, 2, 10]


@pytest.mark.parametrize("kind", ["pictures", "rooms"])
def test_48_samples_are_under_5_mb(tmp_path: Path, kind: str) -> None:
    """Pictures of 640 x 480 pixels of noise, rooms of 8,000 points with colours."""
    if kind == "pictures":
        made = shown.gallery(tmp_path, shown.regions(tmp_path, 50, size=(640, 480)))
    else:
        made = shown.gallery(tmp_path, shown.rooms(tmp_path, 50, points=8_000))
    page = Page(made.path)
    assert (made.shown, made.total, len(page.cards), made.problems) == (48, 50, 48, [])
    assert all(card.get("image_href") or card.get("figure_data-points") for card in page.cards)
    assert "48 of 50 samples, taken at equal distances" in " ".join(page.text.split())
    assert made.path.stat().st_size < MAX_BYTES, f"{made.path.stat().st_size:,} bytes"

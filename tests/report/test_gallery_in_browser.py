"""The gallery as a browser shows it from a file: nothing is fetched, filters filter, clouds turn."""

from __future__ import annotations

from pathlib import Path

from lavis.report.gallery import write_gallery
from tests.browser import browser_page
from tests.report import shown


def test_filters_order_and_turning(tmp_path: Path) -> None:
    dataset = shown.rooms(tmp_path, 9)
    said = [row["captions"][0] for row in dataset.rows]
    said[0], said[1] = "a zebra", "a Zebra-crossing, with people"
    scores = shown.evaluation(tmp_path, dataset, said)
    made = write_gallery(scores, tmp_path / "gallery.html", dataset=dataset, count=8, name="test")
    with browser_page(viewport={"width": 1100, "height": 900}) as page:
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(made.path.as_uri())
        visible = page.locator("#cards > li:visible")
        count = page.locator("#count")

        def predictions() -> list[str]:
            return visible.locator(".prediction").all_text_contents()

        def values() -> list[float]:
            return [float(text) for text in visible.evaluate_all("cards => cards.map(card => card.dataset.score)")]

        assert count.text_content() == "8 of 8 shown" and values() == sorted(values())
        # by word: as beginnings of words, whatever their case; where they are to stand
        page.fill("#word", "ZEB")
        assert sorted(predictions()) == ["a Zebra-crossing, with people", "a zebra"]
        assert count.text_content() == "2 of 8 shown"
        page.fill("#word", "crossing zebra")
        assert predictions() == ["a Zebra-crossing, with people"]
        page.select_option("[name=where]", "references")
        assert predictions() == [] and page.locator("#none").is_visible()
        page.click("button[type=reset]")
        page.get_by_text("8 of 8 shown").wait_for()
        # by score
        page.fill("[name=low]", "0.5")
        assert visible.count() == 6 and min(values()) >= 0.5
        page.fill("[name=low]", "")
        page.fill("[name=high]", "0.5")
        assert visible.count() == 2 and max(values()) <= 0.5
        page.fill("[name=high]", "")
        page.select_option("#order", "best")
        assert visible.count() == 8 and values() == sorted(values(), reverse=True)
        page.select_option("#order", "id")
        names = visible.locator("figure").evaluate_all("figures => figures.map(figure => figure.dataset.name)")
        assert names == sorted(names)
        # a cloud turns by mouse and by keys
        canvas = page.locator("#cards canvas").first
        canvas.wait_for()
        canvas.scroll_into_view_if_needed()

        def pixels() -> str:
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            return str(canvas.evaluate("canvas => canvas.toDataURL()"))

        before = pixels()
        assert before == pixels()
        place = canvas.bounding_box()
        assert place is not None and place["width"] > 100
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y + 20, steps=4)
        page.mouse.up()
        dragged = pixels()
        assert dragged != before
        page.mouse.move(x, y)
        assert pixels() == dragged  # the button is up
        canvas.focus()
        page.keyboard.press("ArrowLeft")
        turned = pixels()
        assert turned not in (before, dragged)
        page.keyboard.press("0")
        assert pixels() == before
        assert errors == []
        assert [url for url in requests if not url.startswith("data:")] == [made.path.as_uri()]

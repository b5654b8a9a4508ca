"""The summary of a run: whole, with training or evaluations alone, with files that are not whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.errors import ConfigError
from lavis.report.run_summary import metric_text, short, size, write_summary
from tests.browser import browser_page
from tests.report.test_curves import step, write
from tests.report.test_report import Balance

METRICS = {"CIDEr": 0.641, "CIDEr_ci95": [0.62, 0.66], "Bleu_4": 0.06, "num_samples": 1975, "num_unreadable": 3}


def training(folder: Path) -> None:
    rows = [step(n, 5 / n, loss_itm=0.0) for n in range(1, 30)]
    rows += [{"step": 30, "epoch": 0, "skipped_step": 1, "modality": "image"}]
    rows += [{"epoch": 0, "steps": 29, "mean": {}, "skipped": {"broken image": {"count": 4, "first": ["a"]}}}]
    rows += [{"epoch": 0, "split": "val", "dataset": "coco", "CIDEr": 0.5, "agg_metrics": 1.0}]
    rows += [{"epoch": 1, "steps": 29, "mean": {}, "skipped": {"broken image": {"count": 3, "first": ["b"]}}}]
    rows += [{"epoch": 1, "split": "val", "dataset": "coco", "CIDEr": 0.75, "agg_metrics": 1.5}]
    write(folder, *rows, {"finished": True, "steps": 29})


def evaluations(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    given = rows or ({"test": METRICS, "epoch": "best", "dataset": "coco"},)
    (folder / "evaluate.txt").write_text("".join(json.dumps(row) + "\n" for row in given))


def page(folder: Path, path: Path | None = None) -> str:
    text = write_summary(folder, path).read_text(encoding="utf-8")
    found = Balance()
    found.feed(text)
    found.close()
    assert found.open == []
    assert all(link.startswith(("data:", "result/", "../")) for link in found.links)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    return " ".join(text.split())


def test_a_whole_run(tmp_path: Path) -> None:
    run = tmp_path / "my <run>"
    training(run)
    other = {"coco_test": {**METRICS, "CIDEr": 0.7, "unavailable": {"SPICE": "no Java"}}, "epoch": 3, "dataset": "coco"}
    vqa = {"vqa_val": {"overall": 61.5}, "epoch": 0, "dataset": "vqa"}
    evaluations(run, {"test": METRICS, "epoch": "best", "dataset": "coco"}, other, vqa)
    for name in ("checkpoint_0.pth", "checkpoint_1.pth", "checkpoint_best.pth"):
        torch.save({}, run / name)
    (run / "checkpoint_0.pth").write_bytes(b"x" * 1_234_000)
    (run / "config.yaml").write_text("model: {arch: '<b>'}\n")
    (run / "result").mkdir()
    (run / "result" / "test_epochbest_gallery.html").write_text("")
    text = page(run)
    assert "<h1>my &lt;run&gt;</h1>" in text and "29 steps in 2 epochs on image" in text
    assert set(re.findall(r"<h4>(.*?)</h4>", text)) >= {"loss (total)", "loss_lm", "learning rate", "gradient norm", "CIDEr"}
    assert "loss_itm" not in text  # it is 0 throughout
    # both evaluations of one split in one table, every metric, its interval
    assert text.count("<table>") == 2 and "0.641<small>[0.620, 0.660]</small>" in text and "<td>0.700" in text
    assert ">num_<wbr>unreadable</th>" in text and "<td>1,975</td>" in text and "61.500" in text and "no Java" in text
    assert 'href="result/test_epochbest_gallery.html"' in text
    assert re.search(r'checkpoint_best.pth <span class="tag">best</span>', text)
    assert re.search(r'checkpoint_1.pth <span class="tag">last</span>', text) and "<dd>1.2 MB</dd>" in text
    assert "Broken image</dt><dd>7</dd>" in text and "not finite</dt><dd>1</dd>" in text
    assert "arch: &#39;&lt;b&gt;&#39;" in text
    elsewhere = page(run, tmp_path / "pages" / "page.html")
    assert 'href="../my%20%3Crun%3E/result/test_epochbest_gallery.html"' in elsewhere


def test_a_rate_that_changes_at_epochs_is_drawn_as_steps(tmp_path: Path) -> None:
    write(tmp_path, *(step(n, 5 / n, lr=1e-4 if n < 20 else 1e-5) for n in range(1, 40)), {"finished": True, "steps": 39})
    (line,) = re.findall(r'<h4>learning rate</h4>(?:(?!</figure>).)*class="smooth c1" d="([^"]*)"', page(tmp_path))
    places = [tuple(map(float, place.split())) for place in line[1:].split("L")]
    assert len(places) == 5 and places[1][0] == places[2][0] == 50.0  # down at once, at step 20 of 1 to 39
    assert places[0][1] == places[1][1] < places[2][1] == places[4][1]


def test_no_column_is_cut(tmp_path: Path) -> None:
    names = [*(f"Bleu_{n}" for n in range(1, 5)), "METEOR", "ROUGE_L", "CIDEr", "CIDEr-D", "SPICE"]
    metrics = {name: 0.123 for name in names} | {f"{name}_ci95": [0.1, 0.2] for name in names}
    counts = {"agg_metrics": 0.2, "num_samples": 10_752, "num_unreadable": 0, "num_missing": 0, "num_duplicates": 3}
    evaluations(tmp_path, {"test": metrics | counts, "epoch": "best", "dataset": "coco"})
    path = write_summary(tmp_path)
    with browser_page(viewport={"width": 1280, "height": 800}) as shown:
        for width in (1280, 1024):
            shown.set_viewport_size({"width": width, "height": 800})
            shown.goto(path.as_uri())
            inside, outside = shown.locator(".scroll").evaluate("card => [card.scrollWidth, card.clientWidth]")
            assert inside <= outside, (width, inside, outside)


def test_training_alone_and_evaluations_alone(tmp_path: Path) -> None:
    training(tmp_path / "training")
    alone = page(tmp_path / "training")
    assert "<table>" not in alone and "<h4>loss (total)</h4>" in alone and "Configuration" not in alone
    evaluations(tmp_path / "evaluation")
    alone = page(tmp_path / "evaluation")
    assert "<h4>" not in alone and "0.641" in alone and "Left out" not in alone
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["evaluate.txt", "summary.html"]


def test_what_is_not_whole(tmp_path: Path) -> None:
    evaluations(tmp_path)
    (tmp_path / "log.txt").write_text("nothing\nof ours\n")
    assert "log.txt, line 1: not valid JSON" in page(tmp_path)  # the rest is shown
    (tmp_path / "evaluate.txt").write_text("{}\nbroken\n")
    with pytest.raises(ConfigError, match=r"log.txt, line 1.*evaluate.txt, line 2 is not a line of results"):
        write_summary(tmp_path)
    (tmp_path / "log.txt").unlink()
    (tmp_path / "evaluate.txt").write_text("")
    with pytest.raises(ConfigError, match="evaluate.txt holds no evaluation"):
        write_summary(tmp_path)
    (tmp_path / "evaluate.txt").unlink()
    with pytest.raises(ConfigError, match="holds neither log.txt nor evaluate.txt; accepted: the output_dir"):
        write_summary(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        write_summary(tmp_path / "nowhere")


def test_numbers_in_words() -> None:
    assert [short(value) for value in (0.00012, 3.14159, 12345.6)] == ["0.00012", "3.14", "12,346"]
    assert [metric_text(value) for value in (0.5, 1975, None, float("nan"), True)] == [
        "0.500",
        "1,975",
        "\u2013",
        "\u2013",
        "\u2013",
    ]
    assert [size(count) for count in (12, 1_234_000, 7_000_000_000_000_000)] == ["12 bytes", "1.2 MB", "7000.0 TB"]

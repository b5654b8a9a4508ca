"""What the page's handlers let through, without a browser."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from lavis.common.errors import ConfigError
from lavis.serving import payloads
from lavis.serving.examples import Example
from lavis.serving.page import FAILED, Files, moved, replied, told
from lavis.serving.server import files_of


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    for name in ("uploads/a.png", "own.png", "example.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return Files([Example(tmp_path / "example.png", "image", ("thing",))])


def test_only_uploads_and_examples_are_read(files: Files, tmp_path: Path) -> None:
    assert files.find({"path": str(tmp_path / "uploads/a.png"), "name": "a.png"})[1] == "a.png"
    assert files.find({"example": "example.png"})[0] == tmp_path / "example.png"
    for source in (
        {"path": str(tmp_path / "own.png"), "name": "a"},
        {"path": str(tmp_path / "uploads/a.png")},
        {"path": "uploads/a.png", "name": "a"},
        {"path": str(tmp_path / "uploads/../own.png"), "name": "a"},
        {"path": "/etc/passwd", "name": "a"},
        {"example": "../own.png"},
        {},
        None,
    ):
        with pytest.raises(ConfigError, match="no longer on the server|No file is open"):
            files.find(source)
    (tmp_path / "uploads/link.png").symlink_to(tmp_path / "own.png")
    with pytest.raises(ConfigError):
        files.find({"path": str(tmp_path / "uploads/link.png"), "name": "a"})


def test_errors_are_told_and_faults_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(value: Any) -> Any:
        raise ConfigError("too large; accepted: small")

    def fail(value: Any) -> Any:
        raise KeyError("a secret of the server")

    assert reply_in(replied(refuse)({"n": 3})) == {"n": 3, "error": "too large; accepted: small"}
    with caplog.at_level(logging.ERROR):
        update, skipped = replied(fail, others=1)({"n": 4})
    assert reply_in(update) == {"n": 4, "error": FAILED} and skipped == gr.skip()
    assert "a secret of the server" in caplog.text
    for handler, message in ((refuse, "too large; accepted: small"), (fail, FAILED)):
        text, update = told(handler)(None)
        assert text == "" and update.props["told"]["error"] == message


def reply_in(update: gr.HTML) -> Any:
    return update.props["reply"]


def test_sliders_cover_the_cloud_and_hold_the_box() -> None:
    points = np.random.RandomState(0).uniform([-1, 0, 2], [3, 1, 2.5], (500, 3)).astype(np.float32)
    box = payloads.first_box(points, None)
    sliders = moved(points, box)
    assert np.allclose([slider.value for slider in sliders], box, atol=0.01)
    for axis in range(3):
        assert sliders[axis].minimum == pytest.approx(points[:, axis].min(), abs=0.002)
        assert sliders[axis].maximum == pytest.approx(points[:, axis].max(), abs=0.002)
        assert 0 < sliders[3 + axis].minimum < np.ptp(points[:, axis]) < sliders[3 + axis].maximum


def test_a_flat_cloud_has_a_box_with_a_volume() -> None:
    flat = np.random.RandomState(0).rand(50, 3).astype(np.float32) * (1, 1, 0)
    assert min(payloads.first_box(flat, None)[3:]) > 0
    assert moved(flat, payloads.first_box(flat, None))[5].value > 0


def test_large_pictures_and_clouds_are_thinned_for_the_browser() -> None:
    shown = payloads.picture(Image.new("RGB", (3000, 1000)))
    assert (shown["width"], shown["height"]) == (3000, 1000) and shown["url"].startswith("data:image/jpeg;base64,")
    assert payloads.picture(Image.new("RGB", (84, 84)))["url"].startswith("data:image/png;base64,")
    points = np.random.RandomState(0).rand(50_000, 6).astype(np.float32)
    sent = payloads.cloud(points, None)
    assert (sent["count"], sent["shown"]) == (50_000, payloads.SHOWN) and sent["colours"] is not None
    assert payloads.cloud(points[:, :3], None)["colours"] is None


def test_the_header_says_what_is_served() -> None:
    model = SimpleNamespace(cfg=SimpleNamespace(arch="regionblip_opt", opt_model="opt-2.7b"), show_n_params=lambda **_: "2.9B")
    captioner: Any = SimpleNamespace(model=model, checkpoint=Path("/a/b/<run>/last.pth"), modalities=("image", "pointcloud"))
    text = payloads.header(captioner)
    assert "b/&lt;run&gt;/last.pth" in text and "knows images, clouds" in text and "<run>" not in text
    assert payloads.QUICKSTART not in text and "not trained" not in payloads.question_note(captioner)
    model.cfg.opt_model = "assets/quickstart/opt"
    assert payloads.QUICKSTART in payloads.header(captioner) and "not trained" in payloads.question_note(captioner)


def test_examples_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no examples"):
        files_of(tmp_path)
    for name in ("b.ply", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [(example.path.name, example.kind) for example in files_of(tmp_path)] == [("a.JPG", "image"), ("b.ply", "room")]

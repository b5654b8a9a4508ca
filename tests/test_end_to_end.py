"""train.py and evaluate.py on files, tiny models and bad rows: what a user sees, alone and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from lavis.quickstart.scenes import generate
from tests import tiny

ROOT = Path(__file__).parents[1]


def spoil(data: Path) -> None:
    """Bad rows in front of the good ones: missing picture, broken JPEG, box without area, empty caption."""
    path = data / "annotations" / "Refcoco_train.json"
    rows = json.loads(path.read_text())
    (data / "images" / "train" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    good = rows[0]
    bad = [
        {**good, "image": "train/missing.jpg"},
        {**good, "image": "train/broken.jpg"},
        {**good, "bbox": [10.2, 10.2, 0.5, 20]},
        {**good, "caption": "  "},
    ]
    path.write_text(json.dumps([*bad, *rows]))
    test = data / "annotations" / "Refcoco_test.json"
    rows = json.loads(test.read_text())
    test.write_text(json.dumps([*rows, {**rows[0], "image": "test/missing.jpg", "image_id": "missing"}]))


def write_config(folder: Path, **changes: Any) -> Path:
    """A run config over generated data and a tiny random model."""
    processors = {
        "vis_processor": {s: {"name": "general_box_caption_img_trainval", "image_size": 28} for s in ("train", "eval")},
        "text_processor": {s: {"name": "blip_caption"} for s in ("train", "eval")},
    }
    annotations = folder / "data" / "annotations"

    def block(train: str, test: str) -> dict[str, Any]:
        splits = {"train": {"storage": str(annotations / train)}, "test": {"storage": str(annotations / test)}}
        return {**processors, "build_info": {"annotations": splits, "images": {"storage": str(folder / "data" / "images")}}}

    config = {
        "model": tiny.model_config(folder / "model", "regionblip_opt", enable_aux_regloss=True, max_txt_len=32),
        "datasets": {
            "coco_caption": block("coco_karpathy_train.json", "coco_karpathy_test.json"),
            "general_box_caption": block("Refcoco_train.json", "Refcoco_test.json"),
        },
        "run": {
            "runner": "runner_regionblip",
            "task": "regionblip_pretrain",
            "task_order": "round_robin",
            "batch_size_train_per_task": {"image": 4, "image_region": 12},
            "batch_size_eval": 5,
            "max_epoch": 1,
            "num_workers": 0,
            "log_freq": 1,
            "num_beams": 2,
            "max_len": 6,
            "min_len": 1,
            "tensorboard": False,
            "caption_metrics": ["Bleu", "ROUGE_L", "CIDEr"],
            "output_dir": str(folder / "out"),
            **changes,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def call(script: str, config: Path, *options: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable] if processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"
    ]  # fmt: skip
    command = [*launcher, script, "--cfg-path", str(config), *(("--options", *options) if options else ())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    generate(folder / "data", seed=3, num_train=12, num_test=4)
    spoil(folder / "data")
    done = call("train.py", write_config(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "console.txt").write_text(done.stdout + done.stderr)
    return folder


def test_bad_rows_are_skipped_counted_and_named(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "out" / "log.txt").read_text().splitlines()]
    assert {line["modality"] for line in lines if "modality" in line} == {"image", "image_region"}
    last = lines[-1]
    dropped = {name: count for name, count in last["dropped_at_reading"].items() if count}
    assert last["finished"] and list(dropped.values()) == [1] and "general_box_caption" in next(iter(dropped)), (
        "the empty caption"
    )
    assert "missing image" in json.dumps(last["skipped"]) and "broken image" in json.dumps(last["skipped"])
    console = (trained / "console.txt").read_text()
    for name in ("Refcoco_train.json[0]", "Refcoco_train.json[1]", "1 rows were left out"):
        assert name in console, name


def test_evaluation_counts_what_it_cannot_read(trained: Path) -> None:
    options = [
        "run.task=imageregion_captioning_refcoco", "run.test_splits=[test]", f"run.output_dir={trained / 'eval'}",
        "model.load_finetuned=true", f"model.finetuned={trained / 'out' / 'checkpoint_0.pth'}",
    ]  # fmt: skip
    config = yaml.safe_load((trained / "config.yaml").read_text())
    del config["datasets"]["coco_caption"]
    only_regions = trained / "regions.yaml"
    only_regions.write_text(yaml.safe_dump(config))
    results = {}
    for processes in (1, 2):
        done = call("evaluate.py", only_regions, *options, processes=processes)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = json.loads((trained / "eval" / "result" / "test_epochbest.json").read_text())
        metrics = json.loads((trained / "eval" / "evaluate.txt").read_text().splitlines()[-1])
        results[processes] = sorted((row["image_id"], row["caption"]) for row in rows), metrics
    assert results[1] == results[2], "two processes give what one gives"
    captions, metrics = dict(results[1][0]), results[1][1]["test"]
    assert len(captions) == 17 and metrics["num_unreadable"] == 1 and metrics["num_samples"] == 17
    assert [caption for key, caption in captions.items() if key.startswith("missing")] == [""]
    assert {"CIDEr", "Bleu_4", "ROUGE_L", "agg_metrics"} <= set(metrics)


@pytest.mark.slow
def test_training_under_torchrun_gives_the_losses_of_one_process(tmp_path: Path) -> None:
    generate(tmp_path / "data", seed=3, num_train=12, num_test=4)
    logs = {}
    for processes in (1, 2):
        sizes = {"image": 8 // processes, "image_region": 24 // processes}
        config = write_config(tmp_path, batch_size_train_per_task=sizes, output_dir=str(tmp_path / f"out{processes}"))
        done = call("train.py", config, "model.llm_dropout=false", processes=processes)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in (tmp_path / f"out{processes}" / "log.txt").read_text().splitlines()]
        logs[processes] = [line for line in lines if "modality" in line]
    assert len(logs[1]) == len(logs[2]) > 5
    for one, two in zip(logs[1], logs[2], strict=True):
        assert one["modality"] == two["modality"]
        for name in ("loss", "loss_itc", "loss_itm", "loss_lm", "loss_llm", "loss_reg", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), (one["step"], name)


def test_mistakes_are_told_before_anything_is_read(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = trained / "config.yaml"
    mistakes = {
        "run.max_epochs=3": "Unknown key 'run.max_epochs'",
        "model.arch=regionblip_otp": "regionblip_opt",
        "run.task=regionblip_pretrained": "regionblip_pretrain",
        "run.runner=runner_regionblipp": "runner_regionblip",
        "datasets.general_box_caption.vis_processor.train.name=blip_imag_train": "blip_image_train",
        "datasets.general_box_caption.build_info.annotations.train.storage=/no/such.json": "/no/such.json",
        "model.allow_random_init=false": "loaded from nowhere",
    }
    for option, message in mistakes.items():
        arguments = ["--cfg-path", str(config), "--options", option, f"run.output_dir={trained / 'mistake'}"]
        assert train.main(arguments) == 2, option
        assert message in capsys.readouterr().err, option

"""Evaluation gives the same bits whatever the number of processes, and whether or not it was stopped on the way."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

import evaluate
from lavis.common import dist_utils
from lavis.models import load_model_from_config
from lavis.runners.evaluation import divide, evaluate_dataset
from lavis.runners.launch import build_runner
from lavis.runners.partial import PartialResults, remove, results_key
from lavis.tasks import setup_task
from tests import tiny
from tests.distributed import run_distributed
from tests.runners.batchwise import BatchwiseDataset, BatchwiseModel
from tests.runners.fakes import config

ROOT = Path(evaluate.__file__).resolve().parent
CPU = torch.device("cpu")
TASKS = {"image_captioning_coco": "test_epoch0", "vqa": "test_vqa_result", "multimodal_3d_classification": "test_epoch0"}
WORLDS = (2, 3, 5)
SIZES = (19, 4, 1)  # in batches of three: seven with one of one sample, two, one


def evaluate_one(folder: Path, task_name: str, size: int, *, model: Any = None, dataset: Any = None, **options: Any) -> Any:
    """Metrics and, on the main process, the bytes of the result file."""
    out = folder / f"{task_name}_{size}"
    out.mkdir(parents=True, exist_ok=True)
    options = {"task": task_name, "caption_metrics": "[Bleu, CIDEr]", **options}
    cfg = config(out / f"of_rank_{dist_utils.get_rank()}", output_dir=out, **options)
    torch.manual_seed(3)
    metrics = evaluate_dataset(
        dataset or BatchwiseDataset("fake", "test", modality="image", size=size),
        task=setup_task(cfg),
        model=model or BatchwiseModel(),
        run_cfg=cfg.run_cfg,
        device=CPU,
        name="test",
        epoch=0,
        output_dir=out,
        settings={},
    )
    dist_utils.barrier()
    assert not (out / "result" / "partial").exists()
    result = out / "result" / f"{TASKS.get(task_name)}.json"
    return metrics, result.read_bytes() if dist_utils.is_main_process() and task_name in TASKS else b""


def evaluate_all(folder: Path) -> dict[str, Any]:
    """Every task with every size; pre-training's losses look at the whole batch and draw from it."""
    return {
        f"{task} {size} {shared}": evaluate_one(folder / shared, task, size, use_dist_eval_sampler=shared)
        for shared, sizes in (("true", SIZES), ("false", SIZES[1:2]))
        for task in (*TASKS, "regionblip_pretrain")
        for size in sizes
    }


def stop_after(model: BatchwiseModel, batches: int) -> BatchwiseModel:
    """A model that fails at the batch after these."""
    say = model._say

    def counted(samples: Any) -> list[str]:
        if model.calls > batches:
            raise KeyboardInterrupt
        return say(samples)

    model._say = counted  # type: ignore[method-assign]
    return model


def in_every_world(rank: int, folder: str) -> None:
    """Groups of two, three and five processes, one after the other; one of three is stopped, and five go on."""
    torch.set_num_threads(1)
    root = Path(folder)
    for world in WORLDS:
        if rank < world:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
            dist_utils.init_distributed({"device": "cpu", "dist_url": f"file://{folder}/rendezvous{world}"})
            found = evaluate_all(root / f"world{world}")
            torch.manual_seed(3)
            model = BatchwiseModel()
            if world == 3:
                with pytest.raises(KeyboardInterrupt):
                    evaluate_one(root, "image_captioning_coco", 19, model=stop_after(model, 1))
            if world == 5:
                found["went on"] = evaluate_one(root, "image_captioning_coco", 19, model=model)
                found["calls"] = model.calls
            torch.save(found, root / f"{world}_{rank}.pt")
            dist_utils.shutdown_distributed()


def test_any_number_of_processes_gives_the_bits_of_one(tmp_path: Path) -> None:
    alone = evaluate_all(tmp_path / "alone")
    captions = json.loads(alone["image_captioning_coco 19 true"][1])
    assert [row["image_id"] for row in captions] == [f"id {index}" if index % 2 else index for index in range(19)]
    assert len({row["caption"] for row in captions}) == 8, "seven batches with a draw each, and the row that cannot be read"
    assert alone["regionblip_pretrain 19 true"][0]["num_samples"] == 19
    multiprocessing.set_forkserver_preload([__name__])  # one process imports torch, and the five come from it
    mp.start_processes(in_every_world, args=(str(tmp_path),), nprocs=max(WORLDS), start_method="forkserver")
    for world in WORLDS:
        for rank in range(world):
            found = torch.load(tmp_path / f"{world}_{rank}.pt", weights_only=False)
            for name, (metrics, content) in alone.items():
                assert found[name] == (metrics, content if rank == 0 else b""), f"{name}, {world} processes, rank {rank}"
    parts = [torch.load(tmp_path / f"5_{rank}.pt", weights_only=False) for rank in range(5)]
    assert all(part["went on"][0] == alone["image_captioning_coco 19 true"][0] for part in parts)
    assert parts[0]["went on"][1] == alone["image_captioning_coco 19 true"][1]
    assert sum(part["calls"] for part in parts) == 4, "three of the seven batches were there"


def test_how_batches_are_divided() -> None:
    """Over all ranks: every batch that is left once, the shares differ by one, and the rows come in order."""
    draw = random.Random(0)
    for _ in range(300):
        total, world = draw.randrange(12), draw.randrange(1, 8)
        done = {number for number in range(total) if draw.random() < draw.choice([0, 0.5, 1])}
        parts = [divide(total, done, rank=rank, world_size=world) for rank in range(world)]
        assert [number for _, span in parts for number in span] == list(range(total))
        assert [number for batches, _ in parts for number in batches] == sorted(set(range(total)) - done)
        assert all(set(batches) == set(span) - done for batches, span in parts)
        sizes = [len(batches) for batches, _ in parts]
        assert max(sizes) - min(sizes) <= 1


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [{"id": 7, "f": 0.1 + 0.2, "tiny": 5e-324, "more": [True, None, {"": "é\ud800\n"}]}, {"id": "7", "f": -0.0}]
    first, second = (PartialResults(tmp_path / "partial" / "test_key", name="test") for _ in range(2))
    first.add(4, rows)
    first.add(0, [])
    second.add(1, [{"n": float("inf")}])
    second.add(4, [{"id": "the same batch once more"}])
    second.add(9, [{"id": "of an evaluation of more batches"}])
    with (second.folder / second.file).open("a") as stream:  # type: ignore[operator]
        stream.write('{"batch": 2, "rows": [{"id": 1}')
    found = PartialResults(tmp_path / "partial" / "test_key", name="test").read(total=9)
    assert sorted(found) == [0, 1, 4] and found[1] == [{"n": float("inf")}]
    assert found[4] in (rows, [{"id": "the same batch once more"}])
    alone = PartialResults(tmp_path / "alone", name="test")
    alone.add(4, rows)
    assert repr(PartialResults(tmp_path / "alone", name="test").read(total=5)) == repr({4: rows})
    remove([second])
    assert not (tmp_path / "partial").exists()
    kept_nowhere = PartialResults(None, name="test")
    kept_nowhere.add(0, [{"id": torch.zeros(1)}])
    remove([kept_nowhere])
    assert kept_nowhere.read(total=1) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": torch.tensor(1)}, r"row\['id'\] is a Tensor; accepted in the rows of a task: .* rows_are_json = False"),
        ({"boxes": [(1, 2)]}, r"row\['boxes'\]\[\] is a tuple"),
        ({"answers": {1: "yes"}}, r"row\['answers'\] has the key 1"),
    ],
)
def test_rows_that_would_change_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PartialResults(tmp_path, name="test").add(0, [row])


def test_the_key_is_that_of_what_decides(tmp_path: Path) -> None:
    model, dataset = BatchwiseModel(), BatchwiseDataset("fake", "test", modality="image", size=3)

    def key(**options: Any) -> str:
        given = {"settings": {"model": {"prompt": "a"}}, "device": CPU, "split_name": "test", "dataset": dataset}
        run = {name: options.pop(name) for name in list(options) if name not in given}
        return results_key(model=model, run_cfg=config(tmp_path / "out", **run).run_cfg, **{**given, **options})

    first = key()
    assert first == key(num_workers=3, log_freq=1, resume_ckpt_path="auto", report_metric="false", valid_splits="[a]")
    others = [
        key(num_beams=2),
        key(seed=1),
        key(batch_size_eval=4),
        key(task="vqa"),
        key(settings={"model": {"prompt": "b"}}),
        key(device=torch.device("cuda")),
        key(split_name="val"),
        key(dataset=BatchwiseDataset("fake", "test", modality="image", size=4)),
        key(dataset=BatchwiseDataset("other", "test", modality="image", size=3)),
    ]
    with torch.no_grad():
        model.norm.running_mean += 1e-3
        others.append(key())
        model.base.weight += 1
    others.append(key())
    assert len({first, *others}) == len(others) + 1


def test_what_is_kept_is_used_only_where_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    straight = evaluate_one(tmp_path / "straight", "vqa", 13)
    caplog.set_level(logging.INFO, logger="lavis")
    for reuse, done in (("true", 3), ("false", 5)):
        torch.manual_seed(3)
        models = [BatchwiseModel() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        answers = models[1].predict_answers
        models[0].predict_answers = None  # type: ignore[assignment,method-assign]
        calls = []
        models[0].predict_answers = lambda *given, **k: calls.append(1) or answers(*given) if len(calls) < 2 else 1 / 0  # type: ignore
        with pytest.raises(ZeroDivisionError):
            evaluate_one(tmp_path / reuse, "vqa", 13, model=models[0], reuse_partial_results=reuse)
        again = []
        models[1].predict_answers = lambda *given, **k: again.append(1) or answers(*given)  # type: ignore
        assert evaluate_one(tmp_path / reuse, "vqa", 13, model=models[1], reuse_partial_results=reuse) == straight
        assert len(again) == done
        assert ("test: 2 of 5 batches were finished" in caplog.text) == (reuse == "true")
        caplog.clear()


def test_a_validation_within_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stopped in the second epoch's validation and resumed: the log is that of the straight run."""
    options = {"valid_splits": "[val]", "batch_size_eval": 2, "save_freq": "3 steps"}

    def train(folder: Path, *, stop: int | None = None, **more: Any) -> int:
        runner = build_runner(config(folder, **options, **more), splits=["train", "val"], config_name="config")
        step, done = runner.task.valid_step, []

        def valid_step(*given: Any) -> Any:
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(1)
            return step(*given)

        runner.task.valid_step = valid_step
        if stop is None:
            runner.train()
        else:
            with pytest.raises(KeyboardInterrupt):
                runner.train()
        return len(done)

    def log(folder: Path) -> list[Any]:
        return [{**json.loads(line), "timing": 0} for line in (folder / "log.txt").read_text().splitlines()]

    assert train(tmp_path / "straight") == 16  # two epochs, two datasets, four batches
    assert train(tmp_path / "out", stop=14) == 14
    caplog.set_level(logging.INFO, logger="lavis")
    assert train(tmp_path / "out", resume_ckpt_path="auto") == 2
    assert "fake_image_val: 4 of 4 batches were finished" in caplog.text, "kept until the whole validation is done"
    assert "fake_region_val: 2 of 4 batches were finished" in caplog.text
    assert not (tmp_path / "out" / "result" / "partial").exists()
    assert log(tmp_path / "out") == log(tmp_path / "straight")


def command(folder: Path, ranks: int, **variables: Any) -> subprocess.Popen[str]:
    """evaluate.py in `folder`, alone or under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in variables.items()}}
    words = [sys.executable, *launcher, str(ROOT / "evaluate.py"), "--cfg-path", "user.yaml"]
    return subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_killed_and_started_again_with_other_processes(
    tmp_path: Path, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user.yaml").write_text(
        "imports: [tests.runners.batchwise]\nmodel: {arch: batchwise_model}\ndatasets: {batchwise_data: {size: 13}}\n"
        "run: {task: image_captioning_coco, caption_metrics: [Bleu], batch_size_eval: 2, num_workers: 0, test_splits: [test],\n"
        "      output_dir: out, tensorboard: false}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--cfg-path", "user.yaml", "--options", "run.output_dir=straight"]) == 0
    process = command(tmp_path, before, STOP_AFTER=1)
    deadline = time.monotonic() + 300
    while len(stopped := list(tmp_path.glob("stopped_*"))) < before:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    for path in stopped:  # each at its second batch
        os.kill(int(path.name.removeprefix("stopped_")), signal.SIGKILL)
    process.communicate()
    kept = list((tmp_path / "out" / "result" / "partial").glob("test_*/*.jsonl"))
    assert len(kept) == before and not (tmp_path / "out" / "evaluate.txt").exists()
    second = command(tmp_path, after, COUNT_CALLS=tmp_path / "calls")
    said = second.communicate()[1]
    assert second.returncode == 0, said[-4000:]
    assert f"test: {before} of 7 batches were finished by an evaluation that was stopped" in said
    assert (tmp_path / "calls").read_text().count("call\n") == 7 - before
    for name in ("evaluate.txt", "result/test_epochbest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert not (tmp_path / "out" / "result" / "partial").exists()


class Pictures(BatchwiseDataset):
    """Random pictures with texts of different lengths, for a real model."""

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        image = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(index))
        return {**super().__getitem__(key), "image": image, "text_input": tiny.TEXTS[index % len(tiny.TEXTS)]}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [sample["text_input"] for sample in samples]
        return {**super().collater(samples), "text_input": texts}


def evaluate_real(folder: str, model_folder: str) -> dict[str, Any]:
    model = load_model_from_config(tiny.model_config(Path(model_folder), "regionblip_opt"))
    found = {}
    for task in ("image_captioning_coco", "regionblip_pretrain"):
        dataset = Pictures("fake", "test", modality="image", size=5)
        options = {"model": model, "dataset": dataset, "batch_size_eval": 2, "num_beams": 2, "max_len": 6, "min_len": 1}
        found[task] = evaluate_one(Path(folder), task, 5, **options)
    return found


@pytest.mark.slow
def test_a_real_model_in_two_processes(tmp_path: Path) -> None:
    alone = evaluate_real(str(tmp_path / "one"), str(tmp_path / "model"))
    metrics = alone["regionblip_pretrain"][0]
    assert metrics["loss_itm"] > 0 and metrics["loss_llm"] > 0
    first, second = run_distributed(evaluate_real, str(tmp_path / "two"), str(tmp_path / "model"), folder=tmp_path / "returned")
    assert first == alone
    assert {task: metrics for task, (metrics, _) in second.items()} == {task: metrics for task, (metrics, _) in alone.items()}

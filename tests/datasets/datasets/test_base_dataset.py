from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lavis.datasets.datasets import base_dataset as samples
from lavis.datasets.datasets.base_dataset import (
    AnnotationError,
    BadSample,
    BaseDataset,
    PackedRows,
    RecentlyUsed,
    Row,
    Sample,
    collate,
    read_annotations,
)
from lavis.datasets.wrappers.joined import JoinedDataset
from tests.datasets.files import write_json


class Numbers(BaseDataset):
    """Rows {"value": n}; odd ones do not load, negative ones are left out."""

    needs = "value"

    def parse(self, row: Row, label: str) -> Row:
        if "value" not in row:
            raise BadSample("missing key: value")
        if row["value"] < 0:
            raise BadSample("negative value: " + str(row["value"]))
        return {"value": row["value"]}

    def load(self, index: int, rng: np.random.RandomState) -> Sample:
        value = self.rows[index]["value"]
        if value % 2:
            raise BadSample("odd value")
        return {"value": torch.tensor(value), "noise": torch.tensor(rng.rand()), "image_id": value}

    def placeholder(self, index: int) -> Sample:
        return {"value": torch.tensor(0), "noise": torch.tensor(0.0), "image_id": self.rows[index]["value"]}


class EvalNumbers(Numbers):
    training = False


def numbers(tmp_path: Path, values: list[int], cls: type[Numbers] = Numbers, repeat: int = 1) -> Numbers:
    path = write_json(tmp_path / "numbers.json", [{"value": value} for value in values])
    return cls(ann_paths=[path], name="n", split="train", modality="image", dataset_repeat_num=repeat)


def test_list_dict_and_lines(tmp_path: Path) -> None:
    rows = write_json(tmp_path / "a.json", [{"x": 1}, {"x": 2}])
    assert list(read_annotations(rows)) == [("a.json[0]", {"x": 1}), ("a.json[1]", {"x": 2})]
    keyed = write_json(tmp_path / "b.json", {"k": {"x": 1}})
    assert list(read_annotations(keyed)) == [("b.json['k']", {"sample_id": "k", "x": 1})]
    lines = tmp_path / "c.jsonl"
    lines.write_text('\ufeff{"x": 1}\n\n{"x": "a\u2028b"}\n', encoding="utf-8")
    assert list(read_annotations(lines)) == [("c.jsonl:1", {"x": 1}), ("c.jsonl:3", {"x": "a\u2028b"})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"x": 1},', r"a\.json: not valid JSON at line 1"),
        ("a.json", '{"x": 1}\n{"x": 2}\n', r"end in \.jsonl"),
        ("a.json", "[1, 2]", r"row a\.json\[0\] is 1"),
        ("a.json", '{"k": 3}', r"row a\.json\['k'\] is 3"),
        ("a.json", '"text"', "holds 'text'"),
        ("a.jsonl", '{"x": 1}\n{"x"\n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.json", "<html>404</html>", "not valid JSON"),
    ],
)
def test_malformed_files_name_file_and_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(AnnotationError, match=message) as caught:
        list(read_annotations(path))
    assert str(path) in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be read"):
        list(read_annotations(tmp_path / "none.json"))
    (tmp_path / "image.json").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(AnnotationError, match=r"image\.json"):
        list(read_annotations(tmp_path / "image.json"))


def test_packed_rows() -> None:
    rows: list[Row] = [{"a": 1}, {"b": ["ü", None]}, {}]
    packed = PackedRows(iter(rows))
    assert len(packed) == 3 and list(packed) == rows and packed[-2] == rows[1] and packed[1:] == rows[1:]
    assert list(pickle.loads(pickle.dumps(packed))) == rows
    assert len(PackedRows([])) == 0
    with pytest.raises(IndexError):
        packed[3]


def test_rows_left_out_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = numbers(tmp_path, [2, -1, 4, -7])
    assert len(dataset) == 2
    assert dataset.dropped == [
        ("numbers.json[1]", "negative value: -1"),
        ("numbers.json[3]", "negative value: -7"),
    ]
    assert "numbers.json[3]" in caplog.text
    assert "2 rows left out (2 negative value), 2 kept" in caplog.text


def test_file_without_a_usable_row(tmp_path: Path) -> None:
    good = write_json(tmp_path / "good.json", [{"value": 2}])
    for content, message in (([], "it has no rows"), ([{"valu": 1}], "A row needs value; the first has valu")):
        bad = write_json(tmp_path / "bad.json", content)
        with pytest.raises(AnnotationError, match=rf"bad\.json: no usable row: .*{message}"):
            Numbers(ann_paths=[good, bad], name="n", split="train", modality="image")


def test_training_replaces_an_unusable_row(tmp_path: Path) -> None:
    dataset = numbers(tmp_path, [2, 3, 4])
    sample = dataset[(0, 1)]
    assert int(sample["value"]) in (2, 4)
    assert sample["skipped"] == [("numbers.json[1]", "odd value")]
    assert sample["instance_id"] in ("numbers.json[0]", "numbers.json[2]")
    assert "readable" not in sample
    stand_ins = {int(dataset[(epoch, 1)]["value"]) for epoch in range(20)}
    assert stand_ins == {2, 4}
    assert all(torch.equal(dataset[(e, 1)]["noise"], dataset[(e, 1)]["noise"]) for e in range(3))


def test_training_gives_up_with_the_file_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_REPLACEMENTS", 20)
    dataset = numbers(tmp_path, [1, 3])
    with pytest.raises(AnnotationError, match=r"numbers\.json: 20 rows drawn, none .*odd value"):
        dataset[0]
    with pytest.raises(AnnotationError, match=r"numbers\.json: no usable row among 2; numbers\.json\[0\]: odd"):
        dataset.check_usable()
    numbers(tmp_path, [1, 3, 2]).check_usable()


def test_evaluation_keeps_the_place(tmp_path: Path) -> None:
    dataset = numbers(tmp_path, [2, 3], EvalNumbers, repeat=4)
    assert len(dataset) == 2, "evaluation never repeats"
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["readable"] == [True, False]
    assert batch["image_id"] == [2, 3]
    assert batch["skipped"] == [("numbers.json[1]", "odd value")]


def test_draws_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    dataset = numbers(tmp_path, [2, 4, 6], repeat=2)
    assert len(dataset) == 6
    np.random.seed(0)
    noise = {(e, i): float(dataset[(e, i)]["noise"]) for e in range(2) for i in range(6)}
    np.random.seed(1)
    assert len(set(noise.values())) == 12, "repeats of a row are different samples"
    assert {key: float(dataset[key]["noise"]) for key in reversed(list(noise))} == noise
    assert float(dataset[3]["noise"]) == noise[0, 3]
    dataset.set_seed(5)
    assert float(dataset[3]["noise"]) != noise[0, 3]
    with pytest.raises(IndexError):
        dataset[6]


def test_samples_may_share_their_draws(tmp_path: Path) -> None:
    class Pairs(Numbers):
        def draws_of(self, index: int) -> int:
            return index // 2

    dataset = numbers(tmp_path, [2, 4, 6, 8], Pairs)
    noise = [float(dataset[index]["noise"]) for index in range(4)]
    assert noise[0] == noise[1] != noise[2] == noise[3]


def test_recently_used() -> None:
    made: list[str] = []
    kept = RecentlyUsed(2)
    for key in "abacab":
        assert kept.get(key, lambda key=key: made.append(key) or key) == key
    assert "".join(made) == "abcb", "a was used again before c came, b was not"


def test_bad_repeat(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset_repeat_num of n, train is 0"):
        numbers(tmp_path, [2], repeat=0)


def test_collate_shares_keys_and_pictures() -> None:
    def sample(key: str, fill: float, **extra: object) -> Sample:
        return {"modality": "image", "image": torch.full((3, 2, 2), fill), "image_key": key, "id": 1, **extra}

    batch = collate([sample("a", 1), sample("b", 2, more="x"), sample("a", 1)], share_inputs=True)
    assert batch["image"].shape == (2, 3, 2, 2) and batch["image"][1].max() == 2
    assert batch["image_index"].tolist() == [0, 1, 0] and batch["image_index"].dtype == torch.long
    assert batch["id"] == [1, 1, 1] and "more" not in batch and batch["modality"] == "image"
    clouds = [
        {"modality": "pointcloud", "pointcloud": torch.full((4, 3), f), "cloud_key": k} for k, f in (("a", 1.0), ("b", 2.0))
    ]
    batch = collate([clouds[0], clouds[0], clouds[1]], share_inputs=True)
    assert batch["pointcloud"].shape == (2, 4, 3) and batch["pointcloud_index"].tolist() == [0, 0, 1]
    assert "pointcloud_index" not in collate(clouds)
    alone = collate([sample("a", 1)])
    assert alone["image"].shape == (1, 3, 2, 2) and "image_index" not in alone and alone["skipped"] == []
    with pytest.raises(ValueError, match="one modality"):
        collate([sample("a", 1), {**sample("a", 1), "modality": "pointcloud"}])


def test_joined_datasets(tmp_path: Path) -> None:
    first, second = numbers(tmp_path / "a", [2, 4]), numbers(tmp_path / "b", [6, -1])
    joined = JoinedDataset([first, second])
    joined.set_seed(3)
    assert [joined[(0, i)]["image_id"] for i in range(len(joined))] == [2, 4, 6]
    assert first.seed == second.seed == 3 and joined.name == "n+n" and len(joined.dropped) == 1
    second.modality = "pointcloud"
    with pytest.raises(ValueError, match="share one modality"):
        JoinedDataset([first, second])


def test_identity_and_labels(tmp_path: Path) -> None:
    dataset = numbers(tmp_path, [2, -1, 4], repeat=2)
    assert [dataset.label_of(index) for index in range(4)] == ["numbers.json[0]", "numbers.json[2]"] * 2
    assert JoinedDataset([dataset, dataset]).label_of(5) == "numbers.json[2] of n"
    first = dataset.identity()
    assert first == numbers(tmp_path, [2, -1, 4]).identity() | {"files": first["files"]}, "rows alike, the file written anew"
    assert first["files"] == [["numbers.json", *first["files"][0][1:]]] and first["files"][0][1] > 0
    assert first["rows"] != numbers(tmp_path, [2, -1, 6]).identity()["rows"]

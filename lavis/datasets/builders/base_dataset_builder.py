"""From a dataset's configuration to its splits: files are found, processors built, then annotations read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis.common.config import load_yaml, merge_dataset_config
from lavis.common.errors import ConfigError, listed, unknown
from lavis.common.modalities import MODALITIES, TASK_NAMES, modality_of
from lavis.common.paths import get_cache_root, resolve
from lavis.common.registry import registry
from lavis.common.zoo import Zoo
from lavis.datasets.datasets.base_dataset import BaseDataset
from lavis.processors import BaseProcessor, load_processor

logger = logging.getLogger(__name__)


class BaseDatasetBuilder:
    """Builds the splits of one dataset from `cfg`, its block below `datasets` in a YAML file.

    A subclass registers itself, and names its two dataset classes and its default YAML. `cfg` may be partial;
    null means the default YAML alone. Relative paths are looked up in the working directory, then below
    `cache_root`.
    """

    name: ClassVar[str]
    train_dataset_cls: ClassVar[type[BaseDataset]]
    eval_dataset_cls: ClassVar[type[BaseDataset]]
    DATASET_CONFIG_DICT: ClassVar[dict[str, str]] = {}
    split_keys: ClassVar[tuple[str, ...]] = ("storage", "dataset_repeat_num", "url", "md5")
    annotations_at: ClassVar[tuple[str, ...]] = ("build_info", "annotations")  # where the splits stand in the configuration
    storage_key: ClassVar[str] = "storage"  # the key of a split that names its annotation file

    def __init__(self, cfg: Mapping[str, Any] | DictConfig | None = None, *, cache_root: str | Path | None = None) -> None:
        full = OmegaConf.to_container(merge_dataset_config(self.name, cfg), resolve=True)
        assert isinstance(full, dict)
        self.config: dict[str, Any] = {str(key): value for key, value in full.items()}
        self.cache_root = resolve(cache_root) if cache_root else get_cache_root()
        self.wrong_sums: list[str] = []  # files whose md5 is another than the configuration says
        task_name = self.config.get("task_name")
        if not task_name or (task_name.startswith("task_alignLLM") and modality_of(task_name) == task_name):
            raise ConfigError(unknown(self._key("task_name"), task_name, [*TASK_NAMES, *MODALITIES]))

    @classmethod
    def default_config_path(cls, dataset_type: str = "default") -> str:
        """The default YAML of a type, relative to the package."""
        if dataset_type not in cls.DATASET_CONFIG_DICT:
            raise ConfigError(unknown(f"type of dataset {cls.name}", dataset_type, cls.DATASET_CONFIG_DICT))
        return cls.DATASET_CONFIG_DICT[dataset_type]

    @property
    def modality(self) -> str:
        """The modality that task_name, published or not, stands for."""
        return modality_of(self.config["task_name"])

    def build_datasets(self, *, splits: Iterable[str] | None = None) -> dict[str, BaseDataset]:
        """The datasets of the splits that have a storage, or of those named in `splits`.

        All files are looked for before the first is read. ConfigError names a missing one by its key and
        path, and an unknown key or processor; AnnotationError a file that holds nothing that can be used.
        """
        wanted = self._wanted(splits)
        files = {split: self.annotation_files(split) for split in wanted}
        sources = {split: self._sources(split) for split in wanted}
        datasets = {}
        for split in wanted:
            dataset = self._open(split, files[split], sources[split])
            dataset.check_usable()
            logger.info("dataset %s, %s: %d samples of modality %s", self.name, split, len(dataset), self.modality)
            datasets[split] = dataset
        return datasets

    def open_dataset(self, split: str, files: Sequence[Path]) -> BaseDataset:
        """The dataset of a split with these annotation files, read, but with no row of it loaded: it may hold none that can be
        used. Errors are those of `build_datasets`."""
        return self._open(split, files, self._sources(split))

    def check_sources(self, split: str) -> None:
        """ConfigError for a folder or a processor of a split that is not there."""
        self._sources(split)

    @property
    def splits(self) -> list[str]:
        """The splits that have a storage."""
        return [split for split in self._annotations() if self._split(split)[self.storage_key]]

    def dataset_class(self, split: str) -> type[BaseDataset]:
        """The class of a split's dataset."""
        return self.train_dataset_cls if split == "train" else self.eval_dataset_cls

    def _open(self, split: str, files: Sequence[Path], sources: Mapping[str, Any]) -> BaseDataset:
        return self.dataset_class(split)(
            ann_paths=files,
            name=self.name,
            split=split,
            modality=self.modality,
            dataset_repeat_num=self._split(split)["dataset_repeat_num"],
            **sources,
        )

    def use_root(self, folder: str | Path) -> None:
        """Look below `folder` for what the rows name, instead of where the configuration says."""
        self.config["build_info"].setdefault(self.config["data_type"], {})["storage"] = str(folder)

    def use_data_type(self, data_type: str) -> None:
        """Read from another block of build_info; ConfigError names those there are."""
        blocks = [key for key in self._node("build_info") if key != "annotations"]
        if data_type not in blocks:
            raise ConfigError(unknown(self._key("data_type"), data_type, blocks))
        self.config["data_type"] = data_type

    def _sources(self, split: str) -> dict[str, Any]:
        """What the dataset class of a split takes beside the annotation: a folder and processors."""
        root = self._root()
        vis_processor, text_processor = self._processors(split)
        return {"vis_processor": vis_processor, "text_processor": text_processor, "vis_root": root}

    def _key(self, *parts: str) -> str:
        return ".".join(("datasets", self.name, *parts))

    def _node(self, *keys: str) -> dict[str, Any]:
        """A block of the configuration; {} where there is none or it is null."""
        node: Any = self.config
        for key in keys:
            node = node.get(key) or {}
            if not isinstance(node, dict):
                raise ConfigError(f"{self._key(*keys)} must be a mapping, not {node!r}")
        return dict(node)

    def _annotations(self) -> dict[str, Any]:
        return self._node(*self.annotations_at)

    def _split(self, split: str) -> dict[str, Any]:
        """The mapping of a split, every key present."""
        given = self._node(*self.annotations_at, split)
        for key in given:
            if key not in self.split_keys:
                where = self._key(*self.annotations_at, split)
                raise ConfigError(f"{where}: {unknown('key', key, self.split_keys)}")
        repeat = given.get("dataset_repeat_num")
        return {
            **dict.fromkeys(self.split_keys),
            **given,
            "dataset_repeat_num": 1 if repeat is None else repeat,
        }

    def _wanted(self, splits: Iterable[str] | None) -> list[str]:
        available = self.splits
        if splits is None:
            if not available:
                raise ConfigError(f"{self._key(*self.annotations_at)}: no split has a {self.storage_key}; give it a path")
            return available
        wanted = list(splits)
        for split in wanted:
            if split not in available:
                key = self._key(*self.annotations_at, split, self.storage_key)
                raise ConfigError(f"{key} is not set; splits with a {self.storage_key}: {listed(available)}")
        return wanted

    def annotation_files(self, split: str) -> list[Path]:
        """The annotation files of a split. ConfigError names all that are missing; a warning tells of another md5 than the
        configuration's."""
        entry = self._split(split)
        storages, urls, sums = (_as_list(entry[key]) for key in (self.storage_key, "url", "md5"))
        files, missing = [], []
        for number, storage in enumerate(storages):
            key = self._key(*self.annotations_at, split, self.storage_key)
            hint = f"; it can be had from {urls[number]}" if number < len(urls) and urls[number] else ""
            try:
                path = self._find(key, storage, kind="file", hint=hint)
            except ConfigError as error:
                missing.append(str(error))
                continue
            if number < len(sums) and sums[number] and (wrong := _wrong_md5(path, str(sums[number]))):
                logger.warning("%s", wrong)
                self.wrong_sums.append(wrong)
            files.append(path)
        if missing:
            raise ConfigError("\n".join(missing))
        return files

    def _root(self) -> Path:
        """The folder below which rows name their pictures or clouds; null: rows hold full paths."""
        data_type = self.config.get("data_type")
        blocks = [key for key in self._node("build_info") if key != "annotations"]
        if data_type not in blocks:
            raise ConfigError(f"{self._key('data_type')} is {data_type!r}; accepted: {listed(blocks)}")
        storage = self._node("build_info", data_type).get("storage")
        key = self._key("build_info", data_type, "storage")
        return self._find(key, storage, kind="folder") if storage else Path()

    def _find(self, key: str, storage: Any, *, kind: str, hint: str = "") -> Path:
        if not isinstance(storage, str) or not storage:
            raise ConfigError(f"{key} is {storage!r}; accepted: the path of a {kind}")
        path = resolve(storage)
        tried = [path] if path.is_absolute() else [Path.cwd() / path, self.cache_root / path]
        for candidate in tried:
            if candidate.is_file() if kind == "file" else candidate.is_dir():
                return candidate
        raise ConfigError(f"{key}: no {kind} at {' or '.join(str(candidate) for candidate in tried)}{hint}")

    def _processors(self, split: str) -> tuple[BaseProcessor, BaseProcessor]:
        stage = "train" if split == "train" else "eval"
        return self._processor("vis_processor", stage), self._processor("text_processor", stage)

    def _processor(self, kind: str, stage: str) -> BaseProcessor:
        key = self._key(kind, stage)
        options = self._node(kind, stage)
        if not options.get("name"):
            raise ConfigError(f"{key}.name is not set; accepted: {listed(registry.list_processors())}")
        try:
            return load_processor(options["name"], options)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _wrong_md5(path: Path, expected: str) -> str:
    """What is to be told of a file whose md5 is not the expected one; empty where it is."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    found = digest.hexdigest()
    return "" if found == expected.lower() else f"{path} has md5 {found}, the configuration says {expected}"


dataset_zoo = Zoo("builder", heading="Datasets", types="DATASET_CONFIG_DICT", without_types=True)


def load_dataset(
    name: str,
    cfg_path: str | Path | None = None,
    vis_path: str | Path | None = None,
    data_type: str | None = None,
) -> dict[str, BaseDataset]:
    """The splits of a dataset that have a file, as {split: dataset}.

    `cfg_path`: a YAML with a block datasets.<name>, such as one that trains or evaluates on it; `vis_path`: the folder of the
    pictures or clouds; `data_type`: which block of build_info holds that folder. Processors that are not configured pass
    pictures and texts through as they are. UnknownNameError names the datasets, ConfigError a file or block that is not there.
    """
    builder_cls = registry.get_builder_class(name)
    block = {} if cfg_path is None else load_dataset_config(cfg_path, name)
    builder: BaseDatasetBuilder = builder_cls(block)
    if data_type is not None:
        builder.use_data_type(data_type)
    if vis_path is not None:
        builder.use_root(vis_path)
    for kind in ("vis_processor", "text_processor"):
        stages = builder.config.get(kind) or {}
        builder.config[kind] = {stage: stages.get(stage) or {"name": "identity"} for stage in ("train", "eval")}
    return builder.build_datasets()


def load_dataset_config(cfg_path: str | Path, name: str | None = None) -> DictConfig:
    """The block datasets.<name> of a YAML as it stands there, references and variables filled in; without a name, the first."""
    datasets = OmegaConf.create(load_yaml(cfg_path)).get("datasets")
    if not datasets or (name is not None and name not in datasets):
        raise ConfigError(f"{cfg_path} has no block datasets{f'.{name}' if name else ''}")
    block = datasets[name if name is not None else next(iter(datasets))]
    try:
        return DictConfig(OmegaConf.to_container(block, resolve=True) if block is not None else {})
    except OmegaConfBaseException as error:
        raise ConfigError(f"{cfg_path}: {error.full_key}: {error.msg or error}") from error

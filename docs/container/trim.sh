#!/bin/sh
# trim.sh ENVIRONMENT [CPU]: remove from a virtual environment what `agent run` on a CPU never uses.
# With CPU=no OpenVINO goes altogether: for thresholds that were calibrated with ONNX Runtime.
set -eu
cd "$1"/lib/python3*/site-packages

# The installers, and what only compilers and type checkers read.
rm -rf pip pip-* setuptools setuptools-* _distutils_hack distutils-precedence.pth
find . -name '*.pyi' -delete
find . -type d \( -name tests -o -name include \) -prune -exec rm -rf {} +

# ONNX Runtime's tools for making networks.
rm -rf onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets

# OpenVINO for other devices than the CPU, and its readers of other files than ONNX.
if [ "${2:-yes}" = yes ]; then
    rm -f openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so
    rm -f openvino/libs/cache.json
    for reader in tensorflow tensorflow_lite pytorch paddle gguf jax; do
        rm -f openvino/libs/libopenvino_${reader}_frontend.so*
    done
else
    rm -rf openvino openvino-* openvino_telemetry*
fi

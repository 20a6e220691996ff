#!/bin/sh
# All that needs a GPU, in one go: kernels and transports checked there, then the engine measured.
# Usage: benchmarks/gpu.sh [FOLDER]; FOLDER (default: gpu-results) gets gpu.json and the logs.
# PYTHON names the interpreter (default: python3), with Baton installed; `pip install --no-deps .` suffices where torch,
# triton, numpy, safetensors, msgspec and xxhash are there, and pytest and hypothesis for the checks.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
results=${1:-gpu-results}
mkdir -p "$results"
status=0
"$python" -P -c 'import torch; assert torch.cuda.is_available()' || { echo "no CUDA device is here" >&2; exit 2; }
"$python" -P -m pytest -q tests/engine/test_triton.py tests/kvtransfer/test_cuda.py -rs > "$results/checks.log" 2>&1 || status=1
tail -n 3 "$results/checks.log"
"$python" benchmarks/gpu.py --json "$results/gpu.json" > "$results/gpu.log" 2>&1 || status=1
cat "$results/gpu.log"
exit $status

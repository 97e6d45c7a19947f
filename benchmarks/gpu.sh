#!/bin/sh
# What one GPU shows in ten minutes: caching, a step of a cross-layer transcoder, a sweep, evaluation (benchmarks/gpu.py).
#
#     benchmarks/gpu.sh             on a machine with a GPU; needs the Python environment and no network
#     benchmarks/gpu.sh --smoke     every step at tiny sizes, on a CPU
#
# PYTHON names the interpreter; by default that of .venv, or else python3.
set -eu
cd "$(dirname "$0")/.."
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python || PYTHON=python3; }
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/lib${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" benchmarks/gpu.py "$@"

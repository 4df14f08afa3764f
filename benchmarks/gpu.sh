#!/bin/sh
# Run benchmarks/gpu.py on a machine that reaches no registry: benchmarks/gpu.sh WHEELS FOLDER [ARGUMENTS]
# WHEELS holds what the machine's own Python lacks or has too old (transformers, tokenizers, peft, ...), one version of
# each; its torch stays.
set -eu
wheels=$1 folder=$2
shift 2
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PYTHONPATH="$site:$PWD/src:$PWD" python3 -m benchmarks.gpu "$folder" "$@"

#!/usr/bin/env bash
# Runs every GPU figure in at most four minutes, the installation included, and writes docs/results/data/gpu.json.
#
#     bash examples/benchmarks/gpu.sh [--small] [--out FILE] [--commit HASH] [--parts NAME,NAME]
#
# It needs a Python with torch (PYTHON, by default python3). What else is missing is installed into VENV, by default
# .venv-gpu, which uses that torch. Without a package index, give pip a folder of wheels:
# PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER. If a slow installation leaves little time to measure, run it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
venv=${VENV:-.venv-gpu}
budget=240

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

runs() {
    "$1" -c 'import examples.benchmarks.gpu, examples.benchmarks.gpu_steps, examples.benchmarks.gpu_jobs' 2>/dev/null
}

command -v "$python" >/dev/null || fail "there is no $python: set PYTHON to a Python of 3.11 or later that has torch."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than 3.11: set PYTHON."
torch=$("$python" -c 'import importlib.metadata as m, torch; print(m.version("torch"))' 2>/dev/null) ||
    fail "$python has no torch: install torch for this machine's GPU first."
if [ -x "$venv/bin/python" ] && runs "$venv/bin/python"; then # from an earlier run
    python=$venv/bin/python
elif ! runs "$python"; then
    echo "installing what is missing into $venv" >&2
    mkdir -p "$venv"
    echo "torch==$torch" >"$venv/constraints.txt" # the torch that knows this GPU, and no other
    {
        "$python" -m venv "$venv" &&
            places=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
            "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
                >"$places/torch.pth" && # also if that Python is a virtual environment
            "$venv/bin/python" -m pip install --quiet --retries 1 --timeout 10 \
                --constraint "$venv/constraints.txt" --editable '.[models]'
    } >"$venv/install.log" 2>&1 ||
        fail "what the benchmark needs can't be installed ($venv/install.log says why): give pip an index or wheels."
    python=$venv/bin/python
    runs "$python" || fail "the benchmark can't be imported: run $python -m examples.benchmarks.gpu --help."
fi
exec "$python" -m examples.benchmarks.gpu --budget $((budget - SECONDS)) "$@"

#!/usr/bin/env bash
# What a GPU is worth here, in under 9 minutes on a machine with one: tests that need it, speed and memory, and
# pictures after four minutes of training.
#
#     bash benchmarks/gpu.sh [TILES]
#
# TILES   a folder, .zip or .npy of tiles; without it the embedded tissue
# OUT     folder for JSON, pictures and the log; default benchmarks/results
# PYTHON  default python3, with PyTorch 2.11 or newer
# TINY=1  the same at tiny sizes, on a CPU too, in under two minutes
#
# Needs torch, torchvision, numpy, scipy, pandas, scikit-learn, scikit-image, matplotlib, pillow, tqdm, tensorboard,
# pytest, torchmetrics, pytorch-msssim, diffusers and ipython. What is missing and cannot be installed may lie in the
# folder .whl of the repository as wheels, with all that they need in turn: used from there, for this run alone. Beside
# a PyTorch installation with the usual scientific packages these are
#     pytorch-msssim 1.0.0, diffusers 0.42.1 (importlib-metadata),
#     ipython 9.18.1 (decorator, ipython-pygments-lexers, jedi, parso, matplotlib-inline, pexpect, ptyprocess,
#     prompt-toolkit, wcwidth, stack-data, asttokens, executing, pure-eval, traitlets)
#
# Every step runs, whichever fails, and no longer than its limit; the exit status is 0 only if all succeeded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
tiles=${1:-embedded}
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT" || exit
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1 TQDM_MININTERVAL=20
exec > >(tee "$OUT/gpu.log") 2>&1

if compgen -G '.whl/*.whl' > /dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi

items=(stage batch ddpm-10000 solver-10000 unet ddpm solver data metrics) # the slowest first
if [ "${TINY:-0}" = 1 ]; then
    measure=(--size tiny --repetitions 1 --only "${items[@]}")
    look=(--size tiny --minutes 0.2)
elif "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    measure=(--repetitions 2 --only "${items[@]}")
    look=(--minutes 3.4)
else
    echo "error: PyTorch sees no GPU here: TINY=1 bash benchmarks/gpu.sh runs this at tiny sizes on a CPU."
    exit 2
fi

report=()
failed=0
step() { # NAME LIMIT_S COMMAND...: go on whatever happens
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    printf '\n== %s\n' "$name"
    timeout --kill-after=5 "$limit" "$@"
    status=$?
    [ $status = 0 ] || failed=1
    [ $status = 124 ] && status="124, stopped at its limit of $limit s"
    report+=("$(printf '%-14s %4d s   exit status %s' "$name" $((SECONDS - began)) "$status")")
}

step environment 25 "$PYTHON" -m torch.utils.collect_env
step tests 100 "$PYTHON" -m pytest -m gpu -rs -p no:cacheprovider tests/machine/test_gpu.py
step benchmarks 175 "$PYTHON" -m benchmarks "${measure[@]}" --out "$OUT"
step look 230 "$PYTHON" -m experiments.train_and_look "$tiles" "${look[@]}" --out "$OUT"

printf '\n== summary, results in %s\n' "$OUT"
printf '%s\n' "${report[@]}"
sleep 1 # until the log is written
exit $failed

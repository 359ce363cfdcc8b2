#!/usr/bin/env bash
# What a GPU is worth here, in two calls of at most five minutes on a machine with one.
#
#     bash benchmarks/gpu.sh 1 [TILES]   tests that need a GPU, speed and memory, peers of the same shape; then the
#                                        preset `recommended`, shortened, begins to train for the rest of the time
#     bash benchmarks/gpu.sh 2 [TILES]   goes on with that training, draws, and measures structure and distances
#
# TILES   a folder, .zip or .npy of tiles; without it the embedded tissue
# OUT     folder for JSON, pictures, networks and the log, the same in both calls; default runs/gpu
# PYTHON  default python3, with PyTorch 2.11 or newer
# TINY=1  the same at tiny sizes, on a CPU too, however slow or busy that is: without the limits of time
#
# Each step is printed before it runs, with its limit.
#
# Needs torch, torchvision, numpy, scipy, pandas, scikit-learn, scikit-image, matplotlib, pillow, tqdm, pydantic,
# tensorboard, pytest, torchmetrics, pytorch-msssim, diffusers and ipython. What is missing and cannot be installed may
# lie in the folder .whl of the repository as wheels, with all that they need in turn: used from there, for this run
# alone. Beside a PyTorch installation with the usual scientific packages these are
#     pytorch-msssim 1.0.0, diffusers 0.42.1 (importlib-metadata),
#     ipython 9.18.1 (decorator, ipython-pygments-lexers, jedi, parso, matplotlib-inline, pexpect, ptyprocess,
#     prompt-toolkit, wcwidth, stack-data, asttokens, executing, pure-eval, traitlets)
#
# Every step runs, whichever fails, and no longer than its limit; the exit status is 0 only if all succeeded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
call=${1:-}
tiles=${2:-embedded}
if [ "$call" != 1 ] && [ "$call" != 2 ]; then
    echo "error: bash benchmarks/gpu.sh 1 and then bash benchmarks/gpu.sh 2, each with the same TILES."
    exit 2
fi
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT" || exit
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1 TQDM_MININTERVAL=20
exec > >(tee "$OUT/gpu-$call.log") 2>&1

if compgen -G '.whl/*.whl' > /dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi

limit=300 # seconds of the call
limits=(timeout --kill-after=15) where=''
items=(stage unet data ddpm-10000 solver-10000 batch)
if [ "${TINY:-0}" = 1 ]; then
    items=(stage unet) # the others are for a GPU, or long
    measure=(--size tiny --repetitions 1)
    peers=(--size tiny --repetitions 2)
    train=(--size tiny --minutes 0.05)
    limits=() where=' on a GPU'
elif "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    measure=(--repetitions 2)
    peers=(--repetitions 3)
    train=(--minutes 3.5)
else
    echo "error: PyTorch sees no GPU here: TINY=1 bash benchmarks/gpu.sh $call runs this at tiny sizes on a CPU."
    exit 2
fi

report=()
failed=0
step() { # NAME LIMIT_S COMMAND...: go on whatever happens
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    printf '\n== %s, at most %d s%s: %s\n' "$name" "$limit" "$where" "$*"
    "${limits[@]}" ${limits[@]:+"$limit"} "$@"
    status=$?
    [ $status = 0 ] || [ "$name $call" = "train 1" ] || failed=1 # the second call goes on
    [ $status = 124 ] && status="124, stopped at its limit of $limit s"
    report+=("$(printf '%-14s %4d s   exit status %s' "$name" $((SECONDS - began)) "$status")")
}

if [ "$call" = 1 ]; then
    step environment 20 "$PYTHON" -m torch.utils.collect_env
    step tests 60 "$PYTHON" -m pytest -m gpu -rs -p no:cacheprovider tests/machine/test_gpu.py
    step benchmarks 100 "$PYTHON" -m benchmarks "${measure[@]}" --only "${items[@]}" --out "$OUT"
    step peers 45 "$PYTHON" -m benchmarks.peers "${peers[@]}" --only forward step --beside "diffusers, even widths" \
        --out "$OUT/peers.json"
    rest=$((limit - SECONDS - 15)) # and the time to leave a resume point
    [ "$rest" -ge 10 ] || rest=10
else
    rest=$((limit - 120)) # for what is measured
fi
step train "$rest" "$PYTHON" -m experiments.short_run "$tiles" "${train[@]}" --out "$OUT"
if [ "$call" = 2 ]; then
    step measures 110 "$PYTHON" -m pfiles evaluate --real "$OUT/test" --generated "$OUT/drawn" --unpaired --out "$OUT"
fi

printf '\n== summary, results in %s\n' "$OUT"
printf '%s\n' "${report[@]}"
sleep 1 # until the log is written
exit $failed

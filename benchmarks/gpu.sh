#!/usr/bin/env bash
# What needs a CUDA GPU, with the `python` on PATH; each part takes less than ten minutes:
#
#     benchmarks/gpu.sh bench    the tests of CUDA; ours against compute-only, two models and batches
#     benchmarks/gpu.sh paper    the paper's rows 2 to 5, as they are and with the fast switches
#     benchmarks/gpu.sh loaders  every arm, on 1024 px files
#     benchmarks/gpu.sh          all of it
#
# It draws the images itself. JSON files go to $OUT, or beside this script. REPEATS=3 is quicker.
set -uo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath "${OUT:-$repository/benchmarks}")
repeats=${REPEATS:-5}
accelerator=${ACCELERATOR:-cuda} # cpu tries the script itself out
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$work/bytecode
failed=0

run() { # a command that may fail: the other measurements are worth having
    printf '\n%s\n' "$ $*" >&2
    "$@" || { failed=1 && printf 'failed: %s\n' "$*" >&2; }
}

xray() { run python -m xray_lightning.cli.main "$@"; }

small_images() { # 1,420 of 256 px: the paper's 1000, 200 and more
    [ -d "$work/p256" ] || xray data phantom "$work/p256" --images "${IMAGES:-1420}" --size 256
}

bench() {
    small_images
    cd "$repository" && run python -m pytest tests -k cuda -o addopts= -q
    cd "$work" || exit 1
    for model in resnet18 resnet50; do
        for batch in ${BATCHES:-32 256}; do
            python -m benchmarks.side_by_side --arms ours,compute_only --data p256 --model "$model" \
                --batch-size "$batch" --precision bf16-mixed --accelerator "$accelerator" \
                --repeats "$repeats" --steps "${STEPS:-150}" \
                --json "$out/gpu_${model}_batch${batch}.json"
        done
    done
}

loaders() {
    cd "$work" || exit 1
    xray data phantom p1024 --images 200 --size 1024
    python -m benchmarks.side_by_side --data p1024 --accelerator "$accelerator" --precision bf16-mixed \
        --repeats "$repeats" --steps "${STEPS:-60}" --json "$out/gpu_loaders.json"
}

row() { # NAME OVERRIDE...: one whole run into $work/runs
    name=$1 && shift
    cd "$work" || exit 1
    run python "$repository/train.py" data=phantom data.root=p256 data.phantom=null \
        data.split=split.csv data.image_size=224 data.cache_dir=cache \
        accelerator="$accelerator" evaluation.resamples=200 "$@" name="$name"
}

paper() {
    small_images
    cd "$work" || exit 1
    run python - <<'PYTHON'
from pathlib import Path

from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.splits import Split

names = tuple(sorted(read_manifest(Path("p256")).table["image"]))
train = min(1000, len(names) * 7 // 10)
val = train + min(200, len(names) // 7)
Split("paper", {"train": names[:train], "val": names[train:val], "test": names[val:]}).write(
    Path("split.csv")
)
PYTHON
    fast=(precision=bf16-mixed optimizer.fused=true speed.cuda_graph=true)
    single=()
    command -v mpirun >/dev/null || single=(strategy=single) # the table says which it was
    row warm_up experiment=paper_2_resnet18_cuda trainer.max_epochs=1 # builds the cache
    rm -rf "$work/runs"
    for experiment in paper_2_resnet18_cuda paper_3_resnet18_mpi \
        paper_4_resnet18_mpi_amp_sched paper_5_resnet50_mpi_amp_sched; do
        epochs=(trainer.max_epochs="${EPOCHS:-25}")
        row "$experiment" experiment="$experiment" "${epochs[@]}" "${single[@]}"
        row "${experiment}_fast" experiment="$experiment" "${epochs[@]}" "${single[@]}" "${fast[@]}"
    done
    run python "$repository/benchmarks/paper_rows.py" runs "$out/gpu_paper.json" \
        "benchmarks/gpu.sh paper"
}

case ${1:-all} in
bench | paper | loaders) "$1" ;;
all) bench && paper && loaders ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
exit "$failed"

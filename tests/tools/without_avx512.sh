#!/usr/bin/env bash
# Builds lrpt as it runs on a processor with AVX2 and without AVX-512, on one that has both: its figures and
# the lines of tests/tools/trajectories.txt, which are those of AVX2.
#
#   tests/tools/without_avx512.sh FOLDER [COMMIT]
#   FOLDER/target/release/examples/trajectories            # beside tests/tools/trajectories.txt
#   ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
#       python3 benches/compare_with_pytorch.py --lrpt FOLDER/target/release/lrpt ...
#
# The features that switch on AVX-512 are left out of Cargo.toml, and a copy of faer looks for it in vain.
# Takes a worktree of the commit (HEAD) and a whole build, about 8 minutes on two cores.
set -euo pipefail
folder="$(realpath -m "$1")" commit="${2:-HEAD}"
cd "$(dirname "$0")/../.."
git worktree add --detach "$folder" "$commit"
cd "$folder"
faer="$(cargo metadata --format-version 1 | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(*(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "faer"))')"
cp -r "$faer" faer-without-avx512
python3 - <<'PYTHON'
import pathlib, re
for path in pathlib.Path("faer-without-avx512/src").rglob("*.rs"):
    text = path.read_text()
    changed = re.sub(r'(std::arch::)?is_x86_feature_detected!\(\s*"avx512f"\s*\)', "false", text)
    if changed != text:
        path.write_text(changed)
manifest = pathlib.Path("Cargo.toml")
text = re.sub(r'^(gemm|pulp) = \{ version = ("[^"]*").*$', r"\1 = \2", manifest.read_text(), flags=re.M)
manifest.write_text(text + '\n[patch.crates-io]\nfaer = { path = "faer-without-avx512" }\n')
avx2 = pathlib.Path("src/kernels/gemm/instructions/avx2.rs")
if avx2.exists():  # not before lrpt had products of its own
    avx2.write_text(avx2.read_text().replace('|| !is_x86_feature_detected!("avx512f")', "|| true"))
PYTHON
cargo build --release --bins --examples

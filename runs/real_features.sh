#!/usr/bin/env bash
# The README's numbers on real photographs: every method that runs on feature files, 1 to 16 shots, three seeds.
#
#     bash runs/real_features.sh DATA          # about an hour of one core; repeat the command to continue
#
# DATA is a folder with the four files of features that others have computed: whurs19_RN50.npz, whurs19_ViT-B-32.npz,
# oxford_pets.npz and caltech101.npz. docs/results/real-features.md says where they come from and what is in them; their
# licences do not let us ship them. No image, no weights and no GPU is needed.
set -euo pipefail
data=$(cd "${1:?usage: runs/real_features.sh DATA}" && pwd)
cd "$(dirname "$0")/.."
work=output/real_features

# 1. The features in this package's own format.
mkdir -p "$work/data"
for name in whurs19_RN50 whurs19_ViT-B-32 oxford_pets caltech101; do
  [ -f "$work/data/$name.npz" ] || python tools/extract.py --convert "$data/$name.npz" --output "$work/data/$name.npz"
done

# 2. The runs that are missing, each by its method's default recipe on one thread; the table docs/results/real_features.csv
#    with CPU seconds, the tables of docs/results/real-features.md on the terminal, and the picture of the README.
SECONDS=0
python docs/results/real_features.py "$work"/data/*.npz --output-dir "$work/runs"

# 3. The ledger, and the README against it.
python runs/ledger.py real-features docs/results/real_features.csv --seconds "$SECONDS" \
  --command "bash runs/real_features.sh DATA"
pytest -n0 -q tests/docs/test_docs_ledger.py

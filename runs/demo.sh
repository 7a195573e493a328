#!/usr/bin/env bash
# Every number of the README that needs no data of others, from nothing. In a fresh clone:
#
#     bash runs/demo.sh                        # all steps: half an hour on two cores
#     bash runs/demo.sh quickstart             # one step, or several: quickstart arrays suite check
#
# Needs Python 3.10 or newer and, for the first line alone, pip's network: neither data nor weights nor a GPU. Every step
# writes a file of the ledger, docs/results/ledger/*.json, with date, commit, command, machine, versions and table;
# `git diff docs/results` then shows where your numbers differ from ours. Repeat the command to continue: what has finished is
# not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
export DASSL_LITE_CACHE="${DASSL_LITE_CACHE:-$PWD/output/demo/cache}" # datasets are drawn into it on first use
steps="${*:-quickstart arrays suite check}"

# 0. An environment, unless the one that is active runs this clone. Asked from elsewhere: here, any Python finds the package.
here=$(cd / && python -c 'import dassl_lite, torch; print(*dassl_lite.__path__)' 2>/dev/null || true)
if [ "$here" != "$PWD/dassl_lite" ]; then
  [ -d .venv ] || { python3 -m venv .venv && .venv/bin/pip install -q -e ".[dev]"; }
  . .venv/bin/activate
fi

# 1. The README's first block: TaskRes on ShapesNet with 16 shots, by a CLIP of 2.9 MB that ships with the package. A minute.
quickstart() {
  python tools/train.py --trainer TaskRes --output-dir output/demo/quickstart --resume
  python runs/ledger.py quickstart output/demo/quickstart --seconds "$SECONDS" --command "python tools/train.py --trainer TaskRes"
}

# 2. Agreement with the authors' code: the tests that compare with its arrays, counted.
arrays() {
  mkdir -p output/demo
  grep -rlE "\bgolden2?\b" tests --include="test_*.py" | xargs pytest -q --golden-report | tee output/demo/arrays.txt
  python runs/ledger.py reference-arrays output/demo/arrays.txt --seconds "$SECONDS" --command "pytest --golden-report"
}

# 3. The field's four protocols on the embedded datasets, by every method. The tables are written to docs/results/demo-suite.md
#    too. Long trainings are cut to a tenth of their recipes here, which the tables say; add --full-length for all of it.
suite() {
  local command="python tools/benchmark.py all ${SUITE:-}" # SUITE="--datasets gadgets digits --shots 16": less of it
  $command --output-dir output/demo/suite
  {
    echo "# The four protocols on the embedded datasets"
    echo
    echo "Made by \`runs/demo.sh\`; date, commit, machine and time are in [the ledger](ledger/demo-suite.json). These pictures are"
    echo "drawn: the tables show that every method and protocol works, not which method is the best on photographs. Recipes were"
    echo "made for large encoders: PromptSRC's (batches of 4, learning rate 2.5e-3) leads this small one astray."
    echo
    cat output/demo/suite/report.md
  } >docs/results/demo-suite.md
  python runs/ledger.py demo-suite output/demo/suite --seconds "$SECONDS" --command "$command"
}

# 4. The README against the ledger.
check() {
  pytest -n0 -q tests/docs/test_docs_ledger.py
}

for step in $steps; do
  echo "== $step"
  SECONDS=0
  "$step"
done

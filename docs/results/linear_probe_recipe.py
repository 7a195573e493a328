"""Compare learning rates and weight decays of LinearProbe on validation features.

    python docs/results/linear_probe_recipe.py FEATURES.npz... --output-dir output/linear_probe

Each file, in a layout that `extract.py --convert` reads, is copied with its validation images as the test images, so
that nothing is chosen on test images, and with its features multiplied by each length: the files hold features of
length 1, CLIP's image encoders give 1 to 12. Each setting then trains by `tools/sweep.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from dassl_lite.data.feature_files import FeatureFile, FeaturePart, convert_features, write_feature_file

LENGTHS = (1, 10)
SETTINGS = ((0.01, 5e-4), (0.001, 0), (0.01, 0), (0.02, 0), (0.03, 0), (0.1, 0))  # LR, WEIGHT_DECAY
SWEEP = Path(__file__).resolve().parents[2] / "tools" / "sweep.py"


def validation_file(file: FeatureFile, length: float) -> FeatureFile:
    """The file with its validation images as the test images, and image features multiplied by ``length``."""

    def scaled(part: FeaturePart) -> FeaturePart:
        return FeaturePart((part.views * length).astype("float32"), part.labels)

    return dataclasses.replace(
        file, parts={"train": scaled(file.parts["train"]), "test": scaled(file.parts["val"])}, logit_scale=100.0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--shots", nargs="+", default=["1", "4", "16"])
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--output-dir", type=Path, default=Path("output/linear_probe"))
    args = parser.parse_args()
    rows = []
    for length in LENGTHS:
        folder = args.output_dir / f"length{length}"
        folder.mkdir(parents=True, exist_ok=True)
        for path in args.files:
            write_feature_file(validation_file(convert_features(path), length), folder / path.name)
        for rate, decay in SETTINGS:
            sweep = folder / f"lr{rate:g}-decay{decay:g}"
            command = [sys.executable, str(SWEEP), "--trainers", "LinearProbe", "--output-dir", str(sweep)]
            command += ["--data", *(str(folder / path.name) for path in args.files)]
            command += ["--shots", *args.shots, "--seeds", *args.seeds]
            command += ["OPTIM.LR", f"{rate:g}", "OPTIM.WEIGHT_DECAY", f"{decay:g}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = [json.loads(file.read_text()) for file in sorted(sweep.rglob("results.json"))]
            rows.append(
                [length, rate, decay, statistics.mean(run["metrics"]["test"]["accuracy"] for run in found), len(found)]
            )
            print(*rows[-1], flush=True)
    print(
        tabulate(
            rows, ["length", "LR", "weight decay", "validation accuracy %", "runs"], floatfmt=("", "g", "g", ".2f")
        )
    )


if __name__ == "__main__":
    main()

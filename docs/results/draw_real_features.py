"""Draw docs/images/real-features.png from docs/results/real_features.csv.

python docs/results/draw_real_features.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[1]
PANELS = {
    "whurs19_RN50": "WHU-RS19, aerial scenes, RN50",
    "whurs19_ViT-B-32": "WHU-RS19, aerial scenes, ViT-B/32",
    "caltech101": "Caltech101, 30 classes, ViT-B/32",
    "oxford_pets": "OxfordPets, 24 classes, ViT-B/32",
}
ORDER = ("TaskRes", "LinearProbe", "TipAdapterF", "TipAdapter", "CLIP_Adapter")
COLOURS = dict(zip(ORDER, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"), strict=True))  # Okabe and Ito


def read() -> dict[str, dict[str, dict[int, tuple[float, float]]]]:
    """Features -> method -> shots (0: none) -> mean and 95 % interval."""
    found: dict = defaultdict(lambda: defaultdict(dict))
    with (DOCS / "results" / "real_features.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["features"]][row["method"]][int(row["shots"])] = float(row["mean"]), float(row["ci95"] or 0)
    return found


def main() -> None:
    found = read()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.8, 3.5), layout="constrained")
    for axis, (features, title) in zip(axes, PANELS.items(), strict=True):
        methods = found[features]
        for name in ORDER:
            shots = sorted(methods[name])
            means = [methods[name][s][0] for s in shots]
            axis.plot(shots, means, "o-", color=COLOURS[name], label=name, linewidth=1.8, markersize=4)
        ((zero_shot, _),) = methods["ZeroshotCLIP"].values()
        axis.axhline(zero_shot, color="#555555", linestyle="--", linewidth=1.2, label="zero-shot CLIP")
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 4, 16], ["1", "4", "16"])
        axis.set_xlabel("training images per class")
        axis.set_title(title, fontsize=9.5)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy in %")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=10,
        columnspacing=1.4,
    )
    figure.savefig(DOCS / "images" / "real-features.png", dpi=130)


if __name__ == "__main__":
    main()

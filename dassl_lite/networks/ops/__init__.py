"""Layers and losses for domain adaptation and generalisation, under Dassl's names."""

from dassl_lite.networks.ops.layers import Attention, Conv2dDynamic, ReverseGrad, Sequential2
from dassl_lite.networks.ops.losses import (
    MaximumMeanDiscrepancy,
    MinibatchEnergyDistance,
    OptimalTransport,
    SinkhornDivergence,
    cross_entropy,
)
from dassl_lite.networks.ops.mixing import (
    EFDMix,
    MixStyle,
    activate_efdmix,
    activate_mixstyle,
    crossdomain_efdmix,
    crossdomain_mixstyle,
    deactivate_efdmix,
    deactivate_mixstyle,
    mixup,
    random_efdmix,
    random_mixstyle,
    run_with_efdmix,
    run_with_mixstyle,
    run_without_efdmix,
    run_without_mixstyle,
)
from dassl_lite.networks.ops.normalisation import DSBN1d, DSBN2d, TransNorm1d, TransNorm2d

__all__ = [
    "Attention",
    "Conv2dDynamic",
    "DSBN1d",
    "DSBN2d",
    "EFDMix",
    "MaximumMeanDiscrepancy",
    "MinibatchEnergyDistance",
    "MixStyle",
    "OptimalTransport",
    "ReverseGrad",
    "Sequential2",
    "SinkhornDivergence",
    "TransNorm1d",
    "TransNorm2d",
    "activate_efdmix",
    "activate_mixstyle",
    "cross_entropy",
    "crossdomain_efdmix",
    "crossdomain_mixstyle",
    "deactivate_efdmix",
    "deactivate_mixstyle",
    "mixup",
    "random_efdmix",
    "random_mixstyle",
    "run_with_efdmix",
    "run_with_mixstyle",
    "run_without_efdmix",
    "run_without_mixstyle",
]

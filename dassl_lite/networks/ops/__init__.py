"""Layers and losses of domain adaptation and generalisation, under Dassl's names."""

from dassl_lite.networks.ops.attention import Attention
from dassl_lite.networks.ops.conv import Conv2dDynamic
from dassl_lite.networks.ops.cross_entropy import cross_entropy
from dassl_lite.networks.ops.dsbn import DSBN1d, DSBN2d
from dassl_lite.networks.ops.efdmix import (
    EFDMix,
    activate_efdmix,
    crossdomain_efdmix,
    deactivate_efdmix,
    random_efdmix,
    run_with_efdmix,
    run_without_efdmix,
)
from dassl_lite.networks.ops.mixstyle import (
    MixStyle,
    activate_mixstyle,
    crossdomain_mixstyle,
    deactivate_mixstyle,
    random_mixstyle,
    run_with_mixstyle,
    run_without_mixstyle,
)
from dassl_lite.networks.ops.mixup import mixup
from dassl_lite.networks.ops.mmd import MaximumMeanDiscrepancy
from dassl_lite.networks.ops.optimal_transport import MinibatchEnergyDistance, OptimalTransport, SinkhornDivergence
from dassl_lite.networks.ops.reverse_grad import ReverseGrad
from dassl_lite.networks.ops.sequential2 import Sequential2
from dassl_lite.networks.ops.transnorm import TransNorm1d, TransNorm2d

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

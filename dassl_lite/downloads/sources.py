"""The field's fifteen datasets: publishers' addresses, sizes and digests, and where the files go.

Layout, split files and their addresses are those of CoOp's DATASETS.md; sizes and digests are those that
torchvision and TensorFlow Datasets publish. Digests of the split files are not published: the doctor counts what
they list instead.
"""

from __future__ import annotations

from dassl_lite.downloads.remote import GIB, File, Limits, Source, Unpack, drive
from dassl_lite.downloads.sources_imagenet import IMAGENET_FAMILY

VGG = "https://www.robots.ox.ac.uk/~vgg/data"

SOURCES: dict[str, Source] = {
    "Caltech101": Source(
        "caltech-101",
        (
            File("split_zhou_Caltech101.json", drive("1hyarUivQE36mY6jSomru6Fjd-JzwcCzN")),
            File(
                "caltech-101.zip",
                ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
                digest="md5:3138e1922a9193bfa496528edbbc45d0",
                unpack=Unpack(
                    "101_ObjectCategories", "101_ObjectCategories", inner="caltech-101/101_ObjectCategories.tar.gz"
                ),
            ),
        ),
        images=(4128, 1649, 2465),
        classes=100,
    ),
    "OxfordPets": Source(
        "oxford_pets",
        (
            File("split_zhou_OxfordPets.json", drive("1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs")),
            File(
                "annotations.tar.gz",
                (f"{VGG}/pets/data/annotations.tar.gz",),
                size=19173078,
                digest="sha256:52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
                unpack=Unpack("annotations", "annotations"),
                optional=True,  # only for making the split anew
            ),
            File(
                "images.tar.gz",
                (f"{VGG}/pets/data/images.tar.gz",),
                size=791918971,
                digest="sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                unpack=Unpack("images", "images"),
            ),
        ),
        images=(2944, 736, 3669),
        classes=37,
    ),
    "StanfordCars": Source(
        "stanford_cars",
        (
            File("split_zhou_StanfordCars.json", drive("1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT")),
            File(
                "cars_train.tgz",
                size=979269282,
                digest="sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                unpack=Unpack("cars_train", "cars_train"),
            ),
            File(
                "cars_test.tgz",
                size=977350468,
                digest="sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                unpack=Unpack("cars_test", "cars_test"),
            ),
            File(
                "car_devkit.tgz",
                size=330960,
                digest="sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                unpack=Unpack("devkit", "devkit"),
                optional=True,
            ),
            File(
                "cars_test_annos_withlabels.mat",
                size=185758,
                digest="sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
                optional=True,
            ),
        ),
        images=(6509, 1635, 8041),
        classes=196,
        by_hand="The publisher's site (ai.stanford.edu/~jkrause/cars) is gone; "
        "https://github.com/pytorch/vision/issues/7545 lists copies. The devkit and the .mat file are only needed "
        "without split_zhou_StanfordCars.json.",
    ),
    "OxfordFlowers": Source(
        "oxford_flowers",
        (
            File("split_zhou_OxfordFlowers.json", drive("1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT")),
            File("cat_to_name.json", drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"), optional=True),
            File(
                "imagelabels.mat",
                (f"{VGG}/flowers/102/imagelabels.mat",),
                size=502,
                digest="sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
                optional=True,
            ),
            File(
                "102flowers.tgz",
                (f"{VGG}/flowers/102/102flowers.tgz",),
                size=344862509,
                digest="sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
                unpack=Unpack("jpg", "jpg"),
            ),
        ),
        images=(4093, 1633, 2463),
        classes=102,
    ),
    "Food101": Source(
        "food-101",
        (
            File("split_zhou_Food101.json", drive("1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl")),
            File(
                "food-101.tar.gz",
                ("https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
                size=4996278331,
                digest="sha256:d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
                unpack=Unpack("food-101", ""),
                provides="images",
            ),
        ),
        images=(50500, 20200, 30300),
        classes=101,
    ),
    "FGVCAircraft": Source(
        "fgvc_aircraft",
        (
            File(
                "fgvc-aircraft-2013b.tar.gz",
                (f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
                size=2770575360,
                digest="sha256:d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75",
                unpack=Unpack("fgvc-aircraft-2013b/data", ""),
                provides="images",
            ),
        ),
        images=(3334, 3333, 3333),
        classes=100,
    ),
    "SUN397": Source(
        "sun397",
        (
            File("split_zhou_SUN397.json", drive("1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq")),
            File(
                "Partitions.zip",
                size=18293705,
                digest="sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
                unpack=Unpack("", ""),
                provides="ClassName.txt",
                optional=True,
            ),
            File(
                "SUN397.tar.gz",
                size=39077296924,
                digest="sha256:f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
                unpack=Unpack("SUN397", "SUN397", limits=Limits(bytes=64 * GIB)),
            ),
        ),
        images=(15880, 3970, 19850),
        classes=397,
        by_hand="The publisher's links (https://vision.princeton.edu/projects/2010/SUN/) are often dead; any copy with "
        "this digest is the right one. The partitions are only needed without split_zhou_SUN397.json.",
    ),
    "DescribableTextures": Source(
        "dtd",
        (
            File("split_zhou_DescribableTextures.json", drive("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x")),
            File(
                "dtd-r1.0.1.tar.gz",
                (f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz",),
                size=625239812,
                digest="sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
                unpack=Unpack("dtd", ""),
                provides="images",
            ),
        ),
        images=(2820, 1128, 1692),
        classes=47,
    ),
    "EuroSAT": Source(
        "eurosat",
        (
            File("split_zhou_EuroSAT.json", drive("1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o")),
            File(
                "EuroSAT.zip",
                (
                    # The publisher's server has an expired certificate; the first is a copy that its author agreed to.
                    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                    "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
                ),
                size=94280567,
                digest="sha256:8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
                unpack=Unpack("2750", "2750"),
            ),
        ),
        images=(13500, 5400, 8100),
        classes=10,
    ),
    "UCF101": Source(
        "ucf101",
        (
            File("split_zhou_UCF101.json", drive("1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y")),
            File(
                "UCF-101-midframes.zip",
                drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),
                unpack=Unpack("UCF-101-midframes", "UCF-101-midframes"),
            ),
        ),
        images=(7639, 1898, 3783),
        classes=101,
    ),
    **IMAGENET_FAMILY,
}

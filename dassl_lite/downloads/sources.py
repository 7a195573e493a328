"""Where the files of the field's fifteen datasets come from: publishers' URLs, sizes and digests, and the layout.

Layout, split files and their URLs follow CoOp's DATASETS.md; sizes and digests come from torchvision and TensorFlow
Datasets. No digests of the split files are published: the doctor counts their entries instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from dassl_lite.downloads.archives import GIB, Limits
from dassl_lite.downloads.fetch import DRIVE


@dataclass(frozen=True)
class Unpack:
    """What to take out of an archive.

    Args:
        take: folder in the archive, "" for all of it.
        to: folder that receives its content, relative to the dataset's folder; "" for that folder itself.
        inner: nested archive that contains ``take``, if the outer one does not.
        limits: ceilings, where the usual ones do not fit.
    """

    take: str
    to: str
    inner: str = ""
    limits: Limits | None = None


@dataclass(frozen=True)
class File:
    """A file that a dataset needs.

    Args:
        name: its name, in the dataset's folder.
        urls: where to download it, tried in order: ``https://...`` or ``drive:ID``; empty for a manual download.
        size: bytes, 0 if unknown.
        digest: ``md5:...`` or ``sha256:...`` in hex, "" if unknown.
        unpack: what to take out of it, if it is an archive.
        provides: path in the dataset's folder that exists once the file is installed; of an archive's entries, it is
            put in place last. Default: the folder that it is unpacked to, else its name.
        optional: the dataset works without it.
    """

    name: str
    urls: tuple[str, ...] = ()
    size: int = 0
    digest: str = ""
    unpack: Unpack | None = None
    provides: str = ""
    optional: bool = False

    @property
    def result(self) -> str:
        """Path in the dataset's folder whose existence shows that the file is installed."""
        return self.provides or (self.unpack.to if self.unpack else "") or self.name


@dataclass(frozen=True)
class Source:
    """A dataset's files, and the counts that a complete dataset has.

    Args:
        folder: the dataset's folder under the root.
        files: small ones first, so that quick downloads are done before those that may fail.
        images: number of images in train, val and test; None for a split that the dataset lacks.
        classes: number of classes.
        manual: where to find the files without a URL, and what to do with them.
    """

    folder: str
    files: tuple[File, ...]
    images: tuple[int | None, int | None, int]
    classes: int
    manual: str = ""


def drive(identity: str) -> tuple[str, ...]:
    """The single URL of a file on Google Drive."""
    return (f"{DRIVE}{identity}",)


VGG = "https://www.robots.ox.ac.uk/~vgg/data"
HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"

# One file for the whole family: downloaded once, then copied.
IMAGENET_NAMES = File("classnames.txt", drive("1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"), optional=True)

IMAGENET_FAMILY: dict[str, Source] = {
    "ImageNet": Source(
        "imagenet",
        (
            IMAGENET_NAMES,
            File(
                "ILSVRC2012_img_train.tar",
                size=147897477120,
                digest="md5:1d675b47d978889d74fa0da5fadfb00e",
                provides="images/train",
            ),
            File(
                "ILSVRC2012_img_val.tar",
                size=6744924160,
                digest="md5:29b22e2961454d5413ddabcf34fc5622",
                provides="images/val",
            ),
        ),
        images=(1281167, None, 50000),
        classes=1000,
        manual="Both archives are on https://image-net.org/download-images (login required). images/train and "
        "images/val need one folder per wnid, 1000 in each; symbolic links are fine. To unpack with torchvision, put "
        "the archives and ILSVRC2012_devkit_t12.tar.gz into imagenet/images and run there: python -c "
        '"from torchvision.datasets import ImageNet; '
        "ImageNet('.', 'train'); ImageNet('.', 'val')\".",
    ),
    "ImageNetV2": Source(
        "imagenetv2",
        (
            IMAGENET_NAMES,
            File(
                "imagenetv2-matched-frequency.tar.gz",
                (
                    "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
                    "imagenetv2-matched-frequency.tar.gz",
                ),
                size=1264079360,
                digest="sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
                unpack=Unpack("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency-format-val"),
            ),
        ),
        images=(None, None, 10000),
        classes=1000,
    ),
    "ImageNetSketch": Source(
        "imagenet-sketch",
        (
            IMAGENET_NAMES,
            File(
                "ImageNet-Sketch.zip",
                (
                    "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",
                    *drive("1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"),
                ),
                unpack=Unpack("sketch", "images"),
            ),
        ),
        images=(None, None, 50889),
        classes=1000,
    ),
    "ImageNetA": Source(
        "imagenet-adversarial",
        (
            IMAGENET_NAMES,
            File(
                "imagenet-a.tar",
                (f"{HENDRYCKS}/imagenet-a.tar",),
                size=687552512,
                digest="sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
                unpack=Unpack("imagenet-a", "imagenet-a"),
            ),
        ),
        images=(None, None, 7500),
        classes=200,
    ),
    "ImageNetR": Source(
        "imagenet-rendition",
        (
            IMAGENET_NAMES,
            File(
                "imagenet-r.tar",
                (f"{HENDRYCKS}/imagenet-r.tar",),
                size=2191079936,
                digest="sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
                unpack=Unpack("imagenet-r", "imagenet-r"),
            ),
        ),
        images=(None, None, 30000),
        classes=200,
    ),
}


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
                optional=True,  # only needed to redo the split
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
        manual="The publisher's site (ai.stanford.edu/~jkrause/cars) is gone; "
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
        manual="The publisher's links (https://vision.princeton.edu/projects/2010/SUN/) are often dead; any copy with "
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
                    # The publisher's certificate has expired; the first URL is a copy made with the author's consent.
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

"""ImageNet and its variants: their part of the table in :mod:`dassl_lite.downloads.sources`."""

from __future__ import annotations

from dassl_lite.downloads.remote import File, Source, Unpack, drive

HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"

# One file for the whole family; fetched once, copied for the others.
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
        by_hand="Both come from https://image-net.org/download-images (with a login). images/train and images/val need "
        "one folder per wnid, 1000 in each; links to folders that you have are fine. torchvision unpacks the archives "
        'so: put them and ILSVRC2012_devkit_t12.tar.gz into imagenet/images, and run there: python -c "from '
        "torchvision.datasets import ImageNet; ImageNet('.', 'train'); ImageNet('.', 'val')\".",
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

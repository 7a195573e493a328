"""Gaussian discriminant analysis in closed form, against plain computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dassl_lite.models import gaussian_discriminant as gaussian


def draw(images: int, views: int, classes: int, width: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views (V, N, D) of length 1, labels (N,) with classes of unequal sizes, text features (K, D)."""
    generator = torch.Generator().manual_seed(images + views)
    text = F.normalize(torch.randn(classes, width, generator=generator), dim=-1)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (images - classes,), generator=generator)])
    noise = torch.randn(views, images, width, generator=generator)
    return F.normalize(text[labels] + 0.3 * noise, dim=-1), labels, text


@pytest.mark.parametrize(("images", "views", "classes"), [(20, 1, 4), (30, 3, 5), (12, 10, 3), (9, 2, 6)])
def test_leaving_one_image_out_equals_fitting_to_the_others(images, views, classes):
    features, labels, text = draw(images, views, classes)
    found = gaussian.leave_one_out(features.double(), labels, text)
    assert torch.allclose(gaussian.leave_one_out(features, labels, text).double(), found, rtol=1e-3, equal_nan=True)
    for image in range(images):
        if (labels == labels[image]).sum() == 1:
            assert found[image].isnan().all()
            continue
        others = torch.arange(images) != image
        rest = gaussian.fit(features[:, others].flatten(0, 1), labels[others].repeat(views), text)
        query = F.normalize(features[:, image].double().mean(dim=0), dim=-1)
        assert torch.allclose(found[image], rest.weight @ query + rest.bias, rtol=1e-8)


def test_leaving_images_out_in_small_parts_gives_the_same(monkeypatch):
    features, labels, text = draw(30, 3, 5)
    features = features.double()
    whole = gaussian.leave_one_out(features, labels, text)
    monkeypatch.setattr(gaussian, "_CHUNK", 1)
    assert torch.allclose(gaussian.leave_one_out(features, labels, text), whole, equal_nan=True)


def test_scores_are_log_densities_of_gaussians_with_a_shared_covariance():
    features, labels, text = draw(40, 1, 4)
    found = gaussian.fit(features[0], labels, text)
    query = torch.randn(24, dtype=torch.float64)
    scores = found.weight @ query + found.bias
    distances = torch.stack([(query - mean) @ found.precision @ (query - mean) for mean in found.means])
    assert torch.allclose(scores - scores[0], (distances[0] - distances) / 2)


def test_a_class_without_images_is_described_by_the_rows_around_its_name():
    features, labels, text = draw(40, 1, 5)
    features, labels = features[:, labels != 2], labels[labels != 2]
    means = gaussian.fit(features[0], labels, text).means
    assert torch.equal(means[2], gaussian.fit_names(text[2:3], features[0]).means[0])
    assert torch.isfinite(means).all()


def test_one_row_of_each_class_leaves_nothing_to_invert():
    features, _, text = draw(5, 1, 5)
    found = gaussian.fit(features[0], torch.arange(5), text)
    assert not found.weight.any()
    assert found.bias.unique().numel() == 1
    assert not gaussian.fit(features[0], torch.arange(5), text, per_class=True).weight.any()

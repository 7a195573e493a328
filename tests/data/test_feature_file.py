"""Feature files round-trip, and errors name the invalid array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dassl_lite.config import get_cfg_default
from dassl_lite.data.feature_files import (
    FeatureFile,
    FeaturePart,
    convert_features,
    first_of_each_class,
    read_feature_file,
    write_feature_file,
)
from dassl_lite.data.feature_files.dataset import file_of
from dassl_lite.utils import UserError

K, D = 3, 4


def arrays(**changes: Any) -> dict[str, Any]:
    """The arrays of a valid file with ``changes`` applied; None omits an array."""
    rng = np.random.default_rng(0)
    labels = np.arange(6) % K
    right = {
        "classnames": np.array(["cat", "dog", "red fox"]),
        "text_weights": rng.normal(size=(K, D)).astype(np.float32),
        "train_features": rng.normal(size=(2, 6, D)).astype(np.float16),
        "train_labels": labels,
        "val_features": rng.normal(size=(3, D)),
        "val_labels": labels[:3].astype(np.int16),
        "test_features": rng.normal(size=(6, D)).astype(np.float32),
        "test_labels": labels.astype(np.uint8),
    }
    return {name: values for name, values in {**right, **changes}.items() if values is not None}


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "x.npz", **arrays(**changes))
    return folder / "x.npz"


def with_nan(name: str, index: tuple[int, ...], value: float = np.nan) -> np.ndarray:
    values = arrays()[name].copy()
    values[index] = value
    return values


def test_arrays_round_trip_unchanged(tmp_path):
    file = read_feature_file(saved(tmp_path))
    given = arrays()
    assert (file.parts["train"].views == given["train_features"]).all()
    assert file.parts["train"].views.dtype == np.float16
    assert file.parts["val"].views.shape == (1, 3, D)
    assert file.parts["test"].labels.tolist() == given["test_labels"].tolist()
    assert (file.text_weights[0] == given["text_weights"]).all()
    assert (file.templates, file.logit_scale, file.classids, file.width) == (("{}",), 100.0, ("",) * K, D)
    assert file.logit_bias is None
    assert (file.backbone, file.provenance) == ("", ())


def test_every_field_survives_writing_and_reading(tmp_path):
    rng = np.random.default_rng(1)
    part = FeaturePart(rng.normal(size=(1, 6, D)), np.arange(6) % K)
    file = FeatureFile(
        parts={"train": FeaturePart(rng.normal(size=(2, 6, D)), np.arange(6) % K, part.views[0]), "test": part},
        classnames=("a", "b", "ç 猫"),
        text_weights=rng.normal(size=(2, K, D)),
        classids=("n01", "", "n03"),
        templates=("a {}.", "art of {}."),
        ensemble_templates=("art of {}.",),
        logit_scale=50.5,
        logit_bias=-16.5,
        backbone="ViT-B/16",
        backbone_digest="ab12",
        precision="fp32",
        transform="Resize",
        train_transform="Crop",
        provenance=(json.dumps({"made_by": "test"}),),
    )
    write_feature_file(file, tmp_path / "y.npz")
    again = read_feature_file(tmp_path / "y.npz")
    for name in FeatureFile.__dataclass_fields__:
        if name not in ("parts", "text_weights"):
            assert getattr(again, name) == getattr(file, name), name
    assert (again.text_weights == file.text_weights).all()
    assert set(again.parts) == {"train", "test"}
    for name, stored in file.parts.items():
        assert (again.parts[name].views == stored.views).all()
        assert (again.parts[name].labels == stored.labels).all()
    assert (again.parts["train"].plain == part.views[0]).all()
    assert list(tmp_path.iterdir()) == [tmp_path / "y.npz"]  # no partial file is left


def test_several_processes_map_the_arrays_of_a_file_and_read_the_same(tmp_path, monkeypatch):
    path = saved(tmp_path, val_features=np.asfortranarray(arrays()["val_features"]))
    alone = read_feature_file(path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    mapped = read_feature_file(path)
    for name, part in alone.parts.items():
        assert np.array_equal(mapped.parts[name].views, part.views)
        assert np.array_equal(mapped.parts[name].labels, part.labels)
    assert [lies_in_a_file(mapped.parts[name].views) for name in ("train", "val", "test")] == [True, False, True]
    assert not lies_in_a_file(alone.parts["test"].views)
    mapped.parts["test"].views[:] = 0  # in this process only
    assert np.array_equal(read_feature_file(path).parts["test"].views, alone.parts["test"].views)
    damaged = bytearray(path.read_bytes())
    start = damaged.index(alone.parts["test"].views.tobytes())
    damaged[start] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="the array test_features is damaged"):
        read_feature_file(path)


def lies_in_a_file(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def test_arrays_in_another_byte_order_are_read(tmp_path):
    swapped = arrays()["test_features"].astype(">f4")
    file = read_feature_file(saved(tmp_path, test_features=swapped))
    assert file.parts["test"].views.dtype.isnative
    assert (file.parts["test"].views[0] == swapped).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classnames": None}, "lacks the array classnames"),
        ({"test_features": np.zeros((0, D))}, r"test_features is empty: its shape is \(0, 4\)"),
        ({"test_features": None}, "lacks the array test_features"),
        ({"test_labels": None, "test_label": np.zeros(6, int)}, "test_labels; did you mean 'test_label'"),
        ({"train_labels": None}, "lacks the array train_labels"),
        ({"val_features": None}, "lacks the array val_features"),
        ({"text_weights": None, "templates": np.array(["a {}"])}, "lacks the array text_weights"),
        ({"text_weights": np.diag([1.0, 0, 1, 1])[:K]}, "text_weights has only zeros for class '"),
        ({"text_weights": np.eye(D)[[0, 1, 0]]}, "text_weights has the same text features for classes '.*' and '"),
        ({"classnames": np.array([])}, "classnames must be a list of texts"),
        ({"classnames": np.array([], dtype="<U1")}, "classnames is empty"),
        (
            {"classnames": np.array(["a", 1], dtype=object)},
            "classnames contains Python objects, which are never loaded",
        ),
        ({"test_features": np.zeros(6)}, r"test_features must be .* \(N, D\) .*shape \(6,\)"),
        ({"test_features": np.zeros((6, D), int)}, "test_features must be floating-point numbers .* not int64"),
        ({"test_features": np.zeros((2, 6, D))}, "test_features has 2 views of each image; only train_features may"),
        ({"test_features": np.zeros((6, 5))}, "test_features has width 5, but text_weights has 4"),
        ({"train_features": np.zeros((2, 2, 6, D))}, r"train_features must be .*\(V, N, D\)"),
        ({"train_features": np.zeros((2, 5, D))}, "train_labels has 6 entries, but train_features has 5 rows"),
        ({"train_plain_features": np.zeros((5, D))}, "train_plain_features has 5 rows, but train_features has 6"),
        ({"train_plain_features": np.zeros((6, 9))}, "train_plain_features has width 9"),
        ({"test_labels": np.zeros(6)}, "test_labels must be whole numbers"),
        ({"test_labels": np.array([0, 1, 2, 3, 0, 1])}, "test_labels contains the label 3, .* 0 to 2"),
        ({"val_labels": np.array([0, -1, 2])}, "val_labels contains the label -1"),
        ({"text_weights": np.zeros((2, D))}, "text_weights has 2 classes, but there are 3 classnames"),
        (
            {"text_weights": np.arange(1.0, 2 * K * D + 1).reshape(2, K, D)},
            "text_weights has 2 templates, but the array templates has 1",
        ),
        ({"templates": np.array(["a photo"])}, "templates contains 'a photo'"),
        ({"ensemble_templates": np.array(["a {}"])}, "ensemble_templates contains 'a {}'"),
        ({"classids": np.array(["n1"])}, "classids has 1 entries, but there are 3"),
        ({"logit_scale": np.array(0.0)}, "logit_scale is 0.0"),
        ({"logit_scale": np.array(np.inf)}, "logit_scale is inf; it must be a finite number"),
        ({"logit_bias": np.array(np.nan)}, "logit_bias is nan; it must be a finite number"),
        ({"logit_bias": np.array([-10.0])}, "logit_bias must be a single number"),
        ({"logit_scale": np.array([100.0])}, "logit_scale must be a single number"),
        ({"backbone": np.array(["RN50"])}, "backbone must be a single text"),
        ({"train_features": with_nan("train_features", (1, 4, 2))}, "train_features contains NaN .* first in row 1, 4"),
        ({"val_features": with_nan("val_features", (2, 0), np.inf)}, "val_features contains NaN .* first in row 2"),
        ({"text_weights": with_nan("text_weights", (1, 0))}, "text_weights contains NaN"),
    ],
)
def test_an_invalid_array_is_named_with_its_file(tmp_path, changes, message):
    path = saved(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_feature_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path):
    class Harm:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "harmed"), "w"))

    for name in ("test_features", "classnames", "provenance"):
        with pytest.raises(UserError, match=f"{name} contains Python objects"):
            read_feature_file(saved(tmp_path, **{name: np.array([Harm()], dtype=object)}))
    assert not (tmp_path / "harmed").exists()


def test_files_of_other_formats_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_feature_file(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="is not an .npz of arrays"):
        read_feature_file(tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(UserError, match="contains a single array"):
        read_feature_file(tmp_path / "single.npy")
    intact = saved(tmp_path).read_bytes()
    for cut in (10, len(intact) // 2, len(intact) - 30):
        (tmp_path / "cut.npz").write_bytes(intact[:cut])
        with pytest.raises(UserError, match=r"cut\.npz"):
            read_feature_file(tmp_path / "cut.npz")


def test_an_unknown_array_is_ignored_with_a_warning(tmp_path, caplog):
    read_feature_file(saved(tmp_path, features_val=np.zeros(2), val_features=None, val_labels=None))
    assert "unknown names: features_val" in caplog.text


def table(folder: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(2)
    values = {
        "image_features": rng.normal(size=(8, D)).astype(np.float16),
        "labels": np.array([0, 1, 2, 0, 1, 2, 0, 1], np.int16),
        "suggested_split": np.array([1, 1, 1, 0, 0, 2, 1, 0], np.int8),
        "classnames": np.array(["cat", "dog", "fox"]),
        "text_weights": rng.normal(size=(K, D)).astype(np.float16),
        "backbone": np.array("CLIP RN50"),
    }
    np.savez(folder / "table.npz", **{k: v for k, v in {**values, **changes}.items() if v is not None})
    return folder / "table.npz"


def test_a_table_with_a_split_column_is_converted_row_by_row(tmp_path):
    path = table(tmp_path)
    file, given = convert_features(path), np.load(path)
    for part, rows in {"train": [0, 1, 2, 6], "val": [5], "test": [3, 4, 7]}.items():
        assert (file.parts[part].views[0] == given["image_features"][rows]).all()
        assert (file.parts[part].labels == given["labels"][rows]).all()
    assert file.backbone == "CLIP RN50"
    assert json.loads(file.provenance[0])["converted"] == "table.npz"
    assert first_of_each_class(file, 1).parts["train"].labels.tolist() == [0, 1, 2]
    assert (first_of_each_class(file, 2).parts["train"].views == file.parts["train"].views).all()


def test_classes_without_text_weights_are_left_out_and_the_others_relabelled(tmp_path):
    rng = np.random.default_rng(3)
    values: dict[str, Any] = {
        "classnames": np.array(["cat", "dog", "fox"]),
        "text_subset_labels": np.array([2, 0]),
        "text_subset_weights": rng.normal(size=(2, D)),
    }
    for part in ("train16", "val", "test"):
        values |= {part: rng.normal(size=(4, D)), f"{part}_labels": np.array([0, 1, 2, 2])}
    np.savez(tmp_path / "split.npz", **values)
    file = convert_features(tmp_path / "split.npz")
    assert file.classnames == ("fox", "cat")
    assert file.parts["test"].labels.tolist() == [1, 0, 0]
    assert (file.parts["test"].views[0] == values["test"][[0, 2, 3]]).all()
    assert (file.text_weights[0] == values["text_subset_weights"]).all()


def test_an_unknown_layout_is_refused_naming_the_missing_arrays(tmp_path):
    with pytest.raises(UserError, match="neither image_features nor test"):
        convert_features(table(tmp_path, image_features=None))
    with pytest.raises(UserError, match="lacks the array suggested_split"):
        convert_features(table(tmp_path, suggested_split=None))
    with pytest.raises(UserError, match="suggested_split contains the label 3"):
        convert_features(table(tmp_path, suggested_split=np.full(8, 3)))
    only_test = convert_features(table(tmp_path, suggested_split=np.zeros(8, int)))
    assert set(only_test.parts) == {"test"}
    with pytest.raises(UserError, match="no training features"):
        first_of_each_class(only_test, 1)


def by_split(folder: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(3)
    values = {
        "classnames": np.array(["cat", "dog"]),
        "text_weights": np.eye(2, D),
        "train1": rng.normal(size=(2, D)),
        "train1_labels": np.arange(2),
        "train4": rng.normal(size=(8, D)),
        "train4_labels": np.arange(8) % 2,
        "val4": rng.normal(size=(6, D)),
        "val4_labels": np.arange(6) % 2,
        "test": rng.normal(size=(4, D)),
        "test_labels": np.arange(4) % 2,
    }
    np.savez(folder / "split.npz", **{k: v for k, v in {**values, **changes}.items() if v is not None})
    return folder / "split.npz"


def test_the_largest_training_split_of_a_file_is_converted(tmp_path, caplog):
    file = convert_features(by_split(tmp_path))
    assert {name: part.views.shape[1] for name, part in file.parts.items()} == {"train": 8, "val": 6, "test": 4}
    assert "ignored train1, train1_labels" in caplog.text


def test_only_the_test_split_is_required(tmp_path):
    without = dict.fromkeys(("train1", "train1_labels", "train4", "train4_labels", "val4", "val4_labels"))
    assert set(convert_features(by_split(tmp_path, **without)).parts) == {"test"}


def test_a_file_without_text_features_is_converted_and_read_with_a_warning(tmp_path, caplog):
    file = convert_features(by_split(tmp_path, text_weights=None))
    assert "has no text features: it serves only methods that need none" in caplog.text
    write_feature_file(file, tmp_path / "out.npz")
    back = read_feature_file(tmp_path / "out.npz")
    assert (back.text_weights.shape, back.templates, back.width) == ((0, 2, D), (), D)


def test_the_dataset_name_is_kept_and_can_be_overridden(tmp_path):
    assert convert_features(by_split(tmp_path, dataset=np.array("UCF101"))).dataset == "UCF101"
    file = convert_features(by_split(tmp_path), dataset="ImageNet")
    write_feature_file(file, tmp_path / "out.npz")
    assert read_feature_file(tmp_path / "out.npz").dataset == "ImageNet"


def test_a_relative_path_is_searched_in_the_working_folder_and_then_in_the_root(tmp_path, monkeypatch):
    here, root = tmp_path / "here", tmp_path / "root"
    for folder in (here, root):
        folder.mkdir()
        saved(folder)
    monkeypatch.chdir(here)
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.FILE, cfg.DATASET.ROOT = "Features", "x.npz", str(root)
    assert file_of(cfg) == str(here / "x.npz")
    (here / "x.npz").unlink()
    assert file_of(cfg) == str(root / "x.npz")
    cfg.DATASET.FILE = str(here / "absent.npz")
    assert file_of(cfg) == str(here / "absent.npz")


def test_the_error_for_a_convertible_file_names_the_conversion(tmp_path):
    with pytest.raises(UserError, match=r"lacks the array test_features; tools/extract\.py --convert makes"):
        read_feature_file(table(tmp_path))

"""Data sets that TFDS has prepared, other than MNIST and its relatives, are read without TensorFlow."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from PIL import Image
from test_datasets import to_tfrecord

from vae_jax.data import datasets, tfds_records
from vae_jax.errors import UserError

pytestmark = pytest.mark.robust

F = tfds.features
GREY, COLOUR = F.Image(shape=(7, 5, 1)), F.Image(shape=(7, 5, 3))
FORMATS = ["array_record", "tfrecord"]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def prepare(tmp_path):
    """Prepare a data set as TFDS does, from lists of examples, and return its directory."""

    def call(name, features, splits, file_format="array_record", config=None):
        class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.2.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: enumerate(examples) for split, examples in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        Prepared.name = name
        with tfds_records.quiet():
            builder = Prepared(data_dir=tmp_path / "tfds", file_format="array_record")
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        directory = tmp_path / "tfds" / name / (config or "") / "1.2.0"
        if file_format == "tfrecord":
            to_tfrecord(directory)
        return directory

    return call


def error(name, **kwargs):
    with pytest.raises(UserError) as caught:
        datasets.load(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(rng, num, shape=(7, 5, 3), high=256):
    return rng.integers(0, high, (num, *shape), dtype=np.uint8)


def encoded(x):
    return Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)


def examples(x, **others):
    rows = [dict(zip(others, row, strict=True)) for row in zip(*others.values(), strict=True)] or [{} for _ in x]
    return [{"image": encoded(image)} | row for image, row in zip(x, rows, strict=True)]


def pairs(x, label):
    return sorted(zip(map(bytes, np.ascontiguousarray(x)), label.tolist(), strict=True))


@pytest.mark.parametrize("file_format", FORMATS)
def test_with_labels(prepare, rng, file_format, tmp_path, capsys):
    """As cifar10: the identity of an example is read over, and the order is that of the records."""
    x, y = pixels(rng, 30), rng.integers(0, 7, 30)
    features = {"id": F.Text(), "image": COLOUR, "label": F.ClassLabel(num_classes=7)}
    ids = [f"train_{i}" for i in range(30)]
    train, test = examples(x[:20], label=y[:20], id=ids[:20]), examples(x[20:], label=y[20:], id=ids[20:])
    directory = prepare("cifar10", features, {"train": train, "test": test}, file_format)
    data = datasets.load("cifar10")
    assert data.name == "cifar10" and data.validation is None and data.train.x.shape == (20, 7, 5, 3)
    assert data.train.x.dtype == np.uint8 and data.train.label.dtype == np.int32
    assert pairs(data.train.x, data.train.label) == pairs(x[:20], y[:20])
    assert pairs(data.test.x, data.test.label) == pairs(x[20:], y[20:])
    if file_format == "array_record":
        source = tfds.builder_from_directory(directory).as_data_source("train")
        assert all(bytes(row["image"]) == bytes(image) for row, image in zip(source, data.train.x, strict=True))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    cut = datasets.load("cifar10", validation_size=5, classes=set(y[20:]) & set(y[:20]))
    assert len(cut.validation.x) == 5

    code = (
        "import sys; from vae_jax.data import datasets; print(datasets.load('cifar10').fingerprint); "
        "assert not {'tensorflow', 'tensorflow_datasets', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == (data.fingerprint, "")


@pytest.mark.parametrize("file_format", FORMATS)
def test_binarized_mnist(prepare, rng, file_format):
    """No labels, a validation split of its own, and pixels of 0 and 1."""
    x = pixels(rng, 15, (7, 5, 1), high=2)
    splits = {"train": examples(x[:8]), "validation": examples(x[8:11]), "test": examples(x[11:])}
    prepare("binarized_mnist", {"image": GREY}, splits, file_format)
    data = datasets.load("binarized_mnist")
    for split, rows in ((data.train, x[:8]), (data.validation, x[8:11]), (data.test, x[11:])):
        assert split.label is None and split.x.dtype == np.uint8
        assert sorted(map(bytes, split.x)) == sorted(map(bytes, rows * np.uint8(255)))
    assert datasets.load("binarized_mnist").fingerprint == data.fingerprint
    for size in (1, -1, "2"):
        message = error("binarized_mnist", validation_size=size)
        assert f"validation_size={size!r}" in message and "validation split of its own" in message
    assert "no labels" in error("binarized_mnist", classes=(1,))


def test_classes_are_chosen_in_every_split(prepare, rng):
    x, y = pixels(rng, 12), np.arange(12) % 2
    features = {"image": COLOUR, "label": F.ClassLabel(num_classes=2)}
    prepare("a", features, {name: examples(x, label=y) for name in ("train", "validation", "test")})
    data = datasets.load("a", classes=(1,))
    assert [len(split.x) for split in (data.train, data.validation, data.test)] == [6, 6, 6]
    assert set(data.validation.label) == {1}
    assert "the train split" in error("a", classes=(2,))


def test_validation_serves_as_test(prepare, rng, capsys):
    x = pixels(rng, 10)
    prepare("imagenette", {"image": COLOUR}, {"train": examples(x[:7]), "validation": examples(x[7:])}, config="160px")
    for _ in range(2):  # from the records, then from the copy
        data = datasets.load("imagenette/160px", validation_size=2)
        assert [len(split.x) for split in (data.train, data.validation, data.test)] == [5, 2, 3]
        assert sorted(map(bytes, data.test.x)) == sorted(map(bytes, x[7:]))
        (line,) = capsys.readouterr().err.splitlines()
        assert "imagenette/160px has no test split, so that its validation split serves as one" in line
    assert "with the configs 160px. Choose one, such as imagenette/160px." in error("imagenette")
    assert "has no imagenette/320px/VERSION/dataset_info.json" in error("imagenette/320px")


def test_a_train_split_alone_is_cut(prepare, rng):
    """As dsprites, whose labels are none of them the label."""
    x = pixels(rng, 40, (7, 5, 1), high=2)
    names = ("label_shape", "label_scale")
    features = {"image": GREY, "value": np.float32} | {name: F.ClassLabel(num_classes=40) for name in names}
    rows = examples(x, label_shape=range(40), label_scale=range(39, -1, -1), value=[0.5] * 40)
    prepare("dsprites", features, {"train": rows})
    data = datasets.load("dsprites")
    assert len(data.train.x) == 36 and len(data.test.x) == 4 and data.train.label is None
    assert set(np.unique(data.train.x)) == {0, 255}
    shape = datasets.load("dsprites", features=("image", "label_shape"))
    scale = datasets.load("dsprites", features=["image", "label_scale"])
    np.testing.assert_array_equal(shape.train.x, data.train.x)
    np.testing.assert_array_equal(shape.train.label, 39 - scale.train.label)
    assert "label_scale (ClassLabel), label_shape (ClassLabel)" in error("dsprites", features=("image", "value"))


def test_other_splits_are_named(prepare, rng, capsys):
    x = pixels(rng, 6)
    features = {"image": COLOUR, "label": F.ClassLabel(num_classes=5)}
    rows = examples(x, label=[0, 1, 2, 3, 4, 0])
    unknown = examples(x, label=[-1] * 6)
    prepare("stl10", features, {"train": rows, "test": rows, "unlabelled": unknown, "extra": rows})
    for _ in range(2):
        train = datasets.load("stl10").train
        read = {(image.tobytes(), int(label)) for image, label in zip(train.x, train.label, strict=True)}
        assert read == {(image.tobytes(), label) for image, label in zip(x, [0, 1, 2, 3, 4, 0], strict=True)}
        (line,) = capsys.readouterr().err.splitlines()
        assert "stl10: the splits unlabelled, extra are not taken, only train, test." in line

    prepare("hidden", features, {"train": rows, "test": unknown})
    assert datasets.load("hidden").train.label is None
    assert "some labels are -1, which means that they are unknown" in capsys.readouterr().err
    prepare("only_test", features, {"test": rows})
    assert "only_test has the splits ['test'], expected train" in error("only_test")


def test_several_image_features(prepare, rng):
    first, second = pixels(rng, 8), pixels(rng, 8, (7, 5, 1))
    features = {"left": COLOUR, "right": GREY, "label": np.int64, "fine": F.ClassLabel(num_classes=9), "text": F.Text()}
    rows = [
        {"left": encoded(a), "right": encoded(b), "label": i, "fine": 8 - i, "text": "x"}
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    prepare("pairs", features, {"train": rows, "test": rows})
    message = error("pairs")
    assert "left (Image), right (Image)" in message and "--config.features=IMAGE,LABEL" in message
    left = datasets.load("pairs", features=("left",))
    assert pairs(left.train.x, left.train.label) == pairs(first, np.arange(8, 0, -1))
    right = datasets.load("pairs", features=("right", "label"))
    assert pairs(right.train.x, right.train.label) == pairs(second, np.arange(8))
    assert len(os.listdir(os.path.join(os.environ["XDG_CACHE_HOME"], "vae_jax"))) == 2
    assert "Got the image 'up' of pairs" in error("pairs", features=("up",))
    assert "Got the label 'text' of pairs" in error("pairs", features=("left", "text"))


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3)])
def test_tensors(prepare, rng, encoding, shape):
    x, y = pixels(rng, 9, shape), np.arange(9)
    features = {
        "x": F.Tensor(shape=shape, dtype=np.uint8, encoding=encoding),
        "label": F.Scalar(np.int32),
        "boxes": F.Sequence({"box": F.BBoxFeature(), "word": F.Text()}),
        "others": {"mask": COLOUR, "depth": F.Tensor(shape=(None, None), dtype=np.float32, encoding="zlib")},
    }
    box = {"box": F.BBox(0.0, 0.0, 1.0, 1.0), "word": "a"}
    others = {"mask": encoded(pixels(rng, 1)[0]), "depth": np.ones((2, 3), np.float32)}
    rows = [{"x": a, "label": b, "boxes": [box] * b, "others": others} for a, b in zip(x, y, strict=True)]
    prepare("tensors", features, {"train": rows, "test": rows})
    data = datasets.load("tensors")
    assert data.train.x.shape == (9, *shape, 1)[:4]
    assert pairs(data.train.x, data.train.label) == pairs(x, y)


def png(x, **kwargs):
    buffer = io.BytesIO()
    (x if isinstance(x, Image.Image) else Image.fromarray(x)).save(buffer, format="png", **kwargs)
    return buffer.getvalue()


def test_images_are_decoded_as_tensorflow_does(prepare, rng):
    """The feature says how many channels there are; 1-bit images are black and white."""
    grey = pixels(rng, 1, (7, 5))[0]
    bits = grey > 127
    palette = Image.fromarray(grey % 2)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    rows = [{"image": png(image)} for image in (grey, Image.fromarray(bits), palette)]
    prepare("mixed", {"image": COLOUR}, {"train": rows, "test": rows[:1]})
    want = [grey, bits * np.uint8(255)]
    want = [np.repeat(x[..., None], 3, -1) for x in want] + [np.uint8([[10, 20, 30], [40, 50, 60]])[grey % 2]]
    assert sorted(map(bytes, datasets.load("mixed").train.x)) == sorted(map(bytes, want))

    jpeg = io.BytesIO()
    Image.fromarray(grey).save(jpeg, format="jpeg", quality=100)
    jpegs = [{"image": jpeg.getvalue()}]
    prepare("free", {"image": F.Image(encoding_format="jpeg")}, {"train": jpegs, "test": rows[:1]})
    assert np.abs(datasets.load("free").train.x[0, ..., 0] - grey.astype(float)).max() < 9

    wide = [{"image": png(grey.astype(np.uint16))}]
    prepare("wide", {"image": F.Image()}, {"train": wide, "test": wide})
    assert "more than 8 bits" in error("wide")
    gif = io.BytesIO()
    Image.fromarray(grey).save(gif, format="gif")
    prepare("gif", {"image": F.Image()}, {"train": [{"image": gif.getvalue()}]})
    assert "cannot identify image file" in error("gif")


def test_several_sizes(prepare, rng):
    free = F.Image(shape=(None, None, 3))
    rows = [{"image": encoded(pixels(rng, 1, (h, 5, 3))[0])} for h in (7, 7, 6)]
    prepare("flowers", {"image": free}, {"train": rows[:2], "test": rows[2:]})
    message = error("flowers")
    assert "(7, 5, 3) and (6, 5, 3)" in message and "a folder" in message and "--config.image_size" in message
    prepare("same", {"image": free}, {"train": rows[:2], "test": rows[:1]})
    assert datasets.load("same").train.x.shape == (2, 7, 5, 3)


def test_no_image(prepare):
    prepare("words", {"text": F.Text(), "id": np.int64}, {"train": [{"text": "a", "id": 1}]})
    message = error("words")
    assert "no image feature" in message and "id (Tensor), text (Text)" in message
    prepare("deep", {"image": F.Image(shape=(None, None, 1), dtype=np.uint16)}, {})
    assert "no image feature" in error("deep")
    assert "Choose among: none." in error("deep", features=("image",))


def test_not_prepared_and_not_known(tmp_path):
    message = error("cifar10")
    assert f"{tmp_path / 'tfds'} has no cifar10/VERSION/dataset_info.json" in message
    assert f"tfds build cifar10 --data_dir={tmp_path / 'tfds'} (which needs TensorFlow)" in message
    assert "tfds build celeb_a_hq/256 --data_dir=/nowhere" in error("celeb_a_hq/256", data_dir="/nowhere")
    assert "Unknown data set 'cifar_10'. Did you mean 'cifar10'?" in error("cifar_10")
    assert "No file or folder 'pictures/cats'" in error("pictures/cats")
    assert "No file or folder 'cifar10/..'" in error("cifar10/..")


def test_a_folder_of_that_path_goes_first(prepare, rng, tmp_path):
    prepare("cats", {"image": COLOUR}, {"train": examples(pixels(rng, 3))}, config="small")
    assert datasets.absolute("cats/small") == "cats/small" and datasets.load_whole("cats/small") is None
    assert datasets.load("cats/small").train.x.shape == (2, 7, 5, 3)
    (tmp_path / "cats" / "small").mkdir(parents=True)
    for name in "ab":
        Image.fromarray(pixels(rng, 1, (6, 6, 3))[0]).save(tmp_path / "cats" / "small" / f"{name}.png")
    assert datasets.load("cats/small").train.x.shape == (1, 6, 6, 3)
    assert datasets.absolute("cats/small") == str(tmp_path / "cats" / "small")
    assert "not a data set of tensorflow-datasets" in error("cats/small", features=("image",))


def test_features_that_cannot_be():
    for features in ("image", ("a", "b", "c"), ("",), (1,), None):
        assert "expected at most two names" in error("digits", features=features)
    assert "Leave features empty" in error("digits", features=("image",))
    assert "Leave features empty" in error("x.npy", features=("image",), stream=True)


# hostile and damaged directories


@pytest.fixture
def prepared(prepare, rng):
    x = pixels(rng, 6)
    features = {"image": COLOUR, "label": F.ClassLabel(names=list("abcdef"))}
    return prepare("a", features, dict.fromkeys(("train", "test"), examples(x, label=range(6))), "tfrecord")


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


FEATURE = "tensorflow_datasets.core.features."
DICT = FEATURE + "features_dict.FeaturesDict"


@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": "evil.Feature"},
        {"pythonClassName": FEATURE + "video_feature.Video"},
        {"pythonClassName": FEATURE + "audio_feature.Audio"},
        {"pythonClassName": FEATURE + "sequence_feature.Sequence", "sequence": {"feature": {"type": "evil.F"}}},
        {
            "pythonClassName": FEATURE + "features_dict.FeaturesDict",
            "json_feature": {"json": '{"a":{"type":"evil.F"}}'},
        },
        {
            "type": DICT,
            "content": '{"features":{"a":{"python_class_name":"evil.F"}}}',
        },
    ],
)
def test_other_features_are_refused_by_name(prepared, feature, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('a module was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads((prepared / "features.json").read_text())
    content["featuresDict"]["features"]["other"] = feature
    (prepared / "features.json").write_text(json.dumps(content))
    message = error("a")
    assert "which is not a feature that is read here" in message
    assert "evil.F" in message or "Video" in message or "Audio" in message
    assert "evil" not in sys.modules


def test_dataset_info_names_no_class_and_no_long_path(prepared, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('a module was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    info = prepared / "dataset_info.json"
    whole = info.read_text()
    change(info, features={"pythonClassName": "evil.Feature", "image": {}})
    assert "dataset_info.json names 'evil.Feature', which is not a feature that is read here" in error("a")
    for field in ("{SPLIT:>1000000000}", "{SPLIT.x}", "{"):
        info.write_text(whole)
        change(info, splits=[s | {"filepathTemplate": field} for s in json.loads(whole)["splits"]])
        assert "dataset_info.json calls its records" in error("a")


def test_a_features_json_of_old_is_read(prepared):
    want = datasets.load("a").fingerprint
    image = {"shape": [7, 5, 3], "dtype": "uint8", "encoding_format": "png"}
    label = json.dumps({"numClasses": 6})
    content = {
        "image": {"type": FEATURE + "image_feature.Image", "content": image},
        "label": {
            "type": FEATURE + "class_label_feature.ClassLabel",
            "content": label,
            "proto_cls": "tensorflow_datasets.ClassLabel",
        },
    }
    old = {"type": DICT, "content": content}
    (prepared / "features.json").write_text(json.dumps(old))
    assert datasets.load("a").fingerprint == want
    content["label"] |= {"content": {"names_file": "/etc/passwd"}, "proto_cls": ""}
    (prepared / "features.json").write_text(json.dumps(old))
    assert "names another file" in error("a")


def test_damage(prepared, tmp_path, monkeypatch):
    whole = datasets.load("a").fingerprint
    shutil.copytree(prepared, tmp_path / "whole")
    info, features = prepared / "dataset_info.json", prepared / "features.json"
    (record,) = prepared.glob("*train*")

    def restored(says):
        shutil.rmtree(tmp_path / "cache")
        assert says in error("a")
        shutil.rmtree(prepared)
        shutil.copytree(tmp_path / "whole", prepared)
        datasets.load("a")

    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    restored("lies outside of it")
    (prepared / "label.labels.txt").unlink()
    (prepared / "label.labels.txt").symlink_to("/dev/zero")
    restored("label.labels.txt lies outside of it")
    split = json.loads(info.read_text())["splits"]
    template = "../../../elsewhere{SPLIT}{SHARD_X_OF_Y}"
    change(info, splits=[{**s, "filepathTemplate": template} for s in split])
    restored("the train records lie outside of it")
    for num in ("5", "7", "0"):
        change(info, splits=[{**s, "shardLengths": [num]} for s in split])
        restored("it holds")
    change(info, splits=[{**s, "shardLengths": [str(10**15)]} for s in split])
    restored("images of shape (7, 5, 3): they take")
    change(info, fileFormat="parquet")
    restored("parquet")
    features.write_text(" " * (tfds_records.MAX_FEATURES + 1))
    restored("features.json has")
    info.write_text(" " * (tfds_records.MAX_TEXT + 1))
    restored("dataset_info.json has")
    info.write_text("[]")
    restored("cannot be read")
    features.write_text(features.read_text().replace('"image":', '"picture":'))
    restored("")
    record.write_bytes(record.read_bytes()[:-9])
    restored("ends inside a record")
    assert datasets.load("a").fingerprint == whole


def test_no_bomb_is_decoded(prepare, prepared, rng):
    """A record of a few bytes that announces 10^8 pixels, as the first image and as a later one."""
    big = {"image": png(Image.new("1", (12_000, 12_000)))}
    small = {"image": png(pixels(rng, 1)[0])}
    free = {"image": F.Image()}
    prepare("bomb", free, {"train": [small, big]})
    assert "several sizes" in error("bomb")
    directory = prepare("first", free, {"train": [big]}, "tfrecord")
    info = json.loads((directory / "dataset_info.json").read_text())
    change(directory / "dataset_info.json", splits=[{**s, "shardLengths": ["1000"]} for s in info["splits"]])
    assert "--config.stream=true" in error("first")

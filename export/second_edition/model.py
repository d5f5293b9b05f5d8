"""Diffusers and transformers classes at a width that two CPU cores can run in a second."""

from __future__ import annotations

from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

VAE_WIDTH = 56
LATENT_CHANNELS = 8
LATENT_CELLS = 16
CONTEXT_TOKENS = 32
TEXT_WIDTH = 192
# alphas_cumprod ends at 2e-4: near enough to pure noise that backgrounds keep their colour, without the infinite
# sigma of a zero-terminal-SNR curve.
CURVE = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def vae() -> AutoencoderTiny:
    """(B, 3, 128, 128) in -1..1 <-> (B, 8, 16, 16).

    No blocks where the picture is large: that is where the time goes.
    """
    encoder, decoder = (0, 1, 2, 3), (3, 3, 2, 0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(VAE_WIDTH,) * len(encoder),
        decoder_block_out_channels=(VAE_WIDTH,) * len(decoder),
        num_encoder_blocks=encoder,
        num_decoder_blocks=decoder,
        latent_channels=LATENT_CHANNELS,
    )
    # There are no norms: start with convolutions that keep the scale and quiet residual branches.
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            module.conv[4].weight.data.mul_(0.1)
    vae.encoder.layers[-1].weight.data.mul_(0.7)
    vae.decoder.layers[-1].weight.data.mul_(0.2)
    nn.init.constant_(vae.decoder.layers[-1].bias, 0.5)
    return vae


WIDTHS = (128, 160, 160)
DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")


def unet(in_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """Latents (B, 8, 16, 16), timesteps (B,), text (B, tokens, 192) -> v (B, 8, 16, 16)."""
    unet = UNet2DConditionModel(
        sample_size=LATENT_CELLS,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        down_block_types=DOWN_BLOCKS,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    for name, parameter in unet.named_parameters():
        # Residual branches and the output start at zero (the usual start of diffusion U-Nets).
        if name.endswith(("conv2.weight", "proj_out.weight")) or name == "conv_out.weight":
            nn.init.zeros_(parameter)
    return unet


def control_net(unet: UNet2DConditionModel) -> ControlNetModel:
    """(B, 3, 128, 128) in 0..1 besides what the U-Net gets -> what is added to its skips and its middle.

    Without cross-attention on the way down, which the U-Net has itself: half the size. Where the layers are the same
    they start as the U-Net's.
    """
    control = ControlNetModel(
        in_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D",) * len(WIDTHS),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        conditioning_embedding_out_channels=(16, 32, 48, 64),
    )
    control.load_state_dict({k: v for k, v in unet.state_dict().items() if k in control.state_dict()}, strict=False)
    return control


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """Token ids (B, tokens) -> states (B, tokens, 192)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=3,
            max_position_embeddings=CONTEXT_TOKENS,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=1,
            eos_token_id=0,
            pad_token_id=0,
            # Scaled so that a random start has the spread of trained ones.
            initializer_factor=1.0,
        )
    )

"""The built-in model's architecture: diffusers and transformers classes at a width that two CPU cores can train."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

LATENT_CHANNELS = 16
LATENT_CELLS = 8
CONTEXT_TOKENS = 24
TEXT_WIDTH = 192
# alphas_cumprod ends at 2e-4: near enough to pure noise that backgrounds keep their colour, without the infinite
# sigma of a zero-terminal-SNR curve.
CURVE = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def vae() -> AutoencoderKL:
    """(B, 3, 128, 128) in -1..1 <-> (B, 16, 8, 8). Narrow where the picture is large: that is where the time goes."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(8, 24, 48, 96, 160),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=LATENT_CELLS * 16,
    )


def unet() -> UNet2DConditionModel:
    """Latents (B, 16, 8, 8), timesteps (B,), text (B, tokens, 192) -> v (B, 16, 8, 8)."""
    return UNet2DConditionModel(
        sample_size=LATENT_CELLS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 192),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """Token ids (B, tokens) -> states (B, tokens, 192)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
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

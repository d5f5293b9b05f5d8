"""What the families look like as published folders, narrowed: the fields and numbers of the published configs, with
fewer channels, CLIP layers and transformer layers.

Channels stay multiples of 32 (the group norm's groups); where the published heads are 64 wide they are so here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from checkpoints import original
from checkpoints.original import Row, Shapes

Json = dict[str, Any]

OLD = "0.6.0"
NEW = "0.24.0.dev0"
CLIP, CLIP_PROJECTION = "CLIPTextModel", "CLIPTextModelWithProjection"
DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
PROMPT = "a photograph of an astronaut riding a horse, 4k"
NEGATIVE = "blurry, low quality"
EDM, EDM_DPM = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
FLOW, FLOW_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
EULER, EULER_A, DDIM, LCM = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler", "LCMScheduler"
IMG2IMG, INPAINT = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
# As published with playground-v2.5-1024px-aesthetic, in vae/config.json.
PLAYGROUND_MEAN = [-1.6574, 1.886, -1.383, 2.5155]
PLAYGROUND_STD = [8.4927, 5.9022, 6.5498, 5.2299]
BETAS: Json = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "trained_betas": None,
}


@dataclass
class Ask:
    """One picture: its name, the sampler's class, the pipeline's arguments beside prompt and size."""

    name: str
    sampler: str
    arguments: Json
    # Another pipeline than the folder's own, of the same components.
    pipeline: str | None = None
    # Settings of the sampler beside those that the folder's scheduler has, too.
    settings: Json = field(default_factory=dict)
    # Whether the picture is kept, not only its latents.
    picture: bool = False


def asks(sampler: str, scale: float = 5.0, **image: Any) -> list[Ask]:
    """With a negative prompt, without one, and without guidance."""
    name = {EULER: "euler", EULER_A: "euler-a", DDIM: "ddim", LCM: "lcm"}[sampler]
    return [
        Ask(f"{name}-negative", sampler, {"guidance_scale": scale, "negative_prompt": NEGATIVE, **image}, picture=True),
        Ask(f"{name}-guided", sampler, {"guidance_scale": scale, **image}),
        Ask(name, sampler, {"guidance_scale": 1.0, **image}),
    ]


@dataclass
class Family:
    """One family: its folder, and how pictures are asked of it."""

    name: str
    pipeline: str
    unet: Json
    vae: Json
    scheduler: Json
    text: dict[str, Json]
    tokenizer: dict[str, Json]
    asks: list[Ask]
    # The context is the last layer's input, not its output.
    penultimate: bool = False
    # Entries of model_index.json beside the components.
    index: Json = field(default_factory=dict)
    low_res_scheduler: Json | None = None
    # "ldm" or "sgm": which prefixes the single file gives its text encoders; None: nobody publishes one.
    single_file: str | None = None
    # VAE folders older than diffusers 0.12 name their attention differently.
    old_vae_names: bool = False
    vae_class: str = "AutoencoderKL"

    @property
    def model_index(self) -> Json:
        index: Json = {
            "_class_name": self.pipeline,
            "_diffusers_version": self.unet["_diffusers_version"],
            **self.index,
        }
        index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", self.vae_class]}
        index["scheduler"] = ["diffusers", self.scheduler["_class_name"]]
        if self.low_res_scheduler is not None:
            index["low_res_scheduler"] = ["diffusers", self.low_res_scheduler["_class_name"]]
        index |= {name: ["transformers", config["architectures"][0]] for name, config in self.text.items()}
        index |= {name: ["transformers", "CLIPTokenizer"] for name in self.tokenizer}
        if "text_encoder" not in self.text:
            index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
        return dict(sorted(index.items()))

    def original_rows(self, shapes: Mapping[str, Shapes]) -> list[Row] | None:
        """The rows of the single file; `shapes` of every component by diffusers name."""
        if self.single_file is None:
            return None
        rows = original.unet_rows(shapes["unet"], self.unet)
        rows += original.vae_rows(shapes["vae"], len(self.vae["block_out_channels"]))
        if self.single_file == "ldm":
            rows += original.schedule_rows()
            rows.append(("model_ema.decay", [], "extra", ["F32", "weights"]))
            rows.append(("model_ema.num_updates", [], "extra", ["I32", "zeros"]))
            if self.low_res_scheduler is not None:
                rows += original.schedule_rows("low_scale_model.")
        else:
            rows.append(("denoiser.sigmas", [1000], "extra", ["F32", "weights"]))
        for position, (component, config) in enumerate(self.text.items()):
            open_clip = config["hidden_act"] == "gelu"
            stage = "cond_stage_model" if self.single_file == "ldm" else f"conditioner.embedders.{position}"
            if open_clip:
                dropped = config["architectures"] == [CLIP]
                prefix = f"{stage}.model."
                rows += original.open_clip_rows(shapes[component], component, prefix, last_layer_unused=dropped)
            else:
                rows += original.clip_rows(shapes[component], component, f"{stage}.transformer.")
        return rows


def clip(width: int, layers: int, *, act: str, kind: str, version: str, projection: int) -> Json:
    return {
        "architectures": [kind],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        # transformers wrote 2 for all of them; it means "the largest token", not token 2.
        "eos_token_id": 2,
        "hidden_act": act,
        "hidden_size": width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": width // 64,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection,
        "torch_dtype": "float32",
        "transformers_version": version,
        "vocab_size": 49408,
    }


def special(content: str) -> Json:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def tokenizer(pad: str) -> Json:
    """tokenizer_config.json and special_tokens_map.json, as published."""
    start, end = special("<|startoftext|>"), special("<|endoftext|>")
    return {
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "bos_token": {"__type": "AddedToken", **start},
            "do_lower_case": True,
            "eos_token": {"__type": "AddedToken", **end},
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": pad,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": {"__type": "AddedToken", **end},
        },
        "special_tokens_map.json": {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end},
    }


def vae(**changes: Any) -> Json:
    config: Json = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": OLD,
        "act_fn": "silu",
        "block_out_channels": [32, 64, 64, 64],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        **changes,
    }
    blocks = len(config["block_out_channels"])
    config["down_block_types"] = ["DownEncoderBlock2D"] * blocks
    config["up_block_types"] = ["UpDecoderBlock2D"] * blocks
    return config


def unet(version: str, down: list[str], up: list[str], **changes: Any) -> Json:
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": version,
        "act_fn": "silu",
        "center_input_sample": False,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "up_block_types": up,
        **changes,
    }


SD_DOWN, SD_UP = [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN], [UP, CROSS_UP, CROSS_UP, CROSS_UP]
SD1_TEXT = {"text_encoder": clip(64, 3, act="quick_gelu", kind=CLIP, version="4.22.0.dev0", projection=768)}
SD1_TOKENIZER = {"tokenizer": tokenizer("<|endoftext|>")}
SD1_INDEX: Json = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}


def sd1_unet(**changes: Any) -> Json:
    channels = [32, 64, 96, 96]
    heads: Json = {"attention_head_dim": 8, "cross_attention_dim": 64, "sample_size": 64}
    return unet(OLD, SD_DOWN, SD_UP, block_out_channels=channels, **{**heads, **changes})


def sd2_unet(**changes: Any) -> Json:
    return unet(
        "0.8.0",
        SD_DOWN,
        SD_UP,
        **{
            "attention_head_dim": [1, 1, 2, 2],
            "block_out_channels": [64, 64, 128, 128],
            "cross_attention_dim": 64,
            "dual_cross_attention": False,
            "only_cross_attention": False,
            "num_class_embeds": None,
            "sample_size": 64,
            "use_linear_projection": True,
            **changes,
        },
    )


# Two layers of the three that OpenCLIP's file has.
SD2_TEXT = {"text_encoder": clip(64, 2, act="gelu", kind=CLIP, version="4.25.0.dev0", projection=512)}
SD2_TOKENIZER = {"tokenizer": tokenizer("!")}
SD2_INDEX: Json = {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
SD_SCHEDULER: Json = {
    "_diffusers_version": "0.8.0",
    **BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
PNDM: Json = {"_class_name": "PNDMScheduler", **SD_SCHEDULER}
TURBO: Json = {
    **SD_SCHEDULER,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "trailing",
    "use_karras_sigmas": False,
}

XL_TEXT = {
    "text_encoder": clip(64, 2, act="quick_gelu", kind=CLIP, version="4.32.0.dev0", projection=768),
    "text_encoder_2": clip(128, 3, act="gelu", kind=CLIP_PROJECTION, version="4.32.0.dev0", projection=128),
}
XL_TOKENIZER = {"tokenizer": tokenizer("<|endoftext|>"), "tokenizer_2": tokenizer("!")}
XL_VAE = vae(_diffusers_version="0.20.0.dev0", force_upcast=True, sample_size=1024, scaling_factor=0.13025)
XL_SCHEDULER: Json = {**TURBO, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}


def xl_unet(**changes: Any) -> Json:
    """As diffusers 0.24 writes it: with every field."""
    return unet(
        NEW,
        [DOWN, CROSS_DOWN, CROSS_DOWN],
        [CROSS_UP, CROSS_UP, UP],
        **{
            "addition_embed_type": "text_time",
            "addition_embed_type_num_heads": 64,
            "addition_time_embed_dim": 256,
            "attention_head_dim": [1, 1, 2],
            "attention_type": "default",
            "block_out_channels": [64, 64, 128],
            "class_embed_type": None,
            "class_embeddings_concat": False,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "cross_attention_dim": 192,
            "cross_attention_norm": None,
            "dropout": 0.0,
            "dual_cross_attention": False,
            "encoder_hid_dim": None,
            "encoder_hid_dim_type": None,
            "mid_block_only_cross_attention": None,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "num_attention_heads": None,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "projection_class_embeddings_input_dim": 128 + 6 * 256,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": False,
            "resnet_time_scale_shift": "default",
            "reverse_transformer_layers_per_block": None,
            "sample_size": 128,
            "time_cond_proj_dim": None,
            "time_embedding_act_fn": None,
            "time_embedding_dim": None,
            "time_embedding_type": "positional",
            "timestep_post_act": None,
            "transformer_layers_per_block": [1, 1, 2],
            "upcast_attention": None,
            "use_linear_projection": True,
            **changes,
        },
    )


INIT: Json = {"seed": 121, "width": 64, "height": 64}
MASK: Json = {"width": 64, "height": 64, "box": [16, 8, 48, 40]}
SMALL_INIT: Json = {"seed": 122, "width": 16, "height": 16}

TAESD: Json = {
    "_class_name": "AutoencoderTiny",
    "_diffusers_version": "0.20.0.dev0",
    "act_fn": "relu",
    "decoder_block_out_channels": [32, 32, 32, 32],
    "encoder_block_out_channels": [32, 32, 32, 32],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}
LCM_SCHEDULER: Json = {
    "_class_name": LCM,
    "_diffusers_version": "0.22.0.dev0",
    **BETAS,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
}
UPSCALER_SCHEDULER: Json = {
    **SD_SCHEDULER,
    "_class_name": DDIM,
    "beta_end": 0.02,
    "beta_start": 0.0001,
    "prediction_type": "v_prediction",
}
LOW_RES_SCHEDULER: Json = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.8.0",
    **BETAS,
    "beta_end": 0.02,
    "beta_start": 0.0001,
    "clip_sample": True,
    "variance_type": "fixed_small",
}


def families() -> list[Family]:
    sd1: Json = {"text": SD1_TEXT, "tokenizer": SD1_TOKENIZER, "index": SD1_INDEX}
    sd2: Json = {"text": SD2_TEXT, "tokenizer": SD2_TOKENIZER, "index": SD2_INDEX}
    xl: Json = {"text": XL_TEXT, "tokenizer": XL_TOKENIZER, "penultimate": True}
    xl_index: Json = {"force_zeros_for_empty_prompt": True, "add_watermarker": None}
    refiner_index: Json = {**xl_index, "force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
    sd, sdxl = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
    sdxl_img2img = "StableDiffusionXLImg2ImgPipeline"
    v_prediction: Json = {**SD_SCHEDULER, "_class_name": DDIM, "prediction_type": "v_prediction"}
    turbo: Json = {**TURBO, "_class_name": EULER}
    turbo_a: Json = {**TURBO, "_class_name": EULER_A}
    img2img: Json = {"image": INIT, "strength": 0.75}
    inpaint: Json = {"image": INIT, "mask_image": MASK}
    guided: Json = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}
    # Models that were distilled for a few steps are asked without guidance.
    unguided: Json = {"guidance_scale": 0.0}
    edm: Json = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    cosxl: Json = {
        "sigma_schedule": "exponential",
        "prediction_type": "v_prediction",
        "sigma_data": 1.0,
        "sigma_max": 120.0,
    }
    continuous: Json = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    karras_range: Json = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
    return [
        # Stable Diffusion 1's networks under other noise: ranges of levels, as Playground 2.5 and CosXL have them, and
        # flow matching; the second on latents of 16 channels.
        Family(
            "sd15-noise",
            sd,
            sd1_unet(),
            vae(),
            {"_class_name": EDM, "_diffusers_version": NEW, **edm},
            asks=[
                Ask("edm-euler", EDM, guided),
                Ask("edm-euler-cosxl", EDM, guided, settings=cosxl),
                Ask("edm-euler-low", EDM, guided, settings={"final_sigmas_type": "sigma_min"}),
                Ask("edm-dpm", EDM_DPM, guided, picture=True),
                Ask("edm-dpm-heun", EDM_DPM, guided, settings=cosxl | {"solver_type": "heun"}),
                Ask("edm-dpm-third", EDM_DPM, guided | {"num_inference_steps": 6}, settings={"solver_order": 3}),
                Ask("edm-euler-img2img", EDM, guided | img2img, pipeline=IMG2IMG),
                Ask("edm-dpm-img2img", EDM_DPM, guided | img2img, pipeline=IMG2IMG),
                Ask("edm-euler-inpaint", EDM, guided | inpaint | {"strength": 0.75}, pipeline=INPAINT),
                Ask("edm-dpm-inpaint", EDM_DPM, guided | inpaint | {"strength": 1.0}, pipeline=INPAINT),
                Ask("continuous", EULER, guided, settings=BETAS | continuous),
                Ask("continuous-range", EULER, guided, settings=BETAS | continuous | karras_range),
                # The pipeline takes no other latents than of 4 channels.
                Ask("flow-inpaint", FLOW, guided | inpaint | {"strength": 0.75}, INPAINT, settings={"shift": 3.0}),
                Ask("flow-inpaint-whole", FLOW, guided | inpaint | {"strength": 1.0}, INPAINT),
                Ask("continuous-img2img", EULER, guided | img2img, pipeline=IMG2IMG, settings=BETAS | continuous),
            ],
            old_vae_names=True,
            **sd1,
        ),
        Family(
            "sd15-flow16",
            sd,
            sd1_unet(in_channels=16, out_channels=16),
            vae(latent_channels=16, scaling_factor=0.3611),
            {"_class_name": FLOW, "_diffusers_version": NEW, "shift": 3.0},
            asks=[
                Ask("flow-euler", FLOW, guided, picture=True),
                Ask("flow-euler-unshifted", FLOW, {"guidance_scale": 1.0}, settings={"shift": 1.0}),
                Ask("flow-euler-karras", FLOW, guided, settings={"use_karras_sigmas": True}),
                Ask("flow-euler-beta", FLOW, guided, settings={"use_beta_sigmas": True}),
                Ask("flow-heun", FLOW_HEUN, guided),
                Ask("flow-img2img", FLOW, guided | img2img, pipeline=IMG2IMG),
            ],
            **sd1,
        ),
        # Playground 2.5: Stable Diffusion XL's networks, with levels of EDM and latents normalised by channels.
        Family(
            "playground",
            sdxl,
            xl_unet(),
            {**XL_VAE, "scaling_factor": 0.5, "latents_mean": PLAYGROUND_MEAN, "latents_std": PLAYGROUND_STD},
            {"_class_name": EDM_DPM, "_diffusers_version": NEW, **edm},
            asks=[
                Ask("edm-dpm-negative", EDM_DPM, guided, picture=True),
                Ask("edm-euler", EDM, guided),
                Ask("img2img", EDM_DPM, guided | img2img, pipeline=sdxl_img2img),
            ],
            index=xl_index,
            **xl,
        ),
        Family(
            "sd15",
            sd,
            sd1_unet(),
            vae(),
            PNDM,
            asks=[
                *asks(EULER),
                Ask("img2img", EULER, guided | img2img, pipeline=IMG2IMG),
                Ask("inpaint", EULER, guided | inpaint | {"strength": 0.75}, pipeline=INPAINT),
                # Fresh noise at every step tells what else was drawn before.
                Ask("inpaint-euler-a", EULER_A, guided | inpaint | {"strength": 0.75}, pipeline=INPAINT),
            ],
            single_file="ldm",
            old_vae_names=True,
            **sd1,
        ),
        Family(
            "sd21",
            sd,
            sd2_unet(sample_size=96, upcast_attention=True),
            vae(sample_size=768),
            v_prediction,
            asks=[*asks(EULER), Ask("ddim-negative", DDIM, guided)],
            single_file="ldm",
            old_vae_names=True,
            **sd2,
        ),
        Family(
            "sdxl",
            sdxl,
            xl_unet(),
            XL_VAE,
            XL_SCHEDULER,
            asks=[*asks(EULER), Ask("img2img", EULER, guided | img2img, pipeline=sdxl_img2img)],
            index=xl_index,
            single_file="sgm",
            **xl,
        ),
        Family(
            "sd21-base",
            sd,
            sd2_unet(),
            vae(),
            {**PNDM, "prediction_type": "epsilon"},
            asks=asks(EULER),
            single_file="ldm",
            old_vae_names=True,
            **sd2,
        ),
        Family(
            "sdxl-refiner",
            sdxl_img2img,
            xl_unet(
                attention_head_dim=[1, 1, 2, 2],
                block_out_channels=[64, 64, 128, 128],
                cross_attention_dim=128,
                down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
                projection_class_embeddings_input_dim=128 + 5 * 256,
                transformer_layers_per_block=2,
                up_block_types=[UP, CROSS_UP, CROSS_UP, UP],
            ),
            XL_VAE,
            XL_SCHEDULER,
            text={"text_encoder_2": XL_TEXT["text_encoder_2"]},
            tokenizer={"tokenizer_2": XL_TOKENIZER["tokenizer_2"]},
            asks=asks(EULER, **img2img),
            index=refiner_index,
            penultimate=True,
            single_file="sgm",
        ),
        Family(
            "sd-turbo",
            sd,
            sd2_unet(_diffusers_version=NEW),
            vae(_diffusers_version=NEW, force_upcast=True, sample_size=768, scaling_factor=0.18215),
            turbo,
            asks=[Ask("euler", EULER, unguided, picture=True), Ask("euler-negative", EULER, guided)],
            single_file="sgm",
            **sd2,
        ),
        Family(
            "sdxl-turbo",
            sdxl,
            xl_unet(sample_size=64),
            XL_VAE,
            turbo_a,
            asks=[
                Ask("euler-a", EULER_A, unguided, picture=True),
                Ask("euler", EULER, unguided),
                Ask("euler-negative", EULER, guided),
            ],
            index=xl_index,
            single_file="sgm",
            **xl,
        ),
        Family(
            "lcm",
            "LatentConsistencyModelPipeline",
            sd1_unet(_diffusers_version=NEW, time_cond_proj_dim=256),
            vae(_diffusers_version=NEW, force_upcast=True, sample_size=768, scaling_factor=0.18215),
            LCM_SCHEDULER,
            asks=[
                Ask("lcm-guided", LCM, {"guidance_scale": 5.0}, picture=True),
                Ask("lcm", LCM, {"guidance_scale": 1.0}),
            ],
            single_file="ldm",
            **sd1,
        ),
        Family(
            "inpaint",
            INPAINT,
            sd1_unet(in_channels=9),
            vae(),
            PNDM,
            asks=[
                *asks(EULER, **inpaint, strength=1.0),
                Ask("strength", EULER, guided | inpaint | {"strength": 0.75}),
            ],
            single_file="ldm",
            old_vae_names=True,
            **sd1,
        ),
        Family(
            "instruct-pix2pix",
            "StableDiffusionInstructPix2PixPipeline",
            sd1_unet(in_channels=8),
            vae(),
            {**SD_SCHEDULER, "_class_name": EULER_A, "prediction_type": "epsilon"},
            asks=[
                *asks(EULER, image=INIT, image_guidance_scale=1.5),
                Ask("euler-a-negative", EULER_A, guided | {"image": INIT, "image_guidance_scale": 1.5}),
            ],
            single_file="ldm",
            old_vae_names=True,
            **sd1,
        ),
        Family(
            "x4-upscaler",
            "StableDiffusionUpscalePipeline",
            sd2_unet(
                attention_head_dim=8,
                block_out_channels=[32, 64, 64, 96],
                down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN],
                in_channels=7,
                num_class_embeds=1000,
                only_cross_attention=[True, True, True, False],
                sample_size=128,
                up_block_types=[CROSS_UP, CROSS_UP, CROSS_UP, UP],
            ),
            vae(block_out_channels=[32, 64, 64], sample_size=256, scaling_factor=0.08333),
            UPSCALER_SCHEDULER,
            text=SD2_TEXT,
            tokenizer=SD2_TOKENIZER,
            asks=[
                *asks(EULER, image=SMALL_INIT, noise_level=20),
                Ask("ddim-negative", DDIM, guided | {"image": SMALL_INIT, "noise_level": 100}),
            ],
            index={"max_noise_level": 350},
            low_res_scheduler=LOW_RES_SCHEDULER,
            single_file="ldm",
            old_vae_names=True,
        ),
        Family(
            "small-sd",
            sd,
            sd1_unet(_diffusers_version="0.19.0", layers_per_block=1, mid_block_type=None),
            vae(),
            PNDM,
            asks=asks(EULER),
            **sd1,
        ),
        Family(
            "ssd-1b",
            sdxl,
            xl_unet(
                mid_block_type="UNetMidBlock2D",
                reverse_transformer_layers_per_block=[[2, 2, 3], [2, 1, 1], 1],
                transformer_layers_per_block=[1, [1, 1], [2, 2]],
            ),
            XL_VAE,
            XL_SCHEDULER,
            asks=asks(EULER),
            index=xl_index,
            single_file="sgm",
            **xl,
        ),
        Family(
            "sd15-taesd",
            sd,
            sd1_unet(),
            TAESD,
            PNDM,
            asks=asks(EULER),
            vae_class="AutoencoderTiny",
            **sd1,
        ),
    ]

"""The flags of the checkpoints that OpenAI published. The files themselves do not hold them."""

from __future__ import annotations

from typing import Any

_COMMON = {"learn_sigma": True, "predict_xstart": False}
_GUIDED = {
    **_COMMON,
    "diffusion_steps": 1000,
    "num_res_blocks": 2,
    "attention_resolutions": "32,16,8",
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": False,
    "rescale_timesteps": False,
}
_GUIDED_256 = {
    **_GUIDED,
    "image_size": 256,
    "num_channels": 256,
    "num_head_channels": 64,
    "noise_schedule": "linear",
    "class_cond": False,
}
_IMPROVED = {
    **_COMMON,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
    "num_channels": 128,
    "num_res_blocks": 3,
    "num_heads": 4,
    "attention_resolutions": "16,8",
    "class_cond": False,
    "use_scale_shift_norm": True,
    "use_new_attention_order": False,
    "rescale_timesteps": True,
}
_CIFAR10 = {**_IMPROVED, "image_size": 32}
_IMAGENET64 = {**_IMPROVED, "image_size": 64}
_LSUN = {
    **_IMPROVED,
    "image_size": 256,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "num_res_blocks": 2,
    "num_heads": 1,
    "attention_resolutions": "16",
    "use_scale_shift_norm": False,
    "rescale_timesteps": False,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "64x64_diffusion.pt": {
        **_GUIDED,
        "image_size": 64,
        "num_channels": 192,
        "num_res_blocks": 3,
        "num_head_channels": 64,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
        "class_cond": True,
    },
    "128x128_diffusion.pt": {
        **_GUIDED,
        "image_size": 128,
        "num_channels": 256,
        "num_heads": 4,
        "noise_schedule": "linear",
        "class_cond": True,
    },
    "256x256_diffusion.pt": {**_GUIDED_256, "class_cond": True},
    "256x256_diffusion_uncond.pt": _GUIDED_256,
    "512x512_diffusion.pt": {**_GUIDED_256, "image_size": 512, "class_cond": True},
    "lsun_bedroom.pt": _GUIDED_256,
    "lsun_cat.pt": _GUIDED_256,
    "lsun_horse.pt": _GUIDED_256,
    "lsun_horse_nodropout.pt": _GUIDED_256,
    "cifar10_uncond_50M_500K.pt": _CIFAR10,
    "cifar10_uncond_vlb_50M_500K.pt": _CIFAR10,
    "imagenet64_uncond_100M_1500K.pt": _IMAGENET64,
    "imagenet64_uncond_vlb_100M_1500K.pt": _IMAGENET64,
    "imagenet64_cond_270M_250K.pt": {
        **_IMAGENET64,
        "num_channels": 192,
        "class_cond": True,
        "rescale_timesteps": False,
    },
    "lsun_uncond_100M_1200K_bs128.pt": _LSUN,
    "lsun_uncond_100M_2400K_bs64.pt": _LSUN,
}
"""The flags in the READMEs of guided-diffusion and improved-diffusion, by the names of the published files."""

"""Arguments of backbones: those that settings and weight files may give to timm, and how large a network they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ssole.config import ConfigError, ModelConfig
from ssole.errors import did_you_mean
from ssole.memory import total_memory

# Arguments of `timm.create_model` that shape a network. Not among them are those that name files or addresses
# (`checkpoint_path`, `pretrained_cfg`, `cache_dir`): settings may come from untrusted files.
_ARGUMENTS = frozenset(
    """
    aa_layer act_layer attn_drop_rate attn_ratio avg_down base_width bias block_config block_reduce_first bottle_ratio
    cardinality channel_multiplier channels class_token conv_bias conv_mlp depth depth_mult depths dim dims distilled
    down_kernel_size drop_block_rate drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim embed_dims
    embed_norm expand_ratio fc_norm final_norm fix_stem global_pool groups growth_rate head_dim head_hidden_size
    head_init_scale head_norm_first heads img_size in_chans init_values key_dim kernel_size kernel_sizes layers
    layer_scale_init_value ls_init_value mlp_ratio mlp_ratios no_embed_class norm_eps norm_layer num_blocks
    num_features num_heads num_init_features output_stride pad_type patch_drop_rate patch_size pool_type
    pos_drop_rate pos_embed pre_norm proj_bias proj_drop_rate qk_norm qkv_bias reg_tokens replace_stem_pool rope_type
    scale_mlp_norm se_ratio sr_ratios stem_chs stem_size stem_type stem_width strict_img_size swiglu_mlp use_abs_pos_emb
    use_fc_norm use_grn use_rel_pos_bias use_rot_pos_emb weight_init width width_factor width_mult widths window_ratio
    window_size window_sizes zero_init_last
    """.split()  # noqa: SIM905 - a hundred names are easier to read as text
)
_MAX_NUMBER, _MAX_BLOCKS = 65_536, 1_000  # number in an argument, and blocks of a network; timm's have far less
_SIZES: dict[str, int] = {}  # of weights, by name and arguments: a process may make a network many times
_DEPTHS = ("depth", "depths", "layers", "num_blocks", "block_config")


def checked_arguments(config: ModelConfig) -> dict[str, Any]:
    """Copy of `backbone_args`; `ConfigError` for an argument that is not allowed, or no plain value."""
    for name, value in config.backbone_args.items():
        if name not in _ARGUMENTS:
            known = sorted(_ARGUMENTS)
            allowed = f"Allowed are sizes, shapes and rates of the network: {', '.join(known)}"
            reason = f"{name!r} is not allowed.{did_you_mean(name, known)} {allowed}"
            raise ConfigError(f"{unfit_arguments(config.backbone)}: {reason}")
        numbers = list(_numbers(value))
        if any(abs(number) > _MAX_NUMBER or number != number for number in numbers):
            raise ConfigError(f"{unfit_arguments(config.backbone)}: {name} has a number above {_MAX_NUMBER}")
        if name in _DEPTHS and sum(numbers) > _MAX_BLOCKS:
            raise ConfigError(f"{unfit_arguments(config.backbone)}: {name} asks for more than {_MAX_BLOCKS} blocks")
    return dict(config.backbone_args)


def _numbers(value: Any) -> Iterator[float]:
    """Numbers in a plain value; `ConfigError` for a mapping or another object."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, (int, float)):
        yield value
    elif value is not None and not isinstance(value, str):
        raise ConfigError(f"model.backbone_args holds {value!r}: it takes numbers, words and lists of them")


def unfit_arguments(name: str) -> str:
    """Beginning of a message about arguments that a model does not take."""
    return f"model.backbone_args do not fit {name}"


def require_room_for_weights(name: str, arguments: dict[str, Any]) -> None:
    """Raise a ConfigError for a network whose weights alone would take more than 80 % of the memory."""
    key, limit = repr((name, arguments)), int(0.8 * total_memory())
    if key not in _SIZES:
        _SIZES[key] = _weight_bytes(name, arguments)
    if (size := _SIZES[key]) > limit:
        amounts = f"its weights would take {size / 2**30:.1f} GiB, and {limit / 2**30:.1f} GiB may be used"
        raise ConfigError(f"{unfit_arguments(name)}: {amounts}")


def _weight_bytes(name: str, arguments: dict[str, Any]) -> int:
    """Bytes of the weights of a network; 0 if it cannot be made without memory."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # which has sizes, and no memory
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
        except Exception:  # noqa: BLE001 - making it for real raises the same, or it cannot be made without numbers
            return 0
    return sum(weight.nbytes for weight in model.state_dict().values())

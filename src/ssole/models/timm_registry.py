"""Name in timm's registry for small-image ResNets, since timm has no option for their first layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssole.models.backbone import small_stem

NAME = "ssole_resnet"
"""Name of the architecture in timm's registry and in exported folders."""


def register_with_timm() -> None:
    """Make `ssole_resnet` known to timm in this process, so that it can load exported small-image ResNets.

        from ssole.export import register_with_timm

        register_with_timm()
        model = timm.create_model("local-dir:runs/mine/export/timm", pretrained=True)

    ssole changes the first layers of ResNets for images of up to 64 pixels (`model.stem` in the config). Stock timm has
    no architecture with these layers. Other backbones are stock timm and need no such call.
    """
    import timm
    from timm.models import register_model

    if not timm.is_model(NAME):
        register_model(ssole_resnet)


def small_stem_kernel(backbone: nn.Module) -> int | None:
    """Kernel size of a small-image stem, 2 to 4; None for a backbone as timm makes it."""
    if not isinstance(getattr(backbone, "maxpool", None), nn.Identity):
        return None
    conv = backbone.conv1
    assert isinstance(conv, nn.Conv2d)
    return int(conv.kernel_size[0])


def ssole_resnet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ResNet of timm with a small-image stem; timm calls this for the name `ssole_resnet`.

    `arguments` are `backbone` (the ResNet's timm name), `stem` (2 to 4, the side of its first filters), and timm's own.
    """
    from timm.models import build_model_with_cfg

    model: nn.Module = build_model_with_cfg(_resnet, NAME, pretrained, **arguments)
    return model


def _resnet(*, backbone: str, stem: int, **arguments: Any) -> nn.Module:
    import timm

    return small_stem(timm.create_model(backbone, **arguments), kernel=stem)

# ruff: noqa
"""build_model, which takes the architecture from shapes alone (open_clip stands in for the classes)."""

import open_clip


def build_model(state_dict):
    width = state_dict["ln_final.weight"].shape[0]
    vit = "visual.proj" in state_dict
    if vit:
        vision_width, _, patch, _ = state_dict["visual.conv1.weight"].shape
        grid = round((state_dict["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        layers = len({k.split(".")[3] for k in state_dict if k.startswith("visual.transformer.resblocks.")})
        vision = dict(layers=layers, width=vision_width, patch_size=patch, image_size=patch * grid)
    else:
        layers = [len({k.split(".")[2] for k in state_dict if k.startswith(f"visual.layer{b}")}) for b in (1, 2, 3, 4)]
        vision_width = state_dict["visual.layer1.0.conv1.weight"].shape[0]
        grid = round((state_dict["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        vision = dict(layers=layers, width=vision_width, patch_size=None, image_size=grid * 32)
    text = dict(
        context_length=state_dict["positional_embedding"].shape[0],
        vocab_size=state_dict["token_embedding.weight"].shape[0],
        width=width,
        heads=max(1, width // 64),
        layers=len({k.split(".")[2] for k in state_dict if k.startswith("transformer.resblocks")}),
    )
    model = open_clip.CLIP(state_dict["text_projection"].shape[1], vision, text, quick_gelu=True)
    model.visual.input_resolution = vision["image_size"]
    for key in ["input_resolution", "context_length", "vocab_size"]:
        if key in state_dict:
            del state_dict[key]
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()})
    return model.eval()

"""Say what pictures show: python classify.py PICTURE ...   It needs onnxruntime, Pillow and numpy, nothing else."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pixels(path: str, about: dict[str, str]) -> Any:
    """A picture as the model takes it, bytes (height, width, 3): resized, then centre-cropped or padded."""
    opened, size, mode = Image.open(path), json.loads(about["size"])[::-1], about["resize"]
    if opened.mode[0] in "IF":
        raise ValueError("more than 8 bits per pixel; convert it to 8 bits first")
    image, sides = opened.convert("RGB"), size
    if mode == "shortest":
        sides = [side * max(size) // min(image.size) for side in image.size]
    elif mode != "squash":
        ratio = (min if mode == "cover" else max)(image.width / size[0], image.height / size[1])
        sides = [max(1, round(side / ratio)) for side in image.size]
    made = Image.new("RGB", tuple(size), tuple(json.loads(about["fill"])))
    left, top = ((to - n) // 2 if n < to else -round((n - to) / 2) for n, to in zip(sides, size, strict=True))
    made.paste(image.resize(sides, Image.Resampling[about["interpolation"].upper()]), (left, top))
    return np.asarray(made)


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it sends usage data to its makers otherwise
    import onnxruntime

    session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
    about = session.get_modelmeta().custom_metadata_map
    failed = False
    for path in sys.argv[1:] or sys.exit(__doc__):
        try:
            image = pixels(path, about)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # go on with the others
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        probabilities = session.run(None, {"image": image[None]})[0][0]
        for k in probabilities.argsort()[::-1][:3]:
            print(f"{path}  {json.loads(about['classes'])[k]}  {100 * probabilities[k]:.1f} %")
    sys.exit(failed)

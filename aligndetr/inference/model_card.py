"""The page that the Hugging Face Hub shows of a model."""

from collections.abc import Mapping
from typing import Any

MAX_NAMES = 100

CARD = """---
library_name: aligndetr
pipeline_tag: object-detection
tags: [object-detection, align-detr]
---

# Object detector (Align-DETR)

```python
from aligndetr.inference import Predictor

predictor = Predictor.from_pretrained("user/model")  # the name of this page
found = predictor("image.jpg", score_threshold=0.3)
found.save("found.jpg")
```

It knows {count} classes: {names}.

`model.safetensors` holds the weights and, as its metadata, config, class names and preprocessing:
{preprocessing}. `config.yaml` is the same config, to read and to train with.
"""


def model_card(checkpoint: Mapping[str, Any]) -> str:
    """Markdown, from "class_names" and "preprocessing" of a checkpoint."""
    names = checkpoint["class_names"]
    shown = ", ".join(map(_one_line, names[:MAX_NAMES])) + (", …" if len(names) > MAX_NAMES else "")
    steps = [f"{key} {value}" for key, value in checkpoint.get("preprocessing", {}).items()]
    return CARD.format(count=len(names), names=shown, preprocessing=", ".join(steps) or "unknown")


def _one_line(name: str) -> str:
    return " ".join(name.split())

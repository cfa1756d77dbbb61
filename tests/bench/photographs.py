"""Made-up photographs of an ordinary size, since none may be shipped."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photograph(seed: int) -> bytes:
    """500 x 375 pixels of smooth colour with grain, about as large in bytes as a photograph of that size."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
    grain = rng.normal(0, 6, (375, 500, 1))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()

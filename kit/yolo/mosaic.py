"""Mosaic that draws only what is used, bit for bit the same.

Ultralytics fills a canvas of twice the image size and then looks at a part of it: where the affine map of the next
step falls. Here that map is known before a pixel is drawn, and the canvas, which is used again and again, is filled
only there.
"""

from __future__ import annotations

from typing import Any

import numpy
from ultralytics.data.augment import Compose, CopyPaste, Mosaic, RandomPerspective

MARGIN = 4  # pixels around what the map needs: interpolation looks at neighbours
GREY = 114  # Ultralytics' filling


class LazyMosaic(Mosaic):  # type: ignore[misc]
    """Lays the four images out and leaves the drawing to the map that follows."""

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Keep the tiles, and pass on an image that has a shape and no memory."""
        layout = (params or {})["layout"]
        labels["tiles"] = [(tile, tile["labels_patch"]["img"]) for tile in layout]
        side, channels = 2 * self.imgsz, labels["img"].shape[2]
        labels["img"] = numpy.broadcast_to(numpy.uint8(GREY), (side, side, channels))
        return labels


class LazyPerspective(RandomPerspective):  # type: ignore[misc]
    """Draws the part of a mosaic's canvas that its map looks at, and maps it."""

    _canvas: Any = None

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Map the image, which may still have to be drawn."""
        if tiles := labels.pop("tiles", None):
            labels["img"] = self._draw(labels["img"].shape, tiles, params or {})
        mapped: dict[str, Any] = super().apply_image(labels, params)
        return mapped

    def _draw(self, shape: tuple[int, ...], tiles: list[tuple[dict[str, int], Any]], params: dict[str, Any]) -> Any:
        if self._canvas is None or self._canvas.shape != shape:
            self._canvas = numpy.empty(shape, numpy.uint8)
        left, top, right, bottom = self._window(shape, params)
        self._canvas[top:bottom, left:right] = GREY
        for tile, image in tiles:
            x1, x2 = max(tile["x1a"], left), min(tile["x2a"], right)
            y1, y2 = max(tile["y1a"], top), min(tile["y2a"], bottom)
            if x1 < x2 and y1 < y2:
                dx, dy = tile["x1b"] - tile["x1a"], tile["y1b"] - tile["y1a"]
                self._canvas[y1:y2, x1:x2] = image[y1 + dy : y2 + dy, x1 + dx : x2 + dx]
        return self._canvas

    def _window(self, shape: tuple[int, ...], params: dict[str, Any]) -> tuple[int, int, int, int]:
        """Return the part of the canvas, as left, top, right, bottom, that the output's corners span."""
        height, width = shape[:2]
        if self.perspective:
            return 0, 0, width, height
        w, h = params["size"]
        corners = numpy.linalg.inv(params["M"].astype(float)) @ numpy.array([[0, w, 0, w], [0, 0, h, h], [1, 1, 1, 1]])
        (left, top), (right, bottom) = corners[:2].min(1) - MARGIN, corners[:2].max(1) + MARGIN
        return max(int(left), 0), max(int(top), 0), min(int(right) + 1, width), min(int(bottom) + 1, height)


def make_lazy(transforms: Compose) -> Compose:
    """Replace Ultralytics' Mosaic and RandomPerspective by the lazy pair where no step between them uses the image."""
    first = transforms.transforms[0] if transforms.transforms else None
    if not isinstance(first, Compose):
        return transforms
    steps = first.transforms
    idle = [step for step in steps if isinstance(step, CopyPaste) and step.p == 0]
    looked_at = [step for step in steps if step not in idle]
    if [type(step) for step in looked_at] == [Mosaic, RandomPerspective] and looked_at[0].n == 4:
        for step, lazy in zip(looked_at, (LazyMosaic, LazyPerspective), strict=True):
            steps[steps.index(step)] = twin = lazy.__new__(lazy)
            vars(twin).update(vars(step))
    return transforms

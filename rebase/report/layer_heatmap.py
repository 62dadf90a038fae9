"""Draws the layer map: source layers upwards, target layers to the right, the chosen pairing on top."""

from __future__ import annotations

import io
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from rebase.errors import escape_control_characters
from rebase.report.schema import LayerMap

# The colour map "cividis" (Nuñez, Anderton, Renslow 2018), designed for colour-vision deficiency.
_COLOR_STOPS = (
    (0, 34, 78),
    (33, 59, 110),
    (76, 85, 108),
    (108, 110, 114),
    (138, 134, 120),
    (172, 161, 112),
    (208, 190, 94),
    (254, 232, 56),
)
_MAP_SIZE = 1200  # px: length of the map's longer side, within the limits on cell size
_CELL_LIMITS = (10, 120)
_FONT_SIZE, _SMALL_FONT_SIZE = 28, 24
_GAP, _TICK_LENGTH = 24, 10
_MIN_WIDTH = 760  # px: room for the title of a very narrow map
_FOREGROUND, _BACKGROUND = (20, 20, 20), (255, 255, 255)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_layer_map(layer_map: LayerMap, source: str, target: str) -> bytes:
    """Deterministic PNG bytes. `source`, `target`: names of the two bases.

    Colours always span CKA 0 to 1, so that pictures are comparable.
    """
    sources, targets = len(layer_map.similarity), len(layer_map.layers)
    cell = min(max(_MAP_SIZE // max(sources, targets), _CELL_LIMITS[0]), _CELL_LIMITS[1])
    width, height = cell * targets, cell * sources
    left, top = 130, 150
    bar = left + width + 2 * _GAP
    right = bar + _GAP + 90
    picture = Image.new("RGB", (max(right, _MIN_WIDTH), top + height + 120), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    picture.paste(_render_cells(layer_map).resize((width, height), Image.Resampling.NEAREST), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_FOREGROUND)
    _draw_title(draw, layer_map, source, target)
    _draw_ticks(draw, sources, targets, cell, left, top)
    _draw_axis_label(picture, "source layer", (12, top, height))
    draw.text(
        (left + width / 2, top + height + 76),
        "target layer",
        _FOREGROUND,
        _load_font(_FONT_SIZE),
        anchor="mt",
    )
    _draw_color_bar(picture, draw, bar, top, height)
    _draw_layer_pairs(draw, layer_map, cell, left, top)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=9)
    return file.getvalue()


def get_color(value: float) -> tuple[int, int, int]:
    """The colour of a similarity, clamped to [0, 1]: debiased values can be negative."""
    position = min(max(value, 0.0), 1.0) * (len(_COLOR_STOPS) - 1)
    low = min(int(position), len(_COLOR_STOPS) - 2)
    fraction = position - low
    red, green, blue = (
        round(before + fraction * (after - before))
        for before, after in zip(_COLOR_STOPS[low], _COLOR_STOPS[low + 1], strict=True)
    )
    return red, green, blue


def compute_tick_step(layers: int, cell: int) -> int:
    """Interval between numbered layers that keeps labels 44 px apart."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100) if step * cell >= 44 or step >= layers)


def _render_cells(layer_map: LayerMap) -> Image.Image:
    """One pixel per cell, source layer 0 at the bottom."""
    rows = reversed(layer_map.similarity)
    data = bytes(channel for row in rows for value in row for channel in get_color(value))
    return Image.frombytes("RGB", (len(layer_map.layers), len(layer_map.similarity)), data)


def _draw_title(draw: ImageDraw.ImageDraw, layer_map: LayerMap, source: str, target: str) -> None:
    max_width = draw.im.size[0] - 2 * _GAP
    names = f"{_clean_name(source)} to {_clean_name(target)}"
    if draw.textlength(names, font=_load_font(_FONT_SIZE)) > max_width:
        half = (max_width - draw.textlength(" to ", font=_load_font(_FONT_SIZE))) / 2
        names = " to ".join(
            _shorten_to_width(draw, _clean_name(repo), _load_font(_FONT_SIZE), half)
            for repo in (source, target)
        )
    draw.text((_GAP, 22), names, _FOREGROUND, _load_font(_FONT_SIZE))
    subtitle = (
        f"coverage {layer_map.coverage:.0%}: target layers whose best source layer is above "
        f"{layer_map.threshold:g}"
    )
    if draw.textlength(subtitle, font=_load_font(_SMALL_FONT_SIZE)) > max_width:
        subtitle = f"coverage {layer_map.coverage:.0%} (CKA above {layer_map.threshold:g})"
    draw.text((_GAP, 64), subtitle, _FOREGROUND, _load_font(_SMALL_FONT_SIZE))
    draw.text(
        (_GAP, 100),
        "dots: the source layer that each target layer is paired with",
        _FOREGROUND,
        _load_font(_SMALL_FONT_SIZE),
    )


def _draw_ticks(
    draw: ImageDraw.ImageDraw, sources: int, targets: int, cell: int, left: int, top: int
) -> None:
    font = _load_font(_SMALL_FONT_SIZE)
    bottom = top + sources * cell
    for layer in range(0, targets, compute_tick_step(targets, cell)):
        x = left + (layer + 0.5) * cell
        draw.line((x, bottom, x, bottom + _TICK_LENGTH), _FOREGROUND, 2)
        draw.text((x, bottom + _TICK_LENGTH + 8), str(layer), _FOREGROUND, font, anchor="mt")
    for layer in range(0, sources, compute_tick_step(sources, cell)):
        y = bottom - (layer + 0.5) * cell
        draw.line((left - _TICK_LENGTH, y, left, y), _FOREGROUND, 2)
        draw.text((left - _TICK_LENGTH - 8, y), str(layer), _FOREGROUND, font, anchor="rm")


def _draw_axis_label(picture: Image.Image, text: str, box: tuple[int, int, int]) -> None:
    """Draw vertical text beside the map. `box`: (x, y, the axis' length in px)."""
    x, y, length = box
    label = Image.new("RGB", (180, 40), _BACKGROUND)
    ImageDraw.Draw(label).text((90, 20), text, _FOREGROUND, _load_font(_FONT_SIZE), anchor="mm")
    rotated = label.transpose(Image.Transpose.ROTATE_90)
    picture.paste(rotated, (x, max(y + (length - rotated.height) // 2, y)))


def _draw_color_bar(picture: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int) -> None:
    data = bytes(channel for row in range(height) for channel in get_color(1 - row / max(height - 1, 1)))
    picture.paste(Image.frombytes("RGB", (1, height), data).resize((_GAP, height)), (x, y))
    draw.rectangle((x - 1, y - 1, x + _GAP, y + height), outline=_FOREGROUND)
    marks = (0.0, 0.5, 1.0) if height < 300 else (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    for value in marks:
        position = y + height - value * height
        draw.line((x + _GAP, position, x + _GAP + _TICK_LENGTH, position), _FOREGROUND, 2)
        draw.text(
            (x + _GAP + _TICK_LENGTH + 6, position),
            f"{value:.1f}",
            _FOREGROUND,
            _load_font(_SMALL_FONT_SIZE),
            anchor="lm",
        )
    draw.text((x + _GAP / 2, y + height + 18), "CKA", _FOREGROUND, _load_font(_SMALL_FONT_SIZE), anchor="mt")


def _draw_layer_pairs(draw: ImageDraw.ImageDraw, layer_map: LayerMap, cell: int, left: int, top: int) -> None:
    """Draw a white line with dark edges and a dot per target layer: visible on every colour."""
    bottom = top + len(layer_map.similarity) * cell
    points = [
        (left + (target + 0.5) * cell, bottom - (source + 0.5) * cell)
        for target, source in enumerate(layer_map.layers)
    ]
    radius = min(max(3, cell // 7), 10)
    for color, margin in ((_FOREGROUND, 2), (_BACKGROUND, 0)):
        for before, after in pairwise(points):
            draw.line((*before, *after), color, 2 + 2 * margin)
        for x, y in points:
            outer_radius = radius + margin
            draw.ellipse((x - outer_radius, y - outer_radius, x + outer_radius, y + outer_radius), color)


def _clean_name(repo_id: str) -> str:
    """Names are untrusted: one line of printable characters."""
    return " ".join(escape_control_characters(repo_id).split())


def _shorten_to_width(draw: ImageDraw.ImageDraw, text: str, font: _Font, max_width: float) -> str:
    """The text, with its middle omitted if wider than `max_width` px."""
    if draw.textlength(text, font=font) <= max_width:
        return text
    kept_characters = len(text) // 2
    while (
        kept_characters > 1
        and draw.textlength(f"{text[:kept_characters]}...{text[-kept_characters:]}", font=font) > max_width
    ):
        kept_characters -= 1
    return f"{text[:kept_characters]}...{text[-kept_characters:]}"


def _load_font(size: int) -> _Font:
    """Pillow's bundled font, so that every machine draws the same."""
    return ImageFont.load_default(size)

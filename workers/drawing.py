"""The layer map as a picture: source layers upwards, target layers to the right, the chosen map on top."""

from __future__ import annotations

import io
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from rebase.errors import escape_control_characters
from workers.report import LayerMap

# The scale "cividis" (Nuñez, Anderton, Renslow 2018), which reads the same with every kind of colour vision.
_STOPS = (
    (0, 34, 78),
    (33, 59, 110),
    (76, 85, 108),
    (108, 110, 114),
    (138, 134, 120),
    (172, 161, 112),
    (208, 190, 94),
    (254, 232, 56),
)
_SIDE = 1200  # px: what the map's longer side comes to, unless its cells would be too large or too small
_CELLS = (10, 120)
_TEXT, _SMALL = 28, 24
_GAP, _TICK = 24, 10
_LEAST_WIDTH = 760  # px: room for the title of a very narrow map
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_layer_map(layer_map: LayerMap, source: str, target: str) -> bytes:
    """PNG bytes; the same map and names give the same bytes. `source`, `target`: names of the two bases.

    Colours span CKA 0 to 1 whatever the map holds, so that pictures can be compared.
    """
    sources, targets = len(layer_map.similarity), len(layer_map.layers)
    cell = min(max(_SIDE // max(sources, targets), _CELLS[0]), _CELLS[1])
    width, height = cell * targets, cell * sources
    left, top = 130, 150
    bar = left + width + 2 * _GAP
    right = bar + _GAP + 90
    picture = Image.new("RGB", (max(right, _LEAST_WIDTH), top + height + 120), _PAPER)
    draw = ImageDraw.Draw(picture)
    picture.paste(_cells(layer_map).resize((width, height), Image.Resampling.NEAREST), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_INK)
    _title(draw, layer_map, source, target)
    _ticks(draw, sources, targets, cell, left, top)
    _axis_name(picture, "source layer", (12, top, height))
    draw.text((left + width / 2, top + height + 76), "target layer", _INK, _font(_TEXT), anchor="mt")
    _colour_bar(picture, draw, bar, top, height)
    _chosen(draw, layer_map, cell, left, top)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=9)
    return file.getvalue()


def colour_of(value: float) -> tuple[int, int, int]:
    """A similarity's colour; below 0 (where debiasing can lead) as 0, above 1 as 1."""
    place = min(max(value, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    part = place - low
    red, green, blue = (
        round(before + part * (after - before))
        for before, after in zip(_STOPS[low], _STOPS[low + 1], strict=True)
    )
    return red, green, blue


def tick_step(layers: int, cell: int) -> int:
    """Number every n-th layer so that labels keep 44 px apart."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100) if step * cell >= 44 or step >= layers)


def _cells(layer_map: LayerMap) -> Image.Image:
    """One pixel a cell, source layer 0 at the bottom."""
    rows = reversed(layer_map.similarity)
    data = bytes(channel for row in rows for value in row for channel in colour_of(value))
    return Image.frombytes("RGB", (len(layer_map.layers), len(layer_map.similarity)), data)


def _title(draw: ImageDraw.ImageDraw, layer_map: LayerMap, source: str, target: str) -> None:
    room = draw.im.size[0] - 2 * _GAP
    names = f"{_name(source)} to {_name(target)}"
    if draw.textlength(names, font=_font(_TEXT)) > room:
        half = (room - draw.textlength(" to ", font=_font(_TEXT))) / 2
        names = " to ".join(_fitted(draw, _name(repo), _font(_TEXT), half) for repo in (source, target))
    draw.text((_GAP, 22), names, _INK, _font(_TEXT))
    said = (
        f"coverage {layer_map.coverage:.0%}: target layers whose best source layer is above "
        f"{layer_map.threshold:g}"
    )
    if draw.textlength(said, font=_font(_SMALL)) > room:
        said = f"coverage {layer_map.coverage:.0%} (CKA above {layer_map.threshold:g})"
    draw.text((_GAP, 64), said, _INK, _font(_SMALL))
    draw.text(
        (_GAP, 100), "dots: the source layer that each target layer is paired with", _INK, _font(_SMALL)
    )


def _ticks(draw: ImageDraw.ImageDraw, sources: int, targets: int, cell: int, left: int, top: int) -> None:
    font = _font(_SMALL)
    bottom = top + sources * cell
    for layer in range(0, targets, tick_step(targets, cell)):
        x = left + (layer + 0.5) * cell
        draw.line((x, bottom, x, bottom + _TICK), _INK, 2)
        draw.text((x, bottom + _TICK + 8), str(layer), _INK, font, anchor="mt")
    for layer in range(0, sources, tick_step(sources, cell)):
        y = bottom - (layer + 0.5) * cell
        draw.line((left - _TICK, y, left, y), _INK, 2)
        draw.text((left - _TICK - 8, y), str(layer), _INK, font, anchor="rm")


def _axis_name(picture: Image.Image, text: str, at: tuple[int, int, int]) -> None:
    """Text that runs upwards beside the map. at: (x, y, the axis' length in px)."""
    x, y, length = at
    label = Image.new("RGB", (180, 40), _PAPER)
    ImageDraw.Draw(label).text((90, 20), text, _INK, _font(_TEXT), anchor="mm")
    turned = label.transpose(Image.Transpose.ROTATE_90)
    picture.paste(turned, (x, max(y + (length - turned.height) // 2, y)))


def _colour_bar(picture: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int) -> None:
    data = bytes(channel for row in range(height) for channel in colour_of(1 - row / max(height - 1, 1)))
    picture.paste(Image.frombytes("RGB", (1, height), data).resize((_GAP, height)), (x, y))
    draw.rectangle((x - 1, y - 1, x + _GAP, y + height), outline=_INK)
    marks = (0.0, 0.5, 1.0) if height < 300 else (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    for value in marks:
        place = y + height - value * height
        draw.line((x + _GAP, place, x + _GAP + _TICK, place), _INK, 2)
        draw.text((x + _GAP + _TICK + 6, place), f"{value:.1f}", _INK, _font(_SMALL), anchor="lm")
    draw.text((x + _GAP / 2, y + height + 18), "CKA", _INK, _font(_SMALL), anchor="mt")


def _chosen(draw: ImageDraw.ImageDraw, layer_map: LayerMap, cell: int, left: int, top: int) -> None:
    """A white line with dark edges, and a dot a target layer: seen on every colour of the scale."""
    bottom = top + len(layer_map.similarity) * cell
    points = [
        (left + (target + 0.5) * cell, bottom - (source + 0.5) * cell)
        for target, source in enumerate(layer_map.layers)
    ]
    radius = min(max(3, cell // 7), 10)
    for colour, more in ((_INK, 2), (_PAPER, 0)):
        for before, after in pairwise(points):
            draw.line((*before, *after), colour, 2 + 2 * more)
        for x, y in points:
            reach = radius + more
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), colour)


def _name(repo_id: str) -> str:
    """Names come from strangers: one line of what can be printed."""
    return " ".join(escape_control_characters(repo_id).split())


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: _Font, room: float) -> str:
    """The text, with its middle left out when it is wider than `room` px."""
    if draw.textlength(text, font=font) <= room:
        return text
    keep = len(text) // 2
    while keep > 1 and draw.textlength(f"{text[:keep]}...{text[-keep:]}", font=font) > room:
        keep -= 1
    return f"{text[:keep]}...{text[-keep:]}"


def _font(size: int) -> _Font:
    """The font inside the library, so that no machine draws with another one."""
    return ImageFont.load_default(size)

"""Class names and palettes of the benchmark data sets.

Names and colors are the data sets' own, in the order of the training labels (ADE20K:
https://github.com/CSAILVision/sceneparsing, Cityscapes: https://github.com/mcordts/cityscapesScripts). Data sets
without colors use :func:`voc_palette`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import OptionError

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """Classes of a data set.

    Attributes:
        key: Name of the data set in code and file names.
        name: Its usual name.
        url: Its home page.
        classes: Name of each class; the index is the label.
        palette: Color of each class, red, green and blue from 0 to 255.
        hub_id: Its id on the Hugging Face Hub; None if it has none.
    """

    key: str
    name: str
    url: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    hub_id: str | None = None


def name_list(names: Any) -> list[str]:
    """List class names, which timm and transformers keep by label, in the order of the labels."""
    return [names[label] for label in sorted(names, key=int)] if isinstance(names, Mapping) else list(names)


def voc_palette(num_colors: int) -> tuple[Color, ...]:
    """Create the palette of the Pascal VOC development kit: black, then up to 255 distinct colors.

    The bits of a label go in turn to red, green and blue, from the highest bit of each color down.

    Raises:
        OptionError: If more than 256 colors are requested.
    """
    if num_colors > 256:
        raise OptionError(f"The palette has 256 colors, but {num_colors} were requested.")

    def channel(label: int, offset: int) -> int:
        return sum((label >> (3 * i + offset) & 1) << (7 - i) for i in range(3))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_colors))


def _label_set(key: str, name: str, url: str, classes: str, colors: str = "", hub_id: str | None = None) -> LabelSet:
    names = tuple(c.strip() for c in " ".join(classes.split()).split(","))
    rgb = tuple(bytes.fromhex(c) for c in colors.split())
    palette = tuple((c[0], c[1], c[2]) for c in rgb) or voc_palette(len(names))
    return LabelSet(key, name, url, names, palette, hub_id)


_LABEL_SETS = (
    _label_set(
        "ade20k",
        "ADE20K",
        "https://groups.csail.mit.edu/vision/datasets/ADE20K",
        """
        wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
        door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
        field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
        signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
        stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee
        table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
        boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
        television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
        buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool,
        barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave,
        pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
        ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
        """,
        """
        787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
        ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
        08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
        eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
        0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
        0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
        00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
        8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
        ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
        00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
        """,
        hub_id="scene_parse_150",
    ),
    _label_set(
        "cityscapes",
        "Cityscapes",
        "https://www.cityscapes-dataset.com",
        """
        road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person,
        rider, car, truck, bus, train, motorcycle, bicycle
        """,
        """
        804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046
        003c64 005064 0000e6 770b20
        """,
    ),
    _label_set(
        "coco_stuff164k",
        "COCO-Stuff 164k",
        "https://github.com/nightrome/cocostuff",
        """
        person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
        parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
        handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
        skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple,
        sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining
        table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
        refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch,
        bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes,
        clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
        floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel,
        ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper,
        pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof,
        rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
        structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
        wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
        """,
    ),
    _label_set(
        "voc2012",
        "Pascal VOC 2012",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
        """
        background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
        motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
        """,
    ),
    _label_set(
        "pascal_context",
        "Pascal Context",
        "https://cs.stanford.edu/~roozbeh/pascal-context",
        """
        aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat,
        ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground,
        horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep,
        shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window,
        wood
        """,
    ),
    _label_set(
        "isaid",
        "iSAID",
        "https://captain-whu.github.io/iSAID",
        """
        background, ship, storage tank, baseball diamond, tennis court, basketball court, ground track field,
        bridge, large vehicle, small vehicle, helicopter, swimming pool, roundabout, soccer ball field, plane,
        harbor
        """,
        """
        000000 00003f 003f3f 003f00 003f7f 003fbf 003fff 007f3f 007f7f 00007f 0000bf 0000ff 00bf7f 007fbf 007fff
        00649b
        """,
    ),
)

LABEL_SETS: dict[str, LabelSet] = {labels.key: labels for labels in _LABEL_SETS}

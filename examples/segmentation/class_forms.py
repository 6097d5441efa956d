"""The forms in which people and tools write lists of classes, and how a list's form is found.

Every line of a list has the same form, which the whole list tells. Blank lines are skipped, and so are comments: lines
that begin with `# `. Cells stand between spaces, tabs or one of `, ; | : = ->`, and may have the quotes of CSV.

    road                    a name: the class's value is its place in the list, from 0
    1 road   1: road   1,road   road,1   road 1              a name and its value in the label files
    #ff0000 road   255 0 0 road   road 255 0 0   road,255,0,0   road:255,0,0::     a name and its color in label files
    255 person #dc143c   1 road 255 0 0   1,road,255,0,0     a name, its value, and its color in pictures
    road #804080            a name, and its color in pictures

The first line may name the columns, as in `Pixel Value, Class`, `id,name` and `name,r,g,b`; their order is free then.
Labelme's `__ignore__` before all names has no place.

A name may end with a number itself. `road 1`, `car 0` are names with values only if every line ends with a number, no
number occurs twice, and no two names are equal without it; `lane 1`, `lane 2` are therefore names. Lists of which
nobody can tell what they mean are refused: only some lines begin with a number (`3 doors` beside `road`), only some end
with one that is not their place, or numbers that are not values (`1. road`). With a value in front of every name
(`0 car`, `1 3 doors`, `2 lane 1`), the rest of the line is the name.
"""

import csv
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .recipe import DataError

Color = tuple[int, int, int]
Form = Literal["name", "value", "color"]  # what stands for a class in the label files: its place, a value, or a color


@dataclass(frozen=True)
class Entry:
    """What a line says of a class."""

    number: int  # of the line in the file, from 1
    text: str
    name: str
    value: int | None = None
    color: Color | None = None  # in the label files or, with a value or by place, in pictures


_HEX_AND_NAME = re.compile(r"(#[0-9a-fA-F]{6})\s+([^\s,;|:=].*)")
_NAME_AND_HEX = re.compile(r"(\S.*?)\s+(#[0-9a-fA-F]{6})")
_TRIPLE = r"[\[(]?(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})[\])]?"  # 255,0,0 or (255, 0, 0)
_SPACED = re.compile(r"((?:\d+\s+)*)([^\s,;|:=](?:.*?\S)??)((?:\s+\d+)*)")  # numbers, a name, numbers
_SEPARATORS = ("\t", ";", ",", "|", "->", "=>", "=", ":", " - ")
_COLUMNS = _SEPARATORS[:4]  # which names have in quotes only, if all have them
# Kinds of cells, v for a number, c for a color and n for a name: the columns of value, name and color
_ORDERS: dict[str, tuple[int | None, int, tuple[int, ...]]] = {
    **{"vn": (0, 1, ()), "nv": (1, 0, ()), "cn": (None, 1, (0,)), "nc": (None, 0, (1,))},
    **{"vvvn": (None, 3, (0, 1, 2)), "nvvv": (None, 0, (1, 2, 3)), "vvvvn": (0, 4, (1, 2, 3))},
    **{"vnc": (0, 1, (2,)), "vcn": (0, 2, (1,)), "nvc": (1, 0, (2,)), "vnvvv": (0, 1, (2, 3, 4))},
    **{"vnvvvv": (0, 1, (2, 3, 4)), "vvvvvn": (0, 5, (1, 2, 3))},  # with alpha
}
_OPAQUE = {"vvvvn": (None, 4, (0, 1, 2)), "nvvvv": (None, 0, (1, 2, 3))}  # colors whose fourth number is always 255
# A number that may be a value, but not as values are written: 1. road, 1) road, 0x1 road, and 1,road beside other lines
_DOUBTFUL = re.compile(
    r"\d+[.)]\s+\D.*|\d+\.0\s.*|0x[0-9a-fA-F]+\s.*|(\d+\s*[,;|:=]\s*)+[^\d\s].*|.*[^\d\s]\s*[,;|:=]\s*\d+"
)

# A number and a name, or a name and a number, in forms that nobody reads for sure: 1-road, (1) road, road [1]
_NUMBERED = re.compile(r"[\[(<{]?\d+\s*[^\w\s]+\s*\D.*|\d+_\D.*|.*\D\s*[\[(<]\d+[\])>]")

# Names of columns, in lower case with spaces
_NAMES = {"class", "class name", "classname", "name", "label", "label name", "labelname", "category", "category name"}
_NAMES |= {"title", "object", "classes", "names", "labels", "class names", "label names"}
_PLURALS = {"classes", "names", "labels", "class names", "label names", "class name", "classname", "label name"}
_VALUES = {"", "value", "pixel value", "pixel", "id", "index", "idx", "class id", "classid", "class index", "label id"}
_VALUES |= {"labelid", "label value", "class value", "category id", "number", "code", "gray", "grey", "gray value"}
_VALUES |= {
    "grayscale",
    "train id",
    "trainid",
    "label number",
    "values",
    "pixel values",
    "class number",
    "mask value",
    "no",
    "nr",
}
_COLORS = {
    "color",
    "colour",
    "rgb",
    "hex",
    "color rgb",
    "rgb color",
    "hex color",
    "color hex",
    "hex code",
    "color code",
}
_CHANNELS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_OTHERS = {
    "a",
    "alpha",
    "count",
    "pixels",
    "ratio",
    "train",
    "val",
    "stuff",
    "parts",
    "actions",
    "supercategory",
    "isthing",
    "isstuff",
}  # which are not read
_KNOWN = _NAMES | _VALUES | _COLORS | _CHANNELS.keys() | _OTHERS


def read_entries(path: Path) -> tuple[Form, list[Entry]]:
    """Read a list of classes: its form, and what each line says.

    Raises:
        DataError: If it is not text in UTF-8, or its form is not known or not certain.
    """
    lines = _read_lines(path)
    if len(lines) > 1 and all(text[-1] in ",;" for _, text in lines[:-1]):  # pasted from a program
        lines = [(number, text.rstrip(",;").rstrip()) for number, text in lines]
    header = lines[0] if lines and _is_header(lines[0][1]) else None
    body = lines[1:] if header else lines
    if body and all(re.match(r"[-*] [^\d\s]", text) for _, text in body):  # a list in YAML or Markdown
        body = [(number, text[2:].strip()) for number, text in body]
    if not body:
        return "name", []
    form, entries = _read_table(path, header, body) or _read_spaced(path, header, body)
    if all(entry.name[0] == entry.name[-1] in "\"'" and len(entry.name) > 2 for entry in entries):
        entries = [replace(entry, name=entry.name[1:-1].strip()) for entry in entries]
    if form == "color":
        return form, entries
    return form, [_with_color(entry) for entry in entries]


def _with_color(entry: Entry) -> Entry:
    found = _NAME_AND_HEX.fullmatch(entry.name)
    return replace(entry, name=found[1], color=_color(found[2])) if found else entry


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank, without comments."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content:
        raise DataError(f"{path} is UTF-16 text: save it as UTF-8, which editors offer as the encoding of a file.")
    try:
        text = content.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8.") from None
    lines = []
    text = unicodedata.normalize("NFC", text)  # macOS writes NFD
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if re.match(r"#\s+[0-9a-fA-F]{6}\s+\S", line):
            raise _error(path, number, line, f"is a comment or a color: write '#{line[1:].strip()}' for a color.")
        if line.startswith("#") and not re.match(r"#[0-9a-fA-F]{6}(\s*[,;|:=]\s*|\s+)\S", line):
            if re.match(r"#[^\s#]", line):
                why = "does not give a color and a name, such as '#ff0000 road'; comments begin with '# '."
                raise _error(path, number, line, why)
        elif line:
            if re.search(r"\s#\s", line):
                raise _error(path, number, line, "ends with a comment: give comments lines of their own.")
            lines.append((number, line))
    if lines and lines[0][1][0] in "{[<" and not re.match(rf"{_TRIPLE}\W", lines[0][1]):
        raise _error(path, *lines[0], "is not a class: write one class per line, such as '0 road' or 'road'.")
    return lines


def _error(path: Path, number: int, text: str, why: str) -> DataError:
    return DataError(f"{path}, line {number}: {text!r} {why}")


def _mixed(path: Path, number: int, text: str, other: int, example: str, first: bool = False) -> DataError:
    hint = f" If line {other} is a header, remove it." if first else ""
    return _error(
        path, number, text, f"has another form than line {other}: begin every line with {example}, or none.{hint}"
    )


def _titles(text: str) -> list[str]:
    """Names of columns as `_KNOWN` has them, without quotes; a colon ends a header in YAML."""
    separator = next((s for s in _SEPARATORS[:-1] if s in text.rstrip(":")), None)
    cells = _cells(text.rstrip(":"), separator) if separator else [text.rstrip(":")]
    return [" ".join(re.sub(r"[\"'_-]", " ", cell).lower().split()) for cell in cells]


def _is_header(text: str) -> bool:
    titles = _titles(text)
    if len(titles) == 1 and titles[0] not in _PLURALS:
        words, known = titles[0].split(), {word for title in _KNOWN for word in title.split()}
        named = any(word in _NAMES for word in words)
        return len(words) > 1 and named and all(word in known for word in words) and words[0] != words[-1]
    return all(title in _KNOWN for title in titles) and any(title in _NAMES for title in titles)


def _cells(text: str, separator: str) -> list[str]:
    cells = text.split(separator)
    if len(separator) == 1:
        cells = next(csv.reader([text], delimiter=separator, skipinitialspace=True))
    cells = [cell.strip() for cell in cells]
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    return cells


def _color(text: str) -> Color | None:
    """The color in `#ff0000`, `255 0 0`, `255,0,0` or `(255, 0, 0)`; None if there is none."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return tuple(bytes.fromhex(text[1:]))
    found = re.fullmatch(r"(?:rgb)?[\[(]?\s*(\d+)[,\s]+(\d+)[,\s]+(\d+)\s*[\])]?", text)
    numbers = tuple(map(int, found.groups())) if found else ()
    return numbers if numbers and max(numbers) <= 255 else None


def _kind(cells: Sequence[str]) -> str:
    if all(re.fullmatch(r"\d+", cell) for cell in cells):
        return "v"
    return "c" if all(map(_color, cells)) else "n"


def _read_table(
    path: Path, header: tuple[int, str] | None, lines: Sequence[tuple[int, str]]
) -> tuple[Form, list[Entry]] | None:
    """Read lines whose cells stand between separators; None if their cells tell no value or color."""
    keys_first = all(_HEX_AND_NAME.fullmatch(text) or re.match(r"\d+\s+[^\s,;|:=]", text) for _, text in lines)
    for separator in _SEPARATORS:
        if not all(separator in text for _, text in lines):
            continue
        rows = [_cells(text, separator) for _, text in lines]
        if separator == ":" and all(len(row) > 1 and _color(row[1]) for row in rows):
            rows = [row[:2] for row in rows]  # CVAT's parts and actions
        titles = _titles(header[1]) if header and separator in header[1].rstrip(":") else None
        if len({*map(len, rows)}) > 1 and not titles:  # the name holds the separator too
            rows = [[cell.strip() for cell in text.split(separator, 1)] for _, text in lines]
            if _kind([row[0] for row in rows]) == "n":
                rows = [[cell.strip() for cell in text.rsplit(separator, 1)] for _, text in lines]
        if titles:
            for (number, text), row in zip(lines, rows):
                if len(row) > len(titles):
                    raise _error(path, number, text, f"has more columns than line {header[0]}: put names in quotes.")
            rows = [row + [""] * (len(titles) - len(row)) for row in rows]
        kinds = "".join(_kind(column) for column in zip(*rows))
        order = _named_order(path, header, titles, rows, kinds) if titles else _order(kinds, rows)
        if separator == ":" and kinds == "nv" and not titles and any(row[0][-1:].isdigit() for row in rows):
            continue  # a ratio, such as 16:9
        if order is None and kinds in ("vv", "vvn", "vnv", "vnn") and not keys_first:
            if re.match(rf"{_TRIPLE}\s", lines[0][1]):
                continue  # a color before a name
            raise _error(path, *lines[0], "has other columns than a value and a name: write such as '1,road'.")
        # after a value and a space, separators belong to the name
        if order and not (keys_first and kinds[0] == "n"):
            return _entries(path, lines, rows, order)
    return None


def _order(kinds: str, rows: Sequence[Sequence[str]]) -> tuple[int | None, int, tuple[int, ...]] | None:
    if kinds in _OPAQUE and {row[3 + (kinds[0] == "n")] for row in rows} == {"255"}:
        return _OPAQUE[kinds]
    return _ORDERS.get(kinds)


def _named_order(
    path: Path, header: tuple[int, str], titles: Sequence[str], rows: Sequence[Sequence[str]], kinds: str
) -> tuple[int | None, int, tuple[int, ...]]:
    """Columns of value, name and color, by their titles."""
    names = [place for place, title in enumerate(titles) if title in _NAMES and kinds[place] != "v"]
    values = [place for place, title in enumerate(titles) if title in _VALUES | _NAMES and kinds[place] == "v"]
    channels = sorted((_CHANNELS[title], place) for place, title in enumerate(titles) if title in _CHANNELS)
    colors = [place for place, title in enumerate(titles) if title in _COLORS and kinds[place] == "c"]
    found = tuple(place for _, place in channels) if len(channels) == 3 else tuple(colors[:1])
    if found and len(values) == 1 and not titles[values[0]]:
        values = []  # a table's own numbering
    if not names or len(values) > 1 or not (values or found):
        raise _error(
            path, *header, "names the columns, and they do not give each name one value or color: use two columns, "
            "such as 'value,name' and '0,road', or 'name,r,g,b' and 'road,255,0,0'."
        )  # fmt: skip
    name = max(names, key=lambda place: ("name" in titles[place], -place))
    return (values[0] if values else None), name, found


def _entries(
    path: Path,
    lines: Sequence[tuple[int, str]],
    rows: Sequence[Sequence[str]],
    order: tuple[int | None, int, tuple[int, ...]],
) -> tuple[Form, list[Entry]]:
    value, name, colors = order
    entries = []
    for (number, text), row in zip(lines, rows):
        color = _color(" ".join(row[place] for place in colors)) if colors else None
        if colors and color is None:
            raise _error(path, number, text, "gives no color: it is three numbers from 0 to 255, or like '#ff0000'.")
        if not row[name]:
            raise _error(path, number, text, "gives no name: write '-' to leave its pixels out.")
        entries.append(Entry(number, text, row[name], None if value is None else int(row[value]), color))
    _refuse_numbers(path, entries, value is not None and value > name)
    return "color" if value is None else "value", entries


def _refuse_numbers(path: Path, entries: Sequence[Entry], value_last: bool) -> None:
    """Raise a DataError if all names begin or end with numbers, which are columns of their own then."""
    form = r"\d+\s.*" if not value_last else r"\d+\s.*|.*\s\d+"
    if len(entries) > 1 and (
        all(re.fullmatch(form, entry.name) for entry in entries)
        or all(re.fullmatch(r".*\s\d+\s+\d+", entry.name) for entry in entries)
        or any("\t" in entry.name for entry in entries)
    ):
        entry = entries[0]
        raise _error(
            path, entry.number, entry.text, f"has more columns than a value, a name and a color: leave those, or write "
            f"'\"{entry.name}\"' if that is the name."
        )  # fmt: skip


def _read_spaced(
    path: Path, header: tuple[int, str] | None, lines: Sequence[tuple[int, str]]
) -> tuple[Form, list[Entry]]:
    """Read lines of names, with spaces between them and their values or colors."""
    numbers, texts = zip(*lines)
    by_hex = [_HEX_AND_NAME.fullmatch(text) for text in texts]
    if all(by_hex):
        return "color", [Entry(*line, found[2], color=_color(found[1])) for line, found in zip(lines, by_hex)]
    plain = [re.sub(rf"^{_TRIPLE}(?=\s+\S)|(?<=\s){_TRIPLE}$", _spread, text) for text in texts]
    parts = [_SPACED.fullmatch(text) for text in plain]
    before = [len(found[1].split()) if found else 0 for found in parts]
    after = [len(found[3].split()) if found else 0 for found in parts]
    forms = ["color" if color else "value" if count else "name" for color, count in zip(by_hex, before)]
    if len({*forms}) > 1 or (max(before) > 2) != (min(before) > 2):
        kinds = [*zip(forms, (count > 2 for count in before))]
        place = next(place for place, kind in enumerate(kinds) if kind != kinds[0])
        example = "a color, such as '#ff0000 road'" if "color" in forms else "a value, such as '255 person'"
        raise _mixed(path, *lines[place], numbers[0], example, place == 1 and kinds[0][0] == "name")
    if min(before) > 2 or (min(before) and min(after) > 2):
        first, last = (min(min(before), 5), 0) if min(before) > 2 else (1, min(min(after), 4))
    elif min(before):
        first, last = 1, 0
        for line, text in zip(lines, plain):
            if re.fullmatch(r"\d+\s+\d+\s+\d+", text):
                raise _error(path, *line, "gives a color without a name: write such as '255 0 0 road'.")
    else:
        first, last = 0, _numbers_after(path, header, lines, parts, after)
    if not first and not last:
        return "name", _names(path, header, lines)
    rows = [_split(text, first, last) for text in plain]
    order = _order("v" * first + "n" + "v" * last, rows)
    if order is None:
        raise _error(path, *lines[0], "has four numbers after its name: write such as '0 road 255 0 0'.")
    return _entries(path, lines, rows, order)


def _spread(found: re.Match[str]) -> str:
    return " ".join(filter(None, found.groups()))


def _split(text: str, first: int, last: int) -> list[str]:
    """Cells of a line: numbers, a name of any number of words, numbers."""
    *numbers, rest = text.split(maxsplit=first)
    return [*numbers, *(rest.rsplit(maxsplit=last) if last else [rest])]


def _numbers_after(
    path: Path,
    header: tuple[int, str] | None,
    lines: Sequence[tuple[int, str]],
    parts: Sequence[re.Match[str] | None],
    after: Sequence[int],
) -> int:
    """How many numbers at the ends of the lines are not parts of the names: 1 for values, 3 or 4 for colors, or 0."""
    if min(after) > 2:
        return min(min(after), 4)
    values = [int(found[0].split()[-1]) if count else None for found, count in zip(parts, after)]
    names = [text.rsplit(maxsplit=1)[0] if count else text for (_, text), count in zip(lines, after)]
    names = [name for name in names if name != "-"]
    if not any(after) or (len({*names}) < len(names) and not header):
        return 0
    if min(after) and max(after) < 3:
        for place, value in enumerate(values):
            if value in values[:place] and not header:
                first = lines[values.index(value)][0]
                raise _error(
                    path, *lines[place], f"ends with the number of line {first}: begin every line with a value of its "
                    f"own, such as '0 {lines[0][1]}', if these are names."
                )  # fmt: skip
        return 1
    if all(value in (None, place) for place, value in enumerate(values)) and not header:
        return 0  # the same as values and as places
    with_number = next(place for place, count in enumerate(after) if count)
    without = after.index(min(after))
    raise _error(
        path, *lines[with_number], f"ends with a number, and line {lines[without][0]} does not: begin every line with "
        f"its value, such as '{values[with_number]} {names[0]}', or with its place, such as '0 {lines[0][1]}'."
    )  # fmt: skip


def _names(path: Path, header: tuple[int, str] | None, lines: Sequence[tuple[int, str]]) -> list[Entry]:
    """Read lines that are names."""
    doubtful = [bool(_DOUBTFUL.fullmatch(text)) for _, text in lines]
    if len(lines) > 2 and not doubtful[0] and all(doubtful[1:]):
        raise _error(path, *lines[0], "seems to name the columns: write such as 'value,name' or 'name,r,g,b' there.")
    for number, text in lines:
        if _DOUBTFUL.fullmatch(text):
            raise _error(
                path, number, text, "may be a name with a value, but not every line is: write such as '1 road' in "
                "every line, with its value in the label files."
            )  # fmt: skip
    if len(lines) > 1 and all(_NUMBERED.fullmatch(text) for _, text in lines):
        raise _error(
            path,
            *lines[0],
            "has a number, as all lines have: write such as '1 road' if it is the value, or "
            f"'0 {lines[0][1]}' and so on if it is part of the name.",
        )
    if header and len(_titles(header[1])) > 1:
        raise _error(path, *header, "names several columns, which the lines below do not have: remove it.")
    if all(text[-1] in ":,;" for _, text in lines):  # cells that are empty
        lines = [(number, text.rstrip(":,; ")) for number, text in lines]
    columns = [min(len(_cells(text, separator)) for _, text in lines) for separator in _COLUMNS]
    if max(columns) > 1 or all(re.search(r":\s|\s\d*\.\d", text) for _, text in lines):
        raise _error(
            path, *lines[0], "has columns, as all lines have, that do not give each name one value or color of whole "
            "numbers: leave those of value, name and color, with the header 'value,name' or 'name,r,g,b', or put names "
            "in quotes."
        )  # fmt: skip
    first, text = lines[0]
    if text.lower() in _NAMES - _PLURALS:
        raise _error(
            path, first, text, f"is a header or a class: remove it, or write '0 {text}' and so on, with values."
        )
    return [Entry(number, text, text) for number, text in (lines[1:] if text == "__ignore__" else lines)]

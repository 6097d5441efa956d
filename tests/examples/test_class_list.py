"""Class lists as people and tools write them: read as what they say, or refused with the form that is meant."""

import pytest

from segmentation.class_list import CLASS_LISTS, find_class_list, read_classes
from segmentation.recipe import DataError


def read(tmp_path, text, name="classes.txt", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_classes(path, **options)


def meanings(found):
    """Value or color in the label files, by class."""
    if found.mapping is None:
        return {name: label for label, name in enumerate(found.classes)}
    keys = {}
    for label, name in enumerate(found.classes):
        (keys[name],) = (found.mapping == label).nonzero()[0].tolist()
        if found.by_color:
            keys[name] = tuple(keys[name] >> shift & 255 for shift in (0, 8, 16))
    return keys


ROAD_AND_CAR = {"road": 7, "car": 0}


@pytest.mark.parametrize(
    "lines",
    [
        ("7 road", "0 car"),
        ("7: road", "0: car"),
        ("7 : road", "0 : car"),
        ("7,road", "0,car"),
        ("7, road", "0, car"),
        ('"7","road"', '"0","car"'),
        ("7;road", "0;car"),
        ("7\troad", "0\tcar"),
        ("7 \t road", "0 \t car"),
        ("7=road", "0=car"),
        ("7 = road", "0 = car"),
        ("7|road", "0|car"),
        ("7 - road", "0 - car"),
        ("7 -> road", "0 -> car"),
        ('7: "road",', '0: "car"'),
        ("road 7", "car 0"),
        ("road,7", "car,0"),
        ("road, 7", "car, 0"),
        ("road: 7", "car: 0"),
        ("road\t7", "car\t0"),
        ("road = 7", "car = 0"),
        ("Pixel Value, Class", "7, road", "0, car"),
        ("Class,Pixel Value", "road,7", "car,0"),
        ("id,name", "7,road", "0,car"),
        ("label_id;label_name", "7;road", "0;car"),
        ("id\tclass", "7\troad", "0\tcar"),
        ("id name", "7 road", "0 car"),
        ("name value", "road 7", "car 0"),
        ("label,name", "7,road", "0,car"),
        (",name", "7,road", "0,car"),
        ("id,name,supercategory", "7,road,flat", "0,car,vehicle"),
        ('"Value","Name"', '"7","road"', '"0","car"'),
        ("names:", "  7: road", "  0: car"),
        ("# value, name", "7, road", "", "# vehicles", "0, car"),
        ("7 road #102030", "0 car"),
    ],
)
def test_values_are_read_in_every_form(tmp_path, lines):
    for end in ("\n", "\r\n"):
        found = read(tmp_path, end.join(lines) + end)
        assert (meanings(found), found.by_color) == (ROAD_AND_CAR, False)
        assert found.classes == ("road", "car")


COLORS = {"road": (128, 0, 16), "car": (0, 0, 0)}


@pytest.mark.parametrize(
    "lines",
    [
        ("#800010 road", "#000000 car"),
        ("#800010,road", "#000000,car"),
        ("128 0 16 road", "0 0 0 car"),
        ("128 0 16\troad", "0 0 0\t\tcar"),
        ("128\t0\t16\troad", "0\t0\t0\tcar"),
        ("128,0,16,road", "0,0,0,car"),
        ("128, 0, 16, road", "0, 0, 0, car"),
        ("128,0,16 road", "0,0,0 car"),
        ("128;0;16;road", "0;0;0;car"),
        ("(128, 0, 16) road", "(0, 0, 0) car"),
        ("128 0 16: road", "0 0 0: car"),
        ("128 0 16 255 road", "0 0 0 255 car"),
        ("road 128 0 16", "car 0 0 0"),
        ("road 128,0,16", "car 0,0,0"),
        ("road,128,0,16", "car,0,0,0"),
        ("road: 128, 0, 16", "car: 0, 0, 0"),
        ("road: (128, 0, 16)", "car: (0, 0, 0)"),
        ("road: [128, 0, 16]", "car: [0, 0, 0]"),
        ("road,#800010", "car,#000000"),
        ("name,r,g,b", "road,128,0,16", "car,0,0,0"),
        ("name, r, g, b", "road, 128, 0, 16", "car, 0, 0, 0"),
        ("r,g,b,name", "128,0,16,road", "0,0,0,car"),
        ("Class,R,G,B,A", "road,128,0,16,255", "car,0,0,0,255"),
        ("r g b name", "128 0 16 road", "0 0 0 car"),
        (",name,r,g,b", "0,road,128,0,16", "1,car,0,0,0"),
        ('"name","color"', '"road","128,0,16"', '"car","0,0,0"'),
        ("name,hex", "road,#800010", "car,#000000"),
        ("# label:color_rgb:parts:actions", "road:128,0,16::", "car:0,0,0::"),
        ("# label:color_rgb:parts:actions", "road:128,0,16::", "car:0,0,0:door,wheel:drive"),
    ],
)
def test_colors_are_read_in_every_form(tmp_path, lines):
    found = read(tmp_path, "\r\n".join(lines))
    assert (meanings(found), found.by_color) == (COLORS, True)
    assert found.palette == tuple(COLORS.values())


@pytest.mark.parametrize(
    "lines",
    [
        ("7 road #800010", "0 car #000000"),
        ("7 128 0 16 road", "0 0 0 0 car"),
        ("7 road 128 0 16", "0 car 0 0 0"),
        ("7,road,128,0,16", "0,car,0,0,0"),
        ("id,name,r,g,b", "7,road,128,0,16", "0,car,0,0,0"),
        ("name,id,r,g,b", "road,7,128,0,16", "car,0,0,0,0"),
        ("id,name,color", "7,road,#800010", "0,car,#000000"),
    ],
)
def test_colors_beside_values_are_for_pictures(tmp_path, lines):
    found = read(tmp_path, "\n".join(lines))
    assert (meanings(found), found.by_color, found.palette) == (ROAD_AND_CAR, False, tuple(COLORS.values()))


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("lane 1\nlane 2\nlane 3\n", ("lane 1", "lane 2", "lane 3")),
        ("lane 3\nlane 1\nroad 2\n", ("lane 3", "lane 1", "road 2")),
        ("background\nlane 1\nlane 2\n", ("background", "lane 1", "lane 2")),
        ("background\nlane 1\nroad\n", ("background", "lane 1", "road")),  # 1 is its place, too
        ("0\n1\n", ("0", "1")),
        ("# my classes\nroad\n\n# vehicles\ncar\n", ("road", "car")),
        ("classes\nroad\ncar\n", ("road", "car")),
        ("class_name\nroad\ncar\n", ("road", "car")),
        ("names:\n- road\n- car\n", ("road", "car")),
        ("'road',\n'car',\n'sky'\n", ("road", "car", "sky")),
        ('"road"\n"car"\n', ("road", "car")),
        ("road:::\ncar:::\n", ("road", "car")),
        ("__ignore__\n_background_\nroad\n", ("_background_", "road")),  # labelme counts from -1
        ("_background_\nroad\n", ("_background_", "road")),
        ("building;edifice\nsky\n", ("building;edifice", "sky")),
        ('"car, red"\n"car, blue"\n', ("car, red", "car, blue")),
        ("car, red\nsky\n", ("car, red", "sky")),
        ("vehicle:car\nvehicle:bus\n", ("vehicle:car", "vehicle:bus")),
        ("screen 4:3\nscreen 16:9\n", ("screen 4:3", "screen 16:9")),
        ("red\ngreen\nblue\n", ("red", "green", "blue")),
        (
            "\N{LATIN SMALL LETTER A WITH DIAERESIS}cker\nWald\n",
            ("\N{LATIN SMALL LETTER A WITH DIAERESIS}cker", "Wald"),
        ),
    ],
)
def test_names_are_what_stands_there(tmp_path, text, classes):
    found = read(tmp_path, text)
    assert (found.classes, found.mapping, found.by_color) == (classes, None, False)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("0 car, red\n1 car: blue 2\n", {"car, red": 0, "car: blue 2": 1}),
        ("0 car, 1\n1 van, 2\n", {"car, 1": 0, "van, 2": 1}),
        ("1,car, red\n0,sky\n", {"car, red": 1, "sky": 0}),
        ("1: size: 3\n0: sky\n", {"size: 3": 1, "sky": 0}),
        ('1,"car, red"\n0,sky\n', {"car, red": 1, "sky": 0}),
        ("1 3 doors\n0 car\n2 lane 1\n", {"3 doors": 1, "car": 0, "lane 1": 2}),
        ("1,lane 1\n0,car\n", {"lane 1": 1, "car": 0}),
        ("0,a\n255,-\n3,b\n", {"a": 0, "b": 3}),
        ("a 0\n- 255\nb 3\n", {"a": 0, "b": 3}),
        ("-,255\na,0\nb,3\n", {"a": 0, "b": 3}),
    ],
)
def test_after_a_value_the_rest_of_the_line_is_the_name(tmp_path, text, classes):
    assert meanings(read(tmp_path, text)) == classes


@pytest.mark.parametrize(
    "lines", [("1 Left 70 130 180 0", "2 Right 0 0 80 0"), ("1 70 130 180 255 Left", "2 0 0 80 255 Right")]
)
def test_alpha_beside_values_and_colors_is_not_read(tmp_path, lines):
    found = read(tmp_path, "\n".join(lines))
    assert meanings(found) == {"Left": 1, "Right": 2} and found.palette == ((70, 130, 180), (0, 0, 80))


def test_a_table_of_more_columns_is_read_by_its_header(tmp_path):
    text = "Idx\tRatio\tTrain\tName\n1\t0.1576\t11664\twall\n2\t0.1072\t6046\tbuilding, edifice\n"
    assert meanings(read(tmp_path, text)) == {"wall": 1, "building, edifice": 2}


def test_names_in_quotes_may_begin_and_end_with_numbers(tmp_path):
    assert meanings(read(tmp_path, '0 "3 doors"\n1 "4 doors"\n')) == {"3 doors": 0, "4 doors": 1}


def test_names_after_a_color_may_end_with_numbers(tmp_path):
    found = read(tmp_path, "128 0 0 lane 1\n64 0 0 lane 2\n")
    assert meanings(found) == {"lane 1": (128, 0, 0), "lane 2": (64, 0, 0)}


NUMBERED = [
    *("1-road\n2-sky\n", "1.road\n2.sky\n", "1)road\n2)sky\n", "(1) road\n(2) sky\n", "1> road\n2> sky\n"),
    *("1/road\n2/sky\n", "1_road\n2_sky\n", "road (1)\nsky (2)\n", "road [1]\nsky [2]\n"),
    "0\N{FULLWIDTH COLON}road\n1\N{FULLWIDTH COLON}sky\n",
]
TOO_MANY_COLUMNS = [
    *("7\t0\troad\n8\t1\tsky\n", "1\troad\tflat\n2\tsky\tsky\n", "7 0 road\n8 1 sky\n", "road 7 0\nsky 8 1\n"),
    '1 255 0 0 1 1 1 "Liver"\n2 0 255 0 1 1 1 "Kidney"\n',
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road\n3 doors\n", "line 2: '3 doors' has another form than line 1: begin every line with a value, such as"),
        ("3: doors\nroad\n", "line 1: '3: doors' may be a name with a value.* '1 road' in every line"),
        ("1,road\n2;car\n", "line 1: '1,road' may be a name with a value"),
        ("1: road\n2 car\n", "line 2: '2 car' has another form than line 1"),
        ("1 road\n2: car\n", "line 2: '2: car' has another form than line 1"),
        ("1. road\n2. car\n", "line 1: '1. road' may be a name with a value"),
        ("1) road\n2) car\n", "may be a name with a value"),
        ("1.0 road\n2.0 car\n", "may be a name with a value"),
        ("0x1 road\n0x2 car\n", "may be a name with a value"),
        ("road 1\ncar\n", "line 1: 'road 1' ends with a number, and line 2 does not: .* '1 road', .* '0 road 1'"),
        ("road 1\ncar 1\n", "line 2: 'car 1' ends with the number of line 1"),
        ("road,1\ncar\n", "line 1: 'road,1' may be a name with a value"),
        ("lane,1\nlane,2\n", "line 2: 'lane,2' repeats the name of line 1"),
        ("128 0 0 road\n1 car\n", "line 2: '1 car' has another form than line 1"),
        ("128 0 0\n0 0 0\n", "line 1: '128 0 0' gives a color without a name"),
        ("300 0 0 road\n0 0 0 car\n", "line 1: .* gives no color: it is three numbers from 0 to 255"),
        ("name,r,g,b\nroad,300,0,0\ncar,0,0,0\n", "line 2: .* gives no color"),
        ("128 0 0 road\n128 0 0 car\n", "line 2: '128 0 0 car' repeats the color of line 1"),
        ("1: road\n1: car\n", "line 2: '1: car' repeats the value of line 1"),
        ("1,road\n2,road\n", "line 2: '2,road' repeats the name of line 1"),
        ("0,road\n70000,car\n", "line 2: the value 70000 is larger"),
        ("name\nroad\ncar\n", "line 1: 'name' is a header or a class: remove it, or write '0 name'"),
        ("Klasse,Wert\nroad,1\ncar,0\n", "line 1: .* seems to name the columns"),
        (
            "Wert Klasse\n1 road\n0 car\n",
            "line 2: '1 road' has another form than line 1.* If line 1 is a header, remove",
        ),
        ("id,name\nroad\ncar\n", "line 1: 'id,name' names several columns, which the lines below do not have"),
        ("id,trainId,name\n7,0,road\n8,1,car\n", "line 1: .* names the columns, and they do not give"),
        ("value,id,name\n7,0,road\n8,1,car\n", "line 1: .* do not give each name one value or color: use two columns"),
        ("0,7,road\n1,8,car\n", "line 1: '0,7,road' has other columns than a value and a name"),
        ("#road\ncar\nsky\n", "line 1: '#road' does not give a color and a name.*comments begin with '# '"),
        ("#ff00O0 road\n#000000 car\n", "line 1: '#ff00O0 road' does not give a color"),
        ("# ff0000 road\n# 000000 car\n", "line 1: .* is a comment or a color: write '#ff0000 road'"),
        ("road # the main one\ncar\n", "line 1: .* ends with a comment"),
        ('{"road": 1,\n"car": 0}\n', "line 1: .* write one class per line"),
        ("1,\n2,car\n", "gives no name: write '-'|may be a name"),
        ("-1 road\n0 car\n", "line 2: '0 car' has another form than line 1"),
        ("# nothing\n", "names 0 classes"),
        (
            "name,id,trainId\nroad,7,0\nsky,8,1\n",
            "line 1: .* names the columns, and they do not give each name one value",
        ),
        ("Name,Description\nroad,a road\nsky,the sky\n", "line 1: .* has columns"),
        ("Class;Farbe\nroad;#ff0000\nsky;#00ff00\n", "line 1: .* has columns"),
        ("Name: Note\nroad: red\nsky: blue\n", "line 1: .* has columns"),
        ("road\tStreet\nsky\tHeaven\n", "line 1: .* has columns"),
        ("0.1\t11\t1\twall\n0.2\t60\t0\tsky\n", "line 1: .* has columns"),
        ("road,1.0,0,0\nsky,0,1.0,0\n", "line 1: .* color of whole numbers"),
        ("road 1.0 0 0\nsky 0 1.0 0.5\n", "line 1: .* color of whole numbers"),
        ("car, red\ncar, blue\n", "line 1: .* put names in quotes"),
        *((text, "line 1: .* has a number, as all lines have: write such as '1 road'") for text in NUMBERED),
        *((text, "line 1: .* has more columns than a value, a name and a color") for text in TOO_MANY_COLUMNS),
        ("Klasse,Wert\nroad,1\nsky,2\n", "line 1: .* seems to name the columns"),
        ("255 void\n0 road\n1 sky\n", "line 1: '255 void' would be a class: write '255 -'"),
        ("0 road\n255 __ignore__\n1 sky\n", "line 2: .* write '255 -'"),
        ("road\ncar\nsky\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("road\ncar\nsky\n".encode("utf-16-be"), "is UTF-16 text: save it as UTF-8"),
        ("\N{LATIN SMALL LETTER A WITH DIAERESIS}cker\nWald\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_what_may_mean_two_things_is_refused_in_one_line_that_says_what_to_write(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text)
    assert "classes.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_are_found_by_the_names_that_tools_give_them(tmp_path):
    assert find_class_list(tmp_path) is None
    assert find_class_list(tmp_path / "none") is None
    for name in reversed(CLASS_LISTS):
        path = tmp_path / name.replace("c", "C")
        path.write_text("road\ncar\n")
        assert find_class_list(tmp_path) == path


def test_a_class_whose_value_the_option_leaves_out_is_refused(tmp_path):
    for text in ("road\ncar\n", "0 road\n1 car\n"):
        with pytest.raises(DataError, match=r"line 1: '.*road' has the value 0, which --ignore_index leaves out"):
            read(tmp_path, text, ignore_index=0)
    assert read(tmp_path, "-\nroad\ncar\n", ignore_index=0).classes == ("road", "car")


def test_a_class_may_have_the_value_that_is_left_out_otherwise(tmp_path):
    classes = read(tmp_path, "".join(f"c{value}\n" for value in range(260)))
    assert classes.mapping[255] == 255 != classes.ignore_index

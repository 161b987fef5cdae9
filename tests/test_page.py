"""The page that diff.py writes, in a real browser: opens, searches, sorts, marks, follows links."""

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import networkx
import pytest
from conftest import SOURCE, compile_c
from hypothesis import given, settings
from hypothesis import strategies as st
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.support.ui import WebDriverWait

from bench.screenshots import browser, open_page
from binary.disassemble import analyse
from features.extract import extract_features
from matching.changes import compare
from matching.model import read_model
from matching.page.layout import draw
from matching.page.make import HERE, SCRIPTS, make_page
from matching.pseudo import PseudoDiff

PATCHED = SOURCE.replace("sum / 2;", "sum > 100000 ? 7 * sum : sum / 2 - 1234;").replace(
    "exit(status);", 'puts("One more line of help"); exit(status);'
)
KERNEL = r"""
int g[16];
__attribute__((noinline)) int first(int x) { g[x & 15] += x; return x * 3 + 1; }
__attribute__((noinline)) int second(int x) {
    int s = 0;
    for (int i = 0; i < x; i++) s += first(i);
    return s;
}
void _start(void) { volatile int r = second(g[0]); for (;;) g[0] = r EXTRA; }
"""


@pytest.fixture(scope="module")
def chrome():
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no chromium and chromium-driver")
    with browser() as chrome:
        yield chrome


def page_of(folder: Path, old, new) -> Path:
    codes = tuple(extract_features(analysis) for analysis in (old, new))
    page = folder / "page.html"
    page.write_text(make_page(("builds/old", "builds/new"), codes, compare(*codes, read_model())))
    return page


@pytest.fixture(scope="module")
def page(analyses, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return page_of(folder, analyses["O1"], analyse(compile_c(PATCHED, folder / "shapes", "-O1")))


@pytest.fixture
def opened(chrome, page):
    chrome.get("about:blank")
    open_page(chrome, page)
    yield chrome
    chrome.execute_script("localStorage.clear()")
    errors = [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


def press(chrome, keys):
    for key in keys:
        chrome.find_element("tag name", "body").send_keys(key)


def texts(chrome, selector):
    return [element.text for element in chrome.find_elements("css selector", selector)]


def search(chrome, words):
    field = chrome.find_element("id", "search")
    field.clear()
    field.send_keys(words)
    return texts(chrome, ".row .called")


def show(chrome, name):
    """Search for a function, and open its row."""
    found = search(chrome, name)
    chrome.find_elements("css selector", ".row")[found.index(name)].click()
    wait_for(chrome, name)


def wait_for(chrome, name):
    """Wait until a function is open."""
    waiting(chrome).until(
        lambda chrome: chrome.find_element("css selector", "#title b").text == name
    )


def waiting(chrome):
    """Return what waits; the page may replace an element while it is looked at."""
    return WebDriverWait(chrome, 10, ignored_exceptions=[StaleElementReferenceException])


def test_changed_functions_come_first_and_open(opened):
    rows = texts(opened, ".row")
    assert set(texts(opened, ".row .called")[:2]) == {"area", "usage"}
    assert "string changed" in texts(opened, ".row .kinds")[0] + texts(opened, ".row .kinds")[1]
    assert all(row.startswith("changed") for row in rows[:2])
    assert rows[2].startswith("identical")
    assert opened.find_element("css selector", "#title b").text in ("area", "usage")
    assert opened.title == "old → new"


def test_search_finds_names_addresses_strings_and_calls(opened, analyses):
    analysis = analyses["O1"]
    address = hex(analysis.function_address[analysis.function_name.index("kind")])
    assert search(opened, "kind")[0] == "kind"
    assert search(opened, address) == ["kind"]
    assert search(opened, "virtual memory") == ["copy"]
    assert search(opened, "__ctype_b_loc") == ["kind"]
    assert search(opened, "one more line") == ["usage"], "a string of NEW only"
    assert "main" in search(opened, "qsort")
    assert search(opened, "no such thing") == []
    assert opened.find_element("id", "found").text.startswith("0 of")


@pytest.mark.parametrize(
    ("column", "key"),
    [(3, str.lower), (4, lambda cell: int(cell or "0x0", 16)), (7, lambda cell: -float(cell or 0))],
)
def test_columns_sort_and_say_so(opened, column, key):
    header = opened.find_element("css selector", f"#head > :nth-child({column})")
    for state in ("ascending", "descending", "none"):
        header.click()
        assert header.get_attribute("aria-sort") == state
        assert header.text.endswith({"ascending": "▲", "descending": "▼", "none": ""}[state])
        cells = [key(cell) for cell in texts(opened, f".row > :nth-child({column})")]
        if state != "none":
            assert cells == sorted(cells, reverse=state == "descending")


def test_status_filters(opened):
    before = len(texts(opened, ".row"))
    button = opened.find_element("css selector", "#statuses .changed")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert len(texts(opened, ".row")) == before - 2
    assert "changed" not in texts(opened, ".row .tag")


def test_kinds_of_change_filter(opened):
    opened.find_element("xpath", "//option[text()='string changed']").click()
    assert texts(opened, ".called") == ["usage"]
    opened.find_element("xpath", "//option[text()='every kind of change']").click()
    assert len(texts(opened, ".called")) > 2


def test_lines_name_what_addresses_are(opened):
    show(opened, "copy")
    press(opened, "g")
    code = opened.find_element("id", "linear").text
    for line in ("call strlen", "call malloc", '"virtual memory exhausted\\n"', "call abort"):
        assert line in code
    call = opened.find_element("xpath", "//*[@class='name'][text()='malloc']")
    assert call.get_attribute("title") == "malloc, imported"


def test_only_the_differing_operand_is_marked(opened):
    show(opened, "area")
    press(opened, "g")
    marks = texts(opened, "mark")
    assert any("0x4d2" in mark for mark in marks), "the constant 1234"
    # Nothing has changed in the loop.
    assert not any("imul" in mark for mark in marks)


def test_registers_and_slots_that_are_renamed_throughout_are_no_difference(opened):
    compared = opened.execute_script(
        """
        const line = text => [text];
        const both = (a, b) => compareBlocks(a.map(line), b.map(line), false,
            { rbpIsFrame: false, sameTarget: () => true });
        return arguments[0].map(([a, b]) => both(a, b).map(sides => sides.map(one =>
            one && one.tokens.map((t, i) => [t.text, one.marks[i]]).filter(t => t[1] !== "same"))));
        """,
        [
            [["mov rbx, rax", "add ebx, 5"], ["mov r12, rax", "add r12d, 5"]],
            [["mov rdi, rbx", "mov rsi, rbx"], ["mov rdi, rbx", "mov rsi, rdx"]],
            [["mov eax, dword ptr [rsp + 0x18]"], ["mov eax, dword ptr [rsp + 0x28]"]],
            [["mov eax, dword ptr [rbx + 0x18]"], ["mov eax, dword ptr [rbx + 0x28]"]],
            [["cmp eax, 7", "jl 0x10"], ["cmp eax, 7", "jle 0x10"]],
            [["mov eax, ebx"], ["mov rax, rbx"]],
            [["add x0, x1, #8"], ["add x9, x1, #8"]],
            [["push rbp", "ret"], ["ret"]],
            [["ret"], ["endbr64", "ret"]],
        ],
    )
    renamed, same = "renamed", []
    assert compared == [
        [[[["rbx", renamed]], [["r12", renamed]]], [[["ebx", renamed]], [["r12d", renamed]]]],
        # rbx has two partners: one is a difference
        [[same, same], [[["rbx", "differs"]], [["rdx", "differs"]]]],
        [[[["0x18", renamed]], [["0x28", renamed]]]],
        [[[["0x18", "differs"]], [["0x28", "differs"]]]],
        [[same, same], [[["jl", "differs"]], [["jle", "differs"]]]],
        [[[["eax", "differs"], ["ebx", "differs"]], [["rax", "differs"], ["rbx", "differs"]]]],
        [[[["x0", renamed]], [["x9", renamed]]]],
        [[[["push", "differs"], [" ", "differs"], ["rbp", "differs"]], None], [same, same]],
        [[None, same], [same, same]],
    ]


def test_links_lead_to_a_function_and_a_block_and_back(opened, page):
    show(opened, "main")
    press(opened, "g")
    first = opened.current_url
    opened.find_element("xpath", "//a[@class='name'][text()='copy']").click()
    wait_for(opened, "copy")
    block = opened.find_elements("css selector", ".pair")[1]
    block.find_element("css selector", ".where > *").click()
    assert ";old:0x" in opened.current_url
    link = opened.current_url
    assert "lit" in block.get_attribute("class")
    opened.back()
    opened.back()
    wait_for(opened, "main")
    assert opened.current_url == first
    opened.get("about:blank")
    open_page(opened, page, "#" + link.partition("#")[2])
    wait_for(opened, "copy")
    assert link.endswith(";old:" + re.search("0x[0-9a-f]+", texts(opened, ".lit")[0])[0])


def test_pseudo_code_stands_beside_the_graphs(chrome, analyses, tmp_path):
    codes = (extract_features(analyses["O1"]),) * 2
    diff = compare(*codes, read_model())
    lines = [("same", "f(v1);", "f(v2);"), ("changed", "a<b>;", "b;"), ("new", "", "c;")]
    pseudo = {
        diff.functions[0].sides: PseudoDiff(lines, ("", "")),
        diff.functions[1].sides: PseudoDiff([], ("too long", "")),
    }
    page = tmp_path / "pseudo.html"
    page.write_text(make_page(("a", "b"), codes, diff, pseudo=pseudo))
    open_page(chrome, page)
    assert chrome.find_element("id", "view-pseudo").is_displayed()
    press(chrome, "c")
    assert texts(chrome, "#code .line > *") == ["f(v1);", "f(v2);", "a<b>;", "b;", "", "c;"]
    press(chrome, "n")
    assert texts(chrome, ".lit .line.new") == ["c;"]
    press(chrome, "j")
    waiting(chrome).until(lambda chrome: texts(chrome, ".reason"))
    assert texts(chrome, ".reason") == ["No pseudo-code of old: too long"]
    press(chrome, "j")  # of the third there is none: its graph is shown
    waiting(chrome).until(lambda chrome: texts(chrome, ".graph"))
    assert not chrome.find_element("id", "view-pseudo").is_displayed()


def test_notes_and_marks_are_kept_and_exported(opened, page):
    press(opened, "r")
    opened.find_element("id", "note").send_keys("looks <b>safe</b>")
    name = texts(opened, ".row .called")[0]
    opened.get("about:blank")
    open_page(opened, page)
    assert opened.find_element("id", "reviewed").is_selected()
    assert opened.find_element("id", "note").get_attribute("value") == "looks <b>safe</b>"
    assert texts(opened, ".row > :nth-child(1)")[:2] == ["✓", ""]
    (note,) = opened.execute_script("return notes.exported()")["notes"]
    assert (note["old"]["name"], note["reviewed"], note["note"]) == (
        name,
        True,
        "looks <b>safe</b>",
    )
    saved = opened.execute_async_script(
        """
        const done = arguments[0], make = URL.createObjectURL;
        URL.createObjectURL = blob => { blob.text().then(done); return make(blob); };
        document.getElementById("export").click();
        """
    )
    assert json.loads(saved)["notes"] == [note]


def test_notes_come_back_from_a_file(opened, page, tmp_path):
    key = opened.execute_script("return [0, 1].map(side => rows[0].sides[side].address)")
    note = {"old": {"address": key[0]}, "new": {"address": key[1]}, "reviewed": True}
    notes = {"format": 1, "notes": [note | {"note": "<i>seen</i>"}, note | {"old": None}]}
    (tmp_path / "notes.json").write_text(json.dumps(notes))
    (tmp_path / "other.json").write_text('{"format": 2}')
    opened.find_element("id", "note").send_keys("mine")
    for name, said in [
        ("notes.json", "1 of 2 notes are of functions here, and were added"),
        ("notes.json", "1 of 2 notes are of functions here, and were added"),
        (
            "other.json",
            "other.json could not be read: the file does not contain notes of such a page",
        ),
    ]:
        opened.execute_script("document.getElementById('found').textContent = ''")
        opened.find_element("id", "notes-file").send_keys(str(tmp_path / name))
        waiting(opened).until(lambda chrome: chrome.find_element("id", "found").text)
        assert opened.find_element("id", "found").text == said
    assert opened.find_element("id", "note").get_attribute("value") == "mine / <i>seen</i>"
    assert texts(opened, ".row > :nth-child(1)")[0] == "✓"


def test_keys_search_open_rows_and_step_through_differences(opened):
    press(opened, "/")
    assert opened.switch_to.active_element.get_attribute("id") == "search"
    opened.switch_to.active_element.send_keys("\ue00c")  # Escape
    first, second = texts(opened, ".row .called")[:2]
    press(opened, "j")
    wait_for(opened, second)
    press(opened, "k")
    wait_for(opened, first)
    press(opened, "n")
    assert opened.find_element("id", "which").text.startswith("1 of ")
    assert opened.find_elements("css selector", ".lit")
    press(opened, "p")
    count = opened.find_element("id", "which").text
    assert re.fullmatch(r"(\d+) of \1", count)
    press(opened, "?")
    assert opened.find_element("id", "help").is_displayed()
    opened.find_element("id", "help-close").click()
    assert not opened.find_element("id", "help").is_displayed()


def test_graphs_show_every_block_and_can_be_zoomed_and_moved(opened):
    show(opened, "main")
    if opened.find_elements("id", "linear"):
        press(opened, "g")
    press(opened, "f")  # nothing folded
    boxes, blocks = opened.execute_script(
        "return [document.querySelectorAll('.block').length, opened.blocks.flat().length]"
    )
    assert boxes == blocks
    paths = opened.find_elements("css selector", "svg > path")
    assert paths
    assert all(path.get_attribute("marker-end") for path in paths)
    kinds = {path.get_attribute("class") for path in paths}
    assert {"taken", "not-taken"} <= kinds
    before = opened.execute_script("return [zoom, stages[0].x]")
    opened.find_element("id", "zoom-in").click()
    pane = opened.find_element("css selector", ".graph")
    opened.execute_script(
        """
        const at = (type, x, y) => arguments[0].dispatchEvent(
            new PointerEvent(type, { clientX: x, clientY: y, bubbles: true }));
        arguments[0].setPointerCapture = () => {};
        at("pointerdown", 700, 400); at("pointermove", 760, 420); at("pointerup", 760, 420);
        """,
        pane,
    )
    after = opened.execute_script("return [zoom, stages[0].x]")
    assert after[0] > before[0]
    assert after[1] != before[1]
    press(opened, "0")
    fits = opened.execute_script(
        """return stages.every(({ stage, pane }) => {
            const a = stage.querySelector("svg").getBoundingClientRect();
            const b = pane.getBoundingClientRect();
            return a.right <= b.right + 1 && a.bottom <= b.bottom + 1; });"""
    )
    assert fits


def test_what_is_unchanged_folds(opened):
    show(opened, "usage")
    press(opened, "g")
    opened.execute_script("draw()")
    shown = opened.execute_script(
        "return [opened.items.length, opened.items.filter(item => item.same).length]"
    )
    assert shown[0] > shown[1]
    folded = opened.execute_script(
        """
        const item = same => ({ places: [0, 0], same });
        const before = opened;
        const run = Array.from({ length: 9 }, () => item(true));
        opened = { ...before, items: [item(false), ...run, item(false)] };
        drawLinear();
        const count = () => document.querySelectorAll(".pair").length;
        const first = [count(), document.querySelectorAll(".folded").length];
        document.querySelector(".folded").click();
        const then = [count(), document.querySelectorAll(".folded").length];
        opened = before; draw();
        return [first, then];
        """
    )
    assert folded == [[4, 1], [11, 0]], "a block beside each difference stays"


def test_nothing_is_cut_off_at_1280_by_800(opened):
    for selector in ("#head > *", ".row > :not(:nth-child(3))", "#controls > *", "#legend > *"):
        cut = opened.execute_script(
            """return [...document.querySelectorAll(arguments[0])].filter(e => !e.hidden &&
                (e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0
                 || e.getBoundingClientRect().right > innerWidth)).map(e => e.textContent)""",
            selector,
        )
        assert cut == []
    assert opened.execute_script("return document.documentElement.scrollHeight <= innerHeight")


def test_themes_have_contrast(opened):
    """The contrast of texts on their background is at least 4.5 by WCAG's formula."""
    contrast = """
        const value = (name, theme) => {
            document.documentElement.style.colorScheme = theme;
            const probe = document.createElement("div");
            probe.style.color = `var(--${name})`;
            document.body.append(probe);
            const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(n => {
                n /= 255; return n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4; });
            probe.remove();
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const [text, back, theme] = arguments, a = value(text, theme), b = value(back, theme);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    """
    for theme in ("light", "dark"):
        for text in ("text", "dim", "name", "string"):
            backs = ["back", "panel", "same", "changed", "gone", "new", "compiled"]
            for back in [*backs, "mark"] if text == "text" else backs:
                assert opened.execute_script(contrast, text, back, theme) >= 4.5, (
                    text,
                    back,
                    theme,
                )


def test_rows_and_headers_take_focus_and_have_roles(opened):
    row = opened.find_element("css selector", ".row[aria-selected=true]")
    assert row.get_attribute("tabindex") == "0"
    assert row.get_attribute("role") == "row"
    other = opened.find_elements("css selector", ".row")[1]
    opened.execute_script("arguments[0].focus()", other)
    name = other.find_element("css selector", ".called").text
    other.send_keys("\ue007")  # Enter
    wait_for(opened, name)
    for header in opened.find_elements("css selector", "#head > *"):
        assert header.get_attribute("role") == "columnheader"
        assert header.tag_name == "button"
    names = opened.execute_script(
        """return [...document.querySelectorAll("button, input, select")].filter(e => !e.hidden &&
            !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.placeholder)).length"""
    )
    assert names == 0, "every control has a name"


def test_addresses_above_2_to_the_53_are_right(chrome, tmp_path):
    analyses = []
    for version, extra in (("old", ""), ("new", "+ 7")):
        flags = "-O2", "-nostdlib", "-no-pie", "-mcmodel=kernel", "-fno-pie"
        binary = compile_c(
            KERNEL.replace("EXTRA", extra), tmp_path / version / "kern", *flags,
            "-Wl,-Ttext=0xffffffff81000000",
        )  # fmt: skip
        analyses.append(analyse(binary))
    symbols = subprocess.run(["nm", binary], check=True, capture_output=True, text=True).stdout
    where = {name: f"0x{address}" for address, name in re.findall(r"(\w+) T (\w+)", symbols)}
    assert set(where) >= {"first", "second", "_start"}
    page = page_of(tmp_path, *analyses)
    open_page(chrome, page)
    shown = dict(zip(texts(chrome, ".called"), texts(chrome, ".row > :nth-child(5)"), strict=True))
    assert {name: shown[name] for name in ("first", "second", "_start")} == {
        name: where[name] for name in ("first", "second", "_start")
    }
    show(chrome, "second")
    assert where["second"] in chrome.find_element("id", "code").text
    assert where["second"] in chrome.current_url


def test_the_page_can_load_nothing_and_runs_its_own_script_only(opened):
    policy = opened.find_element("css selector", "meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    ran = opened.execute_async_script(
        """
        const done = arguments[0];
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        fetch("data:,x").then(() => done("fetched"), () => done(window.ran || "nothing"));
        """
    )
    assert ran == "nothing"
    opened.get_log("browser")  # holds the two refusals


HOSTILE = [
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "javascript:window.ran=1",
    "\u202eevil\x1b[31m",
    "__proto__",
]


def test_names_and_strings_of_attackers_are_only_shown(chrome, analyses, tmp_path):
    analysis = analyses["O1"]
    names = (HOSTILE * len(analysis.function_name))[: len(analysis.function_name)]
    texts_ = (HOSTILE * len(analysis.literal))[: len(analysis.literal)]
    hostile = dataclasses.replace(
        analysis, function_name=names, literal=[text.encode() for text in texts_]
    )
    open_page(chrome, page_of(tmp_path, hostile, hostile))
    for place in range(8):
        chrome.find_elements("css selector", ".row")[place].click()
        press(chrome, "gg")
    shown = set(texts(chrome, ".called"))
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[4]} <= shown
    state = "return [window.ran || 0, document.querySelectorAll('img, iframe, a[href]').length]"
    assert chrome.execute_script(state) == [0, 0]
    assert not [e for e in chrome.get_log("browser") if e["level"] == "SEVERE"]


def test_the_script_makes_no_markup():
    text = "".join((HERE / file).read_text() for file in (*SCRIPTS, "page.html"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}


# ----------------------------------------------------------------------------- the drawing


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 14), st.randoms(use_true_random=False))
def test_edges_go_around_boxes(n, random):
    """Boxes do not overlap, edges run straight along both axes, and through no box."""
    sizes = tuple((random.randint(60, 300), random.randint(20, 200)) for _ in range(n))
    tree = [(random.randrange(i), i) for i in range(1, n)]
    more = [(random.randrange(n), random.randrange(n)) for _ in range(random.randrange(n + 1))]
    edges = tuple(dict.fromkeys(tree + more))
    (width, height), corners, lines = draw(sizes, edges)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 <= top
        assert right <= width
        assert bottom <= height
        for other in boxes[:i]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]
    assert len(lines) == len(edges)
    for line in lines:
        points = list(zip(line[::2], line[1::2], strict=True))
        for (x, y), (u, v) in itertools.pairwise(points):
            for left, top, right, bottom in boxes:  # a pixel for the rounding
                beside = max(x, u) <= left + 1 or min(x, u) >= right - 1
                assert beside or max(y, v) <= top + 1 or min(y, v) >= bottom - 1
    graph = networkx.DiGraph(tree)
    graph.add_nodes_from(range(n))
    if not more:  # in a tree, each layer is below the previous one
        for source, target in tree:
            assert boxes[target][1] >= boxes[source][3]

"""bench/patches.py: which functions a patch changed, and where diff.py lists them."""

import shutil
import subprocess

import patches
import pytest
import truth
from conftest import SOURCE

from binary.disassemble import analyse
from features.extract import extract_features
from matching.changes import compare
from matching.model import DEFAULT, read_model

PATCH = """\
From: somebody
Subject: the area is a positive number

diff --git a/NEWS b/NEWS
--- a/NEWS
+++ b/NEWS
@@ -1 +1,2 @@
 old news
+new news
--- a/src/shapes.c
+++ b/src/shapes.c
@@ -11,7 +11,9 @@
     int sum = 0;
     for (int i = 0; i < n; i++)
         sum += p[i].x * p[(i + 1) % n].y - p[i].y * p[(i + 1) % n].x;
-    return sum / 2;
+    if (sum < 0)
+        sum = -sum;
+    return sum / 2u;
 }
 
 __attribute__((noinline)) void usage(int status) {
diff --git a/tests/area.sh b/tests/area.sh
new file mode 100755
--- /dev/null
+++ b/tests/area.sh
@@ -0,0 +1 @@
+exit 0
"""


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """The program before and after the patch."""
    if not all(map(shutil.which, ("gcc", "strip", "patch", "diff"))):
        pytest.skip("no gcc, binutils, patch or diff")
    folder = tmp_path_factory.mktemp("patches")
    source = folder / "tree/src/shapes.c"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE)

    def build(name):
        program = folder / name
        subprocess.run(["gcc", "-g", "-O1", "-o", program, source], check=True)
        return program

    old = build("old")
    removed, added = patches.apply(folder / "tree", patches.c_parts(PATCH))
    return patches.Step("shapes", "area.patch", old, build("new"), removed, added)


def test_only_c_files_are_patched():
    (part,) = patches.c_parts(PATCH)
    assert part.startswith("--- a/src/shapes.c\n+++ b/src/shapes.c\n")
    assert "NEWS" not in part
    assert "area.sh" not in part


def test_lines_are_those_of_the_patch(step):
    line = SOURCE.splitlines().index("    return sum / 2;") + 1
    assert step.removed == {("shapes.c", line)}
    assert step.added == {("shapes.c", line), ("shapes.c", line + 1), ("shapes.c", line + 2)}


def test_the_patched_function_comes_first(step, tmp_path, capsys):
    copies = [truth.stripped_copy(file, tmp_path / file.name) for file in (step.old, step.new)]
    codes = tuple(extract_features(analyse(file)) for file in copies)
    patched = patches.patched_functions(step, codes, tmp_path)
    for inside, code, file in zip(patched, codes, (step.old, step.new), strict=True):
        (f,) = inside
        address = int(code.analysis.function_address[f])
        assert truth.read_truth(file, tmp_path).name[address] == "area"
    found = compare(*codes, read_model(str(DEFAULT)))
    assert patches.judge(step, found, patched) == (1, 1, 1)
    patches.show("shapes", [(1, 1, 1), (3, 2, 0), (5, 0, 0), (9, 1, 6), (4, 1, 5)])
    assert capsys.readouterr().out.splitlines()[1] == (
        "shapes: 4 patches; their function is first for 1, second to fifth for 1, later for 1, "
        "missing for 1; 4 functions differ (median; maximum 9); in the first five: 50% "
        "(95 % interval 15% to 85%)"
    )


def test_only_what_changes_instructions_counts(step, tmp_path):
    """Code that is moved is the same; another operand or number is not."""
    moved = SOURCE.replace("with a very long", "with quite a very, very long")
    other = SOURCE.replace("return 35;", "return 36;")
    programs = []
    for i, source in enumerate((SOURCE, moved, other)):
        (tmp_path / f"{i}.c").write_text(source)
        subprocess.run(["gcc", "-O1", "-o", tmp_path / str(i), tmp_path / f"{i}.c"], check=True)
        programs.append(tmp_path / str(i))
    one, same, another = map(patches.instructions, programs)
    assert one == same
    assert len(one.splitlines()) > 100
    assert one != another
    assert patches.instructions(step.old) != patches.instructions(step.new)


def test_a_patch_that_does_not_fit_is_one_sentence(tmp_path):
    (tmp_path / "tree/src").mkdir(parents=True)
    source = tmp_path / "tree/src/shapes.c"
    source.write_text("int main(void) { return 0; }\n")
    with pytest.raises(patches.utils.UserError, match=r"patch failed, see the end of .*log"):
        patches.apply(tmp_path / "tree", patches.c_parts(PATCH))
    assert source.read_text() == "int main(void) { return 0; }\n"
    assert sorted(p.name for p in source.parent.iterdir()) == ["shapes.c"]

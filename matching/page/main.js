// The address bar says what is shown: #OLD,NEW or #OLD,NEW;old:BLOCK, all addresses.

let view = null;  // "linear" or "graph", once the user chose one

function go(row, side = null, block = null, replaces = false) {
  if (!row) return;
  const hash = "#" + row.key + (block ? `;${side === OLD ? "old" : "new"}:${block}` : "");
  if (hash === location.hash) { follow(); return; }
  if (replaces) { history.replaceState(null, "", hash); follow(); } else location.hash = hash;
}

let following = 0;
async function follow() {
  const [, key, side, block] = /^#([^;]*)(?:;(old|new):(.*))?$/.exec(location.hash) || [];
  const row = rows.find(row => row.key === key) || rows[0];
  if (!row) return;
  const turn = ++following;
  if (!opened || opened.row !== row) {
    const content = await contentOf(row);
    if (turn !== following) return;  // another was opened meanwhile
    readFunction(row, content);
    showTitle();
    draw();
    showRow(row);
    drawRows();
  }
  if (block) {
    const which = side === "old" ? OLD : NEW, place = opened.placeAt[which].get(block);
    if (place !== undefined) light(opened.itemOf[which].get(place));
  }
}

function showTitle() {
  const { row, differences } = opened, [one, other] = row.sides;
  const about = f => { const name = make("b", "", f.name); name.title = [f.symbol, f.address].filter(t => t).join("\n"); return name; };
  $("title").replaceChildren(make("span", "tag " + STATUS_CLASS[row.status], row.status),
    ...(one && other && one.name !== other.name ? [about(one), " → ", about(other)] : [about(one || other)]),
    ...row.kinds.map(kind => make("span", "tag changed", kind)), ...row.inlined.map(f => inlinedLink(row, f)));
  $("controls").hidden = false;
  $("reviewed").checked = notes.of(row).reviewed;
  $("note").value = notes.of(row).note;
  for (const id of ["previous", "next"]) $(id).disabled = !differences.length;
  showWhich();
}

function inlinedLink(row, f) {
  const side = row.sides[OLD] ? NEW : OLD, link = make("a", "name", f.brief);
  link.title = [f.name, f.symbol, f.address].filter(t => t).join("\n");
  link.onclick = () => go(rows.find(row => row.sides[side]?.f === f.f));
  return make("span", "inlined", `likely inlined ${side === NEW ? "into" : "in"} `, link);
}

function showWhich() {
  const { at, differences } = opened;
  $("which").textContent = !differences.length ? "no differences"
    : at < 0 ? `${differences.length} difference${differences.length === 1 ? "" : "s"}` : `${at + 1} of ${differences.length}`;
}

function draw() {
  const pseudo = Boolean(opened.pseudo) && view === "pseudo";
  const graph = !pseudo && hasGraph() && view !== "linear";
  opened.drawn = pseudo ? "pseudo" : graph ? "graph" : "linear";
  for (const name of ["linear", "graph", "pseudo"]) $("view-" + name).setAttribute("aria-pressed", opened.drawn === name);
  $("view-graph").disabled = !hasGraph();
  $("view-pseudo").hidden = !opened.pseudo;
  $("zooming").hidden = !graph;
  for (const item of opened.items) item.element = null;
  if (pseudo) drawPseudo(); else if (graph) drawGraphs(); else drawLinear();
}

function light(item) {
  if (opened.drawn === "pseudo") choose("linear");  // which has blocks
  const at = opened.differences.indexOf(item);
  if (at >= 0) { opened.at = at; showWhich(); }
  if (opened.drawn === "graph") lightGraph(item); else lightLinear(item);
}

function nextDifference(by) {
  if (opened?.drawn === "pseudo") { nextPseudo(by); return; }
  const count = opened ? opened.differences.length : 0;
  if (!count) return;
  opened.at = opened.at < 0 && by < 0 ? count - 1 : (opened.at + by + count) % count;
  light(opened.differences[opened.at]);
}

function choose(which) { view = which; if (opened) draw(); }
function setReviewed(value) { notes.set(opened.row, { reviewed: value }); $("reviewed").checked = value; drawRows(); }

function save(name, content) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function importNotes(file) {
  let said;
  try {
    const [taken, all] = notes.take(JSON.parse(await file.text()));
    said = `${taken} of ${all} notes are of functions here, and were added`;
    if (opened) showTitle();
    filter();
  } catch (error) { said = `${file.name} could not be read: ${error.message}`; }
  $("found").textContent = said;
}

function setTheme(theme) {
  const dark = theme === "dark";
  document.documentElement.style.colorScheme = theme;
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").onclick = () => {
    const other = dark ? "light" : "dark";
    setTheme(other);
    try { localStorage.setItem("theme", other); } catch { /* storage may be forbidden */ }
  };
}

function buildControls() {
  $("view-linear").onclick = () => choose("linear");
  $("view-graph").onclick = () => choose("graph");
  $("view-pseudo").onclick = () => choose("pseudo");
  $("fold").onchange = () => opened && draw();
  $("previous").onclick = () => nextDifference(-1);
  $("next").onclick = () => nextDifference(1);
  $("zoom-in").onclick = () => zoomBy(1.25);
  $("zoom-out").onclick = () => zoomBy(0.8);
  $("zoom-fit").onclick = fit;
  $("reviewed").onchange = () => setReviewed($("reviewed").checked);
  $("note").oninput = () => { notes.set(opened.row, { note: $("note").value }); drawRows(); };
  $("export").onclick = () => save("notes.json", notes.exported());
  $("import").onclick = () => $("notes-file").click();
  $("notes-file").onchange = event => { for (const file of event.target.files) importNotes(file); event.target.value = ""; };
  document.addEventListener("dragover", event => event.preventDefault());
  document.addEventListener("drop", event => { event.preventDefault(); for (const file of event.dataTransfer.files) importNotes(file); });
  $("help-button").onclick = () => $("help").showModal();
  $("help-close").onclick = () => $("help").close();
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* storage may be forbidden */ }
  setTheme(theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  const splitter = $("splitter"), widen = x => { $("left").style.width = x + "px"; };
  splitter.onpointerdown = event => splitter.setPointerCapture(event.pointerId);
  splitter.onpointermove = event => { if (splitter.hasPointerCapture(event.pointerId)) widen(event.clientX); };
  splitter.onkeydown = event => {
    const by = { ArrowLeft: -20, ArrowRight: 20 }[event.key];
    if (by) widen($("left").offsetWidth + by);
  };
}

const KEYS = {
  "/": () => { $("search").focus(); $("search").select(); },
  j: () => step(1), k: () => step(-1),
  n: () => nextDifference(1), p: () => nextDifference(-1),
  g: () => choose(opened?.drawn === "graph" ? "linear" : "graph"),
  c: () => { if (opened?.pseudo) choose("pseudo"); },
  f: () => { $("fold").checked = !$("fold").checked; if (opened) draw(); },
  r: () => { if (opened) setReviewed(!notes.of(opened.row).reviewed); },
  e: () => $("note").focus(),
  d: () => $("theme").click(),
  "+": () => $("zoom-in").click(), "-": () => $("zoom-out").click(), 0: () => $("zoom-fit").click(),
  "?": () => $("help").showModal(),
};
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && /INPUT|SELECT/.test(event.target.tagName)) { event.target.blur(); return; }
  const writes = /^(text|search)$/.test(event.target.type) || event.target.tagName === "SELECT";
  if (writes || event.ctrlKey || event.metaKey || event.altKey || $("help").open || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// Both paths without the folders that they share at their beginning
function shortPaths() {
  const [a, b] = index.paths.map(path => path.split("/"));
  let same = 0;
  while (same < Math.min(a.length, b.length) - 1 && a[same] === b[same]) same++;
  return [a, b].map(names => names.slice(same).join("/"));
}

async function start() {
  await readIndex();
  notes.read();
  const names = shortPaths();
  document.title = names.join(" → ");
  ["old", "new"].forEach((id, side) => { $(id).textContent = names[side]; $(id).title = index.paths[side]; });
  if (index.home) { $("home").href = index.home; $("home").hidden = false; }
  const count = status => rows.filter(row => row.status === status).length;
  $("summary").textContent = statuses().filter(count).map(status => `${count(status).toLocaleString("en")} ${status}`).join(", ");
  buildTable(); buildControls(); filter();
  addEventListener("hashchange", follow);
  await follow();
  document.body.dataset.ready = "yes";
}
start().catch(error => { $("summary").textContent = "This page could not be read: " + error.message; throw error; });

// The table of functions: filtered, sorted, and drawn only where it can be seen.

const ROW = 26;  // pixels, as in page.css
const percent = row => row.matched && row.differing ? `${row.differing} (${Math.max(1, Math.round(row.change * 100))} %)` : "";
const where = side => row => row.sides[side] ? row.sides[side].address : "";
const order = address => address.padStart(20, " ");  // texts of numbers sort by length first
const COLUMNS = [  // name, what a cell shows, what it is sorted by, class, explanation
  ["✓", row => notes.of(row).reviewed ? "✓" : notes.of(row).note ? "✎" : "", row => notes.of(row).reviewed ? 0 : notes.of(row).note ? 1 : 2, "", "reviewed, or with a note"],
  ["status", row => SHORT[row.status] || row.status, row => statuses().indexOf(row.status), "", "sort by status, and how likely a human made the change"],
  ["function", nameOf, row => row.name.toLowerCase(), "", "its name in old, and in new where that is another"],
  ["old", where(OLD), row => order(where(OLD)(row)), "address", "address in old"],
  ["new", where(NEW), row => order(where(NEW)(row)), "address", "address in new"],
  ["change", percent, row => -row.differing, "number", "basic blocks of both without an identical partner, and their share"],
  ["score", row => row.matched ? row.score.toFixed(2) : "", row => -row.score, "number", "how sure the match is: 1.00 is certain"],
];
const table = { sort: null, down: false, shown: [], statuses: new Set(), focus: 0 };

const statuses = () => index.order.map(i => index.status[i]);

function nameOf(row) {
  const [one, other] = row.sides;
  if (!one || !other) return (one || other).brief;
  if (madeUp(other.name) || one.name === other.name) return one.brief;
  return madeUp(one.name) ? other.brief : `${one.brief} → ${other.brief}`;
}

function buildTable() {
  const count = new Map(index.status.map(name => [name, 0]));
  for (const row of rows) count.set(row.status, count.get(row.status) + 1);
  for (const name of statuses().filter(name => count.get(name))) {
    table.statuses.add(name);
    const button = make("button", STATUS_CLASS[name], `${count.get(name).toLocaleString("en")} ${name}`);
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      if (!table.statuses.delete(name)) table.statuses.add(name);
      button.setAttribute("aria-pressed", table.statuses.has(name));
      filter();
    };
    $("statuses").append(button);
  }
  if (index.kinds.length) {
    $("kind").hidden = false;
    $("kind").append(new Option("every kind of change", ""), ...index.kinds.map(kind => new Option(kind, kind)));
    $("kind").onchange = filter;
  }
  COLUMNS.forEach(([name, , , cls, title], i) => {
    const cell = make("button", cls === "number" ? "number" : "", name);
    cell.setAttribute("role", "columnheader");
    cell.title = title;
    cell.onclick = () => {
      [table.sort, table.down] = table.sort !== i ? [i, false] : table.down ? [null, false] : [i, true];
      filter();
    };
    $("head").append(cell);
  });
  const longest = Math.max(...rows.map(row => Math.max(...row.sides.map(f => f ? f.address.length : 0))), 4);
  const width = Math.round(longest * 6.7 + 14);
  const status = Math.max(...index.status.map(name => (SHORT[name] || name).length)) * 6.4 + 18;
  document.documentElement.style.setProperty("--address", width + "px");
  document.documentElement.style.setProperty("--status", status + "px");
  $("left").style.width = Math.min(Math.max(440 + 2 * width, 560), innerWidth * 0.52) + "px";
  $("search").oninput = filter;
  $("scroller").onscroll = drawRows;
  new ResizeObserver(drawRows).observe($("scroller"));
}

function filter() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(word => word);
  const kind = $("kind").value;
  // Joined in lower case when first searched: most of the time that a large table needs
  const found = row => {
    row.find ??= [...row.texts, ...row.words].join("\n").toLowerCase();
    return words.every(word => row.find.includes(word));
  };
  table.shown = rows.filter(row => table.statuses.has(row.status)
    && (!kind || row.kinds.includes(kind)) && (!words.length || found(row)));
  if (table.sort !== null) {
    const key = COLUMNS[table.sort][2], sign = table.down ? -1 : 1;
    const keyed = table.shown.map(row => [key(row), row]);
    keyed.sort(([a], [b]) => a < b ? -sign : a > b ? sign : 0);
    table.shown = keyed.map(([, row]) => row);
  }
  [...$("head").children].forEach((cell, i) => {
    const state = table.sort !== i ? "none" : table.down ? "descending" : "ascending";
    cell.setAttribute("aria-sort", state);
    cell.textContent = COLUMNS[i][0] + { none: "", ascending: " ▲", descending: " ▼" }[state];
  });
  $("found").textContent = `${table.shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} functions`;
  $("rows").style.height = table.shown.length * ROW + "px";
  $("table").setAttribute("aria-rowcount", table.shown.length + 1);
  drawRows();
}

function drawRows() {
  const pane = $("scroller"), focused = $("rows").contains(document.activeElement);
  const from = Math.max(0, Math.floor(pane.scrollTop / ROW) - 5);
  const to = Math.min(table.shown.length, from + Math.ceil(pane.clientHeight / ROW) + 10);
  $("rows").replaceChildren(...table.shown.slice(from, to).map((row, i) => drawRow(row, from + i)));
  if (focused) $("rows").querySelector("[aria-selected=true]")?.focus({ preventScroll: true });
}

function drawRow(row, at) {
  const isOpen = opened !== null && opened.row === row;
  const element = make("div", "row");
  element.setAttribute("role", "row");
  element.setAttribute("aria-rowindex", at + 2);
  element.setAttribute("aria-selected", isOpen);
  element.tabIndex = isOpen || (at === 0 && !table.shown.includes(opened?.row)) ? 0 : -1;
  element.style.top = at * ROW + "px";
  for (const [name, show, , cls] of COLUMNS) {
    const cell = make("div", cls);
    cell.setAttribute("role", "gridcell");
    const inside = { status: "tag " + STATUS_CLASS[row.status], function: "called" }[name];
    cell.append(inside ? make("span", inside, show(row)) : show(row));
    if (name === "function" && said(row)) cell.append(make("span", "kinds", said(row)));
    element.append(cell);
  }
  element.title = row.sides.filter(f => f).map(f => [f.address, f.name, f.symbol].filter(t => t).join("  ")).join("\n")
    + (said(row) ? "\n" + said(row) : "");
  element.onclick = () => go(row);
  element.onkeydown = event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); go(row); } };
  return element;
}

function step(by) {  // to the next or previous row
  const at = table.shown.indexOf(opened?.row);
  const row = table.shown[Math.min(table.shown.length - 1, Math.max(0, at + by))];
  if (!row) return;
  go(row, null, null, true);
  showRow(row);
}

function showRow(row) {
  const at = table.shown.indexOf(row), pane = $("scroller");
  if (at < 0) return;
  if (at * ROW < pane.scrollTop) pane.scrollTop = at * ROW;
  if ((at + 1) * ROW > pane.scrollTop + pane.clientHeight) pane.scrollTop = (at + 1) * ROW - pane.clientHeight;
}

// The page of two packages: files and functions, with links to the files' pages.

const FIRST = 300;  // number of rows drawn at first
const STATUS = {
  "identical": "same", "same code": "same", "changed": "changed", "changed (no program)": "changed",
  "only in old": "gone", "only in new": "new", "compiled differently": "compiled", "failed": "failed",
};
const shown = new Set();  // statuses of files
let about;

// An element of a cell; its text leads to a page beside this one, if there is one.
function cell(text, href = "", cls = "", title = "") {
  const td = make("td", cls);
  if (href && text) { const a = make("a", "name", text); a.href = href; td.append(a); } else td.append(text);
  if (title) td.title = title;
  return td;
}

const tagged = status => { const td = make("td"); td.append(make("span", "tag " + STATUS[status], status)); return td; };
const both = (one, other, sign = " → ") => !one || !other || one === other ? one || other : one + sign + other;

// Columns: title, what it sorts by (descending first for numbers), how a cell is made, class
const FILES = [
  ["status", f => about.status.indexOf(f.status), f => tagged(f.status)],
  ["file", f => f.name.toLowerCase(), f => cell(f.name, f.page, "", f.how && "paired by " + f.how)],
  ["changed", f => -(f.counts[0] || 0), f => cell(f.counts.length ? String(f.counts[0]) : ""), "number"],
  ["only in old", f => -(f.counts[1] || 0), f => cell(f.counts.length ? String(f.counts[1]) : ""), "number"],
  ["only in new", f => -(f.counts[2] || 0), f => cell(f.counts.length ? String(f.counts[2]) : ""), "number"],
  ["identical", f => -(f.counts[3] || 0), f => cell(f.counts.length ? String(f.counts[3]) : ""), "number"],
  ["compiled differently", f => -(f.counts[4] || 0), f => cell(f.counts.length ? String(f.counts[4]) : ""), "number"],
  ["reason", f => f.reason, f => cell(f.reason)],
];
const FUNCTIONS = [
  ["status", f => f.at, f => tagged(f.status)],
  ["function", f => f.name.toLowerCase(), f => cell(f.name, f.href)],
  ["file", f => f.file.name.toLowerCase(), f => cell(f.file.name.replace(/^.*[/!]/, ""), f.file.page, "", f.file.name)],
  ["old", f => (f.sides[0] || "").padStart(20), f => cell(f.sides[0] || "", "", "address")],
  ["new", f => (f.sides[1] || "").padStart(20), f => cell(f.sides[1] || "", "", "address")],
  ["change", f => -f.differing, f => cell(f.differing ? `${f.differing} (${Math.max(1, Math.round(f.change * 100))} %)` : "", "", "number")],
  ["score", f => -f.score, f => cell(f.matched ? f.score.toFixed(2) : "", "", "number")],
  ["what changed", f => f.said, f => cell(f.said)],
];

class Table {
  constructor(id, columns, rows) {
    Object.assign(this, { id, columns, rows, sort: 0, down: false, all: false });
    const head = make("tr");
    this.heads = columns.map(([title, , , cls], i) => {
      const th = make("th", cls || ""), button = make("button", "", title);
      button.onclick = () => {
        [this.sort, this.down] = this.sort === i ? [i, !this.down] : [i, false];
        this.draw();
      };
      th.append(button);
      head.append(th);
      return th;
    });
    this.body = make("tbody");
    const top = make("thead");
    top.append(head);
    $(id).replaceChildren(top, this.body);
  }

  draw() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(word => word);
    const found = this.rows.filter(row => shown.has((row.file || row).status) && words.every(word => row.words.includes(word)));
    const key = this.columns[this.sort][1], sign = this.down ? -1 : 1;
    const keys = new Map(found.map(row => [row, key(row)]));
    found.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      return x < y ? -sign : x > y ? sign : a.at - b.at;
    });
    this.heads.forEach((th, i) => th.setAttribute("aria-sort", i !== this.sort ? "none" : this.down ? "descending" : "ascending"));
    const drawn = this.all ? found : found.slice(0, FIRST);
    this.body.replaceChildren(...drawn.map(row => {
      const tr = make("tr");
      tr.append(...this.columns.map(([, , content, cls]) => { const td = content(row); if (cls) td.classList.add(cls); return td; }));
      return tr;
    }));
    if (drawn.length < found.length) {
      const tr = make("tr"), td = make("td"), more = make("button", "", `Show all ${found.length.toLocaleString("en")}`);
      td.colSpan = this.columns.length;
      more.onclick = () => { this.all = true; this.draw(); };
      td.append(more); tr.append(td); this.body.append(tr);
    }
    $(this.id + "-found").textContent = `${found.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")}`;
  }
}

function readPackages() {
  const files = about.files.map(([status, one, other, how, reason, counts, page], at) => ({
    at, status: about.status[status], name: both(one, other), how, reason, counts, page,
    words: [one, other, reason].join("\n").toLowerCase(),
  }));
  const functions = about.functions.map(([file, status, one, other, score, differing, change, said], at) => ({
    at, file: files[file], status, score, differing, change, said, matched: Boolean(one && other),
    sides: [one && one[0], other && other[0]], name: both(one && one[1], other && other[1]),
    href: files[file].page && `${files[file].page}#${[one, other].map(side => side ? side[0] : "-").join(",")}`,
    words: [one && one[1], other && other[1], files[file].name, said].join("\n").toLowerCase(),
  }));
  return [files, functions];
}

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  $("theme").onclick = () => {
    const other = theme === "dark" ? "light" : "dark";
    setTheme(other);
    try { localStorage.setItem("theme", other); } catch { /* storage may be forbidden */ }
  };
}

async function start() {
  about = await inflate("index");
  const names = about.paths.map(path => path.replace(/\/+$/, "").replace(/^.*\//, ""));
  document.title = names.join(" → ");
  ["old", "new"].forEach((id, side) => { $(id).textContent = names[side]; $(id).title = about.paths[side]; });
  $("summary").textContent = about.verdict;
  const left = about.leftOut.map(kinds => Object.entries(kinds).map(([kind, n]) => `${n} ${kind}${n === 1 ? "" : "s"}`).join(", "));
  if (left.some(text => text)) $("left-out").textContent = `Left out: ${left[0] || "nothing"} in old, ${left[1] || "nothing"} in new.`;
  const [files, functions] = readPackages();
  const tables = [new Table("files", FILES, files), new Table("functions", FUNCTIONS, functions)];
  const drawAll = () => tables.forEach(table => table.draw());
  for (const status of about.status) {
    const n = files.filter(file => file.status === status).length;
    if (!n) continue;
    shown.add(status);
    const button = make("button", STATUS[status], `${n.toLocaleString("en")} ${status}`);
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      if (!shown.delete(status)) shown.add(status);
      button.setAttribute("aria-pressed", shown.has(status));
      drawAll();
    };
    $("statuses").append(button);
  }
  $("search").oninput = drawAll;
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* storage may be forbidden */ }
  setTheme(theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  drawAll();
  document.body.dataset.ready = "yes";
}
start().catch(error => { $("summary").textContent = "This page could not be read: " + error.message; throw error; });

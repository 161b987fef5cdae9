"use strict";
// The page's data. Everything from the binaries goes into the page as text nodes only.

const $ = id => document.getElementById(id);
const OLD = 0, NEW = 1;

function make(tag, name = "", ...content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...content);  // texts become text nodes
  return element;
}

async function inflate(id) {
  const packed = Uint8Array.from(atob($(id).textContent), character => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

let index;  // see make.py
let rows;   // all of the table's rows
const parts = new Map();  // number -> promise of the rows' contents

async function contentOf(row) {
  if (!parts.has(row.part)) parts.set(row.part, inflate("part" + row.part));
  return (await parts.get(row.part))[row.place];
}

function functionOf(side, f) {
  const [address, name, symbol, blocks, brief] = index.functions[side][f];
  return { side, f, address, name, symbol, blocks, brief: brief || name };
}

const partnerOf = [new Map(), new Map()];  // function -> function of the other side

async function readIndex() {
  index = await inflate("index");
  rows = index.rows.map(([status, a, b, score, differing, change, rank, kinds, inlined, part, place, ...words], at) => {
    const sides = [a, b].map((f, side) => f < 0 ? null : functionOf(side, f));
    const [one, other] = sides;
    if (one && other) { partnerOf[OLD].set(a, b); partnerOf[NEW].set(b, a); }
    const texts = sides.filter(f => f).flatMap(f => [f.name, f.symbol, f.address]);
    return {
      at, sides, score, differing, change, rank, part, place, words, texts, matched: Boolean(one && other),
      status: index.status[status], inlined: inlined.map(f => functionOf(a < 0 ? OLD : NEW, f)), kinds: kinds.map(kind => index.kinds[kind]),
      key: sides.map(f => f ? f.address : "-").join(","), name: (one || other).name,
    };
  });
}

// The kinds of a change, or the functions that likely contain the code of one without a partner
const inlinedText = row => row.inlined.length
  ? `likely inlined ${row.sides[OLD] ? "into" : "in"} ${row.inlined.map(f => f.brief).join(", ")}` : "";
const said = row => row.kinds.join(", ") || inlinedText(row);

// Do not show a disassembler's made-up name beside a symbol.
const madeUp = name => /^sub_[0-9a-f]+$/.test(name);

const SHORT = { "compiled differently": "compiled" };  // what the table has room for
const STATUS_CLASS = {
  "identical": "same", "changed": "changed", "only in old": "gone", "only in new": "new",
  "compiled differently": "compiled",
};

// ------------------------------------------------------------- notes, kept in this browser
const notes = {
  all: {},  // row's key -> {reviewed, note}
  get place() { return "notes on a comparison of binaries " + index.digest; },
  read() {
    try { this.all = JSON.parse(localStorage.getItem(this.place)) || {}; }
    catch { this.all = {}; }  // without storage, notes last as long as the page is open
  },
  of(row) { return this.all[row.key] || { reviewed: false, note: "" }; },
  set(row, change) {
    const note = { ...this.of(row), ...change };
    if (note.reviewed || note.note) this.all[row.key] = note; else delete this.all[row.key];
    try { localStorage.setItem(this.place, JSON.stringify(this.all)); } catch { /* as above */ }
  },
  exported() {
    const about = f => f && { address: f.address, name: f.name };
    return {
      format: 1, old: index.paths[OLD], new: index.paths[NEW],
      notes: rows.filter(row => row.key in this.all).map(row => (
        { old: about(row.sides[OLD]), new: about(row.sides[NEW]), ...this.of(row) })),
    };
  },
  // Add notes exported by another page; if a function has a note in both, keep both.
  take(content) {
    if (content?.format !== 1 || !Array.isArray(content.notes)) throw new Error("the file does not contain notes of such a page");
    const rowOf = new Map(rows.map(row => [row.key, row]));
    let taken = 0;
    for (const { old, new: other, reviewed, note } of content.notes) {
      const row = rowOf.get([old, other].map(f => f ? f.address : "-").join(","));
      if (!row) continue;
      const mine = this.of(row), theirs = String(note || "").slice(0, 2000);
      const both = !theirs || mine.note.includes(theirs) ? mine.note : mine.note ? `${mine.note} / ${theirs}` : theirs;
      this.set(row, { reviewed: mine.reviewed || Boolean(reviewed), note: both });
      taken++;
    }
    return [taken, content.notes.length];
  },
};

// The opened function: its blocks and their partners, its differences, and its lines.

const shorten = text => text.length <= 48 ? text : text.slice(0, 47) + "…";  // as listing.py does
function shownText(part, side) {
  const [kind, ...about] = part;
  if (kind === "f") return shorten(functionOf(side, about[0]).brief);
  if (kind === "s") return '"' + shorten(about[1]) + '"';
  if (kind === "i") return about[0];
  return kind === "d" && about[1] ? shorten(about[1]) : about[0];
}

let opened = null;  // set by readFunction

function readFunction(row, content) {
  const { blocks, pairs, away, graphs, pseudo } = content;
  const partner = [new Map(), new Map()];  // block's place -> [place on the other side, same]
  for (const [a, b, same] of pairs) { partner[OLD].set(a, [b, same]); partner[NEW].set(b, [a, same]); }
  const elsewhere = [new Map(), new Map()];
  for (const [side, place, f, address, same] of away) elsewhere[side].set(place, { f, address, same });
  const placeAt = blocks.map(list => new Map(list.map(([address], place) => [address, place])));
  const rbpIsFrame = blocks.some(list => list.some(([, lines]) =>
    lines.some(line => /^mov (rbp, rsp|ebp, esp)$/.test(line[0]))));
  const context = {
    rbpIsFrame,
    sameTarget(a, b) {  // unknown targets count as equal, because addresses move
      const [x, y] = [placeAt[OLD].get(a), placeAt[NEW].get(b)];
      if (x === undefined && y === undefined) return true;
      const match = partner[OLD].get(x);
      return !match || match[0] === y;
    },
  };
  const items = inOrder(blocks, partner);
  opened = { row, blocks, partner, elsewhere, placeAt, graphs, pseudo, items, context, at: -1 };
  opened.itemOf = [OLD, NEW].map(side => new Map(items.map(item => [item.places[side], item])));
  opened.differences = row.matched ? items.filter(item => !item.same && differs(item)) : [];
}

// Whether more than names of registers and stack slots differs in an item
function differs(item) {
  if (item.places.includes(null)) return true;
  return linesOf(item).some(sides => sides.some((one, side) =>
    one ? one.marks.includes("differs") : !isIdle(sides[1 - side].tokens)));
}

// Blocks of both sides, side by side in OLD's order; a block that is only in NEW comes after the
// block that it follows in NEW.
function inOrder(blocks, partner) {
  const items = blocks[OLD].map((_, a) => {
    const [b, same] = partner[OLD].get(a) || [null, 0];
    return { places: [a, b], same: Boolean(same) };
  });
  const itemOf = new Map(items.filter(item => item.places[NEW] !== null).map(item => [item.places[NEW], item]));
  let last = null;
  blocks[NEW].forEach((_, b) => {
    if (!partner[NEW].has(b)) {
      const item = { places: [null, b], same: false };
      items.splice(last ? items.indexOf(last) + 1 : 0, 0, item);
      last = item;
    } else last = itemOf.get(b);
  });
  return items;
}

function classOf(side, place) {
  const match = opened.partner[side].get(place), away = opened.elsewhere[side].get(place);
  if (match) return match[1] ? "same" : differs(opened.itemOf[side].get(place)) ? "changed" : "renamed";
  if (away) return away.same ? "same" : "changed";
  return side === OLD ? "gone" : "new";
}
const SIGN = { same: "=", renamed: "≈", changed: "≠", gone: "−", new: "+" };

function awayText(side, place) {
  const away = opened.elsewhere[side].get(place);
  return away ? ` ↔ ${shorten(functionOf(1 - side, away.f).brief)} ${away.address}` : "";
}

// Lines of an item: see compareBlocks.
function linesOf(item) {
  if (item.lines) return item.lines;
  const [mine, theirs] = item.places.map((place, side) => place === null ? null : opened.blocks[side][place][1]);
  const side = mine ? OLD : NEW;
  if (mine && theirs) return item.lines = compareBlocks(mine, theirs, item.same, opened.context);
  return item.lines = (mine || theirs).map(line => {
    const tokens = tokensOf(line, false);
    const one = { tokens, marks: tokens.map(() => "same") };
    return side === OLD ? [one, null] : [null, one];
  });
}

// One line as elements; references have tooltips and link to their targets.
function writeLine(line, side) {
  const out = make("span");
  line.tokens.forEach(({ text, part }, i) => {
    const mark = line.marks[i];
    const inside = part ? reference(part, side) : text;
    if (mark === "same") { out.append(inside); return; }
    const around = make(mark === "differs" ? "mark" : "u", "", inside);
    if (mark === "renamed") around.title = "renamed throughout: no difference";
    out.append(around);
  });
  return out;
}

function reference(part, side) {
  const [kind, ...about] = part, text = shownText(part, side);
  const element = make(kind === "f" || kind === "b" ? "a" : "span", kind === "s" ? "string" : "name", text);
  if (kind === "s") element.title = `${about[0]}: "${about[1]}"`;
  if (kind === "i") element.title = about[1] + ", imported";
  if (kind === "d") element.title = "data at " + about[0];
  if (kind === "f") {
    const f = functionOf(side, about[0]);
    const partner = partnerOf[side].get(f.f);
    const other = partner === undefined ? null : functionOf(1 - side, partner);
    element.title = [f.name, f.symbol, f.address,
      other ? `matches ${other.name} at ${other.address}` : "no partner"].filter(t => t).join("\n");
    element.onclick = event => { event.stopPropagation(); go(rows.find(row => row.sides[side]?.f === f.f)); };
  }
  if (kind === "b") {
    element.title = "code at " + about[0];
    element.onclick = event => {
      event.stopPropagation();
      if (opened.placeAt[side].has(about[0])) go(opened.row, side, about[0]);
    };
  }
  return element;
}

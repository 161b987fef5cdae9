// The differences of two blocks: lines are aligned, then compared token by token. A register or a
// stack slot may have another name, as long as it has the same one throughout the block.

const FRAME = /^([re]?sp|x29|fp)$/;
const BRANCH = /^(j\w+|call|bl?|b\.\w+|cbn?z|tbn?z)$/;
const NUMBER = /^-?(0x[0-9a-f]+|\d+)$/;
const NOT_REGISTERS = new Set(("byte word dword qword xmmword ymmword zmmword tbyte ptr lsl lsr asr ror " +
  "uxtb uxth uxtw uxtx sxtb sxth sxtw sxtx eq ne lt le gt ge lo ls hi hs mi pl vs vc cs cc al").split(" "));

// Instructions that compute nothing, as features/normalised.py has them
const IDLE = new Set("nop endbr64 endbr32 bti hint c.nop nopr fnop".split(" "));
const isIdle = tokens => IDLE.has(tokens[0].text);

function register(text) {  // [family, width]: rax and eax are one register of two widths
  if (NOT_REGISTERS.has(text) && text !== "cs") return null;
  let m;
  if ((m = /^(r|e|)(ax|bx|cx|dx|si|di|bp)$/.exec(text))) return [m[2], { r: 8, e: 4, "": 2 }[m[1]]];
  if ((m = /^([abcd])([lh])$/.exec(text))) return [m[1] + "x", m[2]];
  if ((m = /^(si|di|bp)l$/.exec(text))) return [m[1], "l"];
  if ((m = /^r(\d+)([dwb]?)$/.exec(text))) return ["r" + m[1], { "": 8, d: 4, w: 2, b: "l" }[m[2]]];
  if ((m = /^([wx])(\d+)$/.exec(text))) return ["x" + m[2], m[1] === "x" ? 8 : 4];
  if ((m = /^([xyz]mm|[vqdshb])(\d+)$/.exec(text))) return ["v" + m[2], m[1]];
  if (/^(\$?[astvk]\d|s[0-9]+|t[0-9]+|a[0-9]|lr|ip|sl|sb)$/.test(text)) return [text, "word"];
  return null;
}

// A line's tokens: {text, part (a reference), operand (its number; 0 is the mnemonic), slot}.
function tokensOf(line, rbpIsFrame) {
  const tokens = [];
  let operand = 0, depth = 0, started = false;
  const push = token => tokens.push({ operand, ...token });
  for (const part of line) {
    if (typeof part !== "string") { push({ text: "@", part }); started = true; continue; }
    for (const text of part.match(/\s+|[\[\],+*:;#!{}()]|-(?![\da-fx])|[^\s\[\],+*:;#!{}()]+/g) || []) {
      push({ text });
      if (/[\[{(]/.test(text)) depth++;
      if (/[\]})]/.test(text)) depth--;
      if (/\s/.test(text[0]) && started && operand === 0) operand = 1;
      else if (text === "," && depth === 0) operand++;
      else started = true;
    }
  }
  let frame = false;
  for (const token of tokens) {
    if (token.text === "[") frame = false;
    if (FRAME.test(token.text) || (rbpIsFrame && /^[re]bp$/.test(token.text))) frame = true;
    if (token.text === "]") frame = false;
    token.slot = frame && NUMBER.test(token.text);
    token.register = token.part ? null : register(token.text);
  }
  return tokens;
}

function sameReference(a, b, context) {
  if (a[0] !== b[0]) return false;
  if (a[0] === "f") return partnerOf[OLD].get(a[1]) === b[1]
    || (index.functions[OLD][a[1]][1] === index.functions[NEW][b[1]][1]);
  if (a[0] === "i") return a[2] === b[2];
  if (a[0] === "s") return a[2] === b[2];
  if (a[0] === "d") return a[2] === b[2];  // data without a name may have moved
  return context.sameTarget(a[1], b[1]);
}

// "same", "renamed" or "differs"
function compareTokens(a, b, context, names) {
  if (a.part || b.part) return a.part && b.part && sameReference(a.part, b.part, context) ? "same" : "differs";
  if (a.text === b.text) return "same";
  if (a.slot && b.slot) return "renamed";
  if (a.register && b.register && a.register[1] === b.register[1]) {
    return !names || names.get(a.register[0]) === b.register[0] ? "renamed" : "differs";
  }
  return "differs";
}

function likeness(a, b, context) {  // of two lines, to align them; 0: never side by side
  if (a[0].text !== b[0].text) {
    return BRANCH.test(a[0].text) && BRANCH.test(b[0].text) ? 1 : 0;
  }
  if (a.length !== b.length) return 2;
  const equal = a.filter((token, i) => compareTokens(token, b[i], context) !== "differs").length;
  return 2 + 2 * equal / a.length;
}

// Pairs of lines [i, j], in order; null where a line has no partner.
function alignLines(mine, theirs, context) {
  const n = mine.length, m = theirs.length;
  if (n * m > 4e5) return [...mine.map((_, i) => [i, i < m ? i : null]),
    ...theirs.slice(n).map((_, j) => [null, n + j])];
  const best = Array.from({ length: n + 1 }, () => new Float32Array(m + 1));
  const like = (i, j) => likeness(mine[i], theirs[j], context);
  const own = Array.from({ length: n }, (_, i) => Float32Array.from({ length: m }, (_, j) => like(i, j)));
  for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
    best[i][j] = Math.max(best[i + 1][j], best[i][j + 1], own[i][j] ? own[i][j] + best[i + 1][j + 1] : 0);
  }
  const pairs = [];
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && own[i][j] && best[i][j] === Math.fround(own[i][j] + best[i + 1][j + 1])) pairs.push([i++, j++]);
    else if (j === m || (i < n && best[i + 1][j] >= best[i][j + 1])) pairs.push([i++, null]);
    else pairs.push([null, j++]);
  }
  return pairs;
}

// Which register of the new block stands for which of the old: the most frequent partner.
function registerNames(pairs, mine, theirs) {
  const count = new Map();
  for (const [i, j] of pairs) {
    if (i === null || j === null || mine[i].length !== theirs[j].length) continue;
    if (/^(push|pop)$/.test(mine[i][0].text)) continue;  // saved registers are not used for matching
    mine[i].forEach((a, k) => {
      const b = theirs[j][k];
      if (!a.register || !b.register || a.register[1] !== b.register[1]) return;
      const key = a.register[0] + " " + b.register[0];
      count.set(key, (count.get(key) || 0) + 1);
    });
  }
  const names = new Map(), taken = new Set();
  for (const [key] of [...count].sort((x, y) => y[1] - x[1])) {
    const [a, b] = key.split(" ");
    if (!names.has(a) && !taken.has(b)) { names.set(a, b); taken.add(b); }
  }
  return names;
}

// Lines of two matched blocks, aligned: [{tokens, marks} or null, the same of the other side].
function compareBlocks(mine, theirs, same, context) {
  const read = lines => lines.map(line => tokensOf(line, context.rbpIsFrame));
  const [a, b] = [read(mine), read(theirs)];
  const pairs = alignLines(a, b, context);
  const names = registerNames(pairs, a, b);
  const all = (tokens, mark) => ({ tokens, marks: tokens.map(() => mark) });
  return pairs.map(([i, j]) => {
    if (same) return [i === null ? null : all(a[i], "same"), j === null ? null : all(b[j], "same")];
    const alone = tokens => all(tokens, isIdle(tokens) ? "same" : "differs");
    if (i === null || j === null) return [i === null ? null : alone(a[i]), j === null ? null : alone(b[j])];
    return markLine(a[i], b[j], context, names);
  });
}

function markLine(a, b, context, names) {
  const marks = [a.map(() => "same"), b.map(() => "same")];
  const operands = Math.max(a.at(-1).operand, b.at(-1).operand);
  for (let o = 0; o <= operands; o++) {
    const places = [a, b].map(tokens => tokens.flatMap((t, k) => t.operand === o && t.text.trim() && t.text !== "," ? [k] : []));
    const alike = places[0].length === places[1].length;
    places[0].forEach((k, at) => {
      const mark = alike ? compareTokens(a[k], b[places[1][at]], context, names) : "differs";
      marks[0][k] = mark;
      if (alike) marks[1][places[1][at]] = mark;
    });
    if (!alike) for (const k of places[1]) marks[1][k] = "differs";
  }
  return [{ tokens: a, marks: marks[0] }, { tokens: b, marks: marks[1] }];
}

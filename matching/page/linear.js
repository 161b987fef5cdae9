// Both functions side by side, line by line; runs of equal blocks are folded.

const CONTEXT = 1;   // blocks that stay on each side of a difference
const SHORTEST = 3;  // minimum number of blocks to fold a run

function drawLinear() {
  const pane = make("div"), { items, row } = opened;
  pane.id = "linear";
  pane.tabIndex = 0;
  const folds = $("fold").checked && row.matched && items.some(item => !item.same);
  for (let i = 0; i < items.length;) {
    let end = i;
    while (end < items.length && items[end].same) end++;
    const from = i === 0 ? 0 : i + CONTEXT, to = end === items.length ? end : end - CONTEXT;
    if (folds && to - from >= SHORTEST) {
      for (const item of items.slice(i, from)) pane.append(drawItem(item));
      pane.append(foldedRun(items.slice(from, to)));
      for (const item of items.slice(to, end)) pane.append(drawItem(item));
    } else for (const item of items.slice(i, end)) pane.append(drawItem(item));
    if (end < items.length) pane.append(drawItem(items[end]));
    i = end + 1;
  }
  $("code").replaceChildren(pane);
}

function foldedRun(run) {
  const button = make("button", "folded", `⋯ ${run.length} unchanged blocks ⋯`);
  button.onclick = () => button.replaceWith(...run.map(drawItem));
  for (const item of run) item.element = button;
  return button;
}

function drawItem(item) {
  const [a, b] = item.places;
  const box = make("div", "pair " + (a === null ? classOf(NEW, b) : classOf(OLD, a)));
  const head = make("div", "line where");
  item.places.forEach((place, side) => {
    if (place === null) { head.append(make("div", "nothing")); return; }
    const address = opened.blocks[side][place][0];
    const cell = make("div", "", `${SIGN[classOf(side, place)]} ${address}${awayText(side, place)}`);
    cell.onclick = () => go(opened.row, side, address);
    head.append(cell);
  });
  box.append(head);
  for (const sides of linesOf(item)) {
    const line = make("div", "line");
    sides.forEach((one, side) => {
      if (!one) { line.append(make("div", "nothing")); return; }
      line.append(make("div", "", writeLine(one, side)));
    });
    box.append(line);
  }
  item.element = box;
  return box;
}

function lightLinear(item) {
  if (item.element?.className === "folded") item.element.click();
  document.querySelectorAll(".lit").forEach(element => element.classList.remove("lit"));
  item.element.classList.add("lit");
  item.element.scrollIntoView({ block: "center" });
}

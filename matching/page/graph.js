// Both flow graphs. The places of boxes and edges were computed by layout.py.

const SVG = "http://www.w3.org/2000/svg";
const EDGE = ["", "taken", "not-taken"];
const stages = [null, null];  // of each side: {pane, stage, boxes, size, x, y}
const READABLE = 0.85;  // share of the normal text size
let zoom = 1;

const hasGraph = () => opened.graphs.some((graphs, side) => opened.row.sides[side] && graphs.some(g => g));

function graphOf(side) {
  const [whole, folded] = opened.graphs[side];
  return ($("fold").checked && folded) || whole || folded;
}

function drawGraphs() {
  $("code").replaceChildren(...[OLD, NEW].map(drawGraph));
  fit();
  if (zoom < READABLE) fromTheTop();
}

function drawGraph(side) {
  const pane = make("div", "graph"), f = opened.row.sides[side];
  pane.tabIndex = 0;
  stages[side] = null;
  if (!f) { pane.append(make("p", "empty", "No partner.")); return pane; }
  pane.append(make("h2", "", `${side ? "new" : "old"}: ${shorten(f.brief)} at ${f.address}, ${f.blocks} block${f.blocks === 1 ? "" : "s"}`));
  const graph = graphOf(side);
  if (!graph) {
    pane.append(make("p", "empty", `The graph of this function is not drawn, because it has ${f.blocks} blocks, ` +
      "or because too many graphs came before it. See its lines instead."));
    return pane;
  }
  const stage = make("div", "stage"), boxes = new Map();
  stage.append(drawEdges(graph));
  graph.boxes.forEach(([x, y, w, h, group]) => {
    const box = group.length > 1 ? severalBlocks(group) : oneBlock(side, group[0]);
    Object.assign(box.style, { left: x + "px", top: y + "px", width: w + "px", height: h + "px" });
    for (const place of group) boxes.set(place, { box, x: x + w / 2, y: y + h / 2, h });
    stage.append(box);
  });
  pane.append(stage);
  stages[side] = { pane, stage, boxes, size: graph.size, x: 0, y: 0 };
  movable(stages[side]);
  return pane;
}

function severalBlocks(group) {
  const box = make("div", "block same several", `⋯ ${group.length} unchanged blocks ⋯`);
  box.onclick = () => { $("fold").checked = false; draw(); };
  return box;
}

function oneBlock(side, place) {
  const [address] = opened.blocks[side][place], kind = classOf(side, place);
  const box = make("div", "block " + kind, make("div", "address", `${SIGN[kind]} ${address}${awayText(side, place)}`));
  for (const sides of linesOf(opened.itemOf[side].get(place))) {
    if (sides[side]) box.append(make("div", "", writeLine(sides[side], side)));
  }
  box.onclick = () => go(opened.row, side, address);
  return box;
}

function drawEdges(graph) {
  const svg = document.createElementNS(SVG, "svg");
  const draw = (parent, tag, attributes) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  };
  svg.setAttribute("width", graph.size[0]); svg.setAttribute("height", graph.size[1]);
  EDGE.forEach((kind, i) => {
    const marker = draw(svg, "marker", { id: "arrow" + i, viewBox: "0 0 8 8", refX: 7, refY: 4,
      markerWidth: 8, markerHeight: 8, orient: "auto", markerUnits: "userSpaceOnUse" });
    draw(marker, "path", { d: "M0 0L8 4L0 8z", class: kind });
  });
  for (const [, , kind, line] of graph.edges) {
    const points = line.map((n, i) => (i % 2 ? " " : i ? "L" : "M") + n).join("");
    draw(svg, "path", { d: points, class: EDGE[kind], "marker-end": `url(#arrow${kind})` });
  }
  return svg;
}

// --------------------------------------------------------------------- zoom, fit and drag
function place(stage) {
  stage.stage.style.transform = `translate(${stage.x}px, ${stage.y}px) scale(${zoom})`;
}
const topOf = stage => stage.pane.firstChild.offsetHeight + 8;  // below the heading
const shownStages = () => stages.filter(stage => stage);

function fit() {
  zoom = Math.min(1, ...shownStages().map(({ pane, size }) =>
    Math.min((pane.clientWidth - 20) / size[0], (pane.clientHeight - 60) / size[1])));
  for (const stage of shownStages()) {
    stage.x = Math.max(10, (stage.pane.clientWidth - stage.size[0] * zoom) / 2);
    stage.y = topOf(stage);
    place(stage);
  }
}

function fromTheTop() {
  zoom = READABLE;
  for (const stage of shownStages()) {
    const entry = stage.boxes.values().next().value;  // layout.py's first box
    stage.x = stage.pane.clientWidth / 2 - entry.x * zoom;
    stage.y = topOf(stage) - (entry.y - entry.h / 2) * zoom;
    place(stage);
  }
}

function zoomBy(factor, at = null) {  // around the pointer, or the middle of each pane
  const before = zoom;
  zoom = Math.min(3, Math.max(0.05, zoom * factor));
  for (const stage of shownStages()) {
    const [x, y] = at && at.stage === stage ? [at.x, at.y] : [stage.pane.clientWidth / 2, stage.pane.clientHeight / 2];
    stage.x = x - (x - stage.x) * zoom / before;
    stage.y = y - (y - stage.y) * zoom / before;
    place(stage);
  }
}

function movable(stage) {
  const { pane } = stage;
  let from = null, moved = false;
  pane.onpointerdown = event => {
    if (event.button) return;
    from = [event.clientX - stage.x, event.clientY - stage.y];
    moved = false;
  };
  pane.onpointermove = event => {
    if (!from) return;
    const [x, y] = [event.clientX - from[0], event.clientY - from[1]];
    if (!moved && Math.hypot(x - stage.x, y - stage.y) < 4) return;  // a slightly moved click
    if (!moved) { pane.setPointerCapture(event.pointerId); pane.classList.add("moving"); }
    moved = true;
    [stage.x, stage.y] = [x, y];
    place(stage);
  };
  pane.onpointerup = pane.onpointercancel = () => { from = null; pane.classList.remove("moving"); };
  pane.addEventListener("click", event => { if (moved) event.stopPropagation(); moved = false; }, true);
  pane.addEventListener("wheel", event => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) {
      const frame = pane.getBoundingClientRect();
      zoomBy(Math.exp(-event.deltaY / 400), { stage, x: event.clientX - frame.left, y: event.clientY - frame.top });
    } else {
      stage.x -= event.shiftKey ? event.deltaY : event.deltaX;
      stage.y -= event.shiftKey ? 0 : event.deltaY;
      place(stage);
    }
  }, { passive: false });
}

function lightGraph(item, marks = true) {
  document.querySelectorAll(".lit").forEach(element => element.classList.remove("lit"));
  item.places.forEach((at, side) => {
    const stage = stages[side], box = at === null || !stage ? null : stage.boxes.get(at);
    if (!box) return;
    if (marks) box.box.classList.add("lit");
    stage.x = stage.pane.clientWidth / 2 - box.x * zoom;
    // The top of a block that is higher than the pane
    stage.y = Math.max(topOf(stage), stage.pane.clientHeight / 2 - box.h * zoom / 2) - (box.y - box.h / 2) * zoom;
    place(stage);
  });
}

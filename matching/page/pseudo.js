// Pseudo-code of both functions, line by line; numbers in names of variables are ignored.

function drawPseudo() {
  const pane = make("div"), { lines, reasons } = opened.pseudo;
  pane.id = "linear";
  pane.tabIndex = 0;
  reasons.forEach((reason, side) => {
    if (reason) pane.append(make("p", "reason", `No pseudo-code of ${side === OLD ? "old" : "new"}: ${reason}`));
  });
  let run = null, last = "same";
  for (const [sign, ...sides] of lines) {
    if (!run || (sign === "same") !== (last === "same")) { run = make("div", sign === "same" ? "" : "hunk"); pane.append(run); }
    const line = make("div", sign === "same" ? "line" : "line " + sign);
    sides.forEach((text, side) => line.append(make("div", sign === (side === OLD ? "new" : "gone") ? "nothing" : "", text)));
    run.append(line);
    last = sign;
  }
  opened.hunk = -1;
  $("code").replaceChildren(pane);
}

function nextPseudo(by) {
  const hunks = document.querySelectorAll(".hunk");
  if (!hunks.length) return;
  opened.hunk = opened.hunk < 0 && by < 0 ? hunks.length - 1 : (opened.hunk + by + hunks.length) % hunks.length;
  document.querySelectorAll(".lit").forEach(element => element.classList.remove("lit"));
  hunks[opened.hunk].classList.add("lit");
  hunks[opened.hunk].scrollIntoView({ block: "center" });
}

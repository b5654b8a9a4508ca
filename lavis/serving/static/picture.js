// The image tab: boxes drawn on a picture, each with the caption that the server sends back. Runs behind shared.js.
//
// sent       {source, boxes, box}: corners in pixels of the picture; box is the chosen one
// answered   {opened: {name, width, height, url, boxes}} or {captions}, in the order of the boxes
const COLOURS = ["#c2255c", "#1864ab", "#2b7a33", "#b8430a", "#6741d9", "#0b6e82", "#8a5a00", "#495057"];
const PATIENCE = 5; // pixels of the screen that a click may slip; what moves further is a drag
const REST = 400; // milliseconds that a box must rest before its caption is asked for
const SMALLEST = 1; // pixel of the picture, the least side of a box
const image = find(".rb-image"), layer = find(".rb-boxes"), size = find(".rb-size"), chips = find(".rb-chips");
const state = { source: null, name: "", width: 0, height: 0, boxes: [], chosen: null, next: 1, asked: [], draft: null };
let kept = remembered();

// --- asking the server ---------------------------------------------------------------------------------------------

// what the buttons beside the picture are about: the picture and the chosen box
function tell() {
  const box = state.boxes.find((box) => box.id === state.chosen);
  props.value = { ...props.value, source: state.source, box: box ? box.corners : null };
  const boxes = state.boxes.map(({ number, corners, caption }) => ({ number, corners, caption }));
  if (state.source) remember({ source: state.source, boxes, next: state.next });
}

function askForCaptions() {
  const boxes = state.boxes.filter((box) => box.caption === null && !box.failed);
  if (!boxes.length || requests.waiting) return; // one request at a time: what is drawn meanwhile goes with the next
  say(boxes.length > 1 ? `Captioning ${boxes.length} boxes…` : "Captioning…", "rb-busy");
  state.asked = boxes.map((box) => ({ box, corners: box.corners }));
  send("regions", { source: state.source, boxes: boxes.map((box) => box.corners) });
}

function opened(picture) {
  Object.assign(state, { source: requests.source, name: picture.name, width: picture.width, height: picture.height });
  Object.assign(state, { boxes: [], chosen: null, next: 1 });
  for (const box of kept?.boxes || []) state.boxes.push(framed(box));
  if (kept) state.next = kept.next;
  kept = null;
  image.src = picture.url;
  image.alt = picture.name;
  image.hidden = false;
  offer(picture.boxes);
  image.classList.toggle("rb-coarse", Math.max(picture.width, picture.height) < 160); // pixels are shown as they are
  stage.classList.remove("rb-empty");
  stage.style.setProperty("--ratio", picture.width / picture.height);
  say(summary());
}

function summary() {
  const count = state.boxes.length;
  if (!state.source) return missing();
  if (count) return `${count} ${count === 1 ? "box" : "boxes"}. Drag or click for another; drag or arrow keys move the chosen one.`;
  return `${state.name}, ${state.width} × ${state.height} pixels. Drag to draw a box, click for a point.`;
}

const missing = () => (state.source ? "There is no box yet. Drag on the image to draw one." : "No image is open. Open one, or choose an example.");

// the boxes that an example brings along
function offer(boxes) {
  chips.hidden = !boxes.length;
  const button = made("button", "rb-button", `Draw the ${boxes.length} boxes of this example`);
  button.onclick = () => {
    chips.hidden = true;
    boxes.forEach(add);
  };
  chips.replaceChildren(button);
}

function unanswered() {
  for (const { box } of state.asked) box.failed = true;
  state.asked = [];
  tell();
  draw();
}

function answered(reply) {
  if (reply.error) {
    kept = null;
    return unanswered();
  }
  if (reply.opened) {
    opened(reply.opened);
  } else {
    state.asked.forEach(({ box, corners }, index) => {
      if (box.corners === corners) box.caption = reply.captions[index]; // else it was moved meanwhile and is asked for again
    });
    say(summary());
  }
  state.asked = [];
  tell();
  draw();
  askForCaptions();
}

// --- boxes ---------------------------------------------------------------------------------------------------------

const tenth = (value) => Math.round(value * 10) / 10;
const within = (value, end) => Math.min(Math.max(value, 0), end);

function place(event) {
  const frame = image.getBoundingClientRect();
  return [
    within(((event.clientX - frame.left) / frame.width) * state.width, state.width),
    within(((event.clientY - frame.top) / frame.height) * state.height, state.height),
  ];
}

const between = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)].map(tenth);

// the square around a point, moved into the picture where it would stick out, as processors.prompts.point_to_box makes it
function around([x, y]) {
  const side = (size.value / 100) * Math.min(state.width, state.height);
  const left = within(x - side / 2, state.width - side), top = within(y - side / 2, state.height - side);
  return between([left, top], [left + side, top + side]);
}

function add(corners) {
  if (corners[2] - corners[0] < SMALLEST || corners[3] - corners[1] < SMALLEST) return;
  const number = state.next++;
  state.boxes.push(framed({ number, corners, caption: null }));
  choose(number);
  askForCaptions();
}

const framed = (box) => ({ ...box, id: box.number, failed: false, colour: COLOURS[(box.number - 1) % COLOURS.length] });

// another place or size for a box, within the picture; it gets another caption when it rests
let resting = null;
function reshape(box, corners) {
  if (corners[2] - corners[0] < SMALLEST || corners[3] - corners[1] < SMALLEST) return;
  Object.assign(box, { corners, caption: null, failed: false });
  tell();
  draw();
  clearTimeout(resting);
  resting = setTimeout(askForCaptions, REST);
}

function shifted([x1, y1, x2, y2], dx, dy) {
  const right = Math.min(Math.max(dx, -x1), state.width - x2), down = Math.min(Math.max(dy, -y1), state.height - y2);
  return [x1 + right, y1 + down, x2 + right, y2 + down].map(tenth);
}

function choose(id) {
  state.chosen = id;
  tell();
  draw();
}

function remove(id) {
  if (id === null) return;
  state.boxes = state.boxes.filter((box) => box.id !== id);
  choose(state.boxes.length ? state.boxes[state.boxes.length - 1].id : null);
  if (requests.waiting === null) say(summary());
}

function clear() {
  state.boxes = [];
  state.next = 1;
  choose(null);
  say("All boxes removed.");
}

// --- drawing -------------------------------------------------------------------------------------------------------

const CORNERS = ["nw", "ne", "sw", "se"];
const said = (box) => (box.failed ? "no caption" : box.caption === null ? "…" : box.caption || "(nothing)");

function drawnBox(box) {
  const [x1, y1, x2, y2] = box.corners;
  const node = made("div", `rb-box${box.id === state.chosen ? " rb-chosen" : ""}`);
  Object.assign(node.style, {
    left: `${(x1 / state.width) * 100}%`, top: `${(y1 / state.height) * 100}%`,
    width: `${((x2 - x1) / state.width) * 100}%`, height: `${((y2 - y1) / state.height) * 100}%`,
  });
  node.style.setProperty("--colour", box.colour || "#fff");
  if (!box.id) return node;
  node.tabIndex = 0;
  node.dataset.id = box.id;
  node.setAttribute("role", "button");
  node.setAttribute("aria-label", `Box ${box.number}: ${said(box)}. Arrow keys move it, with Shift they size it, Delete removes it.`);
  const label = made("span", "rb-label");
  label.append(made("b", "", box.number), made("span", "rb-caption", said(box)));
  if ((x1 + x2) / 2 > state.width / 2) label.classList.add("rb-right");
  node.append(label);
  if (box.id === state.chosen) node.append(...CORNERS.map((corner) => made("i", `rb-grip rb-${corner}`)));
  return node;
}

// labels above their box, else below or inside it, flush with its left or right: where the picture shows them and none lies
const SIDES = ["", "rb-below", "rb-inside", "rb-foot"];
function placeLabels() {
  const frame = stage.getBoundingClientRect(), placed = [];
  const hidden = (a) => a.top < frame.top || a.bottom > frame.bottom;
  const meets = (a) => placed.some((b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom);
  for (const label of layer.querySelectorAll(".rb-label")) {
    const towards = label.classList.contains("rb-right");
    const tries = SIDES.flatMap((side) => [[side, towards], [side, !towards]]);
    let rectangle;
    for (const [side, right] of [...tries, tries[0]]) {
      label.classList.remove(...SIDES.slice(1));
      if (side) label.classList.add(side);
      label.classList.toggle("rb-right", right);
      label.style.translate = "";
      rectangle = label.getBoundingClientRect();
      label.style.translate = `${Math.max(frame.left - rectangle.left, 0) + Math.min(frame.right - rectangle.right, 0)}px`;
      rectangle = label.getBoundingClientRect();
      if (!hidden(rectangle) && !meets(rectangle)) break;
    }
    placed.push(rectangle);
  }
}

function listRow(box) {
  const row = made("li", box.id === state.chosen ? "rb-chosen" : "");
  row.style.setProperty("--colour", box.colour);
  const pick = made("button", "rb-pick");
  pick.append(made("b", "", box.number), made("span", "rb-caption", said(box)), made("small", "", box.corners.join(", ")));
  pick.onclick = () => choose(box.id);
  const drop = made("button", "rb-drop", "×");
  drop.setAttribute("aria-label", `Remove box ${box.number}`);
  drop.onclick = () => remove(box.id);
  row.append(pick, drop);
  return row;
}

function draw() {
  const focused = layer.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  layer.replaceChildren(...state.boxes.map(drawnBox), ...(state.draft ? [drawnBox({ corners: state.draft })] : []));
  placeLabels();
  if (focused !== null) layer.querySelector(`[data-id="${state.chosen}"]`)?.focus({ preventScroll: true });
  const list = document.querySelector(".rb-list");
  if (list) list.replaceChildren(...state.boxes.map(listRow));
  document.querySelector(".rb-none")?.toggleAttribute("hidden", state.boxes.length > 0);
  find(".rb-remove").disabled = state.chosen === null;
  find(".rb-clear").disabled = !state.boxes.length;
}

// --- pointer, keys, files ------------------------------------------------------------------------------------------

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let press = null;

stage.addEventListener("pointerdown", (event) => {
  if (state.source === null || event.button !== 0) return;
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  const box = event.target.closest(".rb-box");
  const on = box ? Number(box.dataset.id) : null;
  const chosen = on !== null && on === state.chosen ? state.boxes.find((box) => box.id === on) : null; // the others are drawn over
  const grip = chosen && CORNERS.find((corner) => event.target.classList.contains(`rb-${corner}`));
  press = { at: place(event), x: event.clientX, y: event.clientY, moved: false, on, chosen, grip, from: chosen?.corners };
});
stage.addEventListener("pointermove", (event) => {
  if (!press) return;
  press.moved ||= Math.hypot(event.clientX - press.x, event.clientY - press.y) > PATIENCE;
  if (press.moved && press.chosen) {
    reshape(press.chosen, dragged(press, place(event)));
  } else if (press.moved) {
    state.draft = between(press.at, place(event));
    draw();
  }
});
// the corners of a box that is moved by its inside, or sized by one of its corners
function dragged({ at, grip, from }, to) {
  if (!grip) return shifted(from, to[0] - at[0], to[1] - at[1]);
  return between(to, [grip.endsWith("w") ? from[2] : from[0], grip.startsWith("n") ? from[3] : from[1]]);
}

stage.addEventListener("pointerup", (event) => {
  if (!press) return;
  const { at, moved, on, chosen } = press;
  press = state.draft = null;
  if (moved && chosen) askForCaptions();
  else if (moved) add(between(at, place(event)));
  else if (on) choose(on);
  else add(around(at));
  layer.querySelector(`[data-id="${state.chosen}"]`)?.focus({ preventScroll: true });
  draw();
});
stage.addEventListener("pointercancel", () => {
  press = state.draft = null;
  draw();
});
stage.addEventListener("keydown", (event) => {
  const box = event.target.closest(".rb-box");
  if (!box) return;
  const id = Number(box.dataset.id);
  if (event.key === "Delete" || event.key === "Backspace") remove(id);
  else if (event.key === "Enter" || event.key === " ") choose(id);
  else if (event.key in ARROWS) {
    const box = state.boxes.find((box) => box.id === id), step = Math.max(1, Math.round(Math.min(state.width, state.height) / 100));
    const [dx, dy] = ARROWS[event.key].map((towards) => towards * step), [x1, y1, x2, y2] = box.corners;
    if (state.chosen !== id) choose(id);
    if (event.shiftKey) reshape(box, [x1, y1, within(x2 + dx, state.width), within(y2 + dy, state.height)].map(tenth));
    else reshape(box, shifted(box.corners, dx, dy));
  }
  else return;
  event.preventDefault();
});
find(".rb-remove").onclick = () => remove(state.chosen);
find(".rb-clear").onclick = clear;
size.oninput = () => (size.nextElementSibling.textContent = `${size.value} %`);
new ResizeObserver(placeLabels).observe(stage);
draw();
if (kept) reopen(kept.source);
else say(summary());

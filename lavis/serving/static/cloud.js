// The cloud tab: a file to a turnable view, with the box that the sliders set. Runs behind shared.js and cloud_view.js.
//
// sent        {source, box}: box is cx, cy, cz, dx, dy, dz in the cloud's unit and axes
// answered    {opened: {name, count, shown, points, colours, up, box, boxes}}; points and colours in base64
// props.told  may hold {box, text}: the caption of a box, shown at it
const view = new CloudView(find(".rb-canvas")), chips = find(".rb-chips");
let source = null, words = "", kept = remembered();

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// what the buttons beside the view are about
function tell() {
  props.value = { ...props.value, source, box: view.box };
  if (source) remember({ source, box: view.box });
}

const missing = () => "No cloud is open. Open one, or choose an example.";
const summary = () => (source ? words : missing());

function setBox(box) {
  view.box = box;
  view.label = "";
  view.ask();
  tell();
}

function opened(cloud) {
  source = requests.source;
  stage.classList.remove("rb-empty");
  view.show({
    points: new Float32Array(bytes(cloud.points).buffer),
    colours: cloud.colours ? bytes(cloud.colours) : null,
    up: cloud.up,
  });
  setBox(cloud.box);
  find(".rb-up").textContent = `Up: ${cloud.up}`;
  chips.hidden = cloud.boxes.length < 2;
  chips.replaceChildren(
    ...cloud.boxes.map((box, index) => {
      const chip = made("button", "rb-button", `Box ${index + 1}`);
      chip.onclick = () => trigger("pick", { box });
      return chip;
    }),
  );
  const shown = cloud.shown < cloud.count ? `, ${cloud.shown} of them shown` : "";
  words = `${cloud.name}, ${cloud.count} points${shown}. Drag to turn it; the sliders set the box.`;
  say(words);
  for (const name of [".rb-up", ".rb-zoom-in", ".rb-zoom-out"]) find(name).disabled = false;
  const box = kept?.box;
  kept = null;
  if (box) trigger("pick", { box });
}

function answered(reply) {
  if (reply.error) unanswered();
  else opened(reply.opened);
}

function unanswered() {
  kept = null;
  tell();
}

watch("told", () => {
  if (!props.told.box) return;
  const same = view.box && view.box.every((value, index) => value === props.told.box[index]);
  view.label = same ? props.told.text : ""; // a slider may have moved meanwhile
  view.ask();
});

// the sliders send this with their six values
element.closest(".block").addEventListener("rb-box", (event) => source && setBox(event.detail));
find(".rb-up").onclick = () => {
  if (!source) return;
  view.up = view.up === "z" ? "y" : "z";
  view.measure();
  find(".rb-up").textContent = `Up: ${view.up}`;
  view.ask();
};
find(".rb-zoom-in").onclick = () => view.magnify(1.2);
find(".rb-zoom-out").onclick = () => view.magnify(1 / 1.2);
if (kept) reopen(kept.source);
else say(summary());

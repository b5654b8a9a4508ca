// What both tabs share: a file to open (picker, drop or example), requests with a number, a status line.
// Runs in front of picture.js or cloud.js as gr.HTML's js_on_load, which gives element, trigger, props, upload and watch.
// The tab behind it says what to do with an answer: answered(reply), and with none: unanswered(); what there is: summary();
// and what a button that is off waits for: missing().
//
// props.value   what the server is sent: {n, source, ...}; source names the opened file
// props.reply   what it answers: {n, ...} or {n, error}; n says which request is answered
// props.told    what became of a button beside the view: {n, error}
// props.setup   {examples: [{name, title, url}], megabytes}
const find = (selector) => element.querySelector(selector);
const stage = find(".rb-stage"), status = find(".rb-status"), chooser = find(".rb-file");
const requests = { count: 0, waiting: null, source: null, pressed: false, timer: null };
const LOOK = 5; // seconds between two looks whether the server still answers, while a request waits
const LIMIT = 180; // seconds that an answer may take
const GONE = "The server does not answer: it was stopped, or the connection broke. Start it again, then reload this page.";
const memory = `regionblip-${element.closest(".block").id}`; // of this tab of the browser, for a reload

function say(message, kind) {
  status.textContent = message;
  status.className = `rb-status ${kind || ""}`;
}

function made(tag, name, text) {
  const node = document.createElement(tag);
  node.className = name;
  if (tag === "button") node.type = "button";
  if (text !== undefined) node.textContent = text;
  return node;
}

// a request waits: look now and then whether anybody is there to answer it, and do not wait for ever
function wait() {
  clearTimeout(requests.timer);
  const begin = Date.now();
  const look = async () => {
    let lost = Date.now() - begin > LIMIT * 1000 ? `No answer came in ${LIMIT} seconds. Try again later.` : "";
    if (!lost) await fetch("robots.txt", { cache: "no-store", signal: AbortSignal.timeout(LOOK * 1000) }).catch(() => (lost = GONE));
    if (requests.waiting === null && !requests.pressed) return;
    if (lost) giveUp(lost);
    else requests.timer = setTimeout(look, LOOK * 1000);
  };
  requests.timer = setTimeout(look, LOOK * 1000);
}

function giveUp(why) {
  const asked = requests.waiting !== null;
  Object.assign(requests, { waiting: null, pressed: false });
  clearTimeout(requests.timer);
  say(why, "rb-error");
  if (asked) unanswered();
}

function remember(content) {
  try {
    sessionStorage.setItem(memory, JSON.stringify(content));
  } catch {} // no room, or not allowed: a reload then begins anew
}

// what was open before a reload; a page that is opened anew begins empty
function remembered() {
  if (performance.getEntriesByType("navigation")[0]?.type !== "reload") return null;
  try {
    return JSON.parse(sessionStorage.getItem(memory));
  } catch {
    return null;
  }
}

function send(event, content) {
  wait();
  requests.waiting = ++requests.count;
  props.value = { ...content, n: requests.waiting };
  trigger(event);
}

// after a reload: what was open is opened again, once gradio has taken the view up; before, it sends a value of n 0
let tries = 0;
function reopen(source) {
  say("Opening…", "rb-busy");
  setTimeout(() => open(source), 200);
}

watch("reply", () => {
  if (props.reply.n === 0 && requests.count && tries++ < 5) return reopen(requests.source);
  if (props.reply.n !== requests.waiting) return; // the answer to a question that was given up
  requests.waiting = null;
  if (props.reply.error) say(props.reply.error, "rb-error");
  answered(props.reply);
});

// the page sends this when a request reached no handler: the server is busy or the connection broke
element.closest(".block").addEventListener("rb-failed", () => {
  if (requests.waiting === null && !requests.pressed) return;
  giveUp("The server did not take this request: it is busy or gone. Wait a moment and try again.");
});

// a button beside the view was pressed, and what became of it: {n, error}
element.closest(".block").addEventListener("rb-pressed", () => {
  requests.pressed = true;
  say("Waiting for the model…", "rb-busy");
  wait();
});
watch("told", () => {
  requests.pressed = false;
  if (props.told.error) say(props.told.error, "rb-error");
  else if (status.classList.contains("rb-busy") && requests.waiting === null) say(summary());
});

// a button that is off says why: the browser tells of the pointer there, though of no click
element.closest("[role=tabpanel]")?.addEventListener("pointerdown", (event) => {
  if (event.target.closest("button:disabled")) say(missing(), "rb-error");
});

function open(source) {
  say("Opening…", "rb-busy");
  requests.source = source;
  send("open", { source });
}

async function openFile(file) {
  if (!file) return;
  if (file.size > props.setup.megabytes * 1e6) {
    say(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; accepted: up to ${props.setup.megabytes} MB`, "rb-error");
    return;
  }
  say("Uploading…", "rb-busy");
  try {
    const late = new Promise((_, fail) => setTimeout(() => fail(new Error("the server does not take it")), LIMIT * 1000));
    open({ path: (await Promise.race([upload(file), late])).path, name: file.name });
  } catch (error) {
    say(`${file.name} was not uploaded: ${error.message}. Is the server still there?`, "rb-error");
  }
}

chooser.onchange = () => {
  openFile(chooser.files[0]);
  chooser.value = "";
};
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  stage.addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.toggle("rb-over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") openFile(event.dataTransfer.files[0]);
  });
}
for (const example of props.setup.examples) {
  const button = made("button", "rb-example"), picture = made("img", "");
  Object.assign(picture, { src: example.url, alt: example.title });
  button.title = example.title;
  button.append(picture);
  button.onclick = () => open({ example: example.name });
  find(".rb-examples").append(button);
}

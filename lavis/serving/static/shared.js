// What both tabs share: a file to open (picker, drop or example), requests with a number, a status line.
// Runs in front of picture.js or cloud.js as gr.HTML's js_on_load, which gives element, trigger, props, upload and watch.
// The tab behind it says what to do with an answer: answered(reply), and with none: unanswered().
//
// props.value   what the server is sent: {n, source, ...}; source names the opened file
// props.reply   what it answers: {n, ...} or {n, error}; n says which request is answered
// props.setup   {examples: [{name, title, url}], megabytes}
const find = (selector) => element.querySelector(selector);
const stage = find(".rb-stage"), status = find(".rb-status"), chooser = find(".rb-file");
const requests = { count: 0, waiting: null, source: null }; // source: of the file that is being opened

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

function send(event, content) {
  requests.waiting = ++requests.count;
  props.value = { ...content, n: requests.waiting };
  trigger(event);
}

watch("reply", () => {
  if (props.reply.n !== requests.waiting) return; // the answer to a question that was given up
  requests.waiting = null;
  if (props.reply.error) say(props.reply.error, "rb-error");
  answered(props.reply);
});

// the page sends this when a request reached no handler: the server is busy or the connection broke
element.closest(".block").addEventListener("rb-failed", () => {
  if (requests.waiting === null) return;
  requests.waiting = null;
  say("The server did not take this request: it is busy or gone. Wait a moment and try again.", "rb-error");
  unanswered();
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
    open({ path: (await upload(file)).path, name: file.name });
  } catch (error) {
    say(`${file.name} was not uploaded: ${error.message}`, "rb-error");
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

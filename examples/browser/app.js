// SP over WebSocket needs no library: each SP message is one binary WebSocket message, and the
// sub-protocol names the protocol of the side that listens. See README.md.
"use strict";

const service = new URLSearchParams(location.search).get("service") ?? "wss://localhost:8443";
const show = (id, text) => { document.getElementById(id).textContent = text; };

// Keep a connection to a listener that speaks `protocol`. `opened` is called with each new WebSocket,
// `received` with the bytes of each message.
function connect(name, protocol, opened, received) {
  const socket = new WebSocket(`${service}/${name}`, `${protocol}.sp.nanomsg.org`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { show(`${name}-state`, "connected"); opened(socket); };
  socket.onmessage = (event) => received(new Uint8Array(event.data));
  socket.onclose = (event) => {
    show(`${name}-state`, `no connection (${event.code} ${event.reason}), trying again`);
    setTimeout(connect, 500 + 500 * Math.random(), name, protocol, opened, received);
  };
}

// SUB: a PUB sends every message to all subscribers, and each one picks its own by the first bytes.
function subscribe(topic, received) {
  const prefix = new TextEncoder().encode(topic);
  connect("ticks", "pub", () => {}, (body) => {
    if (prefix.every((byte, place) => body[place] === byte)) received(new TextDecoder().decode(body));
  });
}

// REQ: a request is an id of 4 bytes, with the highest bit set, and the body. The answer has the same id.
const waiting = new Map(); // by id: the request, to send it again, and `resolve`, to call with the answer
let questions = null;
let nextId = crypto.getRandomValues(new Uint32Array(1))[0];

function ask(body) {
  const id = (nextId++ | 0x80000000) >>> 0;
  const text = new TextEncoder().encode(body);
  const request = new Uint8Array(4 + text.length);
  new DataView(request.buffer).setUint32(0, id); // big-endian
  request.set(text, 4);
  if (questions?.readyState === WebSocket.OPEN) questions.send(request);
  return new Promise((resolve) => waiting.set(id, { request, resolve }));
}

connect("questions", "rep", (socket) => {
  questions = socket;
  for (const { request } of waiting.values()) socket.send(request); // not answered before the connection was lost
}, (message) => {
  const id = new DataView(message.buffer).getUint32(0);
  waiting.get(id)?.resolve(new TextDecoder().decode(message.subarray(4)));
  waiting.delete(id);
});

// The page.
let ticks = 0, answers = 0;

async function askAndShow(question) {
  show("answer", await ask(question));
  answers += 1;
}

subscribe("tick ", (tick) => {
  show("tick", tick);
  ticks += 1;
  if (ticks % 3 === 0) askAndShow(`after ${ticks} ticks and ${answers} answers: are you there?`);
});

document.getElementById("form").onsubmit = (event) => {
  event.preventDefault();
  askAndShow(document.getElementById("question").value);
};

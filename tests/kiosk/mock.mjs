// A stand-in for `calotype serve`: the jobs API and the page, with coloured squares as images.
// It is for work on the page; CI drives the page with the real server.
//
//     node mock.mjs [--port 8080] [--token T] [--fixed] [--idle S] [--queue N] [--step-ms N] [--page FOLDER]
//
// Two prompts are special: "fail ..." fails after three steps, and "warn ..." comes with a warning that looks like markup.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { encodePng, sizeOfPng } from "./png.mjs";

const { values: options } = parseArgs({
  options: {
    port: { type: "string", default: "8080" },
    token: { type: "string" },
    fixed: { type: "boolean", default: false },
    idle: { type: "string" },
    queue: { type: "string", default: "4" },
    "step-ms": { type: "string", default: "60" },
    page: { type: "string", default: new URL("../../src/server/kiosk", import.meta.url).pathname },
  },
});

const SIZE = 128;
const STEPS = 20;
const FILES = {
  "/": ["index.html", "text/html; charset=utf-8"],
  "/kiosk/app.js": ["app.js", "text/javascript; charset=utf-8"],
  "/kiosk/texts.js": ["texts.js", "text/javascript; charset=utf-8"],
  "/kiosk/style.css": ["style.css", "text/css; charset=utf-8"],
  "/kiosk/theme.css": ["theme.css", "text/css; charset=utf-8"],
};
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; " +
  "media-src 'self' blob:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
const HUES = { red: 2, orange: 27, yellow: 50, green: 120, teal: 178, blue: 218, purple: 272, pink: 326 };

const presets = readFileSync(`${options.page}/presets.txt`, "utf8").trim().split("\n");
const jobs = new Map();
const queue = [];
let running = null;

// ---------------------------------------------------------------------------------------------- jobs

function newJob({ recipe, init }) {
  const job = {
    id: randomUUID(), status: "queued", position: queue.length, step: 0, steps: recipe.steps ?? STEPS, seconds_left: null,
    prompt: recipe.prompt, seed: recipe.seed ?? 7, created: Math.floor(Date.now() / 1000), image: null, error: null,
    warnings: recipe.prompt.startsWith("warn") ? ["<img src=x onerror=alert(1)> ignored"] : [],
  };
  Object.defineProperty(job, "hidden", { value: { init, listeners: new Set(), timer: null, png: null } });
  jobs.set(job.id, job);
  queue.push(job);
  runNext();
  return job;
}

function runNext() {
  if (running === null && queue.length > 0) {
    running = queue.shift();
    Object.assign(running, { status: "running", position: null });
    step(running);
  }
  queue.forEach((job, position) => { job.position = position; tell(job, "status", job); });
}

function step(job) {
  tell(job, "status", job);
  job.hidden.timer = setTimeout(() => {
    job.step++;
    job.seconds_left = ((job.steps - job.step) * Number(options["step-ms"])) / 1000;
    tell(job, "preview", { step: job.step, image: dataUri(drawing(job, 16, job.step / job.steps)) });
    if (job.prompt.startsWith("fail") && job.step === 3) end(job, "failed", { message: "latents: expected numbers, got NaN", kind: "numeric" });
    else if (job.step === job.steps) end(job, "done");
    else step(job);
  }, Number(options["step-ms"]));
}

function end(job, status, error = null) {
  clearTimeout(job.hidden.timer);
  Object.assign(job, { status, error, position: null, seconds_left: null });
  if (status === "done") {
    job.hidden.png = drawing(job, SIZE, 1);
    job.image = `/api/jobs/${job.id}/image.png`;
  }
  tell(job, "status", job);
  for (const response of job.hidden.listeners) response.end();
  if (queue.includes(job)) queue.splice(queue.indexOf(job), 1);
  if (running === job) running = null;
  runNext();
}

function tell(job, name, data) {
  for (const response of job.hidden.listeners) response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
}

// A disc on a plain background, in the colours that the prompt names, less noisy with each step.
function drawing(job, size, done) {
  const named = job.prompt.split(/\W+/).filter((word) => word in HUES);
  const [disc, ground] = [HUES[named[0]] ?? 40, HUES[named[1]] ?? 200];
  let noise = Number(job.seed) % 2147483647 || 1;
  return encodePng(size, size, (x, y) => {
    noise = (48271 * noise) % 2147483647;
    const inside = Math.hypot(x + 0.5 - size / 2, y + 0.5 - size / 2) < 0.32 * size;
    const clean = inside ? colour(disc, 0.5) : colour(ground, 0.82);
    return clean.map((value) => Math.round(value * done + (noise % 256) * (1 - done)));
  });
}

function colour(hue, light) {
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - 0.8 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

function dataUri(png) {
  return `data:image/png;base64,${png.toString("base64")}`;
}

// ---------------------------------------------------------------------------------------------- HTTP

function sendJson(response, status, body, headers = {}) {
  response.writeHead(status, { "Content-Type": "application/json", ...headers }).end(JSON.stringify(body));
}

function refuse(response, status, message, headers) {
  sendJson(response, status, { error: { message, type: "invalid_request_error", param: null, code: null } }, headers);
}

function info() {
  return {
    model: "calotype-emoji-1", version: "0.1.0", width: SIZE, height: SIZE, steps: STEPS, queue_length: queue.length,
    queue_limit: Number(options.queue), fixed_prompts: options.fixed ? presets.slice(0, 4) : null, presets,
    idle_s: options.idle ? Number(options.idle) : null, accepts_images: true,
  };
}

async function post(request, response) {
  let text = "";
  for await (const part of request) text += part;
  const body = JSON.parse(text);
  const refusal = whyNot(body);
  if (refusal) return refuse(response, 422, refusal);
  if (queue.length >= Number(options.queue)) return refuse(response, 429, "the queue is full", { "Retry-After": "1" });
  return sendJson(response, 202, newJob(body));
}

function whyNot({ recipe, init }) {
  if (recipe?.version !== 1) return "version: expected 1";
  if (options.fixed && !info().fixed_prompts.includes(recipe.prompt)) return "prompt: expected one of the fixed prompts";
  if (init === undefined) return null;
  const [width, height] = sizeOfPng(Buffer.from(init.replace("data:image/png;base64,", ""), "base64"));
  return width === SIZE && height === SIZE ? null : `init: expected ${SIZE}x${SIZE} pixels, got ${width}x${height}`;
}

function stream(job, response) {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  response.write(`event: status\ndata: ${JSON.stringify(job)}\n\n`);
  if (["done", "failed", "cancelled"].includes(job.status)) return response.end();
  const alive = setInterval(() => response.write(": keepalive\n\n"), 10_000);
  job.hidden.listeners.add(response);
  return response.on("close", () => { clearInterval(alive); job.hidden.listeners.delete(response); });
}

function answerJob(request, response, id, what) {
  const job = jobs.get(id);
  if (!job) return refuse(response, 404, `job ${id}: not known`);
  if (what === "events") return stream(job, response);
  if (what === "cancel" && request.method === "POST") {
    if (job.status !== "queued" && job.status !== "running") return refuse(response, 409, "job: expected a queued or running job");
    // As the real one does: what it was before it stopped, and not before the events.
    const before = { ...job };
    end(job, "cancelled", { message: `stopped in step ${job.step} of ${job.steps}`, kind: "cancelled" });
    return setTimeout(() => sendJson(response, 200, before), 100);
  }
  if (what === "image.png" && job.hidden.png) {
    return response.writeHead(200, { "Content-Type": "image/png", ETag: `"${job.id}"` }).end(job.hidden.png);
  }
  return what === undefined ? sendJson(response, 200, job) : refuse(response, 404, "no such page");
}

// As Bearer or as Basic password.
function hasToken({ headers }) {
  const [scheme, value] = (headers.authorization ?? "").split(" ");
  return (scheme === "Basic" ? Buffer.from(value, "base64").toString().split(":")[1] : value) === options.token;
}

async function answer(request, response) {
  const { pathname } = new URL(request.url, "http://localhost");
  if (pathname in FILES) {
    const [name, type] = FILES[pathname];
    response.writeHead(200, { "Content-Type": type, "Content-Security-Policy": POLICY });
    return response.end(readFileSync(`${options.page}/${name}`));
  }
  if (options.token && !hasToken(request)) return refuse(response, 401, "expected a token", { "WWW-Authenticate": ["Bearer", 'Basic realm="calotype"'] });
  if (pathname === "/api/info") return sendJson(response, 200, info());
  if (pathname === "/api/jobs" && request.method === "POST") return post(request, response);
  if (pathname === "/api/jobs") return sendJson(response, 200, { jobs: [...jobs.values()].reverse() });
  const [, id, what] = pathname.match(/^\/api\/jobs\/([\w-]+)(?:\/([\w.]+))?$/) ?? [];
  return id ? answerJob(request, response, id, what) : refuse(response, 404, "no such page");
}

createServer((request, response) => {
  answer(request, response).catch((error) => refuse(response, 400, String(error)));
}).listen(Number(options.port), "127.0.0.1", function () {
  console.log(`http://127.0.0.1:${this.address().port}/`);
});

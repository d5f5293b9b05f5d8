// The kiosk page: one prompt, one image at a time, drawn by the server's jobs API.
//
// It knows the API and this page, no model: sizes, steps and prompts come from `api/info`. Whatever the server sends is shown
// as text, never as markup. Paths are relative, so that the page also works behind a proxy's prefix.

import { TEXTS } from "./texts.js";

const LIMITS = {
  gallery_images: 24,
  file_mb: 50,
  answer_ms: 60_000, // One call without a stream.
  silence_ms: 25_000, // A stream: the server sends a comment every 10 s.
  first_retry_ms: 500,
  last_retry_ms: 15_000,
  poll_ms: 15_000,
  full_s: 60, // The longest wait for a place in the queue between two tries.
  idle_warning_s: 15,
};
const DEFAULT_STRENGTH = 0.6;
const TOKEN = /^[ -~]+$/; // What a header can carry.

// Phases: start, sending, full (the queue), queued, running, done, cancelled, failed, lost (by the server), unsent.
const ACTIVE = ["sending", "full", "queued", "running"];
const ENDED = ["done", "cancelled", "failed"];

const element = (id) => document.getElementById(id);

const page = {
  language: "en",
  info: null,
  phase: "start",
  request: null, // What was asked for last: { recipe, init }, to ask again.
  job: null, // What the server says of it.
  preview: null, // The last preview's data URI.
  shown: null, // The image in the frame, one of the gallery's.
  error: "",
  serverError: "", // Why the server refused to say what it draws.
  version: null, // The server's when this page was loaded.
  full_s: 0,
  cancelling: false,
  run: null, // The AbortController of the work on the present request.
  init: null, // The init image's data URI, already of the model's size.
  images: [], // The gallery, newest first: { id, prompt, seed, warnings, blob, url }.
};

// ---------------------------------------------------------------------------------------------- texts

function text(key, values = {}) {
  return TEXTS[page.language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function preferredLanguage() {
  const wanted = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase());
  return wanted.find((language) => language in TEXTS) ?? "en";
}

function setLanguage(language) {
  page.language = language;
  document.documentElement.lang = language;
  element("language").value = language;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", text(node.dataset.label));
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = text(node.dataset.placeholder);
  renderPrompts();
  renderStrength();
  renderGallery();
  render();
}

function fillLanguages() {
  for (const [language, texts] of Object.entries(TEXTS)) element("language").add(new Option(texts.name, language));
}

// A duration in words, in whole seconds or, from a minute and a half on, in minutes.
function duration(seconds) {
  const [value, unit] = seconds < 90 ? [Math.max(1, seconds), "second"] : [seconds / 60, "minute"];
  const style = { style: "unit", unit, unitDisplay: "long", maximumFractionDigits: 0 };
  return new Intl.NumberFormat(page.language, style).format(value);
}

// ---------------------------------------------------------------------------------------------- the server

const session = openSession();

// What lasts as long as the tab: the token and the running job. A browser that blocks storage throws here, and then it lasts as
// long as the page.
function openSession() {
  try {
    return window.sessionStorage;
  } catch {
    const kept = new Map();
    return {
      getItem: (key) => kept.get(key) ?? null,
      setItem: (key, value) => kept.set(key, value),
      removeItem: (key) => kept.delete(key),
    };
  }
}

class ConnectionLost extends Error {}

class Refused extends Error {
  constructor(status, message, retry_s) {
    super(message);
    this.status = status;
    this.retry_s = retry_s;
  }
}

// Ends all pauses at once: the user or the system says that the network is back.
const wake = new EventTarget();

function pause(ms, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      wake.removeEventListener("wake", end);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    wake.addEventListener("wake", end);
    signal?.addEventListener("abort", end);
  });
}

// Waits before another try, twice as long each time, with some chance in it so that many pages do not come back at one moment.
function backoff() {
  let wait_ms = LIMITS.first_retry_ms;
  return {
    reset() { wait_ms = LIMITS.first_retry_ms; },
    async wait(signal) {
      const now_ms = wait_ms * (0.75 + Math.random() / 2);
      wait_ms = Math.min(2 * wait_ms, LIMITS.last_retry_ms);
      await pause(now_ms, signal);
    },
  };
}

function setConnected(connected) {
  const banner = element("connection");
  if (banner.hidden === connected) return;
  banner.hidden = connected;
  if (connected) announce(text("connection_back"));
}

// An AbortController that a silence ends, and the signal of the run that it belongs to.
function deadline(ms, signal) {
  const controller = new AbortController();
  const silence = () => controller.abort("silence");
  const abandon = () => controller.abort("abandoned");
  let timer = setTimeout(silence, ms);
  if (signal?.aborted) abandon();
  signal?.addEventListener("abort", abandon);
  return {
    signal: controller.signal,
    extend() { clearTimeout(timer); timer = setTimeout(silence, ms); },
    end() { clearTimeout(timer); signal?.removeEventListener("abort", abandon); },
  };
}

// One request. Throws ConnectionLost where no server answered, and Refused where it said no.
async function send(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const token = session.getItem("token");
    const response = await fetchOrLost(path, {
      method,
      signal,
      cache: "no-store",
      credentials: "omit", // Or the browser asks for a name and a password by itself, before this page can.
      headers: {
        ...(token ? { Authorization: `Bearer ${token}` } : {}),
        ...(body ? { "Content-Type": "application/json" } : {}),
      },
      body: body && JSON.stringify(body),
    });
    if (response.status === 401) {
      await askToken(token);
      continue;
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

// A proxy in front of a server that is being restarted answers 502 to 504.
async function fetchOrLost(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    response = null;
  }
  const answered = response !== null && ![502, 503, 504].includes(response.status);
  if (!answered && options.signal?.reason !== "abandoned") setConnected(false);
  if (!answered) throw new ConnectionLost();
  setConnected(true);
  return response;
}

async function refusal(response) {
  let message = `HTTP ${response.status}`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch {
    // Not the server's own answer; the status says enough.
  }
  return new Refused(response.status, message, Number(response.headers.get("Retry-After")) || 1);
}

// One request whose whole answer `read` takes within the time limit.
async function receive(path, options, read) {
  const limit = deadline(LIMITS.answer_ms, options.signal);
  try {
    const response = await send(path, { ...options, signal: limit.signal });
    return await read(response);
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new ConnectionLost();
  } finally {
    limit.end();
  }
}

function receiveJson(path, options = {}) {
  return receive(path, options, async (response) => parseJson(await response.text()));
}

// Seeds have 64 bits, and numbers of JavaScript 53: they stay text.
// A string of JSON cannot hold this pattern, because quotes in it come with a backslash.
function parseJson(json) {
  return JSON.parse(json.replace(/"seed":\s*(\d+)/g, '"seed":"$1"'));
}

// The events of one stream, each as { name, data }.
async function* readEvents(response, heard) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      yield* blocks.map(parseEvent).filter((event) => event.data !== "");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(block) {
  const lines = block.split("\n");
  const values = (field) => lines.filter((line) => line.startsWith(`${field}:`)).map((line) => line.slice(field.length + 1).trimStart());
  return { name: values("event")[0] ?? "message", data: values("data").join("\n") };
}

// The token comes with the address once, and leaves it, so that no photograph of the screen shows it.
function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return;
  if (TOKEN.test(token)) session.setItem("token", token);
  history.replaceState(null, "", location.pathname + location.search);
}

let tokenAsked = null;

// Asks once, however many requests were refused together.
function askToken(refused) {
  if (session.getItem("token") !== refused) return null;
  tokenAsked ??= new Promise((resolve) => {
    const dialog = element("token-dialog");
    element("token").value = "";
    dialog.addEventListener("close", resolve, { once: true });
    dialog.showModal();
  }).finally(() => { tokenAsked = null; });
  return tokenAsked;
}

function saveToken() {
  session.setItem("token", element("token").value.trim());
}

// Keeps `info` fresh, and notices a server that went away or came back while nothing is drawn.
async function watchServer() {
  const retry = backoff();
  for (;;) {
    try {
      setInfo(await receiveJson("api/info"));
      retry.reset();
      await pause(LIMITS.poll_ms);
    } catch (error) {
      page.serverError = error instanceof Refused ? error.message : "";
      render();
      await retry.wait();
    }
  }
}

function setInfo(info) {
  const before = page.info;
  page.info = info;
  page.serverError = "";
  page.version ??= info.version;
  if (isUntouched()) reloadIfOld();
  if (JSON.stringify(before) === JSON.stringify(info)) return;
  element("model").textContent = `${info.model} · ${info.width} × ${info.height}`;
  element("steps").placeholder = info.steps;
  element("image-to-image").hidden = !info.accepts_images;
  if (before && (before.width !== info.width || before.height !== info.height)) setInit(null);
  if (JSON.stringify([before?.presets, before?.fixed_prompts]) !== JSON.stringify([info.presets, info.fixed_prompts])) renderPrompts();
  restartIdle();
  render();
}

// A kiosk's page stays open for months: a newer server brings its own page.
function reloadIfOld() {
  if (page.info && page.version !== page.info.version) location.reload();
}

// ---------------------------------------------------------------------------------------------- drawing

function isActive() {
  return ACTIVE.includes(page.phase);
}

function isUntouched() {
  return page.phase === "start" && element("prompt").value === "" && !page.init;
}

function chosenPrompt() {
  if (!page.info?.fixed_prompts) return element("prompt").value.trim();
  return document.querySelector("#preset-list input:checked")?.value ?? "";
}

// The page chooses the seed, so that an image which a restart lost can be drawn again.
function requestFromForm() {
  const recipe = { version: 1, prompt: chosenPrompt(), seed: readNumber("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0] };
  const negative = element("negative").value.trim();
  if (negative && !page.info?.fixed_prompts) recipe.negative = negative;
  const steps = readNumber("steps");
  if (steps !== null) recipe.steps = steps;
  if (!page.init) return { recipe };
  recipe.strength = Number(element("strength").value);
  return { recipe, init: page.init };
}

function readNumber(id) {
  const input = element(id);
  return input.value === "" ? null : input.valueAsNumber;
}

function drawForm() {
  if (isActive() || !page.info) return;
  if (chosenPrompt() === "") {
    (page.info.fixed_prompts ? document.querySelector("#preset-list input") : element("prompt"))?.focus();
    return;
  }
  draw(requestFromForm());
}

async function draw(request) {
  const signal = begin(request, "sending");
  scrollToStage();
  const job = await submit(request, signal);
  if (!job || signal.aborted) return;
  remember(job.id, request);
  setJob(job);
  await follow(job.id, signal);
}

// A request in a fresh state: nothing of the one before it is shown any more.
function begin(request, phase) {
  page.run?.abort();
  page.run = new AbortController();
  Object.assign(page, { request, phase, job: null, preview: null, shown: null, error: "", cancelling: false });
  announce(text("sending"));
  restartIdle();
  render();
  return page.run.signal;
}

// Sends a request until the queue has a place for it. Gives the job, or null after it showed why there is none.
async function submit(request, signal) {
  while (!signal.aborted) {
    try {
      // Without the run's signal: a job that the server took must become known, or it could not be cancelled.
      return await receiveJson("api/jobs", { method: "POST", body: request });
    } catch (error) {
      if (error instanceof ConnectionLost) return end("unsent");
      if (error.status !== 429) return end("failed", error.message);
      if (page.cancelling) return end("cancelled");
      page.full_s = Math.min(error.retry_s, LIMITS.full_s);
      setPhase("full");
      await pause(1000 * page.full_s, signal);
    }
  }
  return null;
}

// Follows a job to its end and fetches its image, through lost connections.
async function follow(id, signal) {
  const retry = backoff();
  while (!signal.aborted) {
    try {
      if (page.cancelling) await sendCancel(id, signal);
      setJob(await receiveJson(jobPath(id), { signal }));
      retry.reset();
      if (!ENDED.includes(page.job.status)) await readStream(id, signal);
      if (ENDED.includes(page.job.status)) return await finish(signal);
      await pause(LIMITS.first_retry_ms, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused) return error.status === 404 ? end("lost") : end("failed", error.message);
      await retry.wait(signal);
    }
  }
}

async function sendCancel(id, signal) {
  try {
    setJob(await receiveJson(`${jobPath(id)}/cancel`, { method: "POST", signal }));
  } catch (error) {
    if (error.status !== 409) throw error; // It has ended already, and the next answer says how.
  }
}

async function readStream(id, signal) {
  const limit = deadline(LIMITS.silence_ms, signal);
  try {
    const response = await send(`${jobPath(id)}/events`, { signal: limit.signal });
    for await (const { name, data } of readEvents(response, limit.extend)) {
      if (signal.aborted) return;
      if (name === "status") setJob(parseJson(data));
      if (ENDED.includes(page.job.status)) return;
      if (name === "preview") setPreview(JSON.parse(data).image);
    }
  } catch (error) {
    if (error instanceof Refused) throw error;
    if (!signal.aborted) setConnected(false);
    throw new ConnectionLost();
  } finally {
    limit.end();
  }
}

async function finish(signal) {
  const { id, status, error, prompt, seed, warnings } = page.job;
  if (status === "cancelled") return end(status);
  if (status === "failed") return end(status, error?.message);
  const blob = await receive(`${jobPath(id)}/image.png`, { signal }, (response) => response.blob());
  if (signal.aborted) return;
  page.shown = await addImage({ id, prompt, seed, warnings: warnings ?? [], blob });
  end("done");
}

// Shows how a request ended.
function end(phase, error = "") {
  page.error = error;
  page.preview = null;
  session.removeItem("job");
  setPhase(phase);
  announce([text(phase), error].filter(Boolean).join(": "));
  restartIdle();
  return null;
}

function cancel() {
  if (!isActive() || page.cancelling) return;
  if (page.phase === "full") {
    page.run.abort();
    end("cancelled");
    return;
  }
  // Before the job is known, `follow` sends this as soon as it is. It also tries again where this here fails.
  page.cancelling = true;
  render();
  if (page.job) sendCancel(page.job.id, page.run.signal).catch(() => {});
}

function jobPath(id) {
  return `api/jobs/${encodeURIComponent(id)}`;
}

function setJob(job) {
  // An end is final: the answer to a cancel can be older, and come later.
  if (page.job && (page.job.id !== job.id || ENDED.includes(page.job.status))) return;
  announceJob(page.job, job);
  page.job = job;
  // An end is shown by `finish`, once the image is here.
  if (!ENDED.includes(job.status)) page.phase = job.status;
  render();
}

function setPreview(image) {
  if (!image.startsWith("data:image/")) return;
  page.preview = image;
  render();
}

function setPhase(phase) {
  page.phase = phase;
  render();
}

// A page that is reloaded goes on with its job.
function remember(id, request) {
  try {
    session.setItem("job", JSON.stringify({ id, request }));
  } catch {
    // An init image can be larger than the browser keeps; without this, only a reload forgets the job.
    session.removeItem("job");
  }
}

function resume() {
  const saved = session.getItem("job");
  if (!saved) return;
  const { id, request } = JSON.parse(saved);
  follow(id, begin(request, "queued"));
}

// ---------------------------------------------------------------------------------------------- what is shown

function render() {
  const { phase, job, shown, info } = page;
  const focused = document.activeElement;
  const active = isActive();
  const src = shown?.url ?? page.preview ?? "";
  const image = element("image");
  if (src && image.getAttribute("src") !== src) image.src = src;
  image.hidden = !src;
  image.alt = src ? (shown?.prompt ?? page.request?.recipe.prompt ?? "") : "";
  element("empty").hidden = Boolean(src);
  element("caption").textContent = shown?.prompt ?? page.request?.recipe.prompt ?? "";
  element("status").textContent = statusText();
  const error = page.error || page.serverError;
  show("error", error !== "");
  element("error").textContent = error;
  renderWarnings(shown?.warnings ?? job?.warnings ?? []);
  renderProgress(active, job);
  show("again", ["cancelled", "failed", "lost", "unsent"].includes(phase) && !shown);
  renderActions(shown, info);
  element("draw").setAttribute("aria-disabled", String(active || !info));
  renderPressed();
  rescueFocus(focused);
}

// A button that went away must not take the place of the keyboard with it.
function rescueFocus(focused) {
  if (!element("stage").contains(focused) || !focused.closest("[hidden]")) return;
  ["cancel", "again", "download", "draw"].map(element).find((button) => !button.closest("[hidden]")).focus();
}

function show(id, visible) {
  element(id).hidden = !visible;
}

function statusText() {
  const { phase, job, shown, cancelling } = page;
  if (shown) return text("seed_was", { seed: shown.seed });
  if (phase === "start") return "";
  if (cancelling && isActive()) return text("cancelling");
  if (phase === "full") return text("full", { time: duration(page.full_s) });
  if (phase === "queued") return queuedText(job);
  if (phase === "running") return runningText(job);
  return text(phase);
}

// The server counts from 0: the jobs before this one.
function queuedText(job) {
  if (job === null) return text("starting");
  return job.position > 0 ? text("queued", { position: job.position + 1 }) : text("queued_next");
}

function runningText({ status, step, steps, seconds_left }) {
  if (status === "done" || (steps > 0 && step >= steps)) return text("finishing");
  if (step === 0) return text("starting");
  if (seconds_left === null) return text("running", { step, steps });
  return text("running_left", { step, steps, time: duration(seconds_left) });
}

function renderProgress(active, job) {
  show("progress", active);
  const bar = element("bar");
  if (page.phase === "running" && job.steps > 0) {
    bar.max = job.steps;
    bar.value = job.step;
  } else {
    bar.max = 1;
    bar.value = 0;
  }
}

function renderActions(shown, info) {
  const download = element("download");
  download.hidden = !shown;
  if (shown) {
    download.href = shown.url;
    download.download = `calotype-${shown.seed}.png`;
  }
  show("use", Boolean(shown && info?.accepts_images));
}

function renderWarnings(warnings) {
  show("warnings", warnings.length > 0);
  element("warnings").replaceChildren(...warnings.map((warning) => {
    const item = document.createElement("li");
    item.textContent = warning;
    return item;
  }));
}

// Examples are buttons that fill the prompt. Where only fixed prompts are drawn they are a choice, and there is no free text.
function renderPrompts() {
  const fixed = page.info?.fixed_prompts ?? null;
  const prompts = fixed ?? page.info?.presets ?? [];
  const chosen = fixed ? chosenPrompt() : "";
  show("free", !fixed);
  show("negative-field", !fixed);
  element("prompt").required = !fixed;
  element(fixed ? "presets" : "free").after(element("draw"));
  show("presets", prompts.length > 0);
  element("presets-legend").classList.toggle("title", Boolean(fixed));
  element("presets-legend").textContent = text(fixed ? "fixed" : "presets");
  element("preset-list").replaceChildren(...prompts.map(fixed ? (prompt) => fixedPrompt(prompt, chosen) : preset));
}

function preset(prompt) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = prompt;
  button.addEventListener("click", () => { element("prompt").value = prompt; });
  return button;
}

function fixedPrompt(prompt, chosen) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  label.className = "chip";
  Object.assign(input, { type: "radio", name: "prompt", value: prompt, required: true, checked: prompt === chosen });
  label.append(input, prompt);
  return label;
}

// Sets the text of the live region.
function announce(message) {
  element("live").textContent = message;
}

// A screen reader is told of the place in the queue, the start and each quarter, not of each step.
function announceJob(before, after) {
  const quarter = (job) => Math.floor((4 * job.step) / Math.max(1, job.steps));
  const { status } = after;
  if (status === "queued" && before?.position !== after.position) announce(queuedText(after));
  if (status !== "running") return;
  if (before?.status !== "running" || quarter(before) !== quarter(after)) announce(runningText(after));
}

function scrollToStage() {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element("stage").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "nearest" });
}

// ---------------------------------------------------------------------------------------------- init image

// Reads an image, cuts its middle to the model's proportions, and scales it to the model's size, so that little is sent.
async function useFile(file) {
  showInitError("");
  if (file.size > 1e6 * LIMITS.file_mb) return showInitError(text("image_large", { limit: LIMITS.file_mb }));
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return showInitError(text("image_unreadable"));
  }
  setInit(toInit(bitmap, bitmap.width, bitmap.height));
  bitmap.close();
  return element("strength").scrollIntoView({ block: "nearest" });
}

function toInit(source, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = page.info.width;
  canvas.height = page.info.height;
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // Under what is transparent.
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  const scale = Math.max(canvas.width / width, canvas.height / height);
  const [w, h] = [scale * width, scale * height];
  context.drawImage(source, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
  return canvas.toDataURL("image/png");
}

function setInit(image) {
  page.init = image;
  show("init", image !== null);
  element("init-image").alt = text("init_alt");
  if (image) element("init-image").src = image;
  else element("init-image").removeAttribute("src");
}

function showInitError(message) {
  show("init-error", message !== "");
  element("init-error").textContent = message;
}

function renderStrength() {
  const value = Number(element("strength").value);
  const shown = new Intl.NumberFormat(page.language, { style: "percent" }).format(value);
  element("strength-value").textContent = shown;
  element("strength").setAttribute("aria-valuetext", shown);
  element("init-image").alt = text("init_alt");
}

function imageOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/") || file.type === "");
}

function acceptsImages() {
  return Boolean(page.info?.accepts_images);
}

function onDrag(event) {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault(); // Or the browser would open the file and leave the page.
  document.body.classList.toggle("dropping", acceptsImages());
}

function onDrop(event) {
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length === 0) return;
  event.preventDefault();
  if (acceptsImages()) useFile(imageOf(event.dataTransfer) ?? event.dataTransfer.files[0]);
}

function onPaste(event) {
  const file = imageOf(event.clipboardData);
  if (file && acceptsImages()) useFile(file);
}

// Browsers lend a camera to pages of the same machine or of https only.
async function openCamera() {
  const video = element("video");
  show("camera-error", false);
  element("camera-dialog").showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" }, audio: false });
    if (!element("camera-dialog").open) return stopCamera(stream);
    video.srcObject = stream;
    video.classList.toggle("mirrored", stream.getVideoTracks()[0].getSettings().facingMode !== "environment");
    await video.play();
  } catch (error) {
    show("camera-error", true);
    element("camera-error").textContent = text("camera_failed", { reason: error.message });
  }
}

function shoot() {
  const video = element("video");
  if (!video.videoWidth) return;
  setInit(toInit(video, video.videoWidth, video.videoHeight));
  element("camera-dialog").close();
}

function stopCamera(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function closeCamera() {
  stopCamera(element("video").srcObject);
  element("video").srcObject = null;
}

// ---------------------------------------------------------------------------------------------- gallery

// The images of this browser, in IndexedDB, where they outlast a reload and a restart of the server. Where the browser has
// none (private windows), they are kept until the page is left.
function openStore() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("calotype", 2);
    request.onupgradeneeded = () => request.result.createObjectStore("images", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function inStore(mode, work) {
  try {
    const store = await openStore();
    const transaction = store.transaction("images", mode);
    const request = work(transaction.objectStore("images"));
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
    store.close();
    return request.result;
  } catch {
    return null;
  }
}

async function loadGallery() {
  const saved = (await inStore("readonly", (store) => store.getAll())) ?? [];
  saved.sort((a, b) => b.added - a.added);
  page.images = saved.map((image) => ({ ...image, url: URL.createObjectURL(image.blob) }));
  renderGallery();
}

async function addImage(image) {
  const saved = { ...image, added: Date.now() };
  const shown = { ...saved, url: URL.createObjectURL(image.blob) };
  page.images = [shown, ...page.images.filter((other) => other.id !== shown.id)];
  await inStore("readwrite", (store) => store.put(saved));
  for (const old of page.images.splice(LIMITS.gallery_images)) await dropImage(old);
  renderGallery();
  return shown;
}

function dropImage(image) {
  URL.revokeObjectURL(image.url);
  return inStore("readwrite", (store) => store.delete(image.id));
}

// Deletes before it shows, so that what looks deleted is also gone after a reload at once.
async function clearGallery() {
  await inStore("readwrite", (store) => store.clear());
  for (const image of page.images) URL.revokeObjectURL(image.url);
  page.images = [];
  if (page.shown) Object.assign(page, { shown: null, request: null, phase: "start", error: "" });
  renderGallery();
  render();
}

function renderGallery() {
  const focused = document.activeElement?.dataset.id;
  show("gallery", page.images.length > 0);
  element("images").replaceChildren(...page.images.map(galleryItem));
  renderPressed();
  galleryButtons().find((button) => button.dataset.id === focused)?.focus();
}

function renderPressed() {
  for (const button of galleryButtons()) {
    button.setAttribute("aria-pressed", String(button.dataset.id === page.shown?.id));
    button.setAttribute("aria-disabled", String(isActive()));
  }
}

function galleryButtons() {
  return [...element("images").querySelectorAll("button")];
}

function galleryItem(image) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const thumbnail = document.createElement("img");
  thumbnail.src = image.url;
  thumbnail.alt = "";
  button.type = "button";
  button.setAttribute("aria-label", text("show", { prompt: image.prompt }));
  button.dataset.id = image.id;
  button.append(thumbnail);
  button.addEventListener("click", () => showImage(image));
  item.append(button);
  return item;
}

function showImage(image) {
  if (isActive()) return; // The frame belongs to the image that is being drawn.
  Object.assign(page, { shown: image, phase: "done", error: "" });
  render();
  scrollToStage();
}

// ---------------------------------------------------------------------------------------------- idle reset

const idle = { warn: null, reset: null };

// Without input for `idle_s` the page starts over, for the next visitor. While an image is drawn nobody need touch anything.
function restartIdle() {
  clearTimeout(idle.warn);
  clearTimeout(idle.reset);
  show("idle", false);
  const idle_s = page.info?.idle_s;
  if (!idle_s || isActive()) return;
  const warning_s = Math.min(LIMITS.idle_warning_s, idle_s / 2);
  idle.warn = setTimeout(() => show("idle", !isStart()), 1000 * (idle_s - warning_s));
  idle.reset = setTimeout(startOver, 1000 * idle_s);
}

// Nothing to start over from, so no warning either.
function isStart() {
  return isUntouched() && page.images.length === 0 && page.language === preferredLanguage();
}

// Nothing of one visitor is left for the next: neither words nor images.
async function startOver() {
  page.run?.abort();
  session.removeItem("job");
  if (element("camera-dialog").open) element("camera-dialog").close();
  element("form").reset();
  element("settings").open = false;
  element("strength").value = DEFAULT_STRENGTH;
  document.body.classList.remove("pixels");
  setInit(null);
  showInitError("");
  Object.assign(page, { phase: "start", request: null, job: null, preview: null, shown: null, error: "", cancelling: false });
  show("idle", false);
  announce("");
  const cleared = clearGallery();
  setLanguage(preferredLanguage());
  scrollTo(0, 0);
  await cleared;
  reloadIfOld();
}

// ---------------------------------------------------------------------------------------------- input

function onKey(event) {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) cancel();
  const enters = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (enters && event.target === element("prompt")) {
    event.preventDefault();
    element("form").requestSubmit();
  }
}

function onClick(id, action) {
  element(id).addEventListener("click", action);
}

function listen() {
  element("form").addEventListener("submit", (event) => { event.preventDefault(); drawForm(); });
  // A field that is refused must be seen.
  element("form").addEventListener("invalid", () => { if (document.querySelector("#settings :invalid")) element("settings").open = true; }, true);
  element("language").addEventListener("change", (event) => setLanguage(event.target.value));
  element("enlarge").addEventListener("change", (event) => document.body.classList.toggle("pixels", event.target.value === "pixels"));
  element("strength").addEventListener("input", renderStrength);
  element("file").addEventListener("change", (event) => {
    if (event.target.files.length > 0) useFile(event.target.files[0]);
    event.target.value = ""; // The same file can be chosen again.
  });
  element("token-form").addEventListener("submit", saveToken);
  element("camera-dialog").addEventListener("close", closeCamera);
  onClick("choose", () => element("file").click());
  onClick("camera", openCamera);
  onClick("shoot", shoot);
  onClick("close-camera", () => element("camera-dialog").close());
  onClick("remove-init", () => { setInit(null); element("choose").focus(); });
  onClick("cancel", cancel);
  onClick("again", () => draw(page.request));
  onClick("use", () => useFile(page.shown.blob));
  onClick("clear", clearGallery);
  onClick("try-now", () => wake.dispatchEvent(new Event("wake")));
  addEventListener("online", () => wake.dispatchEvent(new Event("wake")));
  document.addEventListener("keydown", onKey);
  document.addEventListener("dragover", onDrag);
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", onDrop);
  document.addEventListener("paste", onPaste);
  for (const name of ["pointerdown", "keydown", "input", "wheel", "touchstart"]) {
    document.addEventListener(name, restartIdle, { passive: true, capture: true });
  }
}

async function start() {
  takeToken();
  fillLanguages();
  element("strength").value = DEFAULT_STRENGTH;
  show("camera", Boolean(navigator.mediaDevices?.getUserMedia));
  setLanguage(preferredLanguage());
  listen();
  watchServer();
  await loadGallery();
  resume();
}

start();

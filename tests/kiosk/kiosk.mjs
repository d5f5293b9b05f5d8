// Drives the kiosk page in Chromium: `node kiosk.mjs [--calotype PROGRAM] [--page FOLDER] [--screenshots FOLDER] [--only WORDS]`.
//
// Without --calotype the server is mock.mjs. --page takes the page's files from there, in place of those that the server has.
// Chromium is the system's, at $CHROMIUM or in the PATH.
// Prints one line a check, and ends with 1 if one failed.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, delimiter, join } from "node:path";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { encodePng, sizeOfPng } from "./png.mjs";
import { Network, Server } from "./server.mjs";

const { values: options } = parseArgs({
  options: {
    calotype: { type: "string" },
    page: { type: "string" },
    screenshots: { type: "string" },
    only: { type: "string", default: "" },
  },
});

const PAGE_LIMIT_BYTES = 150_000;
const FINGER_PX = 44;
const DRAW_MS = 60_000;
const SLOW_STEPS = 150; // Long enough to do something meanwhile, on the built-in model too.
const APPLE = "a red apple on a blue background";
const LONG = "antidisestablishmentarianism".repeat(4); // A word that fits no narrow column.
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

const checks = [];
const check = (name, work, serverOptions = {}) => checks.push({ name, work, serverOptions });

// ---------------------------------------------------------------------------------------------- checks

check("draws an image, with previews, steps and the time left", async ({ open, server }) => {
  const page = await open();
  const seen = await watch(page);
  await draw(page, APPLE, { seed: 42 });
  await done(page);
  const { previews, statuses } = await seen();
  assert.ok(previews >= 3, `${previews} previews`);
  assert.ok(statuses.some((status) => /^Step \d+ of 20, about .+ left$/.test(status)), statuses.join(" | "));
  const image = await imageBytes(page);
  const { width, height } = await server.info();
  assert.deepEqual(sizeOfPng(image), [width, height]);
  const [job] = (await server.json("api/jobs")).jobs;
  assert.deepEqual(image, Buffer.from(await (await fetch(server.url + job.image.slice(1))).arrayBuffer()));
  assert.equal(await page.getAttribute("#download", "download"), "calotype-42.png");
  assert.equal(await page.textContent("#caption"), APPLE);
  assert.equal(await page.locator("#images button").count(), 1);
});

check("announces turns, and not each step", async ({ open }) => {
  const page = await open();
  const seen = await watch(page);
  await draw(page, APPLE);
  await done(page);
  const { said } = await seen();
  assert.equal(said.at(-1), "Done");
  assert.ok(said.some((text) => text.startsWith("Step ")), said.join(" | "));
  assert.ok(said.length <= 9, said.join(" | "));
});

check("cancels by the button and by Escape", async ({ open, server }) => {
  const page = await open();
  for (const press of [() => page.click("#cancel"), () => page.keyboard.press("Escape")]) {
    await draw(page, APPLE, { steps: SLOW_STEPS });
    await running(page);
    await press();
    await status(page, "Cancelled");
    assert.equal((await server.json("api/jobs")).jobs[0].status, "cancelled");
    assert.ok(await page.isVisible("#again") && await page.isHidden("#error"));
    // An older answer can come later.
    await new Promise((resolve) => setTimeout(resolve, 300));
    await status(page, "Cancelled");
  }
  assert.equal(await page.locator("#images button").count(), 0);
  await draw(page, APPLE, { steps: "" });
  await done(page);
});

check("draws from an upload, scaled to the model's size, with the strength", async ({ open, server }) => {
  const page = await open();
  await page.setInputFiles("#file", { name: "wide.png", mimeType: "image/png", buffer: encodePng(640, 400, (x) => [x % 256, 80, 80]) });
  await page.waitForSelector("#init:not([hidden])");
  await page.focus("#strength");
  for (let press = 0; press < 4; press++) await page.keyboard.press("ArrowLeft");
  assert.equal(await page.textContent("#strength-value"), "40%");
  const sent = page.waitForRequest((request) => request.method() === "POST" && request.url().endsWith("/api/jobs"));
  await draw(page, APPLE);
  const { recipe, init } = (await sent).postDataJSON();
  const { width, height } = await server.info();
  assert.deepEqual(sizeOfPng(Buffer.from(init.split(",")[1], "base64")), [width, height]);
  assert.equal(recipe.strength, 0.4);
  await done(page);
  await page.click("#remove-init");
  assert.ok(await page.isHidden("#init"));
  assert.ok("strength" in recipe && !("strength" in (await nextRecipe(page))));
});

check("keeps the middle of an upload, and its proportions", async ({ open, server }) => {
  const page = await open();
  const thirds = (x) => (x < 100 ? [255, 0, 0] : x < 300 ? [0, 255, 0] : [0, 0, 255]);
  await page.setInputFiles("#file", { name: "thirds.png", mimeType: "image/png", buffer: encodePng(400, 200, thirds) });
  await page.waitForSelector("#init:not([hidden])");
  const { width, height } = await server.info();
  const colours = await page.evaluate(async ([w, h]) => {
    const image = document.getElementById("init-image");
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: w, height: h });
    canvas.getContext("2d").drawImage(image, 0, 0);
    return [3, w / 2, w - 4].map((x) => [...canvas.getContext("2d").getImageData(x, h / 2, 1, 1).data.slice(0, 3)]);
  }, [width, height]);
  assert.deepEqual(colours, [[0, 255, 0], [0, 255, 0], [0, 255, 0]]);
});

check("says which files are no images", async ({ open }) => {
  const page = await open();
  await page.setInputFiles("#file", { name: "notes.png", mimeType: "image/png", buffer: Buffer.from("no image") });
  await page.waitForSelector("#init-error:not([hidden])");
  assert.match(await page.textContent("#init-error"), /not an image/);
  assert.ok(await page.isHidden("#init"));
});

check("takes a dropped image", async ({ open }) => {
  const page = await open();
  const bytes = [...encodePng(32, 32, () => [200, 10, 10])];
  await page.evaluate((png) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(png)], "dropped.png", { type: "image/png" }));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, bytes);
  await page.waitForSelector("#init:not([hidden])");
});

check("draws from the camera", async ({ open }) => {
  const page = await open();
  await page.click("#camera");
  await page.waitForFunction(() => document.getElementById("video").videoWidth > 0);
  await page.click("#shoot");
  await page.waitForSelector("#init:not([hidden])");
  assert.equal(await page.evaluate(() => document.getElementById("video").srcObject), null);
  await page.click("#camera");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#camera-dialog[open]", { state: "detached" });
});

check("draws from a finished image", async ({ open }) => {
  const page = await open();
  await draw(page, APPLE);
  await done(page);
  await page.click("#use");
  await page.waitForSelector("#init:not([hidden])");
});

check("draws fixed prompts only", async ({ open, server }) => {
  const page = await open();
  const { fixed_prompts: prompts } = await server.info();
  assert.ok(await page.isHidden("#prompt"));
  await page.click("#settings summary");
  assert.ok(await page.isHidden("#negative"));
  assert.deepEqual(await page.locator("#preset-list label").allTextContents(), prompts);
  await page.locator("#preset-list input").first().focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await done(page);
  assert.equal(await page.textContent("#caption"), prompts[1]);
}, { fixed: [APPLE, "a dog on a white background", "a rocket on a black background"] });

check("offers examples that fill the prompt", async ({ open, server }) => {
  const page = await open();
  const { presets } = await server.info();
  await page.locator("#preset-list button").nth(1).click();
  assert.equal(await page.inputValue("#prompt"), presets[1]);
});

check("survives a restart of the server, and draws the lost image again", async ({ open, server }) => {
  const page = await open();
  await draw(page, APPLE, { steps: SLOW_STEPS, seed: 5 });
  await running(page);
  await server.kill();
  await page.waitForSelector("#connection:not([hidden])");
  await server.start();
  await status(page, /restarted/);
  assert.ok(await page.isHidden("#connection"));
  await page.fill("#prompt", "something else");
  await page.click("#again");
  await done(page);
  const [job] = (await server.json("api/jobs")).jobs;
  assert.deepEqual([job.prompt, job.seed, job.steps], [APPLE, 5, SLOW_STEPS]);
});

check("says that there is no connection while nothing is drawn, and recovers", async ({ open, server }) => {
  const page = await open();
  await server.kill();
  await draw(page, APPLE);
  await status(page, /could not be reached/);
  assert.ok(await page.isVisible("#connection"));
  await server.start();
  await page.click("#try-now");
  await page.waitForSelector("#connection", { state: "hidden" });
  await page.click("#again");
  await done(page);
});

check("goes on with a running image after the network failed", async ({ open, server }) => {
  const network = await Network.before(server);
  const page = await open({ url: network.url });
  await draw(page, APPLE, { steps: SLOW_STEPS });
  await running(page);
  network.cut();
  await page.waitForSelector("#connection:not([hidden])");
  await new Promise((resolve) => setTimeout(resolve, 1500));
  network.mend();
  await done(page);
  assert.ok(await page.isHidden("#connection"));
  assert.equal((await server.json("api/jobs")).jobs.length, 1);
  network.end();
});

check("cancels an image through a failed network", async ({ open, server }) => {
  const network = await Network.before(server);
  const page = await open({ url: network.url });
  await draw(page, APPLE, { steps: 2 * SLOW_STEPS });
  await running(page);
  network.cut();
  await page.waitForSelector("#connection:not([hidden])");
  await page.click("#cancel");
  network.mend();
  await status(page, "Cancelled");
  assert.equal((await server.json("api/jobs")).jobs[0].status, "cancelled");
  network.end();
});

check("shows the image that a late cancel did not stop", async ({ open, server }) => {
  const network = await Network.before(server);
  const page = await open({ url: network.url });
  await draw(page, APPLE, { steps: SLOW_STEPS });
  await running(page);
  network.cut();
  await page.waitForSelector("#connection:not([hidden])");
  await page.click("#cancel");
  while ((await server.json("api/jobs")).jobs[0].status !== "done") await new Promise((resolve) => setTimeout(resolve, 100));
  network.mend();
  await done(page);
  assert.ok(await page.isHidden("#error"));
  network.end();
});

check("goes on with a running image after the page is loaded anew, and keeps the gallery", async ({ open }) => {
  const page = await open();
  await draw(page, APPLE);
  await done(page);
  await draw(page, "a green pig on a white background", { steps: SLOW_STEPS });
  await running(page);
  await page.reload();
  await running(page);
  await done(page);
  assert.equal(await page.locator("#images button").count(), 2);
  await page.locator("#images button").nth(1).click();
  assert.equal(await page.textContent("#caption"), APPLE);
  await page.click("#clear");
  await page.waitForSelector("#gallery", { state: "hidden" });
  await page.reload();
  await ready(page);
  assert.ok(await page.isHidden("#gallery"));
});

check("waits in the queue, and for a place in a full one", async ({ open, server }) => {
  const page = await open();
  const others = [];
  const slow = { recipe: { version: 1, prompt: "a rocket on a black background", steps: 4 * SLOW_STEPS, seed: 1 } };
  others.push(await server.post("api/jobs", slow), await server.post("api/jobs", slow));
  await draw(page, APPLE);
  await status(page, "Waiting: position 2 in the queue");
  await page.keyboard.press("Escape");
  await status(page, "Cancelled");
  for (let job; (job = await server.post("api/jobs", slow)).http !== 429;) others.push(job);
  await draw(page, APPLE);
  await status(page, /^The queue is full/);
  for (const { id } of others.reverse()) await server.post(`api/jobs/${id}/cancel`);
  await done(page);
  const own = (await server.json("api/jobs")).jobs.filter((job) => job.prompt === APPLE).map((job) => job.status);
  assert.deepEqual(own, ["done", "cancelled"]);
});

check("takes the token from the address, and asks for it otherwise", async ({ open, browserContext, server }) => {
  const page = await open({ fragment: `#token=${server.token}` });
  assert.equal(page.url(), server.url);
  await draw(page, APPLE);
  await done(page);
  // The browser itself knows the token too, as a password: it must not be asked.
  const other = await (await browserContext({ httpCredentials: { username: "me", password: server.token } })).newPage();
  await other.goto(server.url);
  for (const token of ["wrong", server.token]) {
    await other.waitForSelector("#token-dialog[open]");
    await other.fill("#token", token);
    await other.keyboard.press("Enter");
  }
  await ready(other);
  assert.ok(await other.isHidden("#token-dialog"));
  await draw(other, APPLE);
  await done(other);
}, { token: "a-token-of-tests" });

check("works where the browser blocks storage, and keeps the images of the page", async ({ browserContext, server }) => {
  const context = await browserContext();
  await context.addInitScript(() => {
    for (const name of ["sessionStorage", "indexedDB"]) {
      Object.defineProperty(window, name, { get() { throw new DOMException("blocked", "SecurityError"); } });
    }
  });
  const page = await context.newPage();
  await page.goto(`${server.url}#token=${server.token}`);
  await ready(page);
  for (const count of [1, 2]) {
    await draw(page, APPLE);
    await done(page);
    assert.equal(await page.locator("#images button").count(), count);
  }
}, { token: "a-token-of-tests" });

check("refuses a token that no header can carry", async ({ browserContext, server }) => {
  const page = await (await browserContext()).newPage();
  await page.goto(`${server.url}#token=schlüssel€`);
  await page.waitForSelector("#token-dialog[open]");
  await page.fill("#token", "schlüssel€");
  await page.keyboard.press("Enter");
  assert.ok(await page.isVisible("#token-dialog"));
  await page.fill("#token", server.token);
  await page.keyboard.press("Enter");
  await ready(page);
}, { token: "a-token-of-tests" });

check("starts over after a time without input", async ({ open }) => {
  const page = await open();
  await page.selectOption("#language", "de");
  await page.setInputFiles("#file", { name: "a.png", mimeType: "image/png", buffer: encodePng(8, 8, () => [9, 9, 9]) });
  await page.waitForSelector("#init:not([hidden])");
  await draw(page, APPLE);
  await done(page);
  await page.waitForSelector("#idle:not([hidden])");
  await page.click("#stay");
  assert.ok(await page.isHidden("#idle"));
  assert.equal(await page.inputValue("#prompt"), APPLE);
  await page.waitForFunction(() => document.getElementById("prompt").value === "", null, { timeout: 10_000 });
  assert.deepEqual(await page.evaluate(() => [document.documentElement.lang, location.hash]), ["en", ""]);
  for (const id of ["#init", "#image", "#gallery", "#idle", "#download"]) assert.ok(await page.isHidden(id), id);
}, { idle: 3 });

check("does not start over while it draws", async ({ open }) => {
  const page = await open();
  await draw(page, APPLE, { steps: SLOW_STEPS });
  const seen = await watch(page);
  await done(page);
  const { statuses } = await seen();
  assert.ok(statuses.length > 10, statuses.join(" | "));
}, { idle: 2 });

check("shows what the server refuses, as text", async ({ open }) => {
  const page = await open();
  const prompt = "warn <img src=x onerror=alert(1)> & <b>bold</b>";
  await draw(page, prompt);
  await done(page);
  assert.equal(await page.textContent("#caption"), prompt);
  assert.equal(await page.locator("img[src=x], #caption b").count(), 0);
  await page.click("#settings summary").catch(() => {});
  await page.route("**/api/jobs", (route) => route.fulfill({ status: 422, json: { error: { message: "steps: expected <i>1</i> to 150, got 0" } } }));
  await draw(page, APPLE);
  await status(page, /could not be generated/);
  assert.equal(await page.textContent("#error"), "steps: expected <i>1</i> to 150, got 0");
});

check("keeps all digits of a seed", async ({ open }) => {
  const page = await open();
  const seed = "18446744073709551615";
  await page.route(/api\/jobs\/[^/]+$/, async (route) => {
    const body = await (await route.fetch()).text();
    await route.fulfill({ body: body.replace(/"seed":\d+/, `"seed":${seed}`), contentType: "application/json" });
  });
  await page.route(/events$/, (route) => route.fulfill({ body: "", contentType: "text/event-stream" }));
  await draw(page, APPLE);
  await done(page);
  assert.equal(await page.getAttribute("#download", "download"), `calotype-${seed}.png`);
});

check("keeps 24 images, the newest first", async ({ open }) => {
  const page = await open();
  for (let seed = 1; seed <= 26; seed++) {
    await draw(page, APPLE, { steps: 1, seed });
    await page.waitForFunction((name) => document.getElementById("download").download === name, `calotype-${seed}.png`);
  }
  const seeds = async () => {
    const buttons = page.locator("#images button");
    assert.equal(await buttons.count(), 24);
    await buttons.last().click();
    return page.getAttribute("#download", "download");
  };
  assert.equal(await seeds(), "calotype-3.png");
  await page.reload();
  await page.waitForSelector("#gallery:not([hidden])");
  assert.equal(await seeds(), "calotype-3.png");
});

check("enlarges smoothly or by pixels", async ({ open }) => {
  const page = await open();
  const rendering = () => page.evaluate(() => getComputedStyle(document.getElementById("image")).imageRendering);
  assert.equal(await rendering(), "auto");
  await page.click("#settings summary");
  await page.selectOption("#enlarge", "pixels");
  assert.equal(await rendering(), "pixelated");
});

check("loads a newer server's page while nobody uses it", async ({ open }) => {
  const page = await open();
  await page.route("**/api/info", async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, json: { ...(await response.json()), version: "later" } });
  });
  const look = () => page.evaluate(() => { window.isOld = true; dispatchEvent(new Event("online")); });
  await page.fill("#prompt", "a");
  await Promise.all([page.waitForResponse("**/api/info"), look()]);
  await page.waitForTimeout(300);
  assert.equal(await page.evaluate(() => window.isOld), true);
  await page.fill("#prompt", "");
  await Promise.all([page.waitForEvent("load"), look()]);
  assert.equal(await page.evaluate(() => window.isOld), undefined);
});

check("works by keyboard alone", async ({ open }) => {
  const page = await open();
  await tabTo(page, "prompt");
  await page.keyboard.type(APPLE);
  await page.keyboard.press("Enter");
  await done(page);
  const reached = await tabOrder(page);
  for (const id of ["language", "prompt", "draw", "choose", "camera", "download", "use", "clear"]) assert.ok(reached.includes(id), `${id} in ${reached}`);
  await tabTo(page, "use");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#init:not([hidden])");
  const after = await tabOrder(page);
  for (const id of ["strength", "remove-init"]) assert.ok(after.includes(id), `${id} in ${after}`);
  assert.ok(await page.evaluate(() => [...document.querySelectorAll(":focus-visible")].every((node) => getComputedStyle(node).outlineStyle !== "none")));
});

check("gives the focus a place when a button goes away", async ({ open }) => {
  const page = await open();
  await draw(page, APPLE, { steps: SLOW_STEPS });
  await running(page);
  await page.focus("#cancel");
  await page.keyboard.press("Enter");
  await status(page, "Cancelled");
  assert.equal(await focused(page), "again");
  await page.keyboard.press("Enter");
  await running(page);
  assert.equal(await focused(page), "cancel");
});

for (const colorScheme of ["light", "dark"]) {
  check(`axe finds nothing in ${colorScheme} colours`, async ({ open }) => {
    const page = await open({ colorScheme, reducedMotion: "reduce" });
    await axe(page, "start");
    await page.click("#settings summary");
    await page.setInputFiles("#file", { name: "a.png", mimeType: "image/png", buffer: encodePng(8, 8, () => [9, 9, 9]) });
    await page.waitForSelector("#init:not([hidden])");
    await draw(page, `warn ${APPLE}`, { steps: SLOW_STEPS });
    await running(page);
    await axe(page, "running");
    await page.keyboard.press("Escape");
    await status(page, "Cancelled");
    await axe(page, "cancelled");
    await draw(page, `warn ${APPLE}`, { steps: 4 });
    await done(page);
    await axe(page, "done");
    await page.evaluate(() => { for (const id of ["idle", "connection", "error", "init-error"]) document.getElementById(id).hidden = false; });
    await page.evaluate(() => { for (const id of ["error", "init-error"]) document.getElementById(id).textContent = "refused"; });
    await axe(page, "notices");
    for (const id of ["camera-dialog", "token-dialog"]) {
      await page.evaluate((dialog) => document.getElementById(dialog).showModal(), id);
      await axe(page, id);
      await page.evaluate((dialog) => document.getElementById(dialog).close(), id);
    }
  });

  check(`axe finds nothing with fixed prompts in ${colorScheme} colours`, async ({ open }) => {
    const page = await open({ colorScheme, reducedMotion: "reduce" });
    await page.locator("#preset-list label").first().click();
    await axe(page, "fixed prompts");
  }, { fixed: [APPLE, "a dog on a white background"] });
}

check("fits 320 pixels, and fingers, in each language", async ({ open }) => {
  const page = await open({ viewport: { width: 320, height: 640 } });
  await page.click("#settings summary");
  await page.setInputFiles("#file", { name: "a.png", mimeType: "image/png", buffer: encodePng(8, 8, () => [9, 9, 9]) });
  await page.waitForSelector("#init:not([hidden])");
  for (const language of ["en", "de", "es"]) {
    await page.selectOption("#language", language);
    await fits(page, `${language}, start`);
    await draw(page, LONG, { steps: SLOW_STEPS });
    await page.waitForFunction(() => document.getElementById("bar").value > 1);
    await fits(page, `${language}, running`);
    await page.keyboard.press("Escape");
    await page.waitForSelector("#again:not([hidden])");
    await fits(page, `${language}, cancelled`);
    await draw(page, LONG, { steps: 2 });
    await done(page);
    await fits(page, `${language}, done`);
  }
});

check("shows the image without scrolling after Generate at 320 pixels", async ({ open }) => {
  const page = await open({ viewport: { width: 320, height: 640 }, reducedMotion: "reduce" });
  await draw(page, APPLE, { steps: SLOW_STEPS });
  await running(page);
  const frame = await page.locator("#frame").boundingBox();
  const cancel = await page.locator("#cancel").boundingBox();
  assert.ok(frame.y + 100 > 0 && cancel.y + cancel.height <= 640, JSON.stringify([frame, cancel]));
});

check("rests where motion is not wanted", async ({ open }) => {
  const moving = (page) => page.evaluate(() => getComputedStyle(document.getElementById("draw")).transitionDuration);
  assert.notEqual(await moving(await open({ reducedMotion: "no-preference" })), "0s");
  assert.equal(await moving(await open({ reducedMotion: "reduce" })), "0s");
});

check("speaks the browser's language, and says the same in each", async ({ open }) => {
  for (const [locale, language, word] of [["de-CH", "de", "Zeichnen"], ["es-MX", "es", "Dibujar"], ["ja", "en", "Generate"]]) {
    const page = await open({ locale });
    assert.equal(await page.textContent("#draw"), word);
    assert.equal(await page.evaluate(() => document.documentElement.lang), language);
  }
  const page = await open();
  const [texts, keys] = await page.evaluate(async () => {
    const { TEXTS } = await import("/kiosk/texts.js");
    const nodes = document.querySelectorAll("[data-text], [data-label], [data-placeholder]");
    return [TEXTS, [...nodes].flatMap((node) => Object.entries(node.dataset)).map(([, key]) => key)];
  });
  const code = await (await fetch(new URL("/kiosk/app.js", page.url()))).text();
  const phases = ["sending", "done", "cancelled", "failed", "lost", "unsent"];
  const used = new Set([...keys, ...phases, ...[...code.matchAll(/\btext\("(\w+)"/g)].map((found) => found[1]), "name", "fixed", "presets"]);
  const names = (text) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();
  for (const [language, entries] of Object.entries(texts)) {
    assert.deepEqual(Object.keys(entries).sort(), [...used].sort(), language);
    for (const [key, text] of Object.entries(entries)) assert.deepEqual(names(text), names(texts.en[key]), `${language}: ${key}`);
  }
  assert.deepEqual(Object.keys(texts).sort(), ["de", "en", "es"]);
});

check(`weighs at most ${PAGE_LIMIT_BYTES} bytes, and needs nothing from elsewhere`, async ({ browserContext, server }) => {
  const page = await (await browserContext()).newPage();
  const answers = [];
  page.on("response", (response) => answers.push(response));
  await page.goto(server.url, { waitUntil: "networkidle" });
  await ready(page);
  const own = answers.filter((response) => !response.url().startsWith("data:"));
  assert.ok(own.every((response) => response.url().startsWith(server.url)), own.map((response) => response.url()).join(" "));
  const files = own.filter((response) => !response.url().includes("/api/"));
  assert.equal(files.length, 5, files.map((response) => response.url()).join(" "));
  const bytes = (await Promise.all(files.map((response) => response.body()))).reduce((sum, body) => sum + body.length, 0);
  console.log(`     ${bytes} bytes`);
  assert.ok(bytes <= PAGE_LIMIT_BYTES);
  const policy = files[0].headers()["content-security-policy"];
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe/);
});

if (options.screenshots) {
  const shots = {
    desktop: { viewport: { width: 1280, height: 860 } },
    narrow: { viewport: { width: 320, height: 640 } },
    dark: { viewport: { width: 1280, height: 860 }, colorScheme: "dark" },
  };
  for (const [name, context] of Object.entries(shots)) {
    check(`screenshot: ${name}`, async ({ open }) => {
      mkdirSync(options.screenshots, { recursive: true });
      const page = await open({ ...context, reducedMotion: "reduce" });
      for (const prompt of ["a rocket on a black background", "a smiley on a blue background", "a pink heart on a green background", APPLE]) {
        await draw(page, prompt, { seed: 1 });
        await done(page);
      }
      await page.evaluate(() => { document.getElementById("settings").open = false; document.activeElement.blur(); });
      await page.evaluate((narrow) => narrow ? document.getElementById("stage").scrollIntoView() : scrollTo(0, 0), name === "narrow");
      await page.screenshot({ path: join(options.screenshots, `kiosk-${name}.png`), fullPage: name !== "narrow" });
    });
  }
}

// ---------------------------------------------------------------------------------------------- the page

async function ready(page) {
  await page.waitForSelector('#draw[aria-disabled="false"]');
}

// Fills the prompt and settings, and presses Enter.
async function draw(page, prompt, settings = {}) {
  if (Object.keys(settings).length > 0) await page.evaluate(() => { document.getElementById("settings").open = true; });
  for (const [name, value] of Object.entries(settings)) await page.fill(`#${name}`, String(value));
  await page.fill("#prompt", prompt);
  await page.press("#prompt", "Enter");
}

async function nextRecipe(page) {
  const sent = page.waitForRequest((request) => request.method() === "POST" && request.url().endsWith("/api/jobs"));
  await draw(page, APPLE);
  const { recipe } = (await sent).postDataJSON();
  await done(page);
  return recipe;
}

// Waits until at least one step of the present image is drawn.
async function running(page) {
  await page.waitForFunction(() => document.getElementById("bar").value >= 1 && !document.getElementById("progress").hidden);
}

// Waits for a finished image that is also loaded.
async function done(page) {
  await page.waitForSelector("#progress", { state: "hidden", timeout: DRAW_MS });
  await page.waitForSelector("#download:not([hidden])", { timeout: 2000 });
  await page.waitForFunction(() => document.getElementById("image").naturalWidth > 0);
}

async function status(page, expected) {
  const is = (text) => (expected instanceof RegExp ? expected.test(text) : text === expected);
  const until = Date.now() + 30_000;
  let text = "";
  while (Date.now() < until && !is((text = await page.textContent("#status")))) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(is(text), `expected the status ${expected}, got "${text}", error "${await page.textContent("#error")}"`);
}

// Records from now on; the function that comes back gives what was shown and said.
async function watch(page) {
  await page.evaluate(() => {
    window.seen = { previews: 0, statuses: [], said: [] };
    const record = (id, list) => new MutationObserver(() => list.push(document.getElementById(id).textContent))
      .observe(document.getElementById(id), { childList: true });
    record("status", window.seen.statuses);
    record("live", window.seen.said);
    new MutationObserver(() => { window.seen.previews += Number(document.getElementById("image").src.startsWith("data:")); })
      .observe(document.getElementById("image"), { attributeFilter: ["src"] });
  });
  return () => page.evaluate(() => window.seen);
}

async function imageBytes(page) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  return readFileSync(await download.path());
}

function focused(page) {
  return page.evaluate(() => document.activeElement.id || document.activeElement.tagName);
}

async function tabTo(page, id) {
  for (let press = 0; press < 60; press++) {
    if ((await focused(page)) === id) return;
    await page.keyboard.press("Tab");
  }
  assert.fail(`${id} is not reached by Tab`);
}

async function tabOrder(page) {
  const ids = [];
  for (let press = 0; press < 40; press++) {
    await page.keyboard.press("Tab");
    ids.push(await focused(page));
  }
  return ids;
}

async function axe(page, state) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate((tags) => window.axe.run(document, { runOnly: tags }), AXE_TAGS);
  const found = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.target).join(", ")}`);
  assert.deepEqual(found, [], state);
}

// No scrolling sideways, nothing beyond the edge, and targets for fingers.
async function fits(page, state) {
  const [scroll, beyond, small] = await page.evaluate((finger) => {
    const visible = (node) => node.checkVisibility() && node.getClientRects().length > 0 && !node.closest(".visually-hidden");
    const all = [...document.body.querySelectorAll("*")].filter(visible);
    const name = (node) => node.id || node.tagName + node.className;
    const targets = all.filter((node) => node.matches("button, a, select, summary, textarea, input, label.chip") && !node.closest(".chip *"));
    return [
      document.documentElement.scrollWidth,
      all.filter((node) => node.getBoundingClientRect().right > innerWidth + 0.5).map(name),
      targets.filter((node) => node.getBoundingClientRect().height < finger || node.getBoundingClientRect().width < finger).map(name),
    ];
  }, FINGER_PX);
  assert.deepEqual({ state, scroll, beyond, small }, { state, scroll: 320, beyond: [], small: [] });
}

// ---------------------------------------------------------------------------------------------- running

function findChromium() {
  const names = ["chromium", "chromium-browser", "google-chrome"];
  const found = process.env.PATH.split(delimiter).flatMap((folder) => names.map((name) => join(folder, name))).find(existsSync);
  return process.env.CHROMIUM ?? found ?? assert.fail("no chromium in the PATH: install it, or name it in CHROMIUM");
}

// With the headers of the server's own.
async function fromFolder(route) {
  const name = basename(new URL(route.request().url()).pathname) || "index.html";
  try {
    await route.fulfill({ response: await route.fetch(), body: readFileSync(join(options.page, name)) });
  } catch {
    await route.abort();
  }
}

// Each check has a server, a browser profile and a record of errors of its own.
async function runCheck(browser, { work, serverOptions }) {
  const server = await Server.start(options.calotype ?? null, serverOptions);
  const contexts = [];
  const errors = [];
  const browserContext = async (settings = {}) => {
    const context = await browser.newContext({ locale: "en-GB", permissions: ["camera"], ...settings });
    contexts.push(context);
    if (options.page) await context.route(/:\d+\/(kiosk\/[\w.]+)?$/, fromFolder);
    context.setDefaultTimeout(DRAW_MS);
    context.on("weberror", (error) => errors.push(error.error().message));
    // What the network and the server do is shown on the page; anything else in the console, like the content policy's, is a defect.
    context.on("console", (message) => {
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) errors.push(message.text());
    });
    return context;
  };
  const open = async ({ url = server.url, fragment = "", ...settings } = {}) => {
    const page = await (await browserContext(settings)).newPage();
    await page.goto(url + fragment);
    await ready(page);
    return page;
  };
  try {
    await work({ open, browserContext, server });
    assert.deepEqual(errors, [], "errors of the page");
  } finally {
    for (const context of contexts) {
      // What a page asks for at its end may still be answered by a check.
      for (const route of [context, ...context.pages()]) await route.unrouteAll({ behavior: "ignoreErrors" });
      await context.close();
    }
    await server.kill();
  }
}

const browser = await chromium.launch({
  executablePath: findChromium(),
  args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
});
const chosen = checks.filter(({ name }) => name.includes(options.only));
const failed = [];
for (const one of chosen) {
  const started = Date.now();
  try {
    await runCheck(browser, one);
    console.log(`ok   ${one.name} (${((Date.now() - started) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed.push(one.name);
    console.log(`FAIL ${one.name}\n     ${error.message.split("\n").join("\n     ")}`);
  }
}
await browser.close();
console.log(`${chosen.length - failed.length} of ${chosen.length} checks passed`);
process.exit(failed.length > 0 || chosen.length === 0 ? 1 : 0);
